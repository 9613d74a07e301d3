from __future__ import annotations

import sys
from contextlib import suppress

import trio

from warpgate_trio import NodeConfig, Pipe, Servers, anyone, open_node, serve_pipes


async def echo(pipe: Pipe) -> None:
    async for data in pipe:
        await pipe.send_all(data)


async def main(server: str) -> None:
    async with open_node(NodeConfig(servers=Servers(websocket=[server])), authorize=anyone) as node:
        await node.wait_published()  # connected to the server, and its NAT measured
        print(node.address, flush=True)
        await serve_pipes(echo, node)


with suppress(KeyboardInterrupt):  # the Pipes of peers that are being served are aborted
    trio.run(main, sys.argv[1])
