"""Names that peers have looked up: how many at a time, for which peers, and for how long."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable

import pytest
import trio
import trio.testing

from tests.waiting import wait_until
from warpgate_trio.errors import TargetRefused
from warpgate_trio.forwarding import Answer, Target
from warpgate_trio.forwarding.lookups import MAX_LOOKUPS, MAX_OF_PEER, MAX_WAITING, NameLookups, lookups_of_this_run

GOOD = Target("good.lan", 80)


class Resolver:
    """Answers at once for `good.lan`, and for other names when `answer` is called.

    As with Trio's own resolver, a caller may abandon a lookup, while its thread goes on.
    """

    def __init__(self) -> None:
        self.asked: list[str] = []
        self._threads: dict[str, trio.Event] = {}

    def __contains__(self, host: str) -> bool:
        return host in self._threads

    def __len__(self) -> int:
        return len(self._threads)

    async def getaddrinfo(self, host: str, port: int, **_: object) -> list[tuple[int, int, int, str, tuple[str, int]]]:
        self.asked.append(host)
        if host != GOOD.host:
            self._threads[host] = trio.Event()
            await self._threads[host].wait()
        await trio.lowlevel.checkpoint()
        return [(2, 1, 6, "", ("192.0.2.1", port))]

    def answer(self, host: str) -> None:
        self._threads.pop(host).set()


@pytest.fixture
def resolver(monkeypatch: pytest.MonkeyPatch) -> Resolver:
    resolver = Resolver()
    monkeypatch.setattr(trio.socket, "getaddrinfo", resolver.getaddrinfo)
    return resolver


def asking(nursery: trio.Nursery, lookups: NameLookups) -> Callable[[str, str], None]:
    """A function that has a peer look up a name, in a task of its own."""

    def ask(peer: str, host: str) -> None:
        nursery.start_soon(lookups.look_up, Target(host, 80), peer)

    return ask


async def test_a_peer_whose_names_hang_holds_nobody_else_up(resolver: Resolver) -> None:
    """Another peer's lookups do not wait behind those of this peer."""
    lookups = NameLookups()
    async with trio.open_nursery() as nursery:
        ask = asking(nursery, lookups)
        for number in range(MAX_WAITING - 1):
            ask("mallory", f"slow{number}.lan")
        ask("mallory", GOOD.host)
        await trio.testing.wait_all_tasks_blocked()
        assert len(resolver) == MAX_OF_PEER
        (address,) = await lookups.look_up(GOOD, "bob")
        assert str(address) == "192.0.2.1"
        nursery.cancel_scope.cancel()


async def test_no_more_than_so_many_are_looked_up_at_a_time(resolver: Resolver) -> None:
    """The next lookup begins when one has ended."""
    lookups = NameLookups()
    async with trio.open_nursery() as nursery:
        ask = asking(nursery, lookups)
        for number in range(3 * MAX_LOOKUPS):
            ask(f"peer{number // MAX_OF_PEER}", f"slow{number}.lan")
        await trio.testing.wait_all_tasks_blocked()
        for ended in range(3 * MAX_LOOKUPS):
            assert len(resolver) == min(MAX_LOOKUPS, 3 * MAX_LOOKUPS - ended)
            resolver.answer(next(host for host in resolver.asked if host in resolver))
            await trio.testing.wait_all_tasks_blocked()
    assert len(set(resolver.asked)) == 3 * MAX_LOOKUPS


async def test_who_has_given_up_leaves_the_place_taken(resolver: Resolver) -> None:
    """The thread of an abandoned lookup goes on; lookups that had not begun never run."""
    lookups = NameLookups()
    async with trio.open_nursery() as nursery:
        ask = asking(nursery, lookups)
        for number in range(MAX_OF_PEER + 1):
            ask("mallory", f"slow{number}.lan")
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(lookups.look_up, GOOD, "mallory")
        await trio.testing.wait_all_tasks_blocked()
        assert GOOD.host not in resolver.asked
        resolver.answer("slow0.lan" if "slow0.lan" in resolver else "slow1.lan")
    assert GOOD.host in resolver.asked
    assert len(resolver.asked) == MAX_OF_PEER + 1


async def test_a_peer_with_too_many_names_hears_that_this_side_is_busy(resolver: Resolver) -> None:
    lookups = NameLookups()
    async with trio.open_nursery() as nursery:
        ask = asking(nursery, lookups)
        for number in range(MAX_WAITING):
            ask("mallory", f"slow{number}.lan")
        await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(TargetRefused, match=r"good\.lan:80: busy, 32 other names") as raised:
            await lookups.look_up(GOOD, "mallory")
        assert raised.value.answer == Answer.BUSY
        nursery.cancel_scope.cancel()
    for host in [host for host in resolver.asked if host in resolver]:
        resolver.answer(host)
    assert await lookups.look_up(GOOD, "mallory")


async def test_connections_to_one_name_share_a_lookup(resolver: Resolver) -> None:
    lookups = NameLookups()
    async with trio.open_nursery() as nursery:
        ask = asking(nursery, lookups)
        for _ in range(1000):
            ask("bob", "slow.lan")
        await trio.testing.wait_all_tasks_blocked()
        resolver.answer("slow.lan")
    assert resolver.asked == ["slow.lan"]
    assert await lookups.look_up(GOOD, "bob")
    assert await lookups.look_up(GOOD, "bob")
    assert resolver.asked == ["slow.lan", GOOD.host, GOOD.host], "nothing is remembered"


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (
            socket.gaierror(socket.EAI_NONAME, "Name or service not known"),
            "cannot be resolved: Name or service not known",
        ),
        (UnicodeError("label too long"), "label too long"),
        (ValueError("odd"), "odd"),
    ],
)
async def test_what_goes_wrong_is_the_askers_alone(
    error: Exception, said: str, resolver: Resolver, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(*_: object, **__: object) -> list[object]:
        await trio.lowlevel.checkpoint()
        raise error

    lookups = NameLookups()
    with monkeypatch.context() as patch:
        patch.setattr(trio.socket, "getaddrinfo", fail)
        with pytest.raises(TargetRefused, match=said) as raised:
            await lookups.look_up(GOOD, "bob")
        assert raised.value.answer == Answer.UNREACHABLE
    assert await lookups.look_up(GOOD, "bob")
    assert not lookups._askers


async def test_threads_count_until_they_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trio's real threads with a resolver that hangs: they count although the callers were cancelled long before."""
    resolver = threading.Event()

    def hang(host: str, *how: int) -> list[tuple[int, int, int, str, tuple[str, int]]]:
        if how[-1] & socket.AI_NUMERICHOST:  # Trio tries this first, without a thread
            raise socket.gaierror(socket.EAI_NONAME, "no address")
        resolver.wait()
        return [(2, 1, 6, "", ("192.0.2.1", 0))]

    monkeypatch.setattr(socket, "getaddrinfo", hang)
    limiter = trio.to_thread.current_default_thread_limiter()
    lookups = NameLookups()
    try:
        for attempt in range(3):
            async with trio.open_nursery() as nursery:
                for number in range(MAX_WAITING - MAX_OF_PEER):
                    nursery.start_soon(lookups.look_up, Target(f"slow{attempt}-{number}.lan", 80), "mallory")
                await trio.testing.wait_all_tasks_blocked()
                nursery.cancel_scope.cancel()
        await trio.testing.wait_all_tasks_blocked()
        assert limiter.borrowed_tokens == MAX_OF_PEER
    finally:
        resolver.set()
    assert await lookups.look_up(GOOD, "mallory")
    await wait_until(lambda: limiter.borrowed_tokens == 0)  # a running thread would count as left behind


def test_a_run_has_one_of_them() -> None:
    async def main() -> NameLookups:
        await trio.lowlevel.checkpoint()
        assert lookups_of_this_run() is lookups_of_this_run()
        return lookups_of_this_run()

    assert trio.run(main) is not trio.run(main)
