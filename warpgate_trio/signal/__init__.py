"""Signals: small sealed messages between two nodes that have no path between them yet.

A signal goes from node to server to node.  The modules, from the inside out:

* `message` (no I/O): the envelope.  The sender signs it, receiver included, and seals it to the receiver.  A server
  learns who talks to whom, when, and how much.
* `inbox` (no I/O): judges opened messages by time, rates and wrong clocks; `replays`: what was accepted already.
* `core`: the messages that every node understands.  Plugins define their own as subclasses of `Message`.
* `channel`: the interface of a connection to a signal server; `transport`: the transports by URL scheme.
* `websocket_channel`: the transport to our rendezvous server (`warpgate_trio.servers.rendezvous`).
* `mqtt`: the transport to MQTT brokers.
* `circuits`: byte streams to peers that a rendezvous server relays, on the connection to it.
* `keeper`: the owner of a node's channels, which connects and reconnects; `arrivals`: queues what they receive.
* `hub`: sends by all channels at once.
* `sender`: stamps, seals and sends messages; `router`: checks received ones and passes each to its addressee.

The way of a message in:  `check_blob` -> ``hub.receive`` -> `open_message` -> ``inbox.check`` -> `decode_payload`.
The way of a message out: ``clocks.note_sent`` -> `seal_message`, stamped with ``clocks.time_of(peer)`` ->
``hub.send``.
"""

from __future__ import annotations

from .channel import Delivery, Relays, SignalChannel
from .circuits import Circuit, CircuitRefused, Incoming
from .core import CORE_MESSAGES, Cancel, ClockReply, Failed, Here, RefusalReason, Refused
from .hub import SignalHub
from .inbox import (
    Accepted,
    Inbox,
    InboxLimits,
    Judgement,
    OutsideWindow,
    Overloaded,
    PeerClocks,
    RateLimited,
    Replayed,
    TooOld,
    Unasked,
)
from .message import (
    MAX_SIGNAL,
    Envelope,
    Header,
    Message,
    check_blob,
    decode_payload,
    open_message,
    seal_message,
    wire_name,
)
from .replays import Moment
from .slot import ServerState, ServerStatus
from .transport import open_channel

__all__ = [
    "CORE_MESSAGES",
    "MAX_SIGNAL",
    "Accepted",
    "Cancel",
    "Circuit",
    "CircuitRefused",
    "ClockReply",
    "Delivery",
    "Envelope",
    "Failed",
    "Header",
    "Here",
    "Inbox",
    "InboxLimits",
    "Incoming",
    "Judgement",
    "Message",
    "Moment",
    "OutsideWindow",
    "Overloaded",
    "PeerClocks",
    "RateLimited",
    "RefusalReason",
    "Refused",
    "Relays",
    "Replayed",
    "ServerState",
    "ServerStatus",
    "SignalChannel",
    "SignalHub",
    "TooOld",
    "Unasked",
    "check_blob",
    "decode_payload",
    "open_channel",
    "open_message",
    "seal_message",
    "wire_name",
]
