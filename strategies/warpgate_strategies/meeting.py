"""What the techniques have in common in which both sides send at once: whose addresses are told, and which believed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Final

from warpgate_trio.nat.candidates import Candidate, admit
from warpgate_trio.plugin import IP4, RouteType

if TYPE_CHECKING:
    from warpgate_trio.nat.stun import TransportAddress
    from warpgate_trio.plugin import Plugin

__all__ = ["LOOPBACK", "admitted", "local_ip", "own_candidates"]

LOOPBACK: Final = {4: "127.0.0.1", 6: "::1"}


def local_ip(plugin: Plugin) -> str | None:
    """What to bind to: the address in the common network, or loopback; None on the way across the internet."""
    if plugin.route_type is RouteType.LOOPBACK_BIND:
        return LOOPBACK[plugin.af]
    return None if plugin.src is None else str(plugin.src)


def own_candidates(
    plugin: Plugin, local: TransportAddress, mapped: Mapping[TransportAddress, TransportAddress]
) -> list[TransportAddress]:
    """Where the peer may meet a port of ours: as servers saw it, or, where nothing is in between, as it is."""
    if plugin.route_type is not RouteType.EXT_BIND or plugin.af != IP4:
        return [*dict.fromkeys(mapped.values()), local] if plugin.route_type is RouteType.EXT_BIND else [local]
    seen = list(dict.fromkeys(mapped.values()))
    return seen or [local]


def admitted(
    plugin: Plugin, candidates: Sequence[Candidate], mapped: Mapping[TransportAddress, TransportAddress]
) -> list[TransportAddress]:
    """The peer's candidates that may be sent to; see `warpgate_trio.nat.candidates.admit`."""
    ours = [endpoint for _, endpoint in plugin.node.address.endpoints()]
    return admit(
        candidates,
        af=plugin.af,
        loopback=plugin.route_type is RouteType.LOOPBACK_BIND,
        network_of=plugin.src if plugin.route_type is RouteType.NIC_BIND else None,
        ours=ours,
        mapped=tuple(mapped.values()),
    )
