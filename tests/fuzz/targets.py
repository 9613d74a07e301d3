"""Everything that takes bytes or text from outside: importing the rooms of targets registers them."""

from __future__ import annotations

from tests.fuzz import gateways, protocols, quic, records, streams, turn, written
from tests.fuzz.registry import TARGETS, Target

__all__ = ["TARGETS", "Target", "gateways", "protocols", "quic", "records", "streams", "turn", "written"]
