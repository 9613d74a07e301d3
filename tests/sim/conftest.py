"""What tests in simulated worlds share."""

from __future__ import annotations

from collections.abc import Callable

import outcome
import pytest

from warpgate_trio.cli.stdio import StandardOutput


@pytest.fixture
def stdout(monkeypatch: pytest.MonkeyPatch) -> bytearray:
    """What commands write there: in a simulation no thread does it."""
    written = bytearray()

    async def write(_output: StandardOutput, data: bytes) -> None:
        written.extend(data)

    monkeypatch.setattr(StandardOutput, "write", write)
    return written


@pytest.fixture
def threads_take_no_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """A simulated clock would run on while a thread of the real machine works, and is not let."""

    def work_now(work: Callable[[], object], deliver: Callable[[outcome.Outcome[object]], object], *_: object) -> None:
        deliver(outcome.capture(work))

    monkeypatch.setattr("trio._threads.start_thread_soon", work_now)
