"""The catalogue of node types: ports, options, what they yield, where they run, what they cost.

Adding a node type means an options class and an entry here, and its lowering in `calls.py`; the YAML reader, the
JSON Schema, the plan and every error message follow from the entry.
"""

from __future__ import annotations

import enum
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Final, Literal

import msgspec
from msgspec import Meta

from sage_pipeline.template import MAX_TEMPLATE_CHARS
from sage_pipeline.values import EdgeType

__all__ = [
    "AUTO",
    "CATALOGUE",
    "EmbedOptions",
    "IndexOptions",
    "LlmOptions",
    "NodeType",
    "OptionConflict",
    "Options",
    "Placement",
    "Port",
    "PromptOptions",
    "RerankOptions",
    "RetrieveOptions",
    "SourceOptions",
    "SplitOptions",
    "find_conflict",
]

AUTO: Final = "auto"
"""The model name that stands for the first announced pool that serves the task."""

ModelName = Annotated[
    str,
    Meta(min_length=1, max_length=256, description="Name of a served model, or auto: the first that fits."),
]
CollectionName = Annotated[
    str,
    Meta(
        pattern=r"^[^\s\x00-\x1f\x7f](?:[^\x00-\x1f\x7f]{0,126}[^\s\x00-\x1f\x7f])?$",
        description="Name of a collection: 1 to 128 printable characters, no outer spaces.",
    ),
]


class Placement(enum.StrEnum):
    """Where a node runs: in the planner, on a CPU operator, on a GPU where its pool has one, or on an engine."""

    PLANNER = "planner"
    CPU = "cpu"
    GPU = "gpu"
    ENGINE = "engine"


class Options(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of one node type's options."""


class SourceOptions(Options, frozen=True):
    """Sources have no options."""


class EmbedOptions(Options, frozen=True):
    """`embed`."""

    model: ModelName = AUTO
    batch: Annotated[int, Meta(ge=1, le=512, description="Texts per request; more run in parallel.")] = 64


class SplitOptions(Options, frozen=True):
    """`split`."""

    chunk_chars: Annotated[int, Meta(ge=100, le=20_000, description="Target length of a passage.")] = 1000
    overlap_chars: Annotated[int, Meta(ge=0, le=10_000, description="Text shared by neighbours.")] = 150


class IndexOptions(Options, frozen=True):
    """`index`."""

    collection: CollectionName


class RetrieveOptions(Options, frozen=True):
    """`retrieve`."""

    collection: CollectionName
    top_k: Annotated[int, Meta(ge=1, le=100, description="Passages to return.")] = 8
    mode: Annotated[
        Literal["hybrid", "dense", "sparse"],
        Meta(description="By vector and words, by vector alone, or by words alone (needs no vector)."),
    ] = "hybrid"


class RerankOptions(Options, frozen=True):
    """`rerank`."""

    model: ModelName = AUTO
    top_k: Annotated[int, Meta(ge=1, le=100, description="Passages kept after scoring.")] = 5


TemplateText = Annotated[str, Meta(max_length=MAX_TEMPLATE_CHARS)]


class PromptOptions(Options, frozen=True):
    """`prompt`. `instructions` None means a text that suits the inputs; an empty one sends no system message."""

    instructions: Annotated[
        TemplateText | None, Meta(description="Template of the system message; empty: none is sent.")
    ] = None
    template: Annotated[TemplateText, Meta(description="Template of the last user message.")] = "{{question}}"
    max_context_chars: Annotated[
        int, Meta(ge=200, le=1_000_000, description="Passages that no longer fit are left out.")
    ] = 12_000
    history: Annotated[int, Meta(ge=0, le=100, description="Earlier turns of the conversation to keep.")] = 0


class LlmOptions(Options, frozen=True):
    """`llm`. What a request sets itself wins over these for the node whose answer is the output."""

    model: ModelName = AUTO
    max_tokens: Annotated[int, Meta(ge=1, le=1_000_000)] | None = None
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    top_p: Annotated[float, Meta(gt=0, le=1)] | None = None
    seed: int | None = None
    stop: Annotated[list[Annotated[str, Meta(min_length=1, max_length=256)]], Meta(max_length=16)] = []


@dataclass(frozen=True, slots=True)
class Port:
    """A named input of a node type."""

    name: str
    accepts: tuple[EdgeType, ...]
    is_required: bool = True


@dataclass(frozen=True, slots=True)
class NodeType:
    """One node type. `yields` may depend on the type at the first port.

    `task` is the task of the pool that a model name is looked up in; `pool` the fixed pool of an operator.
    `extra_accepts` is what ports with free names accept; empty: there are none. `estimate_s` is what a typical
    run of the node takes: only the proportions matter, they share out the deadline.
    """

    name: str
    summary: str
    options: type[Options]
    yields: EdgeType | Mapping[EdgeType, EdgeType]
    placement: Placement
    estimate_s: float
    ports: tuple[Port, ...] = ()
    extra_accepts: tuple[EdgeType, ...] = ()
    task: str = ""
    pool: str = ""
    is_idempotent: bool = True
    streams: bool = False
    port_names: tuple[str, ...] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "port_names", tuple(port.name for port in self.ports))

    @property
    def is_source(self) -> bool:
        """True where the value comes from the run's input."""
        return not self.ports

    def port(self, name: str) -> Port | None:
        """Return the port called `name`, None where the type has no such port."""
        for port in self.ports:
            if port.name == name:
                return port
        return Port(name, self.extra_accepts, is_required=False) if self.extra_accepts else None

    def yielded(self, first: EdgeType | None) -> EdgeType | None:
        """Return the output type given the type at the first port; None while that is unknown or refused."""
        if isinstance(self.yields, EdgeType):
            return self.yields
        return self.yields.get(first) if first is not None else None


@dataclass(frozen=True, slots=True)
class OptionConflict:
    """Options that are fine alone and wrong together, or with what is bound. `option` None: the node as a whole."""

    option: str | None
    message: str


def find_conflict(options: Options, ports: Collection[str]) -> OptionConflict | None:
    """Check what one option alone cannot tell. `ports` are those that are bound."""
    match options:
        case SplitOptions(chunk_chars=chunk, overlap_chars=overlap) if 2 * overlap > chunk:
            return OptionConflict(
                "overlap_chars",
                f"overlap_chars is {overlap}; expected at most half of chunk_chars, which is {chunk}",
            )
        case RetrieveOptions(mode=mode) if mode != "sparse" and "vector" not in ports:
            return OptionConflict(
                None,
                f"nothing at port 'vector', which mode {mode} needs; accepted: Vector from an embed node, or set "
                "mode: sparse",
            )
    return None


_TEXT = (EdgeType.MESSAGES, EdgeType.ANSWER)
"""Types that stand for a text: an answer, or the last user message of a conversation."""

_TYPES = (
    NodeType("chat", "The messages of the run.", SourceOptions, EdgeType.MESSAGES, Placement.PLANNER, 0.0),
    NodeType(
        "documents", "The documents of the run.", SourceOptions, EdgeType.DOCUMENTS, Placement.PLANNER, 0.0
    ),
    NodeType(
        "split",
        "Cut documents into passages.",
        SplitOptions,
        EdgeType.CHUNKS,
        Placement.CPU,
        0.1,
        ports=(Port("documents", (EdgeType.DOCUMENTS,)),),
        pool="operator/split",
    ),
    NodeType(
        "embed",
        "Turn a question, an answer or passages into vectors.",
        EmbedOptions,
        {
            EdgeType.MESSAGES: EdgeType.VECTOR,
            EdgeType.ANSWER: EdgeType.VECTOR,
            EdgeType.CHUNKS: EdgeType.EMBEDDED_CHUNKS,
        },
        Placement.GPU,
        0.05,
        ports=(Port("input", (*_TEXT, EdgeType.CHUNKS)),),
        task="embed",
    ),
    NodeType(
        "index",
        "Store passages and vectors in a collection, replacing earlier passages of the same sources.",
        IndexOptions,
        EdgeType.INDEX_REPORT,
        Placement.CPU,
        0.2,
        ports=(Port("chunks", (EdgeType.EMBEDDED_CHUNKS,)),),
        pool="operator/index",
    ),
    NodeType(
        "retrieve",
        "Find the passages of a collection nearest to a question.",
        RetrieveOptions,
        EdgeType.HITS,
        Placement.CPU,
        0.05,
        ports=(Port("query", _TEXT), Port("vector", (EdgeType.VECTOR,), is_required=False)),
        pool="operator/retrieve",
    ),
    NodeType(
        "rerank",
        "Score passages against a question again and keep the best.",
        RerankOptions,
        EdgeType.HITS,
        Placement.GPU,
        0.2,
        ports=(Port("query", _TEXT), Port("hits", (EdgeType.HITS,))),
        task="rerank",
    ),
    NodeType(
        "prompt",
        "Write instructions, numbered passages and the question as messages.",
        PromptOptions,
        EdgeType.PROMPT,
        Placement.PLANNER,
        0.001,
        ports=(Port("question", _TEXT), Port("context", (EdgeType.HITS,), is_required=False)),
        extra_accepts=_TEXT,
    ),
    NodeType(
        "llm",
        "Generate an answer; streamed where it is the output.",
        LlmOptions,
        EdgeType.ANSWER,
        Placement.ENGINE,
        5.0,
        ports=(Port("prompt", (EdgeType.PROMPT, EdgeType.MESSAGES)),),
        task="generate",
        streams=True,
    ),
)

CATALOGUE: Final[Mapping[str, NodeType]] = {node_type.name: node_type for node_type in _TYPES}
"""Every node type by name."""
