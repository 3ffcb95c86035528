"""`main()` of every service: settings, telemetry, two connections, the runtime, signals, the service manager."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import sys
import threading
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Final, Protocol, TypeVar

import uvloop

from sage_actor.actor import Actor
from sage_actor.context import ActorContext
from sage_actor.help import build_parser
from sage_actor.notify import notify, watchdog_interval
from sage_actor.parent import die_with_parent
from sage_actor.runtime import ActorRuntime
from sage_bus.bus import Bus, BusEvent
from sage_core import (
    BusUnavailable,
    Cancelled,
    ConfigurationError,
    SageError,
    ServiceSettings,
    load_settings,
    new_id,
)
from sage_telemetry import Telemetry, configure, get_logger

__all__ = ["EXIT_BUS", "EXIT_CLEAN", "EXIT_CONFIGURATION", "EXIT_CRASHED", "Build", "run_service"]

EXIT_CLEAN: Final = 0
EXIT_CRASHED: Final = 1
EXIT_CONFIGURATION: Final = 2
EXIT_BUS: Final = 3
LEAVE_LIMIT: Final = 3.0
"""Seconds that threads may hold up the exit, once all is closed."""

_ACTOR_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")
S = TypeVar("S", bound=ServiceSettings)
S_contra = TypeVar("S_contra", bound=ServiceSettings, contravariant=True)
log = get_logger()


class Build(Protocol[S_contra]):
    """Makes the actor of one life from the service's settings."""

    def __call__(self, settings: S_contra, context: ActorContext, /) -> Actor:
        """Return a fresh actor."""
        ...


def run_service(
    *,
    kind: str,
    settings_type: type[S],
    build: Build[S],
    description: str,
    ready_check: Callable[[Actor], Awaitable[None]] | None = None,
    argv: Sequence[str] | None = None,
) -> int:
    """Run one actor until it is told to stop; return the exit code for `sys.exit`.

    0: drained after SIGTERM, SIGINT or a Drain message. 1: crashed four times in a row, could not start, or was
    forced by a second signal. 2: wrong settings, one line per problem on stderr. 3: NATS was not reachable at the
    start, or closed the connection for good. `ready_check` is awaited before the service manager hears READY.
    """
    prog = f"sage-{kind}"
    options = build_parser(prog, description, settings_type).parse_args(argv)
    actor_id = options.id or new_id(kind, 8)
    try:
        if options.parent_pid is not None and not die_with_parent(options.parent_pid):
            print(f"{prog}: --parent-pid {options.parent_pid} is not our parent; it ended, or the number is wrong",
                  file=sys.stderr)  # noqa: T201 - before logs exist
            return EXIT_CONFIGURATION
        if _ACTOR_ID.fullmatch(actor_id) is None:
            raise ConfigurationError(f"--id is {actor_id!r}; expected 1 to 64 of A-Z, a-z, 0-9, '_' and '-'")
        settings = load_settings(settings_type, Path(options.config) if options.config else None)
        telemetry = configure(prog, actor_id, settings.telemetry)
    except ConfigurationError as error:
        return _refuse(prog, error)
    service = _Service(kind, actor_id, settings, telemetry, lambda context: build(settings, context), ready_check)
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            code = runner.run(service.run())
    except ConfigurationError as error:
        code = _refuse(prog, error)
    finally:
        telemetry.shutdown(2.0)
    _leave_soon(code)
    return code
