"""The QUIC carrier on real sockets: whose key the peer has, what breaks the carrier, what a stream may rely on."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable, Sequence

import pytest
import trio
import trio.testing

from tests.cancel_sweep import cuts
from tests.hangs import HANG
from tests.identities import ALICE, BOB, MALLORY
from tests.links import FAMILIES, Paths, close_carriers, quic_carriers, receive_exactly
from tests.paths import SocketPath, connect_paths
from warpgate_trio.carrier.quic import HELD_MAX, UNSENT_MAX, QuicCarrier
from warpgate_trio.carrier.quic_protocol import WINDOW, QuicProtocol
from warpgate_trio.errors import CarrierError, WrongPeer


async def outcomes(
    paths: Paths, dial: Callable[[], Awaitable[object]], serve: Callable[[], Awaitable[object]]
) -> list[object]:
    """What each end has after a short time: a carrier, an exception, or None while it still waits."""
    found: list[object] = [None, None]

    async def run(index: int, end: Callable[[], Awaitable[object]]) -> None:
        try:
            found[index] = await end()
        except Exception as error:
            found[index] = error

        # The other end has a little longer.  A server would go on waiting for other clients.
        nursery.cancel_scope.deadline = min(nursery.cancel_scope.deadline, trio.current_time() + 0.2)

    async with trio.open_nursery() as nursery:
        nursery.cancel_scope.deadline = trio.current_time() + 5
        nursery.start_soon(run, 0, dial)
        nursery.start_soon(run, 1, serve)
    for path, outcome in zip(paths, found, strict=True):
        if isinstance(outcome, QuicCarrier):
            outcome.close_nowait()
        assert path.sock.fileno() == -1, "a failed handshake closes its path"
    return found


def dialing(paths: Paths, key: bytes = BOB.public_key) -> Callable[[], Awaitable[object]]:
    return lambda: QuicCarrier.dial(paths[0], peer_key=key)


def serving(paths: Paths) -> Callable[[], Awaitable[object]]:
    return lambda: QuicCarrier.serve(paths[1], BOB)


# --- who the peer is ---


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.usefixtures("jumping_clock")
async def test_another_nodes_key(family: int) -> None:
    paths = await connect_paths(family)
    host, port = paths[0].remote
    dialed, served = await outcomes(paths, dialing(paths, MALLORY.public_key), serving(paths))
    assert isinstance(dialed, WrongPeer)
    where = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    assert str(dialed) == f"{where} answered with another node's key"
    assert served is None  # it still waits for other clients


# --- handshakes that fail ---


async def test_the_diallers_last_flight_rides_with_its_first_words() -> None:
    paths = await connect_paths()
    ends: list[QuicCarrier] = []

    async def serve() -> None:
        ends.append(await QuicCarrier.serve(paths[1], BOB))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve)
        dialler = await QuicCarrier.dial(paths[0], peer_key=BOB.public_key)
        assert dialler.owed
        await trio.testing.wait_all_tasks_blocked(0.01)
        assert not ends
        dialler.feed(b"proof")
        await dialler.flush()
    assert ends[0]._protocol.held == 5
    close_carriers(dialler, *ends)


async def test_for_who_waits_a_handshake_begins_when_the_dialler_is_heard() -> None:
    paths = await connect_paths()
    ends: list[QuicCarrier] = []

    async def serve() -> None:
        ends.append(await QuicCarrier.serve(paths[1], BOB))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve)
        await trio.testing.wait_all_tasks_blocked(0.01)
        dialled_at = trio.current_time()
        dialler = await QuicCarrier.dial(paths[0], peer_key=BOB.public_key)
        await dialler.flush()
    assert dialled_at <= dialler.began < ends[0].began
    close_carriers(dialler, *ends)


@pytest.mark.parametrize("dialler", [True, False])
async def test_a_handshake_with_a_silent_peer_ends_when_it_is_cancelled(dialler: bool) -> None:
    paths = await connect_paths()
    ours, other = paths if dialler else reversed(paths)
    with trio.move_on_after(0.01) as scope:
        await (dialing(paths) if dialler else serving(paths))()
    assert scope.cancelled_caught
    assert ours.sock.fileno() == -1
    other.close_nowait()


@pytest.mark.parametrize("dialler", [True, False])
async def test_a_path_that_ends_in_the_handshake(dialler: bool) -> None:
    paths = await connect_paths()
    ours, other = paths if dialler else reversed(paths)
    other.close_nowait()
    async with trio.open_nursery() as nursery:

        @nursery.start_soon
        async def end() -> None:
            with pytest.raises(CarrierError, match=r"^no QUIC with 127\.0\.0\.1:\d+: the path was closed$"):
                await (dialing(paths) if dialler else serving(paths))()

        await trio.testing.wait_all_tasks_blocked()
        ours.close_nowait()


async def test_a_handshake_is_cancelled_at_each_of_its_checkpoints() -> None:
    for dialler in (True, False):
        for cut in cuts():
            paths = await connect_paths()
            ours, other = paths if dialler else reversed(paths)
            end = dialing(paths) if dialler else serving(paths)
            counterpart = serving(paths) if dialler else dialing(paths)
            async with trio.open_nursery() as nursery:

                async def play(counterpart: Callable[[], Awaitable[object]] = counterpart) -> None:
                    carrier = await counterpart()
                    assert isinstance(carrier, QuicCarrier)
                    await carrier.flush()
                    await trio.sleep_forever()

                nursery.start_soon(play)
                with cut:
                    made = await end()
                    assert isinstance(made, QuicCarrier)
                    made.close_nowait()
                assert ours.sock.fileno() == -1
                nursery.cancel_scope.cancel()
            other.close_nowait()


async def test_garbage_on_the_path_harms_nobody() -> None:
    paths = await connect_paths()
    rng = random.Random(0)

    def add_noise(datagrams: list[bytes]) -> list[bytes]:
        noise = [rng.randbytes(rng.choice([0, 1, 30, 1200, 2000, 9000])) for _ in range(3)]
        forged = [bytes([each[0] ^ 0x20]) + each[1:] for each in datagrams]
        everything = datagrams + noise + forged + [datagram[:-1] for datagram in datagrams]
        rng.shuffle(everything)
        return everything

    paths[0].filter = paths[1].filter = add_noise
    with trio.fail_after(HANG):
        dialler, server = await quic_carriers(paths)
        message = bytes(range(256)) * 400
        for sender, receiver in ((dialler, server), (server, dialler)):
            async with trio.open_nursery() as nursery:
                sender.feed(message)
                nursery.start_soon(sender.flush)
                assert await receive_exactly(receiver, len(message)) == message
    close_carriers(dialler, server)


# --- the stream ---


async def test_a_cancelled_flush_keeps_the_rest_and_its_place() -> None:
    dialler, server = await quic_carriers()
    message = bytes(range(256)) * 4096
    for part in range(4):
        dialler.feed(message)
        with trio.move_on_after(0.002):
            await dialler.flush()
        dialler.feed(b"after %d" % part)
    assert dialler.owed
    expected = b"".join(message + b"after %d" % part for part in range(4))
    with trio.fail_after(HANG):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(dialler.receive)  # it retransmits what is lost
            nursery.start_soon(dialler.flush)
            assert await receive_exactly(server, len(expected)) == expected
            assert not dialler.owed
            nursery.cancel_scope.cancel()
    close_carriers(dialler, server)


@pytest.mark.slow("a transfer of 768 KiB for each of its first checkpoints")
async def test_a_flush_cancelled_anywhere() -> None:
    size = 3 * UNSENT_MAX

    async def read(server: QuicCarrier) -> None:
        with trio.fail_after(HANG):
            assert len(await receive_exactly(server, size + 3)) == size + 3

    for cut in cuts():
        dialler, server = await quic_carriers()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(read, server)
            dialler.feed(bytes(size))
            with cut:
                await dialler.flush()
            dialler.feed(b"end")
            await dialler.flush()
        close_carriers(dialler, server)
        if cut.number == 12:  # all further checkpoints are alike: one for each acknowledgement
            break


async def test_a_sender_waits_for_a_receiver_that_does_not_take() -> None:
    dialler, server = await quic_carriers()
    sent = 0
    with trio.move_on_after(0.2) as scope:
        while True:
            dialler.feed(bytes(65536))
            sent += 65536
            await dialler.flush()
    assert scope.cancelled_caught
    assert sent <= 65536 + UNSENT_MAX  # nobody drives the other end, so there are no acknowledgements
    with trio.fail_after(HANG):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(dialler.flush)
            await receive_exactly(server, sent)
    close_carriers(dialler, server)


async def test_a_sender_waits_sooner_where_less_is_to_be_unsent() -> None:
    dialler, server = await quic_carriers()
    dialler.limit_unsent(8192)
    sent = 0
    with trio.move_on_after(0.05) as scope:
        while True:
            dialler.feed(bytes(4096))
            sent += 4096
            await dialler.flush()
    assert scope.cancelled_caught
    assert sent <= 2 * 8192 + 4096 + 32768  # includes what is in flight: nobody drives the other end
    close_carriers(dialler, server)


@pytest.mark.slow("waits to see that nothing more happens")
async def test_a_flush_without_a_reader_holds_only_so_much() -> None:
    """Two carriers only send: each receives what it has room for, then waits for a reader."""
    dialler, server = await quic_carriers()
    size = 4 * HELD_MAX
    async with trio.open_nursery() as nursery:
        for end in (dialler, server):
            end.feed(bytes(size))
            nursery.start_soon(end.flush)
        await trio.sleep(0.2)
        for end in (dialler, server):
            assert end._protocol.held <= HELD_MAX + WINDOW // 16
        got = {dialler: 0, server: 0}

        async def read(end: QuicCarrier) -> None:
            while True:  # even after the last byte: the other end needs acknowledgements
                got[end] += sum(map(len, await end.receive()))
                if set(got.values()) == {size}:
                    nursery.cancel_scope.cancel()

        nursery.cancel_scope.deadline = trio.current_time() + HANG
        nursery.start_soon(read, dialler)
        nursery.start_soon(read, server)
    assert set(got.values()) == {size}
    close_carriers(dialler, server)


async def test_losses_are_repaired_while_nobody_writes() -> None:
    """The reader drives the connection: it learns what is missing, and serves the timers."""
    paths = await connect_paths()
    dialler, server = await quic_carriers(paths)
    lost: list[bytes] = []

    def lose_one(datagrams: list[bytes]) -> list[bytes]:
        if lost:
            return datagrams
        lost.append(datagrams[0])
        return datagrams[1:]

    paths[0].filter = lose_one
    dialler.feed(b"once")
    await dialler.flush()
    assert lost
    with trio.fail_after(HANG):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(dialler.receive)
            assert await receive_exactly(server, 4) == b"once"
            nursery.cancel_scope.cancel()
    close_carriers(dialler, server)


# --- the end ---


async def test_after_the_end_nothing_is_sent() -> None:
    dialler, server = await quic_carriers()
    dialler.feed_end()
    with pytest.raises(trio.BrokenResourceError, match="this carrier's stream was already ended"):
        dialler.feed(b"more")
    close_carriers(dialler, server)


async def test_a_cut_that_was_read_is_known_to_the_writer() -> None:
    dialler, server = await quic_carriers()
    dialler.close_nowait()
    for use in (server.receive, server.flush):
        with pytest.raises(trio.BrokenResourceError, match="the connection was lost"):
            await use()
    with pytest.raises(trio.BrokenResourceError, match="the connection was lost"):
        server.feed(b"x")
    close_carriers(server)


async def test_the_end_waits_until_ours_has_arrived() -> None:
    paths = await connect_paths()
    dialler, server = await quic_carriers(paths)
    server.feed_end()
    await server.flush()
    dialler.feed(b"last words")
    dialler.feed_end()
    paths[0].filter = lambda datagrams: []
    await dialler.flush()
    with trio.move_on_after(0.05) as scope:
        await dialler.receive()
    assert scope.cancelled_caught
    paths[0].filter = None
    with trio.fail_after(HANG):
        async with trio.open_nursery() as nursery:

            @nursery.start_soon
            async def end() -> None:
                assert await dialler.receive() == []
                dialler.close_nowait()

            assert await receive_exactly(server, 10) == b"last words"
            assert await server.receive() == []
            server.close_nowait()


async def test_a_close_wakes_whoever_waits() -> None:
    dialler, server = await quic_carriers()
    dialler.feed(bytes(1 << 20))

    async def read() -> None:
        with pytest.raises(trio.ClosedResourceError, match="this carrier was closed"):
            await dialler.receive()

    async def write() -> None:
        with pytest.raises(trio.ClosedResourceError, match="this carrier was closed"):
            await dialler.flush()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(read)
        nursery.start_soon(write)
        await trio.testing.wait_all_tasks_blocked()
        close_carriers(dialler, dialler)
    with pytest.raises(trio.ClosedResourceError):
        await dialler.receive()
    with pytest.raises(trio.ClosedResourceError):
        await dialler.flush()
    server.close_nowait()


class BreakingPath:
    """A path whose owner reports its end, once `broken` is set."""

    def __init__(self, path: SocketPath) -> None:
        self.path = path
        self.local, self.remote = path.local, path.remote
        self.broken = False

    async def send(self, datagrams: Sequence[bytes]) -> None:
        if self.broken:
            raise trio.BrokenResourceError("the relay is gone")
        await self.path.send(datagrams)

    async def receive(self) -> list[bytes]:
        batch = await self.path.receive()
        if self.broken:
            raise trio.BrokenResourceError("the relay is gone")
        return batch

    def send_nowait(self, datagrams: Sequence[bytes]) -> None:
        self.path.send_nowait(datagrams)

    def close_nowait(self) -> None:
        self.path.close_nowait()


@pytest.mark.parametrize("reading", [True, False])
async def test_a_path_that_breaks(reading: bool) -> None:
    one, other = await connect_paths()
    path = BreakingPath(one)
    ends: list[QuicCarrier] = []

    async def serve() -> None:
        ends.append(await QuicCarrier.serve(other, BOB))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve)
        dialler = await QuicCarrier.dial(path, peer_key=BOB.public_key)
        await dialler.flush()
    with trio.move_on_after(0.05):
        await dialler.receive()
    path.broken = True
    if reading:
        ends[0].feed(b"x")
        await ends[0].flush()
    else:
        dialler.feed(b"x")
    with pytest.raises(trio.BrokenResourceError, match="the path broke: the relay is gone"):
        await (dialler.receive() if reading else dialler.flush())
    close_carriers(dialler, *ends)


@pytest.mark.usefixtures("jumping_clock")
@pytest.mark.slow("a hundred seconds of virtual time")
async def test_a_peer_that_vanished_is_noticed() -> None:
    dialler, server = await quic_carriers()
    with trio.move_on_after(1):
        await dialler.receive()
    server._path.close_nowait()
    with pytest.raises(trio.BrokenResourceError, match="the connection was lost: Idle timeout"):
        await dialler.receive()
    dialler.close_nowait()
    server.close_nowait()


def test_a_dialler_needs_no_identity() -> None:
    assert ALICE.public_key not in b"".join(QuicProtocol.dialing(now=0.0).transmit(0.0))
