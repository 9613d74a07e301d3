"""Messages of a node to itself: one that comes back shows that the broker is there, and passes on what is published.

An echo is a zero byte and 16 random bytes.  Signals and sealed key records begin with a version byte, 1 or higher.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Final, final

import trio

from ... import host as machine
from .connection import MqttConnection, MqttError

__all__ = ["Echoes"]

_ECHO: Final = b"\0"
_TOKEN: Final = 16


@final
class Echoes:
    """The echoes that are under way on one connection."""

    def __init__(self, connection: MqttConnection) -> None:
        self._connection = connection
        self._host = machine.current()
        self._expected: dict[tuple[str, bytes], trio.Event] = {}
        self._ended: str | None = None

    @asynccontextmanager
    async def published(self, topic: str) -> AsyncGenerator[trio.Event]:
        """Publish an echo to a topic that we subscribe to.

        Yields an event, which is set once the echo has come back or the connection has ended.

        Raises:
          MqttError: the connection has ended, on entry or by the end of the body.
        """
        token, back = self._host.entropy(_TOKEN), trio.Event()
        self._expected[topic, token] = back
        try:
            await self._connection.publish(topic, _ECHO + token)
            yield back
        finally:
            del self._expected[topic, token]
        if self._ended is not None:
            raise MqttError(self._ended)

    async def wait_back(self, topic: str) -> None:
        """Publish an echo, and return once it has come back.

        Raises:
          MqttError: the connection has ended.
        """
        async with self.published(topic) as back:
            await back.wait()

    def take(self, topic: str, payload: bytes) -> bool:
        """Take a received message; return whether it is an echo, be it ours or a stranger's."""
        back = self._expected.get((topic, payload[1:]))
        if back is not None and payload[:1] == _ECHO:
            back.set()
        return payload[:1] == _ECHO

    def end(self, why: str) -> None:
        """The connection has ended: wake all tasks that wait."""
        if self._ended is None:
            self._ended = why
        for back in self._expected.values():
            back.set()
