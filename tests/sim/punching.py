"""Worlds in which theory promises that two nodes connect by punching."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Protocol, TypeVar

from hypothesis import strategies as st

from warpgate_trio.sim import (
    Behavior,
    Block,
    Filtering,
    Hash,
    Mapping,
    NatConfig,
    Preserve,
    Sequential,
    Uniform,
    Unsolicited,
)
from warpgate_trio.testing.theory import promised, punch_possible
from warpgate_trio.testing.worlds import PeerPair

_T = TypeVar("_T")


def punchable(alice: Sequence[NatConfig], bob: Sequence[NatConfig]) -> bool:
    """Whether theory says that the two can punch, over UDP or over TCP; the preconditions are `draw_punchable`'s.

    Besides the pairs of `promised`, it counts NATs without endpoint-independent mapping that filter nothing.  Those can
    be punched if the host behind them is not the first to send.  The order is known for UDP with one such NAT.  Of
    several NATs in a row only the strictest filter is seen.  Over TCP filtering cannot be measured, since no server
    connects back.
    """
    udp, tcp = ([[getattr(nat, each) for nat in nats] for nats in (alice, bob)] for each in ("udp", "tcp"))
    seen = not any(len(nats) > 1 and _moves_and_lets_in(nats) for nats in udp)
    over_udp = promised(*udp) or (seen and punch_possible(*udp))
    over_udp = over_udp and all(nat.ports is None for nats in udp for nat in nats)
    over_tcp = promised(*tcp) or (not any(_moves_and_lets_in(nats) for nats in tcp) and punch_possible(*tcp))
    over_tcp = over_tcp and all(nat.ports is None and nat.simultaneous_open for nats in tcp for nat in nats)
    return over_udp or over_tcp


def _moves_and_lets_in(layers: Sequence[Behavior]) -> bool:
    return any(each.mapping is not Mapping.EIM and each.filtering is Filtering.EIF for each in layers)


# Plain functions of a source of choices: Hypothesis in a property, a seeded generator in `tests.sim.census`.


class Chooser(Protocol):
    """The source of choices that worlds are drawn with."""

    def choice(self, seq: Sequence[_T], /) -> _T: ...
    def randint(self, a: int, b: int, /) -> int: ...


def _behavior(random: Chooser, *, tcp: bool) -> Behavior:
    """One transport of a NAT under E.1's preconditions: symmetric NATs do not preserve ports, and ports are plenty."""
    mapping = random.choice(list(Mapping))
    ways: list[Uniform | Block | Hash | Sequential | Preserve] = [
        Uniform(),
        Uniform(ports=(32768, 65535)),
        Block(size=1024),
        Hash(remote=True),
        Sequential(delta=1),
    ]
    if mapping is Mapping.EIM:
        ways.insert(0, Preserve())
    policies = [each for each in Unsolicited if tcp or each not in (Unsolicited.RST, Unsolicited.HOLD)]
    return Behavior(
        mapping=mapping,
        filtering=random.choice(list(Filtering)),
        allocation=random.choice(ways),
        unsolicited=random.choice(policies),
    )


def _nats(random: Chooser) -> tuple[NatConfig, ...]:
    made = []
    for _ in range(random.randint(1, 2)):
        udp, tcp = _behavior(random, tcp=False), _behavior(random, tcp=True)
        words = [f"{each.mapping.name}/{each.filtering.name}/{each.unsolicited.name}" for each in (udp, tcp)]
        made.append(NatConfig(name="+".join(words).lower(), source="composed", udp=udp, tcp=tcp))
    return tuple(made)


def draw_punchable(random: Chooser, *, loss: float = 0.0) -> tuple[PeerPair, bool]:
    """A pair for which theory promises a path, behind one or two NATs each, and whether there is an NTP server."""
    while True:
        alice, bob = _nats(random), _nats(random)
        if punchable(alice, bob):
            break
    rtt = random.choice((0.05, 0.02, 0.15))
    offsets = (0.0, 30.0, -30.0, 1.5)
    pair = PeerPair.between(
        alice,
        bob,
        rtt=rtt,
        server_rtt=random.choice((None, rtt / 2, 2 * rtt)),
        loss=loss,
        clock_offsets=(random.choice(offsets), random.choice(offsets)),
        seed=random.randint(0, 10_000),
    )
    return pair, random.choice((True, False))


def punchable_worlds(*, loss: float = 0.0) -> st.SearchStrategy[tuple[PeerPair, bool]]:
    """`draw_punchable` for properties."""
    return st.randoms(use_true_random=False).map(partial(draw_punchable, loss=loss))
