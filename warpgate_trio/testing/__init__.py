"""What tests of network programs need besides pytest and Trio's own helpers.

* `hosts`: `simulated_hosts` lets whole nodes run in a `warpgate_trio.sim.Network`, unchanged.
* `machine`: `simulated_machine`, the clocks of `time` and psutil for programs that ask those.
* `pipe_laws`: laws that a byte stream has to keep, for streams of your own.
* `world`: a world with servers for programs that are built on this package, and `theory`: what to expect in it.
* `restarts`: servers of a world that are killed and come back.
* `worlds`: worlds as plain data, `Topology` and `PeerPair`; `populations`: how common which NATs are.
* `strategies`: Hypothesis strategies for all that, and for NATs, links and faults.  It needs the extra ``testing``
  and is not imported by this module: ``from warpgate_trio.testing import strategies``.

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
