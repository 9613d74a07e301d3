"""A relayed port in virtual time, at a minimal server."""

from __future__ import annotations

import random
from collections.abc import Iterable

import trio
import trio.testing

from tests.turn_model import ModelServer
from warpgate_trio.turn.client_core import TurnClientCore
from warpgate_trio.turn.login import Credentials
from warpgate_trio.turn.messages import Method
from warpgate_trio.turn.relay_port import RelayPort

SERVER = ("198.51.100.1", 3478)


class Line:
    """A connection without losses; an answer takes 50 ms."""

    server = SERVER
    reliable = False

    def __init__(self, server: ModelServer) -> None:
        self._model = server
        self._answers, self._inbox = trio.open_memory_channel[bytes](100)

    async def run(self) -> None:
        await trio.sleep_forever()

    async def receive(self) -> list[bytes]:
        answer = await self._inbox.receive()
        await trio.sleep(0.05)
        return [answer]

    async def send(self, messages: Iterable[bytes]) -> None:
        await trio.lowlevel.checkpoint()
        self.send_nowait(messages)

    def send_nowait(self, messages: Iterable[bytes]) -> None:
        for each in messages:
            answer = self._model.receive(each, trio.current_time())
            if answer is not None:
                self._answers.send_nowait(answer)

    async def aclose(self) -> None:
        await trio.lowlevel.checkpoint()


async def test_an_idle_one_is_refreshed_once(autojump_clock: trio.testing.MockClock) -> None:
    """An allocation's lifetime counts from the arrival of the answer, not from when the port began to wait for it."""
    server = ModelServer(lifetime=600)
    core = TurnClientCore(SERVER, entropy=random.Random(1).randbytes, credentials=Credentials("user", "secret"))
    port = RelayPort(core, Line(server), name="the relay")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(port.serve)
        await port.wait_allocated()
        server.seen.clear()
        await trio.sleep(600)
        seen = list(server.seen)
        port.release()
    assert seen == [(Method.REFRESH, True)]
