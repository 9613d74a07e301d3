"""Diagnosis of this host's network: the report, and the probes that measure it."""

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
