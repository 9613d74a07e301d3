"""`time` and psutil on simulated hosts, for programs that use them instead of Trio.

The simulator replaces what Trio has hooks for.  It leaves the clocks of the standard library alone, since tests, their
tools and the simulator itself use them.  `simulated_machine` replaces them while a test needs it.
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

_SPEED: Final = 1000  # Mbit/s, as an ordinary interface reports
_LOOPBACK: Final = (("127.0.0.1", "127.0.0.0/8"), ("::1", "::1/128"))


@contextmanager
def simulated_machine(*modules: ModuleType) -> Generator[None]:
    """Let `time` and psutil answer for the simulated host on which the calling code runs::

        with simulated_machine():
            simulate(main)

    On a simulated host:

    * `time.time` and `time.time_ns` return its wall clock;
    * `time.monotonic` and `time.monotonic_ns` return the time since the run began, without the time that it has slept;
    * `psutil.net_if_addrs` and `psutil.net_if_stats` list its interfaces;
    * `psutil.boot_time` returns when the run began, by its wall clock.

    For code on no simulated host, and after the block, they are as before.

    Everything else stays real: `time.perf_counter`, which is for measuring programs; `time.sleep`; functions that ask
    the C library directly (`datetime.datetime.now`, `time.localtime` and `time.strftime` without a time); the rest of
    psutil.

    Args:
      modules: modules that hold one of these functions under a name of their own, as after ``from time import time``.
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
