"""Split the requirements of pyproject.toml into one file per image layer: `requirements.py PYPROJECT FOLDER`.

A layer is built again only when its own file changes, so a change of the code never installs torch again.
"""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path
from typing import Any

_TORCH = ("torch", "transformers")
"""What the images of the llm-worker and the embedding-worker share: a layer of its own, stored once."""


_BUILD_TOOLS = ("cmake", "ninja")
"""What scikit-build-core asks for by itself where the system has none."""


def layers(pyproject: dict[str, Any]) -> dict[str, list[str]]:
    """Return the requirements of each layer, sorted. `torch` lies below `embedding` and `llm`.

    `wheel` is for making SAGE's wheel: with the libraries that the code imports, since their types are read there.
    """
    project = pyproject["project"]
    extras = project["optional-dependencies"]
    found = {"core": project["dependencies"], **extras}
    found["torch"] = [line for line in extras["llm"] if name(line) in _TORCH]
    found["embedding"] = extras["embedding"] + extras["offline-models"]
    tools = [line for line in extras["dev"] if name(line) in _BUILD_TOOLS]
    found["wheel"] = pyproject["build-system"]["requires"] + tools + found["core"] + extras["gateway"]
    return {layer: sorted(lines) for layer, lines in found.items()}


def name(requirement: str) -> str:
    """Return the name that a requirement begins with."""
    return re.split(r"[^A-Za-z0-9._-]", requirement, maxsplit=1)[0].lower()


def main(pyproject: Path, folder: Path) -> None:
    """Write `FOLDER/<layer>.txt` for every layer."""
    folder.mkdir(parents=True, exist_ok=True)
    for layer, lines in layers(tomllib.loads(pyproject.read_text())).items():
        (folder / f"{layer}.txt").write_text("".join(f"{line}\n" for line in lines))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
