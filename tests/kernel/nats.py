"""Home routers: nftables rules that turn a Linux kernel into each kind of NAT, for UDP and TCP alike.

A kind is written ``port-restricted`` or, with its router's reaction to unsolicited packets, ``port-restricted/local``.
`tests.kernel.classify` measures whether a kind behaves as declared here.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final, Literal, final

Mapping = Literal["EIM", "ADM", "APDM"]
Filtering = Literal["EIF", "ADF", "APDF"]
Allocation = Literal["preserving", "random", "sequential", "hash"]
Unsolicited = Literal["drop", "rst", "reject", "prohibited", "local"]
Transport = Literal["udp", "tcp"]

FORWARDED: Final = 36_100
"""The port that the kind `forwarded` forwards, UDP and TCP, to the same port of the first host behind it."""
HASHED: Final = range(30_000, 32_048)
SEQUENCE: Final = range(50_000, 52_048)
BLOCK: Final = range(50_000, 51_000)
ALL_PORTS: Final = range(1024, 65_536)


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Nat:
    """The declared behaviour of a NAT, in the terms of RFC 4787.

    Attributes:
      ports: the outside ports that it allocates.
      unsolicited: the reaction to a packet without a mapping: `drop` is silence; `rst` is a RST, and silence for UDP;
        `reject` is a RST, and an ICMP error for UDP; `prohibited` is an ICMP error for both; with `local` the router's
        own stack receives it, which answers as `reject` does and leaves a conntrack entry.
      hairpin: whether hosts behind it reach each other's outside endpoints (RFC 4787, REQ-9a).
      udp: whether it carries UDP at all.
      web_only: whether it carries no TCP but connections to port 443.
      forwards: whether it forwards `FORWARDED`.
      is_open: no NAT at all, the host has a public address.
    """

    name: str
    mapping: Mapping = "EIM"
    filtering: Filtering = "APDF"
    allocation: Allocation = "preserving"
    ports: range = ALL_PORTS
    unsolicited: Unsolicited = "drop"
    hairpin: bool = False
    udp: bool = True
    web_only: bool = False
    forwards: bool = False
    is_open: bool = False

    def rules(self, outside: str, inside: str, *, only: Transport | None = None, servers: tuple[str, ...] = ()) -> str:
        """The rules for the router with this outside address and this first host.

        With `only`, the other transport is dropped, except TCP to and from `servers`, which signals need.
        """
        return _table_nat(self, outside, inside) + _table_filter(self) + restriction("forward", self, only, servers)


def restriction(
    hook: Literal["forward", "input"], nat: Nat, only: Transport | None, servers: tuple[str, ...] = ()
) -> str:
    """Rules that drop the transports that a path should do without."""
    lines = []
    if only == "tcp" or not nat.udp:
        lines.append("meta l4proto udp drop")
    if nat.web_only:
        lines += ["tcp dport 443 accept", "tcp sport 443 accept", "meta l4proto tcp drop"]
    if only == "udp":
        spared = "{ " + ", ".join(servers) + " }"
        lines.append(f"meta l4proto tcp ip saddr != {spared} ip daddr != {spared} drop")
    return _table("only", _chain("only", f"filter hook {hook} priority 10", lines)) if lines else ""


def nat(kind: str) -> Nat:
    """The NAT of a kind, ``NAME`` or ``NAME/UNSOLICITED``.

    Raises:
      KeyError: there is no such kind.
    """
    name, _, unsolicited = kind.partition("/")
    found = NATS[name]
    if not unsolicited:
        return found
    return replace(found, name=kind, unsolicited=_UNSOLICITED[unsolicited])


_UNSOLICITED: dict[str, Unsolicited] = {
    "drop": "drop",
    "rst": "rst",
    "reject": "reject",
    "prohibited": "prohibited",
    "local": "local",
}

NATS: Final = {
    each.name: each
    for each in (
        Nat(name="open", filtering="EIF", is_open=True),
        Nat(name="forwarded", forwards=True),
        Nat(name="full-cone", filtering="EIF"),
        Nat(name="full-cone-hairpin", filtering="EIF", hairpin=True),
        Nat(name="address-restricted", filtering="ADF"),
        Nat(name="port-restricted"),
        Nat(name="rst-box", unsolicited="rst"),
        Nat(name="hash-eim", allocation="hash", ports=HASHED),
        Nat(name="block-eim", allocation="random", ports=BLOCK),
        Nat(name="sequential", mapping="APDM", allocation="sequential", ports=SEQUENCE),
        Nat(name="address-dependent", mapping="ADM", allocation="hash", ports=HASHED),
        Nat(name="symmetric", mapping="APDM", allocation="random"),
        Nat(name="block-symmetric", mapping="APDM", allocation="random", ports=BLOCK),
        Nat(name="udp-blocked", udp=False),
    )
}
"""The NATs by name, the easiest to traverse first."""
WEB_ONLY: Final = Nat(name="web-only", udp=False, web_only=True)
"""What many companies and hotels let out; this is a firewall behind a NAT, and not a kind of NAT."""

_BOTH: Final = "meta l4proto { tcp, udp }"
_HERE: Final = "meta l4proto . th dport"


def _table_nat(nat: Nat, outside: str, inside: str) -> str:
    before, track, state = [], [], []
    if nat.forwards:
        before.append(f"iifname wan {_BOTH} th dport {FORWARDED} dnat to {inside}")
    if nat.filtering != "APDF":
        # Updated after source NAT, so that its key is the real outside port even if two hosts wanted the same one.
        state.append(
            "map eim { type inet_proto . inet_service : ipv4_addr . inet_service; "
            "flags dynamic,timeout; timeout 120s; size 65536; }"
        )
        track.append(
            f"oifname wan {_BOTH} ct direction original "
            "update @eim { meta l4proto . th sport : ct original ip saddr . ct original proto-src }"
        )
        admitted = ""
        if nat.filtering == "ADF":
            state.append(
                "set seen { type inet_proto . inet_service . ipv4_addr; "
                "flags dynamic,timeout; timeout 120s; size 65536; }"
            )
            track.append(f"oifname wan {_BOTH} update @seen {{ meta l4proto . th sport . ip daddr }}")
            admitted = f"{_HERE} . ip saddr @seen "
        before.append(f"iifname wan {_BOTH} {admitted}dnat ip to {_HERE} map @eim")
        if nat.hairpin:
            before.append(f"iifname lan ip daddr {outside} {_BOTH} dnat ip to {_HERE} map @eim")
    behind = [f"oifname wan {_BOTH} {_source(nat, outside)}", "oifname wan masquerade"]
    if nat.hairpin:
        behind.append(f"oifname lan ct status dnat {_BOTH} iifname lan snat to {outside}")
    chains = [
        _chain("pre", "nat hook prerouting priority dstnat", before),
        _chain("post", "nat hook postrouting priority srcnat", behind),
        _chain("track", "filter hook postrouting priority 110", track),
    ]
    return _table("nat", *state, *chains)


def _source(nat: Nat, outside: str) -> str:
    """The statement that chooses the outside port of a new flow."""
    if nat.allocation == "preserving":
        return "masquerade"
    if nat.allocation == "sequential":
        return f"snat ip to {outside} : numgen inc mod {len(nat.ports)} {_ports(nat.ports)}"
    if nat.allocation == "hash":
        remote = " . ip daddr" if nat.mapping == "ADM" else ""
        return f"snat ip to {outside} : jhash ip saddr . th sport{remote} mod {len(nat.ports)} {_ports(nat.ports)}"
    # Linux chooses a random port per flow with `random`, and otherwise per inside endpoint where possible.
    chosen = "random" if nat.mapping == "APDM" else ""
    if nat.ports == ALL_PORTS:
        return f"masquerade {chosen}"
    return f"snat to {outside}:{nat.ports[0]}-{nat.ports[-1]} {chosen}"


def _ports(ports: range) -> str:
    # A map, because `offset` counts in the machine's byte order, and ports are written in the network's.
    return "map { " + ", ".join(f"{n} : {port}" for n, port in enumerate(ports)) + " }"


def _table_filter(nat: Nat) -> str:
    refused = {
        "drop": ["iifname wan drop"],
        "rst": ["iifname wan meta l4proto tcp reject with tcp reset", "iifname wan drop"],
        "reject": ["iifname wan meta l4proto tcp reject with tcp reset", "iifname wan reject"],
        "prohibited": ["iifname wan reject with icmp type admin-prohibited"],
        "local": [],
    }[nat.unsolicited]
    lines = ["ct state established,related accept", *refused] if refused else []
    return _table("filter", _chain("input", "filter hook input priority 0", lines))


def _chain(name: str, hook: str, lines: list[str]) -> str:
    return "\n".join([f"chain {name} {{ type {hook};", *lines, "}"]) if lines else ""


def _table(name: str, *parts: str) -> str:
    return "\n".join([f"table ip {name} {{", *filter(None, parts), "}", ""])
