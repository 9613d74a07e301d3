"""The only interface between the package and the host that it runs on.

Sockets come from `trio.socket`.  Everything else comes from a `Host`: interfaces and routes, the wall clock, entropy,
randomness, and the host's fingerprint.  `current()` is the real host unless a provider is installed for the running
`trio.run`, as `trio.socket.set_custom_socket_factory` installs one for sockets.  With both installed, the simulator
runs exactly the code that users run.
"""

from __future__ import annotations

import fnmatch
import functools
import hmac
import logging
import os
import random
import re
import secrets
import socket
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from typing import Final, Protocol, final

import psutil
import trio

from . import machine
from .linux import EXHAUSTED, AddressStates, default_routes, ipv6_states, wait_difference
from .sockaddr import parse_ip, socket_family

__all__ = [
    "HOST_ID_LENGTH",
    "HOST_SALT_LENGTH",
    "RESERVED_DESCRIPTORS",
    "Gateway",
    "Host",
    "Interface",
    "InterfaceAddress",
    "RealHost",
    "current",
    "host_id",
    "set_provider",
]

logger: logging.Logger = logging.getLogger(__name__)

RESERVED_DESCRIPTORS: Final = 64
"""File descriptors that sockets opened in bulk leave to the rest of the process (or a quarter of the limit where that
is less): for inbound connections, name lookups and the application's files.  Of the usual limits, 1,024 and 256, most
is left for a spray."""
LIST_LASTS: Final = 0.02
"""Seconds for which a list of the host's interfaces is reused.  The system takes up to a millisecond to make it, and a
call needs it nine times in a row before it is sent and five times when it is answered.  `wait_change` always uses a new
list."""
HOST_SALT_LENGTH: Final = 8
HOST_ID_LENGTH: Final = 16
_FINGERPRINT_LENGTH: Final = 32  # of SHA-256
_PUBLIC_KEY_LENGTH: Final = 32  # of Ed25519


@dataclass(frozen=True, slots=True, kw_only=True)
class InterfaceAddress:
    """One address of an interface.

    Attributes:
      ip: the address, without an IPv6 scope id (the interface's index is the scope).
      prefix: the length of its network's prefix, in bits.
      is_deprecated: deprecated (RFC 4862 §5.5.4): still valid, but nothing new should begin from it.
      is_temporary: a temporary address, which changes every day so that the host cannot be tracked by it (RFC 8981).
    """

    ip: IPv4Address | IPv6Address
    prefix: int
    is_deprecated: bool = False
    is_temporary: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Interface:
    """A network interface that is up.

    Attributes:
      name: the operating system's name for it.
      index: the kernel's number for it, unique on this host (invented where the system does not tell).
      addresses: in the order in which the operating system lists them.
      is_loopback: whether it leads only to this host.
      is_virtual: whether, by its name, it leads only to containers or virtual machines on this host.
      is_excluded: whether the configuration excludes it; its addresses are this host's nevertheless.
    """

    name: str
    index: int
    addresses: tuple[InterfaceAddress, ...]
    is_loopback: bool
    is_virtual: bool
    is_excluded: bool = False

    @property
    def is_used(self) -> bool:
        """Whether a node publishes its addresses, measures its NATs, and binds sockets to it."""
        return not (self.is_loopback or self.is_virtual or self.is_excluded)


@dataclass(frozen=True, slots=True)
class Gateway:
    """The router to which an interface sends packets to the internet.

    Attributes:
      interface: the interface's index.
      ip: the router's address on that network; with IPv6 mostly a link-local one.
    """

    interface: int
    ip: IPv4Address | IPv6Address


class Host(Protocol):
    """What the package needs of a host, apart from sockets."""

    def interfaces(self) -> tuple[Interface, ...]:
        """The interfaces that are up, those without an address included; the list may be `LIST_LASTS` old.

        Addresses that cannot be used are left out: tentative ones, and duplicates (RFC 4862 §5.4).  Where the system
        does not list its interfaces, there is one interface for each source address of its routes.
        """
        ...

    async def wait_change(self) -> None:
        """Wait until the interfaces that are up, or their addresses, differ from what they are now.

        It may return without a difference, after more notifications than the system could queue.
        """
        ...

    def source_address(self, dest: IPv4Address | IPv6Address) -> IPv4Address | IPv6Address | None:
        """The source address that the routing table picks for `dest`; None when there is no route.  Sends no packet."""
        ...

    def gateways(self) -> tuple[Gateway, ...]:
        """The routers of this host's default routes, which may be asked for port mappings.  Sends no packet."""
        ...

    def name(self) -> str:
        """This host's name in lower case; empty where it has none but "localhost"."""
        ...

    def environment(self) -> Mapping[str, str]:
        """The environment variables, some of which describe the network (proxies)."""
        ...

    def wall_time(self) -> float:
        """Unix time in seconds by this host's clock, which may be wrong and may jump."""
        ...

    def asleep(self) -> float:
        """Seconds that this host has slept (suspend, hibernation) since it booted; 0.0 where the system does not tell.

        Trio's clock stands still meanwhile, so two readings show a sleep between them, which no timer notices.
        """
        ...

    def entropy(self, n: int) -> bytes:
        """`n` unpredictable bytes, suitable for keys."""
        ...

    @property
    def random(self) -> random.Random:
        """Randomness for jitter and for choosing ports; never for secrets."""
        ...

    def spare_descriptors(self) -> int:
        """How many sockets may be opened in bulk: the limit of the process minus its open descriptors and a reserve."""
        ...

    def machine_fingerprint(self) -> bytes:
        """32 bytes that are equal in two processes if they share a loopback interface.

        They identify the host and never leave it: what is published is a `host_id`, salted for each record.
        """
        ...


_provider: trio.lowlevel.RunVar[Callable[[], Host] | None] = trio.lowlevel.RunVar("warpgate_trio_host", default=None)


def current() -> Host:
    """The host that the calling code runs on.

    Inside `trio.run` the provider of `set_provider` is called each time.  Without a provider, and outside of `trio.run`
    (worker threads included), it is the real host.
    """
    try:
        provider = _provider.get()
    except RuntimeError:  # not inside trio.run
        return _REAL_HOST
    return _REAL_HOST if provider is None else provider()


def set_provider(provider: Callable[[], Host] | None) -> Callable[[], Host] | None:
    """Make `current` return `provider()` for the rest of this `trio.run`; None goes back to the real host.

    Returns:
      The previous provider, to be restored, as `trio.socket.set_custom_socket_factory` does.

    Raises:
      RuntimeError: called outside of `trio.run`.
    """
    previous = _provider.get()
    _provider.set(provider)
    return previous


def host_id(fingerprint: bytes, salt: bytes, public_key: bytes = b"") -> bytes:
    """The 16-byte id by which a record identifies its host to other processes on the same host.

    It is valid for the records of one key only, so that copying it into another record is useless.  Without the host's
    fingerprint it reveals nothing, not even that two records with different salts are of one host.

    Args:
      fingerprint: the host's, 32 bytes.
      salt: 8 bytes.
      public_key: the record's key, 32 bytes.  Without it, the result is the id of earlier releases, which could be
        copied and is not accepted any more.

    Raises:
      ValueError: an argument has another length.
    """
    if len(fingerprint) != _FINGERPRINT_LENGTH or len(salt) != HOST_SALT_LENGTH:
        raise ValueError(f"a host id is of a {_FINGERPRINT_LENGTH}-byte fingerprint and a {HOST_SALT_LENGTH}-byte salt")
    if len(public_key) not in (0, _PUBLIC_KEY_LENGTH):
        raise ValueError(f"a host id is of a {_PUBLIC_KEY_LENGTH}-byte key, not of {len(public_key)} bytes")
    version = b"2" if public_key else b"1"
    said = b"warpgate-trio host id v" + version + b"\0" + salt + public_key
    return hmac.digest(fingerprint, said, "sha256")[:HOST_ID_LENGTH]


@final
class RealHost:
    """The host that this process runs on.

    Where it cannot be examined, since all descriptors are in use, the last known interfaces and gateways are returned:
    a path must not be given up for that.
    """

    __slots__ = ("_gateways", "_listed", "_listed_at", "_random")

    def __init__(self) -> None:
        self._random = random.Random()
        self._listed: tuple[Interface, ...] = ()
        self._listed_at = -LIST_LASTS
        self._gateways: tuple[Gateway, ...] = ()

    def interfaces(self) -> tuple[Interface, ...]:
        if time.monotonic() - self._listed_at < LIST_LASTS:
            return self._listed
        return self._list()

    def _list(self) -> tuple[Interface, ...]:
        """The interfaces at this moment."""
        with _keeping_what_was():
            self._listed = self._read_list()
            self._listed_at = time.monotonic()
        return self._listed

    def _read_list(self) -> tuple[Interface, ...]:
        try:
            listed = psutil.net_if_addrs()
        except OSError as error:  # no netlink: a sandbox, systemd's RestrictAddressFamilies, Android
            if error.errno in EXHAUSTED:
                raise
            _tell_of_missing_list(str(error))
            return _interfaces_by_routes(_source_address)
        addresses = {
            name: [(entry.address, entry.netmask) for entry in entries if entry.family in _IP_FAMILIES]
            for name, entries in listed.items()
        }
        try:
            flags = {name: set(stats.flags.split(",")) for name, stats in psutil.net_if_stats().items() if stats.isup}
        except OSError as error:  # no /proc, or no permission: interfaces with an address count as up
            if error.errno in EXHAUSTED:
                raise
            flags = {name: set() for name in addresses}
        return _interfaces(addresses, flags, _kernel_index, ipv6_states())

    async def wait_change(self) -> None:
        await wait_difference(self._list)

    def source_address(self, dest: IPv4Address | IPv6Address) -> IPv4Address | IPv6Address | None:
        try:
            return _source_address(dest)
        except OSError:
            return None

    def gateways(self) -> tuple[Gateway, ...]:
        if sys.platform != "linux":
            return _likely_gateways(self.interfaces())
        with _keeping_what_was():
            pairs = [(_kernel_index(name), ip) for name, ip in default_routes()]
            self._gateways = tuple(dict.fromkeys(Gateway(index, ip) for index, ip in pairs if index is not None))
        return self._gateways

    def name(self) -> str:
        name = socket.gethostname().lower()
        return "" if name.partition(".")[0] == "localhost" else name

    def environment(self) -> Mapping[str, str]:
        return os.environ

    def wall_time(self) -> float:
        return time.time()

    def asleep(self) -> float:
        if sys.platform != "linux":
            return 0.0
        # In this order a pause between the two readings reduces the result, so it cannot look like a sleep.
        with_sleep = time.clock_gettime(time.CLOCK_BOOTTIME)
        return max(0.0, with_sleep - time.clock_gettime(time.CLOCK_MONOTONIC))

    def entropy(self, n: int) -> bytes:
        return secrets.token_bytes(n)

    @property
    def random(self) -> random.Random:
        return self._random

    def spare_descriptors(self) -> int:
        if sys.platform == "win32":  # sockets are not files there, and have no such limit
            return _NO_LIMIT
        import resource

        limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        if limit == resource.RLIM_INFINITY:
            return _NO_LIMIT
        reserve = min(RESERVED_DESCRIPTORS, limit // 4)
        return max(0, limit - reserve - _open_descriptors(limit))

    def machine_fingerprint(self) -> bytes:
        return machine.fingerprint()


_REAL_HOST: Final = RealHost()

_IP_FAMILIES: Final = (socket.AF_INET, socket.AF_INET6)

# Shell patterns, in lower case, for the names of interfaces that lead only to containers and virtual machines on this
# host.  A peer elsewhere cannot reach an address on one, and often has an interface with the same address.
_VIRTUAL_NAMES: Final = (
    "docker*",  # docker0, docker_gwbridge
    "br-" + 12 * "[0-9a-f]",  # Docker's user-defined networks; another br-*, such as OpenWrt's br-lan, is a real one
    "veth[!e]*",  # one end of a cable into a container; not Hyper-V's "vEthernet (...)", which may be the real adapter
    "virbr*",  # libvirt's NAT networks
    "vmnet*",  # VMware's host-only and NAT networks
    "vmware network adapter vmnet*",  # the same on Windows
    "vboxnet*",  # VirtualBox's host-only networks
    "virtualbox host-only*",  # the same on Windows
    "cni*",  # Kubernetes and Podman bridges of the container network interface
    "flannel*",  # Kubernetes' overlay between the nodes of a cluster
    "podman*",  # podman0 and further Podman bridges
)

_NO_LIMIT: Final = 1 << 20  # of descriptors

# Kernel indexes are small (and 32 bits wide at most); invented ones start above.
_FIRST_INVENTED_INDEX: Final = 1 << 20


_is_virtual_name = re.compile("|".join(fnmatch.translate(pattern) for pattern in _VIRTUAL_NAMES)).match


def _is_virtual(name: str) -> bool:
    return _is_virtual_name(name.lower()) is not None


# Flags of an IPv6 address, in the kernel's if_addr.h.
_TEMPORARY: Final = 0x01
_OPTIMISTIC: Final = 0x04  # in use during duplicate address detection (RFC 4429)
_DAD_FAILED: Final = 0x08
_DEPRECATED: Final = 0x20
_TENTATIVE: Final = 0x40


def _interfaces(
    addresses: Mapping[str, Sequence[tuple[str, str | None]]],
    flags: Mapping[str, set[str]],
    index_of: Callable[[str], int | None],
    states: AddressStates,
) -> tuple[Interface, ...]:
    """Make `Interface`s from psutil's data.

    Args:
      addresses: (address, netmask) pairs by interface name.
      flags: by the names of the interfaces that are up.
    """
    merged: dict[str, dict[InterfaceAddress, None]] = {name: {} for name in flags}
    for name, pairs in addresses.items():
        # An address with a label ("eth0:backup", Linux) is listed separately; it belongs to the interface before the
        # colon.
        owner = name if name in flags else name.partition(":")[0]
        if owner in merged:
            for text, mask in pairs:
                ip = _parse_ip(text)
                state = states.get((owner, ip), 0)
                if state & _DAD_FAILED or (state & _TENTATIVE and not state & _OPTIMISTIC):
                    continue
                address = InterfaceAddress(
                    ip=ip,
                    prefix=_prefix(ip, mask),
                    is_deprecated=bool(state & _DEPRECATED),
                    is_temporary=bool(state & _TEMPORARY),
                )
                merged[owner][address] = None
    result: list[Interface] = []
    for position, (name, found) in enumerate(merged.items()):
        index = index_of(name)
        result.append(
            Interface(
                name=name,
                index=_FIRST_INVENTED_INDEX + position if index is None else index,
                addresses=tuple(found),
                # Windows has no flags: there, an interface with only loopback addresses is a loopback interface.
                is_loopback="loopback" in flags[name] or bool(found and all(each.ip.is_loopback for each in found)),
                is_virtual=_is_virtual(name),
            )
        )
    return tuple(sorted(result, key=lambda interface: interface.index))


_SMALLEST_NETWORK: Final = 30


def _likely_gateways(interfaces: Sequence[Interface]) -> tuple[Gateway, ...]:
    """A guess, where the system does not tell: home routers mostly have the first address of their network."""
    return tuple(
        Gateway(interface.index, ip_network((own.ip, own.prefix), strict=False)[1])
        for interface in interfaces
        for own in interface.addresses
        if own.ip.version == 4 and own.ip.is_private and own.prefix <= _SMALLEST_NETWORK and interface.is_used
    )


# Where the interfaces cannot be listed, our own addresses are the source addresses of packets to these destinations;
# none is sent.  After loopback come addresses for documentation (RFC 5737, RFC 3849), which the default route covers,
# and private networks, to which a VPN may lead.
_LANDMARKS: Final = tuple(
    ip_address(text)
    for text in ("127.0.0.1", "::1", "192.0.2.1", "2001:db8::1", "10.0.0.1", "172.16.0.1", "192.168.0.1", "fd00::1")
)


def _interfaces_by_routes(
    source_address: Callable[[IPv4Address | IPv6Address], IPv4Address | IPv6Address | None],
) -> tuple[Interface, ...]:
    """One interface for each source address of the routes; its real name, index and prefix are unknown."""
    sources = dict.fromkeys(source for dest in _LANDMARKS if (source := source_address(dest)) is not None)
    return tuple(
        Interface(
            name="unnamed",
            index=_FIRST_INVENTED_INDEX + position,
            addresses=(InterfaceAddress(ip=ip, prefix=ip.max_prefixlen),),
            is_loopback=ip.is_loopback,
            is_virtual=False,
        )
        for position, ip in enumerate(sources)
    )


def _source_address(dest: IPv4Address | IPv6Address) -> IPv4Address | IPv6Address | None:
    """See `Host.source_address`; raises OSError where the host is out of descriptors or memory."""
    # Connecting a datagram socket only looks up the route: it neither sends nor waits.  So trio.socket is not needed,
    # which could not be used outside of trio.run either.  Port 9 (discard), since some systems refuse port 0.
    if dest.is_unspecified:  # Linux would take it for this host
        return None
    family = socket_family(str(dest))
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect((str(dest), 9))
            source = _parse_ip(probe.getsockname()[0])
    except OSError as error:  # no route, no such family on this host, or a destination that nothing can be sent to
        if error.errno in EXHAUSTED:
            raise
        return None
    return None if source.is_unspecified else source


@contextmanager
def _keeping_what_was() -> Iterator[None]:
    """Suppress errors of a host without free descriptors or memory, so that the last known state is kept."""
    try:
        yield
    except OSError as error:
        if error.errno not in EXHAUSTED:
            raise
        logger.debug("the system's network state cannot be read, the last known one is kept: %s", error)


@functools.cache  # logged once
def _tell_of_missing_list(why: str) -> None:
    logger.warning("this system does not list its network interfaces (%s): only addresses on its routes are known", why)


def _open_descriptors(limit: int) -> int:
    """How many descriptors this process has open, of `limit`."""
    folder = {"linux": "/proc/self/fd", "darwin": "/dev/fd"}.get(sys.platform)
    try:
        if folder is not None:
            with suppress(FileNotFoundError, PermissionError):  # no /proc
                return len(os.listdir(folder)) - 1  # without the one that lists them
        lowest_free = os.open(os.devnull, os.O_RDONLY)  # POSIX takes the lowest free one: at least that many are open
    except OSError:  # EMFILE
        return limit
    os.close(lowest_free)
    return lowest_free


def _kernel_index(name: str) -> int | None:
    try:
        return socket.if_nametoindex(name)
    except OSError:  # it has just gone; or Windows, where this call does not know psutil's friendly names
        return None


@functools.lru_cache(maxsize=2048)  # called with the same addresses and masks again and again; some hosts have hundreds
def _parse_ip(text: str) -> IPv4Address | IPv6Address:
    return parse_ip(text)


def _prefix(ip: IPv4Address | IPv6Address, mask: str | None) -> int:
    if not mask:
        # Point-to-point IPv4 has no network.  On Windows psutil gives no IPv6 masks; networks are /64 (RFC 4291 2.5.1).
        return 32 if ip.version == 4 else 64
    return int(_parse_ip(mask)).bit_count()
