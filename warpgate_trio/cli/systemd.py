"""What a service manager is told of its service, by the protocol of sd_notify(3): ready, stopping, alive.

Where nobody asked (``$NOTIFY_SOCKET``), nobody is told.  Whatever is wrong with the manager's socket is no more than a
line in the log: the service goes on.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Mapping
from typing import Final, final

import trio

from ..nurseries import reason_of

__all__ = ["SEND_TIMEOUT", "ServiceManager"]

logger: logging.Logger = logging.getLogger(__name__)

SEND_TIMEOUT: Final = 1.0
"""Seconds that a service manager gets to take a message; one that does not read must not hold up the service."""
_MICROSECONDS: Final = 1_000_000


@final
class ServiceManager:
    """Whoever has started this process as a service, where that is one who wants to be told.

    Args:
      environment: of this process; systemd says in it where it listens (``NOTIFY_SOCKET``), and how often it wants to
        hear something (``WATCHDOG_USEC``, ``WATCHDOG_PID``).

    Attributes:
      watchdog: seconds without a word after which it takes the service for dead; None: it does not.
    """

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._address: Final = _address(environment.get("NOTIFY_SOCKET", ""))
        self.watchdog: Final = _watchdog(environment) if self.listens else None
        self._complained = False

    @property
    def listens(self) -> bool:
        """Whether there is one."""
        return bool(self._address)

    async def ready(self, status: str) -> None:
        """The service does what it is for.  `status`: one line for people, as `systemctl status` shows it."""
        await self._tell("READY=1", _status(status))

    async def stopping(self, status: str) -> None:
        """The service comes to its end."""
        await self._tell("STOPPING=1", _status(status))

    async def feed_watchdog(self) -> None:
        """Say that Trio's loop turns, twice in the time of `watchdog`; returns at once where nobody wants to hear it,
        else never.
        """
        await trio.lowlevel.checkpoint()
        while self.watchdog is not None:
            await self._tell("WATCHDOG=1")
            await trio.sleep(self.watchdog / 2)

    async def _tell(self, *assignments: str) -> None:
        await trio.lowlevel.checkpoint()
        if sys.platform == "win32" or not self.listens:
            return
        try:
            with trio.socket.socket(trio.socket.AF_UNIX, trio.socket.SOCK_DGRAM) as sock:
                with trio.fail_after(SEND_TIMEOUT):
                    await sock.sendto("\n".join(assignments).encode(), self._address)
        except (OSError, trio.TooSlowError) as error:
            level = logging.DEBUG if self._complained else logging.WARNING  # the watchdog's word comes for ever
            self._complained = True
            reason = "it does not read" if isinstance(error, trio.TooSlowError) else reason_of(error)
            logger.log(level, "the service manager cannot be told %s: %s", assignments[0], reason)


def _address(name: str) -> str:
    """Of a socket in the file system or, with an at sign, in Linux's abstract namespace; empty for none."""
    if name.startswith("@"):
        return "\0" + name[1:]
    if name and not name.startswith("/"):
        logger.warning("NOTIFY_SOCKET=%r is no address of a Unix socket; the service manager is told nothing", name)
        return ""
    return name


def _watchdog(environment: Mapping[str, str]) -> float | None:
    """Seconds; None where it is not this process that is watched."""
    if environment.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return None
    text = environment.get("WATCHDOG_USEC", "")
    interval = int(text) / _MICROSECONDS if text.isascii() and text.isdigit() else 0.0
    return interval or None


def _status(text: str) -> str:
    return "STATUS=" + " ".join(text.split())
