"""Compiles a structure first where it may fail: in a process of its own, with little memory, time and stack.

A schema of fifty bytes can ask for a grammar of gigabytes, or for a recursion that ends the process, and no list of
bounds on schemas, patterns and grammars is complete. A small server process is forked for every structure; what
dies there is refused, and what comes through is compiled again where it is used. This module is also that server:
`python -m sage_llm_worker.structure_trial`, with a Unix socket as its standard input.
"""

from __future__ import annotations

import gc
import os
import resource
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import Final

import msgspec

from sage_core import BadRequest, Internal
from sage_wire.messages import JsonObject, Structure

__all__ = ["CPU_SECONDS", "MEMORY_BYTES", "StructureTrial", "Verdict"]

CPU_SECONDS: Final = 2.0
"""An object of 5,000 properties takes 1.4 s, most schemas a millisecond."""
MEMORY_BYTES: Final = 96 * 2**20
"""Of address space, beyond what the process has before it compiles."""
_THREAD_STACK_BYTES: Final = 2 * 2**20
"""Of a thread's stack where the host sets no limit (glibc on x86-64)."""
_WAIT_SECONDS: Final = 30.0
"""For a verdict; only a host that hardly runs takes as long, as the process's own time is limited."""


class Verdict(msgspec.Struct, frozen=True):
    """`refusal`: what to tell of a structure that cannot be had, else empty; `num_bytes`: what compiling it took."""

    refusal: str = ""
    num_bytes: int = 0


class StructureTrial:
    """A server process and the way to ask it; safe to use from any thread. The process starts with the first trial."""

    def __init__(self, *, cpu_seconds: float = CPU_SECONDS) -> None:
        self._cpu_seconds = cpu_seconds
        self._lock = threading.Lock()
        self._server: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None

    def judge(self, structure: Structure) -> Verdict:
        """Compile `structure` in its own process. Blocks; trials in several threads run side by side.

        Raises Internal where no process can be had.
        """
        ours, theirs = socket.socketpair()
        with ours:
            with theirs:
                self._send(theirs)
            ours.settimeout(_WAIT_SECONDS)
            try:
                ours.sendall(msgspec.msgpack.encode(structure))
                ours.shutdown(socket.SHUT_WR)
                answer = _read_all(ours)
            except OSError:
                answer = b""  # it died, or hangs
        if answer:
            return msgspec.msgpack.decode(answer, type=Verdict)
        server = self._server
        if server is None or server.poll() is not None:
            raise Internal("the process that tries structures ended; its own log lines say why")
        return Verdict(
            "the structure of the output cannot be enforced: compiling it takes more than "
            f"{self._cpu_seconds:g} s or {MEMORY_BYTES >> 20} MiB; make it smaller"
        )

    def close(self) -> None:
        """End the process. Idempotent; a later trial starts another."""
        with self._lock:
            self._end()

    def _send(self, connection: socket.socket) -> None:
        with self._lock:
            for _ in range(2):
                control = self._control or self._start()
                try:
                    socket.send_fds(control, [b"\0"], [connection.fileno()])
                    return
                except OSError:
                    self._end()  # somebody killed it
        raise Internal("the process that tries structures cannot be started")

    def _start(self) -> socket.socket:
        ours, theirs = socket.socketpair()
        with theirs:
            # Its own session: a Ctrl-C is for the worker, whose end this process notices.
            self._server = subprocess.Popen(
                [sys.executable, "-m", __name__, str(self._cpu_seconds)],
                stdin=theirs.fileno(),
                start_new_session=True,
            )
        self._control = ours
        return ours

    def _end(self) -> None:
        if self._control is not None:
            self._control.close()
            self._control = None
        if self._server is not None:
            self._server.kill()
            self._server.wait()
            self._server = None


def _read_all(connection: socket.socket) -> bytes:
    data = bytearray()
    while part := connection.recv(65536):
        data += part
    return bytes(data)


def _serve(control: socket.socket, cpu_seconds: float) -> None:
    """Fork for every connection that comes, until the worker has gone."""
    from sage_llm_worker.structures import byte_tokenizer, matcher_of

    # What is loaded and made once is there in every fork.
    matcher_of(JsonObject(), byte_tokenizer())
    gc.freeze()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for them
    while True:
        _, descriptors, _, _ = socket.recv_fds(control, 1, 1)
        if not descriptors:
            return
        if os.fork() == 0:
            control.close()
            _try(socket.socket(fileno=descriptors[0]), cpu_seconds)
            os._exit(0)
        os.close(descriptors[0])


def _try(connection: socket.socket, cpu_seconds: float) -> None:
    from sage_llm_worker.structures import byte_tokenizer, matcher_of

    structure = msgspec.msgpack.decode(_read_all(connection), type=Structure)
    _limit(cpu_seconds)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    refusal = ""
    try:
        matcher_of(structure, byte_tokenizer())
    except BadRequest as error:
        refusal = error.message
    except MemoryError:
        return
    num_kilobytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    connection.sendall(msgspec.msgpack.encode(Verdict(refusal, num_kilobytes * 1024)))


def _limit(cpu_seconds: float) -> None:
    """Let the kernel end this process by memory, stack and processor time."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    # Less than the threads have that compile in earnest, whose stack is as large as the limit on this one.
    stack = resource.getrlimit(resource.RLIMIT_STACK)[0]
    stack = (_THREAD_STACK_BYTES if stack == resource.RLIM_INFINITY else stack) // 4 * 3
    resource.setrlimit(resource.RLIMIT_STACK, (stack, stack))
    if sys.platform == "linux":
        num_pages = int(Path("/proc/self/statm").read_text().split()[0])
        most = num_pages * resource.getpagesize() + MEMORY_BYTES
        resource.setrlimit(resource.RLIMIT_AS, (most, most))
    signal.setitimer(signal.ITIMER_PROF, cpu_seconds)
    # What Rust says of its own end would stand in the worker's log.
    quiet = os.open(os.devnull, os.O_WRONLY)
    os.dup2(quiet, sys.stderr.fileno())


if __name__ == "__main__":
    _serve(socket.socket(fileno=sys.stdin.fileno()), float(sys.argv[1]))
