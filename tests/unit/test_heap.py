"""What it costs a process to reuse memory that it has freed."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

ROUNDS = """
import resource
from warpgate_trio.heap import keep_freed_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    blocks = [b"x" * (1 << 20) for _ in range(8)]
    del blocks
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

{call}
faults()
print(faults())
"""


def faults(call: str) -> int:
    """Page faults while allocating 8 MiB for the second time."""
    words = [sys.executable, "-c", ROUNDS.format(call=call)]
    return int(subprocess.run(words, check=True, capture_output=True, text=True).stdout)


@pytest.mark.slow("two programs of their own: what they do to memory lasts")
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other allocators keep what they keep")
def test_freed_memory_is_not_asked_for_again() -> None:
    assert faults("keep_freed_memory()") < faults("pass") / 4
