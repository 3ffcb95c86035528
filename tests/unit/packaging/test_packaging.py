"""The project file and the folders say the same."""

from __future__ import annotations

import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[3]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))


def package_folders() -> set[str]:
    found = set()
    for pattern in ("libs/sage_*", "native/sage_*", "services/*/sage_*"):
        found |= {str(path.relative_to(ROOT)) for path in ROOT.glob(pattern) if path.is_dir()}
    return found


def test_every_package_folder_is_in_the_wheel() -> None:
    assert set(PROJECT["tool"]["scikit-build"]["wheel"]["packages"]) == package_folders()


def test_every_package_is_typed_and_layered() -> None:
    layers = PROJECT["tool"]["importlinter"]["contracts"][0]["layers"]
    layered = {name.strip() for line in layers for name in line.split("|")}
    for folder in package_folders():
        assert (ROOT / folder / "py.typed").exists(), folder
        assert folder.rpartition("/")[2] in layered, folder


def test_only_engine_extras_pull_torch() -> None:
    extras = PROJECT["project"]["optional-dependencies"]
    heavy = ("torch", "sentence-transformers", "vllm", "transformers")
    with_torch = {name for name, wanted in extras.items() if any(w.startswith(heavy) for w in wanted)}
    assert with_torch == {"embedding", "llm", "vllm"}
    assert not any(wanted.startswith(heavy) for wanted in PROJECT["project"]["dependencies"])


def test_no_module_is_longer_than_600_lines() -> None:
    too_long = {
        str(path.relative_to(ROOT)): lines
        for folder in package_folders()
        for path in (ROOT / folder).rglob("*.py")
        if (lines := len(path.read_text("utf-8").splitlines())) > 600
    }
    assert too_long == {}
