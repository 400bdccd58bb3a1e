"""The command `fate-trl`, also as `python -m fate_trl`: Ctrl-C ends it without a traceback, while it starts too."""

from __future__ import annotations

import signal
import sys


def main() -> None:
    from .process.stop import interrupt

    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # what a shell runs in the background ignores it
        signal.signal(signal.SIGINT, interrupt)
    try:
        from .cli import main as command

        command()
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
