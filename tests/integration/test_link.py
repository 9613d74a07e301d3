"""The Link on real sockets: each step of its handshake, peers that break the rules, and its life until the goodbye."""

from __future__ import annotations

import logging
import re
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest
import trio
import trio.testing

from tests.cancel_sweep import Cut, cuts
from tests.hangs import HANG
from tests.identities import ALICE, BOB, MALLORY
from tests.links import (
    CONTEXTS,
    LINK_ID,
    SESSION,
    End,
    RawPeer,
    alice_proves,
    carrier_kind,
    carriers,
    connect_ends,
    connect_sockets,
    is_closed,
    linked,
    open_ends,
    proven_links,
    raw_end,
)
from warpgate_trio.carrier import Carrier, TlsCarrier
from warpgate_trio.carrier.tls import IDLE_INTERVAL
from warpgate_trio.errors import PeerRefused, RemoteProtocolError, WrongPeer
from warpgate_trio.identity import prove
from warpgate_trio.link import EARLY_DATA_LIMIT, Link, Pipe, RefuseReason, budget
from warpgate_trio.link.budget import CONTROL_BURST
from warpgate_trio.link.frame_codec import data_header, encode
from warpgate_trio.link.frame_reader import TURN_FRAMES
from warpgate_trio.link.frames import (
    Accept,
    Commit,
    Data,
    Fin,
    Frame,
    GoAway,
    Item,
    Open,
    Ping,
    Pong,
    Proof,
    Refuse,
    Reset,
)
from warpgate_trio.link.states import LinkState

__all__ = ["carrier_kind"]
pytestmark = pytest.mark.usefixtures("carrier_kind")
COMMIT = Commit(session_id=SESSION, link_id=LINK_ID, epoch=1, credit=1 << 20)


def a_proof(**changes: object) -> Proof:
    signature = prove(ALICE, server_key=BOB.public_key, session_id=SESSION)
    fields = {
        "client_key": ALICE.public_key,
        "session_id": SESSION,
        "attempt_id": bytes(16),
        "signature": signature,
    } | changes
    return Proof(**fields)  # type: ignore[arg-type]


# --- a peer that breaks the rules, at each step ---


async def at_proof(nursery: trio.Nursery) -> tuple[Carrier, RawPeer, Callable[[], Awaitable[object]]]:
    """Bob waits for the PROOF."""
    dialed, accepted = await carriers()
    return accepted, RawPeer(dialed), lambda: Link.receive_proof(accepted)


async def at_commit(nursery: trio.Nursery) -> tuple[Carrier, RawPeer, Callable[[], Awaitable[object]]]:
    """Bob waits for the COMMIT."""
    dialed, accepted = await carriers()
    peer = RawPeer(dialed)
    await peer.say(a_proof())
    link = await Link.receive_proof(accepted)
    link.set_role(initiator=False)
    return accepted, peer, link.receive_commit


async def at_decision(nursery: trio.Nursery) -> tuple[Carrier, RawPeer, Callable[[], Awaitable[object]]]:
    """Bob asks his application whether to accept."""
    dialed, accepted = await carriers()
    peer = RawPeer(dialed)
    await peer.say(a_proof(), COMMIT)
    link = await Link.receive_proof(accepted)
    link.set_role(initiator=False)
    await link.receive_commit()
    return accepted, peer, lambda: link.while_waiting(trio.sleep_forever)


async def at_accept(nursery: trio.Nursery) -> tuple[Carrier, RawPeer, Callable[[], Awaitable[object]]]:
    """Alice waits for the ACCEPT."""
    dialed, accepted = await carriers()
    link = await alice_proves(dialed)
    return dialed, RawPeer(accepted), lambda: link.commit(epoch=1, link_id=LINK_ID, patience=5.0)


async def garbage(peer: RawPeer) -> None:
    await peer.say(b"GET / HTTP/1.1\r\nHost: me\r\n\r\n")


async def wrong_frame(peer: RawPeer) -> None:
    await peer.say(Open(channel=1, credit=1, label=""))


async def clean_end(peer: RawPeer) -> None:
    peer.carrier.feed_end()
    await peer.carrier.flush()


async def cut(peer: RawPeer) -> None:
    peer.close()


async def half_a_frame(peer: RawPeer) -> None:
    await peer.say(encode(a_proof())[:-1])
    peer.close()


STEPS = [at_proof, at_commit, at_decision, at_accept]
Step = Callable[[trio.Nursery], Awaitable[tuple[Carrier, RawPeer, Callable[[], Awaitable[object]]]]]


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize(
    ("misdeed", "error", "sentence"),
    [
        (garbage, RemoteProtocolError, "a frame of type 0x47 announces "),
        (wrong_frame, RemoteProtocolError, "OPEN by the "),
        (clean_end, trio.BrokenResourceError, r"the peer (closed the connection|went away)"),
        (cut, trio.BrokenResourceError, "the connection (was lost|was closed without|broke)"),
        (half_a_frame, trio.BrokenResourceError, "the connection (was lost|was closed without|broke)"),
    ],
)
async def test_a_peer_that_does_it_wrong(
    step: Step,
    misdeed: Callable[[RawPeer], Awaitable[None]],
    error: type[Exception],
    sentence: str,
    nursery: trio.Nursery,
) -> None:
    carrier, peer, wait = await step(nursery)
    await misdeed(peer)
    with trio.fail_after(HANG), pytest.raises(error, match=sentence):
        await wait()
    assert is_closed(carrier)
    peer.close()


@pytest.mark.parametrize("step", STEPS)
async def test_a_peer_that_says_nothing_is_given_up_by_cancelling(step: Step, nursery: trio.Nursery) -> None:
    carrier, peer, wait = await step(nursery)
    with trio.CancelScope() as scope:

        async def cancel() -> None:
            await trio.testing.wait_all_tasks_blocked(0.005)
            scope.cancel()

        nursery.start_soon(cancel)
        await wait()
    assert scope.cancelled_caught
    assert is_closed(carrier)
    peer.close()


@pytest.mark.parametrize("step", [at_commit, at_decision, at_accept])
async def test_a_peer_that_goes_away_politely(step: Step, nursery: trio.Nursery) -> None:
    carrier, peer, wait = await step(nursery)
    await peer.say(GoAway())
    with (
        trio.fail_after(HANG),
        pytest.raises(trio.BrokenResourceError, match=r"the peer (closed the connection|went away|ended the link)"),
    ):
        await wait()
    assert is_closed(carrier)
    peer.close()


# --- proof ---


async def test_the_listener_learns_who_dialled() -> None:
    alice, bob = await proven_links()
    assert bob.peer_key == ALICE.public_key
    assert (bob.session_id, bob.attempt_id) == (SESSION, b"attempt.........")
    assert alice.peer_key == BOB.public_key
    assert repr(bob) == f"<Link to {ALICE.peer_id[:8]}… proven>"
    alice.close_nowait()
    bob.close_nowait()


@pytest.mark.parametrize(
    "changes",
    [
        {"signature": bytes(64)},
        {"session_id": b"another session."},
        {"client_key": MALLORY.public_key},
        {"client_key": bytes(32)},
        {"signature": prove(ALICE, server_key=MALLORY.public_key, session_id=SESSION)},
    ],
    ids=["no signature", "other session", "other client", "no key", "made for another server"],
)
async def test_a_proof_that_does_not_hold(changes: dict[str, object]) -> None:
    dialed, accepted = await carriers()
    await RawPeer(dialed).say(a_proof(**changes))
    with pytest.raises(WrongPeer, match="the dialler's signature is invalid"):
        await Link.receive_proof(accepted)
    assert is_closed(accepted)
    dialed.close_nowait()


async def test_a_proof_cannot_be_replayed_to_another_server() -> None:
    """Mallory, whom Alice calls, sends Alice's proof on to Bob."""
    sockets = await connect_sockets()
    async with trio.open_nursery() as nursery:

        async def alice() -> None:
            carrier = await TlsCarrier.dial(sockets[0], CONTEXTS[ALICE], peer_key=MALLORY.public_key)
            await Link.prove(
                carrier,
                ALICE,
                peer_key=MALLORY.public_key,
                session_id=SESSION,
                attempt_id=bytes(16),
                initiator=True,
            )

        nursery.start_soon(alice)
        heard = await RawPeer(await TlsCarrier.serve(sockets[1], CONTEXTS[MALLORY])).hear()
    assert isinstance(heard, Proof)
    for sock in sockets:
        sock.close()
    dialed, accepted = await carriers()
    await RawPeer(dialed).say(heard)
    with pytest.raises(WrongPeer):
        await Link.receive_proof(accepted)
    dialed.close_nowait()


async def test_a_proof_of_an_unknown_version() -> None:
    dialed, accepted = await carriers()
    await RawPeer(dialed).say(a_proof(version=2))
    with pytest.raises(RemoteProtocolError, match="the peer speaks version 2 of the link protocol; this node speaks 1"):
        await Link.receive_proof(accepted)
    assert is_closed(accepted)
    dialed.close_nowait()


async def test_a_slip_of_our_own_closes_the_carrier_too() -> None:
    dialed, accepted = await carriers()
    with pytest.raises(ValueError, match="16-byte session id"):
        await Link.prove(
            dialed, ALICE, peer_key=BOB.public_key, session_id=b"short", attempt_id=bytes(16), initiator=True
        )
    assert is_closed(dialed)
    accepted.close_nowait()


async def test_roles_that_the_peer_has_not() -> None:
    dialed, accepted = await carriers()
    await RawPeer(dialed).say(a_proof(), COMMIT)
    link = await Link.receive_proof(accepted)
    with pytest.raises(RemoteProtocolError, match="COMMIT by the dialler/responder"):
        link.set_role(initiator=True)
    assert is_closed(accepted)
    dialed.close_nowait()


# --- commit ---


async def test_who_was_dialled_may_be_the_one_who_commits() -> None:
    """A reverse connection: Bob calls Alice, and Alice dials."""
    dialed, accepted = await carriers()
    alice = await alice_proves(dialed, initiator=False)
    bob = await Link.receive_proof(accepted)
    bob.set_role(initiator=True)
    async with trio.open_nursery() as nursery:

        async def answer() -> None:
            await alice.receive_commit()
            alice.accept()
            await alice._first.flush()

        nursery.start_soon(answer)
        await bob.commit(epoch=3, link_id=LINK_ID, patience=2.0)
    assert bob.link_id == alice.link_id == LINK_ID
    alice.close_nowait()
    bob.close_nowait()


@pytest.mark.parametrize("early_data", [b"", b"hello", bytes(EARLY_DATA_LIMIT)])
async def test_early_data_comes_with_the_pipe(early_data: bytes) -> None:
    async with linked(early_data=early_data) as (alice, bob):
        await alice.pipe.send_all(b"!")
        received = b""
        while len(received) < len(early_data) + 1:
            received += await bob.pipe.receive_some()
        assert received == early_data + b"!"


async def test_too_much_early_data_is_refused_before_anything_is_sent() -> None:
    alice, bob = await proven_links()
    with pytest.raises(ValueError, match="early_data is 65537 bytes; at most 65536 are allowed"):
        await alice.commit(epoch=1, link_id=LINK_ID, early_data=bytes(EARLY_DATA_LIMIT + 1), patience=1.0)
    assert alice.protocol.state is LinkState.PROVEN
    alice.close_nowait()
    bob.close_nowait()


async def test_a_peer_that_sends_too_much_early_data(nursery: trio.Nursery) -> None:
    carrier, peer, wait = await at_decision(nursery)
    nursery.start_soon(peer.say, data_header(0, EARLY_DATA_LIMIT + 1), bytes(EARLY_DATA_LIMIT + 1))
    with pytest.raises(RemoteProtocolError, match="more than 65536 bytes of early data"):
        await wait()
    assert is_closed(carrier)
    peer.close()


async def test_a_commit_of_another_session(nursery: trio.Nursery) -> None:
    carrier, peer, wait = await at_commit(nursery)
    await peer.say(Commit(session_id=b"another session.", link_id=LINK_ID, epoch=1, credit=1))
    with pytest.raises(RemoteProtocolError, match="the COMMIT names another session than the PROOF"):
        await wait()
    assert is_closed(carrier)
    peer.close()


async def test_a_commit_of_an_unknown_version_can_be_answered(nursery: trio.Nursery) -> None:
    dialed, accepted = await carriers()
    peer = RawPeer(dialed)
    await peer.say(a_proof(), Commit(session_id=bytes(16), link_id=LINK_ID, epoch=1, credit=1, version=9))
    link = await Link.receive_proof(accepted)
    link.set_role(initiator=False)
    assert (await link.receive_commit()).version == 9
    nursery.start_soon(link.refuse, RefuseReason.UNSUPPORTED)
    assert await peer.hear_until_end() == [Refuse(channel=0, reason=RefuseReason.UNSUPPORTED)]
    peer.close()


@pytest.mark.parametrize("reason", [*RefuseReason, 99])
async def test_every_refusal_has_its_words(reason: int, nursery: trio.Nursery) -> None:
    carrier, peer, wait = await at_accept(nursery)
    await peer.say(Refuse(channel=0, reason=reason, text="later\x1b[2J\n please"))
    with pytest.raises(PeerRefused) as caught:
        await wait()
    word = RefuseReason(reason).name.lower().replace("_", " ") if reason != 99 else "reason 99"
    assert str(caught.value) == f"the peer refused: {word} (later[2J please)"  # no escape reaches a terminal
    assert caught.value.reason == reason
    assert is_closed(carrier)
    peer.close()


async def test_a_refusal_reaches_an_initiator_that_still_sends() -> None:
    alice, bob = await proven_links()
    async with trio.open_nursery() as nursery:

        async def answer() -> None:
            await bob.receive_commit()
            await bob.refuse(RefuseReason.BUSY, "full")

        nursery.start_soon(answer)
        with pytest.raises(PeerRefused, match=re.escape("the peer refused: busy (full)")):
            await alice.commit(epoch=1, link_id=LINK_ID, early_data=bytes(EARLY_DATA_LIMIT), patience=1.0)
    assert is_closed(alice)
    assert is_closed(bob)


async def test_a_refusal_that_nobody_hears() -> None:
    alice, bob = await proven_links()
    alice.close_nowait()
    await bob.refuse(RefuseReason.BUSY)
    assert is_closed(bob)
    await bob.refuse(RefuseReason.BUSY)  # a second refusal does no harm


async def test_a_link_that_is_closed_while_it_refuses() -> None:
    peer, link = await committed()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(link.refuse, RefuseReason.BUSY)
        assert await peer.hear_until_end() == [Refuse(channel=0, reason=RefuseReason.BUSY)]
        await trio.testing.wait_all_tasks_blocked(0.002)
        link.close_nowait()
    assert is_closed(link)
    peer.close()


async def test_a_refusal_waits_for_the_peers_end() -> None:
    """An early close could reset the connection, and the reset could discard the REFUSE."""
    peer, link = await committed()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(link.refuse, RefuseReason.BUSY)
        assert await peer.hear_until_end() == [Refuse(channel=0, reason=RefuseReason.BUSY)]
        await trio.testing.wait_all_tasks_blocked(0.002)
        assert not is_closed(link)
        await clean_end(peer)
    assert is_closed(link)
    peer.close()


async def test_patience_is_for_silence_and_not_for_the_time_that_a_decision_takes(
    jumping_clock: trio.testing.MockClock,
) -> None:
    alice, bob = await proven_links()
    patience = 5.0
    async with trio.open_nursery() as nursery:

        async def answer() -> None:
            await bob.receive_commit()

            async def decide() -> bool:
                await trio.sleep(4 * patience)
                return True

            assert await bob.while_waiting(decide)
            bob.accept()
            await bob._first.flush()

        nursery.start_soon(answer)
        started = trio.current_time()
        await alice.commit(epoch=1, link_id=LINK_ID, patience=patience)
        assert trio.current_time() - started >= 4 * patience
    alice.close_nowait()
    bob.close_nowait()


@pytest.mark.slow("over QUIC every retransmission is a jump of the clock")
async def test_patience_ends_with_a_silent_peer(jumping_clock: trio.testing.MockClock) -> None:
    dialed, accepted = await carriers()
    link = await alice_proves(dialed)
    started = trio.current_time()
    with pytest.raises(trio.BrokenResourceError, match="the peer fell silent for 6 s after the commit"):
        await link.commit(epoch=1, link_id=LINK_ID, patience=6.0)
    assert 6.0 <= trio.current_time() - started <= 8.0  # the silence is checked every two seconds
    assert is_closed(link)
    heard = []
    with pytest.raises(trio.BrokenResourceError):
        peer = RawPeer(accepted)
        while item := await peer.hear():
            heard.append(item)
    assert [type(item) for item in heard] == [Proof, Commit, Ping]  # the PING asked whether it is alive
    accepted.close_nowait()


@pytest.mark.slow("over QUIC every retransmission is a jump of the clock")
async def test_patience_ends_where_early_data_does_not_get_through(jumping_clock: trio.testing.MockClock) -> None:
    """A path that drops large packets takes what fits its buffers, and stays silent."""
    dialed, accepted = await carriers(await connect_ends(buffers=4096))
    link = await alice_proves(dialed)
    started = trio.current_time()
    with (
        trio.fail_after(HANG),
        pytest.raises(trio.BrokenResourceError, match="the peer fell silent for 6 s after the commit"),
    ):
        await link.commit(epoch=1, link_id=LINK_ID, early_data=bytes(EARLY_DATA_LIMIT), patience=6.0)
    assert 6.0 <= trio.current_time() - started <= 10.0
    assert is_closed(link)
    accepted.close_nowait()


async def test_an_answer_is_read_before_all_early_data_is_through(jumping_clock: trio.testing.MockClock) -> None:
    """A slow path is not a silent one."""
    dialed, accepted = await carriers(await connect_ends(buffers=4096))
    link = await alice_proves(dialed)
    peer = RawPeer(accepted)
    with trio.fail_after(HANG):
        async with trio.open_nursery() as nursery:

            async def answer() -> None:
                assert isinstance(await peer.hear(), Proof)
                assert isinstance(await peer.hear(), Commit)
                await peer.say(Accept(channel=0, credit=1 << 20))
                for _ in range(2):  # QUIC may send the answer only with the next read
                    await peer.carrier.receive()

            nursery.start_soon(answer)
            await link.commit(epoch=1, link_id=LINK_ID, early_data=bytes(EARLY_DATA_LIMIT), patience=6.0)
            nursery.cancel_scope.cancel()
    link.close_nowait()
    accepted.close_nowait()


async def test_patience_does_not_count_what_was_before_the_commit(jumping_clock: trio.testing.MockClock) -> None:
    """A carrier may wait long for its turn, and the peer has nothing to send meanwhile."""
    dialed, accepted = await carriers()
    link = await alice_proves(dialed)
    peer = RawPeer(accepted)
    await trio.sleep(60)
    async with trio.open_nursery() as nursery:

        async def answer() -> None:
            while not isinstance(await peer.hear(), Ping):
                pass
            await peer.say(Accept(channel=0, credit=1 << 20))

        nursery.start_soon(answer)
        await link.commit(epoch=1, link_id=LINK_ID, patience=6.0)
    link.close_nowait()
    peer.close()


async def test_from_the_accept_on_there_is_no_checkpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    """A PING from the same read is answered by the driver, after the Pipe was returned."""
    dialed, accepted = await carriers()
    link = await alice_proves(dialed)
    peer = RawPeer(accepted)
    flush = dialed.flush

    async def flush_before_the_accept() -> None:
        assert link.protocol.state is LinkState.COMMITTED
        await flush()

    monkeypatch.setattr(dialed, "flush", flush_before_the_accept)
    await peer.say(Accept(channel=0, credit=1), Ping(token=7))
    assert isinstance(await link.commit(epoch=1, link_id=LINK_ID, patience=5.0), Pipe)
    assert link.protocol.has_outbox(link._first.protocol)
    link.close_nowait()
    peer.close()


async def test_a_pipe_whose_whole_life_came_in_one_read(nursery: trio.Nursery) -> None:
    whole_life = data_header(0, 5) + b"hello", Fin(channel=0, final_offset=5), Reset(channel=0, code=0), GoAway()
    async with raw_end(nursery, *whole_life, greeted=False) as (alice, _peer):
        assert await alice.pipe.receive_some() == b"hello"
        assert await alice.pipe.receive_some() == b""
        with pytest.raises(trio.BrokenResourceError, match="the peer closed its end"):
            await alice.pipe.send_all(b"x")


async def test_a_goodbye_in_place_of_an_accept(nursery: trio.Nursery) -> None:
    carrier, peer, wait = await at_accept(nursery)
    await peer.say(GoAway())
    with pytest.raises(trio.BrokenResourceError, match="the peer ended the link before it accepted"):
        await wait()
    assert is_closed(carrier)
    peer.close()


@pytest.mark.parametrize("settled_late", [True, False])
async def test_a_ping_that_came_with_the_commit_is_answered_while_the_application_decides(settled_late: bool) -> None:
    dialed, accepted = await carriers()
    peer = RawPeer(dialed)
    await peer.say(a_proof(), *((COMMIT, Ping(token=1)) if settled_late else ()))
    link = await Link.receive_proof(accepted)
    link.set_role(initiator=False)
    if not settled_late:
        await peer.say(COMMIT, Ping(token=1))
    await link.receive_commit()

    async def decide() -> bool:
        return await peer.hear() == Pong(token=1)

    with trio.fail_after(HANG):
        assert await link.while_waiting(decide)
    link.close_nowait()
    peer.close()


# --- while the application decides ---


async def committed(early: bytes = b"") -> tuple[RawPeer, Link]:
    dialed, accepted = await carriers()
    peer = RawPeer(dialed)
    await peer.say(a_proof(), COMMIT, early)
    link = await Link.receive_proof(accepted)
    link.set_role(initiator=False)
    await link.receive_commit()
    return peer, link


@pytest.mark.parametrize("answer", [True, False])
async def test_while_waiting_returns_what_was_decided(answer: bool) -> None:
    peer, link = await committed()

    async def decide() -> bool:
        await peer.say(Ping(token=5))
        assert await peer.hear() == Pong(token=5)  # PINGs are answered meanwhile
        return answer

    assert await link.while_waiting(decide) is answer
    assert link.protocol.state is LinkState.COMMITTED
    link.close_nowait()
    peer.close()


async def test_while_waiting_raises_what_the_decision_raised() -> None:
    peer, link = await committed()

    async def decide() -> bool:
        await trio.lowlevel.checkpoint()
        raise LookupError("no such rule")

    with pytest.raises(LookupError, match="no such rule"):
        await link.while_waiting(decide)
    assert is_closed(link)
    peer.close()


async def test_while_waiting_a_link_that_is_closed_here() -> None:
    peer, link = await committed()

    async def decide() -> bool:
        await trio.testing.wait_all_tasks_blocked()
        link.close_nowait()
        await trio.sleep_forever()
        raise AssertionError

    with pytest.raises(trio.ClosedResourceError):  # not in an exception group
        await link.while_waiting(decide)
    peer.close()


async def test_a_commit_that_was_taken_back_at_once() -> None:
    peer, link = await committed(encode(GoAway()))
    with pytest.raises(trio.BrokenResourceError, match="the peer went away"):
        await link.while_waiting(trio.sleep_forever)
    assert is_closed(link)
    peer.close()


# --- opening further Pipes ---


async def test_pipes_are_opened_in_both_directions() -> None:
    async with linked() as (alice, bob):
        for opener, other in ((alice, bob), (bob, alice)):
            for label in ("", "é" * 127 + "x"):
                pipe = await opener.pipe.open_pipe(label)
                accepted = await other.accept()
                assert pipe.label == accepted.label == label
                await pipe.send_all(b"there")
                await pipe.send_eof()
                assert await accepted.receive_some() == b"there"
                assert await accepted.receive_some() == b""
                await accepted.send_all(b"and back")
                assert await pipe.receive_some() == b"and back"
                await pipe.aclose()
                await accepted.aclose()
        await alice.pipe.send_all(b"still here")
        assert await bob.pipe.receive_some() == b"still here"


async def test_a_label_has_its_limit() -> None:
    async with linked() as (alice, _bob):
        with pytest.raises(ValueError, match="a label is at most 255 bytes of UTF-8"):
            await alice.pipe.open_pipe("é" * 128)


@pytest.mark.parametrize("reason", [RefuseReason.NOT_ACCEPTING, RefuseReason.BUSY])
async def test_an_open_that_is_refused(reason: RefuseReason) -> None:
    async with linked() as (alice, bob):
        bob.refusal = reason
        with pytest.raises(PeerRefused) as caught:
            await alice.pipe.open_pipe("x")
        assert caught.value.reason == reason
        await alice.pipe.send_all(b"unharmed")
        assert await bob.pipe.receive_some() == b"unharmed"
        assert set(alice.link.protocol.channels) == set(bob.link.protocol.channels) == {0}


async def test_a_link_without_room_for_a_further_pipe(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("warpgate_trio.link.channels.MAX_CHANNELS", 2)
    async with linked() as (alice, _bob):
        await alice.pipe.open_pipe()
        with pytest.raises(PeerRefused, match="this link has no room for a further pipe") as caught:
            await alice.pipe.open_pipe()
        assert caught.value.reason == RefuseReason.BUSY


async def test_no_pipe_is_opened_on_a_link_that_ended() -> None:
    async with linked() as (alice, bob):
        second = await alice.pipe.open_pipe()
        await bob.accept()
        bob.link.end_nowait()
        await alice.ended.wait()
        with pytest.raises(trio.BrokenResourceError, match="pipe broken: the peer ended the link"):
            await alice.pipe.open_pipe()
        await second.aclose()
        with pytest.raises(trio.ClosedResourceError):
            await second.open_pipe()


async def test_an_open_that_the_peer_does_not_answer_ends_with_the_link(nursery: trio.Nursery) -> None:
    async with raw_end(nursery) as (alice, peer):

        async def fail() -> None:
            with pytest.raises(trio.BrokenResourceError, match="pipe broken: the peer ended the link"):
                await alice.pipe.open_pipe("x")

        async with trio.open_nursery() as inner:
            inner.start_soon(fail)
            while not isinstance(await peer.hear(), Open):
                pass
            await peer.say(GoAway())


async def test_an_open_right_behind_the_accept_reaches_the_application(nursery: trio.Nursery) -> None:
    async with raw_end(nursery, Open(channel=2, credit=100, label="quick")) as (alice, peer):
        pipe = await alice.accept()
        assert pipe.label == "quick"
        assert isinstance(await peer.hear(), Accept)


async def test_an_open_that_was_taken_back_in_the_same_breath_is_no_pipe(nursery: trio.Nursery) -> None:
    async with raw_end(nursery) as (alice, peer):
        await peer.say(
            Open(channel=2, credit=1, label=""), Reset(channel=2, code=0), Open(channel=4, credit=1, label="b")
        )
        assert (await alice.accept()).label == "b"
        heard = await peer.hear()
        assert isinstance(heard, Accept)
        assert heard.channel == 4


async def test_a_pipe_that_the_handler_closes_at_once(nursery: trio.Nursery) -> None:
    async with raw_end(nursery) as (alice, peer):
        closed: list[Pipe] = []

        def close(pipe: Pipe) -> None:
            pipe.close_nowait()
            closed.append(pipe)

        alice.link._openings.take = close
        await peer.say(Open(channel=2, credit=1, label=""))
        assert await peer.hear() == Reset(channel=2, code=0)
        await peer.say(Ping(token=3))
        assert await peer.hear() == Pong(token=3)
        assert set(alice.link.protocol.channels) == {0}
        with pytest.raises(trio.ClosedResourceError):
            await closed[0].receive_some()


async def test_a_link_that_is_ending_takes_no_more_pipes(nursery: trio.Nursery) -> None:
    async with raw_end(nursery) as (alice, _peer):
        alice.link._openings.over = True
        channel = alice.link.protocol.channels._add(2, "", window=1, receive_limit=1, now=0.0)
        alice.link._openings.answer_one(channel)
        assert alice.opened == []
        assert channel.closed_here


# --- the goodbye ---


async def test_the_last_pipe_closed_ends_the_link_on_both_sides() -> None:
    async with linked() as (alice, bob):
        second = await alice.pipe.open_pipe()
        other = await bob.accept()
        await alice.pipe.aclose()
        await trio.testing.wait_all_tasks_blocked(0.005)
        assert not alice.ended.is_set()
        await second.send_all(b"one more")
        await second.aclose()
        with trio.fail_after(HANG):
            await alice.ended.wait()
            await bob.ended.wait()
        assert [await other.receive_some() for _ in range(2)] == [b"one more", b""]
        assert [await bob.pipe.receive_some()] == [b""]
        assert is_closed(alice.link)
        assert is_closed(bob.link)


async def test_the_peer_hears_everything_in_order_before_the_goodbye(nursery: trio.Nursery) -> None:
    async with raw_end(nursery) as (alice, peer):
        await alice.pipe.send_all(b"last words")
        alice.link.end_nowait()
        heard: list[Item] = await peer.hear_until_end()
        data, *rest = heard
        assert isinstance(data, Data)
        assert b"".join(data.pieces) == b"last words"
        assert rest == [Fin(channel=0, final_offset=10), Reset(channel=0, code=0), GoAway()]


@pytest.mark.parametrize("case", ["never closes", "does not read", "says goodbye and stays"])
async def test_a_goodbye_is_bounded_whatever_the_peer_does(
    case: str, jumping_clock: trio.testing.MockClock, nursery: trio.Nursery
) -> None:
    async with raw_end(nursery, goodbye=2.0, buffers=16384) as (alice, peer):
        if case == "does not read":
            with trio.move_on_after(0.5):
                await alice.pipe.send_all(bytes(1 << 20))
        started = trio.current_time()
        if case == "says goodbye and stays":
            await peer.say(GoAway())
        else:
            await alice.pipe.aclose()
        await alice.ended.wait()
        assert trio.current_time() - started == pytest.approx(2.0)
        assert is_closed(alice.link)


async def test_a_link_that_was_ended_before_its_driver_ran() -> None:
    alice, bob = await proven_links()
    with trio.fail_after(HANG):
        async with trio.open_nursery() as nursery:

            async def answer() -> None:
                await bob.receive_commit()
                bob.accept()
                bob.end_nowait()
                await bob.drive(on_open=lambda _: None, goodbye=HANG)

            nursery.start_soon(answer)
            pipe = await alice.commit(epoch=1, link_id=LINK_ID, patience=2.0)
            await alice.drive(on_open=lambda _: None, goodbye=HANG)
    with pytest.raises(trio.BrokenResourceError, match="the peer closed its end"):
        await pipe.send_all(b"x")
    assert await pipe.receive_some() == b""


async def test_a_link_that_was_closed_before_its_driver_ran() -> None:
    alice, bob = await proven_links()
    alice.close_nowait()
    with trio.fail_after(HANG):
        await alice.drive(on_open=lambda _: None, goodbye=1.0)
    bob.close_nowait()


async def test_a_close_while_the_driver_writes_loses_no_goodbye(
    nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with raw_end(nursery) as (alice, peer):
        flush = alice.link.carrier.flush
        flushing, go_on = trio.Event(), trio.Event()

        async def slow_flush() -> None:
            flushing.set()
            await go_on.wait()
            await flush()

        monkeypatch.setattr(alice.link.carrier, "flush", slow_flush)
        await peer.say(Ping(token=1))
        await flushing.wait()
        await alice.pipe.aclose()
        go_on.set()
        assert await peer.hear_until_end() == [
            Pong(token=1),
            Fin(channel=0, final_offset=0),
            Reset(channel=0, code=0),
            GoAway(),
        ]


async def test_the_driver_cannot_be_cancelled_from_outside() -> None:
    async with linked() as (alice, bob):
        async with trio.open_nursery() as inner:
            third, fourth = await open_ends(inner)
            inner.cancel_scope.cancel()
            with trio.CancelScope(shield=True):
                await third.pipe.send_all(b"still")
                assert await fourth.pipe.receive_some() == b"still"
            third.link.end_nowait()
        await alice.pipe.send_all(b"x")
        assert await bob.pipe.receive_some() == b"x"


# --- liveness ---


async def test_a_silent_peer_is_dead_after_three_misses(
    jumping_clock: trio.testing.MockClock, nursery: trio.Nursery
) -> None:
    async with raw_end(nursery, limit=1000) as (alice, peer):
        started = trio.current_time()
        with pytest.raises(trio.BrokenResourceError, match="the path is dead: the peer was not heard for"):
            await alice.pipe.receive_some()
        assert trio.current_time() - started == pytest.approx(4 * IDLE_INTERVAL)
        assert is_closed(alice.link)
        pings = []
        with pytest.raises(trio.BrokenResourceError):
            while item := await peer.hear():
                pings.append(item)
        assert [type(item) for item in pings] == [Ping] * 3


async def test_a_peer_that_does_not_read_is_dead_too(
    jumping_clock: trio.testing.MockClock, nursery: trio.Nursery
) -> None:
    """A sender that the kernel blocks holds the write lock."""
    async with raw_end(nursery, buffers=16384, limit=1000) as (alice, _peer):
        with pytest.raises(trio.BrokenResourceError, match="the path is dead: the peer was not heard for"):
            await alice.pipe.send_all(bytes(1 << 22))


@pytest.mark.slow("over QUIC every acknowledgement is a jump of the clock")
async def test_peers_that_answer_stay_alive(jumping_clock: trio.testing.MockClock) -> None:
    async with linked(limit=10_000) as (alice, bob):
        await trio.sleep(20 * IDLE_INTERVAL)  # the test is that nothing happens
        await alice.pipe.send_all(b"there?")
        assert await bob.pipe.receive_some() == b"there?"
        assert alice.pipe.rtt is not None


@pytest.mark.parametrize("last", [True, False])
@pytest.mark.parametrize("how", ["aclose", "end_nowait"])
async def test_a_ping_on_a_pipe_that_is_closed_meanwhile(last: bool, how: str, nursery: trio.Nursery) -> None:
    async with raw_end(nursery, goodbye=1.0) as (alice, peer):
        pipe = alice.pipe
        if not last:
            await peer.say(Open(channel=2, credit=1, label=""))
            pipe = await alice.accept()
        async with trio.open_nursery() as inner:

            async def ping() -> None:
                with trio.fail_after(HANG), pytest.raises(trio.ClosedResourceError, match="this pipe was closed"):
                    await pipe.ping()

            inner.start_soon(ping)
            await trio.testing.wait_all_tasks_blocked(0.002)
            if how == "aclose":
                await pipe.aclose()
            else:
                alice.link.end_nowait()
        with pytest.raises(trio.ClosedResourceError, match="this pipe was closed"):
            await pipe.ping()


# --- what must not break, and what breaks alone ---


async def test_a_driver_that_fails_breaks_its_own_link_alone(caplog: pytest.LogCaptureFixture) -> None:
    async with linked() as (alice, bob), linked() as (third, fourth):

        def fail(_pipe: Pipe) -> RefuseReason | None:
            raise ZeroDivisionError("a bug")

        bob.link._openings.take = fail
        with caplog.at_level(logging.ERROR), pytest.raises(trio.BrokenResourceError):
            await alice.pipe.open_pipe()
        assert [record.getMessage() for record in caplog.records] == [
            f"{bob.link!r}: an unexpected error ends the link"
        ]
        await bob.ended.wait()
        with pytest.raises(trio.BrokenResourceError, match="a bug") as caught:
            await bob.pipe.receive_some()
        assert isinstance(caught.value.__cause__, ZeroDivisionError)
        await third.pipe.send_all(b"unharmed")
        assert await fourth.pipe.receive_some() == b"unharmed"


async def test_a_driver_that_fails_while_it_writes(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with linked() as (alice, bob):

        async def flush() -> None:
            await trio.lowlevel.checkpoint()
            raise ZeroDivisionError("a bug")

        await bob.pipe.send_all(b"x")
        await alice.pipe.receive_some()
        monkeypatch.setattr(alice.link.carrier, "flush", flush)
        with caplog.at_level(logging.ERROR):
            alice.link._first.protocol.send_ping(trio.current_time())
            await alice.pipe.send_eof()
            await alice.ended.wait()
        with pytest.raises(trio.BrokenResourceError, match="a bug"):
            await alice.pipe.receive_some()


@pytest.mark.parametrize("hostile", [b"\x7f" * 12, data_header(9, 1) + b"x", encode(Accept(channel=0, credit=1))])
async def test_a_peer_that_breaks_the_protocol_breaks_its_link(hostile: bytes, nursery: trio.Nursery) -> None:
    async with raw_end(nursery) as (alice, peer):
        await peer.say(data_header(0, 4) + b"good" + hostile)
        await alice.ended.wait()
        with pytest.raises(trio.BrokenResourceError, match="pipe broken: ") as caught:
            await alice.pipe.send_all(b"x")
        assert isinstance(caught.value.__cause__, RemoteProtocolError)


async def test_two_peers_that_only_send_do_not_deadlock() -> None:
    size = 1 << 20  # all their credit, and far more than the sockets hold
    async with linked(await connect_sockets(buffers=32768)) as (alice, bob):
        async with trio.open_nursery() as both:
            both.start_soon(alice.pipe.send_all, bytes(size))
            both.start_soon(bob.pipe.send_all, bytes(size))
        for end in (alice, bob):
            received = 0
            while received < size:
                received += len(await end.pipe.receive_some())


async def test_one_stalled_channel_does_not_stall_another() -> None:
    async with linked() as (alice, bob):
        stalled = await alice.pipe.open_pipe("stalled")
        await bob.accept()
        async with trio.open_nursery() as inner:
            inner.start_soon(stalled.send_all, bytes(1 << 21))  # twice its window, and nobody reads it
            await trio.testing.wait_all_tasks_blocked(0.005)
            for _ in range(3):
                inner.start_soon(alice.pipe.send_all, b"x" * 500_000)
                received = 0
                while received < 500_000:
                    received += len(await bob.pipe.receive_some())
                await trio.testing.wait_all_tasks_blocked()
            inner.cancel_scope.cancel()


async def test_a_transfer_grows_its_window(nursery: trio.Nursery) -> None:
    async with linked() as (alice, bob):
        await bob.pipe.send_all(b"x")
        await alice.pipe.receive_some()
        while bob.pipe.rtt is None:
            await bob.pipe.send_all(b"x")
            await alice.pipe.receive_some()
        bob.link.protocol.life.rtt = 1.0  # keeps the machine's load from mattering
        nursery.start_soon(alice.pipe.send_all, bytes(4 << 20))
        received = 0
        while received < 4 << 20:
            received += len(await bob.pipe.receive_some())
        assert bob.link.protocol.channels[0].window >= 4 << 20


# --- cancelled anywhere ---


@asynccontextmanager
async def no_task_left() -> AsyncGenerator[None]:
    before = trio.lowlevel.current_statistics().tasks_living
    yield
    assert trio.lowlevel.current_statistics().tasks_living == before


@asynccontextmanager
async def bounded_nursery() -> AsyncGenerator[trio.Nursery]:
    with trio.fail_after(HANG):
        async with trio.open_nursery() as nursery:
            yield nursery


async def test_prove_cancelled_anywhere() -> None:
    for cut in cuts():
        dialed, accepted = await carriers()
        async with no_task_left():
            with cut:
                await alice_proves(dialed)
        assert is_closed(dialed) is cut.caught
        dialed.close_nowait()
        accepted.close_nowait()


async def test_receive_proof_and_receive_commit_cancelled_anywhere() -> None:
    for cut in cuts():
        dialed, accepted = await carriers()
        peer = RawPeer(dialed)

        async def play(peer: RawPeer = peer) -> None:
            try:
                await peer.say(a_proof())
                await peer.say(Ping(token=1))
                await peer.hear()
                await peer.say(COMMIT)
            except trio.BrokenResourceError:
                pass

        async with no_task_left(), bounded_nursery() as nursery:
            nursery.start_soon(play)
            with cut:
                link = await Link.receive_proof(accepted)
                link.set_role(initiator=False)
                await link.receive_commit()
            nursery.cancel_scope.cancel()
        assert is_closed(accepted) is cut.caught
        accepted.close_nowait()
        peer.close()


async def test_commit_cancelled_anywhere() -> None:
    for cut in cuts():
        alice, bob = await proven_links()

        async def answer(bob: Link = bob) -> None:
            try:
                await bob.receive_commit()
                if await bob.while_waiting(decide):
                    bob.accept()
                    await bob._first.flush()
            except (trio.BrokenResourceError, RemoteProtocolError):
                pass

        async def decide() -> bool:
            await trio.lowlevel.checkpoint()
            return True

        async with no_task_left(), bounded_nursery() as nursery:
            nursery.start_soon(answer)
            with cut:
                await alice.commit(epoch=1, link_id=LINK_ID, early_data=b"early", patience=1.0)
        assert is_closed(alice) is cut.caught
        alice.close_nowait()
        bob.close_nowait()


async def test_while_waiting_cancelled_anywhere() -> None:
    for cut in cuts():
        peer, link = await committed()

        async def decide(peer: RawPeer = peer) -> bool:
            for token in range(3):
                await peer.say(Ping(token=token))
                await peer.hear()
            return True

        async with no_task_left():
            with cut:
                await link.while_waiting(decide)
        assert is_closed(link) is cut.caught
        link.close_nowait()
        peer.close()


async def sweep_pipes(operation: Callable[[Cut, End, End], Awaitable[None]]) -> None:
    """Runs an operation on a fresh pair of open Links for each cut; checks that both Links end and leave nothing."""
    for cut in cuts():
        async with no_task_left():
            async with linked(await connect_sockets(buffers=16384), goodbye=0.2) as (alice, bob):
                await operation(cut, alice, bob)
            assert is_closed(alice.link)
            assert is_closed(bob.link)


async def test_send_all_cancelled_anywhere() -> None:
    message = bytes(range(250)) * 1400

    async def operation(cut: Cut, alice: End, bob: End) -> None:
        received = bytearray()

        async def receive() -> None:
            while piece := await bob.pipe.receive_some():
                received.extend(piece)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(receive)
            with cut:
                await alice.pipe.send_all(message)
            await alice.pipe.send_all(b"\xff after")
            await alice.pipe.send_eof()
        body, mark, rest = received.partition(b"\xff")
        assert mark + rest == b"\xff after"
        assert message.startswith(body)
        assert cut.caught or body == message

    await sweep_pipes(operation)


async def test_receive_some_cancelled_anywhere() -> None:
    async def operation(cut: Cut, alice: End, bob: End) -> None:
        received = b""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(alice.pipe.send_all, b"nothing is lost")
            with cut:
                while len(received) < 15:
                    received += await bob.pipe.receive_some(4)
            while len(received) < 15:
                received += await bob.pipe.receive_some()
        assert received == b"nothing is lost"

    await sweep_pipes(operation)


async def test_open_pipe_cancelled_anywhere() -> None:
    async def operation(cut: Cut, alice: End, bob: End) -> None:
        pipe: Pipe | None = None
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

    await sweep_pipes(operation)


async def test_aclose_cancelled_anywhere() -> None:
    async def operation(cut: Cut, alice: End, bob: End) -> None:
        await alice.pipe.send_all(b"last words")
        with cut:
            await alice.pipe.aclose()
        with pytest.raises(trio.ClosedResourceError):
            await alice.pipe.send_all(b"x")
        with trio.fail_after(HANG):
            assert await bob.pipe.receive_some() == b"last words"
            if cut.caught:
                with pytest.raises(trio.BrokenResourceError, match="the peer aborted it"):
                    await bob.pipe.receive_some()
            else:
                assert await bob.pipe.receive_some() == b""
            await alice.ended.wait()

    await sweep_pipes(operation)


# --- floods ---


@pytest.mark.parametrize("frame", [Ping(token=1), data_header(0, 0)], ids=["ping", "empty data"])
async def test_a_stranger_that_floods_before_its_commit_is_dropped(frame: Frame | bytes) -> None:
    dialed, accepted = await carriers()
    peer = RawPeer(dialed)
    await peer.say(a_proof(), *([frame] * 200))
    with trio.fail_after(HANG), pytest.raises(RemoteProtocolError, match="before the link is open"):
        bob = await Link.receive_proof(accepted)
        bob.set_role(initiator=False)
        await bob.receive_commit()
    assert is_closed(accepted)
    peer.close()


async def test_others_have_their_turns_while_a_peer_floods(monkeypatch: pytest.MonkeyPatch) -> None:
    """The flood is left unread once it exceeds the allowed rate."""
    monkeypatch.setattr(budget, "CONTROL_RATE", 1.0)
    async with linked(goodbye=0.02) as (alice, bob):
        alice.link.carrier.feed(encode(Ping(token=1)) * (CONTROL_BURST + 100))
        turns = 0
        async with trio.open_nursery() as nursery:
            nursery.start_soon(alice.pipe.send_all, b"x")
            while not bob.link._first.protocol.pause(trio.current_time()):
                turns += 1
                await trio.lowlevel.checkpoint()
            nursery.cancel_scope.cancel()
        assert turns >= CONTROL_BURST / TURN_FRAMES
