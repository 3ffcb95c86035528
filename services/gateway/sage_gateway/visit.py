"""One call of a route, from its head to its end: who calls, under which ids and trace, and how it is answered."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Final, ParamSpec

from sage_core import BadRequest, Internal, SageError, Unavailable, new_id
from sage_gateway.access import Caller
from sage_gateway.edge import Edge
from sage_gateway.errors import CLIENT_CLOSED, HttpError, HttpRefused, describe, error_body
from sage_gateway.http import JSON, Exchange, Header, header_lines
from sage_gateway.metrics import METERS
from sage_gateway.operation import Asked, Planned
from sage_gateway.routes import Route
from sage_gateway.sse import KEEP_ALIVE, error_event
from sage_gateway.terms import parent_of
from sage_telemetry import SpanHandle, get_logger, is_sampled, new_root, semconv, start_span
from sage_wire.messages import Usage

if TYPE_CHECKING:
    from sage_gateway.ticket import Ticket

__all__ = ["NOBODY", "ClientGone", "Visit"]

P = ParamSpec("P")

NOBODY: Final = Caller(tenant="")
"""Who calls where no key is asked for."""

_JSON_LINE: Final = b"content-type: application/json\r\n"
_CLIENT_ID: Final = re.compile(rb"[\x21-\x7e]{1,512}")
log = get_logger()


class ClientGone(Exception):
    """The client left, or was cut off; nobody reads an answer."""


class Visit:
    """A request with its answer, as routes see it. `request_id` is ours; `shown_id` the client's own where it sent one.

    An `Answerer` but for `received`, which is the route's work. Whatever ends the request comes through `_end`, once.
    `span` is None unless the request is traced: an unsampled trace costs its header.
    """

    __slots__ = (
        "caller",
        "edge",
        "exchange",
        "has_begun",
        "is_over",
        "lines",
        "num_works",
        "request_id",
        "route",
        "shown_id",
        "span",
        "started_at",
        "traceparent",
    )

    def __init__(self, edge: Edge, exchange: Exchange, route: Route) -> None:
        self.edge = edge
        self.exchange = exchange
        self.route = route
        self.started_at = edge.clock.now()
        self.request_id = self.shown_id = new_id(route.id_prefix)
        self.caller = NOBODY
        self.lines = b""
        """Further header lines of the answer."""
        self.traceparent: str | None = None
        self.span: SpanHandle | None = None
        self.num_works = 0
        self.has_begun = False
        """True once the head of a stream is written: errors are events from then on."""
        self.is_over = False

    @property
    def headers(self) -> Mapping[bytes, bytes]:
        """The request's header fields; names are lower case."""
        return self.exchange.headers

    def identify(self) -> None:
        """Accept the client's own id, which it sent, for display. Raises BadRequest for one that is no id."""
        given = self.exchange.headers[b"x-client-request-id"]
        if _CLIENT_ID.fullmatch(given) is None:
            raise BadRequest(
                "'x-client-request-id': expected 1 to 512 printable ASCII characters",
                param="x-client-request-id",
            )
        self.shown_id = given.decode("ascii")

    def begin_trace(self) -> None:
        """Continue the caller's trace or start one, and show a sampled one's id."""
        header = self.exchange.headers.get(b"traceparent")
        parent = None if header is None else parent_of(header)
        if parent is None:
            parent = new_root(self.edge.sample_ratio)
        self.traceparent = parent
        if not is_sampled(parent):
            return
        self.add_headers(((b"x-sage-trace-id", parent[3:35].encode()),))
        span = start_span(
            f"{self.exchange.method} {self.route.name}",
            parent=parent,
            kind="server",
            attributes={
                semconv.HTTP_REQUEST_METHOD: self.exchange.method,
                semconv.HTTP_ROUTE: self.route.name,
                semconv.URL_PATH: self.exchange.path,
                semconv.URL_SCHEME: "http",
                semconv.REQUEST_ID: self.request_id,
            },
        )
        if self.shown_id != self.request_id:
            span.set(semconv.CLIENT_REQUEST_ID, self.shown_id)
        self.span = span
        self.traceparent = span.traceparent

    def add_headers(self, headers: tuple[Header, ...]) -> None:
        """Send `headers` beside those of every answer."""
        if headers:
            self.lines += header_lines(headers)

    def asked(self) -> Asked:
        """Return what an operation may know of this request."""
        clock = self.edge.clock
        return Asked(
            request_id=self.request_id,
            created=int(time.time()),
            now=clock.now(),
            catalog=self.edge.catalog,
            allowed_models=self.caller.allowed_models,
        )

    def describe(self, planned: Planned, ticket: Ticket) -> None:
        """Say in the request's span what is asked for."""
        span = self.span
        if span is not None:
            span.set(semconv.GEN_AI_OPERATION_NAME, planned.name)
            span.set(semconv.GEN_AI_REQUEST_MODEL, planned.served.name)
            span.set(semconv.GEN_AI_RESPONSE_ID, self.request_id)
            span.set(semconv.SLO_CLASS, ticket.slo_class)
            span.set(semconv.TENANT, self.caller.tenant)
            span.set(semconv.BUDGET_MS, round(ticket.budget_seconds * 1000))

    def note_first_token(self) -> None:
        """Count the time to the first token, which is now."""
        seconds = self.edge.clock.now() - self.started_at
        self.route.meter.first_token_seconds.observe(seconds)
        if self.span is not None:
            self.span.set(semconv.TTFT_MS, round(seconds * 1000, 3))

    def note_usage(self, usage: Usage, finish_reasons: Sequence[str]) -> None:
        """Count what the request used; works that generate nothing have no finish reasons."""
        METERS.num_prompt_tokens += usage.prompt_tokens
        METERS.num_completion_tokens += usage.completion_tokens
        span = self.span
        if span is not None:
            span.set(semconv.GEN_AI_USAGE_INPUT_TOKENS, usage.prompt_tokens)
            if finish_reasons:
                span.set(semconv.GEN_AI_USAGE_OUTPUT_TOKENS, usage.completion_tokens)
                span.set(semconv.GEN_AI_RESPONSE_FINISH_REASONS, list(finish_reasons))

    # The answer.

    def respond(
        self, status: int, body: bytes, headers: tuple[Header, ...] = (), content_type: bytes = JSON
    ) -> None:
        """Send a complete answer. Does nothing once the request is over."""
        if self.is_over:
            return
        if headers:
            self.lines += header_lines(headers)
        content = _JSON_LINE if content_type is JSON else b"content-type: %b\r\n" % content_type
        self.exchange.respond(status, self._head_lines(content), body)
        self._end(status)

    def send_part(self, data: bytes) -> None:
        """Send server-sent events, after the head where they are the first."""
        if not self.has_begun:
            self.has_begun = True
            self.exchange.start_events(self._head_lines(b""))
        self.exchange.send(data)

    def send_last(self, data: bytes, status: int = 200) -> None:
        """Send the last events and end the answer: one write. `status` is what counts."""
        if self.is_over:
            return
        if not self.has_begun:
            self.has_begun = True
            self.exchange.start_events(self._head_lines(b""))
        self.exchange.finish(data)
        self._end(status)

    def guard(self, step: Callable[P, None], *arguments: P.args, **named: P.kwargs) -> None:
        """Take a step of this request; whatever it raises ends the request, and costs no other."""
        try:
            step(*arguments, **named)
        except Exception as error:  # the edge of the process: a bug costs its request alone
            self.fail(error)

    def fail(self, error: Exception) -> None:
        """Tell the client, in the form that its answer has reached, and end. Does nothing once it is over."""
        if self.is_over:
            return
        match error:
            case HttpRefused():
                self._tell(error.http_error)
            case SageError():
                if error.code == Internal.code:
                    log.error("request_failed", request_id=self.request_id, error=error.message)
                self._tell(describe(error), error)
            case _:
                log.error("request_crashed", request_id=self.request_id, exc_info=error)
                self._tell(describe(Internal("internal error; the gateway's log has details")), error)

    def _tell(self, http_error: HttpError, cause: Exception | None = None) -> None:
        # A server's span has failed only where the server did: semantic conventions, HTTP spans, status.
        if self.span is not None and cause is not None and http_error.status >= 500:
            self.span.fail(cause)
        if self.has_begun:
            self.exchange.finish(error_event(http_error))
        else:
            self.add_headers(tuple(http_error.head()))
            self.exchange.respond(
                http_error.status,
                self._head_lines(_JSON_LINE),
                error_body(http_error),
            )
        self._end(http_error.status)

    def _head_lines(self, content: bytes) -> bytes:
        own_id = self.request_id.encode()
        shown_id = own_id if self.shown_id is self.request_id else self.shown_id.encode("ascii")
        return b"%bx-request-id: %b\r\nx-sage-request-id: %b\r\nopenai-processing-ms: %d\r\n%b" % (
            content,
            shown_id,
            own_id,
            (self.edge.clock.now() - self.started_at) * 1000 + 0.5,
            self.lines,
        )

    def _end(self, status: int) -> None:
        """Count the request. Everything that ends it comes here, once."""
        self.is_over = True
        self.route.meter.answered(status, self.edge.clock.now() - self.started_at)
        span, self.span = self.span, None
        if span is not None:
            span.set(semconv.HTTP_RESPONSE_STATUS_CODE, status)
            span.end()

    # Answerer

    def unreadable(self, error: HttpError) -> None:
        """Answer that the body cannot be had."""
        self._tell(error)

    def keep_alive(self) -> None:
        """Send a comment, which clients ignore and proxies count as life."""
        self.send_part(KEEP_ALIVE)

    def gone(self, reason: str) -> None:
        """Nobody waits any more."""
        del reason
        if not self.is_over:
            self._end(CLIENT_CLOSED)

    def stop(self) -> None:
        """The server is stopping and this request's time is up: end it with an error rather than a cut."""
        self.fail(Unavailable("the gateway is shutting down; try again"))
