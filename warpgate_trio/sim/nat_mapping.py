"""How a NAT maps (RFC 4787, section 4): which outside endpoint a new session from inside gets.

The session shares an existing mapping if the mapping behaviour allows it.  Otherwise it gets a new mapping, on a port
that the allocation proposes and the conflict rule accepts, and on the outside address that pooling chooses.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from random import Random
from typing import Final, final

from .addr import Endpoint
from .nat_axes import Behavior, Conflict, NatConfig, Pooling
from .nat_axes import Mapping as Axis
from .nat_ports import take
from .nat_sessions import Key, Mapping, Session, Table
from .nat_verdicts import Action, Forward, NatVerdict
from .packet import RST, SYN, TCP, UDP, Icmp, Packet, icmp_error

_TRIES: Final = 1 << 16  # as many as there are ports


@final
class Mapper:
    """The outside addresses of one NAT, and the mappings that it makes there.

    Attributes:
      addresses: the outside addresses; none for `identity`.
    """

    def __init__(
        self,
        config: NatConfig,
        random: Random,
        forwards: dict[tuple[int, int], Forward],
        reserved: Callable[[int, int], bool],
    ) -> None:
        self.addresses: list[str] = []
        self._config = config
        self._random = random
        self._forwards = forwards
        self._reserved = reserved
        self._inside: list[str] = []  # of 1:1, in the order of their outside addresses

    def reset(self, table: Table) -> None:
        """Begin with a new table, and forget everything except the address assignments of 1:1 NAT."""
        self._table = table
        self._ports = {
            UDP: self._config.udp.allocation.start(self._random),
            TCP: self._config.tcp.allocation.start(self._random),
        }
        self._paired: dict[str, str] = {}
        self._degraded: set[tuple[int, Endpoint]] = set()
        self._resting: dict[tuple[int, Endpoint], float] = {}  # ports in hold-down, and until when

    # Inside hosts that have an outside address of their own

    @property
    def addresses_wanted(self) -> int:
        """The number of outside addresses that the NAT needs."""
        return max(1, len(self._inside))

    def pair(self, inside: str) -> None:
        """For 1:1 NAT: assign the next outside address to an inside host that has none."""
        if inside not in self._inside:
            self._inside.append(inside)

    def inside_of(self, outside: str) -> str | None:
        """For 1:1 NAT: the inside host to which an outside address is assigned; None if there is none."""
        return _partner(outside, self.addresses, self._inside)

    # Mappings

    def rest(self, mapping: Mapping, now: float) -> None:
        """Keep the port of an ended mapping unused for `NatConfig.hold_down` seconds."""
        if self._config.hold_down:
            self._resting[mapping.proto, mapping.outside] = now + self._config.hold_down

    def open(self, packet: Packet, behavior: Behavior, now: float) -> Session | NatVerdict:
        """A session for a new flow from inside, or the verdict if there can be none."""
        proto, inside, remote = packet.proto, packet.src, packet.dst
        if behavior.ports is not None and remote[1] not in behavior.ports:
            return NatVerdict(Action.DROP, packet, "port not allowed")
        if proto == TCP and not packet.flags & SYN and (packet.flags & RST or not behavior.loose):
            return NatVerdict(Action.DROP, packet, "no session")
        key = self._key(behavior, proto, inside, remote)
        for mapping in self._reusable(behavior, key):
            if (proto, mapping.outside, remote) not in self._table.inbound:
                return self._table.enter(Session(proto, inside, mapping.outside, remote, mapping, now))
        quota = self._config.quota
        if quota is not None and self._table.used.get(inside[0], 0) >= quota:
            return NatVerdict(Action.REPLY, icmp_error(remote[0], Icmp.ADMIN_PROHIBITED, packet), "quota used up")
        outside = self._allocate(behavior, proto, inside, remote, now)
        if outside is None:
            return NatVerdict(Action.DROP, packet, "no port free")
        # The allocation may have degraded this endpoint, which changes its key.
        key = self._key(behavior, proto, inside, remote)
        known = next((one for one in self._table.mappings.get(key, ()) if one.outside == outside), None)
        mapping = Mapping(proto, key, inside, outside) if known is None else known
        if known is None:
            self._table.add_mapping(mapping)
        return self._table.enter(Session(proto, inside, outside, remote, mapping, now))

    def _reusable(self, behavior: Behavior, key: Key) -> Sequence[Mapping]:
        """The mappings in which a new session may be, best first.

        Usually there is one.  Where ports are overloaded, an endpoint has several if its port was taken for a remote.
        A connection tracker then uses the mapping of the newest flow from inside, or else tries to preserve the port
        (find_appropriate_src and get_unique_tuple in nf_nat_core; measured, Linux 6.18).
        """
        found = self._table.mappings.get(key, ())
        if len(found) < 2 or behavior.conflict is not Conflict.OVERLOAD:
            return found
        return [max(found, key=lambda one: max((s.number for s in one.sessions.values() if s.by_us), default=0))]

    def _key(self, behavior: Behavior, proto: int, inside: Endpoint, remote: Endpoint) -> Key:
        if behavior.mapping is Axis.APDM or (proto, inside) in self._degraded:
            return proto, inside, remote
        return (proto, inside) if behavior.mapping is Axis.EIM else (proto, inside, remote[0])

    def _allocate(
        self, behavior: Behavior, proto: int, inside: Endpoint, remote: Endpoint, now: float
    ) -> Endpoint | None:
        if self._config.identity:
            return inside
        if self._config.one_to_one:
            self.pair(inside[0])
            own = _partner(inside[0], self._inside, self.addresses)
            return None if own is None else (own, inside[1])
        address = self._outside_address(inside[0])
        table = self._table
        for port in take(self._ports[proto], inside, remote, _TRIES):
            outside = (address, port)
            if self._reserved(proto, port) or self._resting.get((proto, outside), 0.0) > now:
                continue
            forward = self._forwards.get((proto, port))
            if forward is not None and forward.inside != inside:
                continue
            free = (proto, outside, remote) not in table.inbound
            if behavior.conflict is Conflict.OVERLOAD:
                if free:
                    return outside
                continue
            if (proto, outside) in table.by_outside:
                if behavior.conflict is Conflict.DROP:
                    return None
                if behavior.conflict is Conflict.DEGRADE:
                    self._degraded.add((proto, inside))
            elif free:
                return outside
        return None

    def _outside_address(self, inside: str) -> str:
        if len(self.addresses) == 1:
            return self.addresses[0]
        if self._config.pooling is Pooling.ARBITRARY:
            return self._random.choice(self.addresses)
        if inside not in self._paired:
            self._paired[inside] = self._random.choice(self.addresses)
        return self._paired[inside]


def _partner(address: str, of: Sequence[str], among: Sequence[str]) -> str | None:
    """The item of `among` at the index that an address has in `of`; None if there is none."""
    at = of.index(address) if address in of else len(among)
    return among[at] if at < len(among) else None
