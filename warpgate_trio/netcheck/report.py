"""The report of `Node.netcheck`: frozen types, and the sentences that describe a measurement.  No I/O.

`probes` does the measuring.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, final

import msgspec

from ..address.interfaces import lasting_addresses
from ..address.nat_profile import NatProfile, TransportProfile, delta_type, describe, nat_type
from ..clock.ntp import UNSYNCHRONISED
from ..errors import printable
from ..names import NameFailure, describe_failures
from ..nat.abilities import Abilities, abilities
from ..sockaddr import Family, IpAddress, show_address

if TYPE_CHECKING:
    from ..config import Servers
    from ..host import Interface
    from ..portmap.service import GatewayState

__all__ = ["ClockCheck", "GatewayCheck", "NetcheckReport", "PathCheck", "ServerCheck", "TransportCheck"]

MAX_INTERFACES: Final = 4
"""Interfaces measured for each address family, one after another, the one that leads to the internet first."""
MAX_SENTENCE: Final = 300
"""Characters of an error in the report, which may quote a server."""


# --- The report -------------------------------------------------------------------------------------------------------


class _Part(msgspec.Struct, frozen=True, kw_only=True):
    """A part of the report; None, and null in JSON, means unknown."""


@final
class TransportCheck(_Part, frozen=True, kw_only=True):
    """How the network treats UDP or TCP: a `TransportProfile` with names for values.

    Attributes:
      words: a description for people, such as "port-restricted cone, keeps ports".
      nat_type, delta_type: the names of `NatType` and `DeltaType` in lower case.
      translated, blocked, hairpin: as in the profile.
      mapping, filtering, allocation: the enums' names in lower case.
      delta, low, high: as in the profile.
      external: our external addresses, as servers saw them.
    """

    words: str
    nat_type: str
    delta_type: str
    translated: bool | None
    blocked: bool | None
    hairpin: bool | None
    mapping: str
    filtering: str
    allocation: str
    delta: int
    low: int
    high: int
    external: tuple[str, ...]


@final
class PathCheck(_Part, frozen=True, kw_only=True):
    """What is between one interface and the internet, over one address family.

    Attributes:
      interface: the interface's name.
      af: 4 or 6.
      address: our address from which it was measured.
      addresses: all addresses of the interface in this family, except link-local ones.
      main: whether packets to the internet leave through it.
      udp, tcp: the profile of each transport.
      can, cannot, unknown: sentences about it (`warpgate_trio.nat.abilities`).
    """

    interface: str
    af: int
    address: str
    addresses: tuple[str, ...]
    main: bool
    udp: TransportCheck
    tcp: TransportCheck
    can: tuple[str, ...]
    cannot: tuple[str, ...]
    unknown: tuple[str, ...]


@final
class ServerCheck(_Part, frozen=True, kw_only=True):
    """One server over one transport.

    Attributes:
      url: its URL, with secrets masked.
      kind: the key of ``[servers]`` that lists it.
      transport: "udp" or "tcp".
      reachable: whether it answered; None if it was not tested.
      latency_ms: the round-trip time in milliseconds; None where there was no answer.
      error: one sentence on why it is not reachable or was not tested.
    """

    url: str
    kind: str
    transport: str
    reachable: bool | None
    latency_ms: float | None = None
    error: str | None = None


@final
class ClockCheck(_Part, frozen=True, kw_only=True):
    """The error of this host's clock, according to NTP servers.

    Attributes:
      offset_s: seconds to add to the clock; None if it was not measured.
      uncertainty_s: seconds by which that may be wrong.
      agreeing, outvoted: the servers that agree on it, and those that contradict it.
    """

    offset_s: float | None = None
    uncertainty_s: float | None = None
    agreeing: tuple[str, ...] = ()
    outvoted: tuple[str, ...] = ()


@final
class GatewayCheck(_Part, frozen=True, kw_only=True):
    """A router that was asked to open the port that the node listens on (docs/port_mapping.md).

    Attributes:
      interface: the name of the interface from which it is asked.
      address: its address in our network.
      protocols: the protocols that it answers: pcp, natpmp, upnp.
      mapped: the external endpoints that it reports for our port, address and port; without an address if it reports
        none.
      problems: why it has opened no port, or does not answer all protocols, in sentences.
    """

    interface: str
    address: str
    protocols: tuple[str, ...]
    mapped: tuple[str, ...]
    problems: tuple[str, ...]


@final
class NetcheckReport(_Part, frozen=True, kw_only=True):
    """The result of `Node.netcheck`.

    Attributes:
      online: whether at least one server was reached.
      complete: whether everything was tested before the time was up.
      elapsed_ms: the duration of the check in milliseconds.
      external: our external addresses, as servers saw them, over all paths.
      paths: one for each interface and address family, those that lead to the internet first.
      servers: one row for each server and transport: signal, STUN, TURN, then NTP servers.
      clock: the error of this host's clock.
      gateways: the routers that were asked to open ports.
      can, cannot, unknown: sentences about the node as a whole, then those of each path.
    """

    online: bool
    complete: bool
    elapsed_ms: float
    external: tuple[str, ...]
    paths: tuple[PathCheck, ...]
    servers: tuple[ServerCheck, ...]
    clock: ClockCheck
    can: tuple[str, ...]
    cannot: tuple[str, ...]
    unknown: tuple[str, ...]
    gateways: tuple[GatewayCheck, ...] = ()


# --- Which paths there are --------------------------------------------------------------------------------------------


@final
@dataclass(slots=True)
class Path:
    """An interface, an address family, and the measured profile; `why` says why there is none."""

    interface: str
    af: Family
    address: IpAddress
    addresses: tuple[IpAddress, ...]
    main: bool = False
    profile: NatProfile | None = None
    why: str = "was not measured: the time was up"


def plan_paths(interfaces: Sequence[Interface], af: Family, source: IpAddress | None) -> list[Path]:
    """The paths of one address family.

    Interfaces that lead only to this host are left out, unless the servers are there.

    Args:
      source: our address on the route to the servers; None where there is no route.
    """
    found: list[Path] = []
    for interface in interfaces:
        ours = tuple(
            each.ip
            for each in interface.addresses
            if each.ip.version == af and not (each.ip.is_link_local or each.ip.is_multicast or each.ip.is_unspecified)
        )
        main = source is not None and source in ours
        if not ours or not (interface.is_used or main):
            continue
        lasting = [each.ip for each in lasting_addresses(interface, af)] or ours
        address = source if main and source is not None else lasting[0]
        found.append(Path(interface.name, af, address, ours, main=main))
    return sorted(found, key=lambda path: not path.main)[:MAX_INTERFACES]


# --- Words ------------------------------------------------------------------------------------------------------------


def whole(
    paths: Sequence[PathCheck],
    signals: Sequence[ServerCheck],
    servers: Servers,
    ntp: Sequence[ServerCheck],
    *,
    unresolved: Mapping[str, NameFailure] | None = None,
) -> Abilities:
    """The sentences about the node as a whole; `unresolved` has the servers' names that could not be resolved."""
    can: list[str] = []
    cannot = [sentence(each) for each in describe_failures(unresolved or {})]
    unknown: list[str] = []
    alone = "only direct dialling works; punching and relays need signals"
    if not signals:
        cannot.append(f"no signal server is configured: {alone}")
    elif not any(each.reachable for each in signals):
        cannot.append(f"no signal server answers: {alone}")
    else:
        can.append("exchanges signals with peers that use the same servers")
    if not paths:
        cannot.append("this machine has no address but its own loopback")
    elif not any(path.af == 6 for path in paths):
        cannot.append("has no IPv6, over which there would be no NAT")
    if not servers.stun:
        unknown.append("no STUN server is configured: what lies between here and the internet is not known")
    if not any(each.reachable for each in ntp):
        why = "answers" if ntp else "is configured"
        if any(each.error is not None and UNSYNCHRONISED in each.error for each in ntp):
            why = "that answers is synchronised"
        unknown.append(f"no NTP server {why}: the clock's error can be measured only against peers")
    return Abilities(can=tuple(can), cannot=tuple(cannot), unknown=tuple(unknown))


def named(sentence: str, path: PathCheck, paths: Sequence[PathCheck]) -> str:
    return sentence if len(paths) == 1 else f"IPv{path.af} by {path.interface}: {sentence}"


def gateway_check(state: GatewayState) -> GatewayCheck:
    return GatewayCheck(
        interface=state.interface,
        address=str(state.gateway),
        protocols=state.protocols,
        mapped=tuple(show_address((str(each.ip or ""), each.external)) for each in state.mapped),
        problems=tuple(sentence(each) for each in state.problems),
    )


def path_check(path: Path) -> PathCheck:
    profile = path.profile or NatProfile()
    said = abilities(profile) if path.profile is not None else Abilities(unknown=(path.why,))
    return PathCheck(
        interface=path.interface,
        af=path.af,
        address=str(path.address),
        addresses=tuple(map(str, path.addresses)),
        main=path.main,
        udp=_transport_check(profile.udp),
        tcp=_transport_check(profile.tcp),
        can=said.can,
        cannot=said.cannot,
        unknown=said.unknown,
    )


def _transport_check(profile: TransportProfile) -> TransportCheck:
    return TransportCheck(
        words=describe(profile),
        nat_type=nat_type(profile).name.lower(),
        delta_type=delta_type(profile).name.lower(),
        translated=profile.translated,
        blocked=profile.blocked,
        hairpin=profile.hairpin,
        mapping=profile.mapping.name.lower(),
        filtering=profile.filtering.name.lower(),
        allocation=profile.allocation.name.lower(),
        delta=profile.delta,
        low=profile.low,
        high=profile.high,
        external=tuple(map(str, profile.external)),
    )


def milliseconds(seconds: float) -> float:
    return round(seconds * 1000, 3)


def sentence(text: str) -> str:
    """An error in a form that can be shown: without control characters from a server, and of limited length."""
    return printable(text, MAX_SENTENCE)
