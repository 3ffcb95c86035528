"""`@handles`: turns an annotated method into a typed handler. Types are read once, when an actor class is used."""

from __future__ import annotations

import inspect
import re
import types
import typing
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Final, TypeVar, overload

from sage_wire.messages import Message

__all__ = ["HandlerSpec", "handler_specs", "handles", "verb_of"]

_OPTIONS: Final = "__sage_handler__"
_specs: dict[type[object], tuple[HandlerSpec, ...]] = {}
F = TypeVar("F", bound=Callable[..., Awaitable[Message | None] | None])


@dataclass(frozen=True, slots=True)
class _Options:
    subject: Callable[[Any], str] | None = None
    queue: str | None = None
    max_slots: int | None = None
    is_control: bool = False
    is_on_demand: bool = False


@dataclass(frozen=True, slots=True)
class HandlerSpec:
    """One handler of a class. `subject` is None where the actor's own subject for `verb` is meant."""

    method: str
    verb: str
    request_type: type[Message]
    subject: Callable[[Any], str] | None
    queue: str | None
    max_slots: int | None
    is_control: bool
    is_on_demand: bool
    is_immediate: bool


@overload
def handles(method: F, /) -> F: ...


@overload
def handles(
    *,
    subject: Callable[[Any], str] | None = None,
    queue: str | None = None,
    max_slots: int | None = None,
    is_control: bool = False,
    is_on_demand: bool = False,
) -> Callable[[F], F]: ...


def handles(
    method: F | None = None,
    /,
    *,
    subject: Callable[[Any], str] | None = None,
    queue: str | None = None,
    max_slots: int | None = None,
    is_control: bool = False,
    is_on_demand: bool = False,
) -> F | Callable[[F], F]:
    """Make `async def verb(self, request: Request) -> Reply | None` a handler.

    Without `subject` it answers on `subjects.actor(actor_id, verb)`, the verb being the request's name in snake
    case. `subject` is called once with the actor after its first `on_start`, and may return a pattern. `queue`
    joins a queue group, where a caller's cancel may reach another member; the budget still ends the call.
    `max_slots` bounds how many run at once; 1 also keeps them in order. `is_control` takes messages from the
    control connection, past the bulk of the data connection, with a mailbox of its own. `is_on_demand`: it answers
    nowhere until the actor calls `context.listen`, on as many subjects as it is told.

    A handler that returns None is told; where it is asked nevertheless, an empty map answers when it has ended.
    A SageError it raises is the reply; any other exception is a crash of the actor.

    A plain `def verb(self, request: Request) -> None` is immediate: it runs to its end in the turn in which its message
    arrived, in order of arrival, without a task, a slot, a budget, a current call or a trace of its own, and is never
    answered. For what is told often and never waits: of a handler that only does a few look-ups, all that took 9 of
    10 microseconds. Between two lives of the actor its messages wait in the mailbox like all others.
    """
    if max_slots is not None and max_slots < 1:
        raise ValueError(f"max_slots is {max_slots}; expected at least 1")
    if is_on_demand and subject is not None:
        raise ValueError("a handler on demand has no subject of its own: `context.listen` names it")
    options = _Options(subject, queue, max_slots, is_control, is_on_demand)

    def mark(function: F) -> F:
        setattr(function, _OPTIONS, options)
        return function

    return mark if method is None else mark(method)


def verb_of(request_type: type[Message]) -> str:
    """Return the verb a message is asked with: `FindSpans` → `find_spans`."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", request_type.__name__).lower()


def handler_specs(owner: type[object]) -> tuple[HandlerSpec, ...]:
    """Return the handlers of `owner` and its bases, by name. Raises TypeError for one that is not well formed."""
    if owner not in _specs:
        _specs[owner] = _read_specs(owner)
    return _specs[owner]


def _read_specs(owner: type[object]) -> tuple[HandlerSpec, ...]:
    specs = []
    for name in sorted(dir(owner)):
        function = inspect.getattr_static(owner, name)
        options = getattr(function, _OPTIONS, None)
        if isinstance(function, types.FunctionType) and isinstance(options, _Options):
            request_type = _request_type(owner, name, function)
            specs.append(
                HandlerSpec(
                    method=name,
                    verb=verb_of(request_type),
                    request_type=request_type,
                    subject=options.subject,
                    queue=options.queue,
                    max_slots=options.max_slots,
                    is_control=options.is_control,
                    is_on_demand=options.is_on_demand,
                    is_immediate=not inspect.iscoroutinefunction(function),
                )
            )
    own = [spec.verb for spec in specs if spec.subject is None and not spec.is_on_demand]
    for verb in own:
        if own.count(verb) > 1:
            raise TypeError(f"{owner.__qualname__} has two handlers for {verb!r}; give one of them a subject")
    return tuple(specs)


def _request_type(owner: type, name: str, function: types.FunctionType) -> type[Message]:
    where = f"{owner.__qualname__}.{name}"
    parameters = list(inspect.signature(function).parameters.values())[1:]
    if len(parameters) != 1:
        raise TypeError(f"handler {where} takes {len(parameters)} arguments; expected the request alone")
    try:
        hints = typing.get_type_hints(function)
    except NameError as error:
        raise TypeError(f"handler {where}: {error}; import message types at run time") from None
    request = hints.get(parameters[0].name)
    if not (isinstance(request, type) and issubclass(request, Message)):
        raise TypeError(f"handler {where} has a request of {request!r}; expected a subclass of Message")
    if "return" not in hints:
        raise TypeError(f"handler {where} does not say what it returns; expected a Message or None")
    if hints["return"] is not type(None) and not inspect.iscoroutinefunction(function):
        raise TypeError(f"handler {where} answers, but is not an `async def`")
    return request
