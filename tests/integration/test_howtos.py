"""What the how-to pages say about third-party servers: each is started with the configuration on the page."""

from __future__ import annotations

import os
import pwd
import re
import subprocess
import tempfile
from contextlib import ExitStack
from pathlib import Path

import pytest
import trio

from tests.certificates import Authority
from tests.documented import changed, code, page
from tests.hangs import HANG
from tests.identities import ALICE, BOB
from tests.links import close_carriers, receive_exactly
from tests.nodes import loopback_node
from tests.paths import SocketPath
from tests.ports import free_port
from tests.programs import running
from tests.proxies import running as running_proxy
from tests.requirements import find_program
from tests.servers_mqtt import libraries as libraries
from tests.waiting import wait_until
from warpgate_trio import Identity, Node, NodeConfig, Servers, anyone
from warpgate_trio.carrier.quic import QuicCarrier
from warpgate_trio.config import TurnServer
from warpgate_trio.names import Names
from warpgate_trio.ports.datagrams import DatagramSocket
from warpgate_trio.signal import ServerState
from warpgate_trio.signal.mqtt.key_topic import KeyTopic
from warpgate_trio.stun.client import query_udp
from warpgate_trio.turn.relays import Relays

PASSWORD = "change-this"


# -- MQTT --------------------------------------------------------------------------------------------------------------


class Cluster:
    """The page's two brokers, the second bridged to the first; each has the login of one of the two nodes."""

    def __init__(self, folder: Path) -> None:
        self.ports = (free_port(), free_port())
        self.authority = Authority(folder)
        self.authority.server("127.0.0.1")
        self._folder = folder
        broker, rules, bridge = code(page("howto/mqtt.md"), "text")
        for number, (port, users) in enumerate(
            zip(self.ports, ((ALICE.peer_id, "bridge"), (BOB.peer_id,)), strict=True)
        ):
            self._write(number, broker, rules, "" if number == 0 else bridge, port, users)

    def _write(self, number: int, broker: str, rules: str, bridge: str, port: int, users: tuple[str, ...]) -> None:
        place = self._folder / str(number)
        place.mkdir()
        hasher = find_program("mosquitto_passwd")
        assert hasher is not None
        (place / "passwords").touch(mode=0o600)
        for user in users:
            subprocess.run([hasher, "-b", place / "passwords", user, PASSWORD], check=True, capture_output=True)
        (place / "acl").write_text(rules)
        (place / "acl").chmod(0o600)
        certificate = self._folder / "127.0.0.1.pem"
        text = changed(
            broker,
            {
                "listener 8883": f"listener {port} 127.0.0.1",
                "/etc/ssl/broker.example/fullchain.pem": certificate,
                "/etc/ssl/broker.example/privkey.pem": certificate,
                "/etc/mosquitto/warpgate.passwords": place / "passwords",
                "/etc/mosquitto/warpgate.acl": place / "acl",
            },
        )
        if bridge:
            text += changed(
                bridge,
                {
                    "one.example:8883": f"127.0.0.1:{self.ports[0]}",
                    "/etc/ssl/certs/ca-certificates.crt": self.authority.ca_file,
                },
            )
        if os.geteuid() == 0:
            text += "user root\n"  # otherwise it switches to a user who may not read here
        (place / "mosquitto.conf").write_text(f"log_dest file {place / 'log'}\nlog_type all\n{text}")

    def run(self, stack: ExitStack) -> None:
        program = find_program("mosquitto")
        assert program is not None
        for number, port in enumerate(self.ports):
            place = self._folder / str(number)
            stack.enter_context(running([program, "-c", str(place / "mosquitto.conf")], [port], place / "out"))

    def log(self, number: int) -> str:
        return (self._folder / str(number) / "log").read_text(errors="replace")

    def config(self, number: int, identity: Identity) -> NodeConfig:
        (shown, _) = code(page("howto/mqtt.md"), "toml")
        text = changed(
            shown,
            {
                "PEER_ID": identity.peer_id,
                ":password@": f":{PASSWORD}@",
                "broker.example:8883": f"127.0.0.1:{self.ports[number]}",
            },
        )
        parsed = NodeConfig.from_toml(text, base_dir=self._folder)
        return NodeConfig(servers=Servers(mqtt=[str(parsed.servers.mqtt[0])], ca_file=self.authority.ca_file))


def connected(node: Node) -> bool:
    return node.signal_servers[0].state is ServerState.CONNECTED


@pytest.mark.needs("mosquitto")
@pytest.mark.slow("starts two brokers, and a bridge between them")
async def test_signals_pass_from_one_broker_to_the_other(tmp_path: Path) -> None:
    """Each node's login is valid at its own broker only, so every signal has to cross the bridge."""
    cluster = Cluster(tmp_path)
    with ExitStack() as stack, trio.fail_after(HANG):
        cluster.run(stack)
        await wait_until(lambda: "Received SUBACK" in cluster.log(1))  # the bridge works in both directions
        async with (
            loopback_node(BOB, cluster.config(1, BOB), authorize=anyone) as bob,
            loopback_node(ALICE, cluster.config(0, ALICE)) as alice,
        ):
            await wait_until(lambda: connected(alice) and connected(bob))
            async with await alice.connect(bob.address, plugin="reverse_connect"):
                pass
            record = re.escape(KeyTopic("", BOB.public_key).name)
            await wait_until(lambda: re.search(rf"Received PUBLISH from \S+\.one \(.*{record}", cluster.log(0)))
            assert await alice.refresh_address(BOB.peer_id) == bob.address
            async with bob.offer_code() as offer:
                assert (await alice.accept_code(offer.code)).peer_id == BOB.peer_id
                assert (await offer.wait_paired()).peer_id == ALICE.peer_id
    assert re.search(rf"Sending PUBLISH to \S+\.one \(.*warpgate-trio/1/{BOB.peer_id}[/']", cluster.log(0))


def test_the_second_configuration_is_read() -> None:
    _, several = code(page("howto/mqtt.md"), "toml")
    text = changed(several, {"PEER_ID": ALICE.peer_id})
    assert len(NodeConfig.from_toml(text, base_dir=Path.cwd()).servers.mqtt) == 2


# -- coturn ------------------------------------------------------------------------------------------------------------


@pytest.mark.needs("linux", "turnserver")
@pytest.mark.slow("starts coturn")
async def test_coturn_with_the_text_of_the_page(tmp_path: Path) -> None:
    Authority(tmp_path).server("127.0.0.1")
    certificate = tmp_path / "127.0.0.1.pem"
    port, tls_port = free_port(), free_port()
    (text,) = code(page("howto/coturn.md"), "text")
    text = changed(
        text,
        {
            "=203.0.113.2": "=127.0.0.1",
            "=203.0.113.3": "=127.0.0.2",
            "=3478": f"={port}",
            "=5349": f"={tls_port}",
            "/etc/ssl/turn.example/fullchain.pem": certificate,
            "/etc/ssl/turn.example/privkey.pem": certificate,
            "denied-peer-ip=127.0.0.0-127.255.255.255\n": "allow-loopback-peers\n",
        },
    )
    extra = f"log-file=stdout\npidfile={tmp_path}/pid\nuserdb={tmp_path}/db\nalt-listening-port={free_port()}\n"
    (tmp_path / "conf").write_text(text + extra)
    program = find_program("turnserver")
    assert program is not None
    with running([program, "-c", str(tmp_path / "conf")], [port, tls_port], tmp_path / "log"), trio.fail_after(HANG):
        with trio.socket.socket(type=trio.socket.SOCK_DGRAM) as sock:
            await sock.bind(("127.0.0.1", 0))
            answer = await query_udp(sock, ("127.0.0.1", port))
        assert answer.other_address is not None
        assert answer.other_address[0] == "127.0.0.2"  # it supports RFC 5780
        (nodes_text,) = code(page("howto/coturn.md"), "toml")
        configured = NodeConfig.from_toml(nodes_text, base_dir=tmp_path).servers
        assert len(configured.stun) == 2
        login = configured.turn[0]
        names = Names()
        relays = Relays([TurnServer(f"turn:127.0.0.1:{port}", login.username, login.password)], names=names)
        async with names.running(), trio.open_nursery() as nursery, relays.running(nursery):
            relay = await relays.open()
            peer = SocketPath(await DatagramSocket.bind(("127.0.0.1", 0)), relay.local)
            carriers: list[QuicCarrier] = []

            async def serve() -> None:
                carriers.append(await QuicCarrier.serve(peer, BOB))
                carriers[0].feed(b"x" * 10_000)
                await carriers[0].flush()
                await carriers[0].receive()

            nursery.start_soon(serve)
            carrier = await QuicCarrier.dial(relay.open_path(peer.sock.local), peer_key=BOB.public_key)
            assert await receive_exactly(carrier, 10_000) == b"x" * 10_000
            nursery.cancel_scope.cancel()
        close_carriers(carrier, *carriers)
        relay.release()


# -- proxies -----------------------------------------------------------------------------------------------------------


def test_the_configuration_behind_a_proxy_is_read(tmp_path: Path) -> None:
    (text,) = re.findall(r"^ {3}```toml\n(.*?)^ {3}```$", page("howto/proxies.md"), re.MULTILINE | re.DOTALL)
    parsed = NodeConfig.from_toml(text.replace("\n   ", "\n"), base_dir=tmp_path)
    assert str(parsed.servers.websocket[0]).startswith("wss://")
    assert parsed.servers.relay_token is not None


async def ask(proxy: int, target: str) -> bytes:
    async with await trio.open_tcp_stream("127.0.0.1", proxy) as stream:
        await stream.send_all(f"CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n\r\n".encode())
        return (await stream.receive_some()).split(b" ")[1]


@pytest.mark.needs("squid")
@pytest.mark.slow("starts squid")
async def test_squid_lets_nodes_to_the_one_server(tmp_path: Path) -> None:
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    target, port = listener.socket.getsockname()[1], free_port()
    (text,) = code(page("howto/proxies.md"), "text")
    rules = changed(text, {"acl tls port 443": f"acl tls port {target}"})
    with tempfile.TemporaryDirectory(prefix="warpgate-squid-") as name, trio.fail_after(HANG):
        folder = Path(name)
        (folder / "hosts").write_text("127.0.0.1 relay.example other.example\n")
        (folder / "squid.conf").write_text(
            f"http_port 127.0.0.1:{port}\n{rules}cache deny all\naccess_log none\ncache_log {folder}/cache.log\n"
            f"pid_filename {folder}/pid\ncoredump_dir {folder}\nnetdb_filename none\nhosts_file {folder}/hosts\n"
            "dns_nameservers 127.0.0.1\nvisible_hostname squid.example\npinger_enable off\n"
        )
        if os.geteuid() == 0:  # the proxy switches to this user
            proxy = pwd.getpwnam("proxy")
            for path in (folder, *folder.iterdir()):
                os.chown(path, proxy.pw_uid, proxy.pw_gid)
        program = find_program("squid")
        assert program is not None
        command = [program, "-N", "-n", f"howto{port}", "-f", str(folder / "squid.conf")]
        async with listener:
            with running_proxy(command, "127.0.0.1", port, folder):
                assert await ask(port, f"relay.example:{target}") == b"200"
                assert await ask(port, f"other.example:{target}") == b"403"
                assert await ask(port, "relay.example:80") == b"403"
