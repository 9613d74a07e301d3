"""`ServerUrl` and `TurnServer`: where a server is, as its users write it down.

Two grammars.  ``ws``, ``wss``, ``mqtt``, ``mqtts`` and ``ntp`` have URLs of the familiar form, scheme://host:port.
``stun``, ``stuns``, ``turn`` and ``turns`` have URIs of RFC 7064 and RFC 7065: no "//", no path, and for TURN one
parameter.  The login in a TURN URI is ours; those RFCs leave credentials out.

Parsing is strict, because what passes here ends up in the first line of a request, in a TLS server name and in logs:
printable ASCII, a host that is a DNS name or an address, a port.  URLs come from people, too, so what does not fit is
said in one sentence that shows the value, secrets masked (`shown_value`).  Inside, that sentence travels as `Unfit`:
who called knows what to name in front of it, this module the URL, `config` the source and the key.
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
"""Characters of a URL without its login, which is how long one in an address may be: a peer could not be told more."""
MASK: Final = "***"  # stands for a secret
_MOST_SHOWN: Final = 200  # characters of a value in an error

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
_LABEL = r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?"  # RFC 1035 2.3.1, and the underscore that many have in local names
_HOST_NAME = re.compile(rf"(?=.{{1,253}}\Z){_LABEL}(?:\.{_LABEL})*\.?", re.ASCII)


class Unfit(Exception):
    """A value does not fit; the text says what is expected.  Always turned into a `ConfigError`.

    `item` is the one of a list that does not fit, with its position.
    """

    def __init__(self, message: str, *, item: tuple[int, object] | None = None) -> None:
        super().__init__(message)
        self.item: tuple[int, object] | None = item


@final
class ServerUrl(msgspec.Struct, frozen=True):
    """Where a server is and how to talk to it.  Made by `parse`; `str` gives the URL back, in its normal form.

    Attributes:
      scheme: ws, wss, mqtt, mqtts, stun, stuns, turn, turns or ntp; http, socks5 or socks5h for a proxy on the way.
      host: a DNS name in lower case, or an IPv4 or IPv6 address without brackets.
      port: the scheme's own where the URL names none.
      username, password: of the server, or None.
      path: starts with "/", or is empty.
      params: the query, as pairs.
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

        The latter are of RFC 7064 and RFC 7065: ``stun:host:port``, ``turn:host:port?transport=tcp``.  Login names and
        passwords are percent-encoded, IPv6 addresses in brackets.  Raises `ConfigError` with what is wrong.
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
        """The host without the dot at the end of a name, which keeps search domains out: the name in TLS (RFC 6066
        section 3), in certificates, and for who compares servers.
        """
        return self.host.removesuffix(".")

    @property
    def authority(self) -> str:
        """`host_name`, and the port where it is not the scheme's own: HTTP's ``Host`` (RFC 6455 section 4.1)."""
        host = bracketed(self.host) if ":" in self.host else self.host_name
        return host if self.port == _ALL_PORTS.get(self.scheme) else f"{host}:{self.port}"

    @property
    def target(self) -> str:
        """Path and query, as the first line of an HTTP request has them: never empty."""
        return (self.path or "/") + self._query

    @property
    def transport(self) -> Literal["tcp", "udp"]:
        """What carries it: TCP (under TLS too) or UDP; for TURN the URI's `transport`, UDP when it names none."""
        named = dict(self.params).get("transport", "udp") if self.scheme == "turn" else ""
        return "udp" if self.scheme in ("stun", "ntp") or named == "udp" else "tcp"

    @property
    def published(self) -> ServerUrl:
        """The same server for everybody: what a node publishes.

        Without login and query, which may both be secret; a server that lets in nobody without them is none for peers.
        """
        return msgspec.structs.replace(self, username=None, password=None, params=())

    @property
    def redacted(self) -> str:
        """The URL without what may be secret, for logs: the password, and the values of the query but `transport`.

        A name without a value may be the secret itself (``?token``).
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
    """A URL of one of `schemes`, from itself or from its text; raises `Unfit`."""
    if isinstance(value, str):
        value = _parse_url(value)
    if not isinstance(value, ServerUrl) or value.scheme not in schemes:
        raise Unfit(f"expected a URL with the scheme {' or '.join(schemes)}")
    length = len(str(msgspec.structs.replace(value, username=None, password=None)))
    if length > MAX_URL:
        raise Unfit(f"a URL has at most {MAX_URL} characters, its login apart, and this one has {length}")
    return value


def read_turn(value: object) -> TurnServer:
    """A TURN server from itself, from a URL, or from a table of its fields; raises `Unfit`."""
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
    """URL without login, username and password of a TURN server, from a URL with or without a login."""
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
    """A proxy's URL, or its host and port alone, as curl takes them; raises `Unfit`."""
    if ":" not in text:  # a misspelt word, rather than a host
        raise Unfit("expected the URL of a proxy, as http://proxy:3128")
    url = _parse_url((text if "://" in text else f"http://{text}").removesuffix("/"), _PROXY_PORTS)
    if ":" in (url.username or ""):
        raise Unfit("the name of a login has no colon (RFC 7617)")
    return url


def _parse_url(text: str, ports: Mapping[str, int] = _DEFAULT_PORTS) -> ServerUrl:
    if not _PRINTABLE.fullmatch(text):  # before all else: no control characters, which would end up in a request
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
        raise Unfit(f"the port is 1 to 65535{hint}")
    username, password = _parse_login(match["login"])
    path, query = match["path"] or "", match["query"] or ""
    if username is not None and scheme not in _WITH_LOGIN:
        raise Unfit(f"a {scheme} URL has no login")
    if path and scheme not in _WITH_PATH:
        raise Unfit(f"a {scheme} URL has no path")
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
        if re.fullmatch(r"(.*\.)?[0-9]+", host):  # a name that ends like an IPv4 address has to be one
            return str(IPv4Address(host))
    except ValueError:
        return _no_host()
    return host if _HOST_NAME.fullmatch(host) else _no_host()


def _no_host() -> NoReturn:
    raise Unfit("the host is a DNS name, an IPv4 address, or an IPv6 address in brackets")


def _check_params(scheme: str, params: tuple[tuple[str, str], ...]) -> None:
    if scheme not in ("turn", "turns"):
        raise Unfit(f"a {scheme} URL has no query")
    if params not in ((("transport", "udp"),), (("transport", "tcp"),)):
        raise Unfit("the only query of a TURN URL is transport=udp or transport=tcp")
    if scheme == "turns" and params[0][1] == "udp":
        raise Unfit("TURN over DTLS (turns with transport=udp) is not supported")


# --------------------------------------------------------------------------------------------------- showing, in errors


def shown_value(value: object) -> str:
    """A value for an error: short, and without what looks like a secret in it."""
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
    """What an error about an unknown name adds; `known` is not empty."""
    keys = list(known)
    same = [key for key in keys if key.rpartition(".")[2] == name]  # its section was left out
    return f"the nearest known one is {difflib.get_close_matches(name, same or keys, n=1, cutoff=0.0)[0]}"
