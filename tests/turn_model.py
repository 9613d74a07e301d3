"""A minimal TURN server for tests of the client: one 5-tuple, no sockets, and faults on demand."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass, field

from warpgate_trio.sockaddr import TransportAddress
from warpgate_trio.stun.codec import (
    ERROR_CODE,
    NONCE,
    REALM,
    USERNAME,
    AttributeValue,
    ErrorCode,
    Message,
    MessageClass,
    decode,
    encode,
    long_term_key,
)
from warpgate_trio.stun.credentials import (
    PASSWORD_ALGORITHM,
    PASSWORD_ALGORITHMS,
    PasswordAlgorithm,
    SecurityFeature,
    nonce_cookie,
)
from warpgate_trio.turn.framing import is_channel_data
from warpgate_trio.turn.messages import (
    CHANNEL_NUMBER,
    LIFETIME,
    XOR_PEER_ADDRESS,
    XOR_RELAYED_ADDRESS,
    Code,
    Method,
)

RELAYED = ("192.0.2.7", 50_000)


@dataclass(kw_only=True)
class ModelServer:
    """The attributes are settings, which tests change, and the server's state."""

    password: str = "secret"
    sha256: bool = False
    open: bool = False
    lifetime: int = 600
    nonces: int = 0
    forbidden: Collection[str] = ()
    allocate_with: int = 0
    """The error code that answers each authenticated Allocate; 0 for none."""
    nothing_there: int = Code.BAD_REQUEST
    """The error code for a permission or a channel without an allocation: this is coturn's; RFC 8656 §5 says 437."""
    expires: float = -math.inf
    allocation: bytes | None = None
    relayed: TransportAddress | None = None
    permissions: dict[str, float] = field(default_factory=dict)
    channels: dict[int, TransportAddress] = field(default_factory=dict)
    seen: list[tuple[Method, bool]] = field(default_factory=list)
    answers: dict[bytes, bytes] = field(default_factory=dict)

    @property
    def nonce(self) -> str:
        cookie = nonce_cookie(SecurityFeature.PASSWORD_ALGORITHMS) if self.sha256 else ""
        return f"{cookie}nonce{self.nonces}"

    def forget(self) -> None:
        """Drop all state, as a restart does."""
        self.allocation = None
        self.permissions.clear()
        self.channels.clear()
        self.nonces += 1

    def receive(self, data: bytes, now: float) -> bytes | None:
        """The answer to a request; a retransmitted request gets the same answer."""
        if is_channel_data(data):
            return None
        message = decode(data)
        if message.message_class is not MessageClass.REQUEST:
            return None
        if message.transaction_id not in self.answers:
            self.answers[message.transaction_id] = self._answer(message, now)
        return self.answers[message.transaction_id]

    def _answer(self, message: Message, now: float) -> bytes:
        method = Method(message.method)
        signed = message.get(USERNAME) is not None
        self.seen.append((method, signed))
        key = long_term_key("user", "realm", self.password, sha256=self.sha256)
        if not self.open:
            if not signed:
                return self._refuse(message, Code.UNAUTHENTICATED)
            if message.get(NONCE) != self.nonce:
                return self._refuse(message, Code.STALE_NONCE)
            if not (message.verify_sha256(key) if self.sha256 else message.verify(key)):
                return self._refuse(message, Code.UNAUTHENTICATED)
            if self.sha256:
                assert message.get(PASSWORD_ALGORITHM) == PasswordAlgorithm.SHA256
        code, attributes = self._act(method, message, now)
        sha1, sha256 = (None, None) if self.open else (None, key) if self.sha256 else (key, None)
        kind = MessageClass.ERROR if code else MessageClass.SUCCESS
        said = [ERROR_CODE(ErrorCode(code))] if code else attributes
        return encode(method, kind, message.transaction_id, said, integrity=sha1, integrity_sha256=sha256)

    def _act(self, method: Method, message: Message, now: float) -> tuple[int, list[AttributeValue]]:
        if self.allocation is not None and now > self.expires:
            self.forget()
        if method is Method.ALLOCATE:
            if self.allocate_with:
                return self.allocate_with, []
            if self.allocation is not None:
                return Code.ALLOCATION_MISMATCH, []
            self.allocation, self.expires = message.transaction_id, now + self.lifetime
            return 0, [XOR_RELAYED_ADDRESS(self.relayed or RELAYED), LIFETIME(self.lifetime)]
        if self.allocation is None:
            return (Code.ALLOCATION_MISMATCH if method is Method.REFRESH else self.nothing_there), []
        if method is Method.REFRESH:
            if message.get(LIFETIME) == 0:
                self.forget()
                return 0, [LIFETIME(0)]
            self.expires = now + self.lifetime
            return 0, [LIFETIME(self.lifetime)]
        peer = message.get(XOR_PEER_ADDRESS)
        assert peer is not None
        if peer[0] in self.forbidden:
            return Code.FORBIDDEN, []
        self.permissions[peer[0]] = now + 300
        if method is Method.CHANNEL_BIND:
            channel = message.get(CHANNEL_NUMBER)
            assert channel is not None
            if self.channels.setdefault(channel, peer) != peer:
                return Code.BAD_REQUEST, []
        return 0, []

    def _refuse(self, message: Message, code: int) -> bytes:
        attributes: list[AttributeValue] = [ERROR_CODE(ErrorCode(code, "no\0")), REALM("realm"), NONCE(self.nonce)]
        if self.sha256:
            attributes.append(PASSWORD_ALGORITHMS((PasswordAlgorithm.MD5, PasswordAlgorithm.SHA256)))
        return encode(message.method, MessageClass.ERROR, message.transaction_id, attributes)
