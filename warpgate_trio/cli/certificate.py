"""The certificate of `serve`, which is good for some weeks, while the server goes on for longer."""

from __future__ import annotations

import signal
import ssl
from pathlib import Path
from typing import final

import trio

from .exits import UsageProblem
from .options import Settings

__all__ = ["Certificate", "reload_on_hangup"]


@final
class Certificate:
    """A certificate and its key in files.

    Attributes:
      context: what serves with them as they were when they were last read whole.

    Raises:
      UsageProblem: they cannot be used.
    """

    def __init__(self, chain: Path, key: Path) -> None:
        self._chain = chain
        self._key = key
        self.context: ssl.SSLContext = self._read()

    def reload(self) -> None:
        """Read them again, for the connections to come.  Raises `UsageProblem`, and goes on as it was."""
        self.context = self._read()

    def _read(self) -> ssl.SSLContext:
        # A fresh context each time: one that has taken a new certificate and then refuses its key is good for nothing.
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        for option, path in (("--tls-cert", self._chain), ("--tls-key", self._key)):
            try:
                path.open("rb").close()
            except OSError as error:
                raise UsageProblem(f"{option} {path}: {error.strerror or error}") from error
        try:
            # A password for an encrypted key would be asked for on the terminal; a server has nobody to ask.
            context.load_cert_chain(self._chain, self._key, password="")
        except (ssl.SSLError, OSError) as error:
            raise UsageProblem(f"--tls-cert {self._chain} and --tls-key {self._key} cannot be used: {error}") from error
        return context


async def reload_on_hangup(
    settings: Settings, certificate: Certificate | None, *, task_status: trio.TaskStatus[None]
) -> None:
    """Read the certificate again at each SIGHUP, as certbot's hooks and `systemctl reload` send it.

    Without a certificate SIGHUP does nothing: it must not end a server either.
    """
    if not hasattr(signal, "SIGHUP"):
        task_status.started()
        return
    with trio.open_signal_receiver(signal.SIGHUP) as hangups:
        task_status.started()
        async for _ in hangups:
            if certificate is None:
                settings.say("SIGHUP: there is no certificate to be read again")
                continue
            try:
                certificate.reload()
            except UsageProblem as error:
                settings.warn(f"the certificate stays as it was: {error}")
            else:
                settings.say("the certificate was read again; new connections get it")
