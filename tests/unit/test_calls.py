"""What the outcome of a call through a server tells about that server."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import trio
import trio.testing

from warpgate_trio.config import ServerUrl
from warpgate_trio.ports.server_dial import ServerDial
from warpgate_trio.servers.relay_frames import Answer, EndReason, Relay, RelayEnd
from warpgate_trio.signal.calls import CONNECTS_WITHIN, SILENT_FOR, SILENT_TRIPS, RelayingServer, _Judge, relays_of
from warpgate_trio.signal.circuits import Circuit, Circuits
from warpgate_trio.signal.slot import Slot
from warpgate_trio.standing import PASSED_OVER, Standing, Standings

SERVER = "ws://server"


class Channel:
    """The parts of a channel that `_Judge` uses."""

    rtt = 0.1

    def __init__(self) -> None:
        self.checks = 0
        self.circuits = Circuits(SERVER)
        self.circuits.open(("", 0), ("", 0), lambda _: True, 0.0)

    def check(self) -> bool:
        self.checks += 1
        return True


@pytest.fixture
def channel() -> Channel:
    return Channel()


@pytest.fixture
def standings() -> Standings[str]:
    return Standings()


def judged(channel: Channel, standings: Standings[str]) -> Circuit:
    circuit = channel.circuits.make()
    slot = SimpleNamespace(key=SERVER, channel=channel)
    circuit.judge = _Judge(standings, slot)  # type: ignore[arg-type]
    return circuit


def standing(standings: Standings[str]) -> Standing:
    return standings.of(SERVER, trio.current_time())


async def call(circuit: Circuit) -> None:
    await circuit.call(bytes(32), bytes(8), b"hello")


SERVERS = {EndReason.TOO_MANY_OF_ADDRESS, EndReason.TOO_MANY_IN_ALL, EndReason.SHUTTING_DOWN}


@pytest.mark.parametrize("reason", EndReason)
async def test_a_server_that_has_no_circuit_has_failed(
    reason: EndReason, channel: Channel, standings: Standings[str]
) -> None:
    """An end that is the peer's or this node's doing does not count against the server."""
    await call(judged(channel, standings))
    channel.circuits.hear(RelayEnd(1, reason))
    assert standing(standings) is (Standing.FAILED if reason in SERVERS else Standing.GOOD)


@pytest.mark.parametrize("how", ["by the server", "with the connection"])
@pytest.mark.parametrize("came", [False, True])
async def test_a_server_whose_circuit_ends_before_anything_came_has_failed(
    how: str, came: bool, channel: Channel, standings: Standings[str]
) -> None:
    await call(judged(channel, standings))
    channel.circuits.hear(Answer(1, b"yes"))
    if came:
        channel.circuits.hear(Relay(1, b"x"))
    if how == "by the server":
        channel.circuits.hear(RelayEnd(1, EndReason.GONE))
    else:
        channel.circuits.end("it broke")
    assert standing(standings) is (Standing.GOOD if came else Standing.FAILED)


async def test_a_server_by_which_something_comes_is_good_again(
    channel: Channel, standings: Standings[str], autojump_clock: trio.testing.MockClock
) -> None:
    standings.failed(SERVER, trio.current_time())
    await trio.sleep(PASSED_OVER)
    await call(judged(channel, standings))
    channel.circuits.hear(Answer(1, b"yes"))
    assert standing(standings) is Standing.ON_TRIAL
    channel.circuits.hear(Relay(1, b"x"))
    assert standing(standings) is Standing.GOOD


@pytest.mark.parametrize("long", [False, True])
async def test_a_call_that_is_given_up_after_a_while_says_that_its_server_is_silent(
    long: bool, channel: Channel, standings: Standings[str], autojump_clock: trio.testing.MockClock
) -> None:
    """The server is then asked whether it is still there."""
    circuit = judged(channel, standings)
    await call(circuit)
    await trio.sleep((SILENT_TRIPS * channel.rtt + SILENT_FOR) * (1.01 if long else 0.9))
    circuit.close()
    assert standing(standings) is (Standing.FAILED if long else Standing.GOOD)
    assert channel.checks == long


async def test_a_circuit_that_is_closed_here_says_nothing(
    channel: Channel, standings: Standings[str], autojump_clock: trio.testing.MockClock
) -> None:
    circuit = judged(channel, standings)
    await call(circuit)
    channel.circuits.hear(Answer(1, b"yes"))
    await trio.sleep(10)
    circuit.close()
    assert standing(standings) is Standing.GOOD


async def test_a_server_that_is_connected_to_for_the_first_time_is_not_behind_the_others(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """That is so during the first moments of the attempt; later, or after a failure, the server is behind."""
    slot = Slot(ServerUrl.parse(SERVER), ServerDial(None))
    keeper = SimpleNamespace(own=[slot], standings=Standings[str]())

    def found() -> RelayingServer:
        return relays_of(keeper)[SERVER]  # type: ignore[arg-type]

    slot.first_try = trio.current_time()
    assert (found().relays, found().standing) == (None, Standing.GOOD)
    await trio.sleep(CONNECTS_WITHIN)
    assert found().standing is Standing.FAILED
    slot.first_try, slot.last_error = trio.current_time(), "connection refused"
    assert found().standing is Standing.FAILED
