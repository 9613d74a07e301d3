"""Text from a signal server in the places where people read it: the log, and the state of the servers."""

from __future__ import annotations

import pytest
import trio

from tests.hangs import HANG
from tests.hubs import websocket_server
from tests.integration.test_rendezvous import registered_with
from warpgate_trio.config import ServerUrl
from warpgate_trio.errors import SignalUnavailable
from warpgate_trio.identity import Identity
from warpgate_trio.nurseries import open_background_nursery
from warpgate_trio.servers import rendezvous_frames as frames
from warpgate_trio.signal import SignalHub
from warpgate_trio.websocket import WebSocket

ESCAPES = "\x1b]0;owned\x07\x1b[2J\u202e"


async def test_what_a_server_says_while_we_register(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG", logger="warpgate_trio")

    async def says_no(websocket: WebSocket) -> None:
        await websocket.send(frames.Error(9, ESCAPES).encode())
        await trio.sleep_forever()

    async with websocket_server(says_no) as url, open_background_nursery() as nursery:
        hub = SignalHub(Identity.generate(), [ServerUrl.parse(url)])
        await nursery.start(hub.run)
        with trio.fail_after(HANG):
            await hub.wait_tried()
        said = hub.status()[0].last_error or ""
    assert "owned" in said
    assert said.isprintable()
    assert "owned" in caplog.text
    assert all(record.getMessage().isprintable() for record in caplog.records)


@pytest.mark.parametrize("how", ["an error", "a close reason"])
async def test_what_a_server_says_later(how: str) -> None:
    async def behaviour(websocket: WebSocket) -> None:
        if how == "an error":
            await websocket.send(frames.Error(9, ESCAPES).encode())
        else:
            await websocket._connection.aclose(1008, ESCAPES)

    async with registered_with(behaviour) as channel:
        with trio.fail_after(HANG), pytest.raises(SignalUnavailable, match="owned") as caught:
            await channel.receive()
        assert str(caught.value).isprintable()
