"""Every light engine keeps the promises of `Engine`; engines with weights run the same suite elsewhere."""

from sage_llm_worker.engines.emulated import EmulatedEngine
from sage_llm_worker.engines.extractive import ExtractiveEngine
from sage_llm_worker.testing.engine_suite import EngineSuite
from sage_policy import EngineProfile
from sage_wire.messages import ChatMessage, ChatPrompt

_FACTS = "\n".join(
    f"Worker {number} of the cluster takes requests from queue {number} and answers on frame {number}."
    for number in range(40)
)


class TestEmulatedWithoutDelay(EngineSuite):
    def make_engine(self, max_sequences=None):
        return EmulatedEngine(max_sequences=max_sequences, max_context=4096)


class TestEmulatedWithSteps(EngineSuite):
    def make_engine(self, max_sequences=None):
        profile = EngineProfile(a0=2e-4, m0=2e-4, max_sequences=8, max_step_tokens=32, max_context=4096)
        return EmulatedEngine(profile=profile, max_sequences=max_sequences)


class TestExtractive(EngineSuite):
    refused = frozenset(
        (
            "response_format",
            "structured_outputs",
            "logprobs",
            "echo",
            "logit_bias",
            "stop_token_ids",
            "tokenize",
        )
    )

    def make_engine(self, max_sequences=None):
        return ExtractiveEngine(max_sequences=max_sequences, max_context=4096)

    def prompt(self, number=0):
        return ChatPrompt(
            messages=[
                ChatMessage(role="user", content=f"<context>\n[1] facts\n{_FACTS}\n</context>"),
                ChatMessage(role="user", content=f"Which requests does worker {number} answer?"),
            ]
        )
