"""Signals over MQTT: the connection, its packets, the channel."""

from __future__ import annotations
