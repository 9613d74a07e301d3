"""The certificate of `serve`, which can be replaced while the server runs: it is valid for some weeks only."""

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
      context: the SSL context with the certificate and key that were last read successfully.

    Raises:
      UsageProblem: the files cannot be used.
    """

    def __init__(self, chain: Path, key: Path) -> None:
        self._chain = chain
        self._key = key
        self.context: ssl.SSLContext = self._read()

    def reload(self) -> None:
        """Read the files again, for new connections.  After a `UsageProblem` the old certificate stays in use."""
        self.context = self._read()

    def _read(self) -> ssl.SSLContext:
        # A new context each time: one that has loaded a new certificate and then refuses its key is not usable.
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        for option, path in (("--tls-cert", self._chain), ("--tls-key", self._key)):
            try:
                path.open("rb").close()
            except OSError as error:
                raise UsageProblem(f"{option} {path}: {error.strerror or error}") from error
        try:
            # Without a password, OpenSSL would ask for that of an encrypted key on the terminal.
            context.load_cert_chain(self._chain, self._key, password="")
        except (ssl.SSLError, OSError) as error:
            raise UsageProblem(f"--tls-cert {self._chain} and --tls-key {self._key} cannot be used: {error}") from error
        return context


async def reload_on_hangup(
    settings: Settings, certificate: Certificate | None, *, task_status: trio.TaskStatus[None]
) -> None:
    """Read the certificate again at each SIGHUP, which certbot's hooks and `systemctl reload` send.

    Without a certificate SIGHUP is ignored, so that it does not end the server.
    """
    if not hasattr(signal, "SIGHUP"):
        task_status.started()
        return
    with trio.open_signal_receiver(signal.SIGHUP) as hangups:
        task_status.started()
        async for _ in hangups:
            if certificate is None:
                settings.say("SIGHUP ignored: no certificate is configured")
                continue
            try:
                certificate.reload()
            except UsageProblem as error:
                settings.warn(f"the certificate stays as it was: {error}")
            else:
                settings.say("the certificate was read again; new connections get it")
