"""A folder that others may drop files into: `file_drop.py FOLDER` prints an address, `file_drop.py wg1… FILE…` sends.

A file is its name, its pieces, and an empty message.  Whoever has the address can drop files, and fill the disk; nobody
can overwrite one, or put one elsewhere.
"""

from __future__ import annotations

import sys
from contextlib import suppress
from functools import partial

import trio

from warpgate_trio import Identity, NodeConfig, Pipe, anyone, load_config, open_node, serve_pipes

PIECE = 256 * 1024


def plain_name(sent: bytes) -> str:
    """A file's name as the sender calls it, where it is one in the folder and nowhere else."""
    name = sent.decode()
    if not name or name[0] == "." or not name.isprintable() or set(name) & set("/\\:"):
        raise ValueError(f"{name!r} is no name for a file")
    return name


async def receive(folder: trio.Path, pipe: Pipe) -> None:
    """A handler.  What it raises aborts the Pipe, so the sender sees that its file was not taken."""
    async with pipe.messages(max_size=PIECE) as messages:
        async for sent in messages:
            target = folder / plain_name(sent)
            async with await target.open("xb") as file:  # FileExistsError where there is one of that name
                try:
                    while piece := await messages.receive():
                        await file.write(piece)
                except BaseException:
                    with trio.CancelScope(shield=True):
                        await target.unlink()  # half a file is none
                    raise
            await messages.send(b"taken")
            print(f"{target.name} from {pipe.peer_id[:8]}…", flush=True)


async def send(pipe: Pipe, files: list[trio.Path]) -> None:
    async with pipe.messages(max_size=PIECE) as messages:
        for path in files:
            async with await path.open("rb") as file:
                await messages.send(path.name.encode())
                while piece := await file.read(PIECE):
                    await messages.send(piece)
            await messages.send(b"")
            await messages.receive()  # "taken"; BrokenResourceError where it was not
            print(f"{path.name} is there", flush=True)


async def main(config: NodeConfig, first: str, *files: str) -> None:
    if first.startswith("wg1"):
        async with open_node(config, identity=Identity.generate()) as node:
            await send(await node.auto_connect(first), [trio.Path(each) for each in files])
    else:
        async with open_node(config, authorize=anyone) as node:
            await node.wait_published()
            print(node.address, flush=True)
            await serve_pipes(partial(receive, trio.Path(first)), node)


if __name__ == "__main__":
    with suppress(KeyboardInterrupt):
        trio.run(partial(main, load_config(), *sys.argv[1:]))
