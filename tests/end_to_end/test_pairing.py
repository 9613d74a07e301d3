"""`listen --code` and `connect --code` as processes, as a new user would try them."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

import pytest
import trio

from tests.end_to_end.conftest import Server
from tests.end_to_end.processes import PROGRAM, Command, environment, on_terminal, ran, started
from tests.hangs import HANG

pytestmark = pytest.mark.slow("starts processes; each imports Trio and cryptography for 0.4 s")

PIPE: Final = subprocess.PIPE
SCRIPT: Final = Path(__file__).with_name("first_minute.sh")
"""`pip install`, `listen --code` and `connect --code`, with a given server.  Here the first one has nothing to do;
`tools/dist.py` runs the whole script in an empty environment."""


@asynccontextmanager
async def offering(server: Server, *words: str) -> AsyncGenerator[tuple[Command, str]]:
    """A `listen --code --json`, and its code."""
    async with started("listen", "--config", server.config, "--ephemeral", "--code", "--json", *words) as listen:
        event = await listen.event(1)
        assert event["event"] == "code"
        yield listen, event["code"]


async def test_three_commands_from_nothing_to_two_terminals_that_are_paired(server: Server, tmp_path: Path) -> None:
    """A new user's script, with one key for both terminals, takes well under the minute allowed with `pip`."""
    program = tmp_path / "bin" / "warpgate-trio"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec {" ".join(PROGRAM)} "$@"\n')
    program.chmod(0o755)
    (program.parent / "python").symlink_to(sys.executable)
    home = {
        "HOME": str(tmp_path),
        "XDG_CONFIG_HOME": str(tmp_path),
        "WARPGATE_SERVERS_WEBSOCKET": server.url,
        "PATH": f"{program.parent}:/usr/bin:/bin",
    }
    began = time.monotonic()
    with trio.fail_after(HANG):
        done = await trio.run_process(
            ["sh", SCRIPT], cwd=tmp_path, env=environment(home), capture_stdout=True, capture_stderr=True
        )
    took = time.monotonic() - began
    print(done.stderr.decode())
    assert done.stdout == b"hello\n"
    assert took < 60
    said, listened = done.stderr.decode(), (tmp_path / "listen.txt").read_text()
    (there,) = [line for line in said.splitlines() if line.startswith("paired with ")]
    (here,) = [line for line in listened.splitlines() if line.startswith("paired with ")]
    listener = listened.partition("listening as ")[2].partition(" ")[0]
    assert there.startswith(f"paired with {listener}, as ")
    assert here == "paired with " + there.rpartition(" ")[2]


async def test_files_go_to_who_has_typed_the_senders_code(server: Server, tmp_path: Path) -> None:
    """This also works with one key for both terminals."""
    there = tmp_path / "there"
    there.mkdir()
    (tmp_path / "report.txt").write_text("hello")
    home = {"HOME": str(tmp_path), "XDG_CONFIG_HOME": str(tmp_path), "XDG_DATA_HOME": str(tmp_path)}
    words = ("send", "--config", server.config, "--code", "--json", tmp_path / "report.txt")
    async with started(*words, env=home) as send:
        code = (await send.event())["code"]
        receive = await ran("receive", "--config", server.config, "--code", code, "--into", there, env=home)
        assert receive.process.returncode == 0, receive.stderr_text
        assert await send.code() == 0, send.stderr_text
    assert (there / "report.txt").read_text() == "hello"
    for bad in (("send", "x"), ("send", "x", "--code", "--to", "y"), ("receive", "--code", "1-a-b", "--allow-any")):
        assert (await ran(*bad)).process.returncode == 2


async def test_json_tells_the_code_and_who_came(server: Server) -> None:
    async with offering(server, "--echo") as (listen, code):
        words = ("connect", "--config", server.config, "--ephemeral", "--json", "--echo-test", "1kB", "--code", code)
        connect = await ran(*words)
        assert connect.process.returncode == 0, connect.stderr_text
        connected, paired = await connect.event(), await listen.event(2)
        ready = await listen.event(0)
        assert connected["peer"] == ready["peer"]
        assert paired["event"] == "paired"
        assert (await listen.event(3))["peer"] == paired["peer"]
        assert await listen.code() == 0


async def test_wrong_used_and_malformed_codes_end_with_one_sentence(server: Server) -> None:
    words = ("connect", "--config", server.config, "--ephemeral", "--code")
    async with offering(server, "--echo") as (listen, code):
        nameplate, one, two = code.split("-")
        wrong = await ran(*words, f"{nameplate}-{'acorn' if one != 'acorn' else 'orbit'}-{two}")
        assert wrong.process.returncode == 3
        assert wrong.stderr_text.splitlines()[-1] == "error: not paired: the code is wrong"
        right = await ran(*words, code.upper().replace("-", " "))
        assert right.process.returncode == 0, right.stderr_text
        assert await listen.code() == 0
    used = await ran(*words, code)
    assert used.process.returncode == 3
    assert used.stderr_text.splitlines()[-1] == "error: not paired: the code has been used"
    malformed = await ran(*words, "7-guitar-orbot", "--json")
    assert malformed.process.returncode == 2
    assert "'orbot' is not a code word; did you mean 'orbit'?" in malformed.stderr_text
    assert (await malformed.event())["verdict"] == "bad_code"
    for bad in (("connect",), ("connect", "wg1", "--code", "1-a-b"), ("listen", "--code", "--allow-any")):
        assert (await ran(*bad)).process.returncode == 2


async def test_both_may_keep_the_other_one_as_a_contact(server: Server, tmp_path: Path) -> None:
    here, there = ({"XDG_DATA_HOME": str(tmp_path / name)} for name in ("here", "there"))
    words = ("listen", "--config", server.config, "--ephemeral", "--code", "--save", "alice", "--echo", "--json")
    async with started(*words, env=there) as listen:
        code = (await listen.event(1))["code"]
        calling = ("connect", "--config", server.config, "--ephemeral", "--code", code, "--save", "bob")
        connect = await ran(*calling, env=here)
        assert connect.process.returncode == 0, connect.stderr_text
        assert await listen.code() == 0
    for name, env, other in (
        ("bob", here, (await listen.event())["peer"]),
        ("alice", there, (await listen.event(2))["peer"]),
    ):
        listed = await ran("contacts", "list", env=env)
        (line,) = [line for line in listed.out.decode().splitlines() if name in line]
        assert other in line
        assert "pairing" in line
    for bad in (("listen", "--save", "alice", "--allow-any"), ("listen", "--code", "--save", "1")):
        assert (await ran(*bad)).process.returncode == 2


async def test_who_was_paired_for_files_is_known_by_name(server: Server, tmp_path: Path) -> None:
    """From the second time on, the sender calls a name, and the receiver allows its contacts only."""
    here, there = ({"XDG_DATA_HOME": str(tmp_path / name)} for name in ("here", "there"))
    file, into = tmp_path / "report.txt", tmp_path / "into"
    file.write_text("hello")
    words = ("--config", server.config, "--key-file", tmp_path / "sender")
    receiving = ("receive", "--config", server.config, "--key-file", tmp_path / "receiver", "--into", into)
    async with started("send", *words, "--code", "--save", "bob", "--json", file, env=here) as send:
        received = await ran(*receiving, "--code", (await send.event())["code"], "--save", "alice", env=there)
        assert received.process.returncode == 0, received.stderr_text
        assert "saved as alice" in received.stderr_text
        assert await send.code() == 0, send.stderr_text
        assert "saved as bob" in send.stderr_text
    async with started(*receiving, "--allow-contacts", "--json", env=there) as receive:
        address = (await receive.event())["address"]
        stranger = ("send", "--config", server.config, "--ephemeral", file, "--to", address)
        assert (await ran(*stranger)).process.returncode == 3
        again = await ran("send", *words, file, "--to", "bob", env=here)
        assert again.process.returncode == 0, again.stderr_text
        assert await receive.code() == 0, receive.stderr_text
    assert sorted(path.name for path in into.iterdir()) == ["report (1).txt", "report.txt"]


async def test_who_was_not_paired_is_not_let_in(server: Server) -> None:
    async with offering(server, "--echo") as (listen, code):
        address = (await listen.event())["address"]
        stranger = await ran("connect", "--config", server.config, "--ephemeral", address)
        assert stranger.process.returncode == 3
        friend = await ran("connect", "--config", server.config, "--ephemeral", "--code", code)
        assert friend.process.returncode == 0, friend.stderr_text


async def test_a_terminal_gets_a_qr_code_and_no_address(server: Server) -> None:
    async with on_terminal("listen", "--config", server.config, "--ephemeral", "--code", "--echo") as terminal:
        with trio.fail_after(HANG):
            while "▀" not in terminal.text and "█" not in terminal.text:  # noqa: ASYNC110  # a thread shows it
                await trio.sleep(0.01)
        assert "wg1" not in terminal.text
        terminal.command.interrupt()
        assert await terminal.command.code() == 130


async def test_without_a_server_it_is_told() -> None:
    for words in (("listen", "--ephemeral", "--code"), ("connect", "--ephemeral", "--code", "7-guitar-orbit")):
        done = await ran(*words)
        assert done.process.returncode == 1
        assert "no signal server is configured" in done.stderr_text
        assert "the file that `warpgate-trio serve` printed, by --config or WARPGATE_CONFIG" in done.stderr_text
