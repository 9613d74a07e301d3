"""Keeps the mappings of one address of ours at its gateway: finds out what it speaks, asks, renews, and deletes.

All protocols are looked for at once, for as long as none has answered again and again.  The first to answer is asked
for the mappings, or those that have answered a moment later and are preferred; where one refuses, the next is asked.
One that does not answer any more, or is not where it was found, is looked for again, and what it gave is its new
place's to renew and to delete: routers have their UPnP service at another port after each start.

A protocol that is found is asked at once for what is missing or may be lost, as long as it has given something since
it was found last, or was never found.  Else a router that answers searches, and no requests, would be asked in a loop;
so it is when the lease's own pause is over.

**What may stand at the gateway is written down before it is asked for** (`_claims`), and deleted at the end, also when
the task is cancelled while it waits for an answer.  That takes at most `goodbye` seconds; what a gateway does not hear
then ends with its lifetime.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final, final

import trio

from ..errors import PortMapError, PortMapRefused, PortMapTimeout
from .client import PROTOCOLS, Claim, Client, Conflict, Denied, Gone, Grant, ProtocolName
from .lease import CHECK_INTERVAL, LIFETIME, SOONEST, Lease, Step

__all__ = ["Keeper", "Kept"]

logger: logging.Logger = logging.getLogger(__name__)

GRACE: Final = 0.25
"""Seconds after the first answer in which a protocol that is preferred may still come in."""

_LOST: Final = (PortMapTimeout, Gone)
"""What a client raises that is to be looked for again."""

Find = Callable[[], Awaitable[Client]]


@final
@dataclass(eq=False, slots=True)
class Kept:
    """One mapping that is wanted, and who gives it.

    Attributes:
      protocol: by which it was given.
      problem: why there is none now, in one sentence.
      wake: set when something may have changed.
    """

    lease: Lease
    protocol: ProtocolName | None = None
    problem: str | None = None
    wake: trio.Event = field(default_factory=trio.Event)


@final
class Keeper:
    """See the module's page.

    Args:
      find: how each protocol's client is found; raises `PortMapError` or OSError where there is none now.
      leases: what is wanted.
      listen: runs beside, and calls `announced` when the gateway has something to say; may end.
      goodbye: seconds that deleting may take.

    Attributes:
      clients: what answers, by protocol.
      problems: by protocol, why it does not work.
      kept: the mappings.
      settled: set when each mapping is there or was refused, or nothing answers.
    """

    def __init__(
        self,
        find: Mapping[ProtocolName, Find],
        leases: Iterable[Lease],
        *,
        listen: Callable[[Callable[[], None]], Awaitable[None]] | None = None,
        goodbye: float,
    ) -> None:
        self.clients: Final[dict[ProtocolName, Client]] = {}
        self.problems: Final[dict[ProtocolName, str]] = {}
        self.kept: Final = [Kept(lease) for lease in leases]
        self._find = find
        self._listen = listen
        self._goodbye = goodbye
        self._claims: dict[tuple[ProtocolName, Claim], None] = {}
        self._last: dict[ProtocolName, Client] = {}  # where each was found last; it may not answer any more
        self._prompt = set(find)  # those that are asked at once when they are found
        self._found = trio.Event()
        self._missing: dict[ProtocolName, trio.Event] = {name: trio.Event() for name in find}
        self._looks_at = -math.inf
        self.settled: Final = trio.Event()

    async def run(self) -> None:
        """Keep the mappings until cancelled."""
        try:
            async with trio.open_nursery() as nursery:
                for name in self._find:
                    nursery.start_soon(self._look_for, name)
                if self._listen is not None:
                    nursery.start_soon(self._listen, self.announced)
                for kept in self.kept:
                    nursery.start_soon(self._keep, kept)
        finally:
            with trio.move_on_after(self._goodbye, shield=True):
                await self._delete_all()

    def announced(self) -> None:
        """The gateway, or somebody in its name, says that something has changed: look at all mappings.

        Once in `SOONEST`, since anybody in the network can say so; what is said sooner is looked at later.
        """
        now = trio.current_time()
        if self._looks_at <= now:
            self._looks_at = max(now, self._looks_at + SOONEST)
            for kept in self.kept:
                kept.lease.look_again(self._looks_at)
                kept.wake.set()

    # -- the gateway -------------------------------------------------------------------------------------------------

    async def _look_for(self, name: ProtocolName) -> None:
        while True:
            try:
                client = await self._find[name]()
            except (PortMapError, OSError) as error:
                self.problems[name] = str(error)
                if len(self.problems) == len(self._find):
                    self.settled.set()
                self._missing[name] = trio.Event()
                with trio.move_on_after(CHECK_INTERVAL):
                    await self._missing[name].wait()
                continue
            self.problems.pop(name, None)
            self.clients[name] = self._last[name] = client
            self._found.set()
            if name in self._prompt:
                self._prompt.remove(name)
                self._ask_at_once(name)
            self._missing[name] = trio.Event()
            await self._missing[name].wait()

    def _ask_at_once(self, name: ProtocolName) -> None:
        """For what nobody has given, and what the gateway may have forgotten since it was found last."""
        for kept in self.kept:
            if kept.protocol in (None, name):
                kept.lease.look_again(trio.current_time())
                kept.wake.set()

    def _lose(self, client: Client) -> None:
        """It is not there any more: look for it again, if that was not done since."""
        name = client.protocol
        if self._last[name] is client:
            self.clients.pop(name, None)
            self.problems[name] = "does not answer any more"
            self._missing[name].set()

    # -- the mappings ------------------------------------------------------------------------------------------------

    async def _keep(self, kept: Kept) -> None:
        await self._found.wait()
        await trio.sleep(GRACE)  # nothing tells that no other protocol is going to answer
        while True:
            kept.wake = trio.Event()
            with trio.move_on_at(kept.lease.deadline):
                await kept.wake.wait()
            if trio.current_time() < kept.lease.deadline:
                continue
            match kept.lease.step:
                case Step.MAP:
                    await self._map(kept)
                case Step.RENEW:
                    await self._renew(kept)
                case Step.CHECK:
                    await self._check(kept)
            if all(each.lease.deadline > trio.current_time() for each in self.kept):
                self.settled.set()

    async def _map(self, kept: Kept) -> None:
        """Ask one protocol after the other."""
        kept.protocol, conflict, denied = None, False, False
        for name in PROTOCOLS:
            client = self.clients.get(name)
            if client is None:
                continue
            try:
                grant = await self._ask(client, kept.lease.claim)
            except (PortMapError, OSError) as error:
                kept.problem = str(error)
                conflict = conflict or isinstance(error, Conflict)
                denied = denied or isinstance(error, Denied)
                if isinstance(error, Conflict):  # it speaks, and another port may do
                    break
                continue
            self._granted(kept, name, grant)
            return
        if kept.problem is not None and denied:
            logger.warning("the router has to be told to let this machine open ports: %s", kept.problem)
        kept.lease.failed(trio.current_time(), conflict=conflict, denied=denied)

    async def _renew(self, kept: Kept) -> None:
        assert kept.protocol is not None
        client = self._last[kept.protocol]
        try:
            grant = await self._ask(client, kept.lease.claim)
        except (PortMapError, OSError) as error:
            kept.problem = str(error)
            kept.lease.failed(trio.current_time(), conflict=isinstance(error, Conflict))
        else:
            self._granted(kept, kept.protocol, grant)

    async def _check(self, kept: Kept) -> None:
        grant = kept.lease.grant
        assert kept.protocol is not None
        assert grant is not None
        client = self._last[kept.protocol]
        try:
            found = await client.check(grant)
        except (PortMapError, OSError) as error:
            kept.problem = str(error)
            if isinstance(error, _LOST):
                self._lose(client)
            kept.lease.failed(trio.current_time())
            return
        now = trio.current_time()
        if not found.stands:
            logger.info("the gateway has forgotten a mapping: it is asked for again")
            for each in self.kept:  # it told of its restart once
                if each.protocol == kept.protocol and each is not kept:
                    each.lease.lost(now)
                    each.wake.set()
        kept.lease.checked(found, now)

    async def _ask(self, client: Client, claim: Claim) -> Grant:
        """Ask for a mapping, which may stand from before the question on."""
        name = client.protocol
        may_stand = (name, claim) in self._claims
        self._claims[name, claim] = None
        try:
            return await client.map(claim, LIFETIME)
        except _LOST:
            self._lose(client)
            raise
        except PortMapRefused as error:
            granted = any(
                each.protocol == name and each.lease.claim == claim and each.lease.grant for each in self.kept
            )
            if not (granted or may_stand) or (isinstance(error, Conflict) and not granted):
                self._claims.pop((name, claim), None)  # nothing of it stands, or it is somebody else's now
            raise

    def _granted(self, kept: Kept, name: ProtocolName, grant: Grant) -> None:
        self._claims.pop((name, kept.lease.claim), None)
        kept.protocol, kept.problem = name, None
        kept.lease.granted(grant, trio.current_time())
        self._claims[name, kept.lease.claim] = None
        self._prompt.add(name)
        logger.info(
            "%s port %d is open as port %d for %s s, by %s",
            grant.claim.transport.name,
            grant.claim.internal,
            grant.external,
            grant.lifetime or "all",
            name,
        )

    async def _delete_all(self) -> None:
        async with trio.open_nursery() as nursery:
            for name, claim in list(self._claims):
                nursery.start_soon(self._delete, name, claim)

    async def _delete(self, name: ProtocolName, claim: Claim) -> None:
        try:
            await self._last[name].unmap(claim)
        except (PortMapError, OSError) as error:
            logger.info("a mapping stays until its lifetime is over: %s", error)
        else:
            self._claims.pop((name, claim), None)
