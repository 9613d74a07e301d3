"""The state machine of one offered code, which counts its tries at all servers together.  No I/O.

An offer is over when a claimer has proven that it knows the code, when three proofs were wrong, or after `MAX_TRIES`
claims.  A claimer that sends no proof has learned nothing, so its try does not count as wrong.  A rendezvous server
bounds the number of such claims; a broker does not, so the offer bounds them as well.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Final, TypeAlias, final

from ..errors import CodeRefused, RemoteProtocolError
from ..servers.mailbox_frames import Claimed, Outcome, Post, Settle
from ..servers.mailboxes import TRIES_AT_ONCE, TRY_TIME, WRONG_TRIES
from .code import Code
from .handshake import Offerer, Paired, Us
from .mailbox import FromServer

__all__ = ["OfferCore"]

MAX_TRIES: Final = 64
"""Claims of one code in all, each of which costs 11 ms of key exchange."""

_Try: TypeAlias = tuple[str, int]


@final
class OfferCore:
    """One offer.  `receive` takes a server's frame, and returns the frames to send to that server.

    Attributes:
      code: as it was given.
      outcome: how the offer ended: `Outcome.PAIRED`, `Outcome.SPENT`, or the argument of `end`; None while it goes on.
      paired: the peer that has paired, if one has.
      wrong: the number of wrong tries.
    """

    def __init__(self, code: Code, us: Us) -> None:
        self.code: Final = code
        self._us: Final = us
        self._tries: OrderedDict[_Try, tuple[Offerer, float]] = OrderedDict()
        self._made = 0
        self.outcome: Outcome | None = None
        self.paired: Paired | None = None
        self.wrong: int = 0

    @property
    def why(self) -> str:
        """Why the offer is over, as the end of a sentence; call it only when it is."""
        assert self.outcome is not None
        if self._made > MAX_TRIES:
            return f"the code is void, because it was tried more than {MAX_TRIES} times"
        return "the code is no longer offered" if self.outcome is Outcome.LEFT else self.outcome.words

    def receive(self, server: str, frame: FromServer, now: float) -> list[Post | Settle]:
        """Take a server's frame about a try.  `now` is in monotonic seconds."""
        if isinstance(frame, Claimed):
            return self._claimed((server, frame.number), frame.payload, now)
        if isinstance(frame, Post):
            return self._posted((server, frame.number), frame.payload, now)
        if isinstance(frame, Settle):
            self._tries.pop((server, frame.number), None)
        return []

    def forget(self, server: str) -> None:
        """The connection to a server has ended, and so have its tries."""
        for each in [each for each in self._tries if each[0] == server]:
            del self._tries[each]

    def end(self, outcome: Outcome) -> None:
        """End the offer, unless it is over already."""
        self.outcome = self.outcome or outcome
        self._tries.clear()

    def _claimed(self, key: _Try, hello: bytes, now: float) -> list[Post | Settle]:
        while self._tries and now - next(iter(self._tries.values()))[1] >= TRY_TIME:
            self._tries.popitem(last=False)
        if self.outcome is not None:
            return [Settle(key[1], Outcome.USED)]
        if key in self._tries or sum(each[0] == key[0] for each in self._tries) >= TRIES_AT_ONCE:
            return [Settle(key[1], Outcome.BUSY)]
        self._made += 1
        if self._made > MAX_TRIES:
            self.end(Outcome.SPENT)
            return [Settle(key[1], Outcome.SPENT)]
        offerer = Offerer(self.code, self._us)
        try:
            reply = offerer.receive(hello)
        except RemoteProtocolError:
            return [Settle(key[1], Outcome.LEFT)]
        assert isinstance(reply, bytes), "nobody has proven anything yet"
        self._tries[key] = offerer, now
        return [Post(key[1], reply)]

    def _posted(self, key: _Try, proof: bytes, now: float) -> list[Post | Settle]:
        offerer, since = self._tries.pop(key, (None, now))
        if offerer is None or now - since >= TRY_TIME or self.outcome is not None:
            return []
        try:
            paired = offerer.receive(proof)
        except CodeRefused as refused:
            if refused.outcome == Outcome.WRONG:
                self.wrong += 1
                if self.wrong >= WRONG_TRIES:
                    self.end(Outcome.SPENT)
            return [Settle(key[1], refused.outcome)]
        assert isinstance(paired, Paired), "a proof is answered by nothing else"
        self.paired = paired
        said: list[Post | Settle] = [Post(key[1], offerer.prove()), Settle(key[1], Outcome.PAIRED)]
        self.end(Outcome.PAIRED)
        return said
