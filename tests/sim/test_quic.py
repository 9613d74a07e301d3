"""Links over QUIC in simulated networks: round trips, bad links, and one trace for one seed."""

from __future__ import annotations

import pytest
import trio

from tests.identities import ALICE, BOB
from tests.links import ATTEMPT, LINK_ID, SESSION, End, a_path
from tests.paths import SocketPath
from tests.sim.worlds import run
from warpgate_trio.carrier.quic import QuicCarrier
from warpgate_trio.link import Link
from warpgate_trio.ports.datagrams import DatagramSocket
from warpgate_trio.sim import Host, Network, simulate
from warpgate_trio.sim import Link as Cable

LATENCY = 0.02
RTT = 4 * LATENCY  # two access links each way


async def dial(path: SocketPath, initial_rtt: float | None = RTT) -> End:
    carrier = await QuicCarrier.dial(path, peer_key=BOB.public_key, initial_rtt=initial_rtt)
    link = await Link.prove(
        carrier, ALICE, peer_key=BOB.public_key, session_id=SESSION, attempt_id=ATTEMPT, initiator=True
    )
    pipe = await link.commit(epoch=1, link_id=LINK_ID, patience=10.0)
    link.path = a_path(carrier)
    return End(link, pipe)


async def serve(path: SocketPath, initial_rtt: float | None = RTT) -> End:
    carrier = await QuicCarrier.serve(path, BOB, initial_rtt=initial_rtt)
    link = await Link.receive_proof(carrier)
    link.set_role(initiator=False)
    await link.receive_commit()
    end = End(link, link.accept())
    link.path = a_path(carrier)
    return end


async def paths(net: Network, cable: Cable) -> tuple[tuple[Host, SocketPath], tuple[Host, SocketPath]]:
    a, b = net.host("a", link=cable), net.host("b", link=cable)
    with a:
        one = await DatagramSocket.bind((a.ip, 4000))
    with b:
        other = await DatagramSocket.bind((b.ip, 5000))
    return (a, SocketPath(one, other.local)), (b, SocketPath(other, one.local))


async def echo_once(net: Network, cable: Cable, size: int) -> list[float]:
    """The times at which the dialler had its Pipe, the first echoed byte, and all of them."""
    (a, there), (b, back) = await paths(net, cable)
    times: list[float] = []

    async def echo() -> None:
        end = await serve(back)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(end.drive, 60.0)  # data that is not delivered by then is dropped
            async for data in end.pipe:
                await end.pipe.send_all(data)
            await end.pipe.aclose()

    async def call() -> None:
        end = await dial(there)
        times.append(trio.current_time() - began)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(end.drive, 60.0)
            data = bytes(range(256)) * (size // 256 + 1)
            received = bytearray()

            @nursery.start_soon
            async def send() -> None:
                await end.pipe.send_all(data)
                await end.pipe.send_eof()

            async for piece in end.pipe:
                if not received:
                    times.append(trio.current_time() - began)
                received += piece
            assert received == data
            times.append(trio.current_time() - began)
            await end.pipe.aclose()

    began = trio.current_time()
    async with trio.open_nursery() as nursery:
        with b:
            nursery.start_soon(echo)
        with a:
            nursery.start_soon(call)
    return times


def test_two_round_trips_to_the_pipe_and_three_to_the_echo() -> None:
    """As with TLS after TCP has connected: ServerHello, then PROOF and COMMIT with Finished, then data."""

    async def world(net: Network) -> None:
        accepted, echoed, _ = await echo_once(net, Cable(latency=LATENCY), 1)
        assert accepted == pytest.approx(2 * RTT, abs=0.01)
        assert echoed == pytest.approx(3 * RTT, abs=0.01)

    run(world)


BAD = Cable(latency=LATENCY, jitter=0.01, loss=0.05, duplicate=0.05, reorder=0.1)


@pytest.mark.slow("whole Links over bad links")
@pytest.mark.parametrize("seed", range(8))
def test_a_bad_link(seed: int) -> None:
    """Each datagram crosses two such links, so a tenth is lost."""

    async def world(net: Network) -> None:
        accepted, _, done = await echo_once(net, BAD, 200_000)
        assert accepted < 10
        assert done < 60

    run(world, seed=seed)


@pytest.mark.slow("two runs over a bad link")
def test_one_seed_one_trace() -> None:
    async def main() -> tuple[str, list[float]]:
        async with Network(7) as net:
            times = await echo_once(net, BAD, 30_000)
            return net.digest(), times

    assert simulate(main, seed=7) == simulate(main, seed=7)


def test_a_path_that_is_cut_is_noticed_after_three_misses() -> None:
    async def world(net: Network) -> None:
        (a, there), (b, back) = await paths(net, Cable(latency=LATENCY))
        began = 0.0

        async def server() -> None:
            nonlocal began
            end = await serve(back)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(end.drive, 1.0)
                await end.pipe.send_all(b"x")
                await trio.sleep(100)
                began = trio.current_time()
                there.filter = back.filter = lambda datagrams: []
                with pytest.raises(trio.BrokenResourceError):
                    await end.pipe.receive_some()

        async with trio.open_nursery() as nursery:
            with b:
                nursery.start_soon(server)
            with a:
                client = await a.run(dial, there)
                nursery.start_soon(client.drive, 1.0)
                assert await client.pipe.receive_some() == b"x"
                with pytest.raises(trio.BrokenResourceError, match="the peer was not heard for"):
                    await client.pipe.receive_some()
                assert 75 <= trio.current_time() - began <= 101

    run(world)
