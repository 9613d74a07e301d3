"""The first day of two people in homes behind different NATs, with one server, as in the README and the tutorial.

They pair by a code. A folder is sent although its sender is killed in the middle. ssh reaches a machine without any
forwarded port, while the client's network changes.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
import time
from collections.abc import AsyncGenerator
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, final

import pytest
import trio

from tests.end_to_end.processes import PROGRAM, Command, checked_event, environment
from tests.hangs import HANG
from tests.kernel.lab import SERVER, Host, Lab, open_lab
from tests.kernel.run import configuration, private, program_on
from tests.kernel.test_roaming import renumber
from tests.kernel.wire import Wire
from tests.requirements import find_program
from tests.waiting import wait_until
from warpgate_trio import Contacts

SSH_PORT: Final = 2200
LINES: Final = 60
"""Lines printed over ssh, one in 50 ms: three seconds, in which the network changes."""


@final
@dataclass(frozen=True, slots=True)
class Day:
    """Two homes, and the folder of each."""

    lab: Lab
    config: Path
    alice: Path
    bob: Path

    def here(self, command: str, *words: str | Path) -> AbstractAsyncContextManager[Command]:
        """A command on Alice's machine."""
        host = self.lab.homes[0].host
        return program_on(host, command, "--config", self.config, *words, home=self.alice, logs=None)

    def there(self, command: str, *words: str | Path) -> AbstractAsyncContextManager[Command]:
        """A command on Bob's machine."""
        host = self.lab.homes[1].host
        return program_on(host, command, "--config", self.config, *words, home=self.bob, logs=None)


@asynccontextmanager
async def open_day(*kinds: str) -> AsyncGenerator[Day]:
    """One server, and two homes that do not know each other."""
    async with AsyncExitStack() as stack:
        wire = stack.enter_context(Wire())
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="warpgate-lab-")))
        lab = await stack.enter_async_context(open_lab(wire, *kinds))
        serve = program_on(lab.server, "serve", "--host", SERVER, "--json", home=folder, logs=None)
        server = await stack.enter_async_context(serve)
        day = Day(lab, folder / "config.toml", folder / "alice", folder / "bob")
        text = configuration((await server.event())["servers"]).replace("ephemeral = true", "")
        day.config.write_text(text, encoding="utf-8")
        for home in (day.alice, day.bob):
            home.mkdir()
        yield day


async def find_event(command: Command, kind: str) -> dict[str, Any]:
    """The first JSON line of a kind."""
    position = 0
    while (event := await command.event(position))["event"] != kind:
        position += 1
    return event


async def pair(day: Day) -> None:
    """Bob's machine prints a code, Alice types it, and each gets the other as a contact."""
    async with day.there("listen", "--code", "--save", "alice", "--echo", "--json") as listen:
        code = (await find_event(listen, "code"))["code"]
        async with day.here("connect", "--code", code, "--save", "bob") as connect:
            assert await connect.code() == 0, connect.stderr_text
        assert await listen.code() == 0, listen.stderr_text
    for home, name in ((day.alice, "bob"), (day.bob, "alice")):
        assert [each.name for each in Contacts.load(home / "warpgate-trio" / "contacts.toml")] == [name]


def fill(folder: Path, size: int) -> dict[str, int]:
    """Fill a folder with random files of all sizes, `size` bytes in all; returns each file's size."""
    made: dict[str, int] = {}
    left, each = size, size // 2
    while left > 0:
        name = f"{len(made) % 7}/{len(made)}.bin"
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(os.urandom(min(each, left)))
        made[name] = min(each, left)
        left, each = left - made[name], max(each // 2, 64 * 1024)
    return made


def bytes_in(folder: Path) -> int:
    """The bytes of all files in a folder, partial ones included."""
    return sum(each.stat().st_size for each in folder.rglob("*") if each.is_file())


async def send(day: Day, size: int) -> int:
    """Send a folder, killing the sender after a third; returns how many bytes had arrived when it resumed."""
    folder, inbox = day.alice / "photos", day.bob / "inbox"
    made = fill(folder, size)
    inbox.mkdir()
    async with day.there("receive", "--allow", "alice", "--into", inbox, "--json") as receive:
        await find_event(receive, "ready")
        async with day.here("send", folder, "--to", "bob") as first:
            while bytes_in(inbox) < size / 3:  # noqa: ASYNC110  # there is no event, and a large folder takes minutes
                await trio.sleep(0.02)
            first.process.kill()
            await first.process.wait()
        async with day.here("send", folder, "--to", "bob", "--json") as second:
            await second.process.wait()
            assert await second.code() == 0, second.stderr_text
            sent = checked_event(bytes(second.out).splitlines()[-1])
        assert await receive.code() == 0, receive.stderr_text
    assert {name: (inbox / "photos" / name).stat().st_size for name in made} == made
    for name in made:
        assert (inbox / "photos" / name).read_bytes() == (folder / name).read_bytes(), name
    there: int = sent["there"]
    return there


@asynccontextmanager
async def sshd_on(host: Host, folder: Path) -> AsyncGenerator[list[str]]:
    """Run an sshd on a machine's loopback; yields the options of an ssh that it accepts."""
    sshd = find_program("sshd")
    assert sshd is not None
    for name in ("host", "user"):
        await trio.run_process(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)])
    (folder / "authorized").write_bytes((folder / "user.pub").read_bytes())
    Path("/run/sshd").mkdir(exist_ok=True)
    (folder / "sshd_config").write_text(
        f"Port {SSH_PORT}\nListenAddress 127.0.0.1\nHostKey {folder}/host\nPidFile none\nUsePAM no\nStrictModes no\n"
        f"AuthorizedKeysFile {folder}/authorized\nPermitRootLogin yes\n"
    )
    log = folder / "sshd.log"
    with log.open("wb") as printed:
        process = subprocess.Popen(
            host.machine.command([sshd, "-D", "-e", "-f", str(folder / "sshd_config")]),
            pass_fds=[host.machine.fd],
            stdin=subprocess.DEVNULL,
            stdout=printed,
            stderr=printed,
        )
        try:
            with trio.fail_after(HANG):
                await wait_until(lambda: b"Server listening" in log.read_bytes())
            yield [
                *("-i", str(folder / "user"), "-F", "none", "-o", f"UserKnownHostsFile={folder}/known"),
                *("-o", "BatchMode=yes", "-o", "StrictHostKeyChecking=no", "-o", "LogLevel=ERROR"),
            ]
        finally:
            process.terminate()
            process.wait(10)


async def log_in(day: Day) -> None:
    """Use ssh through `forward --stdio` while Alice's machine gets another address."""
    here, there = (home.host for home in day.lab.homes)
    async with (
        sshd_on(there, day.bob) as options,
        day.there("listen", "--allow", "alice", "--expose", str(SSH_PORT), "--json") as listen,
    ):
        await find_event(listen, "ready")
        words = [*PROGRAM, "forward", "--config", str(day.config), "-q", "--stdio", f"bob:{SSH_PORT}"]
        command = f"for i in $(seq {LINES}); do echo line $i; sleep 0.05; done; seq 100000 | sha256sum"
        process = await trio.lowlevel.open_process(
            here.machine.command(["ssh", *options, "-o", f"ProxyCommand={' '.join(words)}", "root@there", command]),
            pass_fds=[here.machine.fd],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            env={**environment(), **private(day.alice)},
        )
        assert process.stdout is not None
        heard, changed = b"", False
        with trio.fail_after(HANG):
            async for data in process.stdout:
                heard += data
                if not changed and heard.count(b"\n") >= LINES // 3:
                    changed = True
                    await renumber(day.lab.homes[0])
            assert await process.wait() == 0
    expected = b"".join(b"line %d\n" % (number + 1) for number in range(LINES))
    counted = await trio.run_process(["sh", "-c", "seq 100000 | sha256sum"], capture_stdout=True)
    assert heard == expected + counted.stdout


async def live(kinds: tuple[str, str], size: int) -> None:
    """Run the whole day, and print how long each step took."""
    async with open_day(*kinds) as day:
        began = time.monotonic()
        await pair(day)
        paired = time.monotonic()
        there = await send(day, size)
        sent = time.monotonic()
        await log_in(day)
        print(
            f"paired in {paired - began:.1f} s; {size / 1e6:.0f} MB in {sent - paired:.1f} s with a killed sender, ",
            end="",
        )
        print(
            f"{there / 1e6:.1f} MB of it once; ssh in {time.monotonic() - sent:.1f} s, with another address in between"
        )


@pytest.mark.slow("real programs in namespaces, a dozen of them")
@pytest.mark.needs("network_namespaces", "nft", "tun", "sshd", "root")
async def test_the_first_day() -> None:
    await live(("port-restricted", "symmetric"), 24_000_000)
