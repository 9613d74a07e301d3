"""What an NTP server answers (RFC 5905 section 8, the server side), without I/O.

It keeps nothing of a client but what limits it.  An answer has exactly the 48 bytes of the smallest request, and there
is one per request: whoever forges its source address makes us send a third party no more than was sent to us, and no
more than the limit of an address.  What is no client's request is not answered at all, nor is what exceeds a limit: a
kiss of death would be one more packet to somebody who may not have asked.

The clock that is handed out is this machine's, whatever it is set by.  Two peers that ask the same server agree with
each other even when it is wrong, and that is what a punch needs.
"""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from typing import Final, final

import ntplib

from ..clock.ntp import PACKET_SIZE, to_ntp
from ..limits import TokenBucket, TokenBuckets, subscriber

__all__ = ["DEFAULT_LIMITS", "DISPERSION", "STRATUM", "NtpLimits", "NtpResponder", "NtpStatistics"]

STRATUM: Final = 10
"""How far from a reference clock we say to be: what chrony says of a clock that nothing disciplines.  Every real server
is preferred to it, and it is under the 16 of one that must not be used."""
DISPERSION: Final = 0.01
"""Seconds that our clock is said to be off: what a machine with a time daemon on the internet keeps to.  Without one
nobody knows, and the high stratum says that."""
_PRECISION: Final = -20  # 2^-20 s, a microsecond
_REFERENCE: Final = 0x7F7F0100  # 127.127.1.0, the name that ntpd gave to an undisciplined local clock
_CLIENT: Final = 3
_SERVER: Final = 4
_ORIGIN: Final = slice(24, 32)
_TRANSMIT: Final = slice(40, 48)


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class NtpLimits:
    """What one address may ask, and all together.

    Attributes:
      rate: answers per second to one IPv4 address or IPv6 /64 (RFC 6177): a node asks three times in 17 minutes, and
        many are behind one NAT.
      burst: answers to one of them at once.
      total_rate: answers per second in all.
      total_burst: answers at once in all.
      addresses: addresses whose limits are remembered; the least recently seen are forgotten.
    """

    rate: float = 8.0
    burst: float = 64.0
    total_rate: float = 2000.0
    total_burst: float = 4000.0
    addresses: int = 4096


DEFAULT_LIMITS: Final = NtpLimits()


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class NtpStatistics:
    """Requests by what became of them."""

    answered: int
    ignored: int
    limited: int


@final
class NtpResponder:
    """All requests of one server.  `stratum`: 1 to 15.

    A request is answered at once or never, so `receive` returns the answer: nothing is left to be handed out later, and
    no timer runs.
    """

    def __init__(self, limits: NtpLimits = DEFAULT_LIMITS, *, stratum: int = STRATUM) -> None:
        if not 1 <= stratum <= 15:
            raise ValueError(f"a server's stratum is 1 to 15, not {stratum}")
        self.limits = limits
        self.stratum = stratum
        self._sources: TokenBuckets[str] = TokenBuckets(limits.rate, limits.burst, limits.addresses)
        self._total = TokenBucket(limits.total_rate, limits.total_burst)
        self._answered = 0
        self._ignored = 0
        self._limited = 0

    def receive(
        self, data: bytes, source: IPv4Address | IPv6Address, *, received: float, sent: float, now: float
    ) -> bytes | None:
        """The answer to a packet of `source`; None for none.

        Args:
          received, sent: the wall clock when the packet came, and when the answer leaves.
          now: monotonic seconds, for the limits.
        """
        version, mode = (data[0] >> 3 & 7, data[0] & 7) if len(data) >= PACKET_SIZE else (0, 0)
        if mode != _CLIENT or not 1 <= version <= 4:
            self._ignored += 1
            return None
        if not (self._sources.take(subscriber(str(source)), now) and self._total.take(now)):
            self._limited += 1
            return None
        self._answered += 1
        answer = ntplib.NTPPacket(version=version, mode=_SERVER, tx_timestamp=to_ntp(max(sent, received)))
        answer.stratum = self.stratum
        answer.poll = data[2]
        answer.precision = _PRECISION
        answer.root_dispersion = DISPERSION
        answer.ref_id = _REFERENCE
        answer.ref_timestamp = answer.recv_timestamp = to_ntp(received)
        plain = bytes(answer.to_data())
        # The client's own bits, which need not be a time and are compared as they are.
        return plain[: _ORIGIN.start] + data[_TRANSMIT] + plain[_ORIGIN.stop :]

    def statistics(self) -> NtpStatistics:
        return NtpStatistics(answered=self._answered, ignored=self._ignored, limited=self._limited)
