"""What time it is: asking by NTP, correcting, and agreeing with a peer on an instant."""

from __future__ import annotations
