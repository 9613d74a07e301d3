"""Which unforeseen exceptions are contained, which pass, and how often they are logged."""

from __future__ import annotations

import logging

import pytest
import trio

from tests.panicking import PanicException
from warpgate_trio.unforeseen import MAX_KINDS, Unforeseen

LOGGER = logging.getLogger("warpgate_trio.unforeseen")


@pytest.fixture
def unforeseen(own_logging: None) -> Unforeseen:
    return Unforeseen(LOGGER)


def fail(error: BaseException) -> None:
    raise error


@pytest.mark.parametrize("error", [ValueError("x"), PanicException("boo"), ExceptionGroup("", [KeyError()])])
def test_it_ends_here_and_is_said_once(
    error: BaseException, unforeseen: Unforeseen, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(3):
        with unforeseen.containing("a datagram"):
            fail(error)
        with pytest.raises(type(error)) as caught:
            fail(error)
        assert unforeseen.contains(caught.value, "a connection")
    said = [record.message for record in caplog.records]
    assert [each.partition(" failed")[0] for each in said] == ["a datagram", "a connection"]
    assert all(record.exc_info is not None and record.exc_info[1] is error for record in caplog.records)


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit, GeneratorExit, BaseException])
def test_what_is_no_exception_passes(
    kind: type[BaseException], unforeseen: Unforeseen, caplog: pytest.LogCaptureFixture
) -> None:
    error = kind()
    assert not unforeseen.contains(error, "a datagram")
    with pytest.raises(kind) as caught, unforeseen.containing("a datagram"):
        raise error
    assert caught.value is error
    assert caplog.records == []


@pytest.mark.parametrize("kind", [KeyError, PanicException])
async def test_a_cancellation_passes_also_beside_a_failure(
    kind: type[BaseException], unforeseen: Unforeseen, caplog: pytest.LogCaptureFixture
) -> None:
    async def fail_when_cancelled() -> None:
        try:
            await trio.sleep_forever()
        finally:
            raise kind

    with trio.CancelScope() as scope:
        with unforeseen.containing("a connection"):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(fail_when_cancelled)
                nursery.start_soon(trio.sleep_forever)
                scope.cancel()
        raise AssertionError("the cancellation was swallowed")
    assert scope.cancelled_caught
    assert len(caplog.records) == 1


def test_the_kinds_are_bounded(unforeseen: Unforeseen, caplog: pytest.LogCaptureFixture) -> None:
    for number in range(2 * MAX_KINDS):
        with unforeseen.containing(f"number {number}"):
            raise ValueError
    assert len(caplog.records) == MAX_KINDS


def test_another_place_is_another_kind(unforeseen: Unforeseen, caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(2):
        with unforeseen.containing("a datagram"):
            raise ValueError
        with unforeseen.containing("a datagram"):
            raise ValueError
    assert len(caplog.records) == 2
