"""Messages from a TURN server to the client."""

from __future__ import annotations

from itertools import count
from typing import Final

from tests.fuzz.registry import pieces, target
from tests.turn_model import ModelServer
from warpgate_trio.errors import StunMalformed
from warpgate_trio.stun.codec import MessageClass, encode
from warpgate_trio.turn.client_core import TurnClientCore, TurnState
from warpgate_trio.turn.framing import TurnStreamReader, encode_channel_data
from warpgate_trio.turn.login import Credentials
from warpgate_trio.turn.messages import DATA, XOR_PEER_ADDRESS, Method

_PEER: Final = ("203.0.113.5", 4000)


def _client(steps: int) -> tuple[TurnClientCore, list[bytes]]:
    """A client after `steps` exchanges, and the answers that it has not received yet; deterministic."""
    ids = count(1)
    client = TurnClientCore(
        ("198.51.100.1", 3478),
        entropy=lambda n: next(ids).to_bytes(n, "big"),
        credentials=Credentials("user", "secret"),
    )
    server = ModelServer()
    client.bind(_PEER, 0.0)
    client.allocate(0.0)
    answers: list[bytes] = []
    for _ in range(steps):
        for each in answers:
            client.receive(each, 0.0)
        answers = list(filter(None, [server.receive(request, 0.0) for request in client.transmit(0.0)]))
    return client, answers


def _seeds() -> list[bytes]:
    indication = encode(Method.DATA, MessageClass.INDICATION, bytes(12), [XOR_PEER_ADDRESS(_PEER), DATA(b"data")])
    channel = encode_channel_data(0x4000, b"data", padded=True)
    return [each for steps in (1, 2) for each in _client(steps)[1]] + [indication, channel]


@target(_seeds, inputs=1_000)
def turn_client(data: bytes) -> None:
    """At each step of an allocation: data is accepted from known peers only, and the client can be released."""
    for steps in (1, 2, 3):
        client, answers = _client(steps)
        for each in (data, *answers, data):
            for payload, peer in client.receive(each, 1.0):
                assert len(payload) <= len(each)
                assert peer[0] == _PEER[0]
        assert client.deadline > 0.0
        client.handle_timer(10_000.0)
        client.transmit(10_000.0)
        client.release(10_001.0)
        assert client.state in (TurnState.RELEASING, TurnState.LEAVING, TurnState.ENDED)


@target(_seeds, StunMalformed, inputs=10_000)
def turn_stream(data: bytes) -> None:
    reader = TurnStreamReader(most=600)
    for piece in pieces(data):
        for message in reader.feed(piece):
            assert len(message) <= 600
