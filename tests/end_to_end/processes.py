"""`warpgate-trio` as other programs see it: processes with pipes, signals and exit codes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, final

import jsonschema
import trio

from tests.hangs import HANG
from warpgate_trio.nurseries import open_background_nursery

PROGRAM = (sys.executable, "-m", "warpgate_trio")
SCHEMAS = Path(__file__).resolve().parents[2] / "docs" / "schemas"


def checked_event(line: bytes | str) -> dict[str, Any]:
    """Decodes a JSON line, and checks it against its event's schema."""
    event: dict[str, Any] = json.loads(line)
    schema = json.loads((SCHEMAS / f"{event['event']}.json").read_text(encoding="utf-8"))
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.validate(event, schema, cls=jsonschema.Draft202012Validator)
    return event


@final
class Command:
    """A running `warpgate-trio`; made by `started`."""

    def __init__(self, process: trio.Process) -> None:
        self.process = process
        self.out = bytearray()
        self.err = bytearray()
        self._grown = trio.lowlevel.ParkingLot()
        self._ended = {"out": process.stdout is None, "err": process.stderr is None}

    async def collect(self, name: str, stream: trio.abc.ReceiveStream) -> None:
        buffer = self.out if name == "out" else self.err
        try:
            async for chunk in stream:
                buffer += chunk
                self._grown.unpark_all()
        finally:
            self._ended[name] = True
            self._grown.unpark_all()

    @property
    def stdin(self) -> trio.abc.SendStream:
        assert self.process.stdin is not None
        return self.process.stdin

    @property
    def stderr_text(self) -> str:
        return self.err.decode("utf-8", "replace")

    async def wait_out(self, needed: bytes) -> None:
        """Wait until stdout contains some bytes."""
        with trio.fail_after(HANG):
            while needed not in self.out:
                assert not self._ended["out"], (bytes(self.out), self.stderr_text)
                await self._grown.park()

    async def wait_size(self, size: int) -> None:
        """Wait until stdout has `size` bytes."""
        while len(self.out) < size:
            assert not self._ended["out"], self.stderr_text
            await self._grown.park()

    async def wait_err(self, needed: str, *, times: int = 1) -> None:
        """Wait until stderr contains a text `times` times."""
        with trio.fail_after(HANG):
            while self.stderr_text.count(needed) < times:
                assert not self._ended["err"], self.stderr_text
                await self._grown.park()

    async def event(self, position: int = 0) -> dict[str, Any]:
        """Waits for the JSON line at a position of stdout; returns it checked."""
        with trio.fail_after(HANG):
            while self.out.count(b"\n") <= position:
                assert not self._ended["out"], (bytes(self.out), self.stderr_text)
                await self._grown.park()
        return checked_event(bytes(self.out).splitlines()[position])

    async def address(self) -> str:
        """The address that `listen` without --json prints on stderr."""
        await self.wait_err("\nwg1")
        with trio.fail_after(HANG):
            while not self.stderr_text.partition("\nwg1")[2].count("\n"):
                await self._grown.park()
        return "wg1" + self.stderr_text.partition("\nwg1")[2].partition("\n")[0]

    async def code(self) -> int:
        """Wait for the end and return the exit code; stderr must have no traceback and no ignored exception."""
        with trio.fail_after(HANG):
            code = await self.process.wait()
            while not all(self._ended.values()):
                await self._grown.park()
        assert "Traceback" not in self.stderr_text, self.stderr_text
        assert "Exception ignored" not in self.stderr_text, self.stderr_text
        return code

    def interrupt(self) -> None:
        """Send SIGINT, as Ctrl-C does."""
        self.process.send_signal(signal.SIGINT)


def environment(extra: dict[str, str] | None = None) -> dict[str, str]:
    """The environment of a user without settings; port mapping is off, so that no real router is asked for anything."""
    return {
        **os.environ,
        "PYTHONDEVMODE": "",
        "COLUMNS": "120",
        "WARPGATE_PORTMAP_ENABLED": "false",
        **(extra or {}),
    }


@asynccontextmanager
async def started(
    *arguments: str | Path,
    stdin: int = subprocess.DEVNULL,
    stdout: int = subprocess.PIPE,
    stderr: int = subprocess.PIPE,
    env: dict[str, str] | None = None,
    within: Sequence[str] = (),
    pass_fds: Sequence[int] = (),
) -> AsyncGenerator[Command]:
    """Run a command for the time of the body, and kill it at its end if it is still there.

    `within` are the leading words of a command that runs another one; `pass_fds` are descriptors that it inherits.
    """
    words = [*within, *PROGRAM, *map(str, arguments)]
    run = partial(
        trio.run_process,
        words,
        stdin=stdin,
        stdout=stdout,
        stderr=stderr,
        env=environment(env),
        pass_fds=pass_fds,
        check=False,
        deliver_cancel=_kill,
    )
    pipes: list[trio.abc.AsyncResource | None] = []
    try:
        async with open_background_nursery() as nursery:
            process: trio.Process = await nursery.start(run)
            pipes += [process.stdin, process.stdout, process.stderr]
            command = Command(process)
            for name, stream in (("out", process.stdout), ("err", process.stderr)):
                if stream is not None:
                    nursery.start_soon(command.collect, name, stream)
            yield command
    finally:
        for pipe in pipes:
            if pipe is not None:
                await trio.aclose_forcefully(pipe)


async def _kill(process: trio.Process) -> None:
    process.kill()


@final
class Terminal:
    """The output of a command on its terminal; complete after `on_terminal`."""

    def __init__(self, command: Command) -> None:
        self.command = command
        self.shown = bytearray()

    @property
    def text(self) -> str:
        return self.shown.decode()


@asynccontextmanager
async def on_terminal(*arguments: str | Path) -> AsyncGenerator[Terminal]:
    """Run a command whose stderr is a terminal."""
    ours, theirs = os.openpty()
    try:
        async with started(*arguments, stderr=theirs, env={"TERM": "xterm-256color"}) as command:
            os.close(theirs)
            terminal = Terminal(command)

            def watch() -> None:
                with suppress(OSError):  # EIO: the command has ended
                    while data := os.read(ours, 65536):
                        terminal.shown += data

            async with trio.open_nursery() as nursery:
                nursery.start_soon(trio.to_thread.run_sync, watch)
                yield terminal
    finally:
        os.close(ours)


async def ran(*arguments: str | Path, env: dict[str, str] | None = None) -> Command:
    """Run a command to its end."""
    async with started(*arguments, env=env) as command:
        await command.code()
        return command
