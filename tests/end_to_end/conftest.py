"""One rendezvous server for all tests here: they do not test it, and starting a process takes half a second."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import final

import pytest

from tests.end_to_end.processes import PROGRAM, checked_event, environment
from tests.hangs import HANG


@final
class Server:
    """A running ``warpgate-trio serve``."""

    def __init__(self, url: str, config: Path) -> None:
        self.url = url
        self.config = config
        """A configuration file that names this server."""


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    words = [*PROGRAM, "serve", "--host", "127.0.0.1", "--port", "0", "--no-stun", "--json"]
    with subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, env=environment()) as process:
        assert process.stdout is not None
        try:
            event = checked_event(process.stdout.readline())
            (url,) = event["servers"]["websocket"]
            config = tmp_path_factory.mktemp("server") / "config.toml"
            config.write_text(f'[servers]\nwebsocket = ["{url}"]\n', encoding="utf-8")
            yield Server(url, config)
            process.send_signal(signal.SIGTERM)
            assert process.wait(HANG) == 0, "SIGTERM is a server's proper end"
        finally:
            process.kill()
