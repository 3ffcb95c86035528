"""What answers HTTP requests: the seam between connections and the gateway's routes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from sage_gateway.errors import HttpError

if TYPE_CHECKING:
    from sage_gateway.http.exchange import Exchange

__all__ = ["Answerer", "Application"]


class Answerer(Protocol):
    """Answers one request. Called from the event loop, and never again once the answer has ended.

    Nothing may be raised here: whatever goes wrong is the answer's content.
    """

    def received(self, body: bytes) -> None:
        """The whole body is here."""
        ...

    def unreadable(self, error: HttpError) -> None:
        """The body is too large, or did not come in time: answer with `error`."""
        ...

    def keep_alive(self) -> None:
        """The stream has been silent for `keep_alive_interval`: say something that means nothing."""
        ...

    def gone(self, reason: str) -> None:
        """The client left, or was cut off: nobody reads an answer any more."""
        ...

    def stop(self) -> None:
        """The server ends now: end the answer with an error."""
        ...


class Application(Protocol):
    """Takes requests as their heads arrive."""

    def begin(self, exchange: Exchange) -> Answerer:
        """Return who answers. It may have answered already, from the head alone; the body is then thrown away."""
        ...
