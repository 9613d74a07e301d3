"""``warpgate-trio serve``: the servers that peers find each other by, on one machine."""

from __future__ import annotations

from functools import partial
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from .exits import ExitCode, UsageProblem
from .options import Settings, common_options, json_option, pass_settings

if TYPE_CHECKING:
    import ssl
    from collections.abc import Iterable, Sequence

    from ..host import Interface

__all__ = ["reachable_urls", "serve"]

DEFAULT_PORT: Final = 8765
MAX_URLS: Final = 4
"""URLs offered for one server: a node keeps a connection to each that is in its configuration."""


@click.command(short_help="Run the rendezvous server that peers signal through.")
@click.option("--host", metavar="IP", help="Listen on this address only; on all of them if not given.")
@click.option(
    "--port", type=click.IntRange(0, 65535), default=DEFAULT_PORT, show_default=True, help="0: the system's choice."
)
@click.option("--tls-cert", type=click.Path(path_type=Path), metavar="F", help="Serve wss: certificate chain, PEM.")
@click.option("--tls-key", type=click.Path(path_type=Path), metavar="F", help="Its private key, PEM.")
@json_option
@common_options
@pass_settings
def serve(settings: Settings, *, host: str | None, port: int, tls_cert: Path | None, tls_key: Path | None) -> int:
    """Serve until interrupted, and print a configuration to paste on the machines of both peers.

    It sees who signals whom and when, never what: signals are sealed to their receiver.
    """
    if (tls_cert is None) != (tls_key is None):
        raise click.UsageError("--tls-cert and --tls-key go together")
    from .runner import run

    settings.start_logging()
    context = None if tls_cert is None or tls_key is None else _tls_context(tls_cert, tls_key)
    return run(partial(_serve, settings, host, port, context), service=True)


def _tls_context(certificate: Path, key: Path) -> ssl.SSLContext:
    import ssl

    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    for option, path in (("--tls-cert", certificate), ("--tls-key", key)):
        try:
            path.open("rb").close()
        except OSError as error:
            raise UsageProblem(f"{option} {path}: {error.strerror or error}") from error
    try:
        # A password for an encrypted key would be asked for on the terminal; a server has nobody to ask.
        context.load_cert_chain(certificate, key, password="")
    except (ssl.SSLError, OSError) as error:
        raise UsageProblem(f"--tls-cert {certificate} and --tls-key {key} cannot be used: {error}") from error
    return context


async def _serve(settings: Settings, host: str | None, port: int, context: ssl.SSLContext | None) -> ExitCode:
    import trio

    from .. import host as machine
    from ..servers.rendezvous import serve_rendezvous
    from .events import ServeReady, encode
    from .stdio import StandardOutput

    output = StandardOutput()
    try:
        async with trio.open_nursery() as nursery:
            server = await nursery.start(partial(serve_rendezvous, host=host or None, port=port, ssl_context=context))
            urls = reachable_urls(server.urls, machine.current().interfaces())
            if settings.json:
                await output.write(encode(ServeReady(servers={"websocket": urls})))
            else:
                await output.write(configuration(urls).encode())
                settings.say(f"serving on {', '.join(server.urls)} until interrupted")
    except* OSError as group:
        from ..nurseries import leaves

        error = next(leaves(group))
        raise UsageProblem(f"cannot listen on {host or 'all addresses'} port {port}: {_reason(error)}") from None
    return ExitCode.OK


def _reason(error: BaseException) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error)


def reachable_urls(urls: Iterable[str], interfaces: Sequence[Interface]) -> list[str]:
    """The URLs of a server, with this machine's addresses where it listens on all of them.

    The best first: public before private, IPv4 before IPv6; loopback only where there is nothing else.
    """
    found: dict[str, tuple[bool, bool, int]] = {}
    for url in urls:
        scheme, _, rest = url.partition("://")
        name, _, port = rest.rpartition(":")
        try:
            listening = ip_address(name.strip("[]"))
        except ValueError:
            found.setdefault(url, (False, False, 0))
            continue
        for ip in _own_addresses(listening, interfaces) if listening.is_unspecified else [listening]:
            text = f"{scheme}://{f'[{ip}]' if ip.version == 6 else ip}:{port}"
            found.setdefault(text, _rank(ip))
    ordered = sorted(found, key=lambda url: found[url])
    useful = [url for url in ordered if not found[url][0]]
    return (useful or ordered)[:MAX_URLS]


def _rank(ip: IPv4Address | IPv6Address) -> tuple[bool, bool, int]:
    from ..address import is_public

    return ip.is_loopback, not is_public(ip), ip.version


def _own_addresses(
    wildcard: IPv4Address | IPv6Address, interfaces: Sequence[Interface]
) -> list[IPv4Address | IPv6Address]:
    return [
        address.ip
        for interface in interfaces
        if not interface.is_virtual
        for address in interface.addresses
        if address.ip.version == wildcard.version and not address.ip.is_link_local
    ]


def configuration(urls: Sequence[str]) -> str:
    """What to paste, as TOML."""
    import tomli_w

    from ..address import is_public

    lines = ["# for config.toml on both peers' machines (`warpgate-trio config --show` says where it is)"]
    hosts = [url.partition("://")[2].rpartition(":")[0].strip("[]") for url in urls]
    if not any(_is_public_name(name, is_public) for name in hosts):
        lines.append("# this machine has no public address: only peers in its own network reach this")
    return "\n".join([*lines, tomli_w.dumps({"servers": {"websocket": list(urls)}})])


def _is_public_name(name: str, is_public: object) -> bool:
    assert callable(is_public)
    try:
        return bool(is_public(ip_address(name)))
    except ValueError:
        return True  # a DNS name
