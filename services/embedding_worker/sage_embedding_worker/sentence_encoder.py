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
from sage_embedding_worker.encoder import Floats
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


class SentenceEncoder:
    """A bi-encoder. Loads in its constructor, which may download; raises ConfigurationError saying what to do."""

    def __init__(self, spec: ModelSpec, compute: Compute) -> None:
        from sentence_transformers import SentenceTransformer

        self.name = spec.name
        _prepare(compute)
        self._model: Any = _load(spec, lambda path: SentenceTransformer(path, device=compute.device), compute)
        self.max_tokens: int = _limit(self._model)
        # Cutting off reconfigures the shared tokenizer; used from two threads it raises "Already borrowed".
        self._counter: Any = copy.deepcopy(self._model.tokenizer)
        self.dim: int = int(self._model.get_embedding_dimension())

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """See `Encoder`."""
        return _count(self._counter, list(texts))

    def embed(self, texts: Sequence[str]) -> Floats:
        """See `Encoder`."""
        vectors = self._model.encode(list(texts), batch_size=max(1, len(texts)), show_progress_bar=False)
        return normalise(np.asarray(vectors).reshape(len(texts), self.dim))


class SentenceCrossEncoder:
    """A reranker with one output. Loads like `SentenceEncoder`."""

    def __init__(self, spec: ModelSpec, compute: Compute) -> None:
        from sentence_transformers import CrossEncoder

        self.name = spec.name
        _prepare(compute)
        self._model: Any = _load(spec, lambda path: CrossEncoder(path, device=compute.device), compute)
        self.max_tokens: int = _limit(self._model)
        self._counter: Any = copy.deepcopy(self._model.tokenizer)
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
