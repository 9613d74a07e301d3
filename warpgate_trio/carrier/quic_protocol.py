"""One QUIC connection without I/O: datagrams, ``now`` and plaintext in, datagrams and plaintext out.

qh3 does the work, behind `warpgate_trio.carrier.quic_connection`, where each of its errors becomes a `CarrierError`.
`warpgate_trio.carrier.quic_starts` finds the dialler among those that send first datagrams to a listener.

The stream.  Each side opens one unidirectional stream and never another.  Together they are the carrier's one
bidirectional byte stream.  There are two for these reasons:

* Either side may send first.
* For a stream of its own, a side learns from qh3 whether the peer has acknowledged all of it, including the end.  Both
  sides need that before they may stop, since no kernel goes on retransmitting after a close.

Trust is as in the TLS carrier.  The dialled side proves with its self-signed certificate that it holds a key, and the
dialler compares the key.  There is no certificate authority, no name and no ticket, so no resumption and no 0-RTT.

What is fixed: QUIC version 1; datagrams of at most `DATAGRAM` bytes, without probes for more (PLPMTUD); the fixed bit
is always set, which tells QUIC from STUN on a shared socket (RFC 9443).  Greasing that bit (RFC 9287) has to be
negotiated, which qh3 does not do.  With Ed25519 certificates all lengths are the same in each run.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Final, final

from ..errors import CarrierError
from ._pinning import certificate_key
from .quic_connection import (
    DATAGRAM,
    Connection,
    QuicConfiguration,
    events,
    make_configuration,
)
from .quic_starts import HANDSHAKE_MAX, FirstFlights, destination_id

if TYPE_CHECKING:
    from ..identity import Identity
    from ._carrier import Buffer

__all__ = ["QuicProtocol"]

WINDOW: Final = 8 * 1024 * 1024
"""Bytes of the flow control window that we grant: the Link's largest credit.  It also bounds what a hostile peer can
make us hold out of order."""
IDLE_TIMEOUT: Final = 100.0
"""Seconds of the idle timeout, after which the connection ends (RFC 9000 §10.1).  The Link sends a PING after 66 s at
the latest, and gives up before this; the rest is for a carrier that waits for its commit."""
EARLY_MAX: Final = 8 * 1024
"""Bytes that the dialler sends before it knows that the server has received the end of its handshake.  qh3 2.1 does not
retransmit that while the congestion window, 12 datagrams at first, is full of data; and without it the server cannot
acknowledge the data."""
PATIENCE: Final = 0.25
"""Seconds of silence after which the pauses between retransmissions are at least half of that silence.  qh3 2.1 has no
backoff (RFC 9002 §6.2.1) between the end and the confirmation of its handshake: it sent 20,000 datagrams in 30 s to a
peer on loopback that fell silent then."""
IDLE: Final = 1.0
"""Seconds from the peer's last datagram to our next data from which on they do not count as silence: TCP's least
retransmission timeout (RFC 6298 §2.4).  A shorter time may be a pause on full lines, which earlier probes would only
fill further."""
MAX_REASON: Final = 100
"""Characters of the peer's reason for closing that are shown."""

_END: Final = b"\0"
# The last byte of a stream, which is not plaintext.  qh3 2.1 does not always retransmit a lost STREAM frame that holds
# nothing but the FIN (6 of 500 at 5 % loss were not); with a byte beside the FIN it always does.
_MISUSE: Final = 1  # application error code for a peer that uses QUIC in another way than a carrier does


def _configuration(*, dialler: bool, initial_rtt: float | None) -> QuicConfiguration:
    return make_configuration(
        dialler=dialler, initial_rtt=initial_rtt, window=WINDOW, idle_timeout=IDLE_TIMEOUT, datagram=DATAGRAM
    )


@final
class QuicProtocol:
    """One side of a connection; made by `dialing` and `serving`.  Every ``now`` is a monotonic time in seconds.

    Attributes:
      ready: the handshake is done on this side.
      peer_certificate_key: at the dialler, the key that the dialled side has proven to hold.
      ended: the peer's clean end was received, and everything before it.
      ending: `send_end` was called.
      failure: why the connection is over, or None.
    """

    def __init__(self, configuration: QuicConfiguration) -> None:
        self._configuration = configuration
        self._dialler = configuration.is_client
        self._connection: Connection | None = None
        self._flights = FirstFlights(configuration)
        self._handshake_room = HANDSHAKE_MAX  # bytes that a dialler still accepts
        self._received: list[bytes] = []
        self._stream, self._peer_stream = (2, 3) if self._dialler else (3, 2)  # RFC 9000 §2.1
        self._confirmed = False
        self._early = 0  # bytes passed to `send` before that
        self._held_back: deque[memoryview] = deque()  # those of them beyond `EARLY_MAX`
        self._heard_at = 0.0  # set by `dialing` or by the first datagram; no timer runs before
        self._fired_at = 0.0
        self._spoke_at = 0.0  # when data was first sent after `_heard_at`
        self._speaks = False  # data was put on the stream since the last `transmit`
        self.held: int = 0
        """Bytes that wait for `take`."""
        self.ready: bool = False
        self.ended: bool = False
        self.ending: bool = False
        self.failure: str | None = None

    @classmethod
    def dialing(cls, *, now: float, initial_rtt: float | None = None) -> QuicProtocol:
        """A client.

        Args:
          now: when it begins.
          initial_rtt: an estimate of the round-trip time, in seconds, from earlier packets on this path.  The first
            retransmissions depend on it (RFC 9002 §6.2.2: 1/3 s when nothing is known).
        """
        protocol = cls(_configuration(dialler=True, initial_rtt=initial_rtt))
        protocol._heard_at = protocol._fired_at = now
        protocol._connection = Connection(protocol._configuration)
        protocol._connection.connect(now)
        return protocol

    @classmethod
    def serving(cls, identity: Identity, *, initial_rtt: float | None = None) -> QuicProtocol:
        """A server, which waits for a first flight."""
        configuration = _configuration(dialler=False, initial_rtt=initial_rtt)
        configuration.load_cert_chain(identity.certificate_pem(), identity.private_key_pem())
        return cls(configuration)

    # -- datagrams and time ------------------------------------------------------------------------------------------

    def receive(self, datagrams: Sequence[bytes], now: float) -> None:
        """Take datagrams as they came.  They may be anything: those that are not the peer's are dropped."""
        self._heard_at = now
        connection = self._connection
        if connection is None:
            for number, datagram in enumerate(datagrams):
                self._flights.receive(datagram, now)
                if self._take_completed():
                    for each in datagrams[number + 1 :]:
                        self.receive([each], now)
                    return
            return
        if not self.ready:
            self._handshake_room -= sum(len(each) for each in datagrams if destination_id(each) == connection.host_cid)
            if self._handshake_room < 0:
                self._fail("too many bytes before the end of the QUIC handshake")
                return
        try:
            connection.receive(datagrams, now)
        except CarrierError as error:
            self._fail(str(error))
        try:
            self._take_events(connection)
            if self.ready and self.failure is None and not connection.stands(self._stream):
                self._notice_close(connection)
            self._ask_for_confirmation(connection)
        except CarrierError as error:
            self._fail(str(error))

    def transmit(self, now: float) -> list[bytes]:
        """Datagrams to send now, as far as congestion control and pacing let them go."""
        if self._speaks:
            self._speaks = False
            if self._spoke_at <= self._heard_at:
                self._spoke_at = now
        datagrams = self._flights.transmit(now)
        if self._connection is None:
            return datagrams
        try:
            datagrams += self._connection.transmit(now)
        except CarrierError as error:
            self._fail(str(error))
        return datagrams

    @property
    def deadline(self) -> float:
        """When `handle_timer` is to be called; infinity while no timer runs.  Every other call may change it."""
        deadline = (self._connection or self._flights).deadline
        was_idle = self._spoke_at - self._heard_at >= IDLE  # then no answer was due from the peer before
        silence = self._fired_at - (self._spoke_at if was_idle else self._heard_at)
        return deadline if silence < PATIENCE else max(deadline, self._fired_at + silence / 2)

    def handle_timer(self, now: float) -> None:
        """Handle the timers that are due: for losses, acknowledgements, pacing, the idle timeout."""
        self._fired_at = now
        connection = self._connection
        if connection is not None:
            try:
                connection.handle_timer(now)
                self._take_events(connection)
                self._ask_for_confirmation(connection)
            except CarrierError as error:
                self._fail(str(error))
            return
        self._flights.handle_timer(now)
        self._take_completed()

    def _take_completed(self) -> bool:
        """Take the connection of the dialler from a listener's first flights.  Returns whether there is one."""
        completed = self._flights.take_completed()
        if completed is None:
            return False
        self._connection, seen = completed
        try:
            for event in seen:
                self._take_event(self._connection, event)
            self._take_events(self._connection)
        except CarrierError as error:
            self._fail(str(error))
        return True

    # -- events ------------------------------------------------------------------------------------------------------

    def _take_events(self, connection: Connection) -> None:
        for event in connection.events():
            self._take_event(connection, event)

    def _take_event(self, connection: Connection, event: events.QuicEvent) -> None:
        match event:
            case events.StreamDataReceived() if event.stream_id == self._peer_stream:
                data = event.data[: -len(_END)] if event.end_stream else event.data
                if data:
                    self._received.append(data)
                    self.held += len(data)
                self.ended = self.ended or event.end_stream
            case events.HandshakeCompleted():
                self.ready = True
                if not self._dialler:
                    self._confirm(connection)
            case events.PingAcknowledged():  # a server cannot acknowledge it before it has our Finished
                self._confirm(connection)
            case events.ConnectionTerminated():
                reason = "".join(filter(str.isprintable, event.reason_phrase))[:MAX_REASON]  # it is shown to people
                self._fail(f"the connection was lost: {reason or f'QUIC error {event.error_code:#x}'}")
            case (
                events.StreamDataReceived()
                | events.StreamReset()
                | events.StopSendingReceived()
                | events.DatagramFrameReceived()
            ):
                connection.close(_MISUSE, reason_phrase="only one stream each way is allowed")
                self._fail("unexpected use of QUIC by the peer: only one stream each way is allowed")

    def _notice_close(self, connection: Connection) -> None:
        """Learn at once why the peer closed the connection.

        qh3 reports it only after the draining period (RFC 9000 §10.2.2).  There is no need to wait for that, as the
        path is not used again.
        """
        if (drained := connection.deadline) < math.inf:
            connection.handle_timer(drained)
            self._take_events(connection)
        self._fail("the connection was lost")

    def _fail(self, failure: str) -> None:
        self.failure = self.failure or failure

    # -- plaintext ---------------------------------------------------------------------------------------------------

    @property
    def peer_certificate_key(self) -> bytes | None:
        return None if self._connection is None else certificate_key(self._connection.peer_certificate())

    @property
    def backlog(self) -> int:
        """Bytes of plaintext that were never sent, without those in flight."""
        held_back = sum(map(len, self._held_back))
        return held_back + (0 if self._connection is None else self._connection.unsent(self._stream))

    @property
    def delivered(self) -> bool:
        """Whether the peer has acknowledged everything, including our end."""
        connection = self._connection
        return self.ending and not self.backlog and connection is not None and not connection.unacknowledged_streams

    def send(self, part: Buffer) -> None:
        """Put plaintext on the stream, once `ready`.  Nothing is sent before `transmit`."""
        assert self._connection is not None
        if self._confirmed:
            self._put(self._connection, part)
            return
        data = memoryview(bytes(part))
        room = EARLY_MAX - self._early
        self._early += len(data)
        if room > 0:
            self._put(self._connection, data[:room])
            data = data[room:]
        if data:
            self._held_back.append(data)

    def send_end(self) -> None:
        """Put the clean end on the stream.  Idempotent."""
        if not self.ending:
            self.ending = True
            if not self._held_back and self._connection is not None:
                self._put(self._connection, _END, end=True)

    def _ask_for_confirmation(self, connection: Connection) -> None:
        """Send a PING until one is acknowledged: qh3 retransmits no lost PING, and reports no HANDSHAKE_DONE.

        Called with each datagram and timer.
        """
        if self.ready and not self._confirmed and self.failure is None:
            connection.send_ping()

    def _confirm(self, connection: Connection) -> None:
        if self._confirmed:
            return
        self._confirmed = True
        was_held_back = bool(self._held_back)
        while self._held_back:
            self._put(connection, self._held_back.popleft())
        if was_held_back and self.ending:
            self._put(connection, _END, end=True)

    def _put(self, connection: Connection, data: Buffer, *, end: bool = False) -> None:
        self._speaks = True
        try:
            connection.send(self._stream, data, end=end)
        except CarrierError as error:
            self._fail(str(error))

    def take(self) -> list[bytes]:
        """The plaintext that was received since the last call; no piece is empty."""
        received, self._received, self.held = self._received, [], 0
        return received

    def close(self, now: float) -> list[bytes]:
        """Close the connection now.  Returns the datagrams that tell the peer."""
        with suppress(CarrierError):
            (self._connection or self._flights).close()
        return self.transmit(now)
