"""A relayed address as a `DatagramPort`: the shell of one `TurnClientCore` over one transport.

It is used like a UDP port: races send and receive probes through it, and its paths carry QUIC by way of the TURN
server.  Each path has a channel, so a full QUIC packet of 1,200 bytes takes 1,204; what is sent without a path uses
Send indications.  The first datagram follows the ChannelBind request at once.  That saves a round trip; if the request
is lost or refused, QUIC's loss recovery sends the data again.

One task owns the port (`RelayPort.serve`).  However the port ends, the owner first tries to free the allocation, for
`GOODBYE` seconds at most.  Its paths break with the reason.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Final, final

import trio

from ..errors import StunError, panics_as_errors
from ..nurseries import open_background_nursery
from ..ports.datagrams import Datagram, DatagramHandler
from ..ports.udp import UdpPath
from ..sockaddr import TransportAddress, show_address
from ..stun.codec import looks_like_stun
from .client_core import TurnClientCore, TurnState
from .grants import Grant
from .transport import TurnTransport

__all__ = ["CHECK_INTERVAL", "GOODBYE", "SILENCE", "RelayPort"]

logger: logging.Logger = logging.getLogger(__name__)

GOODBYE: Final = 2.0
"""Seconds to free the allocation: time for two lost requests (RFC 8489 §6.2.1).  An allocation that is not freed counts
against the server's quota for ten minutes."""


SILENCE: Final = 2.0
"""Seconds without a datagram from any peer since one was sent, after which the server is asked whether the allocation
still exists: a restarted server drops all data silently.  An unanswered PING is such a silence."""
CHECK_INTERVAL: Final = 10.0
"""Seconds at least between two such checks, since a peer that is gone causes the same silence."""


@final
# long: a relayed address from the first request to its end, and the datagrams of it
class RelayPort:
    """One allocation; its owner runs `serve` in a task.

    Args:
      core: the TURN client, in its initial state.
      transport: to the server; closed when `serve` ends.
      on_close: called when `serve` ends.
      on_leaving: called once, when the server announces its shutdown.

    Attributes:
      name: the server, for logs and errors.
      local: the relayed address; raises OSError before `wait_allocated`.
      mapped: the relayed address by the server's address, as for a UDP port whose mapping a STUN server reported.
      dropped: datagrams, sent or received, that had no use: no permission or no allocation, no path, no probe.
    """

    def __init__(
        self,
        core: TurnClientCore,
        transport: TurnTransport,
        *,
        name: str,
        on_close: Callable[[RelayPort], None] = lambda _: None,
        on_leaving: Callable[[RelayPort], None] = lambda _: None,
    ) -> None:
        self._core = core
        self._transport = transport
        self._on_close = on_close
        self._on_leaving = on_leaving
        self._told = False  # `on_leaving` was called
        self._paths: dict[TransportAddress, UdpPath] = {}
        self._bound: dict[TransportAddress, Grant] = {}
        self._to_ask_for: set[TransportAddress] = set()
        self._probes: DatagramHandler | None = None
        self._released = False
        self._closed = False
        self._wake = trio.Event()
        self._changed = trio.Event()
        self._scope = trio.CancelScope(shield=True)
        self._unanswered = math.inf  # when the first datagram was sent after the last one received
        self._checked = -math.inf
        self.name: Final = name
        self.dropped: int = 0

    def __repr__(self) -> str:
        where = "no address" if self._core.relayed is None else show_address(self._core.relayed)
        return f"<RelayPort {where} at {self.name}, {len(self._paths)} paths{', closed' if self._closed else ''}>"

    @property
    def local(self) -> TransportAddress:
        if self._core.relayed is None:
            raise OSError(f"{self.name} has given no relayed address yet")
        return self._core.relayed

    @property
    def mapped(self) -> Mapping[TransportAddress, TransportAddress]:
        return {} if self._core.relayed is None else {self._core.server: self._core.relayed}

    @property
    def closed(self) -> bool:
        return self._closed

    @property
    def error(self) -> StunError | None:
        """Why there is no allocation, or none any more; None if nothing failed."""
        return self._core.error

    @property
    def alternate(self) -> TransportAddress | None:
        """The alternate server that this one named (300)."""
        return self._core.alternate

    # -- requests to the server --------------------------------------------------------------------------------------

    def prime(self) -> None:
        """Fetch the server's realm and nonce, so that an allocation takes one round trip later."""
        self._core.prime(trio.current_time())
        self._wake.set()

    async def wait_primed(self) -> None:
        """Prime the server and wait for its answer.

        Raises:
          StunError: it refuses, or does not answer.
          trio.ClosedResourceError: the port was closed.
        """
        self.prime()
        while self._core.state is TurnState.ASKING:
            await self._change()
        self._check_error()

    async def wait_allocated(self) -> None:
        """Request the allocation and wait for it.

        Raises:
          StunError: the server grants none.
          trio.ClosedResourceError: the port was closed.
        """
        self._core.allocate(trio.current_time())
        self._wake.set()
        await trio.lowlevel.checkpoint()
        while self._core.state not in (TurnState.ALLOCATED, TurnState.ENDED) and not self._closed:
            await self._change()
        self._check_error()

    def permit_nowait(self, ips: Iterable[str]) -> list[Grant]:
        """Request permissions for IP addresses, together with the allocation if there is none yet.

        Raises:
          ValueError: there would be more than `warpgate_trio.turn.grants.MAX_GRANTS`.
        """
        grants = [self._core.permit(ip, trio.current_time()) for ip in dict.fromkeys(ips)]
        self._wake.set()
        return grants

    async def wait_settled(self, grants: Iterable[Grant]) -> None:
        """Wait until the server has granted or refused each of them.

        Raises as `wait_allocated` does.
        """
        await trio.lowlevel.checkpoint()
        left = list(grants)
        while not all(grant.settled for grant in left):
            self._check_error()
            await self._change()
        self._check_error()

    def check(self) -> None:
        """Ask the server whether the allocation still exists: a restarted server does not report its loss by itself."""
        self._core.check(trio.current_time())
        self._wake.set()

    async def _change(self) -> None:
        if self._changed.is_set():  # not replaced while others wait for it
            self._changed = trio.Event()
        await self._changed.wait()

    def _check_error(self) -> None:
        if self._core.error is not None:
            raise self._core.error
        if self._closed:
            raise trio.ClosedResourceError("the relay was released")

    # -- datagrams ---------------------------------------------------------------------------------------------------

    async def send(self, datagrams: Iterable[Datagram], *, hops: int | None = None) -> None:
        """See `DatagramPort.send`.  Datagrams of a path wait until its ChannelBind was sent; `hops` is ignored."""
        self._check_open()
        batch = list(datagrams)
        while not self._to_ask_for.isdisjoint(remote for _, remote in batch):
            await self._change()
            self._check_open()
        if self._unanswered == math.inf and self._paths:
            self._unanswered = trio.current_time()
            self._wake.set()
        try:
            await self._transport.send(self._wrapped(batch))
        except trio.BrokenResourceError as error:
            why = self._core.error or f"the connection to {self.name} broke: {error}"
            raise trio.BrokenResourceError(str(why)) from error

    def send_nowait(self, datagrams: Iterable[Datagram]) -> None:
        """Send what can be sent without waiting, and drop the rest.  Never raises."""
        if not self._closed:
            self._transport.send_nowait(self._wrapped(datagrams))

    def _wrapped(self, datagrams: Iterable[Datagram]) -> list[bytes]:
        wrapped = [self._core.wrap(data, remote) for data, remote in datagrams]
        self.dropped += wrapped.count(None)
        return [message for message in wrapped if message is not None]

    def _check_open(self) -> None:
        if self._closed:
            raise trio.ClosedResourceError("the relay was released")

    def listen_for_probes(self, handler: DatagramHandler | None) -> None:
        """See `DatagramPort.listen_for_probes`."""
        self._probes = handler

    def open_path(self, remote: TransportAddress) -> UdpPath:
        """See `DatagramPort.open_path`; ValueError also beyond `warpgate_trio.turn.grants.MAX_GRANTS`."""
        if remote in self._paths:
            raise ValueError(f"there is a path to {remote} already")
        self._check_open()
        if remote not in self._bound:
            self._bound[remote] = self._core.bind(remote, trio.current_time())
            self._to_ask_for.add(remote)
        path = self._paths[remote] = UdpPath(self, remote)
        self._wake.set()
        return path

    def forget(self, path: UdpPath) -> None:
        """A path was closed."""
        if self._paths.get(path.remote) is path:
            del self._paths[path.remote]
        if self._released and not self._paths:
            self._leave("")

    def release(self) -> None:
        """The owner needs it no more: it is freed when its last path is closed, or now if it has none."""
        self._released = True
        if not self._paths:
            self._leave("")

    def close_nowait(self) -> None:
        """Free it now; its paths break.  Idempotent."""
        self._leave("the relay was released")

    def _leave(self, why: str) -> None:
        """Stop relaying; the owner task has `GOODBYE` seconds from now to free the allocation."""
        if self._closed:
            return
        self._closed = True
        self._probes = None
        for path in list(self._paths.values()):
            path.break_off(why or "the relay was released")
        self._core.release(trio.current_time())
        self._scope.deadline = trio.current_time() + GOODBYE
        self._wake.set()
        self._changed.set()

    # -- the owner task ----------------------------------------------------------------------------------------------

    async def serve(self) -> None:
        """Run the port until it has ended.

        It is shielded, because closing messages still go through it when the node is cancelled.  Any exception that a
        server provokes, panics included, ends this relay and nothing else.
        """
        try:
            with self._scope, panics_as_errors():
                async with open_background_nursery() as nursery:
                    nursery.start_soon(self._transport.run)
                    nursery.start_soon(self._receive)
                    await self._drive()
        except Exception as error:
            logger.exception("the relay at %s failed", self.name)
            self._core.fail(StunError(f"{self.name}: unexpected {type(error).__name__}"))
        finally:
            self._leave(str(self._core.error or "the relay was released"))
            with trio.CancelScope(shield=True):
                await self._transport.aclose()
            self._on_close(self)

    async def _drive(self) -> None:
        """Send what the core has to send, and run its timers."""
        while True:
            self._wake = trio.Event()
            asked_for = set(self._to_ask_for)
            self._core.handle_timer(trio.current_time())
            if trio.current_time() >= self._silent_at:
                self._checked = trio.current_time()
                self._core.check(self._checked)
            if messages := self._core.transmit(trio.current_time()):
                try:
                    await self._transport.send(messages)
                except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
                    self._fail(error)
            self._to_ask_for -= asked_for
            self._changed.set()
            if self._core.state is TurnState.ENDED:
                break
            with trio.move_on_at(min(self._core.deadline, self._silent_at)):
                await self._wake.wait()
        if self._core.error is not None:
            logger.info("the relay at %s has ended: %s", self.name, self._core.error)

    @property
    def _silent_at(self) -> float:
        """When the allocation is checked unless a datagram of a peer comes before."""
        return max(self._unanswered + SILENCE, self._checked + CHECK_INTERVAL)

    async def _receive(self) -> None:
        try:
            while True:
                answers: list[Datagram] = []
                messages = await self._transport.receive()
                now = trio.current_time()
                for message in messages:
                    for data, peer in self._core.receive(message, now):
                        answers += self._sort(data, peer)
                self._break_refused()
                self._tell_leaving()
                self._wake.set()
                self._changed.set()
                if answers:
                    await self._transport.send(self._wrapped(answers))
        except (trio.BrokenResourceError, trio.ClosedResourceError, OSError) as error:
            self._fail(error)
        await trio.sleep_forever()  # `_drive` ends and cancels this

    def _break_refused(self) -> None:
        for remote, path in self._paths.items():
            if (error := self._bound[remote].error) not in (None, self._core.error):
                path.break_off(f"no channel to {show_address(remote)}: {error}")

    def _tell_leaving(self) -> None:
        if self._core.leaving and not self._told and not self._closed:
            self._told = True
            logger.info("the relay at %s will be shut down", self.name)
            self._on_leaving(self)

    def _fail(self, error: Exception) -> None:
        self._core.fail(StunError(f"the connection to {self.name} broke: {error}"))
        self._wake.set()

    def _sort(self, data: bytes, peer: TransportAddress) -> Iterable[Datagram]:
        self._unanswered = math.inf
        if self._closed:
            return ()
        if looks_like_stun(data) and self._probes is not None:
            try:
                with panics_as_errors():
                    return list(self._probes(data, peer))
            except Exception:
                logger.warning("%s: a datagram from %s could not be handled", self.name, peer, exc_info=True)
        elif (path := self._paths.get(peer)) is not None:
            path.take(data)
            return ()
        self.dropped += 1
        return ()
