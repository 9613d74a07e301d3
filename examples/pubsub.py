"""Publish and subscribe for three or more peers: `pubsub.py` is the hub and prints an address.  Everybody else runs
`pubsub.py wg1… TOPIC`, types news, and sees what others type on that topic.

A subscriber that does not keep up misses news, and does not delay others.
"""

from __future__ import annotations

import os
import sys
from collections import defaultdict
from contextlib import suppress
from functools import partial

import trio

from warpgate_trio import Identity, MessageChannel, NodeConfig, Pipe, anyone, load_config, open_node, serve_pipes

NEWS = 4096
BACKLOG = 64  # messages that wait for a subscriber

Topics = defaultdict[bytes, set[trio.MemorySendChannel[bytes]]]


async def typed() -> bytes:
    return await trio.to_thread.run_sync(os.read, 0, NEWS, abandon_on_cancel=True)


async def serve(topics: Topics, pipe: Pipe) -> None:
    """A handler: serves one subscriber, whose first message is its topic."""
    waiting, backlog = trio.open_memory_channel[bytes](BACKLOG)
    async with pipe.messages(max_size=NEWS) as messages:
        topic = await messages.receive()
        topics[topic].add(waiting)
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(pass_on, backlog, messages)
                async for news in messages:
                    for other in topics[topic] - {waiting}:
                        with suppress(trio.WouldBlock):
                            other.send_nowait(news)
                nursery.cancel_scope.cancel()
        finally:
            topics[topic].discard(waiting)
            if not topics[topic]:
                del topics[topic]


async def pass_on(backlog: trio.MemoryReceiveChannel[bytes], messages: MessageChannel) -> None:
    async for news in backlog:
        await messages.send(news)


async def subscribe(pipe: Pipe, topic: str) -> None:
    async with pipe.messages(max_size=NEWS) as messages, trio.open_nursery() as nursery:
        await messages.send(topic.encode())
        nursery.start_soon(publish, messages)
        async for news in messages:
            print(repr(news.decode(errors="replace").rstrip()), flush=True)  # repr: no control codes reach the terminal
        nursery.cancel_scope.cancel()


async def publish(messages: MessageChannel) -> None:
    while news := await typed():
        await messages.send(news)
    await messages.send_eof()


async def main(config: NodeConfig, address: str = "", topic: str = "") -> None:
    if address:
        async with open_node(config, identity=Identity.generate()) as node:
            await subscribe(await node.auto_connect(address), topic)
    else:
        async with open_node(config, authorize=anyone) as node:
            await node.wait_published()
            print(node.address, flush=True)
            await serve_pipes(partial(serve, defaultdict(set)), node)


if __name__ == "__main__":
    with suppress(KeyboardInterrupt):
        trio.run(partial(main, load_config(), *sys.argv[1:]))
