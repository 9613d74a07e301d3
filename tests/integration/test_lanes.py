"""A Link that goes on over another carrier: real sockets on loopback, both kinds of carrier."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from types import SimpleNamespace
from typing import cast

import pytest
import trio
import trio.testing

from tests.hangs import HANG
from tests.links import (
    LASTING,
    End,
    a_path,
    alice_proves,
    carrier_kind,
    carriers,
    linked,
)
from tests.waiting import wait_until
from warpgate_trio import PathInfo, PathState
from warpgate_trio.errors import AttemptFailed, PeerRefused
from warpgate_trio.limits import TokenBucket
from warpgate_trio.link import Link, Pipe, RefuseReason
from warpgate_trio.link.attaching import LinkSecret
from warpgate_trio.link.frames import Attach, Drop
from warpgate_trio.link.lane_driver import LaneDriver
from warpgate_trio.link.lanes import MAX_LANES
from warpgate_trio.link.life import Life, LifeJudge
from warpgate_trio.link.pace import CHUNK_MAX, Pace
from warpgate_trio.link.quiet import Uplinks
from warpgate_trio.testing.pipe_laws import check_cancelled_send, check_pipe

__all__ = ["carrier_kind"]

pytestmark = pytest.mark.usefixtures("carrier_kind")


async def attach(
    alice: End, bob: End, *, by_bob: bool = False, spoil: Callable[[Attach], Attach] | None = None
) -> None:
    """Attaches one more carrier, dialled by Alice, and offered by her or (`by_bob`) by Bob."""
    dialed, accepted = await carriers()
    ours = await alice_proves(dialed, initiator=not by_bob)
    theirs = await Link.receive_proof(accepted)
    theirs.set_role(initiator=by_bob)
    ours.path, theirs.path = a_path(dialed), a_path(accepted)
    offers, takes, end, other = (theirs, ours, bob, alice) if by_bob else (ours, theirs, alice, bob)

    async def answer() -> None:
        choice = await takes.receive_choice()
        assert isinstance(choice, Attach)
        if spoil is not None:
            takes._first.protocol.attach = spoil(choice)
        reason = takes.accept_attach(other.link)
        if reason is not None:
            await takes.refuse(reason)

    refusal: PeerRefused | None = None
    async with trio.open_nursery() as nursery:
        nursery.start_soon(answer)
        try:
            await offers.attach(end.link, patience=HANG)
        except PeerRefused as error:
            refusal = error
    if refusal is not None:
        raise refusal


@asynccontextmanager
async def lasting(**options: object) -> AsyncGenerator[tuple[End, End]]:
    """Both ends of a Link that outlives its carriers, once both sides know that it does."""
    async with linked(terms=LASTING, **options) as (alice, bob):  # type: ignore[arg-type]
        await wait_until(lambda: bob.link.protocol.movable)
        yield alice, bob


def suspect(life: LifeJudge) -> None:
    """Makes a path suspect, as after a hint: the Link leaves it for any other."""
    life.hint(trio.current_time())
    life.life, life.suspect_at = Life.SUSPECT, trio.current_time()


def cut(end: End) -> None:
    """Closes the carrier that an end sends on, without a goodbye."""
    end.link.carrier.close_nowait()


def numbered(size: int, start: int = 0) -> bytes:
    """Bytes whose values tell their positions."""
    return bytes((start + index) % 251 for index in range(size))


async def send_numbered(end: End, total: int) -> None:
    sent = 0
    while sent < total:
        size = min(10_000, total - sent)
        await end.pipe.send_all(numbered(size, sent))
        sent += size
    await end.pipe.send_eof()


async def receive_numbered(end: End, total: int) -> None:
    got = 0
    while data := await end.pipe.receive_some():
        assert data == numbered(len(data), got)
        got += len(data)
    assert got == total


async def test_what_is_known_of_nats_is_for_carriers_over_udp_and_for_those_to_come(carrier_kind: str) -> None:
    async with lasting() as (alice, bob):
        uplinks = Uplinks()
        alice.link.share(uplinks)
        await attach(alice, bob)
        here = uplinks.get("127.0.0.1", "127.0.0.1") if carrier_kind == "quic" else None
        assert [lane.life.uplink for lane in alice.link.protocol.lanes] == [here, here]


@pytest.mark.parametrize("by_bob", [False, True])
@pytest.mark.parametrize("who", ["alice", "bob", "both"])
async def test_a_pipe_goes_on_over_another_carrier(who: str, by_bob: bool) -> None:
    async with lasting() as (alice, bob):
        await alice.pipe.send_all(b"one")
        assert await bob.pipe.receive_some() == b"one"
        await attach(alice, bob, by_bob=by_bob)
        assert len(alice.link.protocol.lanes) == len(bob.link.protocol.lanes) == 2
        first = alice.link.carrier
        for name, end in (("alice", alice), ("bob", bob)):
            if who in (name, "both"):
                cut(end)
        for ours, theirs in ((alice, bob), (bob, alice)):
            await ours.pipe.send_all(b"two")
            with trio.fail_after(HANG):
                assert await theirs.pipe.receive_some() == b"two"
        await wait_until(lambda: len(alice.link.protocol.lanes) == len(bob.link.protocol.lanes) == 1)
        assert alice.link.carrier is not first
        assert alice.pipe.path.state is PathState.LIVE


@pytest.mark.slow("a megabyte each way, while carriers come and go")
async def test_no_byte_is_lost_doubled_or_reordered() -> None:
    total = 1 << 20
    async with lasting() as (alice, bob):
        async with trio.open_nursery() as nursery:
            for ours, theirs in ((alice, bob), (bob, alice)):
                nursery.start_soon(send_numbered, ours, total)
                nursery.start_soon(receive_numbered, theirs, total)
            for number in range(6):
                await trio.testing.wait_all_tasks_blocked(0.0) if number % 2 else await trio.lowlevel.checkpoint()
                await attach(alice, bob, by_bob=bool(number % 2))
                cut((alice, bob)[number % 2])
                await wait_until(lambda: len(alice.link.protocol.lanes) == len(bob.link.protocol.lanes) == 1)


@pytest.mark.slow("every law of a Pipe, each on a fresh one, while carriers come and go")
@pytest.mark.parametrize("seed", [1, 2])
async def test_the_laws_of_pipes_hold_while_carriers_come_and_go(seed: int) -> None:
    """Law 4, over path changes that either side begins, with and without a time in which there is no path."""
    changes = 0

    async def change(alice: End, bob: End) -> None:
        nonlocal changes
        for number in itertools.count():
            for end in (alice, bob):
                end.link._attaches = TokenBucket(1.0, 10)  # type: ignore[misc]  # enough for all changes
            first = number % 3 == 0
            ends = alice, bob
            if first:
                cut(ends[number % 2])
                await wait_until(lambda: not alice.link.has_lanes and not bob.link.has_lanes)
            await attach(alice, bob, by_bob=bool(number % 2))
            if not first:
                cut(ends[number % 2])
            await wait_until(lambda: len(alice.link.protocol.lanes) == len(bob.link.protocol.lanes) == 1)
            changes += 1
            await trio.sleep(0.02)  # the pace of the changes: the laws' checks need a quiet millisecond

    async with lasting() as (alice, bob), trio.open_nursery() as nursery:

        async def maker() -> tuple[Pipe, Pipe]:
            pipe = await alice.pipe.open_pipe()
            return pipe, await bob.accept()

        nursery.start_soon(change, alice, bob)
        for _ in range(2):
            await check_pipe(maker, None, seed=seed)
            await check_cancelled_send(maker, seed=seed, may_break=False, size=1 << 18)
        nursery.cancel_scope.cancel()
    print(f"{changes} changes")
    assert changes > 5


@pytest.mark.slow("a megabyte, past a carrier that holds its sender up")
@pytest.mark.parametrize("was", ["fast", "slow"])
async def test_a_sender_that_a_dead_carrier_holds_up_goes_on_over_another_one(
    was: str, nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The blocked call goes on by itself, and sends nothing twice.

    A carrier that was fast is closed.  One that was slow may only be late, and stays.
    """
    total = 1 << 20
    async with lasting() as (alice, bob):
        first = alice.link._first
        if was == "fast":
            monkeypatch.setattr(Pace, "handed", lambda *_: False)
            first.protocol.pace.size = CHUNK_MAX
        bob.link._first.carrier.receive = trio.sleep_forever  # type: ignore[method-assign]
        bob.link._first.carrier.flush = trio.sleep_forever  # type: ignore[method-assign]
        nursery.start_soon(send_numbered, alice, total)
        await trio.testing.wait_all_tasks_blocked(0.05)
        assert first.holds_a_sender
        suspect(first.protocol.life)
        await attach(alice, bob)
        assert first.gone is (was == "fast")
        with trio.fail_after(HANG):
            await receive_numbered(bob, total)
        assert first.gone is (was == "fast")


@pytest.mark.slow("a megabyte, past a carrier that holds its sender up, and a second to notice")
async def test_a_sender_goes_on_over_another_carrier_that_only_the_peer_has_needed(nursery: trio.Nursery) -> None:
    """The sender's side suspected nothing, and its next PING was due in a minute."""
    total = 1 << 20
    async with lasting() as (alice, bob):
        bob.link._first.carrier.receive = trio.sleep_forever  # type: ignore[method-assign]
        nursery.start_soon(send_numbered, alice, total)
        await trio.testing.wait_all_tasks_blocked(0.05)
        assert alice.link._first.holds_a_sender
        suspect(bob.link._first.protocol.life)
        await attach(alice, bob, by_bob=True)
        with trio.fail_after(HANG):
            await receive_numbered(bob, total)


async def test_who_waits_for_a_trial_is_told_when_the_link_breaks(nursery: trio.Nursery) -> None:
    async with lasting(goodbye=0.05) as (alice, bob):
        speaking = alice.link._speaking
        await attach(alice, bob)
        (further,) = (lane for lane in alice.link._lanes.values() if lane is not speaking)
        outcomes: list[bool] = []

        async def wait(lane: LaneDriver) -> None:
            outcomes.append(await alice.link.wait_trial(cast("Link", SimpleNamespace(_first=lane))))

        await wait(speaking)
        nursery.start_soon(wait, further)
        await trio.testing.wait_all_tasks_blocked()
        assert outcomes == [True]
        alice.link.evict_nowait()
        await wait_until(lambda: outcomes == [True, False])


async def test_migrate_says_why_no_path_is_looked_for_and_whoever_waits_for_one_why_none_comes() -> None:
    calls: list[tuple[Sequence[str] | None, float | None]] = []

    async def search(phases: Sequence[str] | None, timeout: float | None) -> PathInfo:
        await trio.lowlevel.checkpoint()
        calls.append((phases, timeout))
        return alice.link.live_path()

    async with linked() as (alice, _):
        alice.link.migrator = search
        with pytest.raises(AttemptFailed, match="this pipe cannot change its path"):
            await alice.pipe.migrate()
    async with lasting(goodbye=0.05) as (alice, _):
        with pytest.raises(AttemptFailed, match="this pipe cannot change its path"):
            await alice.pipe.migrate()
        alice.link.migrator = search
        assert (await alice.pipe.migrate(("direct",), timeout=3.0)).same_as(alice.pipe.path)
        assert calls == [(("direct",), 3.0)]
        further = await alice.pipe.open_pipe()
        await further.aclose()
        with pytest.raises(trio.ClosedResourceError), trio.fail_after(1.0):
            await further.migrate()
        with pytest.raises(trio.ClosedResourceError), trio.fail_after(1.0):
            await further.wait_path_change()
        cut(alice)
        await wait_until(lambda: not alice.link.has_lanes)
        alice.link.forget_nowait()
        with pytest.raises(trio.BrokenResourceError, match="the peer no longer has this link"):
            await alice.pipe.migrate()
        assert len(calls) == 1


async def test_where_another_carrier_is_at_hand_no_search_is_wanted() -> None:
    async with lasting() as (alice, bob):
        life = alice.link._first.protocol.life
        life.note_pause(10.0, trio.current_time())
        life.life, life.suspect_at = Life.SUSPECT, trio.current_time()
        alice.link._settle()
        with trio.fail_after(HANG):
            await alice.link.wait_path(well=False)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(partial(alice.link.wait_path, well=True))
                await trio.testing.wait_all_tasks_blocked()
                await attach(alice, bob)
            assert alice.pipe.path.state is PathState.SUSPECT
            async with trio.open_nursery() as nursery:
                nursery.start_soon(partial(alice.link.wait_path, well=False))
                await trio.testing.wait_all_tasks_blocked()
                other = next(lane for lane in alice.link._lanes.values() if lane is not alice.link._first)
                other.carrier.close_nowait()


async def test_a_send_that_finds_its_carrier_closed_is_a_checkpoint() -> None:
    async with lasting() as (alice, bob):
        await attach(alice, bob)
        alice.link._speaking.carrier.close_nowait()  # not noticed yet by anybody
        with trio.testing.assert_checkpoints():
            await alice.pipe.send_all(b"hello")
        with trio.fail_after(HANG):
            assert await bob.pipe.receive_some() == b"hello"


async def test_without_a_carrier_calls_wait_and_go_on() -> None:
    async with lasting() as (alice, bob):
        cut(alice)
        await wait_until(lambda: alice.pipe.path.state is bob.pipe.path.state is PathState.SUSPENDED)
        received: list[bytes] = []

        async def receive() -> None:
            received.append(await bob.pipe.receive_some())

        with trio.fail_after(HANG):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(receive)
                nursery.start_soon(alice.pipe.send_all, b"hello")
                nursery.start_soon(alice.pipe.ping)
                await trio.testing.wait_all_tasks_blocked()
                assert not received
                await attach(alice, bob)
        assert received == [b"hello"]
        assert alice.pipe.path.state is bob.pipe.path.state is PathState.LIVE


async def test_a_call_that_waits_for_a_carrier_is_cancelled_and_has_sent_nothing() -> None:
    async with lasting() as (alice, bob):
        cut(alice)
        await wait_until(lambda: alice.pipe.path.state is bob.pipe.path.state is PathState.SUSPENDED)
        for call in (partial(alice.pipe.send_all, b"x"), alice.pipe.receive_some, alice.pipe.ping):
            with trio.move_on_after(0.01) as scope:
                await call()
            assert scope.cancelled_caught
        await attach(alice, bob)
        await alice.pipe.send_all(b"y")
        assert await bob.pipe.receive_some() == b"y"


async def test_without_a_carrier_for_too_long_both_ends_break(jumping_clock: trio.testing.MockClock) -> None:
    async with lasting(limit=1000) as (alice, bob):
        cut(alice)
        started = trio.current_time()
        for end in (alice, bob):
            with pytest.raises(trio.BrokenResourceError, match="no usable path for 120 s: "):
                await end.pipe.receive_some()
        assert trio.current_time() - started == pytest.approx(120, abs=1)


async def test_a_carrier_that_the_peer_drops_is_closed_here_too() -> None:
    async with lasting() as (alice, bob):
        first = alice.link._first
        await attach(alice, bob)
        second = bob.link.protocol.lanes.get(3)
        assert second is not None
        second.say(Drop(lane=1))
        bob.link._settle()
        await wait_until(lambda: first.gone)
        await alice.pipe.send_all(b"on the other one")
        with trio.fail_after(HANG):
            assert await bob.pipe.receive_some() == b"on the other one"


@pytest.mark.slow("over QUIC every acknowledgement is a jump of the clock")
async def test_a_carrier_that_nobody_speaks_on_is_closed(jumping_clock: trio.testing.MockClock) -> None:
    async with lasting(limit=1000) as (alice, bob):
        await attach(alice, bob)
        await trio.sleep(100)  # more than the interval of either carrier
        assert len(alice.link.protocol.lanes) == len(bob.link.protocol.lanes) == 1
        await alice.pipe.send_all(b"still")
        assert await bob.pipe.receive_some() == b"still"


@pytest.mark.parametrize("field", ["mac", "link", "peer", "lane", "received", "turn"])
async def test_a_carrier_that_does_not_prove_the_link_changes_nothing(field: str) -> None:
    def spoil(choice: Attach) -> Attach:
        from msgspec.structs import replace

        changes: dict[str, object] = {
            "mac": hashlib.sha256(choice.mac).digest()[:16],
            "lane": choice.lane + 2,
            "received": choice.received + 1,
            "turn": choice.turn + 1,
        }
        return replace(choice, **{field: changes[field]}) if field in changes else choice

    async with lasting() as (alice, bob), lasting() as (_third, fourth):
        if field == "peer":
            bob.link.peer_key = bytes(32)
        fourth.link.protocol._secret = LinkSecret(bytes(16), bytes(16), bytes(16), initiator=False)
        with pytest.raises(PeerRefused) as refused:
            await attach(alice, fourth if field == "link" else bob, spoil=spoil)
        assert refused.value.reason == RefuseReason.UNKNOWN_LINK
        assert [len(end.link.protocol.lanes) for end in (alice, bob, fourth)] == [1, 1, 1]
        await alice.pipe.send_all(b"unharmed")
        assert await bob.pipe.receive_some() == b"unharmed"


async def test_a_link_has_room_for_three_carriers() -> None:
    async with lasting() as (alice, bob):
        await attach(alice, bob)
        await attach(alice, bob, by_bob=True)
        await attach(alice, bob)  # the lane that was silent for longest gives way: a side may not know that it is dead
        for end in (alice, bob):
            await wait_until(lambda end=end: len(end.link.protocol.lanes) == len(end.link._lanes) == MAX_LANES)  # type: ignore[misc]
        assert not alice.link.take_dropped(), "it was not found to be no good"
        for _ in range(2):
            cut(alice)
            await wait_until(lambda: alice.link.carrier is not None and not alice.link._speaking.gone)
        await alice.pipe.send_all(b"still")
        assert await bob.pipe.receive_some() == b"still"


@pytest.mark.slow("a second of goodbye, for which there is no path")
@pytest.mark.parametrize("phase", ["direct", "relay"])
async def test_a_carrier_from_an_address_that_is_gone_is_closed(phase: str) -> None:
    """This applies to Links that can outlive a carrier.  A relayed path's local address is not the machine's own."""
    async with lasting() as (alice, _):
        link = alice.link
        assert link.path is not None
        link.path = dataclasses.replace(link.path, phase=phase)
        link.hint(lambda local: local[0] == "192.0.2.1")
        assert alice.pipe.path.state is PathState.LIVE
        link.hint(lambda local: local == link.carrier.local)
        assert (alice.pipe.path.state is PathState.LIVE) is (phase == "relay")


async def test_a_carrier_without_which_a_link_ends_is_only_asked() -> None:
    async with linked() as (alice, _):
        alice.link.hint(lambda _: True)
        assert alice.pipe.path.state is PathState.LIVE
        assert await alice.pipe.ping() >= 0.0
