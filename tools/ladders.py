"""Draws docs/pictures/*.svg: what passes between two nodes in each phase, from the packets of a simulated call.

    python tools/ladders.py            draw them
    python tools/ladders.py --check    exit with 1 when one is not what the simulator does

A picture has a column for each machine and router, and time runs down, to scale.  Each hop of a packet is an arrow;
packets of one kind that leave together share one.  A packet that a NAT drops ends in a cross.  Bare acknowledgements of
TCP and keep-alives are left out.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final, final
from xml.sax.saxutils import escape

import trio
from wsproto.frame_protocol import FrameDecoder, Opcode

from warpgate_trio import Pipe
from warpgate_trio.nurseries import open_background_nursery
from warpgate_trio.servers.rendezvous import RelayRules, open_rendezvous
from warpgate_trio.servers.rendezvous_frames import _FROM_CLIENT, _FROM_SERVER
from warpgate_trio.sim import NatConfig, presets, simulate
from warpgate_trio.sim.packet import ACK, SYN, TCP, Packet
from warpgate_trio.sim.trace import Entry
from warpgate_trio.testing import simulated_hosts
from warpgate_trio.testing.walks import NTP, RENDEZVOUS, STUN, STUN2, WorldServer, open_nodes
from warpgate_trio.testing.worlds import PeerPair

FOLDER: Final = Path(__file__).resolve().parents[1] / "docs" / "pictures"
RTT: Final = 0.05
"""Seconds of a round trip between any two machines."""
RELAYING: Final = WorldServer(
    key=RENDEZVOUS.key,
    url=RENDEZVOUS.url,
    machine=RENDEZVOUS.machine,
    open=lambda _host: open_rendezvous(
        host=None, port=443, public_urls=[RENDEZVOUS.url], relay=RelayRules(open_to_all=True)
    ),
)


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """A call to draw.

    Attributes:
      alice, bob: the NATs of the caller and the callee; None for a public address.
      plugins: the only techniques that both have.
      upgrade: whether the call begins over the relay, and is drawn until the Pipe has left it.
    """

    title: str
    alice: NatConfig | None
    bob: NatConfig | None
    plugins: tuple[str, ...]
    upgrade: bool = False


SCENES: Final = {
    "direct": Scene(title="Direct: Bob can be dialled", alice=presets.LINUX, bob=None, plugins=("direct_connect",)),
    "reverse": Scene(
        title="Direct, the other way round: Alice can be dialled, and asks",
        alice=None,
        bob=presets.LINUX,
        plugins=("reverse_connect",),
    ),
    "punch": Scene(
        title="Punch: both send at an agreed instant, over TCP",
        alice=presets.LINUX,
        bob=presets.LINUX,
        plugins=("tcp_punch",),
    ),
    "spray": Scene(
        title="Spray: the same over UDP, with QUIC on what opens",
        alice=presets.LINUX,
        bob=presets.LINUX,
        plugins=("udp_punch",),
    ),
    "relay": Scene(
        title="Relay: by the rendezvous server that both are connected to",
        alice=presets.LINUX_SYMMETRIC,
        bob=presets.LINUX_SYMMETRIC,
        plugins=("ws_relay",),
    ),
    "upgrade": Scene(
        title="Relay first: the Pipe changes over when a better path is there",
        alice=presets.LINUX,
        bob=presets.LINUX,
        plugins=("ws_relay", "tcp_punch"),
        upgrade=True,
    ),
}


# -- what passes -------------------------------------------------------------------------------------------------------


@final
@dataclass(frozen=True, slots=True)
class Hop:
    """Packets of one kind that go together from one column to another; times in seconds since the call."""

    left: float
    came: float
    source: str
    target: str
    kind: str
    lost: bool = False


async def record(scene: Scene) -> tuple[list[Entry], float, float, float]:
    """The entries of the trace; the times of the call's start, of the first echoed byte, and of the picture's end."""
    pair = PeerPair.between(scene.alice or (), scene.bob or (), rtt=RTT)
    servers = (RELAYING, STUN, STUN2, NTP)
    async with (
        pair.build() as net,
        simulated_hosts(),
        open_nodes(net, servers=servers, plugins=scene.plugins) as nodes,
        open_background_nursery() as nursery,
    ):
        began = trio.current_time()
        entries: list[Entry] = []

        async def echo() -> None:
            async with await nodes.bob.listener.accept() as pipe:
                await pipe.send_all(await pipe.receive_some())
                await pipe.receive_some()

        async def keep(seen: int) -> None:
            """Collects the trace's entries as they come: it keeps the last ones only, and a spray has many."""
            while True:
                latest = net.trace.latest()
                new, seen = net.trace.total - seen, net.trace.total
                entries.extend(latest[-new:] if new else [])
                await trio.sleep(0.001)

        with net.hosts["bob"]:
            nursery.start_soon(echo)
        nursery.start_soon(keep, net.trace.total)  # the count of now: the call may send before `keep` first runs
        pipe: Pipe = await nodes.alice.auto_connect(nodes.bob.address, relay_first=scene.upgrade)
        async with pipe:
            await pipe.send_all(b"x")
            await pipe.receive_some()
            first = ended = trio.current_time()
            while scene.upgrade and pipe.path.plugin == "ws_relay":
                await pipe.wait_path_change(pipe.path)
                ended = trio.current_time()
            await trio.sleep(0.002)
    return [each for each in entries if began <= each.time <= ended], began, first, ended


def kind_of(packet: Packet, source: str, target: str, frames: Frames) -> str | None:
    """The label of a packet; None if it is not drawn."""
    if "STUN" in (source, target):
        return "STUN" if packet.proto != TCP or packet.payload else None
    if "server" in (source, target):
        return frames.kind_of(packet)
    if packet.proto == TCP:
        if packet.flags & SYN:
            return "SYN ACK" if packet.flags & ACK else "SYN"
        return "TLS" if packet.payload else None
    return "probe" if packet.payload[:1] < b"\x04" else "QUIC"


@final
class Frames:
    """Labels the traffic of a rendezvous server and its client: WebSocket frames (RFC 6455, section 5.2) over TCP.

    A segment is labelled by its first frame, which may have begun in the segment before.
    """

    def __init__(self) -> None:
        self._decoders: dict[object, FrameDecoder] = {}
        self._latest: dict[object, str] = {}
        self._kinds: dict[object, str] = {}

    def kind_of(self, packet: Packet) -> str | None:
        """The label of a packet; None if it is not drawn: a PING, or the acknowledgement of a signal."""
        flow = packet.src, packet.dst
        seen = *flow, packet.seq  # the trace has an entry for each hop of a packet
        if seen not in self._kinds and packet.payload:
            decoder = self._decoders.setdefault(flow, FrameDecoder(client=packet.src[1] == _SERVER_PORT))
            self._kinds[seen] = self._first(flow, decoder, packet.payload)
        return self._kinds[seen] if len(packet.payload) >= _SHORT else None

    def _first(self, flow: object, decoder: FrameDecoder, segment: bytes) -> str:
        decoder.receive_bytes(segment)
        kinds = []
        while (frame := decoder.process_buffer()) is not None:
            if frame.opcode is not Opcode.CONTINUATION:
                name = _FRAMES.get(frame.payload[0], "") if isinstance(frame.payload, bytes) and frame.payload else ""
                self._latest[flow] = "relayed" if name.startswith("Relay") else "signal"
            kinds.append(self._latest[flow])
        return kinds[0] if kinds else "signal"  # the segment has only part of a frame's header


COLUMNS: Final = {
    "alice": "Alice",
    "alice-nat0": "her NAT",
    "server": "server",
    "STUN": "STUN",
    "bob-nat0": "his NAT",
    "bob": "Bob",
}
INSIDE: Final = {"alice-nat0": "alice", "bob-nat0": "bob"}
"""The host behind each NAT, which is at no distance."""
_SHORT: Final = 60
_SERVER_PORT: Final = 443
_FRAMES: Final = {code: kind.__name__ for code, kind in (*_FROM_CLIENT.items(), *_FROM_SERVER.items())}


def column_of(node: str) -> str:
    return "STUN" if node.startswith("stun") else node


def hops(entries: Sequence[Entry], began: float) -> Iterator[Hop]:
    """Each hop of each packet, from an entry that sends it and the next one that receives it."""
    under_way: dict[tuple[object, ...], deque[Entry]] = {}
    frames = Frames()

    def key(packet: Packet) -> tuple[object, ...]:
        return packet.proto, packet.src, packet.dst, packet.flags, packet.seq, packet.ack, packet.payload

    for entry in entries:
        if entry.event != "send":
            waiting = under_way.get(key(entry.packet))
            if waiting:
                sent = waiting.popleft()
                source, target = column_of(sent.node), column_of(entry.node)
                if source != target and (kind := kind_of(entry.packet, source, target, frames)) is not None:
                    yield Hop(sent.time - began, entry.time - began, source, target, kind, entry.event == "drop")
        passed = entry.packet if entry.event == "send" else entry.became
        if passed is not None and entry.event in ("send", "out", "in", "hairpin"):
            under_way.setdefault(key(passed), deque()).append(entry)


def gathered(found: Sequence[Hop]) -> list[Hop]:
    """Merges hops of one kind that leave and arrive within the same millisecond."""
    together: dict[tuple[object, ...], Hop] = {}
    for each in found:
        which = (round(each.left, 3), round(each.came, 3), each.source, each.target, each.kind, each.lost)
        together.setdefault(which, each)
    return sorted(together.values(), key=lambda each: (each.left, each.source, each.target, each.kind))


# -- how it is drawn ---------------------------------------------------------------------------------------------------

WIDTH: Final = 760
TOP: Final = 84
MARGIN: Final = 110
TALLEST: Final = 660
PER_SECOND: Final = 2000
"""Pixels of height for a second, unless the picture would be taller than `TALLEST`."""
COLOURS: Final = {
    "signal": "#7a5195",
    "STUN": "#8a8a8a",
    "SYN": "#003f5c",
    "SYN ACK": "#003f5c",
    "TLS": "#1b7f4d",
    "probe": "#b8600b",
    "QUIC": "#1b7f4d",
    "relayed": "#1b7f4d",
}
LOST: Final = "#c0392b"
LINE: Final = 20
"""The least distance in pixels between two labels of one kind."""


def draw(title: str, told: str, arrows: Sequence[Hop], total: float, nats: Sequence[str]) -> str:
    """The picture, as SVG."""
    used = {each for hop in arrows for each in (hop.source, hop.target)} | {"alice", "bob", *nats}
    names = [each for each in COLUMNS if each in used]
    step = (WIDTH - 2 * MARGIN) / (len(names) - 1)
    across = {name: MARGIN + number * step for number, name in enumerate(names)}
    scale = min(PER_SECOND, TALLEST / total)
    height = TOP + total * scale + 46
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height:.0f}" width="{WIDTH}" '
        f'height="{height:.0f}" font-family="sans-serif" font-size="12">',
        f"<title>{escape(title)}</title>",
        f'<rect width="{WIDTH}" height="{height:.0f}" fill="#ffffff"/>',
        f'<text x="{WIDTH / 2:.0f}" y="24" text-anchor="middle" font-size="15" fill="#222222">{escape(title)}</text>',
    ]
    bottom = TOP + total * scale
    for trip in range(int(total / RTT) + 1):
        if trip and scale * RTT < 30 and trip % 5:
            continue
        y = TOP + trip * RTT * scale
        lines.append(f'<path d="M 66 {y:.1f} H {WIDTH - 30}" stroke="#e4e4e4" stroke-dasharray="2 4"/>')
        lines.append(f'<text x="60" y="{y + 4:.1f}" text-anchor="end" fill="#777777">{trip * RTT * 1000:.0f} ms</text>')
    for name, x in across.items():
        wide = name in INSIDE
        lines.append(f'<text x="{x:.0f}" y="58" text-anchor="middle" fill="#222222">{COLUMNS[name]}</text>')
        lines.append(
            f'<path d="M {x:.0f} 68 V {bottom:.1f}" stroke="{"#c9d4dd" if wide else "#444444"}" '
            f'stroke-width="{9 if wide else 1.5}"/>'
        )
    named: dict[tuple[str, str, str], float] = {}
    for hop in arrows:
        lines += _arrow(hop, across, scale)
        which = hop.source, hop.target, hop.kind
        if (hop.left - named.get(which, -1.0)) * scale >= LINE:
            named[which] = hop.left
            lines += _name(hop, across, scale)
    lines.append(
        f'<text x="{WIDTH / 2:.0f}" y="{bottom + 30:.1f}" text-anchor="middle" fill="#222222">{escape(told)}</text>'
    )
    return "\n".join([*lines, "</svg>", ""])


def _arrow(hop: Hop, across: dict[str, float], scale: float) -> Iterator[str]:
    """The arrow of a hop, from where it left to where it arrived or was lost."""
    begin, end = across[hop.source], across[hop.target]
    top, bottom = TOP + hop.left * scale, TOP + hop.came * scale
    colour = LOST if hop.lost else COLOURS[hop.kind]
    way = 1 if end > begin else -1
    dash = ' stroke-dasharray="5 3"' if hop.kind in ("signal", "STUN") else ""
    yield f'<path d="M {begin:.1f} {top:.1f} L {end:.1f} {bottom:.1f}" stroke="{colour}" stroke-width="1.4"{dash}/>'
    if hop.lost:
        yield (
            f'<path d="M {end - 5:.1f} {bottom - 5:.1f} l 10 10 m 0 -10 l -10 10" stroke="{colour}" stroke-width="2"/>'
        )
    else:
        yield (f'<path d="M {end:.1f} {bottom:.1f} l {-8 * way} -6 l 0 7 z" fill="{colour}"/>')


def _name(hop: Hop, across: dict[str, float], scale: float) -> Iterator[str]:
    """The label of a hop, near its start; hops to different columns at one time have it at different places."""
    share = 0.5 if hop.kind == "STUN" else 0.28
    x = across[hop.source] + (across[hop.target] - across[hop.source]) * share
    y = TOP + (hop.left + (hop.came - hop.left) * share) * scale
    wide = 7 * len(hop.kind) + 4
    colour = LOST if hop.lost else COLOURS[hop.kind]
    yield f'<rect x="{x - wide / 2:.1f}" y="{y - 7:.1f}" width="{wide}" height="14" fill="#ffffff"/>'
    yield f'<text x="{x:.1f}" y="{y + 4:.1f}" text-anchor="middle" fill="{colour}">{hop.kind}</text>'


def arrows_of(found: Sequence[Hop]) -> list[Hop]:
    """The hops from host to host: a NAT is at no distance from its host, and only lost packets end there."""
    drawn = [each for each in found if {each.source, each.target} <= set(COLUMNS)]  # some go to addresses of no column
    long = [each for each in drawn if each.came > each.left or each.lost]
    moved = [
        Hop(
            each.left,
            each.came,
            INSIDE.get(each.source, each.source),
            each.target if each.lost else INSIDE.get(each.target, each.target),
            each.kind,
            each.lost,
        )
        for each in long
    ]
    return gathered(moved)


def picture(name: str) -> str:
    """One of `SCENES`, as SVG."""
    scene = SCENES[name]
    entries, began, first, ended = simulate(partial(record, scene), seed=1)
    arrows = arrows_of(list(hops(entries, began)))
    nats = [each for each, nat in (("alice-nat0", scene.alice), ("bob-nat0", scene.bob)) if nat is not None]
    trips = (first - began) / RTT
    told = f"the first byte is back after {(first - began) * 1000:.0f} ms: {trips:.1f} round trips"
    if scene.upgrade:
        told += f"; the Pipe is direct after {(ended - began) * 1000:.0f} ms"
    return draw(scene.title, told, arrows, ended - began, nats)


def main() -> None:
    """Draws all pictures, or with ``--check`` names those that are not current."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 when a picture is not current")
    arguments = parser.parse_args()
    logging.getLogger("warpgate_trio").setLevel(logging.ERROR)
    FOLDER.mkdir(exist_ok=True)
    for name in SCENES:
        file, drawn = FOLDER / f"{name}.svg", picture(name)
        if not arguments.check:
            file.write_text(drawn, encoding="utf-8")
        elif not file.exists() or file.read_text(encoding="utf-8") != drawn:
            sys.exit(f"{file.name} is not what the simulator does: run python tools/ladders.py")


if __name__ == "__main__":
    main()
