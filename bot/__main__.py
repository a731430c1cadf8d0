"""The start of `musher`, and of `python -m bot`: a signal must find it ready before anything heavy is imported."""

from __future__ import annotations

import sys

from bot.ending import end_by_signals


def main() -> int:
    """Run the command that the process's arguments name, and give its exit code."""
    end_by_signals()
    from bot import cli

    return cli.main()


if __name__ == "__main__":
    sys.exit(main())
