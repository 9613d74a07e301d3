"""A TURN client's messages for tests of servers: single requests made by hand, and their answers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from warpgate_trio.sockaddr import TransportAddress
from warpgate_trio.stun.codec import (
    ERROR_CODE,
    NONCE,
    REALM,
    USERNAME,
    AttributeValue,
    Message,
    MessageClass,
    decode,
    encode,
    long_term_key,
)
from warpgate_trio.turn.messages import (
    CHANNEL_NUMBER,
    DATA,
    LIFETIME,
    REQUESTED_TRANSPORT,
    UDP_PROTOCOL,
    XOR_PEER_ADDRESS,
    Method,
)


def error_of(message: Message) -> int:
    """The error code of a response; 0 for a success."""
    error = message.get(ERROR_CODE)
    return 0 if error is None else error.code


def indication(peer: TransportAddress, data: bytes, *more: AttributeValue) -> bytes:
    """A Send indication."""
    return encode(Method.SEND, MessageClass.INDICATION, bytes(12), [XOR_PEER_ADDRESS(peer), DATA(data), *more])


def channel_data(number: int, data: bytes) -> bytes:
    """A ChannelData message as sent in a datagram (without padding)."""
    return number.to_bytes(2, "big") + len(data).to_bytes(2, "big") + data


class Requests:
    """Makes requests with the credentials that the last error asked for."""

    def __init__(self, username: str = "alice", password: str = "sesame") -> None:
        self.username = username
        self.password = password
        self.realm: str | None = None
        self.nonce: str | None = None
        self._number = 0

    @property
    def key(self) -> bytes:
        assert self.realm is not None
        return long_term_key(self.username, self.realm, self.password)

    def learn(self, message: Message) -> None:
        """Take realm and nonce from an answer, if it has them."""
        self.realm = message.get(REALM) or self.realm
        self.nonce = message.get(NONCE) or self.nonce

    def make(self, method: int, *attributes: AttributeValue, transaction_id: bytes | None = None) -> bytes:
        """A request, with credentials once realm and nonce are known."""
        self._number += 1
        chosen = transaction_id or self._number.to_bytes(12, "big")
        if self.realm is None or self.nonce is None:
            return encode(method, MessageClass.REQUEST, chosen, attributes)
        login = [USERNAME(self.username), REALM(self.realm), NONCE(self.nonce)]
        return encode(method, MessageClass.REQUEST, chosen, [*attributes, *login], integrity=self.key)

    def allocate(self, *more: AttributeValue, **options: Any) -> bytes:
        return self.make(Method.ALLOCATE, REQUESTED_TRANSPORT(UDP_PROTOCOL), *more, **options)

    def refresh(self, lifetime: int) -> bytes:
        return self.make(Method.REFRESH, LIFETIME(lifetime))

    def permit(self, *peers: TransportAddress) -> bytes:
        return self.make(Method.CREATE_PERMISSION, *map(XOR_PEER_ADDRESS, peers))

    def bind(self, number: int, peer: TransportAddress) -> bytes:
        return self.make(Method.CHANNEL_BIND, CHANNEL_NUMBER(number), XOR_PEER_ADDRESS(peer))


async def login(requests: Requests, ask: Callable[[bytes], Any]) -> None:
    """Get realm and nonce from the server; `ask` sends a request and returns the bytes of the answer."""
    requests.learn(decode(await ask(requests.allocate())))
