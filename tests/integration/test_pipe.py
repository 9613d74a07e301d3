"""The Pipe on real sockets: Trio's stream contract, our own laws, and the details of both."""

from __future__ import annotations

import array
import os
from collections.abc import Awaitable, Callable
from functools import partial

import pytest
import trio
import trio.testing

from tests.hangs import HANG
from tests.identities import BOB
from tests.links import FAMILIES, End, carrier_kind, connect_ends, connect_sockets, linked, open_ends
from warpgate_trio.errors import PeerAborted
from warpgate_trio.link import Link, Pipe, RefuseReason
from warpgate_trio.testing.pipe_laws import check_cancelled_receive, check_cancelled_send, check_pipe

__all__ = ["carrier_kind"]
pytestmark = pytest.mark.usefixtures("carrier_kind")
Makers = tuple[Callable[[], Awaitable[tuple[Pipe, Pipe]]], Callable[[], Awaitable[tuple[Pipe, Pipe]]]]


def makers(nursery: trio.Nursery, family: int = trio.socket.AF_INET) -> Makers:
    """A maker of Pipes, and a maker of Pipes whose credit is used up to the last byte in both directions."""

    async def maker() -> tuple[Pipe, Pipe]:
        alice, bob = await open_ends(nursery, await connect_ends(family), goodbye=HANG)
        return alice.pipe, bob.pipe

    async def clogged_maker() -> tuple[Pipe, Pipe]:
        pipes = await maker()
        for pipe in pipes:
            await pipe.send_all(bytes(pipe._channel.sendable))
        return pipes

    return maker, clogged_maker


@pytest.mark.slow("Trio's checks and five laws in two directions, each on fresh Links")
@pytest.mark.parametrize("family", FAMILIES)
async def test_the_stream_contract_and_the_laws(family: int) -> None:
    with trio.fail_after(HANG):
        async with trio.open_nursery() as nursery:
            await check_pipe(*makers(nursery, family))


@pytest.mark.slow("a megabyte for each seed, over QUIC too")
@pytest.mark.parametrize("seed", range(1, 5))
async def test_the_random_laws_with_more_seeds(seed: int) -> None:
    with trio.fail_after(HANG):
        async with trio.open_nursery() as nursery:
            maker, _ = makers(nursery)
            await check_cancelled_receive(maker, seed=seed, size=1500)
            await check_cancelled_send(maker, seed=seed, may_break=False, size=1 << 20)


@pytest.mark.slow("Trio's checks on a further channel")
async def test_further_pipes_keep_the_contract_too() -> None:
    with trio.fail_after(HANG):
        async with linked() as (alice, bob):

            async def maker() -> tuple[Pipe, Pipe]:
                pipe = await alice.pipe.open_pipe()
                return pipe, await bob.accept()

            async def clogged_maker() -> tuple[Pipe, Pipe]:
                pipes = await maker()
                for pipe in pipes:
                    await pipe.send_all(bytes(pipe._channel.sendable))
                return pipes

            await check_pipe(maker, clogged_maker)
            assert set(alice.link.protocol.channels) == set(bob.link.protocol.channels) == {0}


# --- what a Pipe knows ---


async def test_what_a_pipe_knows(carrier_kind: str) -> None:
    async with linked() as (alice, bob):
        assert alice.pipe.peer_id == BOB.peer_id
        assert alice.pipe.label == ""
        assert alice.pipe.report is None
        path = alice.pipe.path
        assert (path.phase, path.plugin, path.carrier) == ("direct", "direct_connect", carrier_kind)
        assert path.remote == bob.pipe.path.local
        assert alice.pipe.carrier is alice.link.carrier
        where = f"{path.remote[0]}:{path.remote[1]}"
        assert repr(alice.pipe) == f"<Pipe to {BOB.peer_id[:8]}… by direct_connect to {where}>"
        while alice.pipe.rtt is None:
            await bob.pipe.send_all(b"x")
            await alice.pipe.receive_some()
        assert 0 < alice.pipe.rtt < 5
        assert alice.pipe.path.rtt == alice.pipe.rtt
        await alice.pipe.aclose()
        assert repr(alice.pipe).endswith(" closed>")


def test_a_pipe_without_a_path_yet_can_be_shown() -> None:
    async def main() -> str:
        async with linked() as (alice, _bob):
            alice.link.path = None
            return repr(alice.pipe)

    assert trio.run(main) == f"<Pipe to {BOB.peer_id[:8]}…>"


# --- ping ---


async def test_a_ping_proves_that_what_was_sent_before_has_arrived() -> None:
    async with linked() as (alice, bob):
        for size in (1, 1 << 19):
            bob.pipe._channel.take(None)
            await alice.pipe.send_all(bytes(size))
            assert 0 < await alice.pipe.ping() < 5
            assert bob.pipe._channel.buffered == size
            bob.link.note_read(bob.pipe._channel, size)
        async with trio.open_nursery() as nursery:
            for end in (alice, bob) * 3:
                nursery.start_soon(end.pipe.ping)


async def test_a_ping_that_is_cancelled_leaves_nothing() -> None:
    async with linked() as (alice, _bob):
        with trio.CancelScope() as scope:
            scope.cancel()
            await alice.pipe.ping()
        assert await alice.pipe.ping() > 0


async def test_a_ping_on_a_path_that_is_gone() -> None:
    async with linked() as (alice, bob):
        async with trio.open_nursery() as nursery:

            async def ping() -> None:
                with pytest.raises(
                    trio.BrokenResourceError, match=r"pipe broken: the connection (was lost|was closed without|broke)"
                ):
                    await alice.pipe.ping()

            nursery.start_soon(ping)
            bob.link.close_nowait()
        await ping()  # the Link was gone before this call


async def test_a_ping_tells_of_a_peer_that_aborted_before_it_had_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both sides had ended their directions, and our end had not arrived yet."""
    async with linked() as (alice, bob):
        await trio.testing.wait_all_tasks_blocked(0.005)
        receive, go_on = bob.link.carrier.receive, trio.Event()

        async def receive_later() -> list[bytes]:
            await go_on.wait()
            return await receive()

        monkeypatch.setattr(bob.link.carrier, "receive", receive_later)
        await alice.pipe.send_all(b"x")  # for the read that is under way
        assert await bob.pipe.receive_some() == b"x"
        await bob.pipe.send_eof()
        assert await alice.pipe.receive_some() == b""
        await alice.pipe.send_all(b"the rest")
        await alice.pipe.send_eof()
        bob.pipe.abort()
        with pytest.raises(trio.BrokenResourceError, match="the peer aborted it"):
            await alice.pipe.ping()
        assert await alice.pipe.receive_some() == b""
        go_on.set()


# --- the details ---


@pytest.mark.parametrize("wrong", [1.5, "10", b"1"])
async def test_max_bytes_must_be_an_int(wrong: object) -> None:
    async with linked() as (alice, _bob):
        with pytest.raises(TypeError, match="max_bytes must be an int or None, not "):
            await alice.pipe.receive_some(wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("wrong", [0, -1])
async def test_max_bytes_must_be_positive(wrong: int) -> None:
    async with linked() as (alice, _bob):
        with pytest.raises(ValueError, match="max_bytes must be at least 1"):
            await alice.pipe.receive_some(wrong)


async def test_only_bytes_can_be_sent() -> None:
    async with linked() as (alice, bob):
        for wrong in ("text", None, 5):
            with pytest.raises(TypeError):
                await alice.pipe.send_all(wrong)  # type: ignore[arg-type]
        await alice.pipe.send_all(memoryview(array.array("H", [0x6161, 0x6262])))  # any memory, taken as bytes
        assert await bob.pipe.receive_some() == b"aabb"


async def test_pieces_are_what_receive_some_would_join() -> None:
    data = os.urandom(300_000)
    async with linked() as (alice, bob):

        async def send() -> None:
            await alice.pipe.send_all(data)
            await alice.pipe.send_eof()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(send)
            found = []
            while pieces := await bob.pipe.receive_pieces(20_000):
                assert all(pieces)
                assert sum(map(len, pieces)) <= 20_000
                found += pieces
        assert b"".join(found) == data
        assert await bob.pipe.receive_pieces() == []
        assert bob.pipe._channel.consumed == len(data)
        with pytest.raises(ValueError, match="max_bytes must be at least 1"):
            await bob.pipe.receive_pieces(0)


async def test_one_task_sends_and_one_receives() -> None:
    async with linked() as (alice, _bob):
        await alice.pipe.send_all(bytes(alice.pipe._channel.sendable))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(alice.pipe.send_all, b"x")
            nursery.start_soon(alice.pipe.receive_some)
            await trio.testing.wait_all_tasks_blocked(0.002)
            sends: list[Callable[[], Awaitable[object]]] = [
                partial(alice.pipe.send_all, b""),
                alice.pipe.wait_send_all_might_not_block,
                alice.pipe.send_eof,
            ]
            for send in sends:
                with pytest.raises(trio.BusyResourceError, match="another task is using this pipe for send"):
                    await send()
            with pytest.raises(trio.BusyResourceError, match="another task is using this pipe for receive"):
                await alice.pipe.receive_some()
            nursery.cancel_scope.cancel()


async def test_the_end_can_be_said_twice() -> None:
    async with linked() as (alice, bob):
        await alice.pipe.send_all(b"all")
        for _ in range(3):
            await alice.pipe.send_eof()
        for data in (b"x", b""):
            with pytest.raises(trio.ClosedResourceError, match="send_eof was called on this pipe"):
                await alice.pipe.send_all(data)
        with pytest.raises(trio.ClosedResourceError, match="send_eof was called"):
            await alice.pipe.wait_send_all_might_not_block()
        assert [await bob.pipe.receive_some() for _ in range(3)] == [b"all", b"", b""]
        await bob.pipe.send_all(b"the other way is open")
        assert await alice.pipe.receive_some() == b"the other way is open"


def every_call(pipe: Pipe) -> dict[str, Callable[[], Awaitable[object]]]:
    return {
        "send_all": partial(pipe.send_all, b"x"),
        "send nothing": partial(pipe.send_all, b""),
        "wait": pipe.wait_send_all_might_not_block,
        "eof": pipe.send_eof,
        "receive": pipe.receive_some,
        "open": pipe.open_pipe,
    }


@pytest.mark.parametrize("way", ["aclose", "end_nowait", "after eof"])
async def test_after_a_close_here_every_call_says_so(way: str) -> None:
    async with linked() as (alice, bob):
        await bob.pipe.send_all(b"unread")
        await trio.testing.wait_all_tasks_blocked(0.005)
        if way == "after eof":
            await alice.pipe.send_eof()
        if way == "end_nowait":  # as the node does when it is left
            alice.link.end_nowait()
        else:
            await alice.pipe.aclose()
        for _ in range(2):
            for call in every_call(alice.pipe).values():
                with pytest.raises(trio.ClosedResourceError, match="this pipe was closed"):
                    await call()
            await alice.pipe.aclose()
            await alice.ended.wait()  # the error stays the same when the Link is gone


async def test_a_close_here_wakes_whoever_waits() -> None:
    async with linked() as (alice, _bob):
        await alice.pipe.send_all(bytes(alice.pipe._channel.sendable))
        async with trio.open_nursery() as nursery:

            async def wait(call: Callable[[], Awaitable[object]]) -> None:
                with pytest.raises(trio.ClosedResourceError, match="this pipe was closed"):
                    await call()

            nursery.start_soon(wait, alice.pipe.receive_some)
            nursery.start_soon(wait, partial(alice.pipe.send_all, b"x"))
            await trio.testing.wait_all_tasks_blocked(0.002)
            alice.link.end_nowait()


async def test_a_close_while_the_kernel_makes_a_sender_wait() -> None:
    """The blocked sender learns of the close at the latest when the goodbye is over."""
    async with linked(await connect_sockets(buffers=16384), goodbye=0.05) as (alice, bob):
        block = trio.Event()
        bob.link._openings.take = lambda _pipe: RefuseReason.BUSY

        async def never() -> list[bytes]:
            await block.wait()
            return []

        bob.link.carrier.receive = never  # type: ignore[method-assign]
        await alice.pipe.send_all(b"the read that was under way")
        await trio.testing.wait_all_tasks_blocked(0.002)
        async with trio.open_nursery() as nursery:

            async def send() -> None:
                with pytest.raises(trio.ClosedResourceError, match="this pipe was closed"):
                    await alice.pipe.send_all(bytes(1 << 19))

            nursery.start_soon(send)
            await trio.testing.wait_all_tasks_blocked(0.002)
            await alice.pipe.aclose()
        block.set()


async def test_the_peers_close_is_eof_to_read_and_broken_to_write() -> None:
    async with linked() as (alice, bob):
        await bob.pipe.send_all(b"bye")
        await bob.pipe.aclose()
        assert [await alice.pipe.receive_some() for _ in range(3)] == [b"bye", b"", b""]
        calls = every_call(alice.pipe)
        del calls["receive"], calls["open"]
        for call in calls.values():
            with pytest.raises(trio.BrokenResourceError, match="pipe broken: the peer closed its end"):
                await call()


async def abort(pipe: Pipe) -> None:
    pipe.abort()


async def leave_by_exception(pipe: Pipe) -> None:
    with pytest.raises(ValueError, match="the handler failed"):
        async with pipe:
            raise ValueError("the handler failed")


async def leave_cancelled(pipe: Pipe) -> None:
    with trio.CancelScope() as scope:
        async with pipe:
            scope.cancel()
            await trio.sleep_forever()


async def leave_with_a_cancelled_close(pipe: Pipe) -> None:
    with trio.CancelScope() as scope:
        async with pipe:
            scope.cancel()
    assert scope.cancelled_caught


async def close_cancelled(pipe: Pipe) -> None:
    with trio.CancelScope() as scope:
        scope.cancel()
        await pipe.aclose()
    assert scope.cancelled_caught


async def leave_well(pipe: Pipe) -> None:
    async with pipe:
        pass


ABORTS = [
    abort,
    leave_by_exception,
    leave_cancelled,
    leave_with_a_cancelled_close,
    close_cancelled,
    trio.aclose_forcefully,
]


def named(function: Callable[..., object]) -> str:
    return function.__name__


@pytest.mark.parametrize("way", ABORTS, ids=named)
async def test_what_was_interrupted_does_not_read_as_finished(way: Callable[[Pipe], Awaitable[None]]) -> None:
    async with linked() as (alice, bob):
        await alice.pipe.send_all(b"a part")
        await way(alice.pipe)
        assert await bob.pipe.receive_some() == b"a part"
        calls = every_call(bob.pipe)
        for name in ("receive", "send_all", "send nothing", "wait", "eof"):
            call = calls[name]
            with pytest.raises(trio.BrokenResourceError, match=r"^pipe broken: the peer aborted it$") as caught:
                await call()
            assert isinstance(caught.value.__cause__, PeerAborted)
        for call in every_call(alice.pipe).values():
            with pytest.raises(trio.ClosedResourceError, match="this pipe was closed"):
                await call()
        assert repr(alice.pipe).endswith(" closed>")
        await alice.ended.wait()


async def test_an_exception_is_not_lost_where_its_scope_was_cancelled_too() -> None:
    async with linked() as (alice, _):
        with pytest.raises(ValueError, match="the handler failed"), trio.CancelScope() as scope:
            async with alice.pipe:
                scope.cancel()
                raise ValueError("the handler failed")


@pytest.mark.parametrize("way", [Pipe.aclose, leave_well], ids=named)
async def test_what_was_closed_well_reads_as_finished(way: Callable[[Pipe], Awaitable[None]]) -> None:
    async with linked() as (alice, bob):
        await alice.pipe.send_all(b"all")
        await way(alice.pipe)
        await trio.aclose_forcefully(alice.pipe)  # an end that was sent is not taken back
        alice.pipe.abort()
        assert [await bob.pipe.receive_some() for _ in range(2)] == [b"all", b""]


async def test_an_abort_after_the_end_was_said_breaks_the_peers_sends_alone() -> None:
    async with linked() as (alice, bob):
        await alice.pipe.send_all(b"all")
        await alice.pipe.send_eof()
        alice.pipe.abort()
        assert [await bob.pipe.receive_some() for _ in range(2)] == [b"all", b""]
        with pytest.raises(trio.BrokenResourceError, match="the peer aborted it"):
            await bob.pipe.send_all(b"x")


@pytest.mark.parametrize("waits", ["to send", "to receive"])
async def test_an_abort_wakes_whoever_waits_at_both_ends_and_nobody_else(waits: str) -> None:
    async with linked() as (alice, bob):
        beside = await alice.pipe.open_pipe()
        theirs = await bob.accept()
        if waits == "to send":
            for end in (alice, bob):
                await end.pipe.send_all(bytes(end.pipe._channel.sendable))

        async def wait(call: Callable[[], Awaitable[object]], error: type[Exception], text: str) -> None:
            with pytest.raises(error, match=text):
                await call()

        async with trio.open_nursery() as nursery:
            for end, error, text in (
                (alice, trio.ClosedResourceError, "this pipe was closed"),
                (bob, trio.BrokenResourceError, "the peer aborted it"),
            ):
                call = partial(end.pipe.send_all, b"x") if waits == "to send" else end.pipe.receive_some
                nursery.start_soon(wait, call, error, text)
            await trio.testing.wait_all_tasks_blocked(0.005)
            alice.pipe.abort()
        await beside.send_all(b"the Link goes on")
        assert await theirs.receive_some() == b"the Link goes on"


async def test_an_abort_in_the_middle_of_a_send_reaches_the_peer_behind_what_went_out() -> None:
    """As in a process that is shutting down, which only sends its goodbyes."""
    async with linked(await connect_sockets(buffers=16384)) as (alice, bob):
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery, alice.pipe:

                async def interrupt() -> None:
                    await trio.testing.wait_all_tasks_blocked(0.005)
                    scope.cancel()

                nursery.start_soon(interrupt)
                await alice.pipe.send_all(bytes(16 << 20))
        alice.link.end_nowait()  # as the node does when it is left
        received = 0
        with pytest.raises(trio.BrokenResourceError, match="the peer aborted it"):
            while piece := await bob.pipe.receive_some():
                received += len(piece)
        assert 0 < received < 16 << 20
        await alice.ended.wait()


async def test_a_path_that_is_cut_is_broken_both_ways_after_what_had_arrived() -> None:
    async with linked() as (alice, bob):
        await bob.pipe.send_all(b"arrived")
        await trio.testing.wait_all_tasks_blocked(0.005)
        bob.link.close_nowait()
        await alice.ended.wait()
        assert await alice.pipe.receive_some() == b"arrived"
        for name, call in every_call(alice.pipe).items():
            with pytest.raises(
                trio.BrokenResourceError,
                match=r"pipe broken: the (connection (was lost|was closed without|broke)|link)",
            ) as caught:
                await call()
            assert isinstance(caught.value.__cause__, trio.BrokenResourceError), name
        with pytest.raises(trio.BrokenResourceError, match="this link was closed"):
            await bob.pipe.receive_some()


async def test_sending_waits_for_credit_and_for_nothing_else() -> None:
    async with linked() as (alice, bob):
        with trio.testing.assert_checkpoints():
            await alice.pipe.wait_send_all_might_not_block()
        await alice.pipe.send_all(bytes(alice.pipe._channel.sendable))
        with trio.move_on_after(0.005) as scope:
            await alice.pipe.wait_send_all_might_not_block()
        assert scope.cancelled_caught
        await bob.pipe.receive_some()
        with trio.fail_after(HANG):
            await alice.pipe.wait_send_all_might_not_block()


async def test_a_send_that_fits_costs_one_checkpoint_and_no_task_switch() -> None:
    """The speed of bulk transfers depends on this: 64 KiB are encrypted and sent in the sender's own task, in one step.

    On a busy machine the Link's own task may be sending at that moment, or the sender may hand over less at a time
    (`warpgate_trio.link.pace`).  In that case the next send is tried.
    """
    me = trio.lowlevel.current_task()
    steps: list[trio.lowlevel.Task] = []

    class Count(trio.abc.Instrument):
        def before_task_step(self, task: trio.lowlevel.Task) -> None:
            steps.append(task)

    count = Count()
    taken: list[int] = []
    async with linked() as (alice, bob):
        while 1 not in taken:
            await trio.testing.wait_all_tasks_blocked(0.005)
            steps.clear()
            trio.lowlevel.add_instrument(count)
            await alice.pipe.send_all(bytes(65536))
            trio.lowlevel.remove_instrument(count)
            taken.append(steps.count(me))
            received = 0
            while received < 65536:
                received += len(await bob.pipe.receive_some())


async def test_what_a_cancelled_sender_left_goes_out_without_it(monkeypatch: pytest.MonkeyPatch) -> None:
    async with linked(await connect_sockets(buffers=16384)) as (alice, bob):
        await trio.testing.wait_all_tasks_blocked(0.005)  # the first PINGs are answered
        receive, go_on = bob.link.carrier.receive, trio.Event()

        async def receive_later() -> list[bytes]:
            await go_on.wait()
            return await receive()

        monkeypatch.setattr(bob.link.carrier, "receive", receive_later)
        await alice.pipe.send_all(b"x")  # for the read that is under way
        assert await bob.pipe.receive_some() == b"x"
        with trio.move_on_after(0.005) as scope:
            await alice.pipe.send_all(bytes(120_000))
        assert scope.cancelled_caught
        assert alice.link.carrier.owed
        begun = alice.pipe._channel.sent - 1  # only whole frames are encrypted
        assert 0 < begun < 120_000
        go_on.set()
        received = 0
        with trio.fail_after(HANG):
            while received < begun:
                received += len(await bob.pipe.receive_some())


async def test_a_sender_that_waited_for_its_turn_finds_the_pipe_closed() -> None:
    async with linked() as (alice, _bob):
        second = await alice.pipe.open_pipe()

        async def send(pipe: Pipe) -> None:
            with pytest.raises(trio.ClosedResourceError, match="this pipe was closed"):
                await pipe.send_all(b"x")

        async with trio.open_nursery() as nursery:
            async with alice.link._first._turn:
                nursery.start_soon(send, second)
                await trio.testing.wait_all_tasks_blocked(0.002)
                await second.aclose()
        await alice.pipe.send_all(b"x")


async def test_a_sender_that_finds_the_path_broken_breaks_the_link_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    async with linked() as (alice, _bob):
        second = await alice.pipe.open_pipe()

        async def flush() -> None:
            await trio.lowlevel.checkpoint()
            raise trio.BrokenResourceError("the connection broke: no route")

        monkeypatch.setattr(alice.link.carrier, "flush", flush)
        for pipe in (second, alice.pipe):
            with pytest.raises(trio.BrokenResourceError, match="pipe broken: the connection broke: no route"):
                await pipe.send_all(b"x")
        await alice.ended.wait()


async def test_an_end_is_named_in_repr() -> None:
    async with linked() as (alice, _bob):
        assert isinstance(alice, End)
        assert isinstance(alice.link, Link)
        assert repr(alice.link) == f"<Link to {BOB.peer_id[:8]}… open>"
