"""The parts of simulated UDP and TCP sockets that do not wait.

These are a socket's descriptor, options and addresses, and for each call that may block a single attempt, which returns
None if it would block.  The sockets of `trio.socket` then wait (sockets.py); those of `socket` raise (plain_socket.py).
"""

from __future__ import annotations

import builtins
import errno
import socket as stdlib
from types import TracebackType
from typing import Any, Final, Self, overload

from .addr import (
    ANY4,
    ANY6,
    Endpoint,
    is_loopback,
    is_multicast,
)
from .addressed import Addressed
from .host import Host
from .messages import Received
from .options import IPV6, SO_BINDTODEVICE, SO_REUSEPORT, SOL_SOCKET, Buffer, OptionSet, as_bytes, as_int
from .ports import Binding, os_error
from .slots import Slot

_READ_ONLY: Final = {
    getattr(stdlib, name, None) for name in ("SO_ERROR", "SO_TYPE", "SO_DOMAIN", "SO_PROTOCOL", "SO_ACCEPTCONN")
}


class NowaitSocket(Addressed):
    """A socket of a simulated host, without the calls that wait.

    Its `__dict__` corresponds to the kernel's open file: `dup` shares it.  The slots belong to the one descriptor.
    """

    __slots__ = ("_number", "_plain")

    def __init__(self, host: Host, family: stdlib.AddressFamily, proto: int, options: OptionSet | None = None) -> None:
        super().__init__()
        self._plain: stdlib.socket | None = None  # the same descriptor for the standard library: `PlainSocket.of`
        self.host = host
        self._family = family
        self._proto = proto
        self._v6 = family == stdlib.AF_INET6
        self._options = options or OptionSet(stream=self._kind == stdlib.SOCK_STREAM, v6=self._v6)
        self._binding: Binding | None = None
        self._shut_write = False
        self._inheritable = False
        self._descriptors = 1
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
        """The descriptor number, which no real file descriptor has; -1 if closed."""
        return self._number

    def get_inheritable(self) -> bool:
        self._check_open()
        return self._inheritable

    def set_inheritable(self, inheritable: bool) -> None:
        """Stored without an effect: a simulated host starts no other programs."""
        self._check_open()
        self._inheritable = bool(inheritable)

    def alias(self) -> Self:
        """Another object for the same descriptor."""
        twin = type(self).__new__(type(self))
        twin.__dict__ = self.__dict__
        twin._plain = None
        twin._number = self._number
        return twin

    def dup(self) -> Self:
        """A second descriptor of the same socket.  The socket is closed when both are closed."""
        self._check_open()
        twin = self.alias()
        twin._number = self.host.net.open_socket(twin)
        self._descriptors += 1
        return twin

    def detach(self) -> int:
        """Detach the descriptor number; `socket.socket(fileno=)` and `trio.socket.fromfd` can open it again."""
        self._check_open()
        number = self._number
        if self.host.net.find_socket(number) is self:
            self.host.net.renew_socket(number, self.alias())
        self._number = -1
        self._wake_all()
        return number

    def close(self) -> None:
        """Close the descriptor; packets that were sent still arrive."""
        number, self._number = self._number, -1
        if number >= 0 and self.host.net.close_socket(number):
            self._descriptors -= 1
            if self._descriptors:
                self._wake_all()
            else:
                self._close()

    def _wake_all(self) -> None:
        """Wake the waiting tasks, so that they try again."""
        self._reading.wake()
        self._writing.wake()

    @property
    def _reading(self) -> Slot:
        """The slot in which a task waits to read or to accept."""
        raise NotImplementedError

    @property
    def _writing(self) -> Slot:
        raise NotImplementedError

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
        if level == SOL_SOCKET and optname in _READ_ONLY:
            raise os_error(errno.ENOPROTOOPT)
        if value is None:
            assert optlen is not None
            if (level, optname) == (SOL_SOCKET, SO_BINDTODEVICE):  # unbinds from any device; it is not bound to one
                return
            self._options.get(level, optname)
            raise os_error(errno.EINVAL if optlen < 4 else errno.EFAULT)  # the kernel reads an integer there
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
        """Handle an option that is no plain number; returns whether it was one."""
        return False

    def _option_changed(self, level: int, optname: int, value: int) -> None:
        pass

    def _take_error(self) -> int:
        raise NotImplementedError

    def _listening(self) -> bool:
        return False

    # Names

    def bind_now(self, endpoint: Endpoint) -> None:
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

    # Attempts

    def accept_now(self) -> tuple[NowaitSocket, Any] | None:
        raise NotImplementedError

    def connect_now(self, endpoint: Endpoint) -> bool:
        """Start to connect; returns whether the call is complete, or has to wait for an answer."""
        raise NotImplementedError

    def receive_now(self, size: int, flags: int) -> Received | None:
        """Receive at most `size` bytes; None if nothing has arrived."""
        raise NotImplementedError

    def send_now(self, data: memoryview, flags: int, dst: Endpoint | None) -> int | None:
        raise NotImplementedError

    def is_readable(self) -> bool:
        raise NotImplementedError

    def received_from(self, found: Received) -> Any:
        """The address that a call returns."""
        return None if found.source is None else self._show(found.source)
