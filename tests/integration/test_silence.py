"""A peer that `authorize` does not let in gets no answer by signal, and cannot shut out a peer that it lets in."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from tests.hangs import HANG
from tests.identities import ALICE, BOB, CAROL
from tests.integration.test_security import Unheard, ask, give, hub_of, sealed
from tests.nodes import LoopbackHost, address_of, config, loopback_node
from tests.panicking import PanicException
from tests.waiting import wait_until
from warpgate_strategies.get_addr import AskAddress
from warpgate_strategies.reverse_connect import DialMe
from warpgate_trio import LOOPBACK_BIND, Identity
from warpgate_trio.servers.rendezvous import open_rendezvous
from warpgate_trio.signal import Cancel, Message, open_message, seal_message, wire_name

pytestmark = pytest.mark.usefixtures("jumping_clock")

DIAL_ME = DialMe(af=4, route_type=LOOPBACK_BIND, address=b"\x7f\0\0\1", port=9)


async def not_carol(peer_id: str) -> bool:
    await trio.lowlevel.checkpoint()
    return peer_id != CAROL.peer_id


@pytest.mark.parametrize(
    ("message", "owner", "skew"),
    [
        (AskAddress(), "get_addr", 0.0),
        (DIAL_ME, "reverse_connect", 0.0),
        (Unheard(), "nobody", 0.0),  # a plugin that we do not have
        (AskAddress(), "get_addr", 3600.0),  # its clock is off
        (AskAddress(), "get_addr", -3600.0),
    ],
)
@pytest.mark.parametrize("listens", [True, False])
async def test_a_stranger_hears_nothing(message: Message, owner: str, skew: float, listens: bool) -> None:
    """Any answer would carry our present address."""
    async with (
        open_rendezvous() as server,
        loopback_node(BOB, config(server), authorize=not_carol if listens else None) as bob,
        hub_of(CAROL, server),
    ):
        await bob.wait_signals()
        own = address_of(CAROL, port=9)
        for number in range(100):  # 100 at once exceed every rate limit
            when = LoopbackHost().wall_time() + skew
            give(
                bob,
                sealed(CAROL, bob.address, own, message, owner=owner, message_id=bytes([number]) * 16, time=when),
            )
        await trio.testing.wait_all_tasks_blocked(0.02)
        assert "sent" not in bob.stats().signals
        assert bob._runtime.view.known_address(CAROL.public_key) is None


async def test_who_is_let_in_is_told_the_time() -> None:
    async with (
        open_rendezvous() as server,
        loopback_node(BOB, config(server), authorize=not_carol) as bob,
        hub_of(ALICE, server) as hub,
    ):
        await bob.wait_signals()
        own, late = address_of(ALICE, port=9), LoopbackHost().wall_time() - 3600
        assert give(bob, sealed(ALICE, bob.address, own, AskAddress(), owner="get_addr", time=late)) == "OutsideWindow"
        with trio.fail_after(HANG):
            answer = open_message(ALICE, (await hub.receive()).payload)
        assert answer.header.type == "core.Clock"


async def test_a_slow_authorize_shuts_out_nobody_whom_it_has_let_in() -> None:
    """A hundred strangers wait for a decision; Alice, who was let in before, is answered at once."""
    asked: set[str] = set()

    async def slow(peer_id: str) -> bool:
        asked.add(peer_id)
        if peer_id != ALICE.peer_id:
            await trio.sleep_forever()
        return True

    async with (
        open_rendezvous() as server,
        loopback_node(BOB, config(server), authorize=slow) as bob,
        loopback_node(ALICE, config(server)) as alice,
    ):
        await alice.wait_signals()
        await bob.wait_signals()
        await alice.refresh_address(bob.address, timeout=10)
        for number in range(100):
            stranger = Identity.from_seed(number.to_bytes(32, "big"))
            own = address_of(stranger, port=9)
            give(bob, sealed(stranger, bob.address, own, DIAL_ME, message_id=number.to_bytes(16, "big")))
        await trio.testing.wait_all_tasks_blocked(0.01)
        assert len(asked) == 1 + 64  # 64 strangers may wait at a time
        for _ in range(3):
            assert await alice.refresh_address(bob.address, timeout=10) == bob.address
        async with await alice.connect(bob.address, plugin="reverse_connect", timeout=10):
            pass


async def test_who_is_let_in_hears_that_there_is_no_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("warpgate_trio.node.responder.MAX_ATTEMPTS", 0)
    async with (
        open_rendezvous() as server,
        loopback_node(BOB, config(server), authorize=not_carol) as bob,
        hub_of(ALICE, server) as hub,
    ):
        await bob.wait_signals()
        give(bob, sealed(ALICE, bob.address, address_of(ALICE, port=9), DIAL_ME))
        with trio.fail_after(HANG):
            answer = open_message(ALICE, (await hub.receive()).payload)
        assert answer.header.type == "core.Refused"
        monkeypatch.setattr("warpgate_trio.node.responder.MAX_ATTEMPTS", 64)
        assert (await ask(hub, ALICE, bob, b"1" * 16)).header.type == "core.Refused"


async def test_a_panic_of_a_library_does_not_end_the_node(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The panic of a library in Rust derives from `BaseException`."""

    def panic(*args: object, **kwargs: object) -> None:
        raise PanicException("called `Option::unwrap()` on a `None` value")

    async with (
        open_rendezvous() as server,
        loopback_node(BOB, config(server), authorize=not_carol) as bob,
        hub_of(ALICE, server) as hub,
    ):
        await bob.wait_signals()
        own = address_of(ALICE, port=9)
        with monkeypatch.context() as patch:
            patch.setattr("warpgate_trio.signal.router.open_message", panic)
            await hub.send(BOB.public_key, sealed(ALICE, bob.address, own, Unheard()))
            await wait_until(lambda: bob.stats().signals.get("unhandled"))
            patch.undo()
            patch.setattr("warpgate_trio.signal.sender.seal_message", panic)
            give(bob, sealed(ALICE, bob.address, own, Unheard(), message_id=b"2" * 16))
            await wait_until(lambda: "a reply could not be sent" in caplog.text)
        assert (await ask(hub, ALICE, bob, b"1" * 16)).header.type == "core.Refused"


async def test_a_cancel_right_behind_its_request_ends_it() -> None:
    """Both signals may be there at the same read: the second is then handled before the task of the first has run."""
    session, attempt = b"s" * 16, b"a" * 16
    asked = 0

    async def rule(_: str) -> bool:
        nonlocal asked
        asked += 1
        await trio.sleep_forever()
        return True

    async with loopback_node(BOB, config(), authorize=rule) as bob:
        for number, message in enumerate((DIAL_ME, Cancel())):
            give(
                bob,
                seal_message(
                    ALICE,
                    bob.address,
                    address_of(ALICE, port=9),
                    wire_name=wire_name("core" if isinstance(message, Cancel) else "reverse_connect", type(message)),
                    payload=message,
                    message_id=bytes([number]) * 16,
                    session=session,
                    attempt=attempt,
                    time_ms=int(LoopbackHost().wall_time() * 1000),
                ),
            )
        await trio.testing.wait_all_tasks_blocked()
        assert asked <= 1
        assert not bob._runtime.peer_work
