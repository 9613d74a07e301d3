"""A chat of two people: `chat.py` prints an address, and `chat.py wg1…` calls it.  Ctrl-D ends the chat."""

from __future__ import annotations

import os
import sys
from functools import partial

import trio

from warpgate_trio import Identity, MessageChannel, NodeConfig, Pipe, anyone, load_config, open_node

typed = partial(trio.to_thread.run_sync, os.read, 0, 4096, abandon_on_cancel=True)


async def show(messages: MessageChannel, until_then: trio.CancelScope) -> None:
    async for message in messages:
        print(repr(message.decode(errors="replace").rstrip()), flush=True)  # repr: no control codes reach the terminal
    until_then.cancel()


async def chat(pipe: Pipe) -> None:
    async with pipe.messages(max_size=4096) as messages, trio.open_nursery() as nursery:
        nursery.start_soon(show, messages, nursery.cancel_scope)
        while line := await typed():
            await messages.send(line)
        await messages.send_eof()  # messages are shown until the other side ends too


async def main(config: NodeConfig, address: str = "") -> None:
    async with open_node(config, authorize=anyone, identity=Identity.generate()) as node:
        if not address:
            await node.wait_published()
            print(node.address, flush=True)
        await chat(await node.auto_connect(address) if address else await node.listener.accept())


if __name__ == "__main__":
    trio.run(partial(main, load_config(), *sys.argv[1:]))
