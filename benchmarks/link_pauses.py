"""How long a TCP transfer pauses while its path works, on the nine links of `presets.LINKS`; in virtual time.

Alice, on such a link, sends bulk data to bob, who has no delay and acknowledges each KiB.  A pause is the time between
two acknowledgements that reach alice, or between the last one and the end.  Losses are of three kinds, each with the
same share of the packets of a steady stream:

* independent;
* bursts in packets (`Link(burst=…)`): each lasts until a number of packets was lost, however slowly they are sent;
* bursts in time: each lasts as long as that number of full packets takes on the link, sent or not.

    python -m benchmarks.link_pauses [--seconds 60] [--runs 3] [LINK ...]
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from typing import Final, final

import trio

from warpgate_trio.sim import Fault, Host, Kind, Link, Network, presets, simulate

GRAIN: Final = 1024  # bytes of progress for each acknowledgement
PACKET: Final = 1500
SUSPECT: Final = 1.5  # seconds beyond three round trips, after which a path is suspected
DEAD: Final = 15.0  # seconds more, after which it is dead
TRANSFER: Final = 1 << 20  # bytes, each way
PATIENCE: Final = 600.0  # virtual seconds for them
PORT: Final = 80
Spoil = Callable[[Network, Link, float], None]


def nothing(net: Network, link: Link, until: float) -> None:
    pass


def bursts_in_time(net: Network, link: Link, until: float) -> None:
    """Schedule spans in which everything is lost, independently for each direction."""
    mean = link.burst * PACKET * 8 / link.bandwidth
    for way in ("up", "down"):
        random, now = net.rng(f"bursts:{way}"), 0.0
        while now < until:
            now += random.expovariate(link.loss / (1 - link.loss) / mean)
            end = now + random.expovariate(1 / mean)
            net.schedule([Fault(at=now, until=end, target=f"alice:{way}", kind=Kind.BLACKHOLE)])
            now = end


WAYS: Final[dict[str, tuple[Callable[[Link], Link], Spoil]]] = {
    "independent": (lambda link: replace(link, burst=1), nothing),
    "bursts in packets": (lambda link: link, nothing),
    "bursts in time": (lambda link: replace(link, loss=0, burst=1), bursts_in_time),
}


@final
@dataclass(frozen=True, slots=True)
class Pauses:
    """One run: its pauses, and the number of acknowledged bytes."""

    seconds: tuple[float, ...]
    told: int


async def connected(alice: Host, bob: Host) -> tuple[trio.SocketStream, trio.SocketStream]:
    with bob:
        (listener,) = await trio.open_tcp_listeners(PORT, host=bob.ip)
    async with listener:
        while True:
            with alice:
                sock = trio.socket.socket()
            try:
                await sock.connect((bob.ip, PORT))
            except OSError:  # TCP has given up: try a new connection
                sock.close()
                continue
            return trio.SocketStream(sock), await listener.accept()


async def bulk(preset: Link, way: str, seed: int, seconds: float) -> Pauses:
    change, spoil = WAYS[way]
    async with Network(seed, time_limit=1e6) as net:
        alice, bob = net.host("alice", link=change(preset)), net.host("bob")
        ours, theirs = await connected(alice, bob)
        spoil(net, preset, seconds)
        heard: list[float] = [trio.current_time()]
        told = 0

        async def send() -> None:
            while True:
                await ours.send_all(bytes(65536))

        async def answer() -> None:
            come, said = 0, 0
            while True:
                come += len(await theirs.receive_some(65536))
                if come - said >= GRAIN:
                    said = come
                    await theirs.send_all(said.to_bytes(8, "big"))

        async def listen() -> None:
            nonlocal told
            rest = b""
            while True:
                rest += await ours.receive_some()
                whole = len(rest) // 8 * 8
                if whole:
                    told, rest = int.from_bytes(rest[whole - 8 : whole], "big"), rest[whole:]
                    heard.append(trio.current_time())

        with trio.move_on_after(seconds):
            async with trio.open_nursery() as nursery:
                for task in (send, answer, listen):
                    nursery.start_soon(task)
        heard.append(trio.current_time())
        for stream in (ours, theirs):
            stream.socket.close()
    return Pauses(tuple(after - before for before, after in pairwise(heard)), told)


async def each_way(preset: Link, way: str, seed: int) -> float | None:
    """Seconds for a MiB in each direction at once, without connecting; None if it takes too long or breaks."""
    change, spoil = WAYS[way]
    async with Network(seed, time_limit=1e6) as net:
        alice, bob = net.host("alice", link=change(preset)), net.host("bob")
        ends = await connected(alice, bob)
        spoil(net, preset, PATIENCE)
        began, took = trio.current_time(), None

        async def read(stream: trio.SocketStream) -> None:
            got = 0
            while got < TRANSFER:
                got += len(await stream.receive_some(65536))

        with trio.move_on_after(PATIENCE):
            try:
                async with trio.open_nursery() as nursery:
                    for stream in ends:
                        nursery.start_soon(stream.send_all, bytes(TRANSFER))
                        nursery.start_soon(read, stream)
            except* trio.BrokenResourceError:
                pass
            else:
                took = trio.current_time() - began
        for stream in ends:
            stream.socket.close()
    return took


def row(name: str, way: str, seconds: float, runs: int) -> str:
    preset = presets.LINKS[name]
    rtt = 2 * preset.latency
    suspect = 3 * rtt + SUSPECT
    found = [simulate(partial(bulk, preset, way, seed, seconds)) for seed in range(runs)]
    pauses = sorted((pause for each in found for pause in each.seconds), reverse=True)
    rate = sum(each.told for each in found) * 8 / (runs * seconds) / 1e6
    times = [simulate(partial(each_way, preset, way, seed)) for seed in range(runs)]
    longest = ", ".join(f"{pause:.1f}" for pause in pauses[:3])
    over, dead = (sum(pause > limit for pause in pauses) for limit in (suspect, suspect + DEAD))
    done = ", ".join("never" if took is None else f"{took:.0f}" for took in times)
    return f"| {name} | {way} | {rate:.2f} | {longest} | {over} of > {suspect:.1f} s | {dead} | {done} |"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60.0, help="of each bulk transfer")
    parser.add_argument("--runs", type=int, default=3, help="of each kind, with seeds from 0 on")
    parser.add_argument("links", nargs="*", metavar="LINK", default=list(presets.LINKS), help=", ".join(presets.LINKS))
    given = parser.parse_args(arguments)
    print("| link | losses | Mbit/s | longest pauses, s | over 3 R + 1.5 s | over that + 15 s | 1 MiB each way, s |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for name in given.links:
        for way in WAYS if presets.LINKS[name].burst > 1 else ["independent"]:
            print(row(name, way, given.seconds, given.runs), flush=True)


if __name__ == "__main__":
    main()
