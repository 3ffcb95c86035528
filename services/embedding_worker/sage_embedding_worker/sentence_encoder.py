"""The only module that touches sentence-transformers and torch: models loaded from a folder or the hub."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from sage_core import ConfigurationError
from sage_embedding_worker.encoder import Floats, Text
from sage_embedding_worker.locations import ModelSpec, locate
from sage_embedding_worker.vectors import normalise

__all__ = ["Compute", "SentenceCrossEncoder", "SentenceEncoder", "has_native_bfloat16"]

T = TypeVar("T")

_CPU_FLAGS = ("amx_bf16", "avx512_bf16", "bf16")


@dataclass(frozen=True, slots=True)
class Compute:
    """How models run. `dtype` is auto, float32 or bfloat16; `threads` 0 means every CPU of the process."""

    device: str = "cpu"
    dtype: str = "auto"
    threads: int = 0

    def resolved_dtype(self) -> str:
        """Return float32 or bfloat16: on a CPU, bfloat16 is about 3x faster with native units, slower without."""
        if self.dtype != "auto":
            return self.dtype
        return "bfloat16" if self.device == "cpu" and has_native_bfloat16() else "float32"


def has_native_bfloat16(cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    """Return True where the CPU multiplies bfloat16 matrices itself (AMX, AVX-512 BF16, Arm BF16)."""
    try:
        text = cpuinfo.read_text("ascii", "replace")
    except OSError:
        return False
    for line in text.splitlines():
        key, _, flags = line.partition(":")
        if key.strip() in ("flags", "Features"):
            return any(flag in flags.split() for flag in _CPU_FLAGS)
    return False


class _Tokenizes:
    """See `TextTokenizer`, with a copy of a Hugging Face tokenizer."""

    def __init__(self, tokenizer: Any) -> None:
        # Cutting off reconfigures the shared tokenizer; used from two threads it raises "Already borrowed".
        self._counter: Any = copy.deepcopy(tokenizer)
        self.vocab_size: int = len(self._counter)

    def tokenize(self, text: str, *, adds_special_tokens: bool) -> list[int]:
        """See `TextTokenizer`."""
        encoded = self._counter(text, add_special_tokens=adds_special_tokens, truncation=False, verbose=False)
        return list(encoded["input_ids"])

    def strings(self, token_ids: Sequence[int]) -> list[str]:
        """See `TextTokenizer`."""
        return [token or "" for token in self._counter.convert_ids_to_tokens(list(token_ids))]

    def detokenize(self, token_ids: Sequence[int]) -> str:
        """See `TextTokenizer`."""
        return str(self._counter.decode(list(token_ids), skip_special_tokens=False))


class SentenceEncoder(_Tokenizes):
    """A bi-encoder. Loads in its constructor, which may download; raises ConfigurationError saying what to do."""

    def __init__(self, spec: ModelSpec, compute: Compute) -> None:
        from sentence_transformers import SentenceTransformer

        self.name = spec.name
        _prepare(compute)
        self._model: Any = _load(spec, lambda path: SentenceTransformer(path, device=compute.device), compute)
        self.max_tokens: int = _limit(self._model)
        super().__init__(self._model.tokenizer)
        self.dim: int = int(self._model.get_embedding_dimension())

    def count_tokens(self, texts: Sequence[Text]) -> list[int]:
        """See `Encoder`."""
        plain = iter(_count(self._counter, [text for text in texts if isinstance(text, str)]))
        return [next(plain) if isinstance(text, str) else len(text) for text in texts]

    def embed(self, texts: Sequence[Text]) -> Floats:
        """See `Encoder`."""
        vectors = np.empty((len(texts), self.dim), dtype=np.float32)
        plain = [place for place, text in enumerate(texts) if isinstance(text, str)]
        if plain:
            encoded = self._model.encode(
                [texts[place] for place in plain], batch_size=len(plain), show_progress_bar=False
            )
            vectors[plain] = np.asarray(encoded)
        given = [(place, text) for place, text in enumerate(texts) if not isinstance(text, str)]
        if given:
            vectors[[place for place, _ in given]] = self._embed_ids([text for _, text in given])
        return normalise(vectors)

    def _embed_ids(self, texts: Sequence[tuple[int, ...]]) -> Floats:
        """Embed ids as they are. What `encode` would put before a text is the caller's to add."""
        import torch

        padded = self._model.tokenizer.pad(
            {"input_ids": [list(ids[: self.max_tokens]) for ids in texts]}, return_tensors="pt"
        )
        features = {name: tensor.to(self._model.device) for name, tensor in padded.items()}
        with torch.inference_mode():
            vectors = self._model(features)["sentence_embedding"]
        found: Floats = vectors.float().cpu().numpy()
        return found


class SentenceCrossEncoder(_Tokenizes):
    """A reranker with one output. Loads like `SentenceEncoder`."""

    def __init__(self, spec: ModelSpec, compute: Compute) -> None:
        from sentence_transformers import CrossEncoder

        self.name = spec.name
        _prepare(compute)
        self._model: Any = _load(spec, lambda path: CrossEncoder(path, device=compute.device), compute)
        self.max_tokens: int = _limit(self._model)
        super().__init__(self._model.tokenizer)
        if self._model.num_labels != 1:
            raise ConfigurationError(
                f"reranker {spec.name!r} has {self._model.num_labels} outputs; expected a cross-encoder with one"
            )

    def count_tokens(self, pairs: Sequence[tuple[str, str]]) -> list[int]:
        """See `CrossEncoder`."""
        return _count(self._counter, [query for query, _ in pairs], [document for _, document in pairs])

    def score(self, pairs: Sequence[tuple[str, str]]) -> Floats:
        """See `CrossEncoder`."""
        scores = self._model.predict(list(pairs), batch_size=max(1, len(pairs)), show_progress_bar=False)
        return np.asarray(scores, dtype=np.float32).reshape(len(pairs))


def _prepare(compute: Compute) -> None:
    """Set torch's threads in the thread that will compute, and keep its libraries off standard error."""
    import torch
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    torch.set_num_threads(compute.threads or len(os.sched_getaffinity(0)))


def _load(spec: ModelSpec, load: Callable[[str], T], compute: Compute) -> T:
    import torch

    path = locate(spec)
    try:
        model = load(path)
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ConfigurationError(
            f"model {spec.name!r} cannot be loaded from {path!r}: {reason}; give a folder with NAME=FOLDER, or a hub "
            f"name where there is internet"
        ) from error
    if compute.resolved_dtype() == "bfloat16":
        model.to(torch.bfloat16)  # type: ignore[attr-defined]
    return model


def _limit(model: Any) -> int:
    """Models without a stated limit get 512, what their position tables hold at least."""
    limit = getattr(model, "max_seq_length", None) or getattr(model, "max_length", None)
    return int(limit) if limit else 512


def _count(tokenizer: Any, *columns: list[str]) -> list[int]:
    if not columns[0]:
        return []
    encoded = tokenizer(
        *columns, truncation=False, padding=False, return_attention_mask=False, return_token_type_ids=False,
        verbose=False,
    )  # fmt: skip
    return [len(ids) for ids in encoded["input_ids"]]
