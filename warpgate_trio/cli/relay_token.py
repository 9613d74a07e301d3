"""The token of a relaying server: from a file of the operator, or made once and kept.

A peer with the token may be relayed to any other, so the token is a secret.  It is part of the configuration that
`serve` prints.  It is kept because with a new token that configuration would become invalid at each start.
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
    """Read the token from a file of the operator.  Raises `UsageProblem`, whose text does not contain the token."""
    try:
        return _checked(file.read_text(encoding="utf-8"), f"--token-file {file}")
    except (OSError, UnicodeDecodeError) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
        raise UsageProblem(f"--token-file {file}: {reason}") from error


def kept_token(settings: Settings, directory: Path | None) -> str:
    """The token of this machine's server; it is made if there is none.

    Args:
      directory: where it is kept; None: in the user's state directory.  If it cannot be kept there, the token is valid
        for this run only, and the user is warned.

    Raises:
      UsageProblem: it cannot be kept in the `directory`.
    """
    import platformdirs

    from ..identity import PrivateFileProblem

    try:
        return _kept(directory or platformdirs.user_state_path("warpgate-trio", appauthor=False))
    except (PrivateFileProblem, RuntimeError) as error:  # RuntimeError: HOME is not set, and the user is unknown
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
        create_private_file("token file", file, _new().encode() + b"\n")  # unless another process was faster


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
    except ConfigError:  # not chained: its text would show the token
        raise UsageProblem(f"{where}: expected 16 to {MAX_TOKEN} printable ASCII characters") from None
    return token
