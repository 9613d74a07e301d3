"""Time: measuring the clock by NTP, correcting it, and agreeing with a peer on an instant."""

from __future__ import annotations
