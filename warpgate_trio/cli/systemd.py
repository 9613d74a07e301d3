"""Notifications to a service manager by the protocol of sd_notify(3): ready, stopping, alive.

Without ``$NOTIFY_SOCKET`` nothing is sent.  Errors of the manager's socket are logged and do not affect the service.
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
"""Timeout in seconds for a message to the service manager, so that one that does not read cannot stop the service."""
_MICROSECONDS: Final = 1_000_000


@final
class ServiceManager:
    """The service manager that has started this process, if it wants notifications.

    Args:
      environment: the environment of this process, in which systemd passes its socket (``NOTIFY_SOCKET``) and the
        watchdog's interval (``WATCHDOG_USEC``, ``WATCHDOG_PID``).

    Attributes:
      watchdog: seconds without a message after which it considers the service dead; None without a watchdog.
    """

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._address: Final = _address(environment.get("NOTIFY_SOCKET", ""))
        self.watchdog: Final = _watchdog(environment) if self.listens else None
        self._complained = False

    @property
    def listens(self) -> bool:
        """Whether there is a service manager that wants notifications."""
        return bool(self._address)

    async def ready(self, status: str) -> None:
        """Report that the service is ready.  `status`: one line of text, which `systemctl status` shows."""
        await self._tell("READY=1", _status(status))

    async def stopping(self, status: str) -> None:
        """Report that the service is stopping."""
        await self._tell("STOPPING=1", _status(status))

    async def feed_watchdog(self) -> None:
        """Report twice in each `watchdog` interval that Trio's loop is running.  Returns at once without a watchdog;
        otherwise it never returns.
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
            level = logging.DEBUG if self._complained else logging.WARNING  # watchdog messages repeat for ever
            self._complained = True
            reason = "it does not read" if isinstance(error, trio.TooSlowError) else reason_of(error)
            logger.log(level, "the service manager cannot be told %s: %s", assignments[0], reason)


def _address(name: str) -> str:
    """The address of a socket in the file system or, with an at sign, in Linux's abstract namespace; empty for none."""
    if name.startswith("@"):
        return "\0" + name[1:]
    if name and not name.startswith("/"):
        logger.warning("NOTIFY_SOCKET=%r is not a Unix socket address; the service manager is not notified", name)
        return ""
    return name


def _watchdog(environment: Mapping[str, str]) -> float | None:
    """The watchdog's interval in seconds; None if this process is not watched."""
    if environment.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return None
    text = environment.get("WATCHDOG_USEC", "")
    interval = int(text) / _MICROSECONDS if text.isascii() and text.isdigit() else 0.0
    return interval or None


def _status(text: str) -> str:
    return "STATUS=" + " ".join(text.split())
