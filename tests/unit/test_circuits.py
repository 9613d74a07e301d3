"""One end of a circuit, without a server: how much it sends for which credit."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from warpgate_trio.carrier.records import IDLE
from warpgate_trio.servers.relay_frames import INITIAL_CREDIT, Answer, Relay, RelayCredit
from warpgate_trio.signal.circuits import FIRST_PIECE, PIECE, Circuits


@pytest.mark.parametrize("silence", [0.0, IDLE])
@pytest.mark.parametrize("credit", [0, 1, FIRST_PIECE - 1, FIRST_PIECE, PIECE])
async def test_what_is_sent_is_within_the_credit_and_worth_a_frame(
    autojump_clock: trio.testing.MockClock, credit: int, silence: float
) -> None:
    """After a silence, too, when first frames are small.  A frame without payload would end the connection."""
    circuits = Circuits("the server")
    circuit = circuits.make()
    circuit.hear(Answer(0, b""))
    frames: list[bytes] = []

    async def write() -> None:
        while frame := await circuits.outbox.take():
            frames.append(Relay.decode(frame).data)
            await trio.lowlevel.checkpoint()

    async def send() -> None:
        while True:
            await circuit.send(memoryview(bytes(INITIAL_CREDIT)))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(write)
        nursery.start_soon(send)
        await trio.testing.wait_all_tasks_blocked()
        before = sum(map(len, frames))
        assert before == INITIAL_CREDIT
        frames.clear()
        await trio.sleep(silence)
        circuit.hear(RelayCredit(0, INITIAL_CREDIT + credit))
        circuit.hear(Relay(0, b"an acknowledgement"))
        await trio.testing.wait_all_tasks_blocked()
        enough = FIRST_PIECE if silence else PIECE
        assert sum(map(len, frames)) == (credit - credit % enough)
        assert all(len(each) >= enough for each in frames)
        nursery.cancel_scope.cancel()
