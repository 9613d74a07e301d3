"""The rendezvous protocol: golden frames, hostile bytes, mailboxes and their bounds."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.identities import ALICE, BOB
from warpgate_trio.errors import RemoteProtocolError, SignalUnsupported
from warpgate_trio.identity import Identity
from warpgate_trio.servers.relay_frames import MAX_RELAY, Answer, Call, Relay, RelayCredit, RelayEnd, Ring
from warpgate_trio.servers.rendezvous_core import QUEUED_OVERHEAD, RendezvousCore, RendezvousLimits, ServerConnection
from warpgate_trio.servers.rendezvous_frames import (
    MAX_FRAME,
    MAX_PAYLOAD,
    QUEUE_FULL,
    BrokerExtra,
    Challenge,
    Error,
    ErrorCode,
    FromClient,
    FromServer,
    Message,
    Register,
    Register2,
    Register3,
    Registered,
    Registrant,
    Send,
    Send2,
    Sent,
    decode_from_client,
    decode_from_server,
    register,
    register_2,
    server_name,
)

NONCE = bytes(range(32))
INSTANCE = b"instance"
NAME = "relay.example:443"
T = 1000.0

REGISTER_GOLDEN = (
    "0203a107bff3ce10be1d70dd18e74bc09967e4d6309ba50d5f1ddc8664125531b8"
    "aa1cc9c4bc8c75a828633b7c6fba6473ddca336d9f0f615450fb9bd4f418b7a3"
    "fdb42ba5d77101e17e9e40790e60fa7429f35b4af48917b11009767dc9ab6103"
)
REGISTER2_GOLDEN = (
    "0803a107bff3ce10be1d70dd18e74bc09967e4d6309ba50d5f1ddc8664125531"
    "b8696e7374616e63652c2f8a0cd8da64f65b8613dc905507f38ffe3786065a0a"
    "5d06f802dc6ff7ffa36d82356faa843e0f4e84028f132050f8a3fcef96593b9d"
    "6b7d853c4d1373c70a72656c61792e6578616d706c653a343433"
)
FROM_SERVER: list[tuple[str, FromServer]] = [
    ("0101" + NONCE.hex(), Challenge(NONCE)),
    ("0102" + NONCE.hex(), Challenge(NONCE, 2)),
    ("03", Registered()),
    ("050000002a0003", Sent(42, 3)),
    ("05ffffffffffff", Sent(2**32 - 1, QUEUE_FULL)),
    ("0668656c6c6f", Message(b"hello")),
    ("030003", Registered(3)),
    ("0c0000000268656c6c6f", Ring(2, b"hello")),
    ("0704c3bc62657220746865206c696d6974", Error(ErrorCode.RATE, "über the limit")),
    ("07ff", Error(255, "")),
]
FROM_CLIENT: list[tuple[str, FromClient]] = [
    (REGISTER_GOLDEN, register(ALICE, Challenge(NONCE))),
    (REGISTER2_GOLDEN, Registrant(INSTANCE).answer(ALICE, Challenge(NONCE, 2), NAME)),
    ("040000002a" + "11" * 32 + "68656c6c6f", Send(42, b"\x11" * 32, b"hello")),
    ("090000002a" + "11" * 32 + "22" * 8 + "68656c6c6f", Send2(42, b"\x11" * 32, b"\x22" * 8, b"hello")),
]

REGISTER3 = Register3(b"\x11" * 32, INSTANCE, b"\x22" * 64, 1, b"\x33" * 32, NAME)
FROM_CLIENT += [
    ("0a" + "11" * 32 + INSTANCE.hex() + "22" * 64 + "0001" + "33" * 32 + NAME.encode().hex(), REGISTER3),
    ("0b00000001" + "11" * 32 + "22" * 8 + "68656c6c6f", Call(1, b"\x11" * 32, b"\x22" * 8, b"hello")),
]
BOTH_WAYS: list[tuple[str, Answer | Relay | RelayCredit | RelayEnd]] = [
    ("0d0000000268656c6c6f", Answer(2, b"hello")),
    ("0e0000000268656c6c6f", Relay(2, b"hello")),
    ("0f000000020000000000010000", RelayCredit(2, 65536)),
    ("100000000207", RelayEnd(2, 7)),
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
    with pytest.raises(RemoteProtocolError, match=r"not a frame of a rendezvous (client|server)"):
        wrong_way(bytes.fromhex(golden))


@pytest.mark.parametrize(("golden", "frame"), BOTH_WAYS)
def test_golden_frames_of_circuits(golden: str, frame: Answer | Relay | RelayCredit | RelayEnd) -> None:
    assert frame.encode().hex() == golden
    assert decode_from_server(bytes.fromhex(golden)) == decode_from_client(bytes.fromhex(golden)) == frame


def test_widths_are_exact() -> None:
    for golden, frame in [*FROM_SERVER, *BOTH_WAYS]:
        data = bytes.fromhex(golden)
        if not isinstance(frame, Message | Error | Ring | Answer | Relay):
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
    assert len(Relay(1, bytes(MAX_RELAY)).encode()) == MAX_FRAME
    assert decode_from_client(Send(1, bytes(32), bytes(MAX_PAYLOAD)).encode()) == Send(1, bytes(32), bytes(MAX_PAYLOAD))


def test_error_text_is_bounded_and_harmless() -> None:
    assert len(Error(1, "x" * 500).encode()) == 202
    assert decode_from_server(b"\x07\x01two\nlines\xff\x1b[31m") == Error(1, "two?lines\ufffd?[31m")
    for wrong in (b"\x07", b"\x07\x01" + b"x" * 201):
        with pytest.raises(RemoteProtocolError, match="ERROR frame of"):
            decode_from_server(wrong)


def test_a_version_of_the_future() -> None:
    with pytest.raises(SignalUnsupported, match="version 4, this release speaks 1 to 3"):
        decode_from_server(b"\x01\x04" + bytes(99))


@settings(deadline=None)
@given(
    st.binary(max_size=120)
    | st.binary(max_size=120).map(lambda data: b"\x01\x01" + data)
    | st.binary(max_size=400).map(lambda data: b"\x08" + data)
    | st.builds(lambda kind, data: bytes([kind]) + data, st.integers(0x0A, 0x10), st.binary(max_size=200))
)
def test_hostile_frames(data: bytes) -> None:
    for decode in (decode_from_server, decode_from_client):
        try:
            frame = decode(data)
        except (RemoteProtocolError, SignalUnsupported):
            continue
        if not isinstance(frame, Error):  # an ERROR's text is sanitised
            assert frame.encode() == data


# --- the server ---


class Client:
    """One client on a core, and everything that the server has written to it."""

    def __init__(
        self,
        core: RendezvousCore,
        identity: Identity | None = None,
        now: float = T,
        *,
        version: int = 1,
        instance: bytes = INSTANCE,
        host: str = "192.0.2.1",
    ) -> None:
        self.core = core
        self.written: list[FromServer] = []
        self.state, challenge = core.connect(NONCE, now, host=host, version=version, names={NAME})
        assert decode_from_server(challenge) == Challenge(NONCE, version)
        self.woken: list[ServerConnection] = []
        if identity is not None:
            self.say(Registrant(instance).answer(identity, Challenge(NONCE, version), NAME), now)
            assert self.drain() == [Registered()]

    def say(self, frame: FromClient | bytes, now: float = T) -> FromServer | None:
        data = frame if isinstance(frame, bytes) else frame.encode()
        answer, self.woken = self.core.receive(self.state, data, now)
        return None if answer is None else decode_from_server(answer)

    def send(self, receiver: bytes, payload: bytes = b"x", now: float = T) -> FromServer | None:
        return self.say(Send(7, receiver, payload), now)

    def drain(self) -> list[FromServer]:
        frames = []
        while (data := self.core.transmit(self.state, 0.0)) is not None:
            frames.append(decode_from_server(data))
            self.core.written(self.state)
        return frames

    def leave(self, now: float = T) -> None:
        self.core.disconnect(self.state, now)


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
    bob.leave()
    bob.leave()
    assert alice.send(BOB.public_key) == Sent(7, 0)
    assert core.statistics().mailboxes == core.statistics().connections == 1


def test_a_mailbox_with_several_connections() -> None:
    core = RendezvousCore()
    alice, bobs = Client(core, ALICE), [Client(core, BOB) for _ in range(3)]
    assert alice.send(BOB.public_key) == Sent(7, 3)
    assert [bob.drain() for bob in bobs] == [[Message(b"x")]] * 3
    bobs[0].leave()
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
    assert answer == Error(ErrorCode.PROTOCOL, "a second REGISTER")
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
    bob.leave()
    assert core.statistics().queued == 0


@settings(deadline=None, max_examples=40)
@given(st.lists(st.tuples(st.integers(0, 3), st.binary(max_size=60)), max_size=30))
def test_hostile_clients(steps: list[tuple[int, bytes]]) -> None:
    """Unregistered clients get an ERROR for any input, and registered ones are not disturbed."""
    core = RendezvousCore()
    bob = Client(core, BOB)
    strangers = [Client(core) for _ in range(4)]
    for number, data in steps:
        assert isinstance(strangers[number].say(data), Error)
    assert Client(core, ALICE).send(BOB.public_key) == Sent(7, 1)
    assert bob.drain() == [Message(b"x")]


# --- version 2 ---


@pytest.mark.parametrize(
    ("host", "port", "name"),
    [
        ("relay.example", 443, "relay.example:443"),
        ("Relay.Example.", 80, "relay.example:80"),
        ("192.0.2.1", 8765, "192.0.2.1:8765"),
        ("2001:DB8:0::1", 8765, "[2001:db8::1]:8765"),
        ("::ffff:192.0.2.1", 8765, "192.0.2.1:8765"),
        ("fe80::1%eth0", 8765, "[fe80::1]:8765"),
        ("localhost", 1, "localhost:1"),
    ],
)
def test_the_name_of_a_server(host: str, port: int, name: str) -> None:
    assert server_name(host, port) == name


@pytest.mark.parametrize("name", [b"", b"x" * 262, b"relay\xff:1", b"relay\n:1"])
def test_names_that_are_none(name: bytes) -> None:
    data = bytes.fromhex(REGISTER2_GOLDEN)[:105] + name
    with pytest.raises(RemoteProtocolError, match="REGISTER2 frame without a name"):
        decode_from_client(data)


def test_an_instance_is_eight_random_bytes() -> None:
    for wrong in (bytes(8), b"short"):
        with pytest.raises(ValueError, match="8 random bytes"):
            Registrant(wrong)


def test_both_versions_write_to_each_other() -> None:
    core = RendezvousCore()
    old, new = Client(core, ALICE), Client(core, BOB, version=2)
    assert old.send(BOB.public_key, b"to the new") == Sent(7, 1)
    assert new.send(ALICE.public_key, b"to the old") == Sent(7, 1)
    assert new.drain() == [Message(b"to the new")]
    assert old.drain() == [Message(b"to the old")]


def test_a_registration_for_another_server_is_worth_nothing() -> None:
    """A server that passes on this server's challenge gets a signature over its own name."""
    core = RendezvousCore()
    relayed = Client(core, version=2)
    answer = relayed.say(Registrant(INSTANCE).answer(BOB, Challenge(NONCE, 2), "evil.example:443"))
    assert isinstance(answer, Error)
    assert answer.code == ErrorCode.UNKNOWN_NAME
    assert "'evil.example:443'" in answer.text
    assert "--public-url" in answer.text
    renamed = register_2(BOB, Challenge(NONCE, 2), INSTANCE, "evil.example:443")
    lying = Client(core, version=2).say(Register2(renamed.key, renamed.instance, renamed.signature, NAME))
    assert isinstance(lying, Error)
    assert lying.code == ErrorCode.BAD_SIGNATURE
    assert core.statistics().mailboxes == 0


def test_the_text_about_a_long_name_is_whole() -> None:
    client = Client(RendezvousCore(), version=2)
    answer = client.say(Registrant(INSTANCE).answer(BOB, Challenge(NONCE, 2), "x" * 255 + ":65535"))
    assert isinstance(answer, Error)
    assert answer.text.endswith("with --public-url and the URL that you use")


@pytest.mark.parametrize("version", [1, 2])
def test_a_registration_is_of_the_version_of_its_challenge(version: int) -> None:
    """A hostile server might have a client sign a version 2 challenge as one of version 1."""
    client = Client(RendezvousCore(), version=version)
    other = Registrant(INSTANCE).answer(BOB, Challenge(NONCE, 3 - version), NAME)
    answer = client.say(other)
    assert isinstance(answer, Error)
    assert answer.code == ErrorCode.PROTOCOL


@pytest.mark.parametrize("field", ["key", "instance", "name", "nonce"])
def test_every_field_is_signed(field: str) -> None:
    core = RendezvousCore()
    client = Client(core, version=2)
    good = register_2(BOB, Challenge(NONCE, 2), INSTANCE, NAME)
    if field == "nonce":
        good = register_2(BOB, Challenge(bytes(32), 2), INSTANCE, NAME)
    else:
        client.state.names = {NAME, "relay.example:444"}
        other: dict[str, Any] = {"key": ALICE.public_key, "instance": b"INSTANCE", "name": "relay.example:444"}
        good = msgspec.structs.replace(good, **{field: other[field]})
    answer = client.say(good)
    assert isinstance(answer, Error)
    assert answer.code == ErrorCode.BAD_SIGNATURE


def test_version_1_neither_evicts_nor_shadows_version_2() -> None:
    core = RendezvousCore(RendezvousLimits(connections_per_key=2))
    alice, bob = Client(core, ALICE), Client(core, BOB, version=2)
    for _ in range(3):
        relayed = Client(core)
        answer = relayed.say(register(BOB, Challenge(NONCE)))
        assert isinstance(answer, Error)
        assert answer.code == ErrorCode.OLD_VERSION
    assert alice.send(BOB.public_key) == Sent(7, 1)
    assert bob.drain() == [Message(b"x")]


def test_version_2_ends_what_version_1_has_opened() -> None:
    core = RendezvousCore()
    relayed = [Client(core, BOB) for _ in range(3)]
    bob = Client(core, version=2)
    bob.say(Registrant(INSTANCE).answer(BOB, Challenge(NONCE, 2), NAME))
    assert set(bob.woken) == {bob.state, *(each.state for each in relayed)}
    for each in relayed:
        (error,) = each.drain()
        assert isinstance(error, Error)
        assert error.code == ErrorCode.REPLACED
        assert each.state.closing
    assert bob.drain() == [Registered()]
    assert Client(core, ALICE).send(BOB.public_key) == Sent(7, 1)


def test_a_mailbox_that_version_2_has_left_stays_closed_to_version_1_for_a_while() -> None:
    """While its owner is away, nobody else can claim his mailbox with a registration of version 1."""
    limits = RendezvousLimits(key_memory=3600.0)
    core = RendezvousCore(limits)
    alice, bob = Client(core, ALICE), Client(core, BOB, version=2)
    bob.leave(T + 10_000)
    late = T + 10_000 + limits.key_memory
    answer = Client(core).say(register(BOB, Challenge(NONCE)), late - 1)
    assert isinstance(answer, Error)
    assert answer.code == ErrorCode.OLD_VERSION
    assert alice.send(BOB.public_key, now=late - 1) == Sent(7, 0)
    Client(core, BOB, late)
    assert alice.send(BOB.public_key, now=late) == Sent(7, 1)


def test_keys_that_have_left_are_remembered_in_number() -> None:
    core = RendezvousCore(RendezvousLimits(keys=2))
    identities = [Identity.from_seed(bytes([n]) * 32) for n in range(3)]
    for identity in (*identities[1::-1], identities[1], identities[2]):  # 1, 0, 1 again, 2
        Client(core, identity, version=2).leave()
    Client(core, identities[0])
    for identity in identities[1:]:
        assert isinstance(Client(core).say(register(identity, Challenge(NONCE))), Error)


def test_one_of_two_processes_with_one_key_is_written_to() -> None:
    core = RendezvousCore()
    alice = Client(core, ALICE, version=2)
    listening, calling = (Client(core, BOB, version=2, instance=each) for each in (b"listener", b"thecallr"))
    assert alice.say(Send2(7, BOB.public_key, b"listener", b"x")) == Sent(7, 1)
    assert (listening.drain(), calling.drain()) == ([Message(b"x")], [])
    assert alice.say(Send2(7, BOB.public_key, bytes(8), b"y")) == Sent(7, 2)
    assert alice.say(Send2(7, BOB.public_key, b"whonever", b"z")) == Sent(7, 0)


# --- who registers ---


def test_who_has_seen_version_2_never_takes_1_there_again() -> None:
    registrant = Registrant(INSTANCE)
    assert isinstance(registrant.answer(ALICE, Challenge(NONCE), NAME), Register)
    assert isinstance(registrant.answer(ALICE, Challenge(NONCE, 2), NAME), Register2)
    with pytest.raises(RemoteProtocolError, match="spoke version 2 before and claims version 1 now"):
        registrant.answer(ALICE, Challenge(NONCE), NAME)
    assert isinstance(registrant.answer(ALICE, Challenge(NONCE), "old.example:443"), Register)
    assert isinstance(Registrant(INSTANCE).answer(ALICE, Challenge(NONCE), NAME), Register)


@pytest.mark.parametrize("extra", BrokerExtra)
def test_a_broker_that_closes_is_spared_once(extra: BrokerExtra) -> None:
    registrant = Registrant(INSTANCE)
    patience = [(True, False)] * (extra.value - 1)
    enough = [*patience, (True, True)]
    for closed, spared in (*patience, (False, False), *enough, (True, False), *enough, (False, False)):
        registrant.note_broker("mqtt://a", extra, closed=closed)
        asked = [("mqtt://b", extra), *(("mqtt://a", each) for each in BrokerExtra if each is not extra)]
        assert registrant.spares("mqtt://a", extra) is spared
        assert not any(registrant.spares(*each) for each in asked)


# --- bytes that wait ---


def test_one_address_does_not_fill_the_memory() -> None:
    """Many connections of one address send to each other, and none of them reads."""
    core = RendezvousCore(RendezvousLimits(queued_bytes=4_000_000, queued_bytes_per_address=500_000))
    keys = [Identity.from_seed(bytes([n, 1]) * 16) for n in range(40)]
    evil = [Client(core, key, host="198.51.100.7") for key in keys]
    answers = [evil[0].send(key.public_key, bytes(MAX_PAYLOAD), T + n) for n, key in enumerate(keys)]
    assert answers == [Sent(7, 1)] * 30 + [Sent(7, QUEUE_FULL)] * 10
    bob, carol = Client(core, BOB, host="192.0.2.1"), Client(core, ALICE, host="192.0.2.2")
    assert carol.send(BOB.public_key) == Sent(7, 1), "others send and receive as ever"
    assert evil[0].send(BOB.public_key, bytes(MAX_PAYLOAD), T + 50) == Sent(7, QUEUE_FULL), (
        "as a sender it has its share too"
    )
    assert carol.send(keys[0].public_key, bytes(MAX_PAYLOAD)) == Sent(7, QUEUE_FULL)
    for each in evil:
        each.leave()
    assert core._for.held == core._from.held == len(bob.state.queue[0].frame) + QUEUED_OVERHEAD
    assert bob.drain() == [Message(b"x")]
    assert core._for.held == core._from.held == 0


def test_a_frame_counts_until_it_is_written() -> None:
    core = RendezvousCore()
    alice, bob = Client(core, ALICE), Client(core, BOB)
    alice.send(BOB.public_key, b"hello")
    assert core.transmit(bob.state, 0.0) == Message(b"hello").encode()
    assert core._for.held == len(Message(b"hello").encode()) + QUEUED_OVERHEAD
    core.written(bob.state)
    core.written(bob.state)  # the connection ended at the same moment
    assert core._for.held == 0
