"""Third-party plugins in real walks: what they may do, and how their mistakes are contained.

The promises are those of docs/writing_a_plugin.md.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager

import pytest
import trio

from tests.identities import ALICE, BOB
from tests.nodes import QUICK, address_of, closed_port, config, loopback_node, pair
from warpgate_strategies.direct_connect import DirectConnect, dial
from warpgate_trio import ConnectError, Verdict, anyone
from warpgate_trio.carrier import Carrier
from warpgate_trio.errors import AttemptFailed
from warpgate_trio.link import Link
from warpgate_trio.plugin import AttemptContext, Message, NodeView, PathRequest, Plugin, register
from warpgate_trio.report import Outcome

pytestmark = pytest.mark.usefixtures("own_plugins", "jumping_clock")


def with_own(plugin: type[Plugin]) -> list[str | type[Plugin]]:
    return ["direct_connect", plugin]


async def test_an_own_plugin_wins_a_walk() -> None:
    @register(phase="direct")
    class Mine(Plugin):
        name = "mine"

        async def run(self, reply: Message | None = None) -> Carrier:
            return await dial(self)

    async with pair(plugins=[Mine]) as both, await both.alice.auto_connect(both.bob.address) as pipe:
        assert pipe.path.plugin == "mine"


async def test_both_halves_of_a_plugin_talk() -> None:
    """The initiator's half asks, the peer's half dials: messages, inbound Links, and the state that each run() sees."""
    seen: list[tuple[object, ...]] = []

    class Ask(PathRequest, frozen=True):
        text: str = ""

    class Answer(Message, frozen=True):
        text: str

    @register(phase="direct")
    class Talk(Plugin):
        name = "talk"
        proto_messages = (Ask, Answer)
        aim = Plugin.aim.OURS

        async def run(self, reply: Message | None = None) -> Carrier | Link:
            seen.append((self.inbound, self.af, self.route_type.name, self.session_id, self.attempt_id, self.nat))
            assert self.budget > 0
            assert self.clock.now() > 1e9
            assert self.src is None
            if self.inbound:
                assert isinstance(reply, Ask)
                await self.send_signal(Answer(text=reply.text.upper()))
                return await dial(self)
            dest = self.dest
            await self.send_signal(
                Ask(af=dest.af, route_type=self.route_type, address=dest.address, port=dest.port, text="hi")
            )
            answer = await self.receive_signal()
            assert isinstance(answer, Answer)
            assert answer.text == "HI"
            return await self.wait_inbound()

    async with pair(plugins=[Talk]) as both, await both.alice.connect(both.bob.address, plugin="talk", af=4) as pipe:
        assert pipe.path.plugin == "talk"
        theirs = await both.bob.listener.accept()
        assert theirs.path.plugin == "talk"
        await theirs.aclose()
    ours, peers = seen
    assert ours[0] is False
    assert peers[0] is True
    assert ours[1:5] == peers[1:5]


async def test_a_plugin_that_raises_loses_only_its_combo(caplog: pytest.LogCaptureFixture) -> None:
    @register(phase="direct")
    class Broken(Plugin):
        name = "broken"

        async def run(self, reply: Message | None = None) -> Carrier:
            raise ZeroDivisionError("a bug of its own")

    async with (
        loopback_node(BOB, config(), authorize=anyone) as bob,
        loopback_node(ALICE, config(), plugins=with_own(Broken), strict_plugins=False) as alice,
    ):
        async with await alice.auto_connect(bob.address) as pipe:
            assert pipe.report is not None
            errors = {combo.error for combo in pipe.report.combos if combo.plugin == "broken"}
            assert errors == {"ZeroDivisionError: a bug of its own"}
    assert "a bug of its own" in caplog.text
    assert "Traceback" in caplog.text
    async with (
        loopback_node(BOB, config(), authorize=anyone) as bob,
        loopback_node(ALICE, config(), plugins=with_own(Broken), strict_plugins=True) as alice,
    ):
        with pytest.raises(ZeroDivisionError):
            await alice.connect(bob.address, plugin="broken", af=4)


async def test_background_tasks_end_with_the_attempt_and_their_failure_is_the_combos() -> None:
    ended: list[str] = []

    @register(phase="direct")
    class Busy(Plugin):
        name = "busy"

        async def run(self, reply: Message | None = None) -> Carrier:
            async def background() -> None:
                try:
                    await trio.sleep_forever()
                finally:
                    ended.append("background")

            async def fails() -> None:
                raise AttemptFailed("the background task says so")

            self.nursery.start_soon(background)
            if self.af == 6:
                self.nursery.start_soon(fails)
                await trio.sleep_forever()
            await trio.lowlevel.checkpoint()
            return await dial(self)

    async with pair(plugins=[Busy]) as both:
        async with await both.alice.connect(both.bob.address, plugin="busy", af=4):
            assert ended == ["background"]
        with pytest.raises(ConnectError) as caught:
            await both.alice.connect(both.bob.address, plugin="busy", af=6)
        (combo,) = caught.value.report.combos
        assert combo.error == "the background task says so"
        assert ended == ["background", "background"]


async def test_a_plugin_that_overstays_is_shown_in_the_report() -> None:
    @register(phase="direct")
    class Slow(Plugin):
        name = "slow"

        async def run(self, reply: Message | None = None) -> Carrier:
            try:
                await trio.sleep_forever()
            finally:
                with trio.move_on_after(0.03, shield=True):
                    await trio.sleep_forever()
            raise AssertionError("not reached")

    async with (
        loopback_node(BOB, config(), authorize=anyone) as bob,
        loopback_node(ALICE, config(), plugins=with_own(Slow)) as alice,
    ):
        async with await alice.auto_connect(bob.address, afs=[4]) as pipe:
            assert pipe.report is not None
            (slow,) = [combo for combo in pipe.report.combos if combo.plugin == "slow"]
            assert slow.outcome is Outcome.LOST
            assert slow.cleanup_ms is not None
            assert slow.cleanup_ms >= 30


@pytest.mark.parametrize("nonsense", [None, "a string", 7])
async def test_a_plugin_that_returns_nonsense(nonsense: object) -> None:
    @register(phase="direct")
    class Odd(Plugin):
        name = "odd"

        async def run(self, reply: Message | None = None) -> Carrier:
            await trio.lowlevel.checkpoint()
            return nonsense  # type: ignore[return-value]

    async with loopback_node(ALICE, config(), plugins=[Odd], strict_plugins=False) as alice:
        with pytest.raises(ConnectError) as caught:
            await alice.connect(address_of(BOB, port=1), plugin="odd")
        assert "neither a Carrier nor a Link" in str(caught.value.report.combos[0].error)


async def test_setup_has_the_life_of_the_node() -> None:
    events: list[str] = []

    @register(phase="direct")
    class Stateful(Plugin):
        name = "stateful"

        def __init__(self, attempt: AttemptContext, shared: list[str]) -> None:
            super().__init__(attempt)
            self.shared = shared

        @classmethod
        @asynccontextmanager
        async def setup(cls, node: NodeView) -> AsyncGenerator[Callable[[AttemptContext], Plugin]]:
            events.append(f"up {node.peer_id == ALICE.peer_id}")
            try:
                yield lambda attempt: cls(attempt, events)
            finally:
                events.append("down")

        async def run(self, reply: Message | None = None) -> Carrier:
            self.shared.append("run")
            return await dial(self)

    async with loopback_node(BOB, config(), authorize=anyone, plugins=["direct_connect"]) as bob:
        async with loopback_node(ALICE, config(), plugins=[Stateful]) as alice:
            async with await alice.auto_connect(bob.address, afs=[4]):
                pass
    assert events == ["up True", "run", "down"]


async def test_a_setup_that_fails_disables_its_plugin_alone(caplog: pytest.LogCaptureFixture) -> None:
    @register(phase="direct")
    class Unready(Plugin):
        name = "unready"

        @classmethod
        @asynccontextmanager
        async def setup(cls, node: NodeView) -> AsyncGenerator[Callable[[AttemptContext], Plugin]]:
            raise OSError("no such device")
            yield

        async def run(self, reply: Message | None = None) -> Carrier:
            raise AssertionError("not reached")

    async with loopback_node(ALICE, config(), plugins=with_own(Unready), strict_plugins=False) as alice:
        (problem,) = [status for status in alice.plugins if status.problem is not None]
        assert problem.name == "unready"
        assert problem.problem == "setup failed: OSError: no such device"
        with pytest.raises(ValueError, match="no plugin 'unready'"):
            await alice.connect(address_of(BOB, port=1), plugin="unready")
    assert "unready is disabled" in caplog.text
    with pytest.raises(OSError, match="no such device"):
        async with loopback_node(ALICE, config(), plugins=with_own(Unready), strict_plugins=True):
            pytest.fail("strict means strict")


async def test_adopted_tasks_live_with_the_link_and_goodbyes_run_afterwards() -> None:
    events: list[str] = []

    @register(phase="direct")
    class Relayed(Plugin):
        name = "relayed"

        async def run(self, reply: Message | None = None) -> Carrier:
            async def keep_alive() -> None:
                events.append("adopted")
                try:
                    await trio.sleep_forever()
                finally:
                    events.append("left")

            async def release() -> None:
                events.append("goodbye")
                raise OSError("nobody is interested any more")

            self.adopt(keep_alive)
            self.goodbye(release)
            return await dial(self)

    async with pair(plugins=[Relayed]) as both:
        async with await both.alice.connect(both.bob.address, plugin="relayed", af=4):
            await trio.testing.wait_all_tasks_blocked(0.005)
            assert sorted(events) == ["adopted", "goodbye"]
    assert events[-1] == "left"


async def test_losers_do_not_adopt() -> None:
    events: list[str] = []

    @register(phase="direct")
    class Loser(Plugin):
        name = "loser"

        async def run(self, reply: Message | None = None) -> Carrier:
            async def task() -> None:
                events.append("adopted")

            self.adopt(task)
            raise AttemptFailed("no path here")

    async with loopback_node(ALICE, config(budgets=QUICK), plugins=[Loser]) as alice:
        with pytest.raises(ConnectError) as caught:
            await alice.auto_connect(address_of(BOB, port=await closed_port()))
        assert caught.value.verdict is Verdict.UNREACHABLE
    assert events == []


async def test_a_responder_that_refuses_or_fails_is_heard() -> None:
    class Please(PathRequest, frozen=True):
        pass

    @register(phase="direct")
    class Unwilling(Plugin):
        name = "unwilling"
        proto_messages = (Please,)
        aim = Plugin.aim.OURS

        async def run(self, reply: Message | None = None) -> Carrier | Link:
            if self.inbound:
                raise AttemptFailed("a detail that is nobody's business")
            dest = self.dest
            await self.send_signal(Please(af=dest.af, route_type=self.route_type, address=dest.address, port=dest.port))
            return await self.wait_inbound()

    async with pair(plugins=[Unwilling]) as both:
        with pytest.raises(ConnectError) as caught:
            await both.alice.connect(both.bob.address, plugin="unwilling", af=4)
        (combo,) = caught.value.report.combos
        assert combo.error == "the peer's side of the attempt failed"


async def test_a_plugin_that_the_peer_does_not_have() -> None:
    class Please(PathRequest, frozen=True):
        pass

    @register(phase="direct")
    class Unknown(Plugin):
        name = "unknown"
        proto_messages = (Please,)
        aim = Plugin.aim.OURS

        async def run(self, reply: Message | None = None) -> Carrier | Link:
            dest = self.dest
            await self.send_signal(Please(af=dest.af, route_type=self.route_type, address=dest.address, port=dest.port))
            return await self.wait_inbound()

    async with pair(plugins=[DirectConnect]) as both:
        async with loopback_node(ALICE, config(both.server), plugins=[Unknown]) as alice:
            await alice.wait_signals()
            with pytest.raises(ConnectError) as caught:
                await alice.connect(both.bob.address, plugin="unknown", af=4)
    (combo,) = caught.value.report.combos
    assert "unsupported" in str(combo.error)
