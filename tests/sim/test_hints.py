"""Servers that a stranger's address names: a node visits public ones, and none in its own network."""

from __future__ import annotations

from contextlib import AsyncExitStack, suppress
from ipaddress import ip_address

import trio

from tests.identities import ALICE, BOB
from tests.sim.worlds import run
from warpgate_trio import NodeConfig, PeerAddress, open_node
from warpgate_trio.address import AddressInterface, Endpoint, EndpointKind, Transport
from warpgate_trio.errors import AttemptFailed, SignalError
from warpgate_trio.nurseries import open_background_nursery
from warpgate_trio.servers.rendezvous import open_rendezvous
from warpgate_trio.sim import Network
from warpgate_trio.testing import simulated_hosts


def test_a_strangers_address_reaches_public_servers_alone() -> None:
    async def body(net: Network) -> tuple[list[str], list[str]]:
        theirs, alices = net.host("theirs"), net.host("alice")
        net.add_name("inside.example", "127.0.0.1")
        net.add_name("both.example", "127.0.0.1", alices.ip)
        heard: list[str] = []

        async def service(address: str, port: int, task_status: trio.TaskStatus[None]) -> None:
            with alices, trio.socket.socket() as sock:
                await sock.bind((address, port))
                sock.listen(8)
                task_status.started()
                while True:
                    connection, _ = await sock.accept()
                    heard.append(f"{address}:{port}")
                    connection.close()

        async with simulated_hosts(), AsyncExitStack() as stack, open_background_nursery() as nursery:
            with theirs:
                rendezvous = open_rendezvous(host=None, port=443, public_urls=["ws://theirs:443"])
                server = await stack.enter_async_context(rendezvous)
            for address, port in (("127.0.0.1", 80), (alices.ip, 8080), ("127.0.0.1", 8080)):
                await nursery.start(service, address, port)
            visited: list[str] = []
            with alices:
                alice = await stack.enter_async_context(open_node(NodeConfig(), identity=ALICE))
                for urls in (
                    ["ws://127.0.0.1", "ws://localhost", "ws://inside.example", f"ws://{alices.ip}:8080"],
                    ["ws://both.example:8080", "ws://[::1]:8080", "ws://[::ffff:127.0.0.1]:8080", "ws://theirs:443/x"],
                    ["ws://me:secret@theirs:443", "ws://theirs:443/?a=b", "ws://theirs:443"],
                ):
                    with suppress(AttemptFailed, SignalError, trio.TooSlowError):
                        await alice.refresh_address(stranger(urls, net.epoch + net.wire.now), timeout=20)
                    visited += [each.url for each in alice.signal_servers]
            assert server.statistics().registrations == 1
            await stack.aclose()
        return heard, visited

    heard, visited = run(body)
    assert heard == []
    assert visited == ["ws://theirs:443"]


def stranger(urls: list[str], now: float) -> PeerAddress:
    endpoint = Endpoint.make(
        transport=Transport.TCP, kind=EndpointKind.EXT, ip=ip_address("203.0.113.77"), port=9, prefix=None
    )
    return PeerAddress.issue(
        BOB,
        seq=int(now),
        issued_at=int(now),
        expires_at=int(now) + 600,
        host_salt=bytes(8),
        host_id=bytes(16),
        signals=urls,
        interfaces=(AddressInterface(1, (endpoint,)),),
    )
