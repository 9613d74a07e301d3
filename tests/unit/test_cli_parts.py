"""The command line's parts without processes: stdio joined to a stream, the echo test, events, tables."""

from __future__ import annotations

import json
import math
import os
import re
import signal
import struct
from collections.abc import Iterator
from contextlib import nullcontext, suppress
from functools import partial
from ipaddress import ip_address
from pathlib import Path
from typing import Any, Final, cast

import hypothesis.strategies as st
import msgspec
import pytest
import trio
import trio.testing
from hypothesis import given

from tests.end_to_end.processes import SCHEMAS, checked_event
from tests.links import connect_sockets
from warpgate_trio import PathCause, PathState
from warpgate_trio.address.nat_profile import NatProfile
from warpgate_trio.cli import events
from warpgate_trio.cli.called import Guests
from warpgate_trio.cli.echo_test import BLOCK, STALL, EchoFailed, EchoTest, Numbered, NumberedCheck, echo
from warpgate_trio.cli.exits import CommandFailed, ExitCode, OutputClosed, UsageProblem, exit_code_of_verdict, explain
from warpgate_trio.cli.failures import failure_lines, show_failure
from warpgate_trio.cli.listen import _Listening
from warpgate_trio.cli.netcheck import _plain, _styled
from warpgate_trio.cli.options import Settings
from warpgate_trio.cli.reachable import configuration, reachable_urls
from warpgate_trio.cli.render import format_combo, format_errors, plain_table, rich_table, watching_walk
from warpgate_trio.cli.runner import run, run_both
from warpgate_trio.cli.services import start_ntp
from warpgate_trio.cli.stdio import StandardInput, StandardOutput, join, look_ahead, open_standard_input, skip
from warpgate_trio.config import NodeConfig
from warpgate_trio.errors import ConnectError, PeerAborted, PeerRefused, RemoteProtocolError
from warpgate_trio.host import Interface, InterfaceAddress
from warpgate_trio.netcheck import ClockCheck, GatewayCheck, NetcheckReport, ServerCheck
from warpgate_trio.netcheck.report import path_check, plan_paths
from warpgate_trio.node import Node
from warpgate_trio.report import ADVICE, ComboReport, ConnectReport, Outcome, Verdict, WalkEvent
from warpgate_trio.servers.ntp import open_ntp

PEER = "a" * 52
COMBO = ComboReport(
    phase="direct",
    plugin="direct_connect",
    af=4,
    route="NIC_BIND",
    target="nic tcp 192.0.2.7:4433",
    likelihood="likely",
    outcome=Outcome.FAILED,
    error="refused",
    started_ms=1.0,
    ended_ms=12.345,
)


def report(verdict: Verdict, *combos: ComboReport) -> ConnectReport:
    return ConnectReport(
        peer=PEER, session="0" * 32, verdict=verdict, advice=ADVICE[verdict], elapsed_ms=1.5, combos=combos
    )


# -- exit codes --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("verdict", Verdict)
def test_every_verdict_has_an_exit_code(verdict: Verdict) -> None:
    expected = {
        Verdict.CONNECTED: 0,
        Verdict.REFUSED: 3,
        Verdict.NOT_ACCEPTING: 3,
        Verdict.BUSY: 3,
    }.get(verdict, 1)
    assert exit_code_of_verdict(verdict.value) == expected
    if verdict is not Verdict.CONNECTED:
        code, sentence = explain(ConnectError(report(verdict)))
        assert code == expected
        assert ADVICE[verdict] in sentence


def test_what_has_been_said_already_is_not_said_again() -> None:
    assert explain(CommandFailed(ExitCode.BROKEN, "it broke")) == (4, "it broke")
    assert explain(OutputClosed()) == (0, "")


# -- events ------------------------------------------------------------------------------------------------------------


def test_the_schema_knows_every_verdict() -> None:
    schema = json.loads((SCHEMAS / "failed.json").read_text(encoding="utf-8"))
    known = set(schema["properties"]["verdict"]["enum"])
    assert known == {verdict.value for verdict in Verdict} - {"connected", "no_better_path"} | {
        "bad_address", "bad_code", "bad_configuration", "bad_peer", "bad_usage", "peer_not_found"
    }  # fmt: skip


def test_the_schema_knows_every_cause_and_state_of_a_path() -> None:
    schema = json.loads((SCHEMAS / "path.json").read_text(encoding="utf-8"))
    assert schema["properties"]["cause"]["enum"] == [cause.value for cause in PathCause]
    states = schema["$defs"]["path"]["properties"]["state"]["enum"]
    assert states == [state.value for state in PathState if state is not PathState.SUSPENDED], "then there is no path"
    pipe = json.loads((SCHEMAS / "pipe.json").read_text(encoding="utf-8"))
    assert set(schema["$defs"]["path"]["required"]) == {*pipe["required"], "state"} - {"event"}


def test_every_event_follows_its_schema() -> None:
    path: dict[str, Any] = {"phase": "direct", "plugin": "p", "af": 4, "route": "NIC_BIND"}
    plain = msgspec.to_builtins(report(Verdict.UNREACHABLE, COMBO))
    for event in (
        events.ListenReady(address="wg1AAAA", peer=PEER, signals=["ws://a"]),
        events.ServeReady(servers={"websocket": ["ws://a"]}),
        events.ServeReady(servers={"websocket": ["ws://a"], "stun": ["stun:[::1]:3478"]}),
        events.PipeOpened(peer=PEER, **path),
        events.PipeOpened(peer=PEER, **{**path, "phase": None}),
        events.Connected(peer=PEER, **path, connect_ms=1.0, report=plain),
        events.Connected(
            peer=PEER, **path, connect_ms=1.0, first_byte_ms=2.0, echo_ok=True, mb_per_s=3.0, report=plain
        ),
        events.Connected(peer=PEER, **path, connect_ms=1.0, report=plain, search=plain),
        events.Searched(peer=PEER, report=plain),
        events.Explained(
            peer=PEER,
            kind="none",
            verdict="unreachable",
            advice="a",
            steps=[{"side": "here", "step": "clock", "outcome": "ok", "detail": "", "advice": None}],
            report=plain,
        ),
        events.Failed(verdict="unreachable", advice="a", report=plain, error="e"),
        events.Failed(verdict="bad_address", advice="a", report=None, error="e"),
        events.Identified(peer=PEER, key_file=None),
        events.ContactLine(name="a", peer=PEER, address=None, added="2026-11-30T08:00:00+00:00", how="call"),
        events.ContactLine(name="a", peer=PEER, address="wg1AAAA", added="2026-11-30T08:00:00+00:00", how="hand"),
        events.PathChanged(
            peer=PEER,
            old={"peer": PEER, **path, "state": "live"},
            new=None,
            cause="lost",
            detail="gone",
            silence_ms=1.5,
            replayed=0,
        ),
        events.PathChanged(
            peer=PEER,
            old=None,
            new={"peer": PEER, **path, "phase": None, "state": "suspect"},
            cause="found",
            detail="",
            silence_ms=0.0,
            replayed=7,
        ),
        events.NetChecked(
            online=False,
            complete=True,
            elapsed_ms=0.1,
            external=[],
            paths=[],
            servers=[],
            clock=msgspec.to_builtins(ClockCheck()),
            gateways=[
                msgspec.to_builtins(
                    GatewayCheck(
                        interface="eth0",
                        address="192.168.1.1",
                        protocols=("upnp",),
                        mapped=("203.0.113.5:4433",),
                        problems=("pcp: 192.168.1.1 does not answer",),
                    )
                )
            ],
            can=[],
            cannot=["a"],
            unknown=["b"],
        ),
    ):
        line = events.encode(event)
        assert line.count(b"\n") == 1
        assert line.startswith(b'{"event":"')
        checked = checked_event(line)
        schema = json.loads((SCHEMAS / f"{checked['event']}.json").read_text(encoding="utf-8"))
        assert checked.keys() <= schema["properties"].keys(), "every key is documented"


# -- the echo test -----------------------------------------------------------------------------------------------------


@given(total=st.integers(1, 3000), cuts=st.lists(st.integers(1, 700), min_size=1), block=st.integers(9, 600))
def test_numbered_bytes_are_the_same_however_they_are_cut(total: int, cuts: list[int], block: int) -> None:
    sent = Numbered(block)
    whole = bytearray()
    while len(whole) < total:
        whole += sent.part(len(whole), total - len(whole))
    check = NumberedCheck(sent, total)
    position, turn = 0, 0
    while position < total:
        size = cuts[turn % len(cuts)]
        check.feed(bytes(whole[position : position + size]))
        position, turn = position + size, turn + 1
    assert check.received == total
    with pytest.raises(EchoFailed, match="more came back"):
        check.feed(b"x")


@given(total=st.integers(1, 3000), data=st.data())
def test_one_wrong_byte_is_found(total: int, data: st.DataObject) -> None:
    sent = Numbered(64)
    whole = bytearray()
    while len(whole) < total:
        whole += sent.part(len(whole), total - len(whole))
    position = data.draw(st.integers(0, total - 1))
    whole[position] ^= 1
    with pytest.raises(EchoFailed, match="differs"):
        NumberedCheck(sent, total).feed(whole)


def test_blocks_that_change_places_are_found() -> None:
    sent = Numbered(64)
    swapped = bytes(sent.part(64, 64)) + bytes(sent.part(0, 64))
    with pytest.raises(EchoFailed, match="differs"):
        NumberedCheck(sent, 128).feed(swapped)


@pytest.mark.parametrize("early", [0, 65_536, 2_000_000])
async def test_an_echo_that_works(early: int) -> None:
    near, far = trio.testing.memory_stream_pair()
    test = EchoTest(1_000_000, early=early)
    assert len(test.early_data) == min(early, BLOCK), "what one block has"
    echoed: list[int] = []

    async def peer() -> None:
        await far.send_all(test.early_data)
        echoed.append(await echo(far))

    await run_both(peer, partial(test.run, near))
    assert echoed == [1_000_000 - len(test.early_data)]
    assert test.first_byte_at is not None
    assert test.mb_per_s is not None
    assert test.mb_per_s > 0


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (b"", "the peer ended after 0 of 100 bytes"),
        (b"wrong", "differs"),
        (bytes(200), "more came back"),
    ],
)
async def test_an_echo_that_does_not(answer: bytes, said: str) -> None:
    near, far = trio.testing.memory_stream_pair()
    await far.send_all(answer)
    await far.send_eof()
    with pytest.raises(EchoFailed, match=said):
        await EchoTest(100).run(near)


async def test_a_peer_that_says_nothing_is_given_up(autojump_clock: trio.testing.MockClock) -> None:
    near, _far = trio.testing.memory_stream_pair()
    started = trio.current_time()
    with pytest.raises(EchoFailed, match="nothing more came back for 10 s"):
        await EchoTest(100).run(near)
    assert trio.current_time() - started == pytest.approx(STALL)


def test_what_is_seen_of_a_file_stays_there(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(bytes(range(100)))
    with (tmp_path / "file").open("rb", buffering=0) as file:
        file.seek(10)
        assert look_ahead(50, file.fileno()) == look_ahead(50, file.fileno()) == bytes(range(10, 60))
        skip(50, file.fileno())
        assert file.read() == bytes(range(60, 100))
        assert look_ahead(50, file.fileno()) == b""
    assert look_ahead(50, 1_000_000) == b"", "whoever reads it says what is wrong"
    reading, writing = os.pipe()
    try:
        os.write(writing, b"x")
        assert look_ahead(50, reading) == b"", "it could not be put back"
        assert os.read(reading, 50) == b"x"
    finally:
        os.close(reading)
        os.close(writing)


# -- stdin and stdout --------------------------------------------------------------------------------------------------


@pytest.fixture
def pipes() -> Iterator[tuple[int, int, int, int]]:
    """Stdin's two ends and stdout's two ends: (read, write, read, write)."""
    ends = [*os.pipe(), *os.pipe()]
    yield (ends[0], ends[1], ends[2], ends[3])
    for end in ends:
        with suppress(OSError):
            os.close(end)


async def _written(descriptor: int, count: int) -> bytes:
    data = b""
    while len(data) < count:
        data += await trio.to_thread.run_sync(os.read, descriptor, count)
    return data


async def _end_input(typing: int, source: StandardInput) -> None:
    """End the input, so that the thread that reads it ends before the test does."""
    os.close(typing)
    while await source.read():
        pass


async def test_join_copies_both_ways_and_half_closes(pipes: tuple[int, int, int, int]) -> None:
    stdin, typing, reading, stdout = pipes
    near, far = trio.testing.memory_stream_pair()
    async with open_standard_input(stdin) as source, trio.open_nursery() as nursery:
        nursery.start_soon(join, near, source, StandardOutput(stdout))
        os.write(typing, b"out")
        assert await far.receive_some(3) == b"out"
        os.close(typing)
        assert await far.receive_some() == b""
        await far.send_all(b"still coming")
        assert await _written(reading, 12) == b"still coming"
        await far.send_eof()


async def test_join_raises_when_the_stream_breaks_but_delivers_what_came(pipes: tuple[int, int, int, int]) -> None:
    stdin, typing, reading, stdout = pipes
    near, far = trio.testing.memory_stream_pair()
    await far.send_all(b"last words")
    await far.aclose()
    os.write(typing, b"to nobody")
    async with open_standard_input(stdin) as source:
        with pytest.raises(trio.BrokenResourceError):
            await join(near, source, StandardOutput(stdout))
        await _end_input(typing, source)
    assert await _written(reading, 10) == b"last words"


async def test_a_closed_output_is_told_apart(pipes: tuple[int, int, int, int]) -> None:
    stdin, typing, reading, stdout = pipes
    near, far = trio.testing.memory_stream_pair()
    os.close(reading)
    await far.send_all(b"for nobody")
    async with open_standard_input(stdin) as source:
        with pytest.raises(OutputClosed):
            await join(near, source, StandardOutput(stdout))
        await _end_input(typing, source)


async def test_a_stdin_that_breaks_has_not_ended(pipes: tuple[int, int, int, int]) -> None:
    """Stdin is a connection that is reset: that must not read as the end of the input."""
    theirs, ours = await connect_sockets()
    near, far = trio.testing.memory_stream_pair()
    with theirs, ours:
        async with open_standard_input(theirs.fileno()) as source, trio.open_nursery() as nursery:

            async def reset() -> None:
                await ours.send(b"a part")
                assert await far.receive_some() == b"a part"
                ours.setsockopt(trio.socket.SOL_SOCKET, trio.socket.SO_LINGER, struct.pack("ii", 1, 0))
                ours.close()
                await far.receive_some()
                raise AssertionError("it read as ended")

            nursery.start_soon(reset)
            with pytest.raises(CommandFailed, match=r"^stdin cannot be read: Connection reset by peer$") as failed:
                await join(near, source, StandardOutput(pipes[3]))
            assert failed.value.code == ExitCode.BROKEN
            nursery.cancel_scope.cancel()


async def test_there_may_be_no_stdin() -> None:
    """The stdin that `nohup` leaves can be written but not read."""
    null = os.open(os.devnull, os.O_WRONLY)
    async with open_standard_input(null) as source:
        assert await source.read() == b""
    os.close(null)


@pytest.mark.parametrize(
    ("why", "interrupted"),
    [
        (PeerAborted("the peer aborted it"), True),
        (PeerRefused(1, "the peer has revoked this node's access"), True),
        (trio.BrokenResourceError("the connection was lost"), True),
        (RemoteProtocolError("the peer closed its end"), False),
    ],
)
async def test_a_peer_that_ended_its_direction_may_be_interrupted_after_that(
    pipes: tuple[int, int, int, int], why: Exception, interrupted: bool
) -> None:
    stdin, typing, _, stdout = pipes

    async def broken() -> None:
        await trio.lowlevel.checkpoint()
        raise trio.BrokenResourceError("pipe broken") from why

    near, far = trio.testing.memory_stream_pair()
    near.send_stream.wait_send_all_might_not_block_hook = broken
    await far.send_eof()
    async with open_standard_input(stdin) as source:
        with pytest.raises(trio.BrokenResourceError) if interrupted else nullcontext():
            await join(near, source, StandardOutput(stdout))
        await _end_input(typing, source)


async def test_a_cancelled_read_of_stdin_loses_nothing(pipes: tuple[int, int, int, int]) -> None:
    stdin, typing, _, _ = pipes
    async with open_standard_input(stdin) as source:
        with trio.move_on_after(0):
            await source.read()
        os.write(typing, b"kept")
        assert await source.read() == b"kept"
        os.close(typing)
        assert await source.read() == b""
        assert await source.read() == b""


async def test_descriptors_that_are_non_blocking_are_waited_for(pipes: tuple[int, int, int, int]) -> None:
    stdin, typing, reading, stdout = pipes
    os.set_blocking(stdin, False)
    os.set_blocking(stdout, False)
    data = os.urandom(300_000)
    async with open_standard_input(stdin) as source, trio.open_nursery() as nursery:
        nursery.start_soon(StandardOutput(stdout).write, data)
        assert await _written(reading, len(data)) == data
        with trio.move_on_after(0.01):
            await source.read()
        os.close(typing)
        assert await source.read() == b""


# -- running -----------------------------------------------------------------------------------------------------------


def test_a_signal_cancels_the_command_and_lets_it_clean_up() -> None:
    cleaned: list[str] = []

    async def command() -> ExitCode:
        try:
            signal.raise_signal(signal.SIGINT)
            await trio.sleep_forever()
        finally:
            cleaned.append("up")
        return ExitCode.OK

    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with pytest.raises(CommandFailed) as caught:
        run(command)
    assert caught.value.code == 130
    assert cleaned == ["up"]
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


def test_sigterm_is_the_proper_end_of_a_service() -> None:
    async def command() -> None:
        signal.raise_signal(signal.SIGTERM)
        await trio.sleep_forever()

    assert run(command, service=True) == 0
    with pytest.raises(CommandFailed):
        run(command)


def test_what_a_command_raises_leaves_bare() -> None:
    async def command() -> None:
        async with trio.open_nursery():
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(command)

    async def other() -> None:
        raise ValueError("bare")

    with pytest.raises(ValueError, match="bare"):
        run(other)


# -- what a user sees --------------------------------------------------------------------------------------------------


async def test_a_walk_in_plain_lines(capsys: pytest.CaptureFixture[str]) -> None:
    async with watching_walk(Settings(verbose=1)) as take:
        take(WalkEvent(kind="phase", at_ms=0.1, phase="direct"))
        take(WalkEvent(kind="combo_started", at_ms=1.0, combo=COMBO))
        take(WalkEvent(kind="combo_ended", at_ms=12.3, combo=COMBO))
        take(WalkEvent(kind="note", at_ms=13.0, text="a server is dead"))
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.splitlines() == [
        "      0.1 ms  phase direct",
        "     12.3 ms  direct_connect IPv4 NIC_BIND 192.0.2.7:4433: failed",
        "     13.0 ms  note: a server is dead",
    ]
    for settings in (Settings(), Settings(quiet=True)):
        async with watching_walk(settings) as take:
            take(WalkEvent(kind="note", at_ms=13.0, text="nobody hears"))
        assert capsys.readouterr().err == ""


def test_tables_have_aligned_columns_and_no_markup_of_strangers() -> None:
    row = format_combo(COMBO)
    assert row == ("direct", "direct_connect", "4", "NIC_BIND", "192.0.2.7:4433", "12.3", "failed")
    lines = plain_table(("a", "bb"), [("xxx", "y"), ("z", "[red]")]).splitlines()
    assert lines == ["a    bb", "---  -----", "xxx  y", "z    [red]"]
    from io import StringIO

    from rich.console import Console

    console = Console(file=StringIO(), width=120)
    console.print(rich_table(("a", "outcome"), [("[::1]:99", "[red]no[/]")]))
    assert isinstance(console.file, StringIO)
    assert "[::1]:99" in console.file.getvalue()
    assert "[red]no[/]" in console.file.getvalue()


def test_each_reason_is_said_once() -> None:
    refused = "[Errno 111] Error connecting to ('192.0.2.7', 4433): Connection refused"
    same = [msgspec.structs.replace(COMBO, error=refused, target=f"nic tcp 192.0.2.7:{port}") for port in (1, 2)]
    other = msgspec.structs.replace(COMBO, plugin="reverse_connect", error="x" * 1000)
    lines = format_errors(report(Verdict.UNREACHABLE, *same, other, msgspec.structs.replace(COMBO, error=None)))
    assert lines == ["2 × direct_connect: Connection refused", f"1 × reverse_connect: {'x' * 1000}"]


# -- a walk that failed ------------------------------------------------------------------------------------------------

LONG: Final = "the server said: " + "what servers say when they have much to say, " * 5


def failed_walk(verdict: Verdict = Verdict.NO_RELAY_CONFIGURED) -> ConnectReport:
    """A walk between two hosts with many addresses: 21 combos, long reasons, and many notes."""
    rows = [("direct", 12), ("punch", 4), ("spray", 5)]
    combos = [
        msgspec.structs.replace(
            COMBO,
            phase=phase,
            target=f"nic tcp 192.0.2.{number}:4433",
            outcome=Outcome.TIMED_OUT if number else Outcome.FAILED,
            error=None if number else f"{phase}: {LONG}",
            started_ms=1000.0 * place,
            ended_ms=1000.0 * place + 800,
        )
        for place, (phase, count) in enumerate(rows)
        for number in range(count)
    ]
    return msgspec.structs.replace(
        report(verdict, *combos),
        lacks=("no STUN server is configured here", f"no signal server is connected: {LONG}"),
        notes=tuple(f"{number}: {LONG}" for number in range(9)),
    )


@pytest.mark.parametrize("width", [80, 132])
def test_a_failed_walk_is_a_screen_on_a_terminal(width: int) -> None:
    lines = failure_lines(failed_walk(), width)
    error = f"error: {explain(ConnectError(failed_walk()))[1]}"
    assert 1 + len(lines) + math.ceil(len(error) / width) <= 24, "with `calling …` in front, and what ends it"
    assert max(map(len, lines)) <= width
    assert lines[0] == "no STUN server is configured here"
    phases = [line for line in lines if re.match("(direct|punch|spray),", line)]
    assert phases[0].startswith("direct, up to 0.8 s: 12 paths, 11 timed out, 1 failed (direct: the server said")
    assert phases[2].startswith("spray, up to 2.8 s: 5 paths, 4 timed out, 1 failed (")
    assert any("6 more" in line for line in lines)
    assert lines[-1] == "-v shows each path that was tried"


def test_a_failed_walk_is_whole_in_a_pipe() -> None:
    walk = failed_walk()
    lines = failure_lines(walk, None)
    assert lines[:2] == list(walk.lacks)
    assert [line for line in lines if LONG in line][1:4] == [line for line in lines if " paths, " in line]
    assert lines[-10:-1] == [f"note: {note}" for note in walk.notes]


def test_what_was_not_tried_is_said() -> None:
    """In the order of the phases, whatever the order of the plan."""
    waiting = msgspec.structs.replace(COMBO, outcome=Outcome.NOT_STARTED, error=None, started_ms=None, ended_ms=None)
    late, early = (msgspec.structs.replace(waiting, phase=phase) for phase in ("spray", "punch"))
    lines = failure_lines(report(Verdict.TIMED_OUT, late, late, early, COMBO), None)
    assert lines[:3] == [
        "direct, up to 0.0 s: 1 path failed (refused)", "punch: 1 path not started", "spray: 2 paths not started"
    ]  # fmt: skip


@pytest.mark.parametrize(
    "verdict", [Verdict.REFUSED, Verdict.NOT_ACCEPTING, Verdict.BUSY, Verdict.UNSUPPORTED, Verdict.PEER_OFFLINE]
)
def test_what_the_peer_says_itself_is_one_line(verdict: Verdict, capsys: pytest.CaptureFixture[str]) -> None:
    show_failure(Settings(), failed_walk(verdict))
    assert capsys.readouterr().err == ""


def test_all_of_a_failed_walk_is_behind_v(capsys: pytest.CaptureFixture[str]) -> None:
    walk = failed_walk(Verdict.PEER_OFFLINE)
    show_failure(Settings(verbose=1), walk)
    shown = capsys.readouterr().err.splitlines()
    assert shown[:2] == list(walk.lacks)
    assert sum("direct_connect" in line and "192.0.2." in line for line in shown) == 21
    assert sum(LONG in line for line in shown) == 1 + 3 + 9
    show_failure(Settings(quiet=True), walk)
    assert capsys.readouterr().err == ""


def netcheck_report() -> NetcheckReport:
    """A network in which everything is long: addresses, names, reasons, sentences."""
    interface = _interface("enp0s31f6", "2001:db8:1234:5678:9abc:def0:1234:5678")
    (path,) = plan_paths([interface], 6, interface.addresses[0].ip)
    path.profile = NatProfile()
    reason = "the name cannot be resolved: " + "Temporary failure in name resolution, " * 7 + "and so on"
    return NetcheckReport(
        online=False,
        complete=False,
        elapsed_ms=1.0,
        external=(),
        paths=(path_check(path),),
        servers=(
            ServerCheck(
                url="wss://a-name-that-is-long.relay.example:8443/rendezvous/of/ours",
                kind="websocket",
                transport="tcp",
                reachable=False,
                error=reason,
            ),
        ),
        clock=ClockCheck(),
        can=(),
        cannot=("no signal server answers: only direct dialling works; punching and relays need signals",),
        unknown=(),
    )


def test_netcheck_fits_a_terminal_and_cuts_no_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    report = netcheck_report()
    reason = report.servers[0].error
    assert reason is not None
    assert reason in _plain(report)
    for columns in (80, 132):
        monkeypatch.setenv("COLUMNS", str(columns))
        shown = _styled(report)
        assert max(map(len, shown.splitlines())) <= columns
        assert "…" not in shown
        for text in (report.cannot[0], "wss://a-name-that-is-long", "UDP: unknown"):
            assert "".join(text.split()) in "".join(shown.split())
        assert shown.count("Temporary") == 7


# -- listen ------------------------------------------------------------------------------------------------------------


class NodeInTheMaking:
    """The part of a node that `listen` needs to show its address; `takes`: seconds until the NATs are measured."""

    peer_id = PEER
    signal_servers = ()

    def __init__(self, takes: float) -> None:
        self._takes = takes
        self.address = "wg1of-before"

    async def wait_published(self) -> None:
        await trio.sleep(self._takes)
        self.address = "wg1whole"


@pytest.mark.parametrize(("takes", "printed", "after"), [(0.4, "wg1whole", 0.4), (60, "wg1of-before", 1.0)])
async def test_listen_prints_its_address_when_it_is_whole_or_after_a_second(
    takes: float, printed: str, after: float, autojump_clock: trio.testing.MockClock, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = Settings(quiet=True)
    listening = _Listening(settings, guests=Guests(settings), echo=True, keep_open=False)
    started = trio.current_time()
    await listening._announce(cast(Node, NodeInTheMaking(takes)), NodeConfig())
    assert trio.current_time() - started == pytest.approx(after)
    assert capsys.readouterr().err == f"{printed}\n"


# -- serve -------------------------------------------------------------------------------------------------------------


def _interface(name: str, *addresses: str, virtual: bool = False) -> Interface:
    return Interface(
        name=name,
        index=1,
        addresses=tuple(InterfaceAddress(ip=ip_address(text), prefix=24) for text in addresses),
        is_loopback=name == "lo",
        is_virtual=virtual,
    )


def test_a_wildcard_becomes_the_addresses_of_the_machine() -> None:
    interfaces = (
        _interface("lo", "127.0.0.1", "::1"),
        _interface("eth0", "10.0.0.5", "2001:db8::5", "fe80::1"),
        _interface("eth1", "203.0.113.5"),
        _interface("docker0", "172.17.0.1", virtual=True),
    )
    both = ["ws://0.0.0.0:8765", "ws://[::]:8765"]
    assert reachable_urls(both, interfaces) == [
        "ws://203.0.113.5:8765",
        "ws://[2001:db8::5]:8765",
        "ws://10.0.0.5:8765",
    ]
    assert reachable_urls(both, interfaces[:1]) == ["ws://127.0.0.1:8765", "ws://[::1]:8765"]
    assert reachable_urls(["wss://10.0.0.5:1"], interfaces) == ["wss://10.0.0.5:1"]
    assert reachable_urls(["wss://name.example:1"], interfaces) == ["wss://name.example:1"]
    assert reachable_urls(["stun:0.0.0.0:3478", "stun:[::]:3478"], interfaces) == [
        "stun:203.0.113.5:3478",
        "stun:[2001:db8::5]:3478",
        "stun:10.0.0.5:3478",
    ]


def test_the_configuration_to_paste_says_when_it_is_for_one_network_only() -> None:
    text = configuration({"websocket": ["ws://10.0.0.5:8765"], "stun": ["stun:10.0.0.5:3478"]})
    assert "no public address" in text
    servers = NodeConfig.from_toml(text, base_dir="/").servers
    assert [str(url) for url in (*servers.websocket, *servers.stun)] == ["ws://10.0.0.5:8765", "stun:10.0.0.5"]
    public = {"websocket": ["ws://10.0.0.5:8765", "ws://[2001:db8::5]:8765"]}
    assert "no public address" not in configuration(public)


async def test_the_time_server_takes_the_first_port_that_it_can_have(capfd: pytest.CaptureFixture[str]) -> None:
    async with open_ntp() as one, open_ntp() as other, trio.open_nursery() as nursery:
        server = await start_ntp(Settings(), nursery, "127.0.0.1", (one.port, 0))
        assert server is not None
        assert server.url.startswith("ntp://127.0.0.1:")
        assert capfd.readouterr().err == ""
        assert await start_ntp(Settings(), nursery, "127.0.0.1", (one.port, other.port)) is None
        assert capfd.readouterr().err == (
            f"no NTP server: cannot listen on 127.0.0.1 UDP port {other.port}: Address already in use\n"
        )
        assert await start_ntp(Settings(), nursery, "127.0.0.1", ()) is None
        assert capfd.readouterr().err == ""
        with pytest.raises(UsageProblem, match="--no-ntp runs no NTP server"):
            await start_ntp(Settings(), nursery, "127.0.0.1", (one.port,))
        nursery.cancel_scope.cancel()
