"""Several lifetimes that end at once: a node is left while calls, attempts and plugins' tasks are under way."""

from __future__ import annotations

import gc
import weakref
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import cast

import pytest
import trio
import trio.testing

from tests.hangs import HANG
from tests.identities import ALICE, BOB
from tests.links import link_of
from tests.nodes import BRIEF, QUICK, address_of, config, loopback_node, pair
from warpgate_strategies.direct_connect import dial
from warpgate_trio import Node, anyone
from warpgate_trio.carrier import Carrier, TlsCarrier
from warpgate_trio.config import ServerUrl
from warpgate_trio.link import Link
from warpgate_trio.nurseries import open_background_nursery
from warpgate_trio.plugin import AttemptContext, Message, NodeView, Plugin, register
from warpgate_trio.servers.rendezvous import open_rendezvous
from warpgate_trio.signal import SignalHub
from warpgate_trio.walk.calling import CallingAttempt

pytestmark = pytest.mark.usefixtures("own_plugins", "jumping_clock")


# -- calls that are made outside of the node's block ------------------------------------------------------------------


async def expect_closed(call: Callable[[], Awaitable[object]]) -> None:
    with pytest.raises(trio.ClosedResourceError, match="node was closed"):
        await call()


async def test_a_walk_in_another_task_ends_with_its_node() -> None:
    """The node is left before its commit is decided: the call must neither wait nor leave its socket behind."""
    asked = trio.Event()

    async def rule(_: str) -> bool:
        asked.set()
        await trio.sleep_forever()
        return True

    async with loopback_node(BOB, config(budgets=QUICK), authorize=rule) as bob:
        with trio.fail_after(HANG):
            async with trio.open_nursery() as nursery, loopback_node(ALICE, config()) as alice:
                nursery.start_soon(expect_closed, partial(alice.auto_connect, bob.address))
                await asked.wait()


async def test_a_walk_that_its_node_has_ended_is_taken_back_at_the_peer() -> None:
    """The peer learns of the session by signal, and by a second signal that it is over."""
    async with open_rendezvous() as server, open_background_nursery() as keepers:
        hub = SignalHub(BOB, [ServerUrl.parse(f"ws://127.0.0.1:{server.port}")])
        await keepers.start(hub.run)
        await hub.wait_connected()
        with trio.fail_after(HANG):
            async with trio.open_nursery() as nursery, loopback_node(ALICE, config(server)) as alice:
                await alice.wait_signals()
                call = partial(alice.connect, address_of(BOB, port=1), plugin="reverse_connect", af=4)
                nursery.start_soon(expect_closed, call)
                await hub.receive()
            await hub.receive()


async def test_a_question_in_another_task_ends_with_its_node() -> None:
    async with open_rendezvous() as server, open_background_nursery() as keepers:
        hub = SignalHub(BOB, [ServerUrl.parse(f"ws://127.0.0.1:{server.port}")])
        await keepers.start(hub.run)
        await hub.wait_connected()
        with trio.fail_after(HANG):
            async with trio.open_nursery() as nursery, loopback_node(ALICE, config(server)) as alice:
                await alice.wait_signals()
                nursery.start_soon(expect_closed, partial(alice.refresh_address, address_of(BOB, port=1)))
                await hub.receive()
            await expect_closed(partial(alice.refresh_address, address_of(BOB, port=1)))
            await expect_closed(partial(alice.announce_address, address_of(BOB, port=1)))


# -- what belongs to plugins -------------------------------------------------------------------------------------------


class Logged(Plugin):
    """A plugin that logs when its `setup` and its runs end."""

    name = "logged"

    @classmethod
    def events(cls) -> list[str]:
        raise NotImplementedError

    @classmethod
    @asynccontextmanager
    async def setup(cls, node: NodeView) -> AsyncGenerator[Callable[[AttemptContext], Plugin]]:
        try:
            yield cls
        finally:
            cls.events().append(f"{'Alice' if node.peer_id == ALICE.peer_id else 'Bob'}'s setup")

    async def run(self, reply: Message | None = None) -> None:
        try:
            if not self.inbound:
                await self.send_signal(Knock())
            self.events().append("started")
            await trio.sleep_forever()
        finally:
            with trio.move_on_after(0.05, shield=True):
                await trio.testing.wait_all_tasks_blocked(0.005)
            self.events().append("Bob's run" if self.inbound else "Alice's run")


class Knock(Message, frozen=True):
    """A message without content."""


async def test_setup_is_left_after_every_attempt() -> None:
    """This holds on both sides, although Alice's call is made outside of her node's block."""
    log: list[str] = []

    @register(phase=None)
    class Lasting(Logged):
        name = "lasting"
        proto_messages = (Knock,)

        @classmethod
        def events(cls) -> list[str]:
            return log

    async with pair(plugins=[Lasting]) as both:
        with trio.fail_after(HANG):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(expect_closed, partial(both.alice._runtime.ask, both.bob.address, "lasting"))
                while log.count("started") < 2:
                    await trio.testing.wait_all_tasks_blocked(0.005)
                # As `open_node` does it; here it ends both sides at once.
                both.alice._runtime.close_nowait()
    assert log == ["started", "started", "Alice's run", "Alice's setup", "Bob's run", "Bob's setup"]


async def tcp_pair() -> tuple[trio.socket.SocketType, trio.socket.SocketType]:
    with trio.socket.socket() as listener, trio.CancelScope(shield=True):  # on loopback this takes no time
        await listener.bind(("127.0.0.1", 0))
        listener.listen(1)
        ours = trio.socket.socket()
        await ours.connect(listener.getsockname())
        theirs, _ = await listener.accept()
    return ours, theirs


class Forwarded(Plugin):
    """A path that depends on tasks of its plugin, as one over a relay does."""

    name = "forwarded"

    async def run(self, reply: Message | None = None) -> Carrier:
        outer = trio.socket.socket()
        try:
            await outer.connect((str(self.dest.ip), self.dest.port))
            ours, inner = await tcp_pair()
        except BaseException:
            outer.close()
            raise
        stopped = trio.Event()

        async def forward(source: trio.socket.SocketType, sink: trio.socket.SocketType) -> None:
            while data := await source.recv(65536):
                await trio.SocketStream(sink).send_all(data)

        async def both_ways() -> None:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(forward, inner, outer)
                nursery.start_soon(forward, outer, inner)

        async def here() -> None:
            try:
                await both_ways()
            finally:
                stopped.set()
                if not cast(CallingAttempt, self._attempt).won:
                    inner.close()
                    outer.close()

        async def adopted() -> None:
            with inner, outer:
                await stopped.wait()
                await both_ways()

        self.nursery.start_soon(here)
        self.adopt(adopted)
        return await TlsCarrier.dial(ours, self.node.tls, peer_key=self.peer.public_key)


@asynccontextmanager
async def bob_and_alice(plugin: type[Plugin]) -> AsyncGenerator[tuple[Node, Node]]:
    async with (
        loopback_node(BOB, config(paths=BRIEF), authorize=anyone, plugins=["direct_connect"]) as bob,
        loopback_node(ALICE, config(budgets=QUICK, paths=BRIEF), plugins=[plugin]) as alice,
    ):
        yield bob, alice


@pytest.mark.parametrize("cancelled", [False, True])
async def test_goodbyes_go_through_adopted_tasks(cancelled: bool) -> None:
    """The tasks that carry a Link outlive it: the peer reads the stream's end, and no broken stream."""
    register(phase="direct")(Forwarded)
    async with loopback_node(BOB, config(), authorize=anyone, plugins=["direct_connect"]) as bob:
        with trio.CancelScope() as scope:
            async with loopback_node(ALICE, config(budgets=QUICK), plugins=[Forwarded]) as alice:
                ours = await alice.auto_connect(bob.address, afs=[4])
                theirs = await bob.listener.accept()
                await ours.send_all(b"last words")
                if cancelled:
                    scope.cancel()
        with trio.fail_after(HANG):
            assert await theirs.receive_some() == b"last words"
            assert await theirs.receive_some() == b""


async def test_a_link_is_broken_by_the_failure_of_what_carries_it(caplog: pytest.LogCaptureFixture) -> None:
    fail = trio.Event()

    @register(phase="direct")
    class Failing(Plugin):
        name = "failing"

        async def run(self, reply: Message | None = None) -> Carrier:
            async def carry() -> None:
                await fail.wait()
                raise ValueError("the allocation was lost")

            self.adopt(carry)
            return await dial(self)

    async with bob_and_alice(Failing) as (bob, alice):
        ours = await alice.auto_connect(bob.address, afs=[4])
        theirs = await bob.listener.accept()
        fail.set()
        with trio.fail_after(HANG):
            with pytest.raises(trio.BrokenResourceError):
                await ours.receive_some()
            with pytest.raises(trio.BrokenResourceError):
                await theirs.receive_some()
            while alice.stats().links:  # the node goes on, and drops the Link from its books
                await trio.testing.wait_all_tasks_blocked()
        assert "the allocation was lost" in caplog.text


# -- what is kept after an end -----------------------------------------------------------------------------------------


@pytest.mark.slow("real time: a goodbye and a phase")
async def test_a_link_that_is_over_is_let_go() -> None:
    """Its session is remembered for two minutes; its TLS state is freed."""
    async with loopback_node(BOB, config(), authorize=anyone) as bob, loopback_node(ALICE, config()) as alice:
        links: list[weakref.ref[Link]] = []
        session = (b"", b"")
        for _ in range(3):
            async with await alice.auto_connect(bob.address, afs=[4]) as ours:
                theirs = await bob.listener.accept()
                links += [weakref.ref(link_of(ours)), weakref.ref(link_of(theirs))]
                session = (ALICE.public_key, link_of(ours).session_id)
                await theirs.aclose()
            del ours, theirs
        with trio.fail_after(HANG):
            while alice.stats().links or bob.stats().links:
                await trio.testing.wait_all_tasks_blocked()
        gc.collect()
        assert [link() for link in links] == [None] * 6
        assert bob._runtime.inbound.is_spent(*session)
