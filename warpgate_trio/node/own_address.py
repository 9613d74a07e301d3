"""The address that a node publishes.  It is issued anew when something in it has changed, and as it ages."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from ipaddress import IPv4Address
from typing import Final, final

from .. import host as machine
from ..address import (
    AddressInterface,
    Endpoint,
    EndpointKind,
    OwnAddresses,
    PeerAddress,
    describe_interfaces,
)
from ..address.nat_profile import NatProfiles
from ..address.record import MAX_ENDPOINTS
from ..address.scope import AddressScope, scope_of
from ..clock.wall import Clock
from ..host import Host, Interface
from ..identity import Identity
from ..portmap.service import MappedPort

__all__ = ["OwnAddress", "with_mapped"]

ADDRESS_LIFETIME: Final = 7 * 24 * 3600
"""Seconds for which a published address is valid: long enough to be pasted into a chat and used some days later."""
MAX_HINTS: Final = 4
"""Signal servers named in the address: each makes the text that people copy longer."""
MAX_TEXT: Final = 600
"""Characters of an address's text, above which external NAT addresses are left out."""
HOST_SALT: Final = 8
"""Bytes of salt in the host id (`warpgate_trio.host.host_id`)."""
CLOCK_LEEWAY: Final = 60
"""Seconds by which the clock may be set back without a new address."""


def with_mapped(
    interfaces: tuple[AddressInterface, ...], ports: Sequence[MappedPort], nat: NatProfiles
) -> tuple[AddressInterface, ...]:
    """Add the ports that routers have mapped to the published interfaces.

    The external address that a router reports is checked.  A public one is published where STUN servers see us there,
    or have not answered.  A private one is the router's own address in its provider's network, where a neighbour behind
    another router can use it.  IPv6 pinholes are skipped, since their addresses are published anyway.
    """
    for port in ports:
        ip = port.ip
        if not isinstance(ip, IPv4Address):
            continue
        profile = nat.get(None, 4)
        seen = {*profile.udp.external, *profile.tcp.external}
        scope = scope_of(ip)
        if not (ip in seen or not seen if scope is AddressScope.PUBLIC else scope in _INSIDE):
            continue
        interfaces = tuple(
            _with_endpoint(each, port, ip) if each.index == port.interface else each for each in interfaces
        )
    return interfaces


def _with_endpoint(interface: AddressInterface, port: MappedPort, ip: IPv4Address) -> AddressInterface:
    bases = [n for n, each in enumerate(interface.endpoints) if each.ip == port.local]
    if not bases or len(interface.endpoints) >= MAX_ENDPOINTS:
        return interface
    mapped = Endpoint.make(transport=port.transport, kind=EndpointKind.MAPPED, ip=ip, port=port.external, base=bases[0])
    return AddressInterface(interface.index, (*interface.endpoints, mapped))


_INSIDE: Final = (AddressScope.PRIVATE, AddressScope.SHARED)


@final
class OwnAddress:
    """See the module's docstring.

    Args:
      ports: the ports that the node listens on, by IP version.
      signals: URLs of the signal servers that the node uses.
      nat: returns what has been measured of the NATs so far.
      mapped: returns the ports that routers have open for this node now.
      instance: names this process among those with the same key.
      capabilities: returns what the node can do for its peers now.
    """

    def __init__(
        self,
        identity: Identity,
        host: Host,
        clock: Clock,
        *,
        ports: dict[int, int],
        signals: Sequence[str],
        nat: Callable[[], NatProfiles],
        mapped: Callable[[], Sequence[MappedPort]],
        instance: bytes,
        listening: bool,
        capabilities: Callable[[], Sequence[str]],
    ) -> None:
        self._identity = identity
        self._host = host
        self._clock = clock
        self._ports = ports
        self._signals = tuple(dict.fromkeys(signals))[:MAX_HINTS]
        self._nat = nat
        self._mapped = mapped
        self._instance = instance
        self._listening = listening
        self._capabilities = capabilities
        self._salt = host.entropy(HOST_SALT)
        self._listed: tuple[Interface, ...] | None = None
        self._interfaces: tuple[AddressInterface, ...] | None = None
        self._measured: NatProfiles | None = None
        self._nat_bytes: bytes | None = None
        self._issued: PeerAddress | None = None
        self._issued_nat: bytes | None = None

    def look(self) -> PeerAddress:
        """The address, after a fresh look at the host's interfaces."""
        address, _ = self.look_around()
        return address

    def look_around(self) -> tuple[PeerAddress, OwnAddresses]:
        """The same, and all addresses that lead to this host."""
        listed = self._host.interfaces()
        if listed != self._listed:
            self._listed = listed
            interfaces = describe_interfaces(listed, port_v4=self._ports.get(4), port_v6=self._ports.get(6))
            if interfaces != self._interfaces:
                self._interfaces, self._measured = interfaces, None
        return self.current(), OwnAddresses(self._host, listed)

    def current(self) -> PeerAddress:
        """The address, by the interfaces as they were seen last; cheap where nothing has changed."""
        if self._interfaces is None:
            return self.look()
        measured = self._nat()
        if measured is not self._measured:
            self._measured = measured
            self._nat_bytes = measured.to_bytes(interfaces=len(self._interfaces), external=True)
        interfaces = with_mapped(self._interfaces, self._mapped(), measured)
        capabilities = tuple(self._capabilities())
        issued, now = self._issued, max(int(self._clock.now()), 0)
        if (
            issued is None
            or issued.interfaces != interfaces
            or issued.capabilities != capabilities
            or self._issued_nat != self._nat_bytes
            or not issued.issued_at - CLOCK_LEEWAY <= now <= issued.issued_at + ADDRESS_LIFETIME // 2
        ):
            self._issued_nat = self._nat_bytes
            self._issued = issued = self._issue(interfaces, capabilities, measured, now)
        return issued

    def _issue(
        self, interfaces: tuple[AddressInterface, ...], capabilities: tuple[str, ...], nat: NatProfiles, now: int
    ) -> PeerAddress:
        make = partial(
            PeerAddress.issue,
            self._identity,
            seq=max(now, self._issued.seq + 1 if self._issued is not None else 0),
            issued_at=now,
            expires_at=now + ADDRESS_LIFETIME,
            host_salt=self._salt,
            host_id=machine.host_id(self._host.machine_fingerprint(), self._salt, self._identity.public_key),
            signals=self._signals,
            interfaces=interfaces,
            capabilities=capabilities,
            instance=self._instance,
            listens=self._listening,
        )
        # The external addresses, where peers would meet us, are named as long as the text does not get too long.
        address = make(nat=nat.to_bytes(interfaces=len(interfaces), external=True))
        if len(str(address)) <= MAX_TEXT:
            return address
        return make(nat=nat.to_bytes(interfaces=len(interfaces), external=False))
