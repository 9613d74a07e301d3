"""What reaches a node that pairs: frames of a server, messages of the other side, and typed codes."""

from __future__ import annotations

import functools
from typing import Final

from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from tests.fuzz.registry import target, text_of, texts
from tests.identities import ALICE, BOB
from tests.nodes import address_of
from warpgate_trio.errors import CodeMalformed, CodeRefused, RemoteProtocolError, SignalUnsupported
from warpgate_trio.host import RealHost
from warpgate_trio.identity import Identity
from warpgate_trio.pairing.broker_messages import BrokerMessage, Kind
from warpgate_trio.pairing.code import Code, parse_code
from warpgate_trio.pairing.handshake import Claimer, Offerer, Us, _Keys, _Kind
from warpgate_trio.pairing.offer_core import OfferCore
from warpgate_trio.servers import mailbox_frames as mailbox
from warpgate_trio.servers import rendezvous_frames as rendezvous
from warpgate_trio.servers.rendezvous_core import RendezvousCore

CODE: Final = Code(7, ("guitar", "orbit"))


def _us(identity: Identity) -> Us:
    return Us(identity, lambda: address_of(identity, port=4433, now=1_700_000_000), RealHost().entropy)


def _of_a_try() -> list[bytes]:
    """The messages of one complete pairing: HELLO, REPLY, and both sides' PROOF."""
    alice, bob = Claimer(CODE, _us(ALICE)), Offerer(CODE, _us(BOB))
    reply = bob.receive(alice.hello)
    assert isinstance(reply, bytes)
    proof = alice.receive(reply)
    assert isinstance(proof, bytes)
    bob.receive(proof)
    return [alice.hello, reply, proof, bob.prove()]


def _from_server() -> list[bytes]:
    payloads = [b"payload", *_of_a_try()]
    return [
        mailbox.Offered(7, 300).encode(),
        *(mailbox.Claimed(1, payload).encode() for payload in payloads),
        *(mailbox.Post(1, payload).encode() for payload in payloads),
        mailbox.Settle(1, mailbox.Outcome.LEFT).encode(),
        mailbox.Settle(0, mailbox.Outcome.WAIT, 60).encode(),
    ]


def _from_client() -> list[bytes]:
    return [
        mailbox.Offer(0, 300).encode(),
        mailbox.Offer(1, 300).encode(),
        mailbox.Claim(1, b"payload").encode(),
        *(mailbox.Post(number, b"payload").encode() for number in (0, 1)),
        *(mailbox.Settle(number, outcome).encode() for number in (0, 1) for outcome in (1, 2, 3, 14)),
    ]


@target(_from_server, RemoteProtocolError, SignalUnsupported, inputs=500)
def frames_of_pairing_to_who_offers(data: bytes) -> None:
    """Whatever a server sends, the offer's replies are valid frames, and nobody is paired without a proof."""
    core = OfferCore(CODE, _us(BOB))
    for now in (0.0, 1.0):
        frame = rendezvous.decode_from_server(data)
        if isinstance(frame, mailbox.Offered | mailbox.Claimed | mailbox.Post | mailbox.Settle):
            for said in core.receive("server", frame, now):
                assert rendezvous.decode_from_client(said.encode()) == said
    assert core.paired is None


@target(_from_client, inputs=3_000)
def frames_of_pairing_to_a_server(data: bytes) -> None:
    """From either side of a try, and from a third client: nothing is raised, and all counts return to zero."""
    core = RendezvousCore()
    clients = []
    for identity in (ALICE, BOB, Identity.from_seed(bytes(32))):
        connection, _ = core.connect(b"n" * 32, 0.0, host="192.0.2.1", version=3, names=["a:1"])
        core.receive(connection, _registration(identity), 0.0)
        clients.append(connection)
    alice, bob, mallory = clients
    core.receive(bob, mailbox.Offer(0, 300).encode(), 1.0)
    core.receive(alice, mailbox.Claim(1, b"hello").encode(), 2.0)
    for number, connection in enumerate((mallory, bob, alice, bob)):
        core.receive(connection, data, 3.0 + number)
    for connection in clients:
        while core.transmit(connection, 10.0) is not None:
            core.written(connection)
        core.handle_timer(connection, 1000.0)
        core.disconnect(connection, 1001.0)
    assert core.statistics().queued == 0
    core.pairing.receive(alice, mailbox.Post(0, b"somebody comes"), 2000.0)
    assert core.statistics().pairing.offers == 0
    assert core.pairing._room.held == 0


@functools.cache
def _registration(identity: Identity) -> bytes:
    return rendezvous.register_3(identity, rendezvous.Challenge(b"n" * 32), b"instance", "a:1").encode()


@target(_of_a_try, RemoteProtocolError, CodeRefused, inputs=80)
def messages_of_pairing_to_who_offers(data: bytes) -> None:
    """As the first message, and as the second one after a valid HELLO."""
    first = Offerer(CODE, _us(BOB))
    try:
        assert isinstance(first.receive(data), bytes)
    except RemoteProtocolError:
        second = Offerer(CODE, _us(BOB))
        second.receive(Claimer(CODE, _us(ALICE)).hello)
        second.receive(data)


@target(_of_a_try, RemoteProtocolError, CodeRefused, inputs=80)
def messages_of_pairing_to_who_claims(data: bytes) -> None:
    Claimer(CODE, _us(ALICE)).receive(data)


@target(lambda: [BrokerMessage(kind, bytes(8), b"x").encode() for kind in Kind], RemoteProtocolError, inputs=10_000)
def messages_of_pairing_by_a_broker(data: bytes) -> None:
    message = BrokerMessage.decode(data)
    assert message.encode() == data


_KEYS: Final = _Keys(bytes(32), b"hello", b"reply")


def _sealed() -> list[bytes]:
    kind = bytes([_Kind.CLAIMERS_PROOF])
    record = address_of(ALICE, port=4433, now=1_700_000_000).to_bytes()
    return [ALICE.sign(b"warpgate-trio pairing v1", kind + _KEYS._binding + record) + record, bytes(64) + record]


@target(_sealed, inputs=3_000)
def what_somebody_seals_who_knows_the_code(data: bytes) -> None:
    """The proof is right and the sealed content arbitrary: it is rejected, or names the peer who signed it."""
    kind = _Kind.CLAIMERS_PROOF
    proof = _KEYS._proof(kind)
    sealed = ChaCha20Poly1305(_KEYS._derive(bytes([kind]) + b"seal", 32)).encrypt(bytes(12), data, proof)
    paired = _KEYS.check(kind, bytes([1, kind]) + proof + sealed)
    assert paired is None or paired.peer_id == ALICE.peer_id


_codes, _change = texts("7-guitar-orbit", "99999 Guit ORBI", "7_guitar_orbot", "12\u2013opal, opera")


@target(_codes, CodeMalformed, inputs=200, by=_change)
def pairing_codes(data: bytes) -> None:
    code = parse_code(text_of(data))
    assert parse_code(str(code)) == code
