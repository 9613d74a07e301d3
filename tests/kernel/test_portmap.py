"""Port mapping with a real miniupnpd."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from functools import partial
from ipaddress import ip_address
from pathlib import Path
from typing import TypeVar

import pytest
import trio
import trio.testing

from tests.hangs import HANG
from tests.kernel.lab import Host
from tests.kernel.machines import HostInNamespace, inside
from tests.kernel.miniupnpd import HOST, OUTSIDE, ROUTER, WAN, Router, open_home
from tests.kernel.run import configuration, program_on
from warpgate_trio.address import EndpointKind, PeerAddress, Transport
from warpgate_trio.host import Gateway
from warpgate_trio.portmap import asking, natpmp
from warpgate_trio.portmap.client import Claim, Grant, ProtocolName
from warpgate_trio.portmap.exchange import Exchange
from warpgate_trio.portmap.finding import find_gateway
from warpgate_trio.portmap.lease import LIFETIME
from warpgate_trio.portmap.service import MappedPort, PortMaps
from warpgate_trio.sockaddr import IpAddress

PORT = 40_000
MAPPED = EndpointKind.MAPPED
T = TypeVar("T")

pytestmark = [
    pytest.mark.slow("the kernel takes a while to make namespaces, and miniupnpd to start"),
    pytest.mark.needs("network_namespaces", "nft", "miniupnpd"),
]


@asynccontextmanager
async def mapping(home: Router, *protocols: ProtocolName, versions: tuple[int, ...] = (4,)) -> AsyncGenerator[PortMaps]:
    """Keep ports mapped for the time of the body, which runs on the host."""
    async with inside(home.host), trio.open_nursery() as nursery:
        maps = PortMaps(HostInNamespace(home.host), dict.fromkeys(versions, PORT), protocols=protocols, goodbye=5)
        nursery.start_soon(maps.run)
        await trio.testing.wait_all_tasks_blocked()
        with trio.fail_after(HANG):
            await maps.wait_settled()
        yield maps
        nursery.cancel_scope.cancel()


async def reaches(home: Router, ip: str, port: int = PORT) -> bool:
    """Whether a connection from outside arrives at the host."""
    family = socket.AF_INET6 if ":" in ip else socket.AF_INET
    with home.host.inside():
        listener = trio.socket.from_stdlib_socket(socket.socket(family))
    with home.outside.inside():
        caller = trio.socket.from_stdlib_socket(socket.socket(family))
    with listener, caller:
        listener.setsockopt(trio.socket.SOL_SOCKET, trio.socket.SO_REUSEADDR, 1)
        await listener.bind(("::" if ":" in ip else "0.0.0.0", PORT))
        listener.listen()
        with trio.move_on_after(0.5), suppress(OSError):
            await caller.connect((ip, port))
            connection, _ = await listener.accept()
            connection.close()
            return True
    return False


async def until_reached(home: Router, ip: str) -> None:
    with trio.fail_after(HANG):
        while True:
            if await reaches(home, ip):
                return
            await trio.sleep(0.05)  # the daemon is another process: there is no event


def only(maps: PortMaps) -> MappedPort:
    (found,) = maps.mapped
    return found


def test_the_gateway_is_read_from_the_routes(tmp_path: Path) -> None:
    async def main() -> None:
        async with open_home(tmp_path) as home:
            gateways = HostInNamespace(home.host).gateways()
            assert Gateway(gateways[0].interface, ROUTER) in gateways
            assert len(gateways) == 2

    trio.run(main)


@pytest.mark.parametrize("protocol", ["natpmp", "pcp", "upnp"])
async def test_a_port_is_open_while_it_is_wanted(protocol: ProtocolName, tmp_path: Path) -> None:
    async with open_home(tmp_path) as home:
        await home.start()
        assert not await reaches(home, str(WAN))
        async with mapping(home, protocol) as maps:
            found = only(maps)
            assert (found.local, found.ip, found.external, found.internal) == (HOST, WAN, PORT, PORT)
            assert found.protocol == protocol
            assert await reaches(home, str(WAN))
        assert str(PORT) not in home.rules()
        assert not await reaches(home, str(WAN))


@pytest.mark.parametrize("protocol", ["pcp", "upnp"])
async def test_a_pinhole_is_open_while_it_is_wanted(protocol: ProtocolName, tmp_path: Path) -> None:
    async with open_home(tmp_path) as home:
        await home.start()
        assert not await reaches(home, "2a00:77::2")
        async with mapping(home, protocol, versions=(6,)) as maps:
            assert str(only(maps).ip) == "2a00:77::2"
            assert await reaches(home, "2a00:77::2")
        assert not await reaches(home, "2a00:77::2")


class _OnLink:
    """A gateway of which only the link-local address is known, as from router advertisements.

    It takes miniupnpd's place, which switches IPv6 off if it has no other address.
    """

    ip = "fe80::77"

    def __init__(self, home: Router) -> None:
        self.asked: list[str] = []
        home.router.ip_commands(f"addr add {self.ip}/64 dev lan nodad")
        home.host.ip_commands(f"route replace default via {self.ip} dev eth0")
        with home.router.inside():
            index = socket.if_nametoindex("lan")
            self.listener = trio.socket.from_stdlib_socket(socket.socket(socket.AF_INET6))
            self.searched = trio.socket.from_stdlib_socket(socket.socket(socket.AF_INET6, socket.SOCK_DGRAM))
            group = socket.inet_pton(socket.AF_INET6, "ff02::c") + index.to_bytes(4, sys.byteorder)
            self.searched.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_JOIN_GROUP, group)
            self.index = index

    async def answer_searches(self) -> None:
        await self.searched.bind(("::", 1900))
        while True:
            _, source = await self.searched.recvfrom(2000)
            text = f"HTTP/1.1 200 OK\r\nLOCATION: http://[{self.ip}]:5000/\r\n\r\n"
            await self.searched.sendto(text.encode(), source)

    async def serve(self, task_status: trio.TaskStatus[None]) -> None:
        with self.listener, self.searched:
            await self.listener.bind((self.ip, 5000, 0, self.index))
            self.listener.listen()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self.answer_searches)
                task_status.started()
                while True:
                    nursery.start_soon(self.answer, trio.SocketStream((await self.listener.accept())[0]))

    async def answer(self, stream: trio.SocketStream) -> None:
        async with stream:
            words = (await stream.receive_some()).decode()
            assert f"\r\nHost: [{self.ip}]:5000\r\n" in words
            kind = "urn:schemas-upnp-org:service:WANIPv6FirewallControl:1"
            body = f"<serviceType>{kind}</serviceType><controlURL>http://[{self.ip}]:5000/ctl</controlURL>"
            body = f"<root><service>{body}</service></root>"
            if words.startswith("POST "):
                action = words.partition(f"{kind}#")[2].partition('"')[0]
                self.asked.append(action)
                body = f"<{action}Response><UniqueID>7</UniqueID></{action}Response>"
            await stream.send_all(f"HTTP/1.1 200 OK\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode())


async def test_a_gateway_is_asked_at_its_link_local_address(tmp_path: Path) -> None:
    async with open_home(tmp_path) as home, trio.open_nursery() as nursery:
        gateway = _OnLink(home)
        await nursery.start(gateway.serve)
        async with mapping(home, "upnp", versions=(6,)) as maps:
            assert str(only(maps).ip) == "2a00:77::2"
        assert gateway.asked == ["AddPinhole", "DeletePinhole"]
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("lifetime", [LIFETIME, 60])
async def test_upnp_knows_its_mapping_again(lifetime: int, tmp_path: Path) -> None:
    """The mapping that a killed process leaves behind is taken over by the next one, which can also shorten it."""
    async with open_home(tmp_path) as home, inside(home.host):
        await home.start()
        client = await find_gateway(HOST, 24, ROUTER)
        claim = Claim(Transport.TCP, PORT, PORT, bytes(12))
        first = await client.map(claim, LIFETIME)
        assert (first.external, first.ip) == (PORT, WAN)
        assert LIFETIME - HANG < first.lifetime <= LIFETIME  # the remaining lifetime, as the router reports it
        before = Claim(Transport.TCP, PORT + 1, PORT, bytes(12))
        again = await client.map(before, lifetime)
        assert again.claim == before
        assert again.lifetime <= lifetime
        assert (await client.check(again)).stands
        assert not (await client.check(Grant(claim, PORT, WAN, LIFETIME))).stands
        await client.unmap(claim)  # no effect: the mapping no longer belongs to this claim
        assert (await client.check(again)).stands
        await client.unmap(before)
        assert str(PORT) not in home.rules()


async def test_a_pinhole_is_renewed_checked_and_found_again(tmp_path: Path) -> None:
    async with open_home(tmp_path) as home, inside(home.host):
        await home.start()
        host = HostInNamespace(home.host)
        ours, router = ip_address("2a00:77::2"), ip_address("2a00:77::1")
        index = host.gateways()[0].interface
        client = await find_gateway(ours, 64, router, index=index)
        claim = Claim(Transport.TCP, PORT, PORT, bytes(12))
        grant = await client.map(claim, 600)
        assert grant == Grant(claim, PORT, ours, 600)
        assert await client.map(claim, 3600) == Grant(claim, PORT, ours, 3600)
        assert (await client.check(grant)).stands
        assert await reaches(home, str(ours))
        another = await find_gateway(ours, 64, router, index=index)
        await another.unmap(claim)  # like a client that was cancelled before it learned the pinhole's number
        assert not await reaches(home, str(ours))
        assert not (await client.check(grant)).stands
        await client.map(claim, 600)
        assert await reaches(home, str(ours))
        await client.unmap(claim)
        assert not await reaches(home, str(ours))


async def test_behind_a_host_firewall_that_eats_multicasts_answers_the_gateway_is_found(tmp_path: Path) -> None:
    async with open_home(tmp_path) as home, inside(home.host):
        await home.start()
        home.host.rules(
            "table ip firewall {\nchain input {\ntype filter hook input priority 0; policy drop;\n"
            "ct state established,related accept\n}\n}\n"
        )
        client = await find_gateway(HOST, 24, ROUTER)
        assert client.protocol == "upnp"


async def test_cancelled_while_it_waits_for_the_answer_it_deletes_the_port(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = asking.ask

    async with open_home(tmp_path) as home, inside(home.host):
        await home.start()

        async def ask(local: IpAddress, exchange: Exchange[T]) -> T:
            answer = await real(local, exchange)
            if isinstance(answer, natpmp.Mapped) and answer.lifetime:
                assert str(PORT) in home.rules()
                scope.cancel()
                await trio.lowlevel.checkpoint()
            return answer

        monkeypatch.setattr(asking, "ask", ask)
        maps = PortMaps(HostInNamespace(home.host), {4: PORT}, protocols=("natpmp",), goodbye=5)
        with trio.CancelScope() as scope:
            await maps.run()
        assert scope.cancelled_caught
        assert str(PORT) not in home.rules()


async def test_a_gateway_that_restarts_is_asked_again(tmp_path: Path) -> None:
    """The gateway announces its restart."""
    async with open_home(tmp_path) as home:
        await home.start()
        async with mapping(home, "natpmp") as maps:
            await home.stop()
            for file in tmp_path.glob("leases*"):
                file.unlink()
            home.router.sh("nft", "flush", "chain", "inet", "filter", "prerouting_miniupnpd")
            home.router.sh("nft", "flush", "chain", "inet", "filter", "miniupnpd")
            assert not await reaches(home, str(WAN))
            await home.start()
            await until_reached(home, str(WAN))
            assert only(maps).external == PORT


KILLED = """
import trio
from warpgate_trio import host
from warpgate_trio.portmap import keeper
from warpgate_trio.portmap.service import PortMaps

keeper.LIFETIME = 3

async def main():
    maps = PortMaps(host.current(), {4: %d}, protocols=("natpmp",), goodbye=5)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(maps.run)
        await trio.testing.wait_all_tasks_blocked()
        await maps.wait_settled()
        print(maps.mapped, flush=True)
        await trio.sleep_forever()

import trio.testing
trio.run(main)
"""


async def test_what_a_killed_process_leaves_behind_ends_with_its_lifetime(tmp_path: Path) -> None:
    async with open_home(tmp_path) as home:
        await home.start()
        command = home.host.command([sys.executable, "-c", KILLED % PORT])
        process = await trio.lowlevel.open_process(command, pass_fds=[home.host.fd], stdout=subprocess.PIPE)
        assert process.stdout is not None
        async with process.stdout:
            with trio.fail_after(HANG):
                assert b"external=40000" in await process.stdout.receive_some()
            process.kill()
            await process.wait()
        assert str(PORT) in home.rules()
        with trio.fail_after(HANG):
            while True:
                if str(PORT) not in home.rules():
                    break
                await trio.sleep(0.2)  # the daemon counts real time
        assert not await reaches(home, str(WAN))


async def test_a_node_behind_a_nat_is_dialled(tmp_path: Path) -> None:
    """`listen` at home, `connect` on the internet; no port is open after `listen` has ended."""
    async with AsyncExitStack() as stack:
        home = await stack.enter_async_context(open_home(tmp_path))
        await home.start()
        run_on = partial(program_on, home=tmp_path, logs=None)
        outside, inside_ = Host(home.outside, str(OUTSIDE)), Host(home.host, str(HOST))
        server = await stack.enter_async_context(run_on(outside, "serve", "--host", str(OUTSIDE), "--json"))
        config = tmp_path / "config.toml"
        config.write_text(configuration((await server.event())["servers"]), encoding="utf-8")
        words = ["--config", str(config), "--allow-any", "--json"]
        listener = await stack.enter_async_context(run_on(inside_, "listen", *words, "--echo", "--port", str(PORT)))
        address = (await listener.event())["address"]
        mapped = [each for each in PeerAddress.from_text(address).interfaces[0].endpoints if each.kind is MAPPED]
        assert [(str(each.ip), each.port) for each in mapped] == [(str(WAN), PORT)]
        words = [address, "--config", str(config), "--echo-test", "1000", "--json"]
        assert f"dport {PORT} dnat" in home.rules()
        caller = await stack.enter_async_context(run_on(outside, "connect", *words))
        event = await caller.event()
        assert (event["phase"], event["plugin"]) == ("direct", "direct_connect")
        assert await caller.code() == 0
        await listener.code()  # it serves one Pipe
        assert f"dport {PORT} dnat" not in home.rules()  # a pinhole stays: this daemon confuses those with mappings
        assert not await reaches(home, str(WAN))
