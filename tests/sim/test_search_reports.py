"""Reports on the searches behind a Pipe: the path to which it changed over, or why there is no better one."""

from __future__ import annotations

import re
from typing import Final

import pytest
import trio

from tests.end_to_end.processes import checked_event
from tests.sim.test_better_paths import talking
from tests.sim.test_relay_first import CONES, RTT, SYMMETRIC, better_within, called
from tests.sim.test_ws_relay import OPEN, server
from warpgate_trio.cli.connect import _Call
from warpgate_trio.cli.options import Settings
from warpgate_trio.cli.path_events import PathTeller
from warpgate_trio.cli.ping import _print
from warpgate_trio.cli.stdio import StandardOutput
from warpgate_trio.errors import ConnectError
from warpgate_trio.node.upgrade_schedule import HEAD_START
from warpgate_trio.report import Outcome, Verdict, WalkEvent
from warpgate_trio.sim import simulate
from warpgate_trio.testing import simulated_hosts
from warpgate_trio.testing.walks import NTP, STUN, STUN2, open_nodes
from warpgate_trio.testing.worlds import PeerPair

pytestmark = pytest.mark.slow("whole nodes with TLS, in a world with servers of every kind")

SEARCHED_WITHIN: Final = 20.0
"""Seconds in which a search by every phase except relay has ended."""


def test_a_pipe_by_a_relay_tells_of_the_relay_and_of_the_upgrade() -> None:
    events: list[WalkEvent] = []

    async def main() -> None:
        async with called(CONES, relay_first=True, on_event=events.append) as (ours, theirs, taken):
            first = ours.report
            assert first is not None
            assert first.winner is not None
            assert (first.winner.plugin, first.began_ms, ours.search_report) == ("ws_relay", 0.0, None)
            assert await better_within(ours, SEARCHED_WITHIN) is not None
            await trio.sleep(2 * RTT)
            assert ours.report is first
            search = ours.search_report
            assert search is not None
            assert search.winner is not None
            assert (search.verdict, search.winner.phase) == (Verdict.CONNECTED, "punch")
            assert search.began_ms == pytest.approx(1000 * (taken + HEAD_START), abs=1)
            path, told = (event for event in events if event.kind in ("path", "search"))
            assert (path.kind, told.kind, told.report) == ("path", "search", search)
            assert search.winner.ended_ms is not None
            assert search.began_ms + search.winner.ended_ms == pytest.approx(path.at_ms, abs=1)
            assert told.at_ms == pytest.approx(path.at_ms, abs=1)
            assert theirs.search_report is None

    simulate(main, seed=0)


def test_a_pipe_that_stays_on_a_relay_tells_why_there_is_nothing_better() -> None:
    events: list[WalkEvent] = []

    async def main() -> None:
        async with called(SYMMETRIC, relay_first=True, on_event=events.append) as (ours, _theirs, _taken):
            assert await better_within(ours, SEARCHED_WITHIN) is None
            search = ours.search_report
            assert search is not None
            assert (search.verdict, search.winner) == (Verdict.NO_BETTER_PATH, None)
            (punch,) = (row for row in search.combos if row.phase == "punch")
            assert punch.outcome is Outcome.TIMED_OUT
            sprays = [row for row in search.combos if row.phase == "spray"]
            assert {row.plugin for row in sprays} == {"udp_punch", "random_probe", "tcp_punch"}
            assert all(row.outcome is Outcome.HOPELESS and row.error for row in sprays if row.plugin != "tcp_punch")
            assert [event.report for event in events if event.kind == "search"] == [search]
            assert "path" not in {event.kind for event in events}

    simulate(main, seed=0)


def test_where_nothing_is_worth_a_try_that_is_told_too() -> None:
    async def main() -> None:
        phases = ["spray", "relay"]
        async with called(SYMMETRIC, relay_first=True, phases=phases) as (ours, _theirs, _taken):
            await trio.sleep(1.0)
            search = ours.search_report
            assert search is not None
            assert search.verdict is Verdict.NO_BETTER_PATH
            assert {(row.phase, row.outcome) for row in search.combos} == {("spray", Outcome.HOPELESS)}

    simulate(main, seed=0)


def test_where_the_call_allows_nothing_better_nothing_is_searched() -> None:
    async def main() -> None:
        async with called(SYMMETRIC, relay_first=True, phases=["relay"]) as (ours, _theirs, _taken):
            assert await better_within(ours, SEARCHED_WITHIN) is None
            assert ours.search_report is None

    simulate(main, seed=0)


def test_a_search_that_was_asked_for_is_reported_too() -> None:
    async def main() -> None:
        async with talking() as both:
            with pytest.raises(ConnectError) as raised:
                await both.ours.migrate(timeout=5.0)
            report = both.ours.search_report
            assert report is not None
            assert report.began_ms > 0.0
            assert (report.combos, report.verdict) == (raised.value.report.combos, Verdict.NO_BETTER_PATH)
            both.closed.open()
            await both.ours.migrate()
            report = both.ours.search_report
            assert report is not None
            assert report.winner is not None
            assert report.winner.phase == "direct"

    simulate(main, seed=0)


def test_a_search_that_the_side_that_was_called_made_is_its_own() -> None:
    async def main() -> None:
        async with talking() as both:
            await trio.sleep(1.0)
            path = await both.theirs.migrate(("punch",))
            report = both.theirs.search_report
            assert report is not None
            assert report.winner is not None
            assert report.winner.plugin == path.plugin
            assert report.began_ms == pytest.approx(1000, abs=100)
            assert both.ours.search_report is None

    simulate(main, seed=0)


# -- on the command line -----------------------------------------------------------------------------------------------


def told_of(settings: Settings, pair: PeerPair, capsys: pytest.CaptureFixture[str], *, searches: int = 1) -> list[str]:
    """The lines of `connect` about a relayed Pipe in its first 20 s, in which it makes `searches` searches."""

    async def main() -> None:
        teller: PathTeller | None = None

        def on_event(event: WalkEvent) -> None:
            assert teller is not None
            teller.take(event)

        async with pair.build(time_limit=1e6) as net, simulated_hosts():
            async with open_nodes(net, servers=(server(OPEN), STUN, STUN2, NTP)) as nodes:
                teller = PathTeller(settings, StandardOutput(), called_at=trio.current_time())
                pipe = await nodes.alice.auto_connect(nodes.bob.address, relay_first=True, on_event=on_event)
                async with pipe, teller.telling(pipe):
                    await trio.sleep(SEARCHED_WITHIN)
                    for _ in range(searches - 1):
                        with pytest.raises(ConnectError):
                            await pipe.migrate()

    simulate(main, seed=0)
    return capsys.readouterr().err.splitlines()


def test_connect_tells_of_the_upgrade_in_words(capsys: pytest.CaptureFixture[str]) -> None:
    (line,) = told_of(Settings(), CONES, capsys)
    assert re.fullmatch(
        r"goes on by tcp_punch, IPv4 EXT_BIND, at 11\.0\.0\.7 port \d+, 4\d\d\.\d ms after the call", line
    )


def test_connect_tells_why_it_stays_on_a_relay(capsys: pytest.CaptureFixture[str]) -> None:
    first, *lines = told_of(Settings(), SYMMETRIC, capsys)
    assert re.fullmatch(r"no better path was found, \d+\.\d ms after the call; the Pipe stays on ws_relay", first)
    assert [line.partition(",")[0] for line in lines[:2]] == ["  punch", "  spray"]
    assert "both NATs are symmetric" in lines[1]


def test_and_tells_it_once(capsys: pytest.CaptureFixture[str]) -> None:
    lines = told_of(Settings(), SYMMETRIC, capsys, searches=3)
    assert sum(line.startswith("no better path was found") for line in lines) == 1
    events = map(checked_event, told_of(Settings(path_events=True), SYMMETRIC, capsys, searches=3))
    assert [event["event"] for event in events] == ["search"] * 3


def test_with_v_it_tells_of_each_path(capsys: pytest.CaptureFixture[str]) -> None:
    _first, *lines = told_of(Settings(verbose=1), SYMMETRIC, capsys)
    assert {"tcp_punch", "udp_punch", "random_probe"} <= {line.split()[1] for line in lines if line.split()[1:]}


def test_path_events_tell_of_searches_too(capsys: pytest.CaptureFixture[str]) -> None:
    events = [checked_event(line) for line in told_of(Settings(path_events=True), CONES, capsys)]
    search = next(event for event in events if event["event"] == "search")
    path = next(event for event in events if event["event"] == "path")
    assert [event["event"] for event in events].count("search") == 1
    assert (path["old"]["plugin"], path["new"]["plugin"], path["cause"]) == ("ws_relay", "tcp_punch", "better")
    assert [row["plugin"] for row in search["report"]["combos"] if row["outcome"] == "won"] == ["tcp_punch"]
    assert search["report"]["began_ms"] == pytest.approx(100 + 1000 * HEAD_START, abs=1)


def test_and_of_searches_that_found_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    (search,) = (checked_event(line) for line in told_of(Settings(path_events=True), SYMMETRIC, capsys))
    assert (search["event"], search["report"]["verdict"]) == ("search", "no_better_path")


def test_nothing_is_told_where_nothing_is_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    assert told_of(Settings(quiet=True), CONES, capsys) == []


def test_screens_name_the_path_of_their_moment(stdout: bytearray, capsys: pytest.CaptureFixture[str]) -> None:
    """`ping` shows the path of each round trip; `connect --json` shows the last one, and how the Pipe was made."""

    async def main() -> None:
        call = _Call(
            Settings(json=True),
            save=None,
            peer="",
            echo_test=None,
            plugin=None,
            af=None,
            route=None,
            phases=None,
            timeout=None,
        )
        async with called(CONES, relay_first=True) as (ours, _theirs, _taken):
            for number in (1, 2):
                await _print(Settings(), ours, number, 1000 * await ours.ping())
                await _print(Settings(json=True), ours, number, 1.0)
                assert number == 2 or await better_within(ours, SEARCHED_WITHIN) is not None
                await trio.sleep(1.0)  # the peer has changed over by then
            await call._print_connected(ours, 100.0)

    simulate(main, seed=0)
    first, second = capsys.readouterr().err.splitlines()
    assert " by ws_relay, IPv4 EXT_BIND, at 11.0.0.1 port 443: 100.00 ms" in first
    assert re.search(r" by tcp_punch, IPv4 EXT_BIND, at 11\.0\.0\.7 port \d+: 50\.00 ms", second)
    *pongs, connected = map(checked_event, bytes(stdout).splitlines())
    assert [event["plugin"] for event in pongs] == ["ws_relay", "tcp_punch"]
    assert connected["plugin"] == "tcp_punch"
    won = [
        row["plugin"]
        for report in (connected["report"], connected["search"])
        for row in report["combos"]
        if row["outcome"] == "won"
    ]
    assert won == ["ws_relay", "tcp_punch"]
