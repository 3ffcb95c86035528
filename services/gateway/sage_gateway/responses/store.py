"""Responses that can be found later, in a bucket that every gateway reads. What is not kept is said, never hidden.

A response lies under a hash of its tenant and id, so another tenant's request for it finds nothing. The bucket is
bounded: a response expires after its time to live, and where the bucket is full, the oldest make room.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import msgspec
from msgspec import Raw

from sage_bus import Bus, KeyValue
from sage_core import BadRequest, LimitExceeded, NotFound, SageError
from sage_gateway.errors import HttpRefused
from sage_gateway.responses.conversation import Reference
from sage_gateway.responses.items import Item, response_of
from sage_gateway.responses.resource import ResponseBody
from sage_telemetry import get_logger, metrics
from sage_wire import subjects

__all__ = ["ResponseStore", "StoredResponse"]

MAX_CHAIN: Final = 256
"""Responses that one conversation may be made of."""
MAX_CHAIN_BYTES: Final = 8 * 2**20
_SAVE_SECONDS: Final = 5.0
"""The client waits for it with the last event in hand, so a slow store costs the record, not the answer."""

STORED = metrics.counter(
    "sage_gateway_responses_stored_total",
    "Responses to be stored, by outcome: stored, too_large or failed.",
    ["outcome"],
)
log = get_logger()


class _Stored(msgspec.Struct, frozen=True):
    response: Raw
    input: list[Item]


class _Link(msgspec.Struct, frozen=True):
    output: list[Item]
    previous_response_id: str | None = None


class _ToStore(msgspec.Struct, frozen=True):
    response: ResponseBody
    input: list[Item]


_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(_Stored).decode
_decode_link = msgspec.json.Decoder(_Link).decode


@dataclass(frozen=True, slots=True)
class StoredResponse:
    """A response as it was answered, `body`, with what its own request brought; older parts are in its chain."""

    body: bytes
    input: list[Item]
    output: list[Item]
    previous_response_id: str | None
    num_bytes: int


class ResponseStore:
    """Reads and writes the bucket. Opened at first use, so that a gateway without JetStream serves all else.

    Reading raises what `KeyValue.get` raises. With `ttl` 0 nothing is ever stored.
    """

    def __init__(self, bus: Bus, *, ttl: float, max_response: int, max_bytes: int) -> None:
        self._bus = bus
        self._ttl = ttl
        self._max_response = max_response
        self._max_bytes = max_bytes
        self._bucket: KeyValue | None = None

    @property
    def is_on(self) -> bool:
        """False where the settings say that nothing is stored."""
        return self._ttl > 0

    async def save(self, tenant: str, response: ResponseBody, items: Sequence[Item]) -> bool:
        """Store `response` with the input of its request; False where it could not be, which is logged."""
        value = _encode(_ToStore(response, list(items)))
        if len(value) > self._max_response:
            STORED.labels("too_large").inc()
            return False
        try:
            async with asyncio.timeout(_SAVE_SECONDS):
                bucket = await self._open()
                await bucket.put(subjects.response_entry(tenant, response.id), value, ttl=self._ttl)
        except (SageError, TimeoutError) as error:
            STORED.labels("failed").inc()
            log.warning("response_not_stored", response_id=response.id, reason=str(error) or "timeout")
            return False
        STORED.labels("stored").inc()
        return True

    async def find(self, tenant: str, response_id: str) -> StoredResponse:
        """Return a response. Raises NotFound where this tenant has none by that id."""
        found = await self._read(tenant, response_id)
        if found is None:
            raise NotFound(f"no response '{response_id[:120]}' is stored", param="response_id")
        return found

    async def delete(self, tenant: str, response_id: str) -> None:
        """Remove a response for good. Raises NotFound where this tenant has none by that id."""
        await self.find(tenant, response_id)
        bucket = await self._open()
        await bucket.delete(subjects.response_entry(tenant, response_id))

    async def conversation(self, tenant: str, response_id: str | None) -> list[Item]:
        """Return every item up to and including the output of `response_id`, oldest first; nothing for None.

        Raises HttpRefused where a response of the chain is not stored any more, and LimitExceeded for a chain that
        is too long or too large.
        """
        turns: list[list[Item]] = []
        num_bytes = 0
        while response_id is not None:
            found = await self._read(tenant, response_id)
            if found is None:
                raise HttpRefused(
                    400,
                    "invalid_request_error",
                    "previous_response_not_found",
                    f"previous response with id '{response_id[:120]}' not found",
                    param="previous_response_id",
                )
            num_bytes += found.num_bytes
            if len(turns) >= MAX_CHAIN or num_bytes > MAX_CHAIN_BYTES:
                raise LimitExceeded(
                    f"'previous_response_id': the conversation has more than {MAX_CHAIN} responses or "
                    f"{MAX_CHAIN_BYTES} bytes; begin a new one with a summary of it",
                    param="previous_response_id",
                )
            turns.append([*found.input, *found.output])
            response_id = found.previous_response_id
        return [item for turn in reversed(turns) for item in turn]

    async def resolve(
        self, tenant: str, items: Sequence[Item | Reference], context: Sequence[Item]
    ) -> list[Item]:
        """Return `items` with every reference replaced by what it names: of `context`, or of another response.

        Raises BadRequest for a reference to nothing that is stored.
        """
        known = {item.id: item for item in context}
        resolved: list[Item] = []
        for item in items:
            if isinstance(item, Reference):
                if item.item_id not in known:
                    known |= await self._items_beside(tenant, item.item_id)
                found = known.get(item.item_id)
                if found is None:
                    raise BadRequest(
                        f"'{item.param}': item with id '{item.item_id[:120]}' not found", param=item.param
                    )
                resolved.append(found)
            else:
                resolved.append(item)
        return resolved

    async def _items_beside(self, tenant: str, item_id: str) -> dict[str, Item]:
        response_id = response_of(item_id)
        found = None if response_id is None else await self._read(tenant, response_id)
        return {} if found is None else {item.id: item for item in (*found.input, *found.output)}

    async def _read(self, tenant: str, response_id: str) -> StoredResponse | None:
        if not self.is_on:
            return None
        bucket = await self._open()
        entry = await bucket.get(subjects.response_entry(tenant, response_id))
        if entry is None or entry.value is None:
            return None
        stored = _decode(entry.value)
        link = _decode_link(stored.response)
        return StoredResponse(
            bytes(stored.response), stored.input, link.output, link.previous_response_id, len(entry.value)
        )

    async def _open(self) -> KeyValue:
        if self._bucket is None:
            self._bucket = await self._bus.key_value(subjects.RESPONSES_BUCKET, max_bytes=self._max_bytes)
        return self._bucket
