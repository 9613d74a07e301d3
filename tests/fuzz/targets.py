"""All fuzz targets: importing their modules registers them."""

from __future__ import annotations

from tests.fuzz import files, gateways, pairing, protocols, quic, records, streams, turn, written
from tests.fuzz.registry import TARGETS, Target

__all__ = [
    "TARGETS",
    "Target",
    "files",
    "gateways",
    "pairing",
    "protocols",
    "quic",
    "records",
    "streams",
    "turn",
    "written",
]
