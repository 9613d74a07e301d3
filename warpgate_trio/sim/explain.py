"""What a network is and what happened in it, as text for people, on one screen."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

from .addr import is_v6
from .faults import Fault
from .host import Host
from .link import PERFECT, Link
from .nat_axes import Behavior, NatConfig
from .netstat import Netstat, netstat
from .network_base import NetworkBase
from .packet import Packet
from .router import Router
from .segment import Segment
from .trace import Entry

_SCREEN: Final = 8  # packets; `Network.ladder` has more
_LISTED: Final = 8  # lines of sockets and tasks; `Network.netstat` has more


def topology(internet: Segment) -> str:
    """A segment and everything behind it as a tree, with a line for each segment, router and host."""
    return "\n".join(_segment(internet, "")) + "\n"


def _segment(segment: Segment, indent: str) -> Iterator[str]:
    prefixes = ", ".join(str(prefix) for prefix in (segment.prefix4, segment.prefix6) if prefix is not None)
    yield f"{indent}{segment.name} ({prefixes})"
    branches: list[list[str]] = []
    for host in segment.hosts:
        interface = next(i for i in host.interfaces if i.segment is segment)
        clock = f", clock {host.clock_offset:+g} s" if host.clock_offset or host.clock_drift else ""
        link = _links(interface.tx.link, interface.rx.link)
        branches.append([f"{host.name} {' '.join(a for a, _ in interface.addresses)}{link}{clock}"])
    for child in segment.children:
        router = child.router
        if router is None:
            continue
        outside = router.outside
        link = _links(outside.tx.link, outside.rx.link)
        line = f"router {router.name} {' '.join(a for a, _ in outside.addresses)}{link}{_boxes(router)}"
        branches.append([line, *_segment(child, "")])
    for number, lines in enumerate(branches):
        last = number == len(branches) - 1
        yield f"{indent}{'└─' if last else '├─'} {lines[0]}"
        for line in lines[1:]:
            yield f"{indent}{'   ' if last else '│  '}{line}"


def _links(tx: Link, rx: Link) -> str:
    if tx == rx:
        return "" if tx == PERFECT else f" [{_link(tx)}]"
    return f" [up {_link(tx)}; down {_link(rx)}]"


def _link(link: Link) -> str:
    parts = [f"{link.latency * 1000:g} ms"]
    if link.jitter:
        parts.append(f"jitter {link.jitter * 1000:g} ms")
    parts += [f"{name} {getattr(link, name):.1%}" for name in ("loss", "duplicate", "reorder") if getattr(link, name)]
    if link.burst > 1:
        parts.append(f"bursts of {link.burst:g}")
    if link.bandwidth != PERFECT.bandwidth:
        parts.append(f"{link.bandwidth / 1e6:g} Mbit/s")
    if link.mtu != PERFECT.mtu:
        parts.append(f"MTU {link.mtu}")
    return ", ".join(parts)


def _boxes(router: Router) -> str:
    parts = [
        f" {kind} {describe(box.config)}" for kind, box in (("NAT", router.nat), ("firewall", router.firewall6)) if box
    ]
    return ",".join(parts)


def describe(config: NatConfig) -> str:
    """A NAT in half a line."""
    udp, tcp = _axes(config.udp), _axes(config.tcp)
    axes = udp if udp == tcp else f"UDP {udp}, TCP {tcp}"
    return f"{config.name} ({axes})"


def _axes(behavior: Behavior) -> str:
    return f"{behavior.mapping.name}/{behavior.filtering.name}/{behavior.unsolicited.value}"


def ladder(entries: list[Entry], last: int, hosts: tuple[str, ...]) -> str:
    """The last `last` events of `hosts` (all, if empty), a line each: time, host, event, packet, packet after NAT."""
    chosen = [entry for entry in entries if not hosts or entry.node in hosts][-last:]
    if not chosen:
        return "no packets\n"
    width = max(len(entry.node) for entry in chosen)
    return "".join(f"{_line(entry, width)}\n" for entry in chosen)


_ARROWS: Final = {"send": "──▶", "receive": "◀──", "drop": " ✗ ", "out": "NAT▶", "in": "◀NAT"}


def _line(entry: Entry, width: int) -> str:
    arrow = _ARROWS.get(entry.event, entry.event)
    became = "" if entry.became is None else f"  ⇒ {_ends(entry.became)}"
    note = f"  ({entry.note})" if entry.note else ""
    return f"{entry.time:12.6f}  {entry.node:<{width}} {arrow:<8} {entry.packet}{became}{note}"


def _ends(packet: Packet) -> str:
    def show(end: tuple[str, int]) -> str:
        return f"[{end[0]}]:{end[1]}" if is_v6(end[0]) else f"{end[0]}:{end[1]}"

    return f"{show(packet.src)} > {show(packet.dst)}"


def explain(net: NetworkBase[Host], internet: Segment, faults: Sequence[Fault]) -> str:
    """Seed, topology, faults, open sockets and tasks, and the last packets."""
    parts = [f"seed {net.seed}, {net.wire.now:.3f} s after the start", topology(internet)]
    if faults:
        parts.append("faults:\n" + "".join(f"  {fault}\n" for fault in faults))
    parts.append("".join(_still_there(netstat(net))))
    parts.append(f"the last packets:\n{ladder(net.trace.latest(), _SCREEN, ())}")
    return "\n".join(part.removesuffix("\n") for part in parts) + "\n"


def _still_there(found: Netstat) -> Iterator[str]:
    """The open sockets and running tasks, and counts of closing connections and mappings."""
    lines = [*found.sockets, *found.tasks]
    counts = {"sockets and tasks": lines, "closing connections": found.lingering, "mappings": found.mappings}
    yield f"still there: {', '.join(f'{name}: {len(each)}' for name, each in counts.items() if each) or 'nothing'}\n"
    yield from (f"  {line}\n" for line in lines[:_LISTED])
    if len(lines) > _LISTED:
        yield f"  and {len(lines) - _LISTED} more\n"
