"""Helpers for tests of network programs.

* `hosts`: `simulated_hosts` runs whole nodes, unchanged, in a `warpgate_trio.sim.Network`.
* `machine`: `simulated_machine` replaces the clocks of `time` and the interfaces of psutil on simulated hosts.
* `pipe_laws`: checks of byte streams, for streams of your own.
* `world`: a world with servers, for programs that use this package; `theory`: which peers can connect in it.
* `restarts`: servers of a world that are killed and started again.
* `worlds`: worlds as plain data, `Topology` and `PeerPair`; `populations`: how common kinds of NATs are.
* `strategies`: Hypothesis strategies for these, and for NATs, links and faults.  It needs the extra ``testing`` and is
  not imported by this module: ``from warpgate_trio.testing import strategies``.

docs/howto/testing.md shows how they work together.
"""

from __future__ import annotations

from .hosts import SimulatedHost, simulated_hosts
from .machine import simulated_machine
from .pipe_laws import (
    PipeMaker,
    StreamMaker,
    check_cancelled_receive,
    check_cancelled_send,
    check_early_eof,
    check_max_bytes,
    check_pipe,
    check_send_copies,
)
from .restarts import Restarts
from .theory import can_connect
from .world import WORLD_CONFIG, World, world

__all__ = [
    "WORLD_CONFIG",
    "PipeMaker",
    "Restarts",
    "SimulatedHost",
    "StreamMaker",
    "World",
    "can_connect",
    "check_cancelled_receive",
    "check_cancelled_send",
    "check_early_eof",
    "check_max_bytes",
    "check_pipe",
    "check_send_copies",
    "simulated_hosts",
    "simulated_machine",
    "world",
]
