"""A client's exchange with one NTP server (RFC 5905), without I/O.

Theory of operation.  A request says nothing about its sender.  All fields but version, mode and the transmit timestamp
are zero, and the timestamp is 64 random bits (draft-ietf-ntp-data-minimization).  They are kept here with the time at
which the request was really sent.  A server copies them into its answer.  So they serve as a sequence number, and prove
that the author of the answer has seen the request; an answer proves nothing else.  They are compared as bytes, since
two different timestamps can be equal as floats.  Each is valid for one answer, so a replayed answer is rejected.

With an answer there are four times: ours of sending (T1) and arrival (T4), and the server's of arrival (T2) and sending
(T3).  The true offset is within half the round trip of ``((T2 - T1) + (T3 - T4)) / 2``, however the delay is divided
between the two directions.  The error of the server's own clock adds to that: its root dispersion, half its root delay,
and its precision.

NTP counts seconds from 1900 in 32 bits, which overflow in 2036.  A timestamp is taken to be of the era that is nearest
to our own clock, which is right as long as our clock is less than 68 years off.

The packet format is ntplib's.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final, final

import ntplib

from ..errors import RemoteProtocolError
from ..limits import BoundedMap

__all__ = [
    "KISSES",
    "MAX_DISTANCE",
    "MAX_STRATUM",
    "PACKET_SIZE",
    "UNSYNCHRONISED",
    "KissOfDeath",
    "NtpExchange",
    "NtpRejected",
    "NtpSample",
    "WrongOrigin",
    "from_ntp",
    "to_ntp",
]

PACKET_SIZE: Final = 48
"""Bytes of a packet without extension fields and authentication (RFC 5905 section 7.3)."""
MAX_STRATUM: Final = 15
"""Hops from a reference clock; 16 means unsynchronised (RFC 5905 section 7.3)."""
MAX_DISTANCE: Final = 16.0
"""Seconds of root delay / 2 + root dispersion from which a server is not used: MAXDISP of RFC 5905 section 7.2."""
KISSES: Final = frozenset({"DENY", "RSTR", "RATE"})
"""The codes on which RFC 5905 section 7.4 has a client act.  Stratum 0 alone is no kiss of death: a server that has no
time yet sends it too (stratum 16 is sent as 0, figure 11), with INIT, STEP or nothing as the code."""
UNSYNCHRONISED: Final = "the server's clock is not synchronised"
"""The beginning of each error about a server that has no valid time."""
_MAX_PENDING: Final = 8  # Requests of one exchange that may still be answered.
_ERA: Final = 2.0**32
_DELTA: Final = float(ntplib.NTP.NTP_DELTA)
_MIN_DELAY: Final = 1e-6  # Unix seconds of 2026 have a resolution of 0.24 µs as floats, and four of them are used.
_ORIGIN: Final = slice(24, 32)
_TRANSMIT: Final = slice(40, 48)
_CLIENT: Final = 3
_SERVER: Final = 4
_VERSION: Final = 4
_LEAP_UNKNOWN: Final = 3


class NtpRejected(RemoteProtocolError):
    """A packet is no usable answer; the message says why."""


@final
class WrongOrigin(NtpRejected):
    """A packet answers no open request: it is forged, replayed, truncated, or too late."""


@final
class KissOfDeath(NtpRejected):
    """The server asks for no more or fewer requests (RFC 5905 section 7.4).

    Attributes:
      code: one of `KISSES`.
    """

    def __init__(self, code: str) -> None:
        super().__init__(f"the server asks to be left alone (kiss of death, {code})")
        self.code = code


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class NtpSample:
    """The result of one answer.

    Attributes:
      offset: seconds to add to the local clock to get the server's.
      delay: the round-trip time in seconds, without the server's processing time.
      uncertainty: seconds by which `offset` may be wrong at most, if the server does not lie.
      stratum: the server's stratum.
      received_at: local time at which the answer arrived.
    """

    offset: float
    delay: float
    uncertainty: float
    stratum: int
    received_at: float


@final
class NtpExchange:
    """Requests to one server and their answers.

    Times are those of any local clock that runs evenly and is near Unix time.  There are no timers: `ntp_client`
    decides when to make the next `request` and how long to wait, for all addresses of a server together.
    """

    def __init__(self) -> None:
        self._pending: BoundedMap[bytes, float] = BoundedMap(_MAX_PENDING)

    def request(self, nonce: bytes, now: float) -> bytes:
        """Make a request, to be sent at once.

        Args:
          nonce: eight fresh unpredictable bytes.
          now: the local time.

        Raises:
          ValueError: the nonce has another length.
        """
        if len(nonce) != 8:
            raise ValueError("a nonce must have eight bytes")
        if not any(nonce):
            nonce = b"\0\0\0\0\0\0\0\1"  # zero means "never" to a server
        self._pending.put(nonce, now)
        blank = bytes(ntplib.NTPPacket(version=_VERSION, mode=_CLIENT).to_data())
        return blank[: _TRANSMIT.start] + nonce

    def receive(self, data: bytes, now: float) -> NtpSample:
        """Read an answer that arrived at local time `now`.

        Raises:
          WrongOrigin: it answers no open request.
          KissOfDeath: the server wants no more or fewer requests.
          NtpRejected: the server's answer cannot be used.
        """
        sent = self._pending.pop(data[_ORIGIN])
        if sent is None or len(data) < PACKET_SIZE:
            # Checked first: a sender that has not seen the request must not even be able to end the exchange.
            raise WrongOrigin("a packet came that answers no request of this host")
        packet = ntplib.NTPPacket()
        packet.from_data(data)
        return _sample(packet, sent, now)


def _sample(packet: ntplib.NTPPacket, sent: float, now: float) -> NtpSample:
    if packet.mode != _SERVER:
        raise NtpRejected(f"mode {packet.mode}, not that of a server's answer")
    if not 3 <= packet.version <= _VERSION:
        raise NtpRejected(f"NTP version {packet.version}, not 3 or 4")
    if packet.stratum == 0:
        code = _kiss_code(packet.ref_id)
        raise KissOfDeath(code) if code in KISSES else NtpRejected(f"{UNSYNCHRONISED} (stratum 0, code {code})")
    if packet.leap == _LEAP_UNKNOWN:
        raise NtpRejected(f"{UNSYNCHRONISED} (leap indicator 3)")
    if packet.stratum > MAX_STRATUM:
        raise NtpRejected(f"{UNSYNCHRONISED} (stratum {packet.stratum})")
    if packet.tx_timestamp == 0 or packet.recv_timestamp == 0:
        raise NtpRejected("the server does not say when it answered")
    distance = packet.root_delay / 2 + packet.root_dispersion
    if distance >= MAX_DISTANCE:
        raise NtpRejected(f"{UNSYNCHRONISED}: it may be {distance:.0f} s off by its own account")
    if packet.precision > 0:
        raise NtpRejected(f"the server's clock has steps of 2^{packet.precision} s")
    precision = 2.0**packet.precision
    received, answered = from_ntp(packet.recv_timestamp, now), from_ntp(packet.tx_timestamp, now)
    held = answered - received
    delay = (now - sent) - held
    if held < -precision or delay < -precision - _MIN_DELAY:
        raise NtpRejected(
            "the server claims to have held the request for longer than the round trip, or for a negative time"
        )
    delay = max(delay, _MIN_DELAY)
    return NtpSample(
        offset=((received - sent) + (answered - now)) / 2,
        delay=delay,
        uncertainty=delay / 2 + distance + precision + _MIN_DELAY,
        stratum=packet.stratum,
        received_at=now,
    )


def _kiss_code(reference: int) -> str:
    letters = reference.to_bytes(4, "big").rstrip(b"\0").decode("ascii", "replace")
    return letters if letters.isalnum() and letters.isascii() else f"0x{reference:08x}"


def from_ntp(timestamp: float, near: float) -> float:
    """Convert an NTP timestamp to Unix seconds, in the era nearest to `near`, in Unix seconds."""
    unix = timestamp - _DELTA
    return unix + _ERA * math.floor((near - unix) / _ERA + 0.5)


def to_ntp(unix: float) -> float:
    """Convert a Unix time to an NTP timestamp, without the era."""
    return (unix + _DELTA) % _ERA
