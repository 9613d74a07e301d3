"""The transmission control block of a TCP connection (RFC 9293, section 3.3.1), and the segments that it sends.

tcp.py handles the events of a connection; this module has its state, makes its segments, and ends it.

An acknowledgement is not sent at once but noted in `ack_due`: the `Connection` of connection.py sends one for all
segments that arrive at the same instant.
"""

from __future__ import annotations

import errno
from collections.abc import Mapping
from math import inf
from typing import Final

from . import tcp_states as limits
from .addr import Endpoint
from .packet import ACK, FIN, PSH, RST, SYN, TCP, Packet
from .tcp_receiver import Receiver
from .tcp_sender import Sender
from .tcp_states import OPENING, Options, State

_MASK: Final = 0xFFFFFFFF


class Tcb:
    """One end of a connection: its state, and how it sends.

    Attributes:
      local, remote: its two endpoints.
      state: its state by RFC 9293.
      out: packets to send, in order; the `Connection` takes them out.
      deadline: when `tick` is due; inf for never.
      error: the errno that the program has not seen yet, or 0.
      ack_due: whether an acknowledgement is to be sent at the end of this instant.
    """

    def __init__(self, local: Endpoint, remote: Endpoint, *, iss: int, mss: int, options: Options) -> None:
        self.local = local
        self.remote = remote
        self.options = options
        self.state: State = State.CLOSED
        self.out: list[Packet] = []
        self.deadline: float = inf
        self.error: int = 0
        self.ack_due: bool = False
        self.orphan: bool = False  # whether the program has closed it
        self.active: bool = False
        self._mss = min(mss, options.max_segment) if options.max_segment else mss
        self.sender: Sender = Sender(iss, self._mss)
        self.receiver: Receiver = Receiver(0, options.receive_buffer)
        self._iss = iss
        self._retries = 0
        self._challenged = -inf
        self._read_shut = False

    # Segments out

    def _send_syn(self, now: float, *, keep_timer: bool = False) -> None:
        answering = self.state is State.SYN_RECEIVED
        self._emit(SYN | ACK if answering else SYN, self._iss, now)
        self.sender.sent_syn()
        if not keep_timer:
            gaps = limits.SYN_ACK_GAPS if answering else limits.SYN_GAPS
            self.deadline = now + gaps[min(self._retries, len(gaps) - 1)]

    def _push(self, now: float, *, probe: bool = False) -> None:
        """Send as much as the windows allow."""
        if self.state in OPENING or self.state in (State.CLOSED, State.TIME_WAIT):
            return
        while (segment := self.sender.take_segment(now, probe=probe)) is not None:
            self._emit(
                ACK | (PSH if segment.data else 0) | (FIN if segment.fin else 0), segment.number, now, segment.data
            )
            probe = False
        self._rearm()

    def _rearm(self) -> None:
        """Set the timer to the sender's deadline; FIN-WAIT-2, in which the sender has none, has its own timer."""
        if self.sender.end > self.sender.una:
            self.deadline = self.sender.deadline
        elif self.state is not State.FIN_WAIT_2:
            self.deadline = inf

    def _emit(self, flags: int, seq: int, now: float | None, data: bytes = b"") -> None:
        ack = window = 0
        if flags & ACK:
            ack = self.receiver.next & _MASK
            self.ack_due = False
        if not flags & RST:
            window = self.receiver.advertise() if flags & ACK else self.options.receive_buffer
        ttl = self.options.ttl
        packet = Packet(TCP, self.local, self.remote, data, ttl, flags, seq & _MASK, ack, window, stamp=now)
        if flags & SYN:
            packet.mss = self._mss
        if flags & ACK:
            packet.echo = self.receiver.stamp
            if self.receiver.has_gap:
                packet.blocks = tuple((first & _MASK, after & _MASK) for first, after in self.receiver.arrived())
        self.out.append(packet)

    # States

    def _opened(self, now: float) -> None:
        self.state = State.ESTABLISHED
        self._retries = 0
        self.deadline = inf
        self._push(now)

    def _move(self, table: Mapping[State, State], now: float) -> None:
        """Change the state by a table; states that it does not contain stay."""
        self.state = table.get(self.state, self.state)
        if self.state is State.TIME_WAIT:
            self.deadline = now + limits.TIME_WAIT
        elif self.state is State.FIN_WAIT_2:
            self.deadline = now + limits.FIN_TIMEOUT if self.orphan else inf
        elif self.state is State.CLOSED:
            self._finish()

    def _reset(self) -> None:
        # tcp_reset() in net/ipv4/tcp_input.c
        if self.state is State.SYN_RECEIVED and not self.active:
            self._finish()
        else:
            self._fail(errno.EPIPE if self.state is State.CLOSE_WAIT else errno.ECONNRESET)

    def _fail(self, error: int) -> None:
        if not self.orphan:
            self.error = error
        self._finish()

    def _finish(self) -> None:
        self.state = State.CLOSED
        self.deadline = inf
        self.ack_due = False
