"""A stranger at an address that is permitted for the peer: another port of its host, or a relay beside the peer's.

A permission covers all ports of an address (RFC 8656 §9), so the server relays what comes from any of them.
"""

from __future__ import annotations

import secrets
from collections.abc import AsyncGenerator, Iterable
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
import trio.testing

from tests.hangs import HANG
from tests.identities import BOB
from tests.integration.test_turn_server import CHANNEL, CREDENTIALS, HERE, datagram_talk
from tests.links import close_carriers, receive_exactly
from tests.paths import SocketPath
from tests.turn_requests import channel_data, error_of, indication
from warpgate_trio.carrier.quic import QuicCarrier
from warpgate_trio.config.server_url import TurnServer as ConfiguredServer
from warpgate_trio.names import Names
from warpgate_trio.ports.datagrams import Datagram, DatagramSocket
from warpgate_trio.punch.checks import PathChecks
from warpgate_trio.punch.probe import SECRET_LENGTH, ProbeCodec
from warpgate_trio.servers.turn import TurnServer, open_turn_server
from warpgate_trio.sockaddr import TransportAddress
from warpgate_trio.stun.transaction import binding_request
from warpgate_trio.turn.relay_port import RelayPort
from warpgate_trio.turn.relays import Relays

SIZE = 300_000
FORMS = ("turn:127.0.0.1:{}", "turn:127.0.0.1:{}?transport=tcp")


@asynccontextmanager
async def relay(form: str, *, permit: Iterable[str] = ()) -> AsyncGenerator[tuple[TurnServer, RelayPort]]:
    """A TURN server, and a relayed address of ours there."""
    names = Names()
    with trio.fail_after(HANG):
        async with open_turn_server(CREDENTIALS, allowed_peers=HERE) as server:
            url = form.format(server.address[1])
            made = Relays([ConfiguredServer(url, "alice", "sesame")], names=names)
            async with names.running(), trio.open_nursery() as nursery, made.running(nursery):
                port = await made.open(permit=list(permit))
                yield server, port
                port.close_nowait()


def listen_for_probes(port: RelayPort) -> list[Any]:
    """Listens for probes as a race does; the list gets what comes from a sender that knows the race's secret."""
    heard: list[Any] = []
    codec = ProbeCodec(secrets.token_bytes(SECRET_LENGTH), initiator=True)
    checks = PathChecks(
        codec,
        entropy=secrets.token_bytes,
        allow=lambda _: True,
        on_heard=heard.append,
        on_confirmed=lambda pair, _: heard.append(pair),
    )

    def receive(data: bytes, source: TransportAddress) -> list[Datagram]:
        now = trio.current_time()
        checks.receive(0, data, source, now)
        return [(each.data, each.remote) for each in checks.transmit(now)]

    port.listen_for_probes(receive)
    return heard


def junk() -> list[bytes]:
    wrong = ProbeCodec(secrets.token_bytes(SECRET_LENGTH), initiator=False)
    return [
        b"",
        secrets.token_bytes(1200),
        channel_data(CHANNEL, b"inside out"),
        binding_request(bytes(12)),
        wrong.request(secrets.token_bytes(12)),
        wrong.response(secrets.token_bytes(12), ("127.0.0.1", 9)),
    ]


async def heard_nothing(sock: DatagramSocket) -> bool:
    """Whether a socket has received nothing.

    All is on one machine, so what was sent has arrived once all tasks are blocked.
    """
    await trio.testing.wait_all_tasks_blocked(0.01)
    with trio.move_on_after(0.01) as scope:
        await sock.receive_batch()
    return scope.cancelled_caught


@pytest.mark.slow("a third of a megabyte by QUIC, and as much from a stranger")
@pytest.mark.parametrize("form", FORMS)
async def test_another_port_of_the_peers_host(form: str) -> None:
    """Whatever it sends, even copies of the peer's own packets, has no effect and gets no answer."""
    stranger = await DatagramSocket.bind(("127.0.0.1", 0))
    async with relay(form, permit=["127.0.0.1"]) as (server, port):
        heard = listen_for_probes(port)
        peer = SocketPath(await DatagramSocket.bind(("127.0.0.1", 0)), port.local)
        peer.keep = True
        carriers: list[QuicCarrier] = []

        async def serve() -> None:
            carriers.append(await QuicCarrier.serve(peer, BOB))
            carriers[0].feed(bytes(range(250)) * (SIZE // 250))
            await carriers[0].flush()
            await carriers[0].receive()

        async def intrude() -> None:
            while True:
                copies, peer.sent = peer.sent[-20:], []
                await stranger.send_batch([(data, port.local) for data in (*junk(), *copies)])
                await trio.sleep(0.001)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve)
            nursery.start_soon(intrude)
            carrier = await QuicCarrier.dial(port.open_path(peer.local), peer_key=BOB.public_key)
            assert await receive_exactly(carrier, SIZE) == bytes(range(250)) * (SIZE // 250)
            nursery.cancel_scope.cancel()
        assert await heard_nothing(stranger)
        assert heard == []
        assert port.dropped >= 6
        assert server.statistics().relayed > 300
        close_carriers(carrier, *carriers)
    stranger.close()


@pytest.mark.parametrize("form", FORMS)
async def test_a_relay_beside_the_peers(form: str) -> None:
    """All relays of a server share one address, so the permission for the peer's also covers the stranger's port."""
    async with (
        relay(form) as (server, port),
        datagram_talk(server.address) as peer,
        datagram_talk(server.address) as stranger,
    ):
        heard = listen_for_probes(port)
        await peer.allocate()
        await stranger.allocate()
        for talk in (peer, stranger):
            assert error_of(await talk.ask(talk.requests.bind(CHANNEL, port.local))) == 0
        path = port.open_path(peer.relayed)
        await path.send([b"hello"])
        assert await peer.receive() == channel_data(CHANNEL, b"hello")
        for data in junk():
            await stranger.send(channel_data(CHANNEL, data))
        await peer.send(channel_data(CHANNEL, b"answer"))
        assert await path.receive() == [b"answer"]
        while port.dropped < 3:  # junk that looks like a probe is handled as a probe
            await trio.lowlevel.checkpoint()
        assert heard == []
        # The stranger has received nothing: the first thing it gets is the answer to its new request.
        assert error_of(await stranger.ask(stranger.requests.refresh(600))) == 0


async def test_another_client_of_the_server_has_no_part_in_a_permission() -> None:
    """It can neither send to the peer, nor receive from it."""
    async with relay(FORMS[0], permit=["127.0.0.1"]) as (server, port), datagram_talk(server.address) as stranger:
        await stranger.allocate()
        with trio.socket.socket(type=trio.socket.SOCK_DGRAM) as sock:
            await sock.bind(("127.0.0.1", 0))
            path = port.open_path(sock.getsockname())
            await path.send([b"hello"])
            assert await sock.recv(100) == b"hello"
            await stranger.send(indication(sock.getsockname(), b"a stranger's"))
            await stranger.send(channel_data(CHANNEL, b"a stranger's"))
            await sock.sendto(b"for nobody", stranger.relayed)
            assert error_of(await stranger.ask(stranger.requests.refresh(600))) == 0
            await path.send([b"again"])
            assert await sock.recv(100) == b"again"
        assert server.statistics().dropped == 3
