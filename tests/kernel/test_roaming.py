"""Transfers between two programs on the kernel continue while their paths die."""

from __future__ import annotations

import json
import subprocess
import tempfile
from collections.abc import Awaitable, Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import trio

from tests.end_to_end.processes import checked_event
from tests.kernel.lab import SERVER, Home, Lab, open_lab
from tests.kernel.run import configuration, program_on
from tests.kernel.transfers import echo_in_pieces
from tests.kernel.wire import Wire

Happening = Callable[[Lab], Awaitable[None]]


async def transfer(kinds: tuple[str, str], happens: Happening, *, listen: tuple[str, ...] = ()) -> float:
    """Send bytes to an echo and back; `happens` runs after a third.  Returns the longest silence, in seconds."""
    with Wire() as wire, tempfile.TemporaryDirectory(prefix="warpgate-lab-") as name:
        folder = Path(name)
        async with open_lab(wire, *kinds) as lab:
            a, b = lab.homes
            async with program_on(lab.server, "serve", "--host", SERVER, "--json", home=folder, logs=None) as server:
                config = folder / "config.toml"
                config.write_text(configuration((await server.event())["servers"]), encoding="utf-8")
                words = ("--config", str(config), "--echo", "--allow-any", "--json", "--path-events", *listen)
                async with program_on(b.host, "listen", *words, home=folder, logs=None) as listener:
                    address = (await listener.event())["address"]
                    words = (address, "--config", str(config), "--path-events")
                    async with program_on(
                        a.host, "connect", *words, home=folder, logs=None, stdin=subprocess.PIPE
                    ) as caller:
                        silence = await echo_in_pieces(caller, lambda: happens(lab))
                    await listener.code()
                    told = [line for line in caller.stderr_text.splitlines() if line.startswith("{")]
                    for lines in (told, bytes(listener.out).splitlines()[2:]):
                        events = [checked_event(line) for line in lines]
                        check_changes([event for event in events if event["event"] != "search"])
                server.interrupt()
                await server.code()
    return silence


def check_changes(changes: list[dict[str, Any]]) -> None:
    """Check one side's events of a replaced path: each has a cause and continues the one before; both ends are live."""
    assert changes
    for change in changes:
        print({key: change[key] for key in ("cause", "detail", "silence_ms", "replayed")})
    assert {change["event"] for change in changes} == {"path"}
    assert all(change["cause"] for change in changes)
    assert all(before["new"] == after["old"] for before, after in pairwise(changes))
    assert changes[0]["old"]["state"] == changes[-1]["new"]["state"] == "live"


async def renumber(home: Home) -> None:
    """Give the machine another address of its home's network, as DHCP does."""
    assert home.router is not None
    network = home.host.ip.rpartition(".")[0]
    new = f"{network}.180"
    mac = json.loads(home.host.machine.sh("ip", "-j", "link", "show", "eth0"))[0]["address"]
    home.router.ip_commands(f"neigh add {new} lladdr {mac} dev lan nud permanent")
    home.host.machine.ip_commands(
        f"addr del {home.host.ip}/24 dev eth0",
        f"addr add {new}/24 dev eth0",
        f"route add default via {network}.1",
    )
    await trio.lowlevel.checkpoint()


@pytest.mark.slow("real programs in namespaces, and a path that dies")
@pytest.mark.needs("network_namespaces", "nft", "tun")
@pytest.mark.parametrize("who", [0, 1])
async def test_a_machine_that_gets_another_address(who: int) -> None:
    silence = await transfer(("port-restricted", "full-cone"), lambda lab: renumber(lab.homes[who]))
    assert silence < 30.0, "it takes a second; where the machine is busy, a first search may fail"
    print(f"silent for {silence:.1f} s")


@pytest.mark.slow("real programs in namespaces, and a wire that is cut for a while")
@pytest.mark.needs("network_namespaces", "nft", "tun")
async def test_a_wire_that_is_cut_for_a_while() -> None:
    async def cut(lab: Lab) -> None:
        lab.internet.drop = lambda _: True
        await trio.sleep(6.0)
        lab.internet.drop = None

    silence = await transfer(("port-restricted", "full-cone"), cut)
    assert 5.0 < silence < 20.0
    print(f"silent for {silence:.1f} s")
