"""Connections to MQTT brokers: the only module that imports aiomqtt and trio-asyncio.

Theory of operation.  `aiomqtt` (the present name of asyncio-mqtt, built on paho) speaks the protocol.  It needs an
asyncio loop, which trio-asyncio provides.  Neither belongs in a Trio program, so this module isolates them:

* **They are imported when a connection is opened, not before.**  ``import trio_asyncio`` changes ``asyncio.run`` and
  the loop policy of the whole process, warns about its own future on 3.12 and 3.13, and fails on 3.14, so it is not to
  be installed there.  A program that names no MQTT server never imports it; `check_available` answers without
  importing.
* **The asyncio loop runs in a separate task**, a child of the task that opened the connection.  ``open_loop()`` makes
  its loop the current one of the task that enters it, which must not be the caller's.  asyncio itself knows one running
  loop per thread, which takes precedence over a task's current loop.  If such a loop runs below or beside Trio (guest
  mode, a notebook), aiomqtt would make its futures in it.  So MQTT cannot be used there, and `check_no_asyncio` says so
  before anything is tried.
* **The network is Trio's**, behind a loopback port that paho connects to (`signal.mqtt.bridge`).
* **Messages bypass aiomqtt's queue.**  aiomqtt loses messages when its iterator is cancelled.  Its iterator is also so
  much slower than its reader that a burst overflows a bounded queue: of 600 messages in bursts of 60 a quarter was
  lost, although all were acknowledged.  `_Handover` replaces the queue, and moves each message to a memory channel as
  it is read.  A task that receives from the channel may be cancelled at any time.
* **DISCONNECT is sent on every exit,** cancellation included, under a shield of at most ``close_timeout``.  After that
  the stream and all sockets are closed in any case.

Sessions are clean, under a random client id.  When the connection has ended, nothing of it stays at the broker, not
even a retained message (`open_mqtt`'s `clears`).  The only built-in timeout is ``close_timeout``: the caller bounds
opening, `publish` and `receive` with its own scope.
"""

from __future__ import annotations

import importlib.util
import logging
import math
import ssl
import sys
import warnings
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager, nullcontext, suppress
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeVar, final

import trio

from ... import host as machine
from ...config.server_url import ServerUrl
from ...errors import ConfigError, WarpgateError
from ...nurseries import open_background_nursery
from .bridge import Bridge
from .packets import PacketFilter

if TYPE_CHECKING:
    import aiomqtt

__all__ = [
    "MqttConnection",
    "MqttError",
    "Publication",
    "SubscriptionRefused",
    "check_available",
    "check_no_asyncio",
    "load_libraries",
    "open_mqtt",
]

logger: logging.Logger = logging.getLogger(__name__)

# paho logs topics and client ids at debug level, and what a hostile broker does as warnings: silence it.
_quiet: Final = logging.getLogger(f"{__name__}.client")
_quiet.setLevel(logging.CRITICAL)

CLOSE_TIMEOUT = 0.2
"""Seconds on exit for DISCONNECT, and for the broker to close after it."""
KEEPALIVE: Final = 60
"""Seconds of silence after which paho pings.  The broker drops a client that was silent for one and a half times as
long."""
_INBOX: Final = (
    256  # Messages that wait for `receive`, 4 MiB at most; further ones are dropped.  paho reads many at once.
)
_OUTBOX: Final = 64  # Publications that wait for the broker's acknowledgement; further ones wait for their turn.
_UNACKNOWLEDGED: Final = 1024  # These and those whose callers were cancelled, 16 MiB at most; further ones are refused.
_PACKAGES: Final = ("aiomqtt", "trio_asyncio")

_T = TypeVar("_T")


class MqttError(WarpgateError):
    """The broker refused us, closed the connection, or violated the protocol, or the connection or TLS failed."""


@final
class SubscriptionRefused(MqttError):
    """The broker does not let us subscribe to a topic."""


@final
@dataclass(frozen=True, slots=True)
class Publication:
    """A message received by a subscription; `retained`: the broker had it before we subscribed."""

    topic: str
    payload: bytes
    retained: bool = False


class _Loop(Protocol):
    """The part of a trio-asyncio loop that is used here (the package has no types)."""

    async def run_aio_coroutine(self, coro: Coroutine[Any, Any, _T]) -> _T: ...


def check_available() -> None:
    """Check that the packages for MQTT are installed.  Imports nothing.

    Raises:
      ConfigError: one is missing; the message names it.
    """
    missing = [name.replace("_", "-") for name in _PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise ConfigError(f"MQTT servers cannot be used without the package {' and '.join(missing)}")


def check_no_asyncio() -> None:
    """Check that no asyncio loop runs in this thread beside Trio.  Imports nothing.

    Raises:
      ConfigError: one does; the message says what to do.
    """
    # The C module knows the thread's loop even after trio-asyncio has replaced asyncio's functions.
    asyncio = sys.modules.get("_asyncio") or sys.modules.get("asyncio.events")
    if asyncio is not None and asyncio._get_running_loop() is not None:
        raise ConfigError(
            "MQTT servers cannot be used where Trio runs in one thread with an asyncio loop (guest mode, a notebook): "
            "call trio.run in a thread of its own, or name WebSocket servers instead"
        )


def load_libraries() -> tuple[Any, Any]:
    """Import aiomqtt and trio-asyncio, and return them.  The first time it takes 60 ms or more.

    `open_mqtt` calls it.  Call it earlier to spend that time earlier, if MQTT is going to be used; the module's page
    says how the import changes asyncio.

    Raises:
      ConfigError: they cannot be imported.
    """
    check_available()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of asyncio's child watchers, which are gone in 3.14
            import trio_asyncio

        import aiomqtt
    except (ImportError, AttributeError) as error:  # AttributeError: trio-asyncio on a Python that is too new
        raise ConfigError(
            f"MQTT servers cannot be used: trio-asyncio or aiomqtt cannot be imported: {error}"
        ) from error
    return aiomqtt, trio_asyncio


@final
class MqttConnection:
    """An open connection to a broker, made by `open_mqtt`.  Any number of tasks may publish; one receives.

    Args:
      name: the broker's URL, without a password.
      local: see below.

    Attributes:
      local: the local IP address of the connection; empty if it is not known.
    """

    def __init__(self, name: str, *, local: str = "") -> None:
        self._name = name
        self.local: Final = local
        self._abandoned = False
        self._failure: str | None = None
        self._scopes: set[trio.CancelScope] = set()
        self._retained: set[str] = set()
        self._client: aiomqtt.Client | None = None
        self._loop: _Loop | None = None
        self._turns = trio.Semaphore(_OUTBOX)
        self._arrived, self._incoming = trio.open_memory_channel[Publication](_INBOX)
        self.dropped: int = 0
        """Messages that were dropped because 256 waited to be received."""

    def __repr__(self) -> str:
        return f"<MqttConnection to {self._name}>"

    def abandon(self) -> None:
        """The network path is gone: do not wait for the broker when the connection is closed."""
        self._abandoned = True

    @property
    def ended(self) -> bool:
        """Whether the connection has ended, by the broker or by this side."""
        return self._failure is not None

    async def publish(self, topic: str, payload: bytes, *, retain: bool = False) -> None:
        """Publish with QoS 1; returns when the broker has acknowledged.  Beyond 64 at a time it waits for its turn.

        Cancelled: the message may or may not go out.

        Args:
          retain: the broker is to retain the message for later subscribers.

        Raises:
          MqttError: the connection has ended, or the broker has left 1,024 messages unacknowledged.
        """
        await self._call(
            lambda client: client.publish(topic, payload, qos=1, retain=retain, timeout=math.inf), turns=self._turns
        )

    async def subscribe(self, topic: str, *, retained: bool = False) -> None:
        """Subscribe with QoS 1; returns when the broker has acknowledged.

        Args:
          retained: also receive what the broker has retained there, which is otherwise ignored.

        Raises:
          SubscriptionRefused: the broker refuses.
          MqttError: the connection has ended.
        """
        if retained:
            self._retained.add(topic)
        granted = await self._call(lambda client: client.subscribe(topic, qos=1, timeout=math.inf))
        if any((code if isinstance(code, int) else code.value) >= 128 for code in granted):  # MQTT 3.1.1, 3.9.3
            raise SubscriptionRefused("the broker refuses the subscription")

    async def unsubscribe(self, topic: str) -> None:
        """Unsubscribe from a topic; returns when the broker has acknowledged.

        Raises:
          MqttError: the connection has ended.
        """
        self._retained.discard(topic)
        await self._call(lambda client: client.unsubscribe(topic, timeout=math.inf))

    async def receive(self) -> Publication:
        """The next message.  Cancelled: nothing is lost.

        Raises:
          MqttError: the connection has ended, and all messages that had come in were received.
        """
        try:
            return await self._incoming.receive()
        except trio.EndOfChannel:
            raise MqttError(self._failure or "the connection is closed") from None

    async def _call(
        self, ask: Callable[[aiomqtt.Client], Coroutine[Any, Any, _T]], *, turns: trio.Semaphore | None = None
    ) -> _T:
        """Run a coroutine of aiomqtt.  It raises when the connection ends, which aiomqtt alone would not notice."""
        if self._failure is not None or self._client is None or self._loop is None:
            await trio.lowlevel.checkpoint()
            raise MqttError(self._failure or "the connection is closed")
        client, loop = self._client, self._loop
        with trio.CancelScope() as scope:
            self._scopes.add(scope)
            try:
                async with turns or nullcontext():
                    return await loop.run_aio_coroutine(ask(client))
            except Exception as error:  # aiomqtt.MqttError; any other is a failure of this call as well
                raise MqttError(str(error)) from error
            finally:
                self._scopes.discard(scope)
        raise MqttError(self._failure or "the connection is closed")

    # --- the task behind it ---

    async def _run(
        self,
        stream: trio.abc.Stream,
        packets: PacketFilter,
        make_client: Callable[..., aiomqtt.Client],
        trio_asyncio: Any,
        *,
        clears: str | None,
        close_timeout: float,
        task_status: trio.TaskStatus[None],
    ) -> None:
        (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1", backlog=1)
        bridge = Bridge(stream, listener, packets)
        opened = False
        async with open_background_nursery() as nursery:
            nursery.start_soon(bridge.run)
            try:
                # Nothing may be raised through `open_loop`: its nurseries would wrap it.
                async with trio_asyncio.open_loop() as loop:
                    _prepare(loop, trio_asyncio.TrioExecutor, on_connected=bridge.paho_connected.set)
                    self._loop = loop
                    self._client = make_client(
                        listener.socket.getsockname()[1],
                        queue_type=lambda maxsize: _Handover(self._take, loop.create_future),
                    )
                    try:
                        if await self._connect(self._client, bridge, close_timeout):
                            opened = True
                            task_status.started()
                            await self._loop.run_aio_coroutine(_wait_ended(self._client))
                            self._fail(bridge.reason)
                    finally:
                        self._fail("the connection is closed")
                        with trio.move_on_after(close_timeout, shield=True):
                            if opened:
                                await self._disconnect(self._client, clears)
                                if not self._abandoned:
                                    await bridge.wait_closed()
            finally:
                self._client = self._loop = None
                bridge.stop()
        if not opened:
            raise MqttError(self._failure or "the connection is closed")

    async def _connect(self, client: aiomqtt.Client, bridge: Bridge, close_timeout: float) -> bool:
        """Send CONNECT and wait for CONNACK; on failure, note the reason and return False.

        aiomqtt must not be cancelled while paho has a socket: its on_disconnect then raises CancelledError, and the
        socket stays open.  So a cancelled opening ends as a lost connection does: first paho's socket is closed, then
        aiomqtt ends.
        """
        assert self._loop is not None
        entering = True

        async def hang_up_when_cancelled() -> None:
            try:
                await trio.sleep_forever()
            finally:
                if entering:
                    await bridge.hang_up(close_timeout)

        async with open_background_nursery() as nursery:
            nursery.start_soon(hang_up_when_cancelled)
            try:
                with bridge.until_paho_closed:
                    await self._loop.run_aio_coroutine(client.__aenter__())
                    return True
                self._fail(bridge.reason)
            except Exception as error:  # aiomqtt.MqttError; OSError from the loopback
                self._fail(bridge.refusal or str(error))
            finally:
                entering = False
                bridge.paho_connected.set()
        return False

    async def _disconnect(self, client: aiomqtt.Client, clears: str | None) -> None:
        assert self._loop is not None
        with suppress(Exception):  # aiomqtt.MqttError: the connection has ended already
            if clears is not None:
                await self._loop.run_aio_coroutine(client.publish(clears, b"", qos=0, retain=True))
        with suppress(Exception):
            await self._loop.run_aio_coroutine(client.__aexit__(None, None, None))

    def _take(self, message: aiomqtt.Message) -> None:
        topic, retained = message.topic.value, bool(message.retain)
        if retained and topic not in self._retained:
            return  # the broker may have retained it at any time before
        payload = message.payload
        try:
            self._arrived.send_nowait(Publication(topic, bytes(payload), retained))
        except trio.WouldBlock:
            self.dropped += 1
        except trio.ClosedResourceError:
            pass

    def _fail(self, why: str) -> None:
        """The connection has ended: wake all tasks that wait for it."""
        if self._failure is None:
            self._failure = why
        self._arrived.close()
        for scope in self._scopes:
            scope.cancel()


@final
class _Handover:
    """Replaces aiomqtt's queue, and is always empty: each message goes straight to `take`."""

    def __init__(
        self, take: Callable[[aiomqtt.Message], None], create_future: Callable[[], Awaitable[aiomqtt.Message]]
    ) -> None:
        self._take = take
        self._create_future = create_future

    def put_nowait(self, message: aiomqtt.Message) -> None:
        self._take(message)

    async def get(self) -> aiomqtt.Message:
        return await self._create_future()

    def qsize(self) -> int:
        return 0


async def _wait_ended(client: aiomqtt.Client) -> None:
    """Wait, in asyncio, until the connection ends, for whatever reason."""
    with suppress(Exception):
        await anext(aiter(client.messages))


def _prepare(loop: Any, executor: type[Any], *, on_connected: Callable[[], None]) -> None:
    """Change three things in a trio-asyncio loop that aiomqtt needs.

    * An unhandled exception would end the loop; it is logged instead.
    * aiomqtt runs paho's blocking connect in the loop's executor; `on_connected` is called when it has returned.
    * aiomqtt adds a writer in a callback that may run after paho has closed the socket.  By then the descriptor may
      belong to something else, so such a request is ignored.  A reader exists for as long as paho's socket is open.
    """

    def note(_: object, context: dict[str, object]) -> None:
        logger.debug("in the MQTT client: %s: %r", context.get("message"), context.get("exception"))

    class Executor(executor):  # type: ignore[misc]
        async def submit(self, function: Callable[..., object], *args: object) -> object:
            with trio.CancelScope(shield=True):
                try:
                    result = await trio.to_thread.run_sync(function, *args)
                finally:
                    on_connected()
            return result

    add_reader, remove_reader, add_writer = loop.add_reader, loop.remove_reader, loop.add_writer
    open_descriptors: set[int] = set()

    def note_reader(descriptor: int, callback: Callable[..., object], *args: object) -> None:
        open_descriptors.add(descriptor)
        add_reader(descriptor, callback, *args)

    def forget_reader(descriptor: int) -> bool:
        open_descriptors.discard(descriptor)
        return bool(remove_reader(descriptor))

    def add_writer_in_time(descriptor: int, callback: Callable[..., object], *args: object) -> None:
        if descriptor in open_descriptors:
            add_writer(descriptor, callback, *args)

    loop.set_exception_handler(note)
    loop.set_default_executor(Executor())
    loop.add_reader, loop.remove_reader, loop.add_writer = note_reader, forget_reader, add_writer_in_time


@asynccontextmanager
async def open_mqtt(
    url: ServerUrl,
    *,
    ssl_context: ssl.SSLContext | None = None,
    max_payload: int,
    clears: str | None = None,
    close_timeout: float = CLOSE_TIMEOUT,
    dial: Callable[[str, int], Awaitable[trio.abc.Stream]] = trio.open_tcp_stream,
) -> AsyncGenerator[MqttConnection]:
    """Connect to the broker at `url` (``mqtt://`` or ``mqtts://``) for the time of the body.

    No timeout is built in: bound the opening with a cancel scope of your own, and move its deadline once the connection
    is open.  Cancelled at any time: it ends within `close_timeout`.

    Args:
      url: with the login, if the broker wants one; path and query are ignored here.
      ssl_context: for ``mqtts``; the platform's trust by default.  The host name (or IP literal) is verified.
      max_payload: bytes of a payload; messages with a longer one come in empty.
      clears: a topic at which nothing is to be retained once the connection has ended, in whatever way: it is cleared
        before DISCONNECT, and by our will.  Some brokers refuse clients that have a will.
      close_timeout: seconds for DISCONNECT, and for the broker to close the connection in answer.
      dial: opens the TCP connection.

    Raises:
      ConfigError: MQTT cannot be used on this Python or in this thread (`check_available`, `check_no_asyncio`), or
        `url` is not that of a broker.
      OSError: the TCP connection or the name resolution failed.
      MqttError: TLS failed, or the broker refused us, closed the connection, or does not speak MQTT.
      Whatever the body raises, not wrapped in a group.
    """
    if url.scheme not in ("mqtt", "mqtts"):
        raise ConfigError(f"{url.redacted}: not the URL of an MQTT broker")
    check_no_asyncio()
    aiomqtt, trio_asyncio = load_libraries()
    make_client = partial(
        aiomqtt.Client,
        "127.0.0.1",
        identifier=f"wg{machine.current().entropy(10).hex()}",  # MQTT 3.1.1, 3.1.3.1: 23 letters and digits are safe
        username=url.username,
        password=url.password,
        clean_session=True,
        will=None if clears is None else aiomqtt.Will(clears, b"", qos=1, retain=True),
        keepalive=KEEPALIVE,
        timeout=math.inf,
        max_queued_outgoing_messages=_UNACKNOWLEDGED,
        socket_options=[(trio.socket.IPPROTO_TCP, trio.socket.TCP_NODELAY, 1)],  # for the connection to the bridge
        logger=_quiet,
    )
    stream: trio.abc.Stream = await dial(url.host, url.port)
    local = ""
    if isinstance(stream, trio.SocketStream):
        with suppress(OSError):  # the connection has broken already, which is noticed below
            local = stream.socket.getsockname()[0]
    if url.scheme == "mqtts":
        context = ssl_context if ssl_context is not None else ssl.create_default_context()
        stream = trio.SSLStream(stream, context, server_hostname=url.host_name, https_compatible=True)
    try:
        if isinstance(stream, trio.SSLStream):
            try:
                await stream.do_handshake()
            except trio.BrokenResourceError as error:
                raise MqttError(f"TLS handshake failed: {error.__cause__ or error}") from error
        connection = MqttConnection(url.redacted, local=local)
        run = partial(
            connection._run,
            stream,
            PacketFilter(max_payload=max_payload),
            make_client,
            trio_asyncio,
            clears=clears,
            close_timeout=close_timeout,
        )
        async with open_background_nursery() as nursery:
            await nursery.start(run)
            yield connection
    finally:
        await trio.aclose_forcefully(stream)
