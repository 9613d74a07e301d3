"""`forward` and `listen --expose` as processes: ports, stdin and stdout, reverse forwarding, third-party programs."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import AsyncGenerator, Iterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Final

import pytest
import trio

from tests.end_to_end.conftest import Server
from tests.end_to_end.processes import PROGRAM, Command, environment, ran, started
from tests.hangs import HANG
from tests.ports import free_port
from tests.programs import running
from tests.requirements import find_program
from tests.waiting import wait_until
from warpgate_trio.nurseries import open_bare_nursery

pytestmark = pytest.mark.slow("starts processes; each imports Trio and cryptography for 0.4 s")

PIPE: Final = subprocess.PIPE


@asynccontextmanager
async def echoing() -> AsyncGenerator[int]:
    """Run an echo service; yields its port."""

    async def echo(stream: trio.SocketStream) -> None:
        async for data in stream:
            await stream.send_all(data)
        await stream.send_eof()

    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.serve_listeners, echo, listeners)
        yield listeners[0].socket.getsockname()[1]
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def exposing(server: Server, *words: str) -> AsyncGenerator[tuple[Command, str]]:
    """A `listen`, and its address."""
    config = ("--config", str(server.config), "--ephemeral", "--allow-any", "--json")
    async with started("listen", *config, *words) as listen:
        yield listen, (await listen.event())["address"]


async def bounced(host: str, port: int, data: bytes) -> bytes:
    """Send data to an echo service; returns what comes back."""
    with trio.fail_after(HANG):
        async with await trio.open_tcp_stream(host, port) as stream, open_bare_nursery() as nursery:

            async def send() -> None:
                await stream.send_all(data)
                await stream.send_eof()

            nursery.start_soon(send)
            return b"".join([piece async for piece in stream])


async def test_a_port_here_leads_to_a_port_there(server: Server) -> None:
    data = os.urandom(1_000_000)
    async with echoing() as port, exposing(server, "--expose", str(port)) as (listen, address):
        words = ("forward", "--config", server.config, "--ephemeral", "--json", "0", f"{address}:{port}")
        async with started(*words) as forward:
            ready = await forward.event()
            assert (ready["target"], ready["reverse"]) == (f"127.0.0.1:{port}", False)
            ((host, _, here),) = [where.rpartition(":") for where in ready["listens"]]
            assert host == "127.0.0.1"
            for _ in range(2):
                assert await bounced(host, int(here), data) == data
            forward.interrupt()
            assert await forward.code() == 130
        listen.interrupt()
        assert await listen.code() == 130


async def test_what_is_not_exposed_is_reset_and_told(server: Server) -> None:
    async with echoing() as port, echoing() as hidden, exposing(server, "--expose", str(port)) as (_, address):
        async with started("forward", "--config", server.config, "--ephemeral", "0", f"{address}:{hidden}") as forward:
            await forward.wait_err("of this machine leads to")
            here = int(forward.stderr_text.partition("127.0.0.1:")[2].partition(" ")[0])
            with pytest.raises(trio.BrokenResourceError):
                await bounced("127.0.0.1", here, b"hello")
            await forward.wait_err(f"a connection to 127.0.0.1:{hidden} ended: 127.0.0.1:{hidden} is not exposed here")


async def test_stdin_and_stdout_are_joined_to_a_port_there(server: Server) -> None:
    async with echoing() as port, exposing(server, "--expose", f"localhost:{port}") as (_, address):
        words = ("forward", "--config", server.config, "--ephemeral", "--stdio")
        async with started(*words, f"{address}:localhost:{port}", stdin=PIPE) as forward:
            await forward.stdin.send_all(b"hello")
            await forward.wait_out(b"hello")
            await forward.stdin.aclose()
            assert await forward.code() == 0
        refused = await ran(*words, f"{address}:22")
        assert refused.process.returncode == 3
        assert "the peer says: 127.0.0.1:22 is not exposed here" in refused.stderr_text


async def test_a_port_there_leads_to_a_port_here(server: Server) -> None:
    async with echoing() as port, exposing(server, "--bind", "127.0.0.1:*") as (_, address):
        words = ("forward", "--config", server.config, "--ephemeral", "--json", "--reverse")
        async with started(*words, str(port), f"{address}:0") as forward:
            ready = await forward.event()
            assert (ready["target"], ready["reverse"]) == (f"127.0.0.1:{port}", True)
            ((host, _, there),) = [where.rpartition(":") for where in ready["listens"]]
            assert await bounced(host, int(there), b"to here") == b"to here"
        refused = await ran(*words, str(port), f"{address}:0.0.0.0:0")
        assert refused.process.returncode == 3
        assert "listening on 0.0.0.0:0 is not allowed here" in refused.stderr_text


async def test_a_peer_that_was_started_again_is_called_again(server: Server, tmp_path: Path) -> None:
    """The local port stays the same."""
    async with echoing() as port:
        words = ("--config", server.config, "--key-file", tmp_path / "key", "--allow-any", "--json", "--port")
        where = free_port()
        async with started("listen", *words, str(where), "--expose", str(port)) as first:
            address = (await first.event())["address"]
            call = ("forward", "--config", server.config, "--ephemeral", "--json", "0", f"{address}:{port}")
            async with started(*call) as forward:
                here = int((await forward.event())["listens"][0].rpartition(":")[2])
                assert await bounced("127.0.0.1", here, b"one") == b"one"
                first.process.send_signal(signal.SIGTERM)
                assert await first.code() == 0
                await forward.wait_err("calling it again")
                async with started("listen", *words, str(where), "--expose", str(port)) as second:
                    await second.event(1)
                    await forward.wait_err("connected by", times=2)  # until then connections to the port are reset
                    assert await bounced("127.0.0.1", here, b"two") == b"two"


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["8080"], "give PEER:[HOST:]PORT alone with --stdio"),
        (["8080", "wg1abc"], "has no port; expected PEER:[HOST:]PORT"),
        (["wg1abc:22"], "give PEER:[HOST:]PORT alone with --stdio"),
        (["--stdio", "8080", "wg1abc:22"], "give PEER:[HOST:]PORT alone with --stdio"),
        (["--stdio", "--reverse", "wg1abc:22"], "exclude each other"),
        (["70000", "wg1abc:22"], "has no port from 0 to 65535"),
        (["8080", "wg1abc:0"], "has no port from 1 to 65535"),
        (["8080", "wg1abc:h h:22"], "names no host"),
        (["8080", "wg1abc:22"], "the address cannot be used"),
    ],
)
async def test_what_cannot_be_asked_for(words: list[str], problem: str) -> None:
    failed = await ran("forward", *words)
    assert failed.process.returncode == 2
    assert problem in failed.stderr_text


async def test_lists_that_are_none() -> None:
    for words in (["--expose", "nonsense"], ["--bind", "localhost:80"], ["--echo", "--expose", "22"]):
        failed = await ran("listen", "--allow-any", *words)
        assert failed.process.returncode == 2, words


async def test_a_port_that_is_taken(server: Server) -> None:
    async with echoing() as port, exposing(server, "--expose", str(port)) as (_, address):
        failed = await ran("forward", "--config", server.config, "--ephemeral", str(port), f"{address}:{port}")
        assert failed.process.returncode == 2
        assert f"cannot listen on 127.0.0.1:{port}: Address already in use" in failed.stderr_text


# --- programs of others ---


@asynccontextmanager
async def port_to(server: Server, port: int) -> AsyncGenerator[int]:
    """A local port that is forwarded to a port at the peer."""
    async with exposing(server, "--expose", str(port)) as (_, address):
        words = ("forward", "--config", server.config, "--ephemeral", "--json", "0", f"{address}:{port}")
        async with started(*words) as forward:
            yield int((await forward.event())["listens"][0].rpartition(":")[2])


async def said(*words: str, env: dict[str, str] | None = None) -> str:
    """Run a program that must succeed; returns its output."""
    with trio.fail_after(HANG):
        done = await trio.run_process(
            words, capture_stdout=True, capture_stderr=True, check=False, env={**os.environ, **(env or {})}
        )
    assert done.returncode == 0, done.stderr.decode(errors="replace")
    return done.stdout.decode()


@pytest.mark.needs("curl")
async def test_curl(server: Server, tmp_path: Path) -> None:
    data = os.urandom(3_000_000)
    (tmp_path / "file").write_bytes(data)
    port = free_port()
    command = [sys.executable, "-m", "http.server", str(port), "--bind", "127.0.0.1", "--directory", str(tmp_path)]
    with running(command, [port], tmp_path / "log"):
        async with port_to(server, port) as here:
            await said("curl", "-sSf", "-o", str(tmp_path / "copy"), f"http://127.0.0.1:{here}/file")
    assert (tmp_path / "copy").read_bytes() == data


def listens(log: Path, *, times: int) -> bool:
    """Whether iperf3's server has reported `times` times that it listens."""
    return log.read_text().count("Server listening") >= times


@pytest.mark.needs("iperf3")
async def test_iperf3(server: Server, tmp_path: Path) -> None:
    """It uses several connections at once, in either direction."""
    port, log = free_port(), tmp_path / "log"
    with running(["iperf3", "-s", "--forceflush", "-B", "127.0.0.1", "-p", str(port)], [], log):
        async with port_to(server, port) as here:
            for done, more in enumerate(([], ["-R"])):
                # A probe of the port would count as a client, and a client too soon after another one is refused.
                await wait_until(partial(listens, log, times=done + 1))
                report = await said("iperf3", "-c", "127.0.0.1", "-p", str(here), "-P", "4", "-n", "2M", *more)
                assert "iperf Done" in report


@pytest.mark.needs("sshd", "root")
async def test_ssh_by_a_port_and_by_stdin_and_stdout(server: Server, tmp_path: Path) -> None:
    sshd, port = find_program("sshd"), free_port()
    assert sshd is not None
    for name in ("host", "user"):
        await said("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(tmp_path / name))
    (tmp_path / "authorized").write_bytes((tmp_path / "user.pub").read_bytes())
    Path("/run/sshd").mkdir(exist_ok=True)
    (tmp_path / "sshd_config").write_text(
        f"Port {port}\nListenAddress 127.0.0.1\nHostKey {tmp_path}/host\nPidFile none\nUsePAM no\nStrictModes no\n"
        f"AuthorizedKeysFile {tmp_path}/authorized\nPermitRootLogin yes\n"
    )
    options = [
        "-i",
        str(tmp_path / "user"),
        "-F",
        "none",
        "-o",
        f"UserKnownHostsFile={tmp_path}/known",
        "-o",
        "BatchMode=yes",
    ]
    options += ["-o", "StrictHostKeyChecking=no", "-o", "LogLevel=ERROR"]
    command = "seq 100000 | sha256sum; cat"
    with running([sshd, "-D", "-e", "-f", str(tmp_path / "sshd_config")], [port], tmp_path / "log"):
        async with exposing(server, "--expose", str(port)) as (_, address):
            expected = await said("sh", "-c", "seq 100000 | sha256sum")
            words = [
                *PROGRAM,
                "forward",
                "--config",
                str(server.config),
                "--ephemeral",
                "-q",
                "--stdio",
                f"{address}:{port}",
            ]
            proxy = " ".join(words)
            assert (
                await said("ssh", *options, "-o", f"ProxyCommand={proxy}", "root@there", command, env=environment())
                == expected
            )
        async with port_to(server, port) as here:
            assert await said("ssh", *options, "-p", str(here), "root@127.0.0.1", command) == expected


@pytest.fixture
def everybodys_folder() -> Iterator[Path]:
    """A folder that other users can read.  pytest's cannot serve: any other pytest run makes it private again."""
    with tempfile.TemporaryDirectory(prefix="warpgate-") as name:
        Path(name).chmod(0o755)
        yield Path(name)


@pytest.mark.needs("postgres", "root")
async def test_psql(server: Server, everybodys_folder: Path) -> None:
    binaries = Path(str(find_program("psql"))).resolve()
    assert binaries.exists()
    initdb = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))[-1]
    port, data = free_port(), everybodys_folder / "data"
    data.mkdir()
    await said("chown", "postgres", str(data))
    await said("runuser", "-u", "postgres", "--", str(initdb), "-A", "trust", "-N", "-D", str(data))
    words = ["-D", str(data), "-p", str(port), "-h", "127.0.0.1", "-k", "", "-F"]
    with running(
        ["runuser", "-u", "postgres", "--", str(initdb.with_name("postgres")), *words],
        [port],
        everybodys_folder / "log",
    ):
        async with port_to(server, port) as here:
            query = "select sum(n) from generate_series(1, 1000) n"
            answer = await said("psql", "-h", "127.0.0.1", "-p", str(here), "-U", "postgres", "-Atc", query, "postgres")
    assert answer == "500500\n"
