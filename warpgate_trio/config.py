"""What a node is configured with: `NodeConfig`, and where it comes from.

In code::

    NodeConfig(servers=Servers(websocket=["wss://signal.example.org"]), listen=ListenConfig(port=4433))

or, for programs with users, `load_config`, which merges key by key, the first that names a key winning: the command
line, ``WARPGATE_*`` environment variables, a file that the user names, the user's own file, the defaults.

Every value goes through one table, `_READERS`, wherever it comes from.  So a value is checked in one way, and every
error is a `ConfigError` of one sentence that names the source, the dotted key and the value, with passwords masked.
"""

from __future__ import annotations

import difflib
import os
import re
import tomllib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Final, Literal, NoReturn, TypeAlias, final
from urllib.parse import parse_qsl, quote, unquote, urlencode

import msgspec
import platformdirs
import tomli_w

from .errors import ConfigError

__all__ = [
    "Budgets",
    "IdentityConfig",
    "ListenConfig",
    "NodeConfig",
    "ServerUrl",
    "Servers",
    "TurnServer",
    "default_config_file",
    "load_config",
]

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
# RFC 7064 and RFC 7065 have no "//", no path, and for TURN one parameter.
_OPAQUE_SCHEMES: Final = frozenset({"stun", "stuns", "turn", "turns"})
_WITH_PATH: Final = frozenset({"ws", "wss", "mqtt", "mqtts"})
_WITH_LOGIN: Final = _WITH_PATH | {"turn", "turns"}

_MASK: Final = "***"
_PRINTABLE = re.compile(r"[!-~]+", re.ASCII)
_URL = re.compile(
    r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*):(?P<slashes>//)?(?:(?P<login>[^@/?#]*)@)?"
    r"(?P<host>\[[^\]]*\]|[^:/?#@\[\]]*)(?::(?P<port>[^/?#]*))?(?P<path>/[^?#]*)?(?:\?(?P<query>[^#]*))?"
)
_LABEL = r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?"  # RFC 1035 2.3.1, and the underscore that many have in local names
_HOST_NAME = re.compile(rf"(?=.{{1,253}}\Z){_LABEL}(?:\.{_LABEL})*\.?", re.ASCII)


@final
class ServerUrl(msgspec.Struct, frozen=True):
    """Where a server is and how to talk to it.  Made by `parse`; `str` gives the URL back, in its normal form.

    Attributes:
      scheme: ws, wss, mqtt, mqtts, stun, stuns, turn, turns or ntp.
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
        except _Unfit as error:
            raise ConfigError(f"{_shown(text)}: {error}") from None

    @property
    def tls(self) -> bool:
        """Whether the connection is encrypted with TLS from its start."""
        return self.scheme in ("wss", "mqtts", "stuns", "turns")

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
    def redacted(self) -> str:
        """The URL without what may be secret, for logs: the password, and the values of the query but `transport`."""
        params = tuple((name, value if name == "transport" else _MASK) for name, value in self.params)
        hidden = msgspec.structs.replace(self, password=None if self.password is None else _MASK, params=params)
        return str(hidden).replace(quote(_MASK, safe=""), _MASK)

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
        host = f"[{self.host}]" if ":" in self.host else self.host
        port = "" if self.port == _DEFAULT_PORTS.get(self.scheme) else f":{self.port}"
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
        except _Unfit as error:
            raise ConfigError(f"TURN server {_shown(self.url)}: {error}") from None
        for name, value in zip(self.__struct_fields__, values, strict=True):
            msgspec.structs.force_setattr(self, name, value)

    def __repr__(self) -> str:
        password = None if self.password is None else _MASK
        return f"TurnServer({self.url.redacted!r}, username={self.username!r}, password={password!r})"


class _Section(msgspec.Struct, frozen=True, kw_only=True):
    """A table of the configuration.  Values are checked, and texts converted, also when it is made in code."""

    name_of_table: ClassVar[str]

    def __post_init__(self) -> None:
        for name in self.__struct_fields__:
            value = _read_value(f"{self.name_of_table}.{name}", getattr(self, name), _IN_CODE)
            msgspec.structs.force_setattr(self, name, value)


@final
class IdentityConfig(_Section, frozen=True, kw_only=True):
    """Which identity the node has.

    Attributes:
      key_file: where its key is kept, made on first use; None for `identity.default_key_file()`.
      ephemeral: a fresh identity per start, kept nowhere; `key_file` is then not looked at.
    """

    name_of_table = "identity"

    key_file: Path | None = None
    ephemeral: bool = False


@final
class ListenConfig(_Section, frozen=True, kw_only=True):
    """Where the node listens.

    Attributes:
      port: the TCP port, on every address of the machine; 0 for one that the system chooses.
    """

    name_of_table = "listen"

    port: int = 0


@final
class Servers(_Section, frozen=True, kw_only=True):
    """The servers that the node uses, in order of preference.

    Texts are accepted for URLs, and any iterable for the lists.

    Attributes:
      websocket: rendezvous servers (ws, wss), for signals and as relays.
      mqtt: MQTT brokers (mqtt, mqtts), for signals.
      stun: STUN servers (stun, stuns).
      turn: TURN servers.
      ntp: time servers (ntp).
      ca_file: certificates in PEM that are trusted for TLS besides the system's; None for no more.
      public_servers: whether the list of public servers in the package fills what is not named here (DESIGN 10).
    """

    name_of_table = "servers"

    websocket: tuple[ServerUrl, ...] = ()
    mqtt: tuple[ServerUrl, ...] = ()
    stun: tuple[ServerUrl, ...] = ()
    turn: tuple[TurnServer, ...] = ()
    ntp: tuple[ServerUrl, ...] = ()
    ca_file: Path | None = None
    public_servers: bool = True

    if TYPE_CHECKING:  # what __post_init__ makes true: texts are accepted for URLs

        def __init__(
            self,
            *,
            websocket: Iterable[ServerUrl | str] = (),
            mqtt: Iterable[ServerUrl | str] = (),
            stun: Iterable[ServerUrl | str] = (),
            turn: Iterable[TurnServer | str] = (),
            ntp: Iterable[ServerUrl | str] = (),
            ca_file: Path | None = None,
            public_servers: bool = True,
        ) -> None: ...


@final
class Budgets(_Section, frozen=True, kw_only=True):
    """How long things may take, in seconds; each is more than 0 (DESIGN 4 and 8).

    Attributes:
      direct_min: the direct phase lasts three round trips of a signal, but at least this.
      direct_max: ... and at most this.
      punch: the punch phase.
      spray: the spray phase.
      relay_base: the relay phase lasts twelve round trips of a signal and this.
      total: one whole `auto_connect`, all phases together.
      handshake: an inbound connection from accept to commit: TLS, proof and COMMIT.
      commit: the wait for ACCEPT or REFUSE after COMMIT.
      authorize: one call of the application's `authorize`.
      goodbye: what a node may still say to the network after it was told to close.
      signal: the wait for the reply to one signal message.
    """

    name_of_table = "budgets"

    direct_min: float = 0.3
    direct_max: float = 2.0
    punch: float = 1.5
    spray: float = 5.0
    relay_base: float = 1.0
    total: float = 30.0
    handshake: float = 10.0
    commit: float = 5.0
    authorize: float = 10.0
    goodbye: float = 2.0
    signal: float = 5.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.direct_min > self.direct_max:
            raise ConfigError(
                f"budgets.direct_min = {self.direct_min} is more than budgets.direct_max = {self.direct_max}"
            )


@final
class NodeConfig(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that a node is configured with; `load_config` and `from_toml` read one, or make it in code."""

    identity: IdentityConfig = msgspec.field(default_factory=IdentityConfig)
    listen: ListenConfig = msgspec.field(default_factory=ListenConfig)
    servers: Servers = msgspec.field(default_factory=Servers)
    budgets: Budgets = msgspec.field(default_factory=Budgets)

    @classmethod
    def from_toml(cls, text: str, *, base_dir: str | os.PathLike[str]) -> NodeConfig:
        """Read a configuration file's text; relative paths in it are of `base_dir`.  Raises `ConfigError`."""
        return _assemble(_read_toml(text, _Source("the TOML text", Path(base_dir))))

    def to_toml(self, *, redact: bool = False) -> str:
        """The configuration as a file's text, defaults included, which `from_toml` reads back to an equal one.

        With `redact` it shows no password and no query of a URL; it is then for people to look at.  What is None is
        left out, since TOML has no such value.
        """
        return tomli_w.dumps({section: _plain(getattr(self, section), redact) for section in self.__struct_fields__})


def default_config_file() -> Path:
    """The user's own configuration file, which `load_config` reads when it is there."""
    return platformdirs.user_config_path("warpgate-trio", appauthor=False) / "config.toml"


def load_config(
    *,
    file: str | os.PathLike[str] | None = None,
    env: Mapping[str, str] | None = None,
    overrides: Mapping[str, object] | None = None,
) -> NodeConfig:
    """Merge the configuration from everywhere, key by key (a list is one value).  It reads files, without Trio.

    From the strongest:

    1. `overrides`, the command line: ``{"listen.port": 5}``; a value of None is not there.
    2. `env`, ``os.environ`` when None: ``WARPGATE_<SECTION>_<KEY>``, lists with commas between the items, as in
       ``WARPGATE_SERVERS_STUN=stun:a.example,stun:b.example``.
    3. `file`, else the file that ``WARPGATE_CONFIG`` names; it has to exist.
    4. The user's own file, `default_config_file()`, if there is one.
    5. The defaults.

    A relative path is of the directory of the file that names it, elsewhere of the working directory; ``~`` is the
    home directory.  Raises `ConfigError` with one sentence that names source, key and value; for an unknown key it
    names the nearest known one.
    """
    environment = os.environ if env is None else env
    try:
        cwd = Path.cwd()
    except OSError:  # deleted under our feet; only who names a relative path has to mind
        cwd = Path()
    values: dict[str, object] = {}
    user_file = default_config_file()
    if user_file.is_file():
        values |= _read_file(user_file, cwd)
    named = file if file is not None else environment.get("WARPGATE_CONFIG") or None
    if named is not None:
        values |= _read_file(Path(named), cwd)
    for name, text in environment.items():
        if name.startswith("WARPGATE_") and name not in _NOT_KEYS:
            key = _ENVIRONMENT.get(name)
            if key is None:
                raise ConfigError(f"environment: unknown variable {name}; {_nearest(name, _ENVIRONMENT)}")
            values[key] = _read_value(key, text, _Source(f"environment {name}", cwd, text=True))
    for key, value in (overrides or {}).items():
        if value is not None:
            values[key] = _read_value(key, value, _Source("command line", cwd))
    return _assemble(values)


# ------------------------------------------------------------------------------------------------- reading one value


class _Unfit(Exception):
    """A value does not fit; the text says what is expected.  Always turned into a `ConfigError`.

    `item` is the one of a list that does not fit, with its position.
    """

    def __init__(self, message: str, *, item: tuple[int, object] | None = None) -> None:
        super().__init__(message)
        self.item = item


@dataclass(frozen=True, slots=True)
class _Source:
    """Where a value comes from."""

    name: str  # for errors; empty for code
    base_dir: Path | None  # what relative paths are of; None leaves them alone
    text: bool = False  # every value is a text: the environment


_IN_CODE: Final = _Source("", None)


def _read_value(key: str, value: object, source: _Source) -> object:
    """`value`, checked and converted for `key`; ConfigError names all three."""
    prefix = f"{source.name}: " if source.name else ""
    reader = _READERS.get(key)
    if reader is None:
        raise ConfigError(f"{prefix}unknown key {key}; {_nearest(key, _READERS)}")
    try:
        return reader(value, source)
    except _Unfit as error:
        if error.item is not None:
            position, value = error.item
            key = f"{key}[{position}]"
        raise ConfigError(f"{prefix}{key} = {_shown(value)}: {error}") from None


def _read_port(value: object, source: _Source) -> int:
    if source.text and isinstance(value, str) and re.fullmatch("[0-9]{1,5}", value, re.ASCII):
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= 65535:
        raise _Unfit("expected a port number, 0 to 65535")
    return value


def _read_seconds(value: object, source: _Source) -> float:
    if source.text and isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            value = None
    # The upper bound also keeps out infinity, and nan compares with nothing.
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1e9:
        raise _Unfit("expected a number of seconds above 0")
    return float(value)


def _read_flag(value: object, source: _Source) -> bool:
    if source.text and isinstance(value, str):
        value = {"true": True, "1": True, "false": False, "0": False}.get(value.lower())
    if not isinstance(value, bool):
        raise _Unfit("expected true or false")
    return value


def _read_path(value: object, source: _Source) -> Path | None:
    if value is None or (source.text and value == ""):
        return None
    if not isinstance(value, str | Path) or not str(value) or "\0" in str(value):
        raise _Unfit("expected a path")
    path = _expanded(Path(value))
    return path if source.base_dir is None else source.base_dir / path


def _expanded(path: Path) -> Path:
    try:
        return path.expanduser()
    except RuntimeError:
        raise _Unfit("the home directory that '~' stands for is not known") from None


def _read_urls(*schemes: str) -> _Reader:
    return _read_list(lambda item: _read_url(item, *schemes), f"{' and '.join(schemes)} URLs")


def _read_list(read: Callable[[object], object], expected: str) -> _Reader:
    def reader(value: object, source: _Source) -> tuple[object, ...]:
        if source.text and isinstance(value, str):
            value = [part.strip() for part in value.split(",") if part.strip()]
        if isinstance(value, str | bytes | Mapping) or not isinstance(value, Iterable):
            raise _Unfit(f"expected a list of {expected}")
        items: list[object] = []
        for position, item in enumerate(value):
            try:
                items.append(read(item))
            except _Unfit as error:
                raise _Unfit(str(error), item=(position, item)) from None
        return tuple(items)

    return reader


def _read_url(value: object, *schemes: str) -> ServerUrl:
    if isinstance(value, str):
        value = _parse_url(value)
    if not isinstance(value, ServerUrl) or value.scheme not in schemes:
        raise _Unfit(f"expected a URL with the scheme {' or '.join(schemes)}")
    return value


def _read_turn(value: object) -> TurnServer:
    if isinstance(value, TurnServer):
        return value
    table = value if isinstance(value, Mapping) else {"url": value}
    known = TurnServer.__struct_fields__
    for name in table:
        if name not in known:
            raise _Unfit(f"unknown key {name}; {_nearest(str(name), known)}")
    if "url" not in table:
        raise _Unfit("a TURN server needs a url")
    url, username, password = _turn_values(table["url"], table.get("username"), table.get("password"))
    return TurnServer(url, username, password)


def _turn_values(url: object, username: object, password: object) -> tuple[ServerUrl, str | None, str | None]:
    """URL without login, username and password of a TURN server, from a URL with or without a login."""
    server = _read_url(url, "turn", "turns")
    if server.username is not None:
        if username is not None or password is not None:
            raise _Unfit("the login is given twice, in the URL and beside it")
        username, password = server.username, server.password
        server = msgspec.structs.replace(server, username=None, password=None)
    if username is None and password is None:
        return server, None, None
    if not (isinstance(username, str) and isinstance(password, str) and username and password):
        raise _Unfit("expected both a username and a password, as texts, or neither")
    return server, username, password


def _parse_url(text: str) -> ServerUrl:
    if not _PRINTABLE.fullmatch(text):  # before all else: no control characters, which would end up in a request
        raise _Unfit("a URL has printable ASCII characters only, without spaces")
    match = _URL.fullmatch(text)
    if match is None:
        raise _Unfit("expected scheme://host:port, or for STUN and TURN scheme:host:port")
    scheme = match["scheme"].lower()
    if scheme not in _DEFAULT_PORTS:
        raise _Unfit(f"expected one of the schemes {', '.join(_DEFAULT_PORTS)}")
    if (match["slashes"] is None) != (scheme in _OPAQUE_SCHEMES):
        raise _Unfit(f"expected {scheme}:host:port" if scheme in _OPAQUE_SCHEMES else f"expected {scheme}://host:port")
    port = match["port"] or ("" if match["port"] is not None else str(_DEFAULT_PORTS[scheme]))
    if not re.fullmatch("[0-9]{1,5}", port, re.ASCII) or not 1 <= int(port) <= 65535:
        hint = "; in a login, write : / ? # and @ percent-encoded" if "@" in text else ""
        raise _Unfit(f"the port is 1 to 65535{hint}")
    username, password = _parse_login(match["login"])
    path, query = match["path"] or "", match["query"] or ""
    if username is not None and scheme not in _WITH_LOGIN:
        raise _Unfit(f"a {scheme} URL has no login")
    if path and scheme not in _WITH_PATH:
        raise _Unfit(f"a {scheme} URL has no path")
    try:
        params = tuple(parse_qsl(query, keep_blank_values=True, errors="strict"))
    except ValueError:
        raise _Unfit("the query after '?' is not percent-encoded UTF-8") from None
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
        raise _Unfit("the login before '@' is not percent-encoded UTF-8") from None
    if not decoded[0] or not "".join(decoded).isprintable():
        raise _Unfit("the login before '@' needs a name, and has no control characters")
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
    raise _Unfit("the host is a DNS name, an IPv4 address, or an IPv6 address in brackets")


def _check_params(scheme: str, params: tuple[tuple[str, str], ...]) -> None:
    if scheme not in ("turn", "turns"):
        raise _Unfit(f"a {scheme} URL has no query")
    if params not in ((("transport", "udp"),), (("transport", "tcp"),)):
        raise _Unfit("the only query of a TURN URL is transport=udp or transport=tcp")
    if scheme == "turns" and params[0][1] == "udp":
        raise _Unfit("TURN over DTLS (turns with transport=udp) is not supported")


_Reader: TypeAlias = Callable[[object, _Source], object]

_READERS: Final[Mapping[str, _Reader]] = {
    "identity.key_file": _read_path,
    "identity.ephemeral": _read_flag,
    "listen.port": _read_port,
    "servers.websocket": _read_urls("ws", "wss"),
    "servers.mqtt": _read_urls("mqtt", "mqtts"),
    "servers.stun": _read_urls("stun", "stuns"),
    "servers.turn": _read_list(_read_turn, "TURN servers"),
    "servers.ntp": _read_urls("ntp"),
    "servers.ca_file": _read_path,
    "servers.public_servers": _read_flag,
} | {f"budgets.{name}": _read_seconds for name in Budgets.__struct_fields__}

_SECTIONS: Final[Mapping[str, type[_Section]]] = {
    section.name_of_table: section for section in (IdentityConfig, ListenConfig, Servers, Budgets)
}
_ENVIRONMENT: Final = {"WARPGATE_" + key.replace(".", "_").upper(): key for key in _READERS}
# Variables of ours that are no keys: the file to read; what tests may not skip; the interpreter that scripts use.
_NOT_KEYS: Final = frozenset({"WARPGATE_CONFIG", "WARPGATE_REQUIRE", "WARPGATE_PYTHON"})


# ------------------------------------------------------------------------------------------ files, merging, showing


def _read_file(path: Path, cwd: Path) -> dict[str, object]:
    try:
        path = cwd / _expanded(path)
        text = path.read_text(encoding="utf-8")
    except (OSError, ValueError, _Unfit) as error:  # ValueError: not UTF-8, or a NUL in the path
        reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
        raise ConfigError(f"the configuration file {path} cannot be read: {reason}") from error
    return _read_toml(text, _Source(str(path), path.parent))


def _read_toml(text: str, source: _Source) -> dict[str, object]:
    """The values of a TOML text, checked, by dotted key."""
    try:
        tables = tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # ValueError: TOMLDecodeError, or a number of too many digits
        raise ConfigError(f"{source.name}: {error}") from error  # tomllib names line and column
    values: dict[str, object] = {}
    for section, table in tables.items():
        if section not in _SECTIONS:
            raise ConfigError(f"{source.name}: unknown key {section}; {_nearest(section, (*_SECTIONS, *_READERS))}")
        if not isinstance(table, dict):
            raise ConfigError(f"{source.name}: {section} = {_shown(table)}: expected a table, [{section}]")
        for name, value in table.items():
            values[f"{section}.{name}"] = _read_value(f"{section}.{name}", value, source)
    return values


def _assemble(values: Mapping[str, object]) -> NodeConfig:
    tables: dict[str, dict[str, Any]] = {name: {} for name in _SECTIONS}
    for key, value in values.items():
        section, _, name = key.partition(".")
        tables[section][name] = value
    sections: dict[str, Any] = {name: section(**tables[name]) for name, section in _SECTIONS.items()}
    return NodeConfig(**sections)


def _plain(value: object, redact: bool) -> object:
    """`value` in the types of TOML."""
    if isinstance(value, ServerUrl):
        return value.redacted if redact else str(value)
    if isinstance(value, tuple):
        return [_plain(each, redact) for each in value]
    if isinstance(value, msgspec.Struct):
        fields = {name: each for name, each in msgspec.structs.asdict(value).items() if each is not None}
        if redact and "password" in fields:
            fields["password"] = _MASK
        return {name: _plain(each, redact) for name, each in fields.items()}
    return str(value) if isinstance(value, Path) else value


def _shown(value: object) -> str:
    """A value for an error: short, and without what looks like a secret in it."""
    if isinstance(value, str):
        text = re.sub(r"(:(?://)?).*@", rf"\1{_MASK}@", value, count=1, flags=re.DOTALL)
        shown = repr(re.sub(r"\?(?!transport=).*", f"?{_MASK}", text, count=1, flags=re.DOTALL))
    elif isinstance(value, Mapping):
        items = (f"{name}: {_MASK if name == 'password' else _shown(each)}" for name, each in value.items())
        shown = f"{{{', '.join(items)}}}"
    elif isinstance(value, list | tuple):
        shown = f"[{', '.join(map(_shown, value))}]"
    elif isinstance(value, int) and abs(value) >= 2**64:  # Python refuses to print very large ones
        shown = "a huge number"
    else:
        shown = repr(value)
    return shown if len(shown) <= _MOST_SHOWN else f"{shown[:_MOST_SHOWN]}..."


_MOST_SHOWN: Final = 200  # characters of a value in an error


def _nearest(name: str, known: Iterable[str]) -> str:
    return f"the nearest known one is {difflib.get_close_matches(name, list(known), n=1, cutoff=0.0)[0]}"
