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
    "Detokenize",
    "Detokenized",
    "Document",
    "Embed",
    "Generate",
    "Grammar",
    "Hit",
    "Image",
    "Index",
    "Indexed",
    "JsonObject",
    "JsonSchema",
    "OneOf",
    "Pattern",
    "Rerank",
    "Resume",
    "Retrieve",
    "Retrieved",
    "RunPipeline",
    "Sampling",
    "Split",
    "SplitChunks",
    "Structure",
    "TextPrompt",
    "TokenBias",
    "TokenPrompt",
    "Tokenize",
    "Tokenized",
    "ToolCall",
    "ToolDefinition",
    "Work",
]


class ToolDefinition(Message, frozen=True):
    """A function that the model may call. `parameters` is its JSON Schema as JSON text; empty: it takes none."""

    name: str
    description: str = ""
    parameters: str = ""


class ToolCall(Message, frozen=True):
    """A call that the model made in an earlier turn. `arguments` is what it wrote, JSON text as a rule."""

    id: str
    name: str
    arguments: str


class Image(Message, frozen=True):
    """An encoded image that stands before character `position` of its message's text. `media_type`: image/png …"""

    media_type: str
    data: bytes
    position: int = 0


class ChatMessage(Message, frozen=True):
    """One turn. `role` is system, developer, user, assistant or tool; `content` is plain text.

    Turns of an assistant may hold `tool_calls` and the `reasoning` before the answer; a tool's turn says which call
    it answers.
    """

    role: str
    content: str
    name: str | None = None
    tool_calls: list[ToolCall] = []
    tool_call_id: str | None = None
    reasoning: str | None = None
    images: list[Image] = []


class ChatPrompt(Message, frozen=True, tag="chat"):
    """Messages for the model's chat template, and the tools it should name.

    `template_arguments` is a JSON object as text: further variables of the template, e.g. `{"reasoning_effort":
    "low"}`. With `continues_last` the answer goes on in the last message, which is left open.
    """

    messages: list[ChatMessage]
    tools: list[ToolDefinition] = []
    template_arguments: str = ""
    continues_last: bool = False


class TextPrompt(Message, frozen=True, tag="text"):
    """Text that is tokenized as it stands."""

    text: str


class TokenPrompt(Message, frozen=True, tag="tokens"):
    """Token ids of the served model's tokenizer."""

    token_ids: list[int]


class TokenBias(Message, frozen=True):
    """What is added to one token's logit, -100 to 100."""

    token_id: int
    bias: float


class Sampling(Message, frozen=True):
    """Sampling parameters with OpenAI's names and ranges, and vLLM's beyond them; None means the model's default.

    `logprobs`: how many of the likeliest tokens come with each generated one, which comes with its own in any case;
    None: no log probabilities. `max_tokens` 0 generates nothing, which is of use with `Generate.echo`.
    """

    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    stop: list[str] = []
    seed: int | None = None
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    min_tokens: int = 0
    ignore_eos: bool = False
    stop_token_ids: list[int] = []
    logit_bias: list[TokenBias] = []
    logprobs: int | None = None


class JsonSchema(Message, frozen=True, tag="json_schema"):
    """The text is a JSON value that `schema`, JSON Schema as JSON text, allows."""

    schema: str


class JsonObject(Message, frozen=True, tag="json_object"):
    """The text is some JSON object."""


class Pattern(Message, frozen=True, tag="pattern"):
    """The text matches a regular expression as a whole."""

    regex: str


class OneOf(Message, frozen=True, tag="one_of"):
    """The text is one of these."""

    options: list[str]


class Grammar(Message, frozen=True, tag="grammar"):
    """The text is a sentence of a context-free grammar in EBNF (GBNF or Lark, as the engine's backend reads it)."""

    ebnf: str


Structure = JsonSchema | JsonObject | Pattern | OneOf | Grammar
"""What generated text must look like. Engines enforce it token by token; it is never asked for in words alone."""


class Resume(Message, frozen=True):
    """What an earlier attempt already delivered. The engine continues after it and never repeats it."""

    text: str = ""
    token_ids: list[int] = []
    num_tokens: int = 0


class Generate(Message, frozen=True, tag="generate"):
    """Generate text. Answered by `Tokens` events, then `Completed`.

    With `echo` the prompt's own text comes first, in `Tokens` with `is_prompt`, with its log probabilities where the
    sampling asks for them. Text may be held back for up to `gather_ms`, to travel in fewer pieces: for a reader that
    shows nothing before the end.
    """

    model: str
    prompt: ChatPrompt | TextPrompt | TokenPrompt
    sampling: Sampling = Sampling()
    resume: Resume | None = None
    structure: Structure | None = None
    echo: bool = False
    gather_ms: int = 0


class Tokenize(Message, frozen=True, tag="tokenize"):
    """Tokenize a prompt as `Generate` or `Embed` would. Answered by `Tokenized`.

    `adds_special_tokens` None: what the model's own way of reading such a prompt is.
    """

    model: str
    prompt: ChatPrompt | TextPrompt
    adds_special_tokens: bool | None = None
    with_strings: bool = False


class Tokenized(Message, frozen=True):
    """The value of `Tokenize`'s `Output`. `strings` are the vocabulary's own spellings, where asked for."""

    token_ids: list[int]
    strings: list[str] = []


class Detokenize(Message, frozen=True, tag="detokenize"):
    """Turn token ids into text, special tokens included. Answered by `Detokenized`."""

    model: str
    token_ids: list[int]


class Detokenized(Message, frozen=True):
    """The value of `Detokenize`'s `Output`."""

    text: str


class Embed(Message, frozen=True, tag="embed"):
    """Embed texts. Answered by `Vectors` events in order of `offset`, then `Completed`.

    Either `texts` or `token_ids` is given; the latter are ids of the served model's tokenizer, special tokens
    included, one list per text.
    """

    model: str
    texts: list[str] = []
    dimensions: int | None = None
    token_ids: list[list[int]] = []


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


Work = Generate | Tokenize | Detokenize | Embed | Rerank | Split | Index | Retrieve | RunPipeline
"""Everything a worker can be asked to do."""
