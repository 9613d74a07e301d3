"""A connection to a real MQTT broker from a machine that loses its address."""

from __future__ import annotations

import socket
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Final

import pytest
import trio

from tests.hangs import HANG
from tests.identities import ALICE
from tests.kernel.machines import HostInNamespace
from tests.kernel.namespaces import Namespace
from tests.proxies import running
from tests.requirements import find_program
from warpgate_trio import host
from warpgate_trio.config import ServerUrl
from warpgate_trio.errors import SignalUnavailable
from warpgate_trio.signal.mqtt.channel import MqttChannel, open_mqtt_channel

pytestmark = [
    pytest.mark.slow("a broker in a namespace, and what wants asyncio is imported"),
    pytest.mark.needs("network_namespaces", "mosquitto"),
]

BROKER: Final = "192.0.2.1"
OURS: Final = "192.0.2.7"
OTHER: Final = "192.0.2.8"


@asynccontextmanager
async def connected(folder: Path) -> AsyncGenerator[tuple[Namespace, MqttChannel]]:
    """A machine with three addresses, and a channel from one of them to a broker at another one."""
    program = find_program("mosquitto")
    assert program is not None
    (folder / "mosquitto.conf").write_text(f"listener 1883 {BROKER}\nallow_anonymous true\nuser root\n")
    with closing(Namespace("a")) as namespace:
        namespace.ip_commands(*(f"addr add {address}/32 dev lo" for address in (BROKER, OURS, OTHER)))

        async def dial(name: str, port: int) -> trio.SocketStream:
            with namespace.inside():
                sock = trio.socket.from_stdlib_socket(socket.socket())
            await sock.bind((OURS, 0))
            await sock.connect((name, port))
            return trio.SocketStream(sock)

        command = [program, "-c", str(folder / "mosquitto.conf")]
        url = ServerUrl.parse(f"mqtt://{BROKER}:1883")
        there = HostInNamespace(namespace)
        before = host.set_provider(lambda: there)
        try:
            with running(command, BROKER, 1883, folder, machine=namespace), trio.fail_after(HANG):
                async with open_mqtt_channel(url, ALICE, dial=dial) as channel:
                    yield namespace, channel
        finally:
            host.set_provider(before)


async def test_a_connection_from_an_address_that_is_gone_ends_at_once(tmp_path: Path) -> None:
    async with connected(tmp_path) as (namespace, channel):
        namespace.ip_commands(f"addr del {OURS}/32 dev lo")
        assert not channel.check()
        with pytest.raises(SignalUnavailable, match=f"this machine no longer has the address {OURS}"):
            await channel.receive()


async def test_one_from_an_address_that_is_left_is_asked(tmp_path: Path) -> None:
    async with connected(tmp_path) as (namespace, channel):
        namespace.ip_commands(f"addr del {OTHER}/32 dev lo")
        assert channel.check()
        assert await channel.send(ALICE.public_key, b"\x01it goes on")
        assert await channel.receive() == b"\x01it goes on"
