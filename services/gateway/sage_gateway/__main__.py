"""`python -m sage_gateway`: one gateway process, or the one that keeps `workers` of them running."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Final

from sage_actor import run_service
from sage_actor.help import build_parser
from sage_actor.service import EXIT_CONFIGURATION
from sage_core import ConfigurationError, load_settings
from sage_gateway.actor import GatewayActor
from sage_gateway.settings import GatewaySettings
from sage_gateway.workers import run_workers

__all__ = ["main"]

_PROGRAM: Final = "sage-gateway"
_DESCRIPTION: Final = "SAGE's OpenAI-compatible HTTP edge."


def main() -> int:
    """Run the gateway until it is told to stop; return the exit code."""
    options = build_parser(_PROGRAM, _DESCRIPTION, GatewaySettings).parse_args()
    try:
        settings = load_settings(GatewaySettings, Path(options.config) if options.config else None)
        if settings.gateway.workers > 1:
            return run_workers(options, settings)
    except ConfigurationError as error:
        sys.stderr.write("".join(f"{_PROGRAM}: {line}\n" for line in error.message.splitlines()))
        return EXIT_CONFIGURATION
    return run_service(
        kind=GatewayActor.kind,
        settings_type=GatewaySettings,
        build=lambda settings, context: GatewayActor(context, settings),
        description=_DESCRIPTION,
    )


if __name__ == "__main__":
    sys.exit(main())
