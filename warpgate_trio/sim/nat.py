"""A NAT or a stateful firewall as a pure state machine: it takes a packet and the time, and returns a verdict.

A packet from inside (`outbound`) uses, in this order: the session of its flow; a new session in an existing mapping
that the mapping behaviour allows; a new mapping, on a port that the allocation proposes and the conflict rule accepts.
A packet from outside (`inbound`) uses, in this order: the session of its flow; a forwarded port; a mapping whose filter
admits the sender; the policy for unsolicited packets.

Two sessions never have the same outside and remote endpoints.  This is why `Unsolicited.LOCAL` defeats hole punching:
the router tracks the early packet of a peer as a flow of its own, between the outside port and the peer.  When the
inside host then sends to that peer, its port is taken *for that peer*.  The packet leaves from another port, where the
peer does not expect it.

With `identity` nothing is translated, and the same rules make an IPv6 firewall (RFC 6092).
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Sequence
from math import inf
from random import Random
from typing import final

from .addr import Endpoint, is_v6
from .nat_axes import HOLD, Behavior, Conflict, Filtering, Hairpin, NatConfig, Refresh, Unsolicited
from .nat_mapping import Mapper
from .nat_sessions import Mapping, Phase, Session, Table, Window
from .nat_verdicts import Action, Forward, NatVerdict
from .packet import ACK, ICMP, RST, SYN, TCP, UDP, Packet, icmp_error, reset_for


@final
class Nat:
    """One NAT, or one firewall.

    Args:
      config: its behaviour.
      addresses: its outside addresses; none for `identity`.
      random: for allocation and pooling.
      reserved: tells whether the router itself uses a port, given transport and port.
    """

    def __init__(
        self,
        config: NatConfig,
        addresses: Sequence[str],
        random: Random,
        *,
        reserved: Callable[[int, int], bool] = lambda _proto, _port: False,
    ) -> None:
        self.config = config
        self._forwards: dict[tuple[int, int], Forward] = {}
        self._mapper = Mapper(config, random, self._forwards, reserved)
        self.reset(addresses)

    def reset(self, addresses: Sequence[str] | None = None) -> None:
        """Forget every mapping and session, as a reboot does; set new outside addresses, if given.  Forwards stay."""
        if addresses is not None:
            self._mapper.addresses = list(addresses)
        self.table: Table = Table()
        self._mapper.reset(self.table)
        self._held: dict[tuple[int, Endpoint, Endpoint], tuple[float, Packet]] = {}

    # Outside addresses

    @property
    def addresses(self) -> list[str]:
        """Its outside addresses."""
        return self._mapper.addresses

    @property
    def addresses_wanted(self) -> int:
        """The number of outside addresses that it needs."""
        return self._mapper.addresses_wanted

    def pair(self, inside: str) -> None:
        """For 1:1 NAT: assign the next outside address to an inside host that has none."""
        self._mapper.pair(inside)

    # Forwarded ports, for port-mapping protocols

    def add_forward(self, proto: int, port: int, inside: Endpoint, *, expires: float = inf) -> Forward:
        """Forward a port, or change the target of a forward.  ValueError if the port is forwarded to another host."""
        known = self._forwards.get((proto, port))
        if known is not None and known.inside[0] != inside[0]:
            raise ValueError(f"port {port} is forwarded to {known.inside[0]} already")
        made = self._forwards[proto, port] = Forward(proto=proto, port=port, inside=inside, expires=expires)
        return made

    def remove_forward(self, proto: int, port: int) -> None:
        """Stop forwarding a port; its sessions continue."""
        self._forwards.pop((proto, port), None)

    def forwards(self, now: float) -> list[Forward]:
        """The forwards that have not expired."""
        self._expire(now)
        return list(self._forwards.values())

    def mappings(self, now: float) -> list[Mapping]:
        """The mappings that have not expired."""
        self._expire(now)
        return self.table.all_mappings()

    def _expire(self, now: float) -> None:
        if self.table.next_end <= now:
            for mapping in self.table.expire(now):
                self._mapper.rest(mapping, now)
        if self._forwards:
            for key in [key for key, one in self._forwards.items() if one.expires <= now]:
                del self._forwards[key]

    def _behavior(self, proto: int) -> Behavior:
        return self.config.tcp if proto == TCP else self.config.udp

    # From inside

    def outbound(self, packet: Packet, now: float) -> NatVerdict:
        """Decide on a packet from inside to the outside."""
        self._expire(now)
        if packet.proto == ICMP:
            return self._icmp_out(packet)
        dst = packet.dst
        hairpin = dst[0] in self.addresses
        behavior = self._behavior(packet.proto)
        if hairpin and behavior.hairpin is not Hairpin.EXTERNAL:
            return self._hairpin_plain(packet, behavior)
        session = self.table.outbound.get((packet.proto, packet.src, dst))
        note = ""
        window = Window.WITHIN
        if session is None:
            made = self._mapper.open(packet, behavior, now)
            if isinstance(made, NatVerdict):
                return made
            session, note = made, "new session"
        elif not behavior.simultaneous_open and session.crosses(packet):
            return NatVerdict(Action.DROP, packet, "no simultaneous open")
        elif behavior.strict_isn:
            window = session.window(packet, outbound=True)
            if window is Window.ABOVE:
                return NatVerdict(Action.DROP, packet, "out of window")
        if window is Window.WITHIN:
            self._touch(session, packet, behavior, now, outbound=True)
        self._held.pop((packet.proto, session.outside, dst), None)
        payload = self._rewrite_payload(packet, session.outside) if self.config.alg else None
        translated = packet.rewritten(src=session.outside, payload=payload)
        if not hairpin:
            return NatVerdict(Action.FORWARD, translated, note)
        back = self.inbound(translated, now)
        if back.action is Action.REPLY:
            back = self.inbound(back.packet, now)
        if back.action is Action.FORWARD:
            return NatVerdict(Action.HAIRPIN, back.packet, note)
        return NatVerdict(Action.DROP, packet, back.note)

    def _rewrite_payload(self, packet: Packet, outside: Endpoint) -> bytes | None:
        if is_v6(packet.src[0]):
            return None
        return packet.payload.replace(socket.inet_aton(packet.src[0]), socket.inet_aton(outside[0]))

    def _hairpin_plain(self, packet: Packet, behavior: Behavior) -> NatVerdict:
        """Hairpinning that keeps the source address: only the destination is translated, and no filter applies."""
        if behavior.hairpin is Hairpin.LOCAL:
            return NatVerdict(Action.LOCAL, packet, "no hairpinning, taken for the router's own")
        target = self._target(packet)
        if behavior.hairpin is Hairpin.NONE or target is None:
            return NatVerdict(Action.DROP, packet, "no hairpinning")
        return NatVerdict(Action.HAIRPIN, packet.rewritten(dst=target))

    def _target(self, packet: Packet) -> Endpoint | None:
        forward = self._forwards.get((packet.proto, packet.dst[1]))
        if forward is not None:
            return forward.inside
        mappings = self.table.by_outside.get((packet.proto, packet.dst))
        return mappings[-1].inside if mappings else None

    # From outside

    def inbound(self, packet: Packet, now: float) -> NatVerdict:
        """Decide on a packet from outside for one of the outside addresses."""
        self._expire(now)
        if packet.proto == ICMP:
            return self._icmp_in(packet)
        proto, outside, remote = packet.proto, packet.dst, packet.src
        behavior = self._behavior(proto)
        session = self.table.inbound.get((proto, outside, remote))
        note = ""
        if session is None:
            session = self._admit(packet, behavior, now)
            if session is None:
                return self._unsolicited(packet, behavior, now)
            note = "new session"
        elif session.inside is None:
            self._touch(session, packet, behavior, now, outbound=False)
            return NatVerdict(Action.LOCAL, packet, "the router's own")
        elif not behavior.simultaneous_open and session.crosses(packet):
            return self._unsolicited(packet, behavior, now)
        window = session.window(packet, outbound=False) if behavior.strict_isn else Window.WITHIN
        if window is Window.ABOVE:
            return self._unsolicited(packet, behavior, now)
        assert session.inside is not None
        inside = session.inside
        if window is Window.WITHIN:
            self._touch(session, packet, behavior, now, outbound=False)
        return NatVerdict(Action.FORWARD, packet.rewritten(dst=inside), note)

    def _admit(self, packet: Packet, behavior: Behavior, now: float) -> Session | None:
        """A new session for a flow from outside, if a forward or a mapping admits it."""
        proto, outside, remote = packet.proto, packet.dst, packet.src
        if proto == TCP and packet.flags & (SYN | ACK | RST) != SYN:
            return None
        forward = self._forwards.get((proto, outside[1]))
        if forward is not None:
            return self._enter(Session(proto, forward.inside, outside, remote, None, now), behavior)
        filtering = behavior.filtering
        if self.config.one_to_one and filtering is Filtering.EIF:
            inside = self._mapper.inside_of(outside[0])
            if inside is None:
                return None
            return self.table.enter(Session(proto, (inside, outside[1]), outside, remote, None, now))
        for mapping in reversed(self.table.by_outside.get((proto, outside), ())):
            if filtering is Filtering.EIF or (filtering is Filtering.ADF and remote[0] in mapping.peers):
                return self._enter(Session(proto, mapping.inside, outside, remote, mapping, now), behavior)
        return None

    def _enter(self, session: Session, behavior: Behavior) -> Session | None:
        """Begin a session from outside; None if it is not admitted.

        The inside endpoint may already have a session with that remote through another outside port.  Its packets then
        keep using that port.  A connection tracker (`Conflict.OVERLOAD`) does not admit the second session, because it
        requires that both ends of a flow are unique.
        """
        taken = (session.proto, session.inside, session.remote) in self.table.outbound
        return None if taken and behavior.conflict is Conflict.OVERLOAD else self.table.enter(session)

    def _unsolicited(self, packet: Packet, behavior: Behavior, now: float) -> NatVerdict:
        policy = behavior.unsolicited
        if policy is Unsolicited.LOCAL and not self.config.identity:
            if packet.proto == UDP:
                session = Session(UDP, None, packet.dst, packet.src, None, now)
                self.table.enter(session)
                self._touch(session, packet, behavior, now, outbound=False)
            return NatVerdict(Action.LOCAL, packet, "unsolicited, taken for the router's own")
        if packet.flags & RST:
            return NatVerdict(Action.DROP, packet, "unsolicited")
        if policy is Unsolicited.RST:
            return NatVerdict(Action.REPLY, reset_for(packet), "unsolicited, reset")
        if policy is Unsolicited.ICMP:
            error = icmp_error(packet.dst[0], behavior.unsolicited_icmp, packet)
            return NatVerdict(Action.REPLY, error, "unsolicited, refused")
        if policy is Unsolicited.HOLD and packet.flags & (SYN | ACK) == SYN:
            self._held.setdefault((packet.proto, packet.dst, packet.src), (now + HOLD, packet))
            return NatVerdict(Action.DROP, packet, "unsolicited, held", held=True)
        return NatVerdict(Action.DROP, packet, "unsolicited")

    @property
    def next_due(self) -> float:
        """When `release` has a packet to send next; inf for never."""
        return min((when for when, _ in self._held.values()), default=inf)

    def release(self, now: float) -> list[Packet]:
        """The ICMP errors for held SYNs whose time is over without a SYN from inside."""
        due = [key for key, (when, _) in self._held.items() if when <= now]
        packets = [self._held.pop(key)[1] for key in due]
        return [icmp_error(p.dst[0], self.config.tcp.unsolicited_icmp, p) for p in packets]

    def own(self, packet: Packet, now: float) -> None:
        """Track a packet that the router itself sends, so that its answer goes to the router."""
        self._expire(now)
        if packet.proto == ICMP or packet.flags & RST:
            return
        key = (packet.proto, packet.src, packet.dst)
        session = self.table.inbound.get(key)
        if session is None:
            session = Session(packet.proto, None, packet.src, packet.dst, None, now)
            self.table.enter(session)
        self._touch(session, packet, self._behavior(packet.proto), now, outbound=True)

    # Time

    def _touch(self, session: Session, packet: Packet, behavior: Behavior, now: float, *, outbound: bool) -> None:
        """Update a session's phase and expiry for a packet."""
        timers = self.config.timers
        was = session.phase
        new = session.expires == inf
        session.see(packet, outbound=outbound)
        phase = session.phase
        if phase is Phase.RESET:
            opening = was in (Phase.OPENING, Phase.CROSSED)
            lifetime = timers.opening_reset if opening else timers.reset
            if lifetime <= 0:
                ended = self.table.remove(session)
                if ended is not None:
                    self._mapper.rest(ended, now)
            elif was is not phase:  # RFC 7857, section 7.1: a RST must not refresh a session
                self.table.keep_until(session, min(session.expires, now + lifetime))
            return
        refreshes = behavior.refresh is Refresh.BOTH or (behavior.refresh is Refresh.OUT) is outbound
        if new or phase is not was or refreshes:
            self.table.keep_until(session, now + session.lifetime(timers, now))

    # ICMP errors

    def _icmp_in(self, packet: Packet) -> NatVerdict:
        about = packet.about
        assert about is not None
        session = self.table.inbound.get((about.proto, about.src, about.dst))
        if session is None:
            return NatVerdict(Action.DROP, packet, "about no session")
        if session.inside is None:
            return NatVerdict(Action.LOCAL, packet)
        if not self.config.icmp:
            return NatVerdict(Action.DROP, packet, "ICMP not passed")
        if self.config.icmp_kills:
            self.table.remove(session)
        inside = session.inside
        return NatVerdict(Action.FORWARD, packet.rewritten(dst=(inside[0], 0), about=about.rewritten(src=inside)))

    def _icmp_out(self, packet: Packet) -> NatVerdict:
        about = packet.about
        assert about is not None
        session = self.table.outbound.get((about.proto, about.dst, about.src))
        if session is None or not self.config.icmp:
            return NatVerdict(Action.DROP, packet, "about no session" if session is None else "ICMP not passed")
        if self.config.identity:
            return NatVerdict(Action.FORWARD, packet)
        outside = session.outside
        return NatVerdict(Action.FORWARD, packet.rewritten(src=(outside[0], 0), about=about.rewritten(dst=outside)))
