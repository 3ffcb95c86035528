"""What whole and streamed answers of chat have in common: how to show them, and what a choice's end is called."""

from __future__ import annotations

import msgspec

__all__ = ["ChatTerms", "finish_reason"]


class ChatTerms(msgspec.Struct, frozen=True):
    """How one request's answer is to be shown. `prefix` stands before the text of every choice (`echo`)."""

    request_id: str
    created: int
    model: str
    fingerprint: str
    service_tier: str | None = None
    has_functions: bool = False
    """Calls are shown in the deprecated form, `function_call`."""
    is_named: bool = False
    """The request itself names the function to call."""
    has_logprobs: bool = False
    has_token_ids: bool = False
    tokens_as_ids: bool = False
    includes_stop: bool = False
    includes_reasoning: bool = True
    includes_usage: bool = False
    continuous_usage: bool = False
    prefix: str = ""

    @property
    def has_details(self) -> bool:
        """True where tokens are shown beside their text."""
        return self.has_logprobs or self.has_token_ids


def finish_reason(reason: str, num_calls: int, terms: ChatTerms) -> str:
    """Return how a choice ended, by OpenAI's rules: a call that the model chose to make is a reason of its own."""
    if reason != "stop" or not num_calls or terms.is_named:
        return reason
    return "function_call" if terms.has_functions else "tool_calls"
