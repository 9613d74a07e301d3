"""Paths that silently drop packets above 1,280 bytes: what TCP_MAXSEG does there, and that nodes get through."""

from __future__ import annotations

import socket
from typing import Final

import pytest
import trio

from tests.kernel.lab import open_lab
from tests.kernel.namespaces import SocketsOfNamespaces
from tests.kernel.run import pair
from tests.kernel.wire import Wire
from warpgate_trio.ports.segments import MAX_PACKET

MAXSEG: Final = socket.IPPROTO_TCP, socket.TCP_MAXSEG
PORT: Final = 7000


@pytest.mark.slow("a laboratory of namespaces")
@pytest.mark.needs("network_namespaces", "nft", "tun")
@pytest.mark.parametrize("asks", ["dialler", "listener"])
async def test_one_end_that_asks_for_small_segments_bounds_both(asks: str) -> None:
    """The corresponding test of the simulator expects the same packet sizes."""
    trio.socket.set_custom_socket_factory(SocketsOfNamespaces())
    sizes: list[int] = []
    with Wire() as wire:
        async with open_lab(wire, "open", "open") as lab:
            a, b = (home.host for home in lab.homes)

            def note(packet: bytes) -> bool:
                sizes.append(len(packet))
                return False

            lab.internet.drop = note
            with b, trio.socket.socket() as listener:
                if asks == "listener":
                    listener.setsockopt(*MAXSEG, MAX_PACKET - 40)
                await listener.bind((b.ip, PORT))
                listener.listen()
                with a, trio.socket.socket() as dialled:
                    if asks == "dialler":
                        dialled.setsockopt(*MAXSEG, MAX_PACKET - 40)
                    await dialled.connect((b.ip, PORT))
                    accepted, _ = await listener.accept()
                    with accepted:
                        for end, other in ((dialled, accepted), (accepted, dialled)):
                            sizes.clear()
                            await end.send(bytes(20_000))
                            got = 0
                            while got < 20_000:
                                got += len(await other.recv(65536))
                            assert max(sizes) == MAX_PACKET
                            end.setsockopt(*MAXSEG, 1460)  # it cannot be raised again
                            assert end.getsockopt(*MAXSEG) == MAX_PACKET - 40 - 12


@pytest.mark.slow("real programs in namespaces")
@pytest.mark.needs("network_namespaces", "nft", "tun")
async def test_a_transfer_passes_a_path_that_carries_1280_bytes_and_says_nothing() -> None:
    outcome = await pair("open", "open", largest=MAX_PACKET, echo=300_000)
    assert outcome.phase == "direct", f"{outcome}\n{outcome.stderr}"


@pytest.mark.slow("real programs in namespaces, and a handshake that gets no answer")
@pytest.mark.needs("network_namespaces", "nft", "tun")
async def test_a_path_that_carries_no_full_segment_of_tcp_is_left_to_quic() -> None:
    outcome = await pair("open", "open", phases=("direct", "spray"), largest=MAX_PACKET - 1, echo=300_000)
    assert outcome.phase == "spray", f"{outcome}\n{outcome.stderr}"
