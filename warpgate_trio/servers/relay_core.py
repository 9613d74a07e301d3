"""The circuits of a rendezvous server, without I/O: who may have one, what it holds, and the order of writing.

A circuit has a `Leg` on each of its two connections (`relay_frames` has the frames).  Data that arrives on one leg
waits at the other leg until that leg's client has granted credit for it and the connection accepts it.

*Memory.*  A client may send as much as the server has granted: `INITIAL_CREDIT` at first, and then as much again as was
written to the other side.  So each direction holds at most its window, however slow its reader is.  The window grows
when it limits the throughput: all granted bytes have arrived and were written, so the round trip to the sender takes
longer than one window lasts.  Both windows together stay within `CIRCUIT_BYTES`.

*Order.*  On a connection, signals are written first, then credit and ends, then the data of the circuits in turn.

*Ends.*  When one side ends a circuit or disconnects, the data that it has sent is still written to the other side,
followed by the end.  A client that does not accept it within `RelayLimits.unanswered` loses it.  A server that is shut
down ends all circuits in this way: unanswered ones at once, answered ones later if their clients get time to leave.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final, final

from ..limits import Budget
from .relay_frames import INITIAL_CREDIT, MAX_RELAY, Answer, Call, EndReason, Relay, RelayCredit, RelayEnd, Ring, keep
from .server_connection import Circuit, Leg, Piece, ServerConnection

__all__ = ["CIRCUIT_BYTES", "NO_RELAY", "Circuits", "RelayLimits", "RelayRules", "RelayStatistics"]

CIRCUIT_BYTES: Final = 256 * 1024
"""Bytes that one circuit holds on the server at most, both directions together."""
RENEWAL: Final = 4
"""Credit is renewed when this part, a fourth, of the window is free: fewer frames, and no small increments."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RelayLimits:
    """How much one server relays.

    Attributes:
      circuits: circuits in all; one /48 or IPv4 /24 gets half of what is free at most.
      circuits_per_address: circuits whose caller is at one IPv4 address or IPv6 /64.
      circuits_per_connection: circuits of one connection, as caller and receiver together.
      rings: unanswered calls to one connection; the rest of `circuits_per_connection` stays free for other circuits.
      unanswered: seconds after which an unanswered call ends, and after which a client loses an end, and the data
        before it, that it does not accept.
      idle: seconds without a byte either way after which a circuit ends.
    """

    circuits: int = 2048
    circuits_per_address: int = 512
    circuits_per_connection: int = 64
    rings: int = 32
    unanswered: float = 60.0
    idle: float = 600.0


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class RelayRules:
    """Between whom a server relays, and how much.

    Attributes:
      token: the relay token, which one of the two needs (`warpgate_trio.config.Servers.relay_token`); None: there is
        none.
      open_to_all: relays between any two, without a token.
      limits: how much it relays.
    """

    token: str | None = field(default=None, repr=False)
    open_to_all: bool = False
    limits: RelayLimits = field(default_factory=RelayLimits)

    @property
    def for_anybody(self) -> bool:
        """Whether it relays at all."""
        return self.open_to_all or self.token is not None


NO_RELAY: Final = RelayRules()
"""Relays nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RelayStatistics:
    """Counts of what a server relays now (the first two) and has done so far."""

    circuits: int
    held: int
    calls: int
    answered: int
    relayed_bytes: int


@final
# long: a circuit from its call to its end, and the order in which it is written
class Circuits:
    """All circuits of one server.  `RendezvousCore` owns it and checks which clients may use circuits.

    Attributes:
      woken: connections that have something new to write, or are over; `RendezvousCore.woken` empties it.
      draining: the server is being shut down and makes no new circuits.
    """

    def __init__(self, rules: RelayRules) -> None:
        self.rules: Final = rules
        self.limits: Final = rules.limits
        self.woken: Final[dict[ServerConnection, None]] = {}
        self.draining: bool = False
        self._places: Final = Budget(total=self.limits.circuits, per_address=self.limits.circuits_per_address)
        self._held = 0
        self._calls = self._answered = self._bytes = 0

    def statistics(self) -> RelayStatistics:
        return RelayStatistics(
            circuits=self._places.held,
            held=self._held,
            calls=self._calls,
            answered=self._answered,
            relayed_bytes=self._bytes,
        )

    # -- frames --------------------------------------------------------------------------------------------------------

    def call(
        self, connection: ServerConnection, frame: Call, mailbox: Iterable[ServerConnection], now: float
    ) -> RelayEnd | list[tuple[ServerConnection, bytes]]:
        """Make a circuit; returns its RINGs with their connections, or the reason why there is none.

        Call `not_rung` for each RING that cannot be queued.

        Args:
          mailbox: the connections that the call may ring.
        """
        self._calls += 1
        there = [each for each in mailbox if each is not connection]
        free = [each for each in there if len(each.legs) < self.limits.circuits_per_connection and self._may_ring(each)]
        reason = None
        if self.draining:
            reason = EndReason.SHUTTING_DOWN
        elif len(connection.legs) >= self.limits.circuits_per_connection:
            reason = EndReason.TOO_MANY_HERE
        elif not there:
            reason = EndReason.NOBODY_HOME
        elif not any(self.allows(connection, each) for each in there):
            reason = EndReason.NOT_ALLOWED
        elif not (free := [each for each in free if self.allows(connection, each)]):
            reason = EndReason.FULL
        elif self._places.held >= self.limits.circuits:
            reason = EndReason.TOO_MANY_IN_ALL
        elif not self._places.take(connection.host, 1):
            reason = EndReason.TOO_MANY_OF_ADDRESS
        if reason is not None:
            return RelayEnd(frame.circuit, reason)
        circuit = Circuit(connection.host)
        leg = circuit.caller = self._add(connection, frame.circuit, circuit)
        leg.deadline = now + self.limits.unanswered
        rings: list[tuple[ServerConnection, bytes]] = []
        for each in free:
            number = each.next_circuit()
            circuit.rung.append(self._add(each, number, circuit))
            rings.append((each, Ring(number, frame.payload).encode()))
        return rings

    def allows(self, caller: ServerConnection, receiver: ServerConnection) -> bool:
        """Whether the two may have a circuit; until the caller has registered it may, as it could have the token."""
        return self.rules.open_to_all or caller.has_token or receiver.has_token or not caller.registered

    def registered(self, connection: ServerConnection, now: float) -> bool:
        """A connection with an early CALL has registered: end its circuits that are not allowed.

        Returns False if one of these may have an ANSWER in the queue already.
        """
        circuits = [leg.circuit for leg in connection.legs.values()]
        if not connection.relays:
            self.left(connection, now)
            return not circuits
        for circuit in circuits:
            for other in [each for each in circuit.rung if not self.allows(connection, each.connection)]:
                self._turn_down(other, EndReason.NOT_ALLOWED, now)
                self._finish(other, EndReason.NOT_ALLOWED, now)
            answerer = circuit.answerer
            if answerer is not None and not self.allows(connection, answerer.connection):
                self._end_both(answerer, EndReason.NOT_ALLOWED, now)
                return False
        return True

    def not_rung(self, caller: ServerConnection, number: int, connection: ServerConnection, now: float) -> None:
        """The queue of `connection` had no room for the RING of the caller's circuit."""
        circuit = caller.legs[number].circuit
        for leg in [each for each in circuit.rung if each.connection is connection]:
            self._turn_down(leg, EndReason.FULL, now)
            self._remove(leg)

    def answer(self, connection: ServerConnection, frame: Answer, now: float) -> tuple[ServerConnection, bytes] | None:
        """Open a circuit; returns its caller and the ANSWER for it, or None if the call is over.

        Call `unheard` if the ANSWER cannot be queued.
        """
        leg = connection.legs.get(frame.circuit)
        if leg is None or leg not in leg.circuit.rung:
            return None
        circuit = leg.circuit
        caller = circuit.caller
        assert caller is not None
        circuit.rung.remove(leg)
        circuit.answerer = leg
        for other in circuit.rung:
            self._finish(other, EndReason.ANSWERED_ELSEWHERE, now)
        circuit.rung.clear()
        caller.limit = leg.limit = INITIAL_CREDIT
        caller.deadline = now + self.limits.idle
        self._answered += 1
        return caller.connection, Answer(caller.number, frame.payload).encode()

    def unheard(self, connection: ServerConnection, number: int, now: float) -> None:
        """The caller's queue had no room for this connection's ANSWER."""
        leg = connection.legs[number]
        self._end_both(leg, EndReason.FULL, now)

    def relay(self, connection: ServerConnection, frame: Relay, now: float) -> None:
        """Data for the other side."""
        leg = connection.legs.get(frame.circuit)
        if leg is None or leg.end is not None:
            return
        size = len(frame.data)
        if leg.received + size > leg.limit:
            self._end_both(leg, EndReason.OVERRUN, now)
            return
        other, caller = leg.circuit.other(leg), leg.circuit.caller
        assert other is not None, "only answered circuits have credit"
        leg.received += size
        leg.exhausted = leg.received == leg.limit
        other.held += size
        self._held += size
        keep(other.waiting, frame.data)
        if caller is not None and caller.end is None:
            caller.deadline = now + self.limits.idle
        self._list(other)

    def credit(self, connection: ServerConnection, frame: RelayCredit) -> None:
        """A client grants credit; a limit below an earlier one is ignored."""
        leg = connection.legs.get(frame.circuit)
        if leg is not None and frame.limit > leg.credit:
            leg.credit = frame.limit
            self._list(leg)

    def ended(self, connection: ServerConnection, frame: RelayEnd, now: float) -> None:
        """A client ends a circuit."""
        leg = connection.legs.get(frame.circuit)
        if leg is not None:
            self._leave(leg, EndReason.REFUSED if leg in leg.circuit.rung else EndReason.CLOSED, now)

    def left(self, connection: ServerConnection, now: float) -> None:
        """A connection has ended; data that waits for it is dropped.  Idempotent."""
        for leg in list(connection.legs.values()):
            self._leave(leg, EndReason.GONE, now)
        connection.ready.clear()
        self.woken.pop(connection, None)

    def shut_down(self, connection: ServerConnection, now: float, *, answered: bool = True) -> bool:
        """End the circuits of a connection, behind their waiting data.

        Args:
          answered: end the answered circuits too, not only the unanswered ones.

        Returns whether circuits of it go on.
        """
        for leg in list(connection.legs.values()):
            if answered or leg.circuit.answerer is None:
                self._end_both(leg, EndReason.SHUTTING_DOWN, now)
        return any(leg.end is None for leg in connection.legs.values())

    def give_up_waiting(self, connection: ServerConnection) -> None:
        """Drop the circuit data that waits for a connection."""
        for leg in connection.legs.values():
            self._clear(leg)
            self._list(leg)

    # -- timers --------------------------------------------------------------------------------------------------------

    def deadline(self, connection: ServerConnection) -> float:
        """When `handle_timer` is to be called for a connection."""
        return min((leg.deadline for leg in connection.legs.values()), default=math.inf)

    def handle_timer(self, connection: ServerConnection, now: float) -> None:
        """End circuits that were unanswered or idle for too long; drop ends that were not accepted in time."""
        for leg in [each for each in connection.legs.values() if each.deadline <= now]:
            if leg.end is not None:
                self._drop(leg)
            else:
                self._end_both(leg, EndReason.UNANSWERED if leg.circuit.answerer is None else EndReason.IDLE, now)

    # -- output --------------------------------------------------------------------------------------------------------

    def transmit(self, connection: ServerConnection) -> Piece | None:
        """Take the next frame of a connection's circuits; `written` has to be called for it."""
        ready = connection.ready
        for _ in range(len(ready)):  # credit and ends first
            if ready[0].urgent or not ready[0].ready:
                break
            ready.rotate(-1)
        while ready:
            leg = ready.popleft()
            leg.listed = False
            if leg.ready:
                piece = self._piece(leg)
                self._list(leg)
                return piece
        return None

    def _piece(self, leg: Leg) -> Piece:
        if leg.credit_due:
            leg.credit_due = False
            return Piece(RelayCredit(leg.number, leg.limit).encode(), leg)
        if not leg.waiting:
            assert leg.end is not None
            self._remove(leg)
            return Piece(RelayEnd(leg.number, leg.end).encode(), leg)
        data = leg.waiting.popleft()
        room = min(leg.credit - leg.sent, MAX_RELAY)
        if len(data) > room:
            leg.waiting.appendleft(data[room:])
            data = data[:room]
        leg.sent += len(data)
        return Piece(Relay(leg.number, data).encode(), leg, len(data))

    def written(self, piece: Piece) -> None:
        """A frame was written, or never will be: its sender may get new credit."""
        if not piece.size:
            return
        leg, source = piece.leg, piece.leg.circuit.other(piece.leg)
        leg.held -= piece.size
        self._held -= piece.size
        self._bytes += piece.size
        if source is None or source.end is not None:
            return
        source.drained += piece.size
        if source.exhausted and source.drained == source.received:  # the window limits the sender
            source.exhausted = False
            source.window = max(source.window, min(2 * source.window, CIRCUIT_BYTES - leg.window))
        if source.drained + source.window - source.limit >= source.window // RENEWAL:
            source.limit = source.drained + source.window
            source.credit_due = True
            self._list(source)

    # -- ends ----------------------------------------------------------------------------------------------------------

    def _leave(self, leg: Leg, reason: EndReason, now: float) -> None:
        """A client has left a circuit: end it for the others, and send this client nothing more of it."""
        circuit = leg.circuit
        if leg.end is None:
            if leg in circuit.rung:
                self._turn_down(leg, reason, now)
            elif circuit.answerer is None:
                for other in circuit.rung:
                    self._finish(other, reason, now)
                circuit.rung.clear()
            elif (other_end := circuit.other(leg)) is not None:
                self._finish(other_end, reason, now)
        self._drop(leg)

    def _turn_down(self, leg: Leg, reason: EndReason, now: float) -> None:
        """One of the rung clients will not answer; if it was the last one, the call is over."""
        circuit = leg.circuit
        circuit.rung.remove(leg)
        if not circuit.rung and circuit.caller is not None and circuit.answerer is None:
            self._finish(circuit.caller, reason, now)

    def _end_both(self, leg: Leg, reason: EndReason, now: float) -> None:
        circuit = leg.circuit
        for each in [circuit.caller, circuit.answerer, *circuit.rung]:
            if each is not None:
                self._finish(each, reason, now)
        circuit.rung.clear()

    def _finish(self, leg: Leg, reason: EndReason, now: float) -> None:
        """Have RELAY_END sent to a client, behind the data that waits for it."""
        if leg.end is None:
            leg.end = reason
            leg.credit_due = False
            leg.deadline = now + self.limits.unanswered
            self._list(leg)

    def _drop(self, leg: Leg) -> None:
        """Send nothing more of a leg to its client, and forget it."""
        self._clear(leg)
        self._remove(leg)

    def _clear(self, leg: Leg) -> None:
        """Drop the data that waits for a client."""
        size = sum(map(len, leg.waiting))
        leg.waiting.clear()
        leg.held -= size
        self._held -= size

    # -- legs ----------------------------------------------------------------------------------------------------------

    def _may_ring(self, connection: ServerConnection) -> bool:
        return sum(leg in leg.circuit.rung for leg in connection.legs.values()) < self.limits.rings

    def _add(self, connection: ServerConnection, number: int, circuit: Circuit) -> Leg:
        leg = connection.legs[number] = Leg(connection, number, circuit)
        circuit.legs += 1
        return leg

    def _remove(self, leg: Leg) -> None:
        """Forget a leg; with the last one the circuit is over."""
        if leg.connection.legs.pop(leg.number, None) is None:
            return
        circuit = leg.circuit
        leg.end = leg.end or EndReason.CLOSED
        circuit.legs -= 1
        if not circuit.legs:
            self._places.give_back(circuit.host, 1)
        if self.draining and not leg.connection.legs:
            self.woken[leg.connection] = None  # to be closed

    def _list(self, leg: Leg) -> None:
        """Put a leg in its connection's turn if it has something to write."""
        if not leg.listed and leg.ready and leg.number in leg.connection.legs:
            leg.listed = True
            leg.connection.ready.append(leg)
        if leg.listed:
            self.woken[leg.connection] = None
