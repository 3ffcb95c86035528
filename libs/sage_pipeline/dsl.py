"""Pipelines in Python: `pipeline("rag-docs", chat() >> embed() >> retrieve("docs") >> prompt() >> llm())`.

In a chain each port takes the nearest earlier node that yields what it accepts, as in YAML. A node that is given
inputs names all of them: `hits = retrieve("docs", query=question, vector=vector)`. Everything goes through
`build`, so both faces have the same checks and messages.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from sage_pipeline.build import build
from sage_pipeline.graph import Parameter, Pipeline
from sage_pipeline.nodes import AUTO

__all__ = [
    "Chain",
    "NodeSpec",
    "chat",
    "documents",
    "embed",
    "index",
    "llm",
    "parameter",
    "pipeline",
    "prompt",
    "rerank",
    "retrieve",
    "split",
]


@dataclass(frozen=True, slots=True, eq=False)
class Chain:
    """Nodes in order; as an input it stands for its last node."""

    nodes: tuple[NodeSpec, ...]

    def __rshift__(self, other: Chain) -> Chain:
        return Chain(self.nodes + other.nodes)


@dataclass(frozen=True, slots=True, eq=False, init=False)
class NodeSpec(Chain):
    """One node, not yet checked. Compared by identity: the same object is the same node."""

    type: str
    id: str
    options: Mapping[str, object]
    inputs: Mapping[str, Chain] | None

    def __init__(
        self, type_name: str, node_id: str | None, inputs: Mapping[str, Chain | None], **options: object
    ) -> None:
        given = {port: source for port, source in inputs.items() if source is not None}
        object.__setattr__(self, "nodes", (self,))
        object.__setattr__(self, "type", type_name)
        object.__setattr__(self, "id", node_id or type_name)
        object.__setattr__(self, "options", options)
        object.__setattr__(self, "inputs", given or None)


Text = str | Parameter
Number = int | Parameter


def parameter(name: str, default: str, description: str = "") -> Parameter:
    """Declare a value that one run may replace; give it in place of an option."""
    return Parameter(name, default, description)


def chat(*, id: str | None = None) -> NodeSpec:
    """Start from the messages of the run."""
    return NodeSpec("chat", id, {})


def documents(*, id: str | None = None) -> NodeSpec:
    """Start from the documents of the run."""
    return NodeSpec("documents", id, {})


def split(
    documents: Chain | None = None,
    *,
    chunk_chars: Number = 1000,
    overlap_chars: Number = 150,
    id: str | None = None,
) -> NodeSpec:
    """Cut documents into passages of about `chunk_chars` characters."""
    return NodeSpec(
        "split", id, {"documents": documents}, chunk_chars=chunk_chars, overlap_chars=overlap_chars
    )


def embed(
    input: Chain | None = None, *, model: Text = AUTO, batch: Number = 64, id: str | None = None
) -> NodeSpec:
    """Turn a question, an answer or passages into vectors, `batch` texts per request."""
    return NodeSpec("embed", id, {"input": input}, model=model, batch=batch)


def index(collection: Text, chunks: Chain | None = None, *, id: str | None = None) -> NodeSpec:
    """Store embedded passages in `collection`, replacing earlier passages of the same sources."""
    return NodeSpec("index", id, {"chunks": chunks}, collection=collection)


def retrieve(
    collection: Text,
    *,
    query: Chain | None = None,
    vector: Chain | None = None,
    top_k: Number = 8,
    mode: Text = "hybrid",
    id: str | None = None,
) -> NodeSpec:
    """Find the `top_k` passages of `collection` nearest to a question; `mode` is hybrid, dense or sparse."""
    return NodeSpec(
        "retrieve", id, {"query": query, "vector": vector}, collection=collection, top_k=top_k, mode=mode
    )


def rerank(
    *,
    query: Chain | None = None,
    hits: Chain | None = None,
    model: Text = AUTO,
    top_k: Number = 5,
    id: str | None = None,
) -> NodeSpec:
    """Score passages against a question again and keep the best `top_k`."""
    return NodeSpec("rerank", id, {"query": query, "hits": hits}, model=model, top_k=top_k)


def prompt(
    *,
    question: Chain | None = None,
    context: Chain | None = None,
    instructions: Text | None = None,
    template: Text = "{{question}}",
    max_context_chars: Number = 12_000,
    history: Number = 0,
    id: str | None = None,
    slots: Mapping[str, Chain] | None = None,
) -> NodeSpec:
    """Write instructions, numbered passages and the question as messages; `slots` fill names in the templates."""
    return NodeSpec(
        "prompt",
        id,
        {"question": question, "context": context, **(slots or {})},
        instructions=instructions,
        template=template,
        max_context_chars=max_context_chars,
        history=history,
    )


def llm(
    prompt: Chain | None = None,
    *,
    model: Text = AUTO,
    max_tokens: Number | None = None,
    temperature: float | Parameter | None = None,
    top_p: float | Parameter | None = None,
    seed: Number | None = None,
    stop: list[str] | None = None,
    id: str | None = None,
) -> NodeSpec:
    """Generate an answer; streamed where it is the output."""
    return NodeSpec(
        "llm",
        id,
        {"prompt": prompt},
        model=model,
        max_tokens=max_tokens,
        temperature=temperature,
        top_p=top_p,
        seed=seed,
        stop=stop or [],
    )


def pipeline(name: str, last: Chain, *, description: str = "") -> Pipeline:
    """Check the graph that ends in `last` and return it. Raises PipelineError like the YAML reader."""
    nodes: list[NodeSpec] = []
    for node in last.nodes:
        _collect(node, nodes)
    parameters: dict[str, Parameter] = {}
    listed = [_node_data(node, parameters) for node in nodes]
    data: dict[str, object] = {"name": name, "description": description, "nodes": listed}
    data["parameters"] = {
        found.name: {"default": found.default, "description": found.description}
        for found in parameters.values()
    }
    return build(data | {"output": last.nodes[-1].id})


def _collect(node: NodeSpec, nodes: list[NodeSpec]) -> None:
    if node in nodes:
        return
    for source in (node.inputs or {}).values():
        for earlier in source.nodes:
            _collect(earlier, nodes)
    nodes.append(node)


def _node_data(node: NodeSpec, parameters: dict[str, Parameter]) -> dict[str, object]:
    data: dict[str, object] = {"id": node.id, "type": node.type}
    for name, value in node.options.items():
        if isinstance(value, Parameter):
            parameters.setdefault(value.name, value)
            data[name] = f"${{{value.name}}}"
        elif value is not None:
            data[name] = value
    if node.inputs is not None:
        data["inputs"] = {port: source.nodes[-1].id for port, source in node.inputs.items()}
    return data
