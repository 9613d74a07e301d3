"""How common which kinds of access to the internet are, to answer what share of random pairs of peers would connect."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, final

from ..sim import NatConfig, presets
from .worlds import Place

if TYPE_CHECKING:
    from random import Random

__all__ = ["POPULATIONS", "Population"]


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class _Access:
    """A kind of access to the internet, in shares of 1.

    Attributes:
      weight: of it in its population.
      open: of its hosts that are public or forwarded.
      symmetric: of its NATs whose mapping is not endpoint-independent.
      eif, adf: of its other NATs, by filtering; the rest is address-and-port-dependent.
      no_udp: of its hosts.
    """

    weight: float
    open: float
    symmetric: float
    eif: float
    adf: float
    no_udp: float

    def kinds(self) -> list[tuple[float, tuple[NatConfig, ...]]]:
        behind = self.weight * (1 - self.open) * (1 - self.no_udp)
        cone = behind * (1 - self.symmetric)
        return [
            (self.weight * self.open * (1 - self.no_udp), ()),
            (cone * self.eif, (presets.FULL_CONE,)),
            (cone * self.adf, (presets.RESTRICTED,)),
            (cone * (1 - self.eif - self.adf), (presets.LINUX,)),
            (behind * self.symmetric, (presets.LINUX_SYMMETRIC,)),
            (self.weight * self.no_udp, (presets.UDP_BLOCKED,)),
        ]


@final
class Population:
    """Kinds of access to the internet, each with its share of all peers.

    The shares are illustrative, but anchored in measurements: cellular networks are symmetric for about 40 % and home
    CPE for under 2 % (Richter et al. 2016), CGN in between; one host in five of a peer-to-peer swarm was open in 2011
    and one NAT in nine endpoint-dependent (Halkes and Pouwelse 2011).  Each kind is one preset, also where
    real peers have several NATs, so the shares are of what a peer looks like from outside.
    """

    __slots__ = ("kinds", "name")

    def __init__(self, name: str, *accesses: _Access) -> None:
        self.name: Final = name
        self.kinds: tuple[tuple[float, tuple[NatConfig, ...]], ...] = tuple(
            kind for access in accesses for kind in access.kinds()
        )
        """Pairs of a share, of 1 in all, and the NATs of that kind."""

    def __repr__(self) -> str:
        return f"<Population {self.name}>"

    def sample(self, random: Random) -> Place:
        """A peer's place, drawn with the shares exactly, which Hypothesis does not promise: for counting."""
        (behind,) = random.choices([nats for _, nats in self.kinds], [share for share, _ in self.kinds])
        return Place(nats=behind)


_CELLULAR: Final = {"open": 0.0, "symmetric": 0.40, "eif": 0.20, "adf": 0.05, "no_udp": 0.02}
_CGN: Final = {"open": 0.0, "symmetric": 0.11, "eif": 0.25, "adf": 0.05, "no_udp": 0.01}
_CORPORATE: Final = {"open": 0.05, "symmetric": 0.60, "eif": 0.05, "adf": 0.05, "no_udp": 0.20}
_HOME: Final = {"open": 0.03, "symmetric": 0.02, "eif": 0.10, "adf": 0.03, "no_udp": 0.01}

POPULATIONS: Final = {
    each.name: each
    for each in (
        Population("home", _Access(weight=1.0, **_HOME)),
        Population("home-and-cgn", _Access(weight=0.82, **_HOME), _Access(weight=0.18, **_CGN)),
        Population(
            "consumer",
            _Access(weight=0.65, **_HOME),
            _Access(weight=0.15, **_CGN),
            _Access(weight=0.20, **_CELLULAR),
        ),
        Population(
            "everybody",
            _Access(weight=0.58, **_HOME),
            _Access(weight=0.14, **_CGN),
            _Access(weight=0.18, **_CELLULAR),
            _Access(weight=0.10, **_CORPORATE),
        ),
        Population("cellular", _Access(weight=1.0, **_CELLULAR)),
        Population("swarm-2011", _Access(weight=1.0, open=0.21, symmetric=0.11 / 0.79, eif=0.10, adf=0.05, no_udp=0.0)),
    )
}
"""By name; "consumer": 65 % homes, 15 % homes behind CGN, 20 % cellular; "everybody": that and 10 % offices, clouds."""
