"""Who may call the gateway, what for, and how much: API keys, quotas, and which web pages."""

from sage_gateway.access.caller import DEFAULT_TENANT, SLO_CLASSES, Caller
from sage_gateway.access.gate import Gate, open_ring
from sage_gateway.access.ledger import Granted
from sage_gateway.access.quota import Quota

__all__ = ["DEFAULT_TENANT", "SLO_CLASSES", "Caller", "Gate", "Granted", "Quota", "open_ring"]
