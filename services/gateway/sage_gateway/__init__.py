"""The gateway: SAGE's OpenAI-compatible HTTP edge."""

from sage_gateway.actor import GatewayActor
from sage_gateway.app import App
from sage_gateway.catalog import Catalog
from sage_gateway.edge import Edge
from sage_gateway.in_flight import InFlight
from sage_gateway.settings import GatewaySection, GatewaySettings

__all__ = ["App", "Catalog", "Edge", "GatewayActor", "GatewaySection", "GatewaySettings", "InFlight"]
