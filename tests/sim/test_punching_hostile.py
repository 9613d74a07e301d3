"""Punching with attackers and in misbehaving networks: nobody is flooded, and nothing is lost.

docs/punching.md lists everything that may go wrong, with the tests; those that need a whole world are here.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from ipaddress import ip_address
from typing import Any

import msgspec
import pytest
import trio

from tests.sim.hostile import BYSTANDER, World, call, lying, with_hostile
from warpgate_strategies.random_probe import (
    MAX_ASKS,
    MAX_PROBES,
    MIN_RETRY,
    Opened,
    RandomProbe,
    SprayAgreed,
    SprayBusy,
    SprayForMe,
)
from warpgate_strategies.stream_race import MAX_CONNECTS
from warpgate_strategies.tcp_punch import MeetByTcp, MeetMeByTcp, TcpPunch
from warpgate_strategies.udp_punch import Go, MeetByUdp, MeetMeByUdp, UdpPunch
from warpgate_trio.address.nat_profile import Allocation, Filtering, Mapping, NatProfile, TransportProfile
from warpgate_trio.errors import SignalError
from warpgate_trio.plugin import Message, Plugin
from warpgate_trio.punch.allowance import BURST, MAX_SPRAYS, REFILL
from warpgate_trio.punch.candidates import MAX_CANDIDATES, Candidate
from warpgate_trio.punch.checks import MAX_PACKETS
from warpgate_trio.punch.probe import ProbeCodec
from warpgate_trio.punch.spray import MAX_OPENERS, MAX_SOCKETS, Role
from warpgate_trio.sim import presets
from warpgate_trio.sim.packet import UDP, Packet
from warpgate_trio.stun.codec import looks_like_stun
from warpgate_trio.testing.worlds import PeerPair

RTT = 0.05
MAX_ANSWERED = 60
"""The most packets to an endpoint that has sent first: answers, and probes until another pair wins."""
SECRET = bytes(16)
BASES: tuple[type[Plugin], ...] = (UdpPunch, TcpPunch, RandomProbe)


def claim(ip: str, ports: Sequence[int] = range(40000, 40000 + MAX_CANDIDATES)) -> tuple[Candidate, ...]:
    """Candidates that claim a bystander's address as the peer's own, with as many ports as fit into a message."""
    return tuple(Candidate(ip_address(ip).packed, port) for port in ports)


# -- a bystander, claimed by the caller --------------------------------------------------------------------------------


def request(plugin: Any, ip: str) -> tuple[Message, Message | None]:
    """The first message of a hostile caller, and its second one, after an answer."""
    common: dict[str, Any] = {"af": 4, "route_type": plugin.route_type, "candidates": claim(ip), "secret": SECRET}
    if plugin.name == "udp_punch":
        return MeetByUdp(**common), Go()
    if plugin.name == "random_probe":
        return SprayForMe(**common), Opened()
    return MeetByTcp(**common, sent_at=plugin.clock.now(), uncertainty=0.0, bucket=1), None


def caller(base: type[Plugin]) -> type[Plugin]:
    """A plugin that calls, names the bystander, and reports readiness as soon as it is answered."""

    async def run(self: Any, _: Message | None) -> Any:
        first, then = request(self, bystander_of(self))
        await self.send_signal(first)
        await self.receive_signal()
        if then is not None:
            await self.send_signal(then)
        await trio.sleep_forever()

    return lying(base, run)


def bystander_of(plugin: Any) -> str:
    ip: str = plugin.node.host.machine.net.hosts[BYSTANDER].ip
    return ip


def udp(**axes: Any) -> NatProfile:
    return NatProfile(udp=TransportProfile(translated=True, filtering=Filtering.ADDRESS_AND_PORT_DEPENDENT, **axes))


EASY = udp(mapping=Mapping.ENDPOINT_INDEPENDENT, allocation=Allocation.PRESERVING)
HARD = udp(mapping=Mapping.ADDRESS_AND_PORT_DEPENDENT, allocation=Allocation.RANDOM)
LOOSE = NatProfile(udp=replace(HARD.udp, filtering=Filtering.ENDPOINT_INDEPENDENT, low=40000, high=41023))
"""A spray between two hard sides is worth its packets only if one filters nothing or has few ports."""

BOB_EASY = PeerPair.between(presets.LINUX, presets.LINUX, rtt=RTT)
BOB_HARD = PeerPair.between(presets.LINUX_SYMMETRIC, presets.LINUX_SYMMETRIC, rtt=RTT)
ATTACKS: list[Any] = [
    pytest.param(UdpPunch, BOB_EASY, EASY, MAX_PACKETS, id="udp_punch"),
    pytest.param(TcpPunch, BOB_EASY, EASY, MAX_CONNECTS, id="tcp_punch"),
    pytest.param(RandomProbe, BOB_EASY, HARD, MAX_OPENERS + MAX_CANDIDATES, id="spray-easy"),
    pytest.param(RandomProbe, BOB_HARD, EASY, MAX_SOCKETS * MAX_PROBES, id="spray-hard"),
    pytest.param(RandomProbe, BOB_HARD, LOOSE, MAX_PACKETS, id="spray-both"),
]


@pytest.mark.slow("up to 2,048 packets")
@pytest.mark.parametrize(("base", "pair", "profile", "most"), ATTACKS)
def test_one_attempt_of_a_caller_who_claims_somebody_elses_address(
    base: type[Plugin], pair: PeerPair, profile: NatProfile, most: int
) -> None:
    async def main(world: World) -> None:
        (mallory,) = world.hostile
        await call(mallory, world.nodes.bob, base.name, 12)
        await trio.sleep(10)
        sent, received = world.wire.sent("bob", world.claimed), world.wire.received(BYSTANDER)
        print(f"{base.name}: {sent} sent, {received} received")
        assert most / 4 < sent <= most, "the attack does not do what it is meant to do"
        assert received <= sent
        if most == MAX_OPENERS + MAX_CANDIDATES:
            assert received == 0  # openers die on the way

    with_hostile(main, caller(base), pair=pair, profile=profile)


ROLES = [
    (Role.EASY, EASY, MAX_SOCKETS * MAX_PROBES),
    (Role.HARD, HARD, MAX_OPENERS + MAX_CANDIDATES),
    (Role.BOTH, LOOSE, MAX_PACKETS),
]


def callee(base: type[Plugin], role: Role = Role.EASY) -> type[Plugin]:
    """A plugin that answers, and names the bystander."""

    async def run(self: Any, reply: Message | None) -> Any:
        where = claim(bystander_of(self))
        now = self.clock.now()
        answers: dict[type[Plugin], Message] = {
            UdpPunch: MeetMeByUdp(candidates=where),
            TcpPunch: MeetMeByTcp(candidates=where, received_at=now, sent_at=now, uncertainty=0.0, punch_at=now),
            RandomProbe: SprayAgreed(role=role, candidates=where),
        }
        await self.send_signal(answers[base])
        await self.send_signal(Opened() if base is RandomProbe else answers[base])
        await trio.sleep_forever()

    return lying(base, run)


@pytest.mark.slow("up to 2,048 packets")
@pytest.mark.parametrize(
    ("base", "role", "pair", "profile", "most"),
    [
        (UdpPunch, Role.EASY, BOB_EASY, EASY, MAX_PACKETS),
        (TcpPunch, Role.EASY, BOB_EASY, EASY, MAX_CONNECTS),
        *[(RandomProbe, role, BOB_HARD, profile, most) for role, profile, most in ROLES],
    ],
)
def test_one_call_of_ours_to_a_peer_who_claims_somebody_elses_address(
    base: type[Plugin], role: Role, pair: PeerPair, profile: NatProfile, most: int
) -> None:
    async def main(world: World) -> None:
        (mallory,) = world.hostile
        await call(world.nodes.alice, mallory, base.name, 6)
        await trio.sleep(10)
        sent, received = world.wire.sent("alice", world.claimed), world.wire.received(BYSTANDER)
        print(f"{base.name} {role}: {sent} sent, {received} received")
        assert most / 4 < sent <= most, "the attack does not do what it is meant to do"
        assert received <= sent

    with_hostile(main, callee(base, role), pair=pair, profile=profile)


@pytest.mark.slow("5,000 packets")
@pytest.mark.parametrize(("count", "each"), [(1, 12), (10, 1)], ids=["one-peer", "ten-peers"])
def test_many_attempts_have_no_more_sent_to_one_address_than_the_allowance(count: int, each: int) -> None:
    """One peer calls again and again, by every technique, or ten peers at once all name one bystander."""

    async def main(world: World) -> None:
        async def round_of_calls(seconds: float) -> None:
            async with trio.open_nursery() as nursery:
                for mallory in world.hostile:
                    for number in range(each):
                        base = BASES[number % 3] if each > 1 else UdpPunch
                        nursery.start_soon(call, mallory, world.nodes.bob, base.name, seconds)

        await round_of_calls(4.0)
        sent = world.wire.sent("bob", world.claimed)
        assert BURST * 0.99 < sent <= BURST + 4 * REFILL
        await trio.sleep(30)
        await round_of_calls(4.0)
        await trio.sleep(10)
        sent, received = world.wire.sent("bob", world.claimed), world.wire.received(BYSTANDER)
        print(f"{count} peers: {sent} sent, {received} received")
        assert sent <= BURST + (30 + 8 + 1) * REFILL
        assert received <= sent

    with_hostile(main, *map(caller, BASES), pair=BOB_EASY, count=count, profile=HARD)


@pytest.mark.slow("3,000 packets")
def test_a_forged_source_is_no_proof_that_somebody_is_there() -> None:
    """The peer knows the key, so it can send authentic probes with forged sources, each of which would be probed."""

    async def run(self: Any, _: Message | None) -> Any:
        machine = self.node.host.machine
        await self.send_signal(request(self, machine.ip)[0])
        answer = await self.receive_signal()
        codec = ProbeCodec(SECRET, initiator=True)
        await self.send_signal(Go())
        for port in range(50000, 50064):
            for where in answer.candidates:
                probe = codec.request(machine.entropy(12))
                target = (str(ip_address(where.address)), where.port)
                machine.output(Packet(UDP, (bystander_of(self), port), target, probe))
            await trio.sleep(0.01)
        await trio.sleep_forever()

    async def main(world: World) -> None:
        async with trio.open_nursery() as nursery:
            for _ in range(4):
                nursery.start_soon(call, world.hostile[0], world.nodes.bob, "udp_punch", 4.0)
        await trio.sleep(10)
        sent = world.wire.sent("bob", world.claimed)
        print(f"{sent} sent, {world.wire.received(BYSTANDER)} received")
        assert BURST * 0.9 < sent <= BURST + 5 * REFILL

    pair = PeerPair.between(presets.LINUX, presets.FULL_CONE, rtt=RTT)
    with_hostile(main, lying(UdpPunch, run), pair=pair, profile=EASY)


# -- a peer that wastes our time ---------------------------------------------------------------------------------------


def test_a_peer_that_is_always_busy_is_asked_now_and_then() -> None:
    asked = 0

    async def run(self: Any, reply: Message | None) -> Any:
        nonlocal asked
        while True:
            asked += 1
            await self.send_signal(SprayBusy(retry_after=1e-9))
            await self.receive_signal()

    async def main(world: World) -> None:
        began = trio.current_time()
        await call(world.nodes.alice, world.hostile[0], "random_probe", 6.0)
        assert trio.current_time() - began <= 7
        assert 2 <= asked <= 6 / MIN_RETRY + 1

    with_hostile(main, lying(RandomProbe, run), pair=BOB_HARD, profile=EASY)


@pytest.mark.slow("three sprays")
def test_sprays_for_peers_are_few_at_a_time_and_do_not_take_all_ports() -> None:
    """Each spray names another address, so that no limit per address applies."""
    busy = 0

    async def run(self: Any, _: Message | None) -> Any:
        nonlocal busy
        number = self.node.host.random.randrange(1, 250)
        common: dict[str, Any] = {"af": 4, "route_type": self.route_type, "secret": SECRET}
        await self.send_signal(SprayForMe(**common, candidates=claim(f"11.0.1.{number}")))
        for _again in range(30):
            if isinstance(await self.receive_signal(), SprayBusy):
                busy += 1
                await self.send_signal(SprayForMe(**common, candidates=claim(f"11.0.1.{number}")))
        await trio.sleep_forever()

    async def main(world: World) -> None:
        bob = world.nodes.bob
        async with trio.open_nursery() as nursery:
            for mallory in world.hostile:
                nursery.start_soon(call, mallory, bob, "random_probe", 6.0)
            await trio.sleep(2)
            ports = len(bob._runtime.udp_ports)
            print(f"{ports} ports, busy {busy} times")
            assert MAX_SOCKETS < ports <= MAX_SPRAYS * (MAX_SOCKETS + 1) + 5
        await trio.sleep(15)
        assert 4 <= busy <= 2 * MAX_ASKS  # of two peers that never wait
        assert len(bob._runtime.udp_ports) <= 2  # the warm ones

    with_hostile(main, lying(RandomProbe, run), pair=BOB_HARD, profile=EASY, count=4)


# -- messages that are nonsense ----------------------------------------------------------------------------------------


def loose(**fields: Any) -> Message:
    """A `MeetByUdp` without this package's checks, as another program might send it."""
    made = msgspec.defstruct("MeetByUdp", [(name, Any) for name in fields], bases=(Message,), frozen=True, kw_only=True)
    message: Any = made(**fields)
    return message  # type: ignore[no-any-return]


NONSENSE: dict[str, Any] = {
    "seventeen": [[bytes([11, 0, 0, port]), port] for port in range(1, 18)],
    "many": [[bytes([11, 0, 0, 1]), 1 + port] for port in range(4000)],
    "port-0": [[bytes([11, 0, 0, 1]), 0]],
    "port-65536": [[bytes([11, 0, 0, 1]), 65536]],
    "no-address": [[b"abc", 9]],
    "long-address": [[bytes(17), 9]],
    "no-list": 7,
    "nothing": [],
    "sense": [[bytes([11, 0, 0, 1]), 9]],
}


@pytest.mark.parametrize("what", NONSENSE)
def test_candidates_that_are_nonsense_start_nothing(what: str) -> None:
    async def run(self: Any, _: Message | None) -> Any:
        with suppress(SignalError):  # too large even to be sent
            await self.send_signal(loose(af=4, route_type=self.route_type, secret=SECRET, candidates=NONSENSE[what]))
        await trio.sleep_forever()

    async def main(world: World) -> None:
        bob = world.nodes.bob
        await call(world.hostile[0], bob, "udp_punch", 1.0)
        await trio.sleep(1)  # until the end of the call is signalled
        assert (world.wire.sent("bob", "11.0.0.1") > 0) == (what == "sense")
        assert bob.stats().attempts == 0
        pipe = await world.nodes.alice.connect(bob.address, plugin="udp_punch", timeout=6)
        await pipe.aclose()

    with_hostile(main, lying(UdpPunch, run), pair=BOB_EASY)


# -- replayed probes ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("late", [0.0, 0.05], ids=["before-the-original", "after-it"])
def test_probes_that_are_sent_again_from_elsewhere_lead_nowhere(late: float) -> None:
    """An attacker on the path sees every probe and replays it from his own address, at once or a little later."""

    async def main(world: World) -> None:
        mallory = world.net.hosts["mallory0"]
        homes = {world.net.hosts[name].ip for name in ("alice-nat0", "bob-nat0")}

        def again(host: str, packet: Packet) -> None:
            if host in ("alice", "bob") and packet.dst[0] in homes and looks_like_stun(packet.payload):
                copy = Packet(UDP, (mallory.ip, 4000), packet.dst, packet.payload)
                world.net.wire.after(late, mallory.output, copy)

        world.wire.tap = again
        pipe = await world.nodes.alice.connect(world.nodes.bob.address, plugin="udp_punch", timeout=6)
        async with pipe:
            assert pipe.path.remote[0] in homes
        await trio.sleep(10)
        assert world.wire.sent("mallory0", world.net.hosts["bob-nat0"].ip) >= 3
        for name in ("alice", "bob"):
            assert world.wire.sent(name, mallory.ip) <= MAX_ANSWERED

    with_hostile(main, UdpPunch, pair=PeerPair.between(presets.FULL_CONE, presets.FULL_CONE, rtt=RTT))
