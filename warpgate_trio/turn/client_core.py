"""A TURN client's side of one 5-tuple without I/O (RFC 8656): one allocation, its permissions, channels and data.

Theory of operation.  The first Allocate is sent without credentials.  Its 401 brings realm and nonce, which are valid
for this 5-tuple.  `prime` fetches them long before a relay is needed, and `allocate` then takes one round trip.
Permissions and channels may be requested (`permit`, `bind`) at any time; their requests leave in one flight with the
Allocate.  They may reach the server before the allocation exists: over UDP the Allocate may be lost or overtaken, and
some servers look the user up while they answer later requests.  So responses are matched by transaction in any order.
A request that was sent before the allocation was granted, and is refused for lack of one (437, or 400 by coturn), is
sent again.  Send indications go out only after the server has granted a permission; ChannelData may follow its
ChannelBind at once.

*Upkeep.*  The allocation is refreshed a minute before its lifetime ends.  Permissions and channels (which install a
permission) are renewed well within a permission's five minutes.  A nonce may become stale at any time (438); the
request is then sent again with the new nonce.  437 means that the server has no such allocation any more, for example
after a restart, and ends the client; `check` finds that out at once.  A Binding indication of the server also makes the
client check.  A server of this package sends one before it is shut down, and then grants a short lifetime (`leaving`).
`release` frees the allocation, even one whose response is still on its way.

*Authenticity.*  A response is accepted if its method and 96-bit transaction id are those of a request.  If the request
was signed, a success needs the MAC of our password; an error needs that MAC or none, since whoever can read our ids
can disrupt the connection anyway.  The shell passes on only what came from the server.  Data is passed up only from
peers that a permission or channel was requested for.  DONT-FRAGMENT is never sent.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from ipaddress import ip_address
from typing import Any, Final, final

from ..address.scope import AddressScope, scope_of
from ..errors import StunError, StunMalformed, StunRefused, StunTimeout
from ..sockaddr import Family, TransportAddress, family_of, show_address, unmapped
from ..stun.codec import (
    ALTERNATE_SERVER,
    BINDING,
    ERROR_CODE,
    MESSAGE_INTEGRITY,
    MESSAGE_INTEGRITY_SHA256,
    NONCE,
    REALM,
    TRANSACTION_ID_LENGTH,
    UNKNOWN_ATTRIBUTES,
    USERNAME,
    XOR_MAPPED_ADDRESS,
    Attribute,
    AttributeValue,
    Message,
    MessageClass,
    decode,
    encode,
)
from ..stun.transaction import DEFAULT_RTO, STREAM_TIMEOUT, TRIES, StunTransaction
from .framing import decode_channel_data, encode_channel_data, is_channel_data
from .grants import Grant, Grants
from .login import Credentials, Login
from .messages import (
    CHANNEL_NUMBER,
    DATA,
    DEFAULT_LIFETIME,
    LIFETIME,
    REQUESTED_ADDRESS_FAMILY,
    REQUESTED_TRANSPORT,
    RESERVATION_TOKEN,
    UDP_PROTOCOL,
    XOR_PEER_ADDRESS,
    XOR_RELAYED_ADDRESS,
    Code,
    Method,
)

__all__ = ["TRANSITIONS", "TurnClientCore", "TurnState"]

REFRESH_MARGIN: Final = 60.0
"""Seconds before the end of the allocation at which it is refreshed (§8)."""
MIN_LIFETIME: Final = 20.0
"""Seconds that an allocation is assumed to last at least, so that a hostile LIFETIME causes no endless refreshing."""
SHORT: Final = 60.0
"""Seconds of a lifetime at or below which a server that granted more at first will be shut down.  A server in normal
operation grants ten minutes at least (RFC 8656 §7.2).  Equal to `REFRESH_MARGIN`."""
ASK_INTERVAL: Final = 0.75
"""Seconds at least between two checks that Binding indications cause, since anybody can forge one.  The server sends
them after 0, 0.5, 1, 2 and 4 s (`warpgate_trio.servers.turn_core`)."""
MAX_STALE: Final = 3
"""Stale-nonce errors (438) that one request accepts; with one more the request has failed."""

_NOTHING_THERE: Final = (Code.ALLOCATION_MISMATCH, Code.BAD_REQUEST)
"""Errors for a request that needs an allocation where there is none: by RFC 8656 §5, and by coturn."""
_KNOWN: Final[frozenset[Attribute[Any]]] = frozenset(
    {
        ERROR_CODE,
        LIFETIME,
        MESSAGE_INTEGRITY,
        MESSAGE_INTEGRITY_SHA256,
        NONCE,
        REALM,
        RESERVATION_TOKEN,
        UNKNOWN_ATTRIBUTES,
        USERNAME,
        XOR_MAPPED_ADDRESS,
        XOR_RELAYED_ADDRESS,
    }
)


class TurnState(Enum):
    """The states of a client."""

    NEW = "new"
    ASKING = "asking"
    """The first Allocate, without credentials, is under way."""
    PRIMED = "primed"
    """Realm and nonce are known, and nothing is allocated."""
    ALLOCATING = "allocating"
    ALLOCATED = "allocated"
    LEAVING = "leaving"
    """Released while the response to an Allocate is still outstanding."""
    RELEASING = "releasing"
    """The allocation is being freed."""
    ENDED = "ended"


class _Event(Enum):
    PRIME = "prime"
    CHALLENGED = "challenged"
    ALLOCATE = "allocate"
    GRANTED = "granted"
    RELEASE = "release"
    OVER = "over"


_N, _E = TurnState, _Event
TRANSITIONS: Final[dict[tuple[TurnState, _Event], TurnState]] = {
    (_N.NEW, _E.PRIME): _N.ASKING,
    (_N.NEW, _E.RELEASE): _N.ENDED,
    (_N.ASKING, _E.CHALLENGED): _N.PRIMED,
    (_N.ASKING, _E.GRANTED): _N.ALLOCATED,  # a server that wants no credentials
    (_N.ASKING, _E.RELEASE): _N.LEAVING,
    (_N.PRIMED, _E.ALLOCATE): _N.ALLOCATING,
    (_N.PRIMED, _E.RELEASE): _N.ENDED,
    (_N.ALLOCATING, _E.GRANTED): _N.ALLOCATED,
    (_N.ALLOCATING, _E.RELEASE): _N.LEAVING,
    (_N.ALLOCATED, _E.RELEASE): _N.RELEASING,
    (_N.LEAVING, _E.GRANTED): _N.RELEASING,
    (_N.LEAVING, _E.CHALLENGED): _N.ENDED,
    (_N.LEAVING, _E.RELEASE): _N.LEAVING,
    (_N.RELEASING, _E.RELEASE): _N.RELEASING,
    (_N.ENDED, _E.RELEASE): _N.ENDED,
} | {(state, _E.OVER): _N.ENDED for state in TurnState}
"""All transitions; any other pair of state and event is a bug in this module."""


@final
@dataclass(slots=True)
class _Request:
    """One outstanding request, and what its response needs."""

    transaction: StunTransaction
    method: Method
    attributes: tuple[AttributeValue, ...]
    grant: Grant | None
    early: bool  # sent before the allocation was granted
    signed: bool
    stale: int


@final
class TurnClientCore:  # long: one state, and all that a response may change of it
    """A client with one allocation; see the module's docstring.

    Args:
      server: the server's address.
      entropy: ``entropy(n)`` returns n unpredictable bytes.
      credentials: None for a server that wants none.
      family: of the relayed address.
      reliable: the transport is a byte stream: nothing is retransmitted, and ChannelData is padded.
      rto, tries: RFC 8489 §6.2.1, for UDP.
      name: names the server in errors; by default its address does.

    Attributes:
      state: see `TurnState`.
      relayed: the relayed address, once it is known.
      mapped: our server-reflexive address, once it is known.
      error: why the client ended; None unless it failed.
      alternate: the alternate server that a 300 named; `error` is that 300 then.
      leaving: the server will be shut down before long, see `SHORT`.
    """

    def __init__(
        self,
        server: TransportAddress,
        *,
        entropy: Callable[[int], bytes],
        credentials: Credentials | None = None,
        family: Family = 4,
        reliable: bool = False,
        rto: float = DEFAULT_RTO,
        tries: int = TRIES,
        name: str | None = None,
    ) -> None:
        self.server: Final = server
        self.family: Final = family
        self.reliable: Final = reliable
        self.state: TurnState = TurnState.NEW
        self.relayed: TransportAddress | None = None
        self.mapped: TransportAddress | None = None
        self.error: StunError | None = None
        self.alternate: TransportAddress | None = None
        self.leaving: bool = False
        self._name = f"TURN server {name or show_address(server)}"
        self._entropy = entropy
        self._login = Login(credentials)
        self._rto = STREAM_TIMEOUT if reliable else rto
        self._tries = 1 if reliable else tries
        self._wanted = False
        self._requests: dict[bytes, _Request] = {}
        self._refresh_at = math.inf
        self._first_lifetime = 0.0
        self._asked_at = -math.inf  # when a Binding indication last caused a check
        self._grants = Grants()

    # -- requests of the owner ---------------------------------------------------------------------------------------

    def prime(self, now: float) -> None:
        """Fetch the server's realm and nonce.  Idempotent."""
        if self.state is TurnState.NEW:
            self._go(_Event.PRIME)
            self._ask(Method.ALLOCATE, now)

    def allocate(self, now: float) -> None:
        """Request an allocation as soon as possible.  Idempotent."""
        self._wanted = True
        self.prime(now)
        if self.state is TurnState.PRIMED:
            self._allocate(now)

    def permit(self, ip: str, now: float) -> Grant:
        """Request a permission for a peer's IP address, which covers all of its ports.

        Raises:
          ValueError: there are too many (`warpgate_trio.turn.grants.MAX_GRANTS`).
        """
        grant = self._grants.permission(ip)
        self._want(grant, now)
        return grant

    def bind(self, peer: TransportAddress, now: float) -> Grant:
        """Request a channel to one port of a peer: 4 bytes of overhead per datagram; an indication has 36.

        Raises as `permit` does.
        """
        grant = self._grants.channel(peer)
        self._want(grant, now)
        return grant

    def _want(self, grant: Grant, now: float) -> None:
        if self.state in (TurnState.ALLOCATING, TurnState.ALLOCATED) and not (grant.settled or self._asked(grant)):
            self._ask_for(grant, now)

    def check(self, now: float) -> None:
        """Refresh the allocation now; if the server no longer knows it, its response ends the client."""
        if self.state is TurnState.ALLOCATED and not any(r.method is Method.REFRESH for r in self._requests.values()):
            self._refresh_at = math.inf
            self._ask(Method.REFRESH, now)

    def release(self, now: float) -> None:
        """Free the allocation; the client ends when the server has confirmed that.  Idempotent."""
        before = self.state
        if before is TurnState.ASKING and self._login.credentials is not None:
            self._go(_Event.OVER)  # a 401 is expected, so nothing to free; and a dead server must not delay the end
        else:
            self._go(_Event.RELEASE)
        if before is TurnState.ALLOCATED:
            self._free(now)
        elif self.state is TurnState.ENDED:
            self._requests.clear()

    def fail(self, error: StunError) -> None:
        """End the client from outside, because its transport is broken."""
        self._end(error)

    def _asked(self, grant: Grant) -> bool:
        return any(request.grant is grant for request in self._requests.values())

    # -- data --------------------------------------------------------------------------------------------------------

    def wrap(self, data: bytes, peer: TransportAddress) -> bytes | None:
        """The message by which the server relays `data` to `peer`; None where there is no allocation or permission.

        A channel is used as soon as it was requested, so the messages of `transmit` have to be sent first.
        """
        if self.state is not TurnState.ALLOCATED:
            return None
        channel = self._grants.channel_to(peer)
        if channel is not None:
            return encode_channel_data(channel, data, padded=self.reliable)
        if not self._grants.lets_out(peer[0]):
            return None
        return encode(
            Method.SEND,
            MessageClass.INDICATION,
            self._entropy(TRANSACTION_ID_LENGTH),
            (XOR_PEER_ADDRESS(peer), DATA(data)),
        )

    # -- input -------------------------------------------------------------------------------------------------------

    def receive(self, data: bytes, now: float) -> Sequence[tuple[bytes, TransportAddress]]:
        """Process a message from the server; returns data of peers with their addresses.  Bad input is ignored."""
        try:
            if is_channel_data(data):
                channel, payload = decode_channel_data(data)
                peer = self._grants.peer_of(channel)
                return ((payload, peer),) if peer is not None else ()
            message = decode(data)
            if message.message_class is MessageClass.INDICATION:
                return self._indicated(message, now)
        except StunMalformed:
            return ()
        request = self._requests.get(message.transaction_id)
        if request is not None and request.transaction.receive_message(message, self.server, now):
            self._requests.pop(message.transaction_id)
            try:
                self._answered(request, message, now)
            except StunMalformed as error:
                self._refused(request, error)
        return ()

    def _indicated(self, message: Message, now: float) -> Sequence[tuple[bytes, TransportAddress]]:
        if message.method == BINDING and now - self._asked_at >= ASK_INTERVAL:
            self._asked_at = now
            self.check(now)
            return ()
        peer, payload = message.get(XOR_PEER_ADDRESS), message.get(DATA)
        if message.method != Method.DATA or peer is None or payload is None:
            return ()
        return ((payload, peer),) if self._grants.lets_in(peer[0]) else ()

    def _answered(self, request: _Request, message: Message, now: float) -> None:
        if message.message_class is MessageClass.SUCCESS:
            if unknown := message.unknown_required(_KNOWN):
                shown = ", ".join(f"{each:#06x}" for each in unknown[:8])
                raise StunMalformed(
                    f"the answer of {self._name} needs attributes that this release does not know: {shown}"
                )
            self._succeeded(request, message, now)
            return
        error = message.get(ERROR_CODE)
        if error is None:
            raise StunMalformed(f"an error response of {self._name} without an error code")
        refused = StunRefused(error.code, f"{self._name}: {error.code} {error.reason.rstrip('?')}".rstrip())
        if error.code == Code.UNAUTHENTICATED and not request.signed:
            self._challenged(message, now)
        elif error.code == Code.STALE_NONCE and self.state is not TurnState.LEAVING and request.stale < MAX_STALE:
            self._login.learn(message)
            self._again(request, now, stale=request.stale + 1)
        elif error.code in _NOTHING_THERE and request.grant is not None and request.early:
            if self.state is TurnState.ALLOCATED:
                self._ask_for(request.grant, now)
            # else it is requested when the allocation is granted
        elif error.code == Code.TRY_ALTERNATE and request.method is Method.ALLOCATE:
            self.alternate = message.get(ALTERNATE_SERVER)
            self._end(refused)
        else:
            if error.code == Code.BAD_REQUEST and request.grant is not None:
                self.check(now)  # some servers answer 400 where the allocation is gone
            self._refused(request, refused)

    def _succeeded(self, request: _Request, message: Message, now: float) -> None:
        if request.method is Method.ALLOCATE:
            self._granted(message, now)
        elif request.method is Method.REFRESH:
            if self.state is TurnState.RELEASING:
                self._go(_Event.OVER)
                self._requests.clear()
            else:
                seconds = self._set_lifetime(message, now)
                self.leaving = self.leaving or seconds <= SHORT < self._first_lifetime
        elif request.grant is not None:
            request.grant.give(now)

    def _granted(self, message: Message, now: float) -> None:
        self._go(_Event.GRANTED)
        if self.state is TurnState.RELEASING:
            self._free(now)
            return
        try:
            self.relayed = self._read_relayed(message)
            self.mapped = message.get(XOR_MAPPED_ADDRESS)
        except StunMalformed as error:
            self.error = error
            self.release(now)  # an allocation without a usable relayed address
            return
        self._first_lifetime = self._set_lifetime(message, now)
        for grant in self._grants:
            self._want(grant, now)

    def _set_lifetime(self, message: Message, now: float) -> float:
        lifetime = message.get(LIFETIME)
        seconds = max(float(DEFAULT_LIFETIME if lifetime is None else lifetime), MIN_LIFETIME)
        self._refresh_at = now + max(seconds - REFRESH_MARGIN, seconds / 2)
        return seconds

    def _challenged(self, message: Message, now: float) -> None:
        self._login.learn(message)
        if self.state is TurnState.ASKING and self._login.credentials is None:
            self._end(
                StunRefused(
                    Code.UNAUTHENTICATED, f"{self._name} asks for a username and a password, and none is configured"
                )
            )
            return
        self._go(_Event.CHALLENGED)
        if self._wanted and self.state is TurnState.PRIMED:
            self._allocate(now)

    def _refused(self, request: _Request, error: StunError) -> None:
        """A request has failed for good."""
        gone = isinstance(error, StunRefused) and error.code == Code.ALLOCATION_MISMATCH
        if request.grant is None or gone:
            self._end(error)
        else:
            request.grant.refuse(error)

    # -- requests to the server --------------------------------------------------------------------------------------

    def _allocate(self, now: float) -> None:
        self._go(_Event.ALLOCATE)
        self._ask(Method.ALLOCATE, now)
        for grant in self._grants:
            self._ask_for(grant, now)

    def _ask_for(self, grant: Grant, now: float) -> None:
        if grant.channel is None:
            self._ask(Method.CREATE_PERMISSION, now, (XOR_PEER_ADDRESS(grant.peer),), grant)
        else:
            attributes = (CHANNEL_NUMBER(grant.channel), XOR_PEER_ADDRESS(grant.peer))
            self._ask(Method.CHANNEL_BIND, now, attributes, grant)

    def _free(self, now: float) -> None:
        self._requests.clear()
        self._refresh_at = math.inf
        self._ask(Method.REFRESH, now, (LIFETIME(0),))

    def _again(self, request: _Request, now: float, *, stale: int) -> None:
        self._ask(request.method, now, request.attributes, request.grant, stale=stale)

    def _ask(
        self,
        method: Method,
        now: float,
        attributes: tuple[AttributeValue, ...] = (),
        grant: Grant | None = None,
        *,
        stale: int = 0,
    ) -> None:
        if method is Method.ALLOCATE and not attributes:
            attributes = (REQUESTED_TRANSPORT(UDP_PROTOCOL),)
            if self.family == 6:  # without it the family is IPv4, and the oldest servers do not know the attribute
                attributes += (REQUESTED_ADDRESS_FAMILY(6),)
        transaction_id = self._entropy(TRANSACTION_ID_LENGTH)
        transaction = StunTransaction(
            self._login.encode(method, transaction_id, attributes),
            self.server,
            rto=self._rto,
            tries=self._tries,
            last_wait=1 if self.reliable else 2 ** (self._tries - 1),
            check=self._login.check(),
        )
        transaction.start(now)
        self._requests[transaction_id] = _Request(
            transaction,
            method,
            attributes,
            grant,
            early=self.state is not TurnState.ALLOCATED,
            signed=self._login.signing,
            stale=stale,
        )

    # -- timers and output -------------------------------------------------------------------------------------------

    @property
    def deadline(self) -> float:
        """When `handle_timer` is to be called; infinity while no timer runs."""
        times = [request.transaction.deadline for request in self._requests.values()]
        if self.state is TurnState.ALLOCATED:
            times.append(self._refresh_at)
            times += [grant.renew_at for grant in self._grants]
        return min(times, default=math.inf)

    def handle_timer(self, now: float) -> None:
        """Retransmit or give up unanswered requests, and renew what would expire."""
        for request in list(self._requests.values()):
            request.transaction.handle_timer(now)
            if request.transaction.done:
                # Whatever the request was, a server that is silent for so long is gone.
                self._end(StunTimeout(f"no answer from {self._name}"))
                return
        if self.state is not TurnState.ALLOCATED:
            return
        if now >= self._refresh_at:
            self.check(now)
        for grant in self._grants:
            if now >= grant.renew_at:
                grant.renew_at = math.inf
                self._ask_for(grant, now)

    def transmit(self, now: float) -> list[bytes]:
        """The messages that are to be sent to the server now; they count as sent."""
        sent = [request.transaction.transmit(now) for request in self._requests.values()]
        return [request for request in sent if request is not None]

    def _go(self, event: _Event) -> None:
        self.state = TRANSITIONS[self.state, event]

    def _end(self, error: StunError) -> None:
        if self.state not in (TurnState.LEAVING, TurnState.RELEASING, TurnState.ENDED):
            self.error = error
            for grant in self._grants:
                grant.refuse(error)
        self._go(_Event.OVER)
        self._requests.clear()

    def _read_relayed(self, message: Message) -> TransportAddress:
        """The relayed address; raises `StunMalformed` where there is none, or one that no relay can have."""
        found = [each for each in message.get_all(XOR_RELAYED_ADDRESS) if family_of(each[0]) == self.family]
        if not found:
            raise StunMalformed(f"{self._name} gave no IPv{self.family} relayed address")
        relayed = found[0]
        ip = ip_address(relayed[0])
        scope = scope_of(ip)
        hidden = scope is AddressScope.LOOPBACK and not ip_address(self.server[0]).is_loopback
        if relayed[1] == 0 or hidden or scope is AddressScope.NO_HOST or unmapped(ip) is not ip:
            raise StunMalformed(
                f"{self._name} gave the relayed address {show_address(relayed)}, which no relay can have"
            )
        return relayed
