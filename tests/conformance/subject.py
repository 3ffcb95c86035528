"""The SAGE that the suites talk to: every actor, an engine without weights, a real embedding model, and API keys."""

from __future__ import annotations

import hashlib
import json
import tempfile
from pathlib import Path
from types import TracebackType

from conformance.recorder import Exchange, Recorder
from integration_instances import SAGE, Instance

__all__ = ["EMBEDDING_MODEL", "MODEL", "Subject"]

MODEL = "conformance"
EMBEDDING_MODEL = "all-MiniLM-L6-v2"

# Fast enough for hundreds of requests, slow enough that a stream can be left before it ends: 2 ms a token.
_PROFILES = """
[profiles.conformance]
description = "A token every 2 ms, whatever the load."
a0 = 0.002
m0 = 0.002
max_sequences = 64
max_context = 65536
kv_tokens = 1000000
"""
_SETTINGS = """
[gateway]
keys_file = {keys}

[llm_worker]
engine = "emulated"
served_name = "{model}"

[llm_worker.emulated]
profile = "conformance"
profiles_file = {profiles}
default_tokens = 64

[embedding_worker]
models = ["{embedding_model}"]
"""


class Subject:
    """A running instance behind a recorder. Use as a context manager."""

    key = "sk-conformance-full"
    limited_key = "sk-conformance-limited"

    def __init__(self, log_folder: Path) -> None:
        self._log_folder = log_folder
        self._home = tempfile.TemporaryDirectory(prefix="sage-conformance-")

    def __enter__(self) -> Subject:
        home = Path(self._home.name)
        (home / "profiles.toml").write_text(_PROFILES)
        keys = home / "keys.toml"
        keys.touch(mode=0o600)
        keys.write_text(_key("full", self.key) + _key("limited", self.limited_key, "rpm = 1\n"))
        settings = home / "sage.toml"
        settings.write_text(
            _SETTINGS.format(
                keys=json.dumps(str(keys)),
                profiles=json.dumps(str(home / "profiles.toml")),
                model=MODEL,
                embedding_model=EMBEDDING_MODEL,
            )
        )
        self.instance = Instance("conformance", home, "--config", str(settings), "--port", "0")
        self.instance.__enter__()
        self.recorder = Recorder(int(self.instance.url.rpartition(":")[2]))
        self.recorder.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.recorder.__exit__()
            self.instance.stop()
        finally:
            self._log_folder.mkdir(parents=True, exist_ok=True)
            for log in Path(self._home.name).rglob("*.log*"):
                (self._log_folder / log.name).write_bytes(log.read_bytes())
            self._home.cleanup()

    @property
    def url(self) -> str:
        """Where clients find it, by way of the recorder. Without `/v1`."""
        return self.recorder.url

    def exchanges(self) -> list[Exchange]:
        """Return what was said since the last call."""
        return self.recorder.take()

    def environment(self) -> dict[str, str]:
        """Return what client scripts read."""
        status = [str(SAGE), "status", "--name", self.instance.name, "--json"]
        folders = {key: value for key, value in self.instance.environment.items() if key.startswith("XDG_")}
        return folders | {
            "CONFORMANCE_URL": self.url,
            "CONFORMANCE_KEY": self.key,
            "CONFORMANCE_LIMITED_KEY": self.limited_key,
            "CONFORMANCE_MODEL": MODEL,
            "CONFORMANCE_EMBEDDING_MODEL": EMBEDDING_MODEL,
            "CONFORMANCE_STATUS": json.dumps(status),
        }


def _key(name: str, secret: str, rights: str = "") -> str:
    digest = hashlib.sha256(secret.encode()).hexdigest()
    return f'[keys.{name}]\nsecrets = [{{ sha256 = "{digest}" }}]\n{rights}\n'
