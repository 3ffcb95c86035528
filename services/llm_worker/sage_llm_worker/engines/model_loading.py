"""Loading a Hugging Face model and all that comes with it. Needs torch."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from sage_core import ConfigurationError
from sage_llm_worker.engines.rolling_batch import RollingBatch, kv_bytes_per_token
from sage_llm_worker.engines.sampling import SamplingDefaults
from sage_llm_worker.formats import AUTO
from sage_llm_worker.prompts import PromptReader
from sage_llm_worker.vocabulary import Vocabulary
from sage_worker.device import device_name
from sage_worker.engine import Capacity

__all__ = ["LoadOptions", "LoadedModel", "load_model"]


@dataclass(frozen=True, slots=True)
class LoadOptions:
    """How to load a model. `dtype` is auto, float32, bfloat16 or float16; None means the default."""

    path: Path
    dtype: str = "auto"
    threads: int | None = None
    max_sequences: int = 16
    max_context: int | None = None
    tool_format: str = AUTO
    reasoning_format: str = AUTO


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model ready to generate. All but `vocabulary` is for the thread that loaded it."""

    batch: RollingBatch
    reader: PromptReader
    vocabulary: Vocabulary
    defaults: SamplingDefaults
    eos_ids: frozenset[int]
    vocab_size: int
    capacity: Capacity


def load_model(options: LoadOptions) -> LoadedModel:
    """Load in the calling thread. Raises ConfigurationError for a model that cannot be batched, or a loader's error."""
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    if options.threads is not None:
        # OpenMP keeps the number per thread, so it is set in the one that computes.
        torch.set_num_threads(options.threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    path = str(options.path)
    tokenizer = AutoTokenizer.from_pretrained(path)
    model = AutoModelForCausalLM.from_pretrained(path, dtype=_dtype(options.dtype, device))
    model = model.to(device).eval()
    defaults, eos_ids = _generation_defaults(model, tokenizer)
    vocab_size = model.get_input_embeddings().weight.shape[0]
    max_context = _max_context(model, tokenizer, options.max_context)
    fits = _cache_bytes(device) // max(1, kv_bytes_per_token(model))
    max_context = min(max_context, fits)
    kv_tokens = min(fits, options.max_sequences * max_context)
    return LoadedModel(
        batch=RollingBatch(
            model,
            max_sequences=options.max_sequences,
            kv_tokens=kv_tokens,
            pad_id=min(eos_ids, default=0),
        ),
        reader=PromptReader(
            tokenizer,
            vocab_size=vocab_size,
            tool_format=options.tool_format,
            reasoning_format=options.reasoning_format,
        ),
        vocabulary=Vocabulary(tokenizer, vocab_size=vocab_size, eos_ids=sorted(eos_ids)),
        defaults=defaults,
        eos_ids=eos_ids,
        vocab_size=vocab_size,
        capacity=Capacity(
            max_sequences=options.max_sequences,
            max_context=max_context,
            kv_tokens=kv_tokens,
            device=device_name(str(device)),
        ),
    )


def _dtype(name: str, device: torch.device) -> Any:
    if name != "auto":
        return getattr(torch, name)
    # Without AMX or native bfloat16, a CPU computes bfloat16 slower than float32.
    has_bfloat16 = getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    if device.type == "cpu" and not has_bfloat16():
        return torch.float32
    return "auto"


def _generation_defaults(model: Any, tokenizer: Any) -> tuple[SamplingDefaults, frozenset[int]]:
    config = model.generation_config
    eos = config.eos_token_id
    ids = set(eos if isinstance(eos, list) else [] if eos is None else [eos])
    if tokenizer.eos_token_id is not None:
        ids.add(tokenizer.eos_token_id)
    defaults = SamplingDefaults(
        temperature=1.0 if config.temperature is None else float(config.temperature),
        top_p=1.0 if config.top_p is None else float(config.top_p),
        # 50 is the library's own default, not the model's recommendation.
        top_k=0 if config.top_k in (None, 50) else int(config.top_k),
        min_p=float(config.min_p or 0.0),
        repetition_penalty=float(config.repetition_penalty or 1.0),
    )
    return defaults, frozenset(ids)


def _max_context(model: Any, tokenizer: Any, asked: int | None) -> int:
    config = model.config.get_text_config()
    limits = [
        limit
        for limit in (getattr(config, "max_position_embeddings", None), tokenizer.model_max_length)
        # Tokenizers without a limit say 10**30.
        if limit is not None and 0 < limit < 10**9
    ]
    own = min(limits, default=4096)
    if asked is not None and asked > own:
        raise ConfigurationError(f"llm_worker.max_context is {asked}; this model has {own}")
    return asked or own


def _cache_bytes(device: torch.device) -> int:
    """A quarter of RAM, or 80 % of the GPU memory that the weights left."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0] * 0.8)
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 4
