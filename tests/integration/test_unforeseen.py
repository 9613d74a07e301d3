"""Servers of ours whose cores raise an unforeseen exception for marked input: other clients are served as before."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import pytest
import trio

from tests.hangs import HANG
from tests.identities import ALICE, BOB
from tests.integration.test_rendezvous import by_hand, channel_to
from tests.integration.test_turn_server import CHANNEL, Talk, datagram_talk, echo_through, serving, stream_talk
from tests.panicking import PanicException
from tests.turn_requests import channel_data, error_of
from warpgate_trio.servers.ntp import open_ntp
from warpgate_trio.servers.ntp_core import NtpResponder
from warpgate_trio.servers.rendezvous import open_rendezvous
from warpgate_trio.servers.rendezvous_core import RendezvousCore
from warpgate_trio.servers.replies import ReplySink, ServerSocket
from warpgate_trio.servers.stun import open_stun_server
from warpgate_trio.servers.stun_core import StunCore
from warpgate_trio.servers.turn_core import TurnCore
from warpgate_trio.servers.turn_shell import RelayPlaces
from warpgate_trio.signal import Delivery
from warpgate_trio.stun.client import open_stun_stream, query_stream, query_udp
from warpgate_trio.stun.transaction import binding_request
from warpgate_trio.turn.messages import Code

MARK = b"\xabMARKED!\xcd\xef\x01\x02"  # as long as a transaction id
TIMES = 3
INTERRUPTS = (KeyboardInterrupt, SystemExit)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    passes = metafunc.function.__name__.startswith("test_an_interrupt")
    metafunc.parametrize("error", INTERRUPTS if passes else (PanicException, KeyError))


@pytest.fixture
def fails(
    error: type[BaseException], monkeypatch: pytest.MonkeyPatch, own_logging: None
) -> Callable[[type[Any], str], None]:
    """Makes a method raise if one of its arguments contains the mark."""

    def patch(owner: type[Any], name: str) -> None:
        real = getattr(owner, name)

        def method(self: object, *args: object, **options: object) -> object:
            if any(isinstance(each, bytes) and MARK in each for each in args):
                raise error("marked")
            return real(self, *args, **options)

        monkeypatch.setattr(owner, name, method)

    return patch


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.message.partition(" failed")[0] for record in caplog.records if record.levelno >= logging.WARNING]


# --- TURN -------------------------------------------------------------------------------------------------------------


async def test_a_datagram_at_the_turn_server(
    fails: Callable[[type[Any], str], None], caplog: pytest.LogCaptureFixture
) -> None:
    fails(TurnCore, "receive")
    async with serving() as server, datagram_talk(server.address) as talk:
        for _ in range(TIMES):
            await talk.send(MARK)
        await echo_through(talk)
        await talk.send(MARK)
        async with datagram_talk(server.address) as other:
            await echo_through(other)
    assert said(caplog) == ["a client's datagram"]


async def test_a_binding_request_at_the_turn_server(
    fails: Callable[[type[Any], str], None], caplog: pytest.LogCaptureFixture
) -> None:
    fails(StunCore, "receive")
    async with serving() as server, datagram_talk(server.address) as talk:
        for _ in range(TIMES):
            await talk.send(binding_request(MARK))
        await echo_through(talk)
    assert said(caplog) == ["a client's datagram"]


async def test_a_peers_datagram_at_the_turn_server(
    fails: Callable[[type[Any], str], None], caplog: pytest.LogCaptureFixture
) -> None:
    fails(TurnCore, "receive_from_peer")
    async with serving() as server, datagram_talk(server.address) as talk:
        await talk.allocate()
        with trio.socket.socket(type=trio.socket.SOCK_DGRAM) as peer:
            await peer.bind(("127.0.0.1", 0))
            await talk.ask(talk.requests.bind(CHANNEL, peer.getsockname()))
            for _ in range(TIMES):
                await peer.sendto(MARK, talk.relayed)
            await peer.sendto(b"hello", talk.relayed)
            assert await talk.receive() == channel_data(CHANNEL, b"hello")
    assert said(caplog) == ["a peer's datagram"]


async def test_an_answer_of_the_turn_server(
    fails: Callable[[type[Any], str], None], caplog: pytest.LogCaptureFixture
) -> None:
    """Other messages of the same step are still sent."""
    fails(ReplySink, "send")
    async with serving() as server, datagram_talk(server.address) as talk:
        await talk.allocate()
        with trio.socket.socket(type=trio.socket.SOCK_DGRAM) as peer:
            await peer.bind(("127.0.0.1", 0))
            await talk.ask(talk.requests.bind(CHANNEL, peer.getsockname()))
            for data in (MARK, b"hello", MARK):
                await talk.send(channel_data(CHANNEL, data))
            assert await peer.recv(100) == b"hello"
            await talk.send(channel_data(CHANNEL, b"again"))
            assert await peer.recv(100) == b"again"
    assert said(caplog) == ["sending a message"]


async def test_a_connection_to_the_turn_server(
    fails: Callable[[type[Any], str], None], caplog: pytest.LogCaptureFixture
) -> None:
    """The connection ends, with its allocation; other connections stay."""
    fails(TurnCore, "receive")
    async with serving() as server, stream_talk(server.address) as other:
        assert error_of(await other.allocate()) == 0
        for _ in range(TIMES):
            async with stream_talk(server.address) as talk:
                assert error_of(await talk.allocate()) == 0
                await talk.send(channel_data(CHANNEL, MARK))
                await expect_end(talk)
        assert server.statistics().allocations == 1
        assert error_of(await other.ask(other.requests.refresh(0))) == 0
        await echo_through(other)
    assert said(caplog) == ["a client's connection"]


async def expect_end(talk: Talk) -> None:
    with pytest.raises((EOFError, trio.BrokenResourceError)):
        await talk.receive()


async def test_a_relayed_address_that_cannot_be_opened(
    error: type[BaseException],
    own_logging: None,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The client gets the same error as when no port is free."""

    async def fail(*_: object, **__: object) -> None:
        await trio.lowlevel.checkpoint()
        raise error("marked")

    async with serving() as server, datagram_talk(server.address) as talk, datagram_talk(server.address) as other:
        assert error_of(await other.allocate()) == 0
        with monkeypatch.context() as patch:
            patch.setattr(RelayPlaces, "open", fail)
            for _ in range(TIMES):
                assert error_of(await talk.allocate()) == Code.INSUFFICIENT_CAPACITY
        assert server.statistics().allocations == 1
        await echo_through(talk)
        assert error_of(await other.ask(other.requests.refresh(0))) == 0
    assert said(caplog) == ["opening a relayed address"]


async def test_a_relayed_address_that_breaks(
    error: type[BaseException],
    own_logging: None,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The allocation ends with it; the client learns that from its next Refresh."""
    real = ServerSocket.receive_batch
    bad: set[int] = set()

    async def receive(self: ServerSocket, size: int) -> object:
        batch = await real(self, size)
        if self.address[1] in bad:
            raise error("marked")
        return batch

    monkeypatch.setattr(ServerSocket, "receive_batch", receive)
    async with serving() as server, datagram_talk(server.address) as talk, datagram_talk(server.address) as other:
        await other.allocate()
        for _ in range(TIMES):
            await talk.allocate()
            bad.add(talk.relayed[1])
            with trio.socket.socket(type=trio.socket.SOCK_DGRAM) as peer:
                await peer.sendto(b"x", talk.relayed)
            while server.statistics().allocations > 1:
                await trio.lowlevel.checkpoint()
            bad.clear()
            assert error_of(await talk.ask(talk.requests.refresh(600))) == Code.ALLOCATION_MISMATCH
        assert error_of(await other.ask(other.requests.refresh(0))) == 0
    assert said(caplog) == ["a relayed address"]


# --- STUN -------------------------------------------------------------------------------------------------------------


async def test_a_datagram_at_the_stun_server(
    fails: Callable[[type[Any], str], None], caplog: pytest.LogCaptureFixture
) -> None:
    fails(StunCore, "receive")
    with trio.fail_after(HANG):
        async with open_stun_server() as server:
            with trio.socket.socket(type=trio.socket.SOCK_DGRAM) as sock:
                await sock.bind(("127.0.0.1", 0))
                for _ in range(TIMES):
                    await sock.sendto(binding_request(MARK), server.address)
                assert (await query_udp(sock, server.address)).mapped == sock.getsockname()
    assert said(caplog) == ["a datagram"]


async def test_a_connection_to_the_stun_server(
    fails: Callable[[type[Any], str], None], caplog: pytest.LogCaptureFixture
) -> None:
    fails(StunCore, "receive_message")
    with trio.fail_after(HANG):
        async with open_stun_server() as server, open_stun_stream(server.address) as other:
            for _ in range(TIMES):
                async with await trio.open_tcp_stream(*server.address) as stream:
                    await stream.send_all(binding_request(MARK))
                    assert await stream.receive_some() == b""
            assert (await query_stream(other)).mapped == other.socket.getsockname()
    assert said(caplog) == ["a connection"]


# --- NTP --------------------------------------------------------------------------------------------------------------


async def test_a_request_at_the_ntp_server(
    fails: Callable[[type[Any], str], None], caplog: pytest.LogCaptureFixture
) -> None:
    fails(NtpResponder, "receive")
    with trio.fail_after(HANG):
        async with open_ntp() as server:
            with trio.socket.socket(type=trio.socket.SOCK_DGRAM) as sock:
                for data in (*[MARK] * TIMES, b"\x23" + bytes(47)):
                    await sock.sendto(data, ("127.0.0.1", server.port))
                assert len(await sock.recv(100)) == 48
    assert said(caplog) == ["a request"]


# --- Rendezvous -------------------------------------------------------------------------------------------------------


async def test_a_connection_to_the_rendezvous_server(
    fails: Callable[[type[Any], str], None], caplog: pytest.LogCaptureFixture
) -> None:
    fails(RendezvousCore, "receive")
    with trio.fail_after(HANG):
        async with open_rendezvous() as server, channel_to(server, ALICE) as alice, channel_to(server, BOB) as bob:
            for _ in range(TIMES):
                async with by_hand(server) as websocket:
                    await websocket.send(MARK)
                    with pytest.raises(Exception, match="closed"):
                        await websocket.receive()
            assert await alice.send(BOB.public_key, b"hello") is Delivery.DELIVERED
            assert await bob.receive() == b"hello"
    assert said(caplog) == ["the handler of a WebSocket, whose connection is closed,"]


# --- exceptions that pass through -------------------------------------------------------------------------------------


async def test_an_interrupt_at_the_turn_server_passes(
    error: type[BaseException], fails: Callable[[type[Any], str], None], caplog: pytest.LogCaptureFixture
) -> None:
    fails(TurnCore, "receive")
    with pytest.raises(error):
        async with serving() as server, datagram_talk(server.address) as talk:
            await talk.send(MARK)
            await trio.sleep_forever()
    assert said(caplog) == []


async def test_an_interrupt_at_the_stun_server_passes(
    error: type[BaseException], fails: Callable[[type[Any], str], None], caplog: pytest.LogCaptureFixture
) -> None:
    fails(StunCore, "receive")
    with trio.fail_after(HANG), pytest.raises(error):
        async with open_stun_server() as server:
            with trio.socket.socket(type=trio.socket.SOCK_DGRAM) as sock:
                await sock.sendto(binding_request(MARK), server.address)
                await trio.sleep_forever()
    assert said(caplog) == []


async def test_an_interrupt_at_the_ntp_server_passes(
    error: type[BaseException], fails: Callable[[type[Any], str], None], caplog: pytest.LogCaptureFixture
) -> None:
    fails(NtpResponder, "receive")
    with trio.fail_after(HANG), pytest.raises(error):
        async with open_ntp() as server:
            with trio.socket.socket(type=trio.socket.SOCK_DGRAM) as sock:
                await sock.sendto(MARK, ("127.0.0.1", server.port))
                await trio.sleep_forever()
    assert said(caplog) == []


async def test_an_interrupt_at_the_rendezvous_server_passes(
    error: type[BaseException], fails: Callable[[type[Any], str], None], caplog: pytest.LogCaptureFixture
) -> None:
    fails(RendezvousCore, "receive")
    with trio.fail_after(HANG), pytest.raises(error):
        async with open_rendezvous() as server, by_hand(server) as websocket:
            await websocket.send(MARK)
            await trio.sleep_forever()
    assert said(caplog) == []
