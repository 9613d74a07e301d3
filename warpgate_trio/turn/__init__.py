"""TURN (RFC 8656): its messages and ChannelData, for client and server."""

from __future__ import annotations
