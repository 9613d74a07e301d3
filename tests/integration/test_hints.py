"""Servers that a peer's address names (hints): which of them are visited, how, and where a connection may lead."""

from __future__ import annotations

import errno
from collections.abc import AsyncGenerator, Iterable
from contextlib import asynccontextmanager
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from tests.certificates import Authority
from tests.hubs import hub_for, tcp_server
from tests.identities import ALICE, BOB
from tests.nodes import LoopbackHost, address_of, closed_port, config, loopback_node
from tests.waiting import wait_until
from warpgate_trio import Node, anyone
from warpgate_trio.config import Proxies, ServerUrl
from warpgate_trio.errors import ProxyError, SignalUnavailable
from warpgate_trio.host import Interface, InterfaceAddress
from warpgate_trio.node.planning import may_connect
from warpgate_trio.nurseries import open_background_nursery
from warpgate_trio.servers.rendezvous import open_rendezvous
from warpgate_trio.signal import Delivery, ServerState, peers_servers
from warpgate_trio.signal.peers_servers import JudgedDial, MayConnect
from warpgate_trio.sockaddr import IpAddress

pytestmark = pytest.mark.usefixtures("jumping_clock")

ELSEWHERE = LoopbackHost(fingerprint=b"elsewhere" + bytes(23))


@asynccontextmanager
async def alice_at(*urls: str) -> AsyncGenerator[Node]:
    async with loopback_node(ALICE, config(*urls)) as alice:
        yield alice


@pytest.mark.parametrize("name", ["127.0.0.1", "localhost"])
async def test_a_peer_elsewhere_sends_us_nowhere_on_our_machine(name: str) -> None:
    async with open_rendezvous() as inside, alice_at() as alice:
        url = f"ws://{name}:{inside.port}"
        for host, visited in ((ELSEWHERE, False), (LoopbackHost(), True)):
            peer = address_of(BOB, port=await closed_port(), signals=[url], host=host)
            with pytest.raises(Exception, match="no such peer" if visited else "does not connect there for this peer"):
                await alice.refresh_address(peer, timeout=10)
            assert inside.statistics().registrations == int(visited)


@pytest.mark.parametrize("rest", ["/rendezvous", "/?token=x", "/a?b=c"])
@pytest.mark.parametrize("login", ["", "me@", "me:secret@"])
async def test_only_a_server_and_nothing_else_is_taken_from_a_hint(rest: str, login: str) -> None:
    """This holds even if the peer may send us to that address."""
    asked: list[bytes] = []

    async def serve(stream: trio.SocketStream) -> None:
        asked.append(await stream.receive_some())

    async with tcp_server(serve) as url, hub_for(ALICE, connected=False) as hub:
        hint = url.replace("//", f"//{login}") + rest
        with pytest.raises(SignalUnavailable, match="no signal server is configured, and none of the peer's"):
            await hub.send(BOB.public_key, b"x", hints=[hint], may_connect=lambda _: True)
    assert asked == []


async def test_a_hint_of_our_own_server_is_our_own_channel_with_its_path() -> None:
    async with open_rendezvous() as server:
        own = f"{server.url}/rendezvous"
        async with hub_for(ALICE, own) as alice, hub_for(BOB, own):
            for hint in (own, server.url, f"{server.url}/another?x=y"):
                answer = await alice.send(BOB.public_key, b"x", hints=[hint], may_connect=lambda _: True)
                assert answer is Delivery.DELIVERED
            assert [status.url for status in alice.status()] == [own]


async def test_without_a_judge_nobody_is_visited() -> None:
    async with open_rendezvous() as theirs, hub_for(ALICE, connected=False) as alice:
        with pytest.raises(SignalUnavailable, match="no signal server is configured, and none of the peer's"):
            await alice.send(BOB.public_key, b"x", hints=[theirs.url])
        assert theirs.statistics().registrations == 0


async def test_a_visit_for_one_peer_is_none_for_another_who_may_not() -> None:
    async with open_rendezvous() as theirs, hub_for(ALICE, connected=False) as alice:
        hints = [theirs.url]
        assert await alice.send(BOB.public_key, b"x", hints=hints, may_connect=lambda _: True) is Delivery.NOBODY_HOME
        with pytest.raises(SignalUnavailable, match=r"resolves to 127\.0\.0\.1, and this node does not connect"):
            await alice.send(BOB.public_key, b"x", hints=hints, may_connect=lambda _: False)
        assert theirs.statistics().sends == 1


async def test_a_redirection_leads_nowhere() -> None:
    reached: list[str] = []

    async def inside(stream: trio.SocketStream) -> None:
        reached.append("inside")

    async with tcp_server(inside) as target:

        async def redirect(stream: trio.SocketStream) -> None:
            await stream.receive_some()
            where = target.replace("ws:", "http:").encode()
            await stream.send_all(b"HTTP/1.1 302 Found\r\nLocation: " + where + b"/x\r\nContent-Length: 0\r\n\r\n")

        async with tcp_server(redirect) as url, hub_for(ALICE, connected=False) as hub:
            with pytest.raises(SignalUnavailable, match="refused with HTTP status 302"):
                await hub.send(BOB.public_key, b"x", hints=[url], may_connect=lambda _: True)
    assert reached == []


async def test_tls_compares_the_name_and_not_the_address_that_was_judged(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    async with open_rendezvous(ssl_context=authority.server("localhost")) as theirs:
        async with hub_for(ALICE, ca_file=authority.ca_file, connected=False) as alice:
            for name, right in (("localhost", True), ("127.0.0.1", False)):
                hints = [f"wss://{name}:{theirs.port}"]
                if right:
                    answer = await alice.send(BOB.public_key, b"x", hints=hints, may_connect=only("127.0.0.1"))
                    assert answer is Delivery.NOBODY_HOME
                else:
                    with pytest.raises(SignalUnavailable, match="CERTIFICATE_VERIFY_FAILED"):
                        await alice.send(BOB.public_key, b"x", hints=hints, may_connect=only("127.0.0.1"))


# -- where a name leads ------------------------------------------------------------------------------------------------


class Names(trio.abc.HostnameResolver):
    """Answers each query with the next list of addresses, and repeats the last one for ever."""

    def __init__(self, *answers: list[str]) -> None:
        self.answers = list(answers)
        self.asked = 0

    async def getaddrinfo(
        self,
        host: Any,
        port: Any,
        family: int = 0,
        type: int = 0,  # noqa: A002
        proto: int = 0,
        flags: int = 0,
    ) -> Any:
        await trio.lowlevel.checkpoint()
        self.asked += 1
        found = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        return [(trio.socket.AF_INET, trio.socket.SOCK_STREAM, 6, "", (each, port)) for each in found]

    async def getnameinfo(self, sockaddr: Any, flags: int) -> Any:
        raise NotImplementedError


@asynccontextmanager
async def names(*answers: list[str]) -> AsyncGenerator[Names]:
    resolver = Names(*answers)
    previous = trio.socket.set_custom_hostname_resolver(resolver)
    try:
        yield resolver
    finally:
        trio.socket.set_custom_hostname_resolver(previous)


def only(*addresses: str) -> Any:
    allowed = {ip_address(each) for each in addresses}

    def may_connect(ip: IpAddress) -> bool:
        return ip in allowed

    return may_connect


async def listener(address: str, port: int) -> trio.SocketListener:
    sock = trio.socket.socket()
    await sock.bind((address, port))
    sock.listen(4)
    return trio.SocketListener(sock)


async def dial_judged(host: str, port: int, *, may_connect: MayConnect) -> trio.SocketStream:
    stream = await JudgedDial(ServerUrl("ws", host, port), may_connect, proxies=Proxies("none", {}))(host, port)
    assert isinstance(stream, trio.SocketStream)
    return stream


async def test_the_connection_goes_to_the_address_that_was_judged() -> None:
    """A name may lead elsewhere a moment later (DNS rebinding), so it is looked up once."""
    port = await closed_port()
    async with await listener("127.0.0.1", port), names(["127.0.0.1"], ["127.0.0.2"]) as resolver:
        stream = await dial_judged("rebound.example", port, may_connect=only("127.0.0.1"))
        async with stream:
            assert stream.socket.getpeername()[0] == "127.0.0.1"
        assert resolver.asked == 1


async def test_of_a_names_addresses_only_those_are_tried_that_may_be() -> None:
    port = await closed_port()
    async with await listener("127.0.0.2", port) as inside, await listener("127.0.0.3", port):
        async with names(["127.0.0.2", "127.0.0.4", "127.0.0.3"]):  # the second one has no listener
            stream = await dial_judged("some.example", port, may_connect=only("127.0.0.3", "127.0.0.4"))
            async with stream:
                assert stream.socket.getpeername()[0] == "127.0.0.3"
            with pytest.raises(OSError, match=r"resolves to 127\.0\.0\.2, 127\.0\.0\.4, 127\.0\.0\.3, and this"):
                await dial_judged("some.example", port, may_connect=only("203.0.113.1"))
            with pytest.raises(OSError, match="all attempts to connect"):
                await dial_judged("some.example", port, may_connect=only("127.0.0.4"))
        with trio.move_on_after(0.01):
            await inside.accept()
            pytest.fail("it went where it may not go")


# -- the node's judgement ----------------------------------------------------------------------------------------------


class OnLan(LoopbackHost):  # type: ignore[misc]  # final outside of the tests
    """A host with a private network and a public address."""

    def interfaces(self) -> tuple[Interface, ...]:
        own = (
            InterfaceAddress(ip=ip_address("10.0.0.5"), prefix=24),
            InterfaceAddress(ip=ip_address("203.0.113.5"), prefix=24),
            InterfaceAddress(ip=ip_address("fd00:1::5"), prefix=64),
        )
        lan = Interface(name="eth0", index=2, addresses=own, is_loopback=False, is_virtual=False)
        return (*super().interfaces(), lan)


@pytest.mark.parametrize(
    ("address", "elsewhere", "here"),
    [
        ("203.0.113.9", True, True),  # public
        ("2001:db8::1", True, True),
        ("10.0.0.77", True, True),  # private, in our own network
        ("fd00:1::77", True, True),
        ("10.0.1.77", False, False),  # private, elsewhere
        ("192.168.1.1", False, False),
        ("100.64.0.1", False, False),
        ("fd00:2::1", False, False),
        ("127.0.0.1", False, True),
        ("127.9.9.9", False, True),
        ("::1", False, True),
        ("10.0.0.5", False, True),  # our own addresses lead to loopback
        ("203.0.113.5", False, True),
        ("fd00:1::5", False, True),
        ("::ffff:127.0.0.1", False, True),
        ("::ffff:192.168.1.1", False, False),
        ("169.254.169.254", False, False),
        ("fe80::1", False, False),
        ("0.0.0.0", False, False),
        ("::", False, False),
        ("224.0.0.1", False, False),
        ("ff02::1", False, False),
        ("255.255.255.255", False, False),
        ("198.18.0.1", False, False),
        ("64:ff9b::7f00:1", False, True),  # it leads to the embedded address
        ("64:ff9b::a00:14d", False, False),
        ("2002:a9fe:a9fe::1", False, False),
    ],
)
async def test_where_a_peer_may_send_us(address: str, elsewhere: bool, here: bool) -> None:
    """The rule is that for a peer's endpoints, and depends on whether the peer runs on our machine."""
    async with loopback_node(ALICE, config(), host=OnLan()) as alice:
        for host, allowed in ((ELSEWHERE, elsewhere), (LoopbackHost(), here)):
            peer = address_of(BOB, port=1, host=host)
            assert may_connect(alice._runtime.host, alice._runtime.own, peer, ip_address(address)) is allowed


async def test_a_node_on_our_machine_is_found_by_its_hint() -> None:
    async with open_rendezvous() as server:
        async with loopback_node(BOB, config(server), authorize=anyone) as bob, alice_at() as alice:
            await bob.wait_signals()
            assert await alice.refresh_address(bob.address, timeout=10) == bob.address
            await wait_until(lambda: [each.state for each in alice.signal_servers] == [ServerState.CONNECTED])


async def test_a_proxy_is_asked_for_the_address_that_was_judged() -> None:
    """It is never asked for the name.  If it cannot reach one address, it is asked for the next."""
    asked: list[bytes] = []

    async def proxy(stream: trio.SocketStream) -> None:
        asked.append(bytes(await stream.receive_some()).partition(b"\r\n")[0])
        await stream.send_all(b"HTTP/1.1 %s\r\n\r\n" % (b"502 No" if len(asked) == 1 else b"200 OK"))
        await stream.aclose()

    async with open_background_nursery() as nursery:
        (door,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
        nursery.start_soon(trio.serve_listeners, proxy, [door])
        proxies = Proxies(ServerUrl("http", "127.0.0.1", door.socket.getsockname()[1]), {})
        dial = JudgedDial(
            ServerUrl("wss", "some.example", 443), lambda ip: ip != ip_address("8.8.8.8"), proxies=proxies
        )
        async with names(["8.8.8.8", "9.9.9.9", "1.1.1.1"]) as resolver:
            await trio.aclose_forcefully(await dial("some.example", 443))
    assert asked == [b"CONNECT 9.9.9.9:443 HTTP/1.1", b"CONNECT 1.1.1.1:443 HTTP/1.1"]
    assert dial.address == ip_address("1.1.1.1")
    assert resolver.asked == 1


@pytest.mark.parametrize(
    ("address", "by_proxy"),
    [
        ("203.0.113.9", True),
        ("2001:db8::9", True),
        ("2002:808:808::1", True),
        ("200:1234::9", False),
        ("fec0::1", False),
        ("64:ff9b::a00:1", False),
        ("198.18.0.1", False),
    ],
)
async def test_a_proxy_is_asked_for_public_addresses_alone(
    address: str, by_proxy: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    async def directly(addresses: Iterable[str], port: int, *, host: str) -> trio.SocketStream:
        asked.append("directly")
        raise OSError(errno.ENETUNREACH, "no network in this test")

    async def to_the_proxy(host: str, port: int) -> trio.abc.Stream:
        asked.append("by proxy")
        raise OSError(errno.ECONNREFUSED, "no proxy in this test")

    monkeypatch.setattr(peers_servers, "open_first_tcp_stream", directly)
    proxies = Proxies(ServerUrl("http", "proxy.example", 3128), {})
    url = ServerUrl("wss", "some.example", 443)
    dial = JudgedDial(url, only(address), proxies=proxies, open_stream=to_the_proxy)
    async with names([address]):
        with pytest.raises((OSError, ProxyError)):
            await dial("some.example", 443)
    assert asked == ["by proxy" if by_proxy else "directly"]


async def test_no_proxy_is_asked_for_an_address_that_means_another_machine_there() -> None:
    port = await closed_port()
    proxies = Proxies(ServerUrl("http", "127.0.0.1", await closed_port()), {})
    dial = JudgedDial(ServerUrl("wss", "lan.example", port), only("127.0.0.1"), proxies=proxies)
    async with await listener("127.0.0.1", port), names(["127.0.0.1"]):
        await trio.aclose_forcefully(await dial("lan.example", port))
    assert dial.address == ip_address("127.0.0.1")
