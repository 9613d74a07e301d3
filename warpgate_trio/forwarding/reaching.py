"""Connections to targets: a name is looked up once, and what it leads to is judged and then dialled."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import trio

from ..errors import TargetRefused
from ..names import connect_tcp, open_first_tcp_stream
from ..nurseries import reason_of
from ..sockaddr import IpAddress
from .lookups import lookups_of_this_run
from .targets import Exposed, Target
from .wire import Answer

__all__ = ["TARGET_PATIENCE", "reach"]

TARGET_PATIENCE: Final = 10.0
"""Seconds for a target's name to be looked up and its connection to come up: time for three lost SYNs (RFC 6298)."""


async def reach(target: Target, exposed: Exposed | None, patience: float, *, peer_id: str) -> trio.SocketStream:
    """A connection to one of a target's addresses that may be dialled.

    Args:
      peer_id: for whom: its names are looked up beside those of other peers.
      exposed: what may be; None: whatever the target is.
      patience: seconds for its name and its connection.

    Raises:
      TargetRefused: it may not be dialled, or does not answer.
    """
    with trio.move_on_after(patience):
        addresses = await _look_up(target, exposed, peer_id)
        chosen = addresses if exposed is None else exposed.choose(target, addresses)
        if not chosen:
            raise TargetRefused(Answer.NOT_EXPOSED, f"{target} is not exposed here")
        return await _dial(chosen, target)
    raise TargetRefused(Answer.UNREACHABLE, f"{target} did not answer in {patience:g} s")


async def _look_up(target: Target, exposed: Exposed | None, peer_id: str) -> Sequence[IpAddress]:
    """The addresses of a target's host.  What cannot be on the list is not looked up: a name server sees who asks."""
    if target.ip is not None:
        return [target.ip]
    if exposed is not None and not exposed.may_name(target):
        return []
    return await lookups_of_this_run().look_up(target, peer_id)


async def _dial(addresses: Sequence[IpAddress], target: Target) -> trio.SocketStream:
    """Connect to the first of these addresses that takes it."""
    if len(addresses) == 1:  # the usual case, for which a task of its own would cost as much as the connection
        try:
            return await connect_tcp(str(addresses[0]), target.port)
        except OSError as error:
            why = f"all attempts to connect to {target} failed: {reason_of(error)}"
            raise TargetRefused(Answer.UNREACHABLE, why) from error
    try:
        return await open_first_tcp_stream(map(str, addresses), target.port, host=target.host)
    except OSError as error:
        raise TargetRefused(Answer.UNREACHABLE, reason_of(error)) from error
