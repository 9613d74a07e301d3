"""Work that runs here at a peer's request, by session, so that the peer can end it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final, final

import trio

from ..signal import Header

__all__ = ["PeerWork"]


@final
class PeerWork:
    """Cancel scopes of the work under way, each with the attempt that it belongs to."""

    def __init__(self) -> None:
        self._scopes: Final[dict[tuple[bytes, bytes], dict[trio.CancelScope, bytes | None]]] = {}

    def __len__(self) -> int:
        return len(self._scopes)

    def begin(self, header: Header) -> trio.CancelScope:
        """The scope for the work that a signal starts.  It can be cancelled at once, before its task first runs."""
        scope = trio.CancelScope()
        self._scopes.setdefault((header.sender, header.session), {})[scope] = header.attempt
        return scope

    @contextmanager
    def running(self, header: Header, scope: trio.CancelScope) -> Iterator[None]:
        """Run the work in its scope."""
        key = (header.sender, header.session)
        try:
            with scope:
                yield
        finally:
            del self._scopes[key][scope]
            if not self._scopes[key]:
                del self._scopes[key]

    def cancel(self, peer: bytes, session: bytes, attempt: bytes | None = None) -> None:
        """Cancel the work of a session, or of one attempt of it: the peer ended it, or the session has its Pipe."""
        for scope, its in self._scopes.get((peer, session), {}).items():
            if attempt in (None, its):
                scope.cancel(reason="the session is over" if attempt is None else "the attempt is over")
