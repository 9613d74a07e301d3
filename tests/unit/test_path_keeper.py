"""When and how the keeper searches for a path, and what ends a search; Links have no carriers, walks find nothing."""

from __future__ import annotations

import math
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from functools import partial
from itertools import pairwise
from random import Random
from types import SimpleNamespace
from typing import Any, ClassVar, Final, cast, final

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from tests.identities import BOB
from warpgate_trio.address import PeerAddress
from warpgate_trio.combos import Combo, Likelihood, RouteType
from warpgate_trio.config import Budgets
from warpgate_trio.errors import AttemptFailed, ConnectError
from warpgate_trio.link import Link, PathCause, PathChange, PathInfo
from warpgate_trio.link.attaching import LinkSecret
from warpgate_trio.link.stream import Incoming, Outgoing
from warpgate_trio.node import path_keeper
from warpgate_trio.node.path_keeper import (
    ASK_INTERVAL,
    ASK_PATIENCE,
    ASK_TRIPS,
    HINT_INTERVAL,
    HINT_LASTS,
    PAUSES,
    RESPONDER_WAITS,
    STEADY,
    PathKeeper,
)
from warpgate_trio.node.upgrade_schedule import HEAD_START, JITTER, POSTPONED, SITS_OUT, SPRAYS
from warpgate_trio.node.upgrade_schedule import PAUSES as UPGRADE_PAUSES
from warpgate_trio.report import Verdict
from warpgate_trio.walk.recorder import Recorder
from warpgate_trio.walk.session import Reach

PEER: Final = cast("PeerAddress", SimpleNamespace(peer_id=BOB.peer_id))
PUNCHED: Final = PathInfo(
    phase="punch",
    plugin="udp_punch",
    af=4,
    route_type="EXT_BIND",
    carrier="quic",
    local=("192.0.2.1", 1),
    remote=("198.51.100.1", 2),
)
CALLED: Final = Reach(plugins=("direct_connect", "udp_punch"), phases=("direct", "punch"), peer=PEER, signalled=True)
"""The ways in which the caller's Link may be searched for."""
LONG: Final = 2 * sum(PAUSES)
MANY: Final = 100
BETTER: Final = Combo(
    phase="direct",
    plugin="direct_connect",
    af=4,
    route_type=RouteType.EXT_BIND,
    target=None,
    source=None,
    likelihood=Likelihood.LIKELY,
    delay=0.0,
    why="",
)
"""A combo whose path would be better than PUNCHED."""


@final
class FakeWalk:
    """A search that asks for the peer's address, takes `takes` seconds and finds nothing."""

    begun: ClassVar[list[FakeWalk]]
    takes: ClassVar[float]

    def __init__(
        self,
        _home: object,
        peer: PeerAddress,
        *,
        plugins: Sequence[str],
        phases: Sequence[str],
        refresh: Callable[[PeerAddress], Awaitable[PeerAddress]],
        preferred: bool = False,
        relay_first: bool = False,
        **_: object,
    ) -> None:
        self.plugins, self.phases, self.preferred = tuple(plugins), tuple(phases), preferred
        self.relay_first: Final = relay_first
        self.committing: Final = trio.Lock()
        self.at = self.ended_at = math.nan
        self._peer, self._refresh = peer, refresh

    async def search(self, *, deadline: float) -> None:
        self.at = trio.current_time()
        self.begun.append(self)
        assert len(self.begun) < MANY, "there is no pause"
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._ask)
                with trio.move_on_at(deadline):
                    await trio.sleep(self.takes)
                nursery.cancel_scope.cancel()
        finally:
            self.ended_at = trio.current_time()
        recorder = Recorder(peer=BOB.peer_id, now=0.0)
        raise ConnectError(recorder.finish(Verdict.UNREACHABLE, 0.0, session_id=b""))

    async def _ask(self) -> None:
        for _ in range(3):  # once in each phase, like a walk
            with suppress(AttemptFailed, trio.TooSlowError):
                await self._refresh(self._peer)


@final
class Kept:
    """A Link with its keeper, and a record of what the keeper does."""

    def __init__(self, *, initiator: bool, upgrade: bool, path: PathInfo) -> None:
        carrier = SimpleNamespace(began=0.0, dialler=True, idle_interval=60.0, name="quic", limit_unsent=lambda _: None)
        self.link: Final = Link(cast("Any", carrier), peer_key=bytes(32), session_id=bytes(16), initiator=initiator)
        self.link.path = path
        protocol = self.link.protocol
        protocol._opened, protocol.resume_timeout, protocol.life.answered = True, 120.0, 1
        protocol._secret = LinkSecret(bytes(16), bytes(16), bytes(16), initiator=initiator)
        self.server_is_back: Final = trio.lowlevel.ParkingLot()
        self.has_signals = self.peer_answers = True
        self.answer_takes = 0.0
        self.plan: list[Combo] = []
        self.peer: PeerAddress | None = PEER
        self.stream: Final = Outgoing()
        self.link.protocol.outgoing = self.stream
        self.asked: list[float] = []
        self.distrusted: list[float] = []
        self.view: Final = SimpleNamespace(
            host=SimpleNamespace(random=Random(0)),
            budgets=Budgets(),
            known_address=lambda _: self.peer,
            signal_rtt=0.05,
        )
        home = SimpleNamespace(
            view=self.view,
            has_signals=lambda: self.has_signals,
            wait_signals=trio.lowlevel.checkpoint,
            plan=lambda *_: self.plan,
        )
        self.keeper: Final = PathKeeper(
            cast("Any", home),
            plugins=lambda phases: [f"{phase}_plugin" for phase in phases],
            refresh=self._refresh,
            distrust=lambda: self.distrusted.append(trio.current_time()),
            wait_opened=self.server_is_back.park,
            upgrade=upgrade,
        )

    async def _refresh(self, peer: PeerAddress) -> PeerAddress:
        self.asked.append(trio.current_time())
        assert len(self.asked) < MANY, "there is no pause"
        await trio.sleep(self.answer_takes)
        if not self.peer_answers:
            raise AttemptFailed("nobody is at home")
        return peer

    def lose(self) -> None:
        """The Link loses its path."""
        self.link.protocol.lanes.active = None
        self.link.path_log.told.unpark_all()

    def find(self) -> None:
        """The Link has a path again."""
        self.link.protocol.lanes.active = self.link._first.protocol
        self.link.path_log.told.unpark_all()

    def change(self, cause: PathCause) -> None:
        """The Link has moved to another path."""
        old, self.link.path = self.link.path, replace(PUNCHED)
        change = PathChange(at=trio.current_time(), old=old, new=self.link.path, cause=cause)
        self.link.path_log._note(change)
        self.link.path_log.told.unpark_all()

    def say(self) -> None:
        """Data is sent on a Pipe."""
        self.stream.put_frame(b"x")

    def hint(self) -> None:
        """A hint that this host may have moved or slept."""
        self.link._note_hint()

    @property
    def searches(self) -> list[float]:
        """The times at which searches began."""
        return [walk.at for walk in FakeWalk.begun]


@pytest.fixture(autouse=True)
def walks(monkeypatch: pytest.MonkeyPatch) -> None:
    FakeWalk.begun, FakeWalk.takes = [], 0.0
    monkeypatch.setattr(path_keeper, "Walk", FakeWalk)


@asynccontextmanager
async def kept(
    *, initiator: bool = True, upgrade: bool = False, path: PathInfo = PUNCHED, reach: Reach = CALLED
) -> AsyncGenerator[Kept]:
    """A Link on a path, and its keeper, running."""
    one = Kept(initiator=initiator, upgrade=upgrade, path=path)
    async with trio.open_nursery() as nursery:
        one.plan = [BETTER]
        nursery.start_soon(one.keeper.keep, one.link, reach if initiator else None)
        await wait_all_tasks_blocked()
        yield one
        nursery.cancel_scope.cancel()


def after(began: float, pauses: Sequence[float]) -> list[float]:
    """The times at which these pauses end, one after the other."""
    times: list[float] = []
    for pause in pauses:
        began += pause
        times.append(began)
    return times


# -- when --------------------------------------------------------------------------------------------------------------


async def test_who_has_called_searches_at_once_and_then_ever_more_rarely(autojump_clock: MockClock) -> None:
    async with kept() as one:
        await trio.sleep(1.0)
        one.lose()
        await trio.sleep(LONG)
        assert one.searches == after(1.0, [*PAUSES, *[PAUSES[-1]] * 3])[: len(one.searches)]
        assert len(one.searches) > len(PAUSES)
        assert one.keeper.searches == len(one.searches)
        assert one.distrusted == [1.0], "the servers are asked when the path is lost"


async def test_who_was_called_begins_a_second_later(autojump_clock: MockClock) -> None:
    async with kept(initiator=False) as one:
        await trio.sleep(1.0)
        one.lose()
        await trio.sleep(10.0)
        assert one.searches == after(1.0 + RESPONDER_WAITS, PAUSES[:4])


@pytest.mark.parametrize(("ago", "waits"), [(HINT_LASTS - 0.01, 0.0), (HINT_LASTS + 0.01, RESPONDER_WAITS)])
async def test_who_was_called_begins_at_once_where_it_knows_what_has_happened(
    autojump_clock: MockClock, ago: float, waits: float
) -> None:
    async with kept(initiator=False) as one:
        one.hint()
        await trio.sleep(ago)
        one.lose()
        await trio.sleep(RESPONDER_WAITS + 0.1)
        assert one.searches[0] == pytest.approx(ago + waits)


async def test_the_pauses_start_afresh_once_a_path_was_well_for_a_while(autojump_clock: MockClock) -> None:
    async with kept() as one:
        for well, pause in ((0.0, PAUSES[0]), (STEADY - 0.1, PAUSES[1]), (STEADY, PAUSES[0])):
            await trio.sleep(well)
            FakeWalk.begun.clear()
            lost_at = trio.current_time()
            one.lose()
            await trio.sleep(pause + 0.1)
            assert one.searches == pytest.approx([lost_at + pause]), well
            one.find()


async def test_a_path_that_comes_and_goes_is_searched_for_ever_more_rarely(autojump_clock: MockClock) -> None:
    async with kept() as one:
        for pause in (*PAUSES, PAUSES[-1]):
            lost_at = trio.current_time()
            one.lose()
            await trio.sleep(pause + 0.1)
            assert one.searches[-1] == pytest.approx(lost_at + pause)
            one.find()
            await trio.sleep(0.1)
        assert len(one.searches) == len(PAUSES) + 1


async def test_however_often_the_path_has_changed_a_lost_one_is_searched_for_at_once(autojump_clock: MockClock) -> None:
    """The pauses between searches for a better path do not delay a search for any path."""
    async with kept(upgrade=True) as one:
        for _ in range(6):
            one.change(PathCause.BETTER)
            one.hint()
            await trio.sleep(1.0)
        assert one.searches == []
        lost_at = trio.current_time()
        one.lose()
        await trio.sleep(0.1)
        one.find()
        await trio.sleep(STEADY)
        one.lose()
        await trio.sleep(0.1)
        assert one.searches == [lost_at, trio.current_time() - 0.1]


async def test_however_often_the_path_was_lost_a_better_one_is_searched_for_soon(autojump_clock: MockClock) -> None:
    """Changes that a lost path has forced do not delay the way back; upgrades do."""
    async with kept(upgrade=True) as one:
        for cause in [*[PathCause.FOUND, PathCause.FOLLOWED] * 3, PathCause.FORGIVEN]:
            one.change(cause)
            await trio.sleep(1.0)
        one.say()
        await trio.sleep((1 + JITTER) * UPGRADE_PAUSES[0])
        assert len(one.searches) == 1
        assert one.searches[0] <= 5.0 + (1 + JITTER) * UPGRADE_PAUSES[0], "from the last one that was another path"


@pytest.mark.parametrize("hurried", [True, False])
@pytest.mark.parametrize("has_words", [True, False])
async def test_a_link_without_pipes_is_searched_for_where_it_has_something_left_to_say_and_the_time(
    autojump_clock: MockClock, has_words: bool, hurried: bool
) -> None:
    async with kept() as one:
        one.link._ending, one.link._hurried = True, hurried
        if has_words:
            one.link.protocol.close()
        one.lose()
        await trio.sleep(0.1)
        assert one.searches == [0.0] * (has_words and not hurried)


# -- what ends a search ------------------------------------------------------------------------------------------------


async def test_a_search_ends_when_the_path_is_well_and_no_other_one_follows(autojump_clock: MockClock) -> None:
    FakeWalk.takes = 5.0
    async with kept() as one:
        one.lose()
        await trio.sleep(2.0)
        one.find()
        await trio.sleep(LONG)
        (search,) = FakeWalk.begun
        assert search.ended_at == 2.0


async def test_a_path_that_was_offered_is_waited_for(autojump_clock: MockClock) -> None:
    FakeWalk.takes = 5.0
    async with kept() as one:
        one.lose()
        await trio.sleep(1.0)
        (search,) = FakeWalk.begun
        async with search.committing:
            one.find()
            await trio.sleep(1.0)
            assert math.isnan(search.ended_at)
        await wait_all_tasks_blocked()
        assert search.ended_at == 2.0


@pytest.mark.parametrize(
    ("hinted", "again"), [(0.1, HINT_INTERVAL), (HINT_INTERVAL, HINT_INTERVAL), (3.0, 3.0)], ids=str
)
async def test_what_has_happened_on_this_side_has_another_search_begin_at_once(
    autojump_clock: MockClock, hinted: float, again: float
) -> None:
    FakeWalk.takes = 5.0
    async with kept() as one:
        one.lose()
        await trio.sleep(hinted)
        one.hint()
        await trio.sleep(1.0)
        first, second = FakeWalk.begun
        assert first.ended_at == second.at == pytest.approx(again)


async def test_a_peer_of_which_nothing_is_known_is_searched_for_when_something_is(autojump_clock: MockClock) -> None:
    async with kept(initiator=False) as one:
        one.peer = None
        one.lose()
        await trio.sleep(20.0)
        assert one.searches == []
        one.peer = PEER
        one.hint()
        await wait_all_tasks_blocked()
        assert one.searches == [20.0]


async def test_what_has_happened_on_this_side_ends_a_pause(autojump_clock: MockClock) -> None:
    async with kept() as one:
        one.lose()
        await trio.sleep(20.0)
        before = one.searches
        one.hint()
        await wait_all_tasks_blocked()
        assert one.searches == [*before, 20.0]


async def test_a_server_that_is_back_ends_a_pause(autojump_clock: MockClock) -> None:
    async with kept() as one:
        one.lose()
        await trio.sleep(20.0)
        before = one.searches
        one.server_is_back.unpark_all()
        await wait_all_tasks_blocked()
        assert one.searches == [*before, 20.0]


@pytest.mark.parametrize("has_signals", [True, False])
async def test_a_server_that_is_back_has_another_search_begin_where_one_goes_by_a_dead_connection(
    autojump_clock: MockClock, has_signals: bool
) -> None:
    """A search that began without any connection waits for the server by itself."""
    FakeWalk.takes = 5.0
    async with kept() as one:
        one.has_signals = has_signals
        one.lose()
        await trio.sleep(1.0)
        one.server_is_back.unpark_all()
        await trio.sleep(0.1)
        assert one.searches == [0.0, 1.0][: 1 + has_signals]


async def test_a_peer_that_does_not_answer_is_searched_for_again_when_it_does(autojump_clock: MockClock) -> None:
    FakeWalk.takes = 20.0
    async with kept() as one:
        one.peer_answers = False
        one.lose()
        await trio.sleep(5 * ASK_INTERVAL)
        assert one.asked == [0.0, 0.0, *after(0.0, [0.0, ASK_INTERVAL, 2 * ASK_INTERVAL])]
        one.peer_answers = True
        await trio.sleep(10 * ASK_INTERVAL)
        assert one.searches == [0.0, 7 * ASK_INTERVAL]


@pytest.mark.parametrize("rtt", [None, 0.05, 2.0])
async def test_a_question_where_a_peer_is_has_some_round_trips(autojump_clock: MockClock, rtt: float | None) -> None:
    async with kept() as one:
        one.view.signal_rtt, one.answer_takes = rtt, math.inf
        with pytest.raises(trio.TooSlowError):
            await one.keeper.ask(PEER)
        assert trio.current_time() == max(ASK_PATIENCE, ASK_TRIPS * (rtt or 0.0))


@pytest.mark.parametrize("how", ["no pipe is left", "it broke"])
async def test_nothing_is_waited_for_on_a_link_that_is_over(autojump_clock: MockClock, how: str) -> None:
    async with kept() as one:
        if how == "it broke":
            one.link.protocol.break_all(ValueError("it broke"))
        else:
            one.link._ending = True
        for wait in (one.link.wait_path_event, partial(one.link.wait_path, well=False)):
            with trio.fail_after(1.0), pytest.raises(trio.BrokenResourceError, match="the link is over"):
                await wait()


# -- in which ways -----------------------------------------------------------------------------------------------------


async def test_who_has_called_searches_by_what_the_call_allows(autojump_clock: MockClock) -> None:
    async with kept() as one:
        one.link.path = replace(PUNCHED, phase="relay")
        one.lose()
        await trio.sleep(0.1)
        assert [(walk.plugins, walk.phases) for walk in FakeWalk.begun] == [(CALLED.plugins, CALLED.phases)]


@pytest.mark.parametrize("lost", ["direct", "punch", "spray", "relay"])
async def test_who_was_called_searches_by_a_relay_only_where_the_lost_path_was_one(
    autojump_clock: MockClock, lost: str
) -> None:
    """The callee does not know what the call allows, and somebody has to pay for a relay."""
    async with kept(initiator=False) as one:
        one.link.path = replace(PUNCHED, phase=lost)
        one.lose()
        await trio.sleep(RESPONDER_WAITS + 0.1)
        phases = ("direct", "punch", "spray", *["relay"] * (lost == "relay"))
        plugins = tuple(f"{phase}_plugin" for phase in phases)
        assert [(walk.plugins, walk.phases) for walk in FakeWalk.begun] == [(plugins, phases)]


@pytest.mark.parametrize("relay_first", [True, False])
@pytest.mark.parametrize("lost", ["punch", "relay"])
async def test_relays_are_tried_at_once_where_the_lost_path_was_one_or_the_call_took_one_first(
    autojump_clock: MockClock, lost: str, relay_first: bool
) -> None:
    async with kept(path=replace(PUNCHED, phase=lost), reach=replace(CALLED, relay_first=relay_first)) as one:
        one.lose()
        await trio.sleep(0.1)
        assert [walk.relay_first for walk in FakeWalk.begun] == [relay_first or lost == "relay"]


# -- something better --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("upgrade", [True, False])
@pytest.mark.parametrize("initiator", [True, False])
async def test_who_has_called_looks_for_a_better_path_where_that_is_wanted(
    autojump_clock: MockClock, initiator: bool, upgrade: bool
) -> None:
    async with kept(initiator=initiator, upgrade=upgrade) as one:
        one.say()
        await trio.sleep(UPGRADE_PAUSES[0] * (1 + JITTER) + 0.1)
        assert [walk.preferred for walk in FakeWalk.begun] == [True] * (initiator and upgrade)
        one.hint()
        await wait_all_tasks_blocked()
        assert len(FakeWalk.begun) == 2 * (initiator and upgrade)


@pytest.mark.parametrize("relay_first", [True, False])
async def test_whose_call_took_a_relay_first_looks_for_a_better_path_at_once_and_then_as_ever(
    autojump_clock: MockClock, relay_first: bool
) -> None:
    relayed, reach = replace(PUNCHED, phase="relay"), replace(CALLED, relay_first=relay_first)
    async with kept(upgrade=True, path=relayed, reach=reach) as one:
        await trio.sleep(10.0)
        assert [(walk.at, walk.preferred) for walk in FakeWalk.begun] == [(HEAD_START, True)] * relay_first
        one.say()
        await trio.sleep(UPGRADE_PAUSES[1] * (1 + JITTER))
        assert len(FakeWalk.begun) == 1 + relay_first


@pytest.mark.parametrize(
    ("combo", "worth_it"),
    [
        (BETTER, True),
        (replace(BETTER, likelihood=Likelihood.DOUBTFUL), True),
        (replace(BETTER, likelihood=Likelihood.HOPELESS), False),
        (replace(BETTER, route_type=RouteType.NIC_BIND), True),
        (replace(BETTER, route_type=RouteType.NIC_BIND, likelihood=Likelihood.DOUBTFUL), False),
        (replace(BETTER, phase="punch"), False),
        (replace(BETTER, phase="relay", route_type=RouteType.NIC_BIND), False),
    ],
)
async def test_only_what_may_lead_to_a_better_path_is_worth_a_search(
    autojump_clock: MockClock, combo: Combo, worth_it: bool
) -> None:
    async with kept(upgrade=True) as one:
        one.plan = [combo]
        one.hint()
        await trio.sleep(0.1)
        assert len(FakeWalk.begun) == worth_it


async def test_sprays_are_worth_a_search_once_and_then_rarely(autojump_clock: MockClock) -> None:
    relayed = replace(PUNCHED, phase="relay")
    async with kept(upgrade=True, path=relayed) as one:
        one.plan = [replace(BETTER, phase="spray")]
        while trio.current_time() < SPRAYS - 60.0:
            one.say()
            await trio.sleep(1.0)
        assert len(one.searches) == 1
        while trio.current_time() < 2 * SPRAYS:
            one.say()
            await trio.sleep(1.0)
        assert len(one.searches) == 2


async def test_where_a_relay_cannot_be_left_as_all_ways_sit_out_the_first_one_that_may_be_tried_is(
    autojump_clock: MockClock,
) -> None:
    async with kept(upgrade=True, path=replace(PUNCHED, phase="relay")) as one:
        one.link._dropped.append(replace(PUNCHED, plugin=BETTER.plugin))
        one.link.path_log.told.unpark_all()
        for _ in range(int(SITS_OUT) + 2):
            one.say()
            await trio.sleep(1.0)
        assert one.searches == [pytest.approx(SITS_OUT)]
        assert one.asked[0] < SITS_OUT, "the peer is asked meanwhile whether it has moved"


@pytest.mark.parametrize("cause", [PathCause.FOUND, PathCause.LOST])
async def test_a_way_that_has_failed_when_all_did_is_tried_again(autojump_clock: MockClock, cause: PathCause) -> None:
    async with kept(upgrade=True) as one:
        one.link._dropped.append(replace(PUNCHED, plugin=BETTER.plugin))
        one.change(cause)
        for _ in range(int(UPGRADE_PAUSES[0] * (1 + JITTER)) + 1):
            one.say()
            await trio.sleep(1.0)
        assert len(one.searches) == (cause is PathCause.FOUND)


@pytest.mark.parametrize("what", ["said", "heard"])
async def test_a_better_path_is_looked_for_once_for_what_was_said_and_not_at_all_for_nothing(
    autojump_clock: MockClock, what: str
) -> None:
    async with kept(upgrade=True) as one:
        await trio.sleep(3600.0)
        assert FakeWalk.begun == []
        if what == "said":
            one.say()
        else:
            incoming = one.link.protocol.incoming = Incoming()
            incoming.received += 1
        await trio.sleep(3600.0)
        assert len(FakeWalk.begun) == 1


async def test_better_paths_are_looked_for_ever_more_rarely(autojump_clock: MockClock) -> None:
    async with kept(upgrade=True) as one:
        for _ in range(480):
            one.say()
            await trio.sleep(1.0)
        gaps = [after - before for before, after in pairwise([0.0, *one.searches])]
        assert len(gaps) == 3
        for gap, pause in zip(gaps, UPGRADE_PAUSES, strict=False):
            assert abs(gap - pause) <= JITTER * pause


async def test_a_link_is_busy_while_the_peer_has_not_all_or_somebody_waits_to_send(autojump_clock: MockClock) -> None:
    async with kept() as one, trio.open_nursery() as nursery:
        assert not one.link.is_busy
        one.say()
        assert one.link.is_busy
        one.stream.acknowledge(1)
        assert not one.link.is_busy
        nursery.start_soon(one.link._answers.park)
        await wait_all_tasks_blocked()
        assert one.link.is_busy
        one.link._answers.unpark_all()
        one.link.protocol.outgoing = None
        assert not one.link.is_busy


async def test_a_way_that_was_no_good_is_left_alone_for_a_while(autojump_clock: MockClock) -> None:
    async with kept(upgrade=True) as one:
        one.link._dropped.append(replace(PUNCHED, plugin=BETTER.plugin))
        one.link.path_log.told.unpark_all()
        for _ in range(int(SITS_OUT) - 1):
            one.say()
            await trio.sleep(1.0)
        assert FakeWalk.begun == []
        one.say()
        await trio.sleep(POSTPONED * (1 + JITTER) + 1.0)
        assert len(FakeWalk.begun) == 1


async def test_a_search_that_waits_for_its_turn_ends_with_its_time(autojump_clock: MockClock) -> None:
    """The next one gets the turn, if nobody else has it."""
    ends: list[tuple[float, Verdict, Sequence[str]]] = []

    async def migrate(seconds: float | None) -> None:
        assert one.link.migrator is not None
        with pytest.raises(ConnectError) as caught:
            await one.link.migrator(("direct",), seconds)
        ends.append((trio.current_time() - began, caught.value.verdict, caught.value.report.notes))

    FakeWalk.takes = 5.0
    async with kept() as one:
        began = trio.current_time()
        async with trio.open_nursery() as nursery:
            for seconds in (None, 0.5, 7.0):
                nursery.start_soon(migrate, seconds)
                await wait_all_tasks_blocked()
        assert one.searches == [began, began + 5.0]
        await migrate(1.0)
    held = ("another search for a better path was under way",)
    assert [(at, verdict) for at, verdict, _ in ends] == [
        (0.5, Verdict.TIMED_OUT),
        (5.0, Verdict.UNREACHABLE),
        (7.0, Verdict.UNREACHABLE),
        (8.0, Verdict.UNREACHABLE),
    ]
    assert [notes for _, _, notes in ends] == [held, (), (), ()]
