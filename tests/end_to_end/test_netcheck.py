"""`netcheck` as a process, against `serve` on loopback."""

from __future__ import annotations

import os
import subprocess
from contextlib import suppress
from pathlib import Path

import pytest
import trio

from tests.end_to_end.processes import PROGRAM, checked_event, environment, ran, started
from tests.hangs import HANG
from tests.ports import free_port

pytestmark = pytest.mark.slow("starts processes; each imports Trio and cryptography for 0.4 s")

SERVE = ("serve", "--host", "127.0.0.1", "--port", "0", "--stun-port", "0", "--ntp-port", "0")


async def test_what_it_prints(tmp_path: Path) -> None:
    config = tmp_path / "config.toml"

    async def plain_text() -> None:
        check = await ran("netcheck", "--config", config)
        assert check.process.returncode == 0, check.stderr_text
        plain = check.out.decode()
        assert "\x1b" not in plain
        for words in (
            "lo, IPv4: 127.0.0.1, seen as 127.0.0.1",
            "  UDP: no NAT",
            "reached",
            "clock: ",
            "can: ",
            "unknown: ",
            "TURN servers are tested only with --servers",
        ):
            assert words in plain, plain
        assert "secret" not in plain

    async def as_json() -> None:
        check = await ran("netcheck", "--config", config, "--servers", "--json", "--quiet")
        assert check.process.returncode == 0
        assert check.stderr_text == ""
        event = checked_event(bytes(check.out))
        assert (event["event"], event["online"], event["complete"]) == ("netcheck", True, True)
        rows = {(each["kind"], each["transport"], each["reachable"]) for each in event["servers"]}
        assert rows == {
            ("websocket", "tcp", True),
            ("stun", "udp", True),
            ("stun", "tcp", True),
            ("stun", "udp", False),
            ("stun", "tcp", False),
            ("turn", "udp", True),
            ("turn", "tcp", True),
            ("turn", "tcp", False),
            ("ntp", "udp", True),
        }
        assert abs(event["clock"]["offset_s"]) <= event["clock"]["uncertainty_s"] + 0.1

    async def on_a_terminal() -> None:
        ours, theirs = os.openpty()
        try:
            async with started(
                "netcheck", "--config", config, stdout=theirs, env={"TERM": "xterm-256color"}
            ) as command:
                os.close(theirs)
                assert await command.code() == 0
            shown = bytearray()
            with suppress(OSError):  # EIO: the command has ended
                while data := os.read(ours, 65536):
                    shown += data
        finally:
            os.close(ours)
        assert b"\x1b[" in shown
        assert b"no NAT" in shown
        assert b"can: " in shown

    async with started(*SERVE) as serve:
        await serve.wait_err("until interrupted")
        dead = free_port()
        text = serve.out.decode()
        config.write_text(
            text.replace("stun = [", f'stun = [\n"stun:127.0.0.1:{dead}",')
            + f'[[servers.turn]]\nurl = "turn:u:secret@127.0.0.1:{dead}?transport=tcp"\n'
        )
        async with trio.open_nursery() as nursery:  # each waits a while for the dead server
            nursery.start_soon(plain_text)
            nursery.start_soon(as_json)
            nursery.start_soon(on_a_terminal)


async def test_nothing_is_reached(tmp_path: Path) -> None:
    """It works beside a running `listen`, which occupies the configured port; no key is made."""
    config, key = tmp_path / "config.toml", tmp_path / "key"
    dead = free_port()
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    port = listeners[0].socket.getsockname()[1]
    config.write_text(
        f'identity.key_file = "{key}"\nlisten.port = {port}\n[servers]\n'
        f'websocket = ["ws://127.0.0.1:{dead}"]\nstun = ["stun:127.0.0.1:{dead}"]\n'
        f'ntp = ["ntp://127.0.0.1:{dead}"]\n'
    )
    async with listeners[0]:
        check = await ran("netcheck", "--config", config, "--timeout", "9", "--json")
    assert not key.exists()
    assert check.stderr_text == "checking, for at most 9 s …\n", "what the table says is not said beside it"
    assert check.process.returncode == 1
    event = checked_event(bytes(check.out))
    assert (event["online"], event["can"], event["external"]) == (False, [], [])
    assert event["clock"]["offset_s"] is None
    assert "no signal server answers" in event["cannot"][0]


async def test_a_timeout_ends_it(tmp_path: Path) -> None:
    """The server accepts connections and sends nothing."""
    config = tmp_path / "config.toml"
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    async with listener:
        port = listener.socket.getsockname()[1]
        config.write_text(f'[servers]\nwebsocket = ["ws://127.0.0.1:{port}"]\n')
        check = await ran("netcheck", "--config", config, "--servers", "--timeout", "0.3", "--json")
    assert check.process.returncode == 1
    event = checked_event(bytes(check.out))
    assert not event["complete"]
    assert 300 <= event["elapsed_ms"] < 9000
    assert event["servers"][0]["reachable"] is None


def test_its_reader_has_gone(tmp_path: Path) -> None:
    config = tmp_path / "config.toml"
    config.write_text("")
    words = [*PROGRAM, "netcheck", "--config", str(config)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment()) as process:
        assert process.stdout is not None
        process.stdout.close()
        assert process.wait(HANG) == 0
