"""Run a program without some system calls: ``python -m tests.seccomp links|netlink|ipv6 PROGRAM [ARGUMENT…]``.

A seccomp(2) filter makes the call fail, as a sandbox, systemd or Android's policy does.  The program's children inherit
the filter.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct
import sys
from collections.abc import Sequence

NUMBERS: dict[str, dict[str, tuple[int, ...]]] = {
    "x86_64": {"socket": (41,), "link": (86, 265)},
    "aarch64": {"socket": (198,), "link": (37,)},
}
"""Numbers of the system calls, by machine (linux/arch/*/syscalls); link(2) and linkat(2)."""
LOAD, EQUAL, RETURN = 0x20, 0x15, 0x06  # of classic BPF
FAIL, ALLOW = 0x0005_0000, 0x7FFF_0000
NUMBER, FIRST_ARGUMENT = 0, 16  # offsets in struct seccomp_data
NO_NEW_PRIVS, SECCOMP, FILTER = 38, 22, 2  # of prctl(2)

DENIALS: dict[str, tuple[str, int | None, int]] = {
    "links": ("link", None, errno.EACCES),
    "netlink": ("socket", 16, errno.EAFNOSUPPORT),
    "ipv6": ("socket", 10, errno.EAFNOSUPPORT),
}


def program(calls: Sequence[int], argument: int | None, error: int) -> bytes:
    """The BPF program of a filter: these calls fail with `error`, if `argument` is None or their first argument."""
    lines = [(LOAD, 0, 0, NUMBER)]
    lines += [(EQUAL, len(calls) - at, 0, number) for at, number in enumerate(calls)]
    lines += [(RETURN, 0, 0, ALLOW)]
    if argument is not None:
        lines += [(LOAD, 0, 0, FIRST_ARGUMENT), (EQUAL, 1, 0, argument), (RETURN, 0, 0, ALLOW)]
    lines += [(RETURN, 0, 0, FAIL | error)]
    return b"".join(struct.pack("HBBI", *line) for line in lines)


def deny(what: str) -> None:
    """Deny system calls to this process from now on.

    Raises:
      OSError: the kernel does not allow the filter.
    """
    call, argument, error = DENIALS[what]
    lines = program(NUMBERS[platform.machine()][call], argument, error)
    code = ctypes.create_string_buffer(lines, len(lines))
    whole = ctypes.create_string_buffer(struct.pack("H6xQ", len(lines) // 8, ctypes.addressof(code)))
    libc, word = ctypes.CDLL(None, use_errno=True), ctypes.c_ulong
    if libc.prctl(NO_NEW_PRIVS, word(1), word(0), word(0), word(0)):
        raise OSError(ctypes.get_errno(), "PR_SET_NO_NEW_PRIVS")
    if libc.prctl(SECCOMP, word(FILTER), ctypes.byref(whole), word(0), word(0)):
        raise OSError(ctypes.get_errno(), "PR_SET_SECCOMP")


if __name__ == "__main__":
    deny(sys.argv[1])
    os.execvp(sys.argv[2], sys.argv[2:])
