"""Mixed load from many users at once, some of whom are badly behaved. What an answer should be is checked each time."""

from __future__ import annotations

import asyncio
import collections
import json
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, Final

from wire_client import Connection, Head, request_bytes

__all__ = ["BEHAVIOURS", "Models", "Traffic", "Wrong"]

LIMIT_SECONDS: Final = 60.0
MAX_WRONG_CHARS: Final = 240
CHAT: Final = "/v1/chat/completions"
RESPONSES: Final = "/v1/responses"
MESSAGES: Final = [
    {"role": "user", "content": "Explain how a request travels from the gateway to the engine. " * 8}
]
TOOL: Final = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Look up the weather.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
SCHEMA: Final = {
    "type": "json_schema",
    "json_schema": {
        "name": "answer",
        "schema": {
            "type": "object",
            "properties": {"is_short": {"type": "boolean"}},
            "required": ["is_short"],
        },
    },
}


class Wrong(Exception):
    """An answer was not what it should have been."""


@dataclass(frozen=True, slots=True)
class Models:
    """Which models to ask for."""

    generate: str
    embed: str


@dataclass
class User:
    """Somebody with one connection that is kept, for all that ends well."""

    port: int
    models: Models
    random: random.Random
    kept: Connection | None = None

    def chat(self, num_tokens: int, *, is_stream: bool = False, **more: Any) -> dict[str, Any]:
        """Return a chat request."""
        request = {"model": self.models.generate, "messages": MESSAGES, "max_tokens": num_tokens, **more}
        return request | {"stream": True} if is_stream else request

    async def ask(
        self, method: str, path: str, body: dict[str, Any] | bytes = b"", *, status: int = 200
    ) -> tuple[Head, bytes]:
        """Send on the kept connection; return head and body. Raises Wrong for another status."""
        connection, self.kept = self.kept, None
        if connection is None:
            connection = await Connection.open(self.port)
        await connection.send(request_bytes(method, path, body))
        head = await connection.head()
        content = await connection.body(head)
        if head.headers.get("connection") == "close":
            await connection.close()
        else:
            self.kept = connection
        if head.status != status:
            raise Wrong(f"{method} {path}: {head.status} {content[:300]!r}; expected {status}")
        return head, content

    async def stream(self, connection: Connection, body: dict[str, Any], path: str = CHAT) -> Head:
        """Begin a stream on `connection`. Raises Wrong for anything but 200."""
        await connection.send(request_bytes("POST", path, body))
        head = await connection.head()
        if head.status != 200:
            raise Wrong(
                f"POST {path}: {head.status} {(await connection.body(head))[:300]!r}; expected a stream"
            )
        return head


Behaviour = Callable[[User], Awaitable[None]]
BEHAVIOURS: Final[dict[str, tuple[float, Behaviour]]] = {}


def behaviour(weight: float) -> Callable[[Behaviour], Behaviour]:
    """Register what a user does, with its share of the mix."""

    def register(function: Behaviour) -> Behaviour:
        BEHAVIOURS[getattr(function, "__name__", "")] = (weight, function)
        return function

    return register


@behaviour(20)
async def chat_whole(user: User) -> None:
    """A chat answered at once."""
    _, body = await user.ask("POST", CHAT, user.chat(16))
    if not json.loads(body)["choices"][0]["message"]["content"]:
        raise Wrong("an answer without text")


@behaviour(20)
async def chat_streamed(user: User) -> None:
    """A stream read to its end."""
    _, body = await user.ask("POST", CHAT, user.chat(user.random.randint(8, 96), is_stream=True))
    if not body.endswith(b"data: [DONE]\n\n"):
        raise Wrong(f"a stream ended with {body[-200:]!r}")


@behaviour(3)
async def chat_with_tools(user: User) -> None:
    """A streamed chat that offers a tool."""
    _, body = await user.ask("POST", CHAT, user.chat(24, is_stream=True, tools=[TOOL]))
    if not body.endswith(b"data: [DONE]\n\n"):
        raise Wrong(f"a stream ended with {body[-200:]!r}")


@behaviour(3)
async def chat_structured(user: User) -> None:
    """A chat whose answer has to be a JSON value of a schema."""
    _, body = await user.ask("POST", CHAT, user.chat(64, response_format=SCHEMA))
    json.loads(json.loads(body)["choices"][0]["message"]["content"])


@behaviour(3)
async def many_choices(user: User) -> None:
    """Several answers to one prompt."""
    _, body = await user.ask("POST", CHAT, user.chat(8, n=3))
    if len(json.loads(body)["choices"]) != 3:
        raise Wrong("not three choices")


@behaviour(4)
async def completions(user: User) -> None:
    """Two prompts in one request."""
    request = {"model": user.models.generate, "prompt": ["one two", "three four"], "max_tokens": 8}
    _, body = await user.ask("POST", "/v1/completions", request)
    if len(json.loads(body)["choices"]) != 2:
        raise Wrong("not two choices")


@behaviour(3)
async def embeddings(user: User) -> None:
    """A few texts."""
    request = {"model": user.models.embed, "input": ["a text", "another one"]}
    _, body = await user.ask("POST", "/v1/embeddings", request)
    if len(json.loads(body)["data"]) != 2:
        raise Wrong("not two embeddings")


@behaviour(4)
async def response_stored(user: User) -> None:
    """A response that is kept, read again, gone on from, and deleted."""
    request = {"model": user.models.generate, "input": "Tell me about queues.", "max_output_tokens": 16}
    _, body = await user.ask("POST", RESPONSES, request)
    first = json.loads(body)["id"]
    await user.ask("GET", f"{RESPONSES}/{first}")
    _, body = await user.ask("POST", RESPONSES, request | {"previous_response_id": first})
    for stored in (first, json.loads(body)["id"]):
        await user.ask("DELETE", f"{RESPONSES}/{stored}")


@behaviour(3)
async def response_streamed(user: User) -> None:
    """A streamed response that is not kept."""
    request = {"model": user.models.generate, "input": "Go on.", "max_output_tokens": 24}
    _, body = await user.ask("POST", RESPONSES, request | {"stream": True, "store": False})
    if b"response.completed" not in body and b"response.incomplete" not in body:
        raise Wrong(f"a response ended with {body[-200:]!r}")


@behaviour(3)
async def looks_around(user: User) -> None:
    """What dashboards and probes ask."""
    for path in ("/v1/models", "/healthz", "/readyz", "/metrics"):
        await user.ask("GET", path)


@behaviour(6)
async def bad_bodies(user: User) -> None:
    """Requests that must be refused, each with its own status."""
    await user.ask("POST", CHAT, b'{"model": "auto", "messages": [', status=400)
    await user.ask("POST", CHAT, user.chat(8, temperature="hot"), status=400)
    await user.ask("POST", CHAT, user.chat(8) | {"model": "no-such-model"}, status=404)
    await user.ask("GET", "/v1/no-such-route", status=404)
    await user.ask("GET", CHAT, status=405)


@behaviour(6)
async def leaves_a_stream(user: User) -> None:
    """A client that has read enough after a few events."""
    connection = await Connection.open(user.port)
    try:
        head = await user.stream(connection, user.chat(400, is_stream=True))
        num_left = user.random.randint(1, 12)
        async for _ in connection.pieces(head):
            num_left -= 1
            if num_left == 0:
                return
    finally:
        connection.abort()


@behaviour(5)
async def leaves_before_the_answer(user: User) -> None:
    """A client that is gone before anything came, in any phase."""
    connection = await Connection.open(user.port)
    try:
        await connection.send(
            request_bytes("POST", CHAT, user.chat(200, is_stream=user.random.random() < 0.5))
        )
        await asyncio.sleep(user.random.uniform(0.0, 0.03))
    finally:
        connection.abort()


@behaviour(3)
async def leaves_within_a_request(user: User) -> None:
    """A client that dies while it sends."""
    data = request_bytes("POST", CHAT, user.chat(8))
    connection = await Connection.open(user.port)
    try:
        await connection.send(data[: user.random.randint(1, len(data) - 1)])
        await asyncio.sleep(user.random.uniform(0.0, 0.02))
    finally:
        connection.abort()


@behaviour(4)
async def cancels(user: User) -> None:
    """A stream that is cancelled by its id from another connection."""
    connection = await Connection.open(user.port)
    try:
        head = await user.stream(connection, user.chat(600, is_stream=True))
        pieces = connection.pieces(head)
        await anext(pieces)
        await user.ask("DELETE", f"/v1/requests/{head.headers['x-request-id']}")
        rest = b"".join([piece async for piece in pieces])
        if rest.endswith(b"data: [DONE]\n\n"):
            raise Wrong("a cancelled stream went on to its end")
    finally:
        connection.abort()


@behaviour(3)
async def reads_slowly(user: User) -> None:
    """A client that takes a little at a time, and may lose patience."""
    connection = await Connection.open(user.port, receive_bytes=4096)
    try:
        await connection.send(request_bytes("POST", CHAT, user.chat(200, is_stream=True)))
        for _ in range(user.random.randint(5, 60)):
            if not await connection.read(256):
                return
            await asyncio.sleep(0.05)
    finally:
        connection.abort()


@behaviour(2)
async def stays_silent(user: User) -> None:
    """A connection that is opened and not used."""
    connection = await Connection.open(user.port)
    await asyncio.sleep(user.random.uniform(0.1, 2.0))
    await connection.close()


@dataclass
class Traffic:
    """`num_users` users who do one thing after the other until they are stopped."""

    port: int
    models: Models
    num_users: int
    without: frozenset[str] = frozenset()
    counts: collections.Counter[str] = field(default_factory=collections.Counter)
    wrong: collections.Counter[str] = field(default_factory=collections.Counter)
    is_stopping: bool = False

    async def run(self) -> None:
        """Return once `is_stopping` is set and everybody has finished what they did."""
        async with asyncio.TaskGroup() as tasks:
            for number in range(self.num_users):
                tasks.create_task(self._live(number), name=f"user {number}")

    async def _live(self, number: int) -> None:
        user = User(self.port, self.models, random.Random(number))
        mix = {name: entry for name, entry in BEHAVIOURS.items() if name not in self.without}
        names, weights = list(mix), [weight for weight, _ in mix.values()]
        while not self.is_stopping:
            (name,) = user.random.choices(names, weights)
            await self._once(user, name, mix[name][1])
            await asyncio.sleep(user.random.uniform(0.0, 0.2))
        if user.kept is not None:
            await user.kept.close()

    async def _once(self, user: User, name: str, function: Behaviour) -> None:
        self.counts[name] += 1
        try:
            async with asyncio.timeout(LIMIT_SECONDS):
                await function(user)
        except (Wrong, OSError, EOFError, TimeoutError, KeyError, ValueError) as error:
            user.kept = None
            self.wrong[f"{name}: {type(error).__name__}: {error}"[:MAX_WRONG_CHARS]] += 1
