"""Promises of the prefix hashes: equal exactly as far as two prompts begin alike, and the same in every process."""

from __future__ import annotations

import os
import subprocess
import sys

from hypothesis import given
from hypothesis import strategies as st

from sage_wire.messages import (
    ChatMessage,
    ChatPrompt,
    Image,
    TextPrompt,
    TokenPrompt,
    ToolCall,
    ToolDefinition,
)
from sage_wire.prefix import BLOCK_BYTES, BLOCK_TOKENS, MAX_BLOCKS, prefix_blocks

PROMPT = "ChatPrompt(messages=[ChatMessage(role='system', content='Be brief. ' * 120, name='ada')])"
HASHES = [12171453056150730935, 15386930155818019440]


def num_common(first: bytes, second: bytes) -> int:
    """Whole blocks that two texts share, counted the slow way."""
    count = 0
    while (count + 1) * BLOCK_BYTES <= min(len(first), len(second)):
        part = slice(count * BLOCK_BYTES, (count + 1) * BLOCK_BYTES)
        if first[part] != second[part]:
            break
        count += 1
    return count


@given(
    st.text("ab", max_size=3 * BLOCK_BYTES), st.text("ab", max_size=BLOCK_BYTES), st.text("ab", max_size=600)
)
def test_hashes_are_equal_as_far_as_the_texts_are(common: str, rest: str, other: str) -> None:
    first, second = common + rest, common + other
    hashes, others = (prefix_blocks(TextPrompt(text=text)) for text in (first, second))
    assert len(hashes) == min(MAX_BLOCKS, len(first) // BLOCK_BYTES)
    shared = num_common(first.encode(), second.encode())
    assert hashes[:shared] == others[:shared]
    assert not set(hashes[shared:]) & set(others[shared:]), "a block counts only with all before it"


@given(st.lists(st.text(max_size=900), max_size=4), st.text(max_size=900))
def test_a_conversation_that_goes_on_keeps_its_hashes(turns: list[str], answer: str) -> None:
    messages = [ChatMessage(role="user", content=turn) for turn in turns]
    before = prefix_blocks(ChatPrompt(messages=messages))
    after = prefix_blocks(ChatPrompt(messages=[*messages, ChatMessage(role="assistant", content=answer)]))
    assert after[: len(before)] == before


def test_whatever_a_model_reads_of_a_chat_changes_its_hashes() -> None:
    text = "x" * BLOCK_BYTES
    plain = ChatMessage(role="user", content=text)
    chats = [
        ChatPrompt(messages=[plain]),
        ChatPrompt(messages=[plain], tools=[ToolDefinition(name="f")]),
        ChatPrompt(messages=[plain], tools=[ToolDefinition(name="f", description="d")]),
        ChatPrompt(messages=[plain], template_arguments='{"enable_thinking":false}'),
        ChatPrompt(messages=[ChatMessage(role="user", content="", reasoning=text)]),
        ChatPrompt(
            messages=[
                ChatMessage(role="user", content="", tool_calls=[ToolCall(id="1", name="f", arguments=text)])
            ]
        ),
    ]
    images = [
        ChatPrompt(
            messages=[
                ChatMessage(role="user", content="", images=[Image(media_type="image/png", data=data)]),
                plain,
            ]
        )
        for data in (b"one", b"two")
    ]
    hashes = [tuple(prefix_blocks(chat)) for chat in (*chats, *images)]
    assert len(set(hashes)) == len(hashes)
    assert all(hashes)


def test_a_block_stands_for_as_many_token_ids_as_it_says() -> None:
    assert len(prefix_blocks(TokenPrompt(token_ids=[7] * (3 * BLOCK_TOKENS + BLOCK_TOKENS - 1)))) == 3


def test_prompts_of_different_kinds_never_meet() -> None:
    ids = [0] * BLOCK_TOKENS
    text = "\0" * BLOCK_BYTES
    assert prefix_blocks(TokenPrompt(token_ids=ids)) != prefix_blocks(TextPrompt(text=text))


def test_a_huge_prompt_costs_no_more_than_the_limit() -> None:
    assert len(prefix_blocks(TextPrompt(text="x" * (10 * BLOCK_BYTES * MAX_BLOCKS)))) == MAX_BLOCKS


def test_hashes_are_the_same_in_every_process_and_for_ever() -> None:
    code = (
        "from sage_wire.messages import ChatMessage, ChatPrompt; from sage_wire.prefix import prefix_blocks; "
        f"print(prefix_blocks({PROMPT}))"
    )
    for seed in ("1", "2"):
        done = subprocess.run(
            [sys.executable, "-c", code],
            env=os.environ | {"PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stdout.strip() == str(HASHES)
