"""The comment in a grammar that lets vLLM go on midway."""

from hypothesis import given
from hypothesis import strategies as st

from sage_llm_worker.engines.vllm_structures import delivered_ids, with_delivered
from sage_llm_worker.structures import byte_tokenizer, matcher_of
from sage_wire.messages import Grammar


@given(st.lists(st.integers(0, 200_000), max_size=50))
def test_delivered_tokens_travel_with_a_grammar(token_ids):
    assert delivered_ids(with_delivered('start: "a"', token_ids)) == token_ids


def test_to_anybody_else_they_are_a_comment():
    grammar = with_delivered('start: "ab"', [97])
    assert matcher_of(Grammar(ebnf=grammar), byte_tokenizer()).compute_ff_bytes() == b"ab"


def test_a_comment_further_down_is_only_text():
    assert delivered_ids('start: "a"\n// sage-delivered: 1 2\n') == []
