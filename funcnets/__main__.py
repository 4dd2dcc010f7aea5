"""What the command `funcnets` runs, and `python -m funcnets`."""

import sys


def main() -> None:
    """Run the command line, which Ctrl-C stops without a traceback while it is imported too."""
    try:
        from funcnets.cli import commands
    except KeyboardInterrupt:
        sys.exit(130)
    commands.main()


if __name__ == "__main__":
    main()
