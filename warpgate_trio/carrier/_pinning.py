"""Whose key a certificate shows: what both carriers compare with the peer id."""

from __future__ import annotations

import warnings

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from ..errors import panics_as_errors

__all__ = ["certificate_key"]


def certificate_key(der: bytes | None) -> bytes | None:
    """The Ed25519 key (32 bytes) in an X.509 certificate; None for anything else, which is nobody's.

    Whatever the parser raises counts as that: for a bad version it has a class that is no ValueError.
    """
    if der is None:
        return None
    try:
        # Its warnings are of no interest: a stranger's certificate is no news of ours.
        with panics_as_errors(), warnings.catch_warnings(action="ignore"):
            key = x509.load_der_x509_certificate(der).public_key()
    except Exception:  # not ValueErrors alone: InvalidVersion, InternalError
        return None
    return key.public_bytes_raw() if isinstance(key, Ed25519PublicKey) else None
