"""The handshake of pairing, and how an offer's tries end: right, wrong, replayed, forged, and in any order."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
import spake2
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.identities import ALICE, BOB, MALLORY
from tests.nodes import address_of
from warpgate_trio.errors import CodeRefused, RemoteProtocolError
from warpgate_trio.host import RealHost
from warpgate_trio.identity import Identity
from warpgate_trio.pairing.code import Code
from warpgate_trio.pairing.handshake import Claimer, Offerer, Paired, Us
from warpgate_trio.pairing.mailbox import FromServer
from warpgate_trio.pairing.offer_core import MAX_TRIES, OfferCore
from warpgate_trio.pairing.pake import ELEMENT_LENGTH, Exchange
from warpgate_trio.servers.mailbox_frames import MAX_POST, Claimed, Outcome, Post, Settle
from warpgate_trio.servers.mailboxes import TRIES_AT_ONCE, TRY_TIME, WRONG_TRIES

CODE = Code(7, ("guitar", "orbit"))
WRONG = Code(7, ("guitar", "acorn"))
T = 1000.0
ENTROPY = RealHost().entropy
HELLO_GOLDEN = "01014180b443ca4f30c633da5a3866a5c7bff4eb1f87cbfe737430090580d6c2e5d020"
REPLY_GOLDEN = "010242d3fd073ac6d195a9944642c07516126166ec82d5e0f19c7852b7f6fc1e3a8204"
PROOF_GOLDEN = "0103a1e59efc68afa47b38c24315328e794d92ca4736dc5eaf683b94e421b48483ca"
MINE_GOLDEN = "0104e91c52f1d9a8584115566d439eccd9eb1e2b49d6d42e54b0213875a4d66c4163"
ADDRESSES = {each.peer_id: address_of(each, port=4433, now=1_700_000_000) for each in (ALICE, BOB, MALLORY)}


def us(identity: Identity, entropy: Callable[[int], bytes] = ENTROPY) -> Us:
    return Us(identity, lambda: ADDRESSES[identity.peer_id], entropy)


def counting(n: int) -> bytes:
    """The same entropy each time, for golden bytes."""
    return (b"\x01" + bytes(range(256)))[:n]


def claimer(code: Code = CODE, identity: Identity = ALICE) -> Claimer:
    return Claimer(code, us(identity))


def reply_of(offerer: Offerer, hello: bytes) -> bytes:
    reply = offerer.receive(hello)
    assert isinstance(reply, bytes)
    return reply


def answer_of(side: Claimer, reply: bytes) -> bytes:
    proof = side.receive(reply)
    assert isinstance(proof, bytes)
    return proof


def paired_of(said: bytes | Paired) -> Paired:
    assert isinstance(said, Paired)
    return said


# -- the exchange ------------------------------------------------------------------------------------------------------


def test_who_knows_the_password_gets_the_same_key_and_nobody_else_does() -> None:
    one, two, guess = (Exchange(word, offers=offers, entropy=ENTROPY) for word, offers in EXCHANGES)
    assert len(one.message) == ELEMENT_LENGTH
    key = two.finish(one.message)
    assert len(key) == 32
    assert one.finish(two.message) == key
    assert guess.finish(two.message) != key


EXCHANGES = [(b"7-guitar-orbit", False), (b"7-guitar-orbit", True), (b"7-guitar-acorn", False)]


@pytest.mark.parametrize(
    "theirs",
    [
        b"",
        b"A" * 32,
        b"A" + bytes(31),
        b"A" + b"\xff" * 32,
        b"A" + (1).to_bytes(32, "little"),  # the neutral element
        b"A" + bytes(32),  # of order 4
        b"B" + b"\x58" + b"\x66" * 31,  # our own side's letter, and the base point
        b"S" + b"\x58" + b"\x66" * 31,
        b"\0" * ELEMENT_LENGTH,
    ],
)
def test_what_is_no_element_of_the_group_ends_the_try(theirs: bytes) -> None:
    exchange = Exchange(b"password", offers=True, entropy=ENTROPY)
    with pytest.raises(RemoteProtocolError):
        exchange.finish(theirs)


def test_our_own_message_does_not_pass_for_theirs() -> None:
    exchange = Exchange(b"password", offers=True, entropy=ENTROPY)
    with pytest.raises(RemoteProtocolError):
        exchange.finish(b"A" + exchange.message[1:])


def test_whatever_the_library_raises_ends_the_try(monkeypatch: pytest.MonkeyPatch) -> None:
    def panic(_side: object, _theirs: bytes) -> bytes:
        raise AssertionError("nobody foresaw that")

    exchange = Exchange(b"password", offers=True, entropy=ENTROPY)
    monkeypatch.setattr(spake2.SPAKE2_B, "finish", panic)
    with pytest.raises(RemoteProtocolError):
        exchange.finish(bytes(ELEMENT_LENGTH))


# -- the handshake -----------------------------------------------------------------------------------------------------


def test_both_learn_who_the_other_one_is() -> None:
    alice, bob = claimer(), Offerer(CODE, us(BOB))
    proof = answer_of(alice, reply_of(bob, alice.hello))
    assert bob.receive(proof) == Paired(ALICE.peer_id, ADDRESSES[ALICE.peer_id])
    assert alice.receive(bob.prove()) == Paired(BOB.peer_id, ADDRESSES[BOB.peer_id])


def test_nothing_on_the_wire_names_anybody() -> None:
    alice, bob = claimer(), Offerer(CODE, us(BOB))
    reply = reply_of(bob, alice.hello)
    proof = answer_of(alice, reply)
    bob.receive(proof)
    said = alice.hello + reply + proof + bob.prove()
    for each in (ALICE, BOB):
        assert each.public_key not in said
        assert ADDRESSES[each.peer_id].to_bytes()[-20:] not in said


def test_the_messages_have_fixed_heads() -> None:
    alice, bob = Claimer(CODE, us(ALICE, counting)), Offerer(CODE, us(BOB, counting))
    assert alice.hello.hex() == HELLO_GOLDEN
    reply = reply_of(bob, alice.hello)
    assert reply.hex() == REPLY_GOLDEN
    proof = answer_of(alice, reply)
    assert proof[:34].hex() == PROOF_GOLDEN
    bob.receive(proof)
    mine = bob.prove()
    assert mine[:34].hex() == MINE_GOLDEN
    assert max(len(proof), len(mine)) <= MAX_POST


def test_who_guesses_is_told_nothing_and_counted() -> None:
    mallory, bob = claimer(WRONG, MALLORY), Offerer(CODE, us(BOB))
    proof = answer_of(mallory, reply_of(bob, mallory.hello))
    with pytest.raises(CodeRefused) as refused:
        bob.receive(proof)
    assert refused.value.outcome == Outcome.WRONG


def test_an_offerer_who_does_not_know_the_code_is_found_out() -> None:
    """A server that answers the claimer itself gets one guess."""
    alice, mallory = claimer(), Offerer(WRONG, us(MALLORY))
    proof = answer_of(alice, reply_of(mallory, alice.hello))
    with pytest.raises(CodeRefused):
        mallory.receive(proof)
    with pytest.raises(CodeRefused) as refused:
        alice.receive(mallory.prove())
    assert refused.value.outcome == Outcome.WRONG


def test_the_code_of_another_mailbox_is_another_code() -> None:
    alice, bob = claimer(Code(8, CODE.words)), Offerer(CODE, us(BOB))
    with pytest.raises(CodeRefused):
        bob.receive(answer_of(alice, reply_of(bob, alice.hello)))


def test_our_own_key_is_another_outcome() -> None:
    other, bob = claimer(identity=BOB), Offerer(CODE, us(BOB))
    with pytest.raises(CodeRefused) as refused:
        bob.receive(answer_of(other, reply_of(bob, other.hello)))
    assert refused.value.outcome == Outcome.OWN_KEY


def test_messages_of_another_try_prove_nothing() -> None:
    """The server may replay, swap or reflect messages."""
    alice, bob = claimer(), Offerer(CODE, us(BOB))
    old = answer_of(alice, reply_of(bob, alice.hello))
    bob.receive(old)
    mine = bob.prove()
    again, later = claimer(), Offerer(CODE, us(BOB))
    reply = reply_of(later, again.hello)
    with pytest.raises(CodeRefused):
        later.receive(old)
    answer = answer_of(again, reply)
    for replayed in (mine, answer, old):
        with pytest.raises(CodeRefused):
            again.receive(replayed)


def test_an_address_of_somebody_else_is_not_taken() -> None:
    """Even with the code nobody can claim another peer's address."""
    liar = Us(MALLORY, lambda: ADDRESSES[ALICE.peer_id], ENTROPY)
    mallory, bob = Claimer(CODE, liar), Offerer(CODE, us(BOB))
    with pytest.raises(CodeRefused):
        bob.receive(answer_of(mallory, reply_of(bob, mallory.hello)))


@pytest.mark.parametrize("data", [b"", b"\x01\x01", b"\x02\x01" + bytes(33), b"\x01\x02" + bytes(33), bytes(4096)])
def test_what_is_no_hello_is_told(data: bytes) -> None:
    with pytest.raises(RemoteProtocolError):
        Offerer(CODE, us(BOB)).receive(data)
    with pytest.raises(RemoteProtocolError):
        claimer().receive(data)


@pytest.mark.slow("an exchange for each change")
@settings(max_examples=20)
@given(st.data())
def test_a_changed_proof_is_none(data: st.DataObject) -> None:
    alice, bob = claimer(), Offerer(CODE, us(BOB))
    proof = bytearray(answer_of(alice, reply_of(bob, alice.hello)))
    proof[data.draw(st.integers(0, len(proof) - 1))] ^= data.draw(st.integers(1, 255))
    with pytest.raises(CodeRefused):
        bob.receive(bytes(proof))


# -- an offer ----------------------------------------------------------------------------------------------------------


@dataclass
class Try:
    """One try of a code at an offer."""

    core: OfferCore
    number: int
    code: Code = CODE
    identity: Identity = ALICE
    server: str = "server"
    now: float = T
    side: Claimer = field(init=False)

    def __post_init__(self) -> None:
        self.side = claimer(self.code, self.identity)

    def hear(self, frame: FromServer) -> list[Post | Settle]:
        return self.core.receive(self.server, frame, self.now)

    def claim(self) -> list[Post | Settle]:
        return self.hear(Claimed(self.number, self.side.hello))

    def prove(self, said: list[Post | Settle]) -> list[Post | Settle]:
        (reply,) = said
        assert isinstance(reply, Post)
        assert reply.number == self.number
        return self.hear(Post(self.number, answer_of(self.side, reply.payload)))


def core() -> OfferCore:
    return OfferCore(CODE, us(BOB))


def test_an_offer_is_for_one() -> None:
    offer = core()
    first, second = Try(offer, 1), Try(offer, 2, server="another")
    replies = first.claim(), second.claim()
    mine, settled = first.prove(replies[0])
    assert settled == Settle(1, Outcome.PAIRED)
    assert isinstance(mine, Post)
    assert paired_of(first.side.receive(mine.payload)).peer_id == BOB.peer_id
    assert offer.outcome is Outcome.PAIRED
    assert offer.paired is not None
    assert second.prove(replies[1]) == []
    assert Try(offer, 3).claim() == [Settle(3, Outcome.USED)]


def test_three_wrong_tries_at_whichever_server_end_it() -> None:
    offer = core()
    for number in range(1, WRONG_TRIES + 1):
        assert offer.outcome is None
        guess = Try(offer, number, WRONG, MALLORY, server=f"server {number}")
        assert guess.prove(guess.claim()) == [Settle(number, Outcome.WRONG)]
    assert (offer.outcome, offer.wrong, offer.paired) == (Outcome.SPENT, WRONG_TRIES, None)
    assert "tried too often" in offer.why
    assert Try(offer, 9).claim() == [Settle(9, Outcome.USED)]


@pytest.mark.slow("key exchanges")
def test_who_leaves_without_a_proof_is_not_counted() -> None:
    offer = core()
    for number in range(10):
        Try(offer, number).claim()
        offer.receive("server", Settle(number, Outcome.LEFT), T)
    assert (offer.outcome, offer.wrong) == (None, 0)


@pytest.mark.slow("key exchanges")
def test_tries_are_bounded_at_once_and_in_all_and_in_time() -> None:
    offer = core()
    for number in range(TRIES_AT_ONCE):
        assert isinstance(Try(offer, number).claim()[0], Post)
    assert Try(offer, 99).claim() == [Settle(99, Outcome.BUSY)]
    assert isinstance(Try(offer, 99, server="another").claim()[0], Post)
    late = Try(offer, 100, now=T + TRY_TIME)
    assert isinstance(late.claim()[0], Post)
    assert Try(offer, 0, now=T + TRY_TIME).hear(Post(0, b"proof")) == []


@pytest.mark.slow("key exchanges")
def test_an_offer_that_is_tried_very_often_is_over() -> None:
    offer = core()
    for number in range(MAX_TRIES):
        Try(offer, number).claim()
        offer.receive("server", Settle(number, Outcome.LEFT), T)
    assert Try(offer, 1).claim() == [Settle(1, Outcome.SPENT)]
    assert offer.outcome is Outcome.SPENT
    assert (offer.wrong, offer.why) == (0, "the code is void, because it was tried more than 64 times")


def test_a_server_that_is_gone_takes_its_tries_along() -> None:
    offer = core()
    alice = Try(offer, 1)
    replies = alice.claim()
    offer.forget("server")
    assert alice.prove(replies) == []
    assert offer.outcome is None


def test_a_claim_that_is_none_is_left_alone() -> None:
    offer = core()
    assert offer.receive("server", Claimed(1, b"hello"), T) == [Settle(1, Outcome.LEFT)]
    assert offer.receive("server", Post(5, b"proof"), T) == []
    assert offer.receive("server", Settle(5, 200), T) == []
    assert (offer.outcome, offer.wrong) == (None, 0)
