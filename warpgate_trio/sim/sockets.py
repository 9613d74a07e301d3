"""What the simulator's two kinds of sockets share: everything that is not UDP or TCP.

The order of checks, checkpoints and errors follows Trio's own socket class: a call looks for cancellation, tries, and
makes a checkpoint whether it succeeds or fails; only when it would block does it wait.  Two tasks that wait for the
same direction are an error, and closing wakes them with trio.ClosedResourceError.
"""

from __future__ import annotations

import builtins
import errno
import socket as stdlib
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Self, SupportsIndex, TypeVar, cast, overload

import trio
from trio.socket import SocketType

from .addr import (
    ANY4,
    ANY6,
    LOOPBACK4,
    LOOPBACK6,
    Endpoint,
    canonical,
    is_loopback,
    is_multicast,
    is_v6,
    map_to_v6,
    unmap,
)
from .options import IPV6, SO_REUSEPORT, SOL_SOCKET, Buffer, OptionSet, as_bytes, as_int
from .ports import Binding, os_error
from .slots import Slot

if TYPE_CHECKING:
    from typing import Self

    from .host import Host

T = TypeVar("T")
_READ_ONLY: Final = {
    getattr(stdlib, name, None) for name in ("SO_ERROR", "SO_TYPE", "SO_DOMAIN", "SO_PROTOCOL", "SO_ACCEPTCONN")
}


class VirtualSocket(SocketType):
    """A socket on a simulated host."""

    _kind: stdlib.SocketKind

    def __init__(self, host: Host, family: stdlib.AddressFamily, proto: int, options: OptionSet | None = None) -> None:
        super().__init__()
        self.host = host
        self._family = family
        self._proto = proto
        self._v6 = family == stdlib.AF_INET6
        self._options = options or OptionSet(stream=self._kind == stdlib.SOCK_STREAM, v6=self._v6)
        self._binding: Binding | None = None
        self._shut_write = False
        self._number = host.net.open_socket(self)

    # What it is

    @property
    def family(self) -> stdlib.AddressFamily:
        return self._family

    @property
    def type(self) -> stdlib.SocketKind:
        return self._kind

    @property
    def proto(self) -> int:
        return self._proto

    @property
    def did_shutdown_SHUT_WR(self) -> bool:  # noqa: N802 (Trio's name)
        return self._shut_write

    def __repr__(self) -> str:
        state = "closed" if self.closed else f"laddr={self.getsockname()}"
        return f"<{type(self).__name__} on {self.host.name}, {state}>"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: builtins.type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def closed(self) -> bool:
        return self._number < 0

    def fileno(self) -> int:
        """A number that no real file descriptor has; -1 when closed."""
        return self._number

    def get_inheritable(self) -> bool:
        self._check_open()
        return False

    def set_inheritable(self, inheritable: bool) -> None:
        self._check_open()
        if inheritable:
            raise os_error(errno.EOPNOTSUPP)

    def detach(self) -> int:
        raise NotImplementedError("a simulated socket has no file descriptor to detach")

    def dup(self) -> SocketType:
        raise NotImplementedError("a simulated socket has no file descriptor to duplicate")

    def close(self) -> None:
        """Close it; what is on its way still arrives."""
        if not self.closed:
            self.host.net.close_socket(self._number)
            self._number = -1
            self._close()

    def _close(self) -> None:
        raise NotImplementedError

    def _check_open(self) -> None:
        if self._number < 0:
            raise os_error(errno.EBADF)

    # Options

    @overload
    def getsockopt(self, level: int, optname: int) -> int: ...

    @overload
    def getsockopt(self, level: int, optname: int, buflen: int) -> bytes: ...

    def getsockopt(self, level: int, optname: int, buflen: int | None = None) -> int | bytes:
        self._check_open()
        value = self._special_option(level, optname)
        if value is None:
            value = self._options.get(level, optname)
        return value if buflen is None else as_bytes(value, buflen)

    def _special_option(self, level: int, optname: int) -> int | None:
        if level != SOL_SOCKET:
            return None
        if optname == stdlib.SO_ERROR:
            return self._take_error()
        if optname == stdlib.SO_TYPE:
            return int(self._kind)
        if optname == getattr(stdlib, "SO_DOMAIN", None):
            return int(self._family)
        if optname == getattr(stdlib, "SO_PROTOCOL", None):
            return stdlib.IPPROTO_TCP if self._kind == stdlib.SOCK_STREAM else stdlib.IPPROTO_UDP
        if optname == getattr(stdlib, "SO_ACCEPTCONN", None):
            return int(self._listening())
        return None

    @overload
    def setsockopt(self, level: int, optname: int, value: int | Buffer) -> None: ...

    @overload
    def setsockopt(self, level: int, optname: int, value: None, optlen: int) -> None: ...

    def setsockopt(self, level: int, optname: int, value: int | Buffer | None, optlen: int | None = None) -> None:
        if (value is None) != (optlen is not None):
            raise TypeError(f"invalid value for argument 'value': {value!r}, with optlen {optlen!r}")
        self._check_open()
        if value is None:
            raise os_error(errno.EINVAL)
        if level == SOL_SOCKET and optname in _READ_ONLY:
            raise os_error(errno.ENOPROTOOPT)
        if self._set_special(level, optname, value):
            return
        if (level, optname) == (IPV6, stdlib.IPV6_V6ONLY) and self._binding is not None:
            raise os_error(errno.EINVAL)
        stored = self._options.set(level, optname, as_int(value))
        if level == SOL_SOCKET and self._binding is not None:
            if optname == stdlib.SO_REUSEADDR:
                self._binding.reuse_address = bool(stored)
            elif optname == SO_REUSEPORT:
                self._binding.reuse_port = bool(stored)
        self._option_changed(level, optname, stored)

    def _set_special(self, level: int, optname: int, value: int | Buffer) -> bool:
        """Handle an option that is no plain number; whether this was one."""
        return False

    def _option_changed(self, level: int, optname: int, value: int) -> None:
        pass

    def _take_error(self) -> int:
        raise NotImplementedError

    def _listening(self) -> bool:
        return False

    # Addresses

    def _show(self, endpoint: Endpoint) -> Any:
        """An endpoint in the form of this socket's family."""
        address, port = endpoint
        return (map_to_v6(address), port, 0, 0) if self._v6 else (address, port)

    def _numeric(self, address: object) -> Endpoint | None:
        """The endpoint of an address that needs no resolving; ValueError when it has the wrong shape."""
        size = len(cast("tuple[object, ...]", address)) if isinstance(address, tuple) else 0
        if self._v6:
            if not 2 <= size <= 4:
                raise ValueError("address should be a (host, port, [flowinfo, [scopeid]]) tuple")
        elif size != 2:
            raise ValueError("address should be a (host, port) tuple")
        host, port, *_ = cast("tuple[object, ...]", address)
        if isinstance(port, int) and isinstance(host, str):
            try:
                found = canonical(host)
            except ValueError:
                return None
            if is_v6(found) == self._v6:
                if not 0 <= port <= 65535:
                    raise OverflowError("port must be 0-65535.")
                return unmap(found), port
        return None

    async def _resolve(self, address: object, *, local: bool) -> Endpoint:
        """The endpoint that an address means, as Trio's sockets read it.  Not always a checkpoint."""
        found = self._numeric(address)
        if found is not None:
            return found
        host, port, *_ = cast("tuple[Any, ...]", address)
        host = {"": None, "<broadcast>": "255.255.255.255"}.get(host, host)
        flags = stdlib.AI_PASSIVE if local else 0
        if self._v6 and not self._options.get(IPV6, stdlib.IPV6_V6ONLY):
            flags |= stdlib.AI_V4MAPPED
        with self.host:
            answers = await trio.socket.getaddrinfo(host, port, self._family, self._kind, self._proto, flags)
        name, number = answers[0][4][:2]
        assert isinstance(number, int)
        return unmap(canonical(str(name))), number

    def _dual(self) -> bool:
        return self._v6 and not self._options.get(IPV6, stdlib.IPV6_V6ONLY)

    def _check_family(self, address: str) -> None:
        """OSError(ENETUNREACH) for an IPv4 destination of a socket that is for IPv6 only."""
        if self._v6 and not is_v6(address) and not self._dual():
            raise os_error(errno.ENETUNREACH)

    def _destination(self, endpoint: Endpoint) -> Endpoint:
        """Linux takes the unspecified address for this host."""
        if endpoint[0] == ANY4:
            return LOOPBACK4, endpoint[1]
        if endpoint[0] == ANY6:
            return LOOPBACK6, endpoint[1]
        return endpoint

    def _source(self, dst: str) -> str:
        """The address from which this socket sends to `dst`."""
        binding = self._binding
        if binding is not None and not binding.wildcard and not is_multicast(binding.address):
            if is_v6(binding.address) != is_v6(dst):
                raise os_error(errno.ENETUNREACH if is_v6(dst) else errno.EINVAL)
            if is_loopback(binding.address) and dst not in self.host.own and not is_loopback(dst):
                raise os_error(errno.EINVAL)
            return binding.address
        found = self.host.source_for(dst)
        if found is None:
            raise os_error(errno.ENETUNREACH)
        return found

    def _new_binding(self, address: str, port: int) -> Binding:
        return Binding(
            address,
            port,
            v6only=self._v6 and not self._dual(),
            reuse_address=self._options.reuse_address,
            reuse_port=self._options.reuse_port,
        )

    async def bind(self, address: Any) -> None:
        endpoint = await self._resolve(address, local=True)
        await trio.lowlevel.checkpoint()
        self._check_open()
        if self._binding is not None:
            raise os_error(errno.EINVAL)
        name = endpoint[0]
        mine = name in (ANY4, ANY6) or name in self.host.own or is_loopback(name)
        if not mine and not (self._kind == stdlib.SOCK_DGRAM and is_multicast(name)):
            raise os_error(errno.EADDRNOTAVAIL)
        self._bind(self._new_binding(*endpoint))

    def _bind(self, binding: Binding) -> None:
        raise NotImplementedError

    def _wildcard(self) -> str:
        return ANY6 if self._v6 else ANY4

    def getsockname(self) -> Any:
        self._check_open()
        binding = self._binding
        return self._show((self._wildcard(), 0) if binding is None else (binding.address, binding.port))

    # Waiting

    async def _attempt(self, slot: Slot, fn: Callable[[], T | None]) -> T:
        """What a call that may block does: `fn` returns None when it would."""
        await trio.lowlevel.checkpoint_if_cancelled()
        try:
            result = fn()
        except BaseException:
            await trio.lowlevel.cancel_shielded_checkpoint()
            raise
        if result is not None:
            await trio.lowlevel.cancel_shielded_checkpoint()
            return result
        while True:
            await slot.wait()
            result = fn()
            if result is not None:
                return result

    # Calls in terms of recv and recvfrom

    def recv(self, buflen: SupportsIndex, flags: int = 0, /) -> Awaitable[bytes]:
        raise NotImplementedError

    def recvfrom(self, bufsize: SupportsIndex, flags: int = 0, /) -> Awaitable[tuple[bytes, Any]]:
        raise NotImplementedError

    async def recv_into(self, buffer: Buffer, nbytes: int = 0, flags: int = 0) -> int:
        with memoryview(buffer).cast("B") as view:
            if nbytes > len(view):
                raise ValueError("nbytes is greater than the length of the buffer")
            data = await self.recv(nbytes or len(view), flags)
            view[: len(data)] = data
        return len(data)

    async def recvfrom_into(self, buffer: Buffer, nbytes: int = 0, flags: int = 0) -> tuple[int, Any]:
        with memoryview(buffer).cast("B") as view:
            if nbytes > len(view):
                raise ValueError("nbytes is greater than the length of the buffer")
            data, address = await self.recvfrom(nbytes or len(view), flags)
            view[: len(data)] = data
        return len(data), address
