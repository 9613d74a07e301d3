"""Several processes of one key: which of a peer's is meant, and which others there are of our own.  No I/O, no clock.

A process is named by its *instance*, 8 random bytes that stand in every address that it publishes.  Who has an address
sends to that instance.  Three things can be wrong with that, and each is settled by who can tell:

* The process has ended.  Then a server that knows says so, and what is said reaches any process of the key
  (`SignalHub`).
* A server takes it to be there though it is not, since its connection ended without a word.  So an instance that has
  said nothing for `SILENCE` after something was said to it is not asked for by name (`Correspondents`); it is still
  meant, and stands in the message.
* A server cannot tell processes apart: a rendezvous server of the first release, or a broker at which all have the
  topic of the key alone.  Then all of the key hear what is meant for one.  One that listens and is not meant leaves it
  be for as long as it hears that the one that is meant listens too (`Siblings`), and answers else: that one has ended,
  and this one has taken its place.

A broker does not say that nobody hears a topic.  So who listens has no topic of its instance there, which older
addresses would name when it has ended, but that of whoever listens (`topic_of`).  Where two do, both hear what is meant
for one, as above.

Who does not listen answers nothing in any case, and does not say that it is there.
"""

from __future__ import annotations

from typing import Final, final

from ..address import Recipient
from ..limits import BoundedMap
from ..servers.rendezvous_frames import ANY_INSTANCE

__all__ = ["HAS_TOPIC", "HERE_INTERVAL", "HERE_LASTS", "Correspondents", "Siblings", "own_topic", "topic_of"]

HAS_TOPIC: Final = "topic"
"""What an address says of a process that has a topic of its own at its MQTT brokers, beside that of its key."""

SILENCE: Final = 2.0
"""Seconds without a word after which an instance may have gone: a slow round trip, and a phase of a walk."""
HERE_INTERVAL: Final = 30.0
"""Seconds after which a process that listens says so again to others that do, where it knows of any."""
HERE_LASTS: Final = 75.0
"""Seconds for which it is believed: two may get lost."""
MAX_SIBLINGS: Final = 16
"""Other processes of our key that are remembered."""
MAX_CORRESPONDENTS: Final = 1024
"""Instances of peers that something was said to, and that have not answered yet."""


def own_topic(instance: bytes, *, listens: bool) -> bytes:
    """Which topic below that of its key a process has; one that listens has that of whoever does."""
    return ANY_INSTANCE if listens else instance


def topic_of(receiver: Recipient, instance: bytes | None) -> bytes | None:
    """Which topic below that of its key to publish to for an instance, by its address; None: that of the key itself."""
    if instance is None or HAS_TOPIC not in receiver.capabilities:
        return None
    return own_topic(instance, listens=receiver.listens)


@final
class Siblings:
    """The other processes of our own key that listen, as far as they say so."""

    def __init__(self, own: bytes) -> None:
        self._own = own
        self._heard: BoundedMap[bytes, float] = BoundedMap(MAX_SIBLINGS)

    def hear(self, instance: bytes, now: float) -> bool:
        """It says that it listens.  Returns whether that is news."""
        if instance == self._own:
            return False
        news = not self.is_there(instance, now)
        self._heard.put(instance, now)
        return news

    def is_there(self, instance: bytes | None, now: float) -> bool:
        """Whether it is another one, and listens."""
        at = None if instance is None else self._heard.get(instance)
        return at is not None and now - at < HERE_LASTS

    def any_there(self, now: float) -> bool:
        """Whether there is another one."""
        return any(self.is_there(each, now) for each in self._heard)


@final
class Correspondents:
    """The instances of peers that have not answered yet, and since when."""

    def __init__(self) -> None:
        self._asked: BoundedMap[tuple[bytes, bytes], float] = BoundedMap(MAX_CORRESPONDENTS)

    def ask(self, peer: bytes, instance: bytes | None, now: float) -> bytes | None:
        """Something is being said to a peer (its key).  Returns the instance to ask servers for; None: any."""
        if instance is None:
            return None
        since = self._asked.get((peer, instance))
        if since is None:
            since = now
            self._asked.put((peer, instance), since)
        return instance if now - since < SILENCE else None

    def hear(self, peer: bytes, instance: bytes | None) -> None:
        """It has said something."""
        if instance is not None:
            self._asked.pop((peer, instance))
