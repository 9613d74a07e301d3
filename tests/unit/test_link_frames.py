"""The Link's wire format: golden bytes, bounds, hostile bytes, and a reader for which cuts make no difference."""

from __future__ import annotations

import struct
from itertools import pairwise
from typing import cast

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from warpgate_trio.errors import RemoteProtocolError
from warpgate_trio.link.frame_codec import (
    HEADER_SIZE,
    MAX_CONTROL,
    MAX_DATA,
    MAX_NEWS,
    data_header,
    decode,
    encode,
    parse_header,
)
from warpgate_trio.link.frame_reader import TURN_FRAMES, WORTH_KEEPING, FrameReader
from warpgate_trio.link.frames import (
    MAX_LABEL,
    MAX_REASON_TEXT,
    Accept,
    Ack,
    At,
    Attach,
    Attached,
    Commit,
    Credit,
    Data,
    Drop,
    Fin,
    Frame,
    FrameType,
    GoAway,
    Item,
    News,
    Open,
    Ping,
    Pong,
    Proof,
    Refuse,
    Reset,
    Terms,
)

PROOF = Proof(client_key=b"\x11" * 32, session_id=b"\x22" * 16, attempt_id=b"\x33" * 16, signature=b"\x44" * 64)
COMMIT = Commit(session_id=b"\x55" * 16, link_id=b"\x66" * 16, epoch=7, credit=0x100000)
TERMS = Terms(resume_timeout=120, secret=b"\x77" * 16, instance=b"\x88" * 8)
TERMS_HEX = "000f00000078" + "77" * 16 + "88" * 8

GOLDEN: list[tuple[Frame, str]] = [
    (
        PROOF,
        "0100000000000000000000820001" + "11" * 32 + "22" * 16 + "33" * 16 + "44" * 64,
    ),
    (
        COMMIT,
        "02000000000000000000002e0001" + "55" * 16 + "66" * 16 + "000000070000000000100000",
    ),
    (
        replace(COMMIT, terms=TERMS),
        "02000000000000000000004c0001" + "55" * 16 + "66" * 16 + "000000070000000000100000" + TERMS_HEX,
    ),
    (Accept(channel=0, credit=0x110000), "0300000000000000000000080000000000110000"),
    (Accept(channel=0, credit=0x110000, terms=TERMS), "0300000000000000000000260000000000110000" + TERMS_HEX),
    (Refuse(channel=0, reason=3, text="später"), "04000000000000000000000a0003077370c3a4746572"),
    (Refuse(channel=5, reason=2), "040000000000000500000003000200"),
    (Open(channel=1, credit=0x100000, label="log"), "05000000000000010000000c0000000000100000036c6f67"),
    (Credit(channel=2, limit=2**40), "0700000000000002000000080000010000000000"),
    (Fin(channel=3, final_offset=2**64 - 1), "080000000000000300000008ffffffffffffffff"),
    (Reset(channel=2**32 - 1, code=1), "09000000ffffffff000000020001"),
    (Ping(token=1), "0a00000000000000000000080000000000000001"),
    (Pong(token=1), "0b00000000000000000000080000000000000001"),
    (GoAway(), "0c00000000000000000000020000"),
    (Ack(position=2**40), "2200000000000000000000080000010000000000"),
    (
        Attach(link_id=b"\x66" * 16, lane=3, received=2**40, turn=7, mac=b"\x99" * 16),
        "2000000000000000000000330001" + "66" * 16 + "00000003000001000000000000000007" + "99" * 16 + "00",
    ),
    (
        Attach(link_id=b"\x66" * 16, lane=3, received=0, turn=0, mac=b"\x99" * 16, graceful=True),
        "2000000000000000000000330001" + "66" * 16 + "00000003" + "00" * 12 + "99" * 16 + "01",
    ),
    (
        Attach(link_id=b"\x66" * 16, lane=3, received=0, turn=0, mac=b"\x99" * 16, hurried=True),
        "2000000000000000000000330001" + "66" * 16 + "00000003" + "00" * 12 + "99" * 16 + "02",
    ),
    (
        Attached(lane=3, received=2**40, turn=7, mac=b"\x99" * 16),
        "210000000000000000000020" + "00000003000001000000000000000007" + "99" * 16,
    ),
    (At(position=2**40, turn=7), "23000000000000000000000d00000100000000000000000700"),
    (At(position=1, turn=2, graceful=True), "23000000000000000000000d00000000000000010000000201"),
    (Drop(lane=2, reason=1), "240000000000000000000006000000020001"),
    (News(payload=b"sealed"), "250000000000000000000008" + "0006" + b"sealed".hex()),
]
"""One frame of every type but DATA, which `data_header` makes."""


def read(*pieces: bytes) -> list[Item]:
    return FrameReader().feed(list(pieces))


def frame_bytes(kind: int, payload: bytes, channel: int = 0) -> bytes:
    return struct.pack("!BBHII", kind, 0, 0, channel, len(payload)) + payload


# --- golden bytes ---


@pytest.mark.parametrize(("frame", "golden"), GOLDEN)
def test_golden_bytes(frame: Frame, golden: str) -> None:
    assert encode(frame).hex() == golden
    assert read(bytes.fromhex(golden)) == [frame]


def test_golden_data() -> None:
    assert data_header(1, 5).hex() == "060000000000000100000005"
    assert data_header(0, MAX_DATA).hex() == "060000000000000000040000"
    (data,) = read(data_header(1, 5) + b"hello")
    assert data == Data(1, [b"hello"], 5)


def test_every_frame_type_has_golden_bytes() -> None:
    assert {bytes.fromhex(golden)[0] for _, golden in GOLDEN} | {FrameType.DATA} == set(FrameType)


# --- room to grow ---


def test_an_older_release_says_nothing_of_a_trial_with_its_attach() -> None:
    attach = Attach(link_id=bytes(16), lane=3, received=1, turn=1, mac=bytes(16), graceful=True, hurried=True)
    assert read(encode(attach)) == [attach]
    payload = encode(attach)[HEADER_SIZE:-1]
    assert read(frame_bytes(FrameType.ATTACH, payload)) == [replace(attach, graceful=False, hurried=False)]


@pytest.mark.parametrize(("frame", "golden"), GOLDEN)
def test_what_a_later_release_adds_to_a_payload_is_ignored(frame: Frame, golden: str) -> None:
    raw = bytes.fromhex(golden)
    kind, channel, payload = raw[0], int.from_bytes(raw[4:8], "big"), raw[HEADER_SIZE:]
    if isinstance(frame, Commit | Accept) and frame.terms is None and not channel:
        payload += bytes(30)  # 30 zero bytes mean no terms; more bytes follow them
    assert read(frame_bytes(kind, payload + b"\xff" * 40, channel)) == [frame]


@pytest.mark.parametrize(("frame", "golden"), GOLDEN)
def test_flags_and_reserved_bytes_are_ignored(frame: Frame, golden: str) -> None:
    raw = bytes.fromhex(golden)
    assert read(raw[:1] + b"\xff\xff\xff" + raw[4:]) == [frame]


def test_an_unknown_type_from_0x80_on_is_skipped() -> None:
    skipped = frame_bytes(0x80, b"?" * MAX_CONTROL) + frame_bytes(0xFF, b"")
    assert read(encode(Ping(token=1)) + skipped + encode(Ping(token=2))) == [Ping(token=1), Ping(token=2)]
    assert decode(0x80, 0, b"") is None


# --- bounds ---


@pytest.mark.parametrize("kind", [0x00, 0x0D, 0x26, 0x7F])
def test_an_unknown_type_below_0x80_is_an_error(kind: int) -> None:
    with pytest.raises(RemoteProtocolError, match=f"unknown frame type 0x{kind:02x}"):
        read(frame_bytes(kind, b""))


@pytest.mark.parametrize(
    ("kind", "bound"),
    [
        (FrameType.DATA, MAX_DATA),
        (FrameType.NEWS, MAX_NEWS + 2),
        (FrameType.PING, MAX_CONTROL),
        (0x80, MAX_CONTROL),
    ],
)
def test_the_bound_of_a_payload_is_checked_in_the_header(kind: int, bound: int) -> None:
    assert parse_header(struct.pack("!BBHII", kind, 0, 0, 9, bound)) == (kind, 9, bound)
    with pytest.raises(RemoteProtocolError, match=f"a frame of type 0x{kind:02x} announces {bound + 1} bytes"):
        parse_header(struct.pack("!BBHII", kind, 0, 0, 9, bound + 1))
    with pytest.raises(RemoteProtocolError, match="announces 4294967295 bytes"):
        parse_header(struct.pack("!BBHII", kind, 0, 0, 9, 2**32 - 1))


@pytest.mark.parametrize(
    "frame",
    [
        At(position=1, turn=2**31),
        Attach(link_id=bytes(16), lane=2**31 + 1, received=1, turn=1, mac=bytes(16)),
        Attach(link_id=bytes(16), lane=3, received=1, turn=2**31, mac=bytes(16)),
        Attached(lane=3, received=1, turn=2**31, mac=bytes(16)),
    ],
)
def test_a_count_that_leaves_no_room_to_count_on_is_malformed(frame: Frame) -> None:
    with pytest.raises(RemoteProtocolError, match=f"a malformed {type(frame).__name__.upper()} frame"):
        read(encode(frame))


@pytest.mark.parametrize(("frame", "golden"), GOLDEN)
def test_a_truncated_payload_is_malformed(frame: Frame, golden: str) -> None:
    raw = bytes.fromhex(golden)
    kind, payload = raw[0], raw[HEADER_SIZE:]
    optional = 0
    if isinstance(frame, Commit | Accept) and frame.terms is not None:
        optional = len(bytes.fromhex(TERMS_HEX))
    elif isinstance(frame, Attach):
        optional = 1  # the flags, which older releases leave out
    for size in range(len(payload)):
        if optional and size == len(payload) - optional:
            continue  # without the optional part
        with pytest.raises(RemoteProtocolError, match=f"a malformed {FrameType(kind).name} frame"):
            read(frame_bytes(kind, payload[:size]))


@pytest.mark.parametrize(
    "raw",
    [
        frame_bytes(FrameType.OPEN, bytes(8) + b"\x02\xff\xfe"),
        frame_bytes(FrameType.REFUSE, bytes(2) + b"\x01\xc3"),
        frame_bytes(FrameType.OPEN, bytes(8) + b"\x05four"),
    ],
)
def test_a_text_that_is_no_utf8_or_too_short_is_malformed(raw: bytes) -> None:
    with pytest.raises(RemoteProtocolError, match=r"a malformed (OPEN|REFUSE) frame"):
        read(raw)


def test_texts_are_cut_at_a_character() -> None:
    (opened,) = read(encode(Open(channel=1, credit=0, label="é" * 200)))
    assert opened == Open(channel=1, credit=0, label="é" * (MAX_LABEL // 2))
    (refused,) = read(encode(Refuse(channel=1, reason=1, text="€" * 100)))
    assert refused == Refuse(channel=1, reason=1, text="€" * (MAX_REASON_TEXT // 3))


def test_a_reader_holds_no_more_than_one_control_payload() -> None:
    reader = FrameReader()
    assert reader.feed([frame_bytes(0x80, b"x" * MAX_CONTROL)[:-1]]) == []
    assert len(reader._partial) == MAX_CONTROL - 1
    assert reader.feed([b"x"]) == []
    assert len(reader._partial) == 0


# --- DATA is not copied, and runs of it come as one item ---


def test_a_run_of_one_channels_data_is_one_item() -> None:
    (item,) = read(data_header(4, 3), b"abc", data_header(4, 2), b"de")
    assert item == Data(4, [b"abc", b"de"], 5, frames=2)


def test_data_of_two_channels_and_control_frames_keep_their_order() -> None:
    raw = b"".join(
        [
            data_header(0, 2) + b"aa",
            data_header(2, 2) + b"bb",
            data_header(0, 0),
            data_header(2, 1) + b"c",
            encode(Ping(token=3)),
            data_header(2, 1) + b"d",
        ]
    )
    assert read(raw) == [
        Data(0, [b"aa"], 2),
        Data(2, [b"bb"], 2),
        Data(2, [b"c"], 1),
        Ping(token=3),
        Data(2, [b"d"], 1),
    ]


def test_a_frame_counts_once_wherever_it_is_cut() -> None:
    reader = FrameReader()
    turns = [[data_header(7, 2)], [b"ab", data_header(7, 2)], [b"cd", data_header(7, 1), b"e"]]
    found = [item for turn in turns for item in reader.feed(turn)]
    assert sum(item.frames for item in found if isinstance(item, Data)) == 3


def test_an_empty_data_frame_says_nothing() -> None:
    assert read(data_header(7, 0)) == []


def test_payload_is_not_copied() -> None:
    payload = b"p" * 16384
    (item,) = read(data_header(0, 32768), payload, payload)
    assert isinstance(item, Data)
    assert all(piece is payload for piece in item.pieces)
    (item,) = read(data_header(0, 16372) + payload[:16372])  # a record that begins with the frame's header
    assert isinstance(item, Data)
    assert isinstance(item.pieces[0], memoryview)


def test_what_is_kept_of_a_record_keeps_no_more_than_itself() -> None:
    """A memoryview would keep the whole record, so that a peer could fill a multiple of its window."""
    filler = encode(Ping(token=1)) * 600
    for size in (1, 4100, 12_000):
        record = data_header(0, size) + b"d" * size + filler[: 16384 - 12 - size]
        item = read(record)[0]
        assert isinstance(item, Data)
        assert item.size == size
        wholes = [piece.obj if isinstance(piece, memoryview) else piece for piece in item.pieces]
        held = sum(len(cast("bytes", whole)) for whole in wholes)
        assert held <= size / WORTH_KEEPING


# --- turns ---


@pytest.mark.parametrize(
    "frame", [encode(Ping(token=1)), data_header(0, 0), frame_bytes(0x80, b""), data_header(1, 1) + b"x"]
)
def test_a_turn_is_so_many_frames_whatever_they_are(frame: bytes) -> None:
    reader = FrameReader()
    turns = [reader.feed([frame * 1000, frame * 24])]
    while reader.has_unread:
        turns.append(reader.feed([]))
    assert len(turns) == 1024 // TURN_FRAMES
    counts = [sum(item.frames if isinstance(item, Data) else 1 for item in turn) for turn in turns]
    assert sum(counts) + reader.silent == 1024
    assert max(counts) <= TURN_FRAMES
    assert reader.feed([encode(Pong(token=7))]) == [Pong(token=7)]


# --- any frames, cut anywhere ---

u16, u32, u64 = (st.integers(0, 2**bits - 1) for bits in (16, 32, 64))
id16, key32, sig64 = (st.binary(min_size=n, max_size=n) for n in (16, 32, 64))


def texts(limit: int) -> st.SearchStrategy[str]:
    return st.text(max_size=limit // 4)


FRAMES: st.SearchStrategy[Frame] = st.one_of(
    st.builds(Proof, client_key=key32, session_id=id16, attempt_id=id16, signature=sig64, version=u16),
    st.builds(Commit, session_id=id16, link_id=id16, epoch=u32, credit=u64, version=u16),
    st.builds(Accept, channel=u32, credit=u64),
    st.builds(Refuse, channel=u32, reason=u16, text=texts(MAX_REASON_TEXT)),
    st.builds(Open, channel=u32, credit=u64, label=texts(MAX_LABEL)),
    st.builds(Credit, channel=u32, limit=u64),
    st.builds(Fin, channel=u32, final_offset=u64),
    st.builds(Reset, channel=u32, code=u16),
    st.builds(Ping, token=u64),
    st.builds(Pong, token=u64),
    st.builds(GoAway, code=u16),
)
DATA = st.tuples(st.integers(0, 3), st.binary(max_size=60))


@given(FRAMES)
def test_frames_survive_the_wire(frame: Frame) -> None:
    raw = encode(frame)
    kind, channel, length = parse_header(raw[:HEADER_SIZE])
    assert length == len(raw) - HEADER_SIZE
    assert decode(kind, channel, raw[HEADER_SIZE:]) == frame


def flatten(items: list[Item]) -> list[Frame | tuple[int, bytes]]:
    """Items with adjacent data joined: where a run of data is split depends on how the bytes arrive."""
    flat: list[Frame | tuple[int, bytes]] = []
    for item in items:
        if not isinstance(item, Data):
            flat.append(item)
            continue
        assert sum(map(len, item.pieces)) == item.size > 0
        before = flat[-1] if flat else None
        if isinstance(before, tuple) and before[0] == item.channel:
            flat[-1] = (item.channel, before[1] + b"".join(item.pieces))
        else:
            flat.append((item.channel, b"".join(item.pieces)))
    return flat


@pytest.mark.slow("Hypothesis: 100 examples")
@given(st.lists(st.one_of(FRAMES, DATA), max_size=8), st.data())
def test_how_the_bytes_are_cut_does_not_matter(frames: list[Frame | tuple[int, bytes]], data: st.DataObject) -> None:
    raw = b"".join(
        data_header(frame[0], len(frame[1])) + frame[1] if isinstance(frame, tuple) else encode(frame)
        for frame in frames
    )
    cuts = sorted(data.draw(st.lists(st.integers(0, len(raw)), max_size=8)))
    pieces = [raw[start:end] for start, end in pairwise([0, *cuts, len(raw)]) if end > start]
    calls = sorted(data.draw(st.lists(st.integers(0, len(pieces)), max_size=4)))
    reader = FrameReader()
    items: list[Item] = []
    for start, end in pairwise([0, *calls, len(pieces)]):
        items += reader.feed(pieces[start:end])
    expected: list[Item] = [
        Data(frame[0], [frame[1]], len(frame[1])) if isinstance(frame, tuple) else frame
        for frame in frames
        if not isinstance(frame, tuple) or frame[1]
    ]
    assert flatten(items) == flatten(expected)


@pytest.mark.slow("Hypothesis: 100 examples")
@given(
    st.lists(
        st.one_of(
            st.binary(max_size=40),
            st.builds(frame_bytes, st.sampled_from([*FrameType, 0x20, 0x80, 0xFE]), st.binary(max_size=150), u32),
        ),
        max_size=6,
    )
)
def test_hostile_bytes_give_only_the_documented_error(pieces: list[bytes]) -> None:
    reader = FrameReader()
    fed = given_out = 0
    try:
        for piece in pieces:
            fed += len(piece)
            given_out += sum(item.size for item in reader.feed([piece]) if isinstance(item, Data))
            assert given_out <= fed
            assert len(reader._partial) <= MAX_CONTROL
    except RemoteProtocolError:
        pass
