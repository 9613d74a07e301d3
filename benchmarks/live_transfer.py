"""One long transfer between two homes that goes on while everything about its path changes (root, Linux).

Processes in the kernel lab (`tests/kernel/`), as users run them: ``connect ADDRESS`` sends its stdin at 1.5 MB/s, and
``listen`` writes what it receives to its stdout, both with ``--path-events``.  During the transfer, one after the
other: the listener's machine gets another address; the caller's does; the state of each home's NAT is flushed, after
which it admits no packet of an unknown TCP connection; and the internet drops everything for twenty seconds.

Prints for each event how long no data arrived and what the two sides reported, and finally whether every byte arrived.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any, Final

import trio

from tests.end_to_end.processes import Command
from tests.kernel.enclosed import run_enclosed
from tests.kernel.lab import SERVER, Home, Lab, open_lab
from tests.kernel.run import configuration, program_on
from tests.kernel.test_roaming import renumber
from tests.kernel.wire import Wire
from tests.requirements import unmet

PIECE: Final = 32 * 1024
PACE: Final = PIECE / 1.5e6
"""Seconds between pieces on the caller's stdin: the path is busy, and all events happen during the transfer."""
CUT: Final = 20.0
"""Seconds for which the wire drops everything."""
SETTLED: Final = 5.0
"""Minimum seconds after an event during which its consequences are observed."""
PATIENCE: Final = 120.0
"""Seconds without a byte after which the transfer has failed: `paths.resume_timeout`."""
FLUSH: Final = """
import socket, struct
link = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 12)  # NETLINK_NETFILTER
body = struct.pack("BBH", 0, 0, 0)  # struct nfgenmsg: of every family
head = struct.pack("=IHHII", 16 + len(body), 1 << 8 | 2, 1 | 4, 1, 0)  # IPCTNL_MSG_CT_DELETE, acknowledged
link.send(head + body)
error = struct.unpack_from("=i", link.recv(4096), 16)[0]
assert not error, error
"""
"""Forgets every connection that the kernel tracks (conntrack -F)."""


async def flush(home: Home) -> None:
    """Make the NAT forget all connections, and admit none in mid-stream, like one that was restarted."""
    assert home.router is not None
    home.router.set_sysctl({"netfilter/nf_conntrack_tcp_loose": "0"})
    words = home.router.command([sys.executable, "-c", FLUSH])
    await trio.run_process(words, pass_fds=[home.router.fd])


async def cut(lab: Lab) -> None:
    """Let the wire drop everything for a while."""
    lab.internet.drop = lambda _: True
    await trio.sleep(CUT)
    lab.internet.drop = None


HAPPENINGS: Final[tuple[tuple[str, Callable[[Lab], Awaitable[object]]], ...]] = (
    ("the listener's address", lambda lab: renumber(lab.homes[1])),
    ("the caller's address", lambda lab: renumber(lab.homes[0])),
    ("the listener's NAT", lambda lab: flush(lab.homes[1])),
    ("the caller's NAT", lambda lab: flush(lab.homes[0])),
    (f"the wire, for {CUT:g} s", cut),
)


def events(program: Command) -> list[dict[str, Any]]:
    """The path events that a program has printed."""
    told = [json.loads(line) for line in program.stderr_text.splitlines() if line.startswith("{")]
    return [event for event in told if event["event"] == "path"]


def show(changes: Sequence[dict[str, Any]]) -> str:
    def new(change: dict[str, Any]) -> str:
        path, detail = change["new"], f" ({change['detail']})" if change["detail"] else ""
        return f"{change['cause']}{detail} → {path['plugin'] + ' ' + path['state'] if path else 'none'}"

    return ", ".join(map(new, changes))


async def feed(data: bytes, program: Command) -> None:
    """The data on a program's stdin."""
    for start in range(0, len(data), PIECE):
        await program.stdin.send_all(data[start : start + PIECE])
        await trio.sleep(PACE)
    await program.stdin.aclose()


async def watch(lab: Lab, listener: Command, programs: dict[str, Command], size: int) -> None:
    """Make the events happen during the transfer, and print the result of each."""
    print(f"{'what changes':24} {'at MB':>6} {'silent for':>11}   what the two sides tell")
    for number, (name, happens) in enumerate(HAPPENINGS, 1):
        await listener.wait_size(size * number // (len(HAPPENINGS) + 1))
        told = {who: len(events(program)) for who, program in programs.items()}
        begun, at = trio.current_time(), len(listener.out)
        silence = 0.0
        async with trio.open_nursery() as nursery:
            nursery.start_soon(happens, lab)
            since, seen, over = begun, at, False
            while not over:
                await trio.sleep(0.01)
                now = trio.current_time()
                silence = max(silence, now - since)
                if len(listener.out) > seen:
                    seen, since = len(listener.out), now
                if now - since > PATIENCE:
                    raise SystemExit(f"nothing came for {PATIENCE:g} s\n{listener.stderr_text}")
                happened = not nursery.child_tasks
                over = (happened and now - begun >= SETTLED and now - since < 1.0) or seen == size
        print(f"{name:24} {at / 1e6:6.1f} {silence:9.2f} s", end="")
        for who, program in programs.items():
            print(f"   {who}: {show(events(program)[told[who] :]) or 'nothing'}")
            print(" " * 43, end="")
        print(end="\r", flush=True)


async def run(size: int, kinds: tuple[str, str]) -> bool:
    """Run one transfer; returns whether every byte has arrived."""
    with Wire() as wire, tempfile.TemporaryDirectory(prefix="warpgate-live-") as name:
        folder = Path(name)
        data = os.urandom(size)
        async with open_lab(wire, *kinds) as lab:
            a, b = lab.homes
            async with program_on(lab.server, "serve", "--host", SERVER, "--json", home=folder, logs=None) as server:
                config = folder / "config.toml"
                config.write_text(configuration((await server.event())["servers"]), encoding="utf-8")
                words = ("--config", str(config), "--path-events")
                async with program_on(b.host, "listen", "--allow-any", *words, home=folder, logs=None) as listener:
                    address = await listener.address()
                    async with program_on(
                        a.host, "connect", address, *words, home=folder, logs=None, stdin=subprocess.PIPE
                    ) as caller:
                        started = time.monotonic()
                        async with trio.open_nursery() as nursery:
                            nursery.start_soon(feed, data, caller)
                            await watch(lab, listener, {"caller": caller, "listener": listener}, size)
                        codes = await caller.code(), await listener.code()
                        seconds = time.monotonic() - started
                server.interrupt()
                await server.code()
        whole = listener.out == data
        print(f"{len(listener.out) / 1e6:g} MB in {seconds:.0f} s, {'every byte as sent' if whole else 'NOT AS SENT'}")
        print(f"exit codes {codes[0]} and {codes[1]}")
        return whole and codes == (0, 0)


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.live_transfer", description=(__doc__ or "").split("\n\n")[0]
    )
    parser.add_argument("--megabytes", type=float, default=100.0, help="how much (100)")
    parser.add_argument("--nats", nargs=2, default=("port-restricted", "full-cone"), metavar=("CALLER", "LISTENER"))
    options = parser.parse_args(arguments)
    if missing := next(filter(None, map(unmet, ("network_namespaces", "nft", "tun"))), None):
        print(f"skipped: {missing}")
        return 0
    return 0 if trio.run(run, int(options.megabytes * 1e6), tuple(options.nats)) else 1


if __name__ == "__main__":
    run_enclosed("benchmarks.live_transfer", main)
