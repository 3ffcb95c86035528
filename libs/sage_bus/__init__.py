"""NATS made safe, and an in-process bus with the same promises. The only package that imports nats."""

from sage_bus.bus import (
    Bus,
    BusEvent,
    DeadLetter,
    Entry,
    Feed,
    Job,
    JobQueue,
    KeyValue,
    Lease,
    Received,
    Subscription,
)
from sage_bus.memory import MemoryBroker, MemoryBus

__all__ = [
    "Bus",
    "BusEvent",
    "DeadLetter",
    "Entry",
    "Feed",
    "Job",
    "JobQueue",
    "KeyValue",
    "Lease",
    "MemoryBroker",
    "MemoryBus",
    "Received",
    "Subscription",
]
