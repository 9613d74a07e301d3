"""What a service manager learns from its service, over a socket like systemd's."""

from __future__ import annotations

import logging
import os
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio
import trio.testing

from tests.hangs import HANG
from warpgate_trio.cli import systemd
from warpgate_trio.cli.systemd import ServiceManager

pytestmark = pytest.mark.skipif(not hasattr(socket, "AF_UNIX"), reason="no Unix sockets")


class Manager:
    """The end of systemd: a datagram socket with a name."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind("\0" + name[1:] if name.startswith("@") else name)
        self._socket.setblocking(False)

    def heard(self) -> list[str]:
        found = []
        try:
            while True:
                found.append(self._socket.recv(4096).decode())
        except BlockingIOError:
            return found

    def close(self) -> None:
        self._socket.close()


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder whose path is short enough for a socket's name (108 bytes)."""
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


@pytest.fixture
def manager(folder: Path) -> Iterator[Manager]:
    manager = Manager(str(folder / "notify"))
    yield manager
    manager.close()


async def test_from_ready_to_stopping(manager: Manager) -> None:
    service = ServiceManager({"NOTIFY_SOCKET": manager.name})
    assert service.listens
    assert service.watchdog is None
    await service.ready("serving on ws://0.0.0.0:8765")
    assert manager.heard() == ["READY=1\nSTATUS=serving on ws://0.0.0.0:8765"]
    await service.stopping("two lines\nare one")
    assert manager.heard() == ["STOPPING=1\nSTATUS=two lines are one"]
    await service.feed_watchdog()
    assert manager.heard() == []


@pytest.mark.needs("linux")
async def test_an_abstract_socket() -> None:
    manager = Manager(f"@warpgate-trio-test-{os.getpid()}")
    try:
        await ServiceManager({"NOTIFY_SOCKET": manager.name}).ready("")
        assert manager.heard() == ["READY=1\nSTATUS="]
    finally:
        manager.close()


async def test_the_watchdog_hears_twice_in_its_time(manager: Manager, autojump_clock: trio.testing.MockClock) -> None:
    service = ServiceManager({"NOTIFY_SOCKET": manager.name, "WATCHDOG_USEC": "30000000"})
    assert service.watchdog == 30
    with trio.move_on_after(44):
        await service.feed_watchdog()
    assert manager.heard() == ["WATCHDOG=1"] * 3


@pytest.mark.parametrize(
    "variables",
    [
        {"WATCHDOG_USEC": "1000000", "WATCHDOG_PID": "1"},
        {"WATCHDOG_USEC": "0"},
        {"WATCHDOG_USEC": "-5"},
        {"WATCHDOG_USEC": "often"},
        {"WATCHDOG_PID": str(os.getpid())},
    ],
)
async def test_no_watchdog_of_this_process(variables: dict[str, str], manager: Manager) -> None:
    service = ServiceManager({"NOTIFY_SOCKET": manager.name, **variables})
    assert service.watchdog is None
    await service.feed_watchdog()
    assert manager.heard() == []


async def test_the_watchdog_of_this_process_by_its_id(manager: Manager) -> None:
    variables = {"WATCHDOG_USEC": "1000000", "WATCHDOG_PID": str(os.getpid())}
    assert ServiceManager({"NOTIFY_SOCKET": manager.name, **variables}).watchdog == 1


@pytest.mark.parametrize("variables", [{}, {"NOTIFY_SOCKET": ""}, {"WATCHDOG_USEC": "1000000"}])
async def test_nobody_wants_to_be_told(
    variables: dict[str, str], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trio.socket, "socket", None)
    service = ServiceManager(variables)
    assert not service.listens
    await service.ready("up")
    await service.stopping("down")
    await service.feed_watchdog()
    assert not caplog.records


async def test_a_manager_that_is_not_there_is_no_more_than_a_line(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    service = ServiceManager({"NOTIFY_SOCKET": str(folder / "nobody")})
    await service.ready("up")
    await service.stopping("down")
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert "cannot be told READY=1: No such file or directory" in record.getMessage()


@pytest.mark.parametrize("name", ["vsock:2:1234", "notify", "/" + "x" * 200])
async def test_an_address_that_is_none_is_no_more_than_a_line(name: str, caplog: pytest.LogCaptureFixture) -> None:
    await ServiceManager({"NOTIFY_SOCKET": name}).ready("up")
    (record,) = caplog.records
    assert record.levelno == logging.WARNING


async def test_a_manager_that_does_not_read_holds_up_nobody(
    manager: Manager, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(systemd, "SEND_TIMEOUT", 0.05)
    service = ServiceManager({"NOTIFY_SOCKET": manager.name})
    with trio.fail_after(HANG):
        while not caplog.records:
            await service.ready("up")
    assert "cannot be told READY=1: it does not read" in caplog.text
    assert len(manager.heard()) > 1
