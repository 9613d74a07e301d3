"""An offer at two servers: frames of one server while the other has not taken the outcome yet."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import pytest
import trio
import trio.testing

from tests.identities import ALICE, BOB
from tests.nodes import address_of
from warpgate_trio.errors import PairingUnavailable
from warpgate_trio.host import RealHost
from warpgate_trio.identity import Identity
from warpgate_trio.pairing import Paired, Us, open_offer, parse_code
from warpgate_trio.pairing.code import Code
from warpgate_trio.pairing.handshake import Claimer
from warpgate_trio.pairing.mailbox import FromServer, ToServer
from warpgate_trio.servers.mailbox_frames import Claimed, Offer, Offered, Outcome, Post, Settle


def us(identity: Identity) -> Us:
    address = address_of(identity, port=4433, now=1_700_000_000)
    return Us(identity, lambda: address, RealHost().entropy)


class Server:
    """A `MailboxServer` and its only channel; sending waits until `takes` is set."""

    allocates = True

    def __init__(self, name: str) -> None:
        self.name = name
        self.takes = trio.Event()
        self.takes.set()
        self.sent: list[ToServer] = []
        self._say, self._said = trio.open_memory_channel[FromServer](10)

    def check(self) -> None: ...

    @asynccontextmanager
    async def open(self) -> AsyncGenerator[Server]:
        yield self

    async def send(self, frame: ToServer) -> None:
        await self.takes.wait()
        self.sent.append(frame)
        if isinstance(frame, Offer):
            self._say.send_nowait(Offered(frame.nameplate, 300))

    async def receive(self) -> FromServer:
        try:
            return await self._said.receive()
        except trio.EndOfChannel as error:
            raise PairingUnavailable(f"{self.name} has hung up") from error

    async def say(self, frame: FromServer) -> None:
        self._say.send_nowait(frame)
        await trio.testing.wait_all_tasks_blocked()

    async def claim(self, code: Code, number: int) -> tuple[Claimer, bytes]:
        """A peer with the right code claims it; returns the claimer and the proof that it would post."""
        claimer = Claimer(code, us(ALICE))
        await self.say(Claimed(number, claimer.hello))
        reply = self.sent[-1]
        assert isinstance(reply, Post)
        proof = claimer.receive(reply.payload)
        assert isinstance(proof, bytes)
        return claimer, proof


@pytest.mark.parametrize("says", ["claimed", "post", "settle", "over", "nothing"])
async def test_what_another_server_says_meanwhile_changes_nothing(says: str) -> None:
    """The application is told once, the claimer gets its proof, and the offer ends when that is sent."""
    first, second = Server("first"), Server("second")
    told: list[Paired] = []

    def on_paired(paired: Paired) -> None:
        told.append(paired)
        if len(told) > 1:
            raise RuntimeError("it is known already")

    async with open_offer([first, second], us(BOB), on_paired=on_paired) as offer:
        code = parse_code(offer.code)
        _, other_proof = await second.claim(code, 1)
        claimer, proof = await first.claim(code, 1)
        first.takes = trio.Event()
        await first.say(Post(1, proof))
        assert len(told) == 1
        if says == "claimed":
            await second.say(Claimed(2, Claimer(code, us(ALICE)).hello))
        elif says == "post":
            await second.say(Post(1, other_proof))
        elif says == "settle":
            await second.say(Settle(1, Outcome.LEFT))
        elif says == "over":
            await second.say(Settle(0, Outcome.EXPIRED))
        first.takes.set()
        assert (await offer.wait_paired()).peer_id == ALICE.peer_id
    assert len(told) == 1
    assert [type(frame) for frame in first.sent[-3:]] == [Post, Settle, Settle]
    last = first.sent[-3]
    assert isinstance(last, Post)
    proven = claimer.receive(last.payload)
    assert isinstance(proven, Paired)
    assert proven.peer_id == BOB.peer_id
    assert first.sent[-2:] == [Settle(1, Outcome.PAIRED), Settle(0, Outcome.PAIRED)]
    assert second.sent[-1] == Settle(0, Outcome.PAIRED)
