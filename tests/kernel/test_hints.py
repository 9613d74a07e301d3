"""A stranger's address may name servers that are internal services of the machine: none of them is contacted."""

from __future__ import annotations

from contextlib import closing
from ipaddress import ip_address

import pytest
import trio

from tests.kernel.machines import inside
from tests.kernel.namespaces import Namespace
from warpgate_trio import ConnectError, Identity, NodeConfig, Servers, open_node
from warpgate_trio.address import AddressInterface, Endpoint, EndpointKind, PeerAddress, Transport
from warpgate_trio.config import Budgets
from warpgate_trio.host import RealHost
from warpgate_trio.nurseries import open_background_nursery
from warpgate_trio.servers.rendezvous import open_rendezvous

INSIDE = (
    ("127.0.0.1", 8500, "ws://127.0.0.1:8500/v1/agent/service/deregister/web?a=b"),
    ("127.0.0.1", 9200, "ws://localhost:9200"),
    ("169.254.169.254", 80, "ws://169.254.169.254/latest/meta-data/"),
    ("10.77.0.1", 2375, "ws://admin:hunter2@10.77.0.1:2375/containers/create"),
    ("10.77.0.1", 2376, "ws://10.77.0.1:2376"),
    ("203.0.113.9", 8080, "ws://203.0.113.9:8080"),  # a public address of this machine
    ("127.0.0.1", 1883, "mqtt://127.0.0.1:1883"),
)
"""Address and port of each service, and the URL that the stranger gives for it; the machine has these addresses."""


@pytest.mark.slow("a machine is made, and a walk fails in all its phases")
@pytest.mark.needs("network_namespaces")
async def test_a_strangers_address_reaches_no_service_inside() -> None:
    heard: list[str] = []

    async def service(address: str, port: int, task_status: trio.TaskStatus[None]) -> None:
        with trio.socket.socket() as sock:
            await sock.bind((address, port))
            sock.listen(8)
            task_status.started()
            while True:
                connection, _ = await sock.accept()
                heard.append(f"{address}:{port}")
                connection.close()

    now = int(RealHost().wall_time())
    endpoint = Endpoint.make(
        transport=Transport.TCP, kind=EndpointKind.EXT, ip=ip_address("203.0.113.77"), port=9, prefix=None
    )
    budgets = Budgets(direct_min=0.1, direct_max=0.2, punch=0.1, spray=0.1, signal=0.3)
    with closing(Namespace("machine")) as namespace:
        namespace.ip_commands(
            "addr add 169.254.169.254/32 dev lo",
            "addr add 10.77.0.1/32 dev lo",
            "link add eth9 type veth peer name eth9p",
            "addr add 203.0.113.9/24 dev eth9",
            "link set eth9 up",
            "link set eth9p up",
        )
        async with inside(namespace), open_rendezvous() as server, open_background_nursery() as nursery:
            for address, port, _ in INSIDE:
                await nursery.start(service, address, port)
            config = NodeConfig(servers=Servers(websocket=[server.url]), budgets=budgets)
            async with open_node(config, identity=Identity.generate()) as node:
                await node.wait_signals()
                for start in range(0, len(INSIDE), 4):  # a node visits at most four servers of one address record
                    stranger = PeerAddress.issue(
                        Identity.generate(),
                        seq=now,
                        issued_at=now,
                        expires_at=now + 600,
                        host_salt=bytes(8),
                        host_id=bytes(16),
                        signals=[url for _, _, url in INSIDE[start : start + 4]],
                        interfaces=(AddressInterface(1, (endpoint,)),),
                    )
                    with pytest.raises(ConnectError):
                        await node.auto_connect(str(stranger), timeout=1)
    assert heard == []
