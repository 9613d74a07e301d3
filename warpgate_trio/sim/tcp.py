"""One end of a TCP connection, as a pure state machine (RFC 9293, with the answers of Linux).

Its inputs are the events of RFC 9293, section 3.10: calls of the program, arriving segments and ICMP errors, and
timers.  The results are in its `Tcb`: segments to send in `out`, and the time of the next `tick` in `deadline`.  Where
the RFC leaves a choice, or Linux departs from it, the simulator does what Linux does:

* simultaneous open: a bare SYN in SYN-SENT makes SYN-RECEIVED, and the crossing SYN-ACK completes it;
* SYNs go out at 0, 1, 2, 3, 4, 5, 7, 11, 19, 35 and 67 s and give up at 131 s (tcp_syn_retries 6 and
  tcp_syn_linear_timeouts 4);
* a RST is accepted only at exactly the expected number; any other RST, a SYN, and a segment outside the window are
  answered with a challenge ACK (RFC 5961), at most twice a second (tcp_invalid_ratelimit);
* an ICMP error ends a connection that is opening, and has no effect on one that is open;
* closing with unread data, or data that arrives after close, causes a reset.
"""

from __future__ import annotations

import errno
from math import inf
from typing import final

from . import tcp_states as limits
from .packet import ACK, FIN, RST, SYN, TCP, Icmp, Packet
from .tcp_block import Tcb
from .tcp_receiver import Receiver
from .tcp_sender import unwrap
from .tcp_states import MAY_SEND, OPENING, State


@final
class TcpEndpoint(Tcb):
    """One end of a connection, with the events from its program and from the network."""

    # Attributes of `Tcb`, declared again for type checkers, since they are assigned here too.
    state: State
    receiver: Receiver
    deadline: float
    error: int
    ack_due: bool

    # What the program does

    def connect(self, now: float) -> None:
        """Open actively: send the SYN."""
        self.active = True
        self.state = State.SYN_SENT
        self._send_syn(now)

    def accept(self, syn: Packet, now: float) -> None:
        """Open passively, on a SYN to a listener."""
        self._take_syn(syn)
        self.state = State.SYN_RECEIVED
        self._send_syn(now)

    def write(self, data: bytes | bytearray | memoryview, now: float) -> int:
        """Queue as many bytes as there is room for; returns their number."""
        sender, options, taken = self.sender, self.options, 0  # Linux checks TCP_NOTSENT_LOWAT for each segment
        while taken < len(data) and self.has_room:
            room = min(options.send_buffer - len(sender.buffer), options.unsent_limit - sender.unsent)
            piece = data[taken : taken + int(min(room, len(data)))]
            sender.buffer += piece
            taken += len(piece)
            self._push(now)
        return taken

    def read(self, size: int, *, peek: bool = False) -> bytes:
        """At most `size` received bytes; b"" if there are none."""
        buffer = self.receiver.buffer
        data = bytes(memoryview(buffer)[:size])
        if not peek and data:
            del buffer[: len(data)]
            if self.receiver.would_update(self.sender.mss) and self.state not in (State.TIME_WAIT, State.CLOSED):
                self.ack_due = True
        return data

    def shutdown_write(self, now: float) -> None:
        """Send a FIN after all that is queued."""
        if self.state in limits.AFTER_SHUTDOWN:
            self.state = limits.AFTER_SHUTDOWN[self.state]
            self.sender.fin = True
            self._push(now)

    def shutdown_read(self) -> None:
        """End reading after the bytes that have been received."""
        self._read_shut = True

    def close(self, now: float) -> None:
        """Do what close(2) does: send a FIN, or a RST if data is unread.  The rest continues without the program."""
        if self.orphan:
            return
        self.orphan = True
        if self.state is State.SYN_SENT:
            self._finish()
        elif self.state is State.SYN_RECEIVED or (self.receiver.buffer and self.state is not State.TIME_WAIT):
            self.abort()
        elif self.state in MAY_SEND:
            self.shutdown_write(now)
        elif self.state is State.FIN_WAIT_2:
            self.deadline = now + limits.FIN_TIMEOUT

    def abort(self) -> None:
        """Send a RST and forget the connection."""
        if self.state not in (State.SYN_SENT, State.CLOSED, State.TIME_WAIT):
            self._emit(RST | ACK, self.sender.next, None)
        self._finish()

    def take_error(self) -> int:
        """Return and clear the pending errno."""
        error, self.error = self.error, 0
        return error

    @property
    def opening(self) -> bool:
        return self.state in OPENING

    @property
    def at_eof(self) -> bool:
        """Whether no more bytes will be read."""
        return self._read_shut or self.receiver.finished or self.state is State.CLOSED

    @property
    def readable(self) -> bool:
        """Whether a read returns at once."""
        return bool(self.receiver.buffer or self.error) or (self.at_eof and not self.opening)

    @property
    def may_send(self) -> bool:
        return self.state in MAY_SEND

    @property
    def has_room(self) -> bool:
        """Whether a write would accept bytes."""
        sender, options = self.sender, self.options
        return len(sender.buffer) < options.send_buffer and sender.unsent < options.unsent_limit

    @property
    def is_writable(self) -> bool:
        """Whether to wake tasks that wait for room: as in Linux, when half of the allowed unsent data has been sent."""
        return self.has_room and 2 * self.sender.unsent < self.options.unsent_limit

    # What the network does

    def receive(self, packet: Packet, now: float) -> None:
        """Process a segment for this connection."""
        if self.state is State.SYN_SENT:
            self._receive_in_syn_sent(packet, now)
        elif self.state is not State.CLOSED:
            self._receive(packet, now)

    def icmp(self, error: Icmp, mtu: int, now: float) -> None:
        """Process an ICMP error about a segment of this end."""
        if error is Icmp.PACKET_TOO_BIG:
            mss = max(mtu - 40 - (20 if ":" in self.local[0] else 0), 88)
            if mss < self.sender.mss:
                self.sender.shrink_mss(mss)
                self._push(now)
        elif self.state in OPENING and self.active:
            self._fail(limits.ICMP_ERRNO[error])

    def tick(self, now: float) -> None:
        """Do what is due at the time `now`."""
        if now < self.deadline:
            return
        self.deadline = inf
        if self.state in (State.TIME_WAIT, State.FIN_WAIT_2):
            self._finish()
        elif self.state in OPENING:
            gaps = limits.SYN_GAPS if self.state is State.SYN_SENT else limits.SYN_ACK_GAPS
            self._retries += 1
            if self._retries >= len(gaps):
                self._fail(errno.ETIMEDOUT)
            else:
                self._send_syn(now)
        elif self.sender.end > self.sender.una:
            timed_out = self.sender.tick(now)
            self._retries += timed_out
            if self._retries > (limits.ORPHAN_RETRIES if self.orphan else limits.DATA_RETRIES):
                self._fail(errno.ETIMEDOUT)
                return
            self._push(now, probe=timed_out and self.sender.peer_window == 0)

    def flush_ack(self, now: float) -> None:
        """Send the acknowledgement that is due, unless a segment has carried it in the meantime."""
        if self.ack_due and self.state not in (State.CLOSED, State.SYN_SENT):
            self._emit(ACK, self.sender.next, now)
        self.ack_due = False

    # Segments in

    def _receive_in_syn_sent(self, packet: Packet, now: float) -> None:
        flags = packet.flags
        if flags & ACK:
            ack = unwrap(packet.ack, self._iss)
            if ack != self._iss + 1:
                if not flags & RST:
                    self.out.append(Packet(TCP, self.local, self.remote, flags=RST, seq=packet.ack))
                return
        if flags & RST:
            if flags & ACK:
                self._fail(errno.ECONNREFUSED)
            return
        if not flags & SYN:
            return
        self._take_syn(packet)
        self._retries = 0
        if flags & ACK:
            self.sender.acknowledged(self._iss + 1, now, round_trip=_round_trip(packet, now))
            self._opened(now)
            self.ack_due = True
        else:  # both ends opened at once
            self.state = State.SYN_RECEIVED
            self._send_syn(now)

    def _receive(self, packet: Packet, now: float) -> None:
        receiver, flags = self.receiver, packet.flags
        seq = unwrap(packet.seq, receiver.next)
        length = len(packet.payload) + bool(flags & SYN) + bool(flags & FIN)
        crossing = self.state is State.SYN_RECEIVED and flags & SYN and seq + 1 == receiver.next
        if crossing and not flags & ACK:  # a retransmission of the peer's SYN
            self._send_syn(now, keep_timer=True)
            return
        if not crossing and not receiver.accepts(seq, length):
            if not flags & RST:
                self._challenge(packet, now)
                if self.state is State.TIME_WAIT and flags & FIN:
                    self.deadline = now + limits.TIME_WAIT
            return
        if flags & RST:
            if seq == receiver.next:
                self._reset()
            else:
                self._challenge(packet, now)
            return
        if flags & SYN and not crossing:
            self._challenge(packet, now)
            return
        receiver.note_stamp(seq, packet.stamp)
        if not flags & ACK or not self._take_ack(packet, now):
            return
        if self.state is State.CLOSED:
            return
        if packet.payload or flags & FIN:
            self._take_data(packet, seq, now)
        self._push(now)

    def _challenge(self, packet: Packet, now: float) -> None:
        """Send a challenge ACK (RFC 5961), rate-limited: two ends out of step would answer each other for ever."""
        if packet.payload and not packet.flags & SYN:  # acknowledgements have no payload, so this cannot be such a loop
            self.ack_due = True
        elif now >= self._challenged + limits.CHALLENGE_PAUSE:
            self._challenged = now
            self.ack_due = True

    def _take_ack(self, packet: Packet, now: float) -> bool:
        """Process the acknowledgement; returns whether the rest of the segment is to be processed."""
        sender = self.sender
        ack = unwrap(packet.ack, sender.una)
        if self.state is State.SYN_RECEIVED:
            if ack != self._iss + 1:
                self.out.append(Packet(TCP, self.local, self.remote, flags=RST, seq=packet.ack))
                return False
            sender.acknowledged(ack, now, round_trip=_round_trip(packet, now))
            sender.peer_window = packet.window
            self._opened(now)
            # The last SYN-ACK of a simultaneous open is answered, so that a peer that missed our SYN-ACK opens too.
            self.ack_due = self.ack_due or bool(packet.flags & SYN)
            return True
        if ack > sender.next:
            self.ack_due = True
            return False
        if ack < sender.una:  # overtaken by a later acknowledgement, whose window is valid
            return True
        was, sender.peer_window = sender.peer_window, packet.window
        if was == 0 or packet.window == 0:
            self._retries = 0  # a closed window is probed for as long as the peer answers
            if ack == sender.una and was == 0:
                sender.send_again()  # the window probe was not accepted
        advanced = ack > sender.una
        arrived = [(unwrap(first, ack), unwrap(after, ack)) for first, after in packet.blocks]
        sender.acknowledged(ack, now, round_trip=_round_trip(packet, now), arrived=arrived)
        if advanced:
            self._retries = 0
            if sender.fin and ack == sender.end:
                self._move(limits.AFTER_ACKNOWLEDGED, now)
        return True

    def _take_data(self, packet: Packet, seq: int, now: float) -> None:
        receiver = self.receiver
        if self.orphan and packet.payload and seq + len(packet.payload) > receiver.next:
            self.abort()  # data for a closed socket
            return
        receiver.take(seq, packet.payload, fin=bool(packet.flags & FIN))
        self.ack_due = True
        if receiver.has_gap:  # RFC 5681, 4.2: at once, so that the sender can count them
            self._emit(ACK, self.sender.next, now)
        if receiver.finished:
            self._move(limits.AFTER_PEERS_FIN, now)

    def _take_syn(self, packet: Packet) -> None:
        self.receiver = Receiver(packet.seq, self.options.receive_buffer)
        self.receiver.note_stamp(packet.seq, packet.stamp)
        self.sender.peer_window = packet.window
        if packet.mss:
            self.sender.bound_mss(packet.mss)


def _round_trip(packet: Packet, now: float) -> float | None:
    return None if packet.echo is None else now - packet.echo
