"""The gateway's gate: who calls, what the key lets through, and how much of it. All that is kept is behind it."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Final

from sage_bus import Bus
from sage_client import measure
from sage_core import Clock, ConfigurationError
from sage_gateway.access.caller import Caller
from sage_gateway.access.cors import Cors
from sage_gateway.access.key_ring import LOOK_SECONDS, KeyRing
from sage_gateway.access.ledger import Granted, KeyLedger, OnDecision
from sage_gateway.access.loopback import LoopbackDoor
from sage_gateway.access.quota_store import QuotaStore
from sage_gateway.settings import GatewaySection, is_loopback
from sage_wire.messages import Generate, RunPipeline, Work

__all__ = ["Gate", "open_ring"]

_CLOSE_SECONDS: Final = 1.0
_ANYONE: Final = Caller()

Headers = tuple[tuple[bytes, bytes], ...]


class Gate:
    """Decides about every request of one gateway process. Used from one event loop; makes no task but for quotas.

    With a keys file every caller needs a key. Without one, only this machine is answered; where a file appears later,
    it counts from then on, and a file that goes away again does not open the gateway.
    """

    def __init__(
        self, section: GatewaySection, *, clock: Clock, bus: Bus, wall: Callable[[], float] = time.time
    ) -> None:
        """Read the keys file. Raises what `open_ring` raises."""
        self._clock = clock
        self._cors = Cors(section.cors_origins)
        self._door = LoopbackDoor(self._cors.origins)
        self._ring = open_ring(section, wall)
        self._store = QuotaStore(bus, clock)
        self._ledgers: dict[str, KeyLedger] = {}
        self._quota_timeout = section.quota_timeout
        self._output_tokens = section.quota_output_tokens
        self._next_look = clock.now() + LOOK_SECONDS

    def identify(self, headers: Mapping[bytes, bytes]) -> Caller:
        """Return whose request this is.

        Raises HttpRefused: 401 without a key that is good now; without keys, 403 where the request is not certainly
        of this machine's own (see LoopbackDoor).
        """
        if self._clock.now() >= self._next_look:
            self._look()
        if self._ring.is_loaded:
            return self._ring.find(headers.get(b"authorization", b""))
        self._door.check(headers.get(b"host", b""), headers.get(b"origin"))
        return _ANYONE

    def reserved_tokens(self, works: Sequence[Work]) -> int:
        """Return what a request takes from its key's tokens before it runs: its prompts and the longest answers."""
        return sum(self._tokens_of(work) for work in works)

    def admit(self, caller: Caller, num_tokens: int, on_decision: OnDecision) -> None:
        """Ask whether a request that reserves `num_tokens` may start; only for a caller with a quota.

        Choices and lists of prompts are one request, as OpenAI counts, and are paid in tokens.

        `on_decision` is called once, later, within `[gateway] quota_timeout`: with what was granted, to be ended by
        `settle` or `release` whatever became of its client, or with the HttpRefused to answer, 429 or 503.
        """
        assert caller.quota is not None
        ledger = self._ledgers.get(caller.name)
        if ledger is None:
            ledger = self._ledgers[caller.name] = KeyLedger(
                caller.name, self._store, clock=self._clock, timeout=self._quota_timeout
            )
        ledger.ask(caller.quota, num_tokens, on_decision)

    def settle(self, granted: Granted, num_tokens: int) -> None:
        """End what was granted and count the tokens that it used, cancelled or not. Idempotent; never waits."""
        self._ledgers[granted.key_name].end(granted, num_tokens)

    def release(self, granted: Granted) -> None:
        """End what was granted but never ran: its tokens are given back; it stays counted as a request. Idempotent."""
        self._ledgers[granted.key_name].end(granted, 0)

    def preflight(self, headers: Mapping[bytes, bytes]) -> Headers | None:
        """Return what goes beside `cors_headers` into the 204 for a browser's OPTIONS, which carries no key.

        None: treat it as any other request.
        """
        return self._cors.preflight(headers)

    def cors_headers(self, headers: Mapping[bytes, bytes]) -> Headers:
        """Return what goes into every answer, errors included; empty where CORS is off."""
        return self._cors.headers(headers.get(b"origin")) if self._cors.is_on else ()

    def reload(self) -> None:
        """Read the keys file now, as SIGHUP asks for. One that is wrong is logged, and the last good keys stay."""
        self._ring.reload()
        self._next_look = self._clock.now() + LOOK_SECONDS

    async def close(self) -> None:
        """Give back what this gateway's requests hold of their keys' concurrency. Call once no request is left."""
        await asyncio.gather(*(ledger.close(_CLOSE_SECONDS) for ledger in self._ledgers.values()))

    def _look(self) -> None:
        self._ring.look()
        self._next_look = self._clock.now() + LOOK_SECONDS

    def _tokens_of(self, work: Work) -> int:
        size = measure(work)
        num_tokens = size.num_prompt_tokens
        if isinstance(work, Generate | RunPipeline):
            asked = work.sampling.max_tokens
            num_tokens += self._output_tokens if asked is None else asked
        return math.ceil(num_tokens)


def open_ring(section: GatewaySection, wall: Callable[[], float] = time.time) -> KeyRing:
    """Return the keys that `[gateway]` names, not loaded where there are none.

    Raises ConfigurationError where the file is wrong, named but absent, or needed: on a host that others can reach, and
    for pages of any origin.
    """
    ring = KeyRing(section.keys_path, wall=wall)
    try:
        ring.load()
    except FileNotFoundError:
        _check_may_be_open(section)
    return ring


def _check_may_be_open(section: GatewaySection) -> None:
    path = section.keys_path
    if section.keys_file is not None:
        raise ConfigurationError(
            f"keys_file names {path}, which does not exist; run: sage keys create --name NAME"
        )
    if not is_loopback(section.host):
        raise ConfigurationError(
            f"host {section.host!r} can be reached from other machines, and there is no keys file {path}; "
            "run `sage keys create --name NAME`, or listen on 127.0.0.1"
        )
    if "*" in section.cors_origins:
        raise ConfigurationError(
            f"cors_origins has '*', and there is no keys file {path}: every web page could use this gateway; "
            "run `sage keys create --name NAME`, or name the origins"
        )
