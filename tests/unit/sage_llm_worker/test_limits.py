"""Limits are told in the words of the field that passes them."""

import pytest

from sage_core import ContextLengthExceeded
from sage_llm_worker.limits import output_limit
from sage_wire.messages import ChatMessage, ChatPrompt, Generate, Sampling, TextPrompt, TokenPrompt

CHAT = ChatPrompt(messages=[ChatMessage(role="user", content="Hi")])


@pytest.mark.parametrize(
    ("prompt", "param"),
    [(CHAT, "messages"), (TextPrompt(text="Hi"), "prompt"), (TokenPrompt(token_ids=[1]), "prompt")],
)
def test_a_prompt_that_is_too_long_is_named_as_its_field_is(prompt, param):
    with pytest.raises(ContextLengthExceeded) as refused:
        output_limit(Generate(model="m", prompt=prompt), num_prompt=100, max_context=100)
    assert refused.value.param == param


def test_an_answer_that_is_too_long_is_max_tokens():
    request = Generate(model="m", prompt=CHAT, sampling=Sampling(max_tokens=51))
    with pytest.raises(ContextLengthExceeded, match="at most 50") as refused:
        output_limit(request, num_prompt=50, max_context=100)
    assert refused.value.param == "max_tokens"
