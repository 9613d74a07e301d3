"""Schedules of faults.

A `Fault` happens to one target over a span of time, and a schedule is a tuple of faults.  It prints as the Python
expression that makes it, any part of it is a schedule too, and its parameters are fixed when it is made.  A
property-based test can therefore shrink a failing schedule to the faults that matter.

The name of a host or a router as a target stands for both directions of its first link; ``"alice:up"`` and
``"alice:down"`` stand for one direction.  With a ``peer``, a fault concerns only packets between the target and that
host or router: one path of several.  The link is looked up when the fault begins: a host that has moved by then is
affected on its new link.  REBOOT and REBIND need a router; SLEEP, LINK_DOWN, NEW_ADDRESS and MOVE need a host that is
no router.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import Enum
from functools import partial
from math import inf
from typing import final

from .host import Host, Interface, Medium
from .link import Direction, Impairment, Losses, check_burst
from .network_base import NetworkBase
from .router import Router


class Kind(Enum):
    """The kinds of faults; for each, the meaning of `Fault.value` and other parameters."""

    LOSS = "loss"  # value: the share of packets; burst: packets lost in a row, on average
    DUPLICATE = "duplicate"  # value: the share of packets
    REORDER = "reorder"  # value: the share of packets
    DELAY = "delay"  # value: additional seconds
    BLACKHOLE = "blackhole"  # every packet is dropped, without an error
    MTU_BLACKHOLE = "mtu-blackhole"  # value: bytes; larger packets are dropped, without an ICMP error
    PAYLOAD_HOLE = "payload-hole"  # value: bytes; larger packets are dropped after the first `after`, each direction
    REBOOT = "reboot"  # a router: it is down until `until`, and loses its mappings
    REBIND = "rebind"  # a router: it gets another outside address, and loses its mappings
    SLEEP = "sleep"  # a host: no program runs, no packet is sent or received, and CLOCK_MONOTONIC stands still
    LINK_DOWN = "link-down"  # a host: its interface is down, and up again afterwards with the same addresses
    NEW_ADDRESS = "new-address"  # a host: it gets other addresses instead of those that it has
    MOVE = "move"  # a host: it moves to another segment, with addresses of that segment

    def __repr__(self) -> str:
        return f"Kind.{self.name}"


Action = Callable[[], object]
_SHARES = (Kind.LOSS, Kind.DUPLICATE, Kind.REORDER)
_OF_ROUTERS = (Kind.REBOOT, Kind.REBIND)
_OF_HOSTS = (Kind.SLEEP, Kind.LINK_DOWN, Kind.NEW_ADDRESS, Kind.MOVE)


@final
@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class Fault:
    """One fault.

    Attributes:
      at, until: seconds after `Network.schedule`; REBIND, NEW_ADDRESS and MOVE happen at `at`.
      target: the affected host or router, or a direction of its link.
      kind, value: see `Kind`.
      burst: for LOSS, as in `Link`: packets that are lost in a row, on average.
      after: for PAYLOAD_HOLE: large packets that pass before all others are dropped.
      to: for MOVE: the name of the new segment.
      peer: for faults of links: the name of a host or router; only packets from and to its addresses, as they appear on
        that link, are affected.  "" for all packets.

    Raises:
      ValueError: the span ends before it begins, or a value makes no sense.
    """

    at: float
    target: str
    kind: Kind
    until: float = inf
    value: float = 0.0
    burst: float = 1.0
    after: int = 0
    to: str = ""
    peer: str = ""

    def __post_init__(self) -> None:
        if not 0 <= self.at <= self.until:
            raise ValueError(f"a fault lasts from a time to a later one, not from {self.at} to {self.until}")
        if self.value < 0 or (self.kind in _SHARES and self.value > 1):
            raise ValueError(f"{self.value} makes no sense for {self.kind.value}")
        if self.kind is Kind.LOSS:
            check_burst(self.value, self.burst)
        elif self.burst != 1:
            raise ValueError(f"{self.kind.value} comes in no bursts")
        if self.after < 0 or (self.after and self.kind is not Kind.PAYLOAD_HOLE):
            raise ValueError(f"{self.kind.value} lets {self.after} packets pass: that makes no sense")
        if bool(self.to) != (self.kind is Kind.MOVE):
            raise ValueError(f"{self.kind.value} leads to {self.to!r}: that makes no sense")
        if self.peer and self.kind in (*_OF_ROUTERS, *_OF_HOSTS):
            raise ValueError(f"{self.kind.value} befalls all that is said, not what goes to {self.peer}")

    def __repr__(self) -> str:
        until = "" if self.until == inf else f", until={self.until!r}"
        value = f", value={self.value!r}" if self.value else ""
        burst = f", burst={self.burst!r}" if self.burst != 1 else ""
        after = f", after={self.after!r}" if self.after else ""
        to = f", to={self.to!r}" if self.to else ""
        peer = f", peer={self.peer!r}" if self.peer else ""
        return (
            f"Fault(at={self.at!r}, target={self.target!r}, kind={self.kind!r}{until}{value}{burst}{after}{to}{peer})"
        )

    __str__ = __repr__


def apply_faults(net: NetworkBase[Host], faults: Iterable[Fault]) -> None:
    """Schedule faults on a network's wire.  ValueError for a target that the network does not have."""
    for fault in faults:
        begin, end = _actions(net, fault)
        net.wire.at(net.wire.now + fault.at, begin)
        if end is not None and fault.until < inf:
            net.wire.at(net.wire.now + fault.until, end)


def _actions(net: NetworkBase[Host], fault: Fault) -> tuple[Action, Action | None]:
    """The functions that begin and end a fault.  ValueError for a fault that is impossible in this network."""
    host, way = _find_target(net, fault)
    match fault.kind:
        case Kind.REBIND | Kind.NEW_ADDRESS:
            return host.change_address, None
        case Kind.SLEEP:
            return host.suspend, host.resume
        case Kind.LINK_DOWN:
            down: list[Interface] = []
            return partial(_take_down, host, down), partial(_bring_up, down)
        case Kind.MOVE:
            return partial(host.move_to, _find_segment(net, host, fault)), None
        case _:
            impaired: list[tuple[Direction, Impairment]] = []
            concerns = None if not fault.peer else _is_of(net, fault)
            return partial(_begin, host, way, fault, concerns, impaired), partial(_end, impaired)


def _is_of(net: NetworkBase[Host], fault: Fault) -> Callable[[str], bool]:
    """A function that tells whether an address belongs to the peer when it is called."""
    peer = net.hosts.get(fault.peer)
    if peer is None:
        raise ValueError(f"{fault!r}: there is no {fault.peer!r} here; there are {', '.join(net.hosts)}")
    return lambda address: address in peer.addresses


def _find_target(net: NetworkBase[Host], fault: Fault) -> tuple[Host, str]:
    """The host that a fault affects, and the direction of its link; "" for both."""
    name, _, way = fault.target.partition(":")
    host = net.hosts.get(name)
    if host is None or way not in ("", "up", "down"):
        known = ", ".join(net.hosts)
        raise ValueError(f"{fault!r}: there is no {fault.target!r} here; there are {known}, with :up or :down")
    if fault.kind in _OF_ROUTERS and not isinstance(host, Router):
        raise ValueError(f"{fault!r}: {name} is no router")
    if fault.kind in _OF_HOSTS and (way or isinstance(host, Router)):
        raise ValueError(f"{fault!r}: this befalls a host as a whole, and no router")
    return host, way


def _find_segment(net: NetworkBase[Host], host: Host, fault: Fault) -> Medium:
    """The segment to which a MOVE leads."""
    inside = {each.name: each.inside.segment for each in net.hosts.values() if isinstance(each, Router)}
    topmost = host.interfaces[0].segment
    while isinstance(topmost.router, Router):
        topmost = topmost.router.outside.segment
    found = {topmost.name: topmost, **inside}.get(fault.to)
    if found is None:
        raise ValueError(
            f"{fault!r}: there is no segment {fault.to!r} here; there are {topmost.name}, {', '.join(inside)}"
        )
    return found


def _impairment(fault: Fault, concerns: Callable[[str], bool] | None) -> Impairment:
    kind, value = fault.kind, fault.value
    return Impairment(
        losses=Losses(value, fault.burst) if kind is Kind.LOSS and value else None,
        duplicate=value if kind is Kind.DUPLICATE else 0.0,
        reorder=value if kind is Kind.REORDER else 0.0,
        delay=value if kind is Kind.DELAY else 0.0,
        blocked=kind in (Kind.BLACKHOLE, Kind.REBOOT),
        mtu=value if kind in (Kind.MTU_BLACKHOLE, Kind.PAYLOAD_HOLE) else inf,
        passes=fault.after,
        concerns=concerns,
    )


def _begin(
    host: Host,
    way: str,
    fault: Fault,
    concerns: Callable[[str], bool] | None,
    impaired: list[tuple[Direction, Impairment]],
) -> None:
    link = host.interfaces[0]
    for direction, word in ((link.tx, "up"), (link.rx, "down")):
        if way in ("", word):
            impairment = _impairment(fault, concerns)
            impaired.append((direction, impairment))
            direction.impairments.append(impairment)
            direction.recheck()
    if fault.kind is Kind.REBOOT:
        assert isinstance(host, Router)
        host.reboot()


def _take_down(host: Host, down: list[Interface]) -> None:
    down.append(host.interfaces[0])
    down[0].take_down()


def _bring_up(down: list[Interface]) -> None:
    for interface in down:
        interface.bring_up()


def _end(impaired: list[tuple[Direction, Impairment]]) -> None:
    for direction, impairment in impaired:
        direction.impairments = [one for one in direction.impairments if one is not impairment]
        direction.recheck()
