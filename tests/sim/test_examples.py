"""The unchanged programs of `examples/`, in two simulated homes behind NATs."""

from __future__ import annotations

import importlib.util
import itertools
import math
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any, Final, final

import httpx
import msgspec
import pytest
import trio
import trio.testing

from warpgate_trio import ConnectError, Identity, NodeConfig, Verdict
from warpgate_trio.config import IdentityConfig
from warpgate_trio.sim import Host, Network, presets, simulate
from warpgate_trio.testing import WORLD_CONFIG, World, world
from warpgate_trio.testing.worlds import PeerPair

EXAMPLES: Final = Path(__file__).parents[2] / "examples"
CONFIG: Final = msgspec.structs.replace(WORLD_CONFIG, identity=IdentityConfig(ephemeral=True))
HOMES: Final = PeerPair.between(presets.LINUX, presets.RST, rtt=0.05)
_numbers = itertools.count()


@final
class Program:
    """An example that is started once on a host.

    `out` gets its output, and data sent to `keys` is typed.
    """

    def __init__(self, name: str, host: Host) -> None:
        spec = importlib.util.spec_from_file_location(f"example_{next(_numbers)}", EXAMPLES / f"{name}.py")
        assert spec is not None
        assert spec.loader is not None
        self.module: Any = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(self.module)
        self.host = host
        self._print, self.out = trio.open_memory_channel[str](math.inf)
        self.keys, self._typed = trio.open_memory_channel[bytes](math.inf)
        vars(self.module).update(print=self._take, typed=self._type)

    def _take(self, *words: object, end: str = "\n", flush: bool = False) -> None:
        self._print.send_nowait(" ".join(map(str, words)) + end.rstrip("\n"))

    async def _type(self) -> bytes:
        try:
            return await self._typed.receive()
        except trio.EndOfChannel:
            return b""

    async def run(self, *args: str, config: NodeConfig = CONFIG) -> None:
        """Run it until it ends by itself."""
        await self.host.run(self.module.main, config, *args)


def in_two_homes(main: Callable[[World], Awaitable[None]]) -> None:
    async def run() -> None:
        async with world(HOMES, time_limit=3600) as homes:
            await main(homes)

    simulate(run)


@pytest.mark.slow("two nodes, and a NAT each in a simulated internet")
def test_chat() -> None:
    async def main(homes: World) -> None:
        bob, alice = Program("chat", homes.bob), Program("chat", homes.alice)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(bob.run)
            address = await bob.out.receive()
            nursery.start_soon(alice.run, address)
            await alice.keys.send(b"hello?\n")
            assert await bob.out.receive() == "'hello?'"
            await bob.keys.send("grüße\n".encode())
            assert await alice.out.receive() == "'grüße'"
            await bob.keys.send(b"\x1b[2J")
            assert await alice.out.receive() == r"'\x1b[2J'"
            await alice.keys.aclose()  # Ctrl-D, and both end

    in_two_homes(main)


@pytest.mark.slow("two nodes in a simulated internet")
def test_a_chat_goes_on_when_one_of_the_two_takes_the_train() -> None:
    async def main(homes: World) -> None:
        net = homes.server.net
        assert isinstance(net, Network)
        bob, alice = Program("chat", homes.bob), Program("chat", homes.alice)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(bob.run)
            address = await bob.out.receive()
            nursery.start_soon(alice.run, address)
            await alice.keys.send(b"leaving home")
            assert await bob.out.receive() == "'leaving home'"
            homes.alice.move_to(net.lan("train", nat=presets.CGN))
            for word in (b"hello?", b"still there?"):
                await alice.keys.send(word)
                await bob.keys.send(word)
            assert [await bob.out.receive() for _ in range(2)] == ["'hello?'", "'still there?'"]
            assert [await alice.out.receive() for _ in range(2)] == ["'hello?'", "'still there?'"]
            await alice.keys.aclose()

    in_two_homes(main)


@pytest.mark.slow("two nodes in a simulated internet")
@pytest.mark.usefixtures("threads_take_no_time")
def test_file_drop(tmp_path: Path) -> None:
    into = tmp_path / "drop"
    into.mkdir()
    (into / "empty").write_bytes(b"was here before")
    sent = {"one.bin": bytes(range(256)) * 3000, "empty": b""}
    for name, content in sent.items():
        (tmp_path / name).write_bytes(content)

    async def main(homes: World) -> None:
        bob = Program("file_drop", homes.bob)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(bob.run, str(into))
            address = await bob.out.receive()
            await Program("file_drop", homes.alice).run(address, *(str(tmp_path / name) for name in sent))
            assert "one.bin" in await bob.out.receive()
            nursery.cancel_scope.cancel()

    in_two_homes(main)
    assert (into / "one.bin").read_bytes() == sent["one.bin"]
    assert (into / "empty").read_bytes() == b"was here before"
    assert (into / "empty (1)").read_bytes() == b""


class Capitals:
    """Stands in for a process: its stdout is its stdin in capitals.  A simulation cannot have real processes."""

    def __init__(self) -> None:
        self.stdin, self._in = trio.testing.memory_stream_one_way_pair()
        self._out, self.stdout = trio.testing.memory_stream_one_way_pair()

    async def run(self) -> None:
        async with self._out:
            async for data in self._in:
                await self._out.send_all(data.upper())


async def open_capitals(nursery: trio.Nursery) -> Capitals:
    await trio.lowlevel.checkpoint()
    process = Capitals()
    nursery.start_soon(process.run)
    return process


async def open_deaf(_nursery: trio.Nursery) -> Capitals:
    """A process that ends its output before anything is typed."""
    process = Capitals()
    await process._out.send_all(b"bye")
    await process._out.aclose()
    return process


@pytest.mark.slow("four nodes in a simulated internet")
def test_remote_shell(tmp_path: Path) -> None:
    key = tmp_path / "key.pem"
    config = msgspec.structs.replace(WORLD_CONFIG, identity=IdentityConfig(key_file=key))
    alices = Identity.load_or_create(key).peer_id

    async def main(homes: World) -> None:
        bob, alice = Program("remote_shell", homes.bob), Program("remote_shell", homes.alice)
        bob.module.open_shell = open_capitals
        shown, out = trio.open_memory_channel[bytes](math.inf)
        alice.module.show = shown.send
        async with trio.open_nursery() as nursery:
            nursery.start_soon(bob.run, alices)
            address = await bob.out.receive()
            async with trio.open_nursery() as calling:
                calling.start_soon(partial(alice.run, address, config=config))
                await alice.keys.send(b"ls\n")
                assert await out.receive() == b"LS\n"
                await alice.keys.aclose()  # Ctrl-D ends the shell, which ends the program
            bob.module.open_shell = open_deaf
            alice = Program("remote_shell", homes.alice)
            alice.module.show = shown.send
            async with trio.open_nursery() as calling:
                calling.start_soon(partial(alice.run, address, config=config))
                assert await out.receive() == b"bye"  # it has exited by itself
                await alice.keys.send(b"too late")  # this ends the program, with success
            with pytest.raises(ConnectError) as caught:
                await Program("remote_shell", homes.alice).run(address)  # with another key
            assert caught.value.verdict is Verdict.PEER_SILENT  # it does not answer unknown peers
            nursery.cancel_scope.cancel()

    in_two_homes(main)


@pytest.mark.slow("two nodes and a server in a simulated internet")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of what hypercorn imports
def test_http() -> None:
    async def main(homes: World) -> None:
        bob = Program("http_over_pipe", homes.bob)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(bob.run)
            address = await bob.out.receive()
            alice = Program("http_over_pipe", homes.alice)
            await alice.run(address, "http://app/hello", "http://app/again", "http://other/")
            assert [alice.out.receive_nowait() for _ in range(3)] == [
                "hello from /hello\n",
                "hello from /again\n",
                "hello from /\n",
            ]
            with pytest.raises(httpx.UnsupportedProtocol):
                await Program("http_over_pipe", homes.alice).run(address, "ftp://app/")
            nursery.cancel_scope.cancel()

    in_two_homes(main)


@pytest.mark.slow("four nodes in a simulated internet")
def test_pubsub() -> None:
    async def main(homes: World) -> None:
        net = homes.server.net
        assert isinstance(net, Network)
        carols = net.lan("carols", nat=presets.LINUX).host("carol")
        hub, alice, carol, other = (Program("pubsub", host) for host in (homes.bob, homes.alice, carols, carols))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(hub.run)
            address = await hub.out.receive()
            for program, topic in ((alice, "tea"), (carol, "tea"), (other, "coffee")):
                nursery.start_soon(program.run, address, topic)
            await trio.sleep(30)  # simulated seconds, in which all have called
            await alice.keys.send(b"it is ready\n")
            assert await carol.out.receive() == "'it is ready'"
            await carol.keys.send(b"thanks\n")
            assert await alice.out.receive() == "'thanks'"
            await other.keys.send(b"nobody hears\n")
            await other.keys.aclose()
            await trio.sleep(5)
            for program in (alice, carol, other):
                with pytest.raises(trio.WouldBlock):
                    program.out.receive_nowait()
            nursery.cancel_scope.cancel()

    in_two_homes(main)
