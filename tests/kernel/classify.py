"""Measures a NAT's behaviour from two hosts behind it and three outside: RFC 5780's tests, over UDP and TCP.

``python -m tests.kernel.classify`` (root) measures every kind of `tests.kernel.nats` and compares it with what is
declared there.
"""

from __future__ import annotations

import errno
import json
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import pairwise
from typing import Final, final

import trio

from tests.kernel.enclosed import run_enclosed
from tests.kernel.lab import BYSTANDER, SECOND, SERVER, Home, Host, Lab, open_lab
from tests.kernel.namespaces import SocketsOfNamespaces
from tests.kernel.nats import NATS, Nat, Transport, nat
from tests.kernel.wire import Wire

KINDS: Final = [
    *(name for name in NATS if name != "open"),
    *(f"port-restricted/{policy}" for policy in ("reject", "local")),
    "full-cone/local",
    "symmetric/rst",
    "symmetric/local",
]
WAIT: Final = 0.4
"""Seconds to wait for a packet that may never come: eight round trips."""
REPLY: Final = 1.0
"""Seconds to wait for a packet that should come, on a busy machine."""
TRIES: Final = 3
"""Attempts for a packet that should come, and for a whole kind, since a late packet looks like a lost one."""
SAMPLES: Final = 12
"""Fresh mappings in a row from which the port allocation is inferred."""
IP_RECVERR: Final = 11
"""Linux's constant; in `socket` since Python 3.14."""
Endpoint = tuple[str, int]


@final
@dataclass(frozen=True, slots=True)
class Finding:
    """What was seen of one transport; the fields are None if the NAT does not let it out."""

    mapping: str | None
    filtering: str | None
    allocation: str | None
    ports: tuple[int, int] | None
    unsolicited: str
    hairpin: bool | None

    def contradicts(self, declared: Nat, transport: Transport) -> list[str]:
        """The differences from what was declared."""
        if not declared.udp and transport == "udp":
            wanted: list[tuple[str, object, object]] = [("mapping", self.mapping, None)]
        else:
            wanted = [
                ("mapping", self.mapping, declared.mapping),
                ("filtering", self.filtering, declared.filtering),
                ("allocation", self.allocation, _visible(declared)),
                ("hairpin", self.hairpin, declared.hairpin),
            ]
            if self.ports is not None and not (self.ports[0] in declared.ports and self.ports[1] in declared.ports):
                wanted.append(("ports", self.ports, declared.ports))
            wanted.append(("unsolicited", self.unsolicited, _answer(declared, transport)))
        return [f"{name}: {found}, not {meant}" for name, found, meant in wanted if found != meant]

    def __str__(self) -> str:
        if self.mapping is None:
            return "blocked"
        ports = "" if self.ports is None else f" {self.ports[0]}–{self.ports[1]}"
        hairpin = ", hairpin" if self.hairpin else ""
        return f"{self.mapping}/{self.filtering}, {self.allocation}{ports}, {self.unsolicited}{hairpin}"


def _visible(declared: Nat) -> str:
    # From outside a hash looks random: each inside port gets another outside port, with no constant step between them.
    return "random" if declared.allocation == "hash" else declared.allocation


def _answer(declared: Nat, transport: Transport) -> str:
    udp = {"drop": "silence", "rst": "silence", "reject": "refused", "local": "refused, poisoned"}
    tcp = {"drop": "silence", "rst": "refused", "reject": "refused", "local": "refused"}
    if declared.unsolicited == "local" and (declared.mapping, declared.allocation) != ("EIM", "preserving"):
        udp["local"] = "refused"  # only a port-preserving EIM NAT shows poisoning: others would change the port anyway
    return (udp if transport == "udp" else tcp)[declared.unsolicited]


@final
class Udp:
    """UDP sockets for `classify`."""

    def __init__(self, stack: ExitStack) -> None:
        self._stack = stack
        self._asked = 0

    async def socket(self, host: Host, port: int, ip: str = "0.0.0.0") -> trio.socket.SocketType:
        with host:
            sock = self._stack.enter_context(trio.socket.socket(type=trio.socket.SOCK_DGRAM))
        await sock.bind((ip, port))
        return sock

    async def serve(self, host: Host, port: int) -> trio.socket.SocketType:
        return await self.socket(host, port, host.ip)

    async def seen(self, client: trio.socket.SocketType, server: trio.socket.SocketType) -> Endpoint | None:
        """The endpoint from which a server sees a client."""
        self._asked += 1
        question = b"%d" % self._asked
        for _ in range(TRIES):
            await client.sendto(question, server.getsockname())
            with trio.move_on_after(REPLY):
                while True:
                    data, source = await server.recvfrom(100)
                    if data == question:  # not the late answer to an earlier question
                        return source[0], source[1]
        return None

    async def gets_in(self, client: trio.socket.SocketType, sender: trio.socket.SocketType, to: Endpoint) -> bool:
        """Whether a packet from a host outside to an outside endpoint reaches the client."""
        await sender.sendto(b"!", to)
        return await _receive(client, WAIT) is not None

    async def answer_to_stranger(self, stranger: trio.socket.SocketType, to: Endpoint) -> str:
        """The NAT's reaction to a packet without a mapping.

        The packet is sent from the socket that later tests use.  A new socket on its port might have to wait: a child
        process that builds another lab holds copies of all sockets until its exec.
        """
        stranger.setsockopt(trio.socket.IPPROTO_IP, IP_RECVERR, 1)  # so that ICMP errors are reported
        try:
            await stranger.sendto(b"!", to)
            return "silence" if await _receive(stranger, WAIT) is None else "answer"
        except ConnectionRefusedError:
            return "refused"
        finally:
            stranger.setsockopt(trio.socket.IPPROTO_IP, IP_RECVERR, 0)


async def _receive(sock: trio.socket.SocketType, within: float) -> tuple[bytes, Endpoint] | None:
    with trio.move_on_after(within):
        data, source = await sock.recvfrom(100)
        return data, source
    return None


@final
class Tcp:
    """TCP sockets for `classify`; SO_REUSEADDR and SO_REUSEPORT let several share a port."""

    def __init__(self, stack: ExitStack) -> None:
        self._stack = stack

    async def socket(self, host: Host, port: int, ip: str = "0.0.0.0") -> trio.socket.SocketType:
        with host:
            sock = self._stack.enter_context(trio.socket.socket())
        for option in (trio.socket.SO_REUSEADDR, trio.socket.SO_REUSEPORT):
            sock.setsockopt(trio.socket.SOL_SOCKET, option, 1)
        await sock.bind((ip, port))
        return sock

    async def serve(self, host: Host, port: int) -> trio.socket.SocketType:
        sock = await self.socket(host, port, host.ip)
        sock.listen()
        return sock

    async def seen(self, host: Host, port: int, server: trio.socket.SocketType) -> Endpoint | None:
        """The endpoint from which a server sees a client that connects from a port; the connection stays open."""
        client = await self.socket(host, port)
        with trio.move_on_after(TRIES * REPLY):
            await client.connect(server.getsockname())
            accepted, source = await server.accept()
            self._stack.enter_context(accepted)
            return (source[0], source[1])
        return None

    async def dial(self, host: Host, ip: str, port: int, to: Endpoint) -> str:
        """The result of a connect from outside: connected, refused or silence."""
        with await self.socket(host, port, ip) as sock, trio.move_on_after(WAIT):
            try:
                await sock.connect(to)
            except OSError as error:
                return "refused" if error.errno == errno.ECONNREFUSED else errno.errorcode[error.errno or 0]
            return "connected"
        return "silence"


async def classify(lab: Lab, home: Home, transport: Transport) -> Finding:
    """Measure one transport of a home with two hosts."""
    with ExitStack() as stack:
        return await (_udp(lab, home, Udp(stack)) if transport == "udp" else _tcp(lab, home, Tcp(stack)))


async def _udp(lab: Lab, home: Home, tools: Udp) -> Finding:
    servers = [await tools.serve(host, port) for host in (lab.server, lab.second_server) for port in (3478, 3479)]
    stranger = await tools.serve(lab.bystander, 7000)
    unsolicited = await tools.answer_to_stranger(stranger, (home.outside, 40_000))
    client = await tools.socket(home.host, 40_000)
    if await tools.seen(client, servers[0]) is None:
        return Finding(None, None, None, None, unsolicited, None)
    seen = [await tools.seen(client, server) for server in servers]
    found = await tools.seen(client, stranger)
    if len(set(seen)) == 1 and found != seen[0]:
        unsolicited += ", poisoned"  # the router's conntrack entry of the stranger's flow holds the port
    fresh = await tools.socket(home.host, 40_001)
    told = _needed(await tools.seen(fresh, servers[0]))
    heard = [await tools.gets_in(fresh, server, told) for server in (servers[1], servers[2])]
    assert home.second is not None
    other = await tools.socket(home.second, 40_002)
    outside = _needed(await tools.seen(other, servers[0]))
    await fresh.sendto(b"?", outside)
    got = await _receive(other, WAIT)
    samples = []
    for number in range(SAMPLES):
        sample = await tools.seen(await tools.socket(home.host, 41_000 + 7 * number), servers[0])
        samples.append((41_000 + 7 * number, sample))
    allocation, ports = _allocation(samples)
    return Finding(_mapping(seen), _filtering(heard), allocation, ports, unsolicited, got == (b"?", told))


async def _tcp(lab: Lab, home: Home, tools: Tcp) -> Finding:
    servers = [await tools.serve(host, port) for host in (lab.server, lab.second_server) for port in (3478, 3479)]
    unsolicited = await tools.dial(lab.bystander, BYSTANDER, 7000, (home.outside, 40_000))
    seen = [await tools.seen(home.host, 40_000, server) for server in servers]
    told = _needed(await tools.seen(home.host, 40_001, servers[0]))
    await tools.serve(Host(home.host.machine, "0.0.0.0"), 40_001)
    heard = [
        await tools.dial(host, ip, 7001, told) == "connected"
        for host, ip in ((lab.server, SERVER), (lab.second_server, SECOND))
    ]
    assert home.second is not None
    outside = _needed(await tools.seen(home.second, 40_002, servers[0]))
    await tools.serve(Host(home.second.machine, "0.0.0.0"), 40_002)
    hairpin = await tools.dial(home.host, "0.0.0.0", 40_003, outside) == "connected"
    samples = []
    for number in range(SAMPLES):
        port = 41_000 + 7 * number
        samples.append((port, await tools.seen(home.host, port, servers[0])))
    allocation, ports = _allocation(samples)
    return Finding(_mapping(seen), _filtering(heard), allocation, ports, unsolicited, hairpin)


class Unanswered(Exception):
    """A packet that had to come did not."""


def _needed(endpoint: Endpoint | None) -> Endpoint:
    if endpoint is None:
        raise Unanswered
    return endpoint


def _mapping(seen: list[Endpoint | None]) -> str:
    """The mapping behaviour, from the endpoints seen at (address 1, port 1), (1, 2), (2, 1) and (2, 2)."""
    one, two, three, four = seen
    if one == two == three == four:
        return "EIM"
    return "ADM" if one == two and three == four else "APDM"


def _filtering(heard: list[bool]) -> str:
    """The filtering behaviour, from whether packets from (another port, another address) got in."""
    near, far = heard
    return "EIF" if far else "ADF" if near else "APDF"


def _allocation(samples: list[tuple[int, Endpoint | None]]) -> tuple[str, tuple[int, int]]:
    inside = [port for port, _ in samples]
    outside = [_needed(endpoint)[1] for _, endpoint in samples]
    ports = (min(outside), max(outside))
    if inside == outside:
        return "preserving", ports
    steps = {after - before for before, after in pairwise(outside)}
    return "sequential" if len(steps) == 1 else "random", ports


async def survey(kinds: Sequence[str], *, limit: int = 16) -> dict[tuple[str, Transport], tuple[Finding, list[str]]]:
    """Classify kinds of NAT, `limit` at a time: the findings, and their contradictions to the declarations."""
    trio.socket.set_custom_socket_factory(SocketsOfNamespaces())
    found: dict[tuple[str, Transport], tuple[Finding, list[str]]] = {}
    slots = trio.CapacityLimiter(limit)
    transports: tuple[Transport, ...] = ("udp", "tcp")

    async def one(kind: str) -> None:
        async with slots:
            for transport in transports:
                for _ in range(TRIES):
                    async with open_lab(wire, kind, second=True) as lab:
                        try:
                            finding = await classify(lab, lab.homes[0], transport)
                        except Unanswered:
                            finding = Finding(None, None, None, None, "no answers any more", None)
                    found[kind, transport] = finding, finding.contradicts(nat(kind), transport)
                    if not found[kind, transport][1]:
                        break

    with Wire() as wire:
        async with trio.open_nursery() as nursery:
            for kind in kinds:
                nursery.start_soon(one, kind)
    return {(kind, transport): found[kind, transport] for kind in kinds for transport in transports}


def main(arguments: Sequence[str]) -> int:
    kinds = [word for word in arguments if word != "--json"] or KINDS
    found = trio.run(survey, kinds)
    if "--json" in arguments:
        problems = {f"{kind} {transport}": wrong for (kind, transport), (_, wrong) in found.items()}
        print(json.dumps(problems))
        return int(any(problems.values()))
    for (kind, transport), (finding, wrong) in found.items():
        print(f"{kind:<24}{transport}  {finding!s:<60} {'NOT AS DECLARED: ' if wrong else 'ok'}{'; '.join(wrong)}")
    return int(any(wrong for _, wrong in found.values()))


if __name__ == "__main__":
    run_enclosed("tests.kernel.classify", main)
