"""How a carrier proves that it belongs to an existing Link: the MAC of ATTACH and ATTACHED.

Each side contributes half of a secret, in COMMIT and in ACCEPT, inside TLS.  The secret itself is never sent.  The MAC
covers the Link, the side, the lane, the carrier's session, the key of the side that was dialled, and the two numbers
that the frame carries (`received` and `turn`).  So a copied identity key alone does not give access to its Links.
"""

from __future__ import annotations

import hmac
from typing import Final, final

from .frames import Attach, Attached

__all__ = ["MAC_LENGTH", "LinkSecret"]

MAC_LENGTH: Final = 16
_LINK = b"warpgate-trio link v1"
_ATTACH = b"warpgate-trio attach v1"


@final
class LinkSecret:
    """The secret of one Link.

    Args:
      initiator_half, responder_half: 16 bytes each.
      link_id: the id of the Link.
      initiator: whether this side is the Link's initiator.
    """

    def __init__(self, initiator_half: bytes, responder_half: bytes, link_id: bytes, *, initiator: bool) -> None:
        self._link_id: Final = link_id
        self._initiator: Final = initiator
        self._key: Final = hmac.digest(initiator_half + responder_half, _LINK + link_id, "sha256")

    def attach(self, *, lane: int, received: int, turn: int, session_id: bytes, server_key: bytes) -> Attach:
        """Our offer of a carrier.  It was proven for `session_id`, by the side that dialled `server_key`."""
        mac = self._mac(self._initiator, lane, received, turn, session_id, server_key)
        return Attach(link_id=self._link_id, lane=lane, received=received, turn=turn, mac=mac)

    def attached(self, *, lane: int, received: int, turn: int, session_id: bytes, server_key: bytes) -> Attached:
        """Our answer to an ATTACH."""
        mac = self._mac(self._initiator, lane, received, turn, session_id, server_key)
        return Attached(lane=lane, received=received, turn=turn, mac=mac)

    def holds(self, frame: Attach | Attached, *, session_id: bytes, server_key: bytes) -> bool:
        """Whether the MAC of a frame from the peer is right."""
        expected = self._mac(not self._initiator, frame.lane, frame.received, frame.turn, session_id, server_key)
        return hmac.compare_digest(expected, frame.mac)

    def _mac(self, initiator: bool, lane: int, received: int, turn: int, session_id: bytes, server_key: bytes) -> bytes:
        parts = (
            _ATTACH,
            b"i" if initiator else b"r",
            lane.to_bytes(4, "big"),
            session_id,
            server_key,
            received.to_bytes(8, "big"),
            turn.to_bytes(4, "big"),
        )
        return hmac.digest(self._key, b"".join(parts), "sha256")[:MAC_LENGTH]
