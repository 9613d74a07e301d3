"""Finds the dialler's first flight among those that reach a QUIC listener, without I/O.

Anyone who can send with the peer's source address can forge a first flight, since Initial keys are derived from the
packet itself.  So a few *starts* may exist side by side.  The first handshake to be completed wins: to complete one, a
client has to receive our answers.  A start that raises, or receives more than a handshake takes, is dropped with
everything that was kept for it.

The first `MAX_STARTS` flights each begin a start at once.  A later client is first sent a Retry, to prove that it
receives our datagrams, which a forger does not.  Then it replaces the oldest start without that proof.  So forged
flights cost us four handshakes, and then an answer of 63 bytes each; they cost the dialler one round trip.
"""

from __future__ import annotations

import math
from contextlib import suppress
from typing import Final, final

from .. import host as machine
from ..errors import CarrierError
from .quic_connection import (
    CONNECTION_ID,
    DATAGRAM,
    Connection,
    QuicConfiguration,
    events,
    make_retry,
    read_token,
)

__all__ = ["HANDSHAKE_MAX", "FirstFlights", "destination_id", "is_first"]

MAX_STARTS: Final = 4
"""First flights that a listener handles side by side, and that it handles without a Retry."""
MAX_ALL_STARTS: Final = 16
"""First flights that a listener handles in all: a peer that receives our answers dials a path once."""
HANDSHAKE_MAX: Final = 128 * 1024
"""Bytes that the other side may send us before the handshake is done: a hundred times what it needs, as all of it may
be retransmitted.  Without a bound a message of 16 MiB would be collected, at quadratic cost."""


class _Start:
    """The connection of a client's first flight, and the bytes that may still come before its handshake is done."""

    __slots__ = ("connection", "room")

    def __init__(self, connection: Connection) -> None:
        self.connection: Final = connection
        self.room = HANDSHAKE_MAX


@final
class FirstFlights:
    """The starts of one listener, until a handshake is completed; a dialler has none."""

    def __init__(self, configuration: QuicConfiguration) -> None:
        self._configuration = configuration
        self._starts: dict[bytes, _Start] = {}
        self._begun = 0  # starts in all, including those that are gone
        self._secret: bytes | None = None  # the key of Retry tokens
        self._last_words: list[bytes] = []  # the last datagrams of starts that failed, and Retries
        self._completed: tuple[Connection, list[events.QuicEvent]] | None = None

    def receive(self, datagram: bytes, now: float) -> None:
        """Take a datagram as it came; it may complete a handshake (`take_completed`)."""
        destination = destination_id(datagram)
        if destination is None:
            return
        for key, start in self._starts.items():
            if destination in (key, start.connection.host_cid):
                break
        else:
            if not is_first(datagram):
                return
            key = destination
            try:
                found = self._begin(datagram, destination)
            except CarrierError:
                return
            if found is None:
                return
            start = self._starts[key] = found
        start.room -= len(datagram)
        try:
            if start.room < 0:
                raise CarrierError("too many bytes before the end of the QUIC handshake")
            start.connection.receive([datagram], now)
            self._look_at(key, start.connection, now)
        except CarrierError:
            self._starts.pop(key, None)

    def take_completed(self) -> tuple[Connection, list[events.QuicEvent]] | None:
        """The connection whose handshake is done, and its events so far; None before that, and on later calls."""
        completed, self._completed = self._completed, None
        return completed

    def transmit(self, now: float) -> list[bytes]:
        """Datagrams to send now."""
        datagrams, self._last_words = self._last_words, []
        for key, start in list(self._starts.items()):
            try:
                datagrams += start.connection.transmit(now)
            except CarrierError:
                del self._starts[key]
        return datagrams

    @property
    def deadline(self) -> float:
        """When `handle_timer` is to be called; infinity while no timer runs."""
        return min((start.connection.deadline for start in self._starts.values()), default=math.inf)

    def handle_timer(self, now: float) -> None:
        """Handle the timers that are due."""
        for key, start in list(self._starts.items()):
            try:
                start.connection.handle_timer(now)
                self._look_at(key, start.connection, now)
            except CarrierError:
                self._starts.pop(key, None)

    def close(self) -> None:
        """Close all starts; `transmit` returns the datagrams that tell the clients."""
        for start in self._starts.values():
            with suppress(CarrierError):
                start.connection.close()

    def _begin(self, datagram: bytes, destination: bytes) -> _Start | None:
        """A start for a first datagram, if it gets one; see the module's docstring."""
        if self._begun >= MAX_ALL_STARTS:
            return None
        original = None
        if self._begun >= MAX_STARTS:
            self._secret = self._secret or machine.current().entropy(32)
            original = read_token(datagram, secret=self._secret)
            if original is None:
                if len(self._last_words) < MAX_STARTS and (retry := make_retry(datagram, secret=self._secret)):
                    self._last_words.append(retry)
                return None
            if len(self._starts) >= MAX_STARTS:
                unproven = next((key for key, each in self._starts.items() if not each.connection.validated), None)
                if unproven is None:
                    return None
                del self._starts[unproven]
        self._begun += 1
        if original is None:
            return _Start(Connection(self._configuration, destination=destination))
        return _Start(Connection(self._configuration, destination=original, retry=destination))

    def _look_at(self, key: bytes, connection: Connection, now: float) -> None:
        seen = connection.events()
        if any(isinstance(event, events.HandshakeCompleted) for event in seen):
            self._completed = connection, seen
            self._starts.clear()
        elif any(isinstance(event, events.ConnectionTerminated) for event in seen):
            self._starts.pop(key, None)
            self._last_words += connection.transmit(now)  # tells the client why


def destination_id(datagram: bytes) -> bytes | None:
    """The destination connection id of a datagram's first packet (RFC 8999 §5)."""
    if len(datagram) < 1 + CONNECTION_ID:
        return None
    if not datagram[0] & 0x80:
        return datagram[1 : 1 + CONNECTION_ID]
    length = datagram[5]
    return datagram[6 : 6 + length] if 8 <= length <= 20 and len(datagram) > 6 + length else None


def is_first(datagram: bytes) -> bool:
    """Whether this can be a client's first datagram: an Initial of version 1, padded (RFC 9000 §14.1, §17.2.2)."""
    return len(datagram) >= DATAGRAM and datagram[0] & 0xF0 == 0xC0 and datagram[1:5] == b"\0\0\0\1"
