"""What leaves an engine: whole characters, no stop strings, and text that always equals its ids."""

from types import SimpleNamespace

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models

from sage_llm_worker.text import Detokenizer, TextAssembler, decoder_of
from sage_wire.messages import Logprob, TokenLogprobs


def decode_bytes(ids):
    """A tokenizer with one token per byte."""
    return bytes(ids).decode("utf-8", "replace")


def run(pieces, stop):
    """Push one-token pieces; return what was released, in order, and whether a stop string was found."""
    assembler = TextAssembler(stop)
    released = []
    for number, text in enumerate(pieces):
        tokens = assembler.push((number,), text)
        if tokens is not None:
            released.append(tokens)
        if assembler.is_stopped:
            break
    rest = assembler.finish()
    return released + ([rest] if rest else []), assembler.is_stopped


def test_a_character_spread_over_tokens_leaves_when_it_is_complete():
    detokenizer = Detokenizer(decode_bytes)
    pieces = [detokenizer.push(byte) for byte in "a🙂é".encode()]
    assert pieces == ["a", None, None, None, "🙂", None, "é"]


@given(st.binary(max_size=80))
@example(b"\x80\x80\x80\xe0\xa0\x80\x00")
def test_bytes_that_are_no_text_vanish_and_the_rest_stays_in_order(data):
    detokenizer = Detokenizer(decode_bytes)
    text = "".join(detokenizer.push(byte) or "" for byte in data)
    assert "\ufffd" not in text
    assert (decode_bytes(data).replace("\ufffd", "")).startswith(text)


@given(st.text(max_size=300))
def test_text_of_single_byte_tokens_round_trips(text):
    detokenizer = Detokenizer(decode_bytes)
    out = "".join(detokenizer.push(byte) or "" for byte in text.encode("utf-8", "ignore"))
    assert out == text.encode("utf-8", "ignore").decode().replace("\ufffd", "")


def test_tokens_before_the_first_new_one_shape_its_text_but_are_not_repeated():
    def decode(ids):  # like SentencePiece: the first word loses its space
        return " ".join(f"w{token_id}" for token_id in ids)

    assert Detokenizer(decode, context=[1, 2, 3]).push(4) == " w4"


def test_without_stop_strings_every_piece_leaves_at_once():
    released, _ = run(["a", "b", "c"], [])
    assert [tokens.text for tokens in released] == ["a", "b", "c"]


def test_ids_without_text_leave_with_the_text_that_completes_them():
    assembler = TextAssembler()
    assert assembler.push((1,), None) is None
    tokens = assembler.push((2,), "é")
    assert (tokens.text, tokens.token_ids, tokens.num_tokens) == ("é", [1, 2], 2)


def test_what_may_begin_a_stop_string_waits():
    assembler = TextAssembler(["END"])
    assert assembler.push((1,), "the E") is None
    assert assembler.push((2,), "N") is None
    assert assembler.push((3,), "emy").text == "the ENemy"


def test_a_stop_string_cuts_inside_a_piece_and_the_cut_piece_has_no_id():
    released, is_stopped = run(["one ", "two th", "ree"], ["o three"])
    assert is_stopped
    assert "".join(tokens.text for tokens in released) == "one tw"
    assert [token_id for tokens in released for token_id in tokens.token_ids] == [0]


def test_the_earliest_of_several_stop_strings_wins():
    released, _ = run(["abcdef"], ["ef", "bc"])
    assert released[0].text == "a"


@given(
    st.lists(st.text(alphabet="ab", max_size=3), max_size=30),
    st.lists(st.text(alphabet="ab", min_size=1, max_size=4), max_size=3),
)
def test_stop_strings_behave_as_if_the_whole_text_were_known(pieces, stop):
    whole = "".join(pieces)
    expected = min([whole.index(text) for text in stop if text in whole], default=None)
    released, is_stopped = run(pieces, stop)
    text = "".join(tokens.text for tokens in released)
    assert is_stopped == (expected is not None)
    if not is_stopped:
        assert text == whole
    else:
        # The stop string that is complete first wins, even if another would have begun earlier.
        assert whole.startswith(text)
        assert any(whole[len(text) :].startswith(one) for one in stop)


@given(
    st.lists(st.text(alphabet="ab", max_size=3), max_size=30),
    st.lists(st.text(alphabet="ab", min_size=1, max_size=4), max_size=3),
)
def test_text_released_is_the_text_of_the_ids_released_until_the_last(pieces, stop):
    released, _ = run(pieces, stop)
    text, ids = "", []
    for tokens in released[:-1]:
        text += tokens.text
        ids += tokens.token_ids
        assert text == "".join(pieces[number] for number in ids)


def entry(token_id):
    return TokenLogprobs(chosen=Logprob(text=str(token_id), logprob=-1.0, token_id=token_id))


def test_log_probabilities_leave_with_their_tokens():
    assembler = TextAssembler(["END"])
    held = [
        assembler.push((number,), text, logprobs=entry(number))
        for number, text in enumerate([None, "é", "E", "N", "d"])
    ]
    released = [tokens for tokens in held if tokens is not None]
    assert [tokens.token_ids for tokens in released] == [[0, 1], [2, 3, 4]]
    for tokens in released:
        assert [found.chosen.token_id for found in tokens.logprobs] == tokens.token_ids


def test_the_stop_string_that_begins_first_is_named():
    assembler = TextAssembler(["late", "ly", "ate"])
    assembler.push((1,), "lately")
    assert assembler.stopped_by == "late"


def test_stop_strings_are_not_looked_for_in_the_first_tokens():
    assembler = TextAssembler(["a"], num_unsearched=2)
    texts = [assembler.push((number,), "a") for number in range(3)]
    assert [tokens.text if tokens else None for tokens in texts] == ["a", "a", None]
    assert assembler.is_stopped


@pytest.mark.parametrize(
    ("kept", "text"), [((), "a b"), (("[CALL]",), "a[CALL] b"), (("[CALL]", "[END]"), "a[CALL] b[END]")]
)
def test_special_tokens_are_left_out_but_for_those_that_are_kept(kept, text):
    tokenizer = Tokenizer(models.WordLevel({"a": 0, "b": 1, "[CALL]": 2, "[END]": 3}, unk_token="a"))
    tokenizer.decoder = decoders.Sequence([decoders.Replace("b", " b"), decoders.Fuse()])
    tokenizer.add_special_tokens(["[CALL]", "[END]"])
    wrapped = SimpleNamespace(backend_tokenizer=tokenizer)
    assert decoder_of(wrapped, kept)([0, 2, 1, 3]) == text
