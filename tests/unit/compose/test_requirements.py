"""deploy/compose/requirements.py: what each layer of the images installs, from the real pyproject.toml."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
PYPROJECT = ROOT / "pyproject.toml"


@pytest.fixture(scope="module")
def layers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    folder = tmp_path_factory.mktemp("requirements")
    script = ROOT / "deploy" / "compose" / "requirements.py"
    subprocess.run([sys.executable, script, PYPROJECT, folder], check=True)
    return {file.stem: file.read_text().splitlines() for file in folder.iterdir()}


def test_every_layer_that_the_dockerfile_installs_exists(layers: dict[str, list[str]]) -> None:
    words = (ROOT / "deploy" / "compose" / "Dockerfile").read_text().split()
    wanted = {Path(word).stem for word in words if word.startswith("/build/") and word.endswith(".txt")}
    assert {"core", "torch", "vllm"} < wanted
    assert wanted - {"constraints"} <= set(layers)


def test_the_layers_of_a_role_hold_all_that_its_extra_asks_for(layers: dict[str, list[str]]) -> None:
    project = tomllib.loads(PYPROJECT.read_text())["project"]
    extras = project["optional-dependencies"]
    assert sorted(layers["core"]) == sorted(project["dependencies"])
    for role in ("gateway", "operator", "embedding", "llm", "cli", "vllm", "server"):
        assert set(extras[role]) <= set(layers[role])


def test_only_the_layers_of_models_name_torch(layers: dict[str, list[str]]) -> None:
    with_torch = {layer for layer, lines in layers.items() if any(line.startswith("torch") for line in lines)}
    assert {"torch", "embedding", "llm"} <= with_torch
    assert not {"core", "gateway", "operator", "cli", "server"} & with_torch
    assert set(layers["torch"]) <= set(layers["llm"]), "the shared layer brings what the llm-worker asks for"
