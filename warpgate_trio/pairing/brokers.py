"""Pairing by an MQTT broker (`pairing.broker_messages` has the messages).

Any client that may publish there may claim any code, as often as it likes, and so void it.  A broker counts no tries,
so the offer itself does (`offer_core`).  Such claims do not help to guess a code.

An offer first publishes a PROBE to its mailbox.  It counts as taken once its own PROBE has come back, which shows that
the broker passes on what is published there, and no other offerer has answered for a while that it has the number.
"""

from __future__ import annotations

import ssl
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final, final

import trio

from .. import host as machine
from ..config import ServerUrl
from ..errors import ConfigError, PairingUnavailable, RemoteProtocolError
from ..ports.server_dial import Dial
from ..servers.mailbox_frames import Claim, Claimed, Offer, Offered, Outcome, Post, Settle
from .broker_messages import ID_LENGTH, MAX_PUBLISHED, BrokerMessage, Kind, mailbox_topic, try_topic
from .mailbox import FromServer, ToServer
from .offer_core import MAX_TRIES

if TYPE_CHECKING:
    from ..signal.mqtt.connection import MqttConnection

__all__ = ["BrokerMailboxes"]

ECHO_TIMEOUT: Final = 3.0
"""Seconds for our own PROBE to come back from the broker: three round trips by a bad satellite link."""
TAKEN_WITHIN: Final = 1.0
"""Seconds after our PROBE has come back in which another offerer may answer that it has the number."""
ANSWER_WITHIN: Final = 10.0
"""Seconds for an offerer's answer to a claim, after which the code counts as unknown: a broker cannot say so itself."""
_MAX_IDS: Final = MAX_TRIES + 1  # claimers: after that many claims the offer is over


@final
class _Channel:
    """A `MailboxChannel`.  The first frame that is sent decides whether it is an offerer's or a claimer's."""

    def __init__(self, connection: MqttConnection, name: str, prefix: str) -> None:
        self._connection = connection
        self._name = name
        self._prefix = prefix
        self._id = machine.current().entropy(ID_LENGTH)
        self._nameplate = 0
        self._asked: Offer | None = None
        self._claims = False
        self._answered = False
        self._tries: dict[bytes, int] = {}

    async def send(self, frame: ToServer) -> None:
        from ..signal.mqtt.connection import MqttError

        try:
            if isinstance(frame, Offer):
                self._asked, self._nameplate = frame, frame.nameplate
                await self._subscribe(mailbox_topic(self._prefix, frame.nameplate))
                await self._subscribe(try_topic(self._prefix, frame.nameplate, self._id))
                await self._say_to_mailbox(Kind.PROBE)
            elif isinstance(frame, Claim):
                self._claims, self._nameplate = True, frame.nameplate
                await self._subscribe(try_topic(self._prefix, frame.nameplate, self._id))
                await self._say_to_mailbox(Kind.CLAIM, frame.payload)
            elif isinstance(frame, Post):
                await self._say(Kind.POST, frame.number, frame.payload)
            elif self._claims or frame.number:
                await self._say(Kind.SETTLE, frame.number, bytes([frame.outcome]))
        except MqttError as error:
            raise PairingUnavailable(f"{self._name}: {error}") from error

    async def receive(self) -> FromServer:
        if self._asked is not None:
            asked, self._asked = self._asked, None
            return await self._find_out(asked)
        with trio.move_on_after(float("inf") if self._answered or not self._claims else ANSWER_WITHIN):
            while True:
                frame = await self._hear(await self._next())
                if frame is not None:
                    self._answered = True
                    return frame
        return Settle(0, Outcome.UNKNOWN)

    async def _find_out(self, asked: Offer) -> Offered | Settle:
        """Find out whether the broker passes on what is published to the mailbox, and no other offerer has it."""
        with trio.move_on_after(ECHO_TIMEOUT) as patience:
            while (message := await self._next()) != BrokerMessage(Kind.PROBE, self._id):
                if message.kind is Kind.TAKEN:
                    return Settle(0, Outcome.TAKEN)
                await self._hear(message)
        if patience.cancelled_caught:
            raise PairingUnavailable(
                f"{self._name}: the broker does not deliver our own messages back; do its access rules (ACL) let us "
                f"publish and subscribe to {mailbox_topic(self._prefix, asked.nameplate)}?"
            )
        with trio.move_on_after(TAKEN_WITHIN):
            while True:
                message = await self._next()
                if message.kind is Kind.TAKEN:
                    return Settle(0, Outcome.TAKEN)
                await self._hear(message)
        return Offered(asked.nameplate, asked.lifetime)

    async def _hear(self, message: BrokerMessage) -> FromServer | None:
        """Handle a message.  Returns the frame that a rendezvous server would send in its place; None: no frame."""
        if self._claims:
            if message.kind is Kind.POST:
                return Post(0, message.payload)
            return Settle(0, message.payload[0]) if message.kind is Kind.SETTLE else None
        if message.kind is Kind.PROBE and message.id != self._id:
            await self._publish(try_topic(self._prefix, self._nameplate, message.id), Kind.TAKEN, message.id)
        elif message.kind is Kind.CLAIM and message.id not in self._tries and len(self._tries) < _MAX_IDS:
            self._tries[message.id] = len(self._tries) + 1
            return Claimed(self._tries[message.id], message.payload)
        elif message.kind is Kind.POST and message.id in self._tries:
            return Post(self._tries[message.id], message.payload)
        elif message.kind is Kind.SETTLE and message.id in self._tries:
            return Settle(self._tries[message.id], Outcome.LEFT)
        return None

    async def _next(self) -> BrokerMessage:
        from ..signal.mqtt.connection import MqttError

        while True:
            try:
                return BrokerMessage.decode((await self._connection.receive()).payload)
            except RemoteProtocolError:
                continue  # a stranger's message
            except MqttError as error:
                raise PairingUnavailable(f"{self._name}: {error}") from error

    async def _subscribe(self, topic: str) -> None:
        await self._connection.subscribe(topic)

    async def _say(self, kind: Kind, number: int, payload: bytes) -> None:
        """Send to the other side of a try."""
        if self._claims:
            await self._say_to_mailbox(kind, payload)
            return
        for try_id, each in self._tries.items():
            if each == number:
                await self._publish(try_topic(self._prefix, self._nameplate, try_id), kind, try_id, payload)

    async def _say_to_mailbox(self, kind: Kind, payload: bytes = b"") -> None:
        await self._publish(mailbox_topic(self._prefix, self._nameplate), kind, self._id, payload)

    async def _publish(self, topic: str, kind: Kind, try_id: bytes, payload: bytes = b"") -> None:
        await self._connection.publish(topic, BrokerMessage(kind, try_id, payload).encode())


@final
class BrokerMailboxes:
    """One MQTT broker, as a `MailboxServer`; arguments as for `RendezvousMailboxes`."""

    def __init__(self, url: ServerUrl, *, dial: Dial, trust: Callable[[], ssl.SSLContext]) -> None:
        self._url = url
        self._dial = dial
        self._trust = trust
        self.name: Final = url.redacted
        self.allocates: Final = False

    def check(self) -> None:
        """Does nothing: paho itself pings its broker once a minute."""

    @asynccontextmanager
    async def open(self) -> AsyncGenerator[_Channel]:
        """See `MailboxServer.open`."""
        from ..signal.mqtt.channel import check_mqtt_url
        from ..signal.mqtt.connection import MqttError, open_mqtt

        opened = False
        trust = self._trust() if self._url.tls else None
        try:
            prefix = check_mqtt_url(self._url)
            async with open_mqtt(
                self._url, ssl_context=trust, max_payload=MAX_PUBLISHED, dial=self._dial
            ) as connection:
                opened = True
                yield _Channel(connection, self.name, prefix)
        except (ConfigError, MqttError) as error:
            if opened:
                raise  # the body has raised it
            raise PairingUnavailable(f"{self.name}: {error}") from error
