"""The key in a certificate, which both carriers compare with the peer's."""

from __future__ import annotations

import warnings

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from ..errors import panics_as_errors

__all__ = ["certificate_key"]


def certificate_key(der: bytes | None) -> bytes | None:
    """The Ed25519 key (32 bytes) in an X.509 certificate; None for anything else.

    Any exception of the parser counts as None; the one for a bad version is not a ValueError.
    """
    if der is None:
        return None
    try:
        # Warnings about a stranger's certificate are of no interest here.
        with panics_as_errors(), warnings.catch_warnings(action="ignore"):
            key = x509.load_der_x509_certificate(der).public_key()
    except Exception:  # not only ValueError: also InvalidVersion, InternalError
        return None
    return key.public_bytes_raw() if isinstance(key, Ed25519PublicKey) else None
