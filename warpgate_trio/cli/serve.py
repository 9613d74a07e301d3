"""``warpgate-trio serve``: the servers that peers find each other by, on one machine."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from functools import partial
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from ..sockaddr import bracketed
from .exits import ExitCode, UsageProblem
from .options import Settings, common_options, json_option, pass_settings

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    import trio

    from ..config.server_url import ServerUrl
    from ..host import Interface
    from ..servers.ntp import NtpServer
    from ..servers.rendezvous_core import RendezvousLimits
    from ..servers.stun_core import StunLimits
    from ..websocket.proxies import TrustedProxies
    from .certificate import Certificate

__all__ = ["reachable_urls", "serve", "start_ntp"]

DEFAULT_PORT: Final = 8765
DEFAULT_STUN_PORT: Final = 3478  # RFC 8489 §18.6
NTP_PORTS: Final = (123, 1123)
"""Of the time server: NTP's own, and one that everybody may have."""
MAX_URLS: Final = 4
"""URLs offered for one server: a node keeps a connection to each that is in its configuration."""
PUBLIC_SCHEMES: Final = {"ws": "websocket", "wss": "websocket", "stun": "stun", "ntp": "ntp"}
"""What `--public-url` may say, and of which server."""


@click.command(short_help="Run the servers that peers find each other by: rendezvous, STUN, time.")
@click.option("--host", metavar="IP", help="Listen on this address only; on all of them if not given.")
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
    help="What peers dial, where that is a DNS name, a proxy or a NAT's address: wss://host, or stun:host, ntp://host; "
    "may be given several times.",
)
@click.option(
    "--trust-proxy",
    "trusted",
    multiple=True,
    metavar="CIDR",
    help="A reverse proxy in front, which says whose connection it is; may be given several times.",
)
@click.option(
    "--proxy-header",
    type=click.Choice(["forwarded", "proxy"]),
    help="How it does: Forwarded or X-Forwarded-For, or the PROXY protocol.  [default: forwarded]",
)
@click.option(
    "--stun-port",
    type=click.IntRange(0, 65535),
    help=f"STUN over UDP and TCP; 0: the system's choice.  [default: {DEFAULT_STUN_PORT}, if it is free]",
)
@click.option(
    "--second-host", metavar="IP", help="STUN on a second address too, so that peers can tell what their NATs filter."
)
@click.option("--no-stun", is_flag=True, help="Run no STUN server.")
@click.option(
    "--ntp-port",
    type=click.IntRange(0, 65535),
    metavar="N",
    help=f"UDP port of the time server; if not given {NTP_PORTS[0]}, else {NTP_PORTS[1]}, else there is none.",
)
@click.option("--no-ntp", is_flag=True, help="Run no time server.")
@click.option("--open", "open_to_all", is_flag=True, help="Relay between any two nodes that are registered.")
@click.option(
    "--token-file",
    type=click.Path(path_type=Path),
    metavar="F",
    help="Relay where one of the two has the token in this file, as [servers] relay_token.",
)
@json_option
@common_options
@pass_settings
def serve(
    settings: Settings,
    *,
    host: str | None,
    port: int,
    tls_cert: Path | None,
    tls_key: Path | None,
    public_urls: tuple[str, ...],
    trusted: tuple[str, ...],
    proxy_header: str | None,
    stun_port: int | None,
    second_host: str | None,
    no_stun: bool,
    ntp_port: int | None,
    no_ntp: bool,
    open_to_all: bool,
    token_file: Path | None,
) -> int:
    """Serve until interrupted, and print a configuration to paste on the machines of both peers.

    The rendezvous server sees who signals whom and when, never what: signals are sealed to their receiver.  The STUN
    server tells whoever asks from where it is seen, with --second-host on this port and the next of both addresses.
    The time server tells the peers this machine's clock, so that they can punch at one instant.

    Peers sign the name by which they dial the rendezvous server: where that is none of this machine's addresses, and
    not in its certificate, --public-url says it.  SIGHUP reads the certificate again.

    With --token-file or --open the rendezvous server also relays, where two peers find no other path: it passes on what
    they send on the connections that they have to it, and cannot read it.
    """
    if (tls_cert is None) != (tls_key is None):
        raise click.UsageError("--tls-cert and --tls-key go together")
    if no_stun and (stun_port is not None or second_host is not None):
        raise click.UsageError("--no-stun goes with neither --stun-port nor --second-host")
    if second_host is not None and not host:
        raise click.UsageError("--second-host goes together with --host, the first address")
    if no_ntp and ntp_port is not None:
        raise click.UsageError("--ntp-port and --no-ntp exclude each other")
    if proxy_header is not None and not trusted:
        raise click.UsageError("--proxy-header goes together with --trust-proxy")
    if open_to_all and token_file is not None:
        raise click.UsageError("--open and --token-file exclude each other")
    token = None if token_file is None else _token(token_file)
    public = _public_urls(public_urls)
    if trusted and "websocket" not in public:
        raise click.UsageError("--trust-proxy goes together with --public-url, by which peers dial the proxy")
    ntp_ports = () if no_ntp else NTP_PORTS if ntp_port is None else (ntp_port,)
    proxies = _trusted_proxies(trusted, proxy_header or "forwarded") if trusted else None
    from .certificate import Certificate
    from .files import raise_file_limit, share_files
    from .runner import run

    settings.start_logging()
    limits, stun_limits = share_files(raise_file_limit(), stun=not no_stun)
    rendezvous = _Rendezvous(
        host or None,
        port,
        None if tls_cert is None or tls_key is None else Certificate(tls_cert, tls_key),
        public,
        proxies,
        limits,
        token,
        open_to_all,
    )
    stun = None if no_stun else _Stun(host or None, stun_port, second_host, stun_limits)
    return run(partial(_serve, settings, rendezvous, stun, ntp_ports), service=True)


@dataclass(frozen=True)
class _Rendezvous:
    """What is wanted of the rendezvous server.  `public`: what peers dial, of the other servers too.

    `token`, `open_to_all`: between whom it relays.
    """

    host: str | None
    port: int
    certificate: Certificate | None
    public: Mapping[str, Sequence[ServerUrl]]
    proxies: TrustedProxies | None
    limits: RendezvousLimits
    token: str | None = field(repr=False)
    open_to_all: bool


@dataclass(frozen=True)
class _Stun:
    """What is wanted of the STUN server."""

    host: str | None
    port: int | None
    second_host: str | None
    limits: StunLimits


def _public_urls(texts: Iterable[str]) -> dict[str, list[ServerUrl]]:
    """By key of ``[servers]``."""
    from ..config.server_url import ServerUrl
    from ..errors import ConfigError

    found: dict[str, list[ServerUrl]] = {}
    for text in texts:
        try:
            url = ServerUrl.parse(text)
        except ConfigError as error:
            raise click.UsageError(f"--public-url {error}") from error
        if url.scheme not in PUBLIC_SCHEMES or url.username is not None or url.params:
            raise click.UsageError(
                f"--public-url {url.redacted}: expected {', '.join(PUBLIC_SCHEMES)}, without a login and a query"
            )
        found.setdefault(PUBLIC_SCHEMES[url.scheme], []).append(url)
    return found


def _token(path: Path) -> str:
    from ..config import Servers
    from ..config.config import MAX_TOKEN
    from ..errors import ConfigError

    try:
        token = path.read_text(encoding="utf-8").strip()
        Servers(relay_token=token)
    except (OSError, UnicodeDecodeError) as error:
        raise click.UsageError(f"--token-file {path}: {_reason(error)}") from error
    except ConfigError:  # whose text would show it
        raise click.UsageError(f"--token-file {path}: expected 16 to {MAX_TOKEN} printable ASCII characters") from None
    return token


def _trusted_proxies(networks: Sequence[str], header: str) -> TrustedProxies:
    from ..websocket.proxies import ProxyHeader, TrustedProxies

    try:
        return TrustedProxies(networks, ProxyHeader(header))
    except ValueError as error:
        raise click.UsageError(f"--trust-proxy: {error}") from error


async def _serve(settings: Settings, wanted: _Rendezvous, stun: _Stun | None, ntp_ports: Sequence[int]) -> ExitCode:
    import trio

    from .. import host as machine
    from ..nurseries import open_background_nursery
    from ..servers.rendezvous import RelayRules, serve_rendezvous
    from .certificate import reload_on_hangup
    from .events import ServeReady, encode
    from .stdio import StandardOutput

    output = StandardOutput()
    host, port, certificate = wanted.host, wanted.port, wanted.certificate
    async with open_background_nursery() as nursery:
        await nursery.start(partial(reload_on_hangup, settings, certificate))
        try:
            server = await nursery.start(
                partial(
                    serve_rendezvous,
                    host=host,
                    port=port,
                    ssl_context=None if certificate is None else lambda: certificate.context,
                    limits=wanted.limits,
                    public_urls=wanted.public.get("websocket", ()),
                    trusted_proxies=wanted.proxies,
                    relay=RelayRules(token=wanted.token, open_to_all=wanted.open_to_all),
                )
            )
        except OSError as error:
            raise UsageProblem(f"cannot listen on {host or 'all addresses'} port {port}: {_reason(error)}") from None
        listening = {"websocket": server.urls}
        if stun is not None and (stun_urls := await _start_stun(settings, stun, nursery)):
            listening["stun"] = stun_urls
        if ntp_urls := await start_ntp(settings, nursery, host, ntp_ports):
            listening["ntp"] = ntp_urls
        interfaces = machine.current().interfaces()
        servers = {
            key: [str(url) for url in wanted.public.get(key, ())] or reachable_urls(urls, interfaces)
            for key, urls in listening.items()
        }
        if settings.json:
            await output.write(encode(ServeReady(servers=servers)))
        else:
            await output.write(configuration(servers, wanted.token).encode())
            everything = ", ".join(url for urls in listening.values() for url in urls)
            settings.say(f"serving on {everything} until interrupted")
        await trio.sleep_forever()
    return ExitCode.OK


async def _start_stun(settings: Settings, wanted: _Stun, nursery: trio.Nursery) -> tuple[str, ...]:
    """The URLs of the STUN server; none where nobody has asked for one and its port is taken."""
    from ..servers.stun import StunServer, serve_stun

    port = DEFAULT_STUN_PORT if wanted.port is None else wanted.port
    where = " and ".join(filter(None, (wanted.host or "all addresses", wanted.second_host)))
    try:
        server: StunServer = await nursery.start(
            partial(serve_stun, host=wanted.host, port=port, second_host=wanted.second_host, limits=wanted.limits)
        )
    except ValueError as error:
        raise UsageProblem(f"--second-host {wanted.second_host}: {error}") from None
    except OSError as error:
        problem = f"cannot listen on {where} port {port} for STUN: {_reason(error)}"
        if wanted.port is not None or wanted.second_host is not None:
            raise UsageProblem(problem) from None
        settings.warn(f"{problem}; serving without it")
        return ()
    return server.urls


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


def _reason(error: BaseException) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error)


def reachable_urls(urls: Iterable[str], interfaces: Sequence[Interface]) -> list[str]:
    """The URLs of a server, with this machine's addresses where it listens on all of them.

    The best first: public before private, IPv4 before IPv6; loopback only where there is nothing else.
    """
    found: dict[str, tuple[bool, bool, int]] = {}
    for url in urls:
        prefix, name, port = _parts(url)
        try:
            listening = ip_address(name)
        except ValueError:
            found.setdefault(url, (False, False, 0))
            continue
        for ip in _own_addresses(listening, interfaces) if listening.is_unspecified else [listening]:
            text = f"{prefix}{bracketed(str(ip))}:{port}"
            found.setdefault(text, _rank(ip))
    ordered = sorted(found, key=lambda url: found[url])
    useful = [url for url in ordered if not found[url][0]]
    return (useful or ordered)[:MAX_URLS]


def _parts(url: str) -> tuple[str, str, str]:
    """What stands before the host (``ws://``, ``stun:``), the host without brackets, the port."""
    prefix, host, port = re.fullmatch(r"([a-z]+:(?://)?)(.*):(\d+)", url).groups()  # type: ignore[union-attr]
    return prefix, host.strip("[]"), port


def _rank(ip: IPv4Address | IPv6Address) -> tuple[bool, bool, int]:
    from ..address import is_public

    return ip.is_loopback, not is_public(ip), ip.version


def _own_addresses(
    wildcard: IPv4Address | IPv6Address, interfaces: Sequence[Interface]
) -> list[IPv4Address | IPv6Address]:
    from ..address.interfaces import lasting_addresses

    ours = [each for used in interfaces if used.is_used for each in lasting_addresses(used, wildcard.version)]
    loopback = [each for interface in interfaces if interface.is_loopback for each in interface.addresses]
    return [each.ip for each in (*ours, *loopback) if each.ip.version == wildcard.version]


def configuration(servers: Mapping[str, Sequence[str]], relay_token: str | None = None) -> str:
    """What to paste, as TOML: the URLs by key of ``[servers]``, and the token, which one of the two peers needs."""
    import tomli_w

    from ..address import is_public
    from ..config.server_url import ServerUrl

    lines = ["# for config.toml on both peers' machines (`warpgate-trio config --show` says where it is)"]
    hosts = [ServerUrl.parse(url).host for urls in servers.values() for url in urls]
    if not any(_is_public_name(name, is_public) for name in hosts):
        lines.append("# this machine has no public address: only peers in its own network reach this")
    table: dict[str, object] = {key: list(urls) for key, urls in servers.items()}
    if relay_token is not None:
        table["relay_token"] = relay_token
    return "\n".join([*lines, tomli_w.dumps({"servers": table})])


def _is_public_name(name: str, is_public: object) -> bool:
    assert callable(is_public)
    try:
        return bool(is_public(ip_address(name)))
    except ValueError:
        return True  # a DNS name
