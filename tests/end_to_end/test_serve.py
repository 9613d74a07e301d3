"""`serve` for a long time and in front of strangers: renewed certificates, public names, open files, two addresses."""

from __future__ import annotations

import os
import re
import signal
import socket
import ssl
import subprocess
from collections.abc import Iterator
from contextlib import AsyncExitStack, contextmanager
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import urlopen

import pytest
import trio

from tests.certificates import Authority
from tests.end_to_end.processes import ran, started
from tests.hangs import HANG
from tests.identities import ALICE, BOB
from tests.nginx import free_ports, nginx
from warpgate_trio.config import ServerUrl, TurnServer, load_config
from warpgate_trio.errors import SignalUnavailable
from warpgate_trio.names import Names
from warpgate_trio.nurseries import open_background_nursery
from warpgate_trio.servers.rendezvous_frames import ANY_INSTANCE
from warpgate_trio.signal import Delivery, open_channel
from warpgate_trio.signal.circuits import Leaving, Ringing
from warpgate_trio.turn.relays import Relays

pytestmark = pytest.mark.slow("starts processes; each imports Trio and cryptography for 0.4 s")

LOOPBACK = ("serve", "--host", "127.0.0.1", "--port", "0", "--no-stun", "--no-ntp")


async def shown_certificate(port: int) -> bytes:
    """The certificate that a client receives now."""
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    async with await trio.open_ssl_over_tcp_stream("127.0.0.1", port, ssl_context=context) as stream:
        await stream.do_handshake()
        der = stream.getpeercert(binary_form=True)
    assert der is not None
    return bytes(der)


@pytest.mark.needs("linux")
async def test_a_renewed_certificate_comes_into_use_at_sighup(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    authority.server("127.0.0.1")
    pem = tmp_path / "127.0.0.1.pem"
    async with started(*LOOPBACK, "--tls-cert", pem, "--tls-key", pem, "--json") as serve:
        url = ServerUrl.parse((await serve.event())["servers"]["websocket"][0])
        async with open_channel(url, ALICE, ssl_context=authority.client()) as channel:
            first = await shown_certificate(url.port)
            authority.server("127.0.0.1")  # another key and certificate in the same file
            serve.process.send_signal(signal.SIGHUP)
            await serve.wait_err("was read again")
            second = await shown_certificate(url.port)
            assert second != first
            pem.write_text("what a renewal that went wrong leaves", encoding="ascii")
            serve.process.send_signal(signal.SIGHUP)
            await serve.wait_err("the certificate stays as it was: --tls-cert")
            assert await shown_certificate(url.port) == second
            assert await channel.send(ALICE.public_key, b"x") is Delivery.DELIVERED, "nobody was disconnected"
        serve.process.send_signal(signal.SIGTERM)
        assert await serve.code() == 0


@pytest.mark.needs("linux")
async def test_sighup_does_not_end_a_server_without_a_certificate() -> None:
    async with started(*LOOPBACK, "--json") as serve:
        url = ServerUrl.parse((await serve.event())["servers"]["websocket"][0])
        serve.process.send_signal(signal.SIGHUP)
        await serve.wait_err("no certificate is configured")
        async with open_channel(url, ALICE):
            pass


@pytest.mark.needs("linux", "nginx")
async def test_serve_behind_nginx_that_does_the_tls(tmp_path: Path) -> None:
    """Two nodes call each other with the printed configuration."""
    authority = Authority(tmp_path)
    authority.server("127.0.0.1")
    ports = free_ports()
    url = f"wss://127.0.0.1:{ports.https}/rendezvous"
    words = ("--public-url", url, "--trust-proxy", "127.0.0.1", "--public-url", "stun:relay.example")
    async with started("serve", "--host", "127.0.0.1", "--port", "0", "--no-ntp", "--stun-port", "0", *words) as serve:
        await serve.wait_err("until interrupted")
        listening = re.search(r"ws://127\.0\.0\.1:(\d+)", serve.stderr_text)
        assert listening is not None
        assert serve.out.decode().count("://") == 1
        assert '"stun:relay.example"' in serve.out.decode()
        config = tmp_path / "config.toml"
        config.write_text(f'[servers]\nwebsocket = ["{url}"]\nca_file = "{authority.ca_file.name}"\n', encoding="utf-8")
        assert url in serve.out.decode()
        with nginx(tmp_path, ports, int(listening[1]), tmp_path / "127.0.0.1.pem"):
            common = ("--ephemeral", "--config", config)
            async with started("listen", *common, "--allow-any", "--json", "--echo") as listen:
                event = await listen.event()
                assert event["signals"] == [url]
                connect = await ran(
                    "connect", event["address"], *common, "--plugin", "reverse_connect", "--echo-test", "1000", "--json"
                )
                assert connect.process.returncode == 0, connect.stderr_text


@pytest.mark.needs("linux")  # where all of 127/8 is this machine
async def test_serve_stays_below_its_limit_of_open_files() -> None:
    """Clients of one network cannot use up all files: enough are left for other clients and for STUN."""
    prlimit = ("prlimit", "--nofile=160:160")
    words = ("serve", "--host", "127.0.0.1", "--port", "0", "--stun-port", "0", "--no-ntp", "--json")
    async with started(*words, within=prlimit) as serve, AsyncExitStack() as stack:
        servers = (await serve.event())["servers"]
        url, stun = (ServerUrl.parse(servers[key][0]) for key in ("websocket", "stun"))
        for port in (url.port, stun.port):
            for number in range(150):
                await stack.enter_async_context(
                    await trio.open_tcp_stream("127.0.0.1", port, local_address=f"127.1.0.{1 + number % 4}")
                )
        async with open_channel(url, ALICE) as channel:
            assert await channel.send(ALICE.public_key, b"x") is Delivery.DELIVERED
        assert len(os.listdir(f"/proc/{serve.process.pid}/fd")) < 160
        assert "accepted" not in serve.stderr_text


@pytest.mark.needs("linux")
async def test_serve_raises_its_limit_of_open_files() -> None:
    async with started(*LOOPBACK, "--json", within=("prlimit", "--nofile=100:3000")) as serve:
        await serve.event()
        limits = Path(f"/proc/{serve.process.pid}/limits").read_text(encoding="ascii")
    assert re.search(r"Max open files +3000 +3000 ", limits)


async def page(url: str) -> tuple[int, str]:
    """GET a URL; returns the status and the body."""

    def get() -> tuple[int, str]:
        try:
            with urlopen(url) as response:
                return response.status, response.read().decode()
        except HTTPError as error:
            return error.code, error.read().decode()

    return await trio.to_thread.run_sync(get)


@pytest.mark.needs("linux")
async def test_a_service_manager_and_who_watches_hear_of_the_start_and_of_the_end(tmp_path: Path) -> None:
    """A draining server tells its clients to go elsewhere (WebSocket close code 1001)."""
    words = (
        "serve",
        "--host",
        "127.0.0.1",
        "--port",
        "0",
        "--stun-port",
        "0",
        "--no-ntp",
        "--health",
        "127.0.0.1:0",
        "--drain",
        "30",
        "--json",
    )
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.setblocking(False)
        told = trio.socket.from_stdlib_socket(manager.dup())
        extra = {"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "60000000"}
        with told, trio.fail_after(HANG):
            async with started(*words, env=extra) as serve:
                ready = await serve.event()
                assert (await told.recv(1000)).decode().startswith("READY=1\nSTATUS=serving on ws://127.0.0.1:")
                assert await told.recv(1000) == b"WATCHDOG=1"
                assert await page(ready["health"] + "/healthz") == (200, "ok\n")
                url = ServerUrl.parse(ready["servers"]["websocket"][0])
                async with open_channel(url, ALICE) as channel:
                    status, text = await page(ready["health"] + "/metrics")
                    assert status == 200
                    assert "warpgate_rendezvous_connections 1\n" in text
                    assert "warpgate_turn_allocations 0\n" in text
                    serve.process.send_signal(signal.SIGTERM)
                    assert (await told.recv(1000)).startswith(b"STOPPING=1\n")
                    with pytest.raises(SignalUnavailable, match="1001"):
                        await channel.receive()
                assert await serve.code() == 0
                assert "shutting down" in serve.stderr_text


@pytest.mark.needs("linux")
async def test_a_second_sigterm_waits_for_nobody() -> None:
    """A relay in use delays the end of a draining server; a second SIGTERM ends it at once."""
    words = ("serve", "--host", "127.0.0.1", "--port", "0", "--stun-port", "0", "--no-ntp", "--health", "127.0.0.1:0")
    async with started(*words, "--drain", "3600", "--json") as serve:
        ready = await serve.event()
        names = Names()
        relays = Relays([TurnServer(ready["servers"]["turn"][0])], names=names)
        async with names.running(), open_background_nursery() as nursery, relays.running(nursery):
            await relays.open()
            serve.process.send_signal(signal.SIGTERM)
            await serve.wait_err("shutting down")
            assert await page(ready["health"] + "/healthz") == (503, "shutting down\n")
            serve.process.send_signal(signal.SIGTERM)
            assert await serve.code() == 0


@pytest.mark.needs("linux")
async def test_relayed_pipes_have_most_of_the_time_to_leave() -> None:
    words = ("serve", "--host", "127.0.0.1", "--port", "0", "--no-stun", "--no-ntp", "--open")
    async with started(*words, "--drain", "3600", "--json") as serve:
        url = ServerUrl.parse((await serve.event())["servers"]["websocket"][0])
        async with open_channel(url, ALICE) as alice, open_channel(url, BOB) as bob:
            circuit = alice.circuit()
            await circuit.call(BOB.public_key, ANY_INSTANCE, b"hello")
            ringing = await bob.receive()
            assert isinstance(ringing, Ringing)
            await ringing.circuit.answer(b"yes")
            assert await alice.receive() == b"yes"
            serve.process.send_signal(signal.SIGTERM)
            assert await alice.receive() == Leaving(circuit.local)
            assert await circuit.send(memoryview(b"x")) == 1
            assert await ringing.circuit.recv(1) == b"x"
            circuit.close()
            assert await serve.code() == 0


@contextmanager
def two_machines() -> Iterator[tuple[str, str, set[str]]]:
    """Two connected network namespaces: the server, the client, and the server's addresses, two of each family."""
    server, client = (f"wg{each}{os.getpid()}" for each in "sc")
    addresses = {"10.9.0.1", "10.9.0.2", "2001:db8::1", "2001:db8::2"}

    def ip(*words: str) -> None:
        subprocess.run(["ip", *words], check=True, stdin=subprocess.DEVNULL)

    try:
        for name in (server, client):
            ip("netns", "add", name)
            ip("-n", name, "link", "set", "lo", "up")
        ip("link", "add", "w0", "netns", server, "type", "veth", "peer", "name", "w0", "netns", client)
        for name, each in [
            *((server, each) for each in sorted(addresses)),
            (client, "10.9.0.9"),
            (client, "2001:db8::9"),
        ]:
            v6 = ":" in each
            ip("-n", name, "addr", "add", f"{each}/{64 if v6 else 24}", "dev", "w0", *(["nodad"] if v6 else []))
        for name in (server, client):
            ip("-n", name, "link", "set", "w0", "up")
        yield server, client, addresses
    finally:
        for name in (server, client):
            subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)


@pytest.mark.needs("root", "network_namespaces", "ip", "ipv6")
async def test_all_that_serve_prints_answers(tmp_path: Path) -> None:
    """Each printed address answers, although the kernel by itself would send every answer from the first one."""
    config = tmp_path / "config.toml"
    with two_machines() as (server, client, addresses):
        async with started("serve", within=("ip", "netns", "exec", server)) as serve:
            await serve.wait_err("until interrupted")
            config.write_bytes(serve.out)
            words = ("netcheck", "--servers", "--config", config, "--json")
            async with started(*words, within=("ip", "netns", "exec", client)) as netcheck:
                rows = (await netcheck.event())["servers"]
        for kind, transports in (("websocket", {"tcp"}), ("stun", {"udp", "tcp"}), ("ntp", {"udp"})):
            of_kind = [row for row in rows if row["kind"] == kind and row["reachable"]]
            answered = {(ServerUrl.parse(row["url"]).host, row["transport"]) for row in of_kind}
            assert {(address, each) for address in addresses for each in transports} <= answered, (kind, rows)


EXTERNAL = "203.0.113.1"
CLOUD = f"""
table ip cloud {{
    chain in {{ type nat hook prerouting priority dstnat; ip daddr {EXTERNAL} dnat to 10.9.0.1; }}
    chain out {{ type nat hook postrouting priority srcnat; ip saddr 10.9.0.1 snat to {EXTERNAL}; }}
}}
"""


@pytest.mark.needs("root", "network_namespaces", "ip", "ipv6", "nft")
async def test_a_pasted_configuration_leads_to_a_relay_behind_a_clouds_address_and_outlives_a_restart(
    tmp_path: Path,
) -> None:
    """The token is made once, and the login for TURN is derived from it.

    The server has a private address; clients outside of its cloud see another one.
    """
    config = tmp_path / "config.toml"
    serving = ("serve", "--no-ntp", "--external-ip", EXTERNAL, "--state-dir", tmp_path / "state")
    relaying = ("--relay-ports", "50000-50009", "--relay-peers", "10.9.0.0/24")
    with two_machines() as (server, client, _):
        there, here = (("ip", "netns", "exec", name) for name in (server, client))
        subprocess.run([*there, "nft", "-f", "-"], check=True, input=CLOUD, text=True)
        subprocess.run([*here, "ip", "route", "add", EXTERNAL, "via", "10.9.0.1"], check=True, stdin=subprocess.DEVNULL)
        async with started(*serving, "--json", within=there) as serve:
            before = await serve.event()
            serve.process.send_signal(signal.SIGTERM)
            assert await serve.code() == 0
        async with started(*serving, *relaying, within=there) as serve:
            await serve.wait_err("until interrupted")
            config.write_bytes(serve.out)
            servers = load_config(file=config, env={}).servers
            assert servers.relay_token == before["relay_token"]
            assert {ServerUrl.parse(each).password for each in before["servers"]["turn"]} == {servers.turn[0].password}
            assert [each.url.host for each in servers.turn].count(EXTERNAL) == 2, "by UDP and by TCP"
            words = ("--config", config, "--ephemeral")
            async with started("listen", *words, "--allow-any", "--echo", "--json", within=here) as listen:
                ready = await listen.event()
                assert f"ws://{EXTERNAL}:8765" in ready["signals"]
                calling = ("connect", ready["address"], *words, "--plugin", "turn", "--af", "4")
                async with started(*calling, "--echo-test", "100kB", "--json", within=here) as connect:
                    assert await connect.code() == 0, connect.stderr_text
                    event = await connect.event()
                assert (event["phase"], event["plugin"], event["echo_ok"]) == ("relay", "turn", True)
