"""The TURN server on real sockets, with hand-made clients and with coturn's."""

from __future__ import annotations

import re
import ssl
import sys
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager, closing
from ipaddress import ip_network
from pathlib import Path
from typing import Any, final

import pytest
import trio
import trio.lowlevel
import trio.testing

from tests.certificates import Authority
from tests.hangs import HANG
from tests.identities import BOB
from tests.links import close_carriers, receive_exactly
from tests.requirements import find_program
from tests.turn_requests import Requests, channel_data, error_of, indication
from warpgate_trio.carrier.quic import QuicCarrier
from warpgate_trio.config.server_url import TurnServer as ConfiguredServer
from warpgate_trio.limits import Budget
from warpgate_trio.names import Names
from warpgate_trio.nurseries import open_background_nursery
from warpgate_trio.servers import replies
from warpgate_trio.servers.turn import TurnServer, open_turn_server
from warpgate_trio.servers.turn_core import MAX_MESSAGE
from warpgate_trio.servers.turn_credentials import TurnCredentials
from warpgate_trio.servers.turn_shell import QUEUED_OVERHEAD, TurnConnection
from warpgate_trio.sockaddr import TransportAddress, show_address, socket_family
from warpgate_trio.stun.client import open_stun_stream, query_stream, query_udp
from warpgate_trio.stun.codec import AttributeValue, ChangeRequest, Message, decode
from warpgate_trio.stun.transaction import binding_request
from warpgate_trio.turn.framing import TurnStreamReader
from warpgate_trio.turn.messages import (
    DATA,
    EVEN_PORT,
    REQUESTED_ADDRESS_FAMILY,
    XOR_PEER_ADDRESS,
    XOR_RELAYED_ADDRESS,
    Code,
)
from warpgate_trio.turn.relays import Relays

CREDENTIALS = TurnCredentials("example.org", {"alice": "sesame"}, "s3cret")
HERE = [ip_network("127.0.0.1/32"), ip_network("::1/128")]
CHANNEL = 0x4000
BINDING = binding_request(bytes(12))


@asynccontextmanager
async def serving(**options: Any) -> AsyncGenerator[TurnServer]:
    with trio.fail_after(HANG):
        async with open_turn_server(CREDENTIALS, allowed_peers=HERE, **options) as server:
            yield server


@final
class Talk:
    """A client of a server over a datagram socket or a stream."""

    def __init__(self, channel: trio.socket.SocketType | trio.abc.Stream) -> None:
        self.requests = Requests()
        self.relayed: TransportAddress = ("", 0)
        self._channel = channel
        self._reader = TurnStreamReader(most=65_536)
        self._found: list[bytes] = []

    async def send(self, data: bytes) -> None:
        if isinstance(self._channel, trio.abc.Stream):
            await self._channel.send_all(data + bytes(-len(data) % 4))
        else:
            await self._channel.send(data)

    async def receive(self) -> bytes:
        while not self._found:
            if isinstance(self._channel, trio.abc.Stream):
                data = await self._channel.receive_some()
                if not data:
                    raise EOFError
                self._found += self._reader.feed(bytes(data))
            else:
                self._found.append(await self._channel.recv(65_536))
        return self._found.pop(0)

    async def ask(self, data: bytes) -> Message:
        await self.send(data)
        return decode(await self.receive())

    async def allocate(self, *more: AttributeValue) -> Message:
        if self.requests.realm is None:
            self.requests.learn(await self.ask(self.requests.allocate(*more)))
        answer = await self.ask(self.requests.allocate(*more))
        self.relayed = answer.get(XOR_RELAYED_ADDRESS) or ("", 0)
        return answer


@asynccontextmanager
async def datagram_talk(server: TransportAddress) -> AsyncGenerator[Talk]:
    with trio.socket.socket(socket_family(server[0]), trio.socket.SOCK_DGRAM) as sock:
        await sock.connect(server)
        yield Talk(sock)


@asynccontextmanager
async def stream_talk(server: TransportAddress, context: ssl.SSLContext | None = None) -> AsyncGenerator[Talk]:
    stream: trio.abc.Stream = await trio.open_tcp_stream(*server)
    if context is not None:
        stream = trio.SSLStream(stream, context, server_hostname=server[0])
    async with stream:
        yield Talk(stream)


async def echo_through(talk: Talk, *more: AttributeValue) -> None:
    """Makes an allocation, sends data to and from a peer by indication and by channel, and ends the allocation."""
    assert error_of(await talk.allocate(*more)) == 0
    host = talk.relayed[0]
    with trio.socket.socket(socket_family(host), trio.socket.SOCK_DGRAM) as peer:
        await peer.bind((host, 0))
        at = peer.getsockname()[:2]
        assert error_of(await talk.ask(talk.requests.permit(at))) == 0
        await talk.send(indication(at, b"hello"))
        data, source = await peer.recvfrom(100)
        assert (data, source[:2]) == (b"hello", talk.relayed)
        await peer.sendto(b"answer", source)
        told = decode(await talk.receive())
        assert (told.get(XOR_PEER_ADDRESS), told.get(DATA)) == (at, b"answer")
        assert error_of(await talk.ask(talk.requests.bind(CHANNEL, at))) == 0
        for length in range(5):
            await talk.send(channel_data(CHANNEL, bytes(length)))
            assert (await peer.recvfrom(100))[0] == bytes(length)
            await peer.sendto(bytes(length), source)
            assert (await talk.receive())[: 4 + length] == channel_data(CHANNEL, bytes(length))
    assert error_of(await talk.ask(talk.requests.refresh(0))) == 0


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", None])
async def test_data_goes_both_ways_over_udp(host: str | None) -> None:
    relays = {"relay_hosts": {4: "127.0.0.1"}} if host is None else {}
    async with serving(host=host, **relays) as server:
        address = (host or "127.0.0.1", server.address[1])
        async with datagram_talk(address) as talk:
            if host == "::1":
                # A request without a family means IPv4, which a server on an IPv6 address does not have.
                assert error_of(await talk.allocate()) == Code.FAMILY_NOT_SUPPORTED
            await echo_through(talk, *([REQUESTED_ADDRESS_FAMILY(6)] if host == "::1" else []))
        assert server.statistics().allocations == 0


async def test_data_goes_both_ways_over_tcp_and_tls(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    async with serving(ssl_context=authority.server("127.0.0.1")) as server:
        async with stream_talk(server.address) as talk:
            await echo_through(talk)
        context = ssl.create_default_context(cafile=authority.ca_file)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        async with stream_talk(server.tls_addresses[0], context) as talk:
            await echo_through(talk)
        assert [url.partition(":")[0] for url in server.urls] == ["turn", "turns"]


@pytest.mark.skipif(sys.platform != "linux", reason="all of 127/8 is this machine on Linux alone")
async def test_on_all_addresses_an_answer_leaves_from_the_one_that_was_asked() -> None:
    async with serving(host=None, relay_hosts={4: "127.0.0.1"}) as server:
        for host in ("127.0.0.1", "127.0.0.2", "::1"):
            async with datagram_talk((host, server.address[1])) as talk:
                assert error_of(await talk.allocate()) == 0  # a connected socket receives nothing from elsewhere


async def test_one_port_is_a_stun_server_too() -> None:
    async with serving() as server, open_stun_stream(server.address) as stream:
        assert (await query_stream(stream)).mapped == stream.socket.getsockname()
        with trio.socket.socket(type=trio.socket.SOCK_DGRAM) as sock:
            await sock.bind(("127.0.0.1", 0))
            assert (await query_udp(sock, server.address)).mapped == sock.getsockname()
        assert server.stun_statistics().answered == 2


@pytest.mark.skipif(sys.platform != "linux", reason="all of 127/8 is this machine on Linux alone")
async def test_requests_to_many_addresses_of_the_host_leave_a_client_its_allocation(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """More addresses are used than sinks are kept.  An allocation's sink stays, as part of the client's identity."""
    monkeypatch.setattr(replies, "MAX_SINKS", 4)
    async with serving(host=None, relay_hosts={4: "127.0.0.1"}) as server:
        port = server.address[1]
        async with datagram_talk(("127.0.0.1", port)) as talk:
            assert error_of(await talk.allocate()) == 0
            for number in range(2, 12):
                async with datagram_talk((f"127.0.0.{number}", port)) as other:
                    await other.ask(BINDING)
            assert error_of(await talk.ask(talk.requests.refresh(600))) == 0
            assert server.statistics().allocations == 1
            assert error_of(await talk.ask(talk.requests.refresh(0))) == 0


@pytest.mark.skipif(sys.platform != "linux", reason="all of 127/8 is this machine on Linux alone")
async def test_a_socket_keeps_as_many_sinks_as_it_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replies, "MAX_SINKS", 4)
    sock = trio.socket.socket(type=trio.socket.SOCK_DGRAM)
    await sock.bind(("0.0.0.0", 0))
    with closing(replies.ServerSocket(sock)) as server, trio.socket.socket(type=trio.socket.SOCK_DGRAM) as us:
        with trio.fail_after(HANG):

            async def sinks(numbers: Sequence[int]) -> list[int]:
                found = []
                for number in numbers:
                    await us.sendto(b"x", (f"127.0.0.{number}", server.address[1]))
                    ((_, _, sink),) = await server.receive_batch(100)
                    found.append(id(sink))
                return found

            kept = await sinks([1, 2, 3, 4])
            assert len(set(kept)) == 4
            assert await sinks([4, 3, 2, 1]) == kept[::-1]
            await sinks(range(5, 30))
            assert len(server._sinks) <= 4
            assert len(server._living) <= 4


@pytest.mark.skipif(sys.platform != "linux", reason="all of 127/8 is this machine on Linux alone")
async def test_a_second_address_makes_it_a_stun_server_of_four_places() -> None:
    async with serving(second_host="127.0.0.2") as server:
        with trio.socket.socket(type=trio.socket.SOCK_DGRAM) as sock:
            await sock.bind(("127.0.0.1", 0))
            there = server.addresses[3]
            change = ChangeRequest(ip=True, port=True)
            answer = await query_udp(sock, server.address, change=change, source=there)
            assert answer.response_origin == there


async def test_requests_in_one_flight_are_all_answered_in_order() -> None:
    async with serving() as server, datagram_talk(server.address) as talk:
        talk.requests.learn(await talk.ask(talk.requests.allocate()))
        peer = ("127.0.0.1", 9)
        flight = [talk.requests.allocate(), talk.requests.permit(peer), talk.requests.bind(CHANNEL, peer)]
        for each in flight:
            await talk.send(each)
        answers = [decode(await talk.receive()) for _ in flight]
        assert [error_of(each) for each in answers] == [0, 0, 0]
        assert [each.transaction_id for each in answers] == [decode(each).transaction_id for each in flight]


async def test_relay_to_relay_needs_no_permission_for_loopback() -> None:
    async with open_turn_server(CREDENTIALS) as server:
        async with datagram_talk(server.address) as one, datagram_talk(server.address) as two:
            await one.allocate()
            await two.allocate()
            assert error_of(await one.ask(one.requests.permit(("127.0.0.1", server.address[1])))) == Code.FORBIDDEN
            assert error_of(await one.ask(one.requests.bind(CHANNEL, two.relayed))) == 0
            assert error_of(await two.ask(two.requests.bind(CHANNEL, one.relayed))) == 0
            await one.send(channel_data(CHANNEL, b"inside"))
            assert await two.receive() == channel_data(CHANNEL, b"inside")


async def test_external_addresses_and_a_range_of_ports() -> None:
    options: dict[str, Any] = {"external_ips": {4: "203.0.113.77"}, "relay_ports": range(47000, 47003)}
    async with serving(**options) as server:
        async with datagram_talk(server.address) as one, datagram_talk(server.address) as two:
            answer = await one.allocate(EVEN_PORT(False))
            assert error_of(answer) == 0
            assert one.relayed[0] == "203.0.113.77"
            assert one.relayed[1] in (47000, 47002)
            await two.allocate()
            assert two.relayed[1] in set(range(47000, 47003)) - {one.relayed[1]}
            # Traffic between two relayed addresses stays inside: the NAT in front need not hairpin it.
            await one.ask(one.requests.bind(CHANNEL, two.relayed))
            await two.ask(two.requests.bind(CHANNEL, one.relayed))
            await one.send(channel_data(CHANNEL, b"x"))
            assert await two.receive() == channel_data(CHANNEL, b"x")


async def test_ports_that_are_all_taken_are_said_and_come_back_at_once(caplog: pytest.LogCaptureFixture) -> None:
    async with serving(relay_ports=range(47010, 47011)) as server:
        async with datagram_talk(server.address) as one, datagram_talk(server.address) as two:
            assert error_of(await one.allocate()) == 0
            for _ in range(3):
                assert error_of(await two.allocate()) == Code.INSUFFICIENT_CAPACITY
            assert [each.name for each in caplog.records].count(
                "warpgate_trio.servers.turn_shell"
            ) == 1  # one line a minute
            await one.ask(one.requests.refresh(0))
            assert error_of(await two.ask(two.requests.allocate())) == 0


async def test_a_connection_that_ends_frees_its_port_at_once() -> None:
    async with serving(relay_ports=range(47020, 47021)) as server:
        async with stream_talk(server.address) as talk:
            assert error_of(await talk.allocate()) == 0
        async with stream_talk(server.address) as talk:
            while error_of(await talk.allocate()):  # until the server has noticed the end
                await trio.lowlevel.checkpoint()


@pytest.mark.parametrize("last", ["frees it", "hangs up"])
async def test_a_server_that_is_shut_down_waits_for_its_last_client(last: str) -> None:
    async with serving() as server, datagram_talk(server.address) as two:
        stream = await trio.open_tcp_stream(*server.address)
        one = Talk(stream)
        assert error_of(await one.allocate()) == 0
        async with trio.open_nursery() as nursery, stream:
            drained = trio.Event()

            async def drain() -> None:
                await server.drain()
                drained.set()

            nursery.start_soon(drain)
            await trio.testing.wait_all_tasks_blocked()
            assert server.draining
            assert not drained.is_set()
            assert error_of(await two.allocate()) == Code.INSUFFICIENT_CAPACITY
            assert server.statistics().allocations == 1
            if last == "frees it":
                await one.ask(one.requests.refresh(0))
                await drained.wait()
        assert server.statistics().allocations == 0
        await server.drain()


@pytest.mark.parametrize("data", [b"GET / HTTP/1.1\r\n\r\n", bytes(20), b"\x40\0\xff\xff", b"\xff" * 20])
async def test_a_stream_that_is_no_turn_is_closed(data: bytes) -> None:
    async with serving() as server:
        async with await trio.open_tcp_stream(*server.address) as stream:
            await stream.send_all(data)
            with pytest.raises((EOFError, trio.BrokenResourceError)):
                await Talk(stream).receive()


@pytest.mark.parametrize(
    ("data", "relayed"),
    [
        pytest.param(channel_data(CHANNEL, bytes(MAX_MESSAGE)), [], id="oversized ChannelData"),
        pytest.param(bytes([0, 8, 0x10, 0]) + BINDING[4:], [], id="oversized STUN"),
        pytest.param(channel_data(CHANNEL, b"abc") + b"\0\x04" + BINDING[2:], [b"abc"], id="unpadded ChannelData"),
        pytest.param(channel_data(CHANNEL, b"ab") + channel_data(CHANNEL, b"cdefgh"), [b"ab"], id="unpadded twice"),
        pytest.param(bytes([0, 8, 0, 3]) + BINDING[4:] + b"abc", [], id="unpadded STUN"),
        pytest.param(channel_data(CHANNEL, b"abcd")[:-1], [], id="truncated ChannelData"),
        pytest.param(BINDING[:-1], [], id="truncated STUN"),
    ],
)
async def test_a_stream_out_of_frame_ends_with_its_allocation(data: bytes, relayed: list[bytes]) -> None:
    """Nothing that follows the bad bytes is relayed; other clients are still served."""
    async with serving() as server, stream_talk(server.address) as other:
        with trio.socket.socket(type=trio.socket.SOCK_DGRAM) as peer:
            await peer.bind(("127.0.0.1", 0))
            await other.allocate()
            await other.ask(other.requests.bind(CHANNEL, peer.getsockname()))
            stream = await trio.open_tcp_stream(*server.address)
            talk = Talk(stream)
            assert error_of(await talk.allocate()) == 0
            assert error_of(await talk.ask(talk.requests.bind(CHANNEL, peer.getsockname()))) == 0
            await stream.send_all(data)
            await stream.send_eof()
            with pytest.raises((EOFError, trio.BrokenResourceError)):
                await talk.receive()
            await stream.aclose()
            while server.statistics().allocations > 1:
                await trio.lowlevel.checkpoint()
            await other.send(channel_data(CHANNEL, b"whole"))
            received = [await peer.recv(100)]
            while received[-1] != b"whole":
                received.append(await peer.recv(100))
            assert received in ([b"whole"], [*relayed, b"whole"])  # a whole message before the bad bytes may be relayed


async def test_a_client_that_does_not_read_costs_its_bound_and_is_served_again() -> None:
    with trio.fail_after(HANG):
        ours, theirs = trio.testing.lockstep_stream_pair()
        budget = Budget(total=10**9, per_address=10**9)
        each = 1000 + QUEUED_OVERHEAD
        sink = TurnConnection(ours, "192.0.2.7", budget, 10 * each)
        async with open_background_nursery() as nursery:
            nursery.start_soon(sink.write)
            for _ in range(3):
                for _ in range(100):
                    sink.send(bytes(1000), ("", 0))
                assert budget.held == 10 * each
                received = 0
                while received < 10_000:
                    received += len(await theirs.receive_some(5000))
                await trio.testing.wait_all_tasks_blocked()
                assert budget.held == 0
            sink.send(bytes(1000), ("", 0))
        sink.forget()
        assert budget.held == 0


async def test_what_waits_for_all_clients_is_bounded_too() -> None:
    ours, _ = trio.testing.lockstep_stream_pair()
    most = 5 * (1000 + QUEUED_OVERHEAD)
    budget = Budget(total=100_000, per_address=most)
    sinks = [TurnConnection(ours, "192.0.2.7", budget, 10_000) for _ in range(3)]
    for sink in sinks:
        for _ in range(10):
            sink.send(bytes(1000), ("", 0))
    assert budget.held == most


async def test_oversized_datagrams_are_dropped_both_ways() -> None:
    async with serving() as server, datagram_talk(server.address) as talk:
        await talk.allocate()
        with trio.socket.socket(type=trio.socket.SOCK_DGRAM) as peer:
            await peer.bind(("127.0.0.1", 0))
            await talk.ask(talk.requests.bind(CHANNEL, peer.getsockname()))
            for length in (MAX_MESSAGE - 3, MAX_MESSAGE - 4):
                await talk.send(channel_data(CHANNEL, bytes(length)))
                await peer.sendto(bytes(length), talk.relayed)
            assert len(await peer.recv(4096)) == MAX_MESSAGE - 4
            assert len(await talk.receive()) == MAX_MESSAGE


async def test_nothing_can_be_relayed_from_no_address() -> None:
    impossible: list[dict[str, Any]] = [
        {"relay_hosts": {}},
        {"external_ips": {6: "2001:db8::1"}},
        {"relay_hosts": {4: "0.0.0.0"}},
    ]
    for options in impossible:
        with pytest.raises(ValueError, match="address"):
            async with serving(**options):
                pass


# -- Our own client ----------------------------------------------------------------------------------------------------


@asynccontextmanager
async def open_relays(url: str, trust: ssl.SSLContext) -> AsyncGenerator[Relays]:
    names = Names()
    made = Relays([ConfiguredServer(url, "alice", "sesame")], names=names, trust=lambda: trust)
    async with names.running(), trio.open_nursery() as nursery, made.running(nursery):
        yield made


@pytest.mark.slow("TLS, and a third of a megabyte by QUIC")
@pytest.mark.parametrize("form", ["turn:{}", "turn:{}?transport=tcp", "turns:{}"])
async def test_quic_runs_from_relay_to_relay(form: str, tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    with trio.fail_after(HANG):
        async with open_turn_server(CREDENTIALS, ssl_context=authority.server("127.0.0.1")) as server:
            at = server.tls_addresses[0] if form.startswith("turns") else server.address
            url = form.format(show_address(at))
            async with (
                open_relays(url, authority.client()) as one,
                open_relays(url, authority.client()) as two,
            ):
                ours, theirs = await one.open(permit=["127.0.0.1"]), await two.open(permit=["127.0.0.1"])
                carriers: list[QuicCarrier] = []

                async def serve() -> None:
                    carriers.append(await QuicCarrier.serve(theirs.open_path(ours.local), BOB))
                    carriers[0].feed(b"x" * 300_000)
                    await carriers[0].flush()
                    await carriers[0].receive()  # a waiting reader drives the carrier, which repairs losses

                async with trio.open_nursery() as nursery:
                    nursery.start_soon(serve)
                    carrier = await QuicCarrier.dial(ours.open_path(theirs.local), peer_key=BOB.public_key)
                    assert await receive_exactly(carrier, 300_000) == b"x" * 300_000
                    nursery.cancel_scope.cancel()
                close_carriers(carrier, *carriers)
                ours.release()
                theirs.release()
            statistics = server.statistics()
            assert statistics.relayed >= 250
            while server.statistics().allocations:
                await trio.lowlevel.checkpoint()


# -- coturn's clients --------------------------------------------------------------------------------------------------


async def uclient(server: TransportAddress, *words: str) -> str:
    program = find_program("turnutils_uclient")
    assert program is not None
    command = [program, "-c", *words, "-n", "20", "-z", "5", "-l", "900", "-p", str(server[1]), server[0]]
    with trio.fail_after(2 * HANG):
        run = await trio.run_process(command, capture_stdout=True, capture_stderr=True, check=False)
    return (run.stdout + run.stderr).decode(errors="replace")


NAMED = ("-u", "alice", "-w", "sesame")


@pytest.mark.needs("linux", "turnserver", "turnutils")
@pytest.mark.slow("coturn's client waits")
@pytest.mark.parametrize(
    "words",
    [
        ("-y", "-m", "4", *NAMED),
        ("-y", "-s", *NAMED),
        ("-y", "-W", "s3cret", "-u", "somebody"),
        ("-y", "-G", *NAMED),
        ("-y", "-t", "-m", "4", *NAMED),
        ("-y", "-t", "-s", *NAMED),
        ("-y", "-t", "-S", "-m", "4", *NAMED),
        ("-y", "-t", "-S", "-s", *NAMED),
    ],
    ids=" ".join,
)
async def test_coturns_client_gets_its_data(words: Sequence[str], tmp_path: Path) -> None:
    async with open_turn_server(
        CREDENTIALS, ssl_context=Authority(tmp_path).server("127.0.0.1"), allowed_peers=HERE
    ) as server:
        said = await uclient(server.tls_addresses[0] if "-S" in words else server.address, *words)
        sent, received = map(int, re.findall(r"tot_send_msgs=(\d+), tot_recv_msgs=(\d+)$", said, re.MULTILINE)[-1])
        assert sent >= 40, said
        assert received >= 0.9 * sent, said  # the client does not wait for data that a busy machine delays
        # -G adds requests at random, some of them for peers of the other family.
        assert server.statistics().refused == 0 or "-G" in words


@pytest.mark.needs("linux", "turnserver", "turnutils")
@pytest.mark.slow("coturn's client waits")
async def test_coturns_client_with_a_wrong_password_gets_nowhere() -> None:
    async with open_turn_server(CREDENTIALS) as server:
        said = await uclient(server.address, "-y", "-u", "alice", "-w", "wrong")
        assert "Cannot complete Allocation" in said
        assert server.statistics().challenged >= 2
        assert server.statistics().allocations == 0
