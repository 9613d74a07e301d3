"""When and at which ports two peers punch if an answer is late or lost.  Pure functions.

Theory of operation.  Unix time is divided into periods of P seconds; *bucket* k begins at its *boundary*, k * P.  The
initiator of a punch names the first boundary that leaves enough time, B, and with it the next one, B + 1.  If the
answer is late or lost, both sides still know two instants at which the other may punch, and the ports that it then
uses.  The ports are derived from a secret of the session and the number of the bucket.  The secret is sent sealed, so
nobody else can be there first.  The next bucket has other ports, since a NAT may remember a failed port as refused.

A side that knows only the secret and its own clock computes the boundary itself.  Two clocks that are less than half a
period apart then give the same boundary or adjacent ones.  `boundaries_to_serve` returns the boundaries at which a side
has to be, so that a peer with an equally wrong clock is met at one of them.

Instants are floats, Unix seconds on the corrected clock.
"""

from __future__ import annotations

import hmac
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, final

__all__ = [
    "AVOIDED_PORTS",
    "Boundary",
    "boundaries_left",
    "boundaries_to_serve",
    "boundary_rendezvous",
    "bucket_ports",
    "can_meet",
]

AVOIDED_PORTS: Final = frozenset({1719, 1720, 1723, 2000, 5060, 5061, 6566, 6667, 10080})
"""Ports whose packets NATs may rewrite: H.323, PPTP, SCCP, SIP, SANE, IRC, Amanda (the helpers of Linux's conntrack and
the "application layer gateways" of home routers)."""
_MIN_SECRET: Final = 16  # Bytes: too many to guess.
_SHORTEST: Final = 0.001  # Seconds in a period; up to the latest time, boundaries are then distinct floats.
_LATEST: Final = 1e11
_MAX_BUCKET: Final = int(3 * _LATEST / _SHORTEST)
_CONTEXT: Final = b"warpgate-trio bucket ports v1\0"


@final
@dataclass(frozen=True, slots=True)
class Boundary:
    """An instant at which two peers may meet.

    Attributes:
      bucket: its number, for `bucket_ports`.
      instant: Unix seconds.
    """

    bucket: int
    instant: float


def boundary_rendezvous(now: float, period: float, lead: float) -> tuple[Boundary, Boundary]:
    """The first boundary that is at least `lead` seconds away, and the one after it (B and B + 1).

    Args:
      now: Unix seconds, corrected.
      period: seconds between boundaries.
      lead: seconds needed to get ready.

    Raises:
      ValueError: the period is not positive, the lead negative, or one of the three is not finite or out of range.
    """
    _check(now, period, lead)
    bucket = math.ceil((now + lead) / period)
    while bucket * period < now + lead:  # corrects rounding errors of the division
        bucket += 1
    while (bucket - 1) * period >= now + lead:
        bucket -= 1
    return _boundary(bucket, period), _boundary(bucket + 1, period)


def can_meet(period: float, uncertainty: float) -> bool:
    """Whether two clocks that may differ by `uncertainty` can meet at a boundary: it is less than half a period."""
    return 2 * uncertainty < period


def boundaries_to_serve(now: float, period: float, lead: float, uncertainty: float) -> tuple[Boundary, ...]:
    """The boundaries at which to be, to meet a peer that computes the first boundary by its own clock.

    That is one boundary where every possible time of the peer's clock gives the same one, else two.

    Args:
      now, period, lead: as in `boundary_rendezvous`.
      uncertainty: seconds by which the two clocks may differ: the sum of both clocks' uncertainties.

    Raises:
      ValueError: as `boundary_rendezvous`; or the uncertainty is negative, or too large for the period (`can_meet`).
    """
    _check(now, period, lead)
    if not uncertainty >= 0 or not can_meet(period, uncertainty):
        raise ValueError(f"clocks that differ by {uncertainty} s cannot meet at boundaries {period} s apart")
    first, second = boundary_rendezvous(max(now - uncertainty, 0.0), period, lead)
    last, _ = boundary_rendezvous(now + uncertainty, period, lead)
    return (first,) if first == last else (first, second)


def boundaries_left(bucket: int, period: float, now: float, lead: float, uncertainty: float) -> tuple[Boundary, ...]:
    """Of B = `bucket` and B + 1, which a peer has named, those that can still be reached even if our clock is slow.

    Raises:
      ValueError: as `boundary_rendezvous`; or the uncertainty is negative or no number, or `bucket` is out of range.
    """
    _check(now, period, lead)
    if not uncertainty >= 0:
        raise ValueError(f"an uncertainty cannot be negative: {uncertainty}")
    named = (_boundary(bucket, period), _boundary(bucket + 1, period))
    return tuple(each for each in named if each.instant - (now + uncertainty) >= lead)


def bucket_ports(secret: bytes, bucket: int, n: int, low: int, high: int) -> tuple[int, ...]:
    """`n` distinct ports from `low` to `high` without `AVOIDED_PORTS`: the same for both peers, unknown to others.

    The first `k` of them do not depend on `n`.

    Args:
      secret: the session's secret, at least 16 bytes.
      bucket: the number of the boundary; not to be used twice with one secret.

    Raises:
      ValueError: the secret is too short, the range is invalid or has fewer than `n` usable ports, or the bucket is out
        of range.
    """
    if len(secret) < _MIN_SECRET:
        raise ValueError(f"a secret must have at least {_MIN_SECRET} bytes")
    if not 1 <= low <= high <= 65535:
        raise ValueError(f"{low} to {high} is not a range of ports")
    if not 0 <= bucket <= _MAX_BUCKET:
        raise ValueError(f"the bucket {bucket} is out of range")
    size = high - low + 1
    usable = size - sum(low <= port <= high for port in AVOIDED_PORTS)
    if not 0 <= n <= usable:
        raise ValueError(f"cannot choose {n} ports from {low} to {high}: {usable} are usable")
    # A partial Fisher-Yates shuffle: every choice is equally likely, and the cost does not depend on the size of the
    # range.  Swapped elements are kept in a dict.
    numbers = _numbers(secret, bucket)
    swapped: dict[int, int] = {}
    ports: list[int] = []
    for position in range(size):
        if len(ports) == n:
            break
        chosen = position + _below(size - position, numbers)
        port = low + swapped.get(chosen, chosen)
        swapped[chosen] = swapped.get(position, position)
        if port not in AVOIDED_PORTS:
            ports.append(port)
    return tuple(ports)


def _numbers(secret: bytes, bucket: int) -> Iterator[int]:
    """An endless sequence of 32-bit numbers: HMAC-SHA256 of the bucket and a counter."""
    counter = 0
    while True:
        block = hmac.digest(secret, _CONTEXT + bucket.to_bytes(8, "big") + counter.to_bytes(4, "big"), "sha256")
        yield from (int.from_bytes(block[start : start + 4], "big") for start in range(0, len(block), 4))
        counter += 1


def _below(limit: int, numbers: Iterator[int]) -> int:
    """A number below `limit`, each equally likely: numbers of the last, incomplete multiple of `limit` are skipped."""
    fair = (1 << 32) // limit * limit
    return next(number for number in numbers if number < fair) % limit


def _boundary(bucket: int, period: float) -> Boundary:
    if not 0 <= bucket <= _MAX_BUCKET:
        raise ValueError(f"the bucket {bucket} is out of range")
    return Boundary(bucket, bucket * period)


def _check(now: float, period: float, lead: float) -> None:
    if not (0 <= now <= _LATEST and _SHORTEST <= period <= _LATEST and 0 <= lead <= _LATEST):
        raise ValueError(f"no rendezvous is possible at {now} + {lead} with period {period}")
