"""First flights of QUIC.  Anybody can make them: Initial keys are derived from the packet itself (RFC 9001 §5.2)."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Final

from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF, HKDFExpand

SALT: Final = bytes.fromhex("38762cf7f55934b34d179ae6a4c80cadccbb7f0a")
X25519: Final = 0x001D
X25519MLKEM768: Final = 0x11EC
KEY_SHARE: Final = 51
SUPPORTED_GROUPS: Final = 10


def _expand(secret: bytes, label: bytes, length: int) -> bytes:
    info = length.to_bytes(2, "big") + bytes([6 + len(label)]) + b"tls13 " + label + b"\0"
    return HKDFExpand(SHA256(), length, info).derive(secret)


def _keys(destination: bytes, *, server: bool) -> tuple[bytes, bytes, bytes]:
    initial = HKDF.extract(SHA256(), SALT, destination)
    secret = _expand(initial, b"server in" if server else b"client in", 32)
    return _expand(secret, b"quic key", 16), _expand(secret, b"quic iv", 12), _expand(secret, b"quic hp", 16)


def varint(value: int) -> bytes:
    if value < 0x4000:
        return bytes([value]) if value < 64 else (value | 0x4000).to_bytes(2, "big")
    return (value | 0x80000000).to_bytes(4, "big")


def crypto(data: bytes, offset: int = 0) -> bytes:
    """A CRYPTO frame."""
    return b"\x06" + varint(offset) + varint(len(data)) + data


def make_initial(
    destination: bytes, source: bytes, frames: bytes, *, number: int = 0, answer_to: bytes | None = None
) -> bytes:
    """One datagram: a client's, or a server's to the client whose first Destination Connection ID was `answer_to`."""
    key, iv, mask_key = _keys(answer_to or destination, server=answer_to is not None)
    head = b"\xc3\0\0\0\1" + bytes([len(destination)]) + destination + bytes([len(source)]) + source + b"\0"
    frames += bytes(max(0, 1200 - len(head) - 2 - 4 - len(frames) - 16))
    head += (4 + len(frames) + 16 | 0x4000).to_bytes(2, "big") + number.to_bytes(4, "big")
    nonce = (int.from_bytes(iv, "big") ^ number).to_bytes(12, "big")
    body = AESGCM(key).encrypt(nonce, frames, head)
    mask = Cipher(algorithms.AES(mask_key), modes.ECB()).encryptor().update(body[:16])
    number_masked = bytes(a ^ b for a, b in zip(head[-4:], mask[1:5], strict=True))
    return bytes([head[0] ^ mask[0] & 0x0F]) + head[1:-4] + number_masked + body


def open_initial(datagram: bytes) -> tuple[bytes, bytes, bytes]:
    """A client's datagram: its destination and source connection IDs, and the part of its CRYPTO stream in here."""
    at = 6 + datagram[5]
    destination = datagram[6:at]
    source = datagram[at + 1 : at + 1 + datagram[at]]
    at += 1 + datagram[at]
    token, at = _varint(datagram, at)
    length, at = _varint(datagram, at + token)
    key, iv, mask_key = _keys(destination, server=False)
    mask = Cipher(algorithms.AES(mask_key), modes.ECB()).encryptor().update(datagram[at + 4 : at + 20])
    head = bytearray(datagram[: at + 1 + ((datagram[0] ^ mask[0]) & 3)])
    head[0] ^= mask[0] & 0x0F
    for index in range(at, len(head)):
        head[index] ^= mask[1 + index - at]
    number = int.from_bytes(head[at:], "big")
    nonce = (int.from_bytes(iv, "big") ^ number).to_bytes(12, "big")
    frames = AESGCM(key).decrypt(nonce, datagram[len(head) : at + length], bytes(head))
    parts: dict[int, bytes] = {}
    at = 0
    while at < len(frames):
        kind, at = frames[at], at + 1
        if kind == 6:
            offset, at = _varint(frames, at)
            size, at = _varint(frames, at)
            parts[offset] = frames[at : at + size]
            at += size
    return destination, source, b"".join(parts[offset] for offset in sorted(parts))


def _varint(data: bytes, at: int) -> tuple[int, int]:
    size = 1 << (data[at] >> 6)
    return int.from_bytes(data[at : at + size], "big") & ((1 << (8 * size - 2)) - 1), at + size


Extensions = list[tuple[int, bytes]]


def split_hello(hello: bytes) -> tuple[bytes, Extensions]:
    """A ClientHello up to its extensions, and the extensions."""
    at = 38 + 1 + hello[38]
    at += 2 + int.from_bytes(hello[at : at + 2], "big")
    at += 1 + hello[at]
    head, rest = hello[4:at], hello[at + 2 :]
    found: Extensions = []
    while rest:
        size = int.from_bytes(rest[2:4], "big")
        found.append((int.from_bytes(rest[:2], "big"), rest[4 : 4 + size]))
        rest = rest[4 + size :]
    return head, found


def join_hello(head: bytes, extensions: Extensions, *, kind: int = 1) -> bytes:
    block = b"".join(number.to_bytes(2, "big") + len(data).to_bytes(2, "big") + data for number, data in extensions)
    body = head + len(block).to_bytes(2, "big") + block
    return bytes([kind]) + len(body).to_bytes(3, "big") + body


def key_shares(*shares: tuple[int, bytes]) -> bytes:
    """The key_share extension of a ClientHello."""
    block = b"".join(group.to_bytes(2, "big") + len(key).to_bytes(2, "big") + key for group, key in shares)
    return len(block).to_bytes(2, "big") + block


def server_hello(session: bytes, group: int, key: bytes) -> bytes:
    share = group.to_bytes(2, "big") + len(key).to_bytes(2, "big") + key
    head = b"\x03\x03" + bytes(range(32)) + bytes([len(session)]) + session + b"\x13\x01\0"
    return join_hello(head, [(43, b"\x03\x04"), (KEY_SHARE, share)], kind=2)


def mutants(message: bytes, count: int, seed: int) -> Iterator[bytes]:
    """Garbled copies of a handshake message: cut, spliced, or with changed bytes; the length field is mostly right."""
    rng = random.Random(seed)
    for number in range(count):
        garbled = bytearray(message)
        for _ in range(rng.choice((1, 1, 2, 4))):
            at = rng.randrange(4, max(5, len(garbled)))
            match rng.randrange(5):
                case 0:
                    garbled[at : at + 1] = rng.choice((b"\0", b"\x01", b"\x7f", b"\x80", b"\xff"))
                case 1:
                    garbled[at:at] = rng.randbytes(rng.choice((1, 2, 7)))
                case 2:
                    del garbled[at : at + rng.choice((1, 2, 8, 100))]
                case 3:
                    garbled[at : at + 2] = rng.choice((b"\0\0", b"\0\x01", b"\xff\xff", b"\x11\xec"))
                case _:
                    garbled += garbled[at : at + 50]
        if number % 4:
            garbled[1:4] = (len(garbled) - 4).to_bytes(3, "big")
        yield bytes(garbled)
