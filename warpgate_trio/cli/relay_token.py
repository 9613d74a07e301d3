"""The token of a server that relays: a file of its operator's, or one that is made once and kept.

Who has it may be relayed to anybody, so it is a secret, and it is in the configuration that `serve` prints: were it
another one after each start, that configuration would be good until the next.
"""

from __future__ import annotations

import base64
from pathlib import Path
from typing import TYPE_CHECKING, Final

from .exits import UsageProblem

if TYPE_CHECKING:
    from .options import Settings

__all__ = ["kept_token", "read_token"]

FILE: Final = "relay_token"
_BYTES: Final = 32


def read_token(file: Path) -> str:
    """The token in a file of the operator's.  Raises `UsageProblem`, which does not show it."""
    try:
        return _checked(file.read_text(encoding="utf-8"), f"--token-file {file}")
    except (OSError, UnicodeDecodeError) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
        raise UsageProblem(f"--token-file {file}: {reason}") from error


def kept_token(settings: Settings, directory: Path | None) -> str:
    """The token of this machine's server, which is made when there is none; None: kept where the user's state is.

    Where nobody has said where, and it cannot be kept there, it is good for this run.  Raises `UsageProblem` where
    somebody has.
    """
    import platformdirs

    from ..identity import PrivateFileProblem

    try:
        return _kept(directory or platformdirs.user_state_path("warpgate-trio", appauthor=False))
    except (PrivateFileProblem, RuntimeError) as error:  # the latter: HOME is not set, and nobody knows the user
        if directory is not None:
            raise UsageProblem(f"--state-dir {directory}: {error}") from error
        settings.warn(f"{error}; peers need another configuration after each start (--state-dir keeps the token)")
        return _new()


def _kept(directory: Path) -> str:
    from ..identity import create_private_file, read_private_file

    file = directory / FILE
    while True:
        content = read_private_file("token file", file)
        if content is not None:
            return _checked(content.decode("utf-8", "replace"), f"the token file {file}")
        create_private_file("token file", file, _new().encode() + b"\n")  # or somebody else was faster


def _new() -> str:
    from .. import host as machine

    return base64.urlsafe_b64encode(machine.current().entropy(_BYTES)).rstrip(b"=").decode()


def _checked(text: str, where: str) -> str:
    from ..config import Servers
    from ..config.config import MAX_TOKEN
    from ..errors import ConfigError

    token = text.strip()
    try:
        Servers(relay_token=token)
    except ConfigError:  # whose text would show it
        raise UsageProblem(f"{where}: expected 16 to {MAX_TOKEN} printable ASCII characters") from None
    return token
