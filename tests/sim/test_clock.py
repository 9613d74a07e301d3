"""Shared time in simulated worlds: skewed and drifting clocks, asymmetric paths, dead and lying servers, two peers."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable
from functools import partial
from ipaddress import ip_address
from itertools import count
from typing import TypeVar

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.panicking import PanicException
from tests.sim.programs import bound
from tests.sim.worlds import run
from warpgate_trio import host as machine
from warpgate_trio.clock.corrected import CHECK_INTERVAL, INTERVAL, RETRY_FIRST, CorrectedClock, keep_measured
from warpgate_trio.clock.estimate import ClockEstimate
from warpgate_trio.clock.ntp_client import MAX_REQUESTS, MAX_SERVERS, SAMPLES, SETTLE, measure_offset
from warpgate_trio.clock.peer_offset import combine, from_signal
from warpgate_trio.clock.rendezvous import boundaries_to_serve, boundary_rendezvous, bucket_ports
from warpgate_trio.config import ServerUrl
from warpgate_trio.errors import ClockUnavailable
from warpgate_trio.nurseries import open_background_nursery
from warpgate_trio.servers.ntp import open_ntp, serve_ntp
from warpgate_trio.servers.ntp_core import NtpLimits, NtpResponder
from warpgate_trio.sim import Fault, Host, Kind, Link, Network
from warpgate_trio.testing import simulated_hosts

T = TypeVar("T")
TIMEOUT = 5.0
Say = Callable[[bytes], bytes | None]


def world(body: Callable[[Network, trio.Nursery], Awaitable[T]], *, seed: int = 0, ipv6: bool = False) -> T:
    """Run `body` in a network with a nursery for its servers."""

    async def inside(net: Network) -> T:
        async with simulated_hosts(), open_background_nursery() as nursery:
            return await body(net, nursery)

    return run(inside, seed=seed, ipv6=ipv6)


def urls(*hosts: Host | str) -> list[ServerUrl]:
    return [ServerUrl.parse(f"ntp://{each if isinstance(each, str) else each.ip}") for each in hosts]


async def time_server(nursery: trio.Nursery, net: Network, name: str, **of_host: object) -> Host:
    """A host with the embedded NTP server on port 123."""
    host = net.host(name, **of_host)  # type: ignore[arg-type]
    with host:
        await nursery.start(partial(serve_ntp, host=host.ip, port=123))
    return host


async def liar(nursery: trio.Nursery, net: Network, name: str, say: Say, **of_host: object) -> Host:
    """A host that answers with the right answer as changed by `say`."""
    host = net.host(name, **of_host)  # type: ignore[arg-type]
    sock = await bound(host, 123)

    async def serve() -> None:
        responder = NtpResponder()
        with sock:
            while True:
                data, source = await sock.recvfrom(1024)
                wall = host.wall_time()
                right = responder.receive(
                    data, ip_address(source[0]), received=wall, sent=wall, now=trio.current_time()
                )
                said = None if right is None else say(right)
                if said is not None:
                    await sock.sendto(said, source)

    nursery.start_soon(serve)
    return host


async def ask(client: Host, servers: list[ServerUrl], *, timeout: float = TIMEOUT) -> ClockEstimate:
    with client:
        return await measure_offset(servers, timeout=timeout, host=machine.current())


def is_right(client: Host, estimate: ClockEstimate, *, slack: float = 2e-6) -> bool:
    """Whether the estimate's bound holds; `slack`: floats of 2026 and later have steps of 0.24 µs or 0.48 µs."""
    wall = client.wall_time()
    true = client.net.epoch + client.net.wire.now
    monotonic = trio.current_time()
    error = abs(estimate.corrected(wall, monotonic) - true)
    return error <= estimate.uncertainty_at(wall, monotonic) + slack


# -- one measurement ---------------------------------------------------------------------------------------------------


@settings(max_examples=25)
@given(
    seed=st.integers(0, 2**16),  # epochs on either side of 2036, when NTP's seconds begin again
    offset=st.floats(-1e6, 1e6),
    drift=st.floats(-1e-4, 1e-4),
    up=st.floats(0, 0.4),
    down=st.floats(0, 0.4),
    jitter=st.floats(0, 0.2),
)
def test_the_truth_is_within_the_uncertainty(
    seed: int, offset: float, drift: float, up: float, down: float, jitter: float
) -> None:
    async def body(net: Network, nursery: trio.Nursery) -> None:
        server = await time_server(nursery, net, "server")
        client = net.host(
            "client",
            clock_offset=offset,
            clock_drift=drift,
            link=(Link(latency=up, jitter=jitter), Link(latency=down, jitter=jitter)),
        )
        estimate = await ask(client, urls(server))
        assert is_right(client, estimate)
        assert estimate.uncertainty <= (up + down + 2 * jitter) / 2 + 0.011  # the server's own 10 ms
        assert estimate.servers == (f"ntp://{server.ip}",)
        assert not estimate.faults

    world(body, seed=seed)


def test_of_several_answers_the_fastest_counts() -> None:
    async def body(net: Network, nursery: trio.Nursery) -> None:
        server = await time_server(nursery, net, "server")
        client = net.host("client", clock_offset=3, link=Link(latency=0.02, jitter=0.5))
        estimate = await ask(client, urls(server))
        assert is_right(client, estimate)

    for seed in range(5):
        world(body, seed=seed)


def test_a_name_with_two_families_of_which_one_is_dead() -> None:
    async def body(net: Network, nursery: trio.Nursery) -> None:
        server = await time_server(nursery, net, "server")  # listens on IPv4 alone
        net.add_name("time.example", server.ip6, server.ip)
        client = net.host("client", clock_offset=-30)
        started = trio.current_time()
        estimate = await ask(client, urls("time.example"))
        assert estimate.offset == pytest.approx(30, abs=0.02)
        assert trio.current_time() - started < 0.1

    world(body, ipv6=True)


# -- servers that do not answer ----------------------------------------------------------------------------------------


def test_dead_servers_cost_nothing() -> None:
    """One has no listener, one is a black hole, one name does not resolve; two agree, but are no majority of five."""

    async def body(net: Network, nursery: trio.Nursery) -> None:
        link = Link(latency=0.02)
        good = [await time_server(nursery, net, name, link=link) for name in ("one", "two")]
        closed, hole = net.host("closed"), net.host("hole")
        net.schedule([Fault(at=0, target="hole", kind=Kind.BLACKHOLE)])
        client = net.host("client", clock_offset=9)
        started = trio.current_time()
        estimate = await ask(client, urls(closed, hole, "no.such.name", *good))
        took = trio.current_time() - started
        assert took < SAMPLES * 0.05 + SETTLE + 0.1
        assert estimate.offset == pytest.approx(-9, abs=0.01)
        assert set(estimate.servers) == {str(url) for url in urls(*good)}
        faults = dict(estimate.faults)
        assert "cannot be resolved" in faults.pop("ntp://no.such.name")
        assert faults == {
            f"ntp://{closed.ip}": "Connection refused",
            f"ntp://{hole.ip}": f"no answer within {SETTLE} s after that of another server",
        }

    world(body)


def test_a_majority_ends_the_waiting() -> None:
    async def body(net: Network, nursery: trio.Nursery) -> None:
        good = [await time_server(nursery, net, name, link=Link(latency=0.01)) for name in ("one", "two")]
        silent = await liar(nursery, net, "silent", lambda right: None)
        started = trio.current_time()
        await ask(net.host("client"), urls(silent, *good))
        assert trio.current_time() - started == pytest.approx(SAMPLES * 0.02, abs=0.01)

    world(body)


def test_when_none_answers_each_is_named() -> None:
    async def body(net: Network, nursery: trio.Nursery) -> None:
        sent = count()

        def silence(right: bytes) -> None:
            next(sent)

        silent, closed = await liar(nursery, net, "silent", silence), net.host("closed")
        started = trio.current_time()
        with pytest.raises(ClockUnavailable) as caught:
            await ask(net.host("client"), urls(silent, closed))
        assert trio.current_time() - started == pytest.approx(TIMEOUT)
        assert str(caught.value) == (f"ntp://{silent.ip}: no answer within 5 s; ntp://{closed.ip}: Connection refused")
        assert next(sent) == 5
        with pytest.raises(ClockUnavailable, match=f"no answer to {MAX_REQUESTS} requests"):
            await ask(net.host("patient"), urls(silent), timeout=60)
        with pytest.raises(ClockUnavailable, match="no NTP server is configured"):
            await ask(net.host("alone"), [])
        with pytest.raises(ValueError, match="is not the URL of an NTP server"):
            await ask(net.host("confused"), [ServerUrl.parse("stun:192.0.2.1")])

    world(body)


def test_lost_packets_are_asked_for_again() -> None:
    async def body(net: Network, nursery: trio.Nursery) -> None:
        server = await time_server(nursery, net, "server")
        client = net.host("client", clock_offset=1, link=Link(latency=0.05, loss=0.3))
        estimate = await ask(client, urls(server))
        assert is_right(client, estimate)

    for seed in range(10):
        world(body, seed=seed)


def test_a_server_that_limits_its_clients_is_used_all_the_same() -> None:
    async def body(net: Network, nursery: trio.Nursery) -> None:
        server = net.host("server", link=Link(latency=0.03))
        with server:
            ntp = await nursery.start(
                partial(serve_ntp, host=server.ip, port=123, limits=NtpLimits(rate=0.01, burst=1))
            )
        client = net.host("client", clock_offset=4)
        started = trio.current_time()
        estimate = await ask(client, urls(server))
        assert estimate.offset == pytest.approx(-4, abs=0.01)
        assert trio.current_time() - started == pytest.approx(0.06 + 3 * 0.06, abs=0.01)
        assert (ntp.statistics().answered, ntp.statistics().limited) == (1, 1)

    world(body)


# -- servers that lie --------------------------------------------------------------------------------------------------


def shifted(right: bytes, seconds: int) -> bytes:
    """The answer with all its times shifted."""
    parts = [right[:32]]
    for start in (32, 40):
        parts.append((int.from_bytes(right[start : start + 4], "big") + seconds & 0xFFFFFFFF).to_bytes(4, "big"))
        parts.append(right[start + 4 : start + 8])
    return b"".join(parts)


def kiss(right: bytes) -> bytes:
    return right[:1] + b"\0" + right[2:12] + b"DENY" + right[16:]


def unsynchronised(right: bytes) -> bytes:
    return bytes([right[0] | 0xC0]) + right[1:]


def initialising(right: bytes) -> bytes:
    """The answer of an unsynchronised ntpd; chronyd's has no code."""
    return bytes([right[0] | 0xC0, 0]) + right[2:12] + b"INIT" + right[16:]


NO_TIME = pytest.mark.parametrize(
    "say",
    [kiss, unsynchronised, initialising, lambda right: shifted(right[:8] + b"\x7f" + right[9:], 0)],
    ids=["kiss", "leap 3", "INIT", "distance"],
)


@NO_TIME
@pytest.mark.parametrize("first", [False, True])
def test_one_that_has_no_time_is_passed_over(say: Say, first: bool) -> None:
    async def body(net: Network, nursery: trio.Nursery) -> None:
        bad = await liar(nursery, net, "bad", say)
        good = await time_server(nursery, net, "good", link=Link(latency=0.1))
        client = net.host("client", clock_offset=30)
        estimate = await ask(client, urls(*((bad, good) if first else (good, bad))))
        assert is_right(client, estimate)
        assert estimate.servers == (f"ntp://{good.ip}",)

    world(body)


@NO_TIME
@pytest.mark.parametrize("order", [("bad", "good"), ("good", "bad"), ("dead", "bad", "good")])
def test_every_address_of_a_name_is_asked(say: Say, order: tuple[str, ...]) -> None:
    async def body(net: Network, nursery: trio.Nursery) -> None:
        bad = await liar(nursery, net, "bad", say)
        good = await time_server(nursery, net, "good")
        net.names["pool"] = [{"bad": bad.ip, "good": good.ip, "dead": "11.99.0.1"}[each] for each in order]
        client = net.host("client", clock_offset=30)
        began = trio.current_time()
        with client:
            estimate = await measure_offset([ServerUrl.parse("ntp://pool")], timeout=5, host=machine.current())
        assert is_right(client, estimate)
        assert trio.current_time() - began < (1.5 if "dead" in order else 0.5)

    world(body)


@pytest.mark.parametrize("order", [("hangs", "good"), ("good", "hangs")])
def test_a_name_that_hangs_costs_the_others_nothing(order: tuple[str, ...]) -> None:
    async def body(net: Network, nursery: trio.Nursery) -> None:
        await time_server(nursery, net, "good")
        net.spoil_name("hangs", delay=math.inf)
        client = net.host("client", clock_offset=30)
        began = trio.current_time()
        with client:
            estimate = await measure_offset(
                [ServerUrl.parse(f"ntp://{each}") for each in order], timeout=5, host=machine.current()
            )
        assert is_right(client, estimate)
        assert trio.current_time() - began < 1
        assert "resolved" in estimate.faults["ntp://hangs"]

    world(body)


def test_one_liar_is_outvoted_and_named() -> None:
    async def body(net: Network, nursery: trio.Nursery) -> None:
        near = await liar(nursery, net, "near", lambda right: shifted(right, 3600))
        far = [await time_server(nursery, net, name, link=Link(latency=0.1)) for name in ("one", "two")]
        client = net.host("client", clock_offset=30)
        estimate = await ask(client, urls(near, *far))
        assert is_right(client, estimate)
        assert estimate.faults == {f"ntp://{near.ip}": "outvoted: contradicts what most servers say"}

    world(body)


def test_one_liar_and_one_honest_server_move_nothing() -> None:
    async def body(net: Network, nursery: trio.Nursery) -> None:
        bad = await liar(nursery, net, "bad", lambda right: shifted(right, 3600))
        good = await time_server(nursery, net, "good")
        with pytest.raises(ClockUnavailable) as caught:
            await ask(net.host("client"), urls(bad, good))
        assert str(caught.value) == (
            f"ntp://{bad.ip}: answered an offset of +3600.000 s, on which no majority agrees; "
            f"ntp://{good.ip}: answered an offset of +0.000 s, on which no majority agrees"
        )

    world(body)


@pytest.mark.parametrize(
    ("say", "why"),
    [
        (kiss, r"kiss of death, DENY"),
        (unsynchronised, "leap indicator 3"),
        (initialising, r"not synchronised \(stratum 0, code INIT\)"),
        (lambda right: right[:1] + b"\x10" + right[2:], "stratum 16"),
        (lambda right: right[:40] + bytes(8), "does not say when"),
        (lambda right: shifted(right[:8] + b"\x7f" + right[9:], 0), "s off by its own account"),
    ],
)
def test_who_says_no_is_not_asked_again(say: Say, why: str) -> None:
    async def body(net: Network, nursery: trio.Nursery) -> None:
        asked = count()

        def counted(right: bytes) -> bytes | None:
            next(asked)
            return say(right)

        server = await liar(nursery, net, "server", counted)
        with pytest.raises(ClockUnavailable, match=why):
            await ask(net.host("client"), urls(server))
        assert next(asked) == 1
        assert trio.current_time() < 0.1

    world(body)


def test_a_kiss_of_death_after_an_answer_keeps_the_answer() -> None:
    async def body(net: Network, nursery: trio.Nursery) -> None:
        asked = count()
        server = await liar(nursery, net, "server", lambda right: kiss(right) if next(asked) else right)
        client = net.host("client", clock_offset=7)
        assert (await ask(client, urls(server))).offset == pytest.approx(-7, abs=0.01)
        assert next(asked) == 2

    world(body)


@pytest.mark.parametrize(
    "say", [lambda right: right[:24] + bytes(8) + right[32:], lambda right: right[:30], lambda right: b""]
)
def test_what_does_not_carry_the_origin_is_no_answer(say: Say) -> None:
    async def body(net: Network, nursery: trio.Nursery) -> None:
        server = await liar(nursery, net, "server", say)
        with pytest.raises(ClockUnavailable, match=r"no answer within 2 s .*answers no request of this host"):
            await ask(net.host("client"), urls(server), timeout=2)

    world(body)


# -- being stopped, and being bounded --------------------------------------------------------------------------------


def test_a_measurement_can_be_cancelled_anywhere() -> None:
    """`run` checks that no socket is left."""

    async def body(net: Network, nursery: trio.Nursery) -> None:
        server = await time_server(nursery, net, "server", link=Link(latency=0.02))
        silent = await liar(nursery, net, "silent", lambda right: None)
        client = net.host("client")
        for hundredths in range(0, 70, 2):
            with trio.move_on_after(hundredths / 100) as scope:
                await ask(client, urls(server, silent, "no.such.name"))
            assert scope.cancelled_caught is (hundredths / 100 < SAMPLES * 0.04 + SETTLE)
            assert not [line for line in str(net.netstat()).splitlines() if "client" in line]

    world(body)


def test_a_flood_of_forged_answers_only_delays() -> None:
    async def body(net: Network, nursery: trio.Nursery) -> None:
        forged = 0

        def flood(right: bytes) -> bytes:
            nonlocal forged
            forged += 1
            return right[:24] + forged.to_bytes(8, "big") + right[32:]

        server = await liar(nursery, net, "server", flood)
        good = await time_server(nursery, net, "good")
        estimate = await ask(net.host("client", clock_offset=2), urls(server, good))
        assert estimate.offset == pytest.approx(-2, abs=0.01)
        assert forged <= MAX_REQUESTS

    world(body)


def test_no_more_servers_are_asked_than_agreed() -> None:
    async def body(net: Network, nursery: trio.Nursery) -> None:
        asked: list[int] = []
        servers = []
        for number in range(MAX_SERVERS + 2):

            def note(right: bytes, number: int = number) -> None:
                asked.append(number)

            servers.append(await liar(nursery, net, f"server{number}", note))
        with pytest.raises(ClockUnavailable):
            await ask(net.host("client"), urls(*servers, servers[0]), timeout=30)
        assert sorted(set(asked)) == list(range(MAX_SERVERS))
        assert len(asked) == MAX_SERVERS * MAX_REQUESTS

    world(body)


# -- the node's clock --------------------------------------------------------------------------------------------------


def test_a_clock_that_is_kept_measured() -> None:
    """A drifting clock, 30 s off, with a dead server at first, and then set by hand, stays within its uncertainty."""

    async def body(net: Network, nursery: trio.Nursery) -> None:
        server = net.host("server", link=Link(latency=0.02))
        client = net.host("client", clock_offset=30, clock_drift=2e-5)
        failures: list[str] = []
        with client:
            host = machine.current()
            clock = CorrectedClock(host)
            assert clock.now() == host.wall_time()
            assert clock.uncertainty() == float("inf")
            assert clock.moved() == 0
            nursery.start_soon(
                partial(
                    keep_measured,
                    clock,
                    urls(server),
                    timeout=2.0,
                    host=host,
                    on_failure=lambda error: failures.append(str(error)),
                )
            )

        def error() -> float:
            return abs(clock.now() - (net.epoch + net.wire.now))

        await trio.sleep(RETRY_FIRST / 2)
        assert failures == [f"ntp://{server.ip}: Connection refused"]
        assert clock.now() == host.wall_time()
        async with open_background_nursery() as serving:
            with server:
                ntp = await serving.start(partial(serve_ntp, host=server.ip, port=123))
            await trio.sleep(RETRY_FIRST)
            assert clock.now() - host.wall_time() == pytest.approx(-30, abs=0.05)
            for _ in range(40):
                await trio.sleep(INTERVAL / 8)
                assert error() <= clock.uncertainty() + 1e-6
                assert clock.uncertainty() < 0.1
            asked = ntp.statistics().answered
            assert asked == pytest.approx(SAMPLES * 6, abs=SAMPLES), "no more often than agreed"
            client.clock_offset -= 3600  # somebody sets the clock
            assert error() <= clock.uncertainty()
            await trio.sleep(CHECK_INTERVAL + 1)
            assert error() <= clock.uncertainty() + 1e-6
            assert clock.uncertainty() < 0.1
            assert ntp.statistics().answered == asked + SAMPLES
        assert len(failures) == 1

    world(body)


def test_a_worse_measurement_changes_nothing() -> None:
    async def body(net: Network, nursery: trio.Nursery) -> None:
        with net.host("client"):
            clock = CorrectedClock(machine.current())
            now = clock.now()

            def estimate(offset: float, uncertainty: float) -> ClockEstimate:
                return ClockEstimate(
                    offset=offset, uncertainty=uncertainty, measured_at=trio.current_time(), wall_at=now
                )

            assert clock.update(estimate(100, 10.5)) == 0, "nobody can meet by that"
            assert clock.estimate is None
            assert clock.update(estimate(5, 0.1)) == 5
            assert clock.update(estimate(7, 0.2)) == 0
            assert clock.update(estimate(5.05, 0.02)) == pytest.approx(0.05, abs=1e-6)
            assert clock.uncertainty() == 0.02
            assert clock.uncertainty(clock.now() + 1000) == pytest.approx(0.02 + 0.015)
            assert clock.uncertainty(clock.now() - 1000) == 0.02
            assert clock.trio_time(clock.now() + 3) == pytest.approx(trio.current_time() + 3, abs=1e-6)

    world(body)


# -- two peers ---------------------------------------------------------------------------------------------------------


@settings(max_examples=20)
@given(
    seed=st.integers(0, 2**16),
    offsets=st.tuples(st.floats(-30, 30), st.floats(-30, 30)),
    latencies=st.tuples(*[st.floats(0.001, 0.3)] * 4),
    ntp=st.tuples(st.booleans(), st.booleans()),
)
def test_two_peers_act_at_one_instant(
    seed: int, offsets: tuple[float, float], latencies: tuple[float, ...], ntp: tuple[bool, bool]
) -> None:
    """With NTP servers or without, after one round trip both act at one instant, within the computed uncertainty."""

    async def body(net: Network, nursery: trio.Nursery) -> None:
        server = await time_server(nursery, net, "server")
        peers = [
            net.host(
                name,
                clock_offset=offset,
                link=(Link(latency=latencies[2 * number]), Link(latency=latencies[2 * number + 1])),
            )
            for number, (name, offset) in enumerate(zip(("alice", "bob"), offsets, strict=True))
        ]
        clocks: list[CorrectedClock] = []
        for peer, measures in zip(peers, ntp, strict=True):
            with peer:
                clocks.append(CorrectedClock(machine.current()))
                if measures:
                    clocks[-1].update(await measure_offset(urls(server), timeout=5, host=machine.current()))
        alice, bob = clocks
        socks = [await bound(peer, 5000) for peer in peers]
        sent = alice.now()
        await socks[0].sendto(b"request", (peers[1].ip, 5000))
        await socks[1].recvfrom(100)
        received = answered = bob.now()
        await socks[1].sendto(b"reply", (peers[0].ip, 5000))
        await socks[0].recvfrom(100)
        signal = from_signal(sent, received, answered, alice.now())
        offset = combine(alice.uncertainty(), bob.uncertainty(), signal)
        for sock in socks:
            sock.close()
        assert offset is not None
        assert offset.uncertainty <= sum(latencies) / 2 + 1e-4
        instant = alice.now() + 1.0
        at = alice.trio_time(instant), bob.trio_time(offset.to_peer(instant))
        assert abs(at[0] - at[1]) <= offset.uncertainty + 1e-5

    world(body, seed=seed)


def test_two_peers_who_cannot_talk_meet_at_a_boundary() -> None:
    """Without an answer to the request, Bob knows only the secret and his own clock."""
    period, lead, secret = 3.0, 0.5, bytes(16)

    async def body(net: Network, nursery: trio.Nursery) -> None:
        server = await time_server(nursery, net, "server")
        clocks: list[CorrectedClock] = []
        for name, offset in (("alice", 30.0), ("bob", -30.0)):
            with net.host(name, clock_offset=offset, link=Link(latency=0.1)):
                clocks.append(CorrectedClock(machine.current()))
                clocks[-1].update(await measure_offset(urls(server), timeout=5, host=machine.current()))
        alice, bob = clocks
        differ = alice.uncertainty() + bob.uncertainty()
        first, _ = boundary_rendezvous(alice.now(), period, lead)
        served = boundaries_to_serve(bob.now(), period, lead, differ)
        assert first in served
        assert abs(alice.trio_time(first.instant) - bob.trio_time(first.instant)) <= differ
        ours = bucket_ports(secret, first.bucket, 8, 2024, 65535)
        assert ours in [bucket_ports(secret, each.bucket, 8, 2024, 65535) for each in served]

    for seed in range(8):
        world(body, seed=seed)


def test_open_ntp_leaves_nothing_behind() -> None:
    async def body(net: Network, nursery: trio.Nursery) -> None:
        with net.host("server", ipv6=True):
            async with open_ntp(host=None, port=123) as server:
                assert server.urls == ("ntp://0.0.0.0:123", "ntp://[::]:123")
                assert (server.url, server.port) == (server.urls[0], 123)
                assert "ntp://[::]:123" in repr(server)
                with pytest.raises(OSError, match="in use"):
                    async with open_ntp(host=None, port=123):
                        pass

    world(body, ipv6=True)


def test_what_nobody_foresaw_in_a_measurement_ends_no_node(monkeypatch: pytest.MonkeyPatch) -> None:
    """The panic of a Rust library derives from BaseException only."""

    async def body(net: Network, nursery: trio.Nursery) -> None:
        server = await time_server(nursery, net, "server")
        failures: list[ClockUnavailable] = []
        tries = count()

        async def measure(*args: object, **kwargs: object) -> ClockEstimate:
            if next(tries) == 0:
                raise PanicException("index out of bounds")
            return await measure_offset(urls(server), timeout=TIMEOUT, host=machine.current())

        monkeypatch.setattr("warpgate_trio.clock.corrected.measure_offset", measure)
        with net.host("client", clock_offset=5):
            clock = CorrectedClock(machine.current())
            keep = partial(keep_measured, timeout=TIMEOUT, host=machine.current(), on_failure=failures.append)
            nursery.start_soon(partial(keep, clock, urls(server)))
            await clock.wait_asked()
            await trio.sleep(2 * RETRY_FIRST)
            assert clock.estimate is not None
        assert [str(each) for each in failures] == ["unexpected LibraryPanicked"]

    world(body)
