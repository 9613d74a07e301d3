"""Third-party servers that tests run on loopback, each a process that ends with its test."""

from __future__ import annotations

import socket
import subprocess
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def running(command: Sequence[str], ports: Iterable[int], log: Path) -> Iterator[None]:
    """Run a server for the time of the body, which begins when it accepts connections at all `ports` of 127.0.0.1.

    Its output is appended to the file `log`, which is shown if the server ends before that.
    """
    with log.open("ab") as printed:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=printed, stderr=printed)
        try:
            for port in ports:
                _wait(port, process, log)
            yield
        finally:
            process.terminate()
            process.wait(10)


def _wait(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    for _ in range(2000):
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
        except OSError:
            assert process.poll() is None, log.read_text()
            time.sleep(0.005)
        else:
            return
    raise AssertionError(f"{process.args!r} takes no connections at port {port}")
