"""Routes that a coroutine answers, and the works that it runs."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from gateway_driver import HELLO, Gateway, chat, write_keys
from sage_client import measure
from sage_core import Cancelled, EngineError, NotFound, WorkerLost
from sage_gateway.errors import HttpRefused
from sage_gateway.handler_visit import HandlerVisit
from sage_gateway.operation import Planned
from sage_gateway.routes import Handler, Route
from sage_gateway.run import Run
from sage_gateway.visit import ClientGone
from sage_wire.messages import Completed, Event, Generate, ServedModel, TextPrompt, Tokens, Usage

SERVED = ServedModel(name="tiny", task="generate")


class NoAnswer:
    """A `Run` never asks its plan's answer."""


def planned(num_works: int = 1) -> Planned:
    works = [Generate(model="tiny", prompt=TextPrompt(text=str(number))) for number in range(num_works)]
    return Planned("chat", SERVED, list(works), NoAnswer())  # type: ignore[arg-type]  # see NoAnswer


def serving(handler: Handler, **settings: object) -> Gateway:
    route = Route("/x/{id}/y", handlers={"GET": handler, "POST": handler}, id_prefix="x", is_work=True)
    return Gateway(routes=[route], **settings)


async def test_a_handler_sees_the_request_and_answers_it() -> None:
    async def handler(visit: HandlerVisit) -> None:
        assert visit.headers[b"x-a"] == b"b"
        shown = f"{visit.method} {visit.path} {visit.query} {visit.body!r} {visit.caller.tenant}"
        visit.respond(201, shown.encode(), ((b"x-more", b"yes"),), b"text/plain")

    reply = await serving(handler).post("/x/1%202/3/y?q=r", b"body", headers={"x-a": "b"})
    assert reply.status == 201
    assert reply.headers["content-type"] == "text/plain"
    assert reply.headers["x-more"] == "yes"
    assert reply.headers["x-request-id"].startswith("x-")
    assert reply.body == b"POST /x/1 2/3/y q=r b'body' default"


@pytest.mark.parametrize(
    ("error", "status"),
    [(NotFound("no"), 404), (HttpRefused(418, "t", "c", "m"), 418), (KeyError("secret"), 500)],
)
async def test_what_a_handler_raises_is_its_answer(error: Exception, status: int) -> None:
    async def handler(visit: HandlerVisit) -> None:
        raise error

    reply = await serving(handler).post("/x/1/y")
    assert reply.status == status
    assert "secret" not in reply.body.decode()


async def test_what_it_raises_in_mid_stream_is_an_event() -> None:
    async def handler(visit: HandlerVisit) -> None:
        visit.begin_events()
        visit.send(b'data: {"a": 1}\n\n')
        raise EngineError("broken")

    reply = await serving(handler).post("/x/1/y")
    assert reply.status == 200
    assert reply.events[0] == {"a": 1}
    assert reply.events[1]["error"]["code"] == "engine_error"


async def test_a_handler_that_ends_without_an_answer_is_a_bug_of_ours() -> None:
    async def handler(visit: HandlerVisit) -> None:
        pass

    assert (await serving(handler).post("/x/1/y")).status == 500


async def test_a_silent_stream_of_a_handler_is_kept_alive() -> None:
    done = asyncio.Event()

    async def handler(visit: HandlerVisit) -> None:
        visit.begin_events()
        await done.wait()
        visit.finish(b"data: [DONE]\n\n", status=503)

    client = serving(handler, keep_alive_interval=0.02).open("POST", "/x/1/y")
    await client.has_seen(b": keep-alive\n\n")
    done.set()
    assert (await client.reply()).events == ["[DONE]"]


async def test_a_client_that_leaves_cancels_the_handler_and_what_it_runs() -> None:
    ended = asyncio.Event()

    async def handler(visit: HandlerVisit) -> None:
        try:
            async with Run(visit, planned()) as run:
                async for _ in run:
                    pass
        finally:
            ended.set()

    gateway = serving(handler)
    client = gateway.open("POST", "/x/1/y")
    stream = await gateway.port.next_stream()
    client.disconnect()
    await asyncio.wait_for(ended.wait(), 2)
    assert stream.cancel_reason is not None
    assert len(gateway.in_flight) == 0


async def test_what_outlives_its_client_can_run_on_but_not_send() -> None:
    seen: list[object] = []

    async def background(visit: HandlerVisit) -> None:
        async with Run(visit, planned()) as run:
            seen.extend([events async for _, events in run])
        try:
            visit.send(b"data: x\n\n")
        except ClientGone as error:
            seen.append(type(error))

    async def handler(visit: HandlerVisit) -> None:
        visit.edge.spawn(background(visit), name="background")
        visit.respond(202, b"{}")

    gateway = serving(handler)
    assert (await gateway.post("/x/1/y")).status == 202
    stream = await gateway.port.next_stream()
    stream.push(*HELLO)
    await asyncio.gather(*gateway.tasks)
    assert seen == [list(HELLO), ClientGone]


async def test_a_stop_ends_a_handler_with_an_error_to_its_client() -> None:
    async def handler(visit: HandlerVisit) -> None:
        await asyncio.Event().wait()

    gateway = serving(handler)
    client = gateway.open("POST", "/x/1/y")
    await asyncio.sleep(0)
    await gateway.server.stop(1.0)
    assert client.seen().status == 503


# Runs


class Results:
    """What a handler's run came to."""

    def __init__(self) -> None:
        self.events: list[tuple[int, list[Event]]] = []
        self.usage = Usage()
        self.error: Exception | None = None
        self.run: Run | None = None

    def handler(self, num_works: int, leave_after: int | None = None) -> Handler:
        async def handle(visit: HandlerVisit) -> None:
            try:
                async with Run(visit, planned(num_works)) as run:
                    self.run = run
                    async for index, events in run:
                        self.events.append((index, events))
                        if len(self.events) == leave_after:
                            break
                self.usage = run.usage
            except Exception as error:
                self.error = error
                raise
            visit.respond(200, b"{}")

        return handle


async def test_works_run_at_once_and_their_usage_is_summed() -> None:
    results = Results()
    gateway = serving(results.handler(2))
    client = gateway.open("POST", "/x/1/y")
    await gateway.port.next_stream()
    first, second = gateway.port.streams
    assert second.request_id == f"{first.request_id}-1"
    second.push(Tokens(text="b"))
    first.push(Tokens(text="a"), Completed(usage=Usage(prompt_tokens=1, completion_tokens=2)))
    second.push(Completed(usage=Usage(prompt_tokens=3, completion_tokens=4, cached_tokens=1)))
    assert (await client.reply()).status == 200
    assert [index for index, _ in results.events] == [1, 0, 1]
    assert results.usage == Usage(prompt_tokens=4, completion_tokens=6, cached_tokens=1)
    assert len(gateway.in_flight) == 0


async def test_what_came_before_a_failure_is_read_first_and_the_rest_is_cancelled() -> None:
    results = Results()
    gateway = serving(results.handler(2))
    client = gateway.open("POST", "/x/1/y")
    await gateway.port.next_stream()
    first, second = gateway.port.streams
    first.push(Tokens(text="a"))
    first.fail(WorkerLost("gone"))
    assert (await client.reply()).status == 503
    assert [index for index, _ in results.events] == [0]
    assert second.cancel_reason is not None


async def test_leaving_early_cancels_what_still_runs() -> None:
    results = Results()
    gateway = serving(results.handler(1, leave_after=1))
    client = gateway.open("POST", "/x/1/y")
    stream = await gateway.port.next_stream()
    stream.push(Tokens(text="a"))
    assert (await client.reply()).status == 200
    assert stream.cancel_reason is not None


async def test_a_run_is_cancelled_from_elsewhere() -> None:
    results = Results()
    gateway = serving(results.handler(1))
    client = gateway.open("POST", "/x/1/y")
    stream = await gateway.port.next_stream()
    assert results.run is not None
    results.run.cancel("changed my mind")
    assert (await client.reply()).status == 499
    assert isinstance(results.error, Cancelled)
    assert stream.cancel_reason == "changed my mind"


async def test_a_run_is_found_and_cancelled_by_its_id() -> None:
    results = Results()
    gateway = serving(results.handler(1))
    client = gateway.open("POST", "/x/1/y", headers={"x-client-request-id": "mine"})
    await gateway.port.next_stream()
    assert (await gateway.call("DELETE", "/v1/requests/mine")).status == 200
    assert (await client.reply()).status == 499


async def test_a_full_gateway_admits_no_run() -> None:
    results = Results()
    gateway = serving(results.handler(1), max_in_flight=1)
    first = gateway.open("POST", "/x/1/y")
    stream = await gateway.port.next_stream()
    assert (await gateway.post("/x/2/y")).status == 429
    stream.push(*HELLO)
    assert (await first.reply()).status == 200


# Quotas: what a key is charged


def limited_keys(folder: Path) -> Path:
    path = write_keys(folder, mine="sk-1")
    path.write_text(path.read_text() + "tpm = 100000\n")
    return path


@pytest.fixture
def charges(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The tokens that each grant was ended with."""
    told: list[int] = []
    monkeypatch.setattr(
        "sage_gateway.access.ledger.KeyLedger.end",
        lambda ledger, granted, num_tokens: told.append(num_tokens),
    )
    return told


KEY = {"authorization": "Bearer sk-1"}


async def test_a_finished_request_is_charged_what_it_used(tmp_path: Path, charges: list[int]) -> None:
    gateway = Gateway(keys_file=limited_keys(tmp_path))
    gateway.port.answer_with(*HELLO)
    reply = await gateway.post("/v1/chat/completions", chat(), headers=KEY)
    assert reply.status == 200
    assert "x-ratelimit-remaining-tokens" in reply.headers
    assert charges == [9]


@pytest.mark.parametrize("is_streamed", [False, True])
async def test_a_request_that_was_cut_is_charged_what_had_run(
    tmp_path: Path, charges: list[int], is_streamed: bool
) -> None:
    gateway = Gateway(keys_file=limited_keys(tmp_path))
    client = gateway.open("POST", "/v1/chat/completions", chat(stream=is_streamed), headers=KEY)
    stream = await gateway.port.next_stream()
    stream.push(Tokens(text="abc", token_ids=[1, 2, 3]), Tokens(text="d"))
    client.disconnect()
    (charge,) = charges
    assert charge == 4 + measure(stream.work).num_prompt_tokens


async def test_a_request_that_never_started_costs_nothing(tmp_path: Path, charges: list[int]) -> None:
    gateway = Gateway(keys_file=limited_keys(tmp_path))
    client = gateway.open("POST", "/v1/chat/completions", chat(), headers=KEY)
    await gateway.port.next_stream()
    client.disconnect()
    assert charges == [0]


async def test_a_client_that_leaves_while_its_quota_is_asked_gives_it_back_and_submits_nothing(
    tmp_path: Path, charges: list[int]
) -> None:
    gateway = Gateway(keys_file=limited_keys(tmp_path))
    client = gateway.open("POST", "/v1/chat/completions", chat(), headers=KEY)
    client.disconnect()
    while not charges:  # noqa: ASYNC110 - nothing else tells when the quota was decided
        await asyncio.sleep(0)
    assert charges == [0]
    assert gateway.port.streams == []


async def test_a_run_is_charged_too(tmp_path: Path, charges: list[int]) -> None:
    results = Results()
    gateway = serving(results.handler(1), keys_file=limited_keys(tmp_path))
    gateway.port.answer_with(*HELLO)
    assert (await gateway.post("/x/1/y", headers=KEY)).status == 200
    assert charges == [9]
