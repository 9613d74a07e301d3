"""QUIC's first flights as an attacker might make them: an exception of the library ends only the start it concerns."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Final, NoReturn

import pytest
from qh3 import _hazmat, tls
from qh3.quic.connection import QuicConnection

from tests.identities import BOB
from tests.panicking import PanicException
from tests.quic_flights import (
    KEY_SHARE,
    SUPPORTED_GROUPS,
    X25519,
    X25519MLKEM768,
    crypto,
    join_hello,
    key_shares,
    make_initial,
    mutants,
    open_initial,
    server_hello,
    split_hello,
)
from tests.unit.test_quic_protocol import RTT, World
from warpgate_trio.carrier.quic_connection import Connection
from warpgate_trio.carrier.quic_protocol import QuicProtocol
from warpgate_trio.carrier.quic_starts import HANDSHAKE_MAX, MAX_ALL_STARTS, MAX_STARTS
from warpgate_trio.errors import CarrierError, is_panic

SERVING: Final = QuicProtocol.serving(BOB)._configuration
STRANGER: Final = b"stranger"


def listener() -> QuicProtocol:
    return QuicProtocol(SERVING)


def hello_of(dialler: QuicProtocol) -> tuple[bytes, bytes, bytes]:
    """From its first flight: destination id, source id, ClientHello."""
    opened = [open_initial(datagram) for datagram in dialler.transmit(0.0)]
    destination, source, _ = opened[0]
    return destination, source, b"".join(part for _, _, part in opened)


def first_flight(hello: bytes, *, destination: bytes = b"anywhere") -> list[bytes]:
    parts = [hello[at : at + 1000] for at in range(0, len(hello), 1000)]
    return [
        make_initial(destination, STRANGER, crypto(part, 1000 * number), number=number)
        for number, part in enumerate(parts)
    ]


def with_shares(*shares: tuple[int, bytes]) -> bytes:
    """A valid ClientHello with other key shares, from `STRANGER`."""
    dialler = QuicProtocol.dialing(now=0.0)
    _, source, hello = hello_of(dialler)
    head, extensions = split_hello(hello.replace(source, STRANGER))
    return join_hello(head, [(n, key_shares(*shares) if n == KEY_SHARE else data) for n, data in extensions])


def endure(protocol: QuicProtocol, datagrams: list[bytes]) -> None:
    """Call everything that a carrier calls."""
    protocol.receive(datagrams, 0.1)
    protocol.transmit(0.1)
    if (timer := protocol.deadline) < math.inf:
        protocol.handle_timer(timer)
        protocol.transmit(timer)


def serves_the_dialler(server: QuicProtocol) -> None:
    world = World(server=server)
    world.until(lambda: world.dialler.ready and world.server.ready, limit=1)
    world.dialler.send(b"hello")
    world.until(lambda: world.got[False] == b"hello", limit=2)


# --- the listener ---


@pytest.mark.parametrize(
    "shares",
    [
        [(X25519MLKEM768, b"\0")],
        [(X25519MLKEM768, bytes(1216))],
        [(X25519, bytes(31))],
        [(X25519, b"")],
        [(0x0017, b"\x04" + bytes(64))],
        [],
    ],
)
def test_a_key_share_that_is_not_ours_is_refused_and_the_dialler_is_served(shares: list[tuple[int, bytes]]) -> None:
    server = listener()
    endure(server, first_flight(with_shares(*shares)))
    assert server.failure is None
    assert not server._flights._starts
    serves_the_dialler(server)


def test_garbled_first_flights_end_nothing_and_leave_nothing() -> None:
    hello = with_shares((X25519, bytes(range(32))))
    for garbled in mutants(hello, 150, seed=11):
        server = listener()
        endure(server, first_flight(garbled))
        assert server.failure is None
        assert len(server._flights._starts) <= 1
    for size in range(0, len(hello), 7):
        server = listener()
        endure(server, first_flight(hello[:1] + max(0, size - 4).to_bytes(3, "big") + hello[4:size]))
        assert server.failure is None


def test_garbled_frames_end_nothing() -> None:
    server = listener()
    frames = crypto(b"\x01\0\0\x10" + bytes(16)) + b"\x02\0\0\0\0" + b"\x1c\0\0\x03abc"
    for garbled in mutants(bytes(4) + frames, 100, seed=12):
        server = listener()
        endure(server, [make_initial(b"anywhere", STRANGER, garbled[4:])])
        assert server.failure is None
    serves_the_dialler(server)


def test_forged_flights_take_no_place_from_the_dialler() -> None:
    """The rule of `quic_starts`: the first flights are processed at once, later ones must answer a Retry."""
    server = listener()
    good = with_shares((X25519, bytes(range(32))))
    for number in range(100):
        server.receive(first_flight(good, destination=b"forged%02d" % number), 0.0)
        answers = server.transmit(0.0)
        if number >= MAX_STARTS:
            assert [len(answer) for answer in answers] == [63]  # a Retry has 5 % of the bytes that it answers
    assert len(server._flights._starts) == MAX_STARTS
    world = World(server=server)
    world.until(lambda: world.dialler.ready, limit=2 * RTT + 0.001)  # the Retry costs one round trip more
    world.until(lambda: world.server.ready)
    assert not server._flights._starts


def test_a_token_cannot_be_made_up() -> None:
    server = listener()
    for number in range(MAX_STARTS):
        server.receive(first_flight(with_shares((X25519, bytes(range(32)))), destination=b"forged%02d" % number), 0.0)
    begun = server._flights._begun
    dialler = QuicProtocol.dialing(now=0.0)
    server.receive(dialler.transmit(0.0), 0.0)
    retry = server.transmit(0.0)[0]
    dialler.receive([retry], 0.1)
    (again,) = dialler.transmit(0.1)
    for at in (*range(6, 14), *range(24, 48)):  # the destination id, and the token
        server.receive([again[:at] + bytes([again[at] ^ 1]) + again[at + 1 :]], 0.1)
    assert server._flights._begun == begun
    other = listener()
    other._flights._begun = MAX_STARTS
    other.receive([again], 0.1)  # a token of another listener
    assert other._flights._begun == MAX_STARTS
    server.receive([again], 0.1)
    assert server._flights._begun == begun + 1


def test_the_starts_of_a_listener_are_bounded_in_all() -> None:
    server = listener()
    for _ in range(2 * MAX_ALL_STARTS):
        dialler = QuicProtocol.dialing(now=0.0)
        for now in (0.0, 0.1, 0.2):
            server.receive(dialler.transmit(now), now)
            dialler.receive(server.transmit(now), now)
            dialler.failure = None
        server._flights._starts.clear()
        server._connection = None
    assert server._flights._begun == MAX_ALL_STARTS


def test_a_start_that_says_too_much_is_dropped() -> None:
    server = listener()
    announced = b"\x01\xff\xff\xff"  # the start of a ClientHello of 16 MiB
    for number in range(HANDSHAKE_MAX // 1200 + 1):
        part = announced + bytes(996) if number == 0 else bytes(1000)
        server.receive([make_initial(b"anywhere", STRANGER, crypto(part, number * 1000), number=number)], 0.0)
    assert not server._flights._starts
    assert server.failure is None


def test_a_handshake_that_says_too_much_ends_the_dialling() -> None:
    dialler = QuicProtocol.dialing(now=0.0)
    destination, source, _ = hello_of(dialler)
    for number in range(HANDSHAKE_MAX // 1000):
        dialler.receive([make_initial(source, STRANGER, b"\x01", number=number, answer_to=destination)], 0.0)
    assert dialler.failure == "too many bytes before the end of the QUIC handshake"


# --- the dialler ---


@pytest.mark.parametrize(
    ("group", "key"),
    [
        (X25519, bytes(32)),
        (X25519, bytes(5)),
        (X25519MLKEM768, bytes(1120)),
        (X25519MLKEM768, b""),
        (0x0017, bytes(65)),
        (0, b""),
    ],
)
def test_an_answer_with_another_key_share(group: int, key: bytes) -> None:
    dialler = QuicProtocol.dialing(now=0.0)
    destination, source, hello = hello_of(dialler)
    session = hello[39 : 39 + hello[38]]
    endure(dialler, [make_initial(source, STRANGER, crypto(server_hello(session, group, key)), answer_to=destination)])
    assert not dialler.ready


def test_garbled_answers_end_the_dialling_at_most() -> None:
    failures = set()
    answer = server_hello(b"", X25519, bytes(range(32)))
    for garbled in mutants(answer, 120, seed=13):
        dialler = QuicProtocol.dialing(now=0.0)
        destination, source, _ = hello_of(dialler)
        endure(dialler, [make_initial(source, STRANGER, crypto(garbled), answer_to=destination)])
        failures.add(dialler.failure)
        dialler.close(1.0)
    assert None in failures
    assert len(failures) > 1


# --- X25519 alone ---


def test_a_dialler_offers_x25519_alone() -> None:
    _, _, hello = hello_of(QuicProtocol.dialing(now=0.0))
    extensions = dict(split_hello(hello)[1])
    groups = extensions[SUPPORTED_GROUPS][2:]
    offered = [int.from_bytes(groups[at : at + 2], "big") for at in range(0, len(groups), 2)]
    assert [group for group in offered if group & 0x0F0F != 0x0A0A] == [X25519]  # without the reserved ones, RFC 8701
    assert X25519.to_bytes(2, "big") + b"\0\x20" in extensions[KEY_SHARE]
    assert len(extensions[KEY_SHARE]) < 50


def test_a_dialler_that_offers_more_gets_x25519() -> None:
    """As older releases do: they offer ML-KEM first."""
    world = World()
    connection = Connection(world.dialler._configuration)
    connection._quic = QuicConnection(configuration=world.dialler._configuration)  # type: ignore[assignment]
    world.dialler._connection = connection
    connection.connect(0.0)
    context: Any = connection._quic.tls
    assert context._x25519_kyber_768_private_key is not None
    world.until(lambda: world.dialler.ready and world.server.ready)
    assert world.server._connection is not None
    served: Any = world.server._connection._quic.tls
    assert served._x25519_private_key is not None
    assert served._x25519_kyber_768_private_key is None


def test_other_users_of_the_library_keep_what_they_have() -> None:
    world = World()
    world.until(lambda: world.dialler.ready)
    assert tls.Context._server_handle_hello.__globals__ is vars(tls)
    assert tls.Group.X25519ML768 in tls.Context(is_client=True)._supported_groups


# --- the boundary ---


def raising(kind: type[BaseException]) -> Callable[..., NoReturn]:
    def fail(*_args: object, **_kwargs: object) -> NoReturn:
        raise kind("boo")

    return fail


def test_a_real_panic_is_known_for_one(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RUST_BACKTRACE", "0")  # a backtrace would take half a second
    with pytest.raises(BaseException, match="mid > len") as caught:
        _hazmat.X25519ML768KeyExchange().exchange(b"\0")
    assert is_panic(caught.value)
    assert "panicked" in capfd.readouterr().err  # written by Rust, and cannot be suppressed


@pytest.mark.parametrize(
    "kind", [PanicException, IndexError, UnicodeDecodeError, TypeError, AssertionError, RecursionError]
)
@pytest.mark.parametrize("call", ["receive_many_datagrams", "datagrams_to_send", "handle_timer", "next_event"])
def test_what_the_library_raises_ends_the_connection_and_it_is_not_called_again(
    kind: type[BaseException], call: str
) -> None:
    world = World()
    world.until(lambda: world.dialler.ready and world.server.ready)
    connection = world.dialler._connection
    assert connection is not None
    error = kind if kind is not UnicodeDecodeError else UnicodeError
    setattr(connection._quic, call, raising(error))
    world.dialler.receive([b"x"], world.now)
    world.dialler.transmit(world.now)
    world.dialler.handle_timer(world.now)
    assert world.dialler.failure is not None
    assert connection.broken
    for name in ("receive_many_datagrams", "datagrams_to_send", "handle_timer", "next_event", "get_timer", "close"):
        setattr(connection._quic, name, lambda *_args, **_kwargs: pytest.fail("it was called again"))
    endure(world.dialler, [b"y"])
    world.dialler.send(b"more")
    world.dialler.send_end()
    assert world.dialler.backlog == 0
    assert not world.dialler.delivered
    with pytest.raises(CarrierError):
        _ = world.dialler.peer_certificate_key
    assert world.dialler.close(world.now) == []


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit, MemoryError])
def test_what_is_not_the_librarys_passes(kind: type[BaseException]) -> None:
    dialler = QuicProtocol.dialing(now=0.0)
    assert dialler._connection is not None
    dialler._connection._quic.receive_datagram = raising(kind)  # type: ignore[method-assign]
    with pytest.raises(kind):
        dialler.receive([b"x"], 0.0)
    assert dialler.failure is None


def test_a_start_that_cannot_even_be_begun_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    server = listener()
    flight = first_flight(with_shares((X25519, bytes(range(32)))))
    with monkeypatch.context() as patch:
        patch.setattr("warpgate_trio.carrier.quic_connection._Quic", raising(PanicException))
        server.receive(flight, 0.0)
    assert server.failure is None
    assert not server._flights._starts
    serves_the_dialler(server)
