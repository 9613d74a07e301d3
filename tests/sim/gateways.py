"""Gateways for simulated homes: programs on a router that speak NAT-PMP, PCP and UPnP, with or without faults.

`Gateway` has no faults; subclasses and attributes make it deviate.
"""

from __future__ import annotations

import math
import re
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from functools import partial
from ipaddress import ip_address

import trio
import trio.testing

from tests.sim.worlds import run
from warpgate_trio.portmap.client import PROTOCOLS, Protocols
from warpgate_trio.portmap.service import MappedPort, PortMaps
from warpgate_trio.sim import Host, Link, Network, Router, presets
from warpgate_trio.sim.packet import TCP
from warpgate_trio.testing import SimulatedHost, simulated_hosts

PORT = 4433
WANIP = "urn:schemas-upnp-org:service:WANIPConnection:1"


@dataclass
class Entry:
    client: str
    internal: int
    expires: float
    description: str = "warpgate-trio"


class Gateway:
    """A gateway without faults."""

    natpmp = True
    pcp = True
    upnp = True
    capacity = 1000
    delay = 0.0
    http_port = 5000
    reusable = False

    def __init__(self, router: Router) -> None:
        self.router = router
        self.inside = router.inside.address(v6=False) or ""
        self.outside = router.outside.address(v6=False) or ""
        self.external: str = self.outside
        self.table: dict[int, Entry] = {}
        self.nonces: dict[int, bytes] = {}
        self.born = -1000.0
        self.calls: list[tuple[str, dict[str, str]]] = []
        self.asked: list[tuple[str, int, int, int]] = []

    @property
    def now(self) -> float:
        return trio.current_time()

    def epoch(self) -> int:
        return int(self.now - self.born)

    def restart(self) -> None:
        """Forget all mappings, without an announcement."""
        for port in list(self.table):
            self.remove(port)
        self.born = self.now

    # -- the table ---------------------------------------------------------------------------------------------------

    def entry(self, port: int) -> Entry | None:
        found = self.table.get(port)
        if found is not None and found.expires <= self.now:
            self.remove(port)
            return None
        return found

    def put(self, port: int, client: str, internal: int, lifetime: float) -> int:
        """Add a mapping; returns 0 or a UPnP error code."""
        known = self.entry(port)
        if known is not None and known.client != client:
            return 718
        if known is None and len(self.table) >= self.capacity:
            return 501
        expires = self.now + lifetime
        self.table[port] = Entry(client, internal, expires)
        self.forward(port, client, internal, expires)
        return 0

    def forward(self, port: int, client: str, internal: int, expires: float) -> None:
        if self.router.nat is not None:
            self.router.nat.add_forward(TCP, port, (client, internal), expires=expires)

    def remove(self, port: int) -> None:
        self.table.pop(port, None)
        if self.router.nat is not None:
            self.router.nat.remove_forward(TCP, port)

    # -- NAT-PMP and PCP ---------------------------------------------------------------------------------------------

    async def serve_udp(self, task_status: trio.TaskStatus[None]) -> None:
        with trio.socket.socket(type=trio.socket.SOCK_DGRAM) as sock:
            if self.reusable:
                sock.setsockopt(trio.socket.SOL_SOCKET, trio.socket.SO_REUSEADDR, 1)
            await sock.bind((self.inside, 5351))
            task_status.started()
            async with trio.open_nursery() as nursery:
                while True:
                    data, source = await sock.recvfrom(2000)
                    answer = self.answer_udp(data, source[0])
                    if answer is not None:
                        nursery.start_soon(self.send_later, sock, answer, source)

    async def send_later(self, sock: trio.socket.SocketType, answer: bytes, to: tuple[str, int]) -> None:
        await trio.sleep(self.delay)
        await sock.sendto(answer, to)

    def answer_udp(self, data: bytes, client: str) -> bytes | None:
        if data[0] == 0:
            return self.answer_natpmp(data, client) if self.natpmp else self.unsupported_natpmp()
        return self.answer_pcp(data, client) if self.pcp else self.unsupported_pcp()

    def unsupported_natpmp(self) -> bytes | None:
        """The answer to NAT-PMP of a gateway that has only PCP."""
        return None

    def unsupported_pcp(self) -> bytes | None:
        """The answer to PCP of a gateway that has only NAT-PMP: its own version (RFC 6886 §3.5)."""
        return bytes([0, 129, 0, 1]) + self.epoch().to_bytes(4, "big") if self.natpmp else None

    def answer_natpmp(self, data: bytes, client: str) -> bytes | None:
        head = bytes([0, data[1] + 128, 0, 0]) + self.epoch().to_bytes(4, "big")
        if data[1] == 0:
            return head + ip_address(self.external).packed
        internal, external = int.from_bytes(data[4:6], "big"), int.from_bytes(data[6:8], "big")
        lifetime = int.from_bytes(data[8:12], "big")
        self.asked.append(("natpmp", internal, external, lifetime))
        if not lifetime:
            for port in [p for p, e in self.table.items() if (e.client, e.internal) == (client, internal)]:
                self.remove(port)
            return head + data[4:6] + bytes(6)
        while self.put(external, client, internal, lifetime):
            external += 1
        return head + data[4:6] + external.to_bytes(2, "big") + lifetime.to_bytes(4, "big")

    def answer_pcp(self, data: bytes, client: str) -> bytes | None:
        lifetime = int.from_bytes(data[4:8], "big")
        if data[1] == 0:
            return self.pcp_head(data, 0, 0)
        nonce, internal = data[24:36], int.from_bytes(data[40:42], "big")
        external = int.from_bytes(data[42:44], "big")
        self.asked.append(("pcp", internal, external, lifetime))
        if not lifetime:
            for port in [p for p, e in self.table.items() if (e.client, e.internal) == (client, internal)]:
                if self.nonces.get(port, nonce) != nonce:
                    return self.pcp_head(data, 2, 30) + data[24:]
                self.remove(port)
            return self.pcp_head(data, 0, 0) + data[24:]
        while self.put(external, client, internal, lifetime):
            external += 1
        self.nonces[external] = nonce
        address = bytes(10) + b"\xff\xff" + ip_address(self.external).packed
        return self.pcp_head(data, 0, lifetime) + data[24:42] + external.to_bytes(2, "big") + address

    def pcp_head(self, data: bytes, result: int, lifetime: int) -> bytes:
        epoch = self.epoch().to_bytes(4, "big")
        return bytes([2, data[1] + 128, 0, result]) + lifetime.to_bytes(4, "big") + epoch + bytes(12)

    # -- SSDP --------------------------------------------------------------------------------------------------------

    def location(self) -> str:
        return f"http://{self.inside}:{self.http_port}/rootDesc.xml"

    def wants(self, target: str) -> bool:
        return True

    async def serve_ssdp(self, task_status: trio.TaskStatus[None]) -> None:
        with trio.socket.socket(type=trio.socket.SOCK_DGRAM) as sock:
            await sock.bind(("0.0.0.0", 1900))
            group = bytes([239, 255, 255, 250]) + ip_address(self.inside).packed
            sock.setsockopt(trio.socket.IPPROTO_IP, trio.socket.IP_ADD_MEMBERSHIP, group)
            task_status.started()
            while True:
                data, source = await sock.recvfrom(2000)
                target = re.search(rb"\r\nST: (.*)\r\n", data)
                if target is not None and self.wants(target[1].decode()):
                    await trio.sleep(self.delay)
                    await self.reply(sock, source, target[1])

    async def reply(self, sock: trio.socket.SocketType, source: tuple[str, int], target: bytes) -> None:
        await sock.sendto(self.reply_text(target), source)

    def reply_text(self, target: bytes) -> bytes:
        return b"HTTP/1.1 200 OK\r\nST: " + target + f"\r\nLOCATION: {self.location()}\r\nEXT:\r\n\r\n".encode()

    # -- HTTP and SOAP -----------------------------------------------------------------------------------------------

    async def serve_http(self, task_status: trio.TaskStatus[None]) -> None:
        with trio.socket.socket() as sock:
            await sock.bind((self.inside, self.http_port))
            sock.listen()
            task_status.started()
            async with trio.open_nursery() as nursery:
                while True:
                    connection, source = await sock.accept()
                    nursery.start_soon(self.answer_http, trio.SocketStream(connection), source[0])

    async def answer_http(self, stream: trio.SocketStream, client: str) -> None:
        async with stream:
            data = b""
            while b"\r\n\r\n" not in data:
                more = await stream.receive_some()
                if not more:
                    return
                data += more
            head, _, body = data.partition(b"\r\n\r\n")
            length = re.search(rb"Content-Length: (\d+)", head)
            while len(body) < int(length[1] if length else 0):
                body += await stream.receive_some()
            await trio.sleep(self.delay)
            answer = self.respond(head.decode(), body.decode(), client)
            if answer is None:
                await trio.sleep_forever()
            with suppress(trio.BrokenResourceError):
                await stream.send_all(answer)

    def respond(self, head: str, body: str, client: str) -> bytes | None:
        """The response to send; None to never respond."""
        if head.startswith("GET "):
            return self.http(200, self.description())
        action = re.search(r'SOAPAction: "(.*)#(\w+)"', head)
        if action is None:
            return self.http(400, b"")
        arguments = dict(re.findall(r"<(New\w+)>([^<]*)</", body))
        self.calls.append((action[2], arguments))
        result = getattr(self, f"soap_{action[2].lower()}", self.soap_unknown)(arguments, client)
        if isinstance(result, int):
            return self.http(500, self.fault(result))
        inner = "".join(f"<{name}>{value}</{name}>" for name, value in result.items())
        answer = f'<u:{action[2]}Response xmlns:u="{action[1]}">{inner}</u:{action[2]}Response>'
        return self.http(200, self.soap(answer))

    def http(self, status: int, body: bytes) -> bytes:
        return f"HTTP/1.1 {status} OK\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n".encode() + body

    def soap(self, inner: str) -> bytes:
        envelope = '<s:Envelope xmlns:s="http://schemas.xmlsoap.org/soap/envelope/"><s:Body>'
        return f'<?xml version="1.0"?>{envelope}{inner}</s:Body></s:Envelope>'.encode()

    def fault(self, code: int) -> bytes:
        error = f"<UPnPError><errorCode>{code}</errorCode><errorDescription>no</errorDescription></UPnPError>"
        return self.soap(f"<s:Fault><detail>{error}</detail></s:Fault>")

    def services(self) -> Iterable[tuple[str, str]]:
        return [(WANIP, "/ctl/IPConn")]

    def description(self) -> bytes:
        services = "".join(
            f"<service><serviceType>{kind}</serviceType><controlURL>{url}</controlURL></service>"
            for kind, url in self.services()
        )
        root = '<root xmlns="urn:schemas-upnp-org:device-1-0">'
        device = f"<device><serviceList>{services}</serviceList></device>"
        return f'<?xml version="1.0"?>{root}{device}</root>'.encode()

    def soap_unknown(self, arguments: dict[str, str], client: str) -> dict[str, str] | int:
        return 401

    def soap_getstatusinfo(self, arguments: dict[str, str], client: str) -> dict[str, str] | int:
        return {"NewConnectionStatus": "Connected"}

    def soap_getexternalipaddress(self, arguments: dict[str, str], client: str) -> dict[str, str] | int:
        return {"NewExternalIPAddress": self.external}

    def soap_addportmapping(self, arguments: dict[str, str], client: str) -> dict[str, str] | int:
        external, internal = int(arguments["NewExternalPort"]), int(arguments["NewInternalPort"])
        self.asked.append(("upnp", internal, external, int(arguments["NewLeaseDuration"])))
        lease = int(arguments["NewLeaseDuration"]) or math.inf
        return self.put(external, arguments["NewInternalClient"], internal, lease) or {}

    def soap_deleteportmapping(self, arguments: dict[str, str], client: str) -> dict[str, str] | int:
        self.remove(int(arguments["NewExternalPort"]))
        return {}

    def soap_getspecificportmappingentry(self, arguments: dict[str, str], client: str) -> dict[str, str] | int:
        found = self.entry(int(arguments["NewExternalPort"]))
        if found is None:
            return 714
        left = 0 if found.expires == math.inf else math.ceil(found.expires - self.now)
        return {
            "NewInternalPort": str(found.internal),
            "NewInternalClient": found.client,
            "NewEnabled": "1",
            "NewPortMappingDescription": found.description,
            "NewLeaseDuration": str(left),
        }

    async def serve(self, *, task_status: trio.TaskStatus[None]) -> None:
        async with trio.open_nursery() as nursery:
            servers: list[Callable[..., Awaitable[None]]] = []
            if self.natpmp or self.pcp:
                servers.append(self.serve_udp)
            if self.upnp:
                servers += [self.serve_ssdp, self.serve_http]
            with self.router:
                for each in servers:
                    await nursery.start(each)
            task_status.started()


class UpnpOnly(Gateway):
    natpmp = pcp = False


@asynccontextmanager
async def mapping(
    host: Host,
    *,
    protocols: Protocols = PROTOCOLS,
    settled: bool = True,
    port: int = PORT,
    sign: Callable[[bytes], bytes] | None = None,
) -> AsyncGenerator[PortMaps]:
    """Keep a port mapped for `host` for the time of the body."""
    async with trio.open_nursery() as nursery:
        maps = PortMaps(SimulatedHost(host), {4: port}, protocols=protocols, goodbye=5, sign=sign)
        with host:
            await nursery.start(_run, maps)
        if settled:
            await maps.wait_settled()
        yield maps
        nursery.cancel_scope.cancel()


async def _run(maps: PortMaps, task_status: trio.TaskStatus[None]) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(maps.run)
        await trio.testing.wait_all_tasks_blocked()
        task_status.started()


@dataclass
class Home:
    """A home with a gateway, and a host in it."""

    net: Network
    gateway: Gateway
    host: Host
    neighbour: Host
    outside: Host

    async def reaches(self, port: int = PORT) -> bool:
        """Whether a connection from outside arrives."""
        with self.host:
            listener = trio.socket.socket()
            listener.setsockopt(trio.socket.SOL_SOCKET, trio.socket.SO_REUSEADDR, 1)
            await listener.bind(("0.0.0.0", PORT))
            listener.listen()
        with listener, self.outside, trio.socket.socket() as caller:
            with trio.move_on_after(2):
                try:
                    await caller.connect((self.gateway.outside, port))
                except OSError:
                    return False
                (await listener.accept())[0].close()
                return True
        return False


def at_home(kind: type[Gateway], body: Callable[[Home], Awaitable[None]]) -> None:
    """Run `body` in a home with a gateway of this kind."""

    async def world(net: Network) -> None:
        lan = net.lan("home", nat=presets.LINUX)
        assert isinstance(lan.router, Router)
        gateway = kind(lan.router)
        home = Home(
            net, gateway, lan.host("alice", link=Link(latency=0.004)), lan.host("neighbour"), net.host("outside")
        )
        async with simulated_hosts(), trio.open_nursery() as nursery:
            await nursery.start(gateway.serve)
            await body(home)
            nursery.cancel_scope.cancel()

    run(partial(world))


def only(maps: PortMaps) -> MappedPort:
    (found,) = maps.mapped
    return found
