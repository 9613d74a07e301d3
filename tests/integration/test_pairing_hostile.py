"""Pairing by servers that swap, repeat, drop and change what they pass on, are old, or are no such servers."""

from __future__ import annotations

import random
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Final, final

import pytest
import trio
import trio.testing

from tests.cancel_sweep import cuts
from tests.hangs import HANG
from tests.identities import ALICE, BOB, CAROL, MALLORY
from tests.nodes import address_of, config, loopback_node
from warpgate_trio.errors import CodeRefused, PairingError, PairingUnavailable, RemoteProtocolError
from warpgate_trio.host import RealHost
from warpgate_trio.identity import Identity
from warpgate_trio.limits import TokenBucket
from warpgate_trio.pairing import Paired, Us, accept_code, open_offer, parse_code
from warpgate_trio.pairing.mailbox import FromServer, ToServer
from warpgate_trio.servers import rendezvous_core
from warpgate_trio.servers import rendezvous_frames as wire
from warpgate_trio.servers.mailbox_frames import Claimed, Offered, Outcome, Post, Settle
from warpgate_trio.servers.mailboxes import Delivery, Mailboxes
from warpgate_trio.servers.rendezvous import open_rendezvous
from warpgate_trio.servers.server_connection import ServerConnection
from warpgate_trio.websocket import WebSocket, serve_websocket

pytestmark = [pytest.mark.usefixtures("jumping_clock"), pytest.mark.slow("key exchanges in Python")]

Deliver = Callable[["Server", ServerConnection, bytes], None]


def us(identity: Identity) -> Us:
    address = address_of(identity, port=4433, now=1_700_000_000)
    return Us(identity, lambda: address, RealHost().entropy)


def deliver(server: Server, receiver: ServerConnection, frame: bytes) -> None:
    """Delivers as an honest server does."""
    server.put(receiver, frame)


@final
@dataclass
class Server:
    """A server in memory, whose deliveries a test may tamper with (`deliver`)."""

    deliver: Deliver = deliver
    mailboxes: Mailboxes = field(default_factory=Mailboxes)
    inboxes: dict[ServerConnection, trio.MemorySendChannel[bytes]] = field(default_factory=dict)
    said: list[bytes] = field(default_factory=list)

    def put(self, receiver: ServerConnection, frame: bytes) -> None:
        self.said.append(frame)
        if receiver in self.inboxes:
            self.inboxes[receiver].send_nowait(frame)

    def end(self, receiver: ServerConnection) -> None:
        """Breaks a connection."""
        if receiver in self.inboxes:
            self.inboxes.pop(receiver).close()

    def hand_on(self, told: list[Delivery]) -> None:
        for receiver, frame, _ in told:
            self.deliver(self, receiver, frame)


@final
@dataclass
class Access:
    """A node's access to the server: a `MailboxServer`."""

    server: Server
    name: str = "memory"
    allocates: bool = True
    key: bytes = field(default_factory=partial(RealHost().entropy, 32))

    def check(self) -> None:
        """Does nothing: a connection in memory does not die unnoticed."""

    @asynccontextmanager
    async def open(self) -> AsyncGenerator[Channel]:
        await trio.lowlevel.checkpoint()
        connection = ServerConnection(b"", TokenBucket(1, 1), host="192.0.2.1", version=3, names=())
        connection.key = self.key
        send, receive = trio.open_memory_channel[bytes](1000)
        self.server.inboxes[connection] = send
        with send, receive:
            try:
                yield Channel(self.server, connection, receive)
            finally:
                self.server.inboxes.pop(connection, None)
                self.server.hand_on(self.server.mailboxes.left(connection, trio.current_time()))


@final
@dataclass
class Channel:
    server: Server
    connection: ServerConnection
    inbox: trio.MemoryReceiveChannel[bytes]

    async def send(self, frame: ToServer) -> None:
        await trio.lowlevel.checkpoint()
        if self.connection not in self.server.inboxes:
            raise PairingUnavailable("the connection has ended")
        answer, told = self.server.mailboxes.receive(self.connection, frame, trio.current_time())
        if answer is not None:
            self.server.deliver(self.server, self.connection, answer)
        self.server.hand_on(told)

    async def receive(self) -> FromServer:
        try:
            frame = wire.decode_from_server(await self.inbox.receive())
        except (trio.EndOfChannel, RemoteProtocolError) as error:
            raise PairingUnavailable("the connection has ended") from error
        if not isinstance(frame, Offered | Claimed | Post | Settle):
            raise PairingUnavailable("no frame of pairing")
        return frame


@dataclass
class Liar:
    """A server that tampers at random."""

    chance: random.Random
    seen: list[bytes] = field(default_factory=list)

    def deliver(self, server: Server, receiver: ServerConnection, frame: bytes) -> None:
        everybody = list(server.inboxes)
        self.seen.append(frame)
        match self.chance.randrange(50):
            case 0:
                pass  # lost
            case 1:
                server.put(receiver, frame)
                server.put(receiver, frame)
            case 2:
                server.put(receiver, self.chance.choice(self.seen))
            case 3:
                server.put(self.chance.choice(everybody), frame)
            case 4:
                changed = bytearray(frame)
                changed[self.chance.randrange(len(frame))] ^= self.chance.randrange(1, 256)
                server.put(receiver, bytes(changed))
            case 5:
                server.end(receiver)
            case 6:
                server.put(receiver, Settle(self.chance.randrange(3), self.chance.randrange(16), 9).encode())
            case _:
                server.put(receiver, frame)


async def test_an_honest_server_in_memory_pairs() -> None:
    server = Server()
    async with open_offer([Access(server)], us(BOB)) as offer:
        assert (await accept_code([Access(server)], parse_code(offer.code), us(ALICE))).peer_id == BOB.peer_id
        assert (await offer.wait_paired()).peer_id == ALICE.peer_id


@pytest.mark.parametrize("first", range(0, 40, 10))
async def test_whatever_a_server_does_nobody_is_paired_with_the_wrong_one(first: int) -> None:
    assert sum([await two_pairs(seed) for seed in range(first, first + 10)]) >= 10, "chance leaves some of 40 in peace"


async def two_pairs(seed: int) -> int:
    """Runs two pairings at once, and returns how many of the four sides are paired.

    Each side must be paired with the right peer, or learn in time that it is not paired.
    """
    server = Server(Liar(random.Random(seed)).deliver)
    found: dict[str, Paired | PairingError] = {}

    async def offer(who: Identity, claimer: Identity) -> None:
        try:
            async with open_offer([Access(server)], us(who), lifetime=60) as offered:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(claim, claimer, offered.code)
                    found[who.peer_id] = await offered.wait_paired()
        except* PairingError as errors:
            found[who.peer_id] = errors.exceptions[0]  # type: ignore[assignment]

    async def claim(who: Identity, code: str) -> None:
        try:
            found[who.peer_id] = await accept_code([Access(server)], parse_code(code), us(who))
        except PairingError as error:
            found[who.peer_id] = error

    with trio.fail_after(10 * HANG):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(offer, BOB, ALICE)
            nursery.start_soon(offer, CAROL, MALLORY)
        others: Final = {BOB: ALICE, ALICE: BOB, CAROL: MALLORY, MALLORY: CAROL}
    for one, other in others.items():
        outcome = found.get(one.peer_id)
        if isinstance(outcome, Paired):
            assert outcome.peer_id == other.peer_id
    return sum(isinstance(each, Paired) for each in found.values())


async def test_a_server_that_swaps_two_mailboxes_pairs_nobody() -> None:
    """The claimer of one code ends up at the other's offer, which counts one wrong code."""
    server = Server()
    async with open_offer([Access(server)], us(BOB)) as bobs, open_offer([Access(server)], us(CAROL)) as carols:
        swapped = replace(parse_code(bobs.code), nameplate=parse_code(carols.code).nameplate)
        with pytest.raises(CodeRefused) as refused:
            await accept_code([Access(server)], swapped, us(ALICE))
        assert refused.value.outcome == Outcome.WRONG
        assert (bobs.wrong_tries, carols.wrong_tries) == (0, 1)


async def test_an_offer_that_is_broken_off_is_taken_up_again_under_its_number() -> None:
    server = Server()
    async with open_offer([Access(server)], us(BOB)) as offer:
        code = parse_code(offer.code)
        (connection,) = server.inboxes
        server.end(connection)
        while connection in server.mailboxes._offering or not offer.servers:  # noqa: ASYNC110  # there is no event for that
            await trio.sleep(0.1)
        assert (await accept_code([Access(server)], code, us(ALICE))).peer_id == BOB.peer_id


async def test_an_offer_that_is_forgotten_meanwhile_has_expired() -> None:
    """This happens to a machine that has slept: its clock stood still, and the server's did not."""
    server = Server()
    async with open_offer([Access(server)], us(BOB)) as offer:
        (connection,) = server.inboxes
        server.mailboxes.receive(
            connection, Settle(0, Outcome.EXPIRED), trio.current_time()
        )  # Bob does not learn of it
        server.end(connection)
        with pytest.raises(CodeRefused, match="nobody was paired: the code has expired"):
            await offer.wait_paired()


async def test_a_server_that_says_that_the_code_is_over_ends_it() -> None:
    server = Server()
    async with open_offer([Access(server)], us(BOB)) as offer:
        (connection,) = server.inboxes
        server.put(connection, Settle(0, Outcome.EXPIRED).encode())
        with pytest.raises(CodeRefused, match="the code has expired"):
            await offer.wait_paired()


async def test_an_accept_that_nobody_answers_ends_in_its_time() -> None:
    def drop(server: Server, receiver: ServerConnection, frame: bytes) -> None:
        if not isinstance(wire.decode_from_server(frame), Claimed):
            server.put(receiver, frame)

    server = Server(drop)
    async with open_offer([Access(server)], us(BOB)) as offer:
        start = trio.current_time()
        with pytest.raises(CodeRefused, match="nobody has answered within 7 s"):
            await accept_code([Access(server)], parse_code(offer.code), us(ALICE), timeout=7)
        assert trio.current_time() - start == pytest.approx(7, abs=0.5)


async def test_cancelled_at_any_moment_nothing_is_left_of_an_offer_or_of_a_claim() -> None:
    for cut in cuts():
        server = Server()
        async with trio.open_nursery() as nursery:
            with cut:
                async with open_offer([Access(server)], us(BOB)) as offer:
                    nursery.start_soon(partial(accept_code, [Access(server)], parse_code(offer.code), us(ALICE)))
                    await offer.wait_paired()
            nursery.cancel_scope.cancel()
        assert not server.inboxes
    for cut in cuts():
        server = Server()
        async with open_offer([Access(server)], us(BOB)) as offer:
            with cut:
                await accept_code([Access(server)], parse_code(offer.code), us(ALICE))
            assert len(server.inboxes) <= 1, "the offerer's"
        assert not server.inboxes


# -- servers that cannot pair ------------------------------------------------------------------------------------------


async def test_a_server_that_does_not_announce_pairing_is_told_as_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """The error gives no reason, since such a server need not be older.  Version 1 is tested below."""
    registered = wire.Registered
    monkeypatch.setattr(rendezvous_core, "Registered", lambda can=None: registered(None if can is None else can & ~4))
    with trio.fail_after(HANG):
        async with open_rendezvous() as server, loopback_node(BOB, config(server)) as bob:
            with pytest.raises(
                PairingUnavailable, match="this server cannot pair: it does not announce that capability"
            ):
                async with bob.offer_code():
                    raise AssertionError
            with pytest.raises(PairingUnavailable, match="this server cannot pair"):
                await bob.accept_code("7-guitar-orbit")


@asynccontextmanager
async def strange(converse: Callable[[WebSocket], Awaitable[None]]) -> AsyncGenerator[str]:
    """The URL of a server that sends what the test wants."""
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    async with trio.open_nursery() as nursery:
        serve = partial(
            serve_websocket,
            converse,
            listeners,
            subprotocols=["warpgate-rendezvous-3"],
            max_message=wire.MAX_FRAME,
            handshake_timeout=HANG,
        )
        await nursery.start(serve)
        yield f"ws://127.0.0.1:{listeners[0].socket.getsockname()[1]}"
        nursery.cancel_scope.cancel()


REGISTERED: Final = [wire.Challenge(bytes(32), 3).encode(), wire.Registered(wire.Capability.PAIR).encode()]


@pytest.mark.parametrize(
    ("frames", "why"),
    [
        ([b"junk"], "not a frame of a rendezvous server"),
        ([wire.Challenge(bytes(32), 1).encode()], "speaks version 1 of the protocol, and pairing needs version 3"),
        ([wire.Challenge(bytes(32), 3).encode(), wire.Error(4, "go \x1b[2Jaway").encode()], r"refused: go \?\[2Jaway"),
        ([*REGISTERED, b"junk"], "not a frame of a rendezvous server"),
        ([*REGISTERED, wire.Message(b"hello").encode()], "sent an unexpected Message on a pairing"),
        ([*REGISTERED, Offered(0, 300).encode()], "an invalid number for the code"),
        ([*REGISTERED, Offered(100_000, 300).encode()], "an invalid number for the code"),
        ([*REGISTERED, Settle(0, 12).encode()], "limit of offers is reached"),
        ([*REGISTERED, Settle(0, 77).encode()], "gone"),
        ([*REGISTERED, wire.Error(4, "too many").encode()], "too many"),
        ([], "no answer within 10 s"),
    ],
)
async def test_a_strange_server_costs_its_offer_a_sentence(frames: list[bytes], why: str) -> None:
    async def converse(websocket: WebSocket) -> None:
        for frame in frames:
            await websocket.send(frame)
        await trio.sleep_forever()

    with trio.fail_after(HANG):
        async with strange(converse) as url, loopback_node(BOB, config(url)) as bob:
            with pytest.raises(PairingUnavailable, match=why):
                async with bob.offer_code():
                    raise AssertionError
