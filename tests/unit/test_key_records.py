"""Key records: the codec with golden bytes, what a server keeps and answers, rates, and the client's side."""

from __future__ import annotations

import pytest
import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.identities import ALICE, BOB
from warpgate_trio.address import KEY_RECORD_LIFETIME, MAX_KEY_RECORD, KeyRecord
from warpgate_trio.errors import KeyRecordError, RemoteProtocolError, SignalUnavailable
from warpgate_trio.limits import SubscriberRates
from warpgate_trio.report import LookupOutcome
from warpgate_trio.servers.key_record_frames import FindStatus, Found, Lookup, Publish, Published, PublishStatus
from warpgate_trio.servers.key_records import LOOKUP_BURST
from warpgate_trio.servers.rendezvous_core import RendezvousCore, ServerConnection
from warpgate_trio.servers.rendezvous_frames import (
    Capability,
    Challenge,
    Error,
    ErrorCode,
    FromClient,
    Registered,
    decode_from_client,
    decode_from_server,
    register,
    register_2,
    register_3,
)
from warpgate_trio.signal.circuits import Outbox
from warpgate_trio.signal.record_client import RecordClient

NOW = 1_700_000_000.0
INSTANCE = b"instance"
NAME = "relay.example:443"
GOLDEN = (
    "0103a107bff3ce10be1d70dd18e74bc09967e4d6309ba50d5f1ddc8664125531"
    "b8267b699e9be749247d0b79108c78d44dcaed6bd1e942331596ae70b086a3d9"
    "f6de3431bef69321af74c7bd2d7685c17af38ed38fa0caa81ba42b1790ffdda8"
    "0295c4205ef9d37fcab6427a783a6ec8606ae37f14dc7fd35ea2d44785e82d30"
    "79e56310cf0000018bcfe56800ce655d2b8091b37773733a2f2f72656c61792e"
    "6578616d706c65c408696e7374616e6365"
)


def record(identity: object = ALICE, at: float = NOW, *urls: str) -> KeyRecord:
    return KeyRecord.issue(
        identity,  # type: ignore[arg-type]
        issued_ms=int(at * 1000),
        signals=urls or ("wss://relay.example",),
        instance=INSTANCE,
    )


def flaw(data: bytes, of: bytes = ALICE.public_key) -> LookupOutcome:
    with pytest.raises(KeyRecordError) as caught:
        KeyRecord.from_bytes(data, of=of)
    return caught.value.flaw


# --- the codec ---


def test_golden_bytes() -> None:
    made = record()
    assert made.to_bytes().hex() == GOLDEN
    read = KeyRecord.from_bytes(bytes.fromhex(GOLDEN), of=ALICE.public_key)
    assert read == made
    assert (read.public_key, read.peer_id, read.sealing_key) == (ALICE.public_key, ALICE.peer_id, ALICE.sealing_key)
    assert (read.issued_ms, read.expires_at) == (1_700_000_000_000, 1_700_000_000 + KEY_RECORD_LIFETIME)
    assert (read.signals, read.instance) == (("wss://relay.example",), INSTANCE)


@given(st.lists(st.text("abc:/.", min_size=1, max_size=256), max_size=20))
def test_a_record_fits_whatever_the_servers(urls: list[str]) -> None:
    made = record(ALICE, NOW, *urls)
    assert len(made.to_bytes()) <= MAX_KEY_RECORD
    assert made.signals == tuple(urls or ["wss://relay.example"])[: len(made.signals)]
    assert KeyRecord.from_bytes(made.to_bytes(), of=ALICE.public_key) == made


def test_what_a_later_release_has_added_is_ignored() -> None:
    body = record().to_bytes()[97:]
    longer = bytes([body[0] + 1]) + body[1:] + b"\xc0"
    head = b"\1" + ALICE.public_key
    signed = head + ALICE.sign(b"warpgate-trio key record v1", head + longer) + longer
    assert KeyRecord.from_bytes(signed, of=ALICE.public_key).signals == ("wss://relay.example",)


def test_what_is_no_record_of_a_key() -> None:
    good = record().to_bytes()
    assert flaw(b"") is LookupOutcome.MALFORMED
    assert flaw(good[:97]) is LookupOutcome.MALFORMED
    assert flaw(good + bytes(MAX_KEY_RECORD)) is LookupOutcome.MALFORMED
    assert flaw(b"\2" + good[1:]) is LookupOutcome.UNKNOWN_VERSION
    assert flaw(good, of=BOB.public_key) is LookupOutcome.OTHER_KEY
    assert flaw(good[:-1] + b"?") is LookupOutcome.FORGED
    head = b"\1" + ALICE.public_key
    for body in (b"\x90", b"\xff", b"\x91" * 900, b"\x95\xa1a\1\2\x90\xa1a"):
        signed = head + ALICE.sign(b"warpgate-trio key record v1", head + body) + body
        assert flaw(signed) is LookupOutcome.MALFORMED


def test_an_address_is_no_key_record_and_a_key_record_is_no_address() -> None:
    head = b"\1" + ALICE.public_key
    body = record().to_bytes()[97:]
    assert flaw(head + ALICE.sign(b"warpgate-trio address v1", head + body) + body) is LookupOutcome.FORGED


@pytest.mark.parametrize(
    ("now", "seen", "expected"),
    [
        (NOW, 0, None),
        (NOW, 1_700_000_000_000, None),
        (NOW, 1_700_000_000_001, LookupOutcome.ROLLED_BACK),
        (NOW + KEY_RECORD_LIFETIME + 299, 0, None),
        (NOW + KEY_RECORD_LIFETIME + 301, 0, LookupOutcome.EXPIRED),
        (NOW - 86_399, 0, None),
        (NOW - 86_401, 0, LookupOutcome.NOT_YET_VALID),
    ],
)
def test_when_a_record_is_good(now: float, seen: int, expected: LookupOutcome | None) -> None:
    if expected is None:
        record().check_fresh(now, seen=seen)
        return
    with pytest.raises(KeyRecordError) as caught:
        record().check_fresh(now, seen=seen)
    assert caught.value.flaw is expected


# --- frames ---

FROM_CLIENT: list[tuple[str, Publish | Lookup]] = [
    ("40616263", Publish(b"abc")),
    ("4200000007" + "11" * 32, Lookup(7, b"\x11" * 32)),
]
FROM_SERVER: list[tuple[str, Published | Found]] = [
    ("4100", Published(PublishStatus.KEPT)),
    ("4101", Published(PublishStatus.NOT_TAKEN)),
    ("430000000700616263", Found(7, FindStatus.RECORD, b"abc")),
    ("430000000701", Found(7, FindStatus.NOBODY)),
    ("4300000007ff", Found(7, 255)),
]


def test_golden_frames() -> None:
    for text, frame in FROM_CLIENT:
        assert (frame.encode().hex(), decode_from_client(bytes.fromhex(text))) == (text, frame)
    for text, answer in FROM_SERVER:
        assert (answer.encode().hex(), decode_from_server(bytes.fromhex(text))) == (text, answer)


@pytest.mark.parametrize(
    "data",
    ["40", "40" + "00" * (MAX_KEY_RECORD + 1), "42", "42" + "00" * 35, "42" + "00" * 37],
)
def test_no_frame_of_a_client(data: str) -> None:
    with pytest.raises(RemoteProtocolError):
        decode_from_client(bytes.fromhex(data))


@pytest.mark.parametrize(
    "data",
    ["41", "410000", "430000000000"[:-2], "430000000700", "430000000701ff", "4300000007" + "00" * (MAX_KEY_RECORD + 2)],
)
def test_no_frame_of_a_server(data: str) -> None:
    with pytest.raises(RemoteProtocolError):
        decode_from_server(bytes.fromhex(data))


# --- the server ---


class Mailboxes:
    """A server's core, and its registered clients."""

    def __init__(self) -> None:
        self.core = RendezvousCore()

    def client(self, identity: object = ALICE, *, host: str = "192.0.2.1", version: int = 3) -> ServerConnection:
        nonce = bytes(range(32))
        connection, _ = self.core.connect(nonce, 0.0, host=host, version=version, names=[NAME])
        challenge = Challenge(nonce, version)
        frame: FromClient
        if version == 3:
            frame = register_3(identity, challenge, INSTANCE, NAME)  # type: ignore[arg-type]
        elif version == 2:
            frame = register_2(identity, challenge, INSTANCE, NAME)  # type: ignore[arg-type]
        else:
            frame = register(identity, challenge)  # type: ignore[arg-type]
        answer, _ = self.core.receive(connection, frame.encode(), 0.0)
        assert answer is None
        return connection

    def say(self, connection: ServerConnection, frame: FromClient, now: float = 0.0) -> object:
        answer, woken = self.core.receive(connection, frame.encode(), now)
        assert woken == []
        assert answer is not None
        return decode_from_server(answer)


@pytest.fixture
def server() -> Mailboxes:
    return Mailboxes()


def test_a_server_says_that_it_keeps_records(server: Mailboxes) -> None:
    frame = server.core.transmit(server.client(), 0.0)
    assert frame is not None
    assert (Registered.decode(frame).capabilities or 0) & Capability.KEY_RECORDS


def test_a_record_is_told_for_as_long_as_its_owner_is_there(server: Mailboxes) -> None:
    alice, bob = server.client(ALICE), server.client(BOB)
    ask = Lookup(1, ALICE.public_key)
    assert server.say(bob, ask) == Found(1, FindStatus.NOBODY)
    assert server.say(alice, Publish(record().to_bytes())) == Published(PublishStatus.KEPT)
    assert server.say(bob, ask) == Found(1, FindStatus.RECORD, record().to_bytes())
    later = record(ALICE, NOW + 5).to_bytes()
    server.say(alice, Publish(later))
    assert server.say(bob, ask) == Found(1, FindStatus.RECORD, later)
    server.core.disconnect(alice, 1.0)
    server.core.disconnect(alice, 1.0)
    assert server.say(bob, ask) == Found(1, FindStatus.NOBODY)
    assert len(server.core.key_records) == 0


def test_of_several_processes_the_newest_record_is_told(server: Mailboxes) -> None:
    first, second, bob = server.client(ALICE), server.client(ALICE), server.client(BOB)
    ask = Lookup(1, ALICE.public_key)
    server.say(second, Publish(record(ALICE, NOW + 5).to_bytes()))
    server.say(first, Publish(record(ALICE, NOW).to_bytes()))
    assert server.say(bob, ask) == Found(1, FindStatus.RECORD, record(ALICE, NOW + 5).to_bytes())
    server.core.disconnect(second, 1.0)
    assert server.say(bob, ask) == Found(1, FindStatus.RECORD, record(ALICE, NOW).to_bytes())
    assert len(server.core.key_records) == 1


def test_what_is_no_record_of_ones_own_key_is_not_taken(server: Mailboxes) -> None:
    alice = server.client(ALICE)
    good = record().to_bytes()
    server.say(alice, Publish(good))
    for data in (record(BOB).to_bytes(), good[:-1] + b"?", b"\2" + good[1:], b"nonsense"):
        assert server.say(alice, Publish(data)) == Published(PublishStatus.NOT_TAKEN)
    assert server.say(alice, Lookup(1, ALICE.public_key)) == Found(1, FindStatus.RECORD, good)


@pytest.mark.parametrize("version", [1, 2])
def test_who_is_of_an_older_version_has_no_business_with_records(server: Mailboxes, version: int) -> None:
    for frame in (Publish(record().to_bytes()), Lookup(1, ALICE.public_key)):
        answer = server.say(server.client(BOB, version=version), frame)
        assert isinstance(answer, Error)
        assert answer.code == ErrorCode.PROTOCOL


def test_nobody_asks_before_it_is_registered(server: Mailboxes) -> None:
    stranger, _ = server.core.connect(bytes(32), 0.0, host="192.0.2.1", version=3, names=[NAME])
    assert isinstance(server.say(stranger, Lookup(1, ALICE.public_key)), Error)


def test_lookups_are_bounded_by_address_and_not_by_connection(server: Mailboxes) -> None:
    """A client that asks too often gets an error and stays connected; other addresses are not affected."""
    here = [server.client(BOB, host="192.0.2.1") for _ in range(2)]
    ask = Lookup(1, ALICE.public_key)
    for number in range(LOOKUP_BURST):
        assert server.say(here[number % 2], ask) == Found(1, FindStatus.NOBODY)
    assert server.say(here[0], ask) == Found(1, FindStatus.TOO_MANY)
    assert server.say(here[1], ask, 1.0) == Found(1, FindStatus.NOBODY)
    assert server.say(server.client(BOB, host="198.51.100.1"), ask) == Found(1, FindStatus.NOBODY)
    counted = server.core.statistics().key_records
    assert (counted.records, counted.lookups, counted.limited) == (0, LOOKUP_BURST + 2, 1)
    assert not here[0].closing


def test_publishing_without_end_ends_the_connection(server: Mailboxes) -> None:
    alice = server.client(ALICE)
    publish = Publish(record().to_bytes())
    answers = [server.say(alice, publish) for _ in range(server.core.limits.send_burst + 1)]
    assert isinstance(answers[-1], Error)
    assert answers[-1].code == ErrorCode.RATE
    assert len(server.core.key_records) == 0


# --- rates by subscriber ---


@pytest.mark.parametrize(
    ("hosts", "expected"),
    [
        (["192.0.2.1"] * 20, 3),
        ([f"192.0.2.{n}" for n in range(20)], 12),
        (["::ffff:192.0.2.1", "192.0.2.1"] * 10, 3),
        ([f"2001:db8::{n:x}" for n in range(20)], 3),
        ([f"2001:db8:0:{n:x}::1" for n in range(20)], 12),
        ([f"2001:db8:0:{n:x}00::1" for n in range(60)], 48),
    ],
)
def test_rates_by_subscriber(hosts: list[str], expected: int) -> None:
    rates = SubscriberRates(1.0, 3, 1000)
    assert sum(rates.take(host, 0.0) for host in hosts) == expected
    assert rates.take("203.0.113.1", 0.0)
    assert rates.take(hosts[0], 10.0)


def test_what_a_wider_network_refuses_costs_the_address_nothing() -> None:
    rates = SubscriberRates(1.0, 1, 1000)
    assert [rates.take(f"192.0.2.{n}", 0.0) for n in range(5)] == [True] * 4 + [False]
    assert rates.take("192.0.2.4", 0.25), "a fourth of a second for the network, and none for the address"


def test_a_network_that_is_refused_has_nobody_else_forgotten() -> None:
    rates = SubscriberRates(0.001, 1, 100)
    assert rates.take("2001:db8:1::1", 0.0)
    for number in range(1, 1000):
        rates.take(f"2001:db8:2:{number:x}::1", 0.0)
    assert not rates.take("2001:db8:1::1", 0.0), "it was forgotten, and began anew"


# --- the client ---


async def test_a_server_of_an_older_release_is_not_asked() -> None:
    outbox = Outbox()
    client = RecordClient(outbox)
    client.registered(int(Capability.RELAY))
    client.publish(record().to_bytes())
    await client.wait_published()
    assert client.kept is None
    assert await client.look_up(ALICE.public_key) == (LookupOutcome.UNSUPPORTED, b"")
    outbox.close()
    assert await outbox.take() is None


async def test_questions_are_told_apart_and_end_with_the_connection(autojump_clock: object) -> None:
    outbox = Outbox()
    client = RecordClient(outbox)
    client.registered(int(Capability.KEY_RECORDS))
    found: list[object] = []

    async def ask() -> None:
        try:
            found.append(await client.look_up(ALICE.public_key))
        except SignalUnavailable:
            found.append(None)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(ask)
        first = await outbox.take()
        nursery.start_soon(ask)
        second = await outbox.take()
        assert [first, second] == [Lookup(n, ALICE.public_key).encode() for n in (0, 1)]
        client.hear(Found(1, 77))  # a status that only a later release knows
        client.hear(Found(9, FindStatus.RECORD, b"r"))  # answers no request
        await trio.testing.wait_all_tasks_blocked()
        assert found == [(LookupOutcome.NOBODY, b"")]
        client.end()
    assert found == [(LookupOutcome.NOBODY, b""), None]
    await client.wait_published()


@settings(max_examples=50)
@given(st.binary(max_size=300))
def test_any_bytes_are_a_record_or_one_error(data: bytes) -> None:
    for each in (data, b"\1" + ALICE.public_key + data):
        try:
            KeyRecord.from_bytes(each, of=ALICE.public_key)
        except KeyRecordError as error:
            assert str(error).isprintable()  # noqa: PT017
