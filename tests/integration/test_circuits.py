"""Circuits over a real rendezvous server: two channels, their streams, and how these end."""

from __future__ import annotations

import errno
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from functools import partial

import pytest
import trio

from tests.hangs import HANG
from tests.identities import ALICE, BOB
from tests.waiting import wait_until
from warpgate_trio.carrier import TlsCarrier, TlsContexts
from warpgate_trio.config import ServerUrl
from warpgate_trio.errors import CarrierError, SignalUnavailable, WrongPeer
from warpgate_trio.nurseries import open_background_nursery
from warpgate_trio.servers import rendezvous_frames as wire
from warpgate_trio.servers.relay_core import CIRCUIT_BYTES, RelayLimits, RelayRules
from warpgate_trio.servers.relay_frames import INITIAL_CREDIT, EndReason, Ring
from warpgate_trio.servers.rendezvous import RendezvousServer, open_rendezvous
from warpgate_trio.servers.rendezvous_frames import ANY_INSTANCE, Registrant
from warpgate_trio.signal.channel import Delivery, Relays, SignalChannel
from warpgate_trio.signal.circuits import MAX_CIRCUITS, MAX_CONTROL, WINDOW, Circuit, CircuitRefused, Leaving, Ringing
from warpgate_trio.signal.transport import open_channel
from warpgate_trio.signal.websocket_channel import WebSocketChannel
from warpgate_trio.websocket import WebSocket, serve_websocket

OPEN = RelayRules(open_to_all=True)
QUIET = 0.1
"""Seconds without progress after which a sender counts as stuck.  On a busy machine they may be too few: then a test
proves less, and does not fail."""


@asynccontextmanager
async def two_channels(
    relay: RelayRules = OPEN, *, token: str | None = None
) -> AsyncGenerator[tuple[SignalChannel, SignalChannel, RendezvousServer]]:
    """Alice's and Bob's channels to one server; `token` is Alice's relay token."""
    with trio.fail_after(HANG):
        async with open_rendezvous(relay=relay) as server:
            url = ServerUrl.parse(server.url)
            registrant = Registrant(b"instance", relay_token=token)
            async with open_channel(url, ALICE, registrant=registrant) as alice, open_channel(url, BOB) as bob:
                yield alice, bob, server


async def connect(alice: SignalChannel, bob: SignalChannel) -> tuple[Circuit, Circuit]:
    caller = alice.circuit()
    await caller.call(BOB.public_key, ANY_INSTANCE, b"hello")
    ringing = await bob.receive()
    assert isinstance(ringing, Ringing)
    assert ringing.payload == b"hello"
    await ringing.circuit.answer(b"yes")
    await caller.wait_answered()
    assert await alice.receive() == b"yes"
    return caller, ringing.circuit


async def send_all(circuit: Circuit, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[await circuit.send(view) :]


async def send_until_stuck(circuit: Circuit) -> int:
    """Sends more than the initial credit, until nothing more is taken for `QUIET` seconds; returns how much."""
    sent = 0
    with trio.CancelScope() as patience:
        while True:
            if sent > INITIAL_CREDIT:
                patience.deadline = trio.current_time() + QUIET
            sent += await circuit.send(memoryview(bytes(65536)))
    return sent


async def receive_exactly(circuit: Circuit, size: int) -> bytes:
    parts = []
    while size:
        part = await circuit.recv(min(size, 50_000))
        assert part
        parts.append(part)
        size -= len(part)
    return b"".join(parts)


async def test_bytes_go_both_ways() -> None:
    data = bytes(range(256)) * 8192
    async with two_channels() as (alice, bob, server):
        one, other = await connect(alice, bob)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(send_all, one, data)
            nursery.start_soon(send_all, other, data[::-1])
            assert await receive_exactly(other, len(data)) == data
            assert await receive_exactly(one, len(data)) == data[::-1]
        await send_all(one, b"the last words")
        one.close()
        assert await receive_exactly(other, 14) == b"the last words"
        assert await other.recv(1) == b""
        with pytest.raises(OSError, match="was closed here"):
            await one.recv(1)
        with pytest.raises(OSError, match="the other side closed it"):
            await other.send(memoryview(b"x"))
        assert server.statistics().relay.circuits == 0


async def test_a_reader_that_stops_holds_its_circuit_and_nothing_else() -> None:
    async with two_channels() as (alice, bob, server):
        one, other = await connect(alice, bob)
        two, another = await connect(alice, bob)
        sent = await send_until_stuck(one)
        assert INITIAL_CREDIT < sent <= WINDOW + CIRCUIT_BYTES + 65536
        assert server.statistics().relay.held <= CIRCUIT_BYTES
        await send_all(two, b"ping")
        assert await another.recv(100) == b"ping"
        assert await alice.send(BOB.public_key, b"signal") is Delivery.DELIVERED
        assert await bob.receive() == b"signal"
        assert await receive_exactly(other, sent) == bytes(sent)


async def test_a_send_that_was_cancelled_has_sent_nothing() -> None:
    async with two_channels() as (alice, bob, _):
        one, other = await connect(alice, bob)
        sent = await send_until_stuck(one)
        await other.recv(1)
        await receive_exactly(other, sent - 1)
        await send_all(one, b"x")
        assert await other.recv(10) == b"x"


async def test_who_does_not_take_the_call() -> None:
    async with two_channels() as (alice, bob, server):
        caller = alice.circuit()
        await caller.call(BOB.public_key, ANY_INSTANCE, b"hello")
        ringing = await bob.receive()
        assert isinstance(ringing, Ringing)
        ringing.circuit.close()
        with pytest.raises(CircuitRefused, match="the peer refused the call") as caught:
            await caller.wait_answered()
        assert caught.value.reason == EndReason.REFUSED
        with pytest.raises(CircuitRefused):
            await ringing.circuit.answer(b"after all")
        assert server.statistics().relay.circuits == 0


async def test_a_caller_that_gives_up() -> None:
    async with two_channels() as (alice, bob, _):
        caller = alice.circuit()
        await caller.call(BOB.public_key, ANY_INSTANCE, b"hello")
        ringing = await bob.receive()
        assert isinstance(ringing, Ringing)
        caller.close()
        with pytest.raises(CircuitRefused, match="the other side closed it"):
            await ringing.circuit.wait_answered()


async def test_a_connection_that_ends() -> None:
    """What was sent before its end arrives, even if the channel is cancelled."""
    async with two_channels() as (_, bob, server):
        async with open_channel(ServerUrl.parse(server.url), ALICE) as short:
            one, other = await connect(short, bob)
            with trio.CancelScope() as scope:
                await send_all(one, b"last")
                scope.cancel()
        with pytest.raises(OSError, match="has ended: the connection to the server was closed"):
            await one.recv(1)
        assert await other.recv(10) == b"last"
        with pytest.raises(OSError, match="the other side's connection to the server has ended"):
            await other.recv(1)


async def test_the_token() -> None:
    rules = RelayRules(token="secret")
    async with two_channels(rules) as (alice, bob, _):
        assert alice.relays is Relays.WHO_HAS_ITS_TOKEN
        caller = alice.circuit()
        await caller.call(BOB.public_key, ANY_INSTANCE, b"hello")
        with pytest.raises(CircuitRefused, match="neither side has the server's relay token"):
            await caller.wait_answered()
    async with two_channels(rules, token="secret") as (alice, bob, _):
        assert (alice.relays, bob.relays) == (Relays.US, Relays.WHO_HAS_ITS_TOKEN)
        await connect(alice, bob)


async def test_nobody_answers() -> None:
    rules = RelayRules(open_to_all=True, limits=RelayLimits(unanswered=0.05))
    async with two_channels(rules) as (alice, bob, _):
        caller = alice.circuit()
        await caller.call(BOB.public_key, ANY_INSTANCE, b"hello")
        assert isinstance(await bob.receive(), Ringing)
        with pytest.raises(CircuitRefused, match="nobody answered in time"):
            await caller.wait_answered()


async def test_a_server_that_is_shut_down_says_so() -> None:
    """Circuits end after the data that was sent, connections close with 1001, and no new client gets in."""
    async with two_channels() as (alice, bob, server):
        one, other = await connect(alice, bob)
        await send_all(one, b"the last words")
        await wait_until(lambda: server.statistics().relay.relayed_bytes + server.statistics().relay.held == 14)
        assert not server.draining
        await server.drain()
        assert server.draining
        assert server.statistics().connections == 0
        assert await receive_exactly(other, 14) == b"the last words"
        for end in (one, other):
            with pytest.raises(OSError, match="has ended: the server is shutting down") as caught:
                await end.recv(1)
            assert caught.value.errno == errno.ECONNRESET
        for channel in (alice, bob):
            with pytest.raises(SignalUnavailable, match=r"code 1001: the server is shutting down"):
                await channel.receive()
        with pytest.raises(OSError, match=r"failed|refused"):
            await trio.open_tcp_stream("127.0.0.1", server.port)
        await server.drain()


async def test_a_call_to_a_server_that_is_shut_down() -> None:
    async with two_channels() as (alice, bob, server):
        one, _ = await connect(alice, bob)
        await send_until_stuck(one)
        async with open_background_nursery() as nursery:
            nursery.start_soon(server.drain)
            with pytest.raises(OSError, match="the server is shutting down"):
                await one.send(memoryview(b"x"))
            caller = bob.circuit()
            await caller.call(ALICE.public_key, ANY_INSTANCE, b"hello")
            with pytest.raises(CircuitRefused, match="the server is shutting down") as caught:
                await caller.wait_answered()
            assert caught.value.reason == EndReason.SHUTTING_DOWN


async def test_a_server_that_gives_time_to_leave_tells_its_clients_and_waits_until_they_have() -> None:
    """The clients make no new calls there, and their circuits still carry data."""
    async with two_channels() as (alice, bob, server):
        one, other = await connect(alice, bob)
        async with open_background_nursery() as nursery:
            drained = trio.Event()

            async def drain() -> None:
                await server.drain(leave=10 * HANG)
                drained.set()

            nursery.start_soon(drain)
            for channel, end in ((alice, one), (bob, other)):
                assert await channel.receive() == Leaving(end.local)
                assert channel.relays is Relays.NOBODY
                with pytest.raises(CircuitRefused):
                    channel.circuit()
            await send_all(one, b"still there")
            assert await receive_exactly(other, 11) == b"still there"
            assert not drained.is_set()
            one.close()
            await drained.wait()
        assert await other.recv(1) == b""
        for channel in (alice, bob):
            with pytest.raises(SignalUnavailable, match="1001"):
                await channel.receive()


async def test_who_gives_time_to_leave_and_waits_no_longer_has_circuits_ended() -> None:
    async with two_channels() as (alice, bob, server):
        ends = await connect(alice, bob)
        with trio.move_on_after(0.02) as patience:
            await server.drain(leave=10 * HANG)
        assert patience.cancelled_caught
        for end in ends:
            with pytest.raises(OSError, match="has ended: the server is shutting down"):
                await end.recv(1)
        assert server.statistics().connections == 0


async def test_who_is_told_that_a_server_shuts_down_calls_there_no_more() -> None:
    """Here the client has a circuit, and the server gives no time to leave."""
    async with two_channels() as (alice, bob, server):
        await connect(alice, bob)
        async with open_background_nursery() as nursery:
            nursery.start_soon(server.drain)
            with pytest.raises(SignalUnavailable, match="1001"):
                await alice.receive()
        assert alice.relays is Relays.NOBODY


@pytest.mark.parametrize("patience", [0.0, 0.05])
async def test_who_waits_no_longer_for_a_slow_reader_has_it_told_all_the_same(patience: float) -> None:
    async with two_channels() as (alice, bob, server):
        one, other = await connect(alice, bob)
        sent = await send_until_stuck(one)
        with trio.move_on_after(patience) as scope:
            await server.drain()
        assert scope.cancelled_caught
        assert server.statistics().connections == 0
        assert server.statistics().relay.held == 0
        received = 0
        with pytest.raises(OSError, match="has ended: the server is shutting down"):
            while True:
                received += len(await other.recv(65536))
        assert INITIAL_CREDIT <= received < sent
        with pytest.raises(SignalUnavailable, match="code 1001"):
            await bob.receive()


async def test_tls_whose_first_flights_ride_in_the_call_and_its_answer() -> None:
    async with two_channels() as (alice, bob, _):
        caller = alice.circuit()
        client, hello = TlsCarrier.begin(
            caller, TlsContexts(ALICE), peer_key=BOB.public_key, local=caller.local, remote=caller.remote
        )
        await caller.call(BOB.public_key, ANY_INSTANCE, hello)
        ringing = await bob.receive()
        assert isinstance(ringing, Ringing)
        circuit = ringing.circuit
        server, nothing = TlsCarrier.begin(
            circuit, TlsContexts(BOB), peer_key=None, local=circuit.local, remote=circuit.remote
        )
        assert nothing == b""
        await circuit.answer(server.take_flight(ringing.payload))
        await caller.wait_answered()
        flight = await alice.receive()
        assert isinstance(flight, bytes)
        assert client.take_flight(flight) == b""
        assert client.owed, "its Finished"
        client.feed(b"in the same flight")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client.flush)
            await server.finish()
        assert await server.receive() == [b"in the same flight"]
        server.feed(b"and back")
        await server.flush()
        assert await client.receive() == [b"and back"]
        client.feed_end()
        await client.flush()
        client.close_nowait()
        assert await server.receive() == []


async def test_a_server_that_rings_without_end_and_reads_nothing() -> None:
    """The number of owed answers is bounded; beyond it the channel ends."""

    async def handler(websocket: WebSocket) -> None:
        await websocket.send(wire.Challenge(bytes(32), 3).encode())
        await websocket.receive()
        await websocket.send(wire.Registered(1).encode())
        for number in range(1, 2 * MAX_CONTROL):
            await websocket.send(Ring(2 * number, b"hello").encode())
        await trio.sleep_forever()

    async def blocked(data: bytes) -> None:
        await trio.sleep_forever()

    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    url = ServerUrl.parse(f"ws://127.0.0.1:{listeners[0].socket.getsockname()[1]}")
    serve = partial(
        serve_websocket,
        handler,
        listeners,
        subprotocols=list(wire.SUBPROTOCOLS),
        max_message=wire.MAX_FRAME,
        handshake_timeout=5,
    )
    with trio.fail_after(HANG):
        async with open_background_nursery() as nursery:
            await nursery.start(serve)
            async with open_channel(url, ALICE) as channel:
                assert isinstance(channel, WebSocketChannel)
                channel._websocket.send = blocked  # type: ignore[method-assign]
                held = []
                with pytest.raises(SignalUnavailable, match="does not read them"):
                    while True:
                        held.append(await channel.receive())
                assert len(held) <= MAX_CIRCUITS


async def test_a_flight_of_somebody_else() -> None:
    ends = {"local": ("", 0), "remote": ("192.0.2.1", 1)}
    alice, bob, carol = (TlsContexts(each) for each in (ALICE, BOB, ALICE))
    nothing: Circuit = None  # type: ignore[assignment]
    client, hello = TlsCarrier.begin(nothing, alice, peer_key=BOB.public_key, **ends)
    server, _ = TlsCarrier.begin(nothing, carol, peer_key=None, **ends)
    with pytest.raises(WrongPeer):
        client.take_flight(server.take_flight(hello))
    client, hello = TlsCarrier.begin(nothing, alice, peer_key=BOB.public_key, **ends)
    with pytest.raises(CarrierError, match=r"no TLS 1\.3"):
        client.take_flight(b"garbage, more than five bytes")
    server, _ = TlsCarrier.begin(nothing, bob, peer_key=None, **ends)
    for junk in (b"", hello[:50]):
        with pytest.raises(CarrierError, match="incomplete TLS flight"):
            server.take_flight(junk)
