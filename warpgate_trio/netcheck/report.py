"""What `Node.netcheck` reports: frozen types, and the words that a measurement becomes.  No I/O.

`netcheck_probes` finds out what stands in them.
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
"""Interfaces measured per address family, one after another, the one that leads to the internet first."""
MAX_SENTENCE: Final = 300
"""Characters of an error in the report: parts of it may be a server's own words."""


# --- The report -------------------------------------------------------------------------------------------------------


class _Part(msgspec.Struct, frozen=True, kw_only=True):
    """A part of the report; null and None are "unknown"."""


@final
class TransportCheck(_Part, frozen=True, kw_only=True):
    """How the network treats UDP, or TCP: a `TransportProfile` in names.

    Attributes:
      words: for people, "port-restricted cone, keeps ports".
      nat_type, delta_type: `NatType`'s and `DeltaType`'s names in lower case.
      translated, blocked, hairpin: as in the profile.
      mapping, filtering, allocation: the enums' names in lower case.
      delta, low, high: as in the profile.
      external: our addresses as servers saw them.
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
      interface: its name.
      af: 4 or 6.
      address: ours, from which it was measured.
      addresses: all that the interface has of the family.
      main: whether packets to the internet leave by it.
      udp, tcp: the profile.
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
      url: without what is secret.
      kind: the key of ``[servers]`` that names it.
      transport: "udp" or "tcp".
      reachable: None: not tested.
      latency_ms: a round trip to it; None where there was none.
      error: one sentence on why it is not reachable, or not tested.
    """

    url: str
    kind: str
    transport: str
    reachable: bool | None
    latency_ms: float | None = None
    error: str | None = None


@final
class ClockCheck(_Part, frozen=True, kw_only=True):
    """What time servers say of this machine's clock.

    Attributes:
      offset_s: seconds to add to it.
      uncertainty_s: seconds by which that may be wrong.
      agreeing, outvoted: the servers that say so, and those that say something else.
    """

    offset_s: float | None = None
    uncertainty_s: float | None = None
    agreeing: tuple[str, ...] = ()
    outvoted: tuple[str, ...] = ()


@final
class GatewayCheck(_Part, frozen=True, kw_only=True):
    """A router that was asked to open the port that the node listens on (docs/port_mapping.md).

    Attributes:
      interface: the name of the interface that it is asked by.
      address: its own, in our network.
      protocols: what it answers to: pcp, natpmp, upnp.
      mapped: where it has opened our port, by its own word: address and port, the address empty where it tells none.
      problems: why it has opened none, or not by all protocols, in sentences.
    """

    interface: str
    address: str
    protocols: tuple[str, ...]
    mapped: tuple[str, ...]
    problems: tuple[str, ...]


@final
class NetcheckReport(_Part, frozen=True, kw_only=True):
    """What `Node.netcheck` found.

    Attributes:
      online: whether at least one server was reached.
      complete: False: the time was up before all had been asked.
      elapsed_ms: how long it took.
      external: our addresses as servers saw them, over all paths.
      paths: per interface and address family, those that lead to the internet first.
      servers: one row per server and transport, in the order of the configuration.
      clock: what is wrong with it.
      gateways: the routers that ports are opened by.
      can, cannot, unknown: what holds for the node as a whole, then each path's sentences.
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
    """An interface, an address family, and what was measured there; without a profile, why there is none."""

    interface: str
    af: Family
    address: IpAddress
    addresses: tuple[IpAddress, ...]
    main: bool = False
    profile: NatProfile | None = None
    why: str = "was not measured: the time was up"


def plan_paths(interfaces: Sequence[Interface], af: Family, source: IpAddress | None) -> list[Path]:
    """The paths of one family; `source` is our address on the way to the servers, None where none leads there.

    Interfaces that lead to this machine alone are no paths, except where the servers are there.
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
    """What holds for the node, whatever its paths are like; `unresolved` are servers' names that DNS does not know."""
    can: list[str] = []
    cannot = [sentence(each) for each in describe_failures(unresolved or {})]
    unknown: list[str] = []
    alone = "peers can be dialled, and nothing that both sides have to agree on works"
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
            why = "has the time (those that answer are not synchronised themselves)"
        unknown.append(f"no time server {why}: how wrong the clock is, only peers tell")
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
    """An error fit to be shown: what a server wrote into it moves no cursor, and is no longer than it has to be."""
    return printable(text, MAX_SENTENCE)
