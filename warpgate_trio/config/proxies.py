"""Chooses the proxy for a server, by the setting ``network.proxy`` and the environment variables of curl.

The setting is ``env``, ``none``, or a proxy's URL.  With ``env``, the variables that other programs use too decide.
Lower case comes before upper case, and an empty variable counts as missing (curl(1), "ENVIRONMENT"):

* ``HTTPS_PROXY``, else ``ALL_PROXY``, for servers with TLS, and for TURN over TCP, which exists for such networks;
* only ``ALL_PROXY`` for ``ws`` and ``mqtt``: a server without TLS is nearby, or a test.

A proxy that is set by URL is used for all servers (RFC 6455 section 4.1 tunnels ``ws`` too).  Two kinds of servers are
always reached directly: those that ``NO_PROXY`` lists, and this host, since its name would mean another host at the
proxy.
"""

from __future__ import annotations

from collections.abc import Mapping
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from typing import Final, Literal, TypeAlias, final

from ..errors import ConfigError
from .server_url import ServerUrl, Unfit, parse_proxy_url, shown_value

__all__ = ["Proxies", "ProxySetting", "read_proxy"]

ProxySetting: TypeAlias = Literal["env", "none"] | ServerUrl
_FOR_TLS: Final = ("https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY")
_FOR_PLAIN: Final = ("all_proxy", "ALL_PROXY")
_EXEMPT: Final = ("no_proxy", "NO_PROXY")
_PLAIN: Final = frozenset({"ws", "mqtt"})


def read_proxy(value: object) -> ProxySetting:
    """Read the setting, from text or as it is; raises `Unfit`."""
    if isinstance(value, ServerUrl):
        value = str(value)
    if value == "env":
        return "env"
    if value == "none":
        return "none"
    if not isinstance(value, str) or ":" not in value:  # more likely a misspelt word than a host
        raise Unfit('expected "env", "none", or the URL of a proxy, such as http://proxy:3128')
    return parse_proxy_url(value)


@final
class Proxies:
    """Chooses the proxy for each server.

    Args:
      setting: the value of ``network.proxy``.
      environment: the environment variables.
    """

    def __init__(self, setting: ProxySetting, environment: Mapping[str, str]) -> None:
        self._setting = setting
        self._environment = environment
        self._exempt = tuple((_first(environment, _EXEMPT)[1]).replace(",", " ").split())

    def to(self, server: ServerUrl) -> ServerUrl | None:
        """The proxy for a server; None if it is reached directly.

        Raises:
          ConfigError: the environment variable that applies has no valid value.
        """
        if self._setting == "none" or _is_this_machine(server.host) or self._is_exempt(server.host):
            return None
        if isinstance(self._setting, ServerUrl):
            return self._setting
        name, text = _first(self._environment, _FOR_PLAIN if server.scheme in _PLAIN else _FOR_TLS)
        try:
            return parse_proxy_url(text) if text else None
        except Unfit as error:
            raise ConfigError(
                f'environment {name} = {shown_value(text)}: {error}; set network.proxy = "none" to use no proxy'
            ) from None

    def _is_exempt(self, host: str) -> bool:
        ip, name = _ip(host), host.removesuffix(".")
        return any(_matches(entry, name, ip) for entry in self._exempt)


def _first(environment: Mapping[str, str], names: tuple[str, ...]) -> tuple[str, str]:
    return next(((name, value) for name in names if (value := environment.get(name, "").strip())), ("", ""))


def _matches(entry: str, name: str, ip: IPv4Address | IPv6Address | None) -> bool:
    """Whether an entry of NO_PROXY covers a host: ``*``, a domain and its subdomains, an address, or a network."""
    if entry == "*":
        return True
    if ip is not None:
        try:
            return ip in ip_network(entry.strip("[]"), strict=False)
        except ValueError:
            return False
    domain = entry.lower().strip(".")
    return bool(domain) and (name == domain or name.endswith(f".{domain}"))


def _is_this_machine(host: str) -> bool:
    ip = _ip(host)
    if ip is not None:
        return ip.is_loopback or ip.is_unspecified
    name = host.removesuffix(".")
    return name == "localhost" or name.endswith(".localhost")  # RFC 6761 section 6.3


def _ip(host: str) -> IPv4Address | IPv6Address | None:
    try:
        return ip_address(host)
    except ValueError:
        return None
