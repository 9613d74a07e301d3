"""Where a peer is: the signed record that it publishes, and the contents of that record."""

from __future__ import annotations

from .endpoint import AddressInterface, Endpoint, EndpointKind, Transport
from .interfaces import describe_interfaces
from .key_record import KEY_RECORD_LIFETIME, MAX_KEY_RECORD, KeyRecord, Recipient
from .own import OwnAddresses
from .record import MAX_RECORD, MAX_TEXT, PeerAddress
from .scope import AddressScope, is_public, scope_of

__all__ = [
    "KEY_RECORD_LIFETIME",
    "MAX_KEY_RECORD",
    "MAX_RECORD",
    "MAX_TEXT",
    "AddressInterface",
    "AddressScope",
    "Endpoint",
    "EndpointKind",
    "KeyRecord",
    "OwnAddresses",
    "PeerAddress",
    "Recipient",
    "Transport",
    "describe_interfaces",
    "is_public",
    "scope_of",
]
