"""The common part of plugins with which both sides send at once: which candidates are announced, and which accepted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Final, Literal

from warpgate_trio.address import OwnAddresses
from warpgate_trio.plugin import IP4, RouteType
from warpgate_trio.punch.candidates import Candidate, admit

if TYPE_CHECKING:
    from warpgate_trio.plugin import Plugin
    from warpgate_trio.sockaddr import TransportAddress

__all__ = ["LOOPBACK", "admitted", "family_of", "local_ip", "own_candidates"]

LOOPBACK: Final = {4: "127.0.0.1", 6: "::1"}


def local_ip(plugin: Plugin) -> str | None:
    """The address to bind: the one in the common network, or loopback; None for a path across the internet."""
    if plugin.route_type is RouteType.LOOPBACK_BIND:
        return LOOPBACK[plugin.af]
    return None if plugin.src is None else str(plugin.src)


def family_of(plugin: Plugin) -> Literal[4, 6]:
    """The combo's address family, with a literal type."""
    return 4 if plugin.af == IP4 else 6


def own_candidates(
    plugin: Plugin,
    local: TransportAddress,
    mapped: Mapping[TransportAddress, TransportAddress],
    predicted: Sequence[TransportAddress] = (),
) -> list[TransportAddress]:
    """Our candidates for a port, the likeliest first.

    Across the internet these are the predicted and the server-reflexive addresses, or the local address where there are
    none.

    Args:
      predicted: the predicted external addresses behind a NAT with endpoint-dependent mapping.
    """
    if plugin.route_type is not RouteType.EXT_BIND:
        return [local]
    seen = [*predicted, *mapped.values()]
    return list(dict.fromkeys(seen)) or [local]


def admitted(
    plugin: Plugin, candidates: Sequence[Candidate], mapped: Mapping[TransportAddress, TransportAddress]
) -> list[TransportAddress]:
    """The accepted candidates of the peer; see `warpgate_trio.punch.candidates.admit`."""
    ours = [endpoint for _, endpoint in plugin.node.address.endpoints()]
    return admit(
        candidates,
        af=plugin.af,
        loopback=plugin.route_type is RouteType.LOOPBACK_BIND,
        network_of=plugin.src if plugin.route_type is RouteType.NIC_BIND else None,
        ours=ours,
        own=OwnAddresses(plugin.node.host),
        same_host=plugin.peer.is_same_host(plugin.node.host),
        mapped=tuple(mapped.values()),
    )
