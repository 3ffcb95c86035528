"""Which sentences answer a question: by words (BM25) and, where vectors are at hand, by meaning. Pure."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from sage_llm_worker.reading import Reading, Sentence

__all__ = ["Ranking", "choose", "is_similar", "rank_sentences", "score_by_words", "words"]


@dataclass(frozen=True, slots=True)
class Ranking:
    """Sentences with their scores in 0 … 1, best first. What scores less than `minimum` is beside the point."""

    ranked: tuple[tuple[Sentence, float], ...]
    minimum: float


_WORD = re.compile(r"\w+")
_STOP_WORDS: Final = (
    "a an and any are as at be been but by can could did do does for from had has have how i if in into is it "
    "its me my no not of on or our shall should so than that the their them then there these they this those to "
    "was we were what when where which who whom whose why will with would you your"
)
_STOP: Final = frozenset(_STOP_WORDS.split())
_K1: Final = 1.2
_B: Final = 0.6
_TITLE_WEIGHT: Final = 0.25
_MEANING_WEIGHT: Final = 0.6
_ORDER_WEIGHT: Final = 0.06
# With all-MiniLM-L6-v2, questions about something else reach 0.12 at best, paraphrases without a common word 0.25.
_MIN_WITH_MEANING: Final = 0.18
_MIN_BY_WORDS: Final = 0.12
_MIN_OF_BEST: Final = 0.55


def words(text: str) -> list[str]:
    """Return the content words of `text`, lower case, with common English endings cut off."""
    return [_stem(word) for word in _WORD.findall(text.lower()) if word not in _STOP]


def score_by_words(reading: Reading, sentences: Sequence[Sentence]) -> list[float]:
    """Return BM25 of each sentence for the question, scaled to 0 … 1 of what a perfect match would get.

    A passage's title counts a little for each of its sentences. Robertson and Zaragoza, "The Probabilistic
    Relevance Framework: BM25 and Beyond", 2009, section 3.
    """
    question = list(dict.fromkeys(words(reading.question)))
    if not question or not sentences:
        return [0.0] * len(sentences)
    bags = [Counter(words(sentence.text)) for sentence in sentences]
    titles = [set(words(passage.title)) for passage in reading.passages]
    mean_length = sum(map(Counter.total, bags)) / len(bags) or 1.0
    weights = {}
    for word in question:
        containing = sum(word in bag for bag in bags)
        weights[word] = math.log(1 + (len(bags) - containing + 0.5) / (containing + 0.5))
    best = sum(weight * (_K1 + 1) / (1 + _K1 * 0.5) for weight in weights.values()) or 1.0
    scores = []
    for sentence, bag in zip(sentences, bags, strict=True):
        norm = _K1 * (1 - _B + _B * bag.total() / mean_length)
        score = 0.0
        for word in question:
            count = bag[word]
            if count:
                score += weights[word] * count * (_K1 + 1) / (count + norm)
            elif word in titles[sentence.passage]:
                score += _TITLE_WEIGHT * weights[word]
        scores.append(min(1.0, score / best))
    return scores


def rank_sentences(
    sentences: Sequence[Sentence],
    by_words: Sequence[float],
    similarities: NDArray[np.float32] | None,
) -> Ranking:
    """Mix words and meaning.

    `similarities`: cosine of each sentence with the question, shape (len(sentences),), or None where there are
    no vectors. Earlier passages win ties: whoever wrote the prompt put the better ones first.
    """
    ranked = []
    for index, sentence in enumerate(sentences):
        score = by_words[index]
        if similarities is not None:
            meaning = max(0.0, float(similarities[index]))
            score = _MEANING_WEIGHT * meaning + (1 - _MEANING_WEIGHT) * score
        if score > 0:
            score += _ORDER_WEIGHT / (1 + sentence.passage)
        ranked.append((sentence, min(1.0, score)))
    # Stable: equal scores stay in reading order.
    ranked.sort(key=lambda item: -item[1])
    return Ranking(tuple(ranked), _MIN_BY_WORDS if similarities is None else _MIN_WITH_MEANING)


def choose(ranking: Ranking, max_quotes: int) -> list[Sentence]:
    """Return up to `max_quotes` good and different sentences, best first; empty where nothing is relevant."""
    chosen: list[Sentence] = []
    best = ranking.ranked[0][1] if ranking.ranked else 0.0
    for sentence, score in ranking.ranked:
        if len(chosen) == max_quotes or score < max(ranking.minimum, _MIN_OF_BEST * best):
            break
        if not any(is_similar(sentence.text, other.text) for other in chosen):
            chosen.append(sentence)
    return chosen


def is_similar(one: str, other: str) -> bool:
    """Return True where two sentences say the same in nearly the same words."""
    first, second = set(words(one)), set(words(other))
    if not first or not second:
        return one == other
    return len(first & second) / min(len(first), len(second)) > 0.8


def _stem(word: str) -> str:
    """Cut what most often differs between question and text: install, installs, installed, installing."""
    for ending in ("ing", "ed", "es", "s"):
        if word.endswith(ending) and len(word) - len(ending) >= 3 and not word.endswith("ss"):
            word = word[: -len(ending)]
            break
    return word[:-1] if word.endswith("e") and len(word) > 4 else word
