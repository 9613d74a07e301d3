"""TURN (RFC 8656): messages and ChannelData, and a client whose relayed addresses are used like UDP ports."""

from __future__ import annotations
