"""`serve` relays for holders of its token, or for everybody: two peers as processes, and what they report."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.end_to_end.processes import ran, started

pytestmark = pytest.mark.slow("starts processes; each imports Trio and cryptography for 0.4 s")

SERVE = ("serve", "--host", "127.0.0.1", "--port", "0", "--no-stun", "--no-ntp")
TOKEN = "a-token-that-nobody-guesses"


async def test_a_pasted_configuration_is_enough(tmp_path: Path) -> None:
    """One side has the configuration that `serve --token-file` prints; the other one needs only the URL."""
    (tmp_path / "token").write_text(TOKEN + "\n", encoding="utf-8")
    with_token, without = tmp_path / "with.toml", tmp_path / "without.toml"
    async with started(*SERVE, "--token-file", tmp_path / "token") as serve:
        await serve.wait_err("until interrupted")
        with_token.write_bytes(serve.out)
        assert f'relay_token = "{TOKEN}"' in serve.out.decode()
        without.write_text(
            "".join(line for line in serve.out.decode().splitlines(keepends=True) if "token" not in line),
            encoding="utf-8",
        )
        for listens, calls, code in ((without, with_token, 0), (with_token, without, 0), (without, without, 1)):
            async with started(
                "listen", "--config", listens, "--ephemeral", "--allow-any", "--echo", "--json"
            ) as listen:
                address = (await listen.event())["address"]
                words = ("connect", address, "--config", calls, "--ephemeral", "--phases", "relay")
                connect = await ran(*words, "--echo-test", "1000000", "--json")
                assert connect.process.returncode == code, connect.stderr_text
                event = await connect.event()
                if code:
                    assert event["verdict"] == "no_relay_configured"
                    assert "relay_token" in connect.stderr_text
                    assert TOKEN not in connect.stderr_text + listen.stderr_text
                else:
                    assert (event["phase"], event["plugin"], event["echo_ok"]) == ("relay", "ws_relay", True)
                    assert await listen.code() == 0


async def test_open_to_all(tmp_path: Path) -> None:
    config = tmp_path / "config.toml"
    async with started(*SERVE, "--open") as serve:
        await serve.wait_err("until interrupted")
        config.write_bytes(serve.out)
        assert "relay_token" not in config.read_text(encoding="utf-8")
        async with started("listen", "--config", config, "--ephemeral", "--allow-any", "--echo", "--json") as listen:
            address = (await listen.event())["address"]
            connect = await ran("connect", address, "--config", config, "--ephemeral", "--phases", "relay", "--json")
            assert connect.process.returncode == 0, connect.stderr_text


@pytest.mark.parametrize("text", ["short", "with a space in it, and long", ""])
async def test_a_token_that_is_none(tmp_path: Path, text: str) -> None:
    (tmp_path / "token").write_text(text, encoding="utf-8")
    serve = await ran(*SERVE, "--token-file", tmp_path / "token")
    assert serve.process.returncode == 2
    assert "--token-file" in serve.stderr_text
    assert "expected 16 to 256 printable ASCII characters" in serve.stderr_text
    assert not text or text not in serve.stderr_text
    both = await ran(*SERVE, "--token-file", tmp_path / "token", "--open")
    assert both.process.returncode == 2
