"""Twin of the native PrefixIndex: one ordered set of blocks per instance, least recently used first."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field
from itertools import takewhile

__all__ = ["PrefixIndexTwin"]


@dataclass
class Held:
    max_blocks: int
    blocks: OrderedDict[int, None] = field(default_factory=OrderedDict)

    def shrink(self) -> None:
        while len(self.blocks) > self.max_blocks:
            self.blocks.popitem(last=False)


class PrefixIndexTwin:
    def __init__(self) -> None:
        self.instances: dict[int, Held] = {}

    def add_instance(self, instance: int, max_blocks: int) -> None:
        held = self.instances.setdefault(instance, Held(max_blocks))
        held.max_blocks = max_blocks
        held.shrink()

    def remove_instance(self, instance: int) -> None:
        self.instances.pop(instance, None)

    def insert(self, instance: int, chain: list[int]) -> None:
        if (held := self.instances.get(instance)) is not None:
            for block in reversed(chain[: held.max_blocks]):
                held.blocks[block] = None
                held.blocks.move_to_end(block)
                held.shrink()

    def matched(self, instance: int, chain: list[int]) -> int:
        held = self.instances.get(instance)
        return 0 if held is None else len(list(takewhile(held.blocks.__contains__, chain)))

    def num_blocks(self, instance: int) -> int:
        held = self.instances.get(instance)
        return 0 if held is None else len(held.blocks)

    def num_distinct(self) -> int:
        return len({block for held in self.instances.values() for block in held.blocks})
