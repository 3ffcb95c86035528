"""What a further attempt is asked for, so that a reader gets every part of an answer exactly once."""

from hypothesis import given
from hypothesis import strategies as st

from sage_client.delivered import delivered_for
from sage_wire.messages import Generate, Resume, TextPrompt, Tokens

WORK = Generate(model="m", prompt=TextPrompt(text="ab"), echo=True)


def echo(*texts):
    return [Tokens(text=text, token_ids=[1], is_prompt=True) for text in texts]


def test_an_echoed_prompt_is_not_resumed_as_generated_text():
    memory = delivered_for(WORK)
    for event in [*echo("a", "b"), Tokens(text="c", token_ids=[3])]:
        assert memory.accept(event) is event
    assert memory.next_work().resume == Resume(text="c", token_ids=[3], num_tokens=1)


def test_text_of_no_token_does_not_spoil_the_ids_of_the_rest():
    memory = delivered_for(WORK)
    memory.accept(Tokens(text="</think>", num_tokens=0))
    memory.accept(Tokens(text="c", token_ids=[3]))
    assert memory.next_work().resume == Resume(text="</think>c", token_ids=[3], num_tokens=1)


def test_text_of_tokens_without_ids_is_resumed_by_text():
    memory = delivered_for(WORK)
    memory.accept(Tokens(text="b", token_ids=[2]))
    memory.accept(Tokens(text="c"))
    assert memory.next_work().resume == Resume(text="bc", num_tokens=2)


@given(st.lists(st.integers(0, 4), max_size=4))
def test_an_echo_that_broke_off_comes_whole_however_often_it_begins_again(cuts):
    prompt, answer = echo("a", "b", "c", "d"), [Tokens(text="e", token_ids=[5])]
    memory = delivered_for(WORK)
    read = []
    for cut in cuts:
        read += [new for event in prompt[:cut] if (new := memory.accept(event)) is not None]
        assert memory.next_work() == WORK
        assert memory.is_empty == (not read)
    read += [new for event in [*prompt, *answer] if (new := memory.accept(event)) is not None]
    assert "".join(event.text for event in read) == "abcde"
