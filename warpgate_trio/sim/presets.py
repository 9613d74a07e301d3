"""Presets: NATs and firewalls that exist or that an RFC specifies, each with the source of its behaviour; and links."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from .link import Link
from .nat_axes import (
    Behavior,
    Conflict,
    Filtering,
    Hairpin,
    Mapping,
    NatConfig,
    Pooling,
    Timers,
    Unsolicited,
    named,
)
from .nat_ports import Block, Sequential, Uniform
from .packet import Icmp

LINUX_TIMERS: Final = Timers(
    udp=30,
    udp_stream=120,
    udp_stream_after=2,
    opening=120,
    half_open=60,
    established=432000,
    closing=120,
    reset=10,
    opening_reset=0,
)
"""nf_conntrack's defaults; a RST in SYN-SENT destroys the entry at once (measured on Linux 6.18)."""

_MAP_TIMERS: Final = replace(LINUX_TIMERS, reset=120, opening_reset=120)
"""Timers of cone NATs: the mapping outlives the flow that a RST ends (RFC 7857 section 2.2; measured)."""

RFC_TIMERS: Final = Timers()
"""RFC 4787 REQ-5, RFC 5382 REQ-5, RFC 7857 section 2."""


_LINUX = Behavior(
    filtering=Filtering.APDF,
    conflict=Conflict.OVERLOAD,
    hairpin=Hairpin.LOCAL,
    strict_isn=True,
)

OPEN: Final = NatConfig(name="open", source="the friendliest NAT that RFC 4787 and RFC 5382 allow")

RFC: Final = NatConfig(
    name="rfc",
    source="RFC 4787 and RFC 5382 with the stricter filter (REQ-8) and the six-second rule for SYNs (REQ-4)",
    udp=Behavior(filtering=Filtering.ADF),
    tcp=Behavior(filtering=Filtering.ADF, unsolicited=Unsolicited.HOLD),
)

FULL_CONE: Final = NatConfig(
    name="full-cone",
    source="RFC 3489; on Linux by an nftables map of outside ports (measured, 6.18)",
    tcp=Behavior(strict_isn=True),
    timers=_MAP_TIMERS,
)

RESTRICTED: Final = NatConfig(
    name="restricted",
    source="RFC 3489's restricted cone: EIM with address-dependent filtering",
    udp=Behavior(filtering=Filtering.ADF),
    tcp=Behavior(filtering=Filtering.ADF, strict_isn=True),
    timers=_MAP_TIMERS,
)

LINUX: Final = NatConfig(
    name="linux",
    source="netfilter masquerade with `input drop` on the outside (measured, 6.18): preserves and overloads ports",
    udp=_LINUX,
    tcp=_LINUX,
    timers=LINUX_TIMERS,
)

LINUX_LOCAL: Final = NatConfig(
    name="linux-local",
    source="netfilter masquerade without an input filter (measured, 6.18): an early packet takes the port away",
    udp=replace(_LINUX, unsolicited=Unsolicited.LOCAL),
    tcp=replace(_LINUX, unsolicited=Unsolicited.LOCAL),
    timers=LINUX_TIMERS,
)

OPENWRT: Final = NatConfig(
    name="openwrt",
    source="OpenWrt's firewall defaults: masquerade, and input from outside rejected with ICMP or RST",
    udp=replace(_LINUX, unsolicited=Unsolicited.ICMP),
    tcp=replace(_LINUX, unsolicited=Unsolicited.RST),
    timers=LINUX_TIMERS,
)

LINUX_SYMMETRIC: Final = NatConfig(
    name="linux-symmetric",
    source="netfilter `masquerade random` with `input drop` (measured, 6.18)",
    udp=replace(_LINUX, mapping=Mapping.APDM, allocation=Uniform()),
    tcp=replace(_LINUX, mapping=Mapping.APDM, allocation=Uniform()),
    timers=LINUX_TIMERS,
)

SYMMETRIC_LOCAL: Final = replace(
    LINUX_SYMMETRIC,
    name="symmetric-local",
    source="netfilter `masquerade random` without an input filter (measured, 6.18)",
    udp=replace(LINUX_SYMMETRIC.udp, unsolicited=Unsolicited.LOCAL),
    tcp=replace(LINUX_SYMMETRIC.tcp, unsolicited=Unsolicited.LOCAL),
)

SYMMETRIC_SEQUENTIAL: Final = NatConfig(
    name="symmetric-sequential",
    source="Ford, Srisuresh and Kegel 2005, 5.1: ports of successive sessions follow each other",
    udp=Behavior(mapping=Mapping.APDM, filtering=Filtering.APDF, allocation=Sequential(), hairpin=Hairpin.NONE),
    tcp=Behavior(mapping=Mapping.APDM, filtering=Filtering.APDF, allocation=Sequential(), hairpin=Hairpin.NONE),
    timers=LINUX_TIMERS,
)

ADDRESS_DEPENDENT: Final = NatConfig(
    name="address-dependent",
    source="RFC 4787's middle kind: a mapping for each remote address, filtered by address",
    udp=Behavior(mapping=Mapping.ADM, filtering=Filtering.ADF, allocation=Uniform()),
    tcp=Behavior(mapping=Mapping.ADM, filtering=Filtering.ADF, allocation=Uniform()),
)

CGN: Final = NatConfig(
    name="cgn",
    source="RFC 6888: paired pooling, endpoint-independent, a block of ports and a quota each, 120 s hold-down",
    udp=Behavior(filtering=Filtering.EIF, allocation=Block(size=1024)),
    tcp=Behavior(filtering=Filtering.EIF, allocation=Block(size=1024)),
    quota=1024,
    hold_down=120,
    timers=Timers(udp=60, udp_stream=300),
)

CGN_SYMMETRIC: Final = NatConfig(
    name="cgn-symmetric",
    source="Richter et al. 2016: 40 % of cellular networks; UDP idle time of 65 s (their median)",
    udp=Behavior(mapping=Mapping.APDM, filtering=Filtering.APDF, allocation=Block(size=2048), hairpin=Hairpin.NONE),
    tcp=Behavior(mapping=Mapping.APDM, filtering=Filtering.APDF, allocation=Block(size=2048), hairpin=Hairpin.NONE),
    pooling=Pooling.PAIRED,
    quota=2048,
    timers=Timers(udp=65, udp_stream=65),
)

CLOUD: Final = NatConfig(
    name="cloud",
    source="AWS and Azure NAT gateways are symmetric (Tailscale 2025); 350 s idle time",
    udp=Behavior(mapping=Mapping.APDM, filtering=Filtering.APDF, allocation=Uniform(), hairpin=Hairpin.NONE),
    tcp=Behavior(
        mapping=Mapping.APDM,
        filtering=Filtering.APDF,
        allocation=Uniform(),
        hairpin=Hairpin.NONE,
        unsolicited=Unsolicited.DROP,
    ),
    timers=Timers(udp=350, udp_stream=350, established=350),
)

ONE_TO_ONE: Final = NatConfig(
    name="one-to-one",
    source="RFC 2663, 4.1.1: as clouds give a machine a public address, and all of its ports; nothing is filtered",
    one_to_one=True,
    timers=LINUX_TIMERS,
)

PF: Final = NatConfig(
    name="pf",
    source="OpenBSD pf: a random port of 50001 to 65535 for each remote endpoint",
    udp=Behavior(
        mapping=Mapping.APDM,
        filtering=Filtering.APDF,
        allocation=Uniform(ports=(50001, 65535)),
        hairpin=Hairpin.NONE,
    ),
    tcp=Behavior(
        mapping=Mapping.APDM,
        filtering=Filtering.APDF,
        allocation=Uniform(ports=(50001, 65535)),
        hairpin=Hairpin.NONE,
    ),
    timers=Timers(udp=60, udp_stream=60),
)

RST: Final = NatConfig(
    name="rst",
    source="Ford 2005, 6.2: 36 % of NATs answer an unsolicited SYN, most of them with RST",
    udp=replace(_LINUX, unsolicited=Unsolicited.DROP),
    tcp=replace(_LINUX, unsolicited=Unsolicited.RST),
    timers=LINUX_TIMERS,
)

ICMP: Final = NatConfig(
    name="icmp",
    source="a firewall that answers SYNs with ICMP admin-prohibited",
    udp=replace(_LINUX, unsolicited=Unsolicited.ICMP, unsolicited_icmp=Icmp.ADMIN_PROHIBITED),
    tcp=replace(_LINUX, unsolicited=Unsolicited.ICMP, unsolicited_icmp=Icmp.ADMIN_PROHIBITED),
    timers=LINUX_TIMERS,
)

DEGRADING: Final = NatConfig(
    name="degrading",
    source="Ford 2005, 6.3: a cone until two hosts use one port, then symmetric",
    udp=Behavior(filtering=Filtering.APDF, conflict=Conflict.DEGRADE, hairpin=Hairpin.NONE),
    tcp=Behavior(filtering=Filtering.APDF, conflict=Conflict.DEGRADE, hairpin=Hairpin.NONE),
)

UDP_BLOCKED: Final = replace(
    LINUX, name="udp-blocked", source="a firewall that lets no UDP out", udp=replace(_LINUX, ports=())
)

WEB_ONLY: Final = replace(
    LINUX,
    name="web-only",
    source="a corporate firewall: TCP to 80 and 443, and no UDP",
    udp=replace(_LINUX, ports=()),
    tcp=replace(_LINUX, ports=(80, 443)),
)

FIREWALL6: Final = NatConfig(
    name="firewall6",
    source="IPv6 routers as sold: nothing translated, only answers come in",
    udp=Behavior(filtering=Filtering.APDF),
    tcp=Behavior(filtering=Filtering.APDF),
    identity=True,
    timers=LINUX_TIMERS,
)

SIMPLE_SECURITY6: Final = NatConfig(
    name="simple-security6",
    source="RFC 6092: endpoint-independent filtering (REC-17, REC-33), held SYNs (REC-34)",
    udp=Behavior(),
    tcp=Behavior(unsolicited=Unsolicited.HOLD, unsolicited_icmp=Icmp.ADMIN_PROHIBITED),
    identity=True,
)

NATS: Final = {
    config.name: config
    for config in (
        OPEN,
        RFC,
        FULL_CONE,
        RESTRICTED,
        LINUX,
        LINUX_LOCAL,
        OPENWRT,
        LINUX_SYMMETRIC,
        SYMMETRIC_LOCAL,
        SYMMETRIC_SEQUENTIAL,
        ADDRESS_DEPENDENT,
        CGN,
        CGN_SYMMETRIC,
        CLOUD,
        ONE_TO_ONE,
        PF,
        RST,
        ICMP,
        DEGRADING,
        UDP_BLOCKED,
        WEB_ONLY,
    )
}
"""IPv4 NATs by name."""

FIREWALLS6: Final = {config.name: config for config in (FIREWALL6, SIMPLE_SECURITY6)}
"""IPv6 firewalls by name."""

named |= {f"presets.{name}": config for name, config in list(globals().items()) if isinstance(config, NatConfig)}


_LEAST_QUEUE: Final = 10 * 1500  # bytes: the initial window of a connection fits (RFC 6928), even on a slow link


def _line(mbit: float, rtt: float, loss: float, burst: int = 1) -> Link:
    queue = max(_LEAST_QUEUE, round(mbit * 1e6 * rtt / 8))
    return Link(bandwidth=mbit * 1e6, latency=rtt / 2, loss=loss, burst=burst, queue=queue)


LINKS: Final = {
    "fibre": _line(100, 0.016, 0.001),
    "cable": _line(25, 0.04, 0.01, 6),
    "dsl": _line(8, 0.09, 0.02, 8),
    "mobile": _line(3, 0.2, 0.03, 10),
    "weak-mobile": _line(1.5, 0.3, 0.05, 12),
    "crowded-mobile": _line(0.8, 0.45, 0.08, 20),
    "satellite": _line(25, 0.6, 0.015, 6),
    "fading": _line(0.5, 0.45, 0.12, 25),
    "last-bar": _line(0.256, 0.8, 0.25, 40),
}
"""Links from good to hardly usable, by name, for one peer's own link: ``net.host("alice", link=LINKS["dsl"])``.

The round-trip time to a peer without delay is twice the latency.  Each direction has the bandwidth and the loss, which
comes in bursts.  The queue holds as many bytes as the link carries in that round trip: the least with which a single
TCP connection can fill the link.  The figures span the range of real access links; they are not measurements of one.
"""
