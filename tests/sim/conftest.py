"""What tests in simulated worlds share."""

from __future__ import annotations

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
