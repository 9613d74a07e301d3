"""One client's exchange with one NTP server (RFC 5905), without I/O.

Theory of operation.  A request says nothing about its sender: every field is zero but version, mode and the transmit
timestamp, and that is 64 random bits (draft-ietf-ntp-data-minimization), kept here beside the time at which the request
really left.  A server copies those bits into its answer, so they are at once a sequence number and the only thing that
an answer proves: that its author saw the request.  They are compared as they came, as bytes; as floats two different
timestamps can be equal.  Each is good for one answer, so a replayed one is nothing.

An answer gives four times: ours of sending (T1) and of arrival (T4), the server's of arrival (T2) and of sending (T3).
The truth is then within half the round trip of ``((T2 - T1) + (T3 - T4)) / 2`` whatever the two directions took, give
or take what the server itself may be off: its root dispersion and half its root delay, and the steps of its clock.

NTP counts seconds in 32 bits from 1900, so that they begin again in 2036; a timestamp is taken to be of the era that
is nearest to our own clock, which is right as long as that is less than 68 years off.

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
"""Seconds of root delay / 2 + root dispersion from which a server has lost its way: MAXDISP of RFC 5905 section 7.2."""
KISSES: Final = frozenset({"DENY", "RSTR", "RATE"})
"""What RFC 5905 section 7.4 has a client act upon.  Stratum 0 alone is no kiss of death: it is also how a server that
has no time yet says so (stratum 16 goes out as 0, figure 11), with INIT, STEP or nothing in the code's place."""
UNSYNCHRONISED: Final = "the server's clock is not synchronised"
"""How each error begins that says so."""
_MAX_PENDING: Final = 8  # Requests of one exchange that may still be answered.
_ERA: Final = 2.0**32
_DELTA: Final = float(ntplib.NTP.NTP_DELTA)
_MIN_DELAY: Final = 1e-6  # A second of 2026 has steps of 0.24 µs as a float, and there are four of them.
_ORIGIN: Final = slice(24, 32)
_TRANSMIT: Final = slice(40, 48)
_CLIENT: Final = 3
_SERVER: Final = 4
_VERSION: Final = 4
_LEAP_UNKNOWN: Final = 3


class NtpRejected(RemoteProtocolError):
    """A packet that is no usable answer; the message says why."""


@final
class WrongOrigin(NtpRejected):
    """It answers nothing that was asked: forged, replayed, cut short, or older than what is remembered."""


@final
class KissOfDeath(NtpRejected):
    """The server asks to be left alone, or to be asked less often (RFC 5905 section 7.4).

    Attributes:
      code: one of `KISSES`.
    """

    def __init__(self, code: str) -> None:
        super().__init__(f"the server asks to be left alone (kiss of death, {code})")
        self.code = code


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class NtpSample:
    """What one answer says.

    Attributes:
      offset: seconds to add to the local clock for the server's.
      delay: seconds that the two packets took together.
      uncertainty: seconds by which `offset` may be wrong at most, if the server speaks the truth.
      stratum: of the server.
      received_at: local time at which the answer came.
    """

    offset: float
    delay: float
    uncertainty: float
    stratum: int
    received_at: float


@final
class NtpExchange:
    """Requests to one server and their answers, in the time of any one local clock that runs evenly near Unix time.

    A `request` is made when its owner wants one, and given up when it wants another.  No timer runs here: how often a
    server is asked, and how long it is waited for, goes by all of its addresses together (`ntp_client`).
    """

    def __init__(self) -> None:
        self._pending: BoundedMap[bytes, float] = BoundedMap(_MAX_PENDING)

    def request(self, nonce: bytes, now: float) -> bytes:
        """A request to send at once, at local time `now`.  `nonce`: eight fresh unpredictable bytes."""
        if len(nonce) != 8:
            raise ValueError("a nonce has eight bytes")
        if not any(nonce):
            nonce = b"\0\0\0\0\0\0\0\1"  # zero means "never" to a server
        self._pending.put(nonce, now)
        blank = bytes(ntplib.NTPPacket(version=_VERSION, mode=_CLIENT).to_data())
        return blank[: _TRANSMIT.start] + nonce

    def receive(self, data: bytes, now: float) -> NtpSample:
        """Read an answer that came at local time `now`.

        Raises:
          WrongOrigin: it answers nothing that is still open; what is open stays so.
          KissOfDeath: the server wants no more requests.
          NtpRejected: the server answered, and what it says cannot be used.
        """
        sent = self._pending.pop(data[_ORIGIN])
        if sent is None or len(data) < PACKET_SIZE:
            # Before all that it says: who did not see the request has no say, not even about the end of the exchange.
            raise WrongOrigin("something came that answers no request of ours")
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
        raise NtpRejected("the server claims to have had the request for longer than we waited, or less than no time")
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
    """Unix seconds of an NTP timestamp, in the era that brings it nearest to `near`."""
    unix = timestamp - _DELTA
    return unix + _ERA * math.floor((near - unix) / _ERA + 0.5)


def to_ntp(unix: float) -> float:
    """The NTP timestamp of a Unix time, without its era."""
    return (unix + _DELTA) % _ERA
