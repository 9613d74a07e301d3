"""The relays of one node: its TURN servers, sockets that have asked them already, and relayed addresses on demand.

A nonce belongs to the 5-tuple that it was given to, so what is kept between `prime` and `open` is a socket per server,
with its 401.  Servers are raced: the first that gives an address wins, a dead one costs `STAGGER` seconds at most, and
what a loser was given is freed.  One that failed lately is asked after the others, and later
beside them (`warpgate_trio.standing`), so that no further call waits for it.  A server may name another one in its
place (300): it is followed once, with the same credentials, to an address that the user has configured too or that is
public, and to no other.
"""

from __future__ import annotations

import logging
import ssl
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
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
"""Seconds that a socket with its 401 is kept: some servers forget whom they have asked after 60."""
STAGGER: Final = 0.25
"""Seconds from one server to the next, as with connections (RFC 8305 §5); none after a failure."""
MAX_TARGETS: Final = 8
"""Servers, each with each of its addresses, that are tried for one relayed address."""
MAX_RELAYS: Final = 256
"""Relays of one node at a time: each is a socket here and a port at a server, and servers have quotas."""
LOOKUP: Final = 5.0
"""Seconds for the names of the servers that are reached by UDP."""

Target: TypeAlias = tuple[TurnServer, TransportAddress | None]
"""A server, and which of its addresses; None where it is reached by name."""
UNKNOWN: Final[TransportAddress] = ("0.0.0.0", 0)
"""In the place of an address that is not known."""
_ANY: Final = {4: "0.0.0.0", 6: "::"}
_NOBODY: Final = {4: "192.0.2.1", 6: "2001:db8::1"}
"""Whom a server is asked to let in for its answer's sake: an address of the documentation's (RFC 5737, RFC 3849)."""


@final
# long: how a relayed address is had of several servers, and the sockets that wait for that
class Relays:
    """See the module's page.

    Args:
      servers: in the order in which they are tried.
      trust: makes the TLS context for ``turns`` servers, when one is first needed.
      proxies: by which of them servers are reached over TCP and TLS.

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
        self._failures: tuple[str, ...] = ()
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
        """Have somebody told when a server will be shut down before long: the relayed address that is to be left."""
        self._on_leaving = on_leaving

    def _check_proxy(self, url: ServerUrl) -> None:
        """One that cannot be used is found now, not in a walk; and which one is used, or not, is said."""
        if url.transport == "tcp":
            dial = ServerDial(self._proxies.to(url))
            if dial.by_proxy:
                logger.info("TURN server %s: by %s", url.redacted, dial)
        else:
            with suppress(ConfigError):  # it is nothing to this one
                proxy = self._proxies.to(url)
                if proxy is not None:
                    logger.info("TURN server %s: directly, as %s takes no UDP", url.redacted, name_of(proxy))

    @property
    def names(self) -> list[str]:
        """The names of the servers, but for those that a proxy looks up."""
        return [each.url.host for each in self.servers if not self._is_by_proxy(each.url)]

    def _is_by_proxy(self, url: ServerUrl) -> bool:
        return url.transport == "tcp" and ServerDial(self._proxies.to(url)).by_proxy

    @property
    def failures(self) -> tuple[str, ...]:
        """Why each server gave no address when one was wanted last, also where that was given up; empty if one did."""
        return self._failures

    @asynccontextmanager
    async def running(self, nursery: trio.Nursery) -> AsyncGenerator[None]:
        """Relays can be opened within the block; their owner tasks run in `nursery`, and have
        `warpgate_trio.turn.relay_port.GOODBYE` seconds when it ends."""
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
        """A relayed address of one of the servers; it is the caller's to `release`.

        Args:
          permit: addresses of the peer to let in, asked for together with the allocation.

        Raises:
          StunError: no server gave one; the message has each one's reason.
          trio.ClosedResourceError: the node was closed.
        """
        failures: list[str] = []
        try:
            return await self._open(self.servers, family, permit, failures)
        finally:
            self._failures = tuple(dict.fromkeys(failures))

    async def measure(self, server: TurnServer) -> float:
        """Have a server give an address, which is freed at once; the seconds of a round trip to it.

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
            )  # or refused: it has answered
            return trio.current_time() - began
        finally:
            port.release()

    async def _open(
        self, servers: Sequence[TurnServer], family: Family, permit: Sequence[str], failures: list[str]
    ) -> RelayPort:
        """`failures`: why each server gave none, also where it was given up; empty if one did."""
        targets = await self._targets(servers)
        if not targets:
            raise StunError("there is no TURN server to ask")
        asked: list[Target] = []
        late: list[Target] = []  # that have let us go on to the next one
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
                raise StunError("no TURN server gives an address: " + "; ".join(errors.values()))
            won = found.pop(0)
            return won
        finally:
            if won is None and not found:
                failures += [errors.get(each) or self._silence(each[0]) for each in asked]
            for port in found:  # a dead heat, or a cancellation in the moment of success
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
        logger.info("%s names %s in its place", port.name, show_address(alternate))
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
        """Whether a server's word may lead us there, and our credentials: anybody's 300 comes without a MAC."""
        known = await self._names.look_up([each.url.host for each in self.servers], timeout=0)
        if any(alternate[0] in ips for ips in known.values()):
            return True
        return scope_of(ip_address(alternate[0])) is AddressScope.PUBLIC

    # -- primed sockets ----------------------------------------------------------------------------------------------

    async def prime(self, family: Family = 4) -> None:
        """Have every server say what it wants, so that `open` takes one round trip within the next `KEPT_PRIMED`
        seconds.  Returns when each has, or has failed, which is nobody's business."""
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
                self._primed[server, address, family] = port, until  # `open` may take it while it is still asking
                self._timers.start_soon(self._expire, port, until)
                await port.wait_primed()
        except (StunError, trio.ClosedResourceError) as error:
            logger.debug("%s cannot be primed: %s", server.url.redacted, error)
        except Exception:  # a server's doing, or a proxy's: the walk that it is done for goes on
            logger.exception("%s cannot be primed", server.url.redacted)

    async def _expire(self, port: RelayPort, until: float) -> None:
        await trio.sleep_until(until)  # a socket that waits for a walk which may not come
        for key, (kept, _) in list(self._primed.items()):
            if kept is port:
                del self._primed[key]
                port.release()

    def _take_primed(self, server: TurnServer, address: TransportAddress | None, family: Family) -> RelayPort | None:
        port, _ = self._primed.pop((server, address, family), (None, 0.0))
        return None if port is None or port.closed else port

    # -- sockets -----------------------------------------------------------------------------------------------------

    async def _targets(self, servers: Sequence[TurnServer]) -> list[Target]:
        """What is tried, in order: servers over UDP with each of their addresses, those over TCP by name; those that
        failed lately last."""
        over_udp = [each for each in servers if each.url.transport == "udp"]
        # Where others can be asked, a resolver that hangs costs what any dead server does.
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
        """A port that has nothing yet; raises `StunError`."""
        nursery = self._check_room()
        try:
            transport = await self._transport(server, address, hop=hop)
        except (OSError, ProxyError) as error:
            raise StunError(f"TURN server {server.url.redacted} cannot be reached: {error}") from error
        try:
            nursery = self._check_room()  # others may have been here, and the node may have closed
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
        """Its server will be shut down before long: it is asked after the others, and what it relays goes elsewhere."""
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
