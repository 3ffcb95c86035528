"""YAML, Python and JSON Schema are faces of one graph."""

from __future__ import annotations

from pathlib import Path

import jsonschema  # type: ignore[import-untyped, unused-ignore]
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from sage_pipeline import (
    CATALOGUE,
    Chain,
    Pipeline,
    PipelineError,
    chat,
    documents,
    dump_yaml,
    embed,
    index,
    json_schema,
    llm,
    parameter,
    parse_pipeline,
    pipeline,
    prompt,
    rerank,
    retrieve,
    split,
)

ROOT = Path(__file__).parents[3]
PACKAGED = ROOT / "services/planner/sage_planner/pipelines"
SHIPPED = [*sorted(PACKAGED.glob("*.yaml")), *sorted((ROOT / "configs/pipelines").glob("*.yaml"))]


def test_the_packaged_pipelines_equal_their_python_twins() -> None:
    question = chat(id="question")
    rag = pipeline(
        "rag-docs",
        question
        >> embed(id="query_vector")
        >> retrieve(parameter("collection", "docs", "The collection to search."), top_k=8, id="passages")
        >> prompt()
        >> llm(id="answer"),
        description="Answer a question from the documents in a collection, with numbered sources.",
    )
    assert parse_pipeline((PACKAGED / "rag-docs.yaml").read_text()) == rag
    indexing = pipeline(
        "index-docs",
        documents()
        >> split()
        >> embed()
        >> index(parameter("collection", "docs", "The collection to store in.")),
        description="Cut documents into passages, embed them and store them in a collection.",
    )
    assert parse_pipeline((PACKAGED / "index-docs.yaml").read_text()) == indexing


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)
def test_shipped_files_round_trip_and_match_the_schema(path: Path) -> None:
    parsed = parse_pipeline(path.read_bytes(), path.name)
    assert parse_pipeline(dump_yaml(parsed.to_data())) == parsed
    jsonschema.Draft202012Validator(json_schema()).validate(yaml.safe_load(path.read_text()))
    jsonschema.Draft202012Validator(json_schema()).validate(parsed.to_data())


def test_the_schema_is_itself_valid_and_knows_every_node_type() -> None:
    schema = json_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    assert set(schema["$defs"]) == set(CATALOGUE)


@pytest.mark.parametrize(
    "node",
    [
        {"type": "nope"},
        {"type": "retrieve"},
        {"type": "retrieve", "collection": "docs", "top_k": 0},
        {"type": "retrieve", "collection": "docs", "topk": 3},
        {"type": "retrieve", "collection": "docs", "inputs": {"quary": "chat"}},
        {"type": "llm", "temperature": 3},
        {"type": "chat", "id": "Bad"},
    ],
)
def test_the_schema_refuses_what_the_reader_refuses(node: dict[str, object]) -> None:
    data = {"name": "x", "nodes": [{"type": "chat", "id": "first"}, node]}
    assert not jsonschema.Draft202012Validator(json_schema()).is_valid(data)
    with pytest.raises(PipelineError):
        parse_pipeline(dump_yaml(data))


def test_a_graph_with_explicit_inputs_round_trips() -> None:
    question = chat(id="question")
    rewritten = llm(
        prompt(question=question, template="Rewrite: {{question}}", id="rewrite_prompt"), id="rewrite"
    )
    by_words = retrieve("docs", query=question, mode="sparse", top_k=30, id="by_words")
    vector = embed(rewritten, id="vector")
    by_vector = retrieve("docs", query=rewritten, vector=vector, mode="dense", top_k=3, id="by_vector")
    both = prompt(
        question=question,
        context=rerank(query=question, hits=by_words),
        slots={"draft": llm(prompt(question=rewritten, context=by_vector, id="draft_prompt"), id="draft")},
        template="{{question}} Improve this draft: {{draft}}",
        id="final_prompt",
    )
    built = pipeline(
        "two-ways", llm(both, id="answer", stop=["END"], temperature=0.2), description="Two searches."
    )
    text = dump_yaml(built.to_data())
    assert parse_pipeline(text) == built
    assert [node.id for node in built.nodes].count("question") == 1


def test_two_nodes_of_one_type_need_ids_in_python_too() -> None:
    with pytest.raises(PipelineError, match="two nodes have the id 'llm'"):
        pipeline("x", chat() >> llm() >> prompt() >> llm())


@pytest.mark.parametrize("text", ["\x85", "\u2028a", "a\u2029\nb", "\x85\n", "a\rb", "\n", " \n a", "\ufeff"])
def test_line_breaks_of_other_scripts_round_trip(text: str) -> None:
    built = pipeline(
        "x", chat() >> retrieve("docs", mode="sparse") >> prompt(template=text + "{{question}}") >> llm()
    )
    assert parse_pipeline(dump_yaml(built.to_data())) == built


@st.composite
def chains(draw: st.DrawFn) -> Chain:
    """Random answerable chains with random options."""
    chain: Chain = chat(id="question")
    name = draw(st.from_regex(r"[A-Za-z0-9][A-Za-z0-9 ._-]{0,20}[A-Za-z0-9]", fullmatch=True))
    collection = parameter("collection", name) if draw(st.booleans()) else name
    if draw(st.booleans()):
        chain = chain >> embed(batch=draw(st.integers(1, 512)))
        mode = draw(st.sampled_from(["hybrid", "dense"]))
    else:
        mode = "sparse"
    chain = chain >> retrieve(collection, top_k=draw(st.integers(1, 100)), mode=mode)
    if draw(st.booleans()):
        chain = chain >> rerank(top_k=draw(st.integers(1, 100)))
    if draw(st.booleans()):
        return chain
    text = st.text(st.characters(codec="utf-8", exclude_characters="{}"), max_size=80)
    chain = chain >> prompt(
        instructions=draw(st.none() | text),
        template=draw(text) + "{{question}}",
        history=draw(st.integers(0, 100)),
    )
    return chain >> llm(
        model=draw(st.sampled_from(["auto", "some/model-7b", "no", "1.0", "null"])),
        max_tokens=draw(st.none() | st.integers(1, 10_000)),
        temperature=draw(st.none() | st.floats(0, 2)),
        stop=draw(st.lists(st.text(st.characters(codec="utf-8"), min_size=1, max_size=9), max_size=3)),
    )


@settings(max_examples=60, deadline=None)
@given(chains())
def test_python_to_yaml_to_graph_is_the_identity(chain: Chain) -> None:
    built: Pipeline = pipeline("random", chain)
    assert parse_pipeline(dump_yaml(built.to_data())) == built
    jsonschema.Draft202012Validator(json_schema()).validate(built.to_data())
