"""Transfers between programs on the kernel that begin over a relay."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, Final

import pytest
import trio

from tests.end_to_end.processes import Command, checked_event
from tests.kernel.lab import BYSTANDER, SERVER, Lab, open_lab
from tests.kernel.run import configuration, program_on
from tests.kernel.transfers import PACE, PIECES, echo_in_pieces
from tests.kernel.wire import Wire

pytestmark = [
    pytest.mark.slow("real programs in namespaces, and a transfer of three seconds"),
    pytest.mark.needs("network_namespaces", "nft", "tun"),
]
RELAYS: Final = ("--open", "--no-turn", "--no-stun", "--no-ntp")

Happening = Callable[[Lab, list[Command]], Awaitable[None]]


async def quiet(_lab: Lab, _servers: list[Command]) -> None:
    """Nothing happens."""
    await trio.lowlevel.checkpoint()


async def transfer(
    kinds: tuple[str, str],
    *connect: str,
    servers: int = 1,
    happens: Happening = quiet,
    pieces: int = PIECES,
    pace: float = PACE,
) -> tuple[str, list[dict[str, Any]], float]:
    """Send bytes to an echo and back, with `servers` rendezvous servers that relay; `happens` runs after a third.

    Returns the caller's event of its first path, its events of changes, and the longest silence in seconds.
    """
    async with AsyncExitStack() as stack:
        wire = stack.enter_context(Wire())
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="warpgate-lab-")))
        lab = await stack.enter_async_context(open_lab(wire, *kinds))
        a, b = lab.homes
        running: list[Command] = []
        known: dict[str, list[str]] = {}
        urls: list[str] = []
        for host, ip in ((lab.server, SERVER), (lab.bystander, BYSTANDER))[:servers]:
            words = ("serve", "--host", ip, *(RELAYS if ip == BYSTANDER else RELAYS[:2]), "--json")
            running.append(await stack.enter_async_context(program_on(host, *words, home=folder, logs=None)))
            found = (await running[-1].event())["servers"]
            urls += found["websocket"]
            if ip == SERVER:
                known = found
        config = folder / "config.toml"
        config.write_text(configuration({**known, "websocket": urls}), encoding="utf-8")
        words = ("listen", "--config", str(config), "--echo", "--allow-any", "--json")
        listener = await stack.enter_async_context(program_on(b.host, *words, home=folder, logs=None))
        address = (await listener.event())["address"]
        words = ("connect", address, "--config", str(config), "--path-events", *connect)
        caller = await stack.enter_async_context(
            program_on(a.host, *words, home=folder, logs=None, stdin=subprocess.PIPE)
        )
        silence = await echo_in_pieces(caller, lambda: happens(lab, running), pieces=pieces, pace=pace)
        await listener.code()
        lines = caller.stderr_text.splitlines()
        (connected,) = [line for line in lines if line.startswith("connected ")]
        print(connected)
        events = [checked_event(line) for line in lines if line.startswith("{")]
        return connected, [event for event in events if event["event"] == "path"], silence


async def test_a_transfer_between_two_cones_leaves_the_relay() -> None:
    connected, changes, silence = await transfer(("port-restricted", "port-restricted"), "--relay-first")
    print(f"silent for {silence:.2f} s at most")
    assert "by ws_relay" in connected
    assert "better" in {change["cause"] for change in changes}
    assert changes[-1]["new"]["phase"] == "punch"


async def kill(_lab: Lab, running: list[Command]) -> None:
    """Kill the server that carries the transfer, with signal 9; the other one ends with the lab."""
    running[0].process.kill()
    await trio.lowlevel.checkpoint()


class Passed:
    """From a call on, counts the packets from and to a server that are large enough to carry a transfer."""

    def __init__(self) -> None:
        self.count = 0

    async def begin(self, lab: Lab, _running: list[Command]) -> None:
        def see(packet: bytes) -> bool:
            ends = (".".join(map(str, packet[12:16])), ".".join(map(str, packet[16:20])))
            self.count += len(packet) > 1000 and lab.server.ip in ends
            return False

        lab.internet.drop = see
        await trio.lowlevel.checkpoint()


async def test_a_transfer_whose_relay_is_killed_ends_by_the_other_one() -> None:
    connected, changes, silence = await transfer(("symmetric", "symmetric"), "--relay-first", servers=2, happens=kill)
    print(f"silent for {silence:.2f} s at most")
    assert "by ws_relay" in connected
    assert {change["new"]["plugin"] for change in changes if change["new"] is not None} == {"ws_relay"}


async def test_a_transfer_has_left_its_relay_before_that_is_shut_down() -> None:
    """SIGTERM to the server that carries it: the Pipe is never without a path, and the server ends by itself."""
    codes: list[int | None] = []

    async def terminate(_lab: Lab, running: list[Command]) -> None:
        began = trio.current_time()
        running[0].process.terminate()
        codes.append(await running[0].code())
        print(f"the server has ended after {trio.current_time() - began:.2f} s")

    connected, changes, silence = await transfer(
        ("symmetric", "symmetric"), "--relay-first", servers=2, happens=terminate
    )
    print(f"silent for {silence:.2f} s at most")
    assert "by ws_relay" in connected
    assert codes == [0]
    assert [change["new"]["state"] for change in changes] == ["live"], "and never none"
    assert [change["new"]["plugin"] for change in changes] == ["ws_relay"]


async def test_what_is_forbidden_carries_nothing() -> None:
    """No byte of the transfer passes through the server."""
    passed = Passed()
    connected, changes, _ = await transfer(
        ("port-restricted", "open"), "--phases", "direct,punch", "--relay-first", happens=passed.begin
    )
    assert "by direct_connect" in connected
    assert not changes
    assert passed.count == 0
