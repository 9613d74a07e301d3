"""The mailboxes of a rendezvous server, without I/O: who may open one, who may write to it, and how much.

`rendezvous_frames` has the protocol; some of its names can be imported from here too.
"""

from __future__ import annotations

import hmac
import math
from collections.abc import Collection
from dataclasses import dataclass
from typing import Final, final

from ..errors import RemoteProtocolError
from ..identity import verify
from ..limits import BoundedMap, Budget, TokenBucket
from .key_record_frames import Lookup, Publish
from .key_records import KeyRecords, KeyRecordStatistics
from .mailbox_frames import Claim, Offer, Post, Settle
from .mailboxes import Delivery, Mailboxes, PairingFrame, PairingStatistics
from .relay_core import NO_RELAY, Circuits, RelayRules, RelayStatistics
from .relay_frames import ALL_CIRCUITS, Answer, Call, EndReason, Relay, RelayCredit, RelayEnd
from .rendezvous_frames import (
    ANY_INSTANCE,
    CIRCUITS_SINCE,
    CONTEXT_1,
    CONTEXT_2,
    CONTEXT_3,
    KEY_RECORDS_SINCE,
    MAX_FRAME,
    MAX_PAYLOAD,
    QUEUE_FULL,
    VERSION,
    Capability,
    Challenge,
    Error,
    ErrorCode,
    Message,
    Register,
    Register2,
    Register3,
    Registered,
    Send,
    Send2,
    Sent,
    decode_from_client,
    decode_from_server,
    register,
    token_proof,
)
from .server_connection import QUEUED_OVERHEAD, Queued, ServerConnection

__all__ = [
    "DEFAULT_LIMITS",
    "MAX_FRAME",
    "MAX_PAYLOAD",
    "QUEUED_OVERHEAD",
    "QUEUE_FULL",
    "VERSION",
    "Challenge",
    "Error",
    "ErrorCode",
    "Message",
    "Register",
    "Registered",
    "RendezvousCore",
    "RendezvousLimits",
    "RendezvousStatistics",
    "Send",
    "Sent",
    "ServerConnection",
    "decode_from_client",
    "decode_from_server",
    "register",
]

_SHOWN_NAME = 60  # characters of an unknown name in an ERROR
_VERSIONS: Final = {Register: 1, Register2: 2, Register3: 3}


@dataclass(frozen=True, slots=True, kw_only=True)
class RendezvousLimits:
    """The limits of one server; with the defaults an idle node costs one connection and a ping every 30 s.

    Attributes:
      connections: connections in all; ``serve`` lowers it to what the limit of open files allows.
      connections_per_address: from one IPv4 address or IPv6 /64; many nodes may be behind one carrier-grade NAT.
      connections_per_key: connections of one mailbox; one more closes the oldest, since a roaming node leaves dead
        connections behind.
      queue: payloads that wait for one connection; a receiver that does not read gets no more.
      queued_bytes: bytes that wait in all queues together; one /48 or IPv4 /24 gets half of what is free at most.
      queued_bytes_per_address: of these, bytes that wait for the connections of one IPv4 address or IPv6 /64, and as
        many that came from them.
      sends_per_second: SENDs, CALLs and frames of pairing and key records per connection, sustained.  A connection
        that exceeds it is closed.
      send_burst: such frames per connection at once.
      registration: seconds from the TCP connection to the end of the WebSocket handshake, and from there to a valid
        REGISTER.
      silence: seconds without any byte after which a connection is closed; clients ping every 30 s.
      write: seconds in which a client must accept a frame that is written to it.
      keys: keys that registered by version 2 or 3 and have left, which are remembered at 200 bytes each; beyond that
        the oldest one is forgotten.
      key_memory: seconds for which they are remembered, and refused by version 1.  It is longer than a reconnection
        takes, and short enough for operators who go back to an older release.
    """

    connections: int = 16_384
    connections_per_address: int = 256
    connections_per_key: int = 8
    queue: int = 64
    queued_bytes: int = 64 * 1024 * 1024
    queued_bytes_per_address: int = 4 * 1024 * 1024
    sends_per_second: float = 50.0
    send_burst: int = 200
    registration: float = 10.0
    silence: float = 90.0
    write: float = 30.0
    keys: int = 16_384
    key_memory: float = 3600.0


DEFAULT_LIMITS: Final = RendezvousLimits()


@dataclass(frozen=True, slots=True, kw_only=True)
class RendezvousStatistics:
    """Counts of what a server holds now (the first three) and has done so far."""

    connections: int
    mailboxes: int
    queued: int
    registrations: int
    sends: int
    handed_over: int
    errors: int
    relay: RelayStatistics
    pairing: PairingStatistics
    key_records: KeyRecordStatistics


@final
# long: what each frame of a client does, in one place
class RendezvousCore:
    """All mailboxes of one server.  It takes frames and `now` (monotonic seconds), and fills the connections' queues.

    `receive` returns the answer to a frame.  The shell writes it before it reads on, so that a client that does not
    read its answers is not read from either.  The shell also measures a client's silence, because pings count and do
    not come this far.  The connections whose circuits have something new to write are in `woken`.

    Args:
      relay: between whom it relays.

    Attributes:
      circuits: the relayed circuits.
      pairing: the mailboxes for pairing.
      key_records: the key records that clients have published.
    """

    def __init__(
        self,
        limits: RendezvousLimits = DEFAULT_LIMITS,
        *,
        relay: RelayRules = NO_RELAY,
    ) -> None:
        self.limits = limits
        self.circuits: Circuits = Circuits(relay)
        self.pairing: Final = Mailboxes()
        self.key_records: KeyRecords = KeyRecords()
        self._connections: set[ServerConnection] = set()
        self._mailboxes: dict[bytes, list[ServerConnection]] = {}
        self._left_2: BoundedMap[bytes, float] = BoundedMap(limits.keys)  # key -> when version 2 last left its mailbox
        self._for = Budget(total=limits.queued_bytes, per_address=limits.queued_bytes_per_address)
        self._from = Budget(total=limits.queued_bytes, per_address=limits.queued_bytes_per_address)
        self._registrations = 0
        self._sends = 0
        self._handed_over = 0
        self._errors = 0

    def connect(
        self, nonce: bytes, now: float, *, host: str, version: int, names: Collection[str]
    ) -> tuple[ServerConnection, bytes]:
        """A client has connected: returns its state and the CHALLENGE to write.

        Args:
          nonce: 32 fresh random bytes.
          host: the client's IP address, for the limits.
          version: the newest version that it has announced, else 1.
          names: the names (`server_name`) of this server by which the client may have dialled it.
        """
        sends = TokenBucket(self.limits.sends_per_second, self.limits.send_burst)
        connection = ServerConnection(nonce, sends, host=host, version=version, names=names)
        self._connections.add(connection)
        return connection, Challenge(nonce, version).encode()

    def call_ahead(self, connection: ServerConnection, data: bytes, now: float) -> list[ServerConnection]:
        """Process the CALL that came with a client's upgrade request, before the client has registered.

        The receiver is rung at once: like a signal, a RING needs no permission.  The answer waits until the caller has
        registered, and only then is it decided whether the two may be relayed.  Any other frame is ignored.

        Returns the connections whose `queue` got longer.
        """
        try:
            frame = decode_from_client(data)
        except RemoteProtocolError:
            return []
        if not isinstance(frame, Call) or frame.circuit % 2 == 0 or connection.version < CIRCUITS_SINCE:
            return []
        answer, rung = self._call(connection, frame, now)
        if answer is not None:
            connection.queue.append(Queued(answer))
        return rung

    def disconnect(self, connection: ServerConnection, now: float) -> None:
        """The connection is gone; its mailbox closes unless another connection keeps it open.  Idempotent."""
        self._connections.discard(connection)
        connection.closing = True
        if connection.sending is not None:
            self.written(connection)
        while connection.queue:
            self.written(connection)
        self.circuits.left(connection, now)
        self._hand_on(self.pairing.left(connection, now))
        self._leave_mailbox(connection, now)

    def receive(
        self, connection: ServerConnection, data: bytes, now: float
    ) -> tuple[bytes | None, list[ServerConnection]]:
        """Process one frame.

        Returns the answer, if there is one, and the connections whose `queue` got longer.  If the answer is an ERROR,
        `connection.closing` is set.
        """
        try:
            frame = decode_from_client(data)
        except RemoteProtocolError as exc:
            return self.fail(connection, ErrorCode.PROTOCOL, str(exc), now), []
        if isinstance(frame, Register | Register2 | Register3):
            return self._register(connection, frame, now)
        if isinstance(frame, Send | Send2):
            return self._send(connection, frame, now)
        if isinstance(frame, Offer | Claim | Post | Settle):
            return self._pair(connection, frame, now), []
        if isinstance(frame, Publish | Lookup):
            return self._key_record(connection, frame, now), []
        if connection.version < CIRCUITS_SINCE or connection.key is None:
            return self.fail(
                connection, ErrorCode.PROTOCOL, "a circuit frame before a registration by version 3", now
            ), []
        if isinstance(frame, Call):
            return self._call(connection, frame, now)
        if not connection.relays:
            return None, []
        if isinstance(frame, Answer):
            self._answer(connection, frame, now)
        elif isinstance(frame, Relay):
            self.circuits.relay(connection, frame, now)
        elif isinstance(frame, RelayCredit):
            self.circuits.credit(connection, frame)
        else:
            self.circuits.ended(connection, frame, now)
        return None, []

    def transmit(self, connection: ServerConnection, now: float) -> bytes | None:
        """The next frame to write to a connection, or None; it returns the same frame until `written` is called."""
        if not connection.registered:
            return None  # the answer to its early CALL waits
        if connection.sending is None:
            if connection.queue:
                return connection.queue[0].frame
            connection.sending = self.circuits.transmit(connection)
        return None if connection.sending is None else connection.sending.frame

    def written(self, connection: ServerConnection) -> None:
        """The frame from `transmit` was written, or never will be."""
        if connection.sending is not None:
            piece, connection.sending = connection.sending, None
            self.circuits.written(piece)
            return
        if not connection.queue:
            return  # disconnected while it was being written
        queued = connection.queue.popleft()
        if queued.host is not None:
            self._for.give_back(connection.host, queued.cost)
            self._from.give_back(queued.host, queued.cost)

    def woken(self) -> list[ServerConnection]:
        """The connections whose circuits have got something to write since the last call of this method."""
        woken = list(self.circuits.woken)
        self.circuits.woken.clear()
        return woken

    def deadline(self, connection: ServerConnection) -> float:
        """When `handle_timer` is to be called for a connection."""
        circuits = self.circuits.deadline(connection) if connection.legs else math.inf
        return min(circuits, self.pairing.deadline(connection))

    def handle_timer(self, connection: ServerConnection, now: float) -> None:
        """End the circuits, offers and tries of this connection whose time is over."""
        self.circuits.handle_timer(connection, now)
        self._hand_on(self.pairing.handle_timer(connection, now))

    def warn(self, now: float) -> None:
        """Announce the shutdown: refuse new circuits and end unanswered ones.

        Clients with answered circuits get a RELAY_END of `ALL_CIRCUITS`; the others are over (`is_over`).
        """
        self.circuits.draining = True
        for connection in self._connections:
            if self.circuits.shut_down(connection, now, answered=False):
                connection.queue.append(Queued(RelayEnd(ALL_CIRCUITS, EndReason.SHUTTING_DOWN).encode()))

    def drain(self, now: float) -> None:
        """Shut down: end all circuits behind their waiting data; then the connections are over (`is_over`)."""
        self.circuits.draining = True
        for connection in self._connections:
            self.circuits.shut_down(connection, now)

    def give_up_waiting(self) -> None:
        """Drop the circuit data that waits for clients, so that the circuits end at once."""
        for connection in self._connections:
            self.circuits.give_up_waiting(connection)

    def is_over(self, connection: ServerConnection) -> bool:
        """Whether the server drains and has nothing left to send to a client."""
        return self.circuits.draining and not (connection.queue or connection.legs or connection.sending)

    def fail(self, connection: ServerConnection, code: ErrorCode, text: str, now: float) -> bytes:
        """End a connection with an error; returns the ERROR frame to write before it is closed."""
        self._errors += 1
        connection.closing = True
        self.circuits.left(connection, now)
        self._hand_on(self.pairing.left(connection, now))
        self._leave_mailbox(connection, now)
        return Error(code, text).encode()

    def statistics(self) -> RendezvousStatistics:
        """See `RendezvousStatistics`."""
        return RendezvousStatistics(
            connections=len(self._connections),
            mailboxes=len(self._mailboxes),
            queued=sum(len(connection.queue) for connection in self._connections),
            registrations=self._registrations,
            sends=self._sends,
            handed_over=self._handed_over,
            errors=self._errors,
            relay=self.circuits.statistics(),
            pairing=self.pairing.statistics(),
            key_records=self.key_records.statistics(),
        )

    def _register(
        self, connection: ServerConnection, frame: Register | Register2 | Register3, now: float
    ) -> tuple[bytes | None, list[ServerConnection]]:
        nonce, connection.nonce = connection.nonce, None  # one try per challenge
        if nonce is None:
            return self.fail(connection, ErrorCode.PROTOCOL, "a second REGISTER", now), []
        refusal = self._refusal(connection, frame, nonce, now)
        if refusal is not None:
            return self.fail(connection, *refusal, now), []
        woken = [connection]
        mailbox = self._mailboxes.setdefault(frame.key, [])
        connection.key = frame.key
        mailbox.append(connection)
        if not isinstance(frame, Register):
            connection.instance = frame.instance
            for other in [each for each in mailbox if each.version == 1]:
                woken.append(self._replace(other, "this key has registered again, by version 2 or later", now))
        self._registrations += 1
        registered = Registered()
        if isinstance(frame, Register3):
            connection.relays = self.circuits.rules.for_anybody and bool(frame.capabilities & Capability.RELAY)
            rules = self.circuits.rules
            connection.has_token = rules.token is not None and hmac.compare_digest(
                frame.token, token_proof(rules.token, nonce, frame.key, frame.name)
            )
            may_relay = connection.has_token or rules.open_to_all
            relays = Capability.RELAY if rules.for_anybody else Capability(0)
            can = relays | Capability.PAIR | Capability.KEY_RECORDS
            registered = Registered(can | (Capability.MAY_RELAY if may_relay else Capability(0)))
        connection.registered = True
        if not self.circuits.registered(connection, now):
            while connection.queue:
                self.written(connection)  # drop the ANSWER of a circuit that is not allowed
        # Through the queue, so that no MESSAGE can overtake it.  What is in the queue already answers the early CALL.
        connection.queue.appendleft(Queued(registered.encode()))
        if len(mailbox) > self.limits.connections_per_key:
            woken.append(self._replace(mailbox[0], "this key has opened more connections than the server allows", now))
        return None, woken

    def _refusal(
        self, connection: ServerConnection, frame: Register | Register2 | Register3, nonce: bytes, now: float
    ) -> tuple[ErrorCode, str] | None:
        """Why a registration is refused; None if it is not."""
        if connection.version != _VERSIONS[type(frame)]:
            return ErrorCode.PROTOCOL, f"a REGISTER of another version than that of the CHALLENGE, {connection.version}"
        if isinstance(frame, Register):
            good = verify(frame.key, frame.signature, CONTEXT_1, nonce + frame.key)
        elif isinstance(frame, Register2):
            signed = nonce + frame.key + frame.instance + frame.name.encode("ascii")
            good = verify(frame.key, frame.signature, CONTEXT_2, signed)
        else:
            good = verify(frame.key, frame.signature, CONTEXT_3, nonce + frame.signed)
        if not good:
            return ErrorCode.BAD_SIGNATURE, "the signature was not made by the key that registers"
        if not isinstance(frame, Register):
            if frame.name in connection.names:
                return None
            return ErrorCode.UNKNOWN_NAME, (
                f"this server does not know the name {frame.name[:_SHOWN_NAME]!r} as its own: "
                "its operator has to start `serve` with --public-url and the URL that you use"
            )
        if self._belongs_to_2(frame.key, now):
            return (
                ErrorCode.OLD_VERSION,
                "this key has recently registered by version 2 or later, so version 1 is refused",
            )
        return None

    def _replace(self, connection: ServerConnection, why: str, now: float) -> ServerConnection:
        connection.queue.append(Queued(self.fail(connection, ErrorCode.REPLACED, why, now)))
        return connection

    def _belongs_to_2(self, key: bytes, now: float) -> bool:
        """Whether version 2 or 3 has the mailbox open, or had it within `key_memory` seconds."""
        left_at = self._left_2.get(key)
        if left_at is not None and now - left_at < self.limits.key_memory:
            return True
        return any(connection.version != 1 for connection in self._mailboxes.get(key, []))

    def _send(
        self, connection: ServerConnection, frame: Send | Send2, now: float
    ) -> tuple[bytes, list[ServerConnection]]:
        if connection.key is None:
            return self.fail(connection, ErrorCode.PROTOCOL, "SEND before REGISTER", now), []
        if not connection.sends.take(now):
            return self.fail(connection, ErrorCode.RATE, "more SENDs than this server allows", now), []
        self._sends += 1
        mailbox = self._mailboxes.get(frame.receiver, [])
        if isinstance(frame, Send2) and frame.instance != ANY_INSTANCE:
            mailbox = [receiver for receiver in mailbox if receiver.instance == frame.instance]
        message = Queued(Message(frame.payload).encode(), connection.host)
        took = [receiver for receiver in mailbox if self._put(receiver, message)]
        self._handed_over += len(took)
        count = QUEUE_FULL if mailbox and not took else len(took)
        return Sent(frame.id, count).encode(), took

    def _key_record(self, connection: ServerConnection, frame: Publish | Lookup, now: float) -> bytes:
        if connection.key is None or connection.version < KEY_RECORDS_SINCE:
            return self.fail(
                connection, ErrorCode.PROTOCOL, "a key record frame before a registration by version 3", now
            )
        if not connection.sends.take(now):
            return self.fail(connection, ErrorCode.RATE, "more key record frames than this server allows", now)
        return self.key_records.receive(connection, frame, now)

    def _call(
        self, connection: ServerConnection, frame: Call, now: float
    ) -> tuple[bytes | None, list[ServerConnection]]:
        if frame.circuit % 2 == 0 or frame.circuit in connection.legs:
            return self.fail(connection, ErrorCode.PROTOCOL, "a CALL whose circuit number is in use or even", now), []
        if not connection.sends.take(now):
            return self.fail(connection, ErrorCode.RATE, "more CALLs than this server allows", now), []
        if not (connection.relays if connection.registered else self.circuits.rules.for_anybody):
            # A client may CALL before REGISTERED tells it whether the server relays.
            return RelayEnd(frame.circuit, EndReason.NOT_ALLOWED).encode(), []
        rings = self.circuits.call(connection, frame, self._receivers(frame), now)
        if isinstance(rings, RelayEnd):
            return rings.encode(), []
        rung: list[ServerConnection] = []
        for receiver, ring in rings:
            if self._put(receiver, Queued(ring, connection.host)):
                rung.append(receiver)
            else:
                self.circuits.not_rung(connection, frame.circuit, receiver, now)
        return None, rung

    def _receivers(self, frame: Call) -> list[ServerConnection]:
        """The connections that a CALL may ring."""
        return [
            each
            for each in self._mailboxes.get(frame.receiver, [])
            if each.relays and frame.instance in (ANY_INSTANCE, each.instance)
        ]

    def _answer(self, connection: ServerConnection, frame: Answer, now: float) -> None:
        answer = self.circuits.answer(connection, frame, now)
        if answer is not None and not self._put(answer[0], Queued(answer[1], connection.host)):
            self.circuits.unheard(connection, frame.circuit, now)
        elif answer is not None:
            self.circuits.woken[answer[0]] = None

    def _pair(self, connection: ServerConnection, frame: PairingFrame, now: float) -> bytes | None:
        if connection.key is None or connection.version < CIRCUITS_SINCE:
            return self.fail(connection, ErrorCode.PROTOCOL, "a pairing frame before a registration by version 3", now)
        if not connection.sends.take(now):
            return self.fail(connection, ErrorCode.RATE, "more pairing frames than this server allows", now)
        answer, told = self.pairing.receive(connection, frame, now)
        self._hand_on(told)
        return answer

    def _hand_on(self, told: list[Delivery]) -> None:
        """Queue pairing frames for other connections.  A frame without room is dropped; its try then times out."""
        for receiver, frame, host in told:
            if not receiver.closing and self._put(receiver, Queued(frame, host)):
                self.circuits.woken[receiver] = None

    def _put(self, receiver: ServerConnection, message: Queued) -> bool:
        """Queue a payload; False if there is no room: in the queue, for the receiver's or the sender's network, or in
        all queues together.
        """
        assert message.host is not None
        if len(receiver.queue) >= self.limits.queue or not self._for.take(receiver.host, message.cost):
            return False
        if not self._from.take(message.host, message.cost):
            self._for.give_back(receiver.host, message.cost)
            return False
        receiver.queue.append(message)
        return True

    def _leave_mailbox(self, connection: ServerConnection, now: float) -> None:
        if connection.key is None:
            return
        self.key_records.left(connection)
        if connection.version != 1:
            self._left_2.put(connection.key, now)
        mailbox = self._mailboxes[connection.key]
        mailbox.remove(connection)
        if not mailbox:
            del self._mailboxes[connection.key]
        connection.key = None
