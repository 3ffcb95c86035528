"""Cross-origin requests of web pages: off unless origins are named. https://fetch.spec.whatwg.org/#http-cors-protocol

Callers are known by their Authorization header, which a page has to hold and to send itself; cookies mean nothing
here. So `access-control-allow-credentials` is never sent, which also makes `*` harmless to those who hold keys.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Final

__all__ = ["Cors"]

Headers = tuple[tuple[bytes, bytes], ...]

_METHODS: Final = b"GET, POST, DELETE"
_HEADER_NAMES: Final = re.compile(rb"[A-Za-z0-9!#$%&'*+.^_`|~, -]{0,2048}")
_MAX_AGE_SECONDS: Final = b"600"
_EXPOSED: Final = b", ".join(
    [
        b"x-request-id",
        b"x-sage-request-id",
        b"x-sage-trace-id",
        b"openai-processing-ms",
        b"retry-after",
        b"retry-after-ms",
        b"x-should-retry",
        b"x-ratelimit-limit-requests",
        b"x-ratelimit-limit-tokens",
        b"x-ratelimit-remaining-requests",
        b"x-ratelimit-remaining-tokens",
        b"x-ratelimit-reset-requests",
        b"x-ratelimit-reset-tokens",
    ]
)
_VARY: Final = (b"vary", b"origin")


class Cors:
    """Decides which pages may read answers. `origins` as `[gateway] cors_origins` holds them."""

    def __init__(self, origins: Sequence[str]) -> None:
        self.is_on = bool(origins)
        self._is_any = "*" in origins
        self._answers = {origin.encode(): _answer(origin.encode()) for origin in origins}
        self._other = _answer(b"*") if self._is_any else (_VARY,)

    @property
    def origins(self) -> frozenset[bytes]:
        """The origins that are named one by one."""
        return frozenset(self._answers) - {b"*"}

    def headers(self, origin: bytes | None) -> Headers:
        """Return what goes into every answer to a request with this Origin; empty where CORS is off."""
        if not self.is_on:
            return ()
        if self._is_any or origin is None:
            return self._other
        return self._answers.get(origin, self._other)

    def preflight(self, headers: Mapping[bytes, bytes]) -> Headers | None:
        """Return what goes beside `headers` into the 204 for the question that browsers ask first; None: it is none.

        It carries no key, and tells nothing but what is configured.
        """
        origin = headers.get(b"origin")
        if not self.is_on or origin is None or b"access-control-request-method" not in headers:
            return None
        if not self._is_any and origin not in self._answers:
            return None
        asked = headers.get(b"access-control-request-headers", b"")
        allowed = asked if _HEADER_NAMES.fullmatch(asked) is not None else b""
        return (
            (b"access-control-allow-methods", _METHODS),
            # What a client library sends grows with every version of it, so what is asked for is allowed: a header
            # gives no rights here but Authorization, which only a page that has the key can send.
            (b"access-control-allow-headers", allowed or b"authorization, content-type"),
            (b"access-control-max-age", _MAX_AGE_SECONDS),
        )


def _answer(origin: bytes) -> Headers:
    allowed = (b"access-control-allow-origin", origin)
    exposed = (b"access-control-expose-headers", _EXPOSED)
    return (allowed, exposed) if origin == b"*" else (allowed, exposed, _VARY)
