"""The TURN server over UDP, TCP and TLS: the Trio shell of `warpgate_trio.servers.turn_core`.

It is a STUN server too, on the same ports (clients may send it Binding requests, RFC 8656 §3.1): Binding requests go to
`warpgate_trio.servers.stun_core`.

There is one reading task for each UDP port, each relayed address and each connection, and for a connection one that
writes.  Datagrams are read in batches, without a checkpoint for each.  Sending never waits: what cannot be sent or
queued at once is dropped, so a client or peer that does not read delays nobody else.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, asynccontextmanager
from functools import partial
from ipaddress import ip_address
from typing import Final, NoReturn, final

import trio

from .. import host as machine
from ..address.interfaces import lasting_addresses
from ..nurseries import open_background_nursery
from ..sockaddr import Family, IpAddress, TransportAddress, family_of, parse_ip, plain_address, show_address
from .listening import bind_places, listen, listening_hosts
from .replies import ServerSocket
from .stun_core import DEFAULT_LIMITS as DEFAULT_STUN_LIMITS
from .stun_core import StunCore, StunLimits, StunStatistics
from .turn_core import TurnCore
from .turn_credentials import TurnCredentials
from .turn_limits import DEFAULT_LIMITS, TurnLimits, TurnStatistics
from .turn_peers import IpNetwork, PeerRules
from .turn_shell import RelayPlaces, Sink, TlsContext, TurnShell

__all__ = ["DEFAULT_PORT", "TurnServer", "default_relay_hosts", "open_turn_server", "serve_turn"]

DEFAULT_PORT: Final = 3478
"""The port of TURN and STUN (RFC 8656 §15)."""
OWN_INTERVAL: Final = 30.0
"""Seconds between updates of this host's own addresses, to which no client may send."""
# Destinations whose routes give the default address for relays.  Nothing is sent there.
_LANDMARKS: Final[dict[Family, IpAddress]] = {4: ip_address("192.0.2.1"), 6: ip_address("2001:db8::1")}


@final
class TurnServer:
    """A running TURN server, made by `open_turn_server` and `serve_turn`."""

    def __init__(
        self,
        core: TurnCore[Sink],
        stun: StunCore,
        shell: TurnShell,
        addresses: tuple[TransportAddress, ...],
        tls_addresses: tuple[TransportAddress, ...],
    ) -> None:
        self._core = core
        self._stun = stun
        self._shell = shell
        self.addresses = addresses
        """The addresses where it listens, over both UDP and TCP."""
        self.tls_addresses = tls_addresses
        """The addresses where it listens for TLS."""

    def __repr__(self) -> str:
        return f"<TurnServer {' '.join(self.urls)}>"

    @property
    def address(self) -> TransportAddress:
        """The first of `addresses`."""
        return self.addresses[0]

    @property
    def urls(self) -> tuple[str, ...]:
        """``turn:host:port`` and ``turns:host:port`` of each address, without the second port of RFC 5780."""
        return (
            *(f"turn:{show_address(each)}" for each in self.addresses[:2]),
            *(f"turns:{show_address(each)}" for each in self.tls_addresses),
        )

    def statistics(self) -> TurnStatistics:
        """Counts of what it holds now and has done so far."""
        return self._core.statistics()

    def stun_statistics(self) -> StunStatistics:
        """Counts of what it has done as a STUN server."""
        return self._stun.statistics()

    @property
    def draining(self) -> bool:
        """Whether `drain` was called."""
        return self._shell.draining

    async def drain(self) -> None:
        """Shut the server down gracefully, and return when the last allocation has ended; the caller bounds the time.

        New allocations are refused with 508 (Insufficient Capacity, RFC 8656 §19), so that clients use another server.
        Existing allocations go on.  TURN has no message that announces a shutdown, so their clients get a Binding
        indication, and every Refresh is granted a short lifetime.  Clients of this package refresh and leave; others
        ignore the indication.  If `drain` is cancelled, the remaining allocations go on until the server ends.
        """
        await self._shell.drain()


async def serve_turn(
    credentials: TurnCredentials,
    *,
    host: str | None = "127.0.0.1",
    port: int = 0,
    second_host: str | None = None,
    ssl_context: TlsContext | None = None,
    tls_port: int = 0,
    relay_hosts: Mapping[Family, str] | None = None,
    external_ips: Mapping[Family, str] | None = None,
    relay_ports: range | None = None,
    allowed_peers: Sequence[IpNetwork] = (),
    limits: TurnLimits = DEFAULT_LIMITS,
    stun_limits: StunLimits = DEFAULT_STUN_LIMITS,
    task_status: trio.TaskStatus[TurnServer] = trio.TASK_STATUS_IGNORED,
) -> NoReturn:
    """Serve TURN and STUN until cancelled; `nursery.start` returns the `TurnServer` once it listens.

    Args:
      credentials: the users that may have allocations.
      host: the address to listen on; None: all, IPv4 and IPv6.  Answers leave from the address that the request was
        sent to.
      port: for UDP and TCP; 0 lets the system choose.
      second_host: another address of this host, see `warpgate_trio.servers.stun.serve_stun`.
      ssl_context: serve TLS too, on `tls_port` of the same addresses; a function is called for each connection.
      tls_port: 0 lets the system choose.
      relay_hosts: the local addresses that relayed addresses are bound to, by family; by default
        `default_relay_hosts` of `host`.
      external_ips: the addresses that clients receive instead, by family: those of a NAT in front that forwards all
        ports unchanged.
      relay_ports: ports of relayed addresses; None lets the system choose.
      allowed_peers: networks that are not public and to whose hosts clients may send.
      limits: what clients can make it hold and do.
      stun_limits: the same, for its part as a STUN server.

    Raises:
      OSError: an address cannot be listened on.
      ValueError: `second_host` is unusable, there is no address for relays, or the realm is too long or not ASCII.
    """
    relays = _relay_places(host, relay_hosts, external_ips, relay_ports)
    rules = PeerRules(allowed_peers)
    hosts = listening_hosts(host, second_host)
    with ExitStack() as stack:
        if second_host is None:
            bound = await bind_places(stack, [(each, 0) for each in hosts], port, optional=host is None)
            keys = [(0, 0)] * len(bound)
        else:
            keys = [(0, 0), (1, 0), (0, 1), (1, 1)]
            bound = await bind_places(stack, [(hosts[a], p) for a, p in keys], port)
        sockets = [ServerSocket(udp) for udp, _ in bound]
        for each in sockets:
            stack.callback(each.close)
        addresses = tuple(plain_address(each.address) for each in sockets)
        encrypted = await _listen_for_tls(stack, addresses, tls_port) if ssl_context is not None else []
        places = {} if second_host is None else dict(zip(keys, addresses, strict=True))
        core: TurnCore[Sink] = TurnCore(
            credentials,
            rules,
            entropy=machine.current().entropy,
            wall_time=machine.current().wall_time,
            families=tuple(relays.hosts),
            limits=limits,
        )
        stun = StunCore(places, stun_limits)
        async with trio.open_nursery() as nursery:
            shell = TurnShell(core, stun, relays, limits, nursery)
            known = {*(ip for ip, _ in addresses), *relays.hosts.values(), *relays.external.values()}
            _tell_own_addresses(rules, known)  # before the first request
            nursery.start_soon(_follow_own_addresses, rules, known)
            nursery.start_soon(shell.keep_time)
            by_place = dict(zip(keys, sockets, strict=True))
            for key, sock, (_, listener) in zip(keys, sockets, bound, strict=True):
                nursery.start_soon(shell.serve_datagrams, sock, key, by_place)
                nursery.start_soon(shell.accept, listener, key, None)
            for listener in encrypted:
                nursery.start_soon(shell.accept, listener, (0, 0), ssl_context)
            tls_addresses = tuple(plain_address(each.getsockname()) for each in encrypted)
            task_status.started(TurnServer(core, stun, shell, addresses, tls_addresses))
            await trio.sleep_forever()
    raise AssertionError("unreachable")  # pragma: no cover


@asynccontextmanager
async def open_turn_server(
    credentials: TurnCredentials,
    *,
    host: str | None = "127.0.0.1",
    port: int = 0,
    second_host: str | None = None,
    ssl_context: TlsContext | None = None,
    tls_port: int = 0,
    relay_hosts: Mapping[Family, str] | None = None,
    external_ips: Mapping[Family, str] | None = None,
    relay_ports: range | None = None,
    allowed_peers: Sequence[IpNetwork] = (),
    limits: TurnLimits = DEFAULT_LIMITS,
    stun_limits: StunLimits = DEFAULT_STUN_LIMITS,
) -> AsyncGenerator[TurnServer]:
    """Run a TURN server during the body; arguments and errors as for `serve_turn`.

    An exception of the body is not wrapped in an ExceptionGroup.
    """
    async with open_background_nursery() as nursery:
        yield await nursery.start(
            partial(
                serve_turn,
                credentials,
                host=host,
                port=port,
                second_host=second_host,
                ssl_context=ssl_context,
                tls_port=tls_port,
                relay_hosts=relay_hosts,
                external_ips=external_ips,
                relay_ports=relay_ports,
                allowed_peers=allowed_peers,
                limits=limits,
                stun_limits=stun_limits,
            )
        )


def default_relay_hosts(host: str | None) -> dict[Family, str]:
    """The local addresses that relayed addresses are bound to by default, by family.

    Args:
      host: the address that the server listens on, which is the result then.  None: it listens on all, and the result
        is the source address of routes to the internet, or without such a route another lasting address of this host.
    """
    if host is not None:
        return {family_of(host): host}
    found: dict[Family, str] = {}
    for family, landmark in _LANDMARKS.items():
        source = machine.current().source_address(landmark) or next(_lasting(family), None)
        if source is not None:
            found[family] = str(source)
    return found


def _lasting(family: Family) -> Iterator[IpAddress]:
    """The lasting addresses of this host's interfaces, for a host without a route to the internet."""
    for interface in machine.current().interfaces():
        if interface.is_used and not interface.is_loopback:
            yield from (each.ip for each in lasting_addresses(interface, family))


def _relay_places(
    host: str | None,
    hosts: Mapping[Family, str] | None,
    external: Mapping[Family, str] | None,
    ports: range | None,
) -> RelayPlaces:
    found = default_relay_hosts(host) if hosts is None else dict(hosts)
    if not found or not set(external or {}) <= set(found):
        raise ValueError("this host has no address for relays, or external_ips has a family without one")
    if any(parse_ip(ip).is_unspecified for ip in found.values()):
        raise ValueError("relay hosts have to be specific addresses of this host, not 0.0.0.0 or ::")
    return RelayPlaces(hosts=found, external=external or {}, ports=ports)


async def _listen_for_tls(
    stack: ExitStack, addresses: Iterable[TransportAddress], port: int
) -> list[trio.socket.SocketType]:
    """Listen at each of the server's IP addresses, on one port."""
    listeners: list[trio.socket.SocketType] = []
    for host in dict.fromkeys(host for host, _ in addresses):
        listeners.append(await listen(stack, (host, port)))
        port = port or listeners[0].getsockname()[1]
    return listeners


def _tell_own_addresses(rules: PeerRules, known: Iterable[str]) -> None:
    own = {address.ip for interface in machine.current().interfaces() for address in interface.addresses}
    rules.set_own({*own, *map(parse_ip, known)})


async def _follow_own_addresses(rules: PeerRules, known: Iterable[str]) -> NoReturn:
    while True:
        await trio.sleep(OWN_INTERVAL)
        _tell_own_addresses(rules, known)
