"""Structures are enforced, or refused by name, and compiling them holds nobody up."""

import asyncio
import json
import re
import threading

import jsonschema
import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sage_core import BadRequest, EngineError
from sage_llm_worker import structures
from sage_llm_worker.engines.shortest_text import ShortestTexts, shortest_text
from sage_llm_worker.structures import StructureCompiler, advance, as_lark, byte_tokenizer, matcher_of
from sage_wire.messages import Grammar, JsonObject, JsonSchema, OneOf, Pattern


def schema(value):
    return JsonSchema(schema=json.dumps(value))


def matcher(structure):
    return matcher_of(structure, byte_tokenizer())


def allows(structure, text):
    found = matcher(structure)
    data = text.encode()
    return found.try_consume_tokens(list(data)) == len(data) and found.is_accepting()


LEAVES = st.one_of(
    st.builds(
        lambda low, more: {"type": "string", "minLength": low, "maxLength": low + more},
        st.integers(0, 20),
        st.integers(0, 20),
    ),
    st.builds(
        lambda low, more: {"type": "integer", "minimum": low, "maximum": low + more},
        st.integers(-300, 300),
        st.integers(0, 300),
    ),
    st.just({"type": "number", "exclusiveMinimum": 0}),
    st.just({"type": ["string", "null"]}),
    st.just({"type": "string", "format": "date-time"}),
    st.just({"type": "string", "pattern": "^(ab)+c$"}),
    st.just({"const": {"a": [1, None]}}),
    st.lists(st.text("abé", max_size=3), min_size=1, max_size=4, unique=True).map(
        lambda names: {"enum": names}
    ),
    st.just({"type": "boolean"}),
)


def composites(inner):
    fields = st.dictionaries(st.text("abcé_", min_size=1, max_size=5), inner, max_size=4)
    objects = fields.flatmap(
        lambda properties: st.lists(st.sampled_from(sorted(properties) or ["none"]), unique=True).map(
            lambda required: {
                "type": "object",
                "properties": properties,
                "required": [name for name in required if name in properties],
                "additionalProperties": False,
            }
        )
    )
    arrays = st.builds(
        lambda items, low, more: {"type": "array", "items": items, "minItems": low, "maxItems": low + more},
        inner,
        st.integers(0, 12),
        st.integers(0, 3),
    )
    return st.one_of(
        objects, arrays, st.lists(inner, min_size=1, max_size=3).map(lambda any_of: {"anyOf": any_of})
    )


@settings(deadline=None, max_examples=60)
@given(st.recursive(LEAVES, composites, max_leaves=6))
def test_the_text_that_is_found_for_a_schema_is_valid(value):
    text = shortest_text(matcher(schema(value)))
    jsonschema.validate(json.loads(text), value)
    assert shortest_text(matcher(schema(value))) == text


@pytest.mark.parametrize(
    "regex", ["(ab)*c", "[a-z]{3,}@[a-z]+[.]com", "x?", "a|b/c", r"\d{4}-\d\d", "(é|東)+!"]
)
def test_the_text_that_is_found_for_a_pattern_matches_it(regex):
    assert re.fullmatch(regex, shortest_text(matcher(Pattern(regex=regex))))


def test_a_structure_without_an_end_has_no_text():
    assert shortest_text(matcher(Grammar(ebnf='start: "a" start'))) is None


def test_json_stands_on_one_line_with_a_space_after_a_comma_or_colon_at_most():
    structure = schema(
        {"type": "object", "properties": {"a": {"type": "array", "items": {"type": "integer"}}}}
    )
    assert allows(structure, '{"a":[1,2]}')
    assert allows(structure, '{"a": [1, 2]}')
    for text in ('{"a":  [1]}', '{"a":[1 ]}', '{\n"a":[1]}', ' {"a":[1]}', '{"a":[1]} '):
        assert not allows(structure, text)
    assert allows(JsonObject(), '{"any": {"thing": null}}')
    assert not allows(JsonObject(), "[]")


def test_grammars_may_be_lark_or_gbnf_and_hold_json():
    lark = 'start: "<call>" arguments "</call>"\narguments: %json {"type": "object", "additionalProperties": false}'
    assert allows(Grammar(ebnf=lark), "<call>{}</call>")
    gbnf = 'root ::= "yes" | "no" tail\ntail ::= ", " [a-z]+'
    assert allows(Grammar(ebnf=gbnf), "no, never")
    assert allows(schema({"$schema": "http://json-schema.org/draft-07/schema#", "type": "null"}), "null")


def test_unknown_formats_are_annotations():
    assert allows(schema({"type": "string", "format": "colour"}), '"any"')


@pytest.mark.parametrize(
    ("structure", "param", "reason"),
    [
        (schema({"type": "strin"}), "response_format", "strin"),
        (schema({"properties": {"a": {"not": {}}}}), "response_format", 'Unimplemented keys: \\["not"\\]'),
        (schema({"$ref": "#/nowhere"}), "response_format", "nowhere"),
        (schema({"$ref": "http://example.com/schema"}), "response_format", "does not fetch"),
        (schema({"type": "string", "pattern": "(?=a)"}), "response_format", "look-around"),
        (schema([]), "response_format", "must be an object"),
        (schema({"enum": []}), "response_format", "Unsatisfiable"),
        (JsonSchema(schema='{"a":' * 5000 + "1" + "}" * 5000), "response_format", "not JSON|recursion"),
        (Pattern(regex="["), "structured_outputs", "unclosed"),
        (OneOf(options=[""]), "structured_outputs", "nothing to choose"),
        (Grammar(ebnf="root ::= ("), "structured_outputs", "enforced"),
    ],
)
def test_what_cannot_be_enforced_is_refused_by_name_in_one_line(structure, param, reason):
    with pytest.raises(BadRequest, match=reason) as refused:
        matcher(structure)
    assert refused.value.param == param
    assert "\n" not in refused.value.message
    assert len(refused.value.message) < 400


def test_a_matcher_goes_on_after_what_was_delivered_and_not_after_anything_else():
    found = matcher(OneOf(options=["yes, gladly", "no"]))
    advance(found, list(b"yes, gl"))
    assert found.compute_ff_bytes() == b"adly"
    with pytest.raises(EngineError, match="not the beginning"):
        advance(matcher(OneOf(options=["yes"])), list(b"yo"))
    advance(matcher(OneOf(options=["yes"])), [])


class TestCompiler:
    @pytest.fixture
    def compiler(self):
        compiler = StructureCompiler(byte_tokenizer(), compile_seconds=2.0)
        yield compiler
        compiler.close()

    @pytest.fixture
    def compiled(self, monkeypatch):
        """What was compiled, in order."""
        seen = []

        def count(structure, tokenizer):
            seen.append(structure)
            return matcher_of(structure, tokenizer)

        monkeypatch.setattr(structures, "matcher_of", count)
        return seen

    async def test_a_structure_is_compiled_once_and_each_caller_starts_at_its_beginning(
        self, compiler, compiled
    ):
        one, other = await asyncio.gather(*(compiler.matcher(OneOf(options=["ab"])) for _ in range(2)))
        one.consume_token(ord("a"))
        assert other.compute_ff_bytes() == b"ab"
        assert len(compiled) == 1

    async def test_what_was_refused_is_refused_again(self, compiler):
        for _ in range(2):
            with pytest.raises(BadRequest):
                await compiler.matcher(Pattern(regex="("))

    async def test_only_the_latest_are_kept(self, compiler, compiled, monkeypatch):
        monkeypatch.setattr(structures, "_MAX_CACHED", 2)
        for option in ("a", "b", "a", "c", "a", "b"):
            await compiler.matcher(OneOf(options=[option]))
        assert [structure.options[0] for structure in compiled] == ["a", "b", "c", "b"]

    async def test_what_takes_too_long_is_refused_and_the_loop_stays_free(self, monkeypatch):
        gate = threading.Event()

        def wait(structure, tokenizer):
            gate.wait()
            return matcher_of(structure, tokenizer)

        monkeypatch.setattr(structures, "matcher_of", wait)
        compiler = StructureCompiler(byte_tokenizer(), compile_seconds=0.02)
        with pytest.raises(BadRequest, match=r"more than 0\.02 s") as refused:
            await compiler.matcher(JsonObject())
        assert refused.value.param == "response_format"
        gate.set()
        while not compiler._compiled[next(iter(compiler._compiled))].done():  # noqa: ASYNC110 - a thread's own time
            await asyncio.sleep(0.001)
        assert (await compiler.matcher(JsonObject())).compute_ff_bytes() == b"{"
        compiler.close()


async def test_short_texts_are_found_once():
    texts = ShortestTexts()
    assert await texts.text(OneOf(options=["first", "x"])) == "first"
    assert await texts.text(schema({"type": "integer", "minimum": 10})) == "10"
    assert await texts.text(schema({"type": "integer", "minimum": 10})) == "10"
    with pytest.raises(BadRequest, match="finds no text") as refused:
        await texts.text(Grammar(ebnf='start: "a" start'))
    assert refused.value.param == "structured_outputs"
    texts.close()


def test_every_structure_is_a_grammar_that_can_be_sent_as_text():
    for structure in (
        JsonObject(),
        Pattern(regex="a/b"),
        OneOf(options=['"', "b"]),
        Grammar(ebnf="start: /a/"),
    ):
        assert re.search(r"(?m)^\s*start\s*:", as_lark(structure))


async def test_first_requests_at_once_share_one_compiler():
    texts, before = ShortestTexts(), psutil.Process().children()
    try:
        await asyncio.gather(*(texts.text(Pattern(regex=f"a{number}")) for number in range(4)))
        assert len(psutil.Process().children()) == len(before) + 1
    finally:
        texts.close()
    assert psutil.Process().children() == before
