"""The mailboxes by which a rendezvous server lets two nodes pair: offers, claims and their messages.  No I/O.

`mailbox_frames` has the frames.  A mailbox belongs to one offer.  It has a *nameplate*, the smallest free number unless
the client asks for another one, and the offerer's connection.  It exists until its lifetime is over, its code was used,
or three tries were wrong.  After that its number is remembered for a while together with the reason.  A late claimer
then learns the reason, and does not try an old code on somebody else's offer.

An offerer whose connection has ended may return to the mailbox with the same key within the lifetime.  The tries that
were under way have ended, and in between nobody can claim.

`claim_rates` limits the tries of a network.  A `Budget` limits how many offers an address may have, and
`SubscriberRates` how often it may make one.  The latter protects the memory of ended offers: offers that end at once
are remembered too, and must not push out those of others.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final, NamedTuple, TypeAlias, final

from ..limits import BoundedMap, Budget, SubscriberRates
from .claim_rates import ClaimRates
from .mailbox_frames import Claim, Claimed, Offer, Offered, Outcome, Post, Settle
from .server_connection import ServerConnection

__all__ = ["Delivery", "Mailboxes", "PairingFrame", "PairingStatistics"]

MAX_OFFERS: Final = 4096
"""Mailboxes at a time, at about 500 bytes each; one /48 or IPv4 /24 gets half of what is free at most."""
OFFERS_PER_ADDRESS: Final = 16
"""Mailboxes of one IPv4 address or IPv6 /64."""
OFFERS_PER_SECOND: Final = 0.2
"""Offers per second of one IPv4 address or IPv6 /64, after a burst of `OFFERS_PER_ADDRESS`.  A /48 may make 16 times as
many: within `SPENT_MEMORY` seconds that is half of `MAX_OFFERS`."""
MAX_LIFETIME: Final = 300
"""Seconds for which a code is valid at most: enough to read it out on a telephone."""
SPENT_MEMORY: Final = 600.0
"""Seconds for which the end of an offer is remembered, and its number not assigned again."""
WRONG_TRIES: Final = 3
"""Wrong tries that end an offer; one or two of them may be typing errors."""
TRIES_AT_ONCE: Final = 4
"""Tries of one offer that may be under way at a time."""
TRY_TIME: Final = 20.0
"""Seconds for a try, which takes two round trips between the two nodes: enough for bad links and busy hosts."""
POSTS_PER_TRY: Final = 4
"""POSTs from each side of a try; a pairing needs one and two."""

_SAID: Final[dict[int, Outcome]] = {
    Outcome.PAIRED: Outcome.USED,
    Outcome.EXPIRED: Outcome.EXPIRED,
    Outcome.SPENT: Outcome.SPENT,
}
# The outcomes by which an offerer may end its offer, and what the server remembers for each.

PairingFrame: TypeAlias = Offer | Claim | Post | Settle
"""The pairing frames that clients send."""


class Delivery(NamedTuple):
    """A frame for another connection; `host`: the IP address that it counts for."""

    receiver: ServerConnection
    frame: bytes
    host: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PairingStatistics:
    """Counts of the open offers, and of tries so far by their outcome."""

    offers: int
    claims: int
    paired: int
    wrong: int
    waits: int


@final
class _Try:
    """One claim of an offer."""

    __slots__ = ("claimer", "ends", "from_claimer", "from_offerer", "host")

    def __init__(self, claimer: ServerConnection, ends: float) -> None:
        self.claimer: ServerConnection | None = claimer
        self.host: Final = claimer.host
        self.ends: Final = ends
        self.from_claimer = 0
        self.from_offerer = 0


@final
class _Mailbox:
    """One offer; `offerer` is None while the offerer is not connected."""

    __slots__ = ("ends", "host", "key", "made", "nameplate", "offerer", "tries", "wrong")

    def __init__(self, nameplate: int, offerer: ServerConnection, key: bytes, ends: float) -> None:
        self.nameplate: Final = nameplate
        self.key: Final = key
        self.host: Final = offerer.host
        self.ends: Final = ends
        self.offerer: ServerConnection | None = offerer
        self.tries: dict[int, _Try] = {}
        self.made = 0
        self.wrong = 0

    @property
    def deadline(self) -> float:
        return min((each.ends for each in self.tries.values()), default=self.ends)


@final
class Mailboxes:
    """All mailboxes of one server.

    Methods take `now` in monotonic seconds, and return the frames for other connections.  `receive` also returns the
    answer to its own connection.
    """

    def __init__(self) -> None:
        self._open: dict[int, _Mailbox] = {}
        self._offering: dict[ServerConnection, _Mailbox] = {}
        self._claiming: dict[ServerConnection, tuple[_Mailbox, int]] = {}
        self._over: BoundedMap[int, tuple[Outcome, float]] = BoundedMap(MAX_OFFERS)
        self._room = Budget(total=MAX_OFFERS, per_address=OFFERS_PER_ADDRESS)
        self._offers = SubscriberRates(OFFERS_PER_SECOND, OFFERS_PER_ADDRESS, MAX_OFFERS)
        self._rates = ClaimRates()
        self._next_end = math.inf
        self._claims = self._paired = self._wrong = self._waits = 0

    def statistics(self) -> PairingStatistics:
        return PairingStatistics(
            offers=len(self._open), claims=self._claims, paired=self._paired, wrong=self._wrong, waits=self._waits
        )

    def receive(
        self, connection: ServerConnection, frame: PairingFrame, now: float
    ) -> tuple[bytes | None, list[Delivery]]:
        """Process a frame of a registered client; returns the answer, and the frames for other connections."""
        self._end_expired(now)
        if isinstance(frame, Offer):
            return self._offer(connection, frame, now).encode(), []
        if isinstance(frame, Claim):
            return self._claim(connection, frame, now)
        if isinstance(frame, Post):
            return None, self._post(connection, frame)
        return None, self._settle(connection, frame, now)

    def left(self, connection: ServerConnection, now: float) -> list[Delivery]:
        """A connection has ended.  Its offer is kept for its lifetime, as the offerer may return.  Idempotent."""
        claim = self._claiming.pop(connection, None)
        if claim is not None:
            return self._claimer_left(*claim, now)
        mailbox = self._offering.pop(connection, None)
        if mailbox is None:
            return []
        mailbox.offerer = None
        return self._end_tries(mailbox, Outcome.AWAY, now)

    def deadline(self, connection: ServerConnection) -> float:
        """When `handle_timer` is to be called for a connection."""
        if connection in self._claiming:
            mailbox, number = self._claiming[connection]
            return mailbox.tries[number].ends
        return self._offering[connection].deadline if connection in self._offering else math.inf

    def handle_timer(self, connection: ServerConnection, now: float) -> list[Delivery]:
        """End this connection's offer if its lifetime is over, and tries for it or by it that took too long."""
        claim = self._claiming.get(connection)
        if claim is not None and claim[0].tries[claim[1]].ends <= now:
            return self._end_try(*claim, Outcome.SLOW, now, both=True)
        mailbox = self._offering.get(connection)
        if mailbox is None:
            return []
        if mailbox.ends <= now:
            return self._end(mailbox, Outcome.EXPIRED, now)
        late = [number for number, each in mailbox.tries.items() if each.ends <= now]
        return [told for number in late for told in self._end_try(mailbox, number, Outcome.SLOW, now, both=True)]

    # -- offers --------------------------------------------------------------------------------------------------------

    def _offer(self, connection: ServerConnection, frame: Offer, now: float) -> Offered | Settle:
        if connection.pairs or connection.key is None:
            return Settle(0, Outcome.TOO_MANY)
        own = self._open.get(frame.nameplate)
        if own is not None and own.key == connection.key:
            if own.offerer is not None:  # the old connection, whose end was not noticed yet
                del self._offering[own.offerer]
                self._end_tries(own, Outcome.AWAY, now)
            own.offerer = connection
            connection.pairs = True
            self._offering[connection] = own
            return Offered(own.nameplate, max(1, math.ceil(own.ends - now)))
        if frame.nameplate and (own is not None or frame.nameplate in self._over):
            return Settle(0, Outcome.TAKEN)
        if not self._offers.take(connection.host, now) or not self._room.take(connection.host, 1):
            return Settle(0, Outcome.TOO_MANY)
        connection.pairs = True
        lifetime = min(max(frame.lifetime, 1), MAX_LIFETIME)
        mailbox = _Mailbox(frame.nameplate or self._free_number(), connection, connection.key, now + lifetime)
        self._open[mailbox.nameplate] = self._offering[connection] = mailbox
        self._next_end = min(self._next_end, mailbox.ends)
        return Offered(mailbox.nameplate, lifetime)

    def _free_number(self) -> int:
        number = 1
        while number in self._open or number in self._over:
            number += 1
        return number

    def _end_expired(self, now: float) -> None:
        """Forget expired offers whose offerer is not connected, and ended offers after `SPENT_MEMORY`.

        Offers of connected clients are ended by `handle_timer`.
        """
        self._over.forget_while(lambda over: now - over[1] >= SPENT_MEMORY)
        if self._next_end <= now:
            for mailbox in [each for each in self._open.values() if each.ends <= now and each.offerer is None]:
                self._end(mailbox, Outcome.EXPIRED, now)
            self._next_end = min((each.ends for each in self._open.values() if each.ends > now), default=math.inf)

    def _end(self, mailbox: _Mailbox, why: Outcome, now: float) -> list[Delivery]:
        """End an offer; the offerer and all claimers receive a SETTLE."""
        told = self._end_tries(mailbox, why, now)
        del self._open[mailbox.nameplate]
        self._over.put(mailbox.nameplate, (why, now))
        self._room.give_back(mailbox.host, 1)
        if mailbox.offerer is not None:
            del self._offering[mailbox.offerer]
            told.append(Delivery(mailbox.offerer, Settle(0, why).encode(), mailbox.host))
        return told

    # -- tries ---------------------------------------------------------------------------------------------------------

    def _claim(self, connection: ServerConnection, frame: Claim, now: float) -> tuple[bytes | None, list[Delivery]]:
        if connection.pairs:
            return Settle(0, Outcome.BUSY).encode(), []
        wait = self._rates.begin(connection.host, now)
        if wait > 0:
            self._waits += 1
            return Settle(0, Outcome.WAIT, math.ceil(wait)).encode(), []
        self._claims += 1
        mailbox = self._open.get(frame.nameplate)
        refusal = self._refusal(mailbox, frame.nameplate, now)
        if mailbox is None or mailbox.offerer is None or refusal is not None:
            self._rates.end(connection.host, now)
            return Settle(0, refusal or Outcome.UNKNOWN).encode(), []
        connection.pairs = True
        mailbox.made += 1
        mailbox.tries[mailbox.made] = _Try(connection, min(now + TRY_TIME, mailbox.ends))
        self._claiming[connection] = mailbox, mailbox.made
        return None, [Delivery(mailbox.offerer, Claimed(mailbox.made, frame.payload).encode(), connection.host)]

    def _refusal(self, mailbox: _Mailbox | None, nameplate: int, now: float) -> Outcome | None:
        if mailbox is None:
            over = self._over.get(nameplate)
            return Outcome.UNKNOWN if over is None else over[0]
        if mailbox.ends <= now:
            return Outcome.EXPIRED
        if mailbox.offerer is None:
            return Outcome.AWAY
        return Outcome.BUSY if len(mailbox.tries) >= TRIES_AT_ONCE else None

    def _post(self, connection: ServerConnection, frame: Post) -> list[Delivery]:
        claim = self._claiming.get(connection)
        if claim is not None:
            mailbox, number = claim
            tried = mailbox.tries[number]
            if frame.number != 0 or mailbox.offerer is None or tried.from_claimer >= POSTS_PER_TRY:
                return []
            tried.from_claimer += 1
            return [Delivery(mailbox.offerer, Post(number, frame.payload).encode(), connection.host)]
        offered = self._offering.get(connection)
        found = None if offered is None else offered.tries.get(frame.number)
        if found is None or found.claimer is None or found.from_offerer >= POSTS_PER_TRY:
            return []
        found.from_offerer += 1
        return [Delivery(found.claimer, Post(0, frame.payload).encode(), connection.host)]

    def _settle(self, connection: ServerConnection, frame: Settle, now: float) -> list[Delivery]:
        claim = self._claiming.pop(connection, None)
        if claim is not None:
            return self._claimer_left(*claim, now)
        mailbox = self._offering.get(connection)
        if mailbox is None:
            return []
        if frame.number == 0:
            return self._end(mailbox, _SAID.get(frame.outcome, Outcome.LEFT), now)
        if frame.number not in mailbox.tries:
            return []
        if frame.outcome == Outcome.PAIRED:
            self._paired += 1
            told = self._end_try(mailbox, frame.number, Outcome.PAIRED, now)
            return told + self._end(mailbox, Outcome.USED, now)
        if frame.outcome == Outcome.WRONG:
            self._wrong += 1
            mailbox.wrong += 1
            told = self._end_try(mailbox, frame.number, Outcome.WRONG, now)
            return told if mailbox.wrong < WRONG_TRIES else told + self._end(mailbox, Outcome.SPENT, now)
        why = Outcome.OWN_KEY if frame.outcome == Outcome.OWN_KEY else Outcome.LEFT
        return self._end_try(mailbox, frame.number, why, now)

    def _claimer_left(self, mailbox: _Mailbox, number: int, now: float) -> list[Delivery]:
        """A claimer has left.  A proof that it has posted may be wrong, so the try then lasts until it is judged or
        late.
        """
        tried = mailbox.tries[number]
        tried.claimer = None
        if tried.from_claimer:
            return []
        return self._end_try(mailbox, number, Outcome.LEFT, now, both=True)

    def _end_tries(self, mailbox: _Mailbox, why: Outcome, now: float) -> list[Delivery]:
        return [told for number in list(mailbox.tries) for told in self._end_try(mailbox, number, why, now)]

    def _end_try(
        self, mailbox: _Mailbox, number: int, why: Outcome, now: float, *, both: bool = False
    ) -> list[Delivery]:
        """End a try; its claimer receives a SETTLE, and with `both` the offerer too."""
        tried = mailbox.tries.pop(number)
        # A proof that was not judged before the time was over counts as wrong, as a late verdict is ignored.
        unjudged = tried.from_claimer > 0 and why in (Outcome.SLOW, Outcome.EXPIRED)
        self._rates.end(tried.host, now, paired=why is Outcome.PAIRED, wrong=unjudged or why is Outcome.WRONG)
        told: list[Delivery] = []
        if tried.claimer is not None:
            self._claiming.pop(tried.claimer, None)
            told.append(Delivery(tried.claimer, Settle(0, why).encode(), tried.host))
        if both and mailbox.offerer is not None:
            told.append(Delivery(mailbox.offerer, Settle(number, why).encode(), tried.host))
        return told
