"""Where a peer is: the signed record that it publishes, and what stands in it."""

from __future__ import annotations

from .endpoint import AddressInterface, Endpoint, EndpointKind, Transport
from .interfaces import describe_interfaces
from .own import OwnAddresses
from .record import MAX_RECORD, MAX_TEXT, PeerAddress
from .scope import AddressScope, is_public, scope_of

__all__ = [
    "MAX_RECORD",
    "MAX_TEXT",
    "AddressInterface",
    "AddressScope",
    "Endpoint",
    "EndpointKind",
    "OwnAddresses",
    "PeerAddress",
    "Transport",
    "describe_interfaces",
    "is_public",
    "scope_of",
]
