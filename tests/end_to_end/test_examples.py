"""README's two programs are those of `examples/`, and they work: two processes and a rendezvous server."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import trio

from tests.end_to_end.processes import environment
from tests.hangs import HANG
from tests.identities import ALICE
from tests.nodes import config, loopback_node
from warpgate_trio.nurseries import open_background_nursery
from warpgate_trio.servers.rendezvous import open_rendezvous

ROOT = Path(__file__).parents[2]
EXAMPLES = (ROOT / "examples" / "listener.py", ROOT / "examples" / "connector.py")


def test_the_readme_shows_the_examples() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```$", readme, re.MULTILINE | re.DOTALL)
    assert blocks == [path.read_text(encoding="utf-8") for path in EXAMPLES]


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_fifteen_lines(path: Path) -> None:
    assert sum(bool(line.strip()) for line in path.read_text(encoding="utf-8").splitlines()) <= 15


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
            for _ in range(2):  # the first one's end has not ended the listener
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
    """Without a traceback; the peer that it was serving does not take it for the end."""
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
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),  # a shell's background job ignores it
        task_status=task_status,
    )
