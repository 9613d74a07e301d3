"""The packets of connectivity checks: golden bytes, which key belongs to whom, and hostile bytes."""

from __future__ import annotations

import hmac

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from warpgate_trio.punch.probe import MAC_LENGTH, MAX_PROBE, SECRET_LENGTH, Probe, ProbeCodec, ProbeKind
from warpgate_trio.sockaddr import TransportAddress
from warpgate_trio.stun.codec import BINDING, SOFTWARE, XOR_MAPPED_ADDRESS, MessageClass, encode, looks_like_stun

SECRET = bytes(range(SECRET_LENGTH))
TRANSACTION = bytes(range(100, 112))
MAPPED: TransportAddress = ("203.0.113.1", 1000)
MAPPED_V6: TransportAddress = ("2001:db8::1", 1000)

INITIATOR = ProbeCodec(SECRET, initiator=True)
RESPONDER = ProbeCodec(SECRET, initiator=False)
KEYS = {
    codec: hmac.digest(SECRET, b"warpgate-trio probe v1 " + side, "sha256")
    for codec, side in ((INITIATOR, b"initiator"), (RESPONDER, b"responder"))
}
PACKETS = {
    "request": INITIATOR.request(TRANSACTION),
    "response": INITIATOR.response(TRANSACTION, MAPPED),
    "response-v6": INITIATOR.response(TRANSACTION, MAPPED_V6),
}


def reference(kind: bytes, attributes: bytes, key: bytes) -> bytes:
    """The packet of RFC 8489 §14.6, without the project's codec: the header's length already includes the MAC."""
    header = kind + (len(attributes) + 4 + MAC_LENGTH).to_bytes(2, "big") + b"\x21\x12\xa4\x42" + TRANSACTION
    mac = hmac.digest(key, header + attributes, "sha256")[:MAC_LENGTH]
    return header + attributes + b"\x00\x1c" + MAC_LENGTH.to_bytes(2, "big") + mac


@pytest.mark.parametrize("codec", [INITIATOR, RESPONDER], ids=["initiator", "responder"])
def test_golden_bytes(codec: ProbeCodec) -> None:
    assert codec.request(TRANSACTION) == reference(b"\x00\x01", b"", KEYS[codec])
    # 1000 ^ 0x2112, 203.0.113.1 ^ the cookie; an IPv6 address also ^ the transaction id.
    v4 = bytes.fromhex("0020 0008 0001 22fa ea12d543")
    assert codec.response(TRANSACTION, MAPPED) == reference(b"\x01\x01", v4, KEYS[codec])
    xored = int.from_bytes(b"\x21\x12\xa4\x42" + TRANSACTION, "big") ^ (0x20010DB8 << 96 | 1)
    v6 = bytes.fromhex("0020 0014 0002 22fa") + xored.to_bytes(16, "big")
    assert codec.response(TRANSACTION, MAPPED_V6) == reference(b"\x01\x01", v6, KEYS[codec])


def test_bytes_on_the_wire_stay_what_they_are() -> None:
    """Different releases must understand each other."""
    assert PACKETS["request"].hex() == (
        "000100142112a442" + TRANSACTION.hex() + "001c0010" + "497c10c4acc56fd07c07a38c6d323dda"
    )


def test_sizes() -> None:
    assert {name: len(data) for name, data in PACKETS.items()} == {"request": 40, "response": 52, "response-v6": 64}
    headers = {"response": 28, "response-v6": 48}  # IP and UDP
    for name, header in headers.items():
        assert (len(PACKETS[name]) + header) / (len(PACKETS["request"]) + header) <= 4 / 3
    assert max(map(len, PACKETS.values())) <= MAX_PROBE


def test_the_other_side_reads_it() -> None:
    assert RESPONDER.read(PACKETS["request"]) == Probe(ProbeKind.REQUEST, TRANSACTION, None)
    assert RESPONDER.read(PACKETS["response"]) == Probe(ProbeKind.RESPONSE, TRANSACTION, MAPPED)
    assert RESPONDER.read(PACKETS["response-v6"]) == Probe(ProbeKind.RESPONSE, TRANSACTION, MAPPED_V6)
    assert INITIATOR.read(RESPONDER.request(TRANSACTION)) == Probe(ProbeKind.REQUEST, TRANSACTION, None)


@pytest.mark.parametrize("name", PACKETS)
def test_each_direction_has_a_key_of_its_own(name: str) -> None:
    assert INITIATOR.read(PACKETS[name]) is None
    assert ProbeCodec(bytes(SECRET_LENGTH), initiator=False).read(PACKETS[name]) is None


def test_it_looks_like_stun_to_who_sorts_by_the_first_byte() -> None:
    assert all(map(looks_like_stun, PACKETS.values()))


def test_a_scope_is_our_own_affair() -> None:
    data = RESPONDER.response(TRANSACTION, ("fe80::1%2", 5))
    assert INITIATOR.read(data) == Probe(ProbeKind.RESPONSE, TRANSACTION, ("fe80::1", 5))


@pytest.mark.parametrize("length", [0, SECRET_LENGTH - 1, SECRET_LENGTH + 1])
def test_a_secret_has_its_length(length: int) -> None:
    with pytest.raises(ValueError, match=f"not {length}"):
        ProbeCodec(bytes(length), initiator=True)


@pytest.mark.parametrize("name", PACKETS)
def test_every_bit_counts(name: str) -> None:
    data = PACKETS[name]
    for bit in range(8 * len(data)):
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        assert RESPONDER.read(bytes(flipped)) is None, bit


@pytest.mark.parametrize("name", PACKETS)
def test_every_byte_counts(name: str) -> None:
    data = PACKETS[name]
    for length in range(len(data)):
        assert RESPONDER.read(data[:length]) is None, length
    for more in (b"\0", b"\0" * 4, data):
        assert RESPONDER.read(data + more) is None


def test_a_short_mac_is_none() -> None:
    """RFC 8489 allows a truncation to 16 bytes, and no shorter MAC."""
    key = KEYS[INITIATOR]
    full = encode(BINDING, MessageClass.REQUEST, TRANSACTION, integrity_sha256=key, sha256_length=32)
    assert RESPONDER.read(full) == Probe(ProbeKind.REQUEST, TRANSACTION, None)
    short = bytearray(full[: 20 + 4 + 12])
    short[2:4] = (4 + 12).to_bytes(2, "big")
    short[22:24] = (12).to_bytes(2, "big")
    mac = hmac.digest(key, bytes(short[:20]), "sha256")
    short[24:] = mac[:12]
    assert RESPONDER.read(bytes(short)) is None


def test_other_authentic_messages_are_no_probes() -> None:
    key = KEYS[INITIATOR]
    for method, kind in ((BINDING, MessageClass.INDICATION), (BINDING, MessageClass.ERROR), (3, MessageClass.REQUEST)):
        data = encode(method, kind, TRANSACTION, integrity_sha256=key, sha256_length=MAC_LENGTH)
        assert RESPONDER.read(data) is None
    assert RESPONDER.read(encode(BINDING, MessageClass.REQUEST, TRANSACTION)) is None  # without a MAC


def test_an_answer_need_not_say_where_it_saw_us() -> None:
    data = encode(BINDING, MessageClass.SUCCESS, TRANSACTION, integrity_sha256=KEYS[INITIATOR], sha256_length=16)
    assert RESPONDER.read(data) == Probe(ProbeKind.RESPONSE, TRANSACTION, None)


def test_what_a_later_release_may_add() -> None:
    """More attributes, up to a bound."""

    def extended(length: int) -> bytes:
        attributes = [XOR_MAPPED_ADDRESS(MAPPED), SOFTWARE("x" * length)]
        key = KEYS[INITIATOR]
        return encode(
            BINDING, MessageClass.SUCCESS, TRANSACTION, attributes, integrity_sha256=key, sha256_length=MAC_LENGTH
        )

    longest = MAX_PROBE - len(PACKETS["response"]) - 4
    assert len(extended(longest)) == MAX_PROBE
    assert RESPONDER.read(extended(longest)) == Probe(ProbeKind.RESPONSE, TRANSACTION, MAPPED)
    assert RESPONDER.read(extended(longest + 1)) is None


@settings(max_examples=100)
@given(data=st.binary(max_size=300))
def test_bytes_of_strangers_are_none(data: bytes) -> None:
    assert RESPONDER.read(data) is None


@given(secret=st.binary(min_size=16, max_size=16), transaction=st.binary(min_size=12, max_size=12))
def test_what_one_says_the_other_reads(secret: bytes, transaction: bytes) -> None:
    one, other = ProbeCodec(secret, initiator=True), ProbeCodec(secret, initiator=False)
    for sender, reader in ((one, other), (other, one)):
        assert reader.read(sender.request(transaction)) == Probe(ProbeKind.REQUEST, transaction, None)
        assert reader.read(sender.response(transaction, MAPPED)) == Probe(ProbeKind.RESPONSE, transaction, MAPPED)
        assert sender.read(sender.request(transaction)) is None
