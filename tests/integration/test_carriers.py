"""The contract of `warpgate_trio.carrier.Carrier`, on which a Link relies, for every carrier."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from tests.cancel_sweep import cuts
from tests.identities import BOB
from tests.links import FAMILIES, carrier_kind, carriers, close_carriers, connect_ends, receive_exactly
from warpgate_trio.carrier import Carrier, quic, tls

__all__ = ["carrier_kind"]
pytestmark = pytest.mark.usefixtures("carrier_kind")


@pytest.mark.parametrize("family", FAMILIES)
async def test_both_ends_know_what_they_hold(carrier_kind: str, family: int) -> None:
    dialler, server = await carriers(await connect_ends(family))
    assert isinstance(dialler, Carrier)
    assert isinstance(server, Carrier)
    assert (dialler.dialler, server.dialler) == (True, False)
    assert dialler.server_key == server.server_key == BOB.public_key
    assert dialler.name == server.name == carrier_kind
    interval = {"tls": tls.IDLE_INTERVAL, "quic": quic.IDLE_INTERVAL}[carrier_kind]
    assert dialler.idle_interval == server.idle_interval == interval
    assert (dialler.local, dialler.remote) == (server.remote, server.local)
    for sender, receiver in ((dialler, server), (server, dialler)):
        sender.feed(b"he", b"", bytearray(b"ll"), memoryview(b"o"))
        assert sender.owed
        await sender.flush()
        assert not sender.owed
        assert await receive_exactly(receiver, 5) == b"hello"
    close_carriers(dialler, server)


async def test_flush_is_a_checkpoint_with_and_without_anything_owed() -> None:
    dialler, server = await carriers()
    with trio.testing.assert_checkpoints():
        await dialler.flush()
    dialler.feed(b"x")
    with trio.testing.assert_checkpoints():
        await dialler.flush()
    close_carriers(dialler, server)


async def test_a_receive_cancelled_anywhere_loses_nothing() -> None:
    dialler, server = await carriers()
    received = b""
    sent = b""
    number = 0
    for _ in range(5):
        for cut in cuts():
            dialler.feed(b"%d " % number)
            sent += b"%d " % number
            number += 1
            await dialler.flush()
            with cut:
                received += b"".join(await server.receive())
    received += await receive_exactly(server, len(sent) - len(received))
    assert received == sent
    close_carriers(dialler, server)


async def test_each_half_has_a_clean_end() -> None:
    dialler, server = await carriers()
    dialler.feed(b"last words")
    dialler.feed_end()
    await dialler.flush()
    assert await receive_exactly(server, 10) == b"last words"
    assert [await server.receive() for _ in range(2)] == [[], []]
    with pytest.raises(trio.BrokenResourceError):
        dialler.feed(b"more")
    server.feed(b"the other half is open")
    server.feed_end()
    await server.flush()
    assert await receive_exactly(dialler, 22) == b"the other half is open"
    assert [await dialler.receive() for _ in range(2)] == [[], []]
    close_carriers(server, dialler)


async def test_a_cut_is_told_from_the_clean_end() -> None:
    dialler, server = await carriers()
    dialler.feed(b"last words")
    await dialler.flush()
    dialler.close_nowait()
    assert await receive_exactly(server, 10) == b"last words"
    for _ in range(2):
        with pytest.raises(trio.BrokenResourceError, match=r"the connection was (lost|closed without)"):
            await server.receive()
    close_carriers(server)
