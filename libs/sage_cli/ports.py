"""Free TCP ports on the loopback, reserved against other instances of the same user until they are used."""

from __future__ import annotations

import contextlib
import errno
import socket
from pathlib import Path

from sage_cli.runtime import hold_lock

__all__ = ["PortReservations", "is_free"]

_MAX_ATTEMPTS = 50


def is_free(port: int, host: str = "127.0.0.1") -> bool:
    """True where a server could listen on `port` now. Connections of an earlier server do not count.

    An address that this host does not have counts as free: the server itself says best what is wrong with it.
    """
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except socket.gaierror:
        return True
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(address)
            probe.listen(1)
        except OSError as error:
            return error.errno != errno.EADDRINUSE
    return True


class PortReservations(contextlib.ExitStack):
    """Ports held for one instance while inside. Two instances that start together never get the same one."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self._folder = folder

    def reserve(self, port: int, host: str = "127.0.0.1") -> bool:
        """Hold `port`; False where it is in use or held by another instance."""
        with contextlib.ExitStack() as attempt:
            is_ours = attempt.enter_context(hold_lock(self._folder / f"port-{port}.lock", is_temporary=True))
            if not is_ours or not is_free(port, host):
                return False
            self.enter_context(attempt.pop_all())
        return True

    def reserve_any(self, host: str = "127.0.0.1") -> int:
        """Hold a port that is free now, and return it."""
        for _ in range(_MAX_ATTEMPTS):
            with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
                probe.bind(("", 0))
                port: int = probe.getsockname()[1]
            if self.reserve(port, host):
                return port
        raise OSError("no free TCP port on the loopback")
