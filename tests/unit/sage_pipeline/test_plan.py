"""Compiling: order, placement, critical path, shares of the deadline, parameters, and the plan's faces."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sage_core import BadRequest
from sage_pipeline import (
    Plan,
    chat,
    compile_pipeline,
    documents,
    embed,
    index,
    llm,
    parameter,
    parse_pipeline,
    pipeline,
    prompt,
    retrieve,
    split,
)
from sage_pipeline.nodes import Placement, RetrieveOptions, SplitOptions

PACKAGED = Path(__file__).parents[3] / "services/planner/sage_planner/pipelines"


def rag_plan(**parameters: str) -> Plan:
    return compile_pipeline(parse_pipeline((PACKAGED / "rag-docs.yaml").read_text()), parameters)


def test_every_step_stands_after_its_inputs_whatever_the_order_of_the_file() -> None:
    plan = compile_pipeline(
        parse_pipeline(
            "name: x\nnodes:\n- {type: llm, inputs: {prompt: prompt}}\n"
            "- {type: prompt, inputs: {question: chat}}\n- type: chat\noutput: llm\n"
        )
    )
    assert [step.id for step in plan.steps] == ["chat", "prompt", "llm"]


def test_placement_pools_and_streaming_follow_the_node_type() -> None:
    plan = rag_plan()
    assert [(step.id, step.placement, step.pool) for step in plan.steps] == [
        ("question", Placement.PLANNER, ""),
        ("query_vector", Placement.GPU, "auto"),
        ("passages", Placement.CPU, "operator/retrieve"),
        ("prompt", Placement.PLANNER, ""),
        ("answer", Placement.ENGINE, "auto"),
    ]
    assert [step.id for step in plan.steps if step.is_streamed] == ["answer"]


def test_only_the_output_streams() -> None:
    plan = compile_pipeline(pipeline("x", chat() >> llm(id="draft") >> prompt() >> llm(id="final")))
    assert {step.id: step.is_streamed for step in plan.steps} == {
        "chat": False, "draft": False, "prompt": False, "final": True
    }  # fmt: skip


def test_shares_of_the_critical_path_sum_to_one_and_of_any_path_to_at_most_one() -> None:
    plan = rag_plan()
    assert plan.critical_path == ("question", "query_vector", "passages", "prompt", "answer")
    assert sum(plan.step(node_id).share for node_id in plan.critical_path) == pytest.approx(1.0)
    assert plan.critical_s == pytest.approx(sum(step.estimate_s for step in plan.steps))
    side = compile_pipeline(
        pipeline(
            "side",
            llm(
                prompt(
                    question=(question := chat()),
                    context=retrieve("d", query=question, mode="sparse"),
                    slots={"draft": llm(question, id="draft")},
                    template="{{draft}}",
                ),
                id="final",
            ),
        )
    )
    assert side.critical_path == ("chat", "draft", "prompt", "final")
    assert not side.step("retrieve").is_critical
    for path in (side.critical_path, ("chat", "retrieve", "prompt", "final")):
        assert sum(side.step(node_id).share for node_id in path) <= 1.0 + 1e-9


def test_parameters_have_defaults_and_one_run_may_replace_them() -> None:
    def collection(plan: Plan) -> str:
        options = plan.step("passages").options
        assert isinstance(options, RetrieveOptions)
        return options.collection

    assert collection(rag_plan()) == "docs"
    assert collection(rag_plan(collection="Manual Pages")) == "Manual Pages"


def test_a_parameters_text_becomes_the_number_its_option_wants() -> None:
    size = parameter("size", "800")
    pipe = pipeline("x", documents() >> split(chunk_chars=size) >> embed() >> index("docs"))
    options = compile_pipeline(pipe, {"size": "1200"}).step("split").options
    assert isinstance(options, SplitOptions)
    assert options.chunk_chars == 1200


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        (
            {"colection": "a"},
            "has no parameter 'colection'; declared: collection; did you mean 'collection'?",
        ),
        (
            {"collection": " a"},
            "parameter 'collection', which sets 'collection': found ' a'; expected `str` matching",
        ),
        ({"collection": "a" * 5000}, "parameter 'collection' has 5000 characters; at most 4096"),
    ],
)
def test_a_wrong_parameter_is_the_callers_mistake_and_named(parameters: dict[str, str], message: str) -> None:
    with pytest.raises(BadRequest) as caught:
        rag_plan(**parameters)
    assert message in caught.value.message
    assert caught.value.param == "parameters"


def test_checks_across_options_hold_for_parameters_of_a_run_too() -> None:
    size = parameter("size", "800")
    pipe = pipeline("x", documents() >> split(chunk_chars=size) >> embed() >> index("docs"))
    with pytest.raises(
        BadRequest, match="overlap_chars is 150; expected at most half of chunk_chars, which is 120"
    ):
        compile_pipeline(pipe, {"size": "120"})
    mode = parameter("mode", "sparse")
    search = pipeline("y", chat() >> retrieve("docs", mode=mode))
    with pytest.raises(BadRequest, match="nothing at port 'vector', which mode dense needs"):
        compile_pipeline(search, {"mode": "dense"})


def test_the_plan_reads_as_text_mermaid_and_stable_json() -> None:
    plan = rag_plan()
    text = plan.to_text()
    assert text.startswith("pipeline/rag-docs: Messages -> Answer\n")
    assert "critical path: question -> query_vector -> passages -> prompt -> answer" in text
    mermaid = plan.to_mermaid()
    assert mermaid.startswith("flowchart LR\n")
    assert 'query_vector_ ==>|"vector: Vector"| passages_' in mermaid
    assert plan.to_json() == rag_plan().to_json()
    data = json.loads(plan.to_json())
    assert data["steps"][2]["options"] == {"collection": "docs", "mode": "hybrid", "top_k": 8}
