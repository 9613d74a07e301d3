"""`time` and psutil on simulated hosts, for programs that ask them and not Trio.

The simulator replaces what Trio has hooks for; the clocks of the standard library it leaves alone, since tests, their
tools and the simulator itself use them too.  `simulated_machine` replaces them for as long as a test asks for it.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from ipaddress import ip_network
from types import ModuleType
from typing import Any, Final, NamedTuple, final

import psutil

from ..sim import Host
from ..sim.addr import is_v6
from ..sim.host import host_here

__all__ = ["simulated_machine"]

_SPEED: Final = 1000  # Mbit/s, what an ordinary interface says of itself
_LOOPBACK: Final = (("127.0.0.1", "127.0.0.0/8"), ("::1", "::1/128"))


@contextmanager
def simulated_machine(*modules: ModuleType) -> Generator[None]:
    """Let `time` and psutil answer for the simulated host that the calling code runs on::

        with simulated_machine():
            simulate(main)

    On a simulated host `time.time` and `time.time_ns` tell its wall clock, `time.monotonic` and `time.monotonic_ns` the
    seconds since the run began, without those that it has slept; `psutil.net_if_addrs` and `psutil.net_if_stats` list
    its interfaces, and `psutil.boot_time` is when the run began, by its wall clock.  Elsewhere, and at the end, all are
    as before.

    All else stays real: `time.perf_counter`, which is for measuring programs, `time.sleep`, what asks the C library
    by itself (`datetime.datetime.now`, `time.localtime` and `time.strftime` without a time), and what psutil knows
    besides.

    Args:
      modules: modules that have one of these functions under a name of their own, as after ``from time import time``.
    """
    replaced: list[tuple[ModuleType, str, object]] = []
    try:
        for owner, name, answer in _ANSWERS:
            real = getattr(owner, name)
            shown = _choosing(answer, real)
            for module in (owner, *modules):
                for each in [key for key, value in vars(module).items() if value is real]:
                    replaced.append((module, each, real))
                    setattr(module, each, shown)
        yield
    finally:
        for module, name, real in reversed(replaced):
            setattr(module, name, real)


def _choosing(answer: Callable[[Host], object], real: Callable[..., object]) -> Callable[..., object]:
    def ask(*args: Any, **given: Any) -> object:
        host = host_here()
        return real(*args, **given) if host is None else answer(host)

    return ask


@final
class _Address(NamedTuple):
    """One of psutil's, by its fields."""

    family: socket.AddressFamily
    address: str
    netmask: str | None
    broadcast: str | None = None
    ptp: str | None = None


@final
class _Stats(NamedTuple):
    """One of psutil's, by its fields."""

    isup: bool
    duplex: object
    speed: int
    mtu: int
    flags: str


def _addresses(host: Host) -> dict[str, list[_Address]]:
    found = {"lo": [_address(*each) for each in _LOOPBACK]}
    for interface in host.interfaces:
        found[interface.name] = [_address(address, str(prefix)) for address, prefix in interface.addresses]
    return found


def _address(address: str, prefix: str) -> _Address:
    family = socket.AF_INET6 if is_v6(address) else socket.AF_INET
    return _Address(family, address, str(ip_network(prefix).netmask))


def _stats(host: Host) -> dict[str, _Stats]:
    unknown, full = psutil.NIC_DUPLEX_UNKNOWN, psutil.NIC_DUPLEX_FULL
    found = {"lo": _Stats(True, unknown, 0, 65536, "up,loopback,running")}
    for interface in host.interfaces:
        flags = "up,broadcast,running,multicast" if interface.is_up else "broadcast,multicast"
        found[interface.name] = _Stats(interface.is_up, full, _SPEED, interface.tx.link.mtu, flags)
    return found


def _nanoseconds(seconds: float) -> int:
    return round(seconds * 1_000_000_000)


_ANSWERS: Final[tuple[tuple[ModuleType, str, Callable[[Host], object]], ...]] = (
    (time, "time", lambda host: host.wall_time()),
    (time, "time_ns", lambda host: _nanoseconds(host.wall_time())),
    (time, "monotonic", lambda host: host.clock.now),
    (time, "monotonic_ns", lambda host: _nanoseconds(host.clock.now)),
    (psutil, "net_if_addrs", _addresses),
    (psutil, "net_if_stats", _stats),
    (psutil, "boot_time", lambda host: host.wall_time() - host.net.wire.now),
)
