"""What theory says of whole worlds and of sprays, independent of the code that connects.

It says who can dial whom (`expected`), who certainly connects directly (`direct_for_sure`) or through a relay
(`relay_for_sure`), how long that may take (`time_bound`), and how likely a spray hits (`birthday`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import exp, lgamma
from typing import Literal

from tests.sim.anywhere import Anywhere
from tests.sim.walks import Meeting
from warpgate_trio.report import Verdict
from warpgate_trio.sim import Behavior, Hairpin, NatConfig
from warpgate_trio.testing.theory import can_connect, lets_out, reaches
from warpgate_trio.testing.walks import PORT
from warpgate_trio.testing.worlds import PeerPair

# -- dialling ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Expected:
    """Whether alice can dial bob, and whether bob can dial alice."""

    direct: bool
    reverse: bool


def expected(pair: PeerPair) -> Expected:
    """Who can dial whom.  Two equal NATs are not the same network, hence the markers.

    A node that is asked to dial back dials only public addresses and those of its own network.  Otherwise a peer could
    make it probe other private addresses near it.
    """
    alice = (*pair.shared, *(replace(nat, source="alice's") for nat in pair.alice.nats))
    bob = (*pair.shared, *(replace(nat, source="bob's") for nat in pair.bob.nats))
    forwarded = pair.bob.forwarded and _reaches_forwarded(alice, bob, pair.shared)
    return Expected(
        direct=reaches(alice, bob, PORT) or forwarded, reverse=reaches(bob, alice, PORT) and (not alice or alice == bob)
    )


def _reaches_forwarded(dialler: Sequence[NatConfig], target: Sequence[NatConfig], shared: Sequence[NatConfig]) -> bool:
    """Whether a peer can dial a port that all NATs of the target forward; behind a shared one, only if it hairpins."""
    return (
        bool(target)
        and lets_out(dialler[len(shared) :], PORT)
        and (lets_out(dialler, PORT) if not shared else shared[0].tcp.hairpin is Hairpin.EXTERNAL)
    )


# -- worlds of every kind ----------------------------------------------------------------------------------------------

Who = Literal["alice", "bob"]
_TURN_PORTS = {"udp": 3478, "tcp": 3478, "tcp443": 443, "tls443": 443}


def _passes(layers: Sequence[Behavior], port: int) -> bool:
    return all(each.ports is None or port in each.ports for each in layers)


def sends_udp(world: Anywhere, who: Who) -> bool:
    """Whether a peer's network lets UDP out."""
    return all(nat.udp.ports is None for nat in world.layers(who))


def sends_tcp(world: Anywhere, who: Who, port: int) -> bool:
    """Whether a peer's network lets TCP out to a port, by itself or through the configured proxy."""
    proxied = (world.alice if who == "alice" else world.bob).proxy
    return proxied or _passes([nat.tcp for nat in world.layers(who)], port)


def signals(world: Anywhere) -> bool:
    """Whether alice's signals reach bob, through a server of his to which she also connects."""
    return sends_tcp(world, "alice", 443) and sends_tcp(world, "bob", 443)


def _turn_servers(world: Anywhere, who: Who) -> set[str]:
    """The configured TURN servers that a peer reaches."""
    side = world.alice if who == "alice" else world.bob
    return {
        name
        for name, form in side.turn
        if name != "dead" and (sends_udp(world, who) if form == "udp" else sends_tcp(world, who, _TURN_PORTS[form]))
    }


def relay_for_sure(world: Anywhere) -> bool:
    """Whether there is a relay for the two, whatever their NATs do.

    A rendezvous server of both relays if it is open, or if one of them has its token.  With TURN, if each peer has a
    server (mostly the same one), the relayed addresses talk to each other.  If only one peer has a server, the other
    one sends to the relayed address; its network must let UDP out, and STUN servers must tell it its reflexive address.
    """
    if not signals(world):
        return False
    allowed = world.relays == "open" or (world.relays == "token" and (world.alice.token or world.bob.token))
    if allowed and set(world.alice.rendezvous) & set(world.bob.rendezvous):
        return True
    alices, bobs = _turn_servers(world, "alice"), _turn_servers(world, "bob")
    return (
        bool(alices and bobs)
        or (bool(alices) and sends_udp(world, "bob") and world.bob.stun > 0)
        or (bool(bobs) and sends_udp(world, "alice") and world.alice.stun > 0)
    )


def direct_for_sure(world: Anywhere) -> bool:
    """Whether the two are sure to connect without a relay, and without luck.

    A punch needs two STUN servers, which reveal the NATs' behaviour.  If packets are lost nothing is sure: a dialler's
    SYN may be lost, and a punch may be late.
    """
    if world.lossy:
        return False
    dialled = expected(world.pair)
    if dialled.direct or (dialled.reverse and signals(world)):
        return True
    told = world.alice.stun == world.bob.stun == 2
    return told and signals(world) and not (world.alice.proxy or world.bob.proxy) and can_connect(world.pair)


def promised(world: Anywhere) -> bool:
    """Whether the two have to connect."""
    return relay_for_sure(world) or direct_for_sure(world)


def verdict_without_a_way(world: Anywhere) -> Verdict:
    """The verdict if nothing is promised: there are no signals, or the relays are missing or do not help."""
    if not signals(world):
        return Verdict.NO_SIGNAL
    return Verdict.RELAY_FAILED if world.alice.turn or world.bob.turn else Verdict.NO_RELAY_CONFIGURED


def time_bound(world: Anywhere) -> float:
    """The longest walk in seconds, by docs/walk.md: the phases before the relay, and the slowest relay.

    The slowest relay is TURN over TCP after the responder's UDP has failed: 19 round trips of the longest path, and a
    quarter of a second for each address of a dead server, on either side.  If nothing is promised or packets are lost,
    the bound is the whole budget.
    """
    if world.lossy or not promised(world):
        return 30.0 + 5.0  # the budget, and a commit at its last moment
    pair = world.pair
    to_server = [place.link.latency + pair.server.latency for place in (pair.alice, pair.bob)]
    signal = 2 * sum(to_server)
    before = min(max(3 * signal, 0.3), 2.0) + max(1.5, 4 * signal + 0.5) + max(5.0, 5 * signal + 2.0)
    longest = 2 * max(pair.alice.link.latency + pair.bob.link.latency, *to_server)
    return before + 0.3 + 19 * longest + 4 * 0.25


def complaints(world: Anywhere, meeting: Meeting) -> list[str]:
    """What is wrong with the result of a world, in sentences; empty if nothing is."""
    found = []
    winner = meeting.report.winner
    if promised(world) and not meeting.connected:
        found.append("they did not connect")
    elif not meeting.connected and not world.lossy and meeting.report.verdict is not verdict_without_a_way(world):
        found.append(f"the verdict is {meeting.report.verdict.value}")
    if winner is not None and winner.phase == "relay" and direct_for_sure(world):
        found.append("a relay was used where there is a direct path")
    if meeting.walk > time_bound(world):
        found.append(f"it took {meeting.walk:.3f} s, more than {time_bound(world):.3f} s")
    return found


def networks(world: Anywhere) -> list[str]:
    """The difficult kinds of networks that a peer of this world is in."""
    found = []
    for who in ("alice", "bob"):
        if not sends_udp(world, who):
            if (world.alice if who == "alice" else world.bob).proxy:
                found.append("a proxy alone")
            elif not sends_tcp(world, who, PORT):
                found.append("TCP 443 alone")
            found.append("no UDP")
    return sorted(set(found))


# -- sprays ------------------------------------------------------------------------------------------------------------


def birthday(sockets: int, probes: int, ports: int) -> float:
    """The probability that one of `probes` different ports is one of `sockets` different ones among `ports`."""
    if sockets + probes > ports:
        return 1.0

    def log_choose(n: int, k: int) -> float:
        return lgamma(n + 1) - lgamma(k + 1) - lgamma(n - k + 1)

    return 1 - exp(log_choose(ports - sockets, probes) - log_choose(ports, probes))
