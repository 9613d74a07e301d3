"""How outgoing plaintext is divided into records, depending on sizes and times only."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from warpgate_trio.carrier.records import FIRST_FLIGHT, FIRST_RECORD, IDLE, RECORD, RecordSizes


def sizes(records: RecordSizes, *parts: bytes, now: float = 0.0) -> list[int]:
    return [len(piece) for piece in records.cut(parts, now)]


def test_the_first_flight_goes_in_small_records_and_the_rest_whole() -> None:
    assert sizes(RecordSizes(), bytes(65_536)) == [*[FIRST_RECORD] * 12, 65_536 - FIRST_FLIGHT]


def test_its_records_fill_the_initial_window_and_no_more() -> None:
    """RFC 6928: at most 14,600 bytes; each record adds 22 bytes (RFC 8446 §5.2)."""
    assert 14_600 - 1208 < 12 * (FIRST_RECORD + 22) <= 14_600


def test_a_header_goes_with_what_it_is_for() -> None:
    assert sizes(RecordSizes(), b"twelve bytes", b"", b"data") == [16]


def test_it_does_behind_the_first_flight_too_where_one_record_has_room() -> None:
    records = RecordSizes()
    sizes(records, bytes(FIRST_FLIGHT))
    assert sizes(records, b"twelve bytes", b"", b"data") == [16]
    assert sizes(records, b"twelve bytes", bytes(RECORD - 12)) == [RECORD]
    assert sizes(records, b"twelve bytes", bytes(RECORD - 11)) == [12, RECORD - 11]
    assert sizes(records, b"", b"") == []


def test_a_second_without_a_write_begins_again() -> None:
    records = RecordSizes()
    sizes(records, bytes(FIRST_FLIGHT))
    assert sizes(records, bytes(20_000), now=IDLE - 0.001) == [20_000]
    assert sizes(records, bytes(20_000), now=2 * IDLE - 0.002) == [20_000]
    assert sizes(records, bytes(20_000), now=3 * IDLE)[0] == FIRST_RECORD


def test_what_was_written_before_counts() -> None:
    """The answer to a first call is sent in small records, since the handshake has used little of the first flight."""
    records = RecordSizes()
    assert sizes(records, bytes(300)) == [300]
    assert sum(sizes(records, bytes(65_536), now=0.1)[:-1]) == FIRST_FLIGHT - 300
    assert sizes(records, bytes(65_536), now=0.2) == [65_536]


def test_bulk_is_left_as_it_is() -> None:
    records = RecordSizes()
    sizes(records, bytes(FIRST_FLIGHT))
    header, data = b"header", memoryview(bytes(100_000))
    assert [id(piece) for piece in records.cut((header, b"", data), 0.1)] == [id(header), id(data)]


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
@given(writes=st.lists(st.tuples(st.floats(0, 3), st.lists(st.binary(max_size=20_000), max_size=3)), max_size=6))
def test_nothing_is_lost_doubled_or_empty(
    kind: type[bytes | bytearray | memoryview], writes: list[tuple[float, list[bytes]]]
) -> None:
    records, now = RecordSizes(), 0.0
    for pause, parts in writes:
        now += pause
        pieces = list(records.cut([kind(part) for part in parts], now))
        assert all(pieces)
        assert b"".join(pieces) == b"".join(parts)
