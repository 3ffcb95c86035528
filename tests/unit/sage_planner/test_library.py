"""Which pipelines a planner serves, and what a broken one says."""

from __future__ import annotations

from pathlib import Path

import pytest

from sage_core import BadRequest, NotFound, Unavailable
from sage_pipeline import PipelineError
from sage_planner.library import load_library
from sage_planner.pools import PoolDirectory
from sage_wire.messages import Announcement, ServedModel

GOOD = "name: {name}\nnodes:\n  - type: chat\n  - type: llm\n"


def test_the_packaged_pipelines_are_served_as_pools() -> None:
    library = load_library()
    assert library.names == ["index-docs", "rag-docs"]
    assert [(model.name, model.task) for model in library.models()] == [
        ("pipeline/index-docs", "pipeline"),
        ("pipeline/rag-docs", "pipeline"),
    ]
    assert all(model.description for model in library.models())


def test_a_folder_adds_pipelines_and_may_replace_packaged_ones(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(GOOD.format(name="mine"))
    (tmp_path / "other.yml").write_text(GOOD.format(name="rag-docs"))
    (tmp_path / "notes.txt").write_text("not a pipeline")
    library = load_library(tmp_path)
    assert library.names == ["index-docs", "mine", "rag-docs"]
    assert [step.id for step in library.plan("rag-docs", {}).steps] == ["chat", "llm"]


def test_every_problem_of_every_file_is_one_line_with_file_line_and_column(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(
        "name: a\nnodes:\n  - type: chat\n  - type: lmm\n  - type: llm\n    modell: x\n"
    )
    (tmp_path / "b.yaml").write_text("name: [\n")
    (tmp_path / "c.yaml").write_text(GOOD.format(name="c"))
    (tmp_path / "d.yaml").write_text(GOOD.format(name="c"))
    with pytest.raises(PipelineError) as caught:
        load_library(tmp_path)
    lines = caught.value.message.split("\n")
    assert [line.split(": ")[0] for line in lines] == [
        f"{tmp_path}/a.yaml:4:11",
        f"{tmp_path}/a.yaml:6:5",
        f"{tmp_path}/b.yaml:2:1",
        f"{tmp_path}/d.yaml:1:1",
    ]
    assert "did you mean 'llm'?" in lines[0]
    assert f"pipeline 'c' is declared in {tmp_path}/c.yaml already" in lines[3]


def test_a_folder_that_is_not_there_is_named() -> None:
    with pytest.raises(PipelineError, match=r"planner\.pipelines_dir = '/nowhere': not a folder"):
        load_library(Path("/nowhere"))


def test_an_unknown_pipeline_lists_what_there_is() -> None:
    library = load_library()
    assert library.plan("pipeline/rag-docs", {}) is library.plan("rag-docs", {})
    with pytest.raises(NotFound, match="pipeline 'rag' does not exist; available: index-docs, rag-docs"):
        library.plan("rag", {})
    with pytest.raises(BadRequest, match="has no parameter 'x'"):
        library.plan("rag-docs", {"x": "y"})


def announcement(actor_id: str, *models: ServedModel) -> Announcement:
    return Announcement(
        actor_id=actor_id, kind="worker", epoch="e", sequence=1, state="ready", version="", host="", pid=1,
        models=list(models),
    )  # fmt: skip


def test_auto_means_the_first_pool_by_name_and_stays_while_its_worker_restarts() -> None:
    present = [
        announcement("w1", ServedModel(name="zephyr", task="generate")),
        announcement(
            "w2", ServedModel(name="alpha", task="generate"), ServedModel(name="mini", task="embed")
        ),
    ]
    directory = PoolDirectory(lambda: present)
    assert directory.resolve("generate", "auto") == "alpha"
    assert directory.resolve("embed", "auto") == "mini"
    assert directory.resolve("generate", "by-name") == "by-name"
    present.clear()
    assert directory.resolve("generate", "auto") == "alpha"
    with pytest.raises(Unavailable) as caught:
        directory.resolve("rerank", "auto")
    assert caught.value.retry_after


def test_pipelines_announce_what_they_take() -> None:
    takes = {model.name: model.takes for model in load_library().models()}
    assert (takes["pipeline/index-docs"], takes["pipeline/rag-docs"]) == ("documents", "messages")
