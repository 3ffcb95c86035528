"""One connection: the order of requests, their limits, and clients that misbehave; without the gateway behind it."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway_driver import Client
from sage_gateway import GatewaySection
from sage_gateway.errors import HttpError, error_body
from sage_gateway.http import Exchange, HttpServer

GET = b"GET %b HTTP/1.1\r\nhost: x\r\n\r\n"


class Call:
    """One request as it reached the application."""

    def __init__(self, exchange: Exchange) -> None:
        self.exchange = exchange
        self.body: bytes | None = None
        self.error: HttpError | None = None
        self.reason: str | None = None
        self.is_stopped = False
        self.num_comments = 0

    def received(self, body: bytes) -> None:
        self.body = body

    def unreadable(self, error: HttpError) -> None:
        self.error = error
        self.exchange.respond(error.status, b"", error_body(error))

    def keep_alive(self) -> None:
        self.num_comments += 1
        self.exchange.send(b": comment\n\n")

    def gone(self, reason: str) -> None:
        self.reason = reason

    def stop(self) -> None:
        self.is_stopped = True
        self.exchange.respond(503, b"", b"stop")

    def answer(self, text: bytes = b"ok") -> None:
        self.exchange.respond(200, b"", text)


class Calls:
    """An application whose answers the test gives. `at_once` answers from within `begin`, before any body."""

    def __init__(self) -> None:
        self.all: list[Call] = []
        self.at_once: Callable[[Exchange], None] | None = None

    def begin(self, exchange: Exchange) -> Call:
        self.all.append(Call(exchange))
        if self.at_once is not None:
            self.at_once(exchange)
        return self.all[-1]


class Peer:
    """A server with one connection."""

    def __init__(self, **limits: object) -> None:
        self.calls = Calls()
        self.server = HttpServer(self.calls, GatewaySection(**limits))  # type: ignore[arg-type]
        self.server.start_looking()
        self.client = Client(self.server)

    def send(self, *parts: bytes) -> None:
        for part in parts:
            self.client.send(part)

    @property
    def received(self) -> bytes:
        return self.client.transport.received

    @property
    def statuses(self) -> list[int]:
        """Of the answers so far."""
        return [int(found) for found in re.findall(rb"HTTP/1\.1 (\d{3}) ", self.received)]

    @property
    def paths(self) -> list[str]:
        return [call.exchange.path for call in self.calls.all]


@pytest.fixture
async def peer() -> Peer:
    return Peer()


# Requests


async def test_a_request_has_its_method_path_query_headers_and_body(peer: Peer) -> None:
    head = b"POST /a%20b/c?d=e%20f HTTP/1.1\r\nHost: x\r\nX-One: 1\r\nx-one: 2\r\ncontent-length: 3\r\n\r\n"
    peer.send(head + b"abc")
    (call,) = peer.calls.all
    exchange = call.exchange
    assert (exchange.method, exchange.path, exchange.query) == ("POST", "/a b/c", "d=e%20f")
    assert exchange.headers == {b"host": b"x", b"x-one": b"1, 2", b"content-length": b"3"}
    assert exchange.num_headers == 4
    assert call.body == b"abc"


@settings(max_examples=50, deadline=None, database=None)
@given(cuts=st.lists(st.integers(0, 200), max_size=6))
def test_however_the_bytes_are_cut_the_requests_are_the_same(cuts: list[int]) -> None:
    raw = (
        b"POST /one?x HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\n\r\nhello"
        b"GET /two HTTP/1.1\r\nhost: x\r\n\r\n"
        b"POST /three HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n2\r\nab\r\n3\r\ncde\r\n0\r\nz: y\r\n\r\n"
    )

    async def run() -> list[tuple[str, bytes | None]]:
        peer = Peer()
        at = 0
        for cut in [*sorted(cuts), len(raw)]:
            peer.send(raw[at:cut])
            at = max(at, cut)
            for call in peer.calls.all:
                if call.body is not None and not call.exchange.is_over:
                    call.answer()
        while not all(call.exchange.is_over for call in peer.calls.all):
            peer.calls.all[-1].answer()
        assert all(b"z" not in call.exchange.headers for call in peer.calls.all)
        return [(call.exchange.path, call.body) for call in peer.calls.all]

    assert asyncio.run(run()) == [("/one", b"hello"), ("/two", b""), ("/three", b"abcde")]


async def test_pipelined_requests_are_answered_in_order_one_at_a_time(peer: Peer) -> None:
    peer.send(GET % b"/1" + GET % b"/2" + GET % b"/3")
    assert peer.paths == ["/1"]
    peer.calls.all[0].answer(b"first")
    assert peer.paths == ["/1", "/2"]
    peer.send(GET % b"/4")
    peer.calls.all[1].answer(b"second")
    peer.calls.all[2].answer(b"third")
    peer.calls.all[3].answer(b"fourth")
    answers = [part.rpartition(b"\r\n\r\n")[2] for part in peer.received.split(b"HTTP/1.1 ")[1:]]
    assert answers == [b"first", b"second", b"third", b"fourth"]


async def test_a_thousand_pipelined_requests_answered_at_once_take_no_stack(peer: Peer) -> None:
    peer.calls.at_once = lambda exchange: exchange.respond(200, b"", b"ok")
    peer.send(GET % b"/" * 2000)
    assert peer.statuses == [200] * 2000


async def test_a_client_that_sends_far_ahead_is_read_no_further_until_its_answer(peer: Peer) -> None:
    peer.send(GET % b"/1", *[GET % b"/x" * 1000] * 3)
    assert not peer.client.transport.is_reading
    peer.calls.at_once = lambda exchange: exchange.respond(200, b"", b"")
    peer.calls.all[0].answer()
    assert peer.client.transport.is_reading
    assert len(peer.calls.all) == 3001


async def test_a_request_behind_one_that_is_no_http_is_refused_after_its_answer(peer: Peer) -> None:
    peer.send(GET % b"/1" + b"\x16\x03\x01\r\n\r\n")
    assert peer.statuses == []
    peer.calls.all[0].answer()
    assert peer.statuses == [200, 400]
    assert peer.client.transport.has_sent_eof


@pytest.mark.parametrize("hosts", [b"", b"host: a\r\nhost: a\r\n", b"Host: a\r\nHOST: b\r\n"])
async def test_a_request_without_exactly_one_host_is_400(peer: Peer, hosts: bytes) -> None:
    peer.send(b"GET / HTTP/1.1\r\n%b\r\n" % hosts)
    assert peer.statuses == [400]
    assert peer.calls.all == []


async def test_http_1_0_needs_no_host(peer: Peer) -> None:
    peer.send(b"GET / HTTP/1.0\r\n\r\n")
    assert peer.paths == ["/"]


@pytest.mark.parametrize(
    ("target", "path", "host"),
    [
        (b"http://localhost:8080/v1/models?a=b", b"/v1/models?a=b", b"localhost:8080"),
        (b"HTTP://LocalHost", b"/", b"LocalHost"),
        (b"https://a?b", b"/?b", b"a"),
    ],
)
async def test_an_absolute_target_is_its_path_and_its_host_counts(
    peer: Peer, target: bytes, path: bytes, host: bytes
) -> None:
    peer.send(b"GET %b HTTP/1.1\r\nhost: other\r\n\r\n" % target)
    exchange = peer.calls.all[0].exchange
    assert (exchange.target, exchange.headers[b"host"]) == (path, host)


@pytest.mark.parametrize("method", [b"FOO", b"get"])
async def test_a_method_that_is_not_known_is_501(peer: Peer, method: bytes) -> None:
    peer.send(b"%b / HTTP/1.1\r\nhost: x\r\n\r\n" % method)
    assert peer.statuses == [501]
    assert peer.client.transport.has_sent_eof


@pytest.mark.parametrize("version", [b"2.0", b"0.9"])
async def test_a_version_that_is_not_spoken_is_505(peer: Peer, version: bytes) -> None:
    peer.send(b"GET / HTTP/%b\r\nhost: x\r\n\r\n" % version)
    assert peer.statuses == [505]
    assert peer.calls.all == []


# Bodies


async def test_a_client_that_waits_for_100_gets_it_once_and_only_where_the_body_is_wanted(peer: Peer) -> None:
    head = b"POST / HTTP/1.1\r\nhost: x\r\nexpect: 100-continue\r\ncontent-length: 4\r\n\r\n"
    peer.send(head)
    assert peer.received == b"HTTP/1.1 100 Continue\r\n\r\n"
    peer.send(b"bo", b"dy")
    assert peer.received == b"HTTP/1.1 100 Continue\r\n\r\n"
    assert peer.calls.all[0].body == b"body"
    peer.calls.all[0].answer()
    assert b"connection: close" not in peer.received
    peer.calls.at_once = lambda exchange: exchange.respond(401, b"", b"no")
    peer.send(head)
    assert peer.statuses == [100, 200, 401]
    # Whether its body comes now is anybody's guess, so nothing can follow it.
    assert b"connection: close" in peer.received
    assert peer.client.transport.has_sent_eof


async def test_a_body_refused_by_its_length_is_never_handed_over_and_the_next_request_is_read() -> None:
    peer = Peer(max_body=1024)
    peer.send(b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 3000\r\n\r\n")
    assert peer.statuses == [413]
    peer.send(*[b"x" * 1000] * 3, GET % b"/next")
    peer.calls.all[1].answer()
    assert peer.statuses == [413, 200]
    assert peer.calls.all[0].body is None


async def test_a_request_answered_before_its_body_came_lets_it_pass(peer: Peer) -> None:
    peer.calls.at_once = lambda exchange: exchange.respond(404, b"", b"no")
    peer.send(b"POST /1 HTTP/1.1\r\nhost: x\r\ncontent-length: 6\r\n\r\nabc")
    peer.send(b"def" + GET % b"/2")
    assert peer.paths == ["/1", "/2"]
    assert peer.statuses == [404, 404]


async def test_a_body_far_beyond_the_limit_ends_the_connection_softly() -> None:
    peer = Peer(max_body=1024)
    peer.send(b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 99999999\r\n\r\n")
    assert peer.statuses == [413]
    transport = peer.client.transport
    assert transport.has_sent_eof
    # Not closed yet: bytes that arrive at a closed socket reset the connection, and the answer with it.
    assert not transport.is_closing()
    peer.send(b"x" * 10_000)
    assert peer.statuses == [413]


@pytest.mark.parametrize(
    "framing", [b"content-length: 99999999", b"transfer-encoding: chunked", b"content-length: 2000"]
)
async def test_what_follows_a_last_answer_is_discarded_up_to_a_bound(framing: bytes) -> None:
    peer = Peer(max_body=1024)
    peer.calls.at_once = lambda exchange: exchange.respond(401, b"", b"no")
    # A length of 2000 keeps the connection; what comes after it is no HTTP, and ends it.
    peer.send(b"POST / HTTP/1.1\r\nhost: x\r\n%b\r\n\r\n" % framing, b"y" * 3000)
    assert peer.client.transport.has_sent_eof
    peer.send(*[b"y" * 1000] * 10)
    assert not peer.client.transport.is_closing()
    peer.send(*[b"y" * 1000] * 10)
    assert peer.client.transport.is_closing()


async def test_what_follows_a_request_that_is_no_http_is_not_read_on_while_an_answer_is_made() -> None:
    peer = Peer(max_body=1024)
    peer.send(GET % b"/1" + b"\x16\x03\x01\r\n\r\n", *[b"y" * 1000] * 20)
    assert not peer.client.transport.is_reading
    peer.calls.all[0].answer()
    assert peer.statuses == [200, 400]
    peer.send(b"y")
    assert peer.client.transport.is_closing()


@pytest.mark.parametrize("coding", [b"gzip, chunked", b"deflate, chunked", b"identity, chunked"])
async def test_a_transfer_coding_that_is_not_understood_is_501(peer: Peer, coding: bytes) -> None:
    peer.send(b"POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: %b\r\n\r\n" % coding)
    assert peer.statuses == [501]
    assert b"unknown_transfer_encoding" in peer.received
    assert peer.calls.all == []


@pytest.mark.parametrize(
    "framing",
    [
        b"content-length: 5\r\ntransfer-encoding: chunked\r\n",
        b"content-length: 5\r\ncontent-length: 6\r\n",
        b"content-length: -5\r\n",
        b"content-length: +5\r\n",
        b"content-length: 5x\r\n",
        b"content-length: 99999999999999999999999\r\n",
    ],
)
async def test_framing_that_could_be_read_in_two_ways_is_refused(peer: Peer, framing: bytes) -> None:
    peer.send(b"POST / HTTP/1.1\r\nhost: x\r\n%b\r\nhello" % framing)
    assert peer.statuses == [400]
    assert peer.calls.all == []


CHUNKED = b"POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n"


@pytest.mark.parametrize("chunk", [b"zz\r\n", b"0x2\r\nab\r\n", b"-1\r\n", b"+2\r\nab\r\n", b"2\r\nabc\r\n"])
@pytest.mark.parametrize("is_apart", [False, True])
async def test_a_chunk_that_is_none_is_refused_at_once(peer: Peer, chunk: bytes, is_apart: bool) -> None:
    peer.send(*([CHUNKED, chunk] if is_apart else [CHUNKED + chunk]))
    assert peer.statuses == [400]
    assert b"invalid_http" in peer.received
    assert peer.client.transport.has_sent_eof
    assert peer.calls.all[0].body is None


async def test_a_wrong_chunk_of_a_body_that_is_thrown_away_gets_no_second_answer(peer: Peer) -> None:
    peer.calls.at_once = lambda exchange: exchange.respond(404, b"", b"no")
    peer.send(b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n\r\nabc")
    assert peer.statuses == [404]
    peer.send(b"defghi\x00\x01 nonsense\r\n\r\n")
    assert peer.statuses == [404, 400]


@pytest.mark.parametrize(
    ("head", "more"),
    [
        (b"0\r\nx: ", b"y" * 1000),
        (b"0\r\n", b"x: y\r\n" * 100),
        (b"1;", b"a" * 1000),
        (b"", b"0" * 1000),
        (b"", b"1;%b\r\nx\r\n" % (b"a" * 500)),
    ],
)
async def test_what_surrounds_chunks_is_bounded(head: bytes, more: bytes) -> None:
    peer = Peer(max_header_bytes=2048)
    peer.send(CHUNKED, head, *[more] * 50)
    assert peer.statuses in ([431], [400])
    assert peer.client.transport.has_sent_eof


async def test_a_body_in_chunks_of_one_byte_is_read(peer: Peer) -> None:
    peer.send(CHUNKED, *[b"1\r\nx\r\n" * 100] * 200, b"0\r\n\r\n")
    assert peer.calls.all[0].body == b"x" * 20_000


# Answers


async def test_the_answer_to_head_has_the_length_and_no_body(peer: Peer) -> None:
    peer.send(b"HEAD / HTTP/1.1\r\nhost: x\r\n\r\n")
    peer.calls.all[0].answer(b"twelve bytes")
    assert b"content-length: 12\r\n" in peer.received
    assert peer.received.endswith(b"\r\n\r\n")


async def test_an_answer_is_one_write_head_and_body_together(peer: Peer) -> None:
    peer.send(GET % b"/")
    peer.calls.all[0].answer()
    assert len(peer.client.writes) == 1


async def test_a_large_answer_is_whole(peer: Peer) -> None:
    peer.send(GET % b"/")
    body = b"x" * 1_000_000
    peer.calls.all[0].answer(body)
    assert peer.received.endswith(b"\r\n\r\n" + body)


async def test_http_1_0_gets_no_chunks_and_a_connection_only_where_it_asks(peer: Peer) -> None:
    peer.send(b"GET /1 HTTP/1.0\r\nconnection: keep-alive\r\n\r\n")
    peer.calls.all[0].answer()
    assert b"connection: keep-alive\r\n" in peer.received
    peer.send(b"GET /2 HTTP/1.0\r\nconnection: keep-alive\r\n\r\n")
    exchange = peer.calls.all[1].exchange
    exchange.start_events(b"")
    exchange.send(b"data: 1\n\n")
    exchange.finish(b"data: 2\n\n")
    second = peer.received.partition(b"HTTP/1.1 200 OK")[2].partition(b"HTTP/1.1 200 OK")[2]
    assert b"chunked" not in second
    assert second.endswith(b"\r\n\r\ndata: 1\n\ndata: 2\n\n")
    assert peer.client.transport.is_closing()


async def test_a_client_that_asks_to_close_is_closed_after_its_answer(peer: Peer) -> None:
    peer.send(b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
    peer.calls.all[0].answer()
    assert b"connection: close\r\n" in peer.received
    assert peer.client.transport.is_closing()


async def test_all_that_a_stream_sends_in_one_turn_is_one_write_and_one_chunk(peer: Peer) -> None:
    peer.send(GET % b"/")
    exchange = peer.calls.all[0].exchange
    exchange.start_events(b"x-a: b\r\n")
    assert peer.client.writes == []
    for part in (b"one", b"two", b"three"):
        exchange.send(part)
    await asyncio.sleep(0)
    assert len(peer.client.writes) == 1
    assert peer.received.endswith(b"\r\n\r\nb\r\nonetwothree\r\n")
    exchange.send(b"four")
    exchange.finish(b"five")
    assert len(peer.client.writes) == 2
    assert peer.received.endswith(b"8\r\nfourfive\r\n0\r\n\r\n")
    await asyncio.sleep(0)
    assert len(peer.client.writes) == 2


# Clients that are slow, or gone


async def test_a_client_that_leaves_is_told_to_who_answers_it_and_nothing_is_written(peer: Peer) -> None:
    peer.send(GET % b"/" + GET % b"/2")
    peer.client.disconnect()
    call = peer.calls.all[0]
    assert call.reason == "the client disconnected"
    call.answer()
    assert peer.client.writes == []
    assert peer.paths == ["/"]


async def test_a_client_that_ends_its_side_is_taken_as_gone(peer: Peer) -> None:
    peer.send(GET % b"/")
    assert not peer.client.half_close()
    assert peer.calls.all[0].reason == "the client disconnected"


async def test_nothing_new_begins_for_a_client_that_does_not_read_its_answers(peer: Peer) -> None:
    peer.client.transport.take(is_taking=False)
    peer.send(GET % b"/1" + GET % b"/2")
    peer.calls.all[0].answer(b"x" * 100)
    peer.send(GET % b"/3")
    assert peer.paths == ["/1"]
    peer.client.transport.take(is_taking=True)
    assert peer.paths == ["/1", "/2"]
    peer.calls.all[1].answer()
    assert peer.paths == ["/1", "/2", "/3"]


async def test_a_finished_answer_that_is_not_taken_ends_the_connection() -> None:
    peer = Peer(stall_timeout=0.02)
    peer.client.transport.take(is_taking=False)
    peer.send(GET % b"/")
    peer.calls.all[0].answer()
    await asyncio.wait_for(peer.client.is_left(), 2)
    assert peer.client.is_aborted


async def test_comments_are_asked_for_only_while_a_stream_is_silent() -> None:
    peer = Peer(keep_alive_interval=0.02)
    peer.send(GET % b"/")
    call = peer.calls.all[0]
    await asyncio.sleep(0.04)
    assert call.num_comments == 0
    call.exchange.start_events(b"")
    call.exchange.keep_alive()
    await asyncio.sleep(0.05)
    assert call.num_comments >= 1
    call.exchange.finish(b"")
    num_comments = call.num_comments
    await asyncio.sleep(0.04)
    assert call.num_comments == num_comments


async def test_an_unused_connection_is_closed_after_the_idle_time_and_a_used_one_is_not() -> None:
    peer = Peer(idle_timeout=0.03, header_timeout=5)
    peer.send(GET % b"/")
    await asyncio.sleep(0.05)
    assert not peer.client.transport.is_closing()
    peer.calls.all[0].answer()
    await asyncio.wait_for(peer.client.is_left(), 2)


# The end of the server


async def test_a_drain_closes_what_is_idle_and_waits_for_what_is_not() -> None:
    peer = Peer()
    busy, idle = Client(peer.server), peer.client
    busy.send(GET % b"/")
    draining = asyncio.create_task(peer.server.drain())
    await asyncio.wait_for(idle.is_left(), 2)
    assert not draining.done()
    peer.calls.all[0].answer()
    await asyncio.wait_for(draining, 2)
    assert b"connection: close" in busy.transport.received


async def test_a_stop_tells_who_answers_and_drops_who_does_not_listen() -> None:
    peer = Peer()
    peer.send(GET % b"/")
    deaf = Client(peer.server)
    deaf.send(GET % b"/deaf")
    deaf.transport.take(is_taking=False)
    await asyncio.wait_for(peer.server.stop(0.05), 2)
    assert [call.is_stopped for call in peer.calls.all] == [True, True]
    assert peer.received.endswith(b"stop")
    assert peer.server.connections == set()


@pytest.fixture(autouse=True)
def no_exception_is_lost(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """What a callback raises goes to the loop's handler, which only logs."""
    yield
    assert not [record for record in caplog.records if record.levelname == "ERROR"]
