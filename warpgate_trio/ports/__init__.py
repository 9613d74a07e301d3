"""Bound sockets: UDP ports and their shared use, TCP ports, the accept loop; and connections to servers by proxy."""

from __future__ import annotations
