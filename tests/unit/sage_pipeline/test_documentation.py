"""The how-to page: its examples load, and it names every node type, option and port."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec
import pytest

from sage_pipeline import CATALOGUE, compile_pipeline, parse_pipeline

PAGE = (Path(__file__).parents[3] / "docs/how-to/pipelines.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)


@pytest.mark.parametrize("text", blocks("yaml"), ids=lambda text: text.split("\n")[0])
def test_every_yaml_example_loads_and_compiles(text: str) -> None:
    assert compile_pipeline(parse_pipeline(text)).steps


def test_the_python_example_runs(capsys: pytest.CaptureFixture[str]) -> None:
    (text,) = blocks("python")
    exec(compile(text, "pipelines.md", "exec"), {})
    assert capsys.readouterr().out.startswith("pipeline/draft-twice: Messages -> Answer")


@pytest.mark.parametrize("name", CATALOGUE)
def test_every_option_default_and_port_of_a_node_type_is_described(name: str) -> None:
    node_type = CATALOGUE[name]
    section = re.search(rf"^### {name}\n(.*?)(?=^##)", PAGE, re.DOTALL | re.MULTILINE)
    assert section is not None
    for port in node_type.port_names:
        assert f"`{port}`" in section[1]
    described = dict(re.findall(r"^\| `(\w+)` \| (.*?) \|", section[1], re.MULTILINE))
    options = msgspec.structs.fields(node_type.options)
    assert set(described) == {info.name for info in options}
    for info in options:
        if info.required:
            assert described[info.name] == "required"
        elif isinstance(info.default, str | int):
            assert described[info.name].strip("`") == str(info.default)
