"""TURN (RFC 8656): messages and ChannelData, and a client whose relayed addresses stand where UDP ports stand."""

from __future__ import annotations
