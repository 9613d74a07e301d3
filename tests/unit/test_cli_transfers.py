"""The progress of file transfers, as users and programs see it."""

from __future__ import annotations

import io

import pytest
import trio
import trio.testing
from rich.console import Console

from tests.end_to_end.processes import checked_event
from tests.identities import BOB
from warpgate_trio.cli.options import Settings
from warpgate_trio.cli.stdio import StandardOutput
from warpgate_trio.cli.transfers import PACE, TransferView, count_files, in_words, of_size
from warpgate_trio.files import Progress
from warpgate_trio.identity import peer_id_from_key

PEER = peer_id_from_key(BOB.public_key)


@pytest.mark.parametrize(
    ("size", "shown"),
    [
        (0, "0 bytes"),
        (999, "999 bytes"),
        (1000, "1.0 kB"),
        (999_949, "999.9 kB"),
        (999_951, "1.0 MB"),
        (1_234_567_890, "1.2 GB"),
        (5 * 10**15, "5000.0 TB"),
    ],
)
def test_sizes_as_people_read_them(size: int, shown: str) -> None:
    assert of_size(size) == shown


def test_words() -> None:
    assert (count_files(1), count_files(0), count_files(12_000)) == ("one file", "0 files", "12,000 files")
    assert in_words(3_000_000, 0, 2.0) == "3.0 MB in 2.0 s, 1.5 MB/s"
    assert in_words(3_000_000, 1_000_000, 2.0) == "2.0 MB (1.0 MB had come before) in 2.0 s, 1.0 MB/s"
    assert in_words(0, 0, 0.0) == "0 bytes in 0.0 s"


async def test_a_line_each_second_for_programs(
    autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There is none before data moves, and none for a second in which nothing has moved."""
    lines: list[bytes] = []

    async def write(_: StandardOutput, data: bytes) -> None:
        lines.append(data)
        await trio.lowlevel.checkpoint()

    monkeypatch.setattr(StandardOutput, "write", write)
    progress = Progress(stage="moving", size=100, there=10, done=20, files=2, name="a/b")
    async with TransferView.shown(Settings(json=True), sending=True) as view:
        view.take(PEER, Progress(stage="offered", size=100))
        await trio.sleep(2.5 * PACE)
        assert not lines
        view.take(PEER, progress)
        await trio.sleep(5 * PACE)
        view.clear()
        await trio.sleep(2 * PACE)
    (line,) = lines
    event = checked_event(line)
    assert event == {
        "event": "transferring",
        "peer": PEER,
        "sending": True,
        "stage": "moving",
        "size": 100,
        "done": 20,
        "there": 10,
        "files": 2,
        "name": "a/b",
    }


@pytest.mark.slow("rich is imported, and draws thirty times")
async def test_a_terminal_is_drawn_while_something_moves(
    autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Control characters in a hostile file name do not reach the terminal."""
    drawn = io.StringIO()
    monkeypatch.setattr("warpgate_trio.cli.options._is_terminal", lambda: True)
    monkeypatch.setattr(
        "warpgate_trio.cli.transfers.console", lambda: Console(file=drawn, force_terminal=True, width=120)
    )
    async with TransferView.shown(Settings(), sending=False) as view:
        await trio.sleep(1)
        assert not drawn.getvalue()
        view.take(PEER, Progress(stage="moving", size=10**6, done=10**5, files=1, name="d/a\x1b[2Jb.bin"))
        await trio.sleep(1)
        view.take(PEER, Progress(stage="checking", size=10**6, done=10**6, files=1))
        await trio.sleep(1)
        view.clear()
        await trio.sleep(1)
    shown = drawn.getvalue()
    assert "a?[2Jb.bin" in shown
    assert "checking" in shown
    assert "\x1b[2J" not in shown


async def test_nothing_is_shown_to_who_wants_nothing(
    autojump_clock: trio.testing.MockClock, capfd: pytest.CaptureFixture[str]
) -> None:
    async with TransferView.shown(Settings(quiet=True), sending=True) as view:
        view.take(PEER, Progress(stage="moving", size=10, done=1))
        await trio.sleep(3)
        assert view.elapsed == pytest.approx(3)
    captured = capfd.readouterr()
    assert captured.out == captured.err == ""
