"""The rendezvous server and a channel to it, over real sockets and real TLS, with all that either side can do wrong."""

from __future__ import annotations

import logging
import socket
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any, cast, final

import pytest
import trio

from tests.certificates import Authority
from tests.hangs import HANG
from tests.hubs import websocket_server
from tests.identities import ALICE, BOB
from tests.ports import free_port
from tests.rendezvous_v1 import Refused, old_client, old_server
from tests.waiting import wait_until
from warpgate_trio.config import ServerUrl
from warpgate_trio.errors import ConfigError, SignalUnavailable, SignalUnsupported
from warpgate_trio.identity import Identity
from warpgate_trio.nurseries import open_background_nursery
from warpgate_trio.servers import rendezvous as rendezvous_shell
from warpgate_trio.servers import rendezvous_frames as wire
from warpgate_trio.servers.rendezvous import (
    Rendezvous,
    RendezvousLimits,
    RendezvousServer,
    open_rendezvous,
    serve_rendezvous,
)
from warpgate_trio.signal import Delivery, SignalChannel, open_channel, websocket_channel
from warpgate_trio.websocket import (
    Accepted,
    WebSocket,
    WebSocketClosed,
    open_websocket,
)

pytestmark = pytest.mark.usefixtures("bounded")


@asynccontextmanager
async def channel_to(
    server: RendezvousServer | str, identity: Identity, registrant: wire.Registrant | None = None
) -> AsyncGenerator[SignalChannel]:
    url = server if isinstance(server, str) else server.url
    async with open_channel(ServerUrl.parse(url), identity, registrant=registrant) as channel:
        yield channel


@asynccontextmanager
async def by_hand(server: RendezvousServer, identity: Identity | None = None) -> AsyncGenerator[WebSocket]:
    """A client under the test's control: registered if it has an identity, else only challenged."""
    async with open_websocket(server.url, max_message=2 * wire.MAX_FRAME, close_timeout=0.05) as websocket:
        challenge = wire.decode_from_server(await websocket.receive())
        assert isinstance(challenge, wire.Challenge)
        if identity is not None:
            await websocket.send(wire.register(identity, challenge).encode())
            assert wire.decode_from_server(await websocket.receive()) == wire.Registered()
        yield websocket


async def expect_error(websocket: WebSocket, code: wire.ErrorCode) -> str:
    error = wire.decode_from_server(await websocket.receive())
    assert isinstance(error, wire.Error)
    assert error.code == code
    with pytest.raises(WebSocketClosed):
        await websocket.receive()
    return error.text


# --- signals ---


@pytest.mark.parametrize("host", ["127.0.0.1", pytest.param("::1", marks=pytest.mark.needs("ipv6"))])
@pytest.mark.parametrize("tls", [False, True])
async def test_a_payload_from_alice_to_bob(host: str, tls: bool, tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    trust = authority.client() if tls else None
    async with open_rendezvous(host=host, ssl_context=authority.server(host) if tls else None) as server:
        assert server.url.startswith("wss://" if tls else "ws://")
        url = ServerUrl.parse(server.url)
        async with (
            open_channel(url, ALICE, ssl_context=trust) as alice,
            open_channel(url, BOB, ssl_context=trust) as bob,
        ):
            assert alice.url == server.url
            assert alice.rtt is not None
            assert 0 < alice.rtt < 1
            for payload in (b"x", bytes(wire.MAX_PAYLOAD)):
                assert await alice.send(BOB.public_key, payload) is Delivery.DELIVERED
                assert await bob.receive() == payload
            assert server.statistics().connections == server.statistics().mailboxes == 2
        await wait_until(lambda: server.statistics().connections == 0)
        assert server.statistics().mailboxes == 0


async def test_every_connection_of_a_key_gets_a_copy() -> None:
    async with open_rendezvous() as server:
        async with channel_to(server, BOB) as one, channel_to(server, BOB) as two, channel_to(server, ALICE) as alice:
            assert await alice.send(BOB.public_key, b"x") is Delivery.DELIVERED
            assert await one.receive() == await two.receive() == b"x"


async def test_nobody_home() -> None:
    async with open_rendezvous() as server, channel_to(server, ALICE) as alice:
        assert await alice.send(BOB.public_key, b"x") is Delivery.NOBODY_HOME
        async with channel_to(server, BOB):
            assert await alice.send(BOB.public_key, b"x") is Delivery.DELIVERED
        await wait_until(lambda: server.statistics().mailboxes == 1)
        assert await alice.send(BOB.public_key, b"x") is Delivery.NOBODY_HOME


async def test_many_sends_at_once() -> None:
    async with open_rendezvous() as server, channel_to(server, ALICE) as alice, channel_to(server, BOB) as bob:
        async with trio.open_nursery() as nursery:
            for number in range(50):
                nursery.start_soon(alice.send, BOB.public_key, bytes([number]))
        assert {await bob.receive() for _ in range(50)} == {bytes([number]) for number in range(50)}


@pytest.mark.needs("ipv6")
async def test_all_addresses() -> None:
    async with open_rendezvous(host=None) as server:
        assert len(server.urls) == 2
        assert server.port == ServerUrl.parse(server.url).port
        for url in server.urls:
            local = url.replace("0.0.0.0", "127.0.0.1").replace("[::]", "[::1]")
            async with channel_to(local, ALICE):
                pass


async def test_serve_with_start() -> None:
    async with trio.open_nursery() as nursery:
        server = await nursery.start(serve_rendezvous)
        async with channel_to(server, ALICE):
            assert repr(server) == f"<RendezvousServer {server.url}>"
        nursery.cancel_scope.cancel()


async def test_a_port_in_use() -> None:
    async with open_rendezvous() as server:
        with pytest.raises(OSError, match=r"(?i)in use"):
            async with open_rendezvous(port=server.port):
                pytest.fail("two servers on one port")


async def test_the_bodys_exception_leaves_bare() -> None:
    with pytest.raises(ZeroDivisionError):
        async with open_rendezvous() as server, channel_to(server, ALICE):
            raise ZeroDivisionError


async def test_nothing_of_a_payload_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    async with open_rendezvous() as server, channel_to(server, ALICE) as alice, channel_to(server, BOB) as bob:
        await alice.send(BOB.public_key, b"confidential")
        await bob.receive()
        await alice.send(bytes(32), b"confidential")
    assert "confidential" not in caplog.text
    assert BOB.public_key.hex() not in caplog.text


# --- the server against its clients ---


async def test_a_wrong_signature() -> None:
    async with open_rendezvous() as server:
        async with by_hand(server) as websocket:
            await websocket.send(wire.Register(BOB.public_key, bytes(64)).encode())
            text = await expect_error(websocket, wire.ErrorCode.BAD_SIGNATURE)
        assert "not made by the key" in text
        assert server.statistics().mailboxes == 0


async def test_challenges_differ() -> None:
    """Otherwise a registration could be replayed."""
    async with open_rendezvous() as server:
        challenges = []
        for _ in range(2):
            async with open_websocket(server.url, max_message=100) as websocket:
                challenges.append(await websocket.receive())
        assert challenges[0] != challenges[1]


@pytest.mark.parametrize("frame", [b"\x00", wire.Send(1, bytes(32), b"x").encode(), bytes(wire.MAX_FRAME)])
async def test_a_frame_out_of_turn(frame: bytes) -> None:
    async with open_rendezvous() as server, by_hand(server) as websocket:
        await websocket.send(frame)
        await expect_error(websocket, wire.ErrorCode.PROTOCOL)


async def test_a_frame_over_the_limit() -> None:
    async with open_rendezvous() as server, by_hand(server, ALICE) as websocket:
        await websocket.send(bytes(wire.MAX_FRAME + 1))
        with pytest.raises(WebSocketClosed, match="1009"):
            await websocket.receive()


@pytest.mark.usefixtures("jumping_clock")
async def test_no_registration() -> None:
    async with open_rendezvous(limits=RendezvousLimits(registration=0.05)) as server, by_hand(server) as websocket:
        await expect_error(websocket, wire.ErrorCode.SLOW)


@pytest.mark.usefixtures("jumping_clock")
async def test_silence() -> None:
    async with open_rendezvous(limits=RendezvousLimits(silence=0.2)) as server:
        async with by_hand(server, ALICE) as silent, by_hand(server, BOB) as pinging:
            async with open_background_nursery() as nursery:

                async def ping() -> None:
                    while True:
                        await pinging.ping()
                        await trio.sleep(0.01)

                nursery.start_soon(ping)
                await expect_error(silent, wire.ErrorCode.SLOW)
            assert server.statistics().mailboxes == 1


async def test_too_many_sends() -> None:
    async with open_rendezvous(limits=RendezvousLimits(send_burst=2, sends_per_second=0.1)) as server:
        async with channel_to(server, ALICE) as alice:
            await alice.send(BOB.public_key, b"x")
            await alice.send(BOB.public_key, b"x")
            with pytest.raises(SignalUnavailable, match=r"more SENDs than this server allows \(code 4\)"):
                await alice.send(BOB.public_key, b"x")
            with pytest.raises(SignalUnavailable, match="more SENDs"):
                await alice.send(BOB.public_key, b"x")
            with pytest.raises(SignalUnavailable, match="more SENDs"):
                await alice.receive()


async def test_the_oldest_connection_is_replaced() -> None:
    async with open_rendezvous(limits=RendezvousLimits(connections_per_key=1)) as server:
        async with by_hand(server, BOB) as ghost, channel_to(server, BOB) as bob, channel_to(server, ALICE) as alice:
            await expect_error(ghost, wire.ErrorCode.REPLACED)
            assert await alice.send(BOB.public_key, b"x") is Delivery.DELIVERED
            assert await bob.receive() == b"x"


async def test_a_server_that_is_shut_down_tells_all_clients_to_go_away() -> None:
    """This includes registered and unregistered clients, and one that connects at that moment."""
    async with open_rendezvous() as server:
        async with by_hand(server, ALICE) as registered, by_hand(server) as stranger:
            await server.drain()
            for websocket in (registered, stranger):
                with pytest.raises(WebSocketClosed, match="the server is shutting down") as caught:
                    await websocket.receive()
                assert caught.value.code == 1001
        assert server.statistics().connections == 0


async def test_a_client_whose_handshake_ends_while_the_server_is_shut_down() -> None:
    rendezvous = Rendezvous()
    async with websocket_server(rendezvous.handle) as url:
        await rendezvous.drain()
        async with open_websocket(url, max_message=wire.MAX_FRAME) as websocket:
            with pytest.raises(WebSocketClosed, match="the server is shutting down"):
                await websocket.receive()


async def test_a_signal_that_waits_goes_before_the_server_is_shut_down() -> None:
    async with open_rendezvous() as server, by_hand(server, BOB) as bob:
        async with channel_to(server, ALICE) as alice:
            for _ in range(3):
                assert await alice.send(BOB.public_key, b"x") is Delivery.DELIVERED
            await server.drain()
        for _ in range(3):
            assert wire.decode_from_server(await bob.receive()) == wire.Message(b"x")
        with pytest.raises(WebSocketClosed, match="1001"):
            await bob.receive()


@pytest.mark.usefixtures("jumping_clock")
async def test_who_shuts_the_server_down_waits_as_long_as_he_wants(monkeypatch: pytest.MonkeyPatch) -> None:
    """Once the wait is cancelled, a client that reads nothing delays the end by `LAST_WORD` at most."""
    monkeypatch.setattr(rendezvous_shell, "LAST_WORD", 0.02)
    limits = RendezvousLimits(send_burst=10_000, write=100 * HANG)
    async with (
        open_rendezvous(limits=limits) as server,
        by_hand(server, BOB) as bob,
        by_hand(server, ALICE) as alice,
    ):
        frame = wire.Send(1, BOB.public_key, bytes(wire.MAX_PAYLOAD)).encode()
        while wire.decode_from_server(await _answered(alice, frame)) != wire.Sent(1, wire.QUEUE_FULL):
            pass
        with trio.move_on_after(0.05) as patience:
            await server.drain()
        assert patience.cancelled_caught
        await wait_until(lambda: server.statistics().connections == 0)
        assert repr(bob)


async def _answered(websocket: WebSocket, frame: bytes) -> bytes:
    await websocket.send(frame)
    return await websocket.receive()


async def test_connections_are_limited() -> None:
    async with open_rendezvous(limits=RendezvousLimits(connections_per_address=1)) as server:
        async with channel_to(server, ALICE):
            with pytest.raises((SignalUnavailable, OSError)):
                async with channel_to(server, BOB):
                    pytest.fail("a second connection from the address")


@asynccontextmanager
async def bob_who_does_not_read(server: RendezvousServer) -> AsyncGenerator[None]:
    """Registers Bob, whose small receive buffer nobody empties."""
    listener = trio.socket.socket()
    with listener:
        # A forwarder between Bob and the server, which stops reading once Bob is registered.
        await listener.bind(("127.0.0.1", 0))
        listener.listen()
        stopped = trio.Event()

        async def forward(source: trio.SocketStream, sink: trio.SocketStream, stop: trio.Event | None) -> None:
            async for data in source:
                await sink.send_all(data)
                if stop is not None and stop.is_set():
                    await trio.sleep_forever()

        async def serve() -> None:
            client = trio.SocketStream((await listener.accept())[0])
            to_server = trio.socket.socket()
            to_server.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            await to_server.connect(("127.0.0.1", server.port))
            upstream = trio.SocketStream(to_server)
            async with client, upstream, trio.open_nursery() as nursery:
                nursery.start_soon(forward, client, upstream, None)
                nursery.start_soon(forward, upstream, client, stopped)

        async with open_background_nursery() as nursery:
            nursery.start_soon(serve)
            url = f"ws://127.0.0.1:{listener.getsockname()[1]}"
            async with open_websocket(url, max_message=wire.MAX_FRAME, close_timeout=0) as websocket:
                challenge = wire.decode_from_server(await websocket.receive())
                assert isinstance(challenge, wire.Challenge)
                await websocket.send(wire.register(BOB, challenge).encode())
                assert wire.decode_from_server(await websocket.receive()) == wire.Registered()
                stopped.set()
                yield


async def test_a_slow_receiver_blocks_nobody_else() -> None:
    limits = RendezvousLimits(queue=3, send_burst=10_000)
    async with open_rendezvous(limits=limits) as server, channel_to(server, ALICE) as alice:
        async with bob_who_does_not_read(server):
            for _ in range(2000):
                delivery = await alice.send(BOB.public_key, bytes(wire.MAX_PAYLOAD))
                if delivery is Delivery.FULL:
                    break
            else:
                pytest.fail("never full")
            assert server.statistics().queued == 3
            assert await alice.send(ALICE.public_key, b"x") is Delivery.DELIVERED
            assert await alice.receive() == b"x"
        await wait_until(lambda: server.statistics().connections == 1)
        assert server.statistics().queued == 0


@pytest.mark.usefixtures("jumping_clock")
async def test_a_receiver_that_never_reads_is_closed() -> None:
    limits = RendezvousLimits(queue=3, send_burst=10_000, write=0.05)
    async with open_rendezvous(limits=limits) as server, channel_to(server, ALICE) as alice:
        async with bob_who_does_not_read(server):
            while await alice.send(BOB.public_key, bytes(wire.MAX_PAYLOAD)) is Delivery.DELIVERED:
                pass
            await wait_until(lambda: server.statistics().connections == 1)
            assert await alice.send(BOB.public_key, b"x") is Delivery.NOBODY_HOME


@pytest.mark.usefixtures("jumping_clock")
async def test_the_time_for_a_write_ends_with_it() -> None:
    limits = RendezvousLimits(write=0.05)
    async with open_rendezvous(limits=limits) as server, channel_to(server, ALICE) as alice:
        assert await alice.send(ALICE.public_key, b"x") is Delivery.DELIVERED
        assert await alice.receive() == b"x"
        await trio.sleep(3 * limits.write)  # this must have no effect
        assert await alice.send(ALICE.public_key, b"y") is Delivery.DELIVERED
        assert await alice.receive() == b"y"


# --- version 2: a registration is for one server ---


async def test_an_old_client_and_a_new_one() -> None:
    async with (
        open_rendezvous() as server,
        channel_to(server, ALICE) as new,
        old_client(server.url, BOB) as old,
    ):
        assert await new.send(BOB.public_key, b"to the old") is Delivery.DELIVERED
        assert await old.receive() == b"to the old"
        assert await old.send(ALICE.public_key, b"to the new") == 1
        assert await new.receive() == b"to the new"


async def test_a_new_client_at_an_old_server() -> None:
    async with websocket_server(old_server) as url, channel_to(url, ALICE) as channel:
        assert await channel.send(BOB.public_key, b"x") is Delivery.NOBODY_HOME
        assert await channel.send(ALICE.public_key, b"y") is Delivery.DELIVERED
        assert await channel.receive() == b"y"


async def test_a_server_that_goes_back_to_version_1() -> None:
    rendezvous, old = Rendezvous(), False

    async def handler(websocket: WebSocket) -> None:
        await (old_server(websocket) if old else rendezvous.handle(websocket))

    registrant = websocket_channel.new_registrant()
    async with websocket_server(handler) as url:
        async with channel_to(url, ALICE, registrant):
            old = True
        with pytest.raises(SignalUnavailable, match="spoke version 2 before and claims version 1 now"):
            async with channel_to(url, ALICE, registrant):
                pytest.fail("opened")
        async with channel_to(url, ALICE):  # another process does not know it
            old = False
        async with channel_to(url, ALICE, registrant):
            pass


# --- what is sent right behind the registration ---


@asynccontextmanager
async def channel_at_once(
    url: str, identity: Identity, registrant: wire.Registrant | None = None
) -> AsyncGenerator[SignalChannel]:
    """A channel that is handed out before the server has answered the registration."""
    async with open_channel(ServerUrl.parse(url), identity, registrant=registrant, at_once=True) as channel:
        yield channel


@pytest.mark.parametrize("first", [wire.Sent, wire.Registered])
async def test_a_send_does_not_wait_to_be_registered(first: type[wire.FromServer]) -> None:
    """A server may answer the registration and the message in either order."""
    told = trio.Event()

    async def handler(websocket: WebSocket) -> None:
        await websocket.send(wire.Challenge(bytes(32), 2).encode())
        frames = [wire.decode_from_client(await websocket.receive()) for _ in range(2)]
        assert [type(frame) for frame in frames] == [wire.Register2, wire.Send]
        answers: list[wire.FromServer] = [wire.Registered(), wire.Sent(frames[1].id, 1)]  # type: ignore[union-attr]
        for answer in sorted(answers, key=lambda each: not isinstance(each, first)):
            await websocket.send(answer.encode())
        await told.wait()
        await websocket.send(wire.Message(b"y").encode())
        await websocket.receive()

    async with websocket_server(handler) as url, channel_at_once(url, ALICE) as channel:
        assert await channel.send(BOB.public_key, b"x") is Delivery.DELIVERED
        await channel.wait_registered()
        told.set()
        assert await channel.receive() == b"y"


async def test_a_send_behind_the_registration_is_delivered() -> None:
    async with open_rendezvous() as server, channel_to(server, BOB) as bob:
        for number in range(20):
            async with channel_at_once(server.url, ALICE) as alice:
                assert await alice.send(BOB.public_key, bytes([number])) is Delivery.DELIVERED
                assert await alice.send(ALICE.public_key, b"to herself") is Delivery.DELIVERED
                assert await alice.receive() == b"to herself"
            assert await bob.receive() == bytes([number])


async def test_a_send_behind_the_registration_at_an_old_server() -> None:
    async with websocket_server(old_server) as url, channel_at_once(url, ALICE) as channel:
        assert await channel.send(ALICE.public_key, b"x") is Delivery.DELIVERED
        assert await channel.receive() == b"x"
        await channel.wait_registered()


async def test_a_send_behind_a_registration_that_is_refused() -> None:
    async with (
        open_rendezvous(public_urls=["ws://relay.example"]) as server,
        channel_at_once(server.url, ALICE) as alice,
    ):
        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(_send_in_vain, alice)
        for waiting in (alice.wait_registered, alice.receive, partial(alice.send, BOB.public_key, b"x")):
            with pytest.raises(SignalUnavailable, match=r"the server refused: .*--public-url.*\(code 6\)"):
                await waiting()
        await wait_until(lambda: server.statistics().connections == 0)
        assert server.statistics().sends == 0


async def test_a_server_that_goes_back_to_version_1_gets_no_send_either() -> None:
    heard: list[bytes] = []

    async def handler(websocket: WebSocket) -> None:
        await websocket.send(wire.Challenge(bytes(32)).encode())
        heard.append(await websocket.receive())

    registrant = websocket_channel.new_registrant()
    async with websocket_server(handler) as url:
        dialled = ServerUrl.parse(url)
        name = wire.server_name(dialled.host, dialled.port)
        registrant.answer(ALICE, wire.Challenge(bytes(32), 2), name)  # as if it had spoken version 2 before
        with pytest.raises(SignalUnavailable, match="claims version 1 now"):
            async with channel_at_once(url, ALICE, registrant):
                pytest.fail("opened")
    assert heard == []


@pytest.mark.usefixtures("jumping_clock")
async def test_a_channel_that_is_cancelled_before_it_is_registered() -> None:
    async def handler(websocket: WebSocket) -> None:
        await websocket.send(wire.Challenge(bytes(32)).encode())
        await trio.sleep_forever()

    async with websocket_server(handler) as url:
        with trio.move_on_after(0.05) as scope:
            async with channel_at_once(url, ALICE) as channel:
                await channel.wait_registered()
        assert scope.cancelled_caught
        with pytest.raises(SignalUnavailable, match="closed"):
            await channel.wait_registered()


@asynccontextmanager
async def relaying_to(server: RendezvousServer, *, version: int) -> AsyncGenerator[tuple[str, list[bytes]]]:
    """A hostile server that makes its clients answer another server's challenge, in version 1 or 2.

    Yields its URL, and what the other server replies to these answers.
    """
    answers: list[bytes] = []
    own = [wire.SUBPROTOCOL] if version == 2 else []

    async def handler(websocket: WebSocket) -> None:
        async with open_websocket(server.url, subprotocols=own, max_message=wire.MAX_FRAME) as honest:
            await websocket.send(await honest.receive())
            await honest.send(await websocket.receive())
            answers.append(await honest.receive())
            while True:
                answers.append(await honest.receive())

    async with websocket_server(handler) as url:
        yield url, answers


@pytest.mark.parametrize("version", [1, 2])
async def test_a_challenge_that_another_server_passes_on(version: int) -> None:
    async with (
        open_rendezvous() as server,
        channel_to(server, ALICE) as alice,
        relaying_to(server, version=version) as (hostile, answers),
    ):
        async with channel_to(server, BOB) as bob:
            async with trio.open_nursery() as nursery:

                async def visit() -> None:
                    with pytest.raises(SignalUnavailable):
                        async with channel_to(hostile, BOB):
                            pytest.fail("registered")

                for _ in range(10):
                    nursery.start_soon(visit)
                await wait_until(lambda: len(answers) == 10)
                nursery.cancel_scope.cancel()
            errors = [wire.decode_from_server(answer) for answer in answers]
            wanted = wire.ErrorCode.OLD_VERSION if version == 1 else wire.ErrorCode.UNKNOWN_NAME
            assert {each.code for each in errors if isinstance(each, wire.Error)} == {wanted}
            assert await alice.send(BOB.public_key, b"x") is Delivery.DELIVERED
            assert await bob.receive() == b"x"
        await wait_until(lambda: server.statistics().mailboxes == 1)
        assert await alice.send(BOB.public_key, b"x") is Delivery.NOBODY_HOME


async def test_what_was_relayed_before_its_owner_came_ends_then() -> None:
    async with (
        open_rendezvous() as server,
        relaying_to(server, version=1) as (hostile, answers),
        open_background_nursery() as nursery,
    ):

        async def visit() -> None:
            with pytest.raises(SignalUnavailable):
                async with channel_to(hostile, BOB):
                    pytest.fail("the hostile server says nothing")

        nursery.start_soon(visit)
        await wait_until(lambda: bool(answers))
        assert wire.decode_from_server(answers[0]) == wire.Registered(), "nobody can tell it from an old client"
        async with channel_to(server, BOB) as bob, channel_to(server, ALICE) as alice:
            await wait_until(lambda: len(answers) > 1)
            error = wire.decode_from_server(answers[1])
            assert isinstance(error, wire.Error)
            assert error.code == wire.ErrorCode.REPLACED
            assert await alice.send(BOB.public_key, b"x") is Delivery.DELIVERED
            assert await bob.receive() == b"x"
            assert len(answers) == 2
            with pytest.raises(Refused, match="version 2 or later"):
                async with old_client(server.url, BOB):
                    pytest.fail("registered")


@final
class EverythingIsHere(trio.abc.HostnameResolver):
    async def getaddrinfo(self, host: object, port: object, *_: object) -> Any:
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", int(cast(int, port))))]

    async def getnameinfo(self, *_: object) -> Any:
        raise NotImplementedError


def everything_is_here() -> None:
    """Makes every host name resolve to 127.0.0.1."""
    trio.socket.set_custom_hostname_resolver(EverythingIsHere())


@pytest.mark.parametrize(
    ("dialled", "public"),
    [
        ("127.0.0.1", []),
        ("localhost", []),
        pytest.param("[::1]", [], marks=pytest.mark.needs("ipv6")),
        ("relay.example", ["relay.example"]),
        ("relay.example.", ["relay.example"]),
        ("RELAY.example", ["relay.example."]),
        ("relay.example", ["other.example", "relay.example"]),
    ],
)
async def test_names_that_a_server_knows(dialled: str, public: list[str]) -> None:
    everything_is_here()
    host = "::1" if dialled == "[::1]" else "127.0.0.1"
    port = free_port()
    async with (
        open_rendezvous(host=host, port=port, public_urls=[f"ws://{name}:{port}/path" for name in public]) as server,
        channel_to(f"ws://{dialled}:{port}", ALICE),
    ):
        assert server.urls == (f"ws://{f'[{host}]' if ':' in host else host}:{port}",)


@pytest.mark.parametrize(
    ("dialled", "public"),
    [("relay.example", []), ("127.0.0.1", ["wss://relay.example"]), ("relay.example", ["wss://relay.example"])],
    ids=["told nothing", "by its address", "at another port"],
)
async def test_names_that_a_server_does_not_know(dialled: str, public: list[str]) -> None:
    """The Host header has the name too, but proves nothing: whoever relays a challenge writes that header."""
    everything_is_here()
    async with open_rendezvous(public_urls=public) as server:
        name = f"{dialled}:{server.port}"
        with pytest.raises(
            SignalUnavailable, match=rf"does not know the name '{name}' as its own.*--public-url.*code 6"
        ):
            async with channel_to(f"ws://{name}", ALICE):
                pytest.fail("opened")


@pytest.mark.parametrize("dialled", ["box", "BOX.lan", "box.lan."])
async def test_a_server_knows_the_name_of_its_machine(dialled: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """This serves LANs and containers: the machine's administrator chose that name, and no client can."""
    everything_is_here()
    monkeypatch.setattr("socket.gethostname", lambda: "Box.lan")
    async with open_rendezvous() as server, channel_to(f"ws://{dialled}:{server.port}", ALICE):
        pass
    async with open_rendezvous(public_urls=["ws://relay.example"]) as server:
        with pytest.raises(SignalUnavailable, match="--public-url"):
            async with channel_to(f"ws://{dialled}:{server.port}", ALICE):
                pytest.fail("opened")


async def test_a_server_that_does_tls_knows_the_names_in_its_certificate(tmp_path: Path) -> None:
    everything_is_here()
    authority = Authority(tmp_path)
    contexts = [authority.server("relay.example", "*.wild.example"), authority.server("renewed.example")]
    async with open_rendezvous(ssl_context=lambda: contexts[0]) as server:
        for dialled, known in (("relay.example", True), ("relay.example.", True), ("a.wild.example", False)):
            url = ServerUrl.parse(f"wss://{dialled}:{server.port}")
            if known:
                async with open_channel(url, ALICE, ssl_context=authority.client()):
                    pass
            else:
                with pytest.raises(SignalUnavailable, match="--public-url"):
                    async with open_channel(url, ALICE, ssl_context=authority.client()):
                        pytest.fail("opened")
        del contexts[0]
        renewed = ServerUrl.parse(f"wss://renewed.example:{server.port}")
        async with open_channel(renewed, ALICE, ssl_context=authority.client()):
            pass


async def test_public_urls_that_are_none() -> None:
    for wrong, words in (("stun:relay.example", "not the URL of a rendezvous server"), ("relay", "scheme://host")):
        with pytest.raises(ConfigError, match=words):
            async with open_rendezvous(public_urls=[wrong]):
                pytest.fail("opened")


# --- the channel against its servers ---


async def test_no_transport_for_the_scheme() -> None:
    with pytest.raises(ConfigError, match=r"stun:192\.0\.2\.1: no signal transport for 'stun'; there is .*ws, wss"):
        open_channel(ServerUrl.parse("stun:192.0.2.1"), ALICE)


@pytest.mark.parametrize(
    ("frames", "words"),
    [
        ([], "closed"),
        ([b"\xff"], "not a frame of a rendezvous server: ff"),
        ([b""], "not a frame of a rendezvous server: empty"),
        ([wire.Registered().encode()], "sent Registered instead of Challenge"),
        ([wire.Error(9, "full up").encode()], r"the server refused: full up \(code 9\)"),
        ([wire.Challenge(bytes(32)).encode(), wire.Message(b"x").encode()], "sent Message instead of Registered"),
        ([wire.Challenge(bytes(32)).encode(), b"\x03\x00"], "REGISTERED frame of 2 bytes"),
    ],
)
async def test_no_rendezvous_server(frames: list[bytes], words: str) -> None:
    async def handler(websocket: WebSocket) -> None:
        for frame in frames:
            await websocket.send(frame)

    async with websocket_server(handler) as url:
        with pytest.raises(SignalUnavailable, match=words):
            async with channel_to(url, ALICE):
                pytest.fail("opened")


async def test_a_server_of_the_future() -> None:
    async def handler(websocket: WebSocket) -> None:
        await websocket.send(wire.Challenge(bytes(32), version=4).encode())

    async with websocket_server(handler) as url:
        with pytest.raises(SignalUnsupported, match="version 4"):
            async with channel_to(url, ALICE):
                pytest.fail("opened")


@pytest.mark.usefixtures("jumping_clock")
async def test_a_server_that_says_nothing() -> None:
    async def handler(websocket: WebSocket) -> None:
        await trio.sleep_forever()

    async with websocket_server(handler) as url:
        with trio.move_on_after(0.05) as scope:
            async with channel_to(url, ALICE):
                pytest.fail("opened")
        assert scope.cancelled_caught


@asynccontextmanager
async def registered_with(behaviour: Callable[[WebSocket], Awaitable[None]]) -> AsyncGenerator[SignalChannel]:
    """A channel to a server that registers everybody and then does what the test wants."""

    async def handler(websocket: WebSocket) -> None:
        await websocket.send(wire.Challenge(bytes(32)).encode())
        await websocket.receive()
        await websocket.send(wire.Registered().encode())
        await behaviour(websocket)

    async with websocket_server(handler) as url, channel_to(url, ALICE) as channel:
        yield channel


@pytest.mark.parametrize(
    ("frame", "words"),
    [
        (b"\xff", "not a frame of a rendezvous server"),
        (wire.Challenge(bytes(32)).encode(), "the server sent an unexpected Challenge"),
        (wire.Registered().encode(), "the server sent an unexpected Registered"),
        (wire.Error(3, "silent").encode(), r"the server closed the connection: silent \(code 3\)"),
        (b"\x05\x00", "SENT frame of 2 bytes, not 7"),
        (b"", "empty"),
    ],
)
async def test_a_server_that_goes_mad(frame: bytes, words: str) -> None:
    async def behaviour(websocket: WebSocket) -> None:
        await websocket.send(frame)
        await websocket.receive()

    async with registered_with(behaviour) as channel:
        with pytest.raises(SignalUnavailable, match=words):
            await channel.receive()
        with pytest.raises(SignalUnavailable, match=words):
            await channel.send(bytes(32), b"x")


async def test_a_server_that_leaves_ends_pending_sends() -> None:
    async def behaviour(websocket: WebSocket) -> None:
        await websocket.receive()

    async with registered_with(behaviour) as channel:
        with pytest.raises(SignalUnavailable, match="closed"):
            await channel.send(bytes(32), b"x")


async def test_an_answer_that_nobody_waits_for() -> None:
    async def behaviour(websocket: WebSocket) -> None:
        await websocket.send(wire.Sent(77, 1).encode())
        frame = wire.decode_from_client(await websocket.receive())
        assert isinstance(frame, wire.Send)
        await websocket.send(wire.Sent(frame.id, wire.QUEUE_FULL).encode())
        await websocket.receive()

    async with registered_with(behaviour) as channel:
        assert await channel.send(bytes(32), b"x") is Delivery.FULL


@pytest.mark.slow("0.2 s of it is the polite close, which a dead server does not answer either")
async def test_a_server_without_pongs(monkeypatch: pytest.MonkeyPatch) -> None:
    """The server's kernel still acknowledges data, so TCP would not notice."""
    monkeypatch.setattr(websocket_channel, "PING_INTERVAL", 0.01)
    monkeypatch.setattr(websocket_channel, "PONG_TIMEOUT", 0.02)

    async def behaviour(websocket: WebSocket) -> None:
        await trio.sleep_forever()  # nobody takes the messages, so no task reads the pings behind them

    async with registered_with(behaviour) as channel:
        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(_send_in_vain, channel)
            with pytest.raises(SignalUnavailable, match="no pong within 0"):
                await channel.receive()


async def _send_in_vain(channel: SignalChannel) -> None:
    with pytest.raises(SignalUnavailable):
        await channel.send(bytes(32), bytes(1000))


async def test_payloads_that_nobody_receives_are_dropped() -> None:
    async def behaviour(websocket: WebSocket) -> None:
        for number in range(70):
            await websocket.send(wire.Message(bytes([number])).encode())
        await websocket.receive()
        await websocket.send(wire.Sent(0, 1).encode())
        await websocket.receive()

    async with registered_with(behaviour) as channel:
        assert await channel.send(bytes(32), b"x") is Delivery.DELIVERED  # all 70 messages came before this answer
        assert isinstance(channel, websocket_channel.WebSocketChannel)
        assert channel.dropped == 6
        assert [await channel.receive() for _ in range(64)] == [bytes([number]) for number in range(64)]


async def test_a_cancelled_send_and_receive_leave_the_channel_whole() -> None:
    async with open_rendezvous() as server, channel_to(server, ALICE) as alice:
        for steps in range(12):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(alice.send, BOB.public_key, b"x")
                nursery.start_soon(alice.receive)
                for _ in range(steps):
                    await trio.lowlevel.checkpoint()
                nursery.cancel_scope.cancel()
        assert await alice.send(ALICE.public_key, b"y") is Delivery.DELIVERED
        assert await alice.receive() == b"y"


@pytest.mark.parametrize(("key", "payload"), [(bytes(31), b"x"), (bytes(32), b""), (bytes(32), bytes(16_385))])
async def test_wrong_lengths(key: bytes, payload: bytes) -> None:
    async with open_rendezvous() as server, channel_to(server, ALICE) as alice:
        with pytest.raises(ValueError, match="bytes, not"):
            await alice.send(key, payload)


async def test_cancelled_at_any_step_of_the_opening() -> None:
    async with open_rendezvous() as server:
        for steps in range(0, 80, 4):
            async with trio.open_nursery() as nursery:

                async def attempt() -> None:
                    async with channel_to(server, ALICE):
                        await trio.sleep_forever()

                nursery.start_soon(attempt)
                for _ in range(steps):
                    await trio.lowlevel.checkpoint()
                nursery.cancel_scope.cancel()
        await wait_until(lambda: server.statistics().connections == 0)


@final
class Scripted:
    """The parts of a `WebSocket` that the server's handler needs; the test decides when the client sends what."""

    last_heard = 0.0
    subprotocol = None
    ahead = b""
    accepted = Accepted("127.0.0.1", 50000, ("127.0.0.1", 8765))

    def __init__(self) -> None:
        self.says, self._to_server = trio.open_memory_channel[bytes](8)
        self.heard: list[bytes] = []

    async def send(self, data: bytes) -> None:
        await trio.lowlevel.checkpoint()
        self.heard.append(data)

    async def receive(self) -> bytes:
        self.last_heard = trio.current_time()
        try:
            return await self._to_server.receive()
        except trio.EndOfChannel:
            raise WebSocketClosed(1006, "") from None

    async def register(self, identity: Identity) -> None:
        await wait_until(lambda: len(self.heard) == 1)
        challenge = wire.decode_from_server(self.heard[0])
        assert isinstance(challenge, wire.Challenge)
        self.says.send_nowait(wire.register(identity, challenge).encode())
        await wait_until(lambda: len(self.heard) == 2)


@pytest.mark.parametrize("_", range(20))  # Trio shuffles the tasks of a step; only one of the two orders matters
async def test_a_receiver_that_leaves_at_the_same_moment_does_not_cost_the_sender_its_connection(_: int) -> None:
    rendezvous = Rendezvous()
    async with open_background_nursery() as nursery:
        alice, bob = Scripted(), Scripted()
        for each in (alice, bob):
            nursery.start_soon(rendezvous.handle, cast(WebSocket, cast(object, each)))
        await alice.register(ALICE)
        await bob.register(BOB)
        bob.says.close()
        alice.says.send_nowait(wire.Send(7, BOB.public_key, b"x").encode())
        await wait_until(lambda: len(alice.heard) == 3)
        assert isinstance(wire.decode_from_server(alice.heard[2]), wire.Sent)
        assert rendezvous.statistics().connections == 1
