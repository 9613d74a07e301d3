"""A Pipe as an `anyio.abc.ByteStream`, for libraries that are written for anyio (docs/applications.md).

It runs under anyio's Trio backend, as the node does.  Only this module needs anyio, which is an extra:
``pip install 'warpgate-trio[anyio]'``.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final, final

import anyio
import trio
from anyio.abc import ByteStream, SocketAttribute

from .link import PathInfo, Pipe

if TYPE_CHECKING:
    from types import TracebackType

__all__ = ["PipeAttribute", "PipeByteStream"]


@final
class PipeAttribute(anyio.TypedAttributeSet):
    """Attributes of a `PipeByteStream` besides `anyio.abc.SocketAttribute`: ``stream.extra(PipeAttribute.peer_id)``.

    Attributes:
      pipe: the Pipe.
      peer_id: the peer's proven id.
      label: the label that the Pipe was opened with.
      path: the Pipe's present path.
    """

    pipe: Pipe = anyio.typed_attribute()
    peer_id: str = anyio.typed_attribute()
    label: str = anyio.typed_attribute()
    path: PathInfo = anyio.typed_attribute()


@contextmanager
def _in_anyios_terms(doing: str) -> Iterator[None]:
    """Raise Trio's stream errors as anyio's, with the same messages."""
    try:
        yield
    except trio.BusyResourceError as error:
        raise anyio.BusyResourceError(doing) from error
    except trio.ClosedResourceError as error:
        raise anyio.ClosedResourceError(*error.args) from error
    except trio.BrokenResourceError as error:
        raise anyio.BrokenResourceError(*error.args) from error


@final
class PipeByteStream(ByteStream):
    """A view of a Pipe: it has no buffer and no state of its own, and closes the Pipe when it is closed.

    An ``async with`` block that is left by an exception aborts the Pipe, as the Pipe's own does, so that the peer does
    not mistake this for the end of the stream.

    `extra` has all of `PipeAttribute`, and of `anyio.abc.SocketAttribute` the addresses, the ports and the family of
    the present path.  There is no ``raw_socket``, since a path may be QUIC, and may be replaced by another one.
    """

    def __init__(self, pipe: Pipe) -> None:
        self._pipe: Final = pipe

    def __repr__(self) -> str:
        return f"<PipeByteStream of {self._pipe!r}>"

    async def receive(self, max_bytes: int = 65536) -> bytes:
        """Wait for data and return at most `max_bytes` of it.  A cancelled call loses nothing.

        Raises:
          ValueError: `max_bytes` is less than 1.
          anyio.EndOfStream: the peer has ended its direction.
          anyio.BusyResourceError: another task is receiving.
          anyio.BrokenResourceError: the stream ended without the peer having ended it.
          anyio.ClosedResourceError: the Pipe was closed here.
        """
        if max_bytes < 1:
            raise ValueError("max_bytes must be a positive integer")
        with _in_anyios_terms("reading from"):
            data = await self._pipe.receive_some(max_bytes)
        if not data:
            raise anyio.EndOfStream
        return data

    async def send(self, item: bytes) -> None:
        """Send all of `item`; a cancelled call may have sent a part of it.

        Raises:
          anyio.BusyResourceError: another task is sending.
          anyio.BrokenResourceError: the peer closed its end, or the path is gone.
          anyio.ClosedResourceError: the Pipe was closed here, or `send_eof` was called.
        """
        with _in_anyios_terms("writing to"):
            await self._pipe.send_all(item)

    async def send_eof(self) -> None:
        """End this side's direction of the stream; receiving goes on.  Errors as in `send`."""
        with _in_anyios_terms("writing to"):
            await self._pipe.send_eof()

    async def aclose(self) -> None:
        """Close both directions; a cancelled call closes abruptly.  See `Pipe.aclose`."""
        await self._pipe.aclose()

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc_val: BaseException | None, exc_tb: TracebackType | None
    ) -> None:
        await self._pipe.__aexit__(exc_type, exc_val, exc_tb)

    @property
    def extra_attributes(self) -> Mapping[Any, Callable[[], Any]]:
        """See the class."""
        pipe = self._pipe
        return {
            PipeAttribute.pipe: lambda: pipe,
            PipeAttribute.peer_id: lambda: pipe.peer_id,
            PipeAttribute.label: lambda: pipe.label,
            PipeAttribute.path: lambda: pipe.path,
            SocketAttribute.family: lambda: socket.AF_INET6 if pipe.path.af == 6 else socket.AF_INET,
            SocketAttribute.local_address: lambda: pipe.path.local,
            SocketAttribute.local_port: lambda: pipe.path.local[1],
            SocketAttribute.remote_address: lambda: pipe.path.remote,
            SocketAttribute.remote_port: lambda: pipe.path.remote[1],
        }
