"""`POST /v1/embeddings`: texts or token ids in, vectors out."""

from __future__ import annotations

import binascii
from collections.abc import Sequence
from typing import Annotated, Final, Literal

import msgspec
import numpy as np
from msgspec import Meta

from sage_core import Internal
from sage_gateway.decoding import BodyDecoder, Unsupported
from sage_gateway.operation import Asked, Planned
from sage_gateway.operations.fields import Count, ModelName, TokenId
from sage_gateway.operations.refusal import too_many, wrong
from sage_gateway.operations.serving import find_served
from sage_gateway.operations.token_counts import PromptUsageBody
from sage_telemetry import semconv
from sage_wire.messages import Completed, Embed, Event, ServedModel, Usage, Vectors

__all__ = ["MAX_INPUTS", "EmbeddingBody", "EmbeddingOperation", "Embeddings", "VectorGatherer"]

MAX_INPUTS: Final = 2_048
_MAX_DIMENSIONS: Final = 65_536
_FLOAT_BYTES: Final = 4

_encode = msgspec.json.Encoder().encode


_Text = Annotated[str, Meta(min_length=1)]
_TokenIds = Annotated[list[TokenId], Meta(min_length=1)]


class EmbeddingBody(msgspec.Struct, frozen=True, kw_only=True):
    """`input` is text, token ids, or a list of either."""

    model: ModelName
    input: _Text | Annotated[list[_Text | TokenId | _TokenIds], Meta(min_length=1)]
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Count | None = None
    user: str | None = None


EMBEDDING_DECODER: Final = BodyDecoder(
    EmbeddingBody,
    unsupported={
        "messages": Unsupported("is not supported for embeddings; send the text as input"),
        "truncate_prompt_tokens": Unsupported("inputs are never cut; send what fits"),
        "normalize": Unsupported("vectors always have length 1", (b"true",)),
        "embed_dtype": Unsupported("is not supported; vectors are float32", (b'"float32"',)),
        "endianness": Unsupported("is not supported; base64 is little-endian", (b'"native"', b'"little"')),
    },
)


class EmbeddingObject(msgspec.Struct, frozen=True):
    """One vector, as numbers or as base64 of little-endian float32."""

    index: int
    embedding: list[float] | str
    object: str = "embedding"


class Embeddings(msgspec.Struct, frozen=True):
    """`POST /v1/embeddings` answers this."""

    data: list[EmbeddingObject]
    model: str
    usage: PromptUsageBody
    object: str = "list"


class EmbeddingOperation:
    """Implements `operation.Operation`."""

    def plan(self, payload: bytes, asked: Asked) -> Planned:
        """See Operation."""
        decoded = EMBEDDING_DECODER.decode(payload)
        body = decoded.body
        served = find_served(asked, body.model, ("embed",))
        texts, token_ids = _inputs(body.input)
        _check_dimensions(body.dimensions, served)
        work = Embed(model=served.name, texts=texts, dimensions=body.dimensions, token_ids=token_ids)
        answer = _EmbeddingAnswer(
            served.name, len(texts) + len(token_ids), is_base64=body.encoding_format == "base64"
        )
        return Planned(semconv.OPERATION_EMBEDDINGS, served, [work], answer, num_ignored=decoded.num_ignored)


class VectorGatherer:
    """Takes the vectors of one `Embed` work. Implements the gathering half of `operation.Answer`."""

    is_streamed = False

    def __init__(self, num_inputs: int) -> None:
        self._num_inputs = num_inputs
        self._batches: list[Vectors] = []
        self.usage = Usage()
        self.finish_reasons: list[str] = []

    def add(self, index: int, events: Sequence[Event]) -> bytes:
        """See Answer."""
        del index
        for event in events:
            if type(event) is Vectors:
                self._batches.append(event)
            elif type(event) is Completed:
                self.usage = event.usage
            else:
                raise Internal(f"the worker sent {type(event).__name__} for embeddings")
        return b""

    def _ordered(self) -> list[Vectors]:
        """Return batches that cover exactly the inputs, in their order. Raises Internal where there are none such."""
        num_rows = 0
        ordered = sorted(self._batches, key=lambda batch: batch.offset)
        for batch in ordered:
            row_bytes = batch.dim * _FLOAT_BYTES
            if batch.offset != num_rows or row_bytes <= 0 or len(batch.data) % row_bytes:
                raise Internal("the embedding worker returned vectors that do not fit the inputs")
            num_rows += len(batch.data) // row_bytes
        if num_rows != self._num_inputs:
            raise Internal(f"the embedding worker returned {num_rows} vectors for {self._num_inputs} inputs")
        return ordered


class _EmbeddingAnswer(VectorGatherer):
    def __init__(self, model: str, num_inputs: int, *, is_base64: bool) -> None:
        super().__init__(num_inputs)
        self._model = model
        self._is_base64 = is_base64

    def end(self) -> bytes:
        """See Answer."""
        rows: list[list[float] | str] = []
        for batch in self._ordered():
            if self._is_base64:
                data, row_bytes = memoryview(batch.data), batch.dim * _FLOAT_BYTES
                rows += [
                    binascii.b2a_base64(data[start : start + row_bytes], newline=False).decode("ascii")
                    for start in range(0, len(data), row_bytes)
                ]
            else:
                rows += np.frombuffer(batch.data, dtype="<f4").reshape(-1, batch.dim).tolist()
        shown = [EmbeddingObject(index, row) for index, row in enumerate(rows)]
        num_tokens = self.usage.prompt_tokens
        return _encode(Embeddings(shown, self._model, PromptUsageBody(num_tokens, num_tokens)))


def _inputs(given: str | list[str | int | list[int]]) -> tuple[list[str], list[list[int]]]:
    """Return texts or lists of token ids; one of them is empty."""
    if isinstance(given, str):
        return [given], []
    numbers = [item for item in given if isinstance(item, int)]
    if len(numbers) == len(given):
        return [], [numbers]
    if len(given) > MAX_INPUTS:
        raise too_many("input", len(given), MAX_INPUTS, "inputs")
    texts: list[str] = []
    token_ids: list[list[int]] = []
    for item in given:
        if isinstance(item, str):
            texts.append(item)
        elif isinstance(item, list):
            token_ids.append(item)
    if numbers or (texts and token_ids):
        raise wrong("input", "mixes token ids and texts; expected one kind")
    return texts, token_ids


def _check_dimensions(dimensions: int | None, served: ServedModel) -> None:
    limit = served.dim or _MAX_DIMENSIONS
    if dimensions is not None and dimensions > limit:
        raise wrong("dimensions", f"found {dimensions}; {served.name} has {limit}")
