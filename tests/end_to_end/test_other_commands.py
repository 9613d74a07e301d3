"""`demo` and `serve` as processes; tests that need no process are in tests/unit/test_cli_main.py."""

from __future__ import annotations

import re
import socket
from contextlib import suppress
from pathlib import Path

import pytest
import trio

from tests.certificates import Authority
from tests.end_to_end.processes import on_terminal, ran, started
from warpgate_trio import host as machine
from warpgate_trio.clock.ntp_client import measure_offset
from warpgate_trio.config import NodeConfig
from warpgate_trio.config.server_url import ServerUrl
from warpgate_trio.stun.client import query_udp

pytestmark = pytest.mark.slow("starts processes; each imports Trio and cryptography for 0.4 s")


async def test_demo() -> None:
    demo = await ran("demo")
    assert demo.process.returncode == 0, demo.stderr_text
    assert demo.out == b""
    for word in ("ws://127.0.0.1:", "alice dials bob", "reverse_connect", "MB/s", "won"):
        assert word in demo.stderr_text
    assert "\x1b" not in demo.stderr_text
    steps = (
        r"alice begins by a relay +ws_relay, .*, 100\.0 ms",
        r"the first bytes from bob +by ws_relay, 200\.0 ms",
        r"the pipe becomes direct +tcp_punch, .*, [45]\d\d\.\d ms; [1-9.0]+ MiB were here by then",
        r"4 MiB from bob to alice +each byte compared, ",
        r"the search behind the third Pipe",
    )
    assert re.search("(?s)" + ".*".join(f"\n{step}" for step in steps), demo.stderr_text), demo.stderr_text


async def test_what_the_demo_advises_connects_two_machines(tmp_path: Path) -> None:
    """The demo's last lines work verbatim: the first writes a configuration, and the others read it."""
    shown = (await ran("demo")).stderr_text
    serving, listening, connecting = (line.split() for line in re.findall(r"^  warpgate-trio (.*?) +#", shown, re.M))
    assert serving[1:] == [">", "warpgate.toml"]
    with (tmp_path / "warpgate.toml").open("wb") as file:
        async with started(
            "serve", "--port", "0", "--stun-port", "0", "--ntp-port", "0", stdout=file.fileno()
        ) as serve:
            await serve.wait_err("until interrupted")
            words = [str(tmp_path / word) if word == "warpgate.toml" else word for word in listening]
            async with started(*words, "--ephemeral", "--echo") as listen:
                address = await listen.address()
                assert "no signal server" not in listen.stderr_text
                names = {"warpgate.toml": str(tmp_path / "warpgate.toml"), "wg1…": address}
                connect = await ran(*(names.get(word, word) for word in connecting), "--ephemeral", "--echo-test", "9")
                assert connect.process.returncode == 0, connect.stderr_text


@pytest.mark.needs("linux")
async def test_demo_on_a_terminal_has_a_progress_bar() -> None:
    async with on_terminal("demo") as terminal:
        assert await terminal.command.code() == 0
    assert "67.1/67.1 MB" in terminal.text
    assert "the pipe becomes direct" in terminal.text
    assert "━" in terminal.text
    assert "won" in terminal.text


async def test_serve_prints_a_configuration_to_paste_and_ends_at_sigint() -> None:
    async with started("serve", "--port", "0", "--stun-port", "0") as serve:
        await serve.wait_err("until interrupted")
        config = NodeConfig.from_toml(serve.out.decode(), base_dir="/")
        assert config.servers.websocket
        assert config.servers.stun
        urls = [str(url) for url in (*config.servers.websocket, *config.servers.stun)]
        assert not any("0.0.0.0" in url or "[::]" in url for url in urls)
        serve.interrupt()
        assert await serve.code() == 130


@pytest.mark.needs("linux")  # where all of 127/8 is this machine
async def test_serve_answers_stun_on_two_addresses() -> None:
    hosts = ("--host", "127.0.0.1", "--second-host", "127.0.0.2")
    async with started("serve", *hosts, "--port", "0", "--stun-port", "0", "--json") as serve:
        urls = [ServerUrl.parse(text) for text in (await serve.event())["servers"]["stun"]]
        assert [url.host for url in urls] == ["127.0.0.1", "127.0.0.2"]
        with trio.socket.socket(type=trio.socket.SOCK_DGRAM) as sock:
            await sock.bind(("127.0.0.1", 0))
            answer = await query_udp(sock, (urls[0].host, urls[0].port))
            assert answer.mapped == sock.getsockname()
        assert answer.other_address == ("127.0.0.2", urls[0].port + 1)


async def test_serve_does_without_a_stun_port_that_nobody_asked_for() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as taken:
        with suppress(OSError):  # another program has it already
            taken.bind(("127.0.0.1", 3478))
        async with started("serve", "--host", "127.0.0.1", "--port", "0", "--json") as serve:
            servers = (await serve.event())["servers"]
            assert "websocket" in servers
            assert "stun" not in servers
            await serve.wait_err("3478 for STUN")


async def test_serve_tells_the_time() -> None:
    async with started(
        "serve", "--host", "127.0.0.1", "--port", "0", "--no-stun", "--ntp-port", "0", "--json"
    ) as serve:
        servers = (await serve.event())["servers"]
        assert set(servers) == {"websocket", "ntp"}
        urls = [ServerUrl.parse(url) for url in servers["ntp"]]
        estimate = await measure_offset(urls, timeout=5, host=machine.current())
        assert abs(estimate.offset) < 0.1


async def test_serve_over_tls(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    authority.server("127.0.0.1")
    pem = tmp_path / "127.0.0.1.pem"
    files = ("--tls-cert", pem, "--tls-key", pem)
    async with started("serve", "--host", "127.0.0.1", "--port", "0", "--no-stun", *files, "--json") as serve:
        (url,) = (await serve.event())["servers"]["websocket"]
        assert url.startswith("wss://127.0.0.1:")
        config = tmp_path / "config.toml"
        config.write_text(f'[servers]\nwebsocket = ["{url}"]\nca_file = "{authority.ca_file.name}"\n', encoding="utf-8")
        async with started("listen", "--ephemeral", "--config", config, "--allow-any", "--json") as listen:
            assert (await listen.event())["signals"] == [url]
