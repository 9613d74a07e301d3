"""The answers of an NTP server (RFC 5905 section 8, the server side), without I/O.

The only state per client is its rate limit.  Each request gets one answer of exactly 48 bytes, the size of the smallest
request, so a forged source address gives no amplification and is subject to the limit per address.  Other packets are
not answered, and neither are requests over a limit: a kiss-o'-death packet would be one more packet to a host that may
not have asked.

The server gives out this host's clock, however that is set.  Two peers that ask the same server agree with each other
even if the server is wrong, and that is enough for punching.
"""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from typing import Final, final

import ntplib

from ..clock.ntp import PACKET_SIZE, to_ntp
from ..limits import SubscriberRates, TokenBucket

__all__ = ["DEFAULT_LIMITS", "DISPERSION", "STRATUM", "NtpLimits", "NtpResponder", "NtpStatistics"]

STRATUM: Final = 10
"""The advertised distance from a reference clock: what chrony uses for an undisciplined local clock.  Clients prefer
every real server, and it is below 16, which means unsynchronised."""
DISPERSION: Final = 0.01
"""Seconds of root dispersion that are advertised: the accuracy of a host whose NTP daemon uses servers on the internet.
Without a daemon the accuracy is unknown, which the high stratum indicates."""
_PRECISION: Final = -20  # 2^-20 s, a microsecond
_REFERENCE: Final = 0x7F7F0100  # 127.127.1.0, ntpd's reference id of an undisciplined local clock
_CLIENT: Final = 3
_SERVER: Final = 4
_ORIGIN: Final = slice(24, 32)
_TRANSMIT: Final = slice(40, 48)


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class NtpLimits:
    """Rate limits per address, per network and in all.

    Attributes:
      rate: answers per second to one IPv4 address or IPv6 /64 (RFC 6177); each wider network may have four times as
        many as the one within it.  A node asks three times in 17 minutes, and many nodes may be behind one NAT.
      burst: answers to one such address at once.
      total_rate: answers per second in all.
      total_burst: answers at once in all.
      addresses: addresses and networks whose limits are remembered; the least recently seen are forgotten.
    """

    rate: float = 8.0
    burst: float = 64.0
    total_rate: float = 2000.0
    total_burst: float = 4000.0
    addresses: int = 8192


DEFAULT_LIMITS: Final = NtpLimits()


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class NtpStatistics:
    """Counts of packets by result."""

    answered: int
    ignored: int
    limited: int


@final
class NtpResponder:
    """Answers the requests to one server; `stratum`: 1 to 15.

    A request is answered at once or never, so `receive` returns the answer, and there is no queue and no timer.
    """

    def __init__(self, limits: NtpLimits = DEFAULT_LIMITS, *, stratum: int = STRATUM) -> None:
        if not 1 <= stratum <= 15:
            raise ValueError(f"a server's stratum is 1 to 15, not {stratum}")
        self.limits = limits
        self.stratum = stratum
        self._sources = SubscriberRates(limits.rate, limits.burst, limits.addresses)
        self._total = TokenBucket(limits.total_rate, limits.total_burst)
        self._answered = 0
        self._ignored = 0
        self._limited = 0

    def receive(
        self, data: bytes, source: IPv4Address | IPv6Address, *, received: float, sent: float, now: float
    ) -> bytes | None:
        """The answer to a packet from `source`, or None.

        Args:
          received, sent: the wall clock when the packet arrived, and when the answer leaves.
          now: monotonic seconds, for the limits.
        """
        version, mode = (data[0] >> 3 & 7, data[0] & 7) if len(data) >= PACKET_SIZE else (0, 0)
        if mode != _CLIENT or not 1 <= version <= 4:
            self._ignored += 1
            return None
        if not (self._sources.take(str(source), now) and self._total.take(now)):
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
        # The client's transmit timestamp, bit for bit: clients compare it, and it need not be a real time.
        return plain[: _ORIGIN.start] + data[_TRANSMIT] + plain[_ORIGIN.stop :]

    def statistics(self) -> NtpStatistics:
        return NtpStatistics(answered=self._answered, ignored=self._ignored, limited=self._limited)
