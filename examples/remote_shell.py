"""A shell on this machine for one peer.  WHO HAS THE KEY THAT YOU NAME CAN DO HERE WHATEVER YOU CAN: nothing is asked,
nothing is held back, and nothing is logged.  So there is no `anyone` here: name the peers, and let nobody else have
their key file.  For more than a try, lead ssh through a Pipe instead (docs/forwarding.md).

    remote_shell.py PEER_ID…     there: prints an address (`warpgate-trio id` prints a peer id)
    remote_shell.py wg1…         here: what you type goes to the shell; Ctrl-D ends it

The shell has no terminal: what draws on a screen does not work, and Ctrl-C ends this program and with it the shell.
"""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import suppress
from functools import partial

import trio

from warpgate_trio import NodeConfig, Pipe, load_config, open_node, serve_pipes


async def typed() -> bytes:
    return await trio.to_thread.run_sync(os.read, 0, 4096, abandon_on_cancel=True)


async def show(data: bytes) -> None:
    await trio.to_thread.run_sync(os.write, 1, data)


async def open_shell(nursery: trio.Nursery) -> trio.Process:
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    process: trio.Process = await nursery.start(partial(trio.run_process, ["sh"], check=False, **pipes))
    return process  # killed when the nursery is cancelled


async def serve(pipe: Pipe) -> None:
    """A handler: the Pipe is a shell's stdin and stdout.  Where it breaks, the shell is killed."""
    async with trio.open_nursery() as nursery:
        process = await open_shell(nursery)
        assert process.stdin is not None
        assert process.stdout is not None
        nursery.start_soon(feed, process.stdin, pipe)
        async for data in process.stdout:
            await pipe.send_all(data)
        nursery.cancel_scope.cancel()


async def feed(stdin: trio.abc.SendStream, pipe: Pipe) -> None:
    async with stdin:
        async for data in pipe:
            with suppress(trio.BrokenResourceError):  # it has closed its stdin, or exits
                await stdin.send_all(data)


async def use(pipe: Pipe) -> None:
    async with pipe, trio.open_nursery() as nursery:

        async def send() -> None:
            with suppress(trio.BrokenResourceError):  # the shell has exited: what it has said still comes
                while data := await typed():
                    await pipe.send_all(data)
                await pipe.send_eof()

        nursery.start_soon(send)
        async for data in pipe:
            await show(bytes(data))
        nursery.cancel_scope.cancel()


async def main(config: NodeConfig, *args: str) -> None:
    async def named(peer_id: str) -> bool:
        return peer_id in args

    async with open_node(config, authorize=named) as node:
        if args[0].startswith("wg1"):
            await use(await node.auto_connect(args[0]))
        else:
            await node.wait_published()
            print(node.address, flush=True)
            await serve_pipes(serve, node)


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    with suppress(KeyboardInterrupt):
        trio.run(partial(main, load_config(), *sys.argv[1:]))
