"""One key in several processes: a first try on one machine, a caller beside a listener, two listeners."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.end_to_end.conftest import Server
from tests.end_to_end.processes import ran, started

pytestmark = pytest.mark.slow("starts processes; each imports Trio and cryptography for 0.4 s")

WARNING = "another process listens with this key"
ITS_OWN = "this call uses a temporary identity"


async def test_a_first_try_in_two_terminals_of_one_user(server: Server, tmp_path: Path) -> None:
    home = {"HOME": str(tmp_path), "XDG_CONFIG_HOME": str(tmp_path), "APPDATA": str(tmp_path)}
    common = ("--config", server.config)
    async with started("listen", *common, "--allow-any", "--keep-open", "--echo", env=home) as listen:
        address = await listen.address()
        quiet = await ran("connect", address, *common, "--echo-test", "1000", env=home)
        assert quiet.process.returncode == 0, quiet.stderr_text
        assert ITS_OWN not in quiet.stderr_text
        assert "warning" not in quiet.stderr_text
        told = await ran("ping", address, *common, "--count", "1", "-v", env=home)
        assert told.process.returncode == 0, told.stderr_text
        assert told.stderr_text.count(ITS_OWN) == 1
        assert WARNING not in listen.stderr_text
        (key,) = tmp_path.rglob("node.key")
        for command in ("connect", "ping"):  # an explicitly named key is used as it is
            pinned = await ran(command, address, *common, "--key-file", key, env=home)
            assert pinned.process.returncode == 2, pinned.stderr_text
            assert "this is the node's own address" in pinned.stderr_text


async def test_a_caller_takes_nothing_of_a_listeners_calls(server: Server, tmp_path: Path) -> None:
    common, ours = ("--config", server.config), ("--key-file", tmp_path / "ours.key")
    async with (
        started("listen", *common, *ours, "--allow-any", "--keep-open", "--echo") as listen,
        started("listen", *common, "--ephemeral", "--allow-any", stdin=subprocess.PIPE) as other,
    ):
        address = await listen.address()
        async with started("connect", await other.address(), *common, *ours, stdin=subprocess.PIPE) as caller:
            await caller.stdin.send_all(b"x")
            await other.wait_out(b"x")
            for plugin in ("direct_connect", "reverse_connect"):
                words = ("--plugin", plugin, "--echo-test", "1000")
                call = await ran("connect", address, *common, "--ephemeral", *words)
                assert call.process.returncode == 0, call.stderr_text
            assert WARNING not in listen.stderr_text + caller.stderr_text


async def test_two_listeners_say_so(server: Server, tmp_path: Path) -> None:
    words = ("--config", server.config, "--key-file", tmp_path / "ours.key", "--allow-any", "--keep-open", "--echo")
    async with started("listen", *words) as first:
        address = await first.address()
        async with started("listen", *words) as second:
            await first.wait_err(WARNING)
            await second.wait_err(WARNING)
            call = await ran(
                "connect", address, "--config", server.config, "--ephemeral", "--plugin", "reverse_connect",
                "--echo-test", "1000",
            )  # fmt: skip
            assert call.process.returncode == 0, call.stderr_text
            await first.wait_err("echoed")
            assert "echoed" not in second.stderr_text
