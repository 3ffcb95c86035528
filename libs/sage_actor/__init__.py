"""The actor runtime: typed handlers, bounded mailbox, slots, budgets, cancel, restart, drain; roster; service main."""

from sage_actor.actor import Actor, Presence
from sage_actor.alarms import Alarms
from sage_actor.calls import Call, current_call
from sage_actor.context import ActorContext
from sage_actor.handlers import handles
from sage_actor.roster import ChangeKind, Roster, RosterChange, RosterState
from sage_actor.runtime import ActorRuntime
from sage_actor.service import run_service

__all__ = [
    "Actor",
    "ActorContext",
    "ActorRuntime",
    "Alarms",
    "Call",
    "ChangeKind",
    "Presence",
    "Roster",
    "RosterChange",
    "RosterState",
    "current_call",
    "handles",
    "run_service",
]
