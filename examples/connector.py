from __future__ import annotations

import sys

import trio

from warpgate_trio import Identity, NodeConfig, Servers, open_node


async def main(server: str, address: str) -> None:
    config = NodeConfig(servers=Servers(websocket=[server]))
    async with open_node(config, identity=Identity.generate()) as node:
        async with await node.auto_connect(address) as pipe:
            await pipe.send_all(b"hello through the gate\n")
            await pipe.send_eof()
            async for data in pipe:
                sys.stdout.buffer.write(data)
            print(pipe.path.plugin, pipe.path.remote, file=sys.stderr)


trio.run(main, sys.argv[1], sys.argv[2])
