"""What a node is configured with: `NodeConfig`, and where it comes from.

In code::

    NodeConfig(servers=Servers(websocket=["wss://signal.example.org"]), listen=ListenConfig(port=4433))

or, for programs with users, `load_config`, which merges key by key, the first that names a key winning: the command
line, ``WARPGATE_*`` environment variables, a file that the user names, the user's own file, the defaults.

Every value goes through one table, `_READERS`, wherever it comes from.  So a value is checked in one way, and every
error is a `ConfigError` of one sentence that names the source, the dotted key and the value, with passwords masked.
A reader that is handed something else raises `Unfit`, which `_read_value` turns into that sentence.
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
"""Characters of a relay token; those that `serve` makes have 43."""
_TOKEN = re.compile(rf"[!-~]{{16,{MAX_TOKEN}}}", re.ASCII)


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
      findable: whether a node that can be called lets its signal servers tell whoever knows its peer id by which
        servers it can be asked where it is (docs/contacts.md).
    """

    name_of_table = "listen"

    port: int = 0
    findable: bool = True


@final
class InterfacesConfig(_Section, frozen=True, kw_only=True):
    """Which network interfaces the node uses: publishes the addresses of, measures, and binds sockets to.

    Globs of their names (``eth*``, ``wg0``), whatever their case.  It listens on every address all the same.

    Attributes:
      include: only these, among them virtual ones; empty for all but those that lead only to containers and virtual
        machines on this machine.
      exclude: not these, whatever `include` says.
    """

    name_of_table = "interfaces"

    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()

    if TYPE_CHECKING:  # what __post_init__ makes true: any iterable is accepted

        def __init__(self, *, include: Iterable[str] = (), exclude: Iterable[str] = ()) -> None: ...


@final
class NetworkConfig(_Section, frozen=True, kw_only=True):
    """How the node gets out of its network.

    Attributes:
      proxy: by what proxy its TCP connections to servers go (docs/configuration.md): "env", the one that HTTPS_PROXY or
        ALL_PROXY in the environment names, if they name one; "none"; or the URL of one.  Text is accepted.
    """

    name_of_table = "network"

    proxy: ProxySetting = "env"

    if TYPE_CHECKING:  # what __post_init__ makes true: text is accepted for the URL

        def __init__(self, *, proxy: ProxySetting | str = "env") -> None: ...


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
      relay_token: of the rendezvous servers; who has it may relay by them with any peer.  A secret.
      ca_file: certificates in PEM that are trusted for TLS besides the system's; None for no more.
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
        """All that carry signals, kinds in turn: of the few that an address has room for, each kind gets some."""
        pairs = zip_longest(self.websocket, self.mqtt)
        return tuple(url for pair in pairs for url in pair if url is not None)

    if TYPE_CHECKING:  # what __post_init__ makes true: texts are accepted for URLs

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
      enabled: False: no router is asked for anything.
      protocols: what they are asked by: pcp, natpmp, upnp.
    """

    name_of_table = "portmap"

    enabled: bool = True
    protocols: tuple[PortMapProtocol, ...] = PORTMAP_PROTOCOLS

    if TYPE_CHECKING:  # what __post_init__ makes true: any iterable is accepted

        def __init__(self, *, enabled: bool = True, protocols: Iterable[str] = PORTMAP_PROTOCOLS) -> None: ...


@final
class PathsConfig(_Section, frozen=True, kw_only=True):
    """How Links watch the paths that they are on, and outlive them (docs/live_links.md).

    Attributes:
      dead_after: seconds within which the death of a path is to be noticed, also while nobody says anything; 0: as soon
        as what is asked on an idle Link by itself lets it.
      resume_timeout: seconds for which a Link without a path is kept, while another one is sought; 0: it ends with its
        path.  What both sides allow counts, so the lesser of the two.
      upgrade: whether a node that has called looks for better paths than those that its Links have.
      standby_relay: whether a relay's path that was left for a better one is kept in case that one fails: of few
        Links, and where the peer keeps it too.
      relay_first: whether calls take a relay's path at once, and change over to a better one when it is found
        (docs/walk.md).  None: those of `Node.auto_connect` do not, those of ``warpgate-trio connect`` do.
    """

    name_of_table = "paths"

    dead_after: float = 0.0
    resume_timeout: float = 120.0
    upgrade: bool = True
    standby_relay: bool = True
    relay_first: bool | None = None


@final
class Budgets(_Section, frozen=True, kw_only=True):
    """How long things may take, in seconds; each is more than 0 (docs/configuration.md).

    Attributes:
      direct_min: the direct phase lasts three round trips of a signal, but at least this.
      direct_max: ... and at most this.
      punch: the punch phase.
      spray: the spray phase.
      relay_base: the relay phase lasts twelve round trips of a signal and this.
      total: one whole `auto_connect`, all phases together.
      handshake: an inbound connection from accept to commit: TLS, proof and COMMIT; and a likely direct combo, where no
        phase is left.
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
    """Everything that a node is configured with; `load_config` and `from_toml` read one, or make it in code."""

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
        """Read a configuration file's text; relative paths in it are of `base_dir`.  Raises `ConfigError`."""
        return _assemble(_read_toml(text, Source("the TOML text", Path(base_dir))))

    def to_toml(self, *, redact: bool = False) -> str:
        """The configuration as a file's text, defaults included, which `from_toml` reads back to an equal one.

        With `redact` it shows no password and no query of a URL; it is then for people to look at.  What is None is
        left out, since TOML has no such value.
        """
        return tomli_w.dumps({section: _plain(getattr(self, section), redact) for section in self.__struct_fields__})


def default_config_file() -> Path:
    """The user's own configuration file, which `load_config` reads when it is there.

    Raises `ConfigError` for a user without a home directory, as a container with an arbitrary uid has it.
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
    """The user's own file, if there is one that we can know of."""
    with suppress(ConfigError, OSError):  # OSError: in the home of somebody else, where we may not look
        file = default_config_file()
        if file.is_file():
            return file
    return None


# ------------------------------------------------------------------------------------------------- reading one value


_IN_CODE: Final = Source("", None)


def _read_value(key: str, value: object, source: Source) -> object:
    """`value`, checked and converted for `key`; ConfigError names all three."""
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
        raise Unfit("expected a glob of interface names, as 'wg*'")
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
    """The values of a TOML text, checked, by dotted key."""
    try:
        tables = tomllib.loads(text.removeprefix("\ufeff"))  # a byte order mark, as editors on Windows write it
    except (ValueError, RecursionError) as error:  # ValueError: TOMLDecodeError, or a number of too many digits
        raise ConfigError(f"{source.name}: {error}") from error  # tomllib names line and column
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
    """`value` in the types of TOML."""
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
