from __future__ import annotations

import sys
from contextlib import suppress

import trio

from warpgate_trio import NodeConfig, Pipe, Servers, anyone, open_node


async def echo(pipe: Pipe) -> None:
    with suppress(trio.BrokenResourceError):  # a peer that vanishes ends its Pipe, not this program
        async with pipe:
            async for data in pipe:
                await pipe.send_all(data)


async def main(server: str) -> None:
    async with open_node(NodeConfig(servers=Servers(websocket=[server])), authorize=anyone) as node:
        print(node.address, flush=True)
        await trio.serve_listeners(echo, [node.listener])


trio.run(main, sys.argv[1])
