"""What a request's headers say of its urgency: class, budget, targets. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

from sage_core import BadRequest
from sage_gateway.access import SLO_CLASSES
from sage_gateway.settings import GatewaySection
from sage_wire.messages import Targets

__all__ = ["asked_class", "budget_seconds", "parent_of", "targets_of"]

_CLASS_OF_TIER: Final = {"flex": "batch"}
"""OpenAI's cheaper, slower tier; all other tiers are served as interactive."""

_TRACEPARENT: Final = re.compile(r"(?!ff)[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")
_BUDGET_MS: Final = re.compile(rb"[1-9][0-9]{0,11}")
_TARGET_MS: Final = re.compile(rb"[0-9]{1,9}(\.[0-9]{1,3})?")
_NO_TARGETS: Final = Targets()

Headers = Mapping[bytes, bytes]


def asked_class(headers: Headers, service_tier: str | None) -> str | None:
    """Return the class that is asked for, None where nothing is said. Raises BadRequest for one that does not exist."""
    given = headers.get(b"x-slo-class")
    if given is None:
        return None if service_tier is None else _CLASS_OF_TIER.get(service_tier)
    name = given.decode("latin-1")
    if name not in SLO_CLASSES:
        raise BadRequest(f"'x-slo-class': expected one of {', '.join(SLO_CLASSES)}", param="x-slo-class")
    return name


def budget_seconds(headers: Headers, settings: GatewaySection) -> float:
    """Return how long the request may take. Raises BadRequest for what cannot be meant."""
    given = headers.get(b"x-sage-budget-ms")
    if given is None:
        return settings.default_budget
    maximum_ms = int(settings.max_budget * 1000)
    if _BUDGET_MS.fullmatch(given) is None or int(given) > maximum_ms:
        raise BadRequest(
            f"'x-sage-budget-ms': expected a whole number of milliseconds from 1 to {maximum_ms}",
            param="x-sage-budget-ms",
        )
    return int(given) / 1000


def targets_of(headers: Headers, settings: GatewaySection) -> Targets:
    """Return the targets that headers name; none may be longer than the longest budget. Raises BadRequest."""
    ttft = headers.get(b"x-slo-ttft-ms")
    tpot = headers.get(b"x-slo-tpot-ms")
    e2e = headers.get(b"x-slo-e2e-ms")
    if ttft is None and tpot is None and e2e is None:
        return _NO_TARGETS
    return Targets(
        ttft_ms=_target_ms("x-slo-ttft-ms", ttft, settings),
        tpot_ms=_target_ms("x-slo-tpot-ms", tpot, settings),
        e2e_ms=_target_ms("x-slo-e2e-ms", e2e, settings),
    )


def _target_ms(name: str, given: bytes | None, settings: GatewaySection) -> float | None:
    if given is None:
        return None
    maximum_ms = settings.max_budget * 1000
    if _TARGET_MS.fullmatch(given) is None or not 0 < float(given) <= maximum_ms:
        shown = given[:32].decode("ascii", "replace")
        raise BadRequest(
            f"'{name}': found {shown!r}; expected milliseconds, more than 0 and at most {maximum_ms:g}",
            param=name,
        )
    return float(given)


def parent_of(header: bytes) -> str | None:
    """Return a valid `traceparent` header as text, else None; W3C says that an invalid one starts a new trace."""
    text = header.decode("latin-1")
    return text if _TRACEPARENT.fullmatch(text) is not None else None
