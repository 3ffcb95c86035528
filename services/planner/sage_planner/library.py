"""The pipelines of one planner: the packaged ones and those of a folder, all checked before the first is served."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from importlib.resources import files
from pathlib import Path
from typing import Final

from sage_core import NotFound
from sage_pipeline import (
    EdgeType,
    Location,
    Pipeline,
    PipelineError,
    Plan,
    Problem,
    compile_pipeline,
    parse_pipeline,
)
from sage_wire.messages import ServedModel

__all__ = ["POOL_PREFIX", "PipelineLibrary", "load_library"]

POOL_PREFIX: Final = "pipeline/"
MAX_FILES: Final = 256


class PipelineLibrary:
    """Pipelines by name. Plans for the default parameters are compiled once."""

    def __init__(self, pipelines: Iterable[Pipeline]) -> None:
        self._pipelines = {pipeline.name: pipeline for pipeline in pipelines}
        self._plans = {name: compile_pipeline(pipeline) for name, pipeline in self._pipelines.items()}

    @property
    def names(self) -> list[str]:
        """Every name, sorted."""
        return sorted(self._pipelines)

    def plan(self, name: str, parameters: Mapping[str, str]) -> Plan:
        """Return the plan of pipeline `name`, with or without the prefix of its pool.

        Raises NotFound for an unknown name and BadRequest for parameters that do not fit.
        """
        name = name.removeprefix(POOL_PREFIX)
        pipeline = self._pipelines.get(name)
        if pipeline is None:
            raise NotFound(
                f"pipeline '{name[:128]}' does not exist; available: {', '.join(self.names)}",
                param="pipeline",
            )
        return compile_pipeline(pipeline, parameters) if parameters else self._plans[name]

    def models(self) -> list[ServedModel]:
        """Return one pool per pipeline, for announcements."""
        return [
            ServedModel(
                name=POOL_PREFIX + name,
                task="pipeline",
                engine="planner",
                description=self._pipelines[name].description,
                takes=_input_of(self._plans[name]),
            )
            for name in self.names
        ]


def _input_of(plan: Plan) -> str:
    return "documents" if any(step.yields is EdgeType.DOCUMENTS for step in plan.steps) else "messages"


def load_library(folder: Path | None = None) -> PipelineLibrary:
    """Load the packaged pipelines and those of `folder`, which replace packaged ones of the same name.

    Raises PipelineError with one `file:line:column: …` line per problem in any file.
    """
    pipelines: dict[str, Pipeline] = {}
    for resource in sorted(files("sage_planner").joinpath("pipelines").iterdir(), key=lambda each: each.name):
        if resource.name.endswith(".yaml"):
            pipeline = parse_pipeline(resource.read_bytes(), resource.name)
            pipelines[pipeline.name] = pipeline
    if folder is not None:
        pipelines |= _load_folder(folder)
    return PipelineLibrary(pipelines.values())


def _load_folder(folder: Path) -> dict[str, Pipeline]:
    if not folder.is_dir():
        raise PipelineError([Problem(f"planner.pipelines_dir = {str(folder)!r}: not a folder")])
    paths = sorted(path for path in folder.iterdir() if path.suffix in (".yaml", ".yml"))
    if len(paths) > MAX_FILES:
        raise PipelineError(
            [Problem(f"{folder} holds {len(paths)} pipelines; at most {MAX_FILES} are allowed")]
        )
    problems: list[Problem] = []
    found: dict[str, Pipeline] = {}
    places: dict[str, Path] = {}
    for path in paths:
        start = Location(str(path), 1, 1)
        try:
            pipeline = parse_pipeline(path.read_bytes(), str(path))
        except PipelineError as error:
            problems.extend(error.problems)
            continue
        except OSError as error:
            problems.append(Problem(f"cannot be read: {error.strerror or error}", start))
            continue
        if pipeline.name in places:
            problems.append(
                Problem(f"pipeline '{pipeline.name}' is declared in {places[pipeline.name]} already", start)
            )
        places[pipeline.name] = path
        found[pipeline.name] = pipeline
    if problems:
        raise PipelineError(problems)
    return found
