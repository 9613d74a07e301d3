"""By which proxy a server is reached: the setting ``network.proxy``, and what curl's variables say.

The setting is ``env``, ``none``, or a proxy's URL.  With ``env`` the variables are those that a company's machines have
set for every other program, lower case before upper case, an empty one as good as none (curl(1), "ENVIRONMENT"):

* ``HTTPS_PROXY``, else ``ALL_PROXY``, for servers behind TLS, and for TURN over TCP, which is there for networks like
  these;
* ``ALL_PROXY`` alone for ``ws`` and ``mqtt``: without TLS a server is nearby, or on trial.

A proxy that is named by URL serves them all (RFC 6455 section 4.1 has one tunnel for ``ws``, too).  Two kinds of
servers never go by a proxy: what ``NO_PROXY`` lists, and this machine, which is another one where the proxy stands.
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
    """The setting from itself or from its text; raises `Unfit`."""
    if isinstance(value, ServerUrl):
        value = str(value)
    if value == "env":
        return "env"
    if value == "none":
        return "none"
    if not isinstance(value, str) or ":" not in value:  # a misspelt word, rather than a host
        raise Unfit('expected "env", "none", or the URL of a proxy, as http://proxy:3128')
    return parse_proxy_url(value)


@final
class Proxies:
    """Which proxy leads to which server.

    Args:
      setting: what is configured.
      environment: the variables.
    """

    def __init__(self, setting: ProxySetting, environment: Mapping[str, str]) -> None:
        self._setting = setting
        self._environment = environment
        self._exempt = tuple((_first(environment, _EXEMPT)[1]).replace(",", " ").split())

    def to(self, server: ServerUrl) -> ServerUrl | None:
        """The proxy by which a server is reached; None: directly.

        Raises:
          ConfigError: the variable that names it cannot be used.
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
                f'environment {name} = {shown_value(text)}: {error}; network.proxy = "none" does without it'
            ) from None

    def _is_exempt(self, host: str) -> bool:
        ip, name = _ip(host), host.removesuffix(".")
        return any(_matches(entry, name, ip) for entry in self._exempt)


def _first(environment: Mapping[str, str], names: tuple[str, ...]) -> tuple[str, str]:
    return next(((name, value) for name in names if (value := environment.get(name, "").strip())), ("", ""))


def _matches(entry: str, name: str, ip: IPv4Address | IPv6Address | None) -> bool:
    """Whether an entry of NO_PROXY covers a host: ``*``, a domain with all below it, an address, or a network."""
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
