"""The scheduler: one queue per pool, one policy per queue, receipts for every decision."""

from sage_scheduler.actor import SchedulerActor
from sage_scheduler.settings import SchedulerSettings

__all__ = ["SchedulerActor", "SchedulerSettings"]
