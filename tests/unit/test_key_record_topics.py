"""Key records at brokers: the topic, with golden bytes, and when a node publishes its record again."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.identities import ALICE, BOB
from warpgate_trio.address import KEY_RECORD_LIFETIME, KeyRecord
from warpgate_trio.signal.mqtt.key_topic import NONCE_LENGTH, KeyTopic
from warpgate_trio.signal.mqtt.record_upkeep import AGAIN_BURST, AGAIN_PERIOD, RecordUpkeep

NONCE = bytes(range(NONCE_LENGTH))
ISSUED = 1_700_000_000_000
TOPIC = KeyTopic("team/", ALICE.public_key)


def record(issued_ms: int = ISSUED, identity: object = ALICE) -> bytes:
    made = KeyRecord.issue(identity, issued_ms=issued_ms, signals=["mqtt://a"], instance=b"instance")  # type: ignore[arg-type]
    return made.to_bytes()


def sealed(issued_ms: int = ISSUED, identity: object = ALICE) -> bytes:
    return TOPIC.seal(record(issued_ms, identity), NONCE)


SEALED = sealed()

# --- the topic ---


def test_golden_bytes() -> None:
    assert TOPIC.name == "team/warpgate-trio/1/key/cddadf5d0b37e544a5c95ef8f403bf36"
    assert (
        TOPIC.seal(b"record", NONCE).hex() == "01000102030405060708090a0b9315906aaad93d7af910285f00ca7ea71dd85bad9016"
    )
    assert (
        TOPIC.open(bytes.fromhex("01000102030405060708090a0b9315906aaad93d7af910285f00ca7ea71dd85bad9016")) == b"record"
    )


def test_neither_the_topic_nor_what_is_there_tells_whose_it_is() -> None:
    for secret in (ALICE.public_key, ALICE.peer_id.encode(), ALICE.sealing_key, b"mqtt://a"):
        assert secret not in sealed()
        assert secret not in TOPIC.name.encode()
        assert secret.hex() not in TOPIC.name
    assert KeyTopic("", BOB.public_key).open(sealed()) is None


@given(st.binary(max_size=1200))
def test_what_was_not_sealed_does_not_open(data: bytes) -> None:
    assert TOPIC.open(data) is None
    assert TOPIC.open(b"\1" + data) is None


@given(st.integers(0), st.integers(1, 255))
def test_what_was_changed_does_not_open(place: int, by: int) -> None:
    changed = bytearray(SEALED)
    changed[place % len(changed)] ^= by
    assert TOPIC.open(bytes(changed)) is None
    assert TOPIC.open(SEALED + bytes([by])) is None


def test_what_is_longer_than_any_record_does_not_open() -> None:
    assert TOPIC.open(TOPIC.seal(bytes(1024), NONCE)) == bytes(1024)
    assert TOPIC.open(TOPIC.seal(bytes(1025), NONCE)) is None


# --- keeping the record published ---


@pytest.fixture
def upkeep() -> RecordUpkeep:
    """The upkeep of a node that has published its record and received it back."""
    kept = RecordUpkeep(TOPIC)
    assert kept.transmit(0.0) is None
    kept.receive(b"", 0.0)
    assert kept.deadline == math.inf, "there is nothing to publish"
    kept.publish(record(), 5.0)
    assert kept.deadline == 5.0
    assert kept.transmit(4.9) is None
    assert kept.transmit(5.0) == record()
    kept.receive(sealed(), 5.0)
    assert kept.deadline == math.inf
    return kept


@pytest.mark.parametrize(
    "published",
    [
        b"",
        b"\0" + bytes(16),
        b"\1junk",
        TOPIC.seal(b"junk", NONCE),
        sealed(ISSUED - 1),
        sealed(ISSUED, BOB),
        TOPIC.seal(record()[:-1] + b"?", NONCE),
        sealed(ISSUED + KEY_RECORD_LIFETIME * 500),
    ],
    ids=["cleared", "question", "junk", "sealed junk", "older", "another's", "forged", "future"],
)
def test_what_is_not_as_good_is_replaced(upkeep: RecordUpkeep, published: bytes) -> None:
    upkeep.receive(published, 7.0)
    assert upkeep.deadline == 7.0
    assert upkeep.transmit(7.0) == record()
    assert upkeep.deadline == math.inf


def test_a_newer_one_of_our_key_stays_until_it_is_cleared(upkeep: RecordUpkeep) -> None:
    for _ in range(2):
        upkeep.receive(sealed(ISSUED + 1), 7.0)
        assert upkeep.deadline == math.inf
    upkeep.receive(b"", 8.0)
    assert upkeep.transmit(8.0) == record()
    upkeep.publish(record(ISSUED + 2), 9.0)
    assert upkeep.transmit(9.0) == record(ISSUED + 2)
    upkeep.receive(sealed(ISSUED + 1), 10.0)
    assert upkeep.transmit(10.0) == record(ISSUED + 2)


def test_it_is_replaced_at_a_bounded_rate(upkeep: RecordUpkeep) -> None:
    """A burst at first and then one in each period, however many messages arrive."""
    sent: list[float] = []
    for tenth in range(1000):
        now = 100 + tenth / 10
        upkeep.receive(b"", now)
        if upkeep.transmit(now) is not None:
            sent.append(now)
    assert sent[:AGAIN_BURST] == [100 + each / 10 for each in range(AGAIN_BURST)]
    assert len(sent) == pytest.approx(AGAIN_BURST + 100 / AGAIN_PERIOD, abs=1)
    assert all(later - earlier > 0.9 * AGAIN_PERIOD for earlier, later in pairwise(sent[AGAIN_BURST:]))


def test_what_is_published_of_oneself_is_never_late(upkeep: RecordUpkeep) -> None:
    for _ in range(10):
        upkeep.receive(b"", 6.0)
        upkeep.transmit(6.0)
    assert upkeep.deadline > 6.0
    upkeep.publish(record(ISSUED + 5), 6.0)
    assert upkeep.transmit(6.0) == record(ISSUED + 5)
