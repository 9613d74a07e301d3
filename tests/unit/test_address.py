from __future__ import annotations

import base64
import copy
import dataclasses
import hashlib
import pickle
from collections.abc import Iterator
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Any, cast

import msgspec
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.identities import ALICE, BOB
from warpgate_trio.address import (
    MAX_RECORD,
    MAX_TEXT,
    AddressInterface,
    Endpoint,
    EndpointKind,
    PeerAddress,
    Transport,
    describe_interfaces,
    is_public,
)
from warpgate_trio.errors import (
    AddressError,
    AddressExpired,
    AddressForged,
    AddressMalformed,
    AddressNotYetValid,
    AddressUnsupported,
)
from warpgate_trio.host import Interface, InterfaceAddress, host_id
from warpgate_trio.identity import Identity

NOW = 1_790_000_000
DAY = 86_400
SALT = b"\1" * 8
HOST_ID = b"\2" * 16
NIC, EXT, MAPPED = EndpointKind
TCP, UDP = Transport

quick = settings(max_examples=40, deadline=None)


def issue(identity: Identity = ALICE, /, **changes: Any) -> PeerAddress:
    values: dict[str, Any] = {
        "seq": 7,
        "issued_at": NOW,
        "expires_at": NOW + DAY,
        "host_salt": SALT,
        "host_id": HOST_ID,
    }
    return PeerAddress.issue(identity, **(values | changes))


def tcp(kind: EndpointKind, ip: str, **more: int) -> Endpoint:
    return Endpoint.make(transport=TCP, kind=kind, ip=ip, port=more.pop("port", 4433), **more)


INSTANCE = bytes(range(1, 9))
GOLDEN = issue(
    signals=["wss://s.example"],
    interfaces=[
        AddressInterface(
            2,
            (
                tcp(NIC, "192.168.1.5", prefix=24),
                Endpoint.make(transport=UDP, kind=EXT, ip="2001:db8::5", port=40000, base=0, observed_at=NOW),
            ),
        )
    ],
    nat=b"\3\4",
    relays=["wss://r.example"],
    capabilities=["x"],
)


class TestGolden:
    def test_record(self) -> None:
        assert GOLDEN.to_bytes() == bytes.fromhex(
            "01"
            # the key
            "03a107bff3ce10be1d70dd18e74bc09967e4d6309ba50d5f1ddc8664125531b8"
            # the signature
            "6f65bd9a5fcdbd5e7992ca23ce46830d515ccccc7171f8698470c17713701117"
            "8dd5dbe97c82640308baeec45b71baa63e652cebeb1b4ca054619f600da15102"
            # sealing key, seq
            "9bc4205ef9d37fcab6427a783a6ec8606ae37f14dc7fd35ea2d44785e82d3079e5631007"
            # issued, expires, salt, host id
            "ce6ab13b80ce6ab28d00c4080101010101010101c41002020202020202020202020202020202"
            # signals
            "91af7773733a2f2f732e6578616d706c65"
            # interfaces
            "919202"
            "92970101c404c0a8010518cd1151c0c0"
            "970202c41020010db8000000000000000000000005c0cd9c4000ce6ab13b80"
            # nat, relays, capabilities
            "c402030491af7773733a2f2f722e6578616d706c6591a178"
        )

    def test_text(self) -> None:
        assert GOLDEN.text == (
            "wg1kk7sXQEDoQe_884Qvh1w3RjnS8CZZ-TWMJulDV8d3IZkElUxuG9lvZpfzb1eeZLKI85Ggw1RXMzMcXH4aYRwwXcTcBEXjdXb6XyCZAMI"
            "uu7EW3G6pj5lLOvrG0ygVGGfYA2hUQKbxCBe-dN_yrZCeng6bshgauN_FNx_016i1EeF6C0weeVjEAfOarE7gM5qso0AxAgBAQEBAQEBAcQQ"
            "AgICAgICAgICAgICAgICApGvd3NzOi8vcy5leGFtcGxlkZICkpcBAcQEwKgBBRjNEVHAwJcCAsQQIAENuAAAAAAAAAAAAAAABcDNnEAAzmq"
            "xO4DEAgMEka93c3M6Ly9yLmV4YW1wbGWRoXg"
        )

    def test_which_process_it_is_comes_behind_what_older_releases_read(self) -> None:
        named = issue(instance=INSTANCE, listens=False)
        old, new = (msgspec.msgpack.decode(each.to_bytes()[97:]) for each in (issue(), named))
        assert new == [*old, INSTANCE, False]
        assert len(old) == 11
        read = PeerAddress.from_text(named.text)
        assert (read.instance, read.listens) == (INSTANCE, False)
        assert (GOLDEN.instance, GOLDEN.listens) == (None, True)  # as older releases issue it

    @pytest.mark.parametrize("tail", [[b"7 bytes"], [b"9 bytes.."], ["a string"], [INSTANCE, 1], [INSTANCE, None]])
    def test_which_process_it_is_is_bounded(self, tail: list[object]) -> None:
        with pytest.raises(AddressMalformed):
            PeerAddress.from_bytes(signed(body(*tail)))

    def test_reads_back(self) -> None:
        read = PeerAddress.from_text(GOLDEN.text)
        assert read == GOLDEN
        assert (read.public_key, read.peer_id, read.sealing_key) == (ALICE.public_key, ALICE.peer_id, ALICE.sealing_key)
        assert (read.seq, read.issued_at, read.expires_at) == (7, NOW, NOW + DAY)
        assert (read.host_salt, read.host_id, read.nat) == (SALT, HOST_ID, b"\3\4")
        assert (read.signals, read.relays, read.capabilities) == (("wss://s.example",), ("wss://r.example",), ("x",))
        ((first, nic), (second, ext)) = read.endpoints()
        assert (first, second) == (2, 2)
        assert (nic.transport, nic.kind, nic.ip, nic.af) == (TCP, NIC, IPv4Address("192.168.1.5"), 4)
        assert (nic.prefix, nic.port, nic.base, nic.observed_at) == (24, 4433, None, None)
        assert (ext.transport, ext.kind, ext.ip, ext.af) == (UDP, EXT, IPv6Address("2001:db8::5"), 6)
        assert (ext.prefix, ext.port, ext.base, ext.observed_at) == (None, 40000, 0, NOW)


class TestPeerAddress:
    def test_a_usual_address_is_short_enough_to_paste(self) -> None:
        """Two dual-stack interfaces, 4 NIC and 4 EXT endpoints with every field set, 2 URLs of 30 characters."""
        interfaces = [
            AddressInterface(
                index,
                (
                    tcp(NIC, f"192.168.{index}.55", prefix=24, port=40123),
                    tcp(EXT, f"198.51.100.{index}", base=0, observed_at=NOW, port=40123),
                    tcp(NIC, f"2001:db8:1:2:a:b:c:{index}", prefix=64, port=40123),
                    tcp(EXT, f"2001:db8:1:2:a:b:c:{index}", base=2, observed_at=NOW, port=40123),
                ),
            )
            for index in (2, 3)
        ]
        signals = ["wss://signal.example.org/abcde", "wss://signal.example.net/abcde"]
        assert {len(url) for url in signals} == {30}
        assert len(issue(seq=NOW, signals=signals, interfaces=interfaces).text) == 585  # the bound is 600

    def test_equality_and_hash_are_of_the_bytes(self) -> None:
        assert issue() == issue()
        assert len({issue(), issue(), issue(seq=8)}) == 2
        assert issue() != issue(seq=8)
        assert issue() != cast(object, issue().to_bytes())

    def test_copies_are_checked_again(self) -> None:
        assert pickle.loads(pickle.dumps(GOLDEN)) == copy.deepcopy(GOLDEN) == GOLDEN
        forged = pickle.dumps(GOLDEN).replace(b"wss://s.example", b"wss://e.example")
        with pytest.raises(AddressForged):
            pickle.loads(forged)

    def test_is_immutable(self) -> None:
        with pytest.raises(dataclasses.FrozenInstanceError):
            GOLDEN.seq = 8  # type: ignore[misc]
        with pytest.raises(dataclasses.FrozenInstanceError):
            del GOLDEN.seq

    def test_shown(self) -> None:
        assert repr(GOLDEN) == f"<PeerAddress {ALICE.peer_id} seq=7 endpoints=2 signals=1>"
        assert str(GOLDEN) == GOLDEN.text
        assert [str(endpoint) for _, endpoint in GOLDEN.endpoints()] == [
            "nic tcp 192.168.1.5:4433",
            "ext udp [2001:db8::5]:40000",
        ]

    @pytest.mark.parametrize(
        ("now", "error"),
        [
            (NOW - 301, AddressNotYetValid),
            (NOW - 300, None),
            (NOW + DAY, None),
            (NOW + DAY + 299.9, None),
            (NOW + DAY + 300, AddressExpired),
        ],
    )
    def test_freshness(self, now: float, error: type[AddressError] | None) -> None:
        if error is None:
            GOLDEN.check_fresh(now)
        else:
            with pytest.raises(error, match=ALICE.peer_id):
                GOLDEN.check_fresh(now)

    def test_leeway(self) -> None:
        GOLDEN.check_fresh(NOW, leeway=0.0)
        with pytest.raises(AddressExpired):
            GOLDEN.check_fresh(NOW + DAY, leeway=0.0)

    def test_same_host(self) -> None:
        class Machine:
            def machine_fingerprint(self) -> bytes:
                return b"\5" * 32

        machine = cast(Any, Machine())
        theirs = issue(host_id=host_id(b"\5" * 32, SALT, ALICE.public_key))
        assert theirs.is_same_host(machine)
        assert not issue().is_same_host(machine)
        # A host id that is copied into another peer's record, with its salt, does not match.
        assert theirs.peer_id == ALICE.peer_id != BOB.peer_id
        assert not issue(BOB, host_salt=SALT, host_id=theirs.host_id).is_same_host(machine)
        # Nor does a host id of earlier releases, which did not depend on the key and could be copied.
        assert not issue(host_id=host_id(b"\5" * 32, SALT)).is_same_host(machine)


# ---------------------------------------------------------------------------------------------- records of strangers

FIELDS = (
    "sealing_key",
    "seq",
    "issued_at",
    "expires_at",
    "host_salt",
    "host_id",
    "signals",
    "interfaces",
    "nat",
    "relays",
    "capabilities",
)
ENDPOINT = [1, 1, b"\xc0\x00\x02\x01", 24, 4433, None, None]


def body(*more: object, **changes: object) -> bytes:
    values: dict[str, object] = {
        "sealing_key": ALICE.sealing_key,
        "seq": 7,
        "issued_at": NOW,
        "expires_at": NOW + DAY,
        "host_salt": SALT,
        "host_id": HOST_ID,
        "signals": [],
        "interfaces": [],
        "nat": None,
        "relays": [],
        "capabilities": [],
    }
    assert set(changes) <= set(values)
    return msgspec.msgpack.encode([*(values | changes).values(), *more])


def signed(data: bytes, *, version: int = 1, identity: Identity = ALICE) -> bytes:
    """A record with any body, validly signed."""
    head = bytes([version]) + identity.public_key
    return head + identity.sign(b"warpgate-trio address v1", head + data) + data


def with_endpoints(*endpoints: object) -> bytes:
    return signed(body(interfaces=[[1, list(endpoints)]]))


class TestFromBytes:
    def test_what_we_sign_here_is_what_is_issued(self) -> None:
        assert PeerAddress.from_bytes(signed(body())) == issue()

    def test_takes_any_bytes_like(self) -> None:
        assert PeerAddress.from_bytes(cast(Any, bytearray(GOLDEN.to_bytes()))) == GOLDEN

    def test_size_is_checked_first(self) -> None:
        with pytest.raises(AddressMalformed, match=f"has {MAX_RECORD + 1} bytes"):
            PeerAddress.from_bytes(b"\xff" * (MAX_RECORD + 1))

    def test_the_largest_record(self) -> None:
        # Trailing fields are ignored, so they can fill a record up to the last byte.
        short = signed(body(INSTANCE, True, b""))
        filled = signed(
            body(INSTANCE, True, bytes(MAX_RECORD - len(short) - 1))
        )  # 1: the longer field's own length takes one more byte
        assert len(filled) == MAX_RECORD
        assert PeerAddress.from_bytes(filled).to_bytes() == filled
        assert len(PeerAddress.from_bytes(filled).text) <= MAX_TEXT

    @pytest.mark.parametrize("version", [0, 2, 255])
    def test_version_is_checked_before_the_signature(self, version: int) -> None:
        with pytest.raises(AddressUnsupported, match=f"version {version}"):
            PeerAddress.from_bytes(bytes([version]) + GOLDEN.to_bytes()[1:])

    def test_signature_is_checked_before_the_body(self) -> None:
        with pytest.raises(AddressForged):
            PeerAddress.from_bytes(signed(body())[:97] + b"no msgpack")

    @pytest.mark.parametrize("length", [1, 33, 96, 97])
    def test_too_short_for_a_signature(self, length: int) -> None:
        with pytest.raises(AddressMalformed, match=f"ends after {length} bytes"):
            PeerAddress.from_bytes(GOLDEN.to_bytes()[:length])

    def test_empty(self) -> None:
        with pytest.raises(AddressMalformed, match="empty"):
            PeerAddress.from_bytes(b"")

    def test_every_byte_is_signed(self) -> None:
        record = GOLDEN.to_bytes()
        for position in range(len(record)):
            with pytest.raises(AddressForged if position else AddressUnsupported):
                PeerAddress.from_bytes(record[:position] + bytes([record[position] ^ 4]) + record[position + 1 :])

    def test_signature_of_another_key_or_purpose(self) -> None:
        record = GOLDEN.to_bytes()
        with pytest.raises(AddressForged):
            PeerAddress.from_bytes(record[:1] + BOB.public_key + record[33:])
        other = ALICE.sign(b"warpgate-trio signal v1", record[:33] + record[97:])
        with pytest.raises(AddressForged):
            PeerAddress.from_bytes(record[:33] + other + record[97:])

    @pytest.mark.parametrize(
        "changes",
        [
            {"sealing_key": bytes(31)},
            {"sealing_key": bytes(33)},
            {"seq": -1},
            {"seq": 2**63},
            {"seq": 1.0},
            {"seq": True},
            {"issued_at": -1},
            {"expires_at": 253_402_300_800},
            {"expires_at": NOW},
            {"issued_at": NOW + DAY + 1},
            {"host_salt": bytes(7)},
            {"host_salt": bytes(9)},
            {"host_id": bytes(15)},
            {"host_id": bytes(17)},
            {"signals": ["ws://a"] * 9},
            {"signals": ["w" * 257]},
            {"signals": [""]},
            {"signals": ["ws://a b"]},
            {"signals": ["ws://a\n"]},
            {"signals": ["ws://\x1b[2J"]},
            {"signals": ["ws://\u00e4"]},
            {"signals": [b"ws://a"]},
            {"relays": ["ws://a"] * 9},
            {"relays": ["w" * 257]},
            {"capabilities": ["a"] * 17},
            {"capabilities": ["a" * 65]},
            {"capabilities": [""]},
            {"nat": bytes(513)},
            {"nat": "text"},
            {"interfaces": [[index, []] for index in range(17)]},
            {"interfaces": [[1, [ENDPOINT] * 17]]},
            {"interfaces": [[1, []], [1, []]]},
            {"interfaces": [[-1, []]]},
            {"interfaces": [[2**32, []]]},
            {"interfaces": [[1]]},
            {"interfaces": {}},
        ],
    )
    def test_limits(self, changes: dict[str, object]) -> None:
        with pytest.raises(AddressMalformed):
            PeerAddress.from_bytes(signed(body(**changes)))

    @pytest.mark.parametrize(
        "changes",
        [
            {"seq": 2**63 - 1},
            {"issued_at": 0, "expires_at": 253_402_300_799},
            {"signals": ["w" * 256] * 2},
            {"signals": ["w"] * 8, "relays": ["w"] * 8},
            {"capabilities": ["a" * 64] * 16},
            {"nat": bytes(512)},
            {"interfaces": [[index, []] for index in range(16)]},
            {"interfaces": [[2**32 - 1, [ENDPOINT] * 16]]},
        ],
    )
    def test_at_the_limits(self, changes: dict[str, object]) -> None:
        assert PeerAddress.from_bytes(signed(body(**changes))).to_bytes() == signed(body(**changes))

    @pytest.mark.parametrize(
        ("position", "value"),
        [
            (2, bytes(3)),
            (2, bytes(5)),
            (2, bytes(10) + b"\xff\xff\x7f\x00\x00\x01"),  # ::ffff:127.0.0.1
            (3, -1),
            (3, 33),
            (4, 0),
            (4, 65536),
            (4, -1),
            (4, None),
            (5, 0),  # a NIC endpoint is its own base
            (6, -1),
            (6, 253_402_300_800),
        ],
    )
    def test_endpoint_limits(self, position: int, value: object) -> None:
        with pytest.raises(AddressMalformed):
            PeerAddress.from_bytes(with_endpoints([*ENDPOINT[:position], value, *ENDPOINT[position + 1 :]]))

    @pytest.mark.parametrize("prefix", [0, 128])
    def test_prefix_is_within_its_family(self, prefix: int) -> None:
        PeerAddress.from_bytes(with_endpoints([1, 1, bytes(15) + b"\1", prefix, 1, None, None]))
        with pytest.raises(AddressMalformed, match="IPv6 is 0 to 128"):
            PeerAddress.from_bytes(with_endpoints([1, 1, bytes(15) + b"\1", 129, 1, None, None]))

    @pytest.mark.parametrize(("base", "reason"), [(2, "does not exist"), (1, "not an interface's own"), (-1, "base")])
    def test_base_is_an_endpoint_of_the_interface_itself(self, base: int, reason: str) -> None:
        with pytest.raises(AddressMalformed, match=reason):
            PeerAddress.from_bytes(with_endpoints(ENDPOINT, [1, 2, b"\xc6\x33\x64\x01", None, 4433, base, None]))

    def test_trailing_fields_are_ignored_and_kept(self) -> None:
        record = signed(
            body(INSTANCE, False, {"a": 1}, "later", interfaces=[[1, [[*ENDPOINT, "later", [1]]], "later"]])
        )
        address = PeerAddress.from_bytes(record)
        assert [endpoint.port for _, endpoint in address.endpoints()] == [4433]
        assert address.to_bytes() == record

    def test_unknown_kinds_and_transports_are_skipped(self) -> None:
        strange = [1, 9, "whatever shape", {"port": 0}]
        quic = [200, 1, b"\xc0\x00\x02\x01", 24, 4433, None, None]
        record = with_endpoints(
            strange,
            ENDPOINT,
            quic,
            [1, 2, b"\xc6\x33\x64\x01", None, 1001, 1, None],
            [1, 2, b"\xc6\x33\x64\x01", None, 1002, 2, None],
        )
        address = PeerAddress.from_bytes(record)
        # `base` is an index among the endpoints that were kept, and is None where its endpoint was skipped.
        assert [(each.port, each.base) for _, each in address.endpoints()] == [(4433, None), (1001, 0), (1002, None)]
        assert address.to_bytes() == record

    @pytest.mark.parametrize("endpoint", [[], [1], ["tcp", 1], 5, None, {}])
    def test_what_is_no_endpoint_of_any_kind(self, endpoint: object) -> None:
        with pytest.raises(AddressMalformed):
            PeerAddress.from_bytes(with_endpoints(endpoint))

    @pytest.mark.parametrize(
        "data",
        [
            body()[:-1],
            body() + b"\0",
            b"\xc0",
            b"\xc1",
            b"\x80",
            b"\x90",
            b"\xdd\xff\xff\xff\xff",
            b"\x91" * 1900,
            body().replace(b"\xc4\x10" + HOST_ID, b"\xb0" + HOST_ID),  # text for bytes
        ],
    )
    def test_what_is_no_body(self, data: bytes) -> None:
        with pytest.raises(AddressMalformed):
            PeerAddress.from_bytes(signed(data))

    def test_texts_that_are_not_utf_8(self) -> None:
        data = body(signals=["XX"]).replace(b"\xa2XX", b"\xa2\xff\xfe")
        with pytest.raises(AddressMalformed):
            PeerAddress.from_bytes(signed(data))

    def test_deep_nesting_in_an_ignored_field(self) -> None:
        data = body(0)[:-1] + b"\x91" * 1500 + b"\0"
        try:  # Python 3.11 counts the nesting against its recursion limit; later versions do not
            address = PeerAddress.from_bytes(signed(data))
        except AddressMalformed:
            return
        assert address.seq == 7

    @quick
    @given(st.binary(max_size=300))
    @example(b"\1" + bytes(96) + b"\x90")
    def test_hostile_bytes(self, data: bytes) -> None:
        with pytest.raises(AddressError):
            PeerAddress.from_bytes(data)

    @quick
    @given(data=st.data())
    def test_hostile_bodies_of_honest_keys(self, data: st.DataObject) -> None:
        good = GOLDEN.to_bytes()[97:]
        bad = bytearray(good)
        for _ in range(data.draw(st.integers(1, 3))):
            bad[data.draw(st.integers(0, len(good) - 1))] = data.draw(st.integers(0, 255))
        record = signed(bytes(bad))
        try:
            address = PeerAddress.from_bytes(record)
        except AddressMalformed:
            return
        assert address.to_bytes() == record
        for _, endpoint in address.endpoints():
            assert 1 <= endpoint.port <= 65535
            assert str(endpoint)


endpoints = st.builds(
    Endpoint.make,
    transport=st.sampled_from(Transport),
    kind=st.just(NIC),
    ip=st.builds(IPv4Address, st.integers(0, 2**32 - 1)) | st.builds(IPv6Address, st.integers(2**64, 2**128 - 1)),
    port=st.integers(1, 65535),
    prefix=st.none() | st.integers(0, 32),
    observed_at=st.none() | st.integers(0, 2**32),
)
urls = st.lists(st.text("abc:/.%?&=!~", min_size=1, max_size=30), max_size=8)


@quick
@given(
    seq=st.integers(0, 2**63 - 1),
    signals=urls,
    relays=urls,
    nat=st.none() | st.binary(max_size=100),
    interfaces=st.dictionaries(st.integers(0, 2**32 - 1), st.lists(endpoints, max_size=4), max_size=3),
    wrap=st.integers(20, 100),
)
def test_round_trip(
    seq: int,
    signals: list[str],
    relays: list[str],
    nat: bytes | None,
    interfaces: dict[int, list[Endpoint]],
    wrap: int,
) -> None:
    described = tuple(AddressInterface(index, tuple(each)) for index, each in interfaces.items())
    address = issue(seq=seq, signals=signals, relays=relays, nat=nat, interfaces=described)
    assert PeerAddress.from_bytes(address.to_bytes()) == address
    lines = [address.text[start : start + wrap] for start in range(0, len(address.text), wrap)]
    read = PeerAddress.from_text("\r\n".join(lines))
    assert read == address
    assert (read.seq, read.signals, read.relays, read.nat) == (seq, tuple(signals), tuple(relays), nat)
    assert read.interfaces == described


class TestIssue:
    """A record that a reader would reject is not issued."""

    @pytest.mark.parametrize(
        "changes",
        [
            {"seq": -1},
            {"seq": 2**64},
            {"seq": 1.5},
            {"expires_at": NOW},
            {"host_salt": b""},
            {"host_id": b""},
            {"signals": ["ws://a"] * 9},
            {"signals": ["\ud800"]},
            {"signals": "ws://a.example"},  # a string in place of a list of strings
            {"nat": bytes(513)},
            {"relays": ["w" * 256] * 8},  # each URL is within its limit, but the record is not
            {"interfaces": [AddressInterface(1, ()), AddressInterface(1, ())]},
            {"interfaces": [AddressInterface(1, (Endpoint(TCP, NIC, b"", None, 1, None, None),))]},
        ],
    )
    def test_limits(self, changes: dict[str, object]) -> None:
        assert issubclass(AddressMalformed, ValueError)
        with pytest.raises(AddressMalformed):
            issue(**changes)

    @pytest.mark.parametrize(
        "changes",
        [
            {"ip": "192.0.2.300"},
            {"ip": "::ffff:192.0.2.1"},
            {"port": 0},
            {"port": 65536},
            {"prefix": 33},
            {"base": 0},
            {"base": -1, "kind": EXT},
            {"observed_at": -1},
        ],
    )
    def test_endpoint_limits(self, changes: dict[str, Any]) -> None:
        values: dict[str, Any] = {"transport": TCP, "kind": NIC, "ip": "192.0.2.1", "port": 4433}
        with pytest.raises(ValueError, match=r"\w"):
            Endpoint.make(**(values | changes))


class TestText:
    @pytest.mark.parametrize("wrapped", [" {} ", "\n{}\n", "\t{}", "\u00a0{}\u2028"])
    def test_white_space_around(self, wrapped: str) -> None:
        assert PeerAddress.from_text(wrapped.format(GOLDEN.text)) == GOLDEN

    def test_wrapped_and_indented(self) -> None:
        lines = [GOLDEN.text[start : start + 64] for start in range(0, len(GOLDEN.text), 64)]
        assert PeerAddress.from_text("\r\n    ".join(lines)) == GOLDEN

    def test_every_typo_is_found(self) -> None:
        text = GOLDEN.text
        for position in range(3, len(text)):
            typo = text[:position] + ("A" if text[position] != "A" else "B") + text[position + 1 :]
            with pytest.raises(AddressMalformed, match=r"^checksum does not match: was it copied whole\?$"):
                PeerAddress.from_text(typo)

    @pytest.mark.parametrize("length", range(3, 12))
    def test_cut_off(self, length: int) -> None:
        for cut in (GOLDEN.text[:length], GOLDEN.text[:-length]):
            with pytest.raises(AddressMalformed, match="checksum does not match"):
                PeerAddress.from_text(cut)

    @pytest.mark.parametrize("text", ["", "w", "wg", "wgx1", "WG1AAAA", "https://example.org", GOLDEN.text[3:]])
    def test_no_address_at_all(self, text: str) -> None:
        with pytest.raises(AddressMalformed, match="starts with 'wg1'"):
            PeerAddress.from_text(text)

    def test_text_of_another_version(self) -> None:
        with pytest.raises(AddressUnsupported, match="'wg2'"):
            PeerAddress.from_text("wg2" + GOLDEN.text[3:])

    def test_record_of_another_version(self) -> None:
        with pytest.raises(AddressUnsupported, match="version 9"):
            PeerAddress.from_text(as_text(b"\x09" + GOLDEN.to_bytes()[1:]))

    @pytest.mark.parametrize("character", ["+", "/", "=", ".", "\0", "\u00e4", "\uff21", "\u200b"])
    def test_foreign_characters(self, character: str) -> None:
        with pytest.raises(AddressMalformed, match="characters that no address has"):
            PeerAddress.from_text(GOLDEN.text[:50] + character + GOLDEN.text[51:])

    def test_a_record_has_one_text(self) -> None:
        # The last character of a text whose length is not a multiple of four has unused bits, which must be zero.
        address = next(each for each in (issue(nat=bytes(n)) for n in range(3)) if (len(each.text) - 3) % 4)
        alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
        other = address.text[:-1] + alphabet[alphabet.index(address.text[-1]) + 1]
        padding = "=" * (-(len(other) - 3) % 4)
        assert base64.urlsafe_b64decode(other[3:] + padding)[4:] == address.to_bytes()
        with pytest.raises(AddressMalformed, match="checksum"):
            PeerAddress.from_text(other)

    def test_length_is_checked_before_anything_is_decoded(self) -> None:
        with pytest.raises(AddressMalformed, match="2801 characters, more than 2800"):
            PeerAddress.from_text("!" * 2801)
        with pytest.raises(AddressMalformed, match="5601 characters, too many"):
            PeerAddress.from_text(" " * 5601)

    def test_forged(self) -> None:
        with pytest.raises(AddressForged):
            PeerAddress.from_text(as_text(GOLDEN.to_bytes()[:-1] + b"y"))

    @quick
    @given(st.text("wg1Aa-_ \n=\u00e4\ud800", max_size=80) | st.binary(max_size=100).map(lambda data: as_text(data)))
    def test_hostile_text(self, text: str) -> None:
        with pytest.raises(AddressError):
            PeerAddress.from_text(text)


def as_text(record: bytes) -> str:
    checksum = hashlib.sha256(b"wg1" + record).digest()[:4]
    return "wg1" + base64.urlsafe_b64encode(checksum + record).decode().rstrip("=")


@pytest.mark.parametrize(
    ("public", "addresses"),
    [
        (True, "1.1.1.1 192.0.2.1 198.51.100.1 203.0.113.1 2001:db8::1 2606:4700::1 172.15.255.255 172.32.0.0"),
        (True, "100.63.255.255 100.128.0.0 11.0.0.0 9.255.255.255 192.0.1.0 223.255.255.255 ::ffff:1.1.1.1"),
        (False, "10.0.0.0 10.255.255.255 172.16.0.0 172.31.255.255 192.168.0.0 192.168.255.255"),
        (False, "100.64.0.0 100.127.255.255 127.0.0.1 127.255.255.255 169.254.1.1 0.0.0.0 0.1.2.3 192.0.0.4"),
        (False, "224.0.0.1 239.255.255.255 240.0.0.0 255.255.255.255"),
        (False, ":: ::1 fc00::1 fdff::1 fe80::1 febf::1 fec0::1 ff02::1 ::ffff:10.0.0.1 ::ffff:127.0.0.1"),
    ],
)
def test_is_public(public: bool, addresses: str) -> None:
    assert {text: is_public(ip_address(text)) for text in addresses.split()} == dict.fromkeys(addresses.split(), public)


class TestDescribeInterfaces:
    def test_a_usual_machine(self) -> None:
        interfaces = [
            interface(1, "127.0.0.1/8", "::1/128", is_loopback=True),
            interface(2, "192.168.1.5/24", "fe80::1/64", "fd00::5/64", "2001:db8::5/64"),
            interface(3, "198.51.100.7/22", "169.254.7.7/16"),
            interface(4, "172.17.0.1/16", is_virtual=True),
            interface(5, "224.0.0.5/32", "0.0.0.0/0"),
        ]
        assert shown(describe_interfaces(interfaces, port_v4=4000, port_v6=6000)) == [
            "2 nic tcp 192.168.1.5:4000 /24 None",
            "2 nic tcp [2001:db8::5]:6000 /64 None",
            "2 ext tcp [2001:db8::5]:6000 /None 1",
            "2 nic tcp [fd00::5]:6000 /64 None",
            "3 nic tcp 198.51.100.7:4000 /22 None",
            "3 ext tcp 198.51.100.7:4000 /None 0",
        ]

    def test_what_only_looks_public_is_published_as_an_interfaces_own_address_alone(self) -> None:
        """Addresses for benchmarks, of an overlay network, and one that embeds a private address (ISATAP)."""
        found = [interface(2, "198.18.0.5/15", "100.64.0.5/10", "200::5/7"), interface(3, "2a00::5efe:a00:1/64")]
        assert shown(describe_interfaces(found, port_v4=1, port_v6=1)) == [
            "2 nic tcp 198.18.0.5:1 /15 None",
            "2 nic tcp 100.64.0.5:1 /10 None",
            "2 nic tcp [200::5]:1 /7 None",
            "3 nic tcp [2a00::5efe:a00:1]:1 /64 None",
        ]

    def test_virtual_interfaces_are_left_out(self) -> None:
        interfaces = [interface(4, "172.17.0.1/16", is_virtual=True)]
        assert shown(describe_interfaces(interfaces, port_v4=1, port_v6=1)) == ONLY_LOOPBACK

    def test_a_family_without_a_port_is_left_out(self) -> None:
        interfaces = [interface(2, "192.168.1.5/24", "fd00::5/64")]
        assert shown(describe_interfaces(interfaces, port_v4=1, port_v6=None)) == ["2 nic tcp 192.168.1.5:1 /24 None"]
        assert shown(describe_interfaces(interfaces, port_v4=None, port_v6=1)) == ["2 nic tcp [fd00::5]:1 /64 None"]
        assert describe_interfaces(interfaces, port_v4=None, port_v6=None) == ()

    def test_few_addresses_of_an_interface(self) -> None:
        v6 = [f"fd00::{n:x}/64" for n in range(1, 5)] + [f"2001:db8::{n:x}/64" for n in range(1, 5)]
        v4 = [f"10.0.0.{n}/24" for n in range(1, 7)]
        (found,) = describe_interfaces([interface(2, *v4, *v6)], port_v4=1, port_v6=1)
        nic = [endpoint for endpoint in found.endpoints if endpoint.kind is NIC]
        assert [str(each.ip) for each in nic if each.af == 6] == ["2001:db8::1", "2001:db8::2"]
        assert [str(each.ip) for each in nic if each.af == 4] == ["10.0.0.1", "10.0.0.2", "10.0.0.3", "10.0.0.4"]

    def test_always_fits_a_record(self) -> None:
        """A host with 40 networks, of which only the last has a public address."""
        interfaces = [interface(n, f"10.{n}.0.1/24", f"fd00:{n}::1/64", f"fd01:{n}::1/64") for n in range(1, 40)]
        interfaces.append(interface(99, "198.51.100.7/24"))
        found = describe_interfaces(interfaces, port_v4=40000, port_v6=40000)
        assert found[-1].index == 99
        assert [each.index for each in found] == sorted(each.index for each in found)
        signals = ["w" * 60] * 4
        assert len(issue(interfaces=found, signals=signals).to_bytes()) <= MAX_RECORD

    def test_ipv4_mapped_addresses_are_left_out(self) -> None:
        mapped = interface(2, "::ffff:198.51.100.7/128")
        assert shown(describe_interfaces([mapped], port_v4=1, port_v6=1)) == ONLY_LOOPBACK

    def test_a_machine_without_a_network_publishes_loopback(self) -> None:
        assert shown(describe_interfaces([], port_v4=1, port_v6=2)) == [
            "0 nic tcp 127.0.0.1:1 /None None",
            "0 nic tcp [::1]:2 /None None",
        ]
        assert describe_interfaces([], port_v4=None, port_v6=None) == ()


ONLY_LOOPBACK = ["0 nic tcp 127.0.0.1:1 /None None", "0 nic tcp [::1]:1 /None None"]


def interface(index: int, *addresses: str, is_loopback: bool = False, is_virtual: bool = False) -> Interface:
    def parsed() -> Iterator[InterfaceAddress]:
        for text in addresses:
            ip, _, prefix = text.partition("/")
            yield InterfaceAddress(ip=ip_address(ip), prefix=int(prefix))

    return Interface(
        name=f"eth{index}",
        index=index,
        addresses=tuple(parsed()),
        is_loopback=is_loopback,
        is_virtual=is_virtual,
    )


def shown(interfaces: tuple[AddressInterface, ...]) -> list[str]:
    return [f"{each.index} {end} /{end.prefix} {end.base}" for each in interfaces for end in each.endpoints]
