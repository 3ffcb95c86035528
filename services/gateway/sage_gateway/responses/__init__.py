"""OpenAI's Responses API over the same work as chat: items, typed events, and responses that can be found again."""

from sage_gateway.responses.routes import ResponseRoutes

__all__ = ["ResponseRoutes"]
