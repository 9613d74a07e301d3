"""Several processes of one key: which process of a peer is meant, and which others of our own there are.

No I/O, no clock.  A process is named by its *instance*, 8 random bytes in every address that it publishes.  A node that
has an address sends to that instance.  Three things can go wrong:

* The process has ended.  A server that knows this says so, and the message goes to any process of the key
  (`SignalHub`).
* A server takes the process to be there although it has gone, since its connection ended without a FIN or RST.  So an
  instance that has sent nothing for `SILENCE` after something was sent to it is no longer addressed by name at servers
  (`Correspondents`).  The message itself still names it.
* A server cannot tell processes apart: a rendezvous server of the first release, or a broker at which all processes
  have only the topic of the key.  Then all processes of the key receive what is meant for one.  A listening process
  ignores a message for another instance while that instance is known to listen too (`Siblings`).  Otherwise it answers:
  the other process has ended, and this one has taken its place.

A broker does not say that a topic has no subscriber.  Addresses of a listening process that has ended would still name
a topic of its instance.  So listening processes have no such topic, but share one (`topic_of`).  If two of them listen,
both receive what is meant for one, as above.

A process that does not listen answers nothing in any case, and does not announce itself.
"""

from __future__ import annotations

from typing import Final, final

from ..address import Recipient
from ..limits import BoundedMap
from ..servers.rendezvous_frames import ANY_INSTANCE

__all__ = ["HAS_TOPIC", "HERE_INTERVAL", "HERE_LASTS", "Correspondents", "Siblings", "own_topic", "topic_of"]

HAS_TOPIC: Final = "topic"
"""Capability in the address of a process that has a topic of its own at its MQTT brokers, below that of its key."""

SILENCE: Final = 2.0
"""Seconds without a message after which an instance may have gone: a slow round trip, and a phase of a walk."""
HERE_INTERVAL: Final = 30.0
"""Seconds after which a listening process sends `Here` again, while it knows of another one."""
HERE_LASTS: Final = 75.0
"""Seconds for which a `Here` is valid: two may get lost."""
MAX_SIBLINGS: Final = 16
"""Other processes of our key that are remembered."""
MAX_CORRESPONDENTS: Final = 1024
"""Instances of peers that were sent something and have not answered yet."""


def own_topic(instance: bytes, *, listens: bool) -> bytes:
    """The level below the topic of the key that names a process's own topic; all listening processes share one."""
    return ANY_INSTANCE if listens else instance


def topic_of(receiver: Recipient, instance: bytes | None) -> bytes | None:
    """The level below the topic of the receiver's key to publish to for an instance; None: that topic itself."""
    if instance is None or HAS_TOPIC not in receiver.capabilities:
        return None
    return own_topic(instance, listens=receiver.listens)


@final
class Siblings:
    """The other processes of our own key that listen, as known from their `Here`."""

    def __init__(self, own: bytes) -> None:
        self._own = own
        self._heard: BoundedMap[bytes, float] = BoundedMap(MAX_SIBLINGS)

    def hear(self, instance: bytes, now: float) -> bool:
        """An instance has sent `Here`.  Returns whether it was not known to listen."""
        if instance == self._own:
            return False
        news = not self.is_there(instance, now)
        self._heard.put(instance, now)
        return news

    def is_there(self, instance: bytes | None, now: float) -> bool:
        """Whether an instance is another process of our key that listens."""
        at = None if instance is None else self._heard.get(instance)
        return at is not None and now - at < HERE_LASTS

    def any_there(self, now: float) -> bool:
        """Whether another process of our key listens."""
        return any(self.is_there(each, now) for each in self._heard)


@final
class Correspondents:
    """The instances of peers that have not answered yet, and since when."""

    def __init__(self) -> None:
        self._asked: BoundedMap[tuple[bytes, bytes], float] = BoundedMap(MAX_CORRESPONDENTS)

    def ask(self, peer: bytes, instance: bytes | None, now: float) -> bytes | None:
        """A message is being sent to a peer (its key).  Returns the instance to name to servers; None: any."""
        if instance is None:
            return None
        since = self._asked.get((peer, instance))
        if since is None:
            since = now
            self._asked.put((peer, instance), since)
        return instance if now - since < SILENCE else None

    def hear(self, peer: bytes, instance: bytes | None) -> None:
        """An instance of a peer has sent something."""
        if instance is not None:
            self._asked.pop((peer, instance))
