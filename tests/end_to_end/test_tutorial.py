"""The commands of docs/tutorial.md, in their order, as two people type them, each in their own home folder."""

from __future__ import annotations

import re
import shlex
import subprocess
from collections.abc import AsyncGenerator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Final, final

import pytest
import trio

from tests.documented import page
from tests.end_to_end.processes import Command, ran, started
from tests.hangs import HANG
from tests.ports import free_port
from tests.waiting import wait_until
from warpgate_trio.nurseries import open_background_nursery

pytestmark = pytest.mark.slow("starts processes; each imports Trio and cryptography for 0.4 s")

COMMANDS: Final = re.findall(r"^ {4}warpgate-trio (.*)$", page("tutorial.md"), re.MULTILINE)
VERSION, SERVE_HERE, *TERMINALS, SERVE, PAIR, JOIN, CONTACTS, LISTEN, CONNECT = COMMANDS[:10]
RECEIVE, SEND, EXPOSE, FORWARD, EXPLAIN, NETCHECK = COMMANDS[10:]
CODE: Final = "7-guitar-orbit"
PORTS: Final = ("--port", "0", "--stun-port", "0", "--ntp-port", "0")


@final
class Person:
    """A person with a home folder and the server's configuration file."""

    def __init__(self, folder: Path, name: str, config: Path) -> None:
        self.home = folder / name
        self.home.mkdir()
        self._env = {each: str(self.home) for each in ("HOME", "XDG_DATA_HOME", "XDG_CONFIG_HOME", "XDG_STATE_HOME")}
        self._places = {"node.toml": config, "incoming": self.home / "incoming", "photos": self.home / "photos"}

    def runs(self, command: str, *, typing: bool = False, **changes: object) -> AbstractAsyncContextManager[Command]:
        """Run a command of the page with this person's files, and with the words that `changes` replaces by name."""
        return started(
            *self._words(command, changes), env=self._env, stdin=subprocess.PIPE if typing else subprocess.DEVNULL
        )

    async def ran(self, command: str, **changes: object) -> Command:
        done = await ran(*self._words(command, changes), env=self._env)
        assert done.process.returncode == 0, done.stderr_text
        return done

    def _words(self, command: str, changes: dict[str, object]) -> list[str]:
        named = {"code": CODE, "here": "2222", "there": "22", "target": "bob:22"}
        places = {**self._places, **{named[name]: value for name, value in changes.items()}}
        return [str(places.get(word, word)) for word in shlex.split(command)]


@asynccontextmanager
async def serving(folder: Path, command: str = SERVE_HERE) -> AsyncGenerator[Path]:
    """Run a server as on the page, with ports of the system's choice; yields its configuration file."""
    words, _, name = command.partition(" > ")
    config = folder / name
    with config.open("wb") as file:
        async with started(*words.split(), *PORTS, "--state-dir", folder / "state", stdout=file.fileno()) as serve:
            await serve.wait_err("until interrupted")
            yield config


async def code_of(listen: Command) -> str:
    """The pairing code that a listener has printed."""
    code = re.compile(r"^\s*(\d+-[a-z]+-[a-z]+)\s*$", re.MULTILINE)
    with trio.fail_after(HANG):
        await wait_until(lambda: code.search(listen.stderr_text) is not None)
    (found,) = code.findall(listen.stderr_text)
    return str(found)


async def talk(there: Command, here: Command) -> None:
    """Each types a line, sees the other's, and types Ctrl-D."""
    await here.stdin.send_all(b"hello Bob\n")
    await there.stdin.send_all(b"hello Alice\n")
    await there.wait_out(b"hello Bob\n")
    await here.wait_out(b"hello Alice\n")
    await here.stdin.aclose()
    await there.stdin.aclose()
    assert (await here.code(), await there.code()) == (0, 0), here.stderr_text + there.stderr_text


async def test_two_terminals_of_one_user(tmp_path: Path) -> None:
    listen, connect = TERMINALS
    async with serving(tmp_path) as config:
        user = Person(tmp_path, "user", config)
        assert (await user.ran(VERSION)).out.startswith(b"warpgate-trio ")
        async with user.runs(listen, typing=True) as there:
            code = await code_of(there)
            async with user.runs(connect, typing=True, code=code) as here:
                await talk(there, here)


async def test_two_homes(tmp_path: Path) -> None:
    async with (
        serving(tmp_path, SERVE.replace(" >", " --host 127.0.0.1 >")) as config,
        open_background_nursery() as nursery,
    ):
        alice, bob = Person(tmp_path, "alice", config), Person(tmp_path, "bob", config)
        async with bob.runs(PAIR, typing=True) as there:
            code = await code_of(there)
            async with alice.runs(JOIN, typing=True, code=code) as here:
                await talk(there, here)
        assert (await alice.ran(CONTACTS)).out.split()[0] == b"bob"
        assert (await bob.ran(CONTACTS)).out.split()[0] == b"alice"

        async with bob.runs(LISTEN, typing=True) as there:
            await there.address()
            async with alice.runs(CONNECT, typing=True) as here:
                await talk(there, here)

        photos = alice.home / "photos"
        photos.mkdir()
        (photos / "one.jpg").write_bytes(b"\xff\xd8" + bytes(100_000))
        async with bob.runs(RECEIVE) as receiving:
            await receiving.address()
            await alice.ran(SEND)
            assert await receiving.code() == 0
        assert (bob.home / "incoming" / "photos" / "one.jpg").read_bytes() == (photos / "one.jpg").read_bytes()

        async def greet(stream: trio.SocketStream) -> None:
            await stream.send_all(b"SSH-2.0-bob\r\n")

        (service,) = await nursery.start(partial(trio.serve_tcp, greet, 0, host="127.0.0.1"))
        target, port = service.socket.getsockname()[1], free_port()
        async with bob.runs(EXPOSE, there=target) as exposing:
            await exposing.address()
            await alice.ran(EXPLAIN)
            async with alice.runs(FORWARD, here=port, target=f"bob:{target}") as forwarding:
                await forwarding.wait_err(str(port))
                async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
                    assert await stream.receive_some() == b"SSH-2.0-bob\r\n"
        await alice.ran(NETCHECK)
