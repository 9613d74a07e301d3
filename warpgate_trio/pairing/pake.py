"""The password-authenticated key exchange of pairing: SPAKE2, by the package `spake2`, which this module alone imports.

Two sides that know the same code get the same key.  An attacker gets one guess for each exchange, and learns nothing
that would allow offline guessing afterwards (Abdalla and Pointcheval, 2005; RFC 9382 has the same exchange with other
constants).  magic-wormhole has used `spake2` since 2015, on Ed25519's group; it checks that each element is in the
group.

It is pure Python: an exchange takes each side 11 ms, and is not constant-time.  A code is good for one successful
exchange, and for three wrong ones, which leaves hardly anything to measure (docs/threat_model.md#pairing).  `cpace` is
faster, but was an unused first release when this was chosen.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, final

from ..errors import RemoteProtocolError, panics_as_errors

__all__ = ["ELEMENT_LENGTH", "Exchange"]

ELEMENT_LENGTH: Final = 33  # a byte that tells the side, then an element of Ed25519's group
_CLAIMER: Final = b"warpgate-trio pairing v1 claimer"
_OFFERER: Final = b"warpgate-trio pairing v1 offerer"


@final
class Exchange:
    """One side of one exchange.

    Args:
      password: the secret of both sides.
      offers: whether this side offers the code; it has to differ between the two sides.
      entropy: returns so many unpredictable bytes.

    Attributes:
      message: the message for the other side, `ELEMENT_LENGTH` bytes.
    """

    def __init__(self, password: bytes, *, offers: bool, entropy: Callable[[int], bytes]) -> None:
        import spake2  # it takes 50 ms or more to compute its constants, so only a node that pairs imports it

        side = spake2.SPAKE2_B if offers else spake2.SPAKE2_A
        self._side = side(password, idA=_CLAIMER, idB=_OFFERER, entropy_f=entropy)
        self.message: Final[bytes] = self._side.start()

    def finish(self, theirs: bytes) -> bytes:
        """The shared key, 32 bytes; the other side has the same if it knows the password.  Call it once.

        Args:
          theirs: the other side's `message`.

        Raises:
          RemoteProtocolError: `theirs` is not a valid message of the other side.
        """
        if len(theirs) != ELEMENT_LENGTH:
            raise RemoteProtocolError(
                f"the other side's key exchange message has {len(theirs)} bytes, not {ELEMENT_LENGTH}"
            )
        try:
            with panics_as_errors():
                key: bytes = self._side.finish(theirs)
        except Exception as error:  # of many classes, AssertionError among them
            raise RemoteProtocolError("the other side's key exchange message is invalid") from error
        return key
