"""Contains unexpected exceptions in servers: each ends only the datagram, connection or allocation that it concerns.

An exception that one client's bytes have caused must not end a server for the others.  That includes panics of
libraries in Rust (`warpgate_trio.errors.is_panic`).  It is a bug all the same, so it is logged with its traceback, but
only once: whoever has found such bytes can send them a thousand times a second.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final, TypeAlias, final

from .errors import is_panic
from .nurseries import leaves

__all__ = ["MAX_KINDS", "Unforeseen"]

MAX_KINDS: Final = 64
"""Kinds of exceptions that one server logs; there is seldom more than one."""

_Kind: TypeAlias = tuple[str, type[BaseException], object, int]


@final
class Unforeseen:
    """Contains exceptions and logs one of each kind: the same class from the same line, concerning the same thing.

    KeyboardInterrupt, SystemExit, cancellations and all else that is neither an `Exception` nor a panic pass.

    Args:
      logger: the server's logger.
    """

    def __init__(self, logger: logging.Logger) -> None:
        self._logger = logger
        self._said: set[_Kind] = set()

    def contains(self, error: BaseException, what: str) -> bool:
        """Contain an exception; returns False where it has to be raised again.

        Used in ``except BaseException``, this costs nothing where nothing is raised, unlike `containing`.

        Args:
          what: what the exception has ended, for the log.
        """
        if not _is_contained(error):
            return False
        self._say(error, what)
        return True

    @contextmanager
    def containing(self, what: str) -> Iterator[None]:
        """The same for a body that may have nurseries: of a group, the exceptions to be contained are taken out."""
        try:
            yield
        except BaseExceptionGroup as group:
            ours, others = group.split(_is_contained)
            if ours is not None:
                self._say(ours, what)
            if others is not None:
                raise others from None
        except BaseException as error:
            if not self.contains(error, what):
                raise

    def _say(self, error: BaseException, what: str) -> None:
        kind = _kind(error, what)
        if kind not in self._said and len(self._said) < MAX_KINDS:
            self._said.add(kind)
            self._logger.error("%s failed unexpectedly; further ones of this kind are not logged", what, exc_info=error)


def _is_contained(error: BaseException) -> bool:
    return isinstance(error, Exception) or is_panic(error)


def _kind(error: BaseException, what: str) -> _Kind:
    first = next(leaves(error))
    place, traceback = None, first.__traceback__
    line = 0
    while traceback is not None:
        place, line, traceback = traceback.tb_frame.f_code, traceback.tb_lineno, traceback.tb_next
    return what, type(first), place, line
