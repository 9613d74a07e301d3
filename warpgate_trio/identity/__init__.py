"""A node's identity, and files that only their owner may read."""

from __future__ import annotations

from .identity import (
    KEY_LENGTH,
    PEER_ID_LENGTH,
    SEAL_OVERHEAD,
    SESSION_ID_LENGTH,
    SIGNATURE_LENGTH,
    Identity,
    check_proof,
    default_key_file,
    is_usable_key,
    key_from_peer_id,
    peer_id_from_key,
    prove,
    seal,
    verify,
)
from .private_file import (
    PrivateFileProblem,
    create_private_file,
    read_private_file,
    replace_private_file,
    turn_to_change,
)

__all__ = [
    "KEY_LENGTH",
    "PEER_ID_LENGTH",
    "SEAL_OVERHEAD",
    "SESSION_ID_LENGTH",
    "SIGNATURE_LENGTH",
    "Identity",
    "PrivateFileProblem",
    "check_proof",
    "create_private_file",
    "default_key_file",
    "is_usable_key",
    "key_from_peer_id",
    "peer_id_from_key",
    "prove",
    "read_private_file",
    "replace_private_file",
    "seal",
    "turn_to_change",
    "verify",
]
