"""A sender is interrupted in mid-transfer over a lossy path: the receiver does not mistake that for the end."""

from __future__ import annotations

import pytest
import trio

from warpgate_trio.errors import PeerAborted
from warpgate_trio.sim import presets, simulate
from warpgate_trio.testing import simulated_hosts
from warpgate_trio.testing.walks import open_nodes
from warpgate_trio.testing.worlds import PeerPair


def interrupted(plugin: str, *, seed: int, loss: float) -> Exception | None:
    """The cause of the error that ends Bob's reading."""

    async def main() -> Exception | None:
        failure: Exception | None = None
        pair = PeerPair.between(presets.LINUX, presets.LINUX, loss=loss, seed=seed)
        async with pair.build(time_limit=1e6) as net, simulated_hosts(), open_nodes(net) as nodes:

            async def read() -> None:
                nonlocal failure
                async with await nodes.bob.listener.accept() as pipe:
                    with pytest.raises(trio.BrokenResourceError) as caught:
                        async for _ in pipe:
                            pass
                    assert isinstance(caught.value.__cause__, Exception)
                    failure = caught.value.__cause__

            async with trio.open_nursery() as nursery:
                with net.hosts["bob"]:
                    nursery.start_soon(read)
                pipe = await nodes.alice.connect(nodes.bob.address, plugin=plugin, timeout=60)
                with trio.move_on_after(0.2 + 0.13 * seed) as scope:
                    async with pipe:
                        while True:
                            await pipe.send_all(bytes(4096))
                            await trio.sleep(0.005)
                assert scope.cancelled_caught
        return failure

    return simulate(main, seed=seed)


@pytest.mark.slow("whole nodes that punch, in worlds with loss")
@pytest.mark.parametrize("plugin", ["tcp_punch", "udp_punch"])
@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("loss", [0.0, 0.02])
def test_an_interrupted_transfer_is_a_part_and_no_end(plugin: str, seed: int, loss: float) -> None:
    failure = interrupted(plugin, seed=seed, loss=loss)
    assert isinstance(failure, PeerAborted if not loss else Exception), "without loss the goodbye has time enough"
