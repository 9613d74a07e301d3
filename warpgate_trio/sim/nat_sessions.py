"""The state of a NAT: mappings and their sessions.

A session is one flow.  From inside it is found by (transport, inside endpoint, remote endpoint), from outside by
(transport, outside endpoint, remote endpoint).  A mapping joins the sessions that share an outside endpoint by the
NAT's mapping behaviour.  A session without an inside endpoint belongs to the router itself.

TCP sessions follow the handshake as a connection tracker sees it.  The phase alone decides how long they live.
"""

from __future__ import annotations

import heapq
from enum import Enum
from math import inf
from typing import Final, final

from .addr import Endpoint
from .nat_axes import Timers
from .packet import ACK, FIN, RST, SYN, TCP, Packet

Key = tuple[object, ...]


_WINDOW: Final = 65535
"""The largest window that a SYN can offer."""


class Phase(Enum):
    """The phase of a session."""

    UDP = "udp"
    OPENING = "syn-sent"  # a SYN from one side
    CROSSED = "syn-sent-2"  # a SYN from both sides
    HALF_OPEN = "syn-received"  # a SYN-ACK
    ESTABLISHED = "established"
    CLOSING = "closing"
    RESET = "reset"


class Window(Enum):
    """Where a sequence number lies, as a connection tracker sees it."""

    WITHIN = "within"
    BELOW = "below"  # taken for a retransmission: passed on, without an effect on the session
    ABOVE = "above"  # not part of the connection


@final
class Mapping:
    """An outside endpoint, the inside endpoint that uses it, and its sessions."""

    __slots__ = ("inside", "key", "outside", "peers", "proto", "sessions")

    def __init__(self, proto: int, key: Key, inside: Endpoint, outside: Endpoint) -> None:
        self.proto: int = proto
        self.key: Key = key
        self.inside: Endpoint = inside
        self.outside: Endpoint = outside
        self.sessions: dict[Endpoint, Session] = {}
        self.peers: dict[str, int] = {}  # number of sessions by remote address

    def add(self, session: Session) -> None:
        self.sessions[session.remote] = session
        address = session.remote[0]
        self.peers[address] = self.peers.get(address, 0) + 1

    def remove(self, session: Session) -> None:
        if self.sessions.pop(session.remote, None) is not None:
            address = session.remote[0]
            self.peers[address] -= 1
            if not self.peers[address]:
                del self.peers[address]


@final
class Session:
    """One flow through a NAT.  `inside` is None for a flow of the router itself."""

    __slots__ = (
        "_by_us",
        "_isns",
        "answered",
        "created",
        "expires",
        "inside",
        "mapping",
        "number",
        "outside",
        "phase",
        "proto",
        "remote",
    )

    def __init__(
        self,
        proto: int,
        inside: Endpoint | None,
        outside: Endpoint,
        remote: Endpoint,
        mapping: Mapping | None,
        now: float,
    ) -> None:
        self.proto: int = proto
        self.inside: Endpoint | None = inside
        self.outside: Endpoint = outside
        self.remote: Endpoint = remote
        self.mapping: Mapping | None = mapping
        self.created: float = now
        self.expires: float = inf
        self.answered: bool = False
        self.phase = Phase.OPENING if proto == TCP else Phase.UDP
        self.number: int = 0  # order in which the table entered its sessions
        self._by_us = True  # whether its first packet (after a reuse of the ports: its first SYN) came from inside
        self._isns: dict[bool, int] = {}  # sequence number of the SYN from inside (True) and from outside (False)

    @property
    def by_us(self) -> bool:
        """Whether the inside endpoint began the flow."""
        return self._by_us

    def see(self, packet: Packet, *, outbound: bool) -> None:
        """Update the phase for a packet of this flow."""
        if self.expires == inf:  # its first packet
            self._by_us = outbound
            if self.proto == TCP and not packet.flags & SYN:
                self.phase = Phase.ESTABLISHED
        if outbound is not self._by_us:
            self.answered = True
        if self.proto != TCP:
            return
        flags = packet.flags
        if flags & SYN:
            self._isns[outbound] = packet.seq
        if flags & RST:
            self.phase = Phase.RESET
        elif flags & SYN:
            self._see_syn(flags, outbound)
        elif flags & FIN:
            self.phase = Phase.CLOSING
        elif self.phase is Phase.HALF_OPEN:
            self.phase = Phase.ESTABLISHED

    def _see_syn(self, flags: int, outbound: bool) -> None:
        if flags & ACK:
            if self.phase in (Phase.OPENING, Phase.CROSSED):
                self.phase = Phase.HALF_OPEN
        elif self.phase is Phase.OPENING:
            if outbound is not self._by_us:
                self.phase = Phase.CROSSED
        elif self.phase in (Phase.CLOSING, Phase.RESET):  # the ports are used again
            self.phase = Phase.OPENING
            self._by_us = outbound

    def window(self, packet: Packet, *, outbound: bool) -> Window:
        """Where the sequence number of a SYN, SYN-ACK or RST lies (`Behavior.strict_isn`).

        While only one side has sent a SYN, a new SYN replaces it, and the RST of a closed port (with number 0) is
        accepted as an answer.  After SYNs have crossed, each side is held to the number of its SYN: a SYN or SYN-ACK
        with another number is above the window, and 0 is above or below it (tcp_in_window of nf_conntrack).
        """
        isn = self._isns.get(outbound)
        if isn is None or self.phase is not Phase.CROSSED or not packet.flags & (SYN | RST):
            return Window.WITHIN
        ahead = (packet.seq - isn) % 2**32
        if packet.flags & SYN:
            return Window.WITHIN if ahead == 0 else Window.ABOVE
        return Window.WITHIN if ahead <= _WINDOW else Window.ABOVE if ahead < 2**31 else Window.BELOW

    def crosses(self, packet: Packet) -> bool:
        """Whether a packet belongs to a simultaneous open: a SYN from outside, or the SYN-ACK that answers it."""
        if self.proto != TCP or not self._by_us or self.phase not in (Phase.OPENING, Phase.CROSSED):
            return False
        inbound = packet.src == self.remote
        return packet.flags & (SYN | ACK) == (SYN if inbound else SYN | ACK)

    def lifetime(self, timers: Timers, now: float) -> float:
        """Seconds after which the session expires without a further packet."""
        phase = self.phase
        if phase is Phase.UDP:
            stream = self.answered and now - self.created > timers.udp_stream_after
            return timers.udp_stream if stream else timers.udp
        if phase is Phase.RESET:
            return timers.reset
        if phase is Phase.OPENING:
            return timers.opening
        if phase is Phase.ESTABLISHED:
            return timers.established
        return timers.closing if phase is Phase.CLOSING else timers.half_open


@final
class Table:
    """All sessions and mappings of one NAT.  Expiry is exact: `expire` is called before every lookup."""

    __slots__ = ("_due", "_number", "by_outside", "inbound", "mappings", "outbound", "second", "used")

    def __init__(self) -> None:
        self.outbound: dict[tuple[int, Endpoint, Endpoint], Session] = {}
        self.inbound: dict[tuple[int, Endpoint, Endpoint], Session] = {}
        # Sessions from outside whose inside endpoint already had a session with that remote through another port.
        self.second: dict[tuple[int, Endpoint, Endpoint], list[Session]] = {}
        self.mappings: dict[Key, list[Mapping]] = {}  # several for a key only where ports are overloaded
        self.by_outside: dict[tuple[int, Endpoint], list[Mapping]] = {}
        self.used: dict[str, int] = {}  # number of mappings by inside host
        self._due: list[tuple[float, int, Session]] = []
        self._number = 0

    @property
    def next_end(self) -> float:
        """The earliest time at which `expire` may have something to do; inf for never."""
        return self._due[0][0] if self._due else inf

    def expire(self, now: float) -> list[Mapping]:
        """Remove expired sessions; returns the mappings that ended with them."""
        due = self._due
        ended: list[Mapping] = []
        while due and due[0][0] <= now:
            session = heapq.heappop(due)[2]
            if self.inbound.get((session.proto, session.outside, session.remote)) is not session:
                continue
            if session.expires > now:
                self._watch(session)
            else:
                gone = self.remove(session)
                if gone is not None:
                    ended.append(gone)
        return ended

    def _watch(self, session: Session) -> None:
        self._number += 1
        heapq.heappush(self._due, (session.expires, self._number, session))

    def keep_until(self, session: Session, when: float) -> None:
        """Set the time at which a session expires."""
        sooner = when < session.expires
        session.expires = when
        if sooner:
            self._watch(session)

    def add_mapping(self, mapping: Mapping) -> None:
        self.mappings.setdefault(mapping.key, []).append(mapping)
        self.by_outside.setdefault((mapping.proto, mapping.outside), []).append(mapping)
        self.used[mapping.inside[0]] = self.used.get(mapping.inside[0], 0) + 1

    def enter(self, session: Session) -> Session:
        """Add a session, and return it."""
        self._number += 1
        session.number = self._number
        self.inbound[session.proto, session.outside, session.remote] = session
        if session.inside is not None:
            flow = (session.proto, session.inside, session.remote)
            if self.outbound.setdefault(flow, session) is not session:
                self.second.setdefault(flow, []).append(session)
        if session.mapping is not None:
            session.mapping.add(session)
        return session

    def remove(self, session: Session) -> Mapping | None:
        """Remove a session; returns its mapping if it was the last session of it."""
        self.inbound.pop((session.proto, session.outside, session.remote), None)
        if session.inside is not None:
            flow = (session.proto, session.inside, session.remote)
            second = self.second.get(flow)
            if self.outbound.get(flow) is not session:
                if second is not None and session in second:
                    second.remove(session)
            elif second:
                self.outbound[flow] = second.pop(0)
            else:
                del self.outbound[flow]
            if second is not None and not second:
                del self.second[flow]
        mapping = session.mapping
        if mapping is None:
            return None
        mapping.remove(session)
        if mapping.sessions:
            return None
        _remove(self.mappings, mapping.key, mapping)
        _remove(self.by_outside, (mapping.proto, mapping.outside), mapping)
        address = mapping.inside[0]
        self.used[address] -= 1
        if not self.used[address]:
            del self.used[address]
        return mapping

    def all_mappings(self) -> list[Mapping]:
        return [mapping for same in self.mappings.values() for mapping in same]


def _remove(table: dict[Key, list[Mapping]] | dict[tuple[int, Endpoint], list[Mapping]], key: Key, it: Mapping) -> None:
    same = table[key]  # type: ignore[index]
    same.remove(it)
    if not same:
        del table[key]  # type: ignore[arg-type]
