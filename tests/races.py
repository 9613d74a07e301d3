"""As much of a plugin and its node as a race sees, so that the two ends of one can be tested by themselves."""

from __future__ import annotations

from contextlib import suppress
from types import SimpleNamespace
from typing import Any, cast

import trio

from tests.identities import ALICE, BOB
from warpgate_trio import Identity
from warpgate_trio import host as machine
from warpgate_trio.carrier import Carrier, TlsContexts
from warpgate_trio.carrier.quic import QuicCarrier
from warpgate_trio.plugin import Plugin
from warpgate_trio.punch.allowance import TARGET_DIALS, Allowance, DialBudget

SECRET = bytes(16)


class Half:
    """As much of a plugin as a race sees."""

    def __init__(self, *, inbound: bool, identity: Identity | None = None) -> None:
        own = identity or (BOB if inbound else ALICE)
        self.name = "half"
        self.inbound = inbound
        self.peer = SimpleNamespace(public_key=(ALICE if inbound else BOB).public_key)

        async def serve_quic(path: Any) -> Carrier:
            return await QuicCarrier.serve(path, own)

        self.node = SimpleNamespace(
            host=machine.current(),
            nat=SimpleNamespace(
                allowance=Allowance(), dials_for_peers=DialBudget(), own_dials=Allowance(burst=TARGET_DIALS, refill=0.0)
            ),
            tls=TlsContexts(own),
            signal_rtt=None,
            serve_quic=serve_quic,
        )

    def hold_phase(self) -> None:
        """Nobody waits here."""

    async def receive_proof(self, carrier: Carrier) -> Carrier:
        try:
            await trio.lowlevel.checkpoint()
        except BaseException:
            carrier.close_nowait()
            raise
        return carrier


def half(**options: Any) -> Plugin:
    return cast("Plugin", Half(**options))


async def hold(winner: Any) -> None:
    """Keep what a race gave until the other end has let go of it."""
    try:
        with suppress(trio.BrokenResourceError):
            await winner.receive()
    finally:
        winner.close_nowait()
