"""What a test may need of the machine, by name: `@pytest.mark.needs("root", "nft")`.

A requirement is a function that returns None when it is met. Otherwise it returns the reason, as one sentence that also
says what to do about it. Each is called once per run, and only when a test needs it. `tests/conftest.py` skips a test
whose needs are not met; with WARPGATE_REQUIRE=lab in the environment that test fails, as does every other skip.
"""

from __future__ import annotations

import functools
import os
import platform
import resource
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from tests.seccomp import NUMBERS

SERVER_FOLDERS = ("/usr/local/sbin", "/usr/sbin", "/sbin")
"""Debian keeps servers here, and leaves these folders out of an ordinary user's PATH."""


def find_program(name: str) -> str | None:
    """The path of a program or server, or None."""
    return shutil.which(name, path=os.pathsep.join([os.environ.get("PATH", os.defpath), *SERVER_FOLDERS]))


def program(name: str) -> Callable[[], str | None]:
    """The requirement that a program is installed."""

    def missing() -> str | None:
        return None if find_program(name) else f"{name} is not installed (as root on Debian: make lab-deps)"

    return missing


def linux() -> str | None:
    """The kernel is Linux."""
    return None if sys.platform == "linux" else f"runs on Linux only, this is {sys.platform}"


def root() -> str | None:
    """The process runs as root."""
    return None if hasattr(os, "geteuid") and os.geteuid() == 0 else "needs root"


def ipv6() -> str | None:
    """A socket can be bound to ::1."""
    try:
        with socket.socket(socket.AF_INET6, socket.SOCK_STREAM) as probe:
            probe.bind(("::1", 0))
    except OSError as error:
        return f"no IPv6 on loopback ({error.strerror or error})"
    return None


def network_namespaces() -> str | None:
    """Network namespaces can be made: Linux, root, and a sandbox that allows it."""
    if reason := linux() or root() or program("ip")():
        return reason
    tried = subprocess.run(
        ["unshare", "--net", "true"], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    return None if tried.returncode == 0 else "this machine lets nobody make a network namespace"


def time_namespaces() -> str | None:
    """A process can be given a CLOCK_BOOTTIME of its own: Linux 5.6, root, and a sandbox that allows it."""
    if reason := linux() or root() or program("unshare")():
        return reason
    tried = subprocess.run(
        ["unshare", "--time", "--boottime", "1", "true"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    return None if tried.returncode == 0 else "this machine lets nobody make a time namespace"


def seccomp() -> str | None:
    """The kernel can deny a process system calls, and `tests.seccomp` knows their numbers."""
    return linux() or (None if platform.machine() in NUMBERS else f"no numbers for {platform.machine()}")


def nginx() -> str | None:
    """nginx is installed, with its stream module."""
    if reason := program("nginx")():
        return reason
    module = "/usr/lib/nginx/modules/ngx_stream_module.so"
    return None if os.path.exists(module) else "nginx has no stream module (as root on Debian: make lab-deps)"


LAB_FILES = 1024
"""Open files for a dozen labs at a time, with a TUN device and a namespace for each of their machines."""


def tun() -> str | None:
    """TUN devices can be made: the wire of the kernel lab."""
    try:
        os.close(os.open("/dev/net/tun", os.O_RDWR))
    except OSError as error:
        return f"/dev/net/tun cannot be opened ({error.strerror or error})"
    if resource.getrlimit(resource.RLIMIT_NOFILE)[0] < LAB_FILES:
        return f"fewer than {LAB_FILES} files may be open at a time (ulimit -n), and the kernel lab has many"
    return None


def postgres() -> str | None:
    """PostgreSQL and its client are installed; Debian keeps the server in a folder for each version."""
    if any(Path("/usr/lib/postgresql").glob("*/bin/postgres")):
        return program("psql")()
    return "postgres is not installed (as root on Debian: make lab-deps)"


REQUIREMENTS: Mapping[str, Callable[[], str | None]] = {
    "linux": linux,
    "root": root,
    "ipv6": ipv6,
    "network_namespaces": network_namespaces,
    "time_namespaces": time_namespaces,
    "seccomp": seccomp,
    "tun": tun,
    # The lab's servers and tools, by program.
    "mosquitto": program("mosquitto"),
    "turnserver": program("turnserver"),
    "turnutils": program("turnutils_natdiscovery"),
    "chronyd": program("chronyd"),
    "miniupnpd": program("miniupnpd"),
    "microsocks": program("microsocks"),
    "squid": program("squid"),
    "tinyproxy": program("tinyproxy"),
    "nft": program("nft"),
    "nginx": nginx,
    "haproxy": program("haproxy"),
    "systemd-analyze": program("systemd-analyze"),
    "ip": program("ip"),
    "bash": program("bash"),
    "curl": program("curl"),
    "iperf3": program("iperf3"),
    "sshd": program("sshd"),
    "postgres": postgres,
}


@functools.cache
def unmet(name: str) -> str | None:
    """Why a requirement is not met, or None; the answer is cached."""
    return REQUIREMENTS[name]()


def required() -> frozenset[str]:
    """The words of WARPGATE_REQUIRE (comma-separated), which name what must be there; the only one so far is `lab`.

    Raises:
        ValueError: for any other word.
    """
    words = frozenset(filter(None, os.environ.get("WARPGATE_REQUIRE", "").replace(" ", "").split(",")))
    if unknown := words - {"lab"}:
        raise ValueError(f"WARPGATE_REQUIRE knows only 'lab', not {', '.join(sorted(unknown))}")
    return words
