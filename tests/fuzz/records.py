"""Addresses, keys, certificates and signals: the data that peers sign and seal."""

from __future__ import annotations

import functools
from ipaddress import ip_address
from typing import Final

import msgspec
from cryptography.hazmat.primitives import serialization
from cryptography.x509 import load_pem_x509_certificate

from tests.fuzz.mutation import mutated_msgpack
from tests.fuzz.registry import target
from tests.identities import ALICE, BOB
from tests.unit.test_plugin_messages import GOLDEN as GOLDEN_MESSAGES
from warpgate_trio.address import AddressInterface, Endpoint, EndpointKind, KeyRecord, PeerAddress, Transport
from warpgate_trio.address.nat_profile import (
    Filtering,
    Mapping,
    NatProfile,
    NatProfiles,
    TransportProfile,
    delta_type,
    describe,
    nat_type,
)
from warpgate_trio.carrier._pinning import certificate_key
from warpgate_trio.errors import (
    AddressError,
    AddressMalformed,
    AddressUnsupported,
    KeyRecordError,
    PeerIdError,
    SealError,
    SignalError,
    SignalMalformed,
)
from warpgate_trio.identity import key_from_peer_id, seal, verify
from warpgate_trio.punch.candidates import Candidate, admit
from warpgate_trio.signal import decode_payload, open_message, seal_message
from warpgate_trio.signal.inbox import Inbox
from warpgate_trio.signal.message import Envelope, Header
from warpgate_trio.signal.mqtt.key_topic import KeyTopic
from warpgate_trio.signal.mqtt.record_upkeep import RecordUpkeep
from warpgate_trio.signal.replays import Moment

NOW: Final = 1_700_000_000.0


# -- addresses ---------------------------------------------------------------------------------------------------------


def _addresses() -> list[PeerAddress]:
    nic = Endpoint.make(transport=Transport.TCP, kind=EndpointKind.NIC, ip="192.168.1.9", port=7000, prefix=24)
    public = Endpoint.make(transport=Transport.UDP, kind=EndpointKind.EXT, ip="203.0.113.9", port=4000, base=0)
    six = Endpoint.make(transport=Transport.UDP, kind=EndpointKind.NIC, ip="2001:db8::9", port=7000, prefix=64)
    profile = NatProfile(
        udp=TransportProfile(mapping=Mapping.ENDPOINT_INDEPENDENT, filtering=Filtering.ADDRESS_DEPENDENT)
    )
    nat = NatProfiles({(None, 4): profile}).to_bytes(interfaces=2)
    common = {"seq": 1, "issued_at": int(NOW), "expires_at": int(NOW) + 3600, "host_salt": bytes(8)}
    return [
        PeerAddress.issue(
            identity,
            **common,  # type: ignore[arg-type]
            host_id=bytes(16),
            signals=["wss://example.org:443", "mqtt://example.org"][:count],
            interfaces=[AddressInterface(1, (nic, public)), AddressInterface(2, (six,))][:count],
            nat=nat if count else None,
            instance=bytes(range(8)) if count else None,
            listens=count == 1,
        )
        for identity in (ALICE, BOB)
        for count in (0, 1, 2)
    ]


_START: Final = 1 + 32 + 64
"""Offset of a record's body, which follows version, key and signature."""


def use_address(address: PeerAddress) -> None:
    """Use an address as a node does before it dials."""
    assert PeerAddress.from_text(address.text).to_bytes() == address.to_bytes()
    assert repr(address)
    assert address.instance is None or len(address.instance) == 8
    assert address.listens in (True, False)
    assert hash(address) == hash(PeerAddress.from_bytes(address.to_bytes()))
    for _, profile in address.nat_profiles:
        use_profile(profile)
    for _, endpoint in address.endpoints():
        assert endpoint.ip.version == endpoint.af
    ours = [endpoint for _, endpoint in address.endpoints()]
    candidates = [Candidate(each.address, each.port) for each in ours]
    admit(candidates, af=4, loopback=False, network_of=None, ours=ours, own=(), same_host=False)


def use_profile(profile: NatProfile) -> None:
    for each in (profile.udp, profile.tcp):
        assert describe(each)
        nat_type(each)
        delta_type(each)
    profile.is_fresh(NOW)


@target(lambda: [each.to_bytes() for each in _addresses()], AddressError, inputs=900)
def address(data: bytes) -> None:
    use_address(PeerAddress.from_bytes(data))


@target(lambda: [each.to_bytes()[_START:] for each in _addresses()], AddressError, inputs=2_000, by=mutated_msgpack)
def address_of_its_author(body: bytes) -> None:
    head = b"\x01" + ALICE.public_key
    use_address(PeerAddress.from_bytes(head + ALICE.sign(b"warpgate-trio address v1", head + body) + body))


@target(lambda: [each.text.encode() for each in _addresses()], AddressError, inputs=10_000)
def address_text(data: bytes) -> None:
    use_address(PeerAddress.from_text(data.decode("utf-8", "surrogateescape")))


@target(lambda: [each.nat for each in _addresses() if each.nat], AddressMalformed, AddressUnsupported, inputs=10_000)
def nat_profile(data: bytes) -> None:
    for _, profile in NatProfiles.from_bytes(data, measured_at=NOW):
        use_profile(profile)


# -- key records ------------------------------------------------------------------------------------------------------


def _key_records() -> list[bytes]:
    return [
        KeyRecord.issue(
            ALICE,
            issued_ms=int(NOW) * 1000,
            signals=["wss://example.org", "mqtt://example.org"][:count],
            instance=bytes(8),
        ).to_bytes()
        for count in (0, 1, 2)
    ]


def use_key_record(record: KeyRecord) -> None:
    """Use a key record as a node does before it sends signals to the servers named in it."""
    assert record.public_key == ALICE.public_key
    assert repr(record)
    assert KeyRecord.from_bytes(record.to_bytes(), of=ALICE.public_key) == record
    record.check_fresh(NOW, seen=int(NOW) * 1000)


@target(_key_records, KeyRecordError, inputs=2_000)
def key_record(data: bytes) -> None:
    use_key_record(KeyRecord.from_bytes(data, of=ALICE.public_key))


_TOPIC = KeyTopic("", ALICE.public_key)


def use_published(data: bytes) -> None:
    """Receive data at the node's own key topic, and at a topic where the node looks a key up."""
    upkeep = RecordUpkeep(_TOPIC)
    upkeep.publish(_key_records()[0], 0.0)
    assert upkeep.transmit(0.0)
    upkeep.receive(data, 1.0)
    good = upkeep.is_good(_TOPIC.open(data))
    assert (upkeep.transmit(1.0) is None) == good


@target(lambda: [_TOPIC.seal(each, bytes(12)) for each in _key_records()], inputs=1_000)
def published_at_a_key_topic(data: bytes) -> None:
    use_published(data)


@target(_key_records, inputs=1_000)
def published_by_who_knows_the_key(record: bytes) -> None:
    use_published(_TOPIC.seal(record, bytes(12)))


@target(lambda: [each[_START:] for each in _key_records()], KeyRecordError, inputs=2_000, by=mutated_msgpack)
def key_record_of_its_author(body: bytes) -> None:
    head = b"\x01" + ALICE.public_key
    signed = head + ALICE.sign(b"warpgate-trio key record v1", head + body) + body
    use_key_record(KeyRecord.from_bytes(signed, of=ALICE.public_key))


# -- keys and certificates ---------------------------------------------------------------------------------------------


@target(lambda: [each.peer_id.encode() for each in (ALICE, BOB)], PeerIdError, inputs=20_000)
def peer_id(data: bytes) -> None:
    assert len(key_from_peer_id(data.decode("utf-8", "surrogateescape"))) == 32


@target(lambda: [ALICE.public_key + ALICE.sign(b"test", b"x")], inputs=8_000)
def signature(data: bytes) -> None:
    assert not verify(data[:32], data[32:], b"test", b"x") or data == ALICE.public_key + ALICE.sign(b"test", b"x")


@target(lambda: [seal(ALICE.sealing_key, b"plain", info=b"test")], SealError, inputs=6_000)
def sealed_blob(data: bytes) -> None:
    ALICE.open_sealed(data, info=b"test")


@target(lambda: [ALICE.sealing_key], SealError, inputs=8_000)
def sealing_key(data: bytes) -> None:
    seal(data, b"plain", info=b"test")


@target(
    lambda: [
        load_pem_x509_certificate(each.certificate_pem()).public_bytes(serialization.Encoding.DER)
        for each in (ALICE, BOB)
    ],
    inputs=10_000,
)
def certificate(data: bytes) -> None:
    key = certificate_key(data)
    assert key is None or len(key) == 32


# -- signals -----------------------------------------------------------------------------------------------------------

_SIGNAL: Final = b"warpgate-trio signal v1"


def _signals() -> list[bytes]:
    theirs, ours = (next(each for each in _addresses() if each.public_key == who.public_key) for who in (ALICE, BOB))
    return [
        seal_message(
            ALICE,
            ours,
            theirs,
            wire_name=f"{owner}.{type(message).__name__}",
            payload=message,
            message_id=bytes([number]) * 16,
            session=b"s" * 16,
            attempt=None if number % 2 else b"a" * 16,
            instance=None if number % 2 else bytes(8),
            time_ms=int(NOW * 1000),
        )
        for number, (owner, message, _) in enumerate(GOLDEN_MESSAGES)
    ]


def take_envelope(envelope: Envelope) -> None:
    """As the dispatch does: check whether the signal is fresh, then decode its payload."""
    verdict = type(Inbox(Moment(NOW - 60, 0.0)).check(envelope.header, Moment(NOW, 60.0))).__name__
    assert repr(envelope.header)
    use_address(envelope.sender_address)
    for owner, message, _ in GOLDEN_MESSAGES:
        if verdict == "Accepted" and envelope.header.type == f"{owner}.{type(message).__name__}":
            decode_payload(envelope, type(message))


@target(_signals, SignalError, inputs=5_000)
def signal(data: bytes) -> None:
    take_envelope(open_message(BOB, data))


@target(
    lambda: [BOB.open_sealed(blob[1:], info=_SIGNAL)[64:] for blob in _signals()],
    SignalError,
    inputs=1_500,
    by=mutated_msgpack,
)
def signal_of_its_author(body: bytes) -> None:
    plaintext = ALICE.sign(_SIGNAL, body) + body
    take_envelope(open_message(BOB, b"\x01" + seal(BOB.sealing_key, plaintext, info=_SIGNAL)))


@target(
    lambda: [bytes.fromhex(golden) for _, _, golden in GOLDEN_MESSAGES],
    SignalMalformed,
    inputs=5_000,
    by=mutated_msgpack,
)
def payloads(data: bytes) -> None:
    header = Header(
        type="x.X", sender=bytes(32), receiver=bytes(32), message_id=bytes(16), session=bytes(16), time_ms=0
    )
    failures = 0
    for _, message, _ in GOLDEN_MESSAGES:
        try:
            decoded = decode_payload(Envelope(header, _addresses_once()[0], data), type(message))
        except SignalMalformed:
            failures += 1
        else:
            assert repr(decoded)
            msgspec.msgpack.encode(decoded)
            candidates = getattr(decoded, "candidates", ())
            for af in (4, 6):
                where = ip_address("192.168.1.1")
                admit(candidates, af=af, loopback=False, network_of=where, ours=(), own=(), same_host=False)
    assert failures <= len(GOLDEN_MESSAGES)


_addresses_once = functools.cache(_addresses)
