"""Who takes part in a SAGE cluster: the roles that bus credentials are made for, and the parties that channels name.

An actor's role is its kind. Rights are by role: two actors of one kind have the same.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Final

__all__ = [
    "ACTORS",
    "ACTOR_ROLES",
    "CONSUMER",
    "EVERY_ACTOR",
    "EVERY_GATEWAY",
    "EVERY_SCHEDULER",
    "FOLLOWER",
    "FRAME_READER",
    "GATEWAY",
    "JOB_READER",
    "NATS",
    "OPERATOR",
    "PLANNER",
    "SCHEDULER",
    "SCHEDULER_OR_CONSUMER",
    "SUBMITTER",
    "WORKER",
    "WORKER_OR_SCHEDULER",
    "Party",
    "Role",
]


class Role(enum.StrEnum):
    """A user of the bus. OPERATOR is the `sage` command, PUBLISHER only submits jobs and reads their states."""

    GATEWAY = "gateway"
    PLANNER = "planner"
    SCHEDULER = "scheduler"
    LLM_WORKER = "llm-worker"
    EMBEDDING_WORKER = "embedding-worker"
    OPERATOR_WORKER = "operator-worker"
    PUBLISHER = "publisher"
    OPERATOR = "operator"
    PROVISIONER = "provisioner"


@dataclass(frozen=True, slots=True)
class Party:
    """One side of a channel, as documents call it, and the roles that may be it."""

    name: str
    roles: frozenset[Role]

    def __str__(self) -> str:
        return self.name


def _party(name: str, *roles: Role | frozenset[Role]) -> Party:
    return Party(
        name, frozenset[Role]().union(*({role} if isinstance(role, Role) else role for role in roles))
    )


ACTOR_ROLES: Final = frozenset(Role) - {Role.PUBLISHER, Role.OPERATOR, Role.PROVISIONER}

NATS: Final = _party("NATS")
GATEWAY: Final = _party("gateway", Role.GATEWAY)
PLANNER: Final = _party("planner", Role.PLANNER)
SCHEDULER: Final = _party("scheduler", Role.SCHEDULER)
OPERATOR: Final = _party("operator", Role.OPERATOR)
# The planner is a worker whose pools are pipelines, and a consumer of what they need.
WORKER: Final = _party("worker", Role.PLANNER, Role.LLM_WORKER, Role.EMBEDDING_WORKER, Role.OPERATOR_WORKER)
CONSUMER: Final = _party("consumer", Role.GATEWAY, Role.PLANNER, Role.OPERATOR)
WORKER_OR_SCHEDULER: Final = _party("worker or scheduler", WORKER.roles, SCHEDULER.roles)
# The extractive reader of an llm-worker has sentences embedded: it reads its own frames, but submits to one pool alone.
FRAME_READER: Final = _party("consumer", CONSUMER.roles, Role.LLM_WORKER)
SCHEDULER_OR_CONSUMER: Final = _party("scheduler or consumer", SCHEDULER.roles, FRAME_READER.roles)
ACTORS: Final = _party("actor", ACTOR_ROLES)
EVERY_ACTOR: Final = Party("every actor", ACTORS.roles)
EVERY_SCHEDULER: Final = Party("every scheduler", SCHEDULER.roles)
EVERY_GATEWAY: Final = Party("every gateway", GATEWAY.roles)
FOLLOWER: Final = _party("who follows presence", FRAME_READER.roles, SCHEDULER.roles)
SUBMITTER: Final = _party("submitter of jobs", Role.PUBLISHER, Role.OPERATOR)
JOB_READER: Final = _party("reader of jobs", SUBMITTER.roles, PLANNER.roles)
