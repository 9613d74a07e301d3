"""Who may have a Pipe, and how many: what a peer or a stranger could try in order to change that (docs/walk.md)."""

from __future__ import annotations

from collections import Counter

import pytest
import trio
import trio.testing

from tests.hangs import HANG
from tests.identities import ALICE, BOB, CAROL
from tests.integration.test_node import dial
from tests.integration.test_verdicts import committed, expect, impostor
from tests.links import link_of
from tests.nodes import address_of, config, loopback_node
from warpgate_strategies.direct_connect import dial as dial_target
from warpgate_trio import PeerRefused, Verdict, anyone
from warpgate_trio.carrier import Carrier, TlsCarrier, TlsContexts
from warpgate_trio.config import Budgets
from warpgate_trio.link import Link, RefuseReason
from warpgate_trio.link.channels import MAX_CHANNELS
from warpgate_trio.link.frame_codec import encode
from warpgate_trio.link.frames import Open, Reset, ResetCode
from warpgate_trio.plugin import Message, Plugin, plugin_registry, register
from warpgate_trio.report import WalkEvent

pytestmark = pytest.mark.usefixtures("jumping_clock")

# -- a called peer that opens Pipes itself -----------------------------------------------------------------------------


async def test_a_peer_that_we_called_may_open_pipes_if_authorize_says_so() -> None:
    asked: Counter[str] = Counter()

    async def rule(peer_id: str) -> bool:
        asked[peer_id] += 1
        await trio.lowlevel.checkpoint()
        return True

    async with (
        loopback_node(BOB, config(), authorize=anyone) as bob,
        loopback_node(ALICE, config(), authorize=rule) as alice,
        await alice.auto_connect(bob.address),
        await bob.listener.accept() as theirs,
    ):
        assert not asked  # nobody has asked for anything yet
        async with await theirs.open_pipe("one"), await theirs.open_pipe("two"):
            labels = {(await alice.listener.accept()).label for _ in range(2)}
            assert labels == {"one", "two"}
        assert asked == {BOB.peer_id: 1}


async def test_a_peer_that_we_called_opens_nothing_if_authorize_says_no() -> None:
    async def nobody(_: str) -> bool:
        await trio.lowlevel.checkpoint()
        return False

    async with (
        loopback_node(BOB, config(), authorize=anyone) as bob,
        loopback_node(ALICE, config(), authorize=nobody) as alice,
        await alice.auto_connect(bob.address) as ours,
        await bob.listener.accept() as theirs,
    ):
        for _ in range(2):
            with pytest.raises(PeerRefused) as refused:
                await theirs.open_pipe()
            assert refused.value.reason == RefuseReason.UNAUTHORIZED
        assert alice.stats().waiting_pipes == 0
        assert alice.stats().refused == {"unauthorized": 1}
        await theirs.send_all(b"the Pipe that Alice asked for is hers all the same")
        assert await ours.receive_some()
        async with await ours.open_pipe(), await bob.listener.accept():  # Bob has let Alice in, once
            pass


async def test_opens_that_are_taken_back_while_we_decide_are_bounded() -> None:
    deciding = trio.Event()

    async def dawdling(_: str) -> bool:
        deciding.set()
        await trio.sleep_forever()
        return True

    async with (
        loopback_node(BOB, config(), authorize=anyone) as bob,
        loopback_node(ALICE, config(), authorize=dawdling) as alice,
        await alice.auto_connect(bob.address) as ours,
        await bob.listener.accept() as theirs,
    ):
        carrier, said = theirs.carrier, link_of(theirs).protocol.outgoing
        assert said is not None
        async with link_of(theirs)._first._turn:  # keeps the Link's own writer from sending meanwhile
            for number in range(2, 2 * 5 * MAX_CHANNELS, 2):
                for frame in (Open(channel=number, credit=0, label=""), Reset(channel=number, code=ResetCode.CLOSED)):
                    carrier.feed(encode(frame))
                    said.put_frame(encode(frame))
            link_of(theirs)._first.protocol.said = said.end
            await carrier.flush()
        await deciding.wait()
        await theirs.ping()
        assert len(link_of(ours).protocol.take_opened()) == 0
        assert len(link_of(ours).protocol.channels.opened) <= 2 * MAX_CHANNELS
        assert alice.stats().waiting_pipes == 0


async def test_a_decision_that_its_link_does_not_live_to_see() -> None:
    began, ended = trio.Event(), trio.Event()

    async def dawdling(_: str) -> bool:
        began.set()
        try:
            await trio.sleep_forever()
        finally:
            ended.set()
        return True

    async with (
        loopback_node(BOB, config(), authorize=anyone) as bob,
        loopback_node(ALICE, config(), authorize=dawdling) as alice,
    ):
        await alice.auto_connect(bob.address)
        theirs = await bob.listener.accept()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(theirs.open_pipe)
            await began.wait()
            nursery.cancel_scope.cancel()
        theirs.carrier.close_nowait()
        with trio.fail_after(HANG):
            await ended.wait()


# -- the time that a decision takes ------------------------------------------------------------------------------------


async def test_a_decision_may_take_longer_than_a_handshake() -> None:
    """Both have 10 s by default.  A decision that comes too late must arrive as a refusal, one in time as a Pipe."""
    handshake = 0.5

    async def thinking(_: str) -> bool:
        await trio.sleep(1.5 * handshake)
        return True

    async def dawdling(_: str) -> bool:
        await trio.sleep_forever()
        return True

    async with loopback_node(ALICE, config()) as alice:
        budgets = Budgets(handshake=handshake, goodbye=0.2)
        async with loopback_node(BOB, config(budgets=budgets), authorize=thinking) as bob:
            async with await alice.auto_connect(bob.address, afs=[4]):
                pass
        budgets = Budgets(handshake=handshake, authorize=1.5 * handshake, goodbye=0.2)
        async with loopback_node(BOB, config(budgets=budgets), authorize=dawdling) as bob:
            async with expect(Verdict.REFUSED):
                await alice.auto_connect(bob.address, afs=[4])


async def test_a_caller_without_a_commit_has_the_handshake_s_time() -> None:
    async with loopback_node(BOB, config(budgets=Budgets(handshake=0.05)), authorize=anyone) as bob:
        link = await dial(bob, b"s" * 16)
        with trio.fail_after(5), pytest.raises(trio.BrokenResourceError):
            await link.carrier.receive()
        link.close_nowait()
        assert bob.stats().handshakes_failed == 1


async def test_a_pinned_call_ends_though_the_peer_is_alive_and_never_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    async def serve(sock: trio.socket.SocketType) -> None:
        link = await committed(sock)

        async def never() -> bool:
            await trio.sleep_forever()
            return True

        await link.while_waiting(never)  # answers every PING

    monkeypatch.setattr(plugin_registry["direct_connect"], "timeout", 0.5)
    budgets = Budgets(total=1.0, commit=0.3)
    async with impostor(serve) as port, loopback_node(ALICE, config(budgets=budgets)) as alice:
        with trio.fail_after(5):
            async with expect(Verdict.TIMED_OUT):
                await alice.connect(address_of(BOB, port=port), plugin="direct_connect")


# -- one session, one Pipe ---------------------------------------------------------------------------------------------


def remember_two(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nodes that are opened from now on remember two sessions only."""
    for module in ("admission", "inbound"):
        monkeypatch.setattr(f"warpgate_trio.node.{module}.MAX_REMEMBERED_SESSIONS", 2)


async def test_strangers_do_not_make_a_node_forget_whose_session_was_spent(monkeypatch: pytest.MonkeyPatch) -> None:
    remember_two(monkeypatch)

    async def alice_only(peer_id: str) -> bool:
        await trio.lowlevel.checkpoint()
        return peer_id == ALICE.peer_id

    async def stranger(port: int, number: int) -> None:
        sock = trio.socket.socket()
        await sock.connect(("127.0.0.1", port))
        carrier = await TlsCarrier.dial(sock, TlsContexts(CAROL), peer_key=BOB.public_key)
        session = bytes([number]) * 16
        link = await Link.prove(
            carrier, CAROL, peer_key=BOB.public_key, session_id=session, attempt_id=bytes(16), initiator=True
        )
        with pytest.raises(PeerRefused):
            await link.commit(epoch=1, link_id=bytes(16), patience=5)

    async with loopback_node(BOB, config(), authorize=alice_only) as bob:
        port = next(endpoint.port for _, endpoint in bob.address.endpoints())
        first = await dial(bob, b"s" * 16)
        await first.commit(epoch=1, link_id=bytes(16), patience=5)
        for number in range(4):
            await stranger(port, number)
        assert len(bob._runtime.admission._questions) == 2
        second = await dial(bob, b"s" * 16)
        with pytest.raises(PeerRefused) as refused:
            await second.commit(epoch=2, link_id=bytes(16), patience=5)
        assert refused.value.reason == RefuseReason.SESSION_SPENT
        assert bob.stats().pipes_accepted == 1
        first.close_nowait()


async def test_remembered_sessions_are_bounded_in_number_and_time(monkeypatch: pytest.MonkeyPatch) -> None:
    remember_two(monkeypatch)
    async with loopback_node(BOB, config(), authorize=anyone) as bob:
        inbound = bob._runtime.inbound
        for number in range(3):
            link = await dial(bob, bytes([number]) * 16)
            await link.commit(epoch=1, link_id=bytes(16), patience=5)
            link.close_nowait()
        assert [inbound.is_spent(ALICE.public_key, bytes([n]) * 16) for n in range(3)] == [False, True, True]
        for module in ("admission", "inbound"):
            monkeypatch.setattr(f"warpgate_trio.node.{module}.SESSION_MEMORY", 0.001)
        await trio.sleep(0.002)
        link = await dial(bob, bytes([3]) * 16)
        await link.commit(epoch=1, link_id=bytes(16), patience=5)
        link.close_nowait()
        assert len(inbound._accepted) == len(bob._runtime.admission._questions) == 1


async def test_a_peer_whose_every_session_is_spent_ends_the_call() -> None:
    commits = 0

    async def serve(sock: trio.socket.SocketType) -> None:
        nonlocal commits
        link = await committed(sock)
        commits += 1
        await link.refuse(RefuseReason.SESSION_SPENT)

    async with impostor(serve) as port, loopback_node(ALICE, config()) as alice:
        async with expect(Verdict.BROKE_OFF):
            await alice.auto_connect(address_of(BOB, port=port))
    assert commits == 4


async def test_a_session_that_is_spent_when_the_time_is_over(jumping_clock: trio.testing.MockClock) -> None:
    """No time is left for the new session, so the verdict is "timed out" and nothing else."""

    async def serve(sock: trio.socket.SocketType) -> None:
        await (await committed(sock)).refuse(RefuseReason.SESSION_SPENT)

    def dawdle(event: WalkEvent) -> None:
        if event.kind == "note":
            jumping_clock.jump(1.0)

    async with impostor(serve) as port, loopback_node(ALICE, config()) as alice:
        async with expect(Verdict.TIMED_OUT):
            await alice.auto_connect(address_of(BOB, port=port), timeout=1.0, on_event=dawdle)


class Twin(Plugin):
    """Dials the same listener as direct_connect, for a second carrier."""

    name = "twin"

    async def run(self, reply: Message | None = None) -> Carrier:
        return await dial_target(self)


@pytest.mark.usefixtures("own_plugins")
async def test_a_carrier_that_waited_has_its_turn_when_the_first_one_dies() -> None:
    """The phase's budget may be over by then: it limits the search for paths, and this path was found in time."""
    budgets = Budgets(direct_min=0.4, direct_max=0.4)
    commits = 0

    register(phase="direct")(Twin)

    async def serve(sock: trio.socket.SocketType) -> None:
        nonlocal commits
        link = await committed(sock)
        commits += 1
        if commits == 1:

            async def dawdle() -> bool:
                await trio.sleep(1.5 * budgets.direct_max)
                return True

            await link.while_waiting(dawdle)
            link.close_nowait()
            return
        link.accept()
        await link.carrier.flush()
        await trio.sleep_forever()

    async with (
        impostor(serve) as port,
        loopback_node(ALICE, config(budgets=budgets), plugins=["direct_connect", Twin]) as alice,
    ):
        pipe = await alice.auto_connect(address_of(BOB, port=port))
        assert commits == 2
        pipe.carrier.close_nowait()


@pytest.mark.usefixtures("own_plugins")
async def test_after_a_refusal_no_other_carrier_commits() -> None:
    """A second carrier is proven and waits for its turn when the refusal arrives."""
    proven = trio.Event()
    proofs = commits = 0

    register(phase="direct")(Twin)

    async def serve(sock: trio.socket.SocketType) -> None:
        nonlocal proofs, commits
        link = await Link.receive_proof(await TlsCarrier.serve(sock, TlsContexts(BOB)))
        proofs += 1
        if proofs == 2:
            proven.set()
        link.set_role(initiator=False)
        await link.receive_commit()
        commits += 1
        await proven.wait()
        await link.refuse(RefuseReason.BUSY)

    async with (
        impostor(serve) as port,
        loopback_node(ALICE, config(), plugins=["direct_connect", Twin]) as alice,
    ):
        async with expect(Verdict.BUSY):
            await alice.auto_connect(address_of(BOB, port=port))
    assert (proofs, commits) == (2, 1)
