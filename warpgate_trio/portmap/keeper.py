"""Keeps the mappings of one local address at its gateway: finds the gateway's protocols, requests, renews, and deletes.

All protocols are searched for at the same time, and a missing one again every `CHECK_INTERVAL`.  `GRACE` seconds after
the first answer, the most preferred protocol that has answered is asked for the mappings.  If it refuses, the next one
is asked.  A protocol that no longer answers, or is not where it was found, is searched for again.  Its mappings are
then renewed and deleted at the new place: routers offer UPnP at another port after each restart.

When a protocol is found, it is asked at once for mappings that are missing or may be lost.  This applies when it is
found for the first time, or has given a mapping since it was last found.  Otherwise the requests wait for the pause of
the lease.  So a router that answers searches but no requests is not asked in a loop.

**A mapping is recorded before it is requested** (`_claims`), since it may exist at the gateway from then on.  All
recorded mappings are deleted at the end, also when the task is cancelled while it waits for an answer.  That takes at
most `goodbye` seconds.  A mapping whose deletion does not reach the gateway ends with its lifetime.
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
"""Seconds after the first answer in which a more preferred protocol may still answer."""

_LOST: Final = (PortMapTimeout, Gone)
"""Errors after which a client is searched for again."""

Find = Callable[[], Awaitable[Client]]


@final
@dataclass(eq=False, slots=True)
class Kept:
    """One wanted mapping, and the protocol that provides it.

    Attributes:
      protocol: the protocol that has given the mapping.
      problem: the last failure, in one sentence; None after a success.
      wake: set when something may have changed.
    """

    lease: Lease
    protocol: ProtocolName | None = None
    problem: str | None = None
    wake: trio.Event = field(default_factory=trio.Event)


@final
class Keeper:
    """Keeps the mappings of one local address; see the module's docstring.

    Args:
      find: by protocol, a function that finds its client; raises `PortMapError` or OSError where there is none now.
      leases: the wanted mappings.
      listen: runs in the background, and calls `announced` when the gateway announces a change; may return.
      goodbye: seconds that deleting may take.

    Attributes:
      clients: by protocol, the clients of those that answer.
      problems: by protocol, why it does not work.
      kept: the mappings.
      settled: set when each mapping was made or refused, or no protocol answers.
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
        self._last: dict[ProtocolName, Client] = {}  # the client that was last found; it may no longer answer
        self._prompt = set(find)  # protocols that are asked at once when they are found
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
        """Check all mappings, since the gateway, or somebody in its name, says that something has changed.

        Checks happen once in `SOONEST` seconds at most, since any host in the network can send announcements.  An
        earlier announcement is checked when that time is over.
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
        """Ask for mappings that are missing, and for those of this protocol, which the gateway may have lost."""
        for kept in self.kept:
            if kept.protocol in (None, name):
                kept.lease.look_again(trio.current_time())
                kept.wake.set()

    def _lose(self, client: Client) -> None:
        """Search for a client's protocol again, unless another client of it was found since."""
        name = client.protocol
        if self._last[name] is client:
            self.clients.pop(name, None)
            self.problems[name] = "no longer answers"
            self._missing[name].set()

    # -- the mappings ------------------------------------------------------------------------------------------------

    async def _keep(self, kept: Kept) -> None:
        await self._found.wait()
        await trio.sleep(GRACE)  # another protocol may still answer
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
        """Ask one protocol after another until one makes the mapping."""
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
                if isinstance(error, Conflict):  # the protocol works, and another port may be free
                    break
                continue
            self._granted(kept, name, grant)
            return
        if kept.problem is not None and denied:
            logger.warning(
                "the router does not let this host open ports; allow it in the router's settings: %s", kept.problem
            )
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
            logger.info("the gateway has lost a mapping; requesting it again")
            for each in self.kept:  # the epoch shows a restart only once
                if each.protocol == kept.protocol and each is not kept:
                    each.lease.lost(now)
                    each.wake.set()
        kept.lease.checked(found, now)

    async def _ask(self, client: Client, claim: Claim) -> Grant:
        """Ask for a mapping, and record it before, since it may exist from the request on."""
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
                self._claims.pop((name, claim), None)  # it does not exist, or another host has the port
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
            logger.info("a mapping could not be deleted, and stays until its lifetime ends: %s", error)
        else:
            self._claims.pop((name, claim), None)
