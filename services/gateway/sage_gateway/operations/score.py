"""`POST /score` and `/v1/score`: how well pairs of texts fit, in vLLM's form.

https://docs.vllm.ai/en/latest/serving/openai_compatible_server.html#score-api
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Final

import msgspec
import numpy as np
from msgspec import Meta

from sage_gateway.decoding import BodyDecoder, Unsupported
from sage_gateway.operation import Asked, Planned
from sage_gateway.operations.embedding import VectorGatherer
from sage_gateway.operations.fields import ModelName
from sage_gateway.operations.refusal import missing, too_many, wrong
from sage_gateway.operations.rerank import MAX_DOCUMENTS, ScoreGatherer
from sage_gateway.operations.serving import find_served
from sage_gateway.operations.token_counts import PromptUsageBody
from sage_wire.messages import Embed, Rerank, Work

__all__ = ["MAX_QUERIES", "ScoreBody", "ScoreOperation", "Scored"]

MAX_QUERIES: Final = 256
"""Different first texts: each is one work."""

_encode = msgspec.json.Encoder().encode
_Texts = str | Annotated[list[str], Meta(min_length=1, max_length=MAX_DOCUMENTS)]
_PAIRS: Final = (("text_1", "text_2"), ("queries", "documents"), ("queries", "items"), ("data_1", "data_2"))


class ScoreBody(msgspec.Struct, frozen=True, kw_only=True):
    """Two texts, one text and a list, or two lists of one length; their fields have had several names."""

    model: ModelName
    text_1: _Texts | None = None
    text_2: _Texts | None = None
    queries: _Texts | None = None
    documents: _Texts | None = None
    items: _Texts | None = None
    data_1: _Texts | None = None
    data_2: _Texts | None = None
    user: str | None = None


SCORE_DECODER: Final = BodyDecoder(
    ScoreBody,
    unsupported={"truncate_prompt_tokens": Unsupported("is not supported: texts are cut to what fits")},
)


class ScoreObject(msgspec.Struct, frozen=True):
    """The score of one pair."""

    index: int
    score: float
    object: str = "score"


class Scored(msgspec.Struct, frozen=True):
    """`POST /score` answers this, in the order of the pairs."""

    id: str
    created: int
    model: str
    data: list[ScoreObject]
    usage: PromptUsageBody
    object: str = "list"


class ScoreOperation:
    """Implements `operation.Operation`. Rerankers score pairs; of embedding models it is the cosine."""

    def plan(self, payload: bytes, asked: Asked) -> Planned:
        """See Operation."""
        decoded = SCORE_DECODER.decode(payload)
        body = decoded.body
        served = find_served(asked, body.model, ("rerank", "embed"))
        pairs = _pairs(body)
        if served.task == "embed":
            texts = list(dict.fromkeys(text for pair in pairs for text in pair))
            if "" in texts:
                raise wrong("text_1", "an empty text has no embedding")
            works: list[Work] = [Embed(model=served.name, texts=texts)]
            places = {text: index for index, text in enumerate(texts)}
            answer: _CosineAnswer | _ScoreAnswer = _CosineAnswer(
                asked, served.name, len(texts), [(places[first], places[second]) for first, second in pairs]
            )
        else:
            grouped: dict[str, list[int]] = {}
            for index, (query, _) in enumerate(pairs):
                grouped.setdefault(query, []).append(index)
            if len(grouped) > MAX_QUERIES:
                raise too_many("text_1", len(grouped), MAX_QUERIES, "different texts")
            works = [
                Rerank(model=served.name, query=query, documents=[pairs[index][1] for index in indexes])
                for query, indexes in grouped.items()
            ]
            answer = _ScoreAnswer(asked, served.name, list(grouped.values()))
        return Planned("score", served, works, answer, num_ignored=decoded.num_ignored)


class _ScoreAnswer(ScoreGatherer):
    """`groups`: for each work, which pairs it scores."""

    def __init__(self, asked: Asked, model: str, groups: list[list[int]]) -> None:
        super().__init__([len(group) for group in groups])
        self._asked, self._model, self._groups = asked, model, groups

    def end(self) -> bytes:
        """See Answer."""
        by_pair = {
            pair: score
            for group, scores in zip(self._groups, self._all_scores(), strict=True)
            for pair, score in zip(group, scores, strict=True)
        }
        scores = [by_pair[pair] for pair in range(len(by_pair))]
        return _body(self._asked, self._model, scores, self.usage.prompt_tokens)


class _CosineAnswer(VectorGatherer):
    """`pairs`: of indexes into the texts."""

    def __init__(self, asked: Asked, model: str, num_texts: int, pairs: list[tuple[int, int]]) -> None:
        super().__init__(num_texts)
        self._asked, self._model, self._pairs = asked, model, pairs

    def end(self) -> bytes:
        """See Answer. Vectors have length 1, so their product is the cosine."""
        vectors = np.concatenate(
            [np.frombuffer(batch.data, dtype="<f4").reshape(-1, batch.dim) for batch in self._ordered()]
        )
        first, second = np.array(self._pairs).T
        scores: list[float] = np.einsum("ij,ij->i", vectors[first], vectors[second]).tolist()
        return _body(self._asked, self._model, scores, self.usage.prompt_tokens)


def _body(asked: Asked, model: str, scores: Sequence[float], num_tokens: int) -> bytes:
    shown = [ScoreObject(index, score) for index, score in enumerate(scores)]
    usage = PromptUsageBody(num_tokens, num_tokens)
    return _encode(Scored(asked.request_id, asked.created, model, shown, usage))


def _pairs(body: ScoreBody) -> list[tuple[str, str]]:
    """Return the pairs. Raises BadRequest where the two sides do not fit."""
    halves = ["text_1"]
    for one, two in _PAIRS:
        first, second = getattr(body, one), getattr(body, two)
        if first is not None and second is not None:
            return _paired(_listed(first), _listed(second), two)
        if first is not None or second is not None:
            halves.append(one if first is None else two)
    # Of a half pair with several names, the first is named.
    raise missing(halves[min(1, len(halves) - 1)])


def _paired(first: list[str], second: list[str], param: str) -> list[tuple[str, str]]:
    if len(first) == 1:
        return [(first[0], text) for text in second]
    if len(first) != len(second):
        raise wrong(
            param, f"found {len(second)} texts for {len(first)}; expected as many, or one before many"
        )
    return list(zip(first, second, strict=True))


def _listed(texts: str | list[str]) -> list[str]:
    return [texts] if isinstance(texts, str) else texts
