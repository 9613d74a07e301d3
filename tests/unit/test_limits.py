"""Counters of one client, token buckets, tables that evict the oldest entry, and fair sharing among subscribers:
who counts as one, and who gets in when a gate's places or a budget's bytes are used up."""

from __future__ import annotations

from collections import Counter
from contextlib import ExitStack

import pytest
import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.hangs import HANG
from warpgate_trio.limits import SHARE, BoundedMap, Budget, Gate, Place, TokenBucket, TokenBuckets, subscriber

T = 1_700_000_000.0


def test_token_bucket() -> None:
    bucket = TokenBucket(2.0, 3)
    assert [bucket.take(T) for _ in range(4)] == [True, True, True, False]
    assert not bucket.take(T - 100)  # a clock that goes back earns no tokens
    assert not bucket.take(T - 99.6)
    assert bucket.take(T - 99.5)
    assert bucket.seconds_until(T + 1000) == 0.0
    assert [bucket.take(T + 1000) for _ in range(4)] == [True, True, True, False]
    assert bucket.seconds_until(T + 1000.125) == pytest.approx(0.375)


def test_a_token_bucket_takes_all_or_nothing() -> None:
    bucket = TokenBucket(1.0, 3)
    assert bucket.take(T, 2)
    assert not bucket.take(T, 2)
    assert bucket.take(T, 1)
    assert bucket.seconds_until(T, 2) == 2.0


def test_what_was_spent_in_advance_is_earned_first() -> None:
    bucket = TokenBucket(2.0, 3)
    bucket.earn(T)
    bucket.spend(7)
    assert bucket.seconds_until(T, 0) == 2.0
    assert not bucket.take(T + 2)
    assert bucket.take(T + 2.5)


def test_what_is_given_back_is_never_more_than_a_burst() -> None:
    bucket = TokenBucket(1.0, 2)
    bucket.take(T)
    assert not bucket.is_full(T)
    bucket.give_back()
    bucket.give_back()
    assert bucket.is_full(T)
    assert [bucket.take(T) for _ in range(3)] == [True, True, False]
    assert bucket.is_full(T + 2)


def test_a_bounded_map_forgets_what_was_used_longest_ago() -> None:
    table: BoundedMap[str, int] = BoundedMap(3)
    for number, key in enumerate("abc"):
        table.put(key, number)
    assert table.get("a") == 0  # the lookup leaves it the oldest
    assert table.use("b") == 1
    table.put("d", 3)
    assert list(table) == ["c", "b", "d"]
    table.put("c", 4)
    table.put("e", 5)
    assert list(table) == ["d", "c", "e"]
    assert (len(table), "c" in table, "b" in table) == (3, True, False)
    assert table.pop("c") == 4
    assert table.pop("c") is table.get("c") is table.use("c") is None


def test_a_bounded_map_forgets_what_is_over_from_the_oldest_on() -> None:
    table: BoundedMap[str, int] = BoundedMap(5)
    for number, key in enumerate("abcb"):
        table.put(key, number)
    table.forget_while(lambda number: number < 2)
    assert list(table) == ["c", "b"]
    table.forget_while(lambda _: True)
    assert len(table) == 0


def test_each_key_has_a_bucket_and_a_forgotten_one_a_new_one() -> None:
    buckets: TokenBuckets[str] = TokenBuckets(0.0, 1, 2)
    assert [buckets.take(key, T) for key in "aabb"] == [True, False, True, False]
    assert buckets.take("c", T)  # evicts a
    assert buckets.take("a", T)
    assert not buckets.take("c", T)


# -- subscribers, their places and bytes -------------------------------------------------------------------------------


def v6(site: int, home: int, network: int, host: int = 1) -> str:
    """An address in /48 `site`, /56 `home` and /64 `network`."""
    return f"2001:db8:{site:x}:{home << 8 | network:x}::{host:x}"


def held_by(gate: Gate, stack: ExitStack, host: str, count: int = 1) -> list[Place | None]:
    return [stack.enter_context(gate.admit(host)) for _ in range(count)]


def standing(places: list[Place | None]) -> int:
    return sum(place is not None and not place.scope.cancel_called for place in places)


def test_who_counts_as_one() -> None:
    assert subscriber("192.0.2.1") != subscriber("192.0.2.2")
    assert subscriber("::ffff:192.0.2.1") == subscriber("192.0.2.1")
    assert subscriber(v6(1, 2, 3, 1)) == subscriber(v6(1, 2, 3, 0xFFFF))
    assert subscriber(v6(1, 2, 3)) != subscriber(v6(1, 2, 4))
    assert subscriber("fe80::1%eth0") == subscriber("fe80::2%eth0")


@pytest.mark.parametrize(
    ("heavy", "light"),
    [
        ([v6(1, 1, n) for n in range(4)], v6(2, 0, 0)),
        ([v6(1, 1, n) for n in range(4)], v6(1, 2, 0)),
        ([v6(1, n, 0) for n in range(8)], v6(2, 0, 0)),
        ([v6(1, 1, 0), v6(1, 1, 0, 2)], v6(1, 1, 1)),
        ([f"198.51.100.{n}" for n in range(8)], "192.0.2.1"),
        (["198.51.100.1", "::ffff:198.51.100.1"], "198.51.100.2"),
        ([v6(1, 1, n) for n in range(4)], "192.0.2.1"),
        # A prefix with one place for each of its parts is as heavy as any other.
        ([v6(1, 1, n) for n in range(40)], v6(1, 2, 0)),
        ([v6(1, n, 0) for n in range(40)], v6(2, 0, 0)),
        ([f"198.51.100.{n}" for n in range(40)], "192.0.2.1"),
    ],
    ids=[
        *("a /56", "a /56 of the same /48", "a /48", "a /64 of the same /56", "a /24", "an address", "IPv6 and IPv4"),
        *("a /56 by /64s", "a /48 by /56s", "a /24 by addresses"),
    ],
)
async def test_one_who_holds_everything_makes_room_for_one_with_nothing(heavy: list[str], light: str) -> None:
    gate = Gate(total=32, per_address=32)
    with ExitStack() as stack:
        places = [place for n in range(40) for place in held_by(gate, stack, heavy[n % len(heavy)])]
        assert standing(places) == 32
        (late,) = held_by(gate, stack, light)
        assert late is not None
        assert standing(places) == 31
        assert gate.held == 32
    assert gate.held == 0


async def test_places_are_shared_until_both_have_as_many() -> None:
    gate = Gate(total=10, per_address=10)
    with ExitStack() as stack:
        first = held_by(gate, stack, v6(1, 0, 0), 10)
        second = held_by(gate, stack, v6(2, 0, 0), 10)
        assert (standing(first), standing(second)) == (5, 5)
        assert standing(held_by(gate, stack, v6(1, 0, 0))) == 0, "who has lost its places does not take them back"


async def test_where_everybody_has_one_a_newcomer_waits() -> None:
    gate = Gate(total=5, per_address=5)
    with ExitStack() as stack:
        everybody = [place for n in range(5) for place in held_by(gate, stack, v6(n, 0, 0))]
        assert held_by(gate, stack, v6(6, 0, 0)) == [None]
        assert standing(everybody) == 5


@pytest.mark.parametrize(("oldest_first", "gone"), [(True, 0), (False, 3)])
async def test_which_one_gives_way(oldest_first: bool, gone: int) -> None:
    gate = Gate(total=4, per_address=4, oldest_first=oldest_first)
    with ExitStack() as stack:
        places = held_by(gate, stack, "192.0.2.1", 4)
        held_by(gate, stack, "198.51.100.1")
        assert [place is not None and place.scope.cancel_called for place in places] == [n == gone for n in range(4)]


async def test_an_address_has_a_limit_of_its_own() -> None:
    gate = Gate(total=10, per_address=2)
    with ExitStack() as stack:
        assert standing(held_by(gate, stack, v6(1, 1, 1), 5)) == 2
        assert standing(held_by(gate, stack, v6(1, 1, 2), 5)) == 2


async def test_who_gives_way_is_cancelled_and_goes_quietly() -> None:
    gate = Gate(total=2, per_address=2)
    ended: list[str] = []

    async def hold(host: str, task_status: trio.TaskStatus[None]) -> None:
        with gate.admit(host) as place:
            assert place is not None
            task_status.started()
            await trio.sleep_forever()
        ended.append(host)

    with trio.fail_after(HANG):
        async with trio.open_nursery() as nursery:
            for host in ("192.0.2.1", "192.0.2.1", "198.51.100.1"):
                await nursery.start(hold, host)
            await trio.testing.wait_all_tasks_blocked()
            assert ended == ["192.0.2.1"]
            assert gate.held == 2
            nursery.cancel_scope.cancel()


async def test_a_place_that_is_named_later() -> None:
    gate = Gate(total=16, per_address=2)
    with ExitStack() as stack:
        places = held_by(gate, stack, v6(1, 0, 0), 2)
        unnamed = [stack.enter_context(gate.admit(None)) for _ in range(3)]
        assert [place is not None for place in unnamed] == [True, True, False], "an eighth more than there are places"
        assert gate.held == 4
        assert unnamed[0] is not None
        assert unnamed[1] is not None
        assert unnamed[0].name(v6(2, 0, 0))
        assert not unnamed[1].name(v6(1, 0, 0)), "a third of that address"
        assert stack.enter_context(gate.admit(None)) is not None
        assert standing(places) == 2
    assert gate.held == 0


HOSTS = [v6(a, b, c) for a in range(3) for b in range(2) for c in range(2)] + [
    f"192.0.{a}.{b}" for a in range(2) for b in range(2)
]


def prefix(host: str) -> str:
    """The /48 of an IPv6 address, the /24 of an IPv4 address."""
    return host.rpartition(".")[0] if "." in host else ":".join(host.split(":")[:3])


@settings(max_examples=40)
@given(st.lists(st.tuples(st.sampled_from(HOSTS), st.booleans()), max_size=120), st.booleans())
def test_whatever_comes_and_goes(steps: list[tuple[str, bool]], oldest_first: bool) -> None:
    """The places are never exceeded, and nobody is shut out by a prefix that holds at least two more than his own."""
    gate = Gate(total=8, per_address=5, oldest_first=oldest_first)

    async def visit(host: str, leave: trio.Event, task_status: trio.TaskStatus[Place | None]) -> None:
        with gate.admit(host) as place:
            task_status.started(place)
            if place is not None:
                await leave.wait()

    async def main() -> None:
        inside: dict[Place, tuple[str, trio.Event]] = {}
        async with trio.open_nursery() as nursery:
            for number, (host, comes) in enumerate(steps):
                if not comes and inside:
                    _, leave = inside.pop(list(inside)[number % len(inside)])
                    leave.set()
                    await trio.testing.wait_all_tasks_blocked()
                before = Counter(prefix(each) for each, _ in inside.values())
                leave = trio.Event()
                place = await nursery.start(visit, host, leave)
                if sum(each == host for each, _ in inside.values()) >= 5:
                    assert place is None
                elif len(inside) < 8 or before[prefix(host)] + 1 < max(before.values()):
                    assert place is not None
                elif before[prefix(host)] < max(before.values()):
                    assert place is None
                inside = {each: what for each, what in inside.items() if not each.scope.cancel_called}
                if place is not None:
                    inside[place] = (host, leave)
                assert gate.held == len(inside) <= 8
            nursery.cancel_scope.cancel()
        assert gate.held == 0
        assert not gate._all.parts

    trio.run(main)


# --- bytes ---


def test_a_budget_leaves_something_for_who_comes_later() -> None:
    budget = Budget(total=900, per_address=900)
    taken: Counter[str] = Counter()
    for site in range(3):
        for home in range(256):
            while budget.take(v6(site, home, 0), 1):
                taken[str(site)] += 1
    assert list(taken.values()) == [300, 200, 133]
    assert budget.held == 633
    assert SHARE == 0.5
    assert Budget(total=10, per_address=10).take("192.0.2.1", 5), "half of it, neither more nor less"
    assert not Budget(total=10, per_address=10).take("192.0.2.1", 6)


def test_a_budget_counts_prefixes_and_addresses() -> None:
    budget = Budget(total=1000, per_address=100)
    assert not budget.take(v6(1, 1, 1), 101)
    taken: Counter[str] = Counter()
    for home in range(2):
        for network in range(256):
            while budget.take(v6(1, home, network), 10):
                taken[v6(1, home, network)] += 10
    assert list(taken.values()) == [100, 100, 80], "the /56 as much as its /48 has left, and the next one likewise"
    assert budget.take(v6(2, 0, 0), 100)
    taken[v6(2, 0, 0)] = 100
    for host, amount in taken.items():
        budget.give_back(host, amount)
    assert budget.held == 0
    assert not budget._held


def test_one_home_does_not_use_up_its_providers_share() -> None:
    """A provider gives 256 homes a /48 between them, and one of them takes what it can get."""
    budget = Budget(total=2048, per_address=128)
    while any(budget.take(v6(1, 0, network), 1) for network in range(256)):
        pass
    assert budget.held == 410, "a fifth of all"
    assert sum(budget.take(v6(1, 1, 0), 1) for _ in range(128)) == 128
    assert all(budget.take(v6(1, home, 0), 1) for home in range(2, 8))
