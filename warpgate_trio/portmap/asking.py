"""The clients of NAT-PMP and PCP: one request at a time, each from a socket of its own.  The codecs do no I/O."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, TypeVar, final

import trio

from ..errors import PortMapError, PortMapMalformed, PortMapRefused, PortMapTimeout
from ..sockaddr import IpAddress, TransportAddress, socket_address, socket_family
from . import natpmp, pcp
from .client import Claim, Conflict, Found, Grant, refused
from .epoch import Epoch
from .exchange import MAP_RTO, RTO, Exchange

if TYPE_CHECKING:
    from .client import ProtocolName

__all__ = ["NatPmpClient", "PcpClient", "ask"]

_RECEIVE_SIZE: Final = 2048
T = TypeVar("T")


async def ask(local: IpAddress, exchange: Exchange[T]) -> T:
    """Send a request from a fresh socket at `local`, and wait for the answer.

    Raises:
      PortMapTimeout: no answer came.
      OSError: the request cannot be sent from `local`, or to the gateway.
    """
    with trio.socket.socket(socket_family(str(local)), trio.socket.SOCK_DGRAM) as sock:
        await sock.bind((str(local), 0))
        while True:
            exchange.handle_timer(trio.current_time())
            if exchange.done:
                break
            request = exchange.transmit(trio.current_time())
            if request is not None:
                await sock.sendto(request, exchange.gateway)
            with trio.move_on_at(exchange.deadline):
                while not exchange.done:
                    await _receive(sock, exchange)
    if exchange.answer is None:
        raise PortMapTimeout(f"{exchange.gateway[0]} does not answer")
    return exchange.answer


async def _receive(sock: trio.socket.SocketType, exchange: Exchange[T]) -> None:
    try:
        data, source = await sock.recvfrom(_RECEIVE_SIZE)
    except ConnectionError:  # an ICMP error about an earlier datagram, as Windows reports it
        return
    exchange.receive(data, socket_address(source), trio.current_time())


@final
class NatPmpClient:
    """A `Client` that speaks NAT-PMP.

    Args:
      local: our address in the gateway's network.
      gateway: the gateway's address.
      port: the gateway's port, for tests.
    """

    protocol: Final[ProtocolName] = "natpmp"

    def __init__(self, local: IpAddress, gateway: IpAddress, *, port: int = natpmp.PORT) -> None:
        self._local = local
        self._gateway: TransportAddress = (str(gateway), port)
        self._epoch = Epoch()

    async def probe(self) -> IpAddress:
        """The gateway's external address."""
        return (await self._address())[0]

    async def map(self, claim: Claim, lifetime: int) -> Grant:
        answer = await self._mapped(claim, claim.external, lifetime)
        if not answer.lifetime:
            raise PortMapMalformed("the gateway granted a lifetime of 0 seconds")
        try:
            ip, _ = await self._address()
        except PortMapRefused:  # the gateway has no external address now, but has made the mapping
            ip = None
        return Grant(claim, answer.external, ip, answer.lifetime)

    async def unmap(self, claim: Claim) -> None:
        await self._mapped(claim, 0, 0)

    async def check(self, grant: Grant) -> Found:
        ip, continued = await self._address()
        return Found(continued, ip)

    async def _address(self) -> tuple[IpAddress, bool]:
        def read(data: bytes) -> natpmp.ExternalAddress | natpmp.Refused | None:
            answer = natpmp.decode(data)
            return answer if not isinstance(answer, natpmp.Mapped) and _transport(answer) is None else None

        exchange: Exchange[natpmp.ExternalAddress | natpmp.Refused] = Exchange(
            natpmp.encode_address(), self._gateway, read
        )
        answer = await ask(self._local, exchange)
        if isinstance(answer, natpmp.Refused):
            raise _refused(answer)
        return answer.ip, self._epoch.is_continued(answer.epoch, trio.current_time())

    async def _mapped(self, claim: Claim, external: int, lifetime: int) -> natpmp.Mapped:
        def read(data: bytes) -> natpmp.Mapped | natpmp.Refused | None:
            answer = natpmp.decode(data)
            if isinstance(answer, natpmp.ExternalAddress) or answer.transport is not claim.transport:
                return None
            internal = answer.internal
            return answer if internal in (None, claim.internal) else None

        request = natpmp.encode_map(claim.transport, claim.internal, external, lifetime)
        rto = MAP_RTO if lifetime else RTO
        exchange: Exchange[natpmp.Mapped | natpmp.Refused] = Exchange(request, self._gateway, read, rto=rto)
        answer = await ask(self._local, exchange)
        if isinstance(answer, natpmp.Refused):
            raise _refused(answer)
        return answer


def _transport(answer: natpmp.ExternalAddress | natpmp.Refused) -> object:
    return answer.transport if isinstance(answer, natpmp.Refused) else None


def _refused(answer: natpmp.Refused) -> PortMapError:
    known = answer.result in natpmp.Result.__members__.values()
    name = natpmp.Result(answer.result).name if known else f"result {answer.result}"
    return refused("NAT-PMP", answer.result, name)


@final
class PcpClient:
    """A `Client` that speaks PCP.  Over IPv6 its mappings are pinholes."""

    protocol: Final[ProtocolName] = "pcp"

    def __init__(self, local: IpAddress, gateway: TransportAddress) -> None:
        self._local = local
        self._gateway = gateway
        self._epoch = Epoch()

    async def probe(self) -> None:
        """Wait until the gateway has answered an ANNOUNCE request."""
        await self._announced()

    async def map(self, claim: Claim, lifetime: int) -> Grant:
        answer = await self._mapped(claim, claim.external, lifetime)
        if not answer.lifetime:
            raise PortMapMalformed("the gateway granted a lifetime of 0 seconds")
        return Grant(claim, answer.external, answer.ip, answer.lifetime)

    async def unmap(self, claim: Claim) -> None:
        await self._mapped(claim, 0, 0)

    async def check(self, grant: Grant) -> Found:
        return Found(await self._announced())

    async def _announced(self) -> bool:
        def read(data: bytes) -> pcp.Announced | pcp.Refused | None:
            answer = pcp.decode(data)
            return answer if not isinstance(answer, pcp.Mapped) else None

        exchange: Exchange[pcp.Announced | pcp.Refused] = Exchange(
            pcp.encode_announce(self._local), self._gateway, read
        )
        answer = await ask(self._local, exchange)
        if isinstance(answer, pcp.Refused):
            raise _pcp_refused(answer)
        return self._epoch.is_continued(answer.epoch, trio.current_time())

    async def _mapped(self, claim: Claim, external: int, lifetime: int) -> pcp.Mapped:
        def read(data: bytes) -> pcp.Mapped | pcp.Refused | None:
            answer = pcp.decode(data)
            if isinstance(answer, pcp.Announced) or answer.nonce not in (None, claim.nonce):
                return None
            if isinstance(answer, pcp.Mapped):
                ours = (answer.nonce, answer.internal, answer.transport)
                return answer if ours == (claim.nonce, claim.internal, claim.transport) else None
            return answer

        request = pcp.encode_map(self._local, claim.nonce, claim.transport, claim.internal, external, lifetime)
        rto = MAP_RTO if lifetime else RTO
        exchange: Exchange[pcp.Mapped | pcp.Refused] = Exchange(request, self._gateway, read, rto=rto)
        answer = await ask(self._local, exchange)
        if isinstance(answer, pcp.Refused):
            raise _pcp_refused(answer)
        return answer


def _pcp_refused(answer: pcp.Refused) -> PortMapError:
    known = answer.result in pcp.Result.__members__.values()
    name = pcp.Result(answer.result).name if known else f"result {answer.result}"
    if answer.result == pcp.Result.CANNOT_PROVIDE_EXTERNAL:
        return Conflict(answer.result, f"the gateway refuses the PCP request: {name}")
    return refused("PCP", answer.result, name)
