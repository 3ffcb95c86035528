"""Finds and fetches models: local folders, the Hugging Face cache, the hub. Blocking; call it in a thread.

Caches stay where Hugging Face puts them (HF_HOME), and HF_HUB_OFFLINE and HF_ENDPOINT mean what they always mean.
"""

from __future__ import annotations

import importlib.util
import threading
import time
from pathlib import Path
from typing import Any, Final, Protocol

from sage_core import ConfigurationError, Unavailable
from sage_telemetry import get_logger

__all__ = ["HostModels", "ModelStore"]

_FILES: Final = ("*.json", "*.jinja", "*.txt", "*.model", "*.safetensors", "*.safetensors.index.json")
_WEIGHTS: Final = ("*.safetensors", "*.bin")
_PROGRESS_SECONDS: Final = 5.0


class HostModels(Protocol):
    """What this host has and can get: the questions that choosing an engine asks."""

    def has_module(self, name: str) -> bool:
        """Return True where `name` can be imported; does not import it."""
        ...

    def has_gpu(self) -> bool:
        """Return True where a GPU is usable. May import torch."""
        ...

    def find(self, model: str) -> Path | None:
        """Return the folder of a local or cached model, or None.

        Raises ConfigurationError for a path without a model.
        """
        ...

    def can_fetch(self, model: str, timeout: float) -> bool:
        """Return True where the hub says within `timeout` seconds that it has `model`."""
        ...


class ModelStore:
    """The real `HostModels`, and the download."""

    def has_module(self, name: str) -> bool:
        """See `HostModels`."""
        return importlib.util.find_spec(name) is not None

    def has_gpu(self) -> bool:
        """See `HostModels`."""
        if not self.has_module("torch"):
            return False
        import torch

        return bool(torch.cuda.is_available())

    def find(self, model: str) -> Path | None:
        """See `HostModels`."""
        folder = Path(model).expanduser()
        if folder.is_dir():
            if not (folder / "config.json").is_file():
                raise ConfigurationError(f"{folder} holds no model: it has no config.json")
            return folder.resolve()
        if model.startswith(("/", "./", "../", "~")):
            raise ConfigurationError(f"model folder {folder} does not exist")
        if not self.has_module("huggingface_hub"):
            return None
        return self._cached(model)

    def can_fetch(self, model: str, timeout: float) -> bool:
        """See `HostModels`."""
        if not self.has_module("huggingface_hub"):
            return False
        answers: list[bool] = []

        def ask() -> None:
            from huggingface_hub import HfApi

            try:
                HfApi().model_info(model, timeout=timeout)
            except Exception as error:  # whatever the reason (offline, proxy, no such model): not from here
                get_logger().info("hub_did_not_answer", model=model, reason=type(error).__name__)
                return
            answers.append(True)

        # A thread that is left behind: name resolution has no timeout of its own.
        thread = threading.Thread(target=ask, name="sage-hub-probe", daemon=True)
        thread.start()
        thread.join(timeout)
        return bool(answers)

    def fetch(self, model: str) -> Path:
        """Return the folder of `model`, downloading it with progress in the log where it is not here yet.

        Raises ConfigurationError where the hub has no such model or refuses it, Unavailable where the download
        broke off; it continues at the next attempt.
        """
        found = self.find(model)
        if found is not None:
            return found
        if not self.has_module("huggingface_hub"):
            raise ConfigurationError(
                f"model {model!r} is no local folder, and there is no huggingface_hub to fetch it; install "
                "sage-serve[llm]"
            )
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError

        log = get_logger()
        log.info("model_download_started", model=model)
        started = time.monotonic()
        try:
            folder = snapshot_download(model, allow_patterns=list(_FILES), tqdm_class=_progress_type(model))
        except GatedRepoError:
            raise ConfigurationError(
                f"model {model!r} asks for an agreement on the hub; accept it there and set HF_TOKEN"
            ) from None
        except RepositoryNotFoundError:
            raise ConfigurationError(
                f"model {model!r} is neither a local folder nor on the hub (private models need HF_TOKEN)"
            ) from None
        except (HfHubHTTPError, OSError, ValueError) as error:
            reason = " ".join(str(error).split())
            raise Unavailable(
                f"model {model!r} is not on this host and could not be downloaded: {reason}"
            ) from error
        path = Path(folder)
        if not _has_weights(path):
            raise ConfigurationError(f"model {model!r} has no safetensors weights; convert them first")
        log.info("model_downloaded", model=model, seconds=round(time.monotonic() - started, 1))
        return path

    def _cached(self, model: str) -> Path | None:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

        try:
            path = Path(snapshot_download(model, local_files_only=True))
        except HFValidationError:
            raise ConfigurationError(
                f"model is {model!r}; expected a local folder or a hub name such as ORGANISATION/NAME"
            ) from None
        except (LocalEntryNotFoundError, OSError):
            return None
        # A download that broke off leaves a snapshot too; its weights are links that are not there yet.
        return path if (path / "config.json").is_file() and _has_weights(path) else None


def _has_weights(folder: Path) -> bool:
    return any(True for pattern in _WEIGHTS for _ in folder.glob(pattern))


def _progress_type(model: str) -> Any:
    """Return a tqdm class that logs instead of drawing: bytes, every few seconds."""
    from tqdm.auto import tqdm  # type: ignore[import-untyped]

    class LoggedProgress(tqdm):  # type: ignore[misc]
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            kwargs.pop("name", None)
            # Disabled bars do not count; this one counts and shows nothing.
            kwargs["disable"] = False
            super().__init__(*args, **kwargs)
            self._logged_at = time.monotonic()

        def display(self, msg: str | None = None, pos: int | None = None) -> bool:
            del msg, pos
            return True

        def update(self, n: float | None = 1) -> bool | None:
            drawn: bool | None = super().update(n)
            now = time.monotonic()
            if self.unit == "B" and now - self._logged_at >= _PROGRESS_SECONDS:
                self._logged_at = now
                get_logger().info(
                    "model_download_progressed",
                    model=model,
                    megabytes=round(self.n / 1e6),
                    total_megabytes=round(self.total / 1e6) if self.total else None,
                )
            return drawn

    return LoggedProgress
