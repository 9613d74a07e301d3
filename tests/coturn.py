"""coturn for tests, as a process: a STUN server of RFC 5780 on 127.0.0.1 and 127.0.0.2, and TURN servers."""

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
    """Run it; yields its four sockets' addresses, by (index of the IP address, index of the port), each 0 or 1."""
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
    """Wait until the server answers at an address, over UDP and TCP."""
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


@contextmanager
def coturn_relay(
    folder: Path, *lines: str, certificate: Path | None = None, port: int | None = None
) -> Iterator[Relay]:
    """A TURN server on 127.0.0.1 and ::1, with the user ``user`` whose password is ``secret``.

    Args:
      lines: further lines of its configuration.
      certificate: PEM file with certificate and key, for TLS.
      port: the port to listen on; a free one if not given.
    """
    relay = Relay(folder, lines, certificate, port)
    relay.start()
    try:
        yield relay
    finally:
        relay.stop()


class Relay:
    """See `coturn_relay`.

    Attributes:
      port: for UDP and TCP, and for TLS if there is a certificate.
    """

    def __init__(self, folder: Path, lines: tuple[str, ...], certificate: Path | None, port: int | None = None) -> None:
        self.port = free_port() if port is None else port
        self.log = folder / "log"
        self._folder = folder
        tls = [f"cert={certificate}", f"pkey={certificate}"] if certificate else ["no-tls"]
        self._config = [
            *(f"listening-port={self.port}", f"tls-listening-port={free_port()}", "lt-cred-mech", "user=user:secret"),
            *("realm=test", "no-cli", "no-dtls", "log-file=stdout", "simple-log", "verbose", "allow-loopback-peers"),
            *(f"pidfile={folder}/pid", f"userdb={folder}/db", "listening-ip=127.0.0.1", "listening-ip=::1"),
            *("relay-ip=127.0.0.1", "relay-ip=::1", *tls, *lines),
        ]
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Run it until it answers."""
        program = find_program("turnserver")
        assert program is not None
        config = self._folder / "conf"
        config.write_text("\n".join(self._config) + "\n")
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [program, "-c", str(config)], stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=self._folder
            )
        _wait(("127.0.0.1", self.port), self._process)

    def kill(self) -> None:
        """End it at once, with no chance to notify its clients."""
        assert self._process is not None
        self._process.kill()
        self._process.wait(10)

    def stop(self) -> None:
        assert self._process is not None
        if self._process.poll() is None:
            self._process.terminate()
            self._process.wait(10)
