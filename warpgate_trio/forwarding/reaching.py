"""Connections to targets: a name is looked up once; the addresses found are checked, and these are dialled."""

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
"""Seconds for looking up a target's name and connecting to it: enough time for three lost SYNs (RFC 6298)."""


async def reach(target: Target, exposed: Exposed | None, patience: float, *, peer_id: str) -> trio.SocketStream:
    """Connect to one of a target's addresses that may be dialled.

    Args:
      exposed: which addresses may be dialled; None: any.
      patience: seconds for lookup and connection together.
      peer_id: the peer for which the name is looked up; lookups are limited for each peer.

    Raises:
      TargetRefused: the target is not exposed, its name cannot be looked up, or it does not answer.
    """
    with trio.move_on_after(patience):
        addresses = await _look_up(target, exposed, peer_id)
        chosen = addresses if exposed is None else exposed.choose(target, addresses)
        if not chosen:
            raise TargetRefused(Answer.NOT_EXPOSED, f"{target} is not exposed here")
        return await _dial(chosen, target)
    raise TargetRefused(Answer.UNREACHABLE, f"{target} did not answer in {patience:g} s")


async def _look_up(target: Target, exposed: Exposed | None, peer_id: str) -> Sequence[IpAddress]:
    """The addresses of a target's host.

    A name that the list cannot match is not looked up, since name servers see the lookup.
    """
    if target.ip is not None:
        return [target.ip]
    if exposed is not None and not exposed.may_name(target):
        return []
    return await lookups_of_this_run().look_up(target, peer_id)


async def _dial(addresses: Sequence[IpAddress], target: Target) -> trio.SocketStream:
    """Connect to the first of these addresses that answers."""
    if len(addresses) == 1:  # the usual case; a task for it would cost as much as the connection
        try:
            return await connect_tcp(str(addresses[0]), target.port)
        except OSError as error:
            why = f"all attempts to connect to {target} failed: {reason_of(error)}"
            raise TargetRefused(Answer.UNREACHABLE, why) from error
    try:
        return await open_first_tcp_stream(map(str, addresses), target.port, host=target.host)
    except OSError as error:
        raise TargetRefused(Answer.UNREACHABLE, reason_of(error)) from error
