"""QUIC's first flights, from anybody who can send to the port or whom the node dials: no fault of qh3 escapes.

TLS messages are changed before they are encrypted, so that the changes reach the parsers behind the encryption: one
side of a real handshake sends something other than its TLS produced.  The keys of that handshake are new each time, so
an input here is a number, which determines the same changes in the same places.  Frames of any type go into Initial
packets, whose keys derive from a connection id in the packet itself (RFC 9001 §5.2).
"""

from __future__ import annotations

import hmac
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from random import Random
from typing import Final
from unittest.mock import patch

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand
from qh3.quic.tls_bridge import QuicTlsBridge, QuicTlsCryptoData

from tests.fuzz.mutation import mutated
from tests.fuzz.registry import target
from tests.identities import BOB
from warpgate_trio.carrier.quic_connection import DATAGRAM
from warpgate_trio.carrier.quic_protocol import QuicProtocol
from warpgate_trio.errors import CarrierError

ROUNDS: Final = 4
"""Round trips of datagrams: a handshake needs two."""
EXTENSIONS: Final = (0, 5, 10, 13, 16, 18, 27, 41, 42, 43, 44, 45, 49, 50, 51, 57, 0xFD00, 0xFE0D, 0x3A3A)
FRAMES: Final = (*range(0x20), 0x30, 0x31, 0x40, 0xAF)


def _number(random: Random, _: object) -> bytes:
    return random.randbytes(8)


@target(list, CarrierError, inputs=250, by=_number)
def quic_from_a_client(number: bytes) -> None:
    with saying_something_else(Random(number), client=True):
        meet(QuicProtocol.dialing(now=0.0), QuicProtocol.serving(BOB))


@target(list, CarrierError, inputs=250, by=_number)
def quic_from_a_server(number: bytes) -> None:
    tested = QuicProtocol.dialing(now=0.0)
    with saying_something_else(Random(number), client=False):
        meet(QuicProtocol.serving(BOB), tested)


@target(list, CarrierError, inputs=250, by=_number)
def quic_frames(number: bytes) -> None:
    """In Initial packets, to a server and to a client."""
    random = Random(number)
    server, client = QuicProtocol.serving(BOB), QuicProtocol.dialing(now=0.0)
    first = client.transmit(0.0)[0]
    destination, source = _connection_ids(first)
    for count in range(3):
        ids = random.randbytes(8), random.randbytes(random.choice((0, 8, 8, 20)))
        server.receive([_damaged(random, initial(*ids, frames(random), count, keys_of=ids[0], side=b"client in"))], 0.0)
        answer = initial(source, ids[1], frames(random), count, keys_of=destination, side=b"server in")
        client.receive([_damaged(random, answer)], 0.0)
    wind_up(server)
    wind_up(client)


def meet(forger: QuicProtocol, tested: QuicProtocol) -> None:
    """Exchange datagrams for a few rounds, then let time pass."""
    back = tested.transmit(0.0)  # a dialler's first flight
    for _ in range(ROUNDS):
        there: list[bytes] = []
        with suppress(Exception):  # the forger itself may fail
            forger.receive(back, 0.0)
            there = forger.transmit(0.0)
        tested.receive(there, 0.0)
        back = tested.transmit(0.0)
    wind_up(tested)


def wind_up(tested: QuicProtocol) -> None:
    assert tested.peer_certificate_key is None or len(tested.peer_certificate_key) == 32
    for now in (0.3, 200.0):
        _ = tested.deadline
        tested.handle_timer(now)
        tested.transmit(now)
    tested.close(200.0)


@contextmanager
def saying_something_else(random: Random, *, client: bool) -> Iterator[None]:
    """While the context is open, some of the TLS messages that one side sends are changed at random."""
    genuine = QuicTlsBridge.next_crypto_data
    offsets: dict[int, int] = {}

    def next_crypto_data(bridge: QuicTlsBridge) -> QuicTlsCryptoData | None:
        crypto = genuine(bridge)
        if crypto is None or bridge.configuration.is_client is not client:
            return crypto
        data = b"".join(
            changed_message(random, message) if not random.randrange(2) else message
            for message in messages(crypto.data)
        )
        epoch = int(crypto.epoch)
        offset, offsets[epoch] = offsets.get(epoch, 0), offsets.get(epoch, 0) + len(data)
        return QuicTlsCryptoData(crypto.epoch, offset, data)

    with patch.object(QuicTlsBridge, "next_crypto_data", next_crypto_data):
        yield


def messages(flight: bytes) -> Iterator[bytes]:
    """Split a flight into its handshake messages."""
    while flight:
        end = 4 + int.from_bytes(flight[1:4], "big")
        yield flight[:end]
        flight = flight[end:]


def changed_message(random: Random, message: bytes) -> bytes:
    """A handshake message, changed anywhere or in an extension; its length field is mostly right."""
    place = _extensions_at(message)
    if place is not None and random.randrange(3):
        body = message[4:place] + _vector(b"".join(changed_extensions(random, message[place + 2 :])))
    else:
        body = mutated(random, [message])[4:]
    kind = message[0] if random.randrange(12) else random.choice((0, 1, 2, 4, 5, 8, 11, 13, 15, 20, 24, 25, 254))
    length = len(body) if random.randrange(8) else random.choice((0, 1, len(body) + 1, 2**24 - 1))
    return bytes([kind]) + length.to_bytes(3, "big") + body


def _extensions_at(message: bytes) -> int | None:
    """Offset of the extensions of a ClientHello, ServerHello or EncryptedExtensions; None for other messages."""
    at = {1: 4 + 2 + 32, 2: 4 + 2 + 32, 8: 4}.get(message[0])
    if at is None or message[0] == 8:
        return at
    at += 1 + message[at]
    if message[0] == 2:
        return at + 3
    at += 2 + int.from_bytes(message[at : at + 2], "big")
    return at + 1 + message[at]


def changed_extensions(random: Random, data: bytes) -> list[bytes]:
    found: list[tuple[int, bytes]] = []
    while len(data) >= 4:
        end = 4 + int.from_bytes(data[2:4], "big")
        found.append((int.from_bytes(data[:2], "big"), data[4:end]))
        data = data[end:]
    for _ in range(random.choice((1, 1, 1, 2, 4))):
        if not found:
            break
        at = random.randrange(len(found))
        kind, content = found[at]
        match random.randrange(6):
            case 0:
                del found[at]
            case 1:
                found.insert(random.randrange(len(found) + 1), found[at])
            case 2:
                found[at] = random.choice(EXTENSIONS), content
            case 3:
                found[at] = kind, random.randbytes(random.choice((0, 1, 2, 3, 5, 40, 300)))
            case _:
                found[at] = kind, mutated(random, [content])
    return [kind.to_bytes(2, "big") + _vector(content) for kind, content in found]


def _vector(content: bytes) -> bytes:
    return (len(content) % 2**16).to_bytes(2, "big") + content


# -- packets -----------------------------------------------------------------------------------------------------------


def frames(random: Random) -> bytes:
    found = b""
    for _ in range(random.randrange(1, 6)):
        numbers = (0, 1, 2, 8, 20, 63, 100, 2**14 - 1, 2**30 - 1, 2**62 - 1, random.getrandbits(30))
        found += _varint(random.choice(FRAMES)) + b"".join(
            _varint(random.choice(numbers)) for _ in range(random.randrange(6))
        )
        found += random.randbytes(random.choice((0, 0, 4, 30)))
    return found


def _varint(value: int) -> bytes:
    for size, mark in ((1, 0), (2, 1), (4, 2), (8, 3)):
        if value < 1 << 8 * size - 2:
            return (value | mark << 8 * size - 2).to_bytes(size, "big")
    raise ValueError(value)


def _damaged(random: Random, datagram: bytes) -> bytes:
    return datagram if random.randrange(4) else mutated(random, [datagram])


def _connection_ids(datagram: bytes) -> tuple[bytes, bytes]:
    end = 6 + datagram[5]
    return datagram[6:end], datagram[end + 1 : end + 1 + datagram[end]]


def _keys(connection_id: bytes, side: bytes) -> tuple[bytes, bytes, bytes]:
    """Key, IV and header protection key of Initial packets (RFC 9001 §5.2)."""
    salt = bytes.fromhex("38762cf7f55934b34d179ae6a4c80cadccbb7f0a")
    secret = _expand(hmac.digest(salt, connection_id, "sha256"), side, 32)
    return _expand(secret, b"quic key", 16), _expand(secret, b"quic iv", 12), _expand(secret, b"quic hp", 16)


def _expand(secret: bytes, label: bytes, length: int) -> bytes:
    info = length.to_bytes(2, "big") + bytes([6 + len(label)]) + b"tls13 " + label + b"\0"
    return HKDFExpand(hashes.SHA256(), length, info).derive(secret)


def initial(destination: bytes, source: bytes, payload: bytes, number: int, *, keys_of: bytes, side: bytes) -> bytes:
    """An Initial packet that fills a datagram (RFC 9000 §17.2.2, RFC 9001 §5)."""
    key, iv, header_key = _keys(keys_of, side)
    head = b"\xc3\0\0\0\1" + bytes([len(destination)]) + destination + bytes([len(source)]) + source + b"\0"
    payload = payload.ljust(DATAGRAM - len(head) - 2 - 4 - 16, b"\0")
    head += (len(payload) + 20 | 1 << 14).to_bytes(2, "big") + number.to_bytes(4, "big")
    nonce = (int.from_bytes(iv, "big") ^ number).to_bytes(12, "big")
    sealed = AESGCM(key).encrypt(nonce, payload, head)
    mask = Cipher(algorithms.AES(header_key), modes.ECB()).encryptor().update(sealed[:16])
    masked = bytes([head[0] ^ mask[0] & 15]) + head[1:-4]
    return masked + bytes(a ^ b for a, b in zip(head[-4:], mask[1:5], strict=True)) + sealed
