"""``ws_relay``: relay by a rendezvous server of both sides, on the connections that both have open to it.

It works wherever signals do: through networks that block UDP, and through those that let only HTTPS out.  The server
forwards ciphertext: TLS is from node to node.  Its first two flights are in the call and in its answer, so that the
first byte comes back 6 round trips after the call.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, final

import msgspec

from warpgate_trio.carrier import TlsCarrier
from warpgate_trio.errors import AttemptFailed
from warpgate_trio.plugin import TCP, Aim, Message, PathRequest, Plugin, RouteType, register
from warpgate_trio.signal import CircuitRefused

from .meeting import family_of

if TYPE_CHECKING:
    from warpgate_trio.carrier import Carrier

__all__ = ["WsRelay"]

_Flight = Annotated[bytes, msgspec.Meta(min_length=1, max_length=8192)]  # a ClientHello has 0.3 to 2 KiB


@final
class ClientHello(PathRequest, frozen=True, kw_only=True):
    """The call, with the client's first flight."""

    flight: _Flight


@final
class ServerFlight(Message, frozen=True, kw_only=True, omit_defaults=True):
    """The answer, with the server's flight."""

    flight: _Flight
    has_room: bool = False
    """Whether a COMMIT would be accepted: see `Plugin.has_room`."""


@final
@register(phase="relay")
class WsRelay(Plugin):
    name = "ws_relay"
    transport = TCP
    route_types = frozenset({RouteType.EXT_BIND})
    aim = Aim.RELAY
    timeout = 60.0
    proto_messages = (ClientHello, ServerFlight)

    async def run(self, reply: Message | None = None) -> Carrier:
        return await self._take_call(reply) if self.inbound else await self._call()

    async def _call(self) -> Carrier:
        corrected = False
        while True:
            try:
                return await self._call_once()
            except CircuitRefused as refused:
                if refused.too_early:
                    continue
                if corrected or not refused.try_again:
                    raise
                corrected = True

    async def _call_once(self) -> Carrier:
        circuit = await self.circuit()
        carrier, flight = TlsCarrier.begin(
            circuit, self.node.tls, peer_key=self.peer.public_key, local=circuit.local, remote=circuit.remote
        )
        try:
            answer = await self.call(
                circuit, ClientHello(af=family_of(self), route_type=self.route_type, flight=flight)
            )
            if not isinstance(answer, ServerFlight):
                raise AttemptFailed("the peer answered the call with an unexpected message")
            carrier.local, carrier.remote = circuit.local, circuit.remote  # it may have been connected to meanwhile
            carrier.take_flight(answer.flight)
            if answer.has_room:
                self.expect_accept()
        except BaseException:
            carrier.close_nowait()
            raise
        return carrier

    async def _take_call(self, hello: Message | None) -> Carrier:
        if not isinstance(hello, ClientHello):
            raise AttemptFailed("the peer called with an unexpected message")
        circuit = await self.circuit()
        carrier, _ = TlsCarrier.begin(circuit, self.node.tls, peer_key=None, local=circuit.local, remote=circuit.remote)
        try:
            flight = carrier.take_flight(hello.flight)
            await self.answer_call(ServerFlight(flight=flight, has_room=self.has_room()))
            await carrier.finish()
        except BaseException:
            carrier.close_nowait()
            raise
        return carrier
