"""Key records at a broker: ours, which it retains at a topic of our key, and look-ups of others.

Theory of operation.  Our record is published as a retained message, and then looked up like any other, which shows that
the broker keeps it and lets it be read.  We stay subscribed to the topic, and publish again if somebody else has
published there (`record_upkeep`).  When the connection ends, the broker forgets the record: we clear it, or our will
does.

A look-up subscribes to the topic of the record, and the broker then sends what it retains there: one round trip.  A
broker does not say that it retains nothing.  So behind the subscription we publish to our own topic, which is known to
work.  Once that message has come back, a retained one would have come before it.  If none has, we publish to the topic
of the record itself, and again to our own.  If the second message comes back without the first, the rules of the broker
(ACLs) keep the topic from us.
"""

from __future__ import annotations

import logging
from contextlib import suppress
from typing import Final, final

import trio

from ... import host as machine
from ...errors import SignalUnavailable
from ...nurseries import open_background_nursery
from ...report import LookupOutcome
from .connection import MqttConnection, MqttError, Publication, SubscriptionRefused
from .echoes import Echoes
from .key_topic import NONCE_LENGTH, KeyTopic
from .record_upkeep import RecordUpkeep

__all__ = ["BrokerRecords"]

logger: logging.Logger = logging.getLogger(__name__)


@final
class BrokerRecords:
    """Key records by one connection to a broker: a `warpgate_trio.signal.channel.KeyRecords`.

    Args:
      url: the broker, without a password.
      prefix: the prefix of all topics (`channel.check_mqtt_url`).
      key: our own public key.
      own_topic: the topic of our key, from which messages are known to come back.
      keeps: whether the broker is asked to keep our record.

    Attributes:
      kept: whether the broker keeps our record; None: that is not known yet, or none was published.
    """

    def __init__(
        self,
        connection: MqttConnection,
        echoes: Echoes,
        url: str,
        *,
        prefix: str,
        key: bytes,
        own_topic: str,
        keeps: bool,
    ) -> None:
        self._connection = connection
        self._host = machine.current()
        self._echoes = echoes
        self._url = url
        self._prefix = prefix
        self._own_topic = own_topic
        self._ours: Final = KeyTopic(prefix, key)
        self._keeps = keeps
        self._upkeep = RecordUpkeep(self._ours)
        self._changed = trio.Event()
        self._settled = trio.Event()
        self._questions: dict[str, set[_Question]] = {}
        self._nursery: trio.Nursery | None = None
        self.kept: bool | None = None

    # -- for the hub ---------------------------------------------------------------------------------------------------

    def publish(self, record: bytes) -> None:
        """Have the broker keep our record in place of an earlier one; no effect if it is not to be asked to."""
        if self._keeps:
            self._upkeep.publish(record, trio.current_time())
            self._changed.set()
        else:
            self._settled.set()

    async def wait_published(self) -> None:
        """Return once it is known whether the broker keeps our record, or will never be; the caller bounds the time."""
        await self._settled.wait()

    async def look_up(self, key: bytes) -> tuple[LookupOutcome, bytes]:
        """Look up the record of a key.  Returns the outcome, and for RECORD the record, not verified yet.

        Raises:
          SignalUnavailable: the connection has ended.
        """
        try:
            return await self._read(KeyTopic(self._prefix, key))
        except MqttError as error:
            raise SignalUnavailable(f"{self._url}: {error}") from error

    # -- for its channel -----------------------------------------------------------------------------------------------

    async def run(self, nursery: trio.Nursery) -> None:
        """Keep our record published until the connection ends; `nursery` runs the unsubscribing after look-ups."""
        self._nursery = nursery
        try:
            while True:
                await self._keep()
        except MqttError:
            pass  # the connection has ended, which its channel reports
        finally:
            self._nursery = None
            self._settled.set()

    def hear(self, message: Publication) -> None:
        """Take a received message, which may be from the topic of a key record."""
        for question in self._questions.get(message.topic, ()):
            question.hear(message)
        if message.topic == self._ours.name:
            before = self._upkeep.deadline
            self._upkeep.receive(message.payload, trio.current_time())
            if self._upkeep.deadline != before:
                self._changed.set()

    # -- parts ---------------------------------------------------------------------------------------------------------

    async def _keep(self) -> None:
        """Wait until our record is due, and publish it."""
        self._changed = trio.Event()
        with trio.move_on_at(self._upkeep.deadline):
            await self._changed.wait()
        record = self._upkeep.transmit(trio.current_time())
        if record is None:
            return
        nonce = self._host.entropy(NONCE_LENGTH)
        await self._connection.publish(self._ours.name, self._ours.seal(record, nonce), retain=True)
        if self.kept is None:
            outcome, found = await self._read(self._ours)
            self.kept = self._upkeep.is_good(found)
            self._settled.set()
            if not self.kept:
                logger.info(
                    "signal server %s: it does not keep our key record, so peers cannot look us up there (%s)",
                    self._url,
                    outcome.value,
                )

    async def _read(self, topic: KeyTopic) -> tuple[LookupOutcome, bytes]:
        question = _Question(topic)
        self._questions.setdefault(topic.name, set()).add(question)
        try:
            async with open_background_nursery() as nursery:
                nursery.start_soon(self._ask, question)
                await question.done.wait()
        finally:
            self._forget(question)
        return question.outcome, question.record

    async def _ask(self, question: _Question) -> None:
        topic = question.topic.name
        try:
            await self._connection.subscribe(topic, retained=True)
        except SubscriptionRefused:
            question.end(LookupOutcome.FORBIDDEN)
            return
        await self._echoes.wait_back(self._own_topic)  # a retained message has come before this one comes back
        async with self._echoes.published(topic) as back, open_background_nursery() as nursery:
            nursery.start_soon(self._doubt, question, back)
            await back.wait()
        question.end(LookupOutcome.NOBODY)

    async def _doubt(self, question: _Question, back: trio.Event) -> None:
        """Notice that what we have published to the topic of the record is not going to come back."""
        await self._echoes.wait_back(self._own_topic)
        if not back.is_set():
            question.end(LookupOutcome.FORBIDDEN)

    def _forget(self, question: _Question) -> None:
        topic = question.topic.name
        self._questions[topic].discard(question)
        if not self._questions[topic]:
            del self._questions[topic]
            if topic != self._ours.name and self._nursery is not None:
                self._nursery.start_soon(self._leave, topic)

    async def _leave(self, topic: str) -> None:
        if topic not in self._questions:  # nobody has asked again meanwhile
            with suppress(MqttError):
                await self._connection.unsubscribe(topic)


@final
class _Question:
    """One look-up: what is known so far of what is retained at a topic."""

    def __init__(self, topic: KeyTopic) -> None:
        self.topic: Final = topic
        self.done: Final = trio.Event()
        self.outcome: LookupOutcome = LookupOutcome.NOBODY
        self.record: bytes = b""
        self._junk = False

    def hear(self, message: Publication) -> None:
        """Take a message of the topic.  A record is the answer; a retained message that is none makes it MALFORMED."""
        record = self.topic.open(message.payload)
        if record is not None:
            self.end(LookupOutcome.RECORD, record)
        elif message.retained and message.payload:
            self._junk = True

    def end(self, outcome: LookupOutcome, record: bytes = b"") -> None:
        """Set the answer, unless there is one already."""
        if self.done.is_set():
            return
        self.outcome = LookupOutcome.MALFORMED if outcome is LookupOutcome.NOBODY and self._junk else outcome
        self.record = record
        self.done.set()
