"""The `authorization` part of the nats-server configuration: one nkey user per role, everything not listed denied."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from sage_bus.nkey import is_public_key
from sage_core import ConfigurationError
from sage_wire.rights import Rights, rights
from sage_wire.roles import Role

__all__ = ["render_users"]


def render_users(users: Mapping[Role, str]) -> str:
    """Return the block for these public keys by role. Raises ConfigurationError for what is no user's public key."""
    if not users:
        raise ConfigurationError("there are no users; expected a public key for at least one role")
    for role, key in users.items():
        if not is_public_key(key):
            raise ConfigurationError(f"the public key of {role} is {key!r}; expected 56 characters, U…")
    doubled = {key for key in users.values() if list(users.values()).count(key) > 1}
    if doubled:
        shared = ", ".join(role for role, key in users.items() if key in doubled)
        raise ConfigurationError(f"{shared} have the same public key; each role needs its own")
    # In the order of the roles, so that the same users give the same file.
    entries = "".join(_user(role, users[role]) for role in Role if role in users)
    return f"\nauthorization {{\n  users: [\n{entries}  ]\n}}\n"


def _user(role: Role, key: str) -> str:
    allowed = rights(role)
    return f"""\
    # {role}
    {{
      nkey: "{key}"
      permissions: {{
        publish: {{ allow: {_list(allowed.publish)} }}
        subscribe: {{ allow: {_list(allowed.subscribe)} }}
{_responses(allowed)}      }}
    }}
"""


def _list(patterns: Iterable[str]) -> str:
    return "[\n" + "".join(f'          "{pattern}"\n' for pattern in patterns) + "        ]"


def _responses(allowed: Rights) -> str:
    if not allowed.max_responses:
        return ""
    return f'        allow_responses: {{ max: {allowed.max_responses}, expires: "{allowed.response_seconds}s" }}\n'
