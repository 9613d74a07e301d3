"""`listen --expose` and `--bind`: serving the Pipes of peers that forward connections."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, final

import click

from ..forwarding import Bindable, Exposed, handle_forward, is_forward

if TYPE_CHECKING:
    from ..link import Pipe
    from .options import Settings

__all__ = ["Exposing"]

logger: logging.Logger = logging.getLogger(__name__)


@final
class Exposing:
    """Serves forwarding peers.  Raises `click.UsageError` for an invalid entry of a list."""

    def __init__(self, settings: Settings, expose: Sequence[str], bind: Sequence[str]) -> None:
        self._settings = settings
        try:
            self._exposed = Exposed(expose)
            self._bindable = Bindable(bind)
        except ValueError as error:
            raise click.UsageError(str(error)) from error

    def is_forward(self, pipe: Pipe) -> bool:
        """Whether a Pipe is a forwarding request, rather than the peer's call itself."""
        return is_forward(pipe)

    async def serve(self, pipe: Pipe) -> None:
        """Serve one Pipe until its end: a request, or the call that keeps the Link open."""
        import trio

        try:
            async with pipe:
                if is_forward(pipe):
                    await handle_forward(pipe, exposed=self._exposed, bindable=self._bindable)
                    return
                async for _ in pipe:
                    pass
        except trio.BrokenResourceError as error:
            self._settings.say(f"{pipe.peer_id[:8]}… {pipe.label}: {error}")
        except Exception as error:
            logger.exception("%s failed unexpectedly", pipe.label)
            self._settings.warn(f"{pipe.peer_id[:8]}… {pipe.label}: {type(error).__name__}: {error}")
