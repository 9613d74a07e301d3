"""How long a Pipe is silent after its new direct path becomes a hole (loses all packets); simulated, in virtual time.

A Pipe that began on a relay carries bulk data one way, the other way, or both ways; the worst receiver of these counts.
The rows say when the new path becomes a hole, and which packets are lost: what the caller's network sends (out),
what the listener's does (back), or all (both).  Each column is a plugin that makes the path: seconds of silence,
and by how much that is longer than in the same world without the hole.  `tests.sim.holes` has the worlds.
"""

from __future__ import annotations

import argparse

from tests.sim.holes import LOADS, MOMENTS, PLUGINS, WAYS, Hole, Load, Plugin, bar, fall


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rtt", type=float, default=50.0, help="milliseconds between any two machines")
    rtt = parser.parse_args().rtt / 1000
    good: dict[tuple[Plugin, Load, bool], float] = {}
    for plugin in PLUGINS:
        for load in LOADS:
            for search in (False, True):
                good[plugin, load, search] = fall(plugin, load, None, rtt=rtt, search=search).worst
    print(f"{'a hole at the':14} {'of':5} {'bar':>5} " + " ".join(f"{plugin:>15}" for plugin in PLUGINS))
    for moment in MOMENTS:
        after = bar(moment, rtt) > 0
        for way in WAYS:
            cells = []
            for plugin in PLUGINS:
                fallen = {load: fall(plugin, load, Hole(moment=moment, way=way), rtt=rtt).worst for load in LOADS}
                longer = max(silence - good[plugin, load, after] for load, silence in fallen.items())
                cells.append(f"{max(fallen.values()):7.2f} {longer:+7.2f}")
            print(f"{moment:14} {way:5} {bar(moment, rtt):5.2f} " + " ".join(cells), flush=True)
    for search, name in ((False, "none, relay"), (True, "none")):
        cells = [f"{max(good[plugin, load, search] for load in LOADS):7.2f} {'':7}" for plugin in PLUGINS]
        print(f"{name:14} {'':5} {'':5} " + " ".join(cells))


if __name__ == "__main__":
    main()
