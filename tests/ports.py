"""Ports of this machine for servers that start later, or never.

A port that the kernel chose may be reused as soon as it is closed, by another test or as a client's source port.  The
ports given here lie outside the kernel's ephemeral range.  A lock for each port keeps other test processes away for as
long as this one runs.
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
"""Linux's default ephemeral range, for where the kernel does not tell; other systems' ranges are narrower."""
FIRST: Final = 10_000
"""Lower ports belong to services that the machine may run."""


def free_port() -> int:
    """A port that is free over TCP and UDP, and that nobody takes but the test."""
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
    """All ports to choose from; each process begins at another one."""
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
