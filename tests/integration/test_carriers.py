"""What a Link relies on in every carrier: the contract of `warpgate_trio.carrier.Carrier`."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from tests.cancel_sweep import cuts
from tests.links import BOB, FAMILIES, carrier_kind, carriers, close_carriers, connect_ends, receive_exactly
from warpgate_trio.carrier import Carrier, quic, tls

__all__ = ["carrier_kind"]
pytestmark = pytest.mark.usefixtures("carrier_kind")


@pytest.mark.parametrize("family", FAMILIES)
async def test_both_ends_know_what_they_hold(carrier_kind: str, family: int) -> None:
    dialer, server = await carriers(await connect_ends(family))
    assert isinstance(dialer, Carrier)
    assert isinstance(server, Carrier)
    assert (dialer.dialer, server.dialer) == (True, False)
    assert dialer.server_key == server.server_key == BOB.public_key
    assert dialer.name == server.name == carrier_kind
    interval = {"tls": tls.IDLE_INTERVAL, "quic": quic.IDLE_INTERVAL}[carrier_kind]
    assert dialer.idle_interval == server.idle_interval == interval
    assert (dialer.local, dialer.remote) == (server.remote, server.local)
    for sender, receiver in ((dialer, server), (server, dialer)):
        sender.feed(b"he", b"", bytearray(b"ll"), memoryview(b"o"))
        assert sender.owed
        await sender.flush()
        assert not sender.owed
        assert await receive_exactly(receiver, 5) == b"hello"
    close_carriers(dialer, server)


async def test_flush_is_a_checkpoint_with_and_without_anything_owed() -> None:
    dialer, server = await carriers()
    with trio.testing.assert_checkpoints():
        await dialer.flush()
    dialer.feed(b"x")
    with trio.testing.assert_checkpoints():
        await dialer.flush()
    close_carriers(dialer, server)


async def test_a_receive_cancelled_anywhere_loses_nothing() -> None:
    dialer, server = await carriers()
    received = b""
    sent = b""
    number = 0
    for _ in range(5):
        for cut in cuts():
            dialer.feed(b"%d " % number)
            sent += b"%d " % number
            number += 1
            await dialer.flush()
            with cut:
                received += b"".join(await server.receive())
    received += await receive_exactly(server, len(sent) - len(received))
    assert received == sent
    close_carriers(dialer, server)


async def test_each_half_has_a_clean_end() -> None:
    dialer, server = await carriers()
    dialer.feed(b"last words")
    dialer.feed_end()
    await dialer.flush()
    assert await receive_exactly(server, 10) == b"last words"
    assert [await server.receive() for _ in range(2)] == [[], []]
    with pytest.raises(trio.BrokenResourceError):
        dialer.feed(b"more")
    server.feed(b"the other half is open")
    server.feed_end()
    await server.flush()
    assert await receive_exactly(dialer, 22) == b"the other half is open"
    assert [await dialer.receive() for _ in range(2)] == [[], []]
    close_carriers(server, dialer)


async def test_a_cut_is_told_from_the_clean_end() -> None:
    dialer, server = await carriers()
    dialer.feed(b"last words")
    await dialer.flush()
    dialer.close_nowait()
    assert await receive_exactly(server, 10) == b"last words"
    for _ in range(2):
        with pytest.raises(trio.BrokenResourceError, match="the connection was cut"):
            await server.receive()
    close_carriers(server)
