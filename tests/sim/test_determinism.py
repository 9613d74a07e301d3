"""Equal seeds make equal runs, in this process and in others, whatever their hash seeds."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest
import trio
from trio._core import _run

from tests.sim.programs import behind, punch_tcp, punch_udp, server_in
from warpgate_trio.sim import Link, Network, deterministic, presets, simulate

ROOT = Path(__file__).resolve().parent.parent.parent
PROGRAM = "from tests.sim.test_determinism import digest; print(digest(int({seed})))"


async def busy_world(net: Network) -> None:
    """A world with punching over bad links, transfers, many tasks that wake at one time, and cancellations."""
    bad = Link(latency=0.02, jitter=0.01, loss=0.05, duplicate=0.05, reorder=0.1, bandwidth=1e7)
    a = behind(net, "a", [presets.CGN, presets.LINUX])
    b = behind(net, "b", [presets.LINUX_SYMMETRIC])
    await punch_udp(server_in(net), a, b, skew=0.01, patience=1.0)
    server = net.host("server", link=bad)

    async def serve(stream: trio.SocketStream) -> None:
        with suppress(trio.BrokenResourceError):  # from clients that gave up
            async for chunk in stream:
                await stream.send_all(chunk)

    async def talk(number: int) -> None:
        with trio.move_on_after(0.1 + number % 3):
            async with await trio.open_tcp_stream(server.ip, 80) as stream:
                await stream.send_all(bytes(number * 1000))
                await stream.send_eof()
                async for _ in stream:
                    pass

    async with trio.open_nursery() as nursery:
        with server:
            await nursery.start(trio.serve_tcp, serve, 80)
        async with trio.open_nursery() as clients:
            for number in range(12):
                with (a, b)[number % 2]:
                    clients.start_soon(talk, number)
        nursery.cancel_scope.cancel()


def digest(seed: int) -> str:
    async def main() -> str:
        async with Network(seed) as net:
            await busy_world(net)
            assert net.trace.count + len(net.trace.latest()) > 500
            return net.digest()

    return simulate(main, seed=seed)


def test_the_same_seed_gives_the_same_trace_here() -> None:
    assert digest(1) == digest(1) != digest(2)


@pytest.mark.slow("four processes, each of which imports Trio")
def test_the_same_seed_gives_the_same_trace_in_other_processes() -> None:
    def run(seed: int, hash_seed: str) -> str:
        environment = {**os.environ, "PYTHONHASHSEED": hash_seed, "PYTHONPATH": str(ROOT)}
        command = [sys.executable, "-c", PROGRAM.format(seed=seed)]
        done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    found = {run(7, hash_seed) for hash_seed in ("0", "1", "random", "4294967295")}
    assert found == {digest(7)}


def test_punching_over_tcp_is_the_same_too() -> None:
    def once() -> str:
        async def main() -> str:
            async with Network(3) as net:
                hosts = behind(net, "a", [presets.OPENWRT]), behind(net, "b", [presets.RFC])
                await punch_tcp(server_in(net), *hosts, skew=0.3, patience=2)
                return net.digest()

        return simulate(main, seed=3)

    assert once() == once()


def test_the_digest_ignores_payload_bytes_and_sees_all_else() -> None:
    def once(payload: bytes, port: int) -> str:
        async def main() -> str:
            async with Network() as net:
                with net.host("a"), trio.socket.socket(type=trio.socket.SOCK_DGRAM) as sock:
                    await sock.bind(("", 1))
                    await sock.sendto(payload, ("11.9.9.9", port))
                return net.digest()

        return simulate(main)

    assert once(b"one", 5) == once(b"two", 5)
    assert once(b"one", 5) != once(b"longer", 5)
    assert once(b"one", 5) != once(b"one", 6)


def test_the_switch_is_put_back() -> None:
    before = _run._ALLOW_DETERMINISTIC_SCHEDULING, _run._r.getstate()
    with deterministic(1):
        assert _run._ALLOW_DETERMINISTIC_SCHEDULING
        first = _run._r.random()
    assert (_run._ALLOW_DETERMINISTIC_SCHEDULING, _run._r.getstate()) == before
    with deterministic(1):
        assert _run._r.random() == first


@pytest.mark.parametrize("name", ["_ALLOW_DETERMINISTIC_SCHEDULING", "_r"])
def test_a_trio_without_the_switch_is_noticed(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.delattr(_run, name)
    with pytest.raises(RuntimeError, match="this version of Trio has no"):
        with deterministic(1):
            raise AssertionError


def test_the_switch_still_does_something() -> None:
    """Trio could keep these names but ignore them: then two seeds would give one order of tasks, or one seed two."""

    def order(seed: int) -> list[int]:
        async def main() -> list[int]:
            ran: list[int] = []

            async def note(number: int) -> None:
                await trio.lowlevel.checkpoint()
                ran.append(number)

            async with trio.open_nursery() as nursery:
                for number in range(20):
                    nursery.start_soon(note, number)
            return ran

        return simulate(main, seed=seed)

    assert order(1) == order(1) != order(2)
