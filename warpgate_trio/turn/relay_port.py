"""A relayed address as a `DatagramPort`: the shell of one `TurnClientCore` over one transport.

It stands where a UDP port stands: races send probes from it and hear them at it, and a path of it carries QUIC, with
the relay's server in between.  A path gets a channel, which makes a full packet of QUIC 1,204 bytes; what is sent
without a path goes by indications.  The first datagram follows the request for the channel without waiting for its
answer, a round trip that QUIC makes good where the request got lost or was refused.

One task owns it (`RelayPort.serve`).  Whatever ends it, a lost server or a `release`, its allocation is freed first,
within `GOODBYE` seconds, and its paths break with the reason.
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
"""Seconds to free the allocation: time for two lost requests (RFC 8489 §6.2.1); without it a server keeps it for ten
minutes, and counts it."""


SILENCE: Final = 2.0
"""Seconds in which something was sent to a peer and nothing came, after which the server is asked whether it still
knows us: a restarted one swallows all data without a word.  A PING that stays out is such a silence."""
CHECK_INTERVAL: Final = 10.0
"""Seconds from one such question to the next: a peer that is gone is silent for as long."""


@final
# long: a relayed address from the first question to its end, and what passes by it
class RelayPort:
    """One allocation; whoever has it runs `serve` in a task.

    Args:
      on_close: told of its end.
      on_leaving: told when its server will be shut down before long.

    Attributes:
      name: the server as people know it.
      local: the relayed address; OSError before `wait_allocated`.
      mapped: the same, by server: where a peer meets it.
      dropped: datagrams that belonged to nobody.
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
        self._told = False  # that the server leaves
        self._paths: dict[TransportAddress, UdpPath] = {}
        self._bound: dict[TransportAddress, Grant] = {}
        self._to_ask_for: set[TransportAddress] = set()
        self._probes: DatagramHandler | None = None
        self._released = False
        self._closed = False
        self._wake = trio.Event()
        self._changed = trio.Event()
        self._scope = trio.CancelScope(shield=True)
        self._unanswered = math.inf  # when the first datagram went out after the last that came in
        self._checked = -math.inf
        self.name: Final = name
        self.dropped: int = 0

    def __repr__(self) -> str:
        where = "no address" if self._core.relayed is None else show_address(self._core.relayed)
        return f"<RelayPort {where} at {self.name}, {len(self._paths)} paths{', closed' if self._closed else ''}>"

    @property
    def local(self) -> TransportAddress:
        if self._core.relayed is None:
            raise OSError(f"{self.name} has given no address yet")
        return self._core.relayed

    @property
    def mapped(self) -> Mapping[TransportAddress, TransportAddress]:
        return {} if self._core.relayed is None else {self._core.server: self._core.relayed}

    @property
    def closed(self) -> bool:
        return self._closed

    @property
    def error(self) -> StunError | None:
        """Why the server gives nothing, or no more."""
        return self._core.error

    @property
    def alternate(self) -> TransportAddress | None:
        """The server that this one named in its place."""
        return self._core.alternate

    # -- what is wanted of the server --------------------------------------------------------------------------------

    def prime(self) -> None:
        """Have the server say what it wants, so that an allocation takes one round trip later."""
        self._core.prime(trio.current_time())
        self._wake.set()

    async def wait_primed(self) -> None:
        """Wait until the server has said what it wants.

        Raises:
          StunError: it does not want us, or is not there.
        """
        self.prime()
        while self._core.state is TurnState.ASKING:
            await self._change()
        self._check_error()

    async def wait_allocated(self) -> None:
        """Get the relayed address.

        Raises:
          StunError: the server gives none.
          trio.ClosedResourceError: the port was closed.
        """
        self._core.allocate(trio.current_time())
        self._wake.set()
        await trio.lowlevel.checkpoint()
        while self._core.state not in (TurnState.ALLOCATED, TurnState.ENDED) and not self._closed:
            await self._change()
        self._check_error()

    def permit_nowait(self, ips: Iterable[str]) -> list[Grant]:
        """Let addresses in, at any port; together with the allocation, where that is not there yet."""
        grants = [self._core.permit(ip, trio.current_time()) for ip in dict.fromkeys(ips)]
        self._wake.set()
        return grants

    async def wait_settled(self, grants: Iterable[Grant]) -> None:
        """Wait until the server has said yes or no to each.

        Raises as `wait_allocated` does.
        """
        await trio.lowlevel.checkpoint()
        left = list(grants)
        while not all(grant.settled for grant in left):
            self._check_error()
            await self._change()
        self._check_error()

    def check(self) -> None:
        """Ask the server whether the allocation still stands: a server that was restarted does not say so by itself."""
        self._core.check(trio.current_time())
        self._wake.set()

    async def _change(self) -> None:
        if self._changed.is_set():  # several may wait for it at once
            self._changed = trio.Event()
        await self._changed.wait()

    def _check_error(self) -> None:
        if self._core.error is not None:
            raise self._core.error
        if self._closed:
            raise trio.ClosedResourceError("the relay was released")

    # -- datagrams ---------------------------------------------------------------------------------------------------

    async def send(self, datagrams: Iterable[Datagram], *, hops: int | None = None) -> None:
        """See `DatagramPort.send`; behind the request for a path's channel.  `hops` mean nothing here."""
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
        """Send what goes without waiting; the rest is dropped.  Never raises."""
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
        """Its owner needs it no more: it is freed with its last path, or now."""
        self._released = True
        if not self._paths:
            self._leave("")

    def close_nowait(self) -> None:
        """Free it now; what stands on it breaks.  Idempotent."""
        self._leave("the relay was released")

    def _leave(self, why: str) -> None:
        """From here on nothing is relayed, and the owner task has `GOODBYE` seconds to free the allocation."""
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
        """Drive it until it has ended; shielded, since goodbyes still need it when a node is cancelled.

        Whatever a server makes us raise, panics included, ends this relay and nothing else.
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
        """Send what is due, and keep its timers."""
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
        """When the server is to be asked, if nothing comes until then."""
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
        await trio.sleep_forever()  # the driver ends first

    def _break_refused(self) -> None:
        for remote, path in self._paths.items():
            if (error := self._bound[remote].error) not in (None, self._core.error):
                path.break_off(f"no way to {show_address(remote)}: {error}")

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
                logger.warning("%s: a datagram from %s was not understood", self.name, peer, exc_info=True)
        elif (path := self._paths.get(peer)) is not None:
            path.take(data)
            return ()
        self.dropped += 1
        return ()
