"""The TURN server, as users run it, on a simulated internet: NATs in front of its clients and peers, and time."""

from __future__ import annotations

import ssl
from collections.abc import Awaitable, Callable
from dataclasses import replace
from functools import partial
from itertools import pairwise
from typing import Any

import pytest
import trio

from tests.panicking import PanicException
from tests.sim.worlds import run
from tests.turn_requests import Requests, channel_data, error_of
from warpgate_trio.config.server_url import TurnServer as ConfiguredServer
from warpgate_trio.names import Names
from warpgate_trio.servers.turn import OWN_INTERVAL, TurnServer, serve_turn
from warpgate_trio.servers.turn_core import TurnCore
from warpgate_trio.servers.turn_credentials import TurnCredentials, shared_secret_password
from warpgate_trio.servers.turn_limits import DEFAULT_LIMITS, TurnStatistics
from warpgate_trio.sim import Network, presets
from warpgate_trio.sockaddr import TransportAddress
from warpgate_trio.stun.client import query_udp
from warpgate_trio.stun.codec import Message, decode
from warpgate_trio.testing import simulated_hosts
from warpgate_trio.turn.framing import TurnStreamReader
from warpgate_trio.turn.messages import XOR_PEER_ADDRESS, XOR_RELAYED_ADDRESS, Code
from warpgate_trio.turn.relays import Relays

PORT = 3478
CHANNEL = 0x4000
CREDENTIALS = TurnCredentials("example.org", {"alice": "sesame"}, "s3cret")
Talk = Callable[[TurnServer, Network], Awaitable[None]]


def served(talk: Talk, **options: Any) -> None:
    """Run `talk` beside a server on 11.9.0.1."""

    async def world(net: Network) -> None:
        server = net.host("server", address="11.9.0.1")
        async with simulated_hosts(), trio.open_nursery() as nursery:
            with server:
                running = await nursery.start(partial(serve_turn, CREDENTIALS, host="11.9.0.1", port=PORT, **options))
            await talk(running, net)
            nursery.cancel_scope.cancel()

    run(world)


class Datagrams:
    """A client on a simulated UDP socket."""

    def __init__(self, server: TransportAddress) -> None:
        self.requests = Requests()
        self.server = server
        self.sock = trio.socket.socket(type=trio.socket.SOCK_DGRAM)
        self.relayed: TransportAddress = ("", 0)

    async def ask(self, data: bytes) -> Message:
        await self.sock.sendto(data, self.server)
        return decode(await self.sock.recv(4096))

    async def allocate(self) -> Message:
        self.requests.learn(await self.ask(self.requests.allocate()))
        answer = await self.ask(self.requests.allocate())
        self.relayed = answer.get(XOR_RELAYED_ADDRESS) or ("", 0)
        return answer


def test_two_symmetric_nats_meet_at_one_relayed_address() -> None:
    """The permission is for the peer's address.  Its port differs from STUN's answer, and is learned from its data."""

    async def talk(server: TurnServer, net: Network) -> None:
        nat = presets.LINUX_SYMMETRIC
        here, there = net.lan("here", nat=nat).host("client"), net.lan("there", nat=nat).host("peer")
        with here:
            client = Datagrams(server.address)
        with there:
            peer = trio.socket.socket(type=trio.socket.SOCK_DGRAM)
            await peer.bind(("0.0.0.0", 0))
            told = (await query_udp(peer, server.address)).mapped
        with client.sock, peer:
            assert error_of(await client.allocate()) == 0
            assert error_of(await client.ask(client.requests.permit(told))) == 0
            await peer.sendto(b"hello", client.relayed)
            heard = decode(await client.sock.recv(4096))
            source = heard.get(XOR_PEER_ADDRESS)
            assert source is not None
            assert source[0] == told[0]
            assert source != told
            assert error_of(await client.ask(client.requests.bind(CHANNEL, source))) == 0
            await client.sock.sendto(channel_data(CHANNEL, b"welcome"), server.address)
            assert await peer.recv(100) == b"welcome"

    served(talk)


def test_an_allocation_ends_ten_minutes_after_its_last_refresh_with_its_socket() -> None:
    async def talk(server: TurnServer, net: Network) -> None:
        with net.host("client"):
            client = Datagrams(server.address)
        with client.sock:
            await client.allocate()
            await trio.sleep(500)
            assert error_of(await client.ask(client.requests.refresh(600))) == 0
            await trio.sleep(590)
            assert server.statistics().allocations == 1
            assert len(net.netstat().sockets) == 4
            await trio.sleep(20)
            assert server.statistics().allocations == 0
            assert len(net.netstat().sockets) == 3

    served(talk)


@pytest.mark.parametrize("error", [PanicException, KeyError])
def test_what_nobody_foresaw_as_one_ends_ends_no_server(
    error: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    real, failed = TurnCore.handle_timer, list[float]()

    def fail(core: TurnCore[Any], now: float) -> None:
        real(core, now)
        if len(failed) < 3:
            failed.append(now)
            raise error("boo")

    async def talk(server: TurnServer, net: Network) -> None:
        with net.host("client"):
            first, second = Datagrams(server.address), Datagrams(server.address)
        with first.sock, second.sock:
            await first.allocate()
            monkeypatch.setattr(TurnCore, "handle_timer", fail)
            await trio.sleep(610)
            assert server.statistics().allocations == 0
            await second.allocate()
            await trio.sleep(610)
            assert server.statistics().allocations == 0
            assert len(net.netstat().sockets) == 4
        assert failed
        assert all(later - earlier >= 1 for earlier, later in pairwise(failed))

    served(talk)


def test_a_silent_connection_ends_and_an_allocation_keeps_one() -> None:
    async def talk(server: TurnServer, net: Network) -> None:
        with net.host("client"):
            for allocates, least, most in ((False, 60, 61), (True, 600, 662)):
                async with await trio.open_tcp_stream(*server.address) as stream:
                    requests, reader = Requests(), TurnStreamReader(most=4096)
                    for _ in range(1 + allocates):
                        await stream.send_all(requests.allocate())
                        (answer,) = reader.feed(bytes(await stream.receive_some()))
                        requests.learn(decode(answer))
                    assert server.statistics().allocations == allocates
                    begun = trio.current_time()
                    assert await stream.receive_some() == b""
                    assert least <= trio.current_time() - begun <= most
                    assert server.statistics().allocations == 0

    served(talk)


def test_a_place_that_one_address_holds_too_many_of_is_not_given() -> None:
    async def talk(server: TurnServer, net: Network) -> None:
        with net.host("client"):
            async with await trio.open_tcp_stream(*server.address), await trio.open_tcp_stream(*server.address) as two:
                assert await two.receive_some() == b""

    served(talk, limits=replace(DEFAULT_LIMITS, connections_per_address=1))


def test_addresses_that_the_host_gets_later_are_its_own_too() -> None:
    async def talk(server: TurnServer, net: Network) -> None:
        with net.host("client"):
            client = Datagrams(server.address)
        with client.sock:
            await client.allocate()
            assert error_of(await client.ask(client.requests.permit(("11.9.0.2", 80)))) == 0
            (interface,) = net.hosts["server"].interfaces
            net.internet.give(interface, "11.9.0.2")
            await trio.sleep(OWN_INTERVAL + 1)
            assert error_of(await client.ask(client.requests.permit(("11.9.0.2", 80)))) == Code.FORBIDDEN

    served(talk)


@pytest.mark.slow("hours of refreshes, thrice")
@pytest.mark.parametrize("user", ["alice", "2000000000:carol"])
def test_clocks_that_jump_during_a_lease_change_nothing(user: str) -> None:
    """For hours, jumps of the client's or the server's clock do not change a single request."""
    password = "sesame" if user == "alice" else shared_secret_password("s3cret", user)

    async def with_a_relay(jump: float, told: list[TurnStatistics], server: TurnServer, net: Network) -> None:
        names, machines = Names(), [net.host("client"), net.hosts["server"]]
        with net.host("peer", address="11.9.1.1"):
            peer = trio.socket.socket(type=trio.socket.SOCK_DGRAM)
            await peer.bind(("11.9.1.1", 7))
        configured = ConfiguredServer(f"turn:11.9.0.1:{PORT}", user, password)
        with machines[0], peer:
            relays = Relays([configured], names=names)
            async with names.running(), trio.open_nursery() as nursery, relays.running(nursery):
                port = await relays.open()
                path = port.open_path(("11.9.1.1", 7))
                for number in range(30):
                    await path.send([b"there"])
                    assert await peer.recvfrom(100) == (b"there", port.local)
                    await peer.sendto(b"back", port.local)
                    assert await path.receive() == [b"back"]
                    await trio.sleep(7 * 60)
                    for number_of, machine in enumerate(machines):  # back and forth, and in opposite directions
                        machine.clock_offset += jump * (-1) ** (number + number_of) * (number + 1)
                told.append(server.statistics())
                port.close_nowait()
                path.close_nowait()

    told: list[TurnStatistics] = []
    for jump in (0.0, 3600.0, -4e8):
        served(partial(with_a_relay, jump, told))
    assert told == told[:1] * 3
    assert told[0].allocations == 1


@pytest.mark.parametrize(
    "nats",
    [("LINUX_SYMMETRIC", "CGN_SYMMETRIC"), ("UDP_BLOCKED", "SYMMETRIC_SEQUENTIAL"), ("UDP_BLOCKED", "UDP_BLOCKED")],
)
def test_our_client_meets_its_peer_from_relay_to_relay(nats: tuple[str, str]) -> None:
    async def side(url: str, name: str, told: dict[str, TransportAddress], known: trio.Event) -> None:
        names = Names()
        made = Relays([ConfiguredServer(url, "alice", "sesame")], names=names, trust=ssl.create_default_context)
        async with names.running(), trio.open_nursery() as nursery, made.running(nursery):
            port = await made.open()
            told[name] = port.local
            if len(told) == 2:
                known.set()
            await known.wait()
            (other,) = (address for whose, address in told.items() if whose != name)
            await port.wait_settled(port.permit_nowait([other[0]]))
            path = port.open_path(other)
            heard: list[bytes] = []
            with trio.fail_after(30):
                while len(heard) < 3:
                    await path.send([name.encode()])
                    with trio.move_on_after(1):  # data that came before the path was open is lost
                        heard += await path.receive()
            await path.send([name.encode()] * 3)  # for a peer that has not received enough yet
            assert set(heard) == {b"second" if name == "first" else b"first"}
            path.close_nowait()
            port.release()

    async def talk(server: TurnServer, net: Network) -> None:
        told: dict[str, TransportAddress] = {}
        known = trio.Event()
        async with trio.open_nursery() as nursery:
            for name, nat in zip(("first", "second"), nats, strict=True):
                transport = "?transport=tcp" if nat == "UDP_BLOCKED" else ""
                with net.lan(name, nat=getattr(presets, nat)).host(f"{name} host"):
                    nursery.start_soon(side, f"turn:11.9.0.1:{PORT}{transport}", name, told, known)

    served(talk)
