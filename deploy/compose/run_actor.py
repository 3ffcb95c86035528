"""Process 1 of an actor's container: to the actor what systemd is to a unit of `Type=notify` with a watchdog.

    run_actor.py KIND [ARGUMENTS …]      KIND as in `gateway`, `llm-worker`

It starts `python -m sage_<kind>` and listens on `$NOTIFY_SOCKET`. Readiness and every sign of life set the time of
`/run/sage/alive`, which is all that the health check looks at; a stopping actor takes the file away. An actor that was
ready and is silent for longer than the watchdog allows is killed. The exit status is the actor's, so that the engine's
restart policy sees what the actor said. Only the standard library: it runs in every image.
"""

from __future__ import annotations

import os
import selectors
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import FrameType

WATCHDOG = float(os.environ.get("ACTOR_WATCHDOG", "30"))
"""Seconds of silence after which a ready actor is killed."""


class Watched:
    """One actor process and what it told of itself."""

    def __init__(self, command: list[str], folder: Path) -> None:
        self._alive = folder / "alive"
        self._alive.unlink(missing_ok=True)
        address = folder / "notify"
        address.unlink(missing_ok=True)
        self._socket = socket.socket(
            socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK
        )
        self._socket.bind(str(address))
        self._deadline: float | None = None
        # A signal that arrives while nothing is read must still wake the loop: it leaves a byte here.
        self._woken, waker = socket.socketpair()
        self._woken.setblocking(False)
        waker.setblocking(False)
        self._waker = waker
        signal.set_wakeup_fd(waker.fileno(), warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, self._pass_on)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        environment = os.environ | {
            "NOTIFY_SOCKET": str(address),
            "WATCHDOG_USEC": str(int(WATCHDOG * 1e6)),
        }
        self._actor = subprocess.Popen(command, env=environment)

    def run(self) -> int:
        """Return the actor's exit status, 128 plus the signal where one ended it, as shells do."""
        with selectors.DefaultSelector() as selector:
            selector.register(self._socket, selectors.EVENT_READ)
            selector.register(self._woken, selectors.EVENT_READ)
            while self._actor.poll() is None:
                self._reap_orphans()
                left = None if self._deadline is None else self._deadline - time.monotonic()
                if left is not None and left <= 0:
                    self._say(f"silent for {WATCHDOG:g} s, so it is killed")
                    self._deadline = None
                    self._actor.kill()
                    continue
                for key, _ in selector.select(left):
                    if key.fileobj is self._socket:
                        self._hear()
                    else:
                        self._woken.recv(4096)
        self._alive.unlink(missing_ok=True)
        code = self._actor.returncode
        return code if code >= 0 else 128 - code

    def _hear(self) -> None:
        while True:
            try:
                states = self._socket.recv(4096).decode("utf-8", "replace").splitlines()
            except BlockingIOError:
                return
            if "READY=1" in states or "WATCHDOG=1" in states:
                self._alive.touch()
                self._deadline = time.monotonic() + WATCHDOG
            if "STOPPING=1" in states:
                # How long it may drain is for the engine to say (stop_grace_period).
                self._alive.unlink(missing_ok=True)
                self._deadline = None

    def _pass_on(self, number: int, _frame: FrameType | None) -> None:
        self._actor.send_signal(number)

    def _reap_orphans(self) -> None:
        """Collect processes that lost their parent, which process 1 inherits; the actor is Popen's to collect."""
        while True:
            try:
                found = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            except ChildProcessError:
                return
            if found is None or found.si_pid == self._actor.pid:
                return
            os.waitpid(found.si_pid, 0)

    @staticmethod
    def _say(text: str) -> None:
        sys.stderr.write(f"run_actor: the actor is {text}\n")
        sys.stderr.flush()


def main(arguments: list[str]) -> int:
    """Run the actor `arguments[0]`, its id made of its kind and the container's name; return its exit status."""
    kind = arguments[0]
    actor_id = f"{kind}-{socket.gethostname()}"
    command = [sys.executable, "-m", f"sage_{kind.replace('-', '_')}", "--id", actor_id, *arguments[1:]]
    folder = Path(os.environ.get("ACTOR_RUN_DIR", "/run/sage"))
    return Watched(command, folder).run()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
