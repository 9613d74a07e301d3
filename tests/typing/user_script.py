"""A user's script, as mypy --strict must accept it against the installed package (`make dist`)."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path

import trio

from warpgate_trio import (
    EXT_BIND,
    IP4,
    NIC_BIND,
    AddressError,
    ConfigError,
    ConnectError,
    ConnectReport,
    Identity,
    NodeConfig,
    PathInfo,
    PeerAddress,
    Pipe,
    Servers,
    Verdict,
    load_config,
    open_node,
    serve_pipes,
)


async def echo(pipe: Pipe) -> None:
    async with pipe:
        path: PathInfo = pipe.path
        print(f"{pipe.peer_id} came by {path.plugin} ({pipe.label or 'no label'})")
        async for data in pipe:
            await pipe.send_all(data)
        await pipe.send_eof()


async def is_a_friend(friends: frozenset[str], peer_id: str) -> bool:
    await trio.lowlevel.checkpoint()
    return peer_id in friends


async def serve(config: NodeConfig, friends: frozenset[str]) -> None:
    async with open_node(config, authorize=partial(is_a_friend, friends)) as node:
        with trio.move_on_after(3):
            await node.wait_signals()
        print(node.address)
        for plugin in node.plugins:
            print(plugin.name, plugin.problem)
        await serve_pipes(echo, node)


async def call(config: NodeConfig, text: str) -> bytes:
    peer = PeerAddress.from_text(text)
    async with open_node(config, identity=Identity.generate()) as node:
        try:
            pipe = await node.auto_connect(peer, early_data=b"hello", afs=[IP4], route_types=[NIC_BIND, EXT_BIND])
        except ConnectError as error:
            if error.verdict is not Verdict.REFUSED:
                print(error.advice, [combo.error for combo in error.report.combos])
            pipe = await node.connect(peer, plugin="direct_connect", af=IP4, route_type=NIC_BIND, timeout=3)
        async with pipe:
            report: ConnectReport | None = pipe.report
            print(pipe.rtt, report)
            async with await pipe.open_pipe("another") as other:
                await other.send_all(b"more")
            await pipe.send_eof()
            return await pipe.receive_some(5)


def main() -> None:
    try:
        config = load_config(file=Path("config.toml") if len(sys.argv) > 2 else None)
    except ConfigError as error:
        sys.exit(str(error))
    if len(sys.argv) > 1:
        try:
            print(trio.run(call, config, sys.argv[1]))
        except AddressError as error:
            sys.exit(str(error))
    else:
        trio.run(serve, NodeConfig(servers=Servers(websocket=["ws://127.0.0.1:8765"])), frozenset[str]())


if __name__ == "__main__":
    main()
