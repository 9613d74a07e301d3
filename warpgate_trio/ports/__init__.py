"""Sockets that are bound: UDP ports with all that share one, TCP ports, the loop that accepts."""

from __future__ import annotations
