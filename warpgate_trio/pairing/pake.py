"""The password-authenticated key exchange of pairing: SPAKE2, by the package `spake2`, which this module alone imports.

Two who know the same code get the same key; who guesses gets one guess for each exchange, and nothing to go on guessing
with afterwards (Abdalla and Pointcheval, 2005; RFC 9382 has the same exchange with other constants).  `spake2` is what
magic-wormhole pairs by since 2015, on Ed25519's group, each element checked to be in it.

It is Python throughout: an exchange takes each side 11 ms, and its time depends on its secrets.  Codes are good for one
exchange, and for three wrong ones, so that there is hardly anything to measure (docs/threat_model.md#pairing).
`cpace`, which is faster, was a first release when this was chosen, and nobody had used it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, final

from ..errors import RemoteProtocolError, panics_as_errors

__all__ = ["ELEMENT_LENGTH", "Exchange"]

ELEMENT_LENGTH: Final = 33  # an element of Ed25519's group, behind a byte that says from which side
_CLAIMER: Final = b"warpgate-trio pairing v1 claimer"
_OFFERER: Final = b"warpgate-trio pairing v1 offerer"


@final
class Exchange:
    """One side of one exchange.

    Args:
      password: what both sides have to know.
      offers: the side that offers the code; the two have to be different.
      entropy: so many unpredictable bytes.

    Attributes:
      message: what the other side needs, `ELEMENT_LENGTH` bytes.
    """

    def __init__(self, password: bytes, *, offers: bool, entropy: Callable[[int], bytes]) -> None:
        import spake2  # 50 ms and more: it computes its constants, which only who pairs needs

        side = spake2.SPAKE2_B if offers else spake2.SPAKE2_A
        self._side = side(password, idA=_CLAIMER, idB=_OFFERER, entropy_f=entropy)
        self.message: Final[bytes] = self._side.start()

    def finish(self, theirs: bytes) -> bytes:
        """The key of 32 bytes, which the other side has if it knows the password.  Once.

        Raises:
          RemoteProtocolError: that is no message of the other side.
        """
        if len(theirs) != ELEMENT_LENGTH:
            raise RemoteProtocolError(f"a key exchange of {len(theirs)} bytes, not {ELEMENT_LENGTH}")
        try:
            with panics_as_errors():
                key: bytes = self._side.finish(theirs)
        except Exception as error:  # of many classes, AssertionError among them
            raise RemoteProtocolError("the other side's key exchange is none") from error
        return key
