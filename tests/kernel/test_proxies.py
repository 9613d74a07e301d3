"""A machine whose firewall lets it reach a proxy only: it registers through the proxy, and its callee dials back."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Final

import pytest
import trio

from tests.certificates import Authority
from tests.end_to_end.processes import Command, started
from tests.kernel.lab import BYSTANDER, SECOND, SERVER, Host, Lab, open_lab
from tests.kernel.namespaces import SocketsOfNamespaces
from tests.kernel.run import configuration, coturn_on
from tests.kernel.wire import Wire
from tests.proxies import PASSWORD, USER, running, squid, tinyproxy
from tests.requirements import find_program
from warpgate_trio.servers.rendezvous import RelayRules, open_rendezvous

PORT: Final = 3128
PROXY: Final = f"http://{USER}:{PASSWORD}@{BYSTANDER}:{PORT}"
WSS, MQTTS = f"wss://{SERVER}", f"mqtts://{SERVER}:443"
FIREWALL: Final = f"""
table inet company {{
    chain out {{
        type filter hook output priority 0; policy drop;
        oif lo accept
        ct state established accept
        ip daddr {BYSTANDER} tcp dport {PORT} accept
    }}
}}
"""
"""The firewall lets out connections to the proxy, and replies to connections from outside."""
CLOSED: Final = """
table inet closed {
    chain in {
        type filter hook input priority 0; policy drop;
        iif lo accept
        ct state established accept
    }
}
"""
BUDGETS: Final = "[budgets]\nsignal = 2.0"
PATIENT: Final = "[budgets]\nsignal = 20.0\ndirect_min = 20.0\ndirect_max = 20.0"
"""Budgets for when the direct phase is the only one: it ends with its first path, and a busy machine is slow."""


@asynccontextmanager
async def company(folder: Path) -> AsyncGenerator[tuple[Lab, Authority]]:
    """A lab whose first home is behind the firewall, and the authority that signs its servers' certificates."""
    trio.socket.set_custom_socket_factory(SocketsOfNamespaces())
    with Wire() as wire:
        async with open_lab(wire, "open", "open") as lab:
            lab.homes[0].host.machine.rules(FIREWALL)
            yield lab, Authority(folder)


async def call(
    lab: Lab, folder: Path, servers: dict[str, list[str]], environment: dict[str, str], *, phases: str = "direct"
) -> dict[str, object]:
    """The event of `connect` behind the firewall, for a call to `listen` outside."""
    config = folder / "config.toml"
    budgets = PATIENT if phases == "direct" else BUDGETS
    config.write_text(configuration(servers, budgets).replace("[servers]", '[servers]\nca_file = "authority.pem"'))
    words = ("--config", config, "--json")
    inside, outside = (home.host for home in lab.homes)
    async with _started(outside, {}, "listen", *words, "--echo", "--allow-any") as listener:
        address = (await listener.event())["address"]
        async with _started(
            inside, environment, "connect", address, *words, "--echo-test", "1000", "--phases", phases
        ) as caller:
            event = await caller.event()
            await caller.code()
        listener.interrupt()
        await listener.code()
        return event


def _started(host: Host, environment: dict[str, str], *words: str | Path) -> AbstractAsyncContextManager[Command]:
    machine = host.machine
    return started(*words, within=machine.command(()), pass_fds=[machine.fd], env=environment)


@pytest.mark.slow("real programs in namespaces")
@pytest.mark.needs("network_namespaces", "nft", "tun", "squid")
async def test_by_squid_to_a_rendezvous_server(tmp_path: Path) -> None:
    async with company(tmp_path) as (lab, authority):
        with squid(PORT, host=BYSTANDER, login=True, machine=lab.bystander.machine), lab.server:
            async with open_rendezvous(host=SERVER, port=443, ssl_context=authority.server(SERVER)):
                event = await call(lab, tmp_path, {"websocket": [WSS]}, {"HTTPS_PROXY": PROXY})
    assert (event["event"], event.get("plugin"), event.get("echo_ok")) == ("connected", "reverse_connect", True), event


@pytest.mark.slow("real programs in namespaces")
@pytest.mark.needs("network_namespaces", "nft", "tun", "tinyproxy", "mosquitto")
async def test_by_tinyproxy_to_a_broker(tmp_path: Path) -> None:
    async with company(tmp_path) as (lab, authority):
        authority.server(SERVER)
        certificate = tmp_path / f"{SERVER}.pem"
        (tmp_path / "mosquitto.conf").write_text(
            f"listener 443 {SERVER}\ncertfile {certificate}\nkeyfile {certificate}\nallow_anonymous true\nuser root\n"
        )
        program = find_program("mosquitto")
        assert program is not None
        command = [program, "-c", str(tmp_path / "mosquitto.conf")]
        with (
            tinyproxy(PORT, host=BYSTANDER, login=True, machine=lab.bystander.machine),
            running(command, SERVER, 443, tmp_path, machine=lab.server.machine),
        ):
            event = await call(lab, tmp_path, {"mqtt": [MQTTS]}, {"ALL_PROXY": PROXY})
    assert (event["event"], event.get("plugin"), event.get("echo_ok")) == ("connected", "reverse_connect", True), event


@pytest.mark.slow("real programs in namespaces, and a walk through all its phases")
@pytest.mark.needs("network_namespaces", "nft", "tun", "squid")
async def test_by_squid_to_a_rendezvous_server_that_relays_where_nothing_comes_in_either(tmp_path: Path) -> None:
    async with company(tmp_path) as (lab, authority):
        lab.homes[0].host.machine.rules(FIREWALL + CLOSED)
        with squid(PORT, host=BYSTANDER, login=True, machine=lab.bystander.machine), lab.server:
            relay = RelayRules(open_to_all=True)
            async with open_rendezvous(host=SERVER, port=443, ssl_context=authority.server(SERVER), relay=relay):
                event = await call(lab, tmp_path, {"websocket": [WSS]}, {"HTTPS_PROXY": PROXY}, phases="direct,relay")
    assert (event["event"], event.get("plugin"), event.get("echo_ok")) == ("connected", "ws_relay", True), event


@pytest.mark.slow("real programs in namespaces")
@pytest.mark.needs("network_namespaces", "nft", "tun", "tinyproxy", "turnserver")
async def test_by_tinyproxy_to_a_turn_server_at_port_443(tmp_path: Path) -> None:
    async with company(tmp_path) as (lab, authority):
        lab.homes[0].host.machine.rules(FIREWALL + CLOSED)
        authority.server(SECOND)
        with tinyproxy(PORT, host=BYSTANDER, login=True, machine=lab.bystander.machine), lab.server:
            async with (
                open_rendezvous(host=SERVER, port=443, ssl_context=authority.server(SERVER)),
                coturn_on(lab.second_server, tmp_path, port=443, certificate=tmp_path / f"{SECOND}.pem"),
            ):
                servers = {"websocket": [WSS], "turn": [f"turns:user:secret@{SECOND}:443"]}
                event = await call(lab, tmp_path, servers, {"HTTPS_PROXY": PROXY}, phases="direct,relay")
    assert (event["event"], event.get("plugin"), event.get("echo_ok")) == ("connected", "turn", True), event


@pytest.mark.slow("real programs in namespaces, and a walk that fails")
@pytest.mark.needs("network_namespaces", "nft", "tun")
async def test_without_the_proxy_there_is_no_way_out(tmp_path: Path) -> None:
    async with company(tmp_path) as (lab, authority):
        with lab.server:
            async with open_rendezvous(host=SERVER, port=443, ssl_context=authority.server(SERVER)):
                event = await call(lab, tmp_path, {"websocket": [WSS]}, {"HTTPS_PROXY": PROXY, "no_proxy": SERVER})
    assert (event["event"], event.get("verdict")) == ("failed", "no_signal"), event
