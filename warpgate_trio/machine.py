"""A fingerprint of this host, by which two processes recognize that they share one (`host.host_id`)."""

from __future__ import annotations

import hashlib
import os
import sys
import uuid

__all__ = ["fingerprint"]


def fingerprint() -> bytes:
    """32 bytes that are equal in two processes if they share a loopback interface; they never leave the host."""
    # Machine ids are copied with images and containers.  The boot id distinguishes two running copies.  The network
    # namespace distinguishes containers, which have the host's boot id but their own loopback interfaces.  Where these
    # two are known they are sufficient: the containers of one pod share them, but have different machine ids, or none.
    boot_id, namespace = _read_line("/proc/sys/kernel/random/boot_id"), _network_namespace()
    parts = ("" if boot_id and namespace else _machine_id(), boot_id, namespace)
    return hashlib.sha256("\0".join(("warpgate-trio fingerprint v2", *parts)).encode()).digest()


def _machine_id() -> str:
    """An id of this installation."""
    if sys.platform == "win32":
        import winreg

        try:
            with winreg.OpenKey(winreg.HKEY_LOCAL_MACHINE, r"SOFTWARE\Microsoft\Cryptography") as key:
                return str(winreg.QueryValueEx(key, "MachineGuid")[0])
        except OSError:
            return f"mac-{uuid.getnode():012x}"
    for path in ("/etc/machine-id", "/var/lib/dbus/machine-id", "/etc/hostid"):
        if text := _read_line(path):
            return text
    # macOS, and systems without a machine id: the MAC address.  Without one this is a random number per process.  Two
    # processes on this host then do not recognise each other, which costs them only the loopback combos.
    return f"mac-{uuid.getnode():012x}"


def _read_line(path: str) -> str:
    try:
        with open(path, encoding="ascii", errors="replace") as file:
            return file.readline(256).strip()
    except OSError:
        return ""


def _network_namespace() -> str:
    if sys.platform != "linux":
        return ""
    try:  # by the thread, in whose namespace its sockets are made: setns(2) and unshare(2) change one thread
        status = os.stat("/proc/thread-self/ns/net")
    except OSError:  # no /proc
        return ""
    return f"{status.st_dev}:{status.st_ino}"
