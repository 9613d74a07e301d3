"""What counts for one alone: token buckets, and tables that forget the oldest."""

from __future__ import annotations

import pytest

from warpgate_trio.limits import BoundedMap, TokenBucket, TokenBuckets

T = 1_700_000_000.0


def test_token_bucket() -> None:
    bucket = TokenBucket(2.0, 3)
    assert [bucket.take(T) for _ in range(4)] == [True, True, True, False]
    assert not bucket.take(T - 100)  # a clock that goes back earns nothing
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
    assert table.get("a") == 0  # which leaves it the oldest
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
    assert buckets.take("c", T)  # a is forgotten
    assert buckets.take("a", T)
    assert not buckets.take("c", T)
