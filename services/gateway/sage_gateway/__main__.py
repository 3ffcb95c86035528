"""`python -m sage_gateway`: one gateway process."""

from __future__ import annotations

import sys

from sage_actor import run_service
from sage_gateway.actor import GatewayActor
from sage_gateway.settings import GatewaySettings

__all__ = ["main"]


def main() -> int:
    """Run the gateway until it is told to stop; return the exit code."""
    return run_service(
        kind=GatewayActor.kind,
        settings_type=GatewaySettings,
        build=lambda settings, context: GatewayActor(context, settings),
        description="SAGE's OpenAI-compatible HTTP edge.",
    )


if __name__ == "__main__":
    sys.exit(main())
