"""Nurseries whose exceptions reach the caller without a group; and a clear error for callers without Trio.

Trio wraps exceptions that leave a nursery in a group.  A function whose nursery is an implementation detail must not
expose that group to its caller.  This module has the only implementation of that.
"""

from __future__ import annotations

import os
import sys
from collections.abc import AsyncGenerator, Iterator
from contextlib import asynccontextmanager
from typing import NoReturn

import trio

__all__ = ["leaves", "open_background_nursery", "open_bare_nursery", "reason_of", "require_trio"]


@asynccontextmanager
async def open_background_nursery() -> AsyncGenerator[trio.Nursery]:
    """Open a nursery for tasks that serve the body: they are cancelled when the body ends, however it ends.

    An exception of the body is raised as it is, never in a group.  A background task that raises is a bug.  Its
    exception cancels the body, and is also raised without a group if it is the only one.
    """
    body: BaseException | None = None
    try:
        async with trio.open_nursery() as nursery:
            try:
                yield nursery
            except BaseException as exc:
                body = exc
                raise
            finally:
                nursery.cancel_scope.cancel()
    except BaseExceptionGroup as group:
        own = {id(leaf) for leaf in leaves(body)} if body is not None else set()
        others = [leaf for leaf in leaves(group) if id(leaf) not in own and not isinstance(leaf, trio.Cancelled)]
        if not others and body is not None:
            _raise(body)
        if len(others) == 1 and (body is None or isinstance(body, trio.Cancelled)):
            _raise(others[0])
        raise


@asynccontextmanager
async def open_bare_nursery() -> AsyncGenerator[trio.Nursery]:
    """Open a nursery for tasks of the same rank as the body; a single exception is raised without a group."""
    try:
        async with trio.open_nursery() as nursery:
            yield nursery
    except BaseExceptionGroup as group:
        errors = [each for each in leaves(group) if not isinstance(each, trio.Cancelled)]
        if len(errors) == 1:
            raise errors[0] from None
        raise


def leaves(exc: BaseException) -> Iterator[BaseException]:
    """The exceptions inside a group, at any depth; an exception that is not a group yields itself.

    Trio rebuilds groups when it removes Cancelled, so only the leaves keep their identity.
    """
    if isinstance(exc, BaseExceptionGroup):
        for inner in exc.exceptions:
            yield from leaves(inner)
    else:
        yield exc


def reason_of(error: BaseException) -> str:
    """The reason of an error in one sentence: the system's message without the groups and wrappers of Trio.

    The error of `trio.open_tcp_stream` only says "all attempts failed"; the reasons are in a group, its cause.
    """
    if isinstance(error, trio.socket.gaierror):
        return f"the name cannot be resolved: {error.strerror or error}"
    if isinstance(error, OSError) and isinstance(error.__cause__, BaseExceptionGroup):
        return f"{error}: {'; '.join(dict.fromkeys(map(reason_of, leaves(error.__cause__))))}"
    if isinstance(error, OSError) and error.errno is not None and (error.strerror or "").startswith("Error connecting"):
        return os.strerror(error.errno)
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error) or type(error).__name__


def require_trio(function: str) -> None:
    """Raise a `RuntimeError`, which names the function and what to do, unless the caller is a Trio task."""
    if trio.lowlevel.in_trio_task():
        return
    asyncio = sys.modules.get("asyncio")
    if asyncio is not None and asyncio._get_running_loop() is not None:
        raise RuntimeError(f"{function} needs Trio, and this is asyncio: start the program with trio.run(main)")
    raise RuntimeError(f"{function} needs Trio: call it in an async function that trio.run(main) has started")


def _raise(exc: BaseException) -> NoReturn:
    """Raise `exc` unchanged, without the group that contained it as its context."""
    context = exc.__context__
    try:
        raise exc
    finally:
        exc.__context__ = context
        del exc, context  # no reference cycle through this frame
