"""Scheduling policies: pure state machines, the same object live and simulated."""

from sage_policy.least_outstanding import LeastOutstanding
from sage_policy.policy import (
    Abort,
    Cancelled,
    Candidate,
    Command,
    Decision,
    Dispatch,
    Event,
    Finished,
    FirstToken,
    Instance,
    InstanceDown,
    InstanceUp,
    Policy,
    SetTimer,
    Shed,
    Started,
    Submitted,
    Timer,
)
from sage_policy.registry import POLICIES, make_policy

__all__ = [
    "POLICIES",
    "Abort",
    "Cancelled",
    "Candidate",
    "Command",
    "Decision",
    "Dispatch",
    "Event",
    "Finished",
    "FirstToken",
    "Instance",
    "InstanceDown",
    "InstanceUp",
    "LeastOutstanding",
    "Policy",
    "SetTimer",
    "Shed",
    "Started",
    "Submitted",
    "Timer",
    "make_policy",
]
