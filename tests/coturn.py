"""coturn for tests: a STUN server of RFC 5780 on 127.0.0.1 and 127.0.0.2, a process of its own."""

from __future__ import annotations

import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.ports import free_port
from tests.requirements import find_program
from warpgate_trio.stun.transaction import binding_request

HOSTS = ("127.0.0.1", "127.0.0.2")
Address = tuple[str, int]


@contextmanager
def coturn(folder: Path) -> Iterator[dict[tuple[int, int], Address]]:
    """Run it; its four places, by address and port, each 0 or 1."""
    program = find_program("turnserver")
    assert program is not None
    ports = (free_port(), free_port())
    command = [
        *(program, "-n", "--stun-only", "--no-cli", "--no-tls", "--no-dtls", "--log-file", "stdout"),
        *("--listening-ip", HOSTS[0], "--listening-ip", HOSTS[1], "--relay-ip", HOSTS[0], "--allow-loopback-peers"),
        *("--listening-port", str(ports[0]), "--alt-listening-port", str(ports[1])),
        *("--pidfile", str(folder / "pid"), "--db", str(folder / "db")),
    ]
    places = {(a, p): (HOSTS[a], ports[p]) for a in (0, 1) for p in (0, 1)}
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=folder)
        try:
            for place in places.values():
                _wait(place, process)
            yield places
        finally:
            process.terminate()
            process.wait(10)


def _wait(address: Address, process: subprocess.Popen[bytes]) -> None:
    """Until it answers there, over UDP and TCP."""
    for _ in range(500):
        assert process.poll() is None, "turnserver ended"
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.settimeout(0.02)
            try:
                probe.sendto(binding_request(bytes(12)), address)
                probe.recv(1000)
                socket.create_connection(address, 1).close()
            except OSError:
                continue
            return
    raise AssertionError("turnserver does not answer")
