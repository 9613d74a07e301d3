"""How common kinds of internet access are, to estimate which share of random pairs of peers would connect."""

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
    """A kind of internet access; all numbers are shares from 0 to 1.

    Attributes:
      weight: the share of this kind in its population.
      open: the share of its hosts that are public or forwarded.
      symmetric: the share of its NATs whose mapping is not endpoint-independent.
      eif, adf: the shares of its other NATs with this filtering; the rest filters address-and-port-dependently.
      no_udp: the share of its hosts without UDP.
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
    """Kinds of internet access, each with its share of all peers.

    The shares are illustrative but based on measurements.  About 40 % of cellular networks are symmetric, under 2 % of
    home CPE, and CGN are in between (Richter et al. 2016).  One host in five of a peer-to-peer swarm was open in 2011,
    and one NAT in nine was endpoint-dependent (Halkes and Pouwelse 2011).  Each kind is one preset, even if real peers
    have several NATs: the shares describe what a peer looks like from outside.
    """

    __slots__ = ("kinds", "name")

    def __init__(self, name: str, *accesses: _Access) -> None:
        self.name: Final = name
        self.kinds: tuple[tuple[float, tuple[NatConfig, ...]], ...] = tuple(
            kind for access in accesses for kind in access.kinds()
        )
        """Pairs of a share and the NATs of that kind; the shares add up to 1."""

    def __repr__(self) -> str:
        return f"<Population {self.name}>"

    def sample(self, random: Random) -> Place:
        """Draw a peer's place with exactly these shares, for counting; Hypothesis does not guarantee shares."""
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
"""By name.  "consumer": 65 % homes, 15 % homes behind CGN, 20 % cellular; "everybody": the same in about these
proportions, and 10 % offices and clouds."""
