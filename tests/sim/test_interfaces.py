"""How a whole node uses simulated machines with several interfaces and addresses."""

from __future__ import annotations

from collections.abc import Sequence
from ipaddress import ip_address

import pytest

from tests.identities import ALICE
from tests.sim.walks import meet
from tests.sim.worlds import run
from warpgate_trio import Node, NodeConfig, PeerAddress, Pipe, Servers, open_node
from warpgate_trio import host as machine
from warpgate_trio.config import InterfacesConfig
from warpgate_trio.servers.stun import open_stun_server
from warpgate_trio.sim import Network, presets
from warpgate_trio.testing import simulated_hosts
from warpgate_trio.testing.worlds import PeerPair


@pytest.mark.parametrize(
    ("exclude", "names"), [((), ["eth0", "eth1"]), (("eth1",), ["eth0"]), (("eth0",), ["eth1"]), (("eth*",), [])]
)
def test_what_is_excluded_is_neither_published_nor_measured(exclude: Sequence[str], names: Sequence[str]) -> None:
    async def world(net: Network) -> None:
        home, tunnel = net.lan("home", nat=presets.LINUX), net.lan("vpn", nat=presets.CGN)
        alice, server = home.host("alice"), net.host("server")
        tunnel.attach(alice)
        own = {each.name: {address for address, _ in each.addresses} for each in alice.interfaces}
        async with simulated_hosts():
            with server:
                stun = open_stun_server(host=server.ip, port=3478)
                await stun.__aenter__()
            with alice:
                config = NodeConfig(
                    servers=Servers(stun=[f"stun:{server.ip}"]), interfaces=InterfacesConfig(exclude=exclude)
                )
                async with open_node(config, identity=ALICE) as node:
                    expected = set().union(*(own[name] for name in names)) or {"127.0.0.1", "::1"}
                    assert {str(end.ip) for _, end in node.address.endpoints()} == expected
                    report = await node.netcheck()
                    assert [path.interface for path in report.paths] == names
                    if names:
                        assert {path.address for path in report.paths} == expected
                        assert report.paths[0].main
            with server:
                await stun.__aexit__(None, None, None)

    run(world)


def test_the_states_of_ipv6_addresses() -> None:
    """As in the kernel: deprecated addresses are avoided as sources, temporary ones preferred, and not published."""

    async def world(net: Network) -> None:
        home = net.lan("home", nat=presets.LINUX)
        alice = home.host("alice")
        first = alice.interfaces[0]
        second, third = (home.give(first, alice.ip6[:-1] + suffix) for suffix in ("a7", "a8"))
        there = ip_address(net.host("server").ip6)
        async with simulated_hosts():
            with alice:
                async with open_node(NodeConfig(), identity=ALICE) as node:

                    def seen() -> tuple[str, set[str]]:
                        source = machine.current().source_address(there)
                        return str(source), {str(end.ip) for _, end in node.address.endpoints() if end.af == 6}

                    assert seen() == (alice.ip6, {alice.ip6, second})
                    first.deprecated.add(alice.ip6)
                    assert seen() == (second, {second, third})
                    first.temporary.add(third)
                    assert seen() == (third, {second})
                    first.deprecated |= {second, third}
                    assert seen() == (third, {alice.ip6, second})

    run(world, ipv6=True)


@pytest.mark.slow("a spray")
@pytest.mark.parametrize("spare", [40, 0])
def test_a_spray_takes_the_sockets_that_there_are(spare: int, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")

    def few(net: Network) -> None:
        net.hosts["alice"].spare_descriptors = spare

    async def spray(node: Node, address: PeerAddress) -> Pipe:
        return await node.connect(address, plugin="random_probe", timeout=8)

    pair = PeerPair.between(presets.LINUX_SYMMETRIC, presets.LINUX, rtt=0.04)
    result = meet(pair, spray, on_network=few)
    sprays = [record for record in caplog.records if record.getMessage().startswith("spray: ")]
    sockets = [record.getMessage().split()[1] for record in sprays if "sockets" in record.getMessage()]
    if spare:
        assert sockets == [str(spare)]
    else:
        assert sockets == []
        assert not result.connected
