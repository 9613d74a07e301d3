"""The rendezvous protocol: golden frames, hostile bytes, mailboxes and their bounds."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from warpgate_trio.errors import RemoteProtocolError, SignalUnsupported
from warpgate_trio.identity import Identity
from warpgate_trio.servers.rendezvous_core import (
    MAX_FRAME,
    MAX_PAYLOAD,
    QUEUE_FULL,
    Challenge,
    Error,
    ErrorCode,
    FromClient,
    FromServer,
    Message,
    Register,
    Registered,
    RendezvousCore,
    RendezvousLimits,
    Send,
    Sent,
    ServerConnection,
    decode_from_client,
    decode_from_server,
    register,
)

ALICE = Identity.from_seed(bytes(range(32)))
BOB = Identity.from_seed(bytes(range(32, 64)))
NONCE = bytes(range(32))
T = 1000.0

REGISTER_GOLDEN = (
    "0203a107bff3ce10be1d70dd18e74bc09967e4d6309ba50d5f1ddc8664125531b8"
    "aa1cc9c4bc8c75a828633b7c6fba6473ddca336d9f0f615450fb9bd4f418b7a3"
    "fdb42ba5d77101e17e9e40790e60fa7429f35b4af48917b11009767dc9ab6103"
)
FROM_SERVER: list[tuple[str, FromServer]] = [
    ("0101" + NONCE.hex(), Challenge(NONCE)),
    ("03", Registered()),
    ("050000002a0003", Sent(42, 3)),
    ("05ffffffffffff", Sent(2**32 - 1, QUEUE_FULL)),
    ("0668656c6c6f", Message(b"hello")),
    ("0704c3bc62657220746865206c696d6974", Error(ErrorCode.RATE, "über the limit")),
    ("07ff", Error(255, "")),
]
FROM_CLIENT: list[tuple[str, FromClient]] = [
    (REGISTER_GOLDEN, register(ALICE, Challenge(NONCE))),
    ("040000002a" + "11" * 32 + "68656c6c6f", Send(42, b"\x11" * 32, b"hello")),
]


# --- frames ---


@pytest.mark.parametrize(("golden", "frame"), FROM_SERVER)
def test_golden_server_frames(golden: str, frame: FromServer) -> None:
    assert frame.encode().hex() == golden
    assert decode_from_server(bytes.fromhex(golden)) == frame


@pytest.mark.parametrize(("golden", "frame"), FROM_CLIENT)
def test_golden_client_frames(golden: str, frame: FromClient) -> None:
    assert frame.encode().hex() == golden
    assert decode_from_client(bytes.fromhex(golden)) == frame


@pytest.mark.parametrize(("golden", "frame"), [*FROM_SERVER, *FROM_CLIENT])
def test_no_frame_goes_both_ways(golden: str, frame: FromServer | FromClient) -> None:
    wrong_way = decode_from_client if isinstance(frame, FromServer) else decode_from_server
    with pytest.raises(RemoteProtocolError, match=r"no frame of a rendezvous (client|server)"):
        wrong_way(bytes.fromhex(golden))


def test_widths_are_exact() -> None:
    for golden, frame in FROM_SERVER:
        data = bytes.fromhex(golden)
        if not isinstance(frame, Message | Error):
            for wrong in (data[:-1], data + b"\x00"):
                with pytest.raises(RemoteProtocolError):
                    decode_from_server(wrong)
    data = bytes.fromhex(REGISTER_GOLDEN)
    for wrong in (data[:-1], data + b"\x00"):
        with pytest.raises(RemoteProtocolError, match=r"REGISTER frame of 9[68] bytes, not 97"):
            decode_from_client(wrong)


@pytest.mark.parametrize("size", [0, MAX_PAYLOAD + 1])
def test_payload_limits(size: int) -> None:
    payload = bytes(size)
    with pytest.raises(RemoteProtocolError, match=f"SEND frame with a payload of {size} bytes, not 1 to 16384"):
        decode_from_client(Send(1, bytes(32), payload).encode())
    with pytest.raises(RemoteProtocolError, match=f"MESSAGE frame with a payload of {size} bytes"):
        decode_from_server(Message(payload).encode())


def test_the_longest_frame() -> None:
    assert len(Send(1, bytes(32), bytes(MAX_PAYLOAD)).encode()) == MAX_FRAME
    assert decode_from_client(Send(1, bytes(32), bytes(MAX_PAYLOAD)).encode()) == Send(1, bytes(32), bytes(MAX_PAYLOAD))


def test_error_text_is_bounded_and_harmless() -> None:
    assert len(Error(1, "x" * 500).encode()) == 202
    assert decode_from_server(b"\x07\x01two\nlines\xff\x1b[31m") == Error(1, "two?lines\ufffd?[31m")
    for wrong in (b"\x07", b"\x07\x01" + b"x" * 201):
        with pytest.raises(RemoteProtocolError, match="ERROR frame of"):
            decode_from_server(wrong)


def test_a_version_of_the_future() -> None:
    with pytest.raises(SignalUnsupported, match="version 2, this release speaks 1"):
        decode_from_server(b"\x01\x02" + bytes(99))


@settings(deadline=None)
@given(st.binary(max_size=120) | st.binary(max_size=120).map(lambda data: b"\x01\x01" + data))
def test_hostile_frames(data: bytes) -> None:
    for decode in (decode_from_server, decode_from_client):
        try:
            frame = decode(data)
        except (RemoteProtocolError, SignalUnsupported):
            continue
        if not isinstance(frame, Error):  # whose text is cleaned
            assert frame.encode() == data


# --- the server ---


class Client:
    """One client on a core, with everything that the server wrote to it."""

    def __init__(self, core: RendezvousCore, identity: Identity | None = None, now: float = T) -> None:
        self.core = core
        self.written: list[FromServer] = []
        self.state, challenge = core.connect(NONCE, now)
        assert decode_from_server(challenge) == Challenge(NONCE)
        self.woken: list[ServerConnection] = []
        if identity is not None:
            self.say(register(identity, Challenge(NONCE)), now)
            assert self.drain() == [Registered()]

    def say(self, frame: FromClient | bytes, now: float = T) -> FromServer | None:
        data = frame if isinstance(frame, bytes) else frame.encode()
        answer, self.woken = self.core.receive(self.state, data, now)
        return None if answer is None else decode_from_server(answer)

    def send(self, receiver: bytes, payload: bytes = b"x", now: float = T) -> FromServer | None:
        return self.say(Send(7, receiver, payload), now)

    def drain(self) -> list[FromServer]:
        frames = [decode_from_server(data) for data in self.state.queue]
        self.state.queue.clear()
        return frames


def test_from_hand_to_hand() -> None:
    core = RendezvousCore()
    alice, bob = Client(core, ALICE), Client(core, BOB)
    assert alice.send(BOB.public_key, b"hello") == Sent(7, 1)
    assert alice.woken == [bob.state]
    assert bob.drain() == [Message(b"hello")]
    assert alice.drain() == []


def test_registered_comes_before_any_message() -> None:
    core = RendezvousCore()
    alice, bob = Client(core, ALICE), Client(core)
    assert bob.say(register(BOB, Challenge(NONCE))) is None
    assert bob.woken == [bob.state]
    assert alice.send(BOB.public_key) == Sent(7, 1)
    assert bob.drain() == [Registered(), Message(b"x")]


def test_nobody_home() -> None:
    core = RendezvousCore()
    alice, bob = Client(core, ALICE), Client(core, BOB)
    core.disconnect(bob.state)
    core.disconnect(bob.state)
    assert alice.send(BOB.public_key) == Sent(7, 0)
    assert core.statistics().mailboxes == core.statistics().connections == 1


def test_a_mailbox_with_several_connections() -> None:
    core = RendezvousCore()
    alice, bobs = Client(core, ALICE), [Client(core, BOB) for _ in range(3)]
    assert alice.send(BOB.public_key) == Sent(7, 3)
    assert [bob.drain() for bob in bobs] == [[Message(b"x")]] * 3
    core.disconnect(bobs[0].state)
    assert alice.send(BOB.public_key) == Sent(7, 2)


def test_a_letter_to_oneself() -> None:
    alice = Client(RendezvousCore(), ALICE)
    assert alice.send(ALICE.public_key) == Sent(7, 1)
    assert alice.drain() == [Message(b"x")]


def test_a_full_queue() -> None:
    core = RendezvousCore(RendezvousLimits(queue=2))
    alice, bob, other = Client(core, ALICE), Client(core, BOB), Client(core, BOB)
    assert [alice.send(BOB.public_key) for _ in range(2)] == [Sent(7, 2)] * 2
    other.drain()
    assert alice.send(BOB.public_key) == Sent(7, 1), "the one that reads gets it"
    other.drain()
    assert alice.send(BOB.public_key) == Sent(7, 1)
    assert alice.send(BOB.public_key) == Sent(7, 1)
    assert alice.send(BOB.public_key) == Sent(7, QUEUE_FULL)
    assert alice.woken == []
    assert len(bob.state.queue) == 2
    assert core.statistics().queued == 4


def test_over_the_rate() -> None:
    core = RendezvousCore(RendezvousLimits(sends_per_second=2.0, send_burst=3))
    alice = Client(core, ALICE)
    assert [alice.send(BOB.public_key) for _ in range(3)] == [Sent(7, 0)] * 3
    assert alice.send(BOB.public_key, now=T + 0.5) == Sent(7, 0)
    assert alice.send(BOB.public_key, now=T + 0.9) == Error(ErrorCode.RATE, "more SENDs than this server allows")
    assert alice.state.closing
    assert core.statistics().mailboxes == 0


def test_the_ninth_connection_replaces_the_first() -> None:
    core = RendezvousCore()
    bobs = [Client(core, BOB) for _ in range(8)]
    ninth = Client(core)
    ninth.say(register(BOB, Challenge(NONCE)))
    assert ninth.woken == [ninth.state, bobs[0].state]
    (error,) = bobs[0].drain()
    assert isinstance(error, Error)
    assert error.code == ErrorCode.REPLACED
    assert bobs[0].state.closing
    assert Client(core, ALICE).send(BOB.public_key) == Sent(7, 8)
    assert bobs[0].drain() == []


@pytest.mark.parametrize(
    ("frame", "code"),
    [
        (Send(1, bytes(32), b"x"), ErrorCode.PROTOCOL),
        (b"", ErrorCode.PROTOCOL),
        (b"\x03", ErrorCode.PROTOCOL),
        (b"\xff" * 40, ErrorCode.PROTOCOL),
        (Register(ALICE.public_key, bytes(64)), ErrorCode.BAD_SIGNATURE),
        (Register(BOB.public_key, register(ALICE, Challenge(NONCE)).signature), ErrorCode.BAD_SIGNATURE),
        (register(ALICE, Challenge(bytes(32))), ErrorCode.BAD_SIGNATURE),
        (
            Register(ALICE.public_key, ALICE.sign(b"warpgate-trio signal v1", NONCE + ALICE.public_key)),
            ErrorCode.BAD_SIGNATURE,
        ),
    ],
)
def test_before_registration(frame: FromClient | bytes, code: ErrorCode) -> None:
    core = RendezvousCore()
    client = Client(core)
    answer = client.say(frame)
    assert isinstance(answer, Error)
    assert answer.code == code
    assert client.state.closing
    assert client.woken == []
    assert (core.statistics().mailboxes, core.statistics().errors) == (0, 1)


def test_one_try_per_challenge() -> None:
    core = RendezvousCore()
    alice = Client(core, ALICE)
    answer = alice.say(register(ALICE, Challenge(NONCE)))
    assert answer == Error(ErrorCode.PROTOCOL, "REGISTER a second time")
    assert core.statistics().mailboxes == 0


def test_statistics() -> None:
    core = RendezvousCore()
    alice, bob = Client(core, ALICE), Client(core, BOB)
    Client(core)
    alice.send(BOB.public_key)
    alice.send(bytes(32))
    found = core.statistics()
    assert (found.connections, found.mailboxes, found.queued) == (3, 2, 1)
    assert (found.registrations, found.sends, found.handed_over, found.errors) == (2, 2, 1, 0)
    core.disconnect(bob.state)
    assert core.statistics().queued == 0


@settings(deadline=None, max_examples=40)
@given(st.lists(st.tuples(st.integers(0, 3), st.binary(max_size=60)), max_size=30))
def test_hostile_clients(steps: list[tuple[int, bytes]]) -> None:
    """Whatever unregistered clients say, they are answered with an ERROR, and who is registered is not disturbed."""
    core = RendezvousCore()
    bob = Client(core, BOB)
    strangers = [Client(core) for _ in range(4)]
    for number, data in steps:
        assert isinstance(strangers[number].say(data), Error)
    assert Client(core, ALICE).send(BOB.public_key) == Sent(7, 1)
    assert bob.drain() == [Message(b"x")]
