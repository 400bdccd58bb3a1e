"""A module that hangs when it is imported."""

import time

time.sleep(3600)


class Never: ...
