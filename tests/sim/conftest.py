"""Fixtures for tests in simulated worlds."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import outcome
import pytest

from warpgate_trio.cli.stdio import StandardOutput
from warpgate_trio.servers.rendezvous_core import RendezvousCore, ServerConnection
from warpgate_trio.servers.rendezvous_frames import ErrorCode


@pytest.fixture(autouse=True)
def _no_node_of_ours_breaks_the_protocol(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Fails a test in which a rendezvous server ended a connection for a protocol error, which our own node made."""
    fail, said = RendezvousCore.fail, list[str]()

    def told(core: RendezvousCore, connection: ServerConnection, code: ErrorCode, text: str, now: float) -> bytes:
        if code is ErrorCode.PROTOCOL:
            said.append(text)
        return fail(core, connection, code, text, now)

    monkeypatch.setattr(RendezvousCore, "fail", told)
    yield
    assert said == []


@pytest.fixture
def stdout(monkeypatch: pytest.MonkeyPatch) -> bytearray:
    """Collects what commands write to stdout, without the thread that writes in a real process."""
    written = bytearray()

    async def write(_output: StandardOutput, data: bytes) -> None:
        written.extend(data)

    monkeypatch.setattr(StandardOutput, "write", write)
    return written


@pytest.fixture
def threads_take_no_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs the work of real threads at once, because the simulated clock would go on while they work."""

    def work_now(work: Callable[[], object], deliver: Callable[[outcome.Outcome[object]], object], *_: object) -> None:
        deliver(outcome.capture(work))

    monkeypatch.setattr("trio._threads.start_thread_soon", work_now)
