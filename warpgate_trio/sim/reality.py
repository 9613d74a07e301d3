"""Refusal of what cannot be simulated: threads, and waiting for a real descriptor.

Virtual time jumps to the next timer when every task waits.  It does not wait for a thread or a real socket, so the
order of events would depend on the speed of the machine, and runs with equal seeds would differ.  A thread is therefore
refused when a program starts it, and waiting for a descriptor is refused when time is about to jump.

Trio has no hook for either.  `watched` wraps the private method that starts Trio's threads.  If a version of Trio lacks
it, `watched` raises RuntimeError; a test detects that.  The clock's `jump` is public.
"""

from __future__ import annotations

import functools
import inspect
import os
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from typing import Any, Final

import trio
import trio.testing
from trio._core import _thread_cache  # pyright: ignore[reportPrivateUsage]

_NOT_THE_PROGRAM: Final = (os.path.dirname(trio.__file__) + os.sep, os.path.dirname(__file__) + os.sep)
_WRAPPED: Final = (
    "sync_fn",
    "func",
    "fn",
)  # what the wrappers of trio.to_thread, anyio.to_thread and trio.Path call it
_LAYERS: Final = 8  # wrappers around a function that are looked through; more than occur
_simulated: Final[trio.lowlevel.RunVar[bool]] = trio.lowlevel.RunVar("warpgate_sim_simulated", False)

Fail = Callable[[Exception], bool]


def _is_simulated() -> bool:
    try:
        return _simulated.get()
    except RuntimeError:  # in no run
        return False


@functools.cache
def _refuse_threads() -> None:
    """Wrap the method that starts threads, permanently; outside of simulated runs the wrapper only calls it."""
    start = getattr(getattr(_thread_cache, "ThreadCache", None), "start_thread_soon", None)
    if start is None:
        raise RuntimeError(
            "this version of Trio has no trio._core._thread_cache.ThreadCache.start_thread_soon, so threads would go "
            "unnoticed until warpgate_trio.sim.reality learns where they start now"
        )

    @functools.wraps(start)
    def start_thread_soon(self: Any, fn: Any, deliver: Any, name: str | None = None) -> None:
        if _is_simulated():
            raise RuntimeError(
                f"a thread for {_job(fn, name)} was to start under the simulated clock, which does not wait for "
                "threads: trio.to_thread, trio.Path, trio.open_file and the like have no place in a simulated run"
            )
        start(self, fn, deliver, name)

    _thread_cache.ThreadCache.start_thread_soon = start_thread_soon  # type: ignore[method-assign]


def _job(fn: object, name: str | None) -> str:
    """The name of a thread's job: the function that the program passed to Trio, without the wrappers around it."""
    found = fn
    for _ in range(_LAYERS):
        if isinstance(found, functools.partial):
            found = found.func
            continue
        around = inspect.getclosurevars(found).nonlocals if inspect.isfunction(found) else {}
        found = next((around[each] for each in _WRAPPED if callable(around.get(each))), found)
    said = getattr(found, "__qualname__", None)
    return said if found is not fn and isinstance(said, str) else name or repr(fn)


@contextmanager
def watched(clock: trio.testing.MockClock, fail: Fail) -> Generator[None]:
    """Refuse threads and real descriptors in this run during the block.

    If a task waits for a real descriptor when the clock is about to jump, `fail` is called with the error.  If it
    returns True, it ends the run, and the clock does not jump.
    """
    _refuse_threads()
    outer = clock.__dict__.get("jump")
    jump = clock.jump

    def guarded(seconds: float) -> None:
        statistics = trio.lowlevel.current_statistics().io_statistics
        real = getattr(statistics, "tasks_waiting_read", 1) - 1 + getattr(statistics, "tasks_waiting_write", 0)
        if real > 0 and fail(_descriptor_error()):  # one is Trio's own
            return
        jump(seconds)

    before = _simulated.get()
    _simulated.set(True)
    clock.jump = guarded  # type: ignore[method-assign]
    try:
        yield
    finally:
        _simulated.set(before)
        del clock.jump
        if outer is not None:
            clock.jump = outer  # type: ignore[method-assign]


def _descriptor_error() -> RuntimeError:
    tasks = "; ".join(_tasks_that_wait()) or "a task"
    return RuntimeError(
        f"a real socket, or another descriptor of this machine, is waited for under the simulated clock, which does "
        f"not wait for it: {tasks}"
    )


def _tasks_that_wait() -> Iterator[str]:
    """The tasks that wait for a descriptor, and where; without Trio's own tasks."""
    root = trio.lowlevel.current_root_task()
    waiting = [] if root is None else [root]
    while waiting:
        task = waiting.pop()
        waiting.extend(child for nursery in task.child_nurseries for child in nursery.child_tasks)
        where, waits = "", False
        for frame, line in task.iter_await_frames():
            if frame.f_code.co_filename.startswith(_NOT_THE_PROGRAM):
                waits = waits or frame.f_code.co_name in ("wait_readable", "wait_writable")
            else:
                where = f"{frame.f_code.co_filename}:{line}"
        if waits and where:
            yield f"{task.name} at {where}"
