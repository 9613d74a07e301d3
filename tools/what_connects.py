"""Writes docs/what_connects.md: which phase connects two peers behind each two kinds of networks, and how soon.

    python tools/what_connects.py            simulate every pair, and write the page (some minutes)
    python tools/what_connects.py --check    exit with 1 when the page is not what the simulator says

Each pair has its own world with a fixed seed, so each cell can be computed by itself: a test computes some of them.
The nodes are those that users run, with a rendezvous server that relays, STUN servers and an NTP server.
"""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path
from typing import Final

from warpgate_trio.servers.rendezvous import RelayRules, open_rendezvous
from warpgate_trio.sim import NatConfig, presets
from warpgate_trio.testing.walks import NTP, RENDEZVOUS, STUN, STUN2, WorldServer, simulate_walk
from warpgate_trio.testing.worlds import PeerPair

PAGE: Final = Path(__file__).resolve().parents[1] / "docs" / "what_connects.md"
RTT: Final = 0.05
"""Seconds of a round trip between any two machines."""
KINDS: Final[dict[str, NatConfig | None]] = {
    "public": None,
    "full cone": presets.FULL_CONE,
    "restricted": presets.RESTRICTED,
    "Linux": presets.LINUX,
    "OpenWrt": presets.OPENWRT,
    "carrier": presets.CGN,
    "symmetric": presets.LINUX_SYMMETRIC,
    "mobile": presets.CGN_SYMMETRIC,
    "no UDP": presets.UDP_BLOCKED,
    "web only": presets.WEB_ONLY,
}
"""The networks that peers are in, by their names on the page."""
RELAYING: Final = WorldServer(
    key=RENDEZVOUS.key,
    url=RENDEZVOUS.url,
    machine=RENDEZVOUS.machine,
    open=lambda _host: open_rendezvous(
        host=None, port=443, public_urls=[RENDEZVOUS.url], relay=RelayRules(open_to_all=True)
    ),
)
SERVERS: Final = (RELAYING, STUN, STUN2, NTP)
HEAD: Final = """\
# What connects with what

Who calls is on the left, who is called on top. Each cell has the phase that connects, and the seconds from the call to
the first byte that came back. All of it is simulated with the nodes that users run: 50 ms between any two machines and
back, no loss, a rendezvous server on TCP port 443 that relays, two STUN servers and a time server; no TURN server. On
`serve`'s own port, 8765, a *web only* machine reaches no server, and does not connect: `--port 443` is for those. Where
the phase is *spray*, the time is partly chance: it is that of one seed. `python tools/what_connects.py` writes this
page, and the tests ask for some of its cells again.

"""
TAIL: Final = """
A Pipe that begins by a relay need not wait for the phases before it: `warpgate-trio connect` begins by the relay
wherever it can, as do `send` and `forward`, and `auto_connect(relay_first=True)`. Then the first byte is back after
0.25 s in the median and 0.35 s at worst, by `ws` and the same distances, and behind a proxy after 0.50 and 0.65 s
([measured](walk.md#how-long-a-first-call-takes)). The Pipe changes over to a direct path when there is one.

Without a server that relays, and without a TURN server, the cells with *relay* do not connect; the report says why.

| name | what it is | preset |
| --- | --- | --- |
"""
MEANINGS: Final = {
    "public": "a public address, no firewall",
    "full cone": "one outside port for an inside port, and everybody may send to it",
    "restricted": "the same, but only who was sent something may answer",
    "Linux": "a router with Linux's masquerade: who was sent something may answer, from that port alone",
    "OpenWrt": "the same, but unasked packets are answered with an error",
    "carrier": "the NAT of a provider that shares addresses among customers (RFC 6888)",
    "symmetric": "a new outside port for each peer, chosen at random",
    "mobile": "the same, of a cellular network",
    "no UDP": "a firewall that lets no UDP out",
    "web only": "a company's firewall: TCP to ports 80 and 443, and nothing else",
}


def cell(caller: str, listener: str) -> str:
    """The result of a call between peers in two kinds of networks."""
    pair = PeerPair.between(KINDS[caller] or (), KINDS[listener] or (), rtt=RTT)
    walk = simulate_walk(pair, servers=SERVERS)
    if walk.first_byte is None or walk.report.winner is None:
        return f"no: {walk.report.verdict.value}"
    return f"{walk.report.winner.phase} {walk.first_byte:.2f}"


def render() -> str:
    """The page."""
    lines = [f"| | {' | '.join(KINDS)} |", f"| --- |{' --- |' * len(KINDS)}"]
    for caller in KINDS:
        print(caller, file=sys.stderr, flush=True)
        lines.append(f"| **{caller}** | {' | '.join(cell(caller, listener) for listener in KINDS)} |")
    rows = [
        f"| {name} | {MEANINGS[name]} | {'none' if nat is None else f'`{nat.name}`'} |" for name, nat in KINDS.items()
    ]
    return HEAD + "\n".join(lines) + "\n" + TAIL + "\n".join(rows) + "\n"


def main() -> None:
    """Writes the page, or with ``--check`` says whether it is current."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 when the page is not current")
    arguments = parser.parse_args()
    logging.getLogger("warpgate_trio").setLevel(logging.ERROR)
    page = render()
    if arguments.check:
        current = PAGE.exists() and PAGE.read_text(encoding="utf-8") == page
        sys.exit(None if current else f"{PAGE.name} is not what the simulator says: run python tools/what_connects.py")
    PAGE.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()
