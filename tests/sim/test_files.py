"""Files over a distance: the time that a transfer takes beyond its bytes, in a simulated network."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio

from warpgate_trio import Identity, anyone, open_node
from warpgate_trio.files import receive_files, send_files
from warpgate_trio.sim import simulate
from warpgate_trio.testing import WORLD_CONFIG, world
from warpgate_trio.testing.worlds import PeerPair

RTT = 0.05
SIZE = 6 << 20


@pytest.mark.slow("two nodes in a simulated internet, and ten thousand packets")
@pytest.mark.usefixtures("threads_take_no_time")
@pytest.mark.parametrize("small", [False, True])
def test_a_transfer_takes_two_round_trips_and_its_bytes(tmp_path: Path, small: bool) -> None:
    """One large file, or hundreds of small ones, compared with the same number of bytes on a bare Pipe of the Link."""
    root = tmp_path / "root"
    root.mkdir()
    count = 400 if small else 1
    for number in range(count):
        (root / str(number)).write_bytes(bytes(SIZE // count))
    took: dict[str, float] = {}

    async def bob(address: trio.MemorySendChannel[str]) -> None:
        async with open_node(WORLD_CONFIG, identity=Identity.from_seed(b"b" * 32), authorize=anyone) as node:
            await node.wait_published()
            await address.send(str(node.address))
            async with await node.listener.accept() as main, await main.open_pipe("bare") as bare:
                while await bare.receive_some():
                    pass
                await bare.send_eof()
                async with await main.open_pipe("files") as pipe:
                    await receive_files(pipe, into=tmp_path / "into")

    async def alice(address: str) -> None:
        async with open_node(WORLD_CONFIG, identity=Identity.from_seed(b"a" * 32), authorize=anyone) as node:
            async with await node.auto_connect(address), await node.listener.accept() as bare:
                for _ in range(4):  # TCP's congestion window grows in the first ones
                    began = trio.current_time()
                    for _piece in range(SIZE >> 20):
                        await bare.send_all(bytes(1 << 20))
                    await bare.ping()
                    took["bare"] = trio.current_time() - began
                await bare.send_eof()
                await bare.receive_some()
                async with await node.listener.accept() as pipe:
                    began = trio.current_time()
                    await send_files(pipe, [root])
                    took["files"] = trio.current_time() - began

    async def main() -> None:
        async with world(PeerPair.between(rtt=RTT), time_limit=600) as homes:
            inlet, outlet = trio.open_memory_channel[str](1)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(homes.bob.run, bob, inlet)
                await homes.alice.run(alice, await outlet.receive())

    simulate(main)
    assert (
        sum(path.stat().st_size for path in (tmp_path / "into").rglob("*") if path.is_file()) == SIZE // count * count
    )
    assert took["files"] <= 1.1 * took["bare"] + 1.5 * RTT, took
