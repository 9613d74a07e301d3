"""Calls that are made while the connection to a server is being opened: the first one goes in the upgrade request."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial

import pytest
import trio
import trio.testing

from tests.hangs import HANG
from tests.identities import ALICE, BOB
from warpgate_trio.config import ServerUrl
from warpgate_trio.errors import SignalUnavailable
from warpgate_trio.nurseries import open_background_nursery
from warpgate_trio.servers import rendezvous_frames as wire
from warpgate_trio.servers.relay_core import RelayRules
from warpgate_trio.servers.relay_frames import Answer, Call, EndReason, RelayEnd
from warpgate_trio.servers.rendezvous import Rendezvous
from warpgate_trio.servers.rendezvous_frames import ANY_INSTANCE
from warpgate_trio.signal.channel import Delivery, SignalChannel
from warpgate_trio.signal.circuits import MAX_SIGNALS, Circuit, CircuitRefused, Circuits, Ringing
from warpgate_trio.signal.transport import open_channel
from warpgate_trio.websocket import MAX_AHEAD, WebSocket, serve_websocket

OPEN = RelayRules(open_to_all=True)


class Server:
    """A rendezvous server; `ahead` is what its clients sent in the upgrade request, one entry a connection."""

    def __init__(self, rules: RelayRules = OPEN) -> None:
        self.rendezvous = Rendezvous(relay=rules)
        self.ahead: list[bytes] = []

    async def handle(self, websocket: WebSocket) -> None:
        self.ahead.append(websocket.ahead)
        await self.rendezvous.handle(websocket)

    @property
    def circuits(self) -> int:
        return self.rendezvous.statistics().relay.circuits


@asynccontextmanager
async def serving(
    handler: Callable[[WebSocket], Awaitable[None]],
    *,
    reads_ahead: bool = True,
    versions: tuple[int, ...] = (3, 2),
) -> AsyncGenerator[ServerUrl]:
    """Serves as a server of any release would, for the time of the body, which is bounded."""
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    serve = partial(
        serve_websocket,
        handler,
        listeners,
        subprotocols=[name for name, version in wire.SUBPROTOCOLS.items() if version in versions],
        max_message=wire.MAX_FRAME,
        handshake_timeout=HANG,
        reads_ahead=reads_ahead,
    )
    with trio.fail_after(HANG):
        async with open_background_nursery() as nursery:
            await nursery.start(serve)
            yield ServerUrl.parse(f"ws://127.0.0.1:{listeners[0].socket.getsockname()[1]}")


async def called(circuits: Circuits, payload: bytes = b"hello") -> Circuit:
    circuit = circuits.make()
    await circuit.call(BOB.public_key, ANY_INSTANCE, payload)
    return circuit


async def taken(bob: SignalChannel, payload: bytes = b"hello") -> Circuit:
    ringing = await bob.receive()
    assert isinstance(ringing, Ringing)
    assert ringing.payload == payload
    await ringing.circuit.answer(b"yes")
    return ringing.circuit


async def exchange(alice: Circuit, bob: Circuit) -> None:
    """Sends a byte in each direction."""
    for sender, receiver in ((alice, bob), (bob, alice)):
        assert await sender.send(memoryview(b"x")) == 1
        assert await receiver.recv(10) == b"x"


@pytest.mark.parametrize("reads_ahead", [True, False])
async def test_the_first_call_goes_with_the_request(reads_ahead: bool) -> None:
    """To a server that does not read it there, it is sent behind the registration."""
    server = Server()
    async with serving(server.handle, reads_ahead=reads_ahead) as url, open_channel(url, BOB) as bob:
        circuits = Circuits("alice's")
        circuit = await called(circuits)
        async with open_channel(url, ALICE, circuits=circuits) as alice:
            theirs = await taken(bob)
            await circuit.wait_answered()
            assert await alice.receive() == b"yes"
            await exchange(circuit, theirs)
            assert circuit.local[0] == circuit.remote[0] == "127.0.0.1"
            assert circuit.remote[1] == url.port
            assert await alice.send(BOB.public_key, b"a signal") is Delivery.DELIVERED
    call = Call(1, BOB.public_key, ANY_INSTANCE, b"hello").encode()
    assert server.ahead == [b"", call if reads_ahead else b""]


async def test_further_calls_go_behind_the_registration() -> None:
    server = Server()
    async with serving(server.handle) as url, open_channel(url, BOB) as bob:
        circuits = Circuits("alice's")
        mine = [await called(circuits, payload) for payload in (b"1", b"2")]
        async with open_channel(url, ALICE, circuits=circuits, at_once=True):
            mine.append(await called(circuits, b"3"))
            theirs = [await taken(bob, payload) for payload in (b"1", b"2", b"3")]
            for pair in zip(mine, theirs, strict=True):
                await pair[0].wait_answered()
                await exchange(*pair)


async def test_a_call_that_is_too_long_for_a_header_goes_behind_the_registration() -> None:
    server, payload = Server(), bytes(MAX_AHEAD)
    async with serving(server.handle) as url, open_channel(url, BOB) as bob:
        circuits = Circuits("alice's")
        circuit = await called(circuits, payload)
        async with open_channel(url, ALICE, circuits=circuits):
            await taken(bob, payload)
            await circuit.wait_answered()
    assert server.ahead == [b"", b""]


@asynccontextmanager
async def serving_without_circuits() -> AsyncGenerator[tuple[ServerUrl, list[wire.FromClient]]]:
    """Serves version 2, which has no circuits; yields the URL and the list of frames that are received."""
    heard: list[wire.FromClient] = []

    async def handler(websocket: WebSocket) -> None:
        await websocket.send(wire.Challenge(bytes(32), 2).encode())
        while True:
            frame = wire.decode_from_client(await websocket.receive())
            heard.append(frame)
            if isinstance(frame, wire.Send):
                await websocket.send(wire.Sent(frame.id, 1).encode())
            else:
                await websocket.send(wire.Registered().encode())

    async with serving(handler, reads_ahead=False, versions=(2,)) as url:
        yield url, heard


async def test_a_server_that_knows_of_no_circuits_hears_of_none() -> None:
    """Such a server closes the connection when it receives a frame that it does not know."""
    async with serving_without_circuits() as (url, heard):
        circuits = Circuits("the server")
        circuit, closed, late = await called(circuits), await called(circuits), circuits.make()
        closed.close()
        async with open_channel(url, ALICE, circuits=circuits) as alice:
            for refused in (circuit.wait_answered, partial(late.call, BOB.public_key, ANY_INSTANCE, b"hello")):
                with pytest.raises(CircuitRefused, match="the server does not relay") as caught:
                    await refused()
                assert not caught.value.too_early
            for each in (circuit, late):
                each.close()
            assert await alice.send(BOB.public_key, b"a signal") is Delivery.DELIVERED
    assert [type(frame) for frame in heard] == [wire.Register2, wire.Send]


async def test_nor_of_calls_that_waited_for_room() -> None:
    async with serving_without_circuits() as (url, heard), trio.open_nursery() as nursery:
        circuits = Circuits("the server")
        for _ in range(MAX_SIGNALS):
            await called(circuits)
        refused = []

        async def call() -> None:
            with pytest.raises(CircuitRefused, match="the server does not relay") as caught:
                await (
                    await called(circuits)
                ).wait_answered()  # one gets room when a waiting call is taken for the request
            refused.append(caught.value)

        for _ in range(3):
            nursery.start_soon(call)
        await trio.testing.wait_all_tasks_blocked()
        async with open_channel(url, ALICE, circuits=circuits) as alice:
            assert await alice.send(BOB.public_key, b"a signal") is Delivery.DELIVERED
    assert len(refused) == 3
    assert [type(frame) for frame in heard] == [wire.Register2, wire.Send]


@pytest.mark.parametrize("token", [None, "a token"])
async def test_a_server_that_does_not_relay_for_us_says_so(token: str | None) -> None:
    server = Server(RelayRules(token=token))
    async with serving(server.handle) as url, open_channel(url, BOB) as bob:
        circuits = Circuits("the server")
        circuit = await called(circuits)
        async with open_channel(url, ALICE, circuits=circuits) as alice:
            with pytest.raises(CircuitRefused) as caught:
                await circuit.wait_answered()
            assert (caught.value.reason, caught.value.too_early) == (EndReason.NOT_ALLOWED, False)
            assert await alice.send(BOB.public_key, b"a signal") is Delivery.DELIVERED
        arrival = await bob.receive()
        if isinstance(arrival, Ringing):  # sent before the caller was known; the circuit has ended since
            arrival = await bob.receive()
        assert arrival == b"a signal"
    assert server.circuits == 0


async def test_a_call_that_is_taken_back_while_the_connection_is_opened() -> None:
    server = Server()
    async with serving(server.handle) as url, open_channel(url, BOB) as bob:
        circuits = Circuits("alice's")
        (await called(circuits)).close()
        async with open_channel(url, ALICE, circuits=circuits) as alice:
            ringing = await bob.receive()
            assert isinstance(ringing, Ringing)
            assert await alice.send(BOB.public_key, b"a signal") is Delivery.DELIVERED
            assert await bob.receive() == b"a signal"
            assert await ringing.circuit.recv(1) == b""
        assert server.circuits == 0


async def test_a_connection_that_does_not_come_to_be() -> None:
    """Another connection may follow, so the caller's error says that the call was too early."""
    circuits = Circuits("the server")
    circuit = await called(circuits)
    circuits.end("refused with HTTP status 431")
    for refused in (circuit.wait_answered, partial(circuit.call, BOB.public_key, ANY_INSTANCE, b"hello")):
        with pytest.raises(CircuitRefused, match="refused with HTTP status 431") as caught:
            await refused()
        assert caught.value.too_early


async def test_answers_that_come_before_the_registration() -> None:
    """No server of ours sends them; like any other frame out of turn, they end the connection."""

    async def handler(websocket: WebSocket) -> None:
        await websocket.send(wire.Challenge(bytes(32), 3).encode())
        await websocket.send(Answer(1, b"yes").encode())
        await websocket.receive()

    async with serving(handler) as url:
        circuits = Circuits("the server")
        circuit = await called(circuits)
        with pytest.raises(SignalUnavailable, match="sent Answer instead of Registered"):
            async with open_channel(url, ALICE, circuits=circuits):
                pytest.fail("opened")
        with pytest.raises(CircuitRefused):
            await circuit.wait_answered()


async def test_an_end_may_come_before_the_registration() -> None:
    async def handler(websocket: WebSocket) -> None:
        await websocket.send(wire.Challenge(bytes(32), 3).encode())
        await websocket.send(RelayEnd(1, EndReason.NOBODY_HOME).encode())
        await websocket.send(wire.Registered(0).encode())
        while True:
            await websocket.receive()

    async with serving(handler) as url:
        circuits = Circuits("the server")
        circuit = await called(circuits)
        async with open_channel(url, ALICE, circuits=circuits):
            with pytest.raises(CircuitRefused) as caught:
                await circuit.wait_answered()
            assert caught.value.reason == EndReason.NOBODY_HOME
