"""`Node.netcheck` over real sockets on loopback, with each kind of server: alive, dead, or of another kind."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
import trio

from tests.identities import ALICE
from tests.nodes import loopback_node
from tests.ports import free_port
from tests.servers_mqtt import Broker, make_mosquitto
from tests.servers_mqtt import amqtt as amqtt
from tests.servers_mqtt import any_broker as any_broker
from tests.servers_mqtt import libraries as libraries
from tests.servers_mqtt import mosquitto_fixture as mosquitto_fixture
from warpgate_trio import NodeConfig, Servers
from warpgate_trio.netcheck import NetcheckReport
from warpgate_trio.servers.ntp import open_ntp
from warpgate_trio.servers.rendezvous import open_rendezvous
from warpgate_trio.servers.stun import open_stun_server
from warpgate_trio.servers.turn import open_turn_server
from warpgate_trio.servers.turn_credentials import TurnCredentials


def outcomes(report: NetcheckReport) -> dict[tuple[str, str], bool | None]:
    return {(each.url, each.transport): each.reachable for each in report.servers}


@pytest.mark.slow("a broker's answers, and dead servers' patience")
async def test_every_kind_of_server(any_broker: Broker) -> None:
    dead = free_port()
    async with (
        open_rendezvous() as rendezvous,
        open_stun_server(host="127.0.0.1", port=0) as stun,
        open_turn_server(TurnCredentials("realm", {"user": "secret"})) as turn,
        open_ntp() as ntp,
    ):
        urls = {
            "ws": f"ws://127.0.0.1:{rendezvous.port}",
            "mqtt": f"mqtt://name:secret@127.0.0.1:{any_broker.port}",
            "stun": stun.urls[0],
            "ntp": ntp.url,
        }
        place, other = f"127.0.0.1:{turn.address[1]}", f"localhost:{turn.address[1]}"
        config = NodeConfig(
            servers=Servers(
                websocket=[urls["ws"], f"ws://127.0.0.1:{dead}", f"wss://127.0.0.1:{rendezvous.port}"],
                mqtt=[urls["mqtt"], f"mqtt://127.0.0.1:{rendezvous.port}"],
                stun=[urls["stun"], f"stun:127.0.0.1:{dead}", "stuns:127.0.0.1"],
                turn=[
                    f"turn:user:secret@{place}",
                    f"turn:user:secret@{place}?transport=tcp",
                    f"turn:me:secret@{other}",
                ],
                ntp=[urls["ntp"], f"ntp://127.0.0.1:{dead}"],
            )
        )
        async with loopback_node(ALICE, config) as node:
            report = await node.netcheck(servers=True)
            seen = await node.netcheck()
        assert turn.statistics().allocations == 0
    assert outcomes(report) == {
        (urls["ws"], "tcp"): True,
        (f"ws://127.0.0.1:{dead}", "tcp"): False,
        (f"wss://127.0.0.1:{rendezvous.port}", "tcp"): False,
        (urls["mqtt"].replace("secret", "***"), "tcp"): True,
        (f"mqtt://127.0.0.1:{rendezvous.port}", "tcp"): False,
        (urls["stun"], "udp"): True,
        (urls["stun"], "tcp"): True,
        (f"stun:127.0.0.1:{dead}", "udp"): False,
        (f"stun:127.0.0.1:{dead}", "tcp"): False,
        ("stuns:127.0.0.1", "tcp"): None,
        (f"turn:{place}", "udp"): True,
        (f"turn:{place}?transport=tcp", "tcp"): True,
        (f"turn:{other}", "udp"): False,
        (urls["ntp"], "udp"): True,
        (f"ntp://127.0.0.1:{dead}", "udp"): False,
    }
    assert [each.error for each in report.servers if each.kind == "turn"][:2] == [None, None]
    assert "401 Unauthorized" in str([each.error for each in report.servers if each.kind == "turn"][2])
    assert {each.reachable for each in seen.servers if each.kind == "turn"} == {None}
    for each in report.servers:
        assert (each.latency_ms is not None) is (each.reachable is True)
        assert (each.error is not None) is (each.reachable is not True)
        assert each.latency_ms is None or 0 <= each.latency_ms < 1000
    assert "secret" not in msgspec.json.encode(report).decode()
    assert "secret" not in msgspec.json.encode(seen).decode()
    assert report.clock.agreeing == (urls["ntp"],)
    assert {each.reachable for each in seen.servers if each.kind in ("websocket", "mqtt")} == {True, False}
    assert not any(each.transport == "tcp" for each in seen.servers if each.url.startswith("stun:"))
    (path,) = report.paths
    assert (path.interface, path.main, path.udp.translated) == ("lo", True, False)
    assert "within this network" in report.unknown[0]


async def test_a_closed_node() -> None:
    async with loopback_node(ALICE, NodeConfig()) as node:
        pass
    with pytest.raises(trio.ClosedResourceError):
        await node.netcheck()


@pytest.mark.slow("an echo that does not come, twice")
@pytest.mark.needs("mosquitto")
async def test_a_broker_that_drops_everything_is_said_not_to_work(tmp_path: Path) -> None:
    broker = make_mosquitto(tmp_path, acl="")
    try:
        broker.start()
        config = NodeConfig(servers=Servers(mqtt=[str(broker.url)]))
        async with loopback_node(ALICE, config) as node:
            for report in (await node.netcheck(), await node.netcheck(servers=True)):
                (row,) = report.servers
                assert row.reachable is False
                assert "no echo within" in (row.error or "")
                assert any(each.startswith("no signal server answers") for each in report.cannot)
    finally:
        broker.kill()
