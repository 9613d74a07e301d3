"""The options of `serve`, checked together before any server starts."""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from ..config import ServerUrl
    from ..servers.turn_peers import IpNetwork
    from ..sockaddr import Family, IpAddress
    from ..websocket.proxies import TrustedProxies

__all__ = ["NTP_PORTS", "ServeOptions", "read_address", "read_host", "read_networks", "read_place", "read_ports"]

NTP_PORTS: Final = (123, 1123)
"""Ports of the NTP server: the standard one, and one that needs no privileges."""
PUBLIC_SCHEMES: Final = {
    "ws": "websocket",
    "wss": "websocket",
    "stun": "stun",
    "turn": "turn",
    "turns": "turn",
    "ntp": "ntp",
}
"""The URL schemes of `--public-url`, with the key of ``[servers]`` for each."""


@dataclass(frozen=True, kw_only=True)
class ServeOptions:
    """The options, under click's names for them.  Raises click's UsageError for combinations that are not valid."""

    host: str | None
    port: int
    tls_cert: Path | None
    tls_key: Path | None
    public_urls: tuple[str, ...]
    external_ips: tuple[IpAddress, ...]
    trusted: tuple[str, ...]
    proxy_header: str | None
    stun_port: int | None
    second_host: str | None
    no_stun: bool
    turns_port: int | None
    relay_ports: range | None
    relay_peers: tuple[IpNetwork, ...]
    no_turn: bool
    ntp_port: int | None
    no_ntp: bool
    open_to_all: bool
    token_file: Path | None
    state_dir: Path | None
    no_relay: bool
    health: tuple[str, int] | None
    drain: float

    def __post_init__(self) -> None:
        for wrong, sentence in (
            ((self.tls_cert is None) != (self.tls_key is None), "--tls-cert and --tls-key go together"),
            (
                self.no_stun and (self.stun_port is not None or self.second_host is not None),
                "--no-stun goes with neither --stun-port nor --second-host",
            ),
            (
                self.second_host is not None and not self.host,
                "--second-host goes together with --host, the first address",
            ),
            (self.no_ntp and self.ntp_port is not None, "--ntp-port and --no-ntp exclude each other"),
            (
                self.proxy_header is not None and not self.trusted,
                "--proxy-header goes together with --trust-proxy",
            ),
            (
                self.open_to_all + (self.token_file is not None) + self.no_relay > 1,
                "--open, --token-file and --no-relay exclude each other",
            ),
            (
                self.state_dir is not None and (self.token_file is not None or self.no_relay),
                "--state-dir, where a token is kept, goes with neither --token-file nor --no-relay",
            ),
            (
                not self.turn and self.asks_for_turn,
                "--turns-port, --relay-ports and --relay-peers are for the TURN server, which --no-stun, --no-turn and "
                "--no-relay leave out",
            ),
            (self.turns_port is not None and self.tls_cert is None, "--turns-port goes together with --tls-cert"),
            (
                bool(self.trusted) and "websocket" not in self.public,
                "--trust-proxy goes together with --public-url, by which peers dial the proxy",
            ),
            (
                len({ip.version for ip in self.external_ips}) < len(self.external_ips),
                "--external-ip is given once for IPv4 and once for IPv6",
            ),
        ):
            if wrong:
                raise click.UsageError(sentence)

    @property
    def turn(self) -> bool:
        """Whether there is a TURN server, which is the same server as the STUN server."""
        return not (self.no_stun or self.no_turn or self.no_relay)

    @property
    def asks_for_turn(self) -> bool:
        """Whether an option is given that needs a TURN server."""
        return self.turns_port is not None or self.relay_ports is not None or bool(self.relay_peers)

    @property
    def ntp_ports(self) -> tuple[int, ...]:
        """The ports that the time server tries."""
        return () if self.no_ntp else NTP_PORTS if self.ntp_port is None else (self.ntp_port,)

    @property
    def external(self) -> dict[Family, str]:
        """The external addresses by family."""
        return {ip.version: str(ip) for ip in self.external_ips}

    @property
    def public(self) -> Mapping[str, list[ServerUrl]]:
        """The public URLs, which peers dial, by key of ``[servers]``."""
        from ..config import ServerUrl
        from ..errors import ConfigError

        found: dict[str, list[ServerUrl]] = {}
        for text in self.public_urls:
            try:
                url = ServerUrl.parse(text)
            except ConfigError as error:
                raise click.UsageError(f"--public-url {error}") from error
            key = PUBLIC_SCHEMES.get(url.scheme)
            if key is None or url.username is not None or (url.params and key != "turn"):
                raise click.UsageError(
                    f"--public-url {url.redacted}: expected {', '.join(PUBLIC_SCHEMES)}, without a login and a query"
                )
            found.setdefault(key, []).append(url)
        return found

    @property
    def proxies(self) -> TrustedProxies | None:
        """The reverse proxies in front, if there are any."""
        if not self.trusted:
            return None
        from ..websocket.proxies import ProxyHeader, TrustedProxies

        try:
            return TrustedProxies(self.trusted, ProxyHeader(self.proxy_header or "forwarded"))
        except ValueError as error:
            raise click.UsageError(f"--trust-proxy: {error}") from error


def read_host(_context: click.Context, _parameter: click.Parameter, text: str | None) -> str | None:
    """The callback of `--host`."""
    return None if text is None else _host(text)


def _host(text: str) -> str:
    """Check a host name: Python raises UnicodeError for names with labels that are empty or exceed 63 characters."""
    try:
        text.encode("idna")
    except UnicodeError as error:
        raise click.BadParameter(f"{text!r} is no name of a host: {error}") from error
    return text


def read_address(_context: click.Context, _parameter: click.Parameter, texts: Iterable[str]) -> tuple[IpAddress, ...]:
    """The callback of `--external-ip`."""
    try:
        return tuple(ip_address(text) for text in texts)
    except ValueError as error:
        raise click.BadParameter(str(error)) from error


def read_networks(_context: click.Context, _parameter: click.Parameter, texts: Iterable[str]) -> tuple[IpNetwork, ...]:
    """The callback of `--relay-peers`."""
    try:
        return tuple(ip_network(text) for text in texts)
    except ValueError as error:
        raise click.BadParameter(str(error)) from error


def read_ports(_context: click.Context, _parameter: click.Parameter, text: str | None) -> range | None:
    """The callback of `--relay-ports`: ``49152-65535``."""
    if text is None:
        return None
    first, _, last = text.partition("-")
    if not (first.isascii() and last.isascii() and first.isdigit() and last.isdigit() and len(text) <= 11):
        raise click.BadParameter(f"{text!r}: expected two ports, MIN-MAX")
    ports = range(int(first), int(last) + 1)
    if not ports or ports[0] < 1 or ports[-1] > 65535:
        raise click.BadParameter(f"{text!r}: expected two ports, MIN-MAX, of 1 to 65535")
    return ports


def read_place(_context: click.Context, _parameter: click.Parameter, text: str | None) -> tuple[str, int] | None:
    """The callback of `--health`: ``127.0.0.1:9100``, ``[::1]:9100``."""
    if text is None:
        return None
    host, _, port = text.rpartition(":")
    if not (host and port.isascii() and port.isdigit() and len(port) <= 5 and int(port) <= 65535):
        raise click.BadParameter(f"{text!r}: expected HOST:PORT")
    return _host(host.removeprefix("[").removesuffix("]")), int(port)
