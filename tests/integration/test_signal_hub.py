"""The hub of a node: servers that come, go, lie and hang, and what `send` does with those that work."""

from __future__ import annotations

import itertools
import math
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import pytest
import trio
from trio.testing import MockClock

from tests.certificates import Authority
from tests.hangs import HANG
from tests.hubs import anywhere, hub_for, states, tcp_server, websocket_server
from tests.hubs import no_long_pauses as no_long_pauses
from tests.identities import ALICE, BOB
from tests.ports import free_port
from tests.rendezvous_v1 import old_server
from tests.waiting import wait_until
from warpgate_trio.config import ServerUrl
from warpgate_trio.errors import ConfigError, SignalUnavailable
from warpgate_trio.nurseries import open_background_nursery
from warpgate_trio.servers.rendezvous import Rendezvous, RendezvousServer, open_rendezvous
from warpgate_trio.servers.rendezvous_frames import Challenge, Registered
from warpgate_trio.signal import Delivery, ServerState, SignalHub
from warpgate_trio.signal import arrivals as arrivals_module
from warpgate_trio.signal import keeper as keeper_module
from warpgate_trio.signal import open_channel as real_open_channel
from warpgate_trio.signal.hub import SEND_PATIENCE
from warpgate_trio.signal.websocket_channel import WebSocketChannel
from warpgate_trio.websocket import WebSocket

pytestmark = pytest.mark.usefixtures("no_long_pauses")


async def says_nothing(stream: trio.SocketStream) -> None:
    await trio.sleep_forever()


# --- one server ---


async def test_from_hub_to_hub_and_back() -> None:
    async with open_rendezvous() as server, hub_for(ALICE, server.url) as alice, hub_for(BOB, server.url) as bob:
        assert await alice.send(BOB.public_key, b"request") is Delivery.DELIVERED
        request = await bob.receive()
        assert (request.payload, request.via) == (b"request", server.url)
        assert await bob.send(ALICE.public_key, b"reply", via=request.via) is Delivery.DELIVERED
        assert (await alice.receive()).payload == b"reply"
        (status,) = alice.status()
        assert (status.url, status.state, status.last_error) == (server.url, ServerState.CONNECTED, None)
        assert status.rtt == alice.rtt
        assert alice.rtt is not None
        assert 0 < alice.rtt < 1


async def test_nobody_home() -> None:
    async with open_rendezvous() as server, hub_for(ALICE, server.url) as alice:
        assert await alice.send(BOB.public_key, b"x") is Delivery.NOBODY_HOME


async def test_the_same_server_twice_is_one_server() -> None:
    async with open_rendezvous() as server:
        async with hub_for(ALICE, server.url, server.url + "/", server.url.replace("//", "//me@")) as alice:
            assert len(alice.status()) == 1


async def test_servers_that_differ_in_a_secret_are_told_apart() -> None:
    async with open_rendezvous() as server:
        async with hub_for(ALICE, server.url + "/?key=a", server.url + "/?key=b") as alice:
            await wait_until(lambda: states(alice) == [ServerState.CONNECTED] * 2)
            first, second = (status.url for status in alice.status())
            assert first != second
            assert "key=a" not in first


async def test_a_hint_leads_to_our_own_server_without_the_secrets_in_our_url() -> None:
    """A node publishes its servers without login and query; its peers may have a login and a query of their own."""
    async with open_rendezvous() as server, hub_for(BOB, server.url) as bob:
        async with hub_for(ALICE, server.url.replace("//", "//me:pass@") + "/?key=a") as alice:
            assert await alice.send(BOB.public_key, b"x", hints=[server.url, f"{server.url}/"]) is Delivery.DELIVERED
            assert len(alice.status()) == 1
            assert (await bob.receive()).payload == b"x"


async def test_tls(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    async with open_rendezvous(ssl_context=authority.server("127.0.0.1")) as server:
        async with hub_for(ALICE, server.url, ca_file=authority.ca_file) as alice:
            assert await alice.send(ALICE.public_key, b"x") is Delivery.DELIVERED
            assert (await alice.receive()).payload == b"x"


async def test_an_unknown_authority(tmp_path: Path) -> None:
    authority, other = Authority(tmp_path), Authority(tmp_path, "other")
    async with open_rendezvous(ssl_context=authority.server("127.0.0.1")) as server:
        async with hub_for(ALICE, server.url, ca_file=other.ca_file, connected=False) as alice:
            await wait_until(lambda: states(alice) == [ServerState.WAITING])
            assert "CERTIFICATE_VERIFY_FAILED" in (alice.status()[0].last_error or "")


@pytest.mark.parametrize("content", [None, "not a certificate"])
def test_a_useless_ca_file(content: str | None, tmp_path: Path) -> None:
    file = tmp_path / "ca.pem"
    if content is not None:
        file.write_text(content)
    with pytest.raises(ConfigError, match=r"servers\.ca_file = .*ca\.pem"):
        SignalHub(ALICE, [], ca_file=file)


def test_no_transport() -> None:
    with pytest.raises(ConfigError, match=r"stun:192\.0\.2\.1"):
        SignalHub(ALICE, [ServerUrl.parse("stun:192.0.2.1")])


# --- servers that come and go ---


async def test_a_server_that_is_missing_at_the_start() -> None:
    port = free_port()
    async with hub_for(ALICE, f"ws://127.0.0.1:{port}", connected=False) as alice:
        await wait_until(lambda: states(alice) == [ServerState.WAITING])
        assert "all attempts to connect" in (alice.status()[0].last_error or "")
        async with open_rendezvous(port=port):
            await alice.wait_connected()
            assert alice.status()[0].last_error is None


async def test_a_send_waits_for_the_first_server() -> None:
    port = free_port()
    async with hub_for(ALICE, f"ws://127.0.0.1:{port}", connected=False) as alice:
        async with open_background_nursery() as nursery:
            answers: list[Delivery] = []

            async def send() -> None:
                answers.append(await alice.send(BOB.public_key, b"x"))

            nursery.start_soon(send)
            await wait_until(lambda: states(alice) == [ServerState.WAITING])
            assert answers == []
            async with open_rendezvous(port=port):
                await wait_until(lambda: answers == [Delivery.NOBODY_HOME])


async def test_a_server_that_is_killed_and_restarted() -> None:
    port = free_port()
    url = f"ws://127.0.0.1:{port}"
    async with hub_for(ALICE, url, connected=False) as alice:
        for _ in range(3):
            async with open_rendezvous(port=port):
                await alice.wait_connected()
                assert await alice.send(BOB.public_key, b"x") is Delivery.NOBODY_HOME
            await wait_until(lambda: states(alice) != [ServerState.CONNECTED])
            assert alice.rtt is None
            assert alice.status()[0].last_error


async def test_a_send_when_the_server_is_killed() -> None:
    async def swallow(stream: trio.SocketStream) -> None:
        pass

    async with tcp_server(swallow) as url, hub_for(ALICE, url, connected=False) as alice:
        with trio.move_on_after(0.05) as scope:
            await alice.send(BOB.public_key, b"x")
        assert scope.cancelled_caught, "it goes on waiting for a server"


@pytest.mark.usefixtures("jumping_clock")
async def test_a_server_that_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keeper_module, "CONNECT_TIMEOUT", 0.05)
    async with tcp_server(says_nothing) as url, hub_for(ALICE, url, connected=False) as alice:
        assert states(alice) == [ServerState.CONNECTING]
        await wait_until(lambda: states(alice) == [ServerState.WAITING])
        assert alice.status()[0].last_error == "no answer within 0 s"


async def test_a_server_that_sends_garbage() -> None:
    async def garbage(stream: trio.SocketStream) -> None:
        await stream.send_all(b"SSH-2.0-OpenSSH_9.2p1\r\n")

    async with tcp_server(garbage) as url, hub_for(ALICE, url, connected=False) as alice:
        await wait_until(lambda: states(alice) == [ServerState.WAITING])
        assert "WebSocket handshake failed" in (alice.status()[0].last_error or "")


async def test_an_error_that_nobody_foresaw(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    async with open_rendezvous() as server:
        attempts = 0

        def open_channel(*args: object, **kwargs: object) -> object:
            nonlocal attempts
            attempts += 1
            if attempts == 1:
                raise ZeroDivisionError
            return real_open_channel(*args, **kwargs)  # type: ignore[arg-type]

        monkeypatch.setattr(keeper_module, "open_channel", open_channel)
        async with hub_for(ALICE, server.url):
            pass
    assert "ZeroDivisionError" in caplog.text


# --- several servers ---


async def test_one_of_two_servers_is_dead() -> None:
    async with tcp_server(says_nothing) as dead, open_rendezvous() as server:
        async with hub_for(ALICE, dead, server.url) as alice, hub_for(BOB, server.url, dead) as bob:
            assert await alice.send(BOB.public_key, b"x") is Delivery.DELIVERED
            assert (await bob.receive()).via == server.url
            assert await alice.send(bytes(32), b"x") is Delivery.NOBODY_HOME


async def test_the_best_answer_counts() -> None:
    """Bob is on one of Alice's two servers; both servers are asked."""
    async with open_rendezvous() as one, open_rendezvous() as two:
        async with hub_for(ALICE, one.url, two.url) as alice, hub_for(BOB, two.url):
            await wait_until(lambda: states(alice) == [ServerState.CONNECTED] * 2)
            assert await alice.send(BOB.public_key, b"x") is Delivery.DELIVERED
            assert await alice.send(bytes(32), b"x") is Delivery.NOBODY_HOME
            assert one.statistics().sends >= 1


async def test_a_message_by_two_servers_comes_twice() -> None:
    """Only the inbox, which opens the seal, can tell that they are the same."""
    async with open_rendezvous() as one, open_rendezvous() as two:
        async with hub_for(ALICE, one.url, two.url) as alice, hub_for(BOB, one.url, two.url) as bob:
            await wait_until(lambda: states(alice) + states(bob) == [ServerState.CONNECTED] * 4)
            assert await alice.send(BOB.public_key, b"x") is Delivery.DELIVERED
            assert {(await bob.receive()).via, (await bob.receive()).via} == {one.url, two.url}


# --- visits ---


async def test_a_visit_and_the_reply_by_it() -> None:
    async with open_rendezvous() as ours, open_rendezvous() as theirs:
        async with hub_for(ALICE, ours.url) as alice, hub_for(BOB, theirs.url) as bob:
            assert (
                await alice.send(BOB.public_key, b"request", hints=[theirs.url], may_connect=anywhere)
                is Delivery.DELIVERED
            )
            request = await bob.receive()
            assert request.payload == b"request"
            # Bob needs no hint: Alice is registered where he is.
            assert await bob.send(ALICE.public_key, b"reply") is Delivery.DELIVERED
            reply = await alice.receive()
            assert (reply.payload, reply.via) == (b"reply", theirs.url)
            # From now on Alice needs no hint either, if she gives `via`.
            assert await alice.send(BOB.public_key, b"more") is Delivery.NOBODY_HOME
            assert await alice.send(BOB.public_key, b"more", via=reply.via) is Delivery.DELIVERED
            visit = alice.status()[1]
            assert (visit.url, visit.state, visit.visiting) == (theirs.url, ServerState.CONNECTED, True)


async def test_a_visit_without_servers_of_our_own() -> None:
    async with open_rendezvous() as theirs, hub_for(BOB, theirs.url), hub_for(ALICE, connected=False) as alice:
        assert await alice.send(BOB.public_key, b"x", hints=[theirs.url], may_connect=anywhere) is Delivery.DELIVERED


async def test_no_visit_when_a_common_server_delivers() -> None:
    async with open_rendezvous() as common, open_rendezvous() as theirs:
        async with hub_for(ALICE, common.url) as alice, hub_for(BOB, common.url, theirs.url):
            hints = [theirs.url, common.url]
            assert await alice.send(BOB.public_key, b"x", hints=hints, may_connect=anywhere) is Delivery.DELIVERED
            assert len(alice.status()) == 1
            assert await alice.send(bytes(32), b"x", hints=hints, may_connect=anywhere) is Delivery.NOBODY_HOME
            assert len(alice.status()) == 2


async def test_without_hints_nobody_is_visited() -> None:
    async with open_rendezvous() as ours, open_rendezvous() as theirs:
        async with hub_for(ALICE, ours.url) as alice, hub_for(BOB, theirs.url):
            assert await alice.send(BOB.public_key, b"x") is Delivery.NOBODY_HOME
            assert theirs.statistics().connections == 1


@pytest.mark.usefixtures("jumping_clock")
async def test_an_idle_visit_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("warpgate_trio.signal.slot.PEERS_SERVER_IDLE", 0.05)
    async with open_rendezvous() as theirs, hub_for(ALICE, connected=False) as alice:
        for _ in range(2):
            assert (
                await alice.send(BOB.public_key, b"x", hints=[theirs.url], may_connect=anywhere) is Delivery.NOBODY_HOME
            )
            await wait_until(lambda: alice.status() == ())
            await wait_until(lambda: theirs.statistics().connections == 0)


async def test_at_most_four_visits() -> None:
    async with open_background_nursery() as nursery:
        servers: list[RendezvousServer] = []

        async def serve(task_status: trio.TaskStatus[None]) -> None:
            async with open_rendezvous() as server:
                servers.append(server)
                task_status.started()
                await trio.sleep_forever()

        for _ in range(6):
            await nursery.start(serve)
        async with hub_for(ALICE, connected=False) as alice:
            hints = [server.url for server in servers]
            # Four of six hints are used,
            assert await alice.send(BOB.public_key, b"x", hints=hints, may_connect=anywhere) is Delivery.NOBODY_HOME
            assert {status.url for status in alice.status()} == set(hints[:4])
            # and a new visit ends the one that was idle for longest.
            assert await alice.send(BOB.public_key, b"x", hints=hints[:1], may_connect=anywhere) is Delivery.NOBODY_HOME
            assert await alice.send(BOB.public_key, b"x", hints=hints[5:], may_connect=anywhere) is Delivery.NOBODY_HOME
            urls = [status.url for status in alice.status()]
            assert len(urls) == 4
            assert {hints[0], hints[5]} <= set(urls)


async def test_busy_visits_are_not_ended() -> None:
    async with open_rendezvous() as theirs, AsyncExitStack() as stack:
        hints = [await stack.enter_async_context(tcp_server(says_nothing)) for _ in range(4)]
        async with hub_for(ALICE, connected=False) as alice, open_background_nursery() as nursery:
            nursery.start_soon(partial(alice.send, BOB.public_key, b"x", hints=hints, may_connect=anywhere))
            await wait_until(lambda: len(alice.status()) == 4)
            with pytest.raises(SignalUnavailable, match="4 servers of peers are in use already"):
                await alice.send(BOB.public_key, b"x", hints=[theirs.url], may_connect=anywhere)


async def test_useless_hints() -> None:
    dead = f"ws://127.0.0.1:{free_port()}"
    hints = ["", "nonsense", "ws://", "http://x", "stun:192.0.2.1", "ws://[::1", "\x00", dead]
    async with open_rendezvous() as server, hub_for(ALICE, server.url) as alice:
        assert await alice.send(BOB.public_key, b"x", hints=hints, may_connect=anywhere) is Delivery.NOBODY_HOME
    async with hub_for(ALICE, connected=False) as alice:
        with pytest.raises(SignalUnavailable, match="all attempts to connect"):
            await alice.send(BOB.public_key, b"x", hints=hints, may_connect=anywhere)
        with pytest.raises(SignalUnavailable, match="no signal server is configured, and none of the peer's"):
            await alice.send(BOB.public_key, b"x", hints=hints[:-1], may_connect=anywhere)


async def test_a_dead_hint_does_not_hold_up_a_server_that_comes() -> None:
    port = free_port()
    async with tcp_server(says_nothing) as dead, hub_for(ALICE, f"ws://127.0.0.1:{port}", connected=False) as alice:
        await wait_until(lambda: states(alice) == [ServerState.WAITING])
        async with open_rendezvous(port=port), hub_for(BOB, f"ws://127.0.0.1:{port}"):
            assert await alice.send(BOB.public_key, b"x", hints=[dead], may_connect=anywhere) is Delivery.DELIVERED


# --- bounds and ends ---


async def test_without_any_server() -> None:
    async with hub_for(ALICE, connected=False) as alice:
        with pytest.raises(SignalUnavailable, match="no signal server is configured, and none of the peer's"):
            await alice.send(BOB.public_key, b"x")
        with pytest.raises(SignalUnavailable, match="no signal server is configured"):
            await alice.wait_connected()
        assert alice.rtt is None
        assert alice.status() == ()


@pytest.mark.parametrize(("key", "payload"), [(bytes(33), b"x"), (bytes(32), b""), (bytes(32), bytes(16_385))])
async def test_wrong_lengths(key: bytes, payload: bytes) -> None:
    async with hub_for(ALICE, connected=False) as alice:
        with pytest.raises(ValueError, match="bytes, not"):
            await alice.send(key, payload)


async def test_a_full_queue_drops_the_newest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arrivals_module, "MAX_WAITING", 2)
    async with open_rendezvous() as server, hub_for(ALICE, server.url) as alice:
        for number in range(4):
            await alice.send(ALICE.public_key, bytes([number]))
        await wait_until(lambda: alice.dropped == 2)
        assert [(await alice.receive()).payload for _ in range(2)] == [b"\x00", b"\x01"]


async def test_a_server_that_claims_to_be_older_than_it_was_is_not_registered_with() -> None:
    """It might pass on the challenge of another server."""
    rendezvous, old = Rendezvous(), False
    asked = trio.Event()

    async def handler(websocket: WebSocket) -> None:
        if old:
            asked.set()
            await old_server(websocket)
        with trio.CancelScope() as scope:
            connections.append(scope)
            await rendezvous.handle(websocket)

    connections: list[trio.CancelScope] = []
    async with websocket_server(handler) as url, hub_for(ALICE, url) as alice:
        old = True
        connections[0].cancel()
        await asked.wait()
        await wait_until(lambda: "claims version 1 now" in str(alice.status()[0].last_error))
        assert alice.status()[0].state is not ServerState.CONNECTED
        old = False
        await alice.wait_connected()


async def test_the_end_of_a_hub() -> None:
    async with open_rendezvous() as server:
        async with hub_for(ALICE, server.url) as alice, hub_for(BOB, server.url) as bob:
            await alice.send(BOB.public_key, b"x", hints=[server.url], may_connect=anywhere)
            await wait_until(lambda: bob.status()[0].state is ServerState.CONNECTED)
        with trio.fail_after(HANG):
            await wait_until(lambda: server.statistics().connections == 0)
        for hub in (alice, bob):
            with pytest.raises(SignalUnavailable, match="not running"):
                await hub.send(BOB.public_key, b"x")
            with pytest.raises(SignalUnavailable, match="has ended"):
                await hub.wait_connected()
        with pytest.raises(SignalUnavailable, match="has ended"):
            await alice.receive()


@pytest.mark.parametrize("_", range(10))  # Trio shuffles the tasks of a step
async def test_sends_in_the_moment_of_the_end(_: int) -> None:
    """A send that waits, and one that begins at each step, report the end and nothing else."""
    hub = SignalHub(ALICE, [ServerUrl.parse("ws://127.0.0.1:1")])
    heard: list[str] = []

    async def wait() -> None:
        with pytest.raises(SignalUnavailable) as caught:
            await hub.send(BOB.public_key, b"x")
        heard.append(str(caught.value))

    async def once() -> None:
        with pytest.raises(SignalUnavailable):
            await hub.send(BOB.public_key, b"x")
        heard.append("came")

    async def come_at_each_step() -> None:
        while "came" not in heard:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(once)
                for _step in range(3):
                    await trio.lowlevel.checkpoint()
                nursery.cancel_scope.cancel()

    async with trio.open_nursery() as nursery:
        async with open_background_nursery() as hubs:
            await hubs.start(hub.run)
            nursery.start_soon(wait)
            nursery.start_soon(come_at_each_step)
            for _step in range(5):
                await trio.lowlevel.checkpoint()
    assert sorted(heard) == ["came", "the signal hub has ended"]


async def test_not_started() -> None:
    with pytest.raises(SignalUnavailable, match="not running"):
        await SignalHub(ALICE, []).send(BOB.public_key, b"x")


async def test_cancelled_at_any_step() -> None:
    async with open_rendezvous() as ours, open_rendezvous() as theirs:

        async def live() -> None:
            async with hub_for(ALICE, ours.url) as alice:
                await alice.send(BOB.public_key, b"x", hints=[theirs.url], may_connect=anywhere)
                await trio.sleep_forever()

        for steps in range(0, 160, 8):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(live)
                for _ in range(steps):
                    await trio.lowlevel.checkpoint()
                nursery.cancel_scope.cancel()
        await wait_until(lambda: ours.statistics().connections + theirs.statistics().connections == 0)


# --- the pauses between attempts ---


async def test_back_off(autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keeper_module, "BACKOFF_FIRST", 0.2)
    attempts: list[float] = []

    def open_channel(*args: object, **kwargs: object) -> NoReturn:
        attempts.append(trio.current_time())
        raise OSError("refused")

    monkeypatch.setattr(keeper_module, "open_channel", open_channel)
    hub = SignalHub(ALICE, [ServerUrl.parse("ws://192.0.2.1")])
    with trio.move_on_after(200):
        await hub.run()
    pauses = [later - earlier for earlier, later in itertools.pairwise(attempts)]
    longest = [min(0.2 * 2**number, 30.0) for number in range(len(pauses))]
    assert len(pauses) > 10
    assert all(most / 2 - 1e-9 <= pause <= most + 1e-9 for pause, most in zip(pauses, longest, strict=True))
    assert len({round(pause / most, 6) for pause, most in zip(pauses, longest, strict=True)}) > 5, "no jitter"


async def test_a_connection_that_held_starts_the_pauses_afresh(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keeper_module, "BACKOFF_FIRST", 0.2)
    held_for = [0.0, 0.0, 0.0, 60.0, 0.0]
    ended: list[float] = []
    began: list[float] = []

    class Channel:
        url, rtt, answered = "ws://192.0.2.1", 0.1, True

        async def send(self, receiver_key: bytes, payload: bytes, *, instance: bytes | None = None) -> Delivery:
            raise NotImplementedError

        async def wait_registered(self) -> None:
            await trio.lowlevel.checkpoint()

        async def receive(self) -> bytes:
            await trio.sleep(held_for[len(began) - 1] if len(began) <= len(held_for) else math.inf)
            ended.append(trio.current_time())
            raise SignalUnavailable("gone")

    @asynccontextmanager
    async def open_channel(*args: object, **kwargs: object) -> AsyncGenerator[Channel]:
        began.append(trio.current_time())
        yield Channel()

    monkeypatch.setattr(keeper_module, "open_channel", open_channel)
    with trio.move_on_after(300):
        await SignalHub(ALICE, [ServerUrl.parse("ws://192.0.2.1")]).run()
    pauses = [start - end for start, end in zip(began[1:], ended, strict=False)]
    for pause, most in zip(pauses, [0.2, 0.4, 0.8, 0.2, 0.4], strict=True):
        assert most / 2 - 1e-9 <= pause <= most + 1e-9


async def test_a_server_that_registers_us_and_does_no_more_is_no_success(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each channel is given up once the missing pong is noticed, and the pauses between the attempts keep growing."""
    monkeypatch.setattr(keeper_module, "BACKOFF_FIRST", 0.2)
    began: list[float] = []

    class Channel:
        url, rtt, answered = "ws://192.0.2.1", 0.1, False

        async def wait_registered(self) -> None:
            await trio.lowlevel.checkpoint()

        async def receive(self) -> bytes:
            await trio.sleep(keeper_module.STABLE)
            raise SignalUnavailable("no pong within 10 s")

    @asynccontextmanager
    async def open_channel(*args: object, **kwargs: object) -> AsyncGenerator[Channel]:
        began.append(trio.current_time())
        yield Channel()

    monkeypatch.setattr(keeper_module, "open_channel", open_channel)
    with trio.move_on_after(300):
        await SignalHub(ALICE, [ServerUrl.parse("ws://192.0.2.1")]).run()
    pauses = [later - earlier - keeper_module.STABLE for earlier, later in itertools.pairwise(began)]
    assert len(pauses) > 8
    for number, pause in enumerate(pauses):
        most = min(0.2 * 2**number, 30.0)
        assert most / 2 - 1e-9 <= pause <= most + 1e-9


async def test_a_channel_has_answered_when_its_server_has() -> None:
    async with open_rendezvous() as server, real_open_channel(ServerUrl.parse(server.url), ALICE) as channel:
        await wait_until(lambda: channel.answered)  # the pong


# --- what people are told ---


async def test_why_a_server_cannot_be_reached_is_said_once_and_when_it_is_back(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    port = free_port()
    url = f"ws://127.0.0.1:{port}"
    attempts = 0

    def open_channel(*args: Any, **kwargs: Any) -> Any:
        nonlocal attempts
        attempts += 1
        return real_open_channel(*args, **kwargs)

    monkeypatch.setattr(keeper_module, "open_channel", open_channel)
    with caplog.at_level("INFO", keeper_module.__name__):
        async with hub_for(ALICE, url, connected=False) as alice:
            await wait_until(lambda: attempts >= 3)
            async with open_rendezvous(port=port):
                await alice.wait_connected()
            known = attempts
            await wait_until(lambda: attempts >= known + 3)
    first, back, lost, again = [(each.levelname, each.getMessage()) for each in caplog.records]
    assert first == (
        "WARNING",
        f"signal server {url}: not connected: all attempts to connect to 127.0.0.1:{port} failed: Connection refused",
    )
    assert back == ("INFO", f"signal server {url}: connected")
    assert lost[0] == "INFO"
    assert lost[1].startswith(f"signal server {url}: connection lost: ")
    assert again[0] == "WARNING"


@pytest.mark.usefixtures("jumping_clock")
async def test_a_server_that_refuses_us_is_not_connected_and_says_why_once(caplog: pytest.LogCaptureFixture) -> None:
    """A message that is sent before the refusal arrives then waits for a server that does not refuse us."""
    async with open_rendezvous(public_urls=["ws://relay.example"]) as server:
        async with hub_for(ALICE, server.url, connected=False) as alice:
            await alice.wait_tried()
            with trio.move_on_after(0.1) as scope:
                await alice.send(BOB.public_key, b"x")
            assert scope.cancelled_caught
            (status,) = alice.status()
            assert status.rtt is None
            assert "--public-url" in (status.last_error or "")
            assert server.statistics().errors > 1
            assert server.statistics().sends == server.statistics().registrations == 0
            with trio.move_on_after(0.05) as scope:
                await alice.wait_connected()
            assert scope.cancelled_caught
    assert [(each.levelname, "--public-url" in each.getMessage()) for each in caplog.records] == [("WARNING", True)]


async def test_it_is_connected_once_it_is_registered() -> None:
    register, registered = trio.Event(), trio.Event()

    async def handler(websocket: WebSocket) -> None:
        await websocket.send(Challenge(bytes(32)).encode())
        await websocket.receive()
        register.set()
        await registered.wait()
        await websocket.send(Registered().encode())
        await websocket.receive()

    async with websocket_server(handler) as url, hub_for(ALICE, url, connected=False) as alice:
        await register.wait()
        await trio.testing.wait_all_tasks_blocked(0.01)
        assert states(alice) == [ServerState.CONNECTING]
        assert alice.status()[0].rtt is None
        assert alice.rtt is not None  # measured by the upgrade request
        registered.set()
        await alice.wait_connected()
        assert states(alice) == [ServerState.CONNECTED]


@pytest.mark.usefixtures("jumping_clock")
async def test_a_server_that_registers_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keeper_module, "CONNECT_TIMEOUT", 0.1)

    async def handler(websocket: WebSocket) -> None:
        await websocket.send(Challenge(bytes(32)).encode())
        await trio.sleep_forever()

    async with websocket_server(handler) as url, hub_for(BOB, connected=False) as visitor:
        with pytest.raises(SignalUnavailable, match=r"no answer within 0 s|the channel is closed"):
            await visitor.send(ALICE.public_key, b"x", hints=[url], may_connect=anywhere)
        async with hub_for(ALICE, url, connected=False) as alice:
            await alice.wait_tried()
            assert alice.status()[0].last_error == "no answer within 0 s"


async def test_a_server_that_is_lost_and_back_at_once_is_said(caplog: pytest.LogCaptureFixture) -> None:
    port = free_port()
    with caplog.at_level("INFO", keeper_module.__name__):
        async with open_rendezvous(port=port), hub_for(ALICE, f"ws://127.0.0.1:{port}") as alice:
            channel = alice._keeper.own[0].channel
            assert isinstance(channel, WebSocketChannel)
            channel._fail("a cable was pulled")
            await wait_until(lambda: len(caplog.records) == 2)
    lost, back = [(each.levelname, each.getMessage()) for each in caplog.records]
    assert lost[0] == back[0] == "INFO"
    assert lost[1].startswith(f"signal server ws://127.0.0.1:{port}: connection lost: ")
    assert back[1] == f"signal server ws://127.0.0.1:{port}: connected"


async def test_a_server_that_was_there_at_once_is_no_news(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", keeper_module.__name__):
        async with open_rendezvous() as server, hub_for(ALICE, server.url):
            pass
    assert caplog.records == []


class NoNames(trio.abc.HostnameResolver):
    async def getaddrinfo(self, *_: object, **__: object) -> NoReturn:
        await trio.lowlevel.checkpoint()
        raise trio.socket.gaierror(trio.socket.EAI_AGAIN, "Temporary failure in name resolution")

    async def getnameinfo(self, *_: object) -> NoReturn:
        raise NotImplementedError


async def test_a_name_that_does_not_resolve_is_said_to_be_that() -> None:
    trio.socket.set_custom_hostname_resolver(NoNames())
    async with hub_for(ALICE, "ws://server.example", "ws://127.0.0.1:9", connected=False) as alice:
        await alice.wait_tried()
        name, address = (status.last_error for status in alice.status())
        assert name == "the name cannot be resolved: Temporary failure in name resolution"
        assert "refused" in (address or "")
        assert set(alice.unresolved) == {"server.example"}


# --- connections that lead nowhere any more ---


async def test_a_server_that_lets_a_send_wait_is_asked_whether_it_is_there(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    checked: list[float] = []

    class Channel:
        url, rtt, answered = "ws://192.0.2.1", 0.1, True

        async def send(self, receiver_key: bytes, payload: bytes, *, instance: bytes | None = None) -> Delivery:
            await trio.sleep(1.0 if payload == b"quick" else math.inf)
            return Delivery.DELIVERED

        async def wait_registered(self) -> None:
            await trio.lowlevel.checkpoint()

        async def receive(self) -> bytes:
            await trio.sleep_forever()
            return b""

        def check(self) -> bool:
            checked.append(trio.current_time() - began)
            return True

    @asynccontextmanager
    async def open_channel(*args: object, **kwargs: object) -> AsyncGenerator[Channel]:
        yield Channel()

    monkeypatch.setattr(keeper_module, "open_channel", open_channel)
    hub = SignalHub(ALICE, [ServerUrl.parse("ws://192.0.2.1")])
    async with open_background_nursery() as nursery:
        await nursery.start(hub.run)
        await hub.wait_connected()
        began = trio.current_time()
        assert await hub.send(BOB.public_key, b"quick") is Delivery.DELIVERED
        await trio.sleep(60)
        assert checked == []
        began = trio.current_time()
        with trio.move_on_after(30):
            await hub.send(BOB.public_key, b"slow")
        assert checked == pytest.approx([SEND_PATIENCE])
        hub.check_channels()
        assert len(checked) == 2


async def test_in_another_network_what_waits_is_tried_at_once(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keeper_module, "BACKOFF_FIRST", 1000.0)
    attempts: list[float] = []

    def open_channel(*args: object, **kwargs: object) -> NoReturn:
        attempts.append(trio.current_time())
        raise OSError("no route")

    monkeypatch.setattr(keeper_module, "open_channel", open_channel)
    hub = SignalHub(ALICE, [ServerUrl.parse("ws://192.0.2.1")])
    async with open_background_nursery() as nursery:
        await nursery.start(hub.run)
        await trio.sleep(10)
        hub.check_channels()
        await trio.sleep(1)
    assert attempts[1] - attempts[0] == pytest.approx(10)


async def test_what_is_being_connected_to_is_begun_anew_where_the_machine_has_moved(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    attempts: list[float] = []

    @asynccontextmanager
    async def open_channel(*args: object, **kwargs: object) -> AsyncGenerator[NoReturn]:
        attempts.append(trio.current_time())
        await trio.sleep_forever()
        yield

    monkeypatch.setattr(keeper_module, "open_channel", open_channel)
    hub = SignalHub(ALICE, [ServerUrl.parse("ws://192.0.2.1")])
    async with open_background_nursery() as nursery:
        await nursery.start(hub.run)
        await trio.sleep(4)
        hub.check_channels()
        await trio.sleep(1)
        assert len(attempts) == 1, "it may well be under way"
        hub.check_channels(moved=True)
        await trio.sleep(1)
        assert hub.status()[0].last_error is None
    assert attempts[1] - attempts[0] == pytest.approx(5)


async def test_what_did_not_answer_in_doubt_is_made_anew_without_a_pause_once(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keeper_module, "BACKOFF_FIRST", 1000.0)
    opened: list[float] = []

    class Channel:
        url, rtt, answered = "ws://192.0.2.1", 0.1, True

        def __init__(self) -> None:
            self.doubted = trio.Event()

        async def wait_registered(self) -> None:
            await trio.lowlevel.checkpoint()

        async def receive(self) -> bytes:
            if len(opened) < 2:
                await self.doubted.wait()
            await trio.sleep(1)
            raise SignalUnavailable("no pong")

        def check(self) -> None:
            self.doubted.set()

    @asynccontextmanager
    async def open_channel(*args: object, **kwargs: object) -> AsyncGenerator[Channel]:
        opened.append(trio.current_time())
        yield Channel()

    monkeypatch.setattr(keeper_module, "open_channel", open_channel)
    hub = SignalHub(ALICE, [ServerUrl.parse("ws://192.0.2.1")])
    async with open_background_nursery() as nursery:
        await nursery.start(hub.run)
        await trio.sleep(100)
        hub.check_channels()
        await trio.sleep(100)
    assert opened[1] - opened[0] == pytest.approx(101)
    assert opened[2] - opened[1] > 10.0


async def test_the_channels_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many signals wait on one channel, the next one of another channel comes second at the latest."""
    monkeypatch.setattr(arrivals_module, "MAX_WAITING", 5)
    async with open_rendezvous() as one, open_rendezvous() as two:
        async with (
            hub_for(ALICE, one.url) as carol,
            hub_for(ALICE, two.url) as dave,
            hub_for(BOB, one.url, two.url) as bob,
        ):
            await wait_until(lambda: states(bob) == [ServerState.CONNECTED] * 2)
            for number in range(9):
                await carol.send(BOB.public_key, b"flood %d" % number)
            await wait_until(lambda: bob.dropped == 4)
            for number in range(2):
                await dave.send(BOB.public_key, b"friend %d" % number)
            await wait_until(lambda: sum(len(slot.waiting) for slot in bob._keeper.own) == 7)
            order = [(await bob.receive()).payload for _ in range(7)]
            assert order == [
                b"flood 0",
                b"friend 0",
                b"flood 1",
                b"friend 1",
                b"flood 2",
                b"flood 3",
                b"flood 4",
            ]
