"""Ten thousand guesses of codes from one network: none is accepted, and other people pair undisturbed."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass, field

import pytest

from tests.identities import ALICE, BOB, MALLORY
from tests.mailboxes import Client, Server, T
from tests.nodes import address_of
from warpgate_trio.host import RealHost
from warpgate_trio.identity import Identity
from warpgate_trio.pairing.code import Code
from warpgate_trio.pairing.handshake import Claimer, Paired, Us
from warpgate_trio.pairing.offer_core import OfferCore
from warpgate_trio.pairing.words import WORDS
from warpgate_trio.servers.mailbox_frames import Claimed, Offer, Offered, Outcome, Post, Settle
from warpgate_trio.servers.mailboxes import WRONG_TRIES

GUESSES = 10_000
OFFERS = 40
LIFETIME = 300


def us(identity: Identity) -> Us:
    address = address_of(identity, port=4433, now=1_700_000_000)
    return Us(identity, lambda: address, RealHost().entropy)


@dataclass(eq=False)
class Offering:
    """A person who offers a code at a server, and a new code whenever the offer ends."""

    server: Server
    us: Us
    random: random.Random
    client: Client = field(init=False)
    core: OfferCore = field(init=False)
    spent: int = 0
    paired: int = 0

    def __post_init__(self) -> None:
        self.offer()

    def offer(self) -> None:
        self.client = self.server.client(host=f"198.51.100.{self.random.randrange(250)}")
        self.client.say(Offer(0, LIFETIME))
        offered = self.client.take()
        assert isinstance(offered, Offered)
        words = (self.random.choice(WORDS), self.random.choice(WORDS))
        self.core = OfferCore(Code(offered.nameplate, words), self.us)

    def work(self) -> None:
        """Answer the received frames as a node does."""
        if self.client.deadline <= self.server.now:
            self.client.tick()
        while self.client.heard:
            frame = self.client.take()
            assert isinstance(frame, Claimed | Post | Settle)
            if isinstance(frame, Settle) and frame.number == 0:
                self.spent += frame.outcome == Outcome.SPENT
                self.offer()
            else:
                for said in self.core.receive("server", frame, self.server.now):
                    self.client.say(said)
                self.paired += self.core.paired is not None


def try_code(server: Server, offering: Offering, code: Code, who: Us, host: str) -> Paired | Outcome:
    """Claim a code, from beginning to end, following the protocol."""
    claimer = Claimer(code, who) if not _has_to_wait(server, host) else None
    client = server.claim(code.nameplate, host, b"hello" if claimer is None else claimer.hello)
    offering.work()
    while client.heard:
        frame = client.take()
        if isinstance(frame, Settle):
            return Outcome(frame.outcome)
        assert isinstance(frame, Post)
        assert claimer is not None
        said = claimer.receive(frame.payload)
        if isinstance(said, Paired):
            return said
        client.say(Post(0, said))
        offering.work()
    raise AssertionError("nobody has answered")


def _has_to_wait(server: Server, host: str) -> bool:
    """Whether the server will not pass the claim on, so that the key exchange need not be computed."""
    rates = server.mailboxes._rates
    return max(source.wait(server.now) for source in rates._of(host)) > 0


@pytest.mark.slow("ten thousand guesses, and honest pairings in between")
@pytest.mark.parametrize("network", ["2001:db8:0:{:x}::1", "203.0.113.{}"])
def test_ten_thousand_guesses_of_one_network(network: str) -> None:
    """One guess a second for three hours, at all offered codes, from up to 254 addresses of the network."""
    chance = random.Random(7)
    server = Server()
    offers = [Offering(server, us(BOB), chance) for _ in range(OFFERS)]
    mallory, alice = us(MALLORY), us(ALICE)
    outcomes: Counter[str] = Counter()
    honest = 0
    for number in range(GUESSES):
        server.now += 1
        target = chance.choice(offers)
        for offering in offers if number % 10 == 0 else [target]:
            offering.work()
        guess = Code(target.core.code.nameplate, (chance.choice(WORDS), chance.choice(WORDS)))
        assert guess != target.core.code, "with this seed he has no luck"
        outcome = try_code(server, target, guess, mallory, network.format(chance.randrange(1, 255)))
        assert isinstance(outcome, Outcome), "a guess was accepted"
        outcomes[outcome.name] += 1
        if number % 100 == 0:
            friend = chance.choice(offers)
            friend.work()
            paired = try_code(server, friend, friend.core.code, alice, f"192.0.2.{honest % 250}")
            assert isinstance(paired, Paired), f"somebody else's code was no good any more: {paired!r}"
            assert paired.peer_id == BOB.peer_id
            honest += 1
    hours = (server.now - T) / 3600
    assert sum(offering.paired for offering in offers) == honest == GUESSES // 100
    assert outcomes["WRONG"] <= 10 * hours, outcomes
    assert sum(offering.spent for offering in offers) <= 10 * hours / WRONG_TRIES
    assert outcomes["WAIT"] > 0.99 * GUESSES, outcomes
