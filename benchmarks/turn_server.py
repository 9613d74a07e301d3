"""The embedded TURN server and coturn compared: MB/s of 1,200-byte datagrams over UDP, and CPU of the server per MB.

Each server is a process of its own on loopback.  A sender offers datagrams at a rate, a receiver counts those that
arrive, and the server's process time is read before and after.  *Up*: client to peer; *down*: peer to client; *relay*:
client to client, both with allocations.  The speed printed is the highest offered rate with less than 2 % loss.
Rounds of the two servers alternate, and medians are printed.  On a machine with other work, trust the CPU figures, and
of the speeds only the comparison.

    python -m benchmarks.turn_server                     both, if coturn is installed
    python -m benchmarks.turn_server --rates 40 --rounds 5
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from ipaddress import ip_network
from pathlib import Path

import trio

from warpgate_trio.servers.turn import serve_turn
from warpgate_trio.servers.turn_credentials import TurnCredentials
from warpgate_trio.sockaddr import TransportAddress
from warpgate_trio.stun.codec import (
    NONCE,
    REALM,
    USERNAME,
    AttributeValue,
    Message,
    MessageClass,
    decode,
    encode,
    long_term_key,
)
from warpgate_trio.turn.messages import (
    CHANNEL_NUMBER,
    REQUESTED_TRANSPORT,
    UDP_PROTOCOL,
    XOR_PEER_ADDRESS,
    XOR_RELAYED_ADDRESS,
    Method,
)

SIZE = 1200
HOST = "127.0.0.1"
USER, PASSWORD, REALM_NAME = "user", "password", "bench"
CHANNEL = 0x4000
QUIET = 0.5
"""Seconds without a datagram after which a receiver is finished."""
ENOUGH = 0.02
"""The largest share of lost datagrams at which a rate counts as carried."""


# --- servers ---


async def serve() -> None:
    async with trio.open_nursery() as nursery:
        credentials = TurnCredentials(REALM_NAME, {USER: PASSWORD})
        server = await nursery.start(
            lambda task_status: serve_turn(
                credentials, host=HOST, allowed_peers=[ip_network(f"{HOST}/32")], task_status=task_status
            )
        )
        print(server.address[1], flush=True)


@contextmanager
def ours() -> Iterator[tuple[int, int]]:
    """Process id and port of an embedded server."""
    process = subprocess.Popen([sys.executable, "-m", "benchmarks.turn_server", "--serve"], stdout=subprocess.PIPE)
    assert process.stdout is not None
    try:
        yield process.pid, int(process.stdout.readline())
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


@contextmanager
def coturn() -> Iterator[tuple[int, int]]:
    """Process id and port of a coturn server."""
    with tempfile.TemporaryDirectory() as folder, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as chosen:
        chosen.bind((HOST, 0))
        port = chosen.getsockname()[1]
        chosen.close()
        command = [
            *("turnserver", "-n", "--no-cli", "--no-tls", "--no-dtls", "--log-file", f"{folder}/log", "--simple-log"),
            *("--listening-ip", HOST, "--relay-ip", HOST, "--allow-loopback-peers", "--listening-port", str(port)),
            *("--lt-cred-mech", "--user", f"{USER}:{PASSWORD}", "--realm", REALM_NAME),
            *("--pidfile", f"{folder}/pid", "--db", f"{folder}/db"),
        ]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=folder)
        try:
            for _ in range(100):
                try:
                    Client(port).close()
                    break
                except (TimeoutError, ConnectionError):
                    time.sleep(0.05)
            yield process.pid, port
        finally:
            process.kill()
            process.wait()


def cpu_of(pid: int) -> float:
    """Seconds of CPU that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


# --- clients ---


class Client:
    """An allocation on a blocking socket."""

    def __init__(self, port: int) -> None:
        self.sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
        self.sock.settimeout(1)
        self.sock.connect((HOST, port))
        self._login: list[AttributeValue] = []
        refused = self.ask(Method.ALLOCATE, REQUESTED_TRANSPORT(UDP_PROTOCOL))
        realm, nonce = refused.get(REALM), refused.get(NONCE)
        assert realm is not None
        assert nonce is not None
        self._login = [USERNAME(USER), REALM(realm), NONCE(nonce)]
        self._key = long_term_key(USER, realm, PASSWORD)
        relayed = self.ask(Method.ALLOCATE, REQUESTED_TRANSPORT(UDP_PROTOCOL)).get(XOR_RELAYED_ADDRESS)
        assert relayed is not None
        self.relayed: TransportAddress = relayed

    def ask(self, method: int, *attributes: AttributeValue) -> Message:
        key = self._key if self._login else None
        self.sock.send(encode(method, MessageClass.REQUEST, os.urandom(12), [*attributes, *self._login], integrity=key))
        return decode(self.sock.recv(4096))

    def bind(self, peer: TransportAddress) -> None:
        answer = self.ask(Method.CHANNEL_BIND, CHANNEL_NUMBER(CHANNEL), XOR_PEER_ADDRESS(peer))
        assert answer.message_class is MessageClass.SUCCESS, answer

    def close(self) -> None:
        self.sock.close()


def count(sock: socket.socket, out: int) -> None:
    """Receive in a process of its own; the bytes that arrived until silence, and the time from first to last."""
    sock.settimeout(3)
    total, first, last = 0, 0.0, 0.0
    while True:
        try:
            data = sock.recv(4096)
        except TimeoutError:
            break
        last = time.monotonic()
        if not total:
            first = last
            sock.settimeout(QUIET)
        total += SIZE if len(data) >= SIZE else len(data)
    os.write(out, json.dumps([total, last - first]).encode())


@dataclass(frozen=True)
class Result:
    """The result of one round."""

    speed: float  # MB/s that arrived
    lost: float  # share
    cpu: float  # ms per MB


def measure(pid: int, port: int, direction: str, rate: float, seconds: float) -> Result:
    """Offer `rate` MB/s for some seconds."""
    with ExitStack() as stack:
        client = Client(port)
        stack.callback(client.close)
        other: Client | None = None
        peer = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
        peer.bind((HOST, 0))
        frame = CHANNEL.to_bytes(2, "big") + SIZE.to_bytes(2, "big") + bytes(SIZE)
        if direction == "relay":
            other = Client(port)
            stack.callback(other.close)
            client.bind(other.relayed)
            other.bind(client.relayed)
            receiver = other.sock
        else:
            client.bind(peer.getsockname())
            receiver = peer if direction == "up" else client.sock
        if direction == "down":
            peer.connect(client.relayed)
            sender, data = peer, bytes(SIZE)
        else:
            sender, data = client.sock, frame
        read, write = os.pipe()
        child = os.fork()
        if not child:
            try:
                count(receiver, write)
            finally:
                os._exit(0)
        before, start, sent = cpu_of(pid), time.monotonic(), 0
        while (elapsed := time.monotonic() - start) < seconds:
            due = min(64, int(elapsed * rate * 1e6 / SIZE) - sent)
            if due <= 0:
                time.sleep(0.0005)
            for _ in range(max(due, 0)):
                sender.send(data)
            sent += max(due, 0)
        total, span = json.loads(os.read(read, 100))
        os.waitpid(child, 0)
        os.close(read)
        os.close(write)
        cpu = cpu_of(pid) - before
        return Result(
            total / 1e6 / span if span else 0.0, 1 - total / max(1, sent * SIZE), cpu * 1e9 / total if total else 0.0
        )


def show(name: str, direction: str, rates: Sequence[float], results: dict[float, list[Result]]) -> None:
    carried = 0.0
    for rate in rates:
        each = results[rate]
        lost = statistics.median(one.lost for one in each)
        speed = statistics.median(one.speed for one in each)
        if lost < ENOUGH:
            carried = max(carried, speed)
        cpu = statistics.median(one.cpu for one in each)
        print(
            f"{name:9} {direction:6} offered {rate:4.0f} MB/s: {speed:5.1f} arrived, {lost:6.1%} lost, {cpu:5.1f} ms/MB"
        )
    print(f"{name:9} {direction:6} carried {carried:5.1f} MB/s\n", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--rates", default="20,40,60", help="MB/s to offer")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=2.0)
    arguments = parser.parse_args()
    if arguments.serve:
        trio.run(serve)
        return
    rates = [float(each) for each in arguments.rates.split(",")]
    with ExitStack() as stack:
        servers = {"embedded": stack.enter_context(ours())}
        if shutil.which("turnserver"):
            servers["coturn"] = stack.enter_context(coturn())
        for direction in ("up", "down", "relay"):
            results: dict[str, dict[float, list[Result]]] = {name: {rate: [] for rate in rates} for name in servers}
            for _ in range(arguments.rounds):
                for rate in rates:
                    for name, (pid, port) in servers.items():
                        results[name][rate].append(measure(pid, port, direction, rate, arguments.seconds))
            for name in servers:
                show(name, direction, rates, results[name])


if __name__ == "__main__":
    main()
