"""The tutorial's two programs are those of `examples/`, and work; so do others that a simulation cannot run whole.

These are real processes with a rendezvous server; tests/sim/test_examples.py runs all of them in two homes.
"""

from __future__ import annotations

import shlex
import signal
import subprocess
import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import pytest
import trio

from tests.documented import blocks, code, page
from tests.end_to_end.processes import environment, started
from tests.hangs import HANG
from tests.identities import ALICE
from tests.nodes import config, loopback_node
from warpgate_trio import Identity
from warpgate_trio.nurseries import open_background_nursery
from warpgate_trio.servers.rendezvous import open_rendezvous

ROOT = Path(__file__).parents[2]
EXAMPLES = (ROOT / "examples" / "listener.py", ROOT / "examples" / "connector.py")


def test_the_tutorial_shows_the_examples() -> None:
    assert code(page("tutorial.md"), "python") == [path.read_text(encoding="utf-8") for path in EXAMPLES]


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_fifteen_lines(path: Path) -> None:
    assert sum(bool(line.strip()) for line in path.read_text(encoding="utf-8").splitlines()) <= 15


def test_a_chat_is_no_more_than_forty() -> None:
    assert len((ROOT / "examples" / "chat.py").read_text(encoding="utf-8").splitlines()) <= 40


async def first_line(stream: trio.abc.ReceiveStream) -> str:
    received = b""
    while not received.endswith(b"\n"):
        chunk = await stream.receive_some()
        assert chunk, "the program ended"
        received += chunk
    return received.decode().strip()


@pytest.mark.slow("three processes, one of them after the other")
async def test_the_two_programs_talk() -> None:
    listener, connector = ([sys.executable, str(path)] for path in EXAMPLES)
    with trio.fail_after(HANG):
        async with open_rendezvous() as server, open_background_nursery() as nursery:
            serving = await nursery.start(run, [*listener, server.url])
            assert serving.stdout is not None
            address = await first_line(serving.stdout)
            assert address.startswith("wg1")
            for _ in range(2):  # the end of the first caller does not end the listener
                done = await trio.run_process(
                    [*connector, server.url, address], capture_stdout=True, capture_stderr=True, env=environment()
                )
                assert done.stdout == b"hello through the gate\n"
                assert done.stderr.startswith(b"direct_connect (")
                assert done.stderr.count(b"\n") == 1
            assert serving.poll() is None
            serving.kill()
            await serving.wait()
            await serving.stdout.aclose()


@pytest.mark.slow("a process that is interrupted while it serves")
async def test_the_listener_ends_well_on_ctrl_c() -> None:
    """It prints no traceback, and the peer that it was serving sees a broken Pipe, not its end."""
    with trio.fail_after(HANG):
        async with open_rendezvous() as server, open_background_nursery() as nursery:
            serving = await nursery.start(
                partial(run, stderr=subprocess.PIPE), [sys.executable, str(EXAMPLES[0]), server.url]
            )
            address = await first_line(serving.stdout)
            async with loopback_node(ALICE, config(server)) as alice, await alice.auto_connect(address) as pipe:
                await pipe.send_all(b"served")
                assert await pipe.receive_some() == b"served"
                serving.send_signal(signal.SIGINT)
                with pytest.raises(trio.BrokenResourceError, match="the peer aborted it"):
                    await pipe.receive_some()
            assert b"".join([data async for data in serving.stderr]) == b""
            assert await serving.wait() == 0
            await serving.stdout.aclose()
            await serving.stderr.aclose()


async def run(command: list[str], task_status: trio.TaskStatus[trio.Process], *, stderr: int | None = None) -> None:
    await trio.run_process(
        command,
        stdout=subprocess.PIPE,
        stderr=stderr,
        check=False,
        env=environment(),
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),  # a shell's background jobs ignore SIGINT
        task_status=task_status,
    )


# -- the longer ones ---------------------------------------------------------------------------------------------------


@asynccontextmanager
async def example(name: str, *args: str, **settings: object) -> AsyncGenerator[trio.Process]:
    """A running example that is configured by its environment; it is killed at the end if it still runs."""
    env = environment({f"WARPGATE_{key.upper()}": str(value) for key, value in settings.items()})
    async with open_background_nursery() as nursery:
        yield await nursery.start(
            partial(
                trio.run_process,
                [sys.executable, str(ROOT / "examples" / f"{name}.py"), *args],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                check=False,
                env=env,
            )
        )


async def said(process: trio.Process) -> bytes:
    """Everything that the process prints until it ends by itself; it must succeed."""
    assert process.stdout is not None
    text = b"".join([bytes(data) async for data in process.stdout])
    assert await process.wait() == 0
    return text


async def typed(process: trio.Process, text: bytes) -> None:
    """Type a text, and then end stdin."""
    assert process.stdin is not None
    async with process.stdin:
        await process.stdin.send_all(text)


@pytest.mark.slow("three processes that start")
async def test_two_people_chat_as_the_page_says(tmp_path: Path) -> None:
    (block,) = [each for each in blocks() if each.key == ("applications.md", "warpgate-trio serve > node.toml")]
    serving, exported, *programs = [shlex.split(line, comments=True) for line in block.text.splitlines()]
    assert serving == ["warpgate-trio", "serve", ">", "node.toml"]
    assert exported == ["export", "WARPGATE_CONFIG=node.toml"]
    assert programs == [["python", "examples/chat.py"], ["python", "examples/chat.py", "wg1…"]]
    on_loopback = ("--host", "127.0.0.1", "--port", "0", "--stun-port", "0", "--no-ntp")
    async with started("serve", *on_loopback) as server:
        await server.wait_err("until interrupted")
        (tmp_path / "node.toml").write_bytes(server.out)
        start = partial(example, "chat", config=tmp_path / "node.toml")
        with trio.fail_after(HANG):
            async with start() as bob:
                assert bob.stdout is not None
                async with start(await first_line(bob.stdout)) as alice:
                    await typed(alice, "wie geht’s?\n".encode())
                    assert await first_line(bob.stdout) == "'wie geht’s?'"
                    await typed(bob, b"")
                    assert await said(alice) == b""
                    assert await said(bob) == b""


@pytest.mark.slow("two processes that start")
async def test_the_remote_shell_is_one(tmp_path: Path) -> None:
    alices = tmp_path / "alice.pem"
    peer_id = Identity.load_or_create(alices).peer_id
    with trio.fail_after(HANG):
        async with (
            open_rendezvous() as server,
            example(
                "remote_shell", peer_id, servers_websocket=server.url, identity_key_file=tmp_path / "bob.pem"
            ) as bob,
        ):
            assert bob.stdout is not None
            address = await first_line(bob.stdout)
            async with example(
                "remote_shell", address, servers_websocket=server.url, identity_key_file=alices
            ) as alice:
                await typed(alice, b"echo $((6 * 7)); ls /nowhere; exit 3\n")
                answer = await said(alice)
            assert answer.startswith(b"42\n")
            assert b"/nowhere" in answer  # stderr is passed on, too


@pytest.mark.slow("two processes that start")
async def test_a_file_is_dropped(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "file.bin").write_bytes(bytes(range(256)) * 4000)
    with trio.fail_after(HANG):
        async with (
            open_rendezvous() as server,
            example(
                "file_drop",
                str(tmp_path / "there"),
                servers_websocket=server.url,
                identity_key_file=tmp_path / "bob.pem",
            ) as bob,
        ):
            assert bob.stdout is not None
            address = await first_line(bob.stdout)
            file = str(tmp_path / "file.bin")
            async with example(
                "file_drop", address, file, servers_websocket=server.url, identity_key_file=tmp_path / "unused"
            ) as alice:
                assert await said(alice) == b""
    assert (tmp_path / "there" / "file.bin").read_bytes() == (tmp_path / "file.bin").read_bytes()
