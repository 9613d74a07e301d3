"""What a Link keeps until the peer acknowledges it, and when it takes a path for dead; over both carriers."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from tests.hangs import HANG
from tests.links import TERMS, End, RawPeer, carrier_kind, linked, raw_end
from tests.waiting import wait_until
from warpgate_trio import PathState
from warpgate_trio.link.channels import EARLY_DATA_LIMIT
from warpgate_trio.link.frames import Ack, At, Data, Ping, Pong
from warpgate_trio.link.lane import LaneProtocol
from warpgate_trio.link.life import DEATH, HINT_SLACK, SLACK
from warpgate_trio.link.stream import ACK_DELAY, MAX_FRAMES, REPLAY_MAX, Outgoing

__all__ = ["carrier_kind"]

pytestmark = pytest.mark.usefixtures("carrier_kind")


def kept(end: End) -> Outgoing:
    outgoing = end.link.protocol.outgoing
    assert outgoing is not None
    return outgoing


async def answer_pings(peer: RawPeer) -> None:
    """A peer that is alive: it answers PINGs, and acknowledges nothing."""
    while True:
        item = await peer.hear()
        if isinstance(item, Ping):
            await peer.say(Pong(token=item.token))


# --- what is kept ---


async def test_what_was_taken_in_is_forgotten() -> None:
    async with linked() as (alice, bob):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(alice.pipe.send_all, bytes(3 << 20))
            got = 0
            while got < 3 << 20:
                got += len(await bob.pipe.receive_some())
        await wait_until(lambda: not kept(alice).held)
        assert kept(alice).acknowledged == kept(alice).end == 3 << 20


async def test_early_data_is_acknowledged() -> None:
    async with linked(early_data=bytes(EARLY_DATA_LIMIT)) as (alice, _bob):
        await wait_until(lambda: kept(alice).acknowledged == EARLY_DATA_LIMIT)


async def test_a_peer_of_an_older_release_hears_no_ack_and_is_kept_nothing_for(nursery: trio.Nursery) -> None:
    async with raw_end(nursery) as (alice, peer):
        await peer.say(b"\x06" + bytes(7) + (5).to_bytes(4, "big") + b"hello")
        assert await alice.pipe.receive_some() == b"hello"
        await alice.pipe.send_all(b"x" * 5000)
        await alice.pipe.send_eof()
        assert (alice.link.protocol.outgoing, alice.link.protocol.incoming) == (None, None)
        assert isinstance(await peer.hear(), Data)


async def hear_until_full(alice: End, peer: RawPeer) -> None:
    """Receives what is sent until the sender waits for an acknowledgement.

    The number of bytes depends on the sizes of the frames: each frame has an overhead, and a busy machine sends
    smaller ones.
    """
    taken = 0
    while not (kept(alice).full and taken == kept(alice).payload):
        item = await peer.hear()
        taken += item.size if isinstance(item, Data) else 0


@pytest.mark.slow("8 MiB are sent and held")
async def test_a_sender_waits_for_a_peer_that_acknowledges_nothing(nursery: trio.Nursery) -> None:
    """The sender waits whatever the credit; control frames are still sent meanwhile."""
    async with raw_end(nursery, terms=TERMS) as (alice, peer):
        sent = 0

        async def send() -> None:
            nonlocal sent
            while True:
                await alice.pipe.send_all(bytes(64 * 1024))
                sent += 64 * 1024

        async with trio.open_nursery() as inner:
            inner.start_soon(send)
            await hear_until_full(alice, peer)
            await trio.testing.wait_all_tasks_blocked()
            assert REPLAY_MAX <= kept(alice).held < REPLAY_MAX + (65 << 10)
            before = sent
            await peer.say(Ping(token=7))
            while not isinstance(await peer.hear(), Pong):
                pass
            assert sent == before
            await peer.say(Ack(position=1 << 20))
            await wait_until(lambda: sent >= before + (1 << 19))
            inner.cancel_scope.cancel()


@pytest.mark.parametrize("how", ["cancel", "close", "end"])
@pytest.mark.slow("8 MiB are sent and held")
async def test_a_sender_that_waits_for_an_acknowledgement_can_be_told_otherwise(
    how: str, nursery: trio.Nursery
) -> None:
    async with raw_end(nursery, terms=TERMS) as (alice, peer):
        outcome: list[BaseException | None] = []

        async def send() -> None:
            try:
                await alice.pipe.send_all(bytes(2 * REPLAY_MAX))
            except trio.ClosedResourceError as error:
                outcome.append(error)
            except trio.BrokenResourceError as error:
                outcome.append(error)

        async with trio.open_nursery() as inner:
            inner.start_soon(send)
            await hear_until_full(alice, peer)
            await trio.testing.wait_all_tasks_blocked()
            if how == "cancel":
                inner.cancel_scope.cancel()
            elif how == "close":
                alice.pipe.close_nowait()
            else:
                peer.close()
        kinds = {"cancel": [], "close": [trio.ClosedResourceError], "end": [trio.BrokenResourceError]}
        assert [type(each) for each in outcome] == kinds[how]


async def test_a_peer_that_acknowledges_what_was_not_said(nursery: trio.Nursery) -> None:
    async with raw_end(nursery, terms=TERMS) as (alice, peer):
        await alice.pipe.send_all(b"12345")
        await peer.say(Ack(position=6))
        with pytest.raises(trio.BrokenResourceError, match="the peer acknowledges 6 units, but only 5 were sent"):
            await alice.pipe.receive_some()


async def test_an_ack_of_a_peer_that_offered_none(nursery: trio.Nursery) -> None:
    async with raw_end(nursery) as (alice, peer):
        await peer.say(Ack(position=0))
        with pytest.raises(
            trio.BrokenResourceError, match="unexpected ACK: the link was made without acknowledgements"
        ):
            await alice.pipe.receive_some()


async def test_an_at_of_a_peer_that_offered_none(nursery: trio.Nursery) -> None:
    async with raw_end(nursery) as (alice, peer):
        await peer.say(At(position=0, turn=1))
        with pytest.raises(trio.BrokenResourceError, match="unexpected AT: the link was made without acknowledgements"):
            await alice.pipe.receive_some()


async def test_a_peer_that_makes_us_say_frames_and_acknowledges_none(nursery: trio.Nursery) -> None:
    async with raw_end(nursery, terms=TERMS) as (alice, _peer):
        for _ in range(MAX_FRAMES + 1):
            kept(alice).put_frame(b"")
        with pytest.raises(trio.BrokenResourceError, match="too many control frames are not acknowledged by the peer"):
            await _peer.say(Ping(token=1))
            await alice.pipe.receive_some()


# --- life ---


async def test_a_path_that_carries_nothing_more_is_dead_soon(
    jumping_clock: trio.testing.MockClock, nursery: trio.Nursery
) -> None:
    async with raw_end(nursery, terms=TERMS, limit=1000) as (alice, peer):
        await peer.say(Pong(token=1))
        await wait_until(lambda: alice.pipe.rtt is not None)
        started = trio.current_time()
        await alice.pipe.send_all(b"hello?")
        with pytest.raises(trio.BrokenResourceError, match="the path is dead: the peer was not heard for"):
            await alice.pipe.receive_some()
        taken = trio.current_time() - started
        assert SLACK + DEATH <= taken <= SLACK + DEATH + 1.0


async def test_a_silent_path_is_asked_and_then_dead(
    jumping_clock: trio.testing.MockClock, nursery: trio.Nursery
) -> None:
    async with raw_end(nursery, terms=TERMS, limit=1000) as (alice, peer):
        await peer.say(Pong(token=1))
        await wait_until(lambda: alice.pipe.rtt is not None)
        started = trio.current_time()
        with pytest.raises(trio.BrokenResourceError, match="the path is dead: the peer was not heard for"):
            await alice.pipe.receive_some()
        taken = trio.current_time() - started
        expected = alice.link.carrier.idle_interval + SLACK + DEATH
        assert expected - 1.0 <= taken <= expected + 1.0


@pytest.mark.slow("over QUIC every acknowledgement is a jump of the clock")
async def test_a_peer_that_takes_its_time_and_lives(
    jumping_clock: trio.testing.MockClock, nursery: trio.Nursery
) -> None:
    """It never acknowledges data, but answers PINGs: a path that makes progress is not dead."""
    async with raw_end(nursery, terms=TERMS, limit=1000) as (alice, peer):
        await peer.say(Pong(token=1))
        async with trio.open_nursery() as inner:
            inner.start_soon(answer_pings, peer)
            await alice.pipe.send_all(b"hello?")
            with trio.move_on_after(10 * DEATH) as scope:
                await alice.pipe.receive_some()
            assert scope.cancelled_caught
            inner.cancel_scope.cancel()


@pytest.mark.slow("over QUIC every acknowledgement is a jump of the clock")
async def test_two_that_acknowledge_say_nothing_more_than_before_while_they_are_idle(
    jumping_clock: trio.testing.MockClock,
) -> None:
    async with linked(limit=10_000) as (alice, bob):
        await alice.pipe.send_all(b"once")
        await bob.pipe.receive_some()
        await trio.sleep(1.0)  # only what follows is counted
        said: list[bytes] = []
        for end in (alice, bob):
            transmit = end.link.protocol.transmit

            def count(lane: LaneProtocol, now: float, transmit: object = transmit) -> bytes:
                frames = transmit(lane, now)  # type: ignore[operator]
                said.append(frames)
                assert isinstance(frames, bytes)
                return frames

            end.link.protocol.transmit = count  # type: ignore[method-assign]
        await trio.sleep(10 * alice.link.carrier.idle_interval)
        assert 18 <= len([frames for frames in said if frames]) <= 22, "a PING and its PONG each interval"


async def test_the_acknowledgement_comes_within_a_tenth_of_a_second(
    jumping_clock: trio.testing.MockClock, nursery: trio.Nursery
) -> None:
    async with raw_end(nursery, terms=TERMS, limit=100) as (_alice, peer):
        started = trio.current_time()
        await peer.say(b"\x06" + bytes(7) + (5).to_bytes(4, "big") + b"hello")
        with trio.fail_after(HANG):
            while not isinstance(item := await peer.hear(), Ack):
                pass
        assert item.position == 5
        assert trio.current_time() - started == pytest.approx(ACK_DELAY, abs=0.05)


# --- hints ---


@pytest.mark.parametrize("work", ["idle", "busy"])
async def test_after_a_hint_a_dead_path_is_suspected_within_a_round_trip_and_half_a_second(
    work: str, jumping_clock: trio.testing.MockClock, nursery: trio.Nursery
) -> None:
    """This holds even if the PING cannot leave because the peer's buffers are full."""
    async with raw_end(nursery, terms=TERMS, limit=1000, buffers=4096) as (alice, peer):
        await peer.say(Pong(token=1))
        await wait_until(lambda: alice.pipe.rtt is not None)
        async with trio.open_nursery() as inner:
            if work == "busy":
                inner.start_soon(alice.pipe.send_all, bytes(REPLAY_MAX))
                await trio.testing.wait_all_tasks_blocked()
            hinted_at = trio.current_time()
            alice.link.hint()
            path = await alice.pipe.wait_path_change()
            assert path.state is PathState.SUSPECT
            assert HINT_SLACK - 0.01 <= trio.current_time() - hinted_at <= HINT_SLACK + 0.2
            inner.cancel_scope.cancel()


async def test_a_hint_costs_a_path_that_lives_one_ping(
    jumping_clock: trio.testing.MockClock, nursery: trio.Nursery
) -> None:
    async with raw_end(nursery, terms=TERMS, limit=1000) as (alice, peer):
        await peer.say(Pong(token=1))
        await wait_until(lambda: alice.pipe.rtt is not None)
        for _ in range(3):
            alice.link.hint()
        assert await peer.hear() == Ping(token=2)
        await peer.say(Pong(token=2))
        with trio.move_on_after(10.0) as quiet:
            pytest.fail(f"{await peer.hear()}")
        assert quiet.cancelled_caught
        assert alice.pipe.path.state is PathState.LIVE
        assert alice.link.protocol.life.false_alarms == 0


async def test_a_hint_for_a_link_that_ends_is_nothing() -> None:
    async with linked() as (alice, _bob):
        alice.link.end_nowait()
        alice.link.hint()
        await alice.ended.wait()
        alice.link.hint()
