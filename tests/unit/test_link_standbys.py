"""Which relays stand by; without I/O."""

from __future__ import annotations

from warpgate_trio.link.lane import LaneProtocol
from warpgate_trio.link.lanes import Lanes
from warpgate_trio.link.life import REST, LifeJudge
from warpgate_trio.link.standbys import Standbys


def test_the_oldest_gives_way() -> None:
    closed: list[str] = []
    standbys = Standbys(most=2)
    assert standbys.keep("a", lambda: closed.append("a"))
    assert standbys.keep("b", lambda: closed.append("b"))
    assert standbys.keep("a", lambda: closed.append("a, kept twice"))
    assert closed == []
    assert standbys.keep("c", lambda: closed.append("c"))
    assert closed == ["a"]
    standbys.discard("b")
    standbys.discard("never kept")
    assert standbys.keep("d", lambda: closed.append("d"))
    assert closed == ["a"]
    assert len(standbys) == 2


def test_where_none_may_stand_by_none_does() -> None:
    assert not Standbys(most=0).keep("a", lambda: 1 / 0)


def test_a_path_that_stands_by_is_asked_less_often_until_it_is_spoken_on() -> None:
    judge = LifeJudge(100.0, interval=60.0)
    assert judge.deadline == 160.0
    judge.rests = True
    assert judge.deadline == 100.0 + REST * 60.0
    lane = LaneProtocol(dialler=True, initiator=True, now=100.0, idle_interval=60.0)
    lane.life.rests = True
    Lanes(lane, initiator=True).promote(lane)
    assert not lane.life.rests
