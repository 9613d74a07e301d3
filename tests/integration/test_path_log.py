"""The history of a Pipe's path: `path_log`, `path_changes`, and the cause of each change."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import trio
import trio.testing

from tests.hangs import HANG
from tests.integration.test_lanes import attach, cut, lasting
from tests.links import End, carrier_kind
from tests.waiting import wait_until
from warpgate_trio import PathCause, PathChange, PathState
from warpgate_trio.link.pace import CHUNK_MAX
from warpgate_trio.link.path_log import MAX_CHANGES

__all__ = ["carrier_kind"]

pytestmark = pytest.mark.usefixtures("carrier_kind", "jumping_clock")


async def hold(end: End, by: End) -> Callable[[], None]:
    """Makes an end take nothing more from its carrier until the returned function is called."""
    carrier, let_go = end.link.carrier, trio.Event()
    receive = carrier.receive

    async def held() -> list[bytes]:
        pieces = await receive()
        await let_go.wait()
        return pieces

    carrier.receive = held  # type: ignore[method-assign]
    await by.pipe.ping()  # completes the read that began before
    return let_go.set


def seen(end: End) -> list[tuple[PathCause, PathState | None, PathState | None]]:
    """The causes and the states of an end's changes."""
    return [
        (each.cause, None if each.old is None else each.old.state, None if each.new is None else each.new.state)
        for each in end.pipe.path_log
    ]


LIVE, SUSPECT = PathState.LIVE, PathState.SUSPECT


async def test_a_path_that_is_lost_and_the_one_that_is_found() -> None:
    async with lasting() as (alice, bob):
        assert [*alice.pipe.path_log, *bob.pipe.path_log] == []
        await alice.pipe.ping()
        first, before = alice.pipe.path, trio.current_time()
        cut(alice)
        await wait_until(lambda: alice.pipe.path.state is bob.pipe.path.state is PathState.SUSPENDED)
        await trio.sleep(3.0)
        await attach(alice, bob)
        for end in (alice, bob):
            assert seen(end) == [(PathCause.LOST, LIVE, None), (PathCause.FOUND, None, LIVE)]
            lost, found = end.pipe.path_log
            assert lost.detail
            assert not found.detail
            assert (lost.silence, lost.replayed, found.replayed) == (0.0, 0, 0)
            assert 3.0 <= found.silence <= trio.current_time() - before
            assert before <= lost.at < found.at <= trio.current_time()
        lost, found = alice.pipe.path_log
        assert lost.old == first
        assert lost.old.rtt is not None
        assert found.new is not None
        assert found.new.same_as(alice.pipe.path)
        assert found.new.local != first.local


async def test_a_change_tells_how_much_is_said_again() -> None:
    async with lasting() as (alice, bob):
        await hold(bob, alice)
        await alice.pipe.send_all(bytes(1000))
        await alice.pipe.send_all(bytes(5000))
        await alice.pipe.send_eof()  # a frame, and no payload
        await wait_until(lambda: not alice.link.protocol.has_outbox(alice.link._first.protocol))
        cut(alice)
        await wait_until(lambda: alice.pipe.path.state is PathState.SUSPENDED)
        await attach(alice, bob)
        assert alice.pipe.path_log[-1].replayed == 6000


async def test_a_false_alarm() -> None:
    async with lasting(limit=1000) as (alice, bob):
        let_go = await hold(bob, alice)
        sent_at = trio.current_time()
        await alice.pipe.send_all(b"x")
        assert (await alice.pipe.wait_path_change()).state is SUSPECT
        await trio.sleep(5.0)
        let_go()
        assert (await alice.pipe.wait_path_change()).state is LIVE
        assert seen(alice) == [(PathCause.SUSPECTED, LIVE, SUSPECT), (PathCause.FORGIVEN, SUSPECT, LIVE)]
        suspected, forgiven = alice.pipe.path_log
        assert suspected.silence == pytest.approx(suspected.at - sent_at, abs=0.01)
        assert suspected.silence >= 1.5
        assert forgiven.silence == pytest.approx(forgiven.at - sent_at, abs=0.01)
        assert forgiven.silence >= 6.5
        assert (suspected.replayed, forgiven.replayed) == (0, 0)
        cut(alice)
        assert (await alice.pipe.wait_path_change()).state is PathState.SUSPENDED
        assert alice.pipe.path_log[-1].silence == 0.0, "of another time"


async def test_a_path_that_is_lost_where_there_is_another_one() -> None:
    async with lasting() as (alice, bob):
        await attach(alice, bob)
        cut(alice)
        await wait_until(lambda: bool(alice.pipe.path_log))
        assert seen(alice) == [(PathCause.LOST, LIVE, LIVE)]
        assert alice.pipe.path_log[0].switched


async def test_what_is_suspected_goes_on_by_the_other_path_and_the_peer_follows() -> None:
    async with lasting(limit=1000) as (alice, bob):
        await attach(alice, bob)
        await hold(bob, alice)
        await alice.pipe.send_all(bytes(500))
        await bob.pipe.wait_path_change()
        assert seen(alice) == [(PathCause.SUSPECTED, LIVE, LIVE)]
        (change,) = alice.pipe.path_log
        assert change.old is not None
        assert change.new is not None
        assert change.old.local != change.new.local
        assert (change.silence >= 1.5, change.replayed) == (True, 500)
        assert seen(bob) == [(PathCause.FOLLOWED, LIVE, LIVE)]


@pytest.mark.slow("a megabyte, past a carrier that holds its sender up")
async def test_a_path_that_holds_a_sender_up_is_suspected_first_and_closed_then() -> None:
    """A path that is closed because another was found does not count as lost."""
    async with lasting(limit=1000) as (alice, bob), trio.open_nursery() as nursery:
        await hold(bob, alice)
        first = alice.link._first
        first.protocol.pace.size = (
            CHUNK_MAX  # as on a path that was fast; such a path is closed although it holds a sender
        )
        nursery.start_soon(alice.pipe.send_all, bytes(1 << 20))
        assert (await alice.pipe.wait_path_change()).state is SUSPECT
        assert first.holds_a_sender
        await attach(alice, bob)
        assert first.gone
        assert seen(alice) == [(PathCause.SUSPECTED, LIVE, SUSPECT), (PathCause.FOUND, SUSPECT, LIVE)]
        nursery.cancel_scope.cancel()


async def test_each_change_is_told_as_it_happens_and_the_iteration_ends_with_the_pipe(nursery: trio.Nursery) -> None:
    async with lasting() as (alice, bob):
        heard: list[PathChange] = []
        ended = trio.Event()

        async def listen() -> None:
            async for change in alice.pipe.path_changes():
                heard.append(change)
            ended.set()

        nursery.start_soon(listen)
        await trio.testing.wait_all_tasks_blocked()
        cut(alice)
        await wait_until(lambda: alice.pipe.path.state is bob.pipe.path.state is PathState.SUSPENDED)
        await attach(alice, bob)
        await wait_until(lambda: len(heard) == 2)
        assert tuple(heard) == alice.pipe.path_log
        assert not ended.is_set()
        await alice.pipe.aclose()
        with trio.fail_after(HANG):
            await ended.wait()
        assert [change async for change in alice.pipe.path_changes()] == []


async def test_an_iteration_that_was_cancelled_goes_on_and_one_that_is_late_has_what_is_left() -> None:
    async with lasting(limit=1000) as (alice, _bob):
        changes, log = alice.pipe.path_changes(), alice.link.path_log
        with trio.move_on_after(1.0) as scope:
            await anext(changes)
        assert scope.cancelled_caught
        cut(alice)
        await wait_until(lambda: alice.pipe.path.state is PathState.SUSPENDED)
        assert (await anext(changes)).cause is PathCause.LOST
        (lost,) = alice.pipe.path_log
        for _ in range(MAX_CHANGES + 36):
            log._note(lost)
        assert len(alice.pipe.path_log) == 64
        log._note(PathChange(at=1.0, old=None, new=None, cause=PathCause.FOUND))
        assert [(await anext(changes)).cause for _ in range(64)] == [PathCause.LOST] * 63 + [PathCause.FOUND]
        alice.link.close_nowait()
        with pytest.raises(StopAsyncIteration):
            await anext(changes)


async def test_the_iteration_ends_with_a_broken_link() -> None:
    async with lasting(limit=1000) as (alice, _bob):
        cut(alice)
        assert [change.cause async for change in alice.pipe.path_changes()] == [PathCause.LOST]
        with pytest.raises(trio.BrokenResourceError, match="no usable path for 120 s"):
            await alice.pipe.receive_some()


async def test_a_change_that_comes_as_somebody_begins_to_wait_for_one_is_told() -> None:
    async with lasting() as (alice, _bob):
        cut(alice)  # Alice's reader notices at its next step
        assert (await alice.pipe.wait_path_change()).state is PathState.SUSPENDED


async def test_who_is_told_and_fails_harms_nobody(caplog: pytest.LogCaptureFixture) -> None:
    async with lasting() as (alice, bob):
        heard: list[PathChange] = []
        alice.link.path_log.watchers.append(lambda _: [][0])
        alice.link.path_log.watchers.append(heard.append)
        cut(alice)
        await wait_until(lambda: alice.pipe.path.state is bob.pipe.path.state is PathState.SUSPENDED)
        await attach(alice, bob)
        await alice.pipe.send_all(b"x")
        assert await bob.pipe.receive_some() == b"x"
        assert len(heard) == 2
        assert caplog.text.count("IndexError") == 2


async def test_what_the_peer_may_have_said_is_fit_to_be_shown() -> None:
    async with lasting() as (alice, _bob):
        alice.link._lose(alice.link._first, trio.BrokenResourceError("\x1b[2J" + "x" * 1000))
        (lost,) = alice.pipe.path_log
        assert lost.detail == "?[2J" + "x" * 195 + "…"


def test_a_change_in_words() -> None:
    change = PathChange(at=1.0, old=None, new=None, cause=PathCause.LOST, detail="gone", silence=1.26)
    assert str(change) == "no path → no path (lost: gone; 1.3 s of silence)"


async def test_a_pipe_that_closes_wakes_who_follows_pipes_and_not_who_looks_after_the_path() -> None:
    async with lasting() as (alice, _bob):
        log = alice.link.path_log
        async with trio.open_nursery() as nursery:
            further = alice.link.open_pipe_nowait("further")
            nursery.start_soon(alice.link.wait_path_event)
            nursery.start_soon(alice.pipe.wait_path_change)
            await wait_until(lambda: len(log.told) == len(log.told_pipes) == 1)
            further.close_nowait()
            assert (len(log.told), len(log.told_pipes)) == (1, 0)
            nursery.cancel_scope.cancel()
