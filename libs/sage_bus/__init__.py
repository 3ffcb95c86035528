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
from sage_bus.gathering import Gathering
from sage_bus.memory import MemoryBroker, MemoryBus
from sage_bus.nats_bus import BusStatistics, NatsBus, connect
from sage_bus.provisioning import Provisioned
from sage_bus.server_config import server_binary

__all__ = [
    "Bus",
    "BusEvent",
    "BusStatistics",
    "DeadLetter",
    "Entry",
    "Feed",
    "Gathering",
    "Job",
    "JobQueue",
    "KeyValue",
    "Lease",
    "MemoryBroker",
    "MemoryBus",
    "NatsBus",
    "Provisioned",
    "Received",
    "Subscription",
    "connect",
    "server_binary",
]
