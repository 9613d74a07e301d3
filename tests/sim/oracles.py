"""How likely a spray hits (the birthday problem), written without a look at the code that sprays."""

from __future__ import annotations

from math import exp, lgamma


def birthday(sockets: int, probes: int, ports: int) -> float:
    """The chance that one of `probes` different ports is one of `sockets` different ones among `ports`."""
    if sockets + probes > ports:
        return 1.0

    def log_choose(n: int, k: int) -> float:
        return lgamma(n + 1) - lgamma(k + 1) - lgamma(n - k + 1)

    return 1 - exp(log_choose(ports - sockets, probes) - log_choose(ports, probes))
