"""The routes of the Responses API: handlers around the pure parts, the store and one run per response."""

from __future__ import annotations

import time
from typing import Final, Literal
from urllib.parse import parse_qs

import msgspec

from sage_bus import Bus
from sage_core import BadRequest, Cancelled, Conflict, ContextLengthExceeded, NotFound, SageError
from sage_gateway.errors import HttpError, HttpRefused, describe
from sage_gateway.handler_visit import HandlerVisit
from sage_gateway.responses.bodies import CREATE_DECODER
from sage_gateway.responses.conversation import input_items, shortened
from sage_gateway.responses.items import Item, ItemIds
from sage_gateway.responses.planning import PlannedResponse, in_our_words, plan_response
from sage_gateway.responses.resource import ResponseBody
from sage_gateway.responses.running import RunningResponses
from sage_gateway.responses.store import ResponseStore
from sage_gateway.routes import Route
from sage_gateway.run import Run
from sage_gateway.settings import GatewaySection

__all__ = ["ResponseRoutes"]

_PATH: Final = "/v1/responses"
_PREFIX: Final = "resp"
_ABSENT: Final = ("compact", "input_tokens")
_DEFAULT_LIMIT: Final = 20
_MAX_LIMIT: Final = 100

_encode = msgspec.json.Encoder().encode


class _Deleted(msgspec.Struct, frozen=True):
    id: str
    object: str = "response"
    deleted: bool = True


class _ItemList(msgspec.Struct, frozen=True):
    data: list[Item]
    first_id: str | None
    last_id: str | None
    has_more: bool
    object: Literal["list"] = "list"


class _Status(msgspec.Struct, frozen=True):
    status: str


class ResponseRoutes:
    """Everything below `/v1/responses`. One per life of the gateway; `start` before the first request."""

    def __init__(self, section: GatewaySection, bus: Bus) -> None:
        self._max_stored = section.max_stored_response
        self._running = RunningResponses(bus)
        self._store = ResponseStore(
            bus,
            ttl=section.responses_ttl,
            max_response=section.max_stored_response,
            max_bytes=section.responses_bytes,
        )

    def routes(self) -> list[Route]:
        """Return the table's part of this API."""
        one = f"{_PATH}/{{id}}"
        return [
            Route(_PATH, handlers={"POST": self.create}, id_prefix=_PREFIX, is_work=True),
            *(Route(f"{_PATH}/{name}", handlers={"POST": self.absent}) for name in _ABSENT),
            Route(one, handlers={"GET": self.retrieve, "DELETE": self.delete}),
            Route(f"{one}/cancel", handlers={"POST": self.cancel}),
            Route(f"{one}/input_items", handlers={"GET": self.input_items}),
        ]

    async def start(self) -> None:
        """Listen for cancels that arrive at other gateways."""
        await self._running.start()

    async def close(self) -> None:
        """Listen no more. Idempotent."""
        await self._running.close()

    async def create(self, visit: HandlerVisit) -> None:
        """Answer `POST /v1/responses`."""
        try:
            await self._create(visit)
        except SageError as error:
            raise in_our_words(error) from None

    async def retrieve(self, visit: HandlerVisit) -> None:
        """Answer `GET /v1/responses/{id}`."""
        if _query(visit).get("stream", "false") != "false":
            raise BadRequest("'stream': a response is streamed once, as it is written", param="stream")
        found = await self._store.find(visit.caller.tenant, _id(visit))
        visit.respond(200, found.body)

    async def delete(self, visit: HandlerVisit) -> None:
        """Answer `DELETE /v1/responses/{id}`."""
        await self._store.delete(visit.caller.tenant, _id(visit))
        visit.respond(200, _encode(_Deleted(_id(visit))))

    async def cancel(self, visit: HandlerVisit) -> None:
        """Answer `POST /v1/responses/{id}/cancel`: end it, whichever gateway writes it. Idempotent."""
        tenant, response_id = visit.caller.tenant, _id(visit, "/cancel")
        body = await self._running.cancel(tenant, response_id)
        if body is None:
            found = await self._store.find(tenant, response_id)
            status = msgspec.json.decode(found.body, type=_Status).status
            if status != "cancelled":
                raise Conflict(f"response '{response_id[:120]}' has ended: it is {status}")
            body = found.body
        visit.respond(200, body)

    async def input_items(self, visit: HandlerVisit) -> None:
        """Answer `GET /v1/responses/{id}/input_items`: all that went into the prompt, newest first unless asked."""
        tenant, query = visit.caller.tenant, _query(visit)
        found = await self._store.find(tenant, _id(visit, "/input_items"))
        items = [*await self._store.conversation(tenant, found.previous_response_id), *found.input]
        visit.respond(200, _encode(_page(items, query)))

    async def absent(self, visit: HandlerVisit) -> None:
        """Answer 404 for what this API has and this gateway has not; its names are no ids of responses."""
        raise HttpRefused(404, "invalid_request_error", "unknown_url", f"there is no {visit.path} here")

    async def _create(self, visit: HandlerVisit) -> None:
        decoded = CREATE_DECODER.decode(visit.body)
        visit.route.meter.num_ignored_fields += decoded.num_ignored
        body, tenant = decoded.body, visit.caller.tenant
        response_id = _response_id(visit.request_id)
        given = input_items(body.input, ItemIds(response_id, "i"))
        context = await self._store.conversation(tenant, body.previous_response_id)
        items = await self._store.resolve(tenant, given, context)
        is_stored = body.store is not False and self._store.is_on and len(visit.body) <= self._max_stored
        asked = visit.asked()
        prompt: list[Item] | None = [*context, *items]
        while prompt is not None:
            response = plan_response(
                body,
                prompt,
                asked,
                response_id=response_id,
                is_stored=is_stored,
                unix_time=lambda: int(time.time()),
            )
            try:
                await self._answer(visit, response, items)
                return
            except ContextLengthExceeded:
                # Only the engine counts tokens, and it refuses before its first event.
                prompt = shortened(prompt) if body.truncation == "auto" else None
                if prompt is None:
                    raise

    async def _answer(self, visit: HandlerVisit, response: PlannedResponse, items: list[Item]) -> None:
        answer, tenant = response.answer, visit.caller.tenant
        response_id = _response_id(visit.request_id)
        try:
            async with Run(visit, response.planned) as run:
                if answer.is_streamed:
                    visit.begin_events()
                with self._running.hold(tenant, response_id, run, answer):
                    async for index, events in run:
                        data = answer.add(index, events)
                        if data:
                            visit.send(data)
        except Cancelled as error:
            await self._stop(visit, response, items, answer.stopped("cancelled"), describe(error))
        except SageError as error:
            told = describe(in_our_words(error))
            if not visit.has_begun:
                raise
            await self._stop(visit, response, items, answer.stopped("failed", told), told)
        except HttpRefused as refusal:
            if not visit.has_begun:
                raise
            told = refusal.http_error
            await self._stop(visit, response, items, answer.stopped("failed", told), told)
        else:
            await self._complete(visit, response, items)

    async def _complete(self, visit: HandlerVisit, response: PlannedResponse, items: list[Item]) -> None:
        """Store the response before its end is told, so that whoever reads the end finds it."""
        answer = response.answer
        if answer.is_stored:
            answer.is_stored = await self._store.save(visit.caller.tenant, answer.finished(), items)
        if answer.is_streamed:
            visit.finish(answer.end())
        else:
            visit.respond(200, answer.end())

    async def _stop(
        self,
        visit: HandlerVisit,
        response: PlannedResponse,
        items: list[Item],
        stopped: ResponseBody,
        error: HttpError,
    ) -> None:
        """Tell the client that a response ended before its time, having stored what there is of it."""
        answer = response.answer
        if answer.is_stored and not await self._store.save(visit.caller.tenant, stopped, items):
            stopped = msgspec.structs.replace(stopped, store=False)
        if answer.is_streamed:
            visit.finish(answer.fail(stopped, error), status=error.status)
        else:
            visit.respond(200, _encode(stopped))


def _response_id(request_id: str) -> str:
    """Return the id that clients are shown: some test for its prefix with an underscore."""
    return request_id.replace("-", "_", 1)


def _id(visit: HandlerVisit, tail: str = "") -> str:
    return visit.path.removeprefix(f"{_PATH}/").removesuffix(tail)


def _query(visit: HandlerVisit) -> dict[str, str]:
    return {name: values[-1] for name, values in parse_qs(visit.query).items()}


def _page(items: list[Item], query: dict[str, str]) -> _ItemList:
    """Return the items that `limit`, `order` and `after` ask for. Raises BadRequest naming the one that is wrong."""
    order = query.get("order", "desc")
    if order not in ("asc", "desc"):
        raise BadRequest("'order': expected asc or desc", param="order")
    given = query.get("limit", str(_DEFAULT_LIMIT))
    if not given.isascii() or not given.isdigit() or len(given) > 3 or not 1 <= int(given) <= _MAX_LIMIT:
        raise BadRequest(f"'limit': expected a whole number from 1 to {_MAX_LIMIT}", param="limit")
    shown = items if order == "asc" else items[::-1]
    after = query.get("after")
    if after is not None:
        places = [index for index, item in enumerate(shown) if item.id == after]
        if not places:
            raise NotFound(f"there is no item '{after[:120]}' in this response's input", param="after")
        shown = shown[places[0] + 1 :]
    page = shown[: int(given)]
    first, last = (page[0].id, page[-1].id) if page else (None, None)
    return _ItemList(page, first, last, len(page) < len(shown))
