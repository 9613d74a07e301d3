"""The sans-IO core of the TURN server in a shell of lists: relays open at once, and tests inspect what is sent."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import ip_address, ip_network
from typing import Any

from tests.turn_requests import Requests
from warpgate_trio.servers.turn_allocations import Allocation
from warpgate_trio.servers.turn_core import TurnCore
from warpgate_trio.servers.turn_credentials import TurnCredentials
from warpgate_trio.servers.turn_limits import TurnLimits
from warpgate_trio.servers.turn_peers import PeerRules
from warpgate_trio.sockaddr import TransportAddress
from warpgate_trio.stun.codec import AttributeValue, Message, decode
from warpgate_trio.turn.messages import XOR_RELAYED_ADDRESS

SERVER = "192.0.2.1"
SERVER6 = "2001:db8::1"
CLIENT = ("198.51.100.7", 40000)
PEER = ("203.0.113.9", 5000)
WALL = 1_800_000_000.0


@dataclass(frozen=True, eq=False)
class ListSink:
    """A sink that is told apart by its identity alone."""

    name: str
    is_stream: bool = False


UDP = ListSink("udp")


class Bench:
    """The core, its clock, and the relays that it opened."""

    def __init__(self, *, secret: str | None = None, allowed: Iterable[str] = (), **limits: Any) -> None:
        self.now = 1000.0
        self.wall = WALL
        self.rules = PeerRules([ip_network(each) for each in allowed])
        self.rules.set_own([ip_address(SERVER), ip_address(SERVER6)])
        self.ports = iter(range(50000, 60000))
        self.relays: dict[ListSink, Allocation[ListSink]] = {}
        self.closed: list[ListSink] = []
        self.no_ports = False
        self._seed = 0
        credentials = TurnCredentials("example.org", {"alice": "sesame", "bob": "hunter2"}, secret)
        self.core: TurnCore[ListSink] = TurnCore(
            credentials,
            self.rules,
            entropy=self._entropy,
            wall_time=lambda: self.wall,
            limits=TurnLimits(**limits),
        )

    def _entropy(self, amount: int) -> bytes:
        self._seed += 1
        return self._seed.to_bytes(amount, "big")

    def say(
        self, data: bytes, sink: ListSink = UDP, source: TransportAddress = CLIENT
    ) -> list[tuple[ListSink, bytes, TransportAddress]]:
        """Hand in a client's data; returns what is sent in response."""
        self.core.receive(data, sink, source, self.now)
        for allocation in self.core.take_wanted():
            if self.no_ports:
                self.core.not_opened(allocation, self.now)
                continue
            relay = ListSink(f"relay {len(self.relays)}")
            relayed = (SERVER if allocation.family == 4 else SERVER6, next(self.ports))
            assert self.core.opened(allocation, relay, relayed, self.now)
            self.relays[relay] = allocation
        return self.settle()

    def settle(self) -> list[tuple[ListSink, bytes, TransportAddress]]:
        """Close the relays that have ended; returns what is sent."""
        self.closed += self.core.take_ended()
        return self.core.transmit(self.now)

    def ask(self, data: bytes, sink: ListSink = UDP, source: TransportAddress = CLIENT) -> Message:
        """Hand in a client's request; returns the one answer, which has to go to that client."""
        ((by, answer, to),) = self.say(data, sink, source)
        assert (by, to) == (sink, source)
        return decode(answer)

    def wait(self, seconds: float) -> None:
        """Advance the clock, running every timer at its deadline."""
        end = self.now + seconds
        while self.core.deadline <= end:
            self.now = max(self.now, self.core.deadline)
            self.core.handle_timer(self.now)
        self.now = end

    def from_peer(
        self, relayed: TransportAddress, data: bytes, peer: TransportAddress = PEER
    ) -> list[tuple[ListSink, bytes, TransportAddress]]:
        """Hand in a datagram to a relayed address; returns what is sent in response."""
        for allocation in self.relays.values():
            if allocation.relayed == relayed:
                self.core.receive_from_peer(allocation, data, peer)
        return self.settle()


class Client:
    """A client that has the server's realm and nonce, and makes requests."""

    def __init__(
        self,
        bench: Bench,
        username: str = "alice",
        password: str = "sesame",
        *,
        sink: ListSink = UDP,
        source: TransportAddress = CLIENT,
    ) -> None:
        self.bench = bench
        self.sink = sink
        self.source = source
        self.requests = Requests(username, password)
        self.requests.learn(self.ask(self.requests.allocate()))
        self.relayed: TransportAddress = ("", 0)

    def ask(self, data: bytes) -> Message:
        return self.bench.ask(data, self.sink, self.source)

    def say(self, data: bytes) -> list[tuple[ListSink, bytes, TransportAddress]]:
        return self.bench.say(data, self.sink, self.source)

    def allocate(self, *more: AttributeValue) -> Message:
        answer = self.ask(self.requests.allocate(*more))
        self.relayed = answer.get(XOR_RELAYED_ADDRESS) or ("", 0)
        return answer

    def permit(self, *peers: TransportAddress) -> Message:
        return self.ask(self.requests.permit(*peers))

    def bind(self, number: int, peer: TransportAddress) -> Message:
        return self.ask(self.requests.bind(number, peer))

    def refresh(self, lifetime: int) -> Message:
        return self.ask(self.requests.refresh(lifetime))


def allocated(bench: Bench, **options: Any) -> Client:
    """A client that has an allocation."""
    client = Client(bench, **options)
    client.allocate()
    assert client.relayed[1]
    return client
