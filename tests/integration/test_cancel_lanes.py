"""Calls that are cancelled at any checkpoint, while carriers come and go, leave nothing behind and no stream damaged.

Each call runs once for each of its checkpoints (`tests.cancel_sweep`), with each kind of trouble: the carrier in use is
cut before the call begins, is cut while it runs, swallows everything (a hole), or is missing.  Then another carrier is
attached.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager, nullcontext, suppress
from functools import partial
from typing import Final

import pytest
import trio
import trio.testing

from tests.cancel_sweep import AnyCut, cuts
from tests.hangs import HANG
from tests.integration.test_lanes import attach, cut, lasting, numbered, suspect
from tests.links import End, a_path, alice_proves, carrier_kind, carriers, connect_ends, is_closed
from tests.waiting import wait_until
from warpgate_trio import PathState
from warpgate_trio.carrier import Carrier
from warpgate_trio.link import Link, Pipe

__all__ = ["carrier_kind"]

pytestmark = pytest.mark.usefixtures("carrier_kind")

TROUBLES: Final = ["cut before", "cut meanwhile", "two cut", "no carrier", "peer's cut"]
"""What happens to the carriers of a Link while a call runs."""


@asynccontextmanager
async def ends() -> AsyncGenerator[tuple[End, End]]:
    """Both ends of a Link; checks that it leaves no task, no lane and no socket."""
    before = trio.lowlevel.current_statistics().tasks_living
    async with lasting(over=await connect_ends(buffers=16384), goodbye=0.2) as (alice, bob):
        yield alice, bob
    assert trio.lowlevel.current_statistics().tasks_living == before
    for end in (alice, bob):
        assert not [lane for lane in end.link._lanes.values() if not lane.gone]
        assert is_closed(end.link)
        outgoing = end.link.protocol.outgoing
        assert outgoing is not None
        assert outgoing.held == 0


async def trouble(kind: str, alice: End, bob: End) -> None:
    """Makes the trouble happen; afterwards the Link has a working carrier."""
    if kind == "hole":  # it blocks the sender
        bob.link._first.carrier.receive = trio.sleep_forever  # type: ignore[method-assign]
        await trio.testing.wait_all_tasks_blocked(0.01)
        suspect(alice.link._first.protocol.life)
        await attach(alice, bob)
        return
    if kind == "cut meanwhile":
        await trio.lowlevel.checkpoint()
    if kind == "two cut":
        await attach(alice, bob)
        cut(alice)
        await wait_until(lambda: not alice.link._speaking.gone)
    cut(bob if kind == "peer's cut" else alice)
    if kind == "no carrier":
        await wait_until(lambda: alice.link.live_path().state is bob.link.live_path().state is PathState.SUSPENDED)
    await attach(alice, bob, by_bob=kind == "peer's cut")


Operation = Callable[[AnyCut, End, End, Callable[[], Awaitable[None]]], Awaitable[None]]


async def sweep(operation: Operation, kind: str) -> None:
    """Runs the operation once for each of its checkpoints; it has to run the trouble beside what is cancelled."""
    for each in cuts():
        async with ends() as (alice, bob):
            await operation(each, alice, bob, partial(trouble, kind, alice, bob))


async def still_whole(alice: End, bob: End) -> None:
    """Checks that each side receives what the other sends."""
    for ours, theirs in ((alice, bob), (bob, alice)):
        await ours.pipe.send_all(b"whole")
        got = b""
        with trio.fail_after(HANG):
            while len(got) < 5:
                got += await theirs.pipe.receive_some()
        assert got == b"whole"


@pytest.mark.slow("a Link for each checkpoint")
@pytest.mark.parametrize("kind", [*TROUBLES, "hole"])
async def test_send_all(kind: str) -> None:
    message = numbered(300_000)

    async def operation(cut: AnyCut, alice: End, bob: End, happens: Callable[[], Awaitable[None]]) -> None:
        received = bytearray()

        async def receive() -> None:
            while piece := await bob.pipe.receive_some():
                received.extend(piece)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(receive)
            nursery.start_soon(happens)
            with cut:
                await alice.pipe.send_all(message)
            await alice.pipe.send_all(b"\xff after")
            await alice.pipe.send_eof()
        body, mark, rest = received.partition(b"\xff")
        assert mark + rest == b"\xff after"
        assert message.startswith(body)
        assert cut.caught or body == message

    await sweep(operation, kind)


@pytest.mark.slow("a Link for each checkpoint")
@pytest.mark.parametrize("kind", TROUBLES)
async def test_receive_some(kind: str) -> None:
    async def operation(cut: AnyCut, alice: End, bob: End, happens: Callable[[], Awaitable[None]]) -> None:
        received = b""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(happens)
            nursery.start_soon(alice.pipe.send_all, b"nothing is lost")
            with cut:
                while len(received) < 15:
                    received += await bob.pipe.receive_some(4)
            while len(received) < 15:
                received += await bob.pipe.receive_some()
        assert received == b"nothing is lost"

    await sweep(operation, kind)


@pytest.mark.slow("a Link for each checkpoint")
@pytest.mark.parametrize("kind", TROUBLES)
async def test_ping(kind: str) -> None:
    async def operation(cut: AnyCut, alice: End, bob: End, happens: Callable[[], Awaitable[None]]) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(happens)
            with cut:
                await alice.pipe.ping()
        await still_whole(alice, bob)

    await sweep(operation, kind)


@pytest.mark.slow("a Link for each checkpoint")
@pytest.mark.parametrize("kind", TROUBLES)
async def test_open_pipe(kind: str) -> None:
    async def operation(cut: AnyCut, alice: End, bob: End, happens: Callable[[], Awaitable[None]]) -> None:
        pipe: Pipe | None = None
        async with trio.open_nursery() as nursery:
            nursery.start_soon(happens)
            with cut:
                pipe = await alice.pipe.open_pipe("x")
        last = await alice.pipe.open_pipe("y")
        while (accepted := await bob.accept()).label == "x":
            if pipe is None:  # the opening was taken back: Bob's end of it is broken
                with pytest.raises(trio.BrokenResourceError):
                    await accepted.receive_some()
        assert accepted.label == "y"
        await last.send_all(b"whole")
        assert await accepted.receive_some() == b"whole"
        assert len(alice.link.protocol.channels) == (2 if pipe is None else 3)

    await sweep(operation, kind)


@pytest.mark.slow("a Link for each checkpoint")
@pytest.mark.parametrize("kind", TROUBLES)
async def test_wait_path_change(kind: str) -> None:
    async def operation(cut: AnyCut, alice: End, bob: End, happens: Callable[[], Awaitable[None]]) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(happens)
            with cut:
                known = alice.pipe.path
                while (known := await alice.pipe.wait_path_change(known)).state is not PathState.LIVE:
                    pass
        await still_whole(alice, bob)
        assert not alice.link.path_log.told

    await sweep(operation, kind)


async def attach_cut(alice: End, bob: End, each: AnyCut, who: str, *, by_bob: bool) -> list[Carrier]:
    """Like `attach`, but one side, `who`, is cancelled; returns both ends of the carrier."""
    dialed, accepted = await carriers()
    ours = await alice_proves(dialed, initiator=not by_bob)
    theirs = await Link.receive_proof(accepted)
    theirs.set_role(initiator=by_bob)
    ours.path, theirs.path = a_path(dialed), a_path(accepted)
    offers, takes, end, other = (theirs, ours, bob, alice) if by_bob else (ours, theirs, alice, bob)

    async def answer() -> None:
        with each if who == "takes" else nullcontext(), suppress(trio.BrokenResourceError):
            await takes.receive_choice()
            assert takes.accept_attach(other.link) is None

    async with trio.open_nursery() as nursery:
        nursery.start_soon(answer)
        with each if who == "offers" else nullcontext(), suppress(trio.BrokenResourceError):
            await offers.attach(end.link, patience=HANG)
    return [dialed, accepted]


@pytest.mark.slow("a Link for each checkpoint")
@pytest.mark.parametrize("by_bob", [False, True])
@pytest.mark.parametrize("suspended", [False, True])
@pytest.mark.parametrize("who", ["offers", "takes"])
async def test_attach(who: str, suspended: bool, by_bob: bool) -> None:
    """In the end the carrier is a lane or closed, and the Link goes on."""
    for each in cuts():
        async with ends() as (alice, bob):
            if suspended:
                cut(alice)
                await wait_until(partial(are_without_a_lane, alice, bob))
            made = await attach_cut(alice, bob, each, who, by_bob=by_bob)
            await trio.testing.wait_all_tasks_blocked(0.01)
            if are_without_a_lane(alice, bob):
                assert each.caught
                await attach(alice, bob)
            await still_whole(alice, bob)
            await wait_until(partial(are_lanes_or_closed, made, alice, bob))


def are_without_a_lane(alice: End, bob: End) -> bool:
    return not alice.link._lanes and not bob.link._lanes


def are_lanes_or_closed(made: list[Carrier], alice: End, bob: End) -> bool:
    lanes = [lane.carrier for end in (alice, bob) for lane in end.link._lanes.values()]
    return all(is_closed(carrier) or carrier in lanes for carrier in made)
