"""The servers of `serve`.  A server that cannot start is left out, unless the user has explicitly asked for it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Final

import trio

from ..sockaddr import show_address
from .exits import UsageProblem

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ..servers.metrics import Statistics
    from ..servers.ntp import NtpServer
    from ..servers.rendezvous import RendezvousServer
    from ..servers.stun import StunServer
    from ..servers.turn import TurnServer
    from ..servers.turn_credentials import TurnCredentials
    from .certificate import Certificate
    from .files import Shares
    from .options import Settings
    from .serve_options import ServeOptions

__all__ = ["Services", "start_health", "start_ntp", "start_rendezvous", "start_stun", "turn_credentials", "turn_login"]

STUN_PORT: Final = 3478
"""Port of STUN and TURN over UDP and TCP (RFC 8489 §18.6, RFC 8656 §15)."""
TURNS_PORT: Final = 5349
"""Port of TURN over TLS (RFC 8656 §15)."""
LEAVING: Final = 0.8
"""Share of the shutdown time in which relayed Pipes may change to other paths.  The rest is for data in transit on
Pipes without another path."""
REALM: Final = "warpgate-trio"
EXPIRY: Final = "4102444800"
"""The user name of the printed login: the expiry time of shared-secret credentials, in the year 2100.  The credentials
are therefore valid as long as the token, and the same after each start."""


@dataclass(frozen=True, kw_only=True)
class Services:
    """All running servers."""

    rendezvous: RendezvousServer
    stun: StunServer | TurnServer | None
    ntp: NtpServer | None

    @property
    def turn(self) -> TurnServer | None:
        """The STUN server, if it is a TURN server too; otherwise None."""
        from ..servers.turn import TurnServer

        return self.stun if isinstance(self.stun, TurnServer) else None

    @property
    def urls(self) -> dict[str, tuple[str, ...]]:
        """The URLs on which they listen, by key of ``[servers]``."""
        found = {"websocket": self.rendezvous.urls}
        if self.stun is not None:
            found["stun"] = tuple(f"stun:{show_address(each)}" for each in self.stun.addresses[:2])
        if self.turn is not None:
            found["turn"] = self.turn.urls
        if self.ntp is not None:
            found["ntp"] = self.ntp.urls
        return found

    @property
    def draining(self) -> bool:
        """Whether they are being shut down."""
        return self.rendezvous.draining

    def statistics(self) -> list[Statistics]:
        """Their counters."""
        found: list[Statistics] = [self.rendezvous.statistics()]
        if self.turn is not None:
            found += [self.turn.stun_statistics(), self.turn.statistics()]
        elif self.stun is not None:
            found += [self.stun.statistics()]
        if self.ntp is not None:
            found += [self.ntp.statistics()]
        return found

    async def drain(self, seconds: float) -> None:
        """Shut them down gracefully, within `seconds`; the caller enforces the limit."""
        from .runner import run_both

        circuits = partial(self.rendezvous.drain, leave=LEAVING * seconds)
        await run_both(circuits, self.turn.drain if self.turn is not None else trio.lowlevel.checkpoint)


def turn_credentials(token: str) -> TurnCredentials:
    """The credentials that the TURN server accepts for a token."""
    from ..servers.turn_credentials import TurnCredentials, shared_secret

    return TurnCredentials(REALM, secret=shared_secret(token))


def turn_login(token: str) -> tuple[str, str]:
    """User name and password for the TURN server of a token."""
    from ..servers.turn_credentials import shared_secret, shared_secret_password

    return EXPIRY, shared_secret_password(shared_secret(token), EXPIRY)


async def start_rendezvous(
    wanted: ServeOptions, nursery: trio.Nursery, certificate: Certificate | None, shares: Shares, token: str | None
) -> RendezvousServer:
    """Start the rendezvous server.  Raises `UsageProblem` if it cannot listen."""
    from ..servers.rendezvous import RelayRules, serve_rendezvous

    try:
        server: RendezvousServer = await nursery.start(
            partial(
                serve_rendezvous,
                host=wanted.host or None,
                port=wanted.port,
                ssl_context=None if certificate is None else lambda: certificate.context,
                limits=shares.rendezvous,
                public_urls=wanted.public.get("websocket", ()),
                external_ips=wanted.external.values(),
                trusted_proxies=wanted.proxies,
                relay=RelayRules(token=token, open_to_all=wanted.open_to_all),
            )
        )
    except OSError as error:
        where = wanted.host or "all addresses"
        raise UsageProblem(f"cannot listen on {where} port {wanted.port}: {_reason(error)}") from None
    return server


async def start_stun(
    settings: Settings,
    wanted: ServeOptions,
    nursery: trio.Nursery,
    certificate: Certificate | None,
    shares: Shares,
    credentials: TurnCredentials | None,
) -> StunServer | TurnServer | None:
    """Start the STUN server, which is also a TURN server if there are credentials.

    Returns None if its port is taken and the user has not explicitly asked for the server.
    """
    if wanted.no_stun:
        return None
    port = STUN_PORT if wanted.stun_port is None else wanted.stun_port
    where = " and ".join(filter(None, (wanted.host or "all addresses", wanted.second_host)))
    try:
        if credentials is not None and _has_relay_addresses(settings, wanted):
            return await _start_turn(settings, wanted, nursery, certificate, shares, credentials, port)
        return await _start_stun_alone(wanted, nursery, shares, port)
    except ValueError as error:
        raise UsageProblem(f"--second-host {wanted.second_host}: {error}") from None
    except OSError as error:
        problem = f"cannot listen on {where} port {port} for STUN and TURN: {_reason(error)}"
        if wanted.stun_port is not None or wanted.second_host is not None or wanted.asks_for_turn:
            raise UsageProblem(problem) from None
        settings.warn(f"{problem}; serving without them")
        return None


def _has_relay_addresses(settings: Settings, wanted: ServeOptions) -> bool:
    """Whether relayed addresses are possible here; raises `UsageProblem` if the user has asked for impossible ones."""
    from ..servers.turn import default_relay_hosts

    there = default_relay_hosts(wanted.host or None)
    for family, ip in wanted.external.items():
        if family not in there:
            raise UsageProblem(f"--external-ip {ip}: this machine has no address of IPv{family} for relays")
    if not there:
        if wanted.asks_for_turn:
            raise UsageProblem("this machine has no address for relays")
        settings.warn("this machine has no address for relays; serving without TURN")
    return bool(there)


async def _start_turn(
    settings: Settings,
    wanted: ServeOptions,
    nursery: trio.Nursery,
    certificate: Certificate | None,
    shares: Shares,
    credentials: TurnCredentials,
    port: int,
) -> TurnServer:
    from ..servers.turn import serve_turn

    start = partial(
        serve_turn,
        credentials,
        host=wanted.host or None,
        port=port,
        second_host=wanted.second_host,
        external_ips=wanted.external,
        relay_ports=wanted.relay_ports,
        allowed_peers=wanted.relay_peers,
        limits=shares.turn,
        stun_limits=shares.stun,
    )
    server: TurnServer | None = None
    if certificate is not None:
        tls_port = TURNS_PORT if wanted.turns_port is None else wanted.turns_port
        try:
            server = await nursery.start(partial(start, ssl_context=lambda: certificate.context, tls_port=tls_port))
        except OSError as error:
            if wanted.turns_port is not None:
                raise UsageProblem(f"cannot listen on port {tls_port} for TURN over TLS: {_reason(error)}") from None
            settings.say(f"no TURN over TLS: cannot listen on port {tls_port}: {_reason(error)}")
    if server is None:
        server = await nursery.start(start)
    return server


async def _start_stun_alone(wanted: ServeOptions, nursery: trio.Nursery, shares: Shares, port: int) -> StunServer:
    from ..servers.stun import serve_stun

    server: StunServer = await nursery.start(
        partial(serve_stun, host=wanted.host or None, port=port, second_host=wanted.second_host, limits=shares.stun)
    )
    return server


async def start_ntp(
    settings: Settings, nursery: trio.Nursery, host: str | None, ports: Sequence[int]
) -> NtpServer | None:
    """Start the NTP server on the first free port of `ports`; None if there is none and the user did not ask for one.

    Port 123 is often in use by another NTP server, and some systems reserve it for root.
    """
    from ..servers.ntp import serve_ntp

    why = ""
    for port in ports:
        try:
            server: NtpServer = await nursery.start(partial(serve_ntp, host=host or None, port=port))
        except OSError as error:
            why = f"cannot listen on {host or 'all addresses'} UDP port {port}: {_reason(error)}"
            if len(ports) == 1:
                raise UsageProblem(f"{why} (--no-ntp runs no NTP server)") from None
        else:
            return server
    if ports:
        settings.say(f"no NTP server: {why}")
    return None


async def start_health(wanted: ServeOptions, nursery: trio.Nursery, services: Services) -> str | None:
    """Start the health server, if the user has asked for it, and return its URL.  Raises `UsageProblem` on failure."""
    from ..servers.health import HealthServer, serve_health

    if wanted.health is None:
        return None
    host, port = wanted.health
    serve = partial(serve_health, services.statistics, draining=lambda: services.draining, host=host, port=port)
    try:
        server: HealthServer = await nursery.start(serve)
    except OSError as error:
        raise UsageProblem(f"--health: cannot listen on {host} port {port}: {_reason(error)}") from None
    return server.url


def _reason(error: OSError) -> str:
    return error.strerror or str(error)
