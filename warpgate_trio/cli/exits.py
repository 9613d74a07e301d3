"""Exit codes, and the sentence that a user sees for an exception."""

from __future__ import annotations

import errno
import re
from enum import IntEnum
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from ..errors import ConnectError, PairingError

__all__ = [
    "CommandFailed",
    "ExitCode",
    "OutputClosed",
    "UsageProblem",
    "code_hint",
    "exit_code_of_verdict",
    "explain",
    "output_error",
]


class ExitCode(IntEnum):
    OK = 0
    NO_PATH = 1
    USAGE = 2
    """Wrong use: the command line, the configuration or an address is not valid."""
    REFUSED = 3
    """The peer was reached, and refused."""
    BROKEN = 4
    """The Pipe broke, the peer was interrupted, or the echo was wrong; stdin could not be read; or the disk is full
    (for stdout or a key file)."""
    INTERNAL = 70
    """A fault of this program (EX_SOFTWARE of sysexits.h)."""
    INTERRUPTED = 130
    """SIGINT, as shells report it; also SIGTERM if work was left undone."""


class CommandFailed(Exception):
    """A command's own failure: an exit code and one sentence.  `shown`: the user has already seen the sentence."""

    def __init__(self, code: int, message: str, *, shown: bool = False) -> None:
        super().__init__(message)
        self.code: Final[int] = code
        self.shown: Final = shown


class UsageProblem(CommandFailed):
    """The command was used in a way that cannot work; exit code `ExitCode.USAGE`."""

    def __init__(self, message: str) -> None:
        super().__init__(ExitCode.USAGE, message)


class OutputClosed(Exception):
    """The reader of stdout has gone: the program ends silently, as `cat` in a pipeline does."""


_OUTPUT_GONE: Final = frozenset({errno.EPIPE, errno.EBADF, errno.EIO, errno.ECONNRESET})


def output_error(error: OSError) -> Exception:
    """The exception to raise after a write to stdout has failed: `OutputClosed` if its reader has gone."""
    if error.errno in _OUTPUT_GONE:
        return OutputClosed()
    return CommandFailed(ExitCode.BROKEN, f"stdout cannot be written: {error.strerror or error}")


_DISK_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT})


def _full_disk(error: BaseException | None) -> OSError | None:
    """The OSError of a full disk or quota that caused an exception; None if there is none."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in _DISK_FULL:
            return error
        error = error.__cause__
    return None


_LIKE_A_CODE: Final = re.compile(r"[0-9]{1,5}(?:[ _-]+[A-Za-z]+){2}")
_EXTRA: Final = re.compile(r"unexpected extra arguments? \(([^()]{1,100})\)")


def code_hint(text: str) -> str | None:
    """A hint for a user who has typed a pairing code in a wrong place; None if the text does not look like a code."""
    if not _LIKE_A_CODE.fullmatch(text):
        return None
    return f"{text!r} looks like a code: give it by --code, to connect or receive"


_REFUSALS: Final = frozenset({"refused", "not_accepting", "busy"})


def exit_code_of_verdict(verdict: str) -> ExitCode:
    """The exit code for a `Verdict`'s value: REFUSED if the peer itself refused."""
    if verdict == "connected":
        return ExitCode.OK
    return ExitCode.REFUSED if verdict in _REFUSALS else ExitCode.NO_PATH


def explain(error: BaseException) -> tuple[int, str]:
    """The exit code for an exception, and one sentence about it; the sentence is empty if none is to be shown."""
    import click

    from ..errors import (
        AddressError,
        ConfigError,
        ConnectError,
        ContactError,
        PairingError,
        PeerIdError,
        PeerNotFound,
        PeerRefused,
    )

    if isinstance(error, KeyboardInterrupt | click.Abort):
        return ExitCode.INTERRUPTED, "interrupted"
    if isinstance(error, OutputClosed):
        return ExitCode.OK, ""
    if isinstance(error, CommandFailed):
        return error.code, "" if error.shown else str(error)
    full = _full_disk(error)
    if full is error:  # click's own output: --help, --version, completion
        return ExitCode.BROKEN, str(output_error(full))
    if isinstance(error, click.UsageError):
        where = error.ctx.command_path if error.ctx is not None else "warpgate-trio"
        return ExitCode.USAGE, f"{_usage_sentence(error.format_message())}; see {where} --help"
    if isinstance(error, click.ClickException):
        return ExitCode.USAGE, error.format_message()
    if isinstance(error, AddressError):
        return ExitCode.USAGE, f"the address cannot be used: {error}"
    if isinstance(error, PairingError):
        return _code_of_pairing(error), f"not paired: {error}"
    if isinstance(error, ConfigError | ContactError | PeerIdError):
        return ExitCode.USAGE if full is None else ExitCode.BROKEN, str(error)
    if isinstance(error, PeerNotFound):
        return ExitCode.NO_PATH, str(error)
    if isinstance(error, PeerRefused):
        return ExitCode.REFUSED, f"the call was refused: {error}"
    if isinstance(error, ConnectError):
        return exit_code_of_verdict(error.verdict.value), _no_pipe(error)
    text = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    return ExitCode.INTERNAL, f"internal error of warpgate-trio: {text}; --debug shows where"


def _code_of_pairing(error: PairingError) -> ExitCode:
    """USAGE for a malformed code, REFUSED for a code that was refused, otherwise NO_PATH."""
    from ..errors import CodeMalformed, CodeRefused

    if isinstance(error, CodeMalformed):
        return ExitCode.USAGE
    return ExitCode.REFUSED if isinstance(error, CodeRefused) else ExitCode.NO_PATH


def _no_pipe(error: ConnectError) -> str:
    return f"no pipe to {error.report.peer[:8]}… ({error.verdict.value}). {error.advice}"


def _usage_sentence(text: str) -> str:
    extra = _EXTRA.search(text)
    return (extra and code_hint(extra[1])) or text.removesuffix(".")
