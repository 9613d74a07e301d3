"""Servers that failed are passed over for a while, and then tried together with the others."""

from __future__ import annotations

from warpgate_trio.standing import MAX_SERVERS, PASSED_OVER, PASSED_OVER_MAX, Standing, Standings

NOW = 1000.0


def test_what_has_not_failed_is_good() -> None:
    assert Standings[str]().of("a", NOW) is Standing.GOOD


def test_what_failed_goes_last_for_a_while_and_then_on_trial() -> None:
    standings = Standings[str]()
    standings.failed("a", NOW)
    assert standings.of("a", NOW + PASSED_OVER - 0.1) is Standing.FAILED
    assert standings.sorted(["a", "b"], NOW) == ["b", "a"]
    assert standings.of("a", NOW + PASSED_OVER) is Standing.ON_TRIAL
    assert standings.sorted(["a", "b"], NOW + PASSED_OVER) == ["a", "b"]


def test_each_further_failure_doubles_it_up_to_a_bound() -> None:
    standings, now, seconds = Standings[str](), NOW, PASSED_OVER
    for _ in range(10):
        standings.failed("a", now)
        standings.failed("a", now + seconds / 2)  # several calls fail at the same time
        assert standings.of("a", now + seconds - 0.1) is Standing.FAILED
        assert standings.of("a", now + seconds) is Standing.ON_TRIAL
        now, seconds = now + seconds, min(2 * seconds, PASSED_OVER_MAX)
    assert seconds == PASSED_OVER_MAX


def test_what_has_worked_is_good_and_begins_anew() -> None:
    standings = Standings[str]()
    for at in (NOW, NOW + 100):
        standings.failed("a", at)
    standings.worked("a")
    assert standings.of("a", NOW + 101) is Standing.GOOD
    standings.failed("a", NOW + 101)
    assert standings.of("a", NOW + 101 + PASSED_OVER) is Standing.ON_TRIAL


def test_what_is_remembered_is_bounded() -> None:
    standings = Standings[int]()
    for server in range(MAX_SERVERS + 1):
        standings.failed(server, NOW)
    assert [standings.of(server, NOW) for server in (0, 1)] == [Standing.GOOD, Standing.FAILED]
