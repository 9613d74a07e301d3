"""A node's configuration: `NodeConfig`, and reading it from code, files, the environment and the command line.

In code::

    NodeConfig(servers=Servers(websocket=["wss://signal.example.org"]), listen=ListenConfig(port=4433))

or, for programs with users, `load_config`.  It merges key by key.  The first of these sources that has a key decides:
the command line, ``WARPGATE_*`` environment variables, a file that the user names, the user's own file, the defaults.

Every value from any source is read by the table `_READERS`.  So there is one check for each value, and every error is a
`ConfigError` of one sentence that names the source, the dotted key and the value, with passwords masked.  A reader
raises `Unfit` for a value that is not valid, which `_read_value` converts to that sentence.
"""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Iterable, Mapping
from contextlib import suppress
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Final, Literal, TypeAlias, final

import msgspec
import platformdirs
import tomli_w

from ..errors import ConfigError
from .environment import settings_in
from .proxies import ProxySetting, read_proxy
from .server_url import MASK, ServerUrl, TurnServer, Unfit, nearest, read_turn, shown_value
from .values import (
    Reader,
    Source,
    expanded,
    read_flag,
    read_flag_or_none,
    read_list,
    read_path,
    read_port,
    read_seconds,
    read_seconds_or_none,
    read_urls,
)

__all__ = [
    "Budgets",
    "IdentityConfig",
    "InterfacesConfig",
    "ListenConfig",
    "NetworkConfig",
    "NodeConfig",
    "PathsConfig",
    "PortMapConfig",
    "Servers",
    "default_config_file",
    "load_config",
]


MAX_TOKEN: Final = 256
"""Characters of a relay token at most; `serve` makes tokens of 43."""
_TOKEN = re.compile(rf"[!-~]{{16,{MAX_TOKEN}}}", re.ASCII)


class _Section(msgspec.Struct, frozen=True, kw_only=True):
    """A table of the configuration.  Values are checked and converted also when it is made in code.

    Raises:
      ConfigError: a value is not valid.
    """

    name_of_table: ClassVar[str]

    def __post_init__(self) -> None:
        for name in self.__struct_fields__:
            value = _read_value(f"{self.name_of_table}.{name}", getattr(self, name), _IN_CODE)
            msgspec.structs.force_setattr(self, name, value)


@final
class IdentityConfig(_Section, frozen=True, kw_only=True):
    """The node's identity.

    Attributes:
      key_file: the file of its key, created on first use; None for `identity.default_key_file()`.
      ephemeral: whether each start has a new identity, which is not stored; `key_file` is then not used.
    """

    name_of_table = "identity"

    key_file: Path | None = None
    ephemeral: bool = False


@final
class ListenConfig(_Section, frozen=True, kw_only=True):
    """Where the node listens.

    Attributes:
      port: the TCP port, on every address of the host; with 0 the system chooses one.
      findable: whether a node that can be called publishes a key record at its signal servers.  Anybody who knows the
        peer id can then learn at which servers to ask the node for its address (docs/contacts.md).
    """

    name_of_table = "listen"

    port: int = 0
    findable: bool = True


@final
class InterfacesConfig(_Section, frozen=True, kw_only=True):
    """Which network interfaces the node uses: it publishes their addresses, measures them, and binds sockets to them.

    The values are globs of interface names (``eth*``, ``wg0``), case-insensitive.  The node listens on the addresses of
    all interfaces in any case.

    Attributes:
      include: only these interfaces are used, including virtual ones.  Empty for all interfaces except those that lead
        only to containers and virtual machines on this host.
      exclude: these interfaces are not used, even if `include` names them.
    """

    name_of_table = "interfaces"

    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()

    if TYPE_CHECKING:  # by __post_init__, any iterable is accepted

        def __init__(self, *, include: Iterable[str] = (), exclude: Iterable[str] = ()) -> None: ...


@final
class NetworkConfig(_Section, frozen=True, kw_only=True):
    """How the node reaches servers outside its network.

    Attributes:
      proxy: the proxy of TCP connections to servers (docs/configuration.md).  "env" takes the one in HTTPS_PROXY or
        ALL_PROXY of the environment, if any; "none" uses none; else a proxy's URL.  Text is accepted.
    """

    name_of_table = "network"

    proxy: ProxySetting = "env"

    if TYPE_CHECKING:  # by __post_init__, text is accepted for the URL

        def __init__(self, *, proxy: ProxySetting | str = "env") -> None: ...


@final
class Servers(_Section, frozen=True, kw_only=True):
    """The servers that the node uses, in order of preference.

    Text is accepted for URLs, and any iterable for the lists.

    Attributes:
      websocket: rendezvous servers (ws, wss), for signals and as relays.
      mqtt: MQTT brokers (mqtt, mqtts), for signals.
      stun: STUN servers (stun, stuns).
      turn: TURN servers.
      ntp: NTP servers (ntp).
      relay_token: the token of the rendezvous servers, whose holders may relay through them with any peer.  A secret.
      ca_file: a file of certificates in PEM that are trusted for TLS in addition to the system's; None for no others.
    """

    name_of_table = "servers"

    websocket: tuple[ServerUrl, ...] = ()
    mqtt: tuple[ServerUrl, ...] = ()
    stun: tuple[ServerUrl, ...] = ()
    turn: tuple[TurnServer, ...] = ()
    ntp: tuple[ServerUrl, ...] = ()
    relay_token: str | None = None
    ca_file: Path | None = None

    def __repr__(self) -> str:
        shown = msgspec.structs.asdict(self) | ({} if self.relay_token is None else {"relay_token": MASK})
        return f"Servers({', '.join(f'{name}={value!r}' for name, value in shown.items())})"

    @property
    def signal(self) -> tuple[ServerUrl, ...]:
        """All servers for signals, kinds alternating: an address has room for a few, which should include both."""
        pairs = zip_longest(self.websocket, self.mqtt)
        return tuple(url for pair in pairs for url in pair if url is not None)

    if TYPE_CHECKING:  # by __post_init__, text is accepted for URLs, and any iterable for lists

        def __init__(
            self,
            *,
            websocket: Iterable[ServerUrl | str] = (),
            mqtt: Iterable[ServerUrl | str] = (),
            stun: Iterable[ServerUrl | str] = (),
            turn: Iterable[TurnServer | str] = (),
            ntp: Iterable[ServerUrl | str] = (),
            relay_token: str | None = None,
            ca_file: Path | None = None,
        ) -> None: ...


PortMapProtocol: TypeAlias = Literal["pcp", "natpmp", "upnp"]
PORTMAP_PROTOCOLS: Final[tuple[PortMapProtocol, ...]] = ("pcp", "natpmp", "upnp")


@final
class PortMapConfig(_Section, frozen=True, kw_only=True):
    """Whether routers are asked to open the port that the node listens on (docs/port_mapping.md).

    Attributes:
      enabled: whether routers are asked at all.
      protocols: the protocols that may be used: pcp, natpmp, upnp.
    """

    name_of_table = "portmap"

    enabled: bool = True
    protocols: tuple[PortMapProtocol, ...] = PORTMAP_PROTOCOLS

    if TYPE_CHECKING:  # by __post_init__, any iterable is accepted

        def __init__(self, *, enabled: bool = True, protocols: Iterable[str] = PORTMAP_PROTOCOLS) -> None: ...


@final
class PathsConfig(_Section, frozen=True, kw_only=True):
    """How Links monitor their paths, and survive the failure of one (docs/live_links.md).

    Attributes:
      dead_after: seconds within which a dead path is detected, also on an idle Link; with 0, as soon as the usual
        PINGs of an idle Link show it.
      resume_timeout: seconds for which a Link without a path is kept while another path is sought; with 0 it ends with
        its path.  The lesser of both sides' values applies.
      upgrade: whether a node that has called looks for better paths for its Links.
      standby_relay: whether the path through a relay is kept after a change to a better path, in case that one fails.
        This applies to a few Links, and only where the peer keeps the path too.
      relay_first: whether calls take a path through a relay at once, and change to a better one when it is found
        (docs/walk.md).  With None, `Node.auto_connect` does not, and ``warpgate-trio connect`` does.
    """

    name_of_table = "paths"

    dead_after: float = 0.0
    resume_timeout: float = 120.0
    upgrade: bool = True
    standby_relay: bool = True
    relay_first: bool | None = None


@final
class Budgets(_Section, frozen=True, kw_only=True):
    """Time limits in seconds, each more than 0 (docs/configuration.md).

    Attributes:
      direct_min: the direct phase lasts three round trips of a signal, but at least this.
      direct_max: ... and at most this.
      punch: the punch phase.
      spray: the spray phase.
      relay_base: the relay phase lasts twelve round trips of a signal plus this.
      total: one whole `auto_connect`, all phases together.
      handshake: an inbound connection from accept to commit: TLS, proof and COMMIT; also a likely direct combo when no
        phase is left.
      commit: the wait for ACCEPT or REFUSE after COMMIT.
      authorize: one call of the application's `authorize`.
      goodbye: the last messages of a node to the network while it closes.
      signal: the wait for the reply to one signal message.
    """

    name_of_table = "budgets"

    direct_min: float = 0.3
    direct_max: float = 2.0
    punch: float = 1.5
    spray: float = 5.0
    relay_base: float = 4.0
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
    """The whole configuration of a node, made in code or read by `load_config` or `from_toml`."""

    identity: IdentityConfig = msgspec.field(default_factory=IdentityConfig)
    listen: ListenConfig = msgspec.field(default_factory=ListenConfig)
    interfaces: InterfacesConfig = msgspec.field(default_factory=InterfacesConfig)
    network: NetworkConfig = msgspec.field(default_factory=NetworkConfig)
    servers: Servers = msgspec.field(default_factory=Servers)
    portmap: PortMapConfig = msgspec.field(default_factory=PortMapConfig)
    paths: PathsConfig = msgspec.field(default_factory=PathsConfig)
    budgets: Budgets = msgspec.field(default_factory=Budgets)

    @classmethod
    def from_toml(cls, text: str, *, base_dir: str | os.PathLike[str]) -> NodeConfig:
        """Read the text of a configuration file; relative paths in it start at `base_dir`.  Raises `ConfigError`."""
        return _assemble(_read_toml(text, Source("the TOML text", Path(base_dir))))

    def to_toml(self, *, redact: bool = False) -> str:
        """The configuration as the text of a file, including defaults, which `from_toml` reads back to an equal one.

        With `redact`, passwords, the relay token and queries of URLs are masked; the text is then only for display.
        None values are left out, since TOML has none.
        """
        return tomli_w.dumps({section: _plain(getattr(self, section), redact) for section in self.__struct_fields__})


def default_config_file() -> Path:
    """The path of the user's own configuration file, which `load_config` reads if it exists.

    Raises:
      ConfigError: the user has no home directory, as in a container with an arbitrary uid.
    """
    try:
        return platformdirs.user_config_path("warpgate-trio", appauthor=False) / "config.toml"
    except RuntimeError as error:  # HOME is not set, and the system does not know the user
        raise ConfigError("there is no home directory to look for a configuration in; set HOME") from error


def load_config(
    *,
    file: str | os.PathLike[str] | None = None,
    env: Mapping[str, str] | None = None,
    overrides: Mapping[str, object] | None = None,
) -> NodeConfig:
    """Merge the configuration from all sources, key by key (a list is one value).  It reads files, without Trio.

    The sources, with decreasing priority:

    1. `overrides`, the command line: ``{"listen.port": 5}``; values of None are ignored.
    2. `env`, by default ``os.environ``: ``WARPGATE_<SECTION>_<KEY>``, lists with commas between the items, as in
       ``WARPGATE_SERVERS_STUN=stun:a.example,stun:b.example``.
    3. `file`, else the file that ``WARPGATE_CONFIG`` names; it has to exist.
    4. The user's own file, `default_config_file()`, if there is one.
    5. The defaults.

    A relative path in a file starts at the directory of that file, elsewhere at the working directory; ``~`` is the
    home directory.

    Raises:
      ConfigError: a value is not valid, in one sentence that names source, key and value; or a key is unknown, with the
        nearest known one; or a file cannot be read.
    """
    environment = os.environ if env is None else env
    try:
        cwd = Path.cwd()
    except OSError:  # the working directory was deleted, which matters only for relative paths
        cwd = Path()
    values: dict[str, object] = {}
    user_file = _user_file()
    if user_file is not None:
        values |= _read_file(user_file, cwd)
    named = file if file is not None else environment.get("WARPGATE_CONFIG") or None
    if named is not None:
        values |= _read_file(Path(named), cwd)
    for name, text in settings_in(environment).items():
        key = _ENVIRONMENT.get(name)
        if key is None:
            raise ConfigError(f"environment: unknown variable {name}; {nearest(name, _ENVIRONMENT)}")
        values[key] = _read_value(key, text, Source(f"environment {name}", cwd, text=True))
    for key, value in (overrides or {}).items():
        if value is not None:
            values[key] = _read_value(key, value, Source("command line", cwd))
    return _assemble(values)


def _user_file() -> Path | None:
    """The user's own configuration file, if there is a readable place for one and it exists."""
    with suppress(ConfigError, OSError):  # OSError: in another user's home, without permission
        file = default_config_file()
        if file.is_file():
            return file
    return None


# ------------------------------------------------------------------------------------------------- reading one value


_IN_CODE: Final = Source("", None)


def _read_value(key: str, value: object, source: Source) -> object:
    """`value`, checked and converted for `key`; a ConfigError names source, key and value."""
    prefix = f"{source.name}: " if source.name else ""
    reader = _READERS.get(key)
    if reader is None:
        raise ConfigError(f"{prefix}unknown key {key}; {nearest(key, _READERS)}")
    try:
        return reader(value, source)
    except Unfit as error:
        if error.item is not None:
            position, value = error.item
            key = f"{key}[{position}]"
        raise ConfigError(f"{prefix}{key} = {shown_value(value)}: {error}") from None


def _read_token(value: object, source: Source) -> str | None:
    if value is None or (source.text and value == ""):
        return None
    if not isinstance(value, str) or not _TOKEN.fullmatch(value):
        raise Unfit(f"expected 16 to {MAX_TOKEN} printable ASCII characters without spaces")
    return value


def _read_glob(value: object) -> str:
    if not isinstance(value, str) or not value.strip() or not value.isprintable():
        raise Unfit("expected a glob of interface names, such as 'wg*'")
    return value


def _read_protocol(value: object) -> str:
    if value not in PORTMAP_PROTOCOLS:
        raise Unfit(f"expected one of {', '.join(PORTMAP_PROTOCOLS)}")
    return str(value)


_READERS: Final[Mapping[str, Reader]] = {
    "identity.key_file": read_path,
    "identity.ephemeral": read_flag,
    "listen.port": read_port,
    "listen.findable": read_flag,
    "interfaces.include": read_list(_read_glob, "globs of interface names"),
    "interfaces.exclude": read_list(_read_glob, "globs of interface names"),
    "network.proxy": lambda value, _: read_proxy(value),
    "servers.websocket": read_urls("ws", "wss"),
    "servers.mqtt": read_urls("mqtt", "mqtts"),
    "servers.stun": read_urls("stun", "stuns"),
    "servers.turn": read_list(read_turn, "TURN servers"),
    "servers.ntp": read_urls("ntp"),
    "servers.relay_token": _read_token,
    "servers.ca_file": read_path,
    "portmap.enabled": read_flag,
    "portmap.protocols": read_list(_read_protocol, "protocols"),
    "paths.dead_after": read_seconds_or_none,
    "paths.resume_timeout": read_seconds_or_none,
    "paths.upgrade": read_flag,
    "paths.standby_relay": read_flag,
    "paths.relay_first": read_flag_or_none,
} | {f"budgets.{name}": read_seconds for name in Budgets.__struct_fields__}

_SECTIONS: Final[Mapping[str, type[_Section]]] = {
    section.name_of_table: section
    for section in (
        IdentityConfig,
        ListenConfig,
        InterfacesConfig,
        NetworkConfig,
        Servers,
        PortMapConfig,
        PathsConfig,
        Budgets,
    )
}
_ENVIRONMENT: Final = {"WARPGATE_" + key.replace(".", "_").upper(): key for key in _READERS}


# ------------------------------------------------------------------------------------------ files, merging, showing


def _read_file(path: Path, cwd: Path) -> dict[str, object]:
    try:
        path = cwd / expanded(path)
        text = path.read_text(encoding="utf-8")
    except (OSError, ValueError, Unfit) as error:  # ValueError: not UTF-8, or a NUL in the path
        reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
        raise ConfigError(f"the configuration file {path} cannot be read: {reason}") from error
    return _read_toml(text, Source(str(path), path.parent))


def _read_toml(text: str, source: Source) -> dict[str, object]:
    """The checked values of a TOML text, by dotted key."""
    try:
        tables = tomllib.loads(text.removeprefix("\ufeff"))  # a byte order mark, as editors on Windows write it
    except (ValueError, RecursionError) as error:  # ValueError: TOMLDecodeError, or a number of too many digits
        raise ConfigError(f"{source.name}: {error}") from error  # tomllib's text has the line and column
    values: dict[str, object] = {}
    for section, table in tables.items():
        if section not in _SECTIONS:
            raise ConfigError(f"{source.name}: unknown key {section}; {nearest(section, (*_SECTIONS, *_READERS))}")
        if not isinstance(table, dict):
            raise ConfigError(f"{source.name}: {section} = {shown_value(table)}: expected a table, [{section}]")
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
    """`value` converted to the types of TOML."""
    if isinstance(value, ServerUrl):
        return value.redacted if redact else str(value)
    if isinstance(value, tuple):
        return [_plain(each, redact) for each in value]
    if isinstance(value, msgspec.Struct):
        fields = {name: each for name, each in msgspec.structs.asdict(value).items() if each is not None}
        if redact:
            fields.update((secret, MASK) for secret in ("password", "relay_token") if secret in fields)
        return {name: _plain(each, redact) for name, each in fields.items()}
    return str(value) if isinstance(value, Path) else value
