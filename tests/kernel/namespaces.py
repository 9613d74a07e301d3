"""Machines that are network namespaces without names, so that nothing of them outlives the process that made them.

A descriptor holds a namespace, which is gone when that is closed and no process and no socket is left in it. To
configure a machine, the lab moves its own thread into the namespace for a moment; Linux allows that for each thread
separately. A command runs on a machine by being started from such a thread, or through ``nsenter``.
"""

from __future__ import annotations

import ctypes
import os
import socket
import subprocess
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from types import TracebackType
from typing import Final, final

import trio
from trio.abc import SocketFactory

_CLONE_NEWNET: Final = 0x40000000
_libc = ctypes.CDLL(None, use_errno=True)  # `os.setns` came with Python 3.12
_current: ContextVar[Namespace | None] = ContextVar("namespace", default=None)


def _checked(result: int, what: str) -> None:
    if result:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def _own_network() -> int:
    return os.open("/proc/thread-self/ns/net", os.O_RDONLY)


@final
class Namespace:
    """A machine; in its context, `SocketsOfNamespaces` makes sockets on it."""

    def __init__(self, name: str) -> None:
        self.name = name
        home = _own_network()
        try:
            _checked(_libc.unshare(_CLONE_NEWNET), "unshare")
            try:
                self.fd: Final = _own_network()
            finally:
                _checked(_libc.setns(home, _CLONE_NEWNET), "setns")
        finally:
            os.close(home)
        self.ip_commands("link set lo up")

    def __enter__(self) -> Namespace:
        _current.set(self)
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        _current.set(None)

    @property
    def path(self) -> str:
        """The path by which commands that this process starts find it."""
        return f"/proc/{os.getpid()}/fd/{self.fd}"

    @contextmanager
    def inside(self) -> Generator[None]:
        """Moves this thread to the machine, for a few statements without a checkpoint."""
        home = _own_network()
        try:
            _checked(_libc.setns(self.fd, _CLONE_NEWNET), "setns")
            try:
                yield
            finally:
                _checked(_libc.setns(home, _CLONE_NEWNET), "setns")
        finally:
            os.close(home)

    def sh(self, *command: str, stdin: str = "") -> str:
        """Run a short command on the machine.

        Raises:
          RuntimeError: it failed; the message has its output.
        """
        with self.inside():
            done = subprocess.run(command, input=stdin, text=True, capture_output=True)
        if done.returncode:
            raise RuntimeError(f"{self.name}: {' '.join(command)}: {done.stderr.strip()}\n{stdin}")
        return done.stdout

    def ip_commands(self, *commands: str) -> None:
        """Run commands of ip(8), each without the word ip, in one process."""
        self.sh("ip", "-batch", "-", stdin="\n".join(commands) + "\n")

    def set_sysctl(self, settings: Mapping[str, str]) -> None:
        """Set values below /proc/sys/net."""
        with self.inside():
            for name, value in settings.items():
                with open(f"/proc/sys/net/{name}", "w", encoding="ascii") as file:
                    file.write(value)

    def rules(self, text: str) -> None:
        """Replace all rules of nftables."""
        self.sh("nft", "-f", "-", stdin=f"flush ruleset\n{text}")

    def command(self, words: Sequence[str]) -> list[str]:
        """The command line that runs a command on the machine, in a child of this process that inherits `fd`."""
        return ["nsenter", f"--net=/proc/self/fd/{self.fd}", "--", *words]

    def close(self) -> None:
        os.close(self.fd)


@final
class SocketsOfNamespaces(SocketFactory):
    """Makes sockets on the machine whose context the caller has entered."""

    def socket(self, family: int = 2, type: int = 1, proto: int = 0) -> trio.socket.SocketType:  # noqa: A002
        namespace = _current.get()
        if namespace is None:
            raise RuntimeError("no machine's context is entered")
        with namespace.inside():
            return trio.socket.from_stdlib_socket(socket.socket(family, type, proto))
