"""STUN (RFC 8489): messages, transactions, and a client."""

from __future__ import annotations
