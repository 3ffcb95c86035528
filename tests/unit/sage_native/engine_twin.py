"""The engine model of native/include/sage/simulator/engine_model.hpp again, slow and plain: every block has a name.

The oracle of test_engine_model.py. Sequences are advanced one by one, as in vLLM's `Scheduler.schedule`.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

Key = tuple[str, int, int]
"""A block's content: ("group", hash, index in the group), or ("own", request, index) of what nobody else can name."""


@dataclass(eq=False)
class Sequence:
    request: int
    num_prompt: int
    num_tokens: int
    num_left: int
    priority: int
    arrival: int
    groups: list[int]
    group_blocks: int
    resident: int = 0
    num_cached: int | None = None
    blocks: list[Key | None] = field(default_factory=list)
    also_held: list[Key] = field(default_factory=list)
    shares: bool = True


class Blocks:
    """`queue`: free blocks that are still cached, least recently freed first. `empty`: free ones that never match."""

    def __init__(self, num_blocks: int) -> None:
        self.num_blocks = num_blocks
        self.empty = num_blocks
        self.queue: dict[Key, None] = {}
        self.holders: Counter[Key] = Counter()

    @property
    def num_free(self) -> int:
        return self.empty + len(self.queue)

    def is_cached(self, key: Key) -> bool:
        return key in self.queue or self.holders[key] > 0

    def take(self, count: int) -> None:
        for _ in range(count):
            if self.empty:
                self.empty -= 1
            else:
                del self.queue[next(iter(self.queue))]

    def hold(self, key: Key) -> None:
        self.queue.pop(key, None)
        self.holders[key] += 1

    def rename(self, old: Key, new: Key) -> None:
        self.holders[new] = self.holders.pop(old)

    def free(self, key: Key | None) -> None:
        if key is None:
            self.empty += 1
            return
        self.holders[key] -= 1
        if not self.holders[key]:
            self.queue[key] = None


class EngineTwin:
    def __init__(
        self,
        *,
        a0: float,
        a1: float,
        a2: float,
        m0: float,
        m1: float,
        m2: float,
        m3: float,
        m4: float,
        host: float,
        max_sequences: int,
        max_step_tokens: int,
        kv_tokens: int,
        block_tokens: int,
        watermark: float,
        async_scheduling: bool,
    ) -> None:
        self.decode_cost = (host + a0, a1, a2)
        self.mixed_cost = (host + m0, m1, m2, m3, m4)
        self.max_sequences, self.max_step_tokens = max_sequences, max_step_tokens
        self.size = block_tokens
        self.watermark = int(watermark * (kv_tokens // block_tokens))
        self.is_ahead = async_scheduling
        self.pool = Blocks(kv_tokens // block_tokens - 1)
        self.running: list[Sequence] = []
        self.ending: list[Sequence] = []
        self.waiting: list[Sequence] = []
        self.planned: tuple[float, list[Sequence], list[Sequence]] | None = None
        self.over: list[Sequence] = []
        self.num_arrivals = 0
        self.num_preemptions = 0

    def submit(
        self,
        request: int,
        num_prompt: int,
        num_generated: int,
        priority: int,
        blocks: list[int],
        prefix_block: int,
        num_output: int,
    ) -> None:
        self.waiting.append(
            Sequence(
                request,
                num_prompt,
                num_prompt + num_generated,
                num_output - num_generated if num_output else 0,
                priority,
                self.num_arrivals,
                blocks,
                prefix_block // self.size,
            )
        )
        self.num_arrivals += 1

    def remove(self, request: int) -> None:
        for queue in (self.running, self.ending, self.waiting):
            for sequence in [found for found in queue if found.request == request]:
                queue.remove(sequence)
                self.publish(sequence, sequence.resident)
                self.release(sequence)
        for sequences in (self.over, *(self.planned[1:] if self.planned else ())):
            sequences[:] = [found for found in sequences if found.request != request]

    def step(self) -> tuple[float, list[int]]:
        for sequence in self.over:
            if sequence in self.ending:
                self.end(sequence)
        step = self.planned or self.plan([]) or (0.0, [], [])
        seconds, emitting, self.over = step
        self.planned = self.plan(emitting) if self.is_ahead else None
        return seconds, [sequence.request for sequence in emitting]

    def plan(self, in_flight: list[Sequence]) -> tuple[float, list[Sequence], list[Sequence]] | None:
        """`in_flight`: whose newest token is being computed, and unknown."""
        scheduled: dict[Sequence, tuple[int, int]] = {}  # (tokens computed, tokens in the cache before)
        budget, has_preempted = self.max_step_tokens, False
        for sequence in list(self.running):
            count = min(sequence.num_tokens - sequence.resident, budget)
            needed = self.blocks_for(sequence.resident + count) - len(sequence.blocks)
            while sequence in self.running and self.pool.num_free < needed:
                candidates = self.running + self.ending
                victim = max(candidates, key=lambda found: (-found.priority, found.arrival))
                has_preempted = True
                if victim in self.ending:
                    self.end(victim)  # its last token is on its way
                    continue
                budget += scheduled.pop(victim, (0, 0))[0]
                self.preempt(victim)
            if sequence in self.running:
                scheduled[sequence] = (count, sequence.resident)
                self.pool.take(needed)
                sequence.blocks += [None] * needed
                budget -= count
        # What is planned can be hit by whoever is admitted after it in the same step.
        for sequence, (count, before) in scheduled.items():
            self.publish(sequence, before + count - (sequence in in_flight))
        while not has_preempted and budget and self.waiting and self.num_running < self.max_sequences:
            sequence = min(self.waiting, key=lambda found: (-found.priority, found.arrival))
            if not self.admit(sequence):
                break
            count = min(sequence.num_tokens - sequence.resident, budget)
            scheduled[sequence] = (count, sequence.resident)
            needed = self.blocks_for(sequence.resident + count) - len(sequence.blocks)
            self.pool.take(needed)
            sequence.blocks += [None] * needed
            self.publish(sequence, sequence.resident + count)
            budget -= count
        return self.advance(scheduled) if scheduled else None

    def advance(
        self, scheduled: dict[Sequence, tuple[int, int]]
    ) -> tuple[float, list[Sequence], list[Sequence]]:
        emitting, finished = [], []
        for sequence, (count, _) in scheduled.items():
            sequence.resident += count
            if sequence.resident < sequence.num_tokens:
                continue
            emitting.append(sequence)
            sequence.num_tokens += 1
            if sequence.num_left == 1:
                finished.append(sequence)
                self.running.remove(sequence)
                self.ending.append(sequence)
            sequence.num_left -= 1
        return self.seconds(list(scheduled.values())), emitting, finished

    def seconds(self, scheduled: list[tuple[int, int]]) -> float:
        context = sum(before for _, before in scheduled)
        chunks = [(count, before) for count, before in scheduled if count > 1]
        num_single = len(scheduled) - len(chunks)
        if not chunks:
            a0, a1, a2 = self.decode_cost
            return a0 + a1 * num_single + a2 * context
        m0, m1, m2, m3, m4 = self.mixed_cost
        num_prefill = sum(count for count, _ in chunks)
        work = sum(count * (before + count / 2) for count, before in chunks)
        return m0 + m1 * (num_prefill + num_single) + m2 * context + m3 * work + m4 * num_single

    def admit(self, sequence: Sequence) -> bool:
        hits: list[Key] = []
        for index in range((sequence.num_tokens - 1) // self.size):
            names = (self.name(sequence, index), ("own", sequence.request, index))
            found = [key for key in names if self.pool.is_cached(key)]
            if not found:
                break
            hits.append(found[0])
        also_held = self.rest_of_group(sequence, hits)
        idle = sum(key in self.pool.queue for key in hits + also_held)
        needed = self.blocks_for(sequence.num_tokens) - len(hits) + idle
        if needed + (self.watermark if self.num_running else 0) > self.pool.num_free:
            return False
        for key in hits + also_held:
            self.pool.hold(key)
        sequence.blocks, sequence.also_held, sequence.shares = list(hits), also_held, True
        sequence.resident = len(hits) * self.size
        if sequence.num_cached is None:
            sequence.num_cached = sequence.resident
        self.waiting.remove(sequence)
        self.running.append(sequence)
        return True

    def rest_of_group(self, sequence: Sequence, hits: list[Key]) -> list[Key]:
        """A group of blocks is held as a whole, where its last block has to be computed again, too."""
        if not hits or hits[-1][0] == "own":
            return []
        _, group, last = hits[-1]
        names: list[Key] = [("group", group, index) for index in range(last + 1, sequence.group_blocks)]
        return [key for key in names if self.pool.is_cached(key)]

    def name(self, sequence: Sequence, index: int) -> Key:
        group = index // sequence.group_blocks
        if index < sequence.num_prompt // self.size and group < len(sequence.groups):
            return "group", sequence.groups[group], index % sequence.group_blocks
        return "own", sequence.request, index

    def publish(self, sequence: Sequence, num_computed: int) -> None:
        for index in range(num_computed // self.size):
            old, key = sequence.blocks[index], self.name(sequence, index)
            own = ("own", sequence.request, index)
            if old == key:
                continue
            if key[0] == "group" and (not sequence.shares or self.pool.is_cached(key)):
                sequence.shares = False  # another sequence computed the same
                key = own
            if old is None:
                self.pool.hold(key)
            elif old != key:
                self.pool.rename(old, key)
            sequence.blocks[index] = key

    def end(self, sequence: Sequence) -> None:
        self.ending.remove(sequence)
        self.publish(sequence, sequence.resident)
        self.release(sequence)

    def preempt(self, sequence: Sequence) -> None:
        self.running.remove(sequence)
        self.release(sequence)
        sequence.resident = 0
        self.waiting.append(sequence)
        self.num_preemptions += 1

    def release(self, sequence: Sequence) -> None:
        private = [key for key in sequence.blocks if key is None or key[0] == "own"]
        shared = [key for key in sequence.blocks if key is not None and key[0] == "group"]
        for key in [*reversed(private), *reversed(sequence.also_held), *reversed(shared)]:
            self.pool.free(key)
        sequence.blocks, sequence.also_held = [], []

    def blocks_for(self, num_tokens: int) -> int:
        return -(-num_tokens // self.size)

    @property
    def num_running(self) -> int:
        return len(self.running) + len(self.ending)

    @property
    def is_idle(self) -> bool:
        return not self.running and not self.waiting and all(found in self.over for found in self.ending)
