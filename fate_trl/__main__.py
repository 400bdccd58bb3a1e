"""The command `fate-trl`, also as `python -m fate_trl`: Ctrl-C ends it without a traceback, while it starts too."""

from __future__ import annotations

import sys


def main() -> None:
    try:
        from .cli import main as command

        command()
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
