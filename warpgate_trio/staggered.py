"""Connecting to a server that has several addresses: one after another, each a moment after the one before."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import trio

from .nurseries import leaves

__all__ = ["STAGGER", "open_first_tcp_stream"]

STAGGER: Final = 0.25
"""Seconds from one address to the next, the Connection Attempt Delay of RFC 8305 §5; none after a failure."""


async def open_first_tcp_stream(addresses: Iterable[str], port: int, *, host: str) -> trio.SocketStream:
    """Connect to the first of some IP addresses that answers; the others are let go.  The caller bounds the time.

    Args:
      addresses: in the order in which they are tried.
      host: what they are the addresses of, for the error.

    Raises:
      OSError: none of them can be connected to, with each reason in the group that is its cause.
    """
    streams: list[trio.SocketStream] = []
    errors: list[BaseException] = []

    async def attempt(address: str, failed: trio.Event) -> None:
        try:
            streams.append(await trio.open_tcp_stream(address, port))
        except OSError as error:
            errors.extend(leaves(error.__cause__ or error))  # out of the group that Trio makes of a single one
            failed.set()
        else:
            nursery.cancel_scope.cancel()

    try:
        async with trio.open_nursery() as nursery:
            for address in addresses:
                failed = trio.Event()
                nursery.start_soon(attempt, address, failed)
                with trio.move_on_after(STAGGER):
                    await failed.wait()
        if not streams:
            raise OSError(f"all attempts to connect to {host}:{port} failed") from BaseExceptionGroup("", errors)
        return streams.pop(0)
    finally:
        for stream in streams:  # a dead heat, or a cancellation in the moment of success
            stream.socket.close()
