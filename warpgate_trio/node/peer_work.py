"""What runs here because a peer asked for it, by session, so that the peer can end it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final, final

import trio

from ..signal import Header

__all__ = ["PeerWork"]


@final
class PeerWork:
    """Cancel scopes of what is under way, each with the attempt that it belongs to."""

    def __init__(self) -> None:
        self._scopes: Final[dict[tuple[bytes, bytes], dict[trio.CancelScope, bytes | None]]] = {}

    def __len__(self) -> int:
        return len(self._scopes)

    def begin(self, header: Header) -> trio.CancelScope:
        """The scope for what a signal starts.  It can be cancelled from now on, before its task has its first turn."""
        scope = trio.CancelScope()
        self._scopes.setdefault((header.sender, header.session), {})[scope] = header.attempt
        return scope

    @contextmanager
    def running(self, header: Header, scope: trio.CancelScope) -> Iterator[None]:
        """The time of that work."""
        key = (header.sender, header.session)
        try:
            with scope:
                yield
        finally:
            del self._scopes[key][scope]
            if not self._scopes[key]:
                del self._scopes[key]

    def cancel(self, peer: bytes, session: bytes, attempt: bytes | None = None) -> None:
        """The peer ends the session, or one attempt of it, or it got its Pipe: stop what looks for another path."""
        for scope, its in self._scopes.get((peer, session), {}).items():
            if attempt in (None, its):
                scope.cancel(reason="the session is over" if attempt is None else "the attempt is over")
