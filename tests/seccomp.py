"""Run a program that the kernel denies something: ``python -m tests.seccomp links|netlink|ipv6 PROGRAM [ARGUMENT…]``.

A filter of seccomp(2) makes the system call fail, as a sandbox, systemd or Android's policy does it; what the program
starts has it too.
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
"""Of the system calls, by machine: linux/arch/*/syscalls; link(2) and linkat(2)."""
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
    """The filter: these calls, with this first argument if there is one, fail with an error."""
    lines = [(LOAD, 0, 0, NUMBER)]
    lines += [(EQUAL, len(calls) - at, 0, number) for at, number in enumerate(calls)]
    lines += [(RETURN, 0, 0, ALLOW)]
    if argument is not None:
        lines += [(LOAD, 0, 0, FIRST_ARGUMENT), (EQUAL, 1, 0, argument), (RETURN, 0, 0, ALLOW)]
    lines += [(RETURN, 0, 0, FAIL | error)]
    return b"".join(struct.pack("HBBI", *line) for line in lines)


def deny(what: str) -> None:
    """Deny it to this process from now on; OSError where the kernel does not do that for us."""
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
