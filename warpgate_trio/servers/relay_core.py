"""The circuits of a rendezvous server, without I/O: who may have one, what it holds, in which order it is passed on.

A circuit has a `Leg` on each of its two connections (`relay_frames` has the frames).  What comes in by one leg waits at
the other one until its client has credit for it and the connection takes it.

*Memory.*  A leg's client may send what the server has granted it: at first `INITIAL_CREDIT`, and as much again as was
written on to the other side.  So a direction holds no more than its window, however slow its reader is.  The window
grows where it is what holds the stream up: when all that was granted has come and was written on, the round trip to the
sender took longer than the window lasts.  Both windows together stay within `CIRCUIT_BYTES`.

*Order.*  Of what waits for a connection, signals go first, then credit and ends, then the circuits' bytes by turns.

*Ends.*  When one side ends a circuit, or is gone, what it had sent still goes to the other side, and its end behind
that; a side that does not take it within `RelayLimits.unanswered` loses it.  A server that is shut down ends all
circuits in that way, those that are answered later than the others where their clients may leave them before.
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
"""Credit is renewed when a fourth of the window is free: fewer frames, and no small ones."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RelayLimits:
    """What one server relays.

    Attributes:
      circuits: in all; one /48 or IPv4 /24 gets half of what is free at most.
      circuits_per_address: that the clients of one IPv4 address or IPv6 /64 have called.
      circuits_per_connection: that end at one connection, whoever called.
      rings: unanswered ones at one connection; a node that does not answer keeps room for those that it has answered.
      unanswered: seconds after which a call that nobody has answered ends, and an end that nobody has taken.
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
      token: one of the two has to have it (`warpgate_trio.config.Servers.relay_token`); None: nobody has it.
      open_to_all: relays between any two.
      limits: how much.
    """

    token: str | None = field(default=None, repr=False)
    open_to_all: bool = False
    limits: RelayLimits = field(default_factory=RelayLimits)

    @property
    def for_anybody(self) -> bool:
        """Whether there is anybody for whom it relays."""
        return self.open_to_all or self.token is not None


NO_RELAY: Final = RelayRules()
"""Between nobody."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RelayStatistics:
    """What a server relays now (first two), and has done so far."""

    circuits: int
    held: int
    calls: int
    answered: int
    relayed_bytes: int


@final
# long: a circuit from its call to its end, and what is written of it when
class Circuits:
    """All circuits of one server.  `RendezvousCore` owns it and checks who may speak of them.

    Attributes:
      woken: connections that have something more to write, or are over; the shell takes them out.
      draining: the server is shut down: no circuit comes to be.
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
        """Make a circuit and return the RINGs for it, or why there is none.

        Where a RING finds no place, `not_rung` is to be called.
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
        """Whether one of the two may have circuits with anybody; who has not registered yet may have the token."""
        return self.rules.open_to_all or caller.has_token or receiver.has_token or not caller.registered

    def registered(self, connection: ServerConnection, now: float) -> bool:
        """A connection that has called before has said who it is: who may not have a circuit with it is let go.

        Returns False where one who may have answered was let go.
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
        """The RING for a caller's circuit found no place in a connection's queue."""
        circuit = caller.legs[number].circuit
        for leg in [each for each in circuit.rung if each.connection is connection]:
            self._turn_down(leg, EndReason.FULL, now)
            self._remove(leg)

    def answer(self, connection: ServerConnection, frame: Answer, now: float) -> tuple[ServerConnection, bytes] | None:
        """Bind a circuit: the ANSWER for its caller, None where there is none any more.

        `unheard` is to be called where that finds no place.
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
        """The caller has no room for the ANSWER of this connection's circuit."""
        leg = connection.legs[number]
        self._end_both(leg, EndReason.FULL, now)

    def relay(self, connection: ServerConnection, frame: Relay, now: float) -> None:
        """Bytes for the other side."""
        leg = connection.legs.get(frame.circuit)
        if leg is None or leg.end is not None:
            return
        size = len(frame.data)
        if leg.received + size > leg.limit:
            self._end_both(leg, EndReason.OVERRUN, now)
            return
        other, caller = leg.circuit.other(leg), leg.circuit.caller
        assert other is not None, "there is credit on answered circuits alone"
        leg.received += size
        leg.exhausted = leg.received == leg.limit
        other.held += size
        self._held += size
        keep(other.waiting, frame.data)
        if caller is not None and caller.end is None:
            caller.deadline = now + self.limits.idle
        self._list(other)

    def credit(self, connection: ServerConnection, frame: RelayCredit) -> None:
        """A client takes more; what it said before stands, where that was more."""
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
        """A connection has ended, and what waits for it goes nowhere.  Idempotent."""
        for leg in list(connection.legs.values()):
            self._leave(leg, EndReason.GONE, now)
        connection.ready.clear()
        self.woken.pop(connection, None)

    def shut_down(self, connection: ServerConnection, now: float, *, answered: bool = True) -> bool:
        """End the circuits of a connection, behind what waits for it, or those alone that are not `answered`.

        Returns whether it has circuits that go on.
        """
        for leg in list(connection.legs.values()):
            if answered or leg.circuit.answerer is None:
                self._end_both(leg, EndReason.SHUTTING_DOWN, now)
        return any(leg.end is None for leg in connection.legs.values())

    def give_up_waiting(self, connection: ServerConnection) -> None:
        """What waits for a connection goes nowhere."""
        for leg in connection.legs.values():
            self._clear(leg)
            self._list(leg)

    # -- time ----------------------------------------------------------------------------------------------------------

    def deadline(self, connection: ServerConnection) -> float:
        """When `handle_timer` is to be called for a connection."""
        return min((leg.deadline for leg in connection.legs.values()), default=math.inf)

    def handle_timer(self, connection: ServerConnection, now: float) -> None:
        """End what was not answered, was idle, or was not taken in time."""
        for leg in [each for each in connection.legs.values() if each.deadline <= now]:
            if leg.end is not None:
                self._drop(leg)
            else:
                self._end_both(leg, EndReason.UNANSWERED if leg.circuit.answerer is None else EndReason.IDLE, now)

    # -- what is to be written -----------------------------------------------------------------------------------------

    def transmit(self, connection: ServerConnection) -> Piece | None:
        """The next frame of a connection's circuits, which is the shell's from here on; `written` is called for it."""
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
        """A frame was written, or never will be: who has sent what is in it may send more."""
        if not piece.size:
            return
        leg, source = piece.leg, piece.leg.circuit.other(piece.leg)
        leg.held -= piece.size
        self._held -= piece.size
        self._bytes += piece.size
        if source is None or source.end is not None:
            return
        source.drained += piece.size
        if source.exhausted and source.drained == source.received:  # the window is what it waits for
            source.exhausted = False
            source.window = max(source.window, min(2 * source.window, CIRCUIT_BYTES - leg.window))
        if source.drained + source.window - source.limit >= source.window // RENEWAL:
            source.limit = source.drained + source.window
            source.credit_due = True
            self._list(source)

    # -- ends ----------------------------------------------------------------------------------------------------------

    def _leave(self, leg: Leg, reason: EndReason, now: float) -> None:
        """A client has left its end, and hears no more of it."""
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
        """One of those that were rung does not answer; with the last one the call is over."""
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
        """Tell a client that its circuit has ended, behind what waits for it."""
        if leg.end is None:
            leg.end = reason
            leg.credit_due = False
            leg.deadline = now + self.limits.unanswered
            self._list(leg)

    def _drop(self, leg: Leg) -> None:
        """A client hears no more of a leg."""
        self._clear(leg)
        self._remove(leg)

    def _clear(self, leg: Leg) -> None:
        """What waits for a client is not going to be written."""
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
        """There may be something to write for a leg."""
        if not leg.listed and leg.ready and leg.number in leg.connection.legs:
            leg.listed = True
            leg.connection.ready.append(leg)
        if leg.listed:
            self.woken[leg.connection] = None
