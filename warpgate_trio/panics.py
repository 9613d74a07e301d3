"""Panics of libraries in Rust, which are no `Exception`.

Where Rust code panics, pyo3 raises ``PanicException``, a `BaseException`: it passes every ``except Exception``, cancels
each nursery on its way and ends the program, though all that happened is that somebody's bytes met a bug.  Whoever
handles what comes from outside therefore works inside `panics_as_errors`, beside an ``except Exception`` that keeps
the rest with the connection, the attempt or the message that it belongs to.

What a user or the system asks for passes: KeyboardInterrupt, SystemExit, a cancellation.

The line that Rust itself writes to stderr with each panic cannot be silenced from Python: no library offers a hook.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from .errors import LibraryPanicked

__all__ = ["is_panic", "panics_as_errors"]


def is_panic(error: BaseException) -> bool:
    """Whether this is what pyo3 makes of a panic.  Each library has a class of its own, and none can be imported."""
    kind = type(error)
    return kind.__name__ == "PanicException" and kind.__module__ == "pyo3_runtime"


@contextmanager
def panics_as_errors() -> Iterator[None]:
    """Raise `LibraryPanicked` in place of a panic, also of one that a task inside has raised.

    Beside it in a group may be a cancellation, which goes on alone.
    """
    try:
        yield
    except BaseExceptionGroup as group:
        panics, others = group.split(is_panic)
        if panics is None:
            raise
        if others is not None:
            raise others from panics
        raise LibraryPanicked("a library panicked") from panics
    except BaseException as error:
        if is_panic(error):
            raise LibraryPanicked(f"a library panicked: {error}") from error
        raise
