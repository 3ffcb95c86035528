"""Entry point of the `sage` command: every error leaves as one line on stderr and a stable exit code."""

from __future__ import annotations

import logging
import sys

import structlog

__all__ = ["main"]


def main() -> int:
    """Run the command line; return the exit code."""
    # What the libraries below log is for actors; a command says what matters itself.
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    try:
        from sage_cli.app import run
    except ModuleNotFoundError as error:
        if error.name not in ("typer", "rich", "httpx", "selectolax"):
            raise
        print(f"sage: {error.name} is not installed; run: pip install 'sage-serve[cli]'", file=sys.stderr)
        return 2
    return run(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
