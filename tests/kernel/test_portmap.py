"""Ports that a real miniupnpd opens when it is asked to."""

from __future__ import annotations

import socket
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import TypeVar

import pytest
import trio
import trio.testing

from tests.hangs import HANG
from tests.kernel.machines import HostInNamespace, inside
from tests.kernel.miniupnpd import HOST, ROUTER, WAN, Router, open_home
from warpgate_trio.address import Transport
from warpgate_trio.host import Gateway
from warpgate_trio.portmap import asking, natpmp
from warpgate_trio.portmap.client import Claim, Grant, ProtocolName
from warpgate_trio.portmap.exchange import Exchange
from warpgate_trio.portmap.lease import LIFETIME
from warpgate_trio.portmap.service import MappedPort, PortMaps
from warpgate_trio.portmap.upnp import find_gateway
from warpgate_trio.sockaddr import IpAddress

PORT = 40_000
T = TypeVar("T")

pytestmark = [
    pytest.mark.slow("the kernel takes a while to make namespaces, and miniupnpd to start"),
    pytest.mark.needs("network_namespaces", "nft", "miniupnpd"),
]


@asynccontextmanager
async def mapping(home: Router, *protocols: ProtocolName, versions: tuple[int, ...] = (4,)) -> AsyncGenerator[PortMaps]:
    """Have ports opened for the time of the body, in which the code is on the host."""
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
            await trio.sleep(0.05)  # it is another program that gets there


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


async def test_a_pinhole_is_open_while_it_is_wanted(tmp_path: Path) -> None:
    async with open_home(tmp_path) as home:
        await home.start()
        assert not await reaches(home, "2a00:77::2")
        async with mapping(home, "pcp", versions=(6,)) as maps:
            assert str(only(maps).ip) == "2a00:77::2"
            assert await reaches(home, "2a00:77::2")
        assert not await reaches(home, "2a00:77::2")


@pytest.mark.parametrize("lifetime", [LIFETIME, 1])
async def test_upnp_knows_its_mapping_again(lifetime: int, tmp_path: Path) -> None:
    """A killed process leaves one behind, which the next one takes over; it can shorten it, too."""
    async with open_home(tmp_path) as home, inside(home.host):
        await home.start()
        client = await find_gateway(HOST, 24, ROUTER)
        claim = Claim(Transport.TCP, PORT, PORT, bytes(12))
        assert await client.map(claim, LIFETIME) == Grant(claim, PORT, WAN, LIFETIME)
        before = Claim(Transport.TCP, PORT + 1, PORT, bytes(12))
        again = await client.map(before, lifetime)
        assert again.claim == before
        assert again.lifetime <= lifetime
        assert (await client.check(again)).stands
        assert not (await client.check(Grant(claim, PORT, WAN, LIFETIME))).stands
        await client.unmap(claim)  # not ours any more, as far as this claim goes
        assert (await client.check(again)).stands
        await client.unmap(before)
        assert str(PORT) not in home.rules()


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
    """It announces that."""
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
