"""``warpgate-trio serve``: the servers that peers find each other by, on one machine."""

from __future__ import annotations

import signal
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from .exits import ExitCode
from .options import Settings, common_options, json_option, pass_settings
from .serve_options import NTP_PORTS, ServeOptions, read_address, read_host, read_networks, read_place, read_ports
from .services import STUN_PORT, TURNS_PORT

if TYPE_CHECKING:
    from .certificate import Certificate
    from .services import Services

__all__ = ["serve"]

DEFAULT_PORT: Final = 8765
DEFAULT_DRAIN: Final = 8.0
"""Seconds for a shutdown.  Container runtimes wait ten seconds between SIGTERM and SIGKILL.  Pipes by TURN that fill
links with a round-trip time of 200 ms in both directions need 6.4 s to change to other paths."""


@click.command(short_help="Run the servers that peers find each other by: rendezvous, STUN, time.")
@click.option("--host", metavar="IP", callback=read_host, help="Listen on this address only.  [default: all addresses]")
@click.option(
    "--port", type=click.IntRange(0, 65535), default=DEFAULT_PORT, show_default=True, help="0: the system's choice."
)
@click.option("--tls-cert", type=click.Path(path_type=Path), metavar="F", help="Serve wss: certificate chain, PEM.")
@click.option("--tls-key", type=click.Path(path_type=Path), metavar="F", help="Its private key, PEM.")
@click.option(
    "--public-url",
    "public_urls",
    multiple=True,
    metavar="URL",
    help="A URL that peers dial, if it has a DNS name or leads to a proxy: wss://host, stun:host, turn:host or "
    "ntp://host; may be given several times.",
)
@click.option(
    "--external-ip",
    "external_ips",
    multiple=True,
    metavar="IP",
    callback=read_address,
    help="The public address, if a NAT forwards all of it to this machine, as in clouds: peers dial it, and relayed "
    "addresses are on it; once for IPv4, once for IPv6.",
)
@click.option(
    "--trust-proxy",
    "trusted",
    multiple=True,
    metavar="CIDR",
    help="Trust a reverse proxy at this address to report the client's address; may be given several times.",
)
@click.option(
    "--proxy-header",
    type=click.Choice(["forwarded", "proxy"]),
    help="How the proxy reports it: Forwarded or X-Forwarded-For, or the PROXY protocol.  [default: forwarded]",
)
@click.option(
    "--stun-port",
    type=click.IntRange(0, 65535),
    help=f"STUN and TURN over UDP and TCP; 0: the system's choice.  [default: {STUN_PORT}, if it is free]",
)
@click.option(
    "--second-host",
    metavar="IP",
    help="STUN on a second address too, so that peers can measure what their NATs filter.",
)
@click.option("--no-stun", is_flag=True, help="Run no STUN server, and so no TURN server.")
@click.option(
    "--turns-port",
    type=click.IntRange(0, 65535),
    metavar="N",
    help=f"TURN over TLS, with --tls-cert; 0: the system's choice.  [default: {TURNS_PORT}, if it is free]",
)
@click.option(
    "--relay-ports",
    metavar="MIN-MAX",
    callback=read_ports,
    help="Ports of relayed addresses, all of which a firewall lets in over UDP.  [default: the system's choice]",
)
@click.option(
    "--relay-peers",
    multiple=True,
    metavar="CIDR",
    callback=read_networks,
    help="A network that TURN may relay into though it is not public: a company's; may be given several times.",
)
@click.option("--no-turn", is_flag=True, help="Run no TURN server.")
@click.option(
    "--ntp-port",
    type=click.IntRange(0, 65535),
    metavar="N",
    help=f"UDP port of the NTP server.  [default: {NTP_PORTS[0]} or {NTP_PORTS[1]}, if one is free]",
)
@click.option("--no-ntp", is_flag=True, help="Run no NTP server.")
@click.option(
    "--open",
    "open_to_all",
    is_flag=True,
    help="The rendezvous server relays between any two nodes that are registered.",
)
@click.option(
    "--token-file",
    type=click.Path(path_type=Path),
    metavar="F",
    help="The relay token is in this file: relay if one of the two nodes has it as [servers] relay_token.",
)
@click.option(
    "--state-dir",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Folder for the relay token that is created if there is none.  [default: the user's state directory]",
)
@click.option("--no-relay", is_flag=True, help="Relay nothing: no token, no TURN.")
@click.option(
    "--health",
    metavar="HOST:PORT",
    callback=read_place,
    help="Serve /healthz and /metrics (Prometheus) over HTTP at this address.  Off by default.",
)
@click.option(
    "--drain",
    type=click.FloatRange(0),
    default=DEFAULT_DRAIN,
    show_default=True,
    metavar="S",
    help="Seconds after SIGTERM in which connected nodes are told to go elsewhere and relays may end.",
)
@json_option
@common_options
@pass_settings
def serve(settings: Settings, **given: Any) -> int:
    """Serve until interrupted, and print a configuration to paste on the machines of both peers.

    The rendezvous server sees who signals whom and when, but never the content: signals are sealed to their receiver.
    The STUN server tells clients their external addresses; with --second-host it also lets them measure what their NATs
    filter.  The NTP server gives the peers one clock, by which they punch at the same instant.

    Peers sign the name by which they dial the rendezvous server.  If that is neither an address of this machine nor a
    name in its certificate, give it with --public-url or --external-ip.  SIGHUP reloads the certificate.

    If two peers find no other path, the servers relay their traffic, which they cannot read.  TURN is for those who
    have the login that is printed.  The rendezvous server relays if one of the two has the relay token, which is
    created once and kept, or for everybody with --open.
    """
    wanted = ServeOptions(**given)
    from .certificate import Certificate
    from .relay_token import kept_token, read_token
    from .runner import run

    settings.start_logging()
    if wanted.no_relay or (wanted.open_to_all and not wanted.turn):
        token = None
    elif wanted.token_file is not None:
        token = read_token(wanted.token_file)
    else:
        token = kept_token(settings, wanted.state_dir)
    certificate = None
    if wanted.tls_cert is not None and wanted.tls_key is not None:
        certificate = Certificate(wanted.tls_cert, wanted.tls_key)
    return run(partial(_serve, settings, wanted, certificate, token), service=True)


async def _serve(
    settings: Settings, wanted: ServeOptions, certificate: Certificate | None, token: str | None
) -> ExitCode:
    import trio

    from .. import host as machine
    from ..nurseries import open_background_nursery
    from .certificate import reload_on_hangup
    from .files import raise_file_limit, share_files
    from .services import Services, start_health, start_ntp, start_rendezvous, start_stun, turn_credentials
    from .stdio import StandardOutput
    from .systemd import ServiceManager

    output, manager = StandardOutput(), ServiceManager(machine.current().environment())
    shares = share_files(raise_file_limit(), stun=not wanted.no_stun, turn=wanted.turn)
    relay_token = None if wanted.open_to_all else token
    credentials = turn_credentials(token) if wanted.turn and token is not None else None
    async with open_background_nursery() as nursery:
        await nursery.start(partial(reload_on_hangup, settings, certificate))
        services = Services(
            rendezvous=await start_rendezvous(wanted, nursery, certificate, shares, relay_token),
            stun=await start_stun(settings, wanted, nursery, certificate, shares, credentials),
            ntp=await start_ntp(settings, nursery, wanted.host, wanted.ntp_ports),
        )
        health = await start_health(wanted, nursery, services)
        await output.write(_offer(settings, wanted, services, token, relay_token, health))
        everything = ", ".join(url for of_kind in services.urls.values() for url in of_kind)
        if not settings.json:
            settings.say(f"serving on {everything} until interrupted")
        await manager.ready(f"serving on {everything}")
        nursery.start_soon(manager.feed_watchdog)
        with trio.open_signal_receiver(signal.SIGTERM) as terminations:
            await anext(terminations)
        settings.say("shutting down")
        await manager.stopping("shutting down")
        with trio.move_on_after(wanted.drain):
            await services.drain(wanted.drain)
    return ExitCode.OK


def _offer(
    settings: Settings,
    wanted: ServeOptions,
    services: Services,
    token: str | None,
    relay_token: str | None,
    health: str | None,
) -> bytes:
    """The output: the configuration to paste, or with --json the event with the same content."""
    from .. import host as machine
    from ..config import TurnServer
    from .events import ServeReady, encode
    from .reachable import configuration, leads_here, reachable_urls, turn_urls, with_login
    from .services import turn_login

    interfaces, external = machine.current().interfaces(), wanted.external_ips
    urls = services.urls
    turn: list[TurnServer] = []
    if (listening := urls.pop("turn", ())) and token is not None:
        by_turn = wanted.public.get("turn") or turn_urls(listening, interfaces, external)
        turn = [TurnServer(url, *turn_login(token)) for url in by_turn]
    offered = {
        key: [str(url) for url in wanted.public.get(key, ())] or reachable_urls(of_kind, interfaces, external)
        for key, of_kind in urls.items()
    }
    if wanted.host is None and not leads_here(offered):
        settings.say(
            "this machine has no public address: only hosts in its own network can reach it; "
            "if a NAT forwards a public address here, give it with --external-ip"
        )
    if not settings.json:
        return configuration(offered, turn, relay_token).encode()
    if turn:
        offered["turn"] = [str(with_login(each)) for each in turn]
    return encode(ServeReady(servers=offered, relay_token=relay_token, health=health))
