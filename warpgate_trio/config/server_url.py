"""`ServerUrl` and `TurnServer`: the URLs of servers.

There are two grammars.  ``ws``, ``wss``, ``mqtt``, ``mqtts`` and ``ntp`` have URLs of the form scheme://host:port.
``stun``, ``stuns``, ``turn`` and ``turns`` have URIs of RFC 7064 and RFC 7065: no "//", no path, and for TURN one
parameter.  The login in a TURN URI is an extension of this project, since those RFCs leave credentials out.

Parsing is strict, because the parts end up in the first line of a request, in a TLS server name and in logs.  Only
printable ASCII is accepted, a host that is a DNS name or an IP address, and a valid port.  URLs are written by people,
so an error is one sentence that shows the value with secrets masked (`shown_value`).  Internally the sentence is raised
as `Unfit`, and the caller prefixes it: this module with the URL, `config` with the source and the key.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping
from ipaddress import IPv4Address, IPv6Address
from typing import TYPE_CHECKING, Final, Literal, NoReturn, final
from urllib.parse import parse_qsl, quote, unquote, urlencode

import msgspec

from ..errors import ConfigError
from ..sockaddr import bracketed

__all__ = ["MAX_URL", "ServerUrl", "TurnServer"]  # what else has no underscore is for config.py

MAX_URL: Final = 256
"""Characters of a URL without its login: an address has no room for longer ones, so peers could not learn them."""
MASK: Final = "***"  # replaces a secret
_MOST_SHOWN: Final = 200  # characters of a value that an error shows

_DEFAULT_PORTS: Final[Mapping[str, int]] = {
    "ws": 80,
    "wss": 443,
    "mqtt": 1883,
    "mqtts": 8883,
    "stun": 3478,
    "stuns": 5349,
    "turn": 3478,
    "turns": 5349,
    "ntp": 123,
}
_PROXY_PORTS: Final[Mapping[str, int]] = {"http": 80, "socks5": 1080, "socks5h": 1080}
_ALL_PORTS: Final[Mapping[str, int]] = {**_DEFAULT_PORTS, **_PROXY_PORTS}
_OPAQUE_SCHEMES: Final = frozenset({"stun", "stuns", "turn", "turns"})  # those of RFC 7064 and RFC 7065
_WITH_PATH: Final = frozenset({"ws", "wss", "mqtt", "mqtts"})
_WITH_LOGIN: Final = _WITH_PATH | {"turn", "turns", *_PROXY_PORTS}

_PRINTABLE = re.compile(r"[!-~]+", re.ASCII)
_URL = re.compile(
    r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*):(?P<slashes>//)?(?:(?P<login>[^@/?#]*)@)?"
    r"(?P<host>\[[^\]]*\]|[^:/?#@\[\]]*)(?::(?P<port>[^/?#]*))?(?P<path>/[^?#]*)?(?:\?(?P<query>[^#]*))?"
)
_LABEL = r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?"  # RFC 1035 2.3.1, and underscores, which local names often have
_HOST_NAME = re.compile(rf"(?=.{{1,253}}\Z){_LABEL}(?:\.{_LABEL})*\.?", re.ASCII)


class Unfit(Exception):
    """A value is not valid; the text says what is expected.  Always converted to a `ConfigError`.

    `item` is the position and value of a list's invalid item; None if the value itself is invalid.
    """

    def __init__(self, message: str, *, item: tuple[int, object] | None = None) -> None:
        super().__init__(message)
        self.item: tuple[int, object] | None = item


@final
class ServerUrl(msgspec.Struct, frozen=True):
    """The URL of a server or proxy.  Made by `parse`; `str` returns the URL in its normal form.

    Attributes:
      scheme: ws, wss, mqtt, mqtts, stun, stuns, turn, turns or ntp; http, socks5 or socks5h for a proxy.
      host: a DNS name in lower case, or an IPv4 or IPv6 address without brackets.
      port: the scheme's default where the URL has none.
      username, password: the login, or None.
      path: starts with "/", or is empty.
      params: the query, as (name, value) pairs.
    """

    scheme: str
    host: str
    port: int
    username: str | None = None
    password: str | None = None
    path: str = ""
    params: tuple[tuple[str, str], ...] = ()

    @classmethod
    def parse(cls, text: str) -> ServerUrl:
        """Read ``ws://``, ``wss://``, ``mqtt://``, ``mqtts://`` and ``ntp://`` URLs, and ``stun:``, ``turn:`` URIs.

        The latter are those of RFC 7064 and RFC 7065: ``stun:host:port``, ``turn:host:port?transport=tcp``.  Login
        names and passwords are percent-encoded, IPv6 addresses in brackets.

        Raises:
          ConfigError: the text is no such URL; says what is wrong.
        """
        try:
            return _parse_url(text)
        except Unfit as error:
            raise ConfigError(f"{shown_value(text)}: {error}") from None

    @property
    def tls(self) -> bool:
        """Whether the connection is encrypted with TLS from its start."""
        return self.scheme in ("wss", "mqtts", "stuns", "turns")

    @property
    def host_name(self) -> str:
        """The host without a trailing dot, which only excludes search domains: for TLS (RFC 6066 section 3),
        certificates, and comparing servers.
        """
        return self.host.removesuffix(".")

    @property
    def authority(self) -> str:
        """`host_name`, and the port if it is not the scheme's default: HTTP's ``Host`` (RFC 6455 section 4.1)."""
        host = bracketed(self.host) if ":" in self.host else self.host_name
        return host if self.port == _ALL_PORTS.get(self.scheme) else f"{host}:{self.port}"

    @property
    def target(self) -> str:
        """Path and query for the first line of an HTTP request; never empty."""
        return (self.path or "/") + self._query

    @property
    def transport(self) -> Literal["tcp", "udp"]:
        """The transport protocol: TCP, also below TLS, or UDP.  For TURN the URI's `transport`, by default UDP."""
        named = dict(self.params).get("transport", "udp") if self.scheme == "turn" else ""
        return "udp" if self.scheme in ("stun", "ntp") or named == "udp" else "tcp"

    @property
    def published(self) -> ServerUrl:
        """The URL that a node publishes: without login and query, which may both be secret.

        Peers cannot use a server that requires them.
        """
        return msgspec.structs.replace(self, username=None, password=None, params=())

    @property
    def redacted(self) -> str:
        """The URL for logs, with secrets masked: the password, and the values of the query except `transport`.

        A name without a value is masked too, since it may be the secret itself (``?token``).
        """
        params = tuple(
            (name, value) if name == "transport" else (name, MASK) if value else (MASK, "")
            for name, value in self.params
        )
        hidden = msgspec.structs.replace(self, password=None if self.password is None else MASK, params=params)
        return str(hidden).replace(quote(MASK, safe=""), MASK)

    @property
    def _query(self) -> str:
        return f"?{urlencode(self.params)}" if self.params else ""

    def __str__(self) -> str:
        login = ""
        if self.username is not None:
            login = quote(self.username, safe="")
            if self.password is not None:
                login += ":" + quote(self.password, safe="")
            login += "@"
        slashes = "" if self.scheme in _OPAQUE_SCHEMES else "//"
        host = bracketed(self.host)
        port = "" if self.port == _ALL_PORTS.get(self.scheme) else f":{self.port}"
        return f"{self.scheme}:{slashes}{login}{host}{port}{self.path}{self._query}"

    def __repr__(self) -> str:
        return f"ServerUrl({self.redacted!r})"


@final
class TurnServer(msgspec.Struct, frozen=True):
    """A TURN server and the long-term credentials (RFC 8489 section 9.2) for it.

    Attributes:
      url: a turn or turns URL.  Text is accepted, also with the login in it: ``turn:name:password@host``.
      username, password: both or neither.

    Raises:
      ConfigError: a value is not valid.
    """

    url: ServerUrl
    username: str | None = None
    password: str | None = None

    if TYPE_CHECKING:  # what __post_init__ makes true: text is accepted for the URL

        def __init__(self, url: ServerUrl | str, username: str | None = None, password: str | None = None) -> None: ...

    def __post_init__(self) -> None:
        try:
            values = _turn_values(self.url, self.username, self.password)
        except Unfit as error:
            raise ConfigError(f"TURN server {shown_value(self.url)}: {error}") from None
        for name, value in zip(self.__struct_fields__, values, strict=True):
            msgspec.structs.force_setattr(self, name, value)

    def __repr__(self) -> str:
        password = None if self.password is None else MASK
        return f"TurnServer({self.url.redacted!r}, username={self.username!r}, password={password!r})"


# -------------------------------------------------------------------------------------------------------------- reading


def read_url(value: object, *schemes: str) -> ServerUrl:
    """Read a URL of one of `schemes`, from text or a `ServerUrl`; raises `Unfit`."""
    if isinstance(value, str):
        value = _parse_url(value)
    if not isinstance(value, ServerUrl) or value.scheme not in schemes:
        raise Unfit(f"expected a URL with the scheme {' or '.join(schemes)}")
    length = len(str(msgspec.structs.replace(value, username=None, password=None)))
    if length > MAX_URL:
        raise Unfit(f"a URL has at most {MAX_URL} characters, its login apart, and this one has {length}")
    return value


def read_turn(value: object) -> TurnServer:
    """Read a TURN server, from a `TurnServer`, a URL, or a table of its fields; raises `Unfit`."""
    if isinstance(value, TurnServer):
        return value
    table = value if isinstance(value, Mapping) else {"url": value}
    known = TurnServer.__struct_fields__
    for name in table:
        if name not in known:
            raise Unfit(f"unknown key {name}; {nearest(str(name), known)}")
    if "url" not in table:
        raise Unfit("a TURN server needs a url")
    url, username, password = _turn_values(table["url"], table.get("username"), table.get("password"))
    return TurnServer(url, username, password)


def _turn_values(url: object, username: object, password: object) -> tuple[ServerUrl, str | None, str | None]:
    """The URL without its login, the username and the password of a TURN server; raises `Unfit`."""
    server = read_url(url, "turn", "turns")
    if server.username is not None:
        if username is not None or password is not None:
            raise Unfit("the login is given twice, in the URL and beside it")
        username, password = server.username, server.password
        server = msgspec.structs.replace(server, username=None, password=None)
    if username is None and password is None:
        return server, None, None
    if not (isinstance(username, str) and isinstance(password, str) and username and password):
        raise Unfit("expected both a username and a password, as texts, or neither")
    return server, username, password


def parse_proxy_url(text: str) -> ServerUrl:
    """Read a proxy's URL, or only its host and port, as curl accepts them; raises `Unfit`."""
    if ":" not in text:  # more likely a misspelt word than a host
        raise Unfit("expected the URL of a proxy, such as http://proxy:3128")
    url = _parse_url((text if "://" in text else f"http://{text}").removesuffix("/"), _PROXY_PORTS)
    if ":" in (url.username or ""):
        raise Unfit("the name of a login cannot contain a colon (RFC 7617)")
    return url


def _parse_url(text: str, ports: Mapping[str, int] = _DEFAULT_PORTS) -> ServerUrl:
    if not _PRINTABLE.fullmatch(text):  # checked first: control characters would end up in a request
        raise Unfit("a URL has printable ASCII characters only, without spaces")
    match = _URL.fullmatch(text)
    if match is None:
        raise Unfit("expected scheme://host:port, or for STUN and TURN scheme:host:port")
    scheme = match["scheme"].lower()
    if scheme not in ports:
        raise Unfit(f"expected one of the schemes {', '.join(ports)}")
    if (match["slashes"] is None) != (scheme in _OPAQUE_SCHEMES):
        raise Unfit(f"expected {scheme}:host:port" if scheme in _OPAQUE_SCHEMES else f"expected {scheme}://host:port")
    port = match["port"] or ("" if match["port"] is not None else str(ports[scheme]))
    if not re.fullmatch("[0-9]{1,5}", port, re.ASCII) or not 1 <= int(port) <= 65535:
        hint = "; in a login, write : / ? # and @ percent-encoded" if "@" in text else ""
        raise Unfit(f"the port has to be 1 to 65535{hint}")
    username, password = _parse_login(match["login"])
    path, query = match["path"] or "", match["query"] or ""
    if username is not None and scheme not in _WITH_LOGIN:
        raise Unfit(f"a {scheme} URL cannot have a login")
    if path and scheme not in _WITH_PATH:
        raise Unfit(f"a {scheme} URL cannot have a path")
    try:
        params = tuple(parse_qsl(query, keep_blank_values=True, errors="strict"))
    except ValueError:
        raise Unfit("the query after '?' is not percent-encoded UTF-8") from None
    if scheme not in _WITH_PATH and query:
        _check_params(scheme, params)
    return ServerUrl(scheme, _parse_host(match["host"]), int(port), username, password, path, params)


def _parse_login(text: str | None) -> tuple[str | None, str | None]:
    if text is None:
        return None, None
    name, colon, password = text.partition(":")
    try:
        decoded = unquote(name, errors="strict"), unquote(password, errors="strict")
    except UnicodeDecodeError:
        raise Unfit("the login before '@' is not percent-encoded UTF-8") from None
    if not decoded[0] or not "".join(decoded).isprintable():
        raise Unfit("the login before '@' needs a name, and has no control characters")
    return decoded[0], decoded[1] if colon else None


def _parse_host(text: str) -> str:
    host = text.lower()
    try:
        if host.startswith("["):
            return str(IPv6Address(host[1:-1])) if "%" not in host else _no_host()
        if re.fullmatch(r"(.*\.)?[0-9]+", host):  # a host whose last label is a number has to be an IPv4 address
            return str(IPv4Address(host))
    except ValueError:
        return _no_host()
    return host if _HOST_NAME.fullmatch(host) else _no_host()


def _no_host() -> NoReturn:
    raise Unfit("the host is a DNS name, an IPv4 address, or an IPv6 address in brackets")


def _check_params(scheme: str, params: tuple[tuple[str, str], ...]) -> None:
    if scheme not in ("turn", "turns"):
        raise Unfit(f"a {scheme} URL cannot have a query")
    if params not in ((("transport", "udp"),), (("transport", "tcp"),)):
        raise Unfit("the only query of a TURN URL is transport=udp or transport=tcp")
    if scheme == "turns" and params[0][1] == "udp":
        raise Unfit("TURN over DTLS (turns with transport=udp) is not supported")


# --------------------------------------------------------------------------------------------------- showing, in errors


def shown_value(value: object) -> str:
    """A value as an error shows it: shortened, and with masks in place of apparent secrets."""
    if isinstance(value, str):
        text = re.sub(r"(:(?://)?).*@", rf"\1{MASK}@", value, count=1, flags=re.DOTALL)
        shown = repr(re.sub(r"\?(?!transport=).*", f"?{MASK}", text, count=1, flags=re.DOTALL))
    elif isinstance(value, Mapping):
        items = (f"{name}: {MASK if name == 'password' else shown_value(each)}" for name, each in value.items())
        shown = f"{{{', '.join(items)}}}"
    elif isinstance(value, list | tuple):
        shown = f"[{', '.join(map(shown_value, value))}]"
    elif isinstance(value, int) and abs(value) >= 2**64:  # Python refuses to print very large ones
        shown = "a huge number"
    else:
        shown = repr(value)
    return shown if len(shown) <= _MOST_SHOWN else f"{shown[:_MOST_SHOWN]}..."


def nearest(name: str, known: Iterable[str]) -> str:
    """The end of an error about an unknown name: the nearest known one; `known` must not be empty."""
    keys = list(known)
    same = [key for key in keys if key.rpartition(".")[2] == name]  # the section was left out
    return f"the nearest known one is {difflib.get_close_matches(name, same or keys, n=1, cutoff=0.0)[0]}"
