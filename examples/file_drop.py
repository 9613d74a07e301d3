"""A folder that others may drop files into: `file_drop.py FOLDER` prints an address, `file_drop.py wg1… FILE…` sends.

Files and folders come whole, and under names that nobody had.  Whoever has the address can send, a gigabyte at a time.
"""

from __future__ import annotations

import sys
from contextlib import suppress
from functools import partial

import trio

from warpgate_trio import Identity, NodeConfig, Pipe, anyone, load_config, open_node, serve_pipes
from warpgate_trio.files import receive_files, send_files

MOST = 10**9


async def receive(folder: str, pipe: Pipe) -> None:
    received = await receive_files(pipe, into=folder, max_size=MOST)
    print(pipe.peer_id[:8], *received.paths, flush=True)


async def main(config: NodeConfig, first: str, *files: str) -> None:
    if first.startswith("wg1"):
        async with open_node(config, identity=Identity.generate()) as node, await node.auto_connect(first) as pipe:
            await send_files(pipe, files)
    else:
        async with open_node(config, authorize=anyone) as node:
            await node.wait_published()
            print(node.address, flush=True)
            await serve_pipes(partial(receive, first), node)


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    with suppress(KeyboardInterrupt):
        trio.run(partial(main, load_config(), *sys.argv[1:]))
