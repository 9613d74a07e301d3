"""Whole nodes whose servers only a proxy can reach: they register through it, and report its refusals."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import trio

from tests.certificates import Authority
from tests.hangs import HANG
from tests.identities import ALICE, BOB
from tests.integration.test_mqtt_nodes import call_back, wait_servers
from tests.nodes import QUICK, LoopbackHost, address_of, closed_port, loopback_node
from tests.ports import free_port
from tests.proxies import PASSWORD, USER, says, squid
from tests.servers_mqtt import make_mosquitto
from tests.waiting import wait_until
from warpgate_trio import ConfigError, ConnectError, Node, NodeConfig, Servers, anyone
from warpgate_trio.config import NetworkConfig
from warpgate_trio.report import Verdict
from warpgate_trio.servers.rendezvous import open_rendezvous
from warpgate_trio.signal import ServerState
from warpgate_trio.signal import keeper as keeper_module

SIGNAL, BROKER = "signal.example.org", "broker.example.org"


def company(**variables: str) -> LoopbackHost:
    """A host with these environment variables."""
    return LoopbackHost(variables=variables)


def config(*servers: str, proxy: str = "env", ca_file: Path | None = None) -> NodeConfig:
    return NodeConfig(
        servers=Servers(
            websocket=[url for url in servers if url.startswith("ws")],
            mqtt=[url for url in servers if url.startswith("mqtt")],
            ca_file=ca_file,
        ),
        network=NetworkConfig(proxy=proxy),
        budgets=QUICK,
    )


async def wait_error(node: Node) -> str:
    """Waits for an error of the node's only server, and returns it."""
    with trio.fail_after(HANG):
        await wait_until(lambda: node.signal_servers[0].last_error is not None)
    return node.signal_servers[0].last_error or ""


@pytest.mark.needs("squid", "mosquitto")
@pytest.mark.slow("squid and mosquitto are started, and TLS is spoken with both servers by two nodes")
async def test_two_nodes_find_each_other_by_servers_that_only_the_proxy_can_resolve(tmp_path: Path) -> None:
    authority, port, proxy = Authority(tmp_path), free_port(), free_port()
    url = f"wss://{SIGNAL}:{port}"
    broker = make_mosquitto(tmp_path, tls=authority, name=BROKER)
    try:
        broker.start()
        with squid(proxy, allowed=f"{port} {broker.port}", login=True, names=(SIGNAL, BROKER)):
            async with open_rendezvous(port=port, ssl_context=authority.server(SIGNAL), public_urls=[url]):
                named = f"http://{USER}:{PASSWORD}@127.0.0.1:{proxy}"
                by_url = config(url, proxy=named, ca_file=authority.ca_file)
                by_both = config(url, f"mqtts://{BROKER}:{broker.port}", ca_file=authority.ca_file)
                by_broker = config(f"mqtts://{BROKER}:{broker.port}", proxy=named, ca_file=authority.ca_file)
                machine = company(HTTPS_PROXY=named, NO_PROXY="intranet.example")
                async with (
                    loopback_node(BOB, by_both, authorize=anyone, host=machine) as bob,
                    loopback_node(ALICE, by_url, authorize=anyone) as alice,
                ):
                    await wait_servers(alice, bob)
                    await call_back(alice, bob)
                    report = await alice.netcheck(servers=True)
                    assert [(each.url, each.reachable) for each in report.servers] == [(url, True)]
                async with (
                    loopback_node(BOB, by_both, authorize=anyone, host=machine) as bob,
                    loopback_node(ALICE, by_broker, authorize=anyone) as alice,
                ):
                    await wait_servers(alice, bob)
                    await call_back(alice, bob)
    finally:
        broker.kill()


@pytest.mark.slow("a walk fails in all its phases")
@pytest.mark.usefixtures("jumping_clock")
async def test_what_the_proxy_says_is_seen_wherever_the_server_is(
    own_logging: None, caplog: pytest.LogCaptureFixture
) -> None:
    async with says(b"HTTP/1.1 407 Who\r\nProxy-Authenticate: Basic\r\n\r\n") as port:
        servers = config(f"wss://{SIGNAL}", proxy=f"http://ann:hunter2@127.0.0.1:{port}")
        sentence = (
            f"the proxy 127.0.0.1:{port} does not accept the login of 'ann': "
            "check name and password in the proxy's URL (407 Who)"
        )
        async with loopback_node(ALICE, servers) as alice:
            assert await wait_error(alice) == sentence
            report = await alice.netcheck(timeout=HANG)
            assert [each.error for each in report.servers] == [sentence]
            report = await alice.netcheck(servers=True, timeout=HANG)
            assert [each.error for each in report.servers] == [sentence]
            with pytest.raises(ConnectError) as failed:
                await alice.auto_connect(str(address_of(BOB, port=await closed_port())))
            assert failed.value.verdict is Verdict.NO_SIGNAL
            assert any(sentence in each for each in failed.value.report.lacks), failed.value.report.lacks
        assert f"not connected: {sentence}" in caplog.text
        assert "hunter2" not in caplog.text


@pytest.mark.slow("two nodes that wait for nothing")
@pytest.mark.usefixtures("jumping_clock")
async def test_a_proxy_that_holds_the_line_is_told_from_a_silent_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keeper_module, "CONNECT_TIMEOUT", 0.05)
    async with says() as port:
        async with loopback_node(ALICE, config(f"wss://{SIGNAL}", proxy=f"http://127.0.0.1:{port}")) as alice:
            assert await wait_error(alice) == f"no answer within 0 s from the proxy 127.0.0.1:{port}"
    async with says(b"HTTP/1.1 200 OK\r\n\r\n") as port:
        async with loopback_node(ALICE, config(f"wss://{SIGNAL}", proxy=f"http://127.0.0.1:{port}")) as alice:
            assert await wait_error(alice) == "no answer within 0 s"


@pytest.mark.usefixtures("jumping_clock")
async def test_a_name_that_is_the_proxys_affair_is_not_what_was_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    """A STUN server of the same name is reached without the proxy, and its name cannot be resolved here."""
    monkeypatch.setattr(keeper_module, "CONNECT_TIMEOUT", 0.05)

    class NoNames(trio.abc.HostnameResolver):
        async def getaddrinfo(self, host: Any, *_: Any, **__: Any) -> Any:
            raise trio.socket.gaierror(trio.socket.EAI_NONAME, "unknown")

        async def getnameinfo(self, sockaddr: Any, flags: int) -> Any:
            raise NotImplementedError

    previous = trio.socket.set_custom_hostname_resolver(NoNames())
    try:
        async with says() as port:
            servers = Servers(websocket=[f"wss://{SIGNAL}"], stun=[f"stun:{SIGNAL}"])
            network = NetworkConfig(proxy=f"http://127.0.0.1:{port}")
            async with loopback_node(ALICE, NodeConfig(servers=servers, network=network)) as alice:
                assert await wait_error(alice) == f"no answer within 0 s from the proxy 127.0.0.1:{port}"
    finally:
        trio.socket.set_custom_hostname_resolver(previous)


@pytest.mark.usefixtures("jumping_clock")
async def test_a_server_that_refuses_behind_the_proxy_is_not_the_proxy() -> None:
    async with says(b"HTTP/1.1 200 OK\r\n\r\n", b"HTTP/1.1 403 Forbidden\r\n\r\n", None) as port:
        async with loopback_node(ALICE, config(f"ws://{SIGNAL}", proxy=f"http://127.0.0.1:{port}")) as alice:
            said = await wait_error(alice)
            assert "proxy" not in said
            assert f"ws://{SIGNAL}" in said


@pytest.mark.usefixtures("jumping_clock")
async def test_netcheck_says_that_it_was_the_proxy_that_did_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("warpgate_trio.netcheck.probes.PATIENCE", 0.05)
    async with says() as port:
        async with loopback_node(ALICE, config(f"wss://{SIGNAL}", proxy=f"http://127.0.0.1:{port}")) as alice:
            report = await alice.netcheck(servers=True, timeout=HANG)
            assert [each.error for each in report.servers] == [
                f"no answer within 0.05 s from the proxy 127.0.0.1:{port}"
            ]


@pytest.mark.usefixtures("jumping_clock")
async def test_this_machines_own_servers_are_never_behind_a_proxy() -> None:
    async with open_rendezvous() as server:
        nowhere = f"http://127.0.0.1:{await closed_port()}"
        async with loopback_node(ALICE, config(server.url), host=company(ALL_PROXY=nowhere)) as alice:
            await wait_servers(alice)
        async with loopback_node(ALICE, config(server.url, proxy=nowhere)) as alice:
            await wait_servers(alice)


@pytest.mark.usefixtures("jumping_clock")
async def test_a_variable_that_names_no_proxy_is_told_before_anything_is_tried() -> None:
    machine = company(HTTPS_PROXY="gopher://ann:hunter2@a:1")
    with pytest.raises(ConfigError, match=r"^environment HTTPS_PROXY = 'gopher://\*\*\*@a:1': expected "):
        async with loopback_node(ALICE, config(f"wss://{SIGNAL}"), host=machine):
            pass
    async with loopback_node(ALICE, config(f"ws://{SIGNAL}"), host=machine) as alice:
        assert alice.signal_servers[0].state is not ServerState.CONNECTED


@pytest.mark.usefixtures("jumping_clock")
async def test_the_log_says_by_which_proxy(own_logging: None, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "warpgate_trio.signal.keeper")
    async with loopback_node(ALICE, config(f"wss://{SIGNAL}", proxy="http://ann:hunter2@127.0.0.1:9")):
        pass
    assert f"signal server wss://{SIGNAL}: by the proxy 127.0.0.1:9" in caplog.text
    assert "hunter2" not in caplog.text
