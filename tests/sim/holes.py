"""A relayed Pipe whose new direct path turns into a black hole, at some moment and in some direction.

Bulk flows through the relay for a second.  Then the caller searches for a better path and finds the only one.  At a
`Moment` of that path's life, all packets between the two networks start to vanish, one way or both; those through the
servers still pass.  `fall` measures each receiver's longest silence.  Without a hole it measures the same in a world
where the new path is good.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from typing import Final, Literal, final

import trio

from tests.links import link_of
from tests.sim.roaming import PACE, SETTLED, Talk, numbered
from tests.sim.test_better_paths import Closed
from tests.sim.test_ws_relay import OPEN, server
from warpgate_trio import PathState, Pipe
from warpgate_trio.errors import ConnectError
from warpgate_trio.link.life import SLACK, SUSPICION_TRIPS
from warpgate_trio.sim import Fault, Kind, Network, presets, simulate
from warpgate_trio.sim.packet import Packet
from warpgate_trio.testing import simulated_hosts
from warpgate_trio.testing.walks import NTP, STUN, STUN2, open_nodes
from warpgate_trio.testing.worlds import PeerPair

__all__ = ["LOADS", "MOMENTS", "PLUGINS", "WAYS", "Fallen", "Hole", "Load", "Moment", "Plugin", "Way", "bar", "fall"]

Moment = Literal["handshake", "trial", "switch", "1 MiB"]
"""When the hole opens:

* handshake: the first packet of TLS or QUIC has passed;
* trial: the listener has the second lane and the first part of the trial, and the next packet has passed;
* switch: the caller sends on the new lane, and the next packet has passed;
* 1 MiB: so many bytes have passed after the switch.
"""
Way = Literal["out", "back", "both"]
"""What vanishes: packets from the caller's network, from the listener's, or both."""
Load = Literal["out", "back", "both"]
"""Who sends bulk: the caller, the listener, or both."""
Plugin = Literal["direct_connect", "tcp_punch", "udp_punch"]
MOMENTS: Final[tuple[Moment, ...]] = ("handshake", "trial", "switch", "1 MiB")
WAYS: Final[tuple[Way, ...]] = ("out", "back", "both")
LOADS: Final[tuple[Load, ...]] = ("out", "back", "both")
PLUGINS: Final[tuple[Plugin, ...]] = ("direct_connect", "tcp_punch", "udp_punch")
PIECE: Final = 16 * 1024
"""Bytes in 20 ms: 0.8 MB/s, more than one window in a round trip."""
WARM: Final = 1.0
MIB: Final = 1 << 20
LASTS: Final = 5.0
"""Seconds from the search on, plus `TRIPS` round trips: 2 s until the hole opens, and its longest effect."""
TRIPS: Final = 20
_HANDSHAKE: Final = 600
"""Bytes from which on a UDP packet is no probe: QUIC's first packets have 1,200 (RFC 9000 §14.1)."""


def bar(moment: Moment, rtt: float) -> float:
    """Seconds by which a hole may lengthen a receiver's silence: none up to the trial."""
    return 0.0 if moment in ("handshake", "trial") else SUSPICION_TRIPS * rtt + SLACK


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Hole:
    """When the path becomes a black hole, and in which direction."""

    moment: Moment
    way: Way


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Fallen:
    """The result of `fall`.

    Attributes:
      silences: the longest silence at each receiver, in seconds.
      opened: whether the hole opened.
      left: whether the caller's end left the relay meanwhile.
      phase: the phase of the final path.
    """

    silences: tuple[float, ...]
    opened: bool
    left: bool
    phase: str | None

    @property
    def worst(self) -> float:
        return max(self.silences)


@final
class _Watch:
    """Watches the packets between the two networks, and opens the hole at its moment."""

    def __init__(self, net: Network, names: tuple[str, str], hole: Hole, ours: Pipe, theirs: Pipe) -> None:
        self._net, self._names, self._hole = net, names, hole
        self._ours, self._theirs = ours, theirs
        self._passed = 0
        self.opened = False
        net.hosts[names[0]].interfaces[0].tap = self._look

    def _look(self, _now: float, packet: Packet, outgoing: bool) -> None:
        other = packet.dst[0] if outgoing else packet.src[0]
        if self.opened or other not in self._net.hosts[self._names[1]].addresses or not self._is_time(packet):
            return
        self.opened = True
        name, peer = self._names
        ends = {"out": [f"{name}:up"], "back": [f"{name}:down"], "both": [name]}[self._hole.way]
        self._net.schedule([Fault(at=0.0, target=end, kind=Kind.BLACKHOLE, peer=peer) for end in ends])

    def _is_time(self, packet: Packet) -> bool:
        moment = self._hole.moment
        if moment == "handshake":
            return bool(packet.payload) if packet.flags else len(packet.payload) >= _HANDSHAKE
        if moment == "trial":
            return len(link_of(self._theirs).protocol.lanes) > 1
        if self._ours.path.phase == "relay":
            return False
        self._passed += len(packet.payload)
        return moment == "switch" or self._passed >= MIB


def fall(plugin: Plugin, load: Load, hole: Hole | None, *, rtt: float = 0.05, search: bool = True) -> Fallen:
    """Run one world; without a `search`, the Pipe stays on the relay.

    Raises:
      AssertionError: bytes are lost, duplicated or reordered, or nothing flows in the end.
    """
    public = plugin == "direct_connect"
    pair = PeerPair.between(presets.LINUX, None if public else presets.LINUX, rtt=rtt, server_rtt=rtt)
    names = ("alice-nat0", "bob" if public else "bob-nat0")
    lasts = LASTS + TRIPS * rtt

    async def main() -> Fallen:
        servers = (server(OPEN), STUN, STUN2, NTP)
        async with pair.build(time_limit=1e6) as net, simulated_hosts(), open_nodes(net, servers=servers) as nodes:
            await trio.sleep(5.0)
            closed = Closed(nodes.alice, plugin)
            ours = await nodes.alice.auto_connect(nodes.bob.address, plugins=[plugin, "ws_relay"], relay_first=True)
            theirs = await nodes.bob.listener.accept()
            async with ours, theirs, trio.open_nursery() as nursery:
                assert ours.path.phase == "relay"
                ways = {"out": [(ours, theirs)], "back": [(theirs, ours)]}
                talks = [Talk(*each, size=PIECE) for each in ways.get(load, [(ours, theirs), (theirs, ours)])]
                for talk in talks:
                    nursery.start_soon(talk.receive)
                    nursery.start_soon(_send, talk, trio.current_time() + WARM + lasts)
                await trio.sleep(WARM)
                watch = None if hole is None else _Watch(net, names, hole, ours, theirs)
                began = trio.current_time()
                closed.open()
                if search:
                    nursery.start_soon(_search, ours)
                await trio.sleep(lasts)
                for talk in talks:
                    assert talk.arrivals[-1] >= trio.current_time() - 0.5, "it flows"
                assert {each.path.state for each in (ours, theirs)} == {PathState.LIVE}
                assert ours.path.phase == theirs.path.phase
                await trio.sleep(SETTLED)
                assert [talk.got for talk in talks] == [talk.sent for talk in talks]
                fallen = Fallen(
                    silences=tuple(talk.silence_after(began) for talk in talks),
                    opened=watch is not None and watch.opened,
                    left=any(each.switched for each in ours.path_log),
                    phase=ours.path.phase,
                )
                nursery.cancel_scope.cancel()
        return fallen

    return simulate(main, seed=0)


async def _send(talk: Talk, until: float) -> None:
    while trio.current_time() < until:
        await talk.sender.send_all(numbered(talk.sent, talk.size))
        talk.sent += talk.size
        await trio.sleep(PACE)


async def _search(pipe: Pipe) -> None:
    with suppress(ConnectError):
        await pipe.migrate()
