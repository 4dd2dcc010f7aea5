"""Entry point of the command `funcnets` and of `python -m funcnets`."""

import sys


def main() -> None:
    """Run the command line; Ctrl-C during its imports ends it without a traceback, too."""
    try:
        from funcnets.cli import commands
    except KeyboardInterrupt:
        sys.exit(130)
    commands.main()


if __name__ == "__main__":
    main()
