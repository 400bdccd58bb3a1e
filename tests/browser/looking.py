"""What the browser tests share beside fixtures: screens, texts, and a run's viewer at an address."""

import contextlib
import threading

from fate_trl.report.viewer import Site, SiteServer
from fate_trl.testing.hostile import HOSTILE, LARGE

SCREENS = {
    "desktop": {"viewport": {"width": 1440, "height": 900}},
    "dark": {"viewport": {"width": 1440, "height": 900}, "color_scheme": "dark"},
    "phone": {"viewport": {"width": 390, "height": 844}, "is_mobile": True, "has_touch": True},
}
TEXTS = [text for name, text in HOSTILE.items() if name not in LARGE]
"""Hostile texts; the huge ones are for the index's tests."""


@contextlib.contextmanager
def serving(*folders):
    """Address of the viewer of a run, or of several."""
    with SiteServer(Site(*folders)) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        yield server.url
        server.shutdown()
        thread.join()
