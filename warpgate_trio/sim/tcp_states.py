"""The states and options of a TCP connection, and the constants of Linux that limit them."""

from __future__ import annotations

import errno
from dataclasses import dataclass
from enum import Enum
from math import inf
from typing import Final, final

from .packet import Icmp

SYN_GAPS: Final = (1, 1, 1, 1, 1, 2, 4, 8, 16, 32, 64)
SYN_ACK_GAPS: Final = (1, 2, 4, 8, 16, 32)  # tcp_synack_retries 5
DATA_RETRIES: Final = 15  # tcp_retries2
ORPHAN_RETRIES: Final = 8  # tcp_orphan_retries 0 stands for this
TIME_WAIT: Final = 60.0
CHALLENGE_PAUSE: Final = 0.5  # tcp_invalid_ratelimit
FIN_TIMEOUT: Final = 60.0  # seconds in FIN-WAIT-2 after the program has closed the socket

ICMP_ERRNO: Final = {
    Icmp.PORT_UNREACHABLE: errno.ECONNREFUSED,
    Icmp.NET_UNREACHABLE: errno.ENETUNREACH,
    Icmp.HOST_UNREACHABLE: errno.EHOSTUNREACH,
    Icmp.ADMIN_PROHIBITED: errno.EHOSTUNREACH,
    Icmp.TIME_EXCEEDED: errno.EHOSTUNREACH,
}


class State(Enum):
    """The states of RFC 9293, section 3.3.2."""

    SYN_SENT = "SYN-SENT"
    SYN_RECEIVED = "SYN-RECEIVED"
    ESTABLISHED = "ESTABLISHED"
    FIN_WAIT_1 = "FIN-WAIT-1"
    FIN_WAIT_2 = "FIN-WAIT-2"
    CLOSE_WAIT = "CLOSE-WAIT"
    CLOSING = "CLOSING"
    LAST_ACK = "LAST-ACK"
    TIME_WAIT = "TIME-WAIT"
    CLOSED = "CLOSED"


AFTER_SHUTDOWN: Final = {State.ESTABLISHED: State.FIN_WAIT_1, State.CLOSE_WAIT: State.LAST_ACK}
"""The next state when this end sends its FIN."""

AFTER_ACKNOWLEDGED: Final = {
    State.FIN_WAIT_1: State.FIN_WAIT_2,
    State.CLOSING: State.TIME_WAIT,
    State.LAST_ACK: State.CLOSED,
}
"""The next state when this end's FIN is acknowledged."""

AFTER_PEERS_FIN: Final = {
    State.ESTABLISHED: State.CLOSE_WAIT,
    State.FIN_WAIT_1: State.CLOSING,
    State.FIN_WAIT_2: State.TIME_WAIT,
}
"""The next state when the peer's FIN and everything before it has been received."""

OPENING: Final = (State.SYN_SENT, State.SYN_RECEIVED)
MAY_SEND: Final = (State.ESTABLISHED, State.CLOSE_WAIT)


@final
@dataclass(slots=True)
class Options:
    """The options that a socket may set at any time."""

    ttl: int = 64
    send_buffer: int = 256 * 1024
    receive_buffer: int = 256 * 1024
    unsent_limit: float = inf  # TCP_NOTSENT_LOWAT
    max_segment: int = 0  # TCP_MAXSEG; read when the SYN is sent; 0 for the MTU of the route
