"""A signal channel over an MQTT broker: any broker, or cluster of brokers, that speaks MQTT 3.1.1.

Theory of operation.  A node subscribes to two topics, and publishes to those of its peers.  One topic is
``warpgate-trio/1/<its peer id>``, which all processes of its key have.  The other is one level below it, for this
process (`signal.instances.own_topic`).  If the URL has a path, the path precedes both
(``mqtts://broker.example/team`` -> ``team/warpgate-trio/1/…``), for brokers that give each user a part of the tree.  A
broker learns who talks to whom; the content is sealed.  A broker authenticates nobody either: any client that may
publish may publish to us, so what comes in is trusted no more than what a stranger sends.

A message for one process is published to its own topic if its address says that it has one, and if this broker returns
to us what we publish to ours.  Every other message goes to the topic of the key: the rules of a broker (ACLs) may allow
only that one, and older releases know no other.

Guarantees.  Everything is published with QoS 1, in clean sessions:

* `send` returns `Delivery.QUEUED` once the broker has acknowledged the message.  MQTT 3.1.1 does not tell whether the
  receiver is there.
* If the connection breaks before the broker has acknowledged a message, the broker may or may not have it, and `send`
  raises.  The hub then publishes the message again by the next connection, for as long as its own caller waits.  A
  message may come twice; the receiver's `Inbox` recognises it by its id.
* The broker delivers an acknowledged message to every connection that subscribes to the topic at that time, and keeps
  it for no other.  If the broker crashes in between, or the receiver's connection is down, the message is lost; the
  sender notices that no answer comes.  Persistent sessions would change this, and are not wanted: they leave state on
  other people's brokers, would have to be resumed by client id (two processes with one key would evict each other
  forever), and would deliver messages of walks that are long over.

A broker may accept all of that and still pass nothing on, since clients do not learn its ACLs.  By MQTT 3.1.1 a broker
that does not authorize a PUBLISH acknowledges it normally or closes the connection (section 3.3.5), and most brokers
grant any subscription.  So a channel sends messages to itself (`echoes`):

* It is open once such a message has come back by the topic of the key, within `ECHO_TIMEOUT`.
* It has a topic of its own once one has come back by that topic; nothing waits for this.
* Twice a minute it sends another one, by both topics in turn.  A message that comes back shows that the broker is there
  and the subscription still holds, and gives the round-trip time.  If it does not come back within ten seconds, the
  channel counts as dead, and the hub opens another, which subscribes again.
"""

from __future__ import annotations

import ssl
from collections import deque
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Final, final

import trio

from ... import host as machine
from ...address import OwnAddresses
from ...config.server_url import ServerUrl
from ...errors import ConfigError, SignalUnavailable
from ...identity import Identity, peer_id_from_key
from ...nurseries import open_background_nursery
from ...servers.rendezvous_frames import INSTANCE_LENGTH, BrokerExtra, Registrant
from ...sockaddr import parse_ip
from ..channel import Delivery, Dial, Relays
from ..circuits import Circuit, CircuitRefused
from ..instances import own_topic
from ..keepalive import KeepAlive
from ..message import MAX_SIGNAL
from .connection import MqttConnection, MqttError, open_mqtt
from .echoes import Echoes
from .key_topic import KeyTopic
from .records import BrokerRecords

__all__ = ["MqttChannel", "open_mqtt_channel"]

PING_INTERVAL = 30.0
"""Seconds between two messages to ourselves; under the minute of the shortest TCP timers of middleboxes that matter."""
PONG_TIMEOUT = 10.0
"""Seconds for a message to ourselves to come back, after which the channel counts as dead."""
ECHO_TIMEOUT = 3.0
"""Seconds for the first message to ourselves to come back, before which the channel is not open: three round trips by a
bad satellite link, and less than the hub or a netcheck waits in total, so that they learn what was missing."""
_ROOT: Final = "warpgate-trio/1"
_INBOX: Final = 64
_MAX_PREFIX: Final = 128


@final
class MqttChannel:
    """Our topics at a broker: a `warpgate_trio.signal.SignalChannel`."""

    def __init__(
        self,
        connection: MqttConnection,
        url: str,
        *,
        prefix: str,
        key: bytes,
        own_topic: str,
        keeps_record: bool = False,
    ) -> None:
        self._connection = connection
        self._host = machine.current()
        self._url = url
        self._prefix = prefix
        self._topic = topic = _topic(prefix, key, None)
        self._own_topic = own_topic
        self._pinged = deque([topic])
        self._told = trio.Event()
        self._rtt = 0.0
        self._pings = KeepAlive()
        self._failure: str | None = None
        self._echoes = Echoes(connection)
        self._records = BrokerRecords(
            connection, self._echoes, url, prefix=prefix, key=key, own_topic=topic, keeps=keeps_record
        )
        self._arrived, self._incoming = trio.open_memory_channel[bytes](_INBOX)
        self.dropped: int = 0
        """Payloads that were dropped because 64 waited to be received."""

    def __repr__(self) -> str:
        return f"<MqttChannel to {self._url}>"

    @property
    def url(self) -> str:
        return self._url

    @property
    def rtt(self) -> float:
        return self._rtt

    @property
    def answered(self) -> bool:
        return True  # it has passed our own message on before the channel was open

    @property
    def tells_apart(self) -> bool:
        return self._own_topic in self._pinged

    async def wait_tells_apart(self) -> None:
        await self._told.wait()

    async def wait_registered(self) -> None:
        await trio.lowlevel.checkpoint()  # the channel has subscribed before it was open

    async def send(self, receiver_key: bytes, payload: bytes, *, instance: bytes | None = None) -> Delivery:
        if len(receiver_key) != 32:
            raise ValueError(f"a receiver's key has 32 bytes, not {len(receiver_key)}")
        if not 1 <= len(payload) <= MAX_SIGNAL:
            raise ValueError(f"a payload has 1 to {MAX_SIGNAL} bytes, not {len(payload)}")
        if self._failure is not None:
            await trio.lowlevel.checkpoint()
            raise SignalUnavailable(self._failure)
        try:
            topic = _topic(self._prefix, receiver_key, instance if self.tells_apart else None)
            await self._connection.publish(topic, payload)
        except MqttError as exc:
            raise SignalUnavailable(self._failure or f"{self._url}: {exc}") from exc
        return Delivery.QUEUED

    async def receive(self) -> bytes:
        try:
            return await self._incoming.receive()
        except trio.EndOfChannel:
            raise SignalUnavailable(self._failure or f"{self._url}: the channel is closed") from None

    @property
    def relays(self) -> Relays | None:
        return Relays.NOBODY

    def circuit(self) -> Circuit:
        raise CircuitRefused(self._url, None, "a broker does not relay")

    @property
    def records(self) -> BrokerRecords:
        return self._records

    def check(self) -> bool:
        local = self._connection.local
        if local and parse_ip(local) not in OwnAddresses(self._host):
            self._connection.abandon()
            self._fail(f"this machine no longer has the address {local}")
            return False
        self._pings.check()
        return True

    # --- tasks ---

    async def _read(self) -> None:
        try:
            while True:
                message = await self._connection.receive()
                payload = message.payload
                ours = message.topic in (self._topic, self._own_topic)
                self._records.hear(message)
                if self._echoes.take(message.topic, payload) or not ours or not 1 <= len(payload) <= MAX_SIGNAL:
                    continue
                try:
                    self._arrived.send_nowait(payload)
                except trio.WouldBlock:
                    self.dropped += 1
        except MqttError as exc:
            self._fail(str(exc))
        except trio.ClosedResourceError:
            pass  # the channel was closed meanwhile

    async def _wait_echoed(self) -> None:
        """Raises MqttError if the broker does not return what we publish to the topic of our key."""
        try:
            with trio.fail_after(ECHO_TIMEOUT):
                start = trio.current_time()
                await self._echoes.wait_back(self._topic)
                self._rtt = trio.current_time() - start
        except trio.TooSlowError:
            raise MqttError(
                f"the broker does not deliver our own messages back: no echo within {ECHO_TIMEOUT:g} s of a message to "
                f"our own topic {self._topic}; do its access rules (ACL) let us publish and subscribe there?"
            ) from None

    async def _find_own_topic(self) -> None:
        """Find out whether this process can have its own topic.  A broker may refuse the subscription, drop what is
        published there, or close the connection because of it."""
        try:
            await self._connection.subscribe(self._own_topic)
            await self._echoes.wait_back(self._own_topic)
            self._pinged.append(self._own_topic)
        except MqttError:
            pass
        finally:
            self._told.set()

    async def _keep_alive(self) -> None:
        try:
            await self._pings.run(self._ping_next, self._measured, interval=PING_INTERVAL, timeout=PONG_TIMEOUT)
        except trio.TooSlowError as exc:
            self._fail(f"no echo {exc}")
        except MqttError as exc:
            self._fail(str(exc))

    def _measured(self, sample: float) -> None:
        self._rtt += (sample - self._rtt) / 8  # RFC 6298's alpha

    async def _ping_next(self) -> None:
        self._pinged.rotate()
        await self._echoes.wait_back(self._pinged[0])

    def _fail(self, why: str) -> None:
        """The connection is dead: wake all tasks that wait for it."""
        if self._failure is None:
            self._failure = f"{self._url}: {why}"
        self._arrived.close()
        self._echoes.end(why)


@asynccontextmanager
async def open_mqtt_channel(
    url: ServerUrl,
    identity: Identity,
    *,
    ssl_context: ssl.SSLContext | None = None,
    registrant: Registrant | None = None,
    dial: Dial = trio.open_tcp_stream,
    findable: bool = False,
) -> AsyncGenerator[MqttChannel]:
    """Open a channel to the broker at `url`; contract and errors as `warpgate_trio.signal.open_channel`."""
    prefix = check_mqtt_url(url)
    us = registrant or Registrant(machine.current().entropy(INSTANCE_LENGTH))
    key, name = identity.public_key, url.redacted
    keeps_record = findable and not us.spares(name, BrokerExtra.KEY_RECORD)
    entered = opened = over_topic = over_record = False
    try:
        async with open_mqtt(
            url,
            ssl_context=ssl_context,
            max_payload=MAX_SIGNAL,
            clears=KeyTopic(prefix, key).name if keeps_record else None,
            dial=dial,
        ) as connection:
            entered = True
            own = _topic(prefix, key, own_topic(us.instance, listens=us.listens))
            channel = MqttChannel(connection, name, prefix=prefix, key=key, own_topic=own, keeps_record=keeps_record)
            await connection.subscribe(channel._topic)
            async with open_background_nursery() as nursery:
                nursery.start_soon(channel._read)
                nursery.start_soon(channel._records.run, nursery)
                if us.spares(name, BrokerExtra.OWN_TOPIC):
                    channel._told.set()
                else:
                    nursery.start_soon(channel._find_own_topic)
                try:
                    await channel._wait_echoed()
                    nursery.start_soon(channel._keep_alive)
                    opened = True
                    yield channel
                finally:
                    over_record = connection.ended and keeps_record and channel.records.kept is None
                    over_topic = connection.ended and not (over_record or channel.tells_apart)
                    channel._fail("the channel is closed")
    except MqttError as exc:
        if opened:
            raise  # the body has raised it
        over_record = over_record or (keeps_record and not entered)  # some brokers refuse a client that has a will
        raise SignalUnavailable(f"{name}: {exc}") from exc
    finally:
        if entered:
            us.note_broker(name, BrokerExtra.OWN_TOPIC, closed=over_topic)
        if findable:
            us.note_broker(name, BrokerExtra.KEY_RECORD, closed=over_record)


def check_mqtt_url(url: ServerUrl) -> str:
    """The prefix of all topics by a broker's URL: ``""``, or a path that ends with "/".

    Raises:
      ConfigError: no topic can start with the path, or there is a query.
    """
    prefix = url.path.strip("/")
    if url.params:
        raise ConfigError(f"{url.redacted}: the URL of an MQTT broker has no query")
    if len(prefix) > _MAX_PREFIX or any(char in prefix for char in "+#$%"):
        raise ConfigError(
            f"{url.redacted}: the path is the prefix of MQTT topics: it has at most {_MAX_PREFIX} characters, and none "
            "of + # $ %"
        )
    return f"{prefix}/" if prefix else ""


def _topic(prefix: str, key: bytes, instance: bytes | None) -> str:
    below = "" if instance is None else f"/{instance.hex()}"
    return f"{prefix}{_ROOT}/{peer_id_from_key(key)}{below}"
