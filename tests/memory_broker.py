"""An MQTT broker in memory, for nodes of the simulator, with latency and retained messages, open to anybody."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Final, final

import pytest
import trio

from warpgate_trio.config import ServerUrl
from warpgate_trio.nurseries import open_background_nursery
from warpgate_trio.signal.mqtt import channel
from warpgate_trio.signal.mqtt.connection import MqttError, Publication

URL: Final = "mqtt://broker"


@final
@dataclass
class MemoryBroker:
    """See the module's docstring.

    Attributes:
      latency: seconds from a client to the broker, and from there to a client.
      retained: the retained messages, by topic.
      published: all messages that clients have published, in order.
      subscribed: the connections that are subscribed to a topic.
      forgets: whether it retains nothing.
    """

    latency: float = 0.025
    retained: dict[str, bytes] = field(default_factory=dict)
    published: list[tuple[str, bytes]] = field(default_factory=list)
    subscribed: dict[str, list[MemoryConnection]] = field(default_factory=lambda: defaultdict(list))
    forgets: bool = False

    def publish(self, topic: str, payload: bytes, *, retain: bool = False) -> None:
        self.published.append((topic, payload))
        if retain and payload and not self.forgets:
            self.retained[topic] = payload
        elif retain:
            self.retained.pop(topic, None)
        for each in self.subscribed[topic]:
            each.hand(Publication(topic, payload))

    def subscribe(self, connection: MemoryConnection, topic: str) -> None:
        if connection not in self.subscribed[topic]:
            self.subscribed[topic].append(connection)
        if topic in self.retained:
            connection.hand(Publication(topic, self.retained[topic], retained=True))

    def unsubscribe(self, connection: MemoryConnection, topic: str) -> None:
        if connection in self.subscribed[topic]:
            self.subscribed[topic].remove(connection)

    @asynccontextmanager
    async def open(
        self, _url: ServerUrl, *, clears: str | None = None, max_payload: int, **_: object
    ) -> AsyncGenerator[MemoryConnection]:
        """Stands in for `open_mqtt`."""
        assert max_payload
        connection = MemoryConnection(self)
        try:
            async with open_background_nursery() as nursery:
                nursery.start_soon(connection.carry_up)
                nursery.start_soon(connection.carry_down)
                yield connection
        finally:
            connection.ended = True
            for each in self.subscribed.values():
                if connection in each:
                    each.remove(connection)
            if clears is not None:
                self.publish(clears, b"", retain=True)


@final
class MemoryConnection:
    """A connection to the broker, with the interface of `MqttConnection`; it delivers in order."""

    def __init__(self, broker: MemoryBroker) -> None:
        self._broker = broker
        self._say, self._said = trio.open_memory_channel[tuple[float, Callable[[], None], trio.Event]](1000)
        self._hand, self._handed = trio.open_memory_channel[tuple[float, Publication | trio.Event]](1000)
        self._arrived, self._incoming = trio.open_memory_channel[Publication](1000)
        self._retained: set[str] = set()
        self.ended = False
        self.local = ""

    async def publish(self, topic: str, payload: bytes, *, retain: bool = False) -> None:
        await self._do(partial(self._broker.publish, topic, payload, retain=retain))

    async def subscribe(self, topic: str, *, retained: bool = False) -> None:
        if retained:
            self._retained.add(topic)
        await self._do(partial(self._broker.subscribe, self, topic))

    async def unsubscribe(self, topic: str) -> None:
        self._retained.discard(topic)
        await self._do(partial(self._broker.unsubscribe, self, topic))

    async def receive(self) -> Publication:
        try:
            return await self._incoming.receive()
        except trio.EndOfChannel:
            raise MqttError("the connection is closed") from None

    def abandon(self) -> None:
        """See `MqttConnection`."""

    def hand(self, message: Publication) -> None:
        """Deliver a message of the broker to this client, after the latency."""
        self._hand.send_nowait((trio.current_time() + self._broker.latency, message))

    async def _do(self, what: Callable[[], None]) -> None:
        done = trio.Event()
        self._say.send_nowait((trio.current_time() + self._broker.latency, what, done))
        await done.wait()

    async def carry_up(self) -> None:
        async for at, what, done in self._said:
            await trio.sleep_until(at)
            what()
            self._hand.send_nowait((trio.current_time() + self._broker.latency, done))

    async def carry_down(self) -> None:
        async for at, what in self._handed:
            await trio.sleep_until(at)
            if isinstance(what, trio.Event):
                what.set()
            elif not what.retained or what.topic in self._retained:
                self._arrived.send_nowait(what)


@pytest.fixture
def memory_broker(monkeypatch: pytest.MonkeyPatch) -> MemoryBroker:
    """The broker that every node connects to, whichever one its configuration names."""
    broker = MemoryBroker()
    monkeypatch.setattr(channel, "open_mqtt", broker.open)
    return broker
