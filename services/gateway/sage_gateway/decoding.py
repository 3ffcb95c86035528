"""JSON bodies to typed structs. Whatever is wrong with a body becomes one error that says where."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final, Generic, TypeVar

import msgspec

from sage_core import BadRequest
from sage_gateway.choices import accepted_values
from sage_gateway.errors import HttpRefused

__all__ = ["BodyDecoder", "Decoded"]

B = TypeVar("B", bound=msgspec.Struct)

_MALFORMED: Final = (msgspec.DecodeError, RecursionError, UnicodeDecodeError)
_LOCATED: Final = re.compile(r"(?P<what>.*?)(?: - at (?:`key` in )?`\$(?P<path>.*)`)?", re.DOTALL)
_MISSING: Final = re.compile(r"Object missing required field `(?P<name>[^`]*)`")
_TYPE_NAMES: Final = {"str": "string", "int": "integer", "float": "number", "bool": "boolean"}
_TYPES: Final = re.compile(r"`(?P<types>[a-z |]+)`")

_CHOICE: Final = re.compile(r"Invalid enum value '?(?P<value>.*?)'?", re.DOTALL)
_INDEX: Final = re.compile(r"\[[^\]]*\]")

_MAX_SHOWN: Final = 200
_MAX_CHOICE_SHOWN: Final = 60

_keys = msgspec.json.Decoder(dict[str, msgspec.Raw])


@dataclass(frozen=True, slots=True)
class Decoded(Generic[B]):
    """A body, and how many of its top-level fields have no meaning here."""

    body: B
    num_ignored: int


class BodyDecoder(Generic[B]):
    """Decodes one kind of body. `no_effect` names fields that are understood but change nothing here."""

    def __init__(self, kind: type[B], no_effect: frozenset[str] = frozenset()) -> None:
        self._kind = kind
        self._decoder = msgspec.json.Decoder(kind)
        self._known = frozenset(field.encode_name for field in msgspec.structs.fields(kind)) | no_effect

    def decode(self, payload: bytes) -> Decoded[B]:
        """Return the body.

        Raises BadRequest with `param` for fields that are missing, of the wrong type or out of range; HttpRefused
        400 for what is no JSON at all: NaN, unpaired surrogates, broken UTF-8, nesting beyond any use.
        """
        try:
            # Names first: what is no JSON is called that, whatever fields are missing from what was read of it.
            names = _keys.decode(payload)
            body = self._decoder.decode(payload)
        except _MALFORMED as error:
            raise _explain(error, payload, self._kind) from None
        return Decoded(body, sum(name not in self._known for name in names))


def _explain(error: Exception, payload: bytes, kind: type[msgspec.Struct]) -> BadRequest | HttpRefused:
    if isinstance(error, RecursionError):
        return _no_json("the body is nested too deeply")
    if isinstance(error, UnicodeDecodeError):
        return _no_json("the body is not valid JSON: it is not UTF-8")
    if not isinstance(error, msgspec.ValidationError):
        return _no_json(_malformed(str(error), payload))
    match = _LOCATED.fullmatch(str(error))
    assert match is not None
    what, path = match["what"], (match["path"] or "").removeprefix(".")
    missing = _MISSING.fullmatch(what)
    if missing is not None:
        param = f"{path}.{missing['name']}" if path else missing["name"]
        return BadRequest(f"missing required field '{param}'", param=param)
    choice = _CHOICE.fullmatch(what)
    # Without its indexes: the paths remembered are those of the type, not those of the bodies.
    accepted = accepted_values(kind, _INDEX.sub("[]", path)) if choice is not None else ()
    if choice is not None and accepted:
        value = choice["value"]
        shown = value if len(value) <= _MAX_CHOICE_SHOWN else f"{value[:_MAX_CHOICE_SHOWN]}…"
        return BadRequest(f"'{path}': found '{shown}'; expected one of {', '.join(accepted)}", param=path)
    # An unknown enum value is quoted, and may be as long as a body.
    what = what if len(what) <= _MAX_SHOWN else f"{what[:_MAX_SHOWN]}…"
    what = _TYPES.sub(lambda found: " or ".join(_type_names(found["types"])), what)
    what = what[:1].lower() + what[1:]
    if not path:
        return BadRequest(f"the body must be a JSON object: {what}")
    return BadRequest(f"'{path}': {what}", param=path)


def _no_json(message: str) -> HttpRefused:
    return HttpRefused(400, "invalid_request_error", "invalid_json", message)


def _type_names(types: str) -> list[str]:
    return [_TYPE_NAMES.get(name, name) for name in types.split(" | ")]


def _malformed(reason: str, payload: bytes) -> str:
    if not payload.strip():
        return "the body is empty; expected a JSON object"
    # msgspec reports a surrogate escape without its partner as something cut off.
    if ("truncated" in reason or "hex escape" in reason) and re.search(rb"\\u[dD][89a-fA-F]", payload):
        return "the body is not valid JSON: a \\u escape is an unpaired surrogate, or the text is cut off"
    return f"the body is not valid JSON: {reason.removeprefix('JSON is malformed: ')}"
