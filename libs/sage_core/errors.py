"""The error tree. What crosses the wire is `code`, `message`, `retryable` and values, never a class.

    SageError
      BadRequest                 bad_request            the caller must change the request
        ContextLengthExceeded    context_length_exceeded
        LimitExceeded            limit_exceeded         a documented limit of size or count
      NotFound                   not_found              model, pipeline, collection or id
      Conflict                   conflict               compare-and-set lost, name already taken
      DeadlineExceeded           deadline_exceeded      the budget ran out
      Cancelled                  cancelled              the caller, or its disconnect, ended it
      Overloaded                 overloaded      (r)    refused at the door; see retry_after
      Unavailable                unavailable     (r)    nothing can serve it now
        WorkerLost               worker_lost     (r)    the worker died or stopped answering
        ActorRestarted           actor_restarted (r)    the actor crashed and lost this call
        BusUnavailable           bus_unavailable (r)    NATS cannot be reached
      BusError                   bus_error              a message that the bus must not carry
      EngineError                engine_error           the engine failed on this request
      ConfigurationError         configuration_error    settings, files; exit code 2
      Internal                   internal               a bug; the log has the traceback

(r): retryable; the same request may succeed on another attempt. Only the gateway maps codes to HTTP.
"""

from __future__ import annotations

from typing import ClassVar

__all__ = [
    "ActorRestarted",
    "BadRequest",
    "BusError",
    "BusUnavailable",
    "Cancelled",
    "ConfigurationError",
    "Conflict",
    "ContextLengthExceeded",
    "DeadlineExceeded",
    "EngineError",
    "Internal",
    "LimitExceeded",
    "NotFound",
    "Overloaded",
    "SageError",
    "Unavailable",
    "WorkerLost",
    "error_from_code",
]


class SageError(Exception):
    """Base of every error SAGE raises on purpose.

    `message` is one line for the caller: what was found, what was expected, what to do. `param` names
    the offending field where there is one. `retry_after` is in seconds, None where unknown.
    """

    code: ClassVar[str] = "internal"
    retryable: ClassVar[bool] = False

    def __init__(self, message: str, *, param: str | None = None, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.retry_after = retry_after


class BadRequest(SageError):
    """The request can never succeed as it is."""

    code = "bad_request"


class ContextLengthExceeded(BadRequest):
    """Prompt plus requested output does not fit the model's context."""

    code = "context_length_exceeded"


class LimitExceeded(BadRequest):
    """A documented limit on size or count was passed."""

    code = "limit_exceeded"


class NotFound(SageError):
    """The named model, pipeline, collection, job or request does not exist."""

    code = "not_found"


class Conflict(SageError):
    """Somebody else changed it first, or the name is taken."""

    code = "conflict"


class DeadlineExceeded(SageError):
    """The budget that travelled with the request ran out."""

    code = "deadline_exceeded"


class Cancelled(SageError):
    """The request was cancelled by id or by its caller's disconnect."""

    code = "cancelled"


class Overloaded(SageError):
    """Refused at the door: a bounded queue is full. Retry after `retry_after` seconds."""

    code = "overloaded"
    retryable = True


class Unavailable(SageError):
    """Nothing can serve the request at the moment."""

    code = "unavailable"
    retryable = True


class WorkerLost(Unavailable):
    """The worker that held the request died or fell silent."""

    code = "worker_lost"


class ActorRestarted(Unavailable):
    """The actor crashed while it held the call; its state was thrown away."""

    code = "actor_restarted"


class BusUnavailable(Unavailable):
    """NATS cannot be reached, or the connection is closed."""

    code = "bus_unavailable"


class BusError(SageError):
    """A message the bus must not carry: too large, or a subject outside the alphabet."""

    code = "bus_error"


class EngineError(SageError):
    """The engine failed on this request; other requests are not affected."""

    code = "engine_error"


class ConfigurationError(SageError):
    """Settings or a file are wrong. Processes exit with status 2 and print `message`."""

    code = "configuration_error"


class Internal(SageError):
    """A bug. The log of the process that raised it has the traceback."""

    code = "internal"


def _tree(root: type[SageError]) -> dict[str, type[SageError]]:
    found = {root.code: root}
    for child in root.__subclasses__():
        found.update(_tree(child))
    return found


_BY_CODE = _tree(SageError) | {"internal": Internal}


def error_from_code(
    code: str, message: str, *, param: str | None = None, retry_after: float | None = None
) -> SageError:
    """Rebuild the error a peer reported. An unknown code (a newer peer) becomes `Internal`."""
    return _BY_CODE.get(code, Internal)(message, param=param, retry_after=retry_after)
