"""The runtime file of an instance: who runs, where its bus and gateway are. A lock tells a live one from a stale one.

`find_site` also finds a cluster, which has no such file: the settings name its bus.

`instance.json` holds a secret (the bus URL carries a token) and is readable by the user alone. The lock is held by
`sage up` for as long as it lives; the kernel releases it after `kill -9`, so no process id is ever trusted.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import stat
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import msgspec

from sage_cli.exits import Exit, fail
from sage_cli.members import KINDS
from sage_core import BusSettings, ConfigurationError, Paths, ServiceSettings, load_settings
from sage_wire.subjects import pool_token

__all__ = [
    "DEFAULT_NAME",
    "Instance",
    "cluster_bus",
    "find_gateway_site",
    "find_instance",
    "find_site",
    "gateway_of",
    "hold_lock",
    "is_running",
    "own_instance",
    "private_folder",
    "public_address",
    "remove",
    "write",
]

DEFAULT_NAME: Final = "default"
_FILE = "instance.json"
_LOCK = "instance.lock"
_PROBE_TIME = 0.3
"""`is_running` holds the lock for an instant; who wants to own it outwaits that."""


class Instance(msgspec.Struct, frozen=True):
    """What `sage up` tells the other commands. `started` is Unix seconds.

    Of a cluster, `kinds` are those expected to be ready, `pid` and `started` are 0, and `gateway_url` is empty unless
    `OPENAI_BASE_URL` names one.
    """

    name: str
    pid: int
    bus_url: str
    gateway_url: str
    started: float
    kinds: list[str]
    is_cluster: bool = False


def private_folder(folder: Path) -> Path:
    """Create `folder` for the user alone. Raises ConfigurationError where another user owns it or may enter it."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    if folder.parent.stat().st_uid not in (0, os.getuid()):
        raise ConfigurationError(
            f"{folder.parent} belongs to another user; set XDG_RUNTIME_DIR to a folder of your own"
        )
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
        raise ConfigurationError(
            f"{folder} belongs to another user; set XDG_RUNTIME_DIR to a folder of your own"
        )
    if found.st_mode & 0o077:
        folder.chmod(0o700)
    return folder


@contextlib.contextmanager
def hold_lock(file: Path, *, wait: float = 0.0, is_temporary: bool = False) -> Iterator[bool]:
    """Hold an exclusive lock on `file` while inside; yields False where another process holds it after `wait`.

    `is_temporary` removes the file at the end. Who opened it before finds that its name is gone, and opens it anew.
    """
    handle = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        is_ours = _lock(handle, time.monotonic() + wait)
        while is_ours and not _is_named(handle, file):
            os.close(handle)
            handle = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            is_ours = _lock(handle, time.monotonic() + wait)
        try:
            yield is_ours
        finally:
            if is_ours and is_temporary:
                file.unlink(missing_ok=True)
    finally:
        os.close(handle)


def _is_named(handle: int, file: Path) -> bool:
    try:
        return os.fstat(handle).st_ino == file.stat().st_ino
    except FileNotFoundError:
        return False


def _lock(handle: int, deadline: float) -> bool:
    while True:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= deadline:
                return False
            time.sleep(0.02)
        else:
            return True


def is_running(paths: Paths) -> bool:
    """True while some `sage up` holds the lock of this instance."""
    if not (paths.runtime / _LOCK).exists():
        return False
    with hold_lock(paths.runtime / _LOCK) as is_ours:
        return not is_ours


@contextlib.contextmanager
def own_instance(name: str, paths: Paths) -> Iterator[None]:
    """Own the instance while inside; leave no runtime file behind. Fails with status 2 where it runs already."""
    for folder in (paths.runtime.parent, paths.runtime):
        private_folder(folder)
    with hold_lock(paths.runtime / _LOCK, wait=_PROBE_TIME) as is_ours:
        if not is_ours:
            running = _read(paths)
            where = f" (process {running.pid}, {running.gateway_url})" if running else ""
            fail(
                f"instance {name!r} is already running{where}; stop it with `sage stop --name {name}` or start "
                f"another beside it with `--name OTHER`",
                Exit.USAGE,
            )
        remove(paths)
        try:
            yield
        finally:
            remove(paths)


def write(paths: Paths, instance: Instance) -> None:
    """Write the runtime file: complete or not at all, mode 0600."""
    temporary = paths.runtime / f".{_FILE}.{os.getpid()}"
    with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
        file.write(msgspec.json.format(msgspec.json.encode(instance), indent=2))
    temporary.replace(paths.runtime / _FILE)


def remove(paths: Paths) -> None:
    """Remove the runtime file; an absent one is no error."""
    (paths.runtime / _FILE).unlink(missing_ok=True)


def find_instance(name: str, *, wait: float = 0.0) -> Instance:
    """Return the running instance; fails with status 3 where none runs within `wait` seconds."""
    paths = Paths.for_instance(name)
    deadline = time.monotonic() + wait
    while True:
        if is_running(paths) and (found := _read(paths)) is not None:
            return found
        if time.monotonic() >= deadline:
            fail(
                f"no instance {name!r} is running; start one with `sage up{_name_option(name)}`",
                Exit.NOT_RUNNING,
            )
        time.sleep(0.1)


def find_site(name: str, *, wait: float = 0.0) -> Instance:
    """Return the cluster whose bus the settings name (`SAGE_BUS__URL`, or `[bus] url` in the file `SAGE_CONFIG`).

    Where they name none, or `name` is not the default, it is `find_instance`.
    """
    bus = cluster_bus() if name == DEFAULT_NAME else None
    if bus is None:
        return find_instance(name, wait=wait)
    return _cluster(public_address(bus.url))


def find_gateway_site(name: str) -> Instance:
    """Return what `find_site` does; where nothing runs here, the gateway alone that OPENAI_BASE_URL names.

    An instance of this machine comes first: OPENAI_BASE_URL may be set for other programs.
    """
    is_elsewhere = name == DEFAULT_NAME and cluster_bus() is None and not is_running(Paths.for_instance(name))
    return _cluster("") if is_elsewhere and _base_url() else find_site(name)


def _cluster(address: str) -> Instance:
    return Instance(
        name=f"cluster-{pool_token(address)}",
        pid=0,
        bus_url=address,
        gateway_url=_base_url(),
        started=0.0,
        kinds=list(KINDS),
        is_cluster=True,
    )


def _base_url() -> str:
    return os.environ.get("OPENAI_BASE_URL", "").rstrip("/").removesuffix("/v1")


def cluster_bus() -> BusSettings | None:
    """Return the `[bus]` settings of environment and file; None where neither names a URL."""
    bus = load_settings(ServiceSettings).bus
    return bus if "url" in bus.model_fields_set else None


def public_address(bus_url: str) -> str:
    """Return host and port of each server in `bus_url`, without the secrets that it may carry."""
    return ",".join(each.strip().rpartition("://")[2].rpartition("@")[2] for each in bus_url.split(","))


def gateway_of(instance: Instance) -> str:
    """Return the URL of the gateway. Fails with status 2 for a cluster where none is named."""
    if not instance.gateway_url:
        fail(
            "which gateway of the cluster to ask is not known; set OPENAI_BASE_URL, e.g. http://gateway-host:8080/v1",
            Exit.USAGE,
        )
    return instance.gateway_url


def _name_option(name: str) -> str:
    return "" if name == "default" else f" --name {name}"


def _read(paths: Paths) -> Instance | None:
    try:
        return msgspec.json.decode((paths.runtime / _FILE).read_bytes(), type=Instance)
    except (OSError, msgspec.MsgspecError):
        return None
