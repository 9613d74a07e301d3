"""A node's promises: who owns what, who is let in, and that nothing stays when it is left (docs/architecture.md)."""

from __future__ import annotations

import errno
import functools
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from functools import partial
from ipaddress import ip_address
from typing import Any, NoReturn
from unittest.mock import AsyncMock

import pytest
import trio
import trio.testing

from tests.hangs import HANG
from tests.identities import ALICE, BOB, CAROL
from tests.links import link_of
from tests.nodes import BRIEF, QUICK, LoopbackHost, address_of, config, echo, loopback_node, pair, pipes
from tests.panicking import PanicException
from tests.waiting import wait_until
from warpgate_strategies.reverse_connect import DialMe
from warpgate_trio import (
    IP4,
    LOOPBACK_BIND,
    ConfigError,
    ConnectError,
    Node,
    NodeConfig,
    PathsConfig,
    PathState,
    PeerAddress,
    PeerRefused,
    Pipe,
    Verdict,
    anyone,
    open_node,
)
from warpgate_trio.carrier import Carrier, TlsCarrier, TlsContexts
from warpgate_trio.errors import (
    AddressExpired,
    AddressForged,
    AddressMalformed,
    AddressNotYetValid,
    AddressUnsupported,
    ContactNameError,
)
from warpgate_trio.host import Interface, InterfaceAddress
from warpgate_trio.link import Link, RefuseReason, frame_codec
from warpgate_trio.node import responder
from warpgate_trio.node.links import MAX_TOLD
from warpgate_trio.nurseries import open_background_nursery
from warpgate_trio.servers.rendezvous import open_rendezvous
from warpgate_trio.signal import Failed, Message, RefusalReason, Refused
from warpgate_trio.walk.answering import AnsweringAttempt
from warpgate_trio.walk.calling import CallingAttempt

pytestmark = pytest.mark.usefixtures("jumping_clock")

# -- life and death ----------------------------------------------------------------------------------------------------


async def test_leaving_the_node_closes_its_pipes() -> None:
    async with loopback_node(BOB, config(), authorize=anyone) as bob, trio.open_nursery() as nursery:
        async with loopback_node(ALICE, config()) as alice:
            ours = await alice.auto_connect(bob.address)
            theirs = await bob.listener.accept()

            async def blocked() -> None:
                with pytest.raises(trio.ClosedResourceError):
                    await ours.receive_some()

            nursery.start_soon(blocked)
            await trio.testing.wait_all_tasks_blocked(0.01)
        with pytest.raises(trio.ClosedResourceError):
            await ours.send_all(b"x")
        with pytest.raises(trio.ClosedResourceError):
            await ours.open_pipe()
        assert await theirs.receive_some() == b""
        with pytest.raises(trio.ClosedResourceError, match="node was closed"):
            await alice.auto_connect(bob.address)


@pytest.mark.parametrize("cancelled", [True, False])
async def test_a_node_that_was_interrupted_says_goodbye_and_not_that_it_had_finished(cancelled: bool) -> None:
    async with loopback_node(BOB, config(), authorize=anyone) as bob:
        with trio.CancelScope() as scope, suppress(KeyError):
            async with loopback_node(ALICE, config()) as alice:
                pipe = await alice.auto_connect(bob.address)
                await pipe.send_all(b"last words")
                theirs = await bob.listener.accept()
                if not cancelled:
                    raise KeyError("a fault of the application")
                scope.cancel()
                await trio.lowlevel.checkpoint()
        assert scope.cancelled_caught is cancelled
        with trio.fail_after(HANG):
            assert await theirs.receive_some() == b"last words"
            with pytest.raises(trio.BrokenResourceError, match="the peer aborted it"):
                await theirs.receive_some()


@pytest.mark.parametrize("left", ["the listener", "the node"])
async def test_a_pipe_that_nobody_took_does_not_read_as_finished(left: str) -> None:
    async with loopback_node(ALICE, config()) as alice:
        async with loopback_node(BOB, config(), authorize=anyone) as bob:
            pipe = await alice.auto_connect(bob.address)
            await wait_until(lambda: bob.listener.waiting)
            if left == "the listener":
                await bob.listener.aclose()
                with trio.fail_after(HANG), pytest.raises(trio.BrokenResourceError, match="the peer aborted it"):
                    await pipe.receive_some()
        with trio.fail_after(HANG), pytest.raises(trio.BrokenResourceError, match="the peer aborted it"):
            await pipe.receive_some()


async def test_goodbyes_are_bounded() -> None:
    """A peer that neither reads nor closes delays the end by no more than the goodbye time."""

    async def stubborn(sock: trio.socket.SocketType) -> None:
        link = await Link.receive_proof(await TlsCarrier.serve(sock, TlsContexts(BOB)))
        link.set_role(initiator=False)
        await link.receive_commit()
        link.accept()
        await link.carrier.flush()
        await trio.sleep_forever()

    listener = trio.socket.socket()
    await listener.bind(("127.0.0.1", 0))
    listener.listen(1)
    async with trio.open_nursery() as nursery:

        async def serve() -> None:
            sock, _ = await listener.accept()
            with sock:
                await stubborn(sock)

        nursery.start_soon(serve)
        async with loopback_node(ALICE, config(budgets=QUICK)) as alice:
            await alice.connect(address_of(BOB, port=listener.getsockname()[1]), plugin="direct_connect")
            closing = trio.current_time()
        elapsed = trio.current_time() - closing
        assert QUICK.goodbye * 0.9 < elapsed < QUICK.goodbye + 5
        listener.close()
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("plugin", ["direct_connect", "reverse_connect", "get_addr"])
async def test_calls_that_outlive_the_node_end_with_it(plugin: str) -> None:
    """A task outside of the node's block waits for a connection when the block is left."""
    started = trio.Event()
    outcomes: list[str] = []

    async def dawdling(_: str) -> bool:
        started.set()
        await trio.sleep_forever()
        return True

    async with pair(authorize=dawdling) as both, trio.open_nursery() as nursery:

        async def call(alice: Node) -> None:
            with pytest.raises(trio.ClosedResourceError, match="this node was closed"):
                if plugin == "get_addr":
                    await alice.refresh_address(both.bob.address)
                else:
                    await alice.connect(both.bob.address, plugin=plugin, af=4)
            outcomes.append("ended")

        async with loopback_node(CAROL, config(both.server)) as carol:
            await carol.wait_signals()
            nursery.start_soon(call, carol)
            await started.wait()
        assert outcomes == ["ended"]
        with pytest.raises(trio.ClosedResourceError):
            await carol.refresh_address(both.bob.address)
        if plugin == "reverse_connect":  # Carol has signalled that the session is over
            await wait_until(lambda: not both.bob._runtime.peer_work)


async def test_a_socket_that_was_closed_between_two_accepts_is_no_error(caplog: pytest.LogCaptureFixture) -> None:
    async with loopback_node(BOB, config(), authorize=anyone) as bob:
        closed = trio.socket.socket()
        closed.close()
        with trio.fail_after(HANG):
            await bob._runtime.inbound.serve_socket(closed)
    assert not caplog.records


async def test_exceptions_leave_the_node_bare() -> None:
    class Own(Exception):
        pass

    with pytest.raises(Own):
        async with loopback_node(ALICE, config()):
            raise Own
    group = ExceptionGroup("the user's own", [Own()])
    with pytest.raises(ExceptionGroup) as caught:
        async with loopback_node(ALICE, config()):
            raise group
    assert caught.value is group


async def test_a_path_that_is_cut_breaks_its_pipe_alone() -> None:
    async with pipes(paths=BRIEF) as (ours, theirs, both):
        other = await both.alice.auto_connect(both.bob.address)
        others_end = await both.bob.listener.accept()
        ours.carrier.close_nowait()
        with pytest.raises(trio.BrokenResourceError):
            await theirs.receive_some()
        with pytest.raises(trio.BrokenResourceError):
            await ours.send_all(b"x")
        await other.send_all(b"fine")
        assert await others_end.receive_some() == b"fine"
        await other.aclose()
        await others_end.aclose()


async def test_a_path_that_is_cut_is_replaced() -> None:
    async with pipes() as (ours, theirs, both):
        await ours.ping()
        await theirs.ping()
        first = ours.carrier
        first.close_nowait()
        with trio.fail_after(HANG):
            await ours.send_all(b"once more")
            assert await theirs.receive_some() == b"once more"
            await theirs.send_all(b"and back")
            assert await ours.receive_some() == b"and back"
        assert ours.carrier is not first
        assert both.alice.stats().pipes_made == 1


@pytest.mark.parametrize(
    "plugins", [["direct_connect", "get_addr"], ["direct_connect"]]
)  # with and without the plugin that asks for addresses
async def test_a_node_is_left_while_it_searches_for_a_path(
    plugins: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    async with open_rendezvous() as server:
        with trio.fail_after(HANG):
            async with loopback_node(ALICE, config(server, budgets=QUICK), plugins=plugins) as alice:
                async with loopback_node(BOB, config(server), authorize=anyone) as bob:
                    ours = await alice.auto_connect(bob.address)
                    for link in list(bob._runtime.links._links):
                        link._nursery.cancel_scope.cancel()  # type: ignore[union-attr]  # as if Bob had been killed
                        link._first.carrier.close_nowait()
                    for sock in bob._runtime._sockets:
                        sock.close()
                    await wait_until(lambda: ours.path.state is PathState.SUSPENDED)
                    (link,) = alice._runtime.links._links
                    await trio.sleep(10.0)  # in the middle of the search
                    assert link in alice._runtime.links._links
            with pytest.raises((trio.BrokenResourceError, trio.ClosedResourceError)):
                await ours.receive_some()
        assert "failed unexpectedly" not in caplog.text


async def test_a_signal_is_said_on_one_link_that_is_well_or_on_a_few_that_are_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with pair() as both:
        said: list[Link] = []
        async with AsyncExitStack() as stack:
            for _ in range(MAX_TOLD + 2):
                await stack.enter_async_context(await both.alice.auto_connect(both.bob.address))
            links = both.alice._runtime.links

            def listen(link: Link, *, well: bool) -> Callable[[bytes], bool]:
                def say(_payload: bytes) -> bool:
                    said.append(link)
                    return well

                return say

            for well, times in ((True, 1), (False, MAX_TOLD)):
                for link in links._links:
                    monkeypatch.setattr(link, "say_news", listen(link, well=well))
                assert links.say_news(both.bob.address.public_key, b"sealed") is well
                assert len(said) == len(set(said)) == times
                said.clear()


async def test_a_peer_is_asked_ever_more_rarely_where_it_is() -> None:
    """Intervals grow as long as a search lasts: the requests that the peer allows in a minute are meant for paths."""
    async with pair() as both:
        keeper = both.alice._runtime.links.keep.__self__  # type: ignore[attr-defined]
        asked = 0

        async def ask(_peer: PeerAddress) -> PeerAddress:
            nonlocal asked
            asked += 1
            raise trio.TooSlowError

        keeper.refresh = ask
        with trio.move_on_after(30.0) as search:
            await keeper.wait_back(both.bob.address)
        assert search.cancelled_caught
        assert 4 <= asked <= 7


async def test_a_peer_that_has_given_the_link_up_ends_it_here_too() -> None:
    async with pipes() as (ours, theirs, both):
        await theirs.ping()
        (link,) = both.bob._runtime.links._links
        link._fail(trio.BrokenResourceError("it has waited for long enough"))
        with trio.fail_after(HANG), pytest.raises(trio.BrokenResourceError, match="no longer has this link"):
            await ours.receive_some()


@asynccontextmanager
async def left_behind(config: NodeConfig, bob: Node) -> AsyncGenerator[Pipe]:
    """Bob's end of a Pipe whose caller is killed, without a goodbye, before the body begins."""
    async with loopback_node(ALICE, config) as killed:
        await killed.auto_connect(bob.address)
        theirs = await bob.listener.accept()
        await theirs.ping()
        for link in list(killed._runtime.links._links):
            link._nursery.cancel_scope.cancel()  # type: ignore[union-attr]  # the network sees a killed process
            link._first.carrier.close_nowait()
        await wait_until(lambda: theirs.path.state is PathState.SUSPENDED)
    yield theirs


@pytest.mark.parametrize("kept", [False, True], ids=["anybody may call", "nobody else may"])
async def test_a_caller_whose_process_was_started_again_has_its_pipe_replaced(kept: bool) -> None:
    """The peer's end of the old Pipe waits for a path until the caller returns; nobody else can take its place."""
    async with (
        open_rendezvous() as server,
        loopback_node(BOB, config(server), authorize=anyone) as bob,
        left_behind(config(server), bob) as theirs,
    ):
        if kept:
            bob.listener.keep_nowait(theirs)
            async with loopback_node(CAROL, config(server)) as carol:
                with pytest.raises(ConnectError) as refused:
                    await carol.auto_connect(bob.address)
                assert refused.value.verdict is Verdict.BUSY
            assert theirs.path.state is PathState.SUSPENDED
        async with loopback_node(ALICE, config(server)) as again:
            async with await again.auto_connect(bob.address) as ours:
                with trio.fail_after(HANG), pytest.raises(trio.BrokenResourceError, match="the peer was restarted"):
                    await theirs.receive_some()
                await ours.send_all(b"new")
                assert bob.listener.waiting == 1  # the new Pipe is there when the old one breaks
                assert await (await bob.listener.accept()).receive_some() == b"new"


async def test_the_place_of_a_pipe_is_taken_once_and_not_after_its_end() -> None:
    async with (
        open_rendezvous() as server,
        loopback_node(BOB, config(server), authorize=anyone) as bob,
        left_behind(config(server), bob) as theirs,
    ):
        bob.listener.keep_nowait(theirs)
        async with loopback_node(ALICE, config(server)) as again, loopback_node(ALICE, config(server)) as other:
            async with await again.auto_connect(bob.address):
                with pytest.raises(ConnectError) as refused:
                    await other.auto_connect(bob.address)
                assert refused.value.verdict is Verdict.BUSY
                assert bob.listener.waiting == 1


async def test_whoever_has_called_too_is_cut_off_when_one_pipe_is_kept() -> None:
    async with pair() as both, await both.alice.auto_connect(both.bob.address) as ours:
        kept = await both.bob.listener.accept()
        await ours.open_pipe()
        both.bob.listener.keep_nowait(kept)
        assert both.bob.listener.waiting == 0
        with pytest.raises(PeerRefused) as refused:
            await ours.open_pipe()
        assert refused.value.reason == RefuseReason.TAKEN


@pytest.mark.parametrize("error", [PanicException, RuntimeError])
async def test_what_breaks_one_inbound_connection_is_no_other_ones_affair(
    error: type[BaseException], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """This includes a panic of a library in Rust over a stranger's bytes: that raises no subclass of `Exception`."""
    receive_proof = Link.receive_proof
    heard = 0

    async def fail_once(carrier: Carrier) -> Link:
        nonlocal heard
        heard += 1
        if heard == 1:
            raise error("boo")
        return await receive_proof(carrier)

    monkeypatch.setattr(Link, "receive_proof", fail_once)
    async with pair() as both:
        port = next(endpoint.port for _, endpoint in both.bob.address.endpoints())
        sock = trio.socket.socket()
        await sock.connect(("127.0.0.1", port))
        carrier = await TlsCarrier.dial(sock, TlsContexts(CAROL), peer_key=BOB.public_key)
        with pytest.raises(trio.BrokenResourceError):
            await carrier.receive()
        carrier.close_nowait()
        async with await both.alice.auto_connect(both.bob.address):
            pass
    assert "an inbound connection failed" in caplog.text


async def test_a_panic_in_the_driver_of_a_link_breaks_that_link(caplog: pytest.LogCaptureFixture) -> None:
    async with pipes() as (ours, theirs, both):

        def panic(*_: object) -> NoReturn:
            raise PanicException("boo")

        link_of(theirs).protocol.receive = panic  # type: ignore[assignment, method-assign]
        with suppress(trio.BrokenResourceError):  # a PING may break the Link first
            await ours.send_all(b"x")
        with pytest.raises(trio.BrokenResourceError):
            await theirs.receive_some()
        async with await both.alice.auto_connect(both.bob.address):
            pass
    assert "an unexpected error ends the link" in caplog.text


@pytest.mark.parametrize(("kind", "part"), [(CallingAttempt, "make_pipe"), (AnsweringAttempt, "answer")])
async def test_a_panic_in_a_plugin_costs_its_combo(kind: type, part: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the caller's side, and on the peer's."""

    def panic(*_: object) -> NoReturn:
        raise PanicException("boo")

    async with pair() as both, loopback_node(CAROL, config(both.server), strict_plugins=False) as carol:
        with monkeypatch.context() as patch:
            patch.setattr(kind, part, panic)
            with pytest.raises(ConnectError):
                await carol.connect(both.bob.address, plugin="reverse_connect")
        async with await carol.auto_connect(both.bob.address):
            pass


async def test_a_taken_port_is_a_configuration_error() -> None:
    async with loopback_node(BOB, config()) as bob:
        port = next(endpoint.port for _, endpoint in bob.address.endpoints())
        with pytest.raises(ConfigError, match=rf"listen.port = {port}: .*in use"):
            async with loopback_node(ALICE, config(port=port)):
                pytest.fail("two nodes on one port")


async def test_the_default_node_needs_no_configuration() -> None:
    async with open_node(identity=ALICE) as node:
        assert isinstance(node.address, PeerAddress)
        assert node.peer_id == ALICE.peer_id
        assert node.signal_servers == ()
        assert {plugin.name for plugin in node.plugins} >= {"direct_connect", "reverse_connect"}
        assert all(plugin.problem is None for plugin in node.plugins)


# -- addresses ---------------------------------------------------------------------------------------------------------


async def test_the_address_follows_the_machine() -> None:
    class Roaming(LoopbackHost):  # type: ignore[misc]  # final outside of the tests
        where = "192.0.2.7"

        def interfaces(self) -> tuple[Interface, ...]:
            address = InterfaceAddress(ip=ip_address(self.where), prefix=24)
            return (Interface(name="eth0", index=2, addresses=(address,), is_loopback=False, is_virtual=False),)

    host = Roaming()
    async with loopback_node(ALICE, config(), host=host) as alice:
        first = alice.address
        assert alice.address is first
        host.where = "198.51.100.9"
        second = alice.address
        assert second.seq > first.seq
        assert {str(endpoint.ip) for _, endpoint in second.endpoints()} == {"198.51.100.9"}
        host.skew += 4 * 24 * 3600  # more than half of its lifetime later
        assert alice.address.expires_at > second.expires_at


async def test_what_may_be_secret_in_a_url_reaches_its_server_alone(caplog: pytest.LogCaptureFixture) -> None:
    asked = trio.Event()
    request = bytearray()

    async def server(stream: trio.SocketStream) -> None:
        async with stream:
            request.extend(await stream.receive_some())
            asked.set()

    caplog.set_level(logging.DEBUG)
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    port = listeners[0].socket.getsockname()[1]
    urls = [f"ws://me:{word}@127.0.0.1:{port}/ws?token={word}&{word}" for word in ("hunter2", "hunter3")]
    async with open_background_nursery() as nursery:
        await nursery.start(trio.serve_listeners, server, listeners)
        async with loopback_node(ALICE, config(*urls)) as alice:
            published = alice.address
            await asked.wait()
            await trio.testing.wait_all_tasks_blocked()
            said = [repr(alice.signal_servers), repr(await alice.netcheck(servers=True)), caplog.text]
    assert published.signals == (f"ws://127.0.0.1:{port}/ws",)
    assert b"/ws?token=hunter" in request
    assert all("hunter" not in each for each in said)


async def test_bad_addresses_are_refused_before_anything_is_tried() -> None:
    async with loopback_node(ALICE, config()) as alice:
        now = LoopbackHost().wall_time()
        good = address_of(BOB, port=1)
        record = bytearray(good.to_bytes())
        record[-1] ^= 1
        with pytest.raises(AddressForged):
            PeerAddress.from_bytes(bytes(record))
        record = bytearray(good.to_bytes())
        record[0] = 2
        with pytest.raises(AddressUnsupported):
            PeerAddress.from_bytes(bytes(record))
        with pytest.raises(AddressMalformed, match="checksum"):
            await alice.auto_connect(str(good)[:-1])
        with pytest.raises(ContactNameError):
            await alice.auto_connect("not an address")
        with pytest.raises(AddressExpired):
            await alice.auto_connect(address_of(BOB, port=1, now=now - 8 * 24 * 3600))
        with pytest.raises(AddressNotYetValid):
            await alice.auto_connect(address_of(BOB, port=1, now=now + 3600))


# -- one session, one Pipe ---------------------------------------------------------------------------------------------


async def dial(bob: Node, session_id: bytes, *, caller: object = ALICE) -> Link:
    """Dials Bob by hand, up to the proof."""
    port = next(endpoint.port for _, endpoint in bob.address.endpoints())
    sock = trio.socket.socket()
    await sock.connect(("127.0.0.1", port))
    carrier = await TlsCarrier.dial(sock, TlsContexts(ALICE), peer_key=BOB.public_key)
    return await Link.prove(
        carrier, ALICE, peer_key=BOB.public_key, session_id=session_id, attempt_id=bytes(16), initiator=True
    )


async def test_a_session_gives_one_pipe() -> None:
    async with loopback_node(BOB, config(), authorize=anyone) as bob:
        first, second = await dial(bob, b"s" * 16), await dial(bob, b"s" * 16)
        await first.commit(epoch=1, link_id=bytes(16), patience=5)
        theirs = await bob.listener.accept()
        with pytest.raises(PeerRefused) as refused:
            await second.commit(epoch=2, link_id=bytes(16), patience=5)
        assert refused.value.reason == RefuseReason.SESSION_SPENT
        # A second commit means that the caller never received the first ACCEPT, so the first Pipe is over.
        with pytest.raises(trio.ClosedResourceError):
            await theirs.receive_some()
        with trio.move_on_after(0.02):
            await bob.listener.accept()
            pytest.fail("a second Pipe of one session")
        first.close_nowait()


async def test_two_commits_wait_for_one_decision() -> None:
    decide = trio.Event()
    asked = 0

    async def slow(_: str) -> bool:
        nonlocal asked
        asked += 1
        await decide.wait()
        return True

    async with loopback_node(BOB, config(), authorize=slow) as bob:
        links = [await dial(bob, b"s" * 16) for _ in range(2)]
        outcomes: list[object] = []

        async def commit(link: Link, epoch: int) -> None:
            try:
                outcomes.append(await link.commit(epoch=epoch, link_id=bytes(16), patience=5))
            except PeerRefused as refusal:
                outcomes.append(refusal.reason)
            except trio.BrokenResourceError:  # accepted, and ended at once by the newer commit
                outcomes.append("ended")

        async with trio.open_nursery() as nursery:
            for epoch, link in enumerate(links, 1):
                nursery.start_soon(commit, link, epoch)
            await wait_until(lambda: asked)
            await trio.testing.wait_all_tasks_blocked(0.01)
            decide.set()
        assert asked == 1
        assert outcomes.count(RefuseReason.SESSION_SPENT) == 1
        for link in links:
            link.close_nowait()


async def test_a_spent_session_is_tried_again_as_a_new_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """The ACCEPT is lost with its carrier.  The walk goes on; the peer's application gets a broken and a good Pipe."""
    async with loopback_node(BOB, config(), authorize=anyone) as bob, loopback_node(ALICE, config()) as alice:
        real = alice._runtime.host.entropy
        lost = await dial(bob, b"s" * 16)
        await lost.commit(epoch=1, link_id=bytes(16), patience=5)
        lost.close_nowait()
        spent = [b"s" * 16]

        class Stuck(LoopbackHost):  # type: ignore[misc]
            def entropy(self, n: int) -> bytes:
                return spent.pop() if spent else real(n)

        monkeypatch.setattr(alice._runtime.view, "host", Stuck())
        async with await alice.auto_connect(bob.address, afs=[IP4]) as pipe:
            assert pipe.report is not None
            assert pipe.report.notes == ("a path broke before the peer's ACCEPT arrived; tried again",)


# -- further Pipes, early data -----------------------------------------------------------------------------------------


async def test_open_pipe_in_both_directions() -> None:
    async with (
        loopback_node(BOB, config(), authorize=anyone) as bob,
        loopback_node(ALICE, config(), authorize=anyone) as alice,
    ):
        async with await alice.auto_connect(bob.address) as ours:
            theirs = await bob.listener.accept()
            async with await theirs.open_pipe("from bob") as back:
                arrived = await alice.listener.accept()
                assert (arrived.label, arrived.peer_id, arrived.path.plugin) == (
                    "from bob",
                    BOB.peer_id,
                    "direct_connect",
                )
                await back.send_all(b"hi")
                assert await arrived.receive_some() == b"hi"
                await arrived.aclose()
            async with await ours.open_pipe("from alice") as forth:
                arrived = await bob.listener.accept()
                assert arrived.label == forth.label == "from alice"
                await arrived.aclose()
            await theirs.aclose()


async def test_open_pipe_towards_a_node_that_does_not_listen() -> None:
    async with pipes() as (_, theirs, _both):
        with pytest.raises(PeerRefused) as refused:
            await theirs.open_pipe()
        assert refused.value.reason == RefuseReason.NOT_ACCEPTING


async def test_a_further_pipe_that_is_used_before_it_is_taken() -> None:
    async with pipes() as (ours, _, both):
        async with ours.open_pipe_nowait("early") as further:
            await further.send_all(b"question")
            await further.send_eof()
            async with await both.bob.listener.accept() as arrived:
                assert (arrived.label, b"".join([piece async for piece in arrived])) == ("early", b"question")
                await arrived.send_all(b"answer")
            assert b"".join([piece async for piece in further]) == b"answer"
            await further.wait_accepted()
        with pytest.raises(trio.ClosedResourceError):
            await further.wait_accepted()


async def test_a_further_pipe_that_is_used_and_then_refused() -> None:
    async with pipes() as (_, theirs, _both):
        further = theirs.open_pipe_nowait()
        await further.send_all(b"lost")
        with pytest.raises(PeerRefused) as refused:
            await further.wait_accepted()
        assert refused.value.reason == RefuseReason.NOT_ACCEPTING
        for call in (partial(further.send_all, b"x"), further.receive_some, further.send_eof):
            with pytest.raises(trio.BrokenResourceError, match="pipe broken: the peer refused: not accepting"):
                await call()


async def test_a_peer_that_takes_nothing_early_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frame_codec, "_TAKES_EARLY_DATA", 0)
    async with pipes() as (ours, _, both):
        async with ours.open_pipe_nowait() as further, trio.open_nursery() as nursery:
            nursery.start_soon(further.send_eof)
            await trio.testing.wait_all_tasks_blocked()
            async with await both.bob.listener.accept() as arrived:
                assert await arrived.receive_some() == b""


async def test_early_data_comes_with_the_pipe() -> None:
    async with pair() as both:
        data = bytes(range(256)) * 256  # 64 KiB, the limit
        async with await both.alice.auto_connect(both.bob.address, early_data=data) as ours:
            await ours.send_all(b"more")
            await ours.send_eof()
            theirs = await both.bob.listener.accept()
            assert b"".join([piece async for piece in theirs]) == data + b"more"
            await theirs.aclose()


async def test_serve_listeners_is_enough_for_a_server() -> None:
    async with pair() as both, trio.open_nursery() as nursery:
        nursery.start_soon(trio.serve_listeners, echo, [both.bob.listener])
        for _ in range(3):
            async with await both.alice.auto_connect(both.bob.address) as pipe:
                await pipe.send_all(b"hello")
                await pipe.send_eof()
                assert b"".join([piece async for piece in pipe]) == b"hello"
        nursery.cancel_scope.cancel()


async def test_connect_pins_plugin_family_and_route() -> None:
    async with pair() as both:
        pipe = await both.alice.connect(both.bob.address, plugin="direct_connect", af=IP4, route_type=LOOPBACK_BIND)
        async with pipe:
            assert (pipe.path.plugin, pipe.path.af, pipe.path.route_type) == ("direct_connect", 4, "LOOPBACK_BIND")
            assert pipe.report is not None
            assert len(pipe.report.combos) == 1
        async with await both.alice.connect(both.bob.address, plugin="reverse_connect", af=IP4) as pipe:
            assert pipe.path.plugin == "reverse_connect"
            assert pipe.path.rtt is None or pipe.path.rtt > 0


def no_coroutine(peer_id: str) -> bool:
    return bool(peer_id)


class Rule:
    """An `authorize` that is an object, not a function."""

    async def __call__(self, peer_id: str) -> bool:
        return await anyone(peer_id)

    async def method(self, peer_id: str) -> bool:
        return await anyone(peer_id)


@functools.wraps(anyone)
def wrapped(peer_id: str) -> Awaitable[bool]:
    return anyone(peer_id)


@pytest.mark.parametrize("rule", [no_coroutine, lambda _: True, partial(no_coroutine), Rule, {"peer"}, True])
async def test_a_rule_that_is_no_async_function_is_refused_at_once(rule: Any) -> None:
    with pytest.raises(TypeError, match=r"^authorize must be an async function, as `async def rule\(peer_id\)`, not "):
        async with open_node(config(), identity=ALICE, authorize=rule):
            raise AssertionError("it was opened")


@pytest.mark.parametrize("rule", [anyone, partial(anyone), Rule(), Rule().method, wrapped, AsyncMock(), None])
async def test_whatever_is_async_is_a_rule(rule: Any) -> None:
    async with loopback_node(ALICE, config(), authorize=rule):
        pass


# -- strangers ---------------------------------------------------------------------------------------------------------


async def test_garbage_and_silence_on_the_port_cost_nothing() -> None:
    async with loopback_node(BOB, config(budgets=QUICK), authorize=anyone) as bob:
        port = next(endpoint.port for _, endpoint in bob.address.endpoints())
        streams = [await trio.open_tcp_stream("127.0.0.1", port) for _ in range(20)]
        for stream in streams[:10]:
            await stream.send_all(b"GET / HTTP/1.1\r\n\r\n" * 100)
        async with loopback_node(ALICE, config()) as alice, await alice.auto_connect(bob.address):
            pass
        for stream in streams:
            with trio.fail_after(2 * QUICK.handshake):
                try:
                    while await stream.receive_some():
                        pass
                except trio.BrokenResourceError:
                    pass
            await stream.aclose()
        assert bob._runtime.inbound.handshakes == 0


@pytest.mark.parametrize("bound", ["MAX_HANDSHAKES", "MAX_HANDSHAKES_PER_ADDRESS"])
async def test_handshakes_are_bounded_in_number(bound: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(f"warpgate_trio.node.inbound.{bound}", 3)
    async with loopback_node(BOB, config(), authorize=anyone) as bob:
        port = next(endpoint.port for _, endpoint in bob.address.endpoints())
        streams = [await trio.open_tcp_stream("127.0.0.1", port) for _ in range(3)]
        await wait_until(lambda: bob._runtime.inbound.handshakes >= 3)
        async with await trio.open_tcp_stream("127.0.0.1", port) as one_too_many:
            with trio.fail_after(5):
                assert await one_too_many.receive_some() == b""
        for stream in streams:
            await stream.aclose()
        await wait_until(lambda: not bob._runtime.inbound.handshakes)


@pytest.mark.needs("linux")  # where all of 127/8 is this machine
async def test_a_few_subscribers_do_not_keep_everybody_else_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Silent connections hold all places; a peer from another address is still served."""
    monkeypatch.setattr("warpgate_trio.node.inbound.MAX_HANDSHAKES", 4)
    async with loopback_node(BOB, config(), authorize=anyone) as bob:
        port = next(endpoint.port for _, endpoint in bob.address.endpoints())
        streams = [await trio.open_tcp_stream("127.0.0.1", port, local_address=f"127.1.0.{n}") for n in (1, 2, 1, 2)]
        await wait_until(lambda: bob._runtime.inbound.handshakes >= 4)
        async with loopback_node(ALICE, config()) as alice:
            async with await alice.connect(bob.address, plugin="direct_connect") as pipe:
                assert pipe.peer_id == bob.peer_id
        with trio.fail_after(10):
            assert await streams[0].receive_some() == b"", "the oldest of who holds most"
        for stream in streams:
            await stream.aclose()


class Mailbox:
    def __init__(self) -> None:
        self.send, self.receive = trio.open_memory_channel[Message](8)

    def deliver(self, message: Message) -> None:
        self.send.send_nowait(message)


async def request(node: Node, to: PeerAddress, message: Message, *, session: bytes = b"S" * 16) -> Message:
    """Sends a plugin's first message by hand, and returns the answer."""
    mailbox = Mailbox()
    key = (to.public_key, session, b"A" * 16)
    node._runtime.sender.attach(key, mailbox)
    await node._runtime.sender.send(to, message, owner="reverse_connect", session=session, attempt=b"A" * 16)
    with trio.fail_after(HANG):
        return await mailbox.receive.receive()


async def test_a_node_dials_only_what_the_asking_peer_has_signed() -> None:
    async with pair() as both:
        own = next(endpoint for _, endpoint in both.alice.address.endpoints())
        elsewhere = DialMe(af=4, route_type=LOOPBACK_BIND, address=own.address, port=own.port ^ 1)
        assert isinstance(await request(both.alice, both.bob.address, elsewhere), Failed)
        bobs_own = next(endpoint for _, endpoint in both.bob.address.endpoints())
        itself = DialMe(af=4, route_type=LOOPBACK_BIND, address=bobs_own.address, port=bobs_own.port)
        assert isinstance(await request(both.alice, both.bob.address, itself), Failed)


async def test_loopback_is_dialled_for_peers_of_this_machine_only() -> None:
    async with pair() as both:
        async with loopback_node(
            CAROL, config(both.server), host=LoopbackHost(fingerprint=b"another machine" + bytes(17))
        ) as carol:
            await carol.wait_signals()
            own = next(endpoint for _, endpoint in carol.address.endpoints())
            message = DialMe(af=4, route_type=LOOPBACK_BIND, address=own.address, port=own.port)
            assert isinstance(await request(carol, both.bob.address, message), Failed)


async def test_requests_of_one_peer_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    assert responder.DIALS_PER_MINUTE == 60
    monkeypatch.setattr(responder, "DIALS_PER_MINUTE", 6)
    async with pair() as both:
        nowhere = DialMe(af=4, route_type=LOOPBACK_BIND, address=bytes(4), port=9)
        answers = [
            await request(both.alice, both.bob.address, nowhere, session=bytes([number]) * 16) for number in range(7)
        ]
        assert all(isinstance(answer, Failed) for answer in answers[:6])
        last = answers[-1]
        assert isinstance(last, Refused)
        assert last.reason is RefusalReason.BUSY
        assert last.retry_after


async def test_a_message_that_nobody_knows_is_answered() -> None:
    class Strange(Message, frozen=True):
        pass

    async with pair() as both:
        answer = await request(both.alice, both.bob.address, Strange())
        assert isinstance(answer, Refused)
        assert answer.reason is RefusalReason.UNSUPPORTED


async def test_accept_errors_of_the_machine_do_not_end_the_node(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """On EMFILE the node waits for a moment, and the connection stays in the backlog."""
    from warpgate_trio.node.admission import Admission
    from warpgate_trio.node.inbound import Inbound
    from warpgate_trio.node.links import Links
    from warpgate_trio.node.listener import PipeListener

    calls = 0

    class Exhausted:
        def fileno(self) -> int:
            return 5

        async def accept(self) -> object:
            nonlocal calls
            calls += 1
            await trio.lowlevel.checkpoint()
            if calls < 3:
                raise OSError(errno.EMFILE, "Too many open files")
            raise trio.ClosedResourceError

    admission = Admission(anyone, QUICK, PipeListener())
    inbound = Inbound(
        contexts=TlsContexts(BOB),
        budgets=QUICK,
        admission=admission,
        links=Links(admission, PathsConfig(), goodbye=0.0, host=LoopbackHost(), instance=bytes(8)),
        take_link=lambda _: False,
        on_accepted=lambda *_: None,
    )
    await inbound.serve_socket(Exhausted())  # type: ignore[arg-type]
    assert calls == 3
    assert caplog.text.count("Too many open files") == 1, "once a minute"


async def test_no_configuration_at_all_reaches_the_peer_through_its_address() -> None:
    """The caller has no servers of its own.  The server in the listener's address is enough to be called back."""
    async with pair() as both:
        async with loopback_node(CAROL, NodeConfig()) as carol:
            async with await carol.connect(both.bob.address, plugin="reverse_connect") as pipe:
                assert pipe.peer_id == both.bob.peer_id


async def test_a_refused_walk_asks_once_and_stops() -> None:
    asked = 0

    async def nobody(_: str) -> bool:
        nonlocal asked
        asked += 1
        return False

    async with pair(
        authorize=nobody, plugins=["direct_connect"]
    ) as both:  # other plugins would ask again a moment later
        with pytest.raises(ConnectError) as caught:
            await both.alice.auto_connect(both.bob.address)
        assert caught.value.verdict is Verdict.REFUSED
    assert asked == 1
