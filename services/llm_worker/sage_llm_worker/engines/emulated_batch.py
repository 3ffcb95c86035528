"""Continuous batching without a model: which sequences advance in a step, and how long it takes. Pure.

Follows vLLM V1: running sequences first, prompts prefilled in chunks under one token budget per step, a new
sequence admitted only if its whole prompt fits the free KV cache, and the newest sequence preempted (to be
recomputed) when decoding runs out of it.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass, field

from sage_llm_worker.step_time import StepProfile

__all__ = ["EmulatedBatch", "EmulatedSequence", "Step"]


@dataclass(slots=True, eq=False)
class EmulatedSequence:
    """A request inside the batch. Counts are tokens; `num_generated` includes what earlier attempts delivered."""

    request_id: str
    num_prompt: int
    num_generated: int
    priority: int = 0
    num_resident: int = 0
    num_needed: int = field(init=False)

    def __post_init__(self) -> None:
        self.num_needed = self.num_prompt + self.num_generated

    @property
    def is_decoding(self) -> bool:
        """True once the whole prompt is in the KV cache."""
        return self.num_resident >= self.num_needed


@dataclass(frozen=True, slots=True)
class Step:
    """One step: its length, and the sequences that have one more token after it."""

    seconds: float
    emitting: list[EmulatedSequence]


class EmulatedBatch:
    """All sequences of one emulated engine."""

    def __init__(self, profile: StepProfile) -> None:
        self.profile = profile
        self._running: list[EmulatedSequence] = []
        self._waiting: list[tuple[int, int, EmulatedSequence]] = []
        self._known: dict[str, EmulatedSequence] = {}
        self._arrivals = 0
        self._preempted = 0
        self.num_resident = 0

    @property
    def is_idle(self) -> bool:
        """True while there is nothing to step."""
        return not self._known

    @property
    def num_running(self) -> int:
        """Sequences in the batch."""
        return len(self._running)

    @property
    def num_waiting(self) -> int:
        """Sequences outside it."""
        return len(self._known) - len(self._running)

    def __contains__(self, request_id: str) -> bool:
        return request_id in self._known

    def submit(self, sequence: EmulatedSequence) -> None:
        """Queue a sequence: higher priority first, then first come first served."""
        self._arrivals += 1
        self._known[sequence.request_id] = sequence
        heapq.heappush(self._waiting, (-sequence.priority, self._arrivals, sequence))

    def remove(self, request_id: str) -> None:
        """Free a sequence in any phase. Unknown ids are ignored."""
        sequence = self._known.pop(request_id, None)
        if sequence is None:
            return
        self.num_resident -= sequence.num_resident
        if sequence in self._running:
            self._running.remove(sequence)
        else:
            self._waiting = [entry for entry in self._waiting if entry[2] is not sequence]
            heapq.heapify(self._waiting)

    def step(self) -> Step:
        """Advance every sequence that can advance. The caller waits `seconds`, then hands out the tokens."""
        profile, before = self.profile, self.num_resident
        self._preempt()
        emitting = [sequence for sequence in self._running if sequence.is_decoding]
        num_decoding = len(emitting)
        for sequence in emitting:
            sequence.num_resident += 1
        self.num_resident += num_decoding
        budget = profile.max_step_tokens - num_decoding
        chunks: list[tuple[int, int]] = []
        if num_decoding < len(self._running) or self._waiting:
            decoding = set(map(id, emitting))
            for sequence in self._running:
                if id(sequence) not in decoding:
                    budget -= self._prefill(sequence, budget, chunks)
                    if sequence.is_decoding:
                        emitting.append(sequence)
            while self._waiting and budget > 0 and self._can_admit(self._waiting[0][2]):
                sequence = heapq.heappop(self._waiting)[2]
                self._running.append(sequence)
                budget -= self._prefill(sequence, budget, chunks)
                if sequence.is_decoding:
                    emitting.append(sequence)
        return Step(profile.step_seconds(chunks, num_decoding, before), emitting)

    def _prefill(self, sequence: EmulatedSequence, budget: int, chunks: list[tuple[int, int]]) -> int:
        size = min(sequence.num_needed - sequence.num_resident, max(0, budget))
        if size > 0:
            chunks.append((size, sequence.num_resident))
            sequence.num_resident += size
            self.num_resident += size
        return size

    def _can_admit(self, sequence: EmulatedSequence) -> bool:
        if len(self._running) >= self.profile.max_sequences:
            return False
        reserved = sum(max(other.num_needed, other.num_resident) for other in self._running)
        return reserved + sequence.num_needed <= self.profile.kv_tokens

    def _preempt(self) -> None:
        """Give back the newest sequences while the next decode step does not fit the KV cache."""
        while len(self._running) > 1 and self.num_resident + len(self._running) > self.profile.kv_tokens:
            sequence = self._running.pop()
            self.num_resident -= sequence.num_resident
            sequence.num_resident = 0
            sequence.num_needed = sequence.num_prompt + sequence.num_generated
            self._preempted += 1
            # Before everything that never ran, as vLLM does.
            heapq.heappush(self._waiting, (-sequence.priority, -self._preempted, sequence))
