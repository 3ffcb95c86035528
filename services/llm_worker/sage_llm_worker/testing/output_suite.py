"""The promises of `sage_worker.engine.Engine` about what is written: a part of `engine_suite`."""

from __future__ import annotations

import json
import math
import re
from typing import Any, Final

import pytest
from msgspec import structs

from sage_core import BadRequest
from sage_llm_worker.testing.engine_case import Answer, EngineCase, collect
from sage_wire.messages import (
    Detokenize,
    Grammar,
    Image,
    JsonObject,
    JsonSchema,
    Logprob,
    OneOf,
    Pattern,
    Structure,
    TextPrompt,
    TokenBias,
    Tokenize,
    TokenPrompt,
)
from sage_worker.engine import Engine

__all__ = ["OutputSuite"]

_SCHEMA: Final = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "minLength": 2, "maxLength": 8},
        "count": {"type": "integer", "minimum": 10, "maximum": 99},
        "tags": {"type": "array", "items": {"enum": ["cold", "warm"]}, "minItems": 1, "maxItems": 3},
        "note": {"anyOf": [{"type": "null"}, {"type": "boolean"}]},
    },
    "required": ["name", "count", "tags", "note"],
    "additionalProperties": False,
}


class OutputSuite(EngineCase):
    """Inherited by `EngineSuite`."""

    @pytest.mark.parametrize(
        ("param", "sampling"),
        [
            ("top_k", {"top_k": -2}),
            ("min_p", {"min_p": 1.5}),
            ("temperature", {"temperature": float("nan")}),
            ("repetition_penalty", {"repetition_penalty": 0.0}),
            ("logprobs", {"logprobs": 21}),
            ("min_tokens", {"min_tokens": 9, "max_tokens": 8}),
            ("logit_bias", {"logit_bias": [TokenBias(token_id=1, bias=101.0)]}),
        ],
    )
    async def test_sampling_out_of_range_is_refused(
        self, engine: Engine, param: str, sampling: dict[str, Any]
    ) -> None:
        """With BadRequest, naming the field."""
        with pytest.raises(BadRequest) as refused:
            await collect(engine, self.request(**sampling))
        assert refused.value.param == param

    async def test_images_are_refused_where_the_model_does_not_see(self, engine: Engine) -> None:
        """And taken where it says that it does."""
        image = Image(media_type="image/png", data=b"\x89PNG\r\n\x1a\n")
        prompt = self.prompt()
        prompt = structs.replace(prompt, messages=[structs.replace(prompt.messages[-1], images=[image])])
        if engine.capacity.takes_images:
            assert (await collect(engine, self.request(prompt=prompt))).completed is not None
            return
        with pytest.raises(BadRequest) as refused:
            await collect(engine, self.request(prompt=prompt))
        assert refused.value.param == "messages"

    async def test_the_stop_string_that_ended_an_answer_is_named(self, engine: Engine) -> None:
        """Nothing is, where the answer was cut."""
        whole = await collect(engine, self.request())
        answer = await collect(engine, self.request(stop=["never said", whole.text[5:9]]))
        assert answer.completed is not None
        assert whole.completed is not None
        assert answer.completed.stop_reason == whole.text[5:9]
        assert whole.completed.stop_reason is None

    async def test_json_follows_its_schema(self, engine: Engine) -> None:
        """Token by token, whatever the model would rather say; and it may be resumed anywhere."""
        import jsonschema  # type: ignore[import-untyped]

        options: dict[str, Any] = {"structure": JsonSchema(schema=json.dumps(_SCHEMA)), "max_tokens": 200}
        whole = await self.answer(engine, "response_format", self.request(**options))
        if whole is None:
            return
        jsonschema.validate(json.loads(whole.text), _SCHEMA)
        assert whole.completed is not None
        assert whole.completed.finish_reason == "stop"
        for num_pieces in range(1, len(whole.pieces), max(1, len(whole.pieces) // 4)):
            resume = whole.first(num_pieces)
            rest = await collect(engine, self.request(resume=resume, **options))
            jsonschema.validate(json.loads(resume.text + rest.text), _SCHEMA)
            assert resume.text + rest.text == whole.text

    async def test_json_without_a_schema_is_an_object(self, engine: Engine) -> None:
        """As far as it goes: a weak model may not find its end."""
        request = self.request(structure=JsonObject(), max_tokens=100)
        answer = await self.answer(engine, "response_format", request)
        if answer is None:
            return
        assert answer.text.startswith("{")
        assert answer.completed is not None
        if answer.completed.finish_reason == "stop":
            assert isinstance(json.loads(answer.text), dict)

    @pytest.mark.parametrize(
        ("structure", "pattern"),
        [
            (OneOf(options=["yes, gladly", "no"]), "yes, gladly|no"),
            (Pattern(regex="[0-9]{3}-[0-9]{4}"), "[0-9]{3}-[0-9]{4}"),
            (Grammar(ebnf='start: "a" NUMBER "b"\nNUMBER: /[0-9]{1,3}/'), "a[0-9]{1,3}b"),
            (Grammar(ebnf='root ::= "x" | "y"'), "[xy]"),
        ],
    )
    async def test_text_follows_its_structure(
        self, engine: Engine, structure: Structure, pattern: str
    ) -> None:
        """As a whole, and ends with it."""
        answer = await self.answer(engine, "structured_outputs", self.request(structure=structure))
        if answer is None:
            return
        assert re.fullmatch(pattern, answer.text)
        assert answer.completed is not None
        assert answer.completed.finish_reason == "stop"

    @pytest.mark.parametrize(
        ("structure", "reason"),
        [
            (JsonSchema(schema='{"type": "strin"}'), "strin"),
            (JsonSchema(schema='{"type": "array", "uniqueItems": true}'), "uniqueItems"),
            (JsonSchema(schema="{"), "JSON"),
            (Pattern(regex="(a"), "unclosed"),
            (OneOf(options=[]), "nothing"),
            (Grammar(ebnf="start: nowhere"), "nowhere"),
        ],
    )
    async def test_a_structure_that_cannot_be_had_is_refused(
        self, engine: Engine, structure: Structure, reason: str
    ) -> None:
        """Before anything runs, naming the field and what is wrong with it."""
        with pytest.raises(BadRequest) as refused:
            await collect(engine, self.request(structure=structure))
        is_json = isinstance(structure, JsonSchema)
        assert refused.value.param == ("response_format" if is_json else "structured_outputs")
        assert refused.value.param in self.refused or reason in refused.value.message

    async def test_every_token_comes_with_its_log_probabilities(self, engine: Engine) -> None:
        """Its own and the likeliest, likeliest first; the tokens' bytes are the text."""
        answer = await self.answer(engine, "logprobs", self.request(logprobs=3))
        if answer is None:
            return
        logprobs = answer.logprobs
        assert len(logprobs) == len(answer.token_ids)
        # Special tokens and broken characters are tokens, too, but no part of the text.
        spelled = iter(b"".join(_bytes_of(entry.chosen) for entry in logprobs).decode("utf-8", "ignore"))
        assert all(character in spelled for character in answer.text)
        for entry, token_id in zip(logprobs, answer.token_ids, strict=True):
            values = [candidate.logprob for candidate in entry.top]
            assert entry.chosen.token_id == token_id
            assert len(values) == 3
            assert values == sorted(values, reverse=True)
            assert sum(map(math.exp, values)) <= 1.001
            assert entry.chosen.logprob <= values[0] + 1e-4
        alone = await collect(engine, self.request(logprobs=0))
        assert [entry.top for entry in alone.logprobs] == [[]] * len(answer.token_ids)

    async def test_echo_brings_the_prompt_first(self, engine: Engine) -> None:
        """Marked as such, uncounted, with log probabilities where asked for, and not again after a resume."""
        prompt = TextPrompt(text="The queue of café 東京 " * 30)
        request = self.request(prompt=prompt, echo=True, max_tokens=4, logprobs=2)
        answer = await self.answer(engine, "echo", request)
        if answer is None:
            return
        echoed = [piece for piece in answer.pieces if piece.is_prompt]
        assert answer.pieces[: len(echoed)] == echoed
        assert "".join(piece.text for piece in echoed) == prompt.text
        assert answer.completed is not None
        assert answer.completed.usage.completion_tokens == 4
        entries = [entry for piece in echoed for entry in piece.logprobs]
        assert len(entries) == answer.completed.usage.prompt_tokens
        assert [entry.is_first for entry in entries] == [True] + [False] * (len(entries) - 1)
        assert all(len(entry.top) == 2 for entry in entries[1:])
        written = Answer(answer.pieces[len(echoed) :])
        rest = await collect(engine, structs.replace(request, resume=written.first(1)))
        assert rest.text == written.text[len(written.pieces[0].text) :]
        assert not any(piece.is_prompt for piece in rest.pieces)

    @pytest.mark.parametrize("logprobs", [None, 1])
    async def test_echo_of_no_tokens_is_the_prompt_alone(self, engine: Engine, logprobs: int | None) -> None:
        """With `max_tokens` 0."""
        prompt = TextPrompt(text="The queue")
        request = self.request(prompt=prompt, echo=True, max_tokens=0, logprobs=logprobs)
        answer = await self.answer(engine, "echo", request)
        if answer is None:
            return
        assert answer.text == prompt.text
        assert all(piece.is_prompt for piece in answer.pieces)
        assert bool(answer.logprobs) == (logprobs is not None)
        assert answer.completed is not None
        assert answer.completed.finish_reason == "length"
        assert answer.completed.usage.completion_tokens == 0

    async def test_a_strong_bias_forces_a_token_and_forbids_one(self, engine: Engine) -> None:
        """Up to what `min_tokens` and the end of the answer allow."""
        usual = await self.answer(
            engine, "logit_bias", self.request(logit_bias=[TokenBias(token_id=7, bias=0.1)])
        )
        if usual is None:
            return
        token_id = usual.token_ids[len(usual.token_ids) // 2]
        forced = [TokenBias(token_id=token_id, bias=100.0)]
        answer = await collect(engine, self.request(logit_bias=forced, max_tokens=5))
        assert answer.token_ids == [token_id] * 5
        banned = [TokenBias(token_id=token_id, bias=-100.0)]
        assert token_id not in (await collect(engine, self.request(logit_bias=banned))).token_ids

    async def test_a_stop_token_ends_the_answer_and_is_named(self, engine: Engine) -> None:
        """Its text is not part of it; before `min_tokens` it does not come."""
        usual = await self.answer(engine, "stop_token_ids", self.request(stop_token_ids=[119]))
        if usual is None:
            return
        token_id = usual.token_ids[len(usual.token_ids) // 2]
        answer = await collect(engine, self.request(stop_token_ids=[token_id]))
        assert answer.token_ids == usual.token_ids[: usual.token_ids.index(token_id)]
        assert answer.completed is not None
        assert (answer.completed.finish_reason, answer.completed.stop_reason) == ("stop", token_id)
        later = await collect(engine, self.request(stop_token_ids=[token_id], min_tokens=20))
        assert later.completed is not None
        assert later.completed.usage.completion_tokens >= 20

    async def test_tokens_that_there_are_not_are_refused(self, engine: Engine) -> None:
        """In prompts, in lists of stop tokens, and to be turned into text."""
        for token_id in (-1, 2**40):
            with pytest.raises(BadRequest) as refused:
                await collect(engine, self.request(prompt=TokenPrompt(token_ids=[5, token_id])))
            assert refused.value.param == "prompt"
            with pytest.raises(BadRequest):
                await engine.detokenize(Detokenize(model="m", token_ids=[5, token_id]))

    async def test_tokens_are_those_that_generation_counts(self, engine: Engine) -> None:
        """For chats and texts, and text comes back as it was."""
        work = Tokenize(model="m", prompt=self.prompt(), with_strings=True)
        if "tokenize" in self.refused:
            with pytest.raises(BadRequest):
                await engine.tokenize(work)
            return
        chat = await engine.tokenize(work)
        answer = await collect(engine, self.request(max_tokens=1))
        assert answer.completed is not None
        assert len(chat.token_ids) == len(chat.strings) == answer.completed.usage.prompt_tokens
        text = TextPrompt(text="Größe 🙂, 12 workers\n")
        plain = await engine.tokenize(Tokenize(model="m", prompt=text, adds_special_tokens=False))
        assert plain.strings == []
        back = await engine.detokenize(Detokenize(model="m", token_ids=plain.token_ids))
        assert back.text == text.text
        with_special = await engine.tokenize(Tokenize(model="m", prompt=text))
        answer = await collect(engine, self.request(prompt=text, max_tokens=1))
        assert answer.completed is not None
        assert len(with_special.token_ids) == answer.completed.usage.prompt_tokens


def _bytes_of(entry: Logprob) -> bytes:
    return entry.raw or entry.text.encode()
