"""`[llm_worker]` of the settings file."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from sage_core import ByteSize, Duration, ServiceSettings
from sage_core.settings import Section

__all__ = [
    "EmulatedSection",
    "ExtractiveSection",
    "LlmWorkerSection",
    "LlmWorkerSettings",
    "VllmSection",
]


class EmulatedSection(Section):
    """`[llm_worker.emulated]`: the engine without weights."""

    profile: str = Field("zero", description="Step-time profile; `zero` never waits.")
    profiles_file: Path | None = Field(
        None, description="TOML file of profiles; unset: all files of configs/engines."
    )
    default_tokens: int = Field(128, ge=1, description="Tokens generated where the request sets no limit.")
    noise_sigma: float = Field(
        0.0, ge=0, le=1, description="Spread of step times: sigma of a log-normal factor with mean 1."
    )


class ExtractiveSection(Section):
    """`[llm_worker.extractive]`: the reader that quotes instead of generating."""

    embedding_model: str = Field(
        "all-MiniLM-L6-v2", description="Pool that ranks sentences; an empty name ranks by words alone."
    )
    embed_budget: Duration = Field(2.0, description="How long ranking may wait for the embedding pool.")
    max_quotes: int = Field(3, ge=1, le=20, description="Quotations in one answer.")


class VllmSection(Section):
    """`[llm_worker.vllm]`: passed to vLLM; unset values are vLLM's own defaults, or ours on CPU hosts."""

    kv_cache_bytes: ByteSize | None = Field(
        None, description="Memory of the KV cache; unset: vLLM's share of GPU memory, 256 MiB on CPU."
    )
    gpu_memory_utilization: float | None = Field(
        None, gt=0, le=1, description="Share of GPU memory (on CPU: of RAM) that vLLM may take."
    )
    enforce_eager: bool | None = Field(None, description="No graph capture; unset: only on CPU hosts.")
    extra: dict[str, Any] = Field(
        default_factory=dict, description="Any other AsyncEngineArgs field, e.g. tensor_parallel_size."
    )


class LlmWorkerSection(Section):
    """One worker serves one model with one engine."""

    engine: Literal["auto", "vllm", "transformers", "emulated", "extractive"] = Field(
        "auto", description="What generates; `auto` picks by model and hardware."
    )
    model: str = Field(
        "auto", min_length=1, description="Hub name or local folder; `auto`: the best this host can serve."
    )
    served_name: str | None = Field(None, description="Name of the pool; unset: the model's own name.")
    default_model: str | None = Field(
        None, description="What `model = auto` tries first; unset: `small_instruct` of configs/models.toml."
    )
    hub_timeout: Duration = Field(
        3.0, description="How long `model = auto` waits for the model hub to answer."
    )
    max_sequences: int | None = Field(
        None, ge=1, description="Sequences generated at once; more wait. Unset: the engine's default."
    )
    max_context: int | None = Field(
        None, ge=16, description="Longest prompt plus answer in tokens; unset: the model's own limit."
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto", description="Number format of the weights."
    )
    threads: int | None = Field(None, ge=1, description="CPU threads of the engine; unset: its default.")
    tool_format: Literal["auto", "none", "hermes", "mistral", "llama3_json", "pythonic"] = Field(
        "auto", description="How the model writes tool calls; `auto`: told from its chat template."
    )
    reasoning_format: Literal["auto", "none", "think", "think_open"] = Field(
        "auto", description="How it writes reasoning; `think_open`: the template itself opens it."
    )
    max_in_flight: int | None = Field(
        None, ge=1, description="Requests taken at once; the scheduler keeps the rest. Unset: max_sequences."
    )
    emulated: EmulatedSection = Field(default_factory=lambda: EmulatedSection())
    extractive: ExtractiveSection = Field(default_factory=lambda: ExtractiveSection())
    vllm: VllmSection = Field(default_factory=lambda: VllmSection())


class LlmWorkerSettings(ServiceSettings):
    """All settings of an llm-worker process."""

    llm_worker: LlmWorkerSection = Field(default_factory=lambda: LlmWorkerSection())
