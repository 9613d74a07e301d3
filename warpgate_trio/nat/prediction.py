"""Predicts the external port of the next mapping: ranked guesses with probabilities, from a profile and fresh samples.

Theory of operation.  The basis of a guess depends on the NAT:

* No translation: the local port.
* Endpoint-independent mapping: the port that a server just saw this socket use.  For a socket that no server has seen,
  the guess follows the allocation, as below.
* Preserving: the local port, plus the offset.  The socket should not have sent anything yet: an endpoint-dependent NAT
  gives the preserved port to the first destination, and another port to the peer.
* Sequential: the last port seen plus delta·(1 + ours + c).  `ours` counts mappings that this host makes in between, and
  c those of other hosts, a Poisson process over the time since that sample.
* Random: no guess; spraying is for this case.
* Unknown mapping: the port that a server saw, at even odds.

The probabilities serve to order guesses and to share out budgets.  Guesses are distinct and valid ports, best first,
whatever a profile says.  A peer predicts from its own profile and sends the ports to this side, which uses
`MAX_PREDICTED` of them at most.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import exp, lgamma, log
from typing import Final, final

from ..address.nat_profile import Allocation, TransportProfile
from .classify import Binding

__all__ = ["MAX_PREDICTED", "PredictedPort", "foreign_rate", "predict_ports"]

MAX_PREDICTED: Final = 32
"""Ports of one prediction: if the first few miss, a sequential NAT is too busy to predict.  The original used 8 to
16."""
MAX_RATE: Final = 1000.0
"""Allocations for other hosts per second that are believed: above, no port is likely any more."""
_SURE: Final = 0.99  # what a server saw, until the mapping or the network changes
_PRESERVED: Final = 0.95  # unless another host has that port (Ford 2005, 6.3)
_EVEN: Final = 0.5
_IDLE: Final = 0.1  # the prior of the rate: one a second, weighted as a tenth of a second of samples
_PRIOR_TIME: Final = 0.1


@final
@dataclass(frozen=True, slots=True)
class PredictedPort:
    """An external port, and the chance that the next mapping has it."""

    port: int
    probability: float


def foreign_rate(profile: TransportProfile, samples: Sequence[Binding]) -> float:
    """Allocations per second that a sequential NAT makes for other hosts, by the gaps between samples of new mappings.

    The mean of a Gamma distribution: a prior of `_IDLE` allocations in `_PRIOR_TIME` seconds, updated by the samples.
    """
    ordered = sorted(samples, key=lambda each: each.at)
    if profile.allocation is not Allocation.SEQUENTIAL or len(ordered) < 2:
        return _IDLE / _PRIOR_TIME
    foreign, seconds = 0, 0.0
    for sooner, later in pairwise(ordered):
        steps, rest = divmod(later.mapped[1] - sooner.mapped[1], profile.delta)
        if rest == 0 and steps >= 1:  # not a wrap
            foreign += steps - 1
            seconds += max(0.0, later.at - sooner.at)
    return min(MAX_RATE, (foreign + _IDLE) / (seconds + _PRIOR_TIME))


def predict_ports(
    profile: TransportProfile,
    samples: Sequence[Binding] = (),
    *,
    count: int,
    local_port: int = 0,
    fresh: bool = True,
    elapsed: float = 0.0,
    ours: int = 0,
    rate: float | None = None,
) -> list[PredictedPort]:
    """The `count` likeliest external ports of the next mapping of a socket, best first; none for a random NAT.

    Args:
      samples: recent answers of servers to this socket and to others behind the same NAT.
      count: how many ports are wanted, at most `MAX_PREDICTED`.
      local_port: the local port of the socket; 0 for unknown.
      fresh: whether the socket has sent nothing yet.
      elapsed: seconds from the last sample to the mapping.
      ours: mappings that this host makes in between.
      rate: allocations for other hosts per second; by default `foreign_rate` of the samples.
    """
    count = max(0, min(count, MAX_PREDICTED))
    guesses: dict[int, float] = {}

    def guess(port: int, probability: float) -> None:
        if 0 < port <= 65535:
            guesses[port] = max(guesses.get(port, 0.0), probability)

    ordered = sorted(samples, key=lambda each: each.at)
    seen = [each.mapped[1] for each in ordered if each.local[1] == local_port]
    independent = profile.endpoint_independent
    if profile.translated is False:
        guess(local_port, _SURE)
    elif independent and seen:
        guess(seen[-1], _SURE)
    else:
        if independent is None and seen:
            guess(seen[-1], _EVEN)
        if profile.allocation is Allocation.PRESERVING and local_port:
            odds = _PRESERVED if fresh or independent else 1 - _PRESERVED
            guess((local_port + profile.delta) % 65536, odds if independent is not None or not seen else _EVEN)
        elif profile.allocation is Allocation.SEQUENTIAL and ordered:
            known = foreign_rate(profile, ordered) if rate is None else rate
            mean = max(0.0, min(known, MAX_RATE)) * max(0.0, elapsed)
            for port, probability in _sequence(profile, ordered[-1].mapped[1], mean, max(0, ours), count):
                guess(port, probability)
    best = sorted(guesses.items(), key=lambda each: -each[1])[:count]
    total = max(1.0, sum(guesses.values()))  # guesses for different reasons may add up to more than 1
    return [PredictedPort(port, probability / total) for port, probability in best]


def _sequence(profile: TransportProfile, last: int, mean: float, ours: int, count: int) -> list[tuple[int, float]]:
    """The likeliest `count` ports after `last`, when other hosts make about `mean` allocations in between."""
    # The likeliest numbers of a Poisson process lie around its mean.
    first = max(0, int(mean) - count)
    likeliest = sorted(range(first, first + 2 * count + 1), key=lambda c: -_poisson(c, mean))[:count]
    found: dict[int, float] = {}
    for foreign in likeliest:
        port = last + profile.delta * (1 + ours + foreign)
        if not profile.low <= port <= profile.high:  # the sequence wraps around
            port = profile.low + (port - profile.low) % profile.ports
        found[port] = found.get(port, 0.0) + _poisson(foreign, mean)
    return list(found.items())


def _poisson(k: int, mean: float) -> float:
    if mean <= 0:
        return 1.0 if k == 0 else 0.0
    return exp(k * log(mean) - mean - lgamma(k + 1))
