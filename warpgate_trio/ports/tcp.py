"""One local TCP port for punching (docs/punching.md): a mapping, a listener, and sockets that connect from the port.

The mapping that a STUN server saw belongs to the local port, and lives as long as the connection to that server.  So
that connection stays open, and everything else is bound to the same port:

* a listener, open *before* the mapping is announced.  It answers when the peer's SYN arrives first; without it, full
  cone × symmetric never connects;
* the sockets that connect to the peer.  Where both sides' SYNs cross, the two sockets become one connection (RFC 9293
  §3.5).  Where the listener was first, connecting fails with EADDRNOTAVAIL, and the connection waits to be accepted.

All of these sockets set SO_REUSEADDR and SO_REUSEPORT before their bind: a socket without them would prevent the binds
of the others.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final, Self, final

import trio

from ..errors import StunError
from ..sockaddr import TransportAddress, socket_family
from ..stun.client import query_stream, share_port
from ..stun.transaction import StunAnswer
from .segments import clamp_segments

__all__ = ["BACKLOG", "TcpPort"]

BACKLOG: Final = 16
"""Connections that may wait to be accepted: a peer makes a handful, and nobody else should know the port."""


@final
class TcpPort:
    """One local TCP port; see the module's docstring.  Made by `open`, closed by `close`.

    Attributes:
      local: the address to which all of its sockets are bound.
      mapped: by STUN server, the endpoint at which the server saw the port, the first answer first.
      mapped_at: when the last server answered (`trio.current_time`); None before the first.
    """

    def __init__(self, listener: trio.socket.SocketType, local: TransportAddress) -> None:
        self._listener = listener
        self._family = listener.family
        self._streams: dict[TransportAddress, trio.SocketStream] = {}
        self.local: Final = local
        self.mapped: dict[TransportAddress, TransportAddress] = {}
        self.mapped_at: float | None = None
        self.closed: bool = False

    def __repr__(self) -> str:
        return f"<TcpPort {self.local}{', closed' if self.closed else ''}>"

    @classmethod
    async def open(cls, ip: str, port: int = 0) -> Self:
        """Bind and listen, on a port that the system chooses if none is given; nothing is sent.

        Raises:
          OSError: the address is not ours, the port is taken, or no file descriptor is left.
        """
        listener = trio.socket.socket(socket_family(ip))
        try:
            share_port(listener)
            clamp_segments(listener, ip)
            await listener.bind((ip, port))
            listener.listen(BACKLOG)
            name = listener.getsockname()
            return cls(listener, (name[0], name[1]))
        except BaseException:
            listener.close()
            raise

    async def query(self, server: TransportAddress, *, timeout: float) -> StunAnswer:
        """Ask a STUN server at which endpoint it sees this port; the answer is kept in `mapped`.

        The connection stays open after an answer, and later queries use it again.

        Args:
          timeout: seconds for the connection, and again for the answer.

        Raises:
          StunError: the server cannot be reached, or gives no valid answer.
        """
        stream = self._streams.get(server)
        try:
            if stream is None:
                with trio.move_on_after(timeout) as scope:
                    stream = self._streams[server] = trio.SocketStream(await self.connect(server))
                if scope.cancelled_caught or stream is None:
                    raise StunError(f"STUN server {server[0]} does not answer over TCP")
            answer = await query_stream(stream, server=server, timeout=timeout)
        except BaseException as error:
            self._drop(server)
            if isinstance(error, OSError):
                raise StunError(f"STUN server {server[0]}: {error.strerror or error}") from error
            raise
        self.mapped[server] = answer.mapped
        self.mapped_at = trio.current_time()
        return answer

    def _drop(self, server: TransportAddress) -> None:
        self.mapped.pop(server, None)
        stream = self._streams.pop(server, None)
        if stream is not None:
            stream.socket.close()

    async def connect(
        self, remote: TransportAddress, *, on_start: Callable[[], object] = lambda: None
    ) -> trio.socket.SocketType:
        """Connect from this port.

        Args:
          on_start: called right before the SYN is sent, with no other task in between.

        Raises:
          OSError: refused or unreachable; EADDRNOTAVAIL where the listener has taken the peer's connection.
          trio.ClosedResourceError: the port was closed, before or meanwhile.
        """
        if self.closed:
            raise trio.ClosedResourceError("the port was closed")
        sock = trio.socket.socket(self._family)
        try:
            share_port(sock)
            clamp_segments(sock, remote[0])
            await sock.bind(self.local)
            on_start()
            await sock.connect(remote)
            if self.closed:
                raise trio.ClosedResourceError("the port was closed")
        except BaseException:
            sock.close()
            raise
        return sock

    async def accept(self) -> tuple[trio.socket.SocketType, TransportAddress]:
        """Wait for the next incoming connection; returns it and its source address.

        Raises:
          trio.ClosedResourceError: the port was closed.
        """
        try:
            sock, remote = await self._listener.accept()
        except OSError:
            if self.closed:
                raise trio.ClosedResourceError("the port was closed") from None
            raise
        return sock, (remote[0], remote[1])

    def close(self) -> None:
        """Close the listener and the connections to servers; sockets that were returned belong to the callers."""
        if self.closed:
            return
        self.closed = True
        self._listener.close()
        for server in list(self._streams):
            self._drop(server)

    def servers(self) -> Sequence[TransportAddress]:
        """The STUN servers to which a connection is open."""
        return tuple(self._streams)
