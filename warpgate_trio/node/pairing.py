"""Pairing by codes, with a node's key, its present address and its servers."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Generator, Sequence
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from typing import Final, final

from ..config import ServerUrl
from ..host import Host
from ..pairing import CodeOffer, MailboxServer, Paired, Us, accept_code, mailbox_servers, open_offer, parse_code
from ..signal import SignalHub
from .home import Home
from .own_address import OwnAddress

__all__ = ["Pairing"]


@final
class Pairing:
    """See `Node.offer_code` and `Node.accept_code`."""

    def __init__(self, home: Home, servers: Sequence[ServerUrl], hub: SignalHub, own: OwnAddress, host: Host) -> None:
        self._home: Final = home
        self._used: Final[list[MailboxServer]] = []
        self._us: Final = Us(home.identity, own.look, host.entropy)
        self._servers: Final[Callable[[], list[MailboxServer]]] = partial(
            mailbox_servers, servers, dial_to=hub.dial_to, trust=hub.trust
        )

    @asynccontextmanager
    async def offer(self, *, lifetime: float, on_paired: Callable[[Paired], object]) -> AsyncGenerator[CodeOffer]:
        with self._home.call(), self._in_use() as servers:
            async with open_offer(servers, self._us, lifetime=lifetime, on_paired=on_paired) as offer:
                yield offer

    async def accept(self, text: str, *, timeout: float) -> Paired:
        code = parse_code(text)
        with self._home.call(), self._in_use() as servers:
            return await accept_code(servers, code, self._us, timeout=timeout)

    def check(self) -> None:
        """Probe the servers of pairings under way at once, since the host may have moved."""
        for server in self._used:
            server.check()

    @contextmanager
    def _in_use(self) -> Generator[list[MailboxServer]]:
        servers = self._servers()
        self._used.extend(servers)
        try:
            yield servers
        finally:
            self._used[:] = [each for each in self._used if each not in servers]
