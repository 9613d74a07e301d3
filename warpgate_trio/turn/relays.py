"""The relays of one node: its TURN servers, primed sockets to them, and relayed addresses on demand.

*Priming.*  A nonce is valid for the 5-tuple that it was issued to.  So `prime` keeps one socket per server, with the
realm and nonce of that server's 401, until `open` uses it.

*Racing.*  The first server that grants an allocation wins; allocations of the others are freed.  A dead server delays
the result by `STAGGER` seconds at most.  A server that failed lately is asked after the others, and later at the same
time as the next one (`warpgate_trio.standing`), so that no further call waits for it.

*Redirection.*  A server may name an alternate server (300, Try Alternate).  The redirection is followed once, with the
same credentials, and only to an address that is configured too or is public.
"""

from __future__ import annotations

import logging
import ssl
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from contextvars import ContextVar
from ipaddress import ip_address
from typing import Final, TypeAlias, final

import trio

from .. import host as machine
from ..address.scope import AddressScope, scope_of
from ..config import Proxies, ServerUrl, TurnServer
from ..errors import ConfigError, ProxyError, StunError, panics_as_errors
from ..names import Names, in_turn
from ..nurseries import open_background_nursery, open_bare_nursery
from ..ports.connect import name_of
from ..ports.datagrams import DatagramSocket
from ..ports.server_dial import ServerDial
from ..sockaddr import Family, TransportAddress, family_of, plain_address, show_address
from ..standing import Standing, Standings
from .client_core import TurnClientCore
from .login import Credentials
from .relay_port import RelayPort
from .transport import StreamTransport, TurnTransport, UdpTransport

__all__ = ["KEPT_PRIMED", "MAX_RELAYS", "MAX_TARGETS", "STAGGER", "Relays"]

logger: logging.Logger = logging.getLogger(__name__)

KEPT_PRIMED: Final = 50.0
"""Seconds for which a primed socket is kept; some servers forget the client after 60."""
STAGGER: Final = 0.25
"""Seconds from the attempt at one server to the next, as for connections (RFC 8305 §5); no delay after a failure."""
MAX_TARGETS: Final = 8
"""Targets that are tried for one relayed address; each address of a server counts as one."""
MAX_RELAYS: Final = 256
"""Relays of one node at a time, primed sockets included: each is a local socket, and servers have quotas."""
LOOKUP: Final = 5.0
"""Seconds for the DNS lookup of servers over UDP; `STAGGER` where there are servers over TCP to ask meanwhile."""

Target: TypeAlias = tuple[TurnServer, TransportAddress | None]
"""A server and one of its addresses; None where it is dialled by name (TCP and TLS)."""
UNKNOWN: Final[TransportAddress] = ("0.0.0.0", 0)
"""Stands for a server address that only the proxy knows."""
_ANY: Final = {4: "0.0.0.0", 6: "::"}
_NOBODY: Final = {4: "192.0.2.1", 6: "2001:db8::1"}
"""Peers for which `Relays.measure` asks for a permission, to time the answer: documentation addresses (RFC 5737,
RFC 3849)."""
_noted: ContextVar[list[str] | None] = ContextVar("_noted", default=None)
"""The list of `Relays.noting_failures`."""


@final
# long: getting a relayed address from several servers, and the primed sockets for that
class Relays:
    """The TURN servers of one node; see the module's docstring.

    Args:
      servers: in the order in which they are tried.
      names: resolves the servers' host names.
      trust: makes the TLS context for a connection to a ``turns`` server.
      proxies: the proxies through which servers over TCP and TLS are reached.

    Raises:
      ConfigError: a server's proxy cannot be used.
    """

    def __init__(
        self,
        servers: Sequence[TurnServer],
        *,
        names: Names,
        trust: Callable[[], ssl.SSLContext] = ssl.create_default_context,
        proxies: Proxies | None = None,
    ) -> None:
        self.servers: Final = tuple(servers)
        self._names = names
        self._trust = trust
        self._proxies = proxies if proxies is not None else Proxies("none", {})
        for server in servers:
            self._check_proxy(server.url)
        self._dials: dict[TurnServer, ServerDial] = {}
        self._nursery: trio.Nursery | None = None
        self._timers: trio.Nursery | None = None
        self._ports: dict[RelayPort, Target] = {}
        self._standings: Standings[Target] = Standings()
        self._on_leaving: Callable[[TransportAddress], object] = lambda _: None
        self._primed: dict[tuple[TurnServer, TransportAddress | None, Family], tuple[RelayPort, float]] = {}

    def __len__(self) -> int:
        """Relays that are open, primed sockets included."""
        return len(self._ports)

    def call_when_leaving(self, on_leaving: Callable[[TransportAddress], object]) -> None:
        """Set the function that is called with a relayed address when its server announces its shutdown."""
        self._on_leaving = on_leaving

    def _check_proxy(self, url: ServerUrl) -> None:
        """Find an unusable proxy now rather than in a walk, and log which proxy is used or bypassed."""
        if url.transport == "tcp":
            dial = ServerDial(self._proxies.to(url))
            if dial.by_proxy:
                logger.info("TURN server %s: connecting through %s", url.redacted, dial)
        else:
            with suppress(ConfigError):  # an unusable proxy does not matter: UDP bypasses it
                proxy = self._proxies.to(url)
                if proxy is not None:
                    logger.info("TURN server %s: directly, because %s does not carry UDP", url.redacted, name_of(proxy))

    @property
    def names(self) -> list[str]:
        """The host names of the servers, except those that a proxy resolves."""
        return [each.url.host for each in self.servers if not self._is_by_proxy(each.url)]

    def _is_by_proxy(self, url: ServerUrl) -> bool:
        return url.transport == "tcp" and ServerDial(self._proxies.to(url)).by_proxy

    @contextmanager
    def noting_failures(self) -> Iterator[list[str]]:
        """Note why each server gave no address in the last `open` of the block, or of a task that it has started.

        A cancelled `open` counts too.  The list is empty if a server gave one.
        """
        noted: list[str] = []
        token = _noted.set(noted)
        try:
            yield noted
        finally:
            _noted.reset(token)

    @asynccontextmanager
    async def running(self, nursery: trio.Nursery) -> AsyncGenerator[None]:
        """Relays can be opened within the block.

        Their owner tasks run in `nursery`.  At the end of the block they have `warpgate_trio.turn.relay_port.GOODBYE`
        seconds to free their allocations.
        """
        async with open_background_nursery() as timers:
            self._nursery, self._timers = nursery, timers
            try:
                yield
            finally:
                self._nursery = self._timers = None
                self._primed.clear()
                for port in list(self._ports):
                    port.close_nowait()

    # -- a relayed address -------------------------------------------------------------------------------------------

    async def open(self, family: Family = 4, *, permit: Sequence[str] = ()) -> RelayPort:
        """Allocate a relayed address at one of the servers; the caller has to `release` it.

        Args:
          family: 4 or 6, of the relayed address.
          permit: IP addresses of the peer; their permissions are requested together with the allocation.

        Raises:
          StunError: no server gave one; the message has the reason of each.
          trio.ClosedResourceError: the node was closed.
        """
        failures: list[str] = []
        try:
            return await self._open(self.servers, family, permit, failures)
        finally:
            if (noted := _noted.get()) is not None:
                noted[:] = dict.fromkeys(failures)

    async def measure(self, server: TurnServer) -> float:
        """Measure the round-trip time to a server, in seconds, by an allocation that is freed at once.

        Raises as `open` does.
        """
        try:
            port = await self._open((server,), 4, (), [])
        except StunError:
            port = await self._open((server,), 6, (), [])
        try:
            began = trio.current_time()
            await port.wait_settled(
                port.permit_nowait([_NOBODY[family_of(port.local[0])]])
            )  # a refusal counts: it is an answer too
            return trio.current_time() - began
        finally:
            port.release()

    async def _open(
        self, servers: Sequence[TurnServer], family: Family, permit: Sequence[str], failures: list[str]
    ) -> RelayPort:
        """Race the servers.

        Args:
          failures: receives the reason of each server that gave no address, unless one succeeds.
        """
        targets = await self._targets(servers)
        if not targets:
            raise StunError("there is no TURN server to ask: none is configured, or no address of one is known")
        asked: list[Target] = []
        late: list[Target] = []  # without an answer when the next target was started
        errors: dict[Target, str] = {}
        found: list[RelayPort] = []
        won: RelayPort | None = None

        async def attempt(target: Target, failed: trio.Event) -> None:
            asked.append(target)
            try:
                found.append(await self._allocate(*target, family, permit))
            except StunError as error:
                errors[target] = str(error)
                self._standings.failed(target, trio.current_time())
                failed.set()
            else:
                self._standings.worked(target)
                for each in late:
                    if asked.index(each) < asked.index(target) and each not in errors:  # it was overtaken
                        self._standings.failed(each, trio.current_time())
                nursery.cancel_scope.cancel()

        try:
            async with open_bare_nursery() as nursery:
                for target in targets[:MAX_TARGETS]:
                    failed = trio.Event()
                    nursery.start_soon(attempt, target, failed)
                    if self._standings.of(target, trio.current_time()) is not Standing.ON_TRIAL:
                        with trio.move_on_after(STAGGER) as patience:
                            await failed.wait()
                        if patience.cancelled_caught:
                            late.append(target)
            if not found:
                raise StunError("no TURN server gave a relayed address: " + "; ".join(errors.values()))
            won = found.pop(0)
            return won
        finally:
            if won is None and not found:
                failures += [errors.get(each) or self._silence(each[0]) for each in asked]
            for port in found:  # two succeeded at once, or a cancellation coincided with the success
                port.release()

    def _silence(self, server: TurnServer) -> str:
        dial = self._dials.get(server)
        return f"TURN server {server.url.redacted}: no answer{'' if dial is None else dial.silence}"

    async def _allocate(
        self, server: TurnServer, address: TransportAddress | None, family: Family, permit: Sequence[str]
    ) -> RelayPort:
        port = self._take_primed(server, address, family)
        if port is None:
            port = await self._connect(server, address, family)
        try:
            return await self._ask(port, permit)
        except StunError:
            alternate = port.alternate
            if alternate is None or not await self._may_follow(alternate):
                raise
        logger.info("TURN server %s redirects to %s (300, Try Alternate)", port.name, show_address(alternate))
        return await self._ask(await self._connect(server, alternate, family, hop=True), permit)

    async def _ask(self, port: RelayPort, permit: Sequence[str]) -> RelayPort:
        try:
            port.permit_nowait(permit)
            await port.wait_allocated()
        except BaseException:
            port.release()
            raise
        return port

    async def _may_follow(self, alternate: TransportAddress) -> bool:
        """Whether a redirection to this address may be followed: a 300 has no MAC, so anybody can forge one."""
        known = await self._names.look_up([each.url.host for each in self.servers], timeout=0)
        if any(alternate[0] in ips for ips in known.values()):
            return True
        return scope_of(ip_address(alternate[0])) is AddressScope.PUBLIC

    # -- primed sockets ----------------------------------------------------------------------------------------------

    async def prime(self, family: Family = 4) -> None:
        """Fetch the realm and nonce of every server, so that `open` takes one round trip.

        The primed sockets are kept for `KEPT_PRIMED` seconds.  Returns when each server has answered or failed;
        failures are only logged.
        """
        async with open_bare_nursery() as nursery:
            for server, address in (await self._targets(self.servers))[:MAX_TARGETS]:
                nursery.start_soon(self._prime, server, address, family)

    async def _prime(self, server: TurnServer, address: TransportAddress | None, family: Family) -> None:
        known = self._primed.get((server, address, family))
        if known is not None and not known[0].closed and known[1] > trio.current_time():
            return
        until = trio.current_time() + KEPT_PRIMED
        try:
            with panics_as_errors():
                port = await self._connect(server, address, family)
                if self._timers is None:
                    port.release()
                    return
                before = self._primed.pop((server, address, family), None)
                if before is not None:
                    before[0].release()
                self._primed[server, address, family] = port, until  # `open` may take it before the 401 has come
                self._timers.start_soon(self._expire, port, until)
                await port.wait_primed()
        except (StunError, trio.ClosedResourceError) as error:
            logger.debug(
                "TURN server %s: its realm and nonce cannot be fetched in advance: %s", server.url.redacted, error
            )
        except Exception:  # caused by a server or a proxy: the walk goes on without it
            logger.exception("TURN server %s: its realm and nonce cannot be fetched in advance", server.url.redacted)

    async def _expire(self, port: RelayPort, until: float) -> None:
        await trio.sleep_until(until)
        for key, (kept, _) in list(self._primed.items()):
            if kept is port:
                del self._primed[key]
                port.release()

    def _take_primed(self, server: TurnServer, address: TransportAddress | None, family: Family) -> RelayPort | None:
        port, _ = self._primed.pop((server, address, family), (None, 0.0))
        return None if port is None or port.closed else port

    # -- sockets -----------------------------------------------------------------------------------------------------

    async def _targets(self, servers: Sequence[TurnServer]) -> list[Target]:
        """The targets in the order in which they are tried: first UDP, by address, then TCP, by name.

        Targets that failed lately come last.
        """
        over_udp = [each for each in servers if each.url.transport == "udp"]
        # If there are other servers, a resolver that hangs may delay the race by no more than a dead server.
        timeout = LOOKUP if len(over_udp) == len(servers) else STAGGER
        known = await self._names.look_up([each.url.host for each in over_udp], timeout=timeout)
        groups: list[list[TransportAddress]] = []
        owners: dict[TransportAddress, TurnServer] = {}
        found: list[Target] = []
        for server in over_udp:
            addresses = [(ip, server.url.port) for ip in known.get(server.url.host, ())]
            groups.append(addresses)
            for address in addresses:
                owners.setdefault(address, server)
        found += [(owners[address], address) for address in dict.fromkeys(in_turn(groups))]
        found += [(each, None) for each in servers if each.url.transport == "tcp"]
        return self._standings.sorted(found, trio.current_time())

    async def _connect(
        self, server: TurnServer, address: TransportAddress | None, family: Family, *, hop: bool = False
    ) -> RelayPort:
        """Open a port without an allocation.

        Raises:
          StunError: the server cannot be reached, or too many relays are open.
        """
        nursery = self._check_room()
        try:
            transport = await self._transport(server, address, hop=hop)
        except (OSError, ProxyError) as error:
            raise StunError(f"TURN server {server.url.redacted} cannot be reached: {error}") from error
        try:
            nursery = self._check_room()  # again: the limit may have been reached meanwhile, or the node closed
            credentials = (
                None
                if server.username is None or server.password is None
                else Credentials(server.username, server.password)
            )
            core = TurnClientCore(
                transport.server,
                entropy=machine.current().entropy,
                credentials=credentials,
                family=family,
                reliable=transport.reliable,
                name=server.url.redacted if transport.server == UNKNOWN else None,
            )
            port = RelayPort(core, transport, name=server.url.redacted, on_close=self._forget, on_leaving=self._leave)
            nursery.start_soon(port.serve, name=f"relay at {server.url.redacted}")
        except BaseException:
            with trio.CancelScope(shield=True):
                await transport.aclose()
            raise
        self._ports[port] = (server, address)
        return port

    async def _transport(self, server: TurnServer, address: TransportAddress | None, *, hop: bool) -> TurnTransport:
        if server.url.transport == "udp":
            assert address is not None
            sock = await DatagramSocket.bind((_ANY[family_of(address[0])], 0))
            return UdpTransport(sock, address)
        dial = self._dials[server] = ServerDial(self._proxies.to(server.url), self._names.open_tcp_stream)
        stream = await dial(*(address if hop and address is not None else (server.url.host, server.url.port)))
        if hop and address is not None:
            remote = address
        elif isinstance(stream, trio.SocketStream) and not dial.by_proxy:
            remote = plain_address(stream.socket.getpeername())
        else:
            remote = UNKNOWN  # the proxy alone knows
        if server.url.tls:
            stream = await _finish_tls(stream, self._trust(), server.url.host_name)
        return StreamTransport(stream, remote)

    def _check_room(self) -> trio.Nursery:
        if self._nursery is None:
            raise trio.ClosedResourceError("this node was closed")
        if len(self._ports) >= MAX_RELAYS:
            raise StunError(f"{MAX_RELAYS} relays are open already")
        return self._nursery

    def _leave(self, port: RelayPort) -> None:
        """The server of this port will be shut down: ask it after the others, and have its paths moved."""
        self._standings.failed(self._ports[port], trio.current_time())
        self._on_leaving(port.local)

    def _forget(self, port: RelayPort) -> None:
        target = self._ports.pop(port, None)
        if target is not None and port.error is not None:  # it was lost
            self._standings.failed(target, trio.current_time())


async def _finish_tls(stream: trio.abc.Stream, context: ssl.SSLContext, name: str) -> trio.abc.Stream:
    over_tls = trio.SSLStream(stream, context, server_hostname=name, https_compatible=True)
    try:
        await over_tls.do_handshake()
    except trio.BrokenResourceError as error:
        await trio.aclose_forcefully(stream)
        raise OSError(f"TLS handshake failed: {error.__cause__ or error}") from error
    except BaseException:
        with trio.CancelScope(shield=True):
            await trio.aclose_forcefully(stream)
        raise
    return over_tls
