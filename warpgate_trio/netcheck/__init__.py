"""What this machine's network is like: the report, and what measures it."""

from __future__ import annotations

from .report import ClockCheck as ClockCheck
from .report import GatewayCheck as GatewayCheck
from .report import NetcheckReport as NetcheckReport
from .report import PathCheck as PathCheck
from .report import ServerCheck as ServerCheck
from .report import TransportCheck as TransportCheck

__all__ = [
    "ClockCheck",
    "GatewayCheck",
    "NetcheckReport",
    "PathCheck",
    "ServerCheck",
    "TransportCheck",
]
