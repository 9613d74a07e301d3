"""Two peers as processes: `listen` and `connect`, their bytes, their JSON and their exit codes."""

from __future__ import annotations

import os
import signal
import struct
import subprocess
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from tests.end_to_end.conftest import Server
from tests.end_to_end.processes import Command, checked_event, on_terminal, ran, started
from tests.links import connect_sockets
from warpgate_trio.identity import Identity

pytestmark = pytest.mark.slow("starts processes; each imports Trio and cryptography for 0.4 s")

PIPE = subprocess.PIPE


async def test_three_processes(server: Server, tmp_path: Path) -> None:
    somebody, caller = Identity.generate().peer_id, Identity.load_or_create(tmp_path / "caller.key").peer_id
    async with started(
        "listen", "--config", server.config, "--ephemeral", "--allow", somebody, "--allow", caller, "--echo", "--json"
    ) as listen:
        ready = await listen.event()
        assert ready["signals"] == [server.url]
        connect = await ran(
            "connect", ready["address"], "--config", server.config, "--key-file", tmp_path / "caller.key",
            "--echo-test", "1000000", "--json",
        )  # fmt: skip
        assert connect.process.returncode == 0, connect.stderr_text
        assert connect.out.count(b"\n") == 1
        connected = await connect.event()
        assert connected["phase"] == "direct"
        assert connected["peer"] == ready["peer"]
        assert connected["echo_ok"] is True
        assert 0 < connected["connect_ms"] < connected["first_byte_ms"]
        assert connected["mb_per_s"] > 0
        (won,) = [combo for combo in connected["report"]["combos"] if combo["outcome"] == "won"]
        for key in ("phase", "plugin", "af", "route"):
            assert won[key] == connected[key]
        assert "1,000,000 bytes came back unchanged" in connect.stderr_text
        assert await listen.code() == 0, "it serves one peer"
        pipe = await listen.event(1)
        assert pipe["peer"] == caller
        assert (pipe["plugin"], pipe["af"]) == (connected["plugin"], connected["af"])


async def test_ten_megabytes_each_way_are_byte_exact(tmp_path: Path) -> None:
    to_listener, to_caller = os.urandom(10_000_000), os.urandom(10_000_000)
    source = tmp_path / "from a regular file"
    source.write_bytes(to_listener)
    async with started("listen", "--ephemeral", "--allow-any", stdin=PIPE) as listen:
        address = await listen.address()
        with source.open("rb") as file:
            async with started("connect", address, "--ephemeral", "-q", stdin=file.fileno()) as connect:
                await listen.stdin.send_all(to_caller)
                await listen.stdin.aclose()
                assert await connect.code() == 0
                assert await listen.code() == 0
                assert connect.out == to_caller
                assert listen.out == to_listener
                assert connect.err == b""


async def test_bytes_pass_at_once_and_half_close_leaves_the_other_way_open() -> None:
    async with started("listen", "--ephemeral", "--allow-any", stdin=PIPE) as listen:
        address = await listen.address()
        async with started("connect", address, "--ephemeral", stdin=PIPE) as connect:
            await connect.stdin.send_all(b"to the listener\n")
            await listen.wait_out(b"to the listener\n")
            await listen.stdin.send_all(b"to the caller\n")
            await connect.wait_out(b"to the caller\n")
            await connect.stdin.send_all(b"the caller's last")
            await connect.stdin.aclose()
            await listen.wait_out(b"the caller's last")
            await listen.stdin.send_all(b"the listener's last")
            await listen.stdin.aclose()
            assert await connect.code() == 0
            assert await listen.code() == 0
            assert connect.out == b"to the caller\nthe listener's last"
            assert listen.out == b"to the listener\nthe caller's last"


async def test_a_peer_that_closed_ends_it_though_stdin_is_open_and_silent() -> None:
    async with started("listen", "--ephemeral", "--allow-any", stdin=PIPE) as listen:
        connect = await ran("connect", await listen.address(), "--ephemeral", "--json")
        assert connect.process.returncode == 0
        event = await connect.event()
        assert (event["echo_ok"], event["first_byte_ms"], event["mb_per_s"]) == (None, None, None)
        assert await listen.code() == 0


async def test_keep_open_echoes_side_by_side_and_survives_who_breaks(server: Server) -> None:
    words = ("--config", server.config, "--ephemeral", "--allow-any", "--echo", "--keep-open", "--json")
    async with started("listen", *words, "--resume-timeout", "1") as listen:
        address = (await listen.event())["address"]
        async with started("connect", address, "--ephemeral", stdin=PIPE) as rude:
            await listen.event(1)
            await rude.stdin.send_all(b"x")
            await rude.wait_out(b"x")
            pinned = ("--plugin", "direct_connect", "--af", "4", "--route", "loopback")
            beside = await ran("connect", address, "--ephemeral", *pinned, "--echo-test", "100000")
            assert beside.process.returncode == 0, beside.stderr_text
            rude.process.kill()
            await listen.wait_err("pipe broken")
        after = await ran(
            "connect", address, "--config", server.config, "--ephemeral", "--json", "--plugin", "reverse_connect"
        )
        assert after.process.returncode == 0, after.stderr_text
        assert (await after.event())["plugin"] == "reverse_connect"
        assert (await listen.event(3))["event"] == "pipe"
        listen.process.terminate()
        assert await listen.code() == 0, "SIGTERM is a service's proper end"


async def test_keep_open_joins_one_peer_after_the_other() -> None:
    async with started("listen", "--ephemeral", "--allow-any", "--keep-open", stdin=PIPE) as listen:
        address = await listen.address()
        async with started("connect", address, "--ephemeral", stdin=PIPE) as first:
            await listen.stdin.send_all(b"for the first")
            await first.wait_out(b"for the first")
            first.interrupt()
            assert await first.code() == 130
        async with started("connect", address, "--ephemeral", stdin=PIPE) as second:
            await second.stdin.send_all(b"from the second")
            await listen.wait_out(b"from the second")
            await listen.stdin.send_all(b"for the second")
            await second.wait_out(b"for the second")
        listen.interrupt()
        assert await listen.code() == 130


# -- endings -----------------------------------------------------------------------------------------------------------


async def test_refused_is_3_and_says_what_would_let_it_in(tmp_path: Path) -> None:
    caller = Identity.load_or_create(tmp_path / "caller.key").peer_id
    async with started("listen", "--ephemeral", "--allow", Identity.generate().peer_id) as listen:
        address = await listen.address()
        connect = await ran("connect", address, "--key-file", tmp_path / "caller.key", "--json")
        assert connect.process.returncode == 3
        assert (await connect.event())["verdict"] == "refused"
        await listen.wait_err(f"--allow {caller}")


@pytest.mark.needs("linux")
async def test_no_path_is_1_with_what_was_tried_and_advice() -> None:
    async with started("listen", "--ephemeral", "--allow-any") as listen:
        address = await listen.address()
    connect = await ran("connect", address, "--ephemeral", "--json", "--timeout", "3")
    assert connect.process.returncode == 1
    failed = await connect.event()
    assert failed["report"]["verdict"] == failed["verdict"]
    assert connect.out.count(b"\n") == 1
    _, *lines, error = connect.stderr_text.splitlines()
    assert lines[:2] == failed["report"]["lacks"]
    assert lines[2].startswith("direct, up to ")
    assert lines[-1] == "-v shows each path that was tried"
    assert error == f"error: {failed['error']}"
    assert failed["advice"] in failed["error"]
    words = ("connect", address, "--ephemeral", "--plugin", "direct_connect", "--af", "4")
    async with on_terminal(*words) as terminal:
        assert await terminal.command.code() == 1
    assert "direct, up to " in terminal.text
    assert "───" not in terminal.text.rpartition("direct, up to ")[2]
    async with on_terminal(*words, "-v") as terminal:
        assert await terminal.command.code() == 1
    assert "direct_connect" in terminal.text
    assert "───" in terminal.text
    verbose = await ran(*words, "-v")
    assert "\nphase   plugin" in verbose.stderr_text


async def test_a_listener_that_serves_its_one_peer_is_busy() -> None:
    async with started("listen", "--ephemeral", "--allow-any", stdin=PIPE) as listen:
        address = await listen.address()
        async with started("connect", address, "--ephemeral", stdin=PIPE) as connect:
            await connect.stdin.send_all(b"x")
            await listen.wait_out(b"x")
            other = await ran("connect", address, "--ephemeral", "--json")
            assert other.process.returncode == 3
            assert (await other.event())["verdict"] == "busy"
            _calling, error = other.stderr_text.splitlines()
            assert "(busy). Wait until the peer is free" in error


async def test_a_pipe_that_breaks_is_4() -> None:
    async with started("listen", "--ephemeral", "--allow-any", stdin=PIPE) as listen:
        words = (await listen.address(), "--ephemeral", "--resume-timeout", "1")
        async with started("connect", *words, stdin=PIPE) as connect:
            await connect.stdin.send_all(b"hello")
            await listen.wait_out(b"hello")
            listen.process.kill()
            assert await connect.code() == 4
            assert connect.stderr_text.splitlines()[-1].startswith("error: pipe broken")


async def test_what_becomes_of_a_path_is_told_on_stderr_and_with_json_on_stdout() -> None:
    """Each side reports its lost path when the other one is killed: the caller on stderr, as stdout is the Pipe's."""
    watching = ("--ephemeral", "--path-events", "--resume-timeout", "1")
    async with started("listen", *watching, "--allow-any", "--echo", "--keep-open", "--json") as listen:
        address = (await listen.event())["address"]
        async with started("connect", address, "-q", *watching, stdin=PIPE) as killed:
            await killed.stdin.send_all(b"x")
            await killed.wait_out(b"x")
            killed.process.kill()
            opened, lost = await listen.event(1), await listen.event(2)
            assert (lost["event"], lost["cause"], lost["new"]) == ("path", "lost", None)
            assert lost["old"] == {**{key: opened[key] for key in opened if key != "event"}, "state": "live"}
            assert lost["peer"] == opened["peer"]
            assert lost["detail"]
        async with started("connect", address, "-q", *watching, stdin=PIPE) as connect:
            await connect.stdin.send_all(b"y")
            await connect.wait_out(b"y")
            listen.process.kill()
            assert await connect.code() == 4
            *told, error = connect.stderr_text.splitlines()
            (event,) = (each for each in map(checked_event, told) if each["event"] != "search")
            assert (event["event"], event["cause"], event["new"]) == ("path", "lost", None)
            assert error.startswith("error: pipe broken: no usable path for 1 s: ")
            assert connect.out == b"y"


@pytest.mark.parametrize("interrupted", ["listen", "connect"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_what_was_interrupted_is_4_on_the_other_side(interrupted: str, number: signal.Signals) -> None:
    async with started("listen", "--ephemeral", "--allow-any", stdin=PIPE) as listen:
        async with started("connect", await listen.address(), "--ephemeral", stdin=PIPE) as connect:
            sender, receiver = (listen, connect) if interrupted == "listen" else (connect, listen)
            await sender.stdin.send_all(b"a part")
            await receiver.wait_out(b"a part")
            sender.process.send_signal(number)
            assert await sender.code() == 130
            assert await receiver.code() == 4
            assert receiver.out == b"a part"
            assert receiver.stderr_text.splitlines()[-1] == "error: pipe broken: the peer aborted it"


async def test_a_sender_interrupted_in_mid_transfer_is_4_on_the_other_side(tmp_path: Path) -> None:
    """The abort is sent behind megabytes that still wait in the sender."""
    source = tmp_path / "large"
    with source.open("wb") as file:
        file.truncate(4_000_000_000)
    with source.open("rb") as file:
        async with started("listen", "--ephemeral", "--allow-any", stdin=file.fileno()) as listen:
            async with started("connect", await listen.address(), "--ephemeral") as connect:
                await connect.wait_out(bytes(100_000))
                listen.interrupt()
                assert await listen.code() == 130
                assert await connect.code() == 4
                assert len(connect.out) < 4_000_000_000


async def test_a_receiver_that_had_said_its_own_end_is_not_taken_for_finished() -> None:
    """The receiver's stdin is empty, so it has sent its end; the sender's stdin is open and silent."""
    async with started("listen", "--ephemeral", "--allow-any", stdin=PIPE) as listen:
        async with started("connect", await listen.address(), "--ephemeral") as connect:
            await listen.stdin.send_all(b"a part")
            await connect.wait_out(b"a part")
            connect.interrupt()
            assert await connect.code() == 130
            assert await listen.code() == 4


async def test_a_stdin_that_breaks_is_4_on_both_sides() -> None:
    theirs, ours = await connect_sockets()  # stdin is a TCP connection, which is reset
    with theirs, ours:
        async with started("listen", "--ephemeral", "--allow-any", stdin=PIPE) as listen:
            async with started("connect", await listen.address(), "--ephemeral", stdin=theirs.fileno()) as connect:
                await ours.send(b"a part")
                await listen.wait_out(b"a part")
                ours.setsockopt(trio.socket.SOL_SOCKET, trio.socket.SO_LINGER, struct.pack("ii", 1, 0))
                ours.close()
                assert await connect.code() == 4
                assert connect.stderr_text.splitlines()[-1] == "error: stdin cannot be read: Connection reset by peer"
                assert await listen.code() == 4
                assert listen.out == b"a part"


@pytest.mark.needs("linux")
async def test_a_stdout_that_cannot_be_written_is_4_on_both_sides() -> None:
    full = os.open("/dev/full", os.O_WRONLY)
    try:
        async with started("listen", "--ephemeral", "--allow-any", stdin=PIPE) as listen:
            async with started("connect", await listen.address(), "--ephemeral", stdin=PIPE, stdout=full) as connect:
                await listen.stdin.send_all(b"for a full disk")
                assert await connect.code() == 4
                assert await listen.code() == 4
    finally:
        os.close(full)


async def test_a_peer_that_does_not_echo_is_4() -> None:
    async with started("listen", "--ephemeral", "--allow-any") as listen:  # stdin is empty: it ends at once
        connect = await ran("connect", await listen.address(), "--ephemeral", "--echo-test", "1000", "--json")
        assert connect.process.returncode == 4
        event = await connect.event()
        assert (event["echo_ok"], event["mb_per_s"], event["first_byte_ms"]) == (False, None, None)
        assert event["error"] == "echo test failed: the peer ended after 0 of 1000 bytes"
        await listen.code()


async def test_a_stdout_that_nobody_reads_ends_it_quietly() -> None:
    reading, writing = os.pipe()
    try:
        async with started("listen", "--ephemeral", "--allow-any", stdin=PIPE) as listen:
            address = await listen.address()
            async with started("connect", address, "--ephemeral", "-q", stdin=PIPE, stdout=writing) as connect:
                os.close(writing)
                writing = -1
                await listen.stdin.send_all(b"head takes this")
                assert await trio.to_thread.run_sync(os.read, reading, 100) == b"head takes this"
                os.close(reading)
                reading = -1
                await listen.stdin.send_all(b"and has gone")
                assert await connect.code() == 0
                assert connect.err == b""
                assert await listen.code() == 4, "its peer did not want to the end"
    finally:
        for descriptor in (reading, writing):
            if descriptor >= 0:
                os.close(descriptor)


async def test_sigterm_is_130_where_it_leaves_work_undone() -> None:
    async with started("listen", "--ephemeral", "--allow-any") as listen:
        await listen.address()
        listen.process.terminate()
        assert await listen.code() == 130
        assert listen.stderr_text.splitlines()[-1] == "interrupted"


async def test_a_dead_server_is_said(tmp_path: Path) -> None:
    """This takes the 3 s that a server may take to answer."""
    config = tmp_path / "config.toml"
    config.write_text('[servers]\nwebsocket = ["ws://127.0.0.1:9"]\n', encoding="utf-8")
    async with started("listen", "--config", config, "--ephemeral", "--allow-any", "--json") as listen:
        assert (await listen.event())["signals"] == []
        assert "warning: no signal server answers yet" in listen.stderr_text
        assert "ws://127.0.0.1:9" in listen.stderr_text


async def test_ping_exits_with_the_kind_of_path(tmp_path: Path) -> None:
    async with started("listen", "--ephemeral", "--allow-any", "--echo", "--keep-open", "--json") as listen:
        address = (await listen.event())["address"]
        ping = await ran("ping", address, "--ephemeral", "--count", "2", "--interval", "0", "--json")
        assert ping.process.returncode == 0
        pongs = [checked_event(line) for line in bytes(ping.out).splitlines()]
        assert [pong["number"] for pong in pongs] == [1, 2]
        plain = await ran("ping", address, "--ephemeral", "--count", "1")
        assert plain.process.returncode == 0
        assert plain.out == b""
        assert "1 round trips, median" in plain.stderr_text
    gone = await ran("ping", address, "--ephemeral", "--timeout", "1")
    assert gone.process.returncode == 2
    assert "no path to" in gone.stderr_text


@asynccontextmanager
async def calling(address: str, key: Sequence[str]) -> AsyncGenerator[Command]:
    """A call without data on its Pipe: the peer keeps it when the caller is gone, because some pings have succeeded."""
    async with started("ping", address, *key, "--count", "1000", "--interval", "0.02", "--json") as command:
        await command.event(2)
        yield command


@pytest.mark.parametrize("served", [("--echo",), ("--json",), (), ("--keep-open",)], ids=" ".join)
async def test_a_peer_that_was_killed_and_started_again_gets_in_again(tmp_path: Path, served: Sequence[str]) -> None:
    """This works twice, if nothing has passed through stdin or stdout, or if the listener takes several streams."""
    key = ("--key-file", str(tmp_path / "key"))
    async with started("listen", "--ephemeral", "--allow-any", *served, stdin=PIPE) as listen:
        address = str((await listen.event())["address"]) if "--json" in served else await listen.address()
        for _ in range(2):
            async with calling(address, key) as killed:
                killed.process.kill()
        async with started("connect", address, *key, stdin=PIPE) as again:
            await again.stdin.send_all(b"new")
            await again.stdin.aclose()
            await listen.stdin.aclose()
            assert await again.code() == 0
            assert bytes(again.out) == (b"new" if "--echo" in served else b"")
        if "--keep-open" in served:
            assert bytes(listen.out) == b"new"
            assert listen.stderr_text.count("pipe broken: the peer was restarted") == 2
            return
        assert await listen.code() == 0
        assert listen.stderr_text.count("was started again: going on with its new pipe") == 2
        if "--json" in served:
            assert [checked_event(line)["event"] for line in bytes(listen.out).splitlines()[1:]] == ["pipe"] * 3
        else:
            assert bytes(listen.out) == (b"" if served else b"new")


async def test_the_place_of_a_peer_that_was_killed_is_nobody_elses(tmp_path: Path) -> None:
    """Only the peer itself can take the place, even if bytes have been echoed to it."""
    key = ("--key-file", str(tmp_path / "key"))
    async with started("listen", "--ephemeral", "--allow-any", "--echo") as listen:
        address = await listen.address()
        async with started("connect", address, *key, stdin=PIPE) as killed:
            for data in (b"1", b"2"):
                await killed.stdin.send_all(data)
                await killed.wait_out(data)
            killed.process.kill()
        other = await ran("connect", address, "--ephemeral", "--json")
        assert (await other.event())["verdict"] == "busy"
        again = await ran("connect", address, *key, "--echo-test", "64KiB")
        assert again.process.returncode == 0
        assert await listen.code() == 0


async def test_what_was_read_from_stdin_for_a_peer_that_was_killed_is_not_for_the_next(tmp_path: Path) -> None:
    key = ("--key-file", str(tmp_path / "key"))
    async with started("listen", "--ephemeral", "--allow-any", stdin=PIPE) as listen:
        address = await listen.address()
        async with started("connect", address, *key, stdin=PIPE) as killed:
            await listen.stdin.send_all(b"x")
            await killed.wait_out(b"x")
            killed.process.kill()
        again = await ran("connect", address, *key, "--json")
        assert (await again.event())["verdict"] == "busy"
        assert await listen.code() == 4


async def test_a_listener_of_one_peer_hears_at_once_that_its_peer_was_killed_and_started_again(tmp_path: Path) -> None:
    """The listener waits for the killed process only until another process of that peer calls.

    It then ends with an error: stdout has bytes of a stream that will never be complete.
    """
    key = ("--key-file", str(tmp_path / "key"))
    async with started("listen", "--ephemeral", "--allow-any", stdin=PIPE) as listen:
        address = await listen.address()
        async with started("connect", address, *key, stdin=PIPE) as killed:
            await killed.stdin.send_all(b"x")
            await listen.wait_out(b"x")
            killed.process.kill()
        again = await ran("connect", address, *key, "--json")
        assert (await again.event())["verdict"] == "busy"
        assert await listen.code() == 4
        assert listen.stderr_text.splitlines()[-1] == "error: pipe broken: the peer was restarted"
