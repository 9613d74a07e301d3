"""Both ends of a Link on real sockets on loopback, at every stage: sockets, carriers, proven Links, Pipes."""

from __future__ import annotations

import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Final, Literal, final

import pytest
import trio
from msgspec.structs import replace

from tests.hangs import HANG
from tests.identities import ALICE, BOB, MALLORY
from tests.paths import SocketPath, connect_paths
from tests.wire import Script, open_wire
from warpgate_trio.carrier import Carrier, TlsCarrier, TlsContexts
from warpgate_trio.carrier.quic import QuicCarrier
from warpgate_trio.link import Link, PathInfo, Pipe, RefuseReason, Terms
from warpgate_trio.link.frame_codec import encode
from warpgate_trio.link.frame_reader import FrameReader
from warpgate_trio.link.frames import Accept, Commit, Frame, Item, Ping, Proof

CONTEXTS: Final = {identity: TlsContexts(identity) for identity in (ALICE, BOB, MALLORY)}
SESSION, ATTEMPT, LINK_ID = b"session.........", b"attempt.........", b"link............"
TERMS: Final = Terms(resume_timeout=0, secret=b"secret..........", instance=b"instance")
"""What each end offers, unless it plays an older release, which offers nothing; the Link ends with its carrier."""
LASTING: Final = replace(TERMS, resume_timeout=120)
"""Terms for a Link that outlives its carrier."""

FAMILIES: Final = [
    pytest.param(trio.socket.AF_INET, id="ipv4"),
    pytest.param(trio.socket.AF_INET6, id="ipv6", marks=pytest.mark.needs("ipv6")),
]

Sockets = tuple[trio.socket.SocketType, trio.socket.SocketType]
Paths = tuple[SocketPath, SocketPath]

kind: Literal["tls", "quic"] = "tls"
"""The kind of carrier that `carriers` makes by default; set by the fixture `carrier_kind`."""


@pytest.fixture(params=["tls", "quic"])
def carrier_kind(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Runs a test once over each kind of carrier; a module asks for it by ``usefixtures("carrier_kind")``."""
    chosen = str(request.param)
    monkeypatch.setattr(sys.modules[__name__], "kind", chosen)
    return chosen


async def connect_sockets(family: int = trio.socket.AF_INET, *, buffers: int | None = None) -> Sockets:
    """A TCP connection: the end that dialled, and the end that was accepted.

    `buffers` bounds the bytes that the kernel holds at each end; by default a sender blocks after megabytes only.
    """
    with trio.socket.socket(family) as listener:
        if buffers is not None:  # the accepted socket inherits them
            listener.setsockopt(trio.socket.SOL_SOCKET, trio.socket.SO_RCVBUF, buffers)
            listener.setsockopt(trio.socket.SOL_SOCKET, trio.socket.SO_SNDBUF, buffers)
        await listener.bind(("::1" if family == trio.socket.AF_INET6 else "127.0.0.1", 0))
        listener.listen(1)
        dialed = trio.socket.socket(family)
        if buffers is not None:
            dialed.setsockopt(trio.socket.SOL_SOCKET, trio.socket.SO_RCVBUF, buffers)
            dialed.setsockopt(trio.socket.SOL_SOCKET, trio.socket.SO_SNDBUF, buffers)
        await dialed.connect(listener.getsockname())
        accepted, _ = await listener.accept()
    return dialed, accepted


@asynccontextmanager
async def wired_sockets(*, there: Script | None = None, back: Script | None = None) -> AsyncGenerator[Sockets]:
    """Both ends of a TCP connection with a faulty wire in between."""
    with trio.socket.socket() as listener:
        await listener.bind(("127.0.0.1", 0))
        listener.listen(1)
        async with open_wire(listener.getsockname(), there=there, back=back) as wire:
            dialed = trio.socket.socket()
            accepted, _ = await listener.accept()
            await dialed.connect(wire.address)
            with dialed, accepted:
                yield dialed, accepted


async def tls_carriers(sockets: Sockets | None = None) -> tuple[TlsCarrier, TlsCarrier]:
    """A TLS carrier that Alice dialled: her end and Bob's."""
    dialed, accepted = sockets or await connect_sockets()
    ends: list[TlsCarrier] = []

    async def serve() -> None:
        ends.append(await TlsCarrier.serve(accepted, CONTEXTS[BOB]))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve)
        dialler = await TlsCarrier.dial(dialed, CONTEXTS[ALICE], peer_key=BOB.public_key)
    return dialler, ends[0]


async def quic_carriers(paths: Paths | None = None) -> tuple[QuicCarrier, QuicCarrier]:
    """A QUIC carrier that Alice dialled: her end and Bob's."""
    dialed, accepted = paths or await connect_paths()
    ends: list[QuicCarrier] = []

    async def serve() -> None:
        ends.append(await QuicCarrier.serve(accepted, BOB))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve)
        dialler = await QuicCarrier.dial(dialed, peer_key=BOB.public_key)
        await dialler.flush()
    return dialler, ends[0]


async def connect_ends(family: int = trio.socket.AF_INET, *, buffers: int | None = None) -> Sockets | Paths:
    """Sockets or paths for a carrier of the tested `kind`; `buffers` as for `connect_sockets`."""
    return await connect_paths(family) if kind == "quic" else await connect_sockets(family, buffers=buffers)


async def carriers(ends: Sockets | Paths | None = None) -> tuple[Carrier, Carrier]:
    """Alice's end and Bob's of a carrier over `ends`; of the tested `kind` if they are not given."""
    one, other = ends or await connect_ends()
    if isinstance(one, SocketPath) and isinstance(other, SocketPath):
        return await quic_carriers((one, other))
    assert isinstance(one, trio.socket.SocketType)
    assert isinstance(other, trio.socket.SocketType)
    return await tls_carriers((one, other))


async def receive_exactly(carrier: Carrier, size: int) -> bytes:
    """Exactly `size` bytes."""
    received = b""
    while len(received) < size:
        pieces = await carrier.receive()
        assert pieces, "the peer ended the stream"
        assert all(pieces)
        received += b"".join(pieces)
    return received


def close_carriers(*carriers: Carrier) -> None:
    """Close carriers without waiting."""
    for carrier in carriers:
        carrier.close_nowait()


def is_closed(link: Link | Carrier) -> bool:
    """Whether the carrier has given back its socket."""
    carrier = link.carrier if isinstance(link, Link) else link
    if isinstance(carrier, QuicCarrier):
        assert isinstance(carrier._path, SocketPath)
        return carrier._path.sock.fileno() == -1
    assert isinstance(carrier, TlsCarrier)
    assert isinstance(carrier._sock, trio.socket.SocketType)
    return carrier._sock.fileno() == -1


async def alice_proves(carrier: Carrier, *, initiator: bool = True) -> Link:
    return await Link.prove(
        carrier,
        ALICE,
        peer_key=BOB.public_key,
        session_id=SESSION,
        attempt_id=ATTEMPT,
        initiator=initiator,
    )


async def proven_links(ends: Sockets | Paths | None = None) -> tuple[Link, Link]:
    """A Link that Alice dialled, as the caller: her end and Bob's."""
    dialed, accepted = await carriers(ends)
    alice = await alice_proves(dialed)
    bob = await Link.receive_proof(accepted)
    bob.set_role(initiator=False)
    return alice, bob


def link_of(pipe: Pipe) -> Link:
    """The Link that a Pipe is on."""
    assert isinstance(pipe._link, Link)
    return pipe._link


def a_path(carrier: Carrier) -> PathInfo:
    return PathInfo(
        phase="direct",
        plugin="direct_connect",
        af=4,
        route_type="LOOPBACK_BIND",
        carrier=carrier.name,
        local=carrier.local,
        remote=carrier.remote,
    )


@final
@dataclass(slots=True)
class End:
    """One end of an open Link, which is driven."""

    link: Link
    pipe: Pipe
    opened: list[Pipe] = field(default_factory=list)
    """Pipes that the peer opened."""
    refusal: RefuseReason | None = None
    """The reason with which the peer's next OPEN is refused; None to accept it."""
    ended: trio.Event = field(default_factory=trio.Event)
    _arrived: trio.Event = field(default_factory=trio.Event)

    async def drive(self, goodbye: float) -> None:
        await self.link.drive(on_open=self.on_open, goodbye=goodbye)
        self.ended.set()

    def on_open(self, pipe: Pipe) -> RefuseReason | None:
        if self.refusal is None:
            self.opened.append(pipe)
            self._arrived.set()
        return self.refusal

    async def accept(self) -> Pipe:
        """The next Pipe that the peer opened."""
        while not self.opened:
            self._arrived = trio.Event()
            await self._arrived.wait()
        return self.opened.pop(0)


async def open_ends(
    nursery: trio.Nursery,
    over: Sockets | Paths | None = None,
    *,
    early_data: bytes = b"",
    goodbye: float = 1.0,
    terms: Terms = TERMS,
    others: Terms | None = None,
) -> tuple[End, End]:
    """Alice's end and Bob's of an accepted Link, driven in `nursery`."""
    alice, bob = await proven_links(over)
    pipes: list[Pipe] = []

    async def answer() -> None:
        await bob.receive_commit()
        pipes.append(bob.accept(others or terms))
        bob.path = a_path(bob.carrier)
        ends.append(End(bob, pipes[0]))
        nursery.start_soon(partial(ends[0].drive, goodbye))

    ends: list[End] = []
    async with trio.open_nursery() as handshake:
        handshake.start_soon(answer)
        pipe = await alice.commit(epoch=1, link_id=LINK_ID, early_data=early_data, patience=HANG, terms=terms)
    alice.path = a_path(alice.carrier)
    end = End(alice, pipe)
    nursery.start_soon(partial(end.drive, goodbye))
    return end, ends[0]


@asynccontextmanager
async def linked(
    over: Sockets | Paths | None = None,
    *,
    early_data: bytes = b"",
    goodbye: float = 1.0,
    limit: float = HANG,
    terms: Terms = TERMS,
    others: Terms | None = None,
) -> AsyncGenerator[tuple[End, End]]:
    """`open_ends` with its own nursery; both Links have ended when the body is left, within `limit` seconds."""
    with trio.fail_after(limit):
        async with trio.open_nursery() as nursery:
            ends = await open_ends(nursery, over, early_data=early_data, goodbye=goodbye, terms=terms, others=others)
            try:
                yield ends
            finally:
                for end in ends:
                    end.link.end_nowait()


@final
class RawPeer:
    """The other end of a Link, played by the test: it sends any frame at any time, and shows what it receives."""

    def __init__(self, carrier: Carrier) -> None:
        self.carrier = carrier
        self._reader = FrameReader()
        self._heard: list[Item] = []

    async def say(self, *frames: Frame | bytes) -> None:
        """Send frames or raw bytes at once; small ones arrive in one read."""
        self.carrier.feed(b"".join(each if isinstance(each, bytes) else encode(each) for each in frames))
        await self.carrier.flush()

    async def hear(self) -> Item | None:
        """The next item received; None at the clean end."""
        while not self._heard:
            pieces = await self.carrier.receive()
            if not pieces:
                return None
            self._heard += self._reader.feed(pieces)
        return self._heard.pop(0)

    async def hear_until_end(self) -> list[Item]:
        heard: list[Item] = []
        while (item := await self.hear()) is not None:
            heard.append(item)
        return heard

    def close(self) -> None:
        self.carrier.close_nowait()


@asynccontextmanager
async def raw_end(
    nursery: trio.Nursery,
    *behind_accept: Frame | bytes,
    buffers: int | None = None,
    goodbye: float = 0.05,
    greeted: bool = True,
    limit: float = HANG,
    terms: Terms | None = None,
    ours: Terms = TERMS,
) -> AsyncGenerator[tuple[End, RawPeer]]:
    """Alice's end of an open Link, driven, and a peer that the test plays: an older release if `terms` is None."""
    dialed, accepted = await carriers(await connect_sockets(buffers=buffers))
    link = await alice_proves(dialed)
    peer = RawPeer(accepted)
    await peer.say(Accept(channel=0, credit=1 << 40, terms=terms), *behind_accept)
    pipe = await link.commit(epoch=1, link_id=LINK_ID, patience=2.0, terms=ours)
    link.path = a_path(dialed)
    end = End(link, pipe)
    nursery.start_soon(partial(end.drive, goodbye))
    try:
        with trio.fail_after(limit):
            for kind in (Proof, Commit, *((Ping,) if greeted else ())):
                assert isinstance(await peer.hear(), kind)
            yield end, peer
    finally:
        peer.close()
        end.link.end_nowait()
        with trio.CancelScope(shield=True), trio.fail_after(HANG):
            await end.ended.wait()
