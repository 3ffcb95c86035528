"""Which engine serves which model on this host, and why."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from sage_core import ConfigurationError
from sage_llm_worker.model_store import HostModels
from sage_llm_worker.settings import LlmWorkerSection

if TYPE_CHECKING:
    from sage_llm_worker.engines.extractive import EmbedTexts
    from sage_worker.engine import Engine

__all__ = ["AUTO", "Selection", "build_engine", "select_engine"]

AUTO: Final = "auto"
_EMULATED: Final = "sage-emulated"
_EXTRACTIVE: Final = "sage-extractive-reader"
_INSTALL: Final = "install sage-serve[llm]"


@dataclass(frozen=True, slots=True)
class Selection:
    """What was chosen. `model` is a hub name or folder; `served_name` is the pool; `reason` goes to the log.

    `is_fallible`: nobody asked for this very model, so where it cannot be fetched the reader answers instead.
    """

    engine: str
    model: str
    served_name: str
    reason: str
    is_fallible: bool = False


def select_engine(section: LlmWorkerSection, host: HostModels, default_model: str | None) -> Selection:
    """Choose engine and model. Blocks while the hub is asked.

    Raises ConfigurationError where what was asked for cannot be had on this host.
    """
    match section.engine:
        case "emulated":
            return _selection(section, "emulated", _name_of(section.model, _EMULATED), "asked for")
        case "extractive":
            return _selection(section, "extractive", _name_of(section.model, _EXTRACTIVE), "asked for")
        case "vllm" | "transformers" as engine:
            return _asked_for(section, engine, host, default_model)
        case _ if section.model == _EXTRACTIVE:
            return _selection(section, "extractive", _EXTRACTIVE, "asked for by its model name")
        case _ if section.model != AUTO:
            best, reason = _best_engine(host)
            if best is None:
                raise ConfigurationError(f"model {section.model!r} needs an engine: {_INSTALL}")
            return _selection(section, best, section.model, reason)
        case _:
            return _automatic(section, host, section.default_model or default_model)


def build_engine(
    selection: Selection, section: LlmWorkerSection, folder: Path | None, embed: EmbedTexts | None
) -> Engine:
    """Make the engine, not started. `folder` holds the model of engines with weights.

    Imports the one module needed, so a host without torch runs the others.
    """
    match selection.engine:
        case "emulated":
            from sage_llm_worker.engines.emulated import EmulatedEngine

            emulated = section.emulated
            return EmulatedEngine(
                selection.model,
                profile=emulated.profile,
                profiles_file=emulated.profiles_file,
                max_sequences=section.max_sequences,
                max_context=section.max_context,
                default_tokens=emulated.default_tokens,
                noise_sigma=emulated.noise_sigma,
            )
        case "extractive":
            from sage_llm_worker.engines.extractive import ExtractiveEngine

            return ExtractiveEngine(
                embed,
                model=selection.model,
                embed_budget=section.extractive.embed_budget,
                max_quotes=section.extractive.max_quotes,
                max_sequences=section.max_sequences,
                max_context=section.max_context,
            )
        case "transformers":
            from sage_llm_worker.engines.transformers import TransformersEngine

            assert folder is not None
            return TransformersEngine(
                folder,
                model=selection.model,
                dtype=section.dtype,
                threads=section.threads,
                max_sequences=section.max_sequences,
                max_context=section.max_context,
                tool_format=section.tool_format,
                reasoning_format=section.reasoning_format,
            )
        case _:
            from sage_llm_worker.engines.vllm import VllmEngine, VllmOptions

            assert folder is not None
            options = VllmOptions(
                dtype=section.dtype,
                threads=section.threads,
                max_sequences=section.max_sequences,
                max_context=section.max_context,
                kv_cache_bytes=section.vllm.kv_cache_bytes,
                gpu_memory_utilization=section.vllm.gpu_memory_utilization,
                enforce_eager=section.vllm.enforce_eager,
                tool_format=section.tool_format,
                reasoning_format=section.reasoning_format,
                extra=section.vllm.extra,
            )
            return VllmEngine(folder, options, model=selection.model)


def _asked_for(
    section: LlmWorkerSection, engine: str, host: HostModels, default_model: str | None
) -> Selection:
    if not host.has_module(engine):
        extra = "vllm" if engine == "vllm" else "llm"
        raise ConfigurationError(f"engine {engine!r} is not installed here; install sage-serve[{extra}]")
    model = section.model
    if model == AUTO:
        chosen = section.default_model or default_model
        if chosen is None:
            raise ConfigurationError(f"engine {engine!r} needs a model; set llm_worker.model")
        model = chosen
    return _selection(section, engine, model, "asked for")


def _automatic(section: LlmWorkerSection, host: HostModels, default_model: str | None) -> Selection:
    engine, engine_reason = _best_engine(host)
    if engine is None:
        return _reader(section, f"no engine for generative models: {_INSTALL}")
    if default_model is None:
        return _reader(section, "configs/models.toml names no small_instruct model")
    if host.find(default_model) is not None:
        reason = f"{engine_reason}; the default model is on this host"
    elif host.can_fetch(default_model, section.hub_timeout):
        reason = f"{engine_reason}; the hub has the default model"
    else:
        return _reader(
            section,
            f"{default_model} is not on this host and the hub did not answer; set a model to generate",
        )
    return _selection(section, engine, default_model, reason, is_fallible=True)


def _best_engine(host: HostModels) -> tuple[str | None, str]:
    if host.has_module("vllm") and host.has_gpu():
        return "vllm", "vLLM is installed and there is a GPU"
    if host.has_module("transformers") and host.has_module("torch"):
        return "transformers", "transformers is installed; no vLLM with a GPU"
    return None, ""


def _reader(section: LlmWorkerSection, reason: str) -> Selection:
    return _selection(section, "extractive", _EXTRACTIVE, reason)


def _selection(
    section: LlmWorkerSection, engine: str, model: str, reason: str, *, is_fallible: bool = False
) -> Selection:
    return Selection(engine, model, section.served_name or _served_name(model), reason, is_fallible)


def _name_of(model: str, default: str) -> str:
    return default if model == AUTO else model


def _served_name(model: str) -> str:
    """A folder is served under its own name, a hub model under its whole one."""
    is_folder = model.startswith(("/", "./", "../", "~")) or Path(model).expanduser().is_dir()
    return Path(model).expanduser().resolve().name if is_folder else model
