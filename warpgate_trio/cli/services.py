"""The servers of `serve`: each is started, or done without where nobody has insisted on it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Final

from .exits import UsageProblem

if TYPE_CHECKING:
    from collections.abc import Sequence

    import trio

    from ..servers.ntp import NtpServer
    from ..servers.rendezvous import RendezvousServer
    from ..servers.turn_credentials import TurnCredentials
    from .certificate import Certificate
    from .files import Shares
    from .options import Settings
    from .serve_options import ServeOptions

__all__ = ["Urls", "start_ntp", "start_rendezvous", "start_stun", "turn_credentials", "turn_login"]

STUN_PORT: Final = 3478
"""Of STUN and of TURN, over UDP and TCP (RFC 8489 §18.6, RFC 8656 §15)."""
TURNS_PORT: Final = 5349
"""Of TURN over TLS (RFC 8656 §15)."""
REALM: Final = "warpgate-trio"
EXPIRY: Final = "4102444800"
"""The user name of the login that is printed, a time of shared-secret credentials: the year 2100.  They are good for as
long as the token is, and the same after each start."""


@dataclass(frozen=True)
class Urls:
    """Where the STUN server listens, and the TURN server, by their URLs; empty where there is none."""

    stun: tuple[str, ...] = ()
    turn: tuple[str, ...] = ()


def turn_credentials(token: str) -> TurnCredentials:
    """What the TURN server of a token takes."""
    from ..servers.turn_credentials import TurnCredentials, shared_secret

    return TurnCredentials(REALM, secret=shared_secret(token))


def turn_login(token: str) -> tuple[str, str]:
    """Name and password for that TURN server."""
    from ..servers.turn_credentials import shared_secret, shared_secret_password

    return EXPIRY, shared_secret_password(shared_secret(token), EXPIRY)


async def start_rendezvous(
    wanted: ServeOptions, nursery: trio.Nursery, certificate: Certificate | None, shares: Shares, token: str | None
) -> RendezvousServer:
    """The rendezvous server.  Raises `UsageProblem` where it cannot listen."""
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
) -> Urls:
    """The STUN server, which is a TURN server too where there are credentials; none where nobody has asked for one and
    its port is taken.
    """
    if wanted.no_stun:
        return Urls()
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
        return Urls()


def _has_relay_addresses(settings: Settings, wanted: ServeOptions) -> bool:
    """Whether relayed addresses can be had here; raises `UsageProblem` where what is asked for cannot be."""
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
) -> Urls:
    from ..servers.turn import TurnServer, serve_turn

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
    stun = tuple(url.replace("turn:", "stun:", 1) for url in server.urls if url.startswith("turn:"))
    return Urls(stun, server.urls)


async def _start_stun_alone(wanted: ServeOptions, nursery: trio.Nursery, shares: Shares, port: int) -> Urls:
    from ..servers.stun import StunServer, serve_stun

    server: StunServer = await nursery.start(
        partial(serve_stun, host=wanted.host or None, port=port, second_host=wanted.second_host, limits=shares.stun)
    )
    return Urls(server.urls)


async def start_ntp(
    settings: Settings, nursery: trio.Nursery, host: str | None, ports: Sequence[int]
) -> tuple[str, ...]:
    """The URLs of the time server on the first of `ports` that can be had; none where the user did not insist on one.

    Another time server often has port 123, and some systems let only root have it.
    """
    from ..servers.ntp import serve_ntp

    why = ""
    for port in ports:
        try:
            server: NtpServer = await nursery.start(partial(serve_ntp, host=host or None, port=port))
        except OSError as error:
            why = f"cannot listen on {host or 'all addresses'} UDP port {port}: {_reason(error)}"
            if len(ports) == 1:
                raise UsageProblem(f"{why} (--no-ntp does without a time server)") from None
        else:
            return server.urls
    if ports:
        settings.say(f"no time server: {why}")
    return ()


def _reason(error: OSError) -> str:
    return error.strerror or str(error)
