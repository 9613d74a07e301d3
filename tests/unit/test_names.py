"""Names of servers: what is remembered of them, and lookups by a resolver that is slow, fails, or never answers."""

from __future__ import annotations

import math
import socket
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from functools import partial
from typing import Any

import pytest
import trio
import trio.lowlevel
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock

from warpgate_trio import names as names_module
from warpgate_trio.names import (
    FAMILY_DELAY,
    FRESH,
    KEPT_FRESH,
    MAX_ADDRESSES,
    MAX_AGE,
    MAX_LOOKUPS,
    MAX_NAMES,
    RETRY,
    SETTLE,
    SLOW,
    NameCache,
    NameFailure,
    Names,
    describe_failures,
    in_turn,
)
from warpgate_trio.nurseries import reason_of

ONE, TWO = ("2001:db8::1", "192.0.2.1"), ("192.0.2.2",)


# --- what is remembered -----------------------------------------------------------------------------------------------


def test_an_answer_is_fresh_then_used_and_due_then_too_old() -> None:
    cache = NameCache()
    assert cache.is_due("one", 0.0)
    assert cache.addresses("one", 0.0) == ()
    cache.found("one", ONE, 10.0)
    for at, due, addresses in (
        (10.0, False, ONE),
        (10.0 + FRESH, False, ONE),
        (10.1 + FRESH, True, ONE),
        (10.0 + MAX_AGE, True, ONE),
        (10.1 + MAX_AGE, True, ()),
    ):
        assert (cache.is_due("one", at), cache.addresses("one", at)) == (due, addresses)


def test_a_failure_takes_nothing_away_and_is_not_asked_about_at_once() -> None:
    cache = NameCache()
    cache.found("one", ONE, 0.0)
    cache.failed("one", "no DNS", 100.0)
    assert cache.addresses("one", 100.0) == ONE
    assert cache.failure("one") == "no DNS"
    assert not cache.is_due("one", 99.9 + RETRY)
    assert cache.is_due("one", 100.0 + RETRY)
    cache.found("one", TWO, 102.0)
    assert cache.addresses("one", 102.0) == TWO
    assert cache.failure("one") is None


def test_it_is_bounded() -> None:
    cache = NameCache()
    for number in range(MAX_NAMES + 1):
        cache.found(f"n{number}", [*(f"fd00::{host}" for host in range(99)), "10.0.0.1", *4 * ["10.0.0.2"]], 0.0)
    assert cache.addresses("n0", 0.0) == ()
    known = cache.addresses("n1", 0.0)
    assert known[:MAX_ADDRESSES] == tuple(f"fd00::{host}" for host in range(MAX_ADDRESSES))
    assert known[MAX_ADDRESSES] == "10.0.0.1"  # addresses of one family leave room for those of the other
    assert len(known) <= 2 * MAX_ADDRESSES


@given(st.lists(st.lists(st.tuples(st.sampled_from("abcdef"), st.just(1)), max_size=5), max_size=5))
def test_in_turn_has_each_once_and_every_first_before_any_third(groups: list[list[tuple[str, int]]]) -> None:
    found = in_turn(groups)
    assert sorted(found) == sorted({each for group in groups for each in group})
    for group in groups:
        for other in groups:
            if group and len(other) > 2 and other[2] not in {each for one in groups for each in one[:2]}:
                assert found.index(group[0]) < found.index(other[2])


def test_what_is_said_of_failures() -> None:
    gone = NameFailure(why="Name or service not known", remembered=False)
    kept = NameFailure(why="no answer within 7 s", remembered=True)
    assert describe_failures({}) == []
    assert describe_failures({"a.example": gone, "b.example": kept, "c.example": gone}) == [
        "DNS does not resolve a.example, c.example: Name or service not known",
        "DNS does not resolve b.example: no answer within 7 s; the addresses that they had before are used",
    ]
    (many,) = describe_failures({f"n{number}": gone for number in range(9)})
    assert many.startswith("DNS does not resolve n0, n1, n2, n3, …:")


# --- looking up -------------------------------------------------------------------------------------------------------


class Resolver(trio.abc.HostnameResolver):
    """Answers after a delay that each name has, with its addresses or with an exception."""

    def __init__(self) -> None:
        self.known: dict[str, tuple[float, tuple[str, ...] | Exception]] = {}
        self.mute: int | None = None
        """A family for which it never answers."""
        self.late = 0.0
        """Additional seconds for IPv6."""
        self.asked: list[str] = []
        self.calls = 0
        self.under_way = 0
        self.most = 0

    async def getaddrinfo(self, host: bytes | None, port: object, family: int = 0, *_: object) -> list[Any]:
        name = (host or b"").decode()
        if family == socket.AF_INET:
            self.asked.append(name)
        self.calls += 1
        self.under_way += 1
        self.most = max(self.most, self.under_way)
        try:
            delay, answer = self.known.get(name, (0.0, socket.gaierror(socket.EAI_NONAME, "Name or service not known")))
            if delay == math.inf or family == self.mute:
                await trio.sleep_forever()
            await trio.sleep(delay + (self.late if family == socket.AF_INET6 else 0.0))
        finally:
            self.under_way -= 1
        if isinstance(answer, Exception):
            raise answer
        kinds = {True: socket.AF_INET6, False: socket.AF_INET}
        found = [(kinds[":" in each], socket.SOCK_DGRAM, 17, "", (each, 0)) for each in answer]
        chosen: list[Any] = [each for each in found if each[0] == family]
        if found and not chosen:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return chosen

    async def getnameinfo(self, sockaddr: object, flags: int) -> tuple[str, str]:
        raise NotImplementedError


def play(body: Callable[[Resolver, Names], Awaitable[None]]) -> None:
    async def main() -> None:
        resolver, names = Resolver(), Names()
        trio.socket.set_custom_hostname_resolver(resolver)
        async with names.running():
            await body(resolver, names)
        assert resolver.under_way == 0

    trio.run(main, clock=MockClock(autojump_threshold=0))


def test_addresses_of_both_families_in_the_resolvers_order_each_once() -> None:
    async def body(resolver: Resolver, names: Names) -> None:
        resolver.known["one"] = (0.0, (*ONE, ONE[0]))
        assert await names.look_up(["one", "192.0.2.9", "::1"], timeout=1) == {
            "one": ONE,
            "192.0.2.9": ("192.0.2.9",),
            "::1": ("::1",),
        }
        assert resolver.asked == ["one"]

    play(body)


@pytest.mark.parametrize("mute", [socket.AF_INET, socket.AF_INET6])
def test_a_resolver_that_never_answers_about_one_family_costs_a_moment(mute: int) -> None:
    async def body(resolver: Resolver, names: Names) -> None:
        resolver.known["one"] = (0.1, ONE)
        resolver.mute = mute
        began = trio.current_time()
        for _ in range(3):
            found = await names.look_up(["one"], timeout=5)
            assert found == {"one": tuple(each for each in ONE if (":" in each) is (mute == socket.AF_INET))}
            assert trio.current_time() - began == pytest.approx(0.1 + FAMILY_DELAY)
        await trio.sleep(FRESH + SLOW)
        assert names.failures(["one"]) == {}

    play(body)


def test_a_family_that_is_late_is_added() -> None:
    async def body(resolver: Resolver, names: Names) -> None:
        resolver.known["one"] = (0.0, ONE)
        resolver.late = 1.0
        assert await names.look_up(["one"], timeout=5) == {"one": ("192.0.2.1",)}
        await trio.sleep(2)
        assert await names.look_up(["one"], timeout=5) == {"one": ONE}

    play(body)


def test_who_asks_while_half_an_answer_is_there_waits_for_the_other_half() -> None:
    """The family that arrives first may be the one that does not work."""

    async def body(resolver: Resolver, names: Names) -> None:
        resolver.known["one"] = (0.0, ONE)
        resolver.late = FAMILY_DELAY / 2
        async with trio.open_nursery() as nursery:
            nursery.start_soon(partial(names.look_up, ["one"], timeout=5))
            await trio.sleep(FAMILY_DELAY / 4)
            assert await names.look_up(["one"], timeout=5) == {"one": ONE}
        assert resolver.asked == ["one"]

    play(body)


def test_names_that_are_kept_are_looked_up_from_time_to_time() -> None:
    async def body(resolver: Resolver, names: Names) -> None:
        resolver.known |= {"one": (0.0, ONE), "two": (0.0, TWO)}
        await names.look_up(["two"], timeout=1)
        with trio.move_on_after(2.5 * KEPT_FRESH):
            await names.keep_fresh(["one", "192.0.2.9", "two", "one"])
        assert [resolver.asked.count(each) for each in ("one", "two", "192.0.2.9")] == [3, 3, 0]
        resolver.known["one"] = (math.inf, ())
        assert await names.look_up(["one"], timeout=0) == {"one": ONE}

    play(body)


def test_a_name_that_is_kept_and_not_resolved_is_tried_again_sooner() -> None:
    async def body(resolver: Resolver, names: Names) -> None:
        resolver.known |= {"one": (0.0, ONE), "hangs": (math.inf, ())}
        async with trio.open_nursery() as nursery:
            nursery.start_soon(names.keep_fresh, ["fails", "one", "hangs"])
            await trio.sleep(10 * KEPT_FRESH)
            often = resolver.asked.count("fails")
            assert 10 <= often <= 18
            resolver.known["fails"] = (0.0, TWO)
            await trio.sleep(KEPT_FRESH + 10)
            assert await names.look_up(["fails"], timeout=0) == {"fails": TWO}
            nursery.cancel_scope.cancel()

    play(body)


def test_names_that_are_kept_are_looked_up_where_the_machine_has_moved() -> None:
    async def body(resolver: Resolver, names: Names) -> None:
        resolver.known["one"] = (0.0, ONE)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(names.keep_fresh, ["one"])
            await trio.sleep(FRESH + 1)
            resolver.known["one"] = (0.0, TWO)
            names.refresh()
            await trio.sleep(1)
            assert await names.look_up(["one"], timeout=0) == {"one": TWO}
            nursery.cancel_scope.cancel()

    play(body)


def test_addresses_need_no_keeping() -> None:
    async def body(resolver: Resolver, names: Names) -> None:
        await names.keep_fresh(["192.0.2.9", "::1"])

    play(body)


@pytest.mark.parametrize("order", [("hangs", "one", "two"), ("one", "two", "hangs")])
def test_names_are_looked_up_side_by_side_and_one_that_hangs_is_waited_for_a_moment(order: tuple[str, ...]) -> None:
    async def body(resolver: Resolver, names: Names) -> None:
        resolver.known |= {"one": (0.3, ONE), "two": (0.4, TWO), "hangs": (math.inf, ())}
        began = trio.current_time()
        assert await names.look_up(order, timeout=5) == {"one": ONE, "two": TWO}
        assert trio.current_time() - began == pytest.approx(0.3 + SETTLE)
        began = trio.current_time()
        for _ in range(10):  # further lookups cost no time
            assert await names.look_up(order, timeout=5) == {"one": ONE, "two": TWO}
        assert trio.current_time() == began
        assert sorted(resolver.asked) == ["hangs", "one", "two"]

    play(body)


def test_when_all_hang_the_asker_bounds_the_time() -> None:
    async def body(resolver: Resolver, names: Names) -> None:
        resolver.known["hangs"] = (math.inf, ())
        for timeout in (0.5, 2.0):
            began = trio.current_time()
            assert await names.look_up(["hangs"], timeout=timeout) == {}
            assert trio.current_time() - began == pytest.approx(timeout)
        assert names.failures(["hangs", "other"]) == {
            "hangs": NameFailure(why="no answer within 2 s", remembered=False)
        }
        assert resolver.asked == ["hangs"]

    play(body)


def test_what_was_found_is_used_at_once_while_a_new_lookup_is_under_way_or_fails() -> None:
    async def body(resolver: Resolver, names: Names) -> None:
        resolver.known["one"] = (0.0, ONE)
        assert await names.look_up(["one"], timeout=1) == {"one": ONE}
        await trio.sleep(FRESH + 1)
        resolver.known["one"] = (3.0, TWO)
        began = trio.current_time()
        assert await names.look_up(["one"], timeout=1) == {"one": ONE}
        assert trio.current_time() == began
        await trio.sleep(4)
        assert await names.look_up(["one"], timeout=1) == {"one": TWO}
        await trio.sleep(FRESH + 1)
        resolver.known["one"] = (0.0, socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution"))
        for _ in range(3):
            assert await names.look_up(["one"], timeout=1) == {"one": TWO}
            await trio.sleep(60)
        assert names.failures(["one"]) == {
            "one": NameFailure(why="Temporary failure in name resolution", remembered=True)
        }
        await trio.sleep(MAX_AGE)
        assert await names.look_up(["one"], timeout=1) == {}
        assert not names.failures(["one"])["one"].remembered

    play(body)


def test_who_wants_fresh_ones_waits_for_them_and_takes_the_old_where_they_do_not_come() -> None:
    async def body(resolver: Resolver, names: Names) -> None:
        resolver.known |= {"one": (0.0, ONE), "two": (0.0, TWO)}
        await names.look_up(["one", "two"], timeout=1)
        resolver.known |= {"one": (1.5, TWO), "two": (math.inf, ())}
        began = trio.current_time()
        assert await names.look_up(["one", "two"], timeout=5, settle=1.0, fresh=True) == {"one": TWO, "two": TWO}
        assert trio.current_time() - began == pytest.approx(2.5)
        assert set(names.failures(["one", "two"])) == {"two"}

    play(body)


@pytest.mark.parametrize(
    ("raised", "why"),
    [
        (socket.gaierror(socket.EAI_FAIL, "Non-recoverable failure"), "Non-recoverable failure"),
        (UnicodeError("label too long"), "label too long"),
        (ValueError(), "ValueError"),
        (OSError("odd"), "odd"),
    ],
)
def test_whatever_a_resolver_raises_is_a_failure(raised: Exception, why: str) -> None:
    async def body(resolver: Resolver, names: Names) -> None:
        resolver.known |= {"bad": (0.0, raised), "empty": (0.0, ())}
        assert await names.look_up(["bad", "empty"], timeout=1) == {}
        assert {name: each.why for name, each in names.failures(["bad", "empty"]).items()} == {
            "bad": why,
            "empty": "no address",
        }
        assert await names.look_up(["bad"], timeout=1) == {}
        assert sorted(resolver.asked) == ["bad", "empty"]  # they are not asked for again at once
        await trio.sleep(RETRY + 0.1)
        await names.look_up(["bad"], timeout=1)
        assert resolver.asked[2:] == ["bad"]

    play(body)


def test_lookups_are_bounded_whoever_asks_and_gives_up() -> None:
    async def body(resolver: Resolver, names: Names) -> None:
        hanging = [f"hangs{number}" for number in range(3 * MAX_LOOKUPS)]
        resolver.known |= dict.fromkeys(hanging, (math.inf, ()))
        for _ in range(20):
            with trio.move_on_after(0.1):
                await names.look_up(hanging, timeout=math.inf)
        assert resolver.most == MAX_LOOKUPS
        assert resolver.calls == MAX_LOOKUPS
        assert set(names.failures(hanging)) == set(hanging)

    play(body)


def test_a_slow_one_is_a_failure_until_it_comes() -> None:
    async def body(resolver: Resolver, names: Names) -> None:
        resolver.known["one"] = (SLOW + 1, ONE)
        await names.look_up(["one"], timeout=SLOW / 2)
        assert names.failures(["one"]) == {}
        await trio.sleep(SLOW)
        assert "no answer" in names.failures(["one"])["one"].why
        assert await names.look_up(["one"], timeout=5) == {"one": ONE}
        assert names.failures(["one"]) == {}

    play(body)


# --- connecting -------------------------------------------------------------------------------------------------------


def real(body: Callable[[Resolver, Names], Awaitable[None]]) -> None:
    """Like `play`, but over real loopback sockets."""

    async def main() -> None:
        resolver, names = Resolver(), Names()
        trio.socket.set_custom_hostname_resolver(resolver)
        with trio.fail_after(10):
            async with names.running():
                await body(resolver, names)

    trio.run(main)


@pytest.mark.needs("linux")
def test_every_address_is_connected_to_the_next_at_once_after_a_failure() -> None:
    async def body(resolver: Resolver, names: Names) -> None:
        (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
        port = listener.socket.getsockname()[1]
        async with listener:
            for order in (("127.0.0.1",), ("127.0.0.2", "127.0.0.1"), ("127.0.0.2", "::1", "127.0.0.3", "127.0.0.1")):
                resolver.known[name := f"n{len(order)}"] = (0.0, order)
                async with await names.open_tcp_stream(name, port) as stream:
                    assert stream.socket.getpeername() == ("127.0.0.1", port)
            resolver.known = dict.fromkeys(resolver.known, (math.inf, ()))
            await trio.lowlevel.checkpoint()
            async with await names.open_tcp_stream("n2", port):  # by remembered addresses
                pass
            async with await names.open_tcp_stream("127.0.0.1", port):
                pass

    real(body)


@pytest.mark.needs("linux")
def test_why_none_can_be_connected_to() -> None:
    async def body(resolver: Resolver, names: Names) -> None:
        with trio.socket.socket() as free:
            await free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        resolver.known["one"] = (0.0, ("127.0.0.2", "127.0.0.1"))
        with pytest.raises(OSError, match="all attempts to connect to one:") as caught:
            await names.open_tcp_stream("one", port)
        assert reason_of(caught.value) == f"all attempts to connect to one:{port} failed: Connection refused"
        with pytest.raises(socket.gaierror, match="Name or service not known") as unknown:
            await names.open_tcp_stream("other", port)
        assert reason_of(unknown.value) == "the name cannot be resolved: Name or service not known"

    real(body)


def test_families_take_turns() -> None:
    async def body(resolver: Resolver, names: Names) -> None:
        resolver.known["one"] = (0.0, ("2001:db8::1", "2001:db8::2", "192.0.2.1", "2001:db8::3", "192.0.2.2"))
        tried: list[str] = []

        class Sockets(trio.abc.SocketFactory):
            def socket(self, family: int = 0, type: int = 0, proto: int = 0) -> Any:  # noqa: A002
                raise OSError("no sockets")

        trio.socket.set_custom_socket_factory(Sockets())
        connect = names_module.connect_tcp

        async def note(address: str, port: int) -> trio.SocketStream:
            tried.append(address)
            return await connect(address, port)

        with pytest.MonkeyPatch.context() as patch, pytest.raises(OSError, match="all attempts"):
            patch.setattr(names_module, "connect_tcp", note)
            await names.open_tcp_stream("one", 9)
        assert tried == ["2001:db8::1", "192.0.2.1", "2001:db8::2", "192.0.2.2", "2001:db8::3"]

    real(body)


@pytest.mark.slow("as many connections as one has steps")
def test_cancelled_at_any_step_it_leaves_no_socket() -> None:
    async def body(resolver: Resolver, names: Names) -> None:
        (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
        resolver.known["one"] = (0.0, ("127.0.0.1", "127.0.0.1"))
        async with listener:
            for steps in range(30):
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(connect, names, listener.socket.getsockname()[1])
                    for _ in range(steps):
                        await trio.lowlevel.checkpoint()
                    nursery.cancel_scope.cancel()

    async def connect(names: Names, port: int) -> None:
        async with await names.open_tcp_stream("one", port):
            await trio.sleep_forever()

    real(body)


def test_after_the_end_nothing_is_looked_up() -> None:
    async def main() -> None:
        names = Names()
        async with names.running():
            pass
        assert await names.look_up(["one", "192.0.2.1"], timeout=1) == {"192.0.2.1": ("192.0.2.1",)}
        assert "ended" in names.failures(["one"])["one"].why

    trio.run(main)


@pytest.fixture
def stuck(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], int]]:
    """A real resolver that never answers; yields a function that counts the threads in it."""
    release, inside = threading.Event(), [0]

    def getaddrinfo(*args: Any) -> list[object]:
        if len(args) == 6 and args[5] & socket.AI_NUMERICHOST:  # Trio first tries to read it as an address
            raise socket.gaierror(socket.EAI_NONAME, "no address")
        inside[0] += 1
        release.wait()
        inside[0] -= 1
        return []

    monkeypatch.setattr("socket.getaddrinfo", getaddrinfo)
    yield lambda: inside[0]
    release.set()
    for _ in range(5000):
        if not any(thread.name.startswith("getaddrinfo") for thread in threading.enumerate()):
            break
        time.sleep(0.001)


async def test_threads_that_cannot_be_cancelled_hold_nobody_up_and_do_not_pile_up(stuck: Callable[[], int]) -> None:
    names = Names()
    hanging = [f"hangs{number}.example" for number in range(3 * MAX_LOOKUPS)]
    with trio.fail_after(5):
        async with names.running():
            for _ in range(50):
                assert await names.look_up(hanging, timeout=0.001) == {}
            while stuck() < MAX_LOOKUPS:
                await names.look_up(hanging, timeout=0.001)
            assert stuck() == MAX_LOOKUPS
            assert trio.to_thread.current_default_thread_limiter().borrowed_tokens == MAX_LOOKUPS
