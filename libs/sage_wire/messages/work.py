"""What can be asked of a pool: the closed set of work, and what each kind returns.

A pool is named by what is asked for: a model (`all-MiniLM-L6-v2`), an operator type (`operator/retrieve`)
or a pipeline (`pipeline/rag-docs`). Workers of every kind take the same `Dispatch` around one of these.
"""

from __future__ import annotations

from sage_wire.messages.base import Message

__all__ = [
    "ChatMessage",
    "ChatPrompt",
    "Chunk",
    "Document",
    "Embed",
    "Generate",
    "Hit",
    "Index",
    "Indexed",
    "Rerank",
    "Resume",
    "Retrieve",
    "Retrieved",
    "RunPipeline",
    "Sampling",
    "Split",
    "SplitChunks",
    "TextPrompt",
    "TokenPrompt",
    "Work",
]


class ChatMessage(Message, frozen=True):
    """One turn. `role` is system, developer, user, assistant or tool; `content` is plain text."""

    role: str
    content: str
    name: str | None = None


class ChatPrompt(Message, frozen=True, tag="chat"):
    """Messages for the model's chat template."""

    messages: list[ChatMessage]


class TextPrompt(Message, frozen=True, tag="text"):
    """Text that is tokenized as it stands."""

    text: str


class TokenPrompt(Message, frozen=True, tag="tokens"):
    """Token ids of the served model's tokenizer."""

    token_ids: list[int]


class Sampling(Message, frozen=True):
    """Sampling parameters with OpenAI's names and ranges; None means the model's default."""

    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    stop: list[str] = []
    seed: int | None = None
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0


class Resume(Message, frozen=True):
    """What an earlier attempt already delivered. The engine continues after it and never repeats it."""

    text: str = ""
    token_ids: list[int] = []
    num_tokens: int = 0


class Generate(Message, frozen=True, tag="generate"):
    """Generate text. Answered by `Tokens` events, then `Completed`."""

    model: str
    prompt: ChatPrompt | TextPrompt | TokenPrompt
    sampling: Sampling = Sampling()
    resume: Resume | None = None


class Embed(Message, frozen=True, tag="embed"):
    """Embed texts. Answered by `Vectors` events in order of `offset`, then `Completed`."""

    model: str
    texts: list[str]
    dimensions: int | None = None


class Rerank(Message, frozen=True, tag="rerank"):
    """Score documents against a query. Answered by one `Scores` event, then `Completed`."""

    model: str
    query: str
    documents: list[str]


class Document(Message, frozen=True):
    """One source document. `source` is what a reader is shown (a path or URL) and is unique in a collection."""

    source: str
    text: str
    title: str | None = None


class Chunk(Message, frozen=True):
    """A passage of a document. `position` counts passages of one source from 0."""

    source: str
    position: int
    text: str
    title: str | None = None


class Hit(Message, frozen=True):
    """A retrieved passage; higher `score` is better, comparable within one answer only."""

    source: str
    position: int
    text: str
    score: float
    title: str | None = None


class Split(Message, frozen=True, tag="split"):
    """Cut documents into passages of about `chunk_chars` with `overlap_chars` shared. Answered by `SplitChunks`."""

    documents: list[Document]
    chunk_chars: int = 1000
    overlap_chars: int = 150


class SplitChunks(Message, frozen=True):
    """The value of `Split`'s `Output`."""

    chunks: list[Chunk]


class Index(Message, frozen=True, tag="index"):
    """Store passages and their vectors, replacing all earlier passages of the same sources (idempotent).

    `vectors`: little-endian float32, shape (len(chunks), dim), L2-normalised, row-major. All passages of
    `removed_sources` go in the same change; unknown sources are ignored. Answered by `Indexed`.
    """

    collection: str
    embedding_model: str
    dim: int
    chunks: list[Chunk]
    vectors: bytes
    removed_sources: list[str] = []


class Indexed(Message, frozen=True):
    """The value of `Index`'s `Output`: what the collection now holds."""

    num_chunks: int
    num_sources: int


class Retrieve(Message, frozen=True, tag="retrieve"):
    """Find the passages nearest to a query by vector and by words. Answered by `Retrieved`.

    `vector`: little-endian float32, shape (dim,), L2-normalised. `mode` is hybrid, dense or sparse.
    """

    collection: str
    query: str
    vector: bytes
    top_k: int = 5
    mode: str = "hybrid"


class Retrieved(Message, frozen=True):
    """The value of `Retrieve`'s `Output`, best first."""

    hits: list[Hit]


class RunPipeline(Message, frozen=True, tag="run_pipeline"):
    """Run a declared pipeline. Exactly one input is given, of the type that the pipeline's source declares.

    A pipeline of documents may get `removed_sources` with them or instead of them: its index node removes all
    passages of those sources that the documents do not bring anew; unknown ones are ignored.

    Answered by the events of its streamed sink: `Tokens` for generated text, `Annotated` for sources and
    stage times, `Output` for other values, then `Completed`. `parameters` overrides the defaults of parameters
    that the pipeline declares.
    """

    pipeline: str
    messages: list[ChatMessage] = []
    documents: list[Document] = []
    sampling: Sampling = Sampling()
    parameters: dict[str, str] = {}
    removed_sources: list[str] = []


Work = Generate | Embed | Rerank | Split | Index | Retrieve | RunPipeline
"""Everything a worker can be asked to do."""
