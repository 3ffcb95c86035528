"""Structured logs on stderr: one line per event, JSON for machines or coloured text for people.

What a caller wrote (prompts, documents, keys) never reaches a log: such keys are replaced by their size, and
tracebacks carry no local variables.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import MutableMapping
from typing import Any, Final, TextIO, cast

import msgspec
import structlog
from structlog.typing import EventDict, FilteringBoundLogger, Processor

from sage_core import TelemetrySettings
from sage_telemetry.tracing import current_traceparent

__all__ = ["configure_logs", "get_logger"]

_LEVELS: Final = {"debug": 10, "info": 20, "warning": 30, "error": 40}
_WITHHELD: Final = frozenset(
    {
        "api_key", "authorization", "body", "completion", "content", "document", "documents", "input",
        "messages", "output", "password", "payload", "prompt", "query", "seed_key", "text", "texts", "token_ids",
    }
)  # fmt: skip


class _Stderr:
    """The stderr of the moment: loggers are made once, and a program may replace its stderr later."""

    def write(self, text: str) -> int:
        return sys.stderr.write(text)

    def flush(self) -> None:
        sys.stderr.flush()


_STDERR: Final = _Stderr()


def get_logger() -> FilteringBoundLogger:
    """Return a logger; it follows `configure` even when it was made before.

    In a process that never configures logs (a client library in somebody's program), only warnings and errors
    are written, to stderr, and a structlog configuration of that program's own is respected.
    """
    if not structlog.is_configured():
        _install(_shared("", ""), structlog.processors.JSONRenderer(_to_json), "warning")
    return cast("FilteringBoundLogger", structlog.get_logger())


def configure_logs(service: str, actor_id: str, settings: TelemetrySettings) -> None:
    """Write structlog events and standard library warnings to stderr, with service, actor and trace ids."""
    is_json = settings.log_format == "json" or (settings.log_format == "auto" and not sys.stderr.isatty())
    renderer: Processor
    if is_json:
        renderer = structlog.processors.JSONRenderer(_to_json)
    else:
        # The default traceback formatter (rich) prints local variables, hence prompts.
        renderer = structlog.dev.ConsoleRenderer(
            colors=sys.stderr.isatty(), exception_formatter=structlog.dev.plain_traceback
        )
    shared = _shared(service, actor_id)
    if is_json:
        shared.append(structlog.processors.format_exc_info)
    _install(shared, renderer, settings.log_level)
    _capture_standard_logging(shared, renderer)


def _install(shared: list[Processor], renderer: Processor, level: str) -> None:
    structlog.configure(
        processors=[*shared, renderer],
        wrapper_class=structlog.make_filtering_bound_logger(_LEVELS[level]),
        logger_factory=structlog.PrintLoggerFactory(cast("TextIO", _STDERR)),
        cache_logger_on_first_use=False,
    )


def _shared(service: str, actor_id: str) -> list[Processor]:
    def bind_process(_logger: Any, _method: str, event: EventDict) -> EventDict:
        if service:
            event.setdefault("service", service)
            event.setdefault("actor", actor_id)
        traceparent = current_traceparent()
        if traceparent is not None:
            event.setdefault("trace_id", traceparent[3:35])
        return event

    return [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        bind_process,
        _withhold,
    ]


def _withhold(_logger: Any, _method: str, event: EventDict) -> EventDict:
    for key in event.keys() & _WITHHELD:
        value = event[key]
        if isinstance(value, str | bytes):
            event[key] = f"<withheld: {len(value)} characters>"
        elif isinstance(value, list | tuple | dict):
            event[key] = f"<withheld: {len(value)} items>"
    return event


def _to_json(event: MutableMapping[str, Any], **_: Any) -> str:
    return msgspec.json.encode(event, enc_hook=str).decode()


def _capture_standard_logging(shared: list[Processor], renderer: Processor) -> None:
    formatter = structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=shared,
        processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer],
    )
    handler = _StderrHandler()
    handler.setFormatter(formatter)
    root = logging.getLogger()
    for old in [old for old in root.handlers if isinstance(old, _StderrHandler)]:
        root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(logging.WARNING)


class _StderrHandler(logging.Handler):
    """Standard library records, on the same stream."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            _STDERR.write(self.format(record) + "\n")
        except (OSError, ValueError):
            self.handleError(record)
