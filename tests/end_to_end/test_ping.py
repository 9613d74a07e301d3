"""`ping --explain` as a process: its screen, its line of JSON, and its exit code."""

from __future__ import annotations

import pytest

from tests.end_to_end.conftest import Server
from tests.end_to_end.processes import checked_event, on_terminal, ran, started
from warpgate_trio import Identity, Verdict
from warpgate_trio.report import ADVICE

pytestmark = pytest.mark.slow("starts processes; each imports Trio and cryptography for 0.4 s")

PING = ("ping", "--ephemeral", "--explain", "--count", "1")


async def test_a_peer_that_is_there_and_then_is_not(server: Server) -> None:
    words = ("--config", server.config)
    async with started("listen", *words, "--ephemeral", "--allow-any", "--echo", "--json", "--keep-open") as listen:
        address = (await listen.event())["address"]
        there = await ran(*PING, *words, address, "--json")
        assert there.process.returncode == 0
        pong, explained = (checked_event(line) for line in bytes(there.out).splitlines())
        assert (pong["event"], explained["event"], explained["kind"]) == ("pong", "explained", "direct")
        assert {each["advice"] for each in explained["steps"]} == {None}
    gone = await ran(*PING, *words, address)
    assert gone.process.returncode == 2
    *lines, error = gone.stderr_text.splitlines()
    assert [line.strip() for line in lines if "→" in line] == [f"→ {ADVICE[Verdict.PEER_OFFLINE]}"]
    assert lines[0] == next(line for line in lines if line.startswith("ok       here    signal server: ws://"))
    (signals,) = (line for line in lines if " signals: " in line)
    assert signals == "failed   there   signals: the signal servers do not know the peer"
    assert error.startswith("error: no path to ")
    assert "(peer_offline). " in error


@pytest.mark.needs("linux")
async def test_a_peer_that_refuses(server: Server) -> None:
    words = ("--config", server.config)
    allowed = Identity.generate().peer_id
    async with started("listen", *words, "--ephemeral", "--allow", allowed, "--json") as listen:
        address = (await listen.event())["address"]
        async with on_terminal(*PING, *words, address) as terminal:
            assert await terminal.command.code() == 2
        assert "acceptance: the peer does not let this id in" in terminal.text
        assert "→ Ask the peer to allow your id" in terminal.text


async def test_without_any_server() -> None:
    """The peer is gone, and there is no server by which to signal to it."""
    async with started("listen", "--ephemeral", "--allow-any", "--echo", "--json") as listen:
        address = (await listen.event())["address"]
    ping = await ran(*PING, address, "--json", "-q")
    assert ping.process.returncode == 2
    (explained,) = (checked_event(line) for line in bytes(ping.out).splitlines())
    assert (explained["kind"], explained["verdict"]) == ("none", "no_signal")
    (signal_server,) = (each for each in explained["steps"] if each["step"] == "signal server")
    assert signal_server["outcome"] == "failed"
    assert signal_server["advice"] == explained["advice"]
