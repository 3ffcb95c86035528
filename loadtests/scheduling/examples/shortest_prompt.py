"""Shortest prompt first, each to the instance that has the fewest prompt tokens to compute before it."""

from __future__ import annotations

from sage_policy import InstanceView, PlacementPolicy, Submitted

MAX_WAITING_TOKENS = 8192
"""Above this many uncomputed prompt tokens a request is better kept here than in the engine's own queue."""


class ShortestPrompt(PlacementPolicy):
    """Good mean TTFT; long prompts wait while short ones keep coming."""

    def score(self, request: Submitted, instance: InstanceView) -> float:
        """Return the seconds until the first token, as far as prefills decide them."""
        profile = instance.instance.profile
        num_tokens = instance.num_waiting_tokens + request.num_prompt_tokens
        return profile.m0 + profile.m1 * num_tokens + 1e-6 * instance.num_running

    def may_take(self, request: Submitted, instance: InstanceView) -> bool:
        """Hold the request back where prefills pile up; an idle instance takes any."""
        num_tokens = instance.num_waiting_tokens + request.num_prompt_tokens
        return instance.num_running == 0 or num_tokens <= MAX_WAITING_TOKENS

    def key(self, request: Submitted) -> float:
        """Order what waits by the length of its prompt."""
        return request.num_prompt_tokens
