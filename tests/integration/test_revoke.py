"""Peers that are no longer let in: `Node.revoke`, and the rule that is asked again after a long time without a path."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial

import pytest
import trio
import trio.testing

from tests.hangs import HANG
from tests.identities import ALICE, BOB, MALLORY
from tests.links import link_of, raw_end
from tests.nodes import config, loopback_node, pair, pipes
from tests.waiting import wait_until
from warpgate_trio import ConnectError, Node, PathState, PeerAddress, PeerRefused, Pipe, Verdict, anyone
from warpgate_trio.errors import PeerIdError
from warpgate_trio.link import RefuseReason
from warpgate_trio.link.ends import GoAwayCode
from warpgate_trio.link.frames import GoAway
from warpgate_trio.node.path_keeper import _Kept
from warpgate_trio.servers.rendezvous import open_rendezvous

pytestmark = pytest.mark.usefixtures("jumping_clock")


async def breaks(pipe: Pipe, match: str) -> trio.BrokenResourceError:
    """Checks that every call on a Pipe raises `BrokenResourceError`; returns the error."""
    errors: list[trio.BrokenResourceError] = []
    with trio.fail_after(HANG):
        for call in (pipe.receive_some, partial(pipe.send_all, b"x"), pipe.ping, pipe.open_pipe, pipe.wait_path_change):
            with pytest.raises(trio.BrokenResourceError, match=match) as caught:
                await call()
            errors.append(caught.value)
    return errors[0]


HERE = "this node has revoked the peer's access"
THERE = "the peer has revoked this node's access"


@pytest.mark.parametrize("by", ["the caller", "the listener"])
async def test_a_revoked_peer_loses_its_pipes_and_both_ends_say_why(by: str) -> None:
    async with pipes() as (ours, theirs, both):
        further = await ours.open_pipe("further")
        others = await both.bob.listener.accept()
        await ours.send_all(b"before")
        await wait_until(lambda: theirs._channel.buffered)
        node, peer = (both.alice, both.bob) if by == "the caller" else (both.bob, both.alice)
        here, there = ((ours, further), (theirs, others))[:: 1 if by == "the caller" else -1]
        assert await node.revoke(peer.peer_id) == 1
        if by == "the caller":  # what has arrived may still be read
            assert await theirs.receive_some() == b"before"
        for pipe in here:
            if pipe is theirs:
                assert await pipe.receive_some() == b"before"
            await breaks(pipe, HERE)
        for pipe in there:
            cause = (await breaks(pipe, THERE)).__cause__
            assert isinstance(cause, PeerRefused)
            assert cause.reason == RefuseReason.UNAUTHORIZED
        await wait_until(lambda: both.alice.stats().links == both.bob.stats().links == 0)
        assert await node.revoke(peer.peer_id) == 0


async def test_calls_that_wait_break_at_once() -> None:
    async with pipes() as (ours, theirs, both):
        broken: list[str] = []

        async def receive(pipe: Pipe, match: str) -> None:
            with pytest.raises(trio.BrokenResourceError, match=match):
                await pipe.receive_some()
            broken.append(match)

        with trio.fail_after(HANG):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(receive, ours, THERE)
                nursery.start_soon(receive, theirs, HERE)
                await trio.testing.wait_all_tasks_blocked()
                await both.bob.revoke(ALICE.peer_id)
        assert sorted(broken) == sorted([HERE, THERE])


async def test_it_does_not_wait_for_the_peer() -> None:
    async with trio.open_nursery() as nursery, raw_end(nursery, goodbye=10.0) as (end, _silent):
        waited: list[float] = []

        async def receive() -> None:
            with pytest.raises(trio.BrokenResourceError, match=HERE):
                await end.pipe.receive_some()
            waited.append(trio.current_time() - revoked_at)

        nursery.start_soon(receive)
        await trio.testing.wait_all_tasks_blocked()
        revoked_at = trio.current_time()
        end.link.revoke_nowait()
        await wait_until(lambda: waited)
        assert waited[0] < 1.0


async def test_others_are_not_concerned_and_a_later_call_is_judged_as_ever() -> None:
    allowed = {ALICE.peer_id, MALLORY.peer_id}

    async def rule(peer_id: str) -> bool:
        return peer_id in allowed

    async with pair(authorize=rule) as both, loopback_node(MALLORY, config(both.server)) as other:
        ours = await both.alice.auto_connect(both.bob.address)
        theirs = await both.bob.listener.accept()
        beside = await other.auto_connect(both.bob.address)
        others = await both.bob.listener.accept()
        allowed.remove(ALICE.peer_id)
        assert await both.bob.revoke(ALICE.peer_id) == 1
        await breaks(theirs, HERE)
        await breaks(ours, THERE)
        with pytest.raises(ConnectError) as refused:
            await both.alice.auto_connect(both.bob.address)
        assert refused.value.verdict is Verdict.REFUSED
        await beside.send_all(b"still")
        assert await others.receive_some() == b"still"
        allowed.add(ALICE.peer_id)
        again = await both.alice.auto_connect(both.bob.address)
        await again.send_all(b"again")
        assert await (await both.bob.listener.accept()).receive_some() == b"again"


@contextmanager
def no_new_paths() -> Iterator[None]:
    """Keeps nodes from searching for new paths."""

    async def nothing(*_: object) -> None:
        await trio.lowlevel.checkpoint()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_Kept, "_search_anew", nothing)
        yield


async def test_nobody_comes_back_to_what_was_revoked_without_a_path() -> None:
    """The peer could not be told, and learns it when it finds a path; this side no longer searches for one."""
    async with pipes() as (ours, theirs, both):
        await theirs.ping()
        link = link_of(theirs)
        with no_new_paths():
            link_of(ours).carrier.close_nowait()
            await wait_until(lambda: theirs.path.state is PathState.SUSPENDED)
            assert await both.bob.revoke(ALICE.peer_id) == 1
        await breaks(theirs, HERE)
        await breaks(ours, "the peer no longer has this link")
        started = trio.current_time()
        await wait_until(lambda: both.bob.stats().links == 0)
        assert trio.current_time() - started < 1.0, "there is nobody to say goodbye to"
        searches = both.bob.stats().searches
        await trio.sleep(60)
        assert both.bob.stats().searches == searches
        assert link not in both.bob._runtime.links._links


async def test_what_was_closed_and_waits_for_a_path_to_say_so_ends_too() -> None:
    async with pipes() as (ours, theirs, both):
        await theirs.ping()
        with no_new_paths():
            link_of(ours).carrier.close_nowait()
            await wait_until(lambda: theirs.path.state is PathState.SUSPENDED)
            await theirs.aclose()
            await trio.sleep(5)
            assert both.bob.stats().links == 1
            assert await both.bob.revoke(ALICE.peer_id) == 1
            await wait_until(lambda: both.bob.stats().links == 0)


async def test_an_answer_that_revoke_has_overtaken_is_asked_for_again() -> None:
    answers: list[trio.Event] = []
    allowed = True

    async def rule(peer_id: str) -> bool:
        answer = allowed
        answers.append(trio.Event())
        await answers[-1].wait()
        return answer

    async with pair(authorize=rule) as both:
        verdicts: list[Verdict] = []

        async def call() -> None:
            with pytest.raises(ConnectError) as refused:
                await both.alice.connect(both.bob.address, plugin="direct_connect", af=4)
            verdicts.append(refused.value.verdict)

        with trio.fail_after(HANG):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(call)
                await wait_until(lambda: len(answers) == 1)
                allowed = False
                assert await both.bob.revoke(ALICE.peer_id) == 0
                answers[0].set()
                await wait_until(lambda: len(answers) == 2)
                answers[1].set()
        assert verdicts == [Verdict.REFUSED]
        assert both.bob.stats().links == 0


@pytest.mark.parametrize("stays", [False, True])
async def test_so_is_one_about_a_signal(stays: bool) -> None:
    """A peer that is no longer let in does not get the node's address again."""
    answers: list[trio.Event] = []
    allowed = True

    async def rule(peer_id: str) -> bool:
        answer = allowed
        answers.append(trio.Event())
        await answers[-1].wait()
        return answer

    async with pair(authorize=rule) as both:
        told: list[PeerAddress] = []

        async def ask() -> None:
            with suppress(trio.TooSlowError):
                told.append(await both.alice.refresh_address(both.bob.address))

        with trio.fail_after(HANG):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(ask)
                await wait_until(lambda: len(answers) == 1)
                allowed = stays
                await both.bob.revoke(ALICE.peer_id)
                answers[0].set()
                await wait_until(lambda: len(answers) == 2 or told)
                assert not told
                answers[1].set()
        assert told == [both.bob.address] * stays
        known = both.bob._runtime.view.known_address(ALICE.public_key)
        assert (known is not None) == both.bob._runtime.responder.has_let_in(ALICE.public_key) == stays
        assert both.bob.stats().refused == ({} if stays else {"not_authorized": 1})


async def test_what_the_rule_has_said_of_the_peer_is_forgotten() -> None:
    async with pair() as both:
        await both.alice.refresh_address(both.bob.address)
        assert both.bob._runtime.responder.has_let_in(ALICE.public_key)
        await both.bob.revoke(ALICE.peer_id)
        assert not both.bob._runtime.responder.has_let_in(ALICE.public_key)


async def test_unknown_and_impossible_peers() -> None:
    async with loopback_node(BOB, config(), authorize=anyone) as bob:
        assert await bob.revoke(MALLORY.peer_id) == 0
        with pytest.raises(PeerIdError):
            await bob.revoke("nobody")
    assert await bob.revoke(MALLORY.peer_id) == 0


async def test_a_revocation_that_is_cancelled_was_done() -> None:
    async with pipes() as (ours, theirs, both):
        with trio.CancelScope() as scope:
            scope.cancel()
            await both.bob.revoke(ALICE.peer_id)
        assert scope.cancelled_caught
        await breaks(theirs, HERE)
        await breaks(ours, THERE)


async def test_what_is_said_is_a_goaway_that_any_release_reads(nursery: trio.Nursery) -> None:
    async with raw_end(nursery) as (end, peer):
        end.link.revoke_nowait()
        assert [each for each in await peer.hear_until_end() if isinstance(each, GoAway)] == [
            GoAway(code=GoAwayCode.UNAUTHORIZED)
        ]
        await breaks(end.pipe, HERE)


# -- asked again -------------------------------------------------------------------------------------------------------


@dataclass
class Rule:
    """An `authorize` that counts its calls; `allowed` is its answer."""

    allowed: bool = True
    asked: list[str] = field(default_factory=list)

    async def __call__(self, peer_id: str) -> bool:
        self.asked.append(peer_id)
        await trio.lowlevel.checkpoint()
        return self.allowed


@asynccontextmanager
async def away(rule: Rule, seconds: float) -> AsyncGenerator[tuple[Pipe, Pipe, Node]]:
    """A Pipe that was without a path for so long, and may find one again now; the caller's own rule is never asked."""
    callers = Rule(allowed=False)
    async with (
        open_rendezvous() as server,
        loopback_node(BOB, config(server), authorize=rule) as bob,
        loopback_node(ALICE, config(server), authorize=callers) as alice,
    ):
        await bob.wait_signals()
        async with (
            await alice.connect(bob.address, plugin="direct_connect", af=4) as ours,
            await bob.listener.accept() as theirs,
        ):
            await theirs.ping()
            with no_new_paths():
                link_of(ours).carrier.close_nowait()
                await wait_until(lambda: theirs.path.state is PathState.SUSPENDED)
                await trio.sleep(seconds)
            assert rule.asked
            rule.asked.clear()
            yield ours, theirs, bob
            assert not callers.asked, "nobody has asked it before"


@pytest.mark.parametrize("seconds", [30.0, 61.0])
async def test_after_a_minute_without_a_path_the_rule_is_asked_again(seconds: float) -> None:
    rule = Rule()
    async with away(rule, seconds) as (ours, theirs, _bob):
        with trio.fail_after(HANG):
            await ours.send_all(b"back")
            assert await theirs.receive_some() == b"back"
        await trio.testing.wait_all_tasks_blocked()
        assert rule.asked == [ALICE.peer_id] * (seconds > 60)
        await theirs.send_all(b"and forth")
        assert await ours.receive_some() == b"and forth"


async def test_who_is_not_let_in_any_more_by_then_loses_its_pipe() -> None:
    rule = Rule()
    async with away(rule, 61.0) as (ours, theirs, bob):
        rule.allowed = False
        await breaks(theirs, HERE)
        await breaks(ours, THERE)
        assert rule.asked == [ALICE.peer_id]
        assert bob.stats().refused["unauthorized"] == 1
