"""Ports of this machine for servers that are to come, or never come.

A port that the kernel gave out and that was closed again is anybody's the next moment: another test's, or a client's
own end.  These lie outside the range that the kernel gives out of, and a lock per port keeps other test processes away
for as long as this one runs.
"""

from __future__ import annotations

import fcntl
import os
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

RANGE: Final = Path("/proc/sys/net/ipv4/ip_local_port_range")
USUAL: Final = (32768, 60999)
"""What the kernel gives out on Linux, where it does not say so; elsewhere it is less."""
FIRST: Final = 10_000
"""Below are the ports of services that somebody may run."""


def free_port() -> int:
    """A port on which nobody is or will be, over TCP or UDP, but whom the test starts there."""
    folder = Path(tempfile.gettempdir()) / f"warpgate-trio-ports-{os.getuid()}"
    folder.mkdir(exist_ok=True)
    for port in _candidates():
        lock = os.open(folder / str(port), os.O_CREAT | os.O_RDWR | os.O_CLOEXEC)  # closed by the end of the process
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
            continue
        if all(_is_free(kind, port) for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM)):
            return port
        os.close(lock)
    raise AssertionError("every port that the kernel does not give out itself is taken")


def _candidates() -> Iterator[int]:
    """All of them, beginning elsewhere in each process."""
    low, high = map(int, RANGE.read_text().split()) if RANGE.exists() else USUAL
    ports = max(range(FIRST, low), range(high + 1, 65536), key=len)
    start = os.getpid() * 61 % max(len(ports), 1)
    yield from ports[start:]
    yield from ports[:start]


def _is_free(kind: int, port: int) -> bool:
    with socket.socket(socket.AF_INET, kind) as probe:
        try:
            probe.bind(("0.0.0.0", port))
        except OSError:
            return False
        return True
