"""`forward` and `send` without a network, with a peer that goes away after a while."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import trio

from tests.transfers import make_tree, wired
from warpgate_trio.cli import caller
from warpgate_trio.cli.exits import CommandFailed, ExitCode
from warpgate_trio.cli.forward import PAUSES, _Forwarding
from warpgate_trio.cli.options import Settings
from warpgate_trio.cli.send import _Sending
from warpgate_trio.cli.transfers import TransferView
from warpgate_trio.errors import AddressExpired, AddressNotYetValid, PeerNotFound, PeerRefused, TargetRefused
from warpgate_trio.files import look_at
from warpgate_trio.forwarding import Answer, Target

PEER = "a" * 52
AWAY = [AddressExpired("3 s ago"), AddressNotYetValid("in 3 s"), PeerNotFound(PEER, "no server of ours knows it")]
ADDRESS_IN_USE = TargetRefused(Answer.UNREACHABLE, "127.0.0.1:8080: Address already in use")


class Ended(Exception):
    """Ends the test."""


@asynccontextmanager
async def a_pipe() -> AsyncIterator[None]:
    yield


def forwarding(monkeypatch: pytest.MonkeyPatch, *, reverse: bool, calls: list[Any], stays: list[Any]) -> _Forwarding:
    """A command whose calls and Pipes end as listed; a string in `stays` is a Pipe that ends after it was announced."""
    here, there = Target("127.0.0.1", 8080), Target("127.0.0.1", 80)
    made = _Forwarding(
        Settings(quiet=True), peer=PEER, near=there, far=here, reverse=reverse, phases=None, timeout=None
    )

    async def call(*_: object) -> Any:
        await trio.lowlevel.checkpoint()
        how = calls.pop(0)
        if isinstance(how, Exception):
            raise how
        return a_pipe()

    async def stay(*_: object) -> None:
        await trio.lowlevel.checkpoint()
        how = stays.pop(0)
        if isinstance(how, Exception):
            raise how
        made._announced = [how]

    async def lead(*_: object) -> None:
        await trio.sleep_forever()

    monkeypatch.setattr(made, "_call", call)
    monkeypatch.setattr(made, "_stay", stay)
    monkeypatch.setattr(made, "_lead_all", lead)
    return made


async def serve(made: _Forwarding) -> None:
    await made._serve(cast("Any", None), cast("Any", None), cast("Any", None), cast("Any", a_pipe()), [])


@pytest.mark.parametrize("away", AWAY)
async def test_a_peer_that_cannot_be_called_now_is_called_again(
    autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch, away: Exception
) -> None:
    calls = [away] * 8 + ["pipe"]
    made = forwarding(monkeypatch, reverse=False, calls=calls, stays=[trio.BrokenResourceError("cut"), Ended()])
    with pytest.raises(Ended):
        await serve(made)
    assert not calls
    assert trio.current_time() >= sum(PAUSES) + 4 * PAUSES[-1]


@pytest.mark.parametrize("passing", [ADDRESS_IN_USE, TargetRefused(Answer.BUSY, "busy"), PeerRefused(1, "no room")])
async def test_a_port_of_the_peers_that_is_still_our_own_is_asked_for_again(
    autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch, passing: Exception
) -> None:
    """The peer may learn later than this node that the Link is gone, and until then still listens for it."""
    stays = ["127.0.0.1:8080", passing, passing, "127.0.0.1:8080", Ended()]
    with pytest.raises(Ended):
        await serve(forwarding(monkeypatch, reverse=True, calls=["pipe"] * 4, stays=stays))


@pytest.mark.parametrize(
    "stays", [[ADDRESS_IN_USE], ["127.0.0.1:8080", TargetRefused(Answer.NOT_EXPOSED, "not allowed here")]]
)
async def test_a_port_that_the_peer_never_had_or_may_not_have_ends_it(
    autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch, stays: list[Any]
) -> None:
    last = stays[-1]
    with pytest.raises(TargetRefused) as caught:
        await serve(forwarding(monkeypatch, reverse=True, calls=["pipe"] * 4, stays=list(stays)))
    assert caught.value is last


@pytest.mark.parametrize("when", ["asked", "joined"])
async def test_a_pipe_that_breaks_ends_stdio_by_exit_code_4(monkeypatch: pytest.MonkeyPatch, when: str) -> None:
    """Also where the Pipe breaks before the peer has answered."""

    async def broken(*_: object) -> Any:
        await trio.lowlevel.checkpoint()
        raise trio.BrokenResourceError("the peer ended the pipe without an answer")

    async def opened(*_: object) -> Any:
        await trio.lowlevel.checkpoint()
        return a_pipe()

    monkeypatch.setattr("warpgate_trio.forwarding.open_target", broken if when == "asked" else opened)
    monkeypatch.setattr("warpgate_trio.cli.stdio.join", broken)
    made = _Forwarding(
        Settings(quiet=True),
        peer=PEER,
        near=None,
        far=Target("127.0.0.1", 22),
        reverse=False,
        phases=None,
        timeout=None,
    )
    with pytest.raises(CommandFailed, match="without an answer") as caught:
        await made._join(cast("Any", a_pipe()))
    assert caught.value.code == ExitCode.BROKEN


@pytest.mark.parametrize("away", AWAY)
@pytest.mark.parametrize("reached", [False, True])
@pytest.mark.usefixtures("jumping_clock")
async def test_send_says_that_it_was_interrupted_where_it_had_reached_the_peer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, away: Exception, reached: bool
) -> None:
    """Exit code 4 if a transfer was interrupted, however the last call ended; otherwise that call's own error."""
    root = make_tree(tmp_path / "from", {"a": 10})
    ways = [True] if reached else []

    async def call_peer(*_: object, **__: object) -> Any:
        await trio.lowlevel.checkpoint()
        if not ways:
            raise away
        ways.pop()
        ours, theirs, _wire = wired()
        cast("Any", theirs).close()
        return ours

    monkeypatch.setattr(caller, "call_peer", call_peer)
    settings = Settings(quiet=True)
    sending = _Sending(settings, paths=(str(root),), peer=PEER, save=None, phases=None, timeout=None, retry=5.0)
    peer, expected = SimpleNamespace(peer_id=PEER), CommandFailed if reached else type(away)
    async with TransferView.shown(settings, sending=True) as view:
        with pytest.raises(expected) as caught:
            await sending._send(cast("Any", None), cast("Any", peer), cast("Any", None), look_at([root]), view)
    if isinstance(caught.value, CommandFailed):
        assert caught.value.code == ExitCode.BROKEN
