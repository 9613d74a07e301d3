"""SOCKS5 proxies: microsocks, and servers that are no such proxy."""

from __future__ import annotations

import importlib.util

import pytest
import trio

from tests.hangs import HANG
from tests.identities import ALICE
from tests.integration.test_server_dial import ECHO, check_echo, refusal, target
from tests.nodes import loopback_node
from tests.ports import free_port
from tests.proxies import PASSWORD, USER, microsocks, says
from warpgate_trio import NodeConfig, Servers
from warpgate_trio.config import NetworkConfig, ServerUrl
from warpgate_trio.errors import ConfigError
from warpgate_trio.ports.server_dial import ServerDial


def by(port: int, username: str | None = None, password: str | None = None) -> ServerDial:
    return ServerDial(ServerUrl("socks5", "127.0.0.1", port, username, password))


@pytest.mark.needs("microsocks")
class TestMicrosocks:
    @pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
    async def test_lets_through(self, host: str) -> None:
        port = free_port()
        with microsocks(port):
            async with target():
                with trio.fail_after(HANG):
                    await check_echo(await by(port)(host, ECHO))

    async def test_its_login(self) -> None:
        port = free_port()
        with microsocks(port, login=True):
            async with target():
                with trio.fail_after(HANG):
                    await check_echo(await by(port, USER, PASSWORD)("127.0.0.1", ECHO))
            for dial in (by(port), by(port, USER, "guess")):
                said = await refusal(dial, port=ECHO)
                assert said.startswith(f"the proxy 127.0.0.1:{port} did not connect to 127.0.0.1:{ECHO} (")
                assert "is the login in its URL right?" in said
                assert "guess" not in said

    async def test_a_target_refuses(self) -> None:
        port, nobody = free_port(), free_port()
        with microsocks(port):
            said = await refusal(by(port), port=nobody)
        assert said.startswith(
            f"the proxy 127.0.0.1:{port} could not connect to 127.0.0.1:{nobody} (Connection refused"
        )


class TestStrangeOnes:
    @pytest.mark.parametrize(
        ("answers", "said"),
        [
            ((b"HTTP/1.1 400 Bad Request\r\n\r\n",), "did not connect to a.example:443 (Unexpected SOCKS version"),
            ((b"\x05\xff",), "did not connect to a.example:443 ("),
            ((b"\x05\x02",), "did not connect to a.example:443 ("),
            ((b"\x05\x00\x05\x02\x00\x01" + bytes(6),), "does not allow connections to a.example:443 ("),
            ((b"\x05\x00\x05\x04\x00\x01" + bytes(6),), "could not connect to a.example:443 ("),
            ((b"\x05\x00\x05\x63\x00\x01" + bytes(6),), "did not connect to a.example:443 (Invalid reply code"),
            ((b"\x05\x00\x05\x00\x00\x07" + bytes(6),), "did not connect to a.example:443 (Invalid address type"),
            ((b"\x05\x00\x05\x00\x00\x03\x01\xff" + bytes(2),), "does not speak SOCKS5"),
            ((b"\x05\x00\x05", None), "broke the connection off: it hung up"),
            ((None,), "broke the connection off: it hung up"),
        ],
    )
    async def test_its_answer_is_its_own(self, answers: tuple[bytes | None, ...], said: str) -> None:
        async with says(*answers) as port:
            assert f"the proxy 127.0.0.1:{port} {said}" in await refusal(by(port), "a.example")

    async def test_it_holds_the_line(self) -> None:
        async with says(b"\x05") as port:
            dial = by(port)
            with trio.move_on_after(0.02) as scope:
                await dial("a.example", 443)
            assert scope.cancelled_caught
            assert dial.silence == f" from the proxy 127.0.0.1:{port}"


async def test_without_the_package_a_node_does_not_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    config = NodeConfig(
        servers=Servers(websocket=["wss://signal.example.org"]), network=NetworkConfig(proxy="socks5://127.0.0.1")
    )
    with pytest.raises(ConfigError, match=r"needs the package python-socks: pip install 'warpgate-trio\[socks\]'"):
        async with loopback_node(ALICE, config):
            pass
