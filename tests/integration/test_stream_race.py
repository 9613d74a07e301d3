"""Races over TCP between ports on loopback: cancelled anywhere, and disturbed by other hosts."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from itertools import pairwise
from typing import Any, NoReturn

import pytest
import trio
import trio.testing

from tests.cancel_sweep import cuts
from tests.hangs import HANG
from tests.panicking import PanicException
from tests.races import carrier_of, half, hold
from warpgate_strategies import stream_race
from warpgate_strategies.stream_race import open_stream_race
from warpgate_trio.carrier import Carrier, TlsCarrier
from warpgate_trio.limits import TokenBucket
from warpgate_trio.plugin import Plugin
from warpgate_trio.ports.tcp import TcpPort
from warpgate_trio.punch.allowance import TARGET_DIALS
from warpgate_trio.sockaddr import TransportAddress


async def meet_tcp(plugin: Plugin, port: TcpPort, there: Sequence[TransportAddress]) -> Carrier:
    try:
        async with open_stream_race(plugin) as race:
            race.accept_on(port)
            race.connect(port, there, trio.current_time())
            return carrier_of(await race.first())
    finally:
        port.close()


@pytest.mark.slow("a handshake for each checkpoint of a race")
@pytest.mark.parametrize("inbound", [False, True], ids=["initiator", "responder"])
async def test_a_tcp_race_is_cancelled_anywhere_and_leaves_nothing(inbound: bool) -> None:
    """A fixture of all tests checks that no socket is left."""
    with trio.fail_after(HANG):
        for cut in cuts():
            here, there = await TcpPort.open("127.0.0.1"), await TcpPort.open("127.0.0.1")
            found: list[Carrier] = []

            async def other(there: TcpPort = there, here: TcpPort = here) -> None:
                await hold(await meet_tcp(half(inbound=not inbound), there, [here.local]))

            async with trio.open_nursery() as nursery:
                nursery.start_soon(other)
                with cut:
                    found.append(await meet_tcp(half(inbound=inbound), here, [there.local]))
                assert len(found) == (not cut.caught)
                for winner in found:
                    await winner.flush()
                    winner.close_nowait()
                nursery.cancel_scope.cancel()


async def test_who_accepts_and_stays_silent_holds_up_nobody() -> None:
    """The silent one is a wrong host at a colliding private address, beside the right one."""
    with trio.fail_after(HANG):
        silent = await TcpPort.open("127.0.0.1")
        here, there = await TcpPort.open("127.0.0.1"), await TcpPort.open("127.0.0.1")
        async with trio.open_nursery() as nursery:

            async def other() -> None:
                (await meet_tcp(half(inbound=True), there, [])).close_nowait()

            nursery.start_soon(other)
            winner = await meet_tcp(half(inbound=False), here, [silent.local, there.local])
            assert winner.remote == there.local
            winner.close_nowait()
            nursery.cancel_scope.cancel()
        silent.close()


@pytest.mark.parametrize("error", [PanicException, RuntimeError])
async def test_what_breaks_one_connection_of_a_race_does_not_end_it(
    error: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    dial = TlsCarrier.dial
    broken: list[trio.socket.SocketType] = []

    async def dial_but_the_first(sock: trio.socket.SocketType, *args: Any, **options: Any) -> Carrier:
        if not broken:
            broken.append(sock)
            sock.close()
            raise error("boo")
        return await dial(sock, *args, **options)

    monkeypatch.setattr(TlsCarrier, "dial", dial_but_the_first)
    with trio.fail_after(HANG):
        here, there = await TcpPort.open("127.0.0.1"), await TcpPort.open("127.0.0.1")
        async with trio.open_nursery() as nursery:

            async def other() -> None:
                await hold(await meet_tcp(half(inbound=True), there, []))

            nursery.start_soon(other)
            winner = await meet_tcp(half(inbound=False), here, [there.local])
            winner.close_nowait()
    assert broken


@pytest.mark.needs("linux")  # where all of 127/8 is this machine
async def test_strangers_at_a_port_do_not_keep_the_peer_out() -> None:
    with trio.fail_after(HANG):
        here, there = await TcpPort.open("127.0.0.1"), await TcpPort.open("127.1.0.1")
        async with trio.open_nursery() as nursery, AsyncExitStack() as stack:
            async with open_stream_race(half(inbound=True)) as race:
                race.accept_on(here)
                for _ in range(stream_race.MAX_HANDSHAKES):
                    await stack.enter_async_context(await trio.open_tcp_stream(*here.local, local_address="127.2.0.1"))
                    await trio.testing.wait_all_tasks_blocked()

                async def peer() -> None:
                    await hold(await meet_tcp(half(inbound=False), there, [here.local]))

                nursery.start_soon(peer)
                winner = carrier_of(await race.first())
            assert winner.remote == there.local
            winner.close_nowait()
            here.close()
            nursery.cancel_scope.cancel()


@pytest.mark.usefixtures("jumping_clock")
async def test_somebody_else_at_a_candidate_is_tried_a_few_times() -> None:
    connections = 0
    with trio.socket.socket() as listener:
        await listener.bind(("127.0.0.1", 0))
        listener.listen(10)

        async def hang_up() -> None:
            nonlocal connections
            while True:
                sock, _ = await listener.accept()
                connections += 1
                sock.close()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(hang_up)
            with trio.move_on_after(1.0):
                await meet_tcp(half(inbound=False), await TcpPort.open("127.0.0.1"), [listener.getsockname()])
            nursery.cancel_scope.cancel()
    assert 1 <= connections <= stream_race.MAX_OTHERS


@pytest.mark.parametrize("inbound", [False, True], ids=["initiator", "responder"])
async def test_somebody_else_is_troubled_no_more_by_many_ports_and_many_attempts(
    monkeypatch: pytest.MonkeyPatch, inbound: bool
) -> None:
    """A peer may name many ports of a victim, and call many times: connections are counted by address."""
    monkeypatch.setattr(TokenBucket, "earn", lambda self, now: None)  # no refill, however long the test takes
    plugin = half(inbound=inbound)
    connections = 0

    async def hang_up(listener: trio.socket.SocketType) -> None:
        nonlocal connections
        with listener:
            while True:
                sock, _ = await listener.accept()
                connections += 1
                sock.close()

    async with trio.open_nursery() as nursery:
        theirs = []
        for _ in range(16):
            listener = trio.socket.socket()
            await listener.bind(("127.0.0.1", 0))
            listener.listen(10)
            theirs.append(listener.getsockname())
            nursery.start_soon(hang_up, listener)
        with trio.fail_after(HANG):
            for _ in range(2):
                enough = False
                while not enough:
                    enough = connections >= TARGET_DIALS
                    with trio.move_on_after(0.05):
                        await meet_tcp(plugin, await TcpPort.open("127.0.0.1"), theirs)
        nursery.cancel_scope.cancel()
    assert connections == TARGET_DIALS


async def test_a_connection_that_was_not_made_or_led_to_the_peer_does_not_count() -> None:
    plugin = half(inbound=True)
    nobody = await TcpPort.open("127.0.0.1")
    nobody.close()
    with trio.move_on_after(0.1):
        await meet_tcp(plugin, await TcpPort.open("127.0.0.1"), [nobody.local])
    here, there = await TcpPort.open("127.0.0.1"), await TcpPort.open("127.0.0.1")

    async def other() -> None:
        await hold(await meet_tcp(half(inbound=False), there, [here.local]))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(other)
        winner = await meet_tcp(plugin, here, [there.local])
        await winner.flush()
        winner.close_nowait()
    now = trio.current_time()
    assert sum(plugin.node.nat.dials_for_peers.take("127.0.0.1", now) for _ in range(100)) == TARGET_DIALS


@pytest.mark.usefixtures("jumping_clock")
async def test_refusals_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream_race, "MAX_CONNECTS", 20)
    nobody = await TcpPort.open("127.0.0.1")
    nobody.close()
    tried = 0
    real = TcpPort.connect

    async def connect(self: TcpPort, remote: TransportAddress, **options: Any) -> Any:
        nonlocal tried
        tried += 1
        return await real(self, remote, **options)

    monkeypatch.setattr(TcpPort, "connect", connect)
    with trio.move_on_after(1.0):
        await meet_tcp(half(inbound=False), await TcpPort.open("127.0.0.1"), [nobody.local])
    assert tried == 20


@pytest.mark.usefixtures("jumping_clock")
async def test_syns_are_counted_by_where_they_go_over_all_attempts() -> None:
    """A peer that names a victim's address must not have one attempt after the other send SYNs there."""
    nobody = await TcpPort.open("127.0.0.1")
    nobody.close()
    plugin = half(inbound=True)
    taken: list[str] = []

    def take(ip: str, now: float, packets: int = 1) -> bool:
        assert packets == 1
        taken.append(ip)
        return len(taken) <= 5

    plugin.node.nat.allowance.take = take  # type: ignore[method-assign]
    tried = 0
    for _ in range(3):
        with trio.move_on_after(0.3):
            port = await TcpPort.open("127.0.0.1")
            real = port.connect

            async def connect(remote: TransportAddress, real: Any = real, **options: Any) -> Any:
                nonlocal tried
                tried += 1
                return await real(remote, **options)

            port.connect = connect  # type: ignore[method-assign]
            await meet_tcp(plugin, port, [nobody.local])
    assert tried == 5
    assert set(taken) == {"127.0.0.1"}


def test_a_connect_that_is_waited_for_long_counts_for_the_syns_that_the_system_may_send() -> None:
    assert [stream_race.syns(patience) for patience in (0.5, 0.9, 1.9, 2.9, 6.9)] == [1, 1, 2, 3, 7]


def test_a_connect_is_given_up_before_the_system_repeats_its_syn_and_not_after() -> None:
    waits = (0.5, 0.9, 0.95, 1.03, 1.9, 1.95, 4.5)
    expected = (0.5, 0.9, 1.9, 1.9, 1.9, 2.9, 4.9)
    assert [stream_race.before_a_repeat(patience) for patience in waits] == pytest.approx(expected)


@pytest.mark.parametrize(
    ("signal_rtt", "round_trip", "patience"),
    [(None, None, 0.5), (0.4, None, 0.8), (0.05, 0.2, 0.3), (0.05, 0.01, 0.2), (0.05, 3.0, 0.5), (0.6, None, 1.9)],
)
async def test_a_lost_syn_is_repeated_at_once_when_it_has_been_waited_for(
    signal_rtt: float | None,
    round_trip: float | None,
    patience: float,
    monkeypatch: pytest.MonkeyPatch,
    autojump_clock: trio.testing.MockClock,
) -> None:
    """A slow signal does not prolong the wait.  A fast one does not cut off an answer that a busy host still owes."""
    began: list[float] = []

    async def connect(self: TcpPort, remote: TransportAddress, *, on_start: Callable[[], None]) -> Any:
        began.append(trio.current_time())
        on_start()
        await trio.sleep_forever()

    monkeypatch.setattr(TcpPort, "connect", connect)
    plugin = half(inbound=False)
    plugin.node.signal_rtt = signal_rtt
    port = await TcpPort.open("127.0.0.1")
    with trio.move_on_after(3 * patience):
        async with open_stream_race(plugin) as race:
            race.connect(port, [("127.0.0.1", 9)], trio.current_time(), round_trip=round_trip)
            await race.first()
    port.close()
    assert [b - a for a, b in pairwise(began)] == pytest.approx([patience + stream_race.MIN_PAUSE] * 2)


async def test_what_the_system_does_not_send_is_not_tried_again_and_again(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: trio.testing.MockClock
) -> None:
    """The listener holds the peer's SYN half open.  That may come to nothing, so tries must be left for later."""
    tried = 0

    async def connect(self: TcpPort, remote: TransportAddress, *, on_start: Callable[[], None]) -> NoReturn:
        nonlocal tried
        tried += 1
        await trio.lowlevel.checkpoint()
        raise OSError(errno.EADDRNOTAVAIL, os.strerror(errno.EADDRNOTAVAIL))

    monkeypatch.setattr(TcpPort, "connect", connect)
    port = await TcpPort.open("127.0.0.1")
    with trio.move_on_after(5):
        async with open_stream_race(half(inbound=False)) as race:
            race.connect(port, [("127.0.0.1", 9)], trio.current_time())
            await race.first()
    port.close()
    assert tried == 50


async def test_accepting_goes_on_after_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream_race, "ACCEPT_PAUSE", 0.01)
    errors = [OSError(errno.EMFILE, "too many open files"), OSError(errno.ECONNABORTED, "gone")]
    real = TcpPort.accept

    async def accept(self: TcpPort) -> Any:
        await trio.lowlevel.checkpoint()
        if errors and self is there:
            raise errors.pop()
        return await real(self)

    monkeypatch.setattr(TcpPort, "accept", accept)
    with trio.fail_after(HANG):
        here, there = await TcpPort.open("127.0.0.1"), await TcpPort.open("127.0.0.1")
        async with trio.open_nursery() as nursery:

            async def other() -> None:
                (await meet_tcp(half(inbound=True), there, [])).close_nowait()

            nursery.start_soon(other)
            (await meet_tcp(half(inbound=False), here, [there.local])).close_nowait()
            nursery.cancel_scope.cancel()
    assert errors == []


async def test_a_port_that_is_closed_ends_only_its_own_knocking() -> None:
    """The ports at the boundaries are closed like this when the answer has come."""
    with trio.fail_after(HANG):
        here, there, closing = [await TcpPort.open("127.0.0.1") for _ in range(3)]
        async with trio.open_nursery() as nursery:

            async def other() -> None:
                (await meet_tcp(half(inbound=True), there, [])).close_nowait()

            nursery.start_soon(other)
            async with open_stream_race(half(inbound=False)) as race:
                race.accept_on(closing)
                race.connect(closing, [there.local], trio.current_time())
                await trio.lowlevel.checkpoint()
                closing.close()
                await trio.testing.wait_all_tasks_blocked()
                race.accept_on(here)
                race.connect(here, [there.local], trio.current_time())
                (await race.first()).close_nowait()
            here.close()
            nursery.cancel_scope.cancel()
