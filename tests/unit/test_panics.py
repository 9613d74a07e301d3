"""A panic of a Rust library becomes an error; interrupts, exits and cancellation pass unchanged."""

from __future__ import annotations

import pytest
import trio

from tests.panicking import PanicException
from warpgate_trio.errors import LibraryPanicked, is_panic, panics_as_errors


def test_a_panic_is_no_exception_and_becomes_one() -> None:
    panic = PanicException("index out of bounds")
    assert not isinstance(panic, Exception)
    with pytest.raises(LibraryPanicked, match="index out of bounds") as caught, panics_as_errors():
        raise panic
    assert caught.value.__cause__ is panic


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit, GeneratorExit, MemoryError, ValueError])
def test_everything_else_passes(kind: type[BaseException]) -> None:
    error = kind()
    with pytest.raises(kind) as caught, panics_as_errors():
        raise error
    assert caught.value is error


def test_the_name_alone_is_no_panic() -> None:
    assert not is_panic(type("PanicException", (BaseException,), {})())


async def test_a_panic_of_a_task_inside() -> None:
    async def fail() -> None:
        await trio.lowlevel.checkpoint()
        raise PanicException("boo")

    with pytest.raises(LibraryPanicked), panics_as_errors():
        async with trio.open_nursery() as nursery:
            nursery.start_soon(fail)
            nursery.start_soon(trio.sleep_forever)


async def test_a_panic_beside_a_cancellation_does_not_stop_that() -> None:
    async def fail() -> None:
        try:
            await trio.sleep_forever()
        finally:
            raise PanicException("boo")

    with trio.CancelScope() as scope:
        with panics_as_errors():
            async with trio.open_nursery() as nursery:
                nursery.start_soon(fail)
                nursery.start_soon(trio.sleep_forever)
                scope.cancel()
        raise AssertionError("the cancellation was swallowed")
    assert scope.cancelled_caught


def test_a_panic_beside_an_interrupt_does_not_stop_that() -> None:
    with pytest.raises(BaseExceptionGroup) as caught, panics_as_errors():
        raise BaseExceptionGroup("both", [PanicException("boo"), KeyboardInterrupt()])
    assert caught.group_contains(KeyboardInterrupt)
    assert not any(map(is_panic, caught.value.exceptions))
