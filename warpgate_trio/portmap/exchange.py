"""One request to a gateway over UDP, and its answer: when to retransmit, and which answer is valid.  No I/O.

NAT-PMP and PCP do not authenticate answers.  So an answer counts only from the gateway's address and port, and only if
it matches the request (`read`).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Final, Generic, TypeVar, final

from ..errors import PortMapMalformed
from ..sockaddr import TransportAddress, parse_ip

__all__ = ["MAP_RTO", "RTO", "TRIES", "Exchange"]

RTO: Final = 0.25
"""Seconds before the first retransmission (RFC 6886 §3.1); doubles."""
MAP_RTO: Final = 1.0
"""Seconds before the first retransmission of a request for a mapping: a gateway with two hundred mappings takes 650 ms
for one, and over IPv6 some take a retransmission for another client's request."""
TRIES: Final = 5
"""Requests in all, of the nine in RFC 6886 §3.1: 7.75 s.  The other four would take two minutes."""

T = TypeVar("T")


@final
class Exchange(Generic[T]):
    """One request and its answer.

    Args:
      request: the bytes to send.
      gateway: where to send them.
      read: decodes bytes to an answer; None for bytes that do not answer this request, and `PortMapMalformed` counts
        as None.
      rto: seconds before the first retransmission; doubles.
      tries: requests in all.

    Attributes:
      answer: None until there is one.
    """

    def __init__(
        self,
        request: bytes,
        gateway: TransportAddress,
        read: Callable[[bytes], T | None],
        *,
        rto: float = RTO,
        tries: int = TRIES,
    ) -> None:
        self.gateway: Final = gateway
        self.answer: T | None = None
        self._from = (parse_ip(gateway[0]), gateway[1])
        self._request = request
        self._read = read
        self._rto = rto
        self._tries = tries
        self._sent = 0
        self._due = True
        self._deadline = math.inf

    @property
    def done(self) -> bool:
        """Whether there is an answer, or all tries have failed."""
        return self.answer is not None or (self._sent == self._tries and self._deadline == math.inf)

    @property
    def deadline(self) -> float:
        """When `handle_timer` has to be called."""
        return math.inf if self.done else self._deadline

    def transmit(self, now: float) -> bytes | None:
        """The request, if it is to be sent to `gateway` now; then it counts as sent."""
        if not self._due or self.done:
            return None
        self._due = False
        self._sent += 1
        self._deadline = now + self._rto * 2 ** (self._sent - 1)
        return self._request

    def handle_timer(self, now: float) -> None:
        """Make a retransmission due, or give up."""
        if now >= self.deadline:
            self._deadline = math.inf
            self._due = self._sent < self._tries

    def receive(self, data: bytes, source: TransportAddress, now: float) -> bool:
        """Take a datagram from `source`; returns whether it is the answer.  Never raises."""
        if self.done or (parse_ip(source[0]), source[1]) != self._from:
            return False
        try:
            self.answer = self._read(data)
        except PortMapMalformed:
            return False
        return self.answer is not None
