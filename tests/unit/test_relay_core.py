"""Circuits on a rendezvous server: who may open one, how much it holds, and the order in which data is passed on."""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Sequence

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from warpgate_trio.identity import Identity
from warpgate_trio.servers.relay_core import CIRCUIT_BYTES, RelayLimits, RelayRules
from warpgate_trio.servers.relay_frames import (
    ALL_CIRCUITS,
    INITIAL_CREDIT,
    MAX_RELAY,
    MERGED,
    Answer,
    Call,
    EndReason,
    Relay,
    RelayCredit,
    RelayEnd,
    Ring,
)
from warpgate_trio.servers.rendezvous_core import RendezvousCore, RendezvousLimits
from warpgate_trio.servers.rendezvous_frames import (
    ANY_INSTANCE,
    CONTEXT_3,
    Capability,
    Challenge,
    Error,
    ErrorCode,
    FromClient,
    FromServer,
    Message,
    Register3,
    Registered,
    Registrant,
    Send,
    decode_from_server,
    register_2,
)
from warpgate_trio.signal.circuits import Circuits

ALICE = Identity.from_seed(bytes(range(32)))
BOB = Identity.from_seed(bytes(range(32, 64)))
CAROL = Identity.from_seed(bytes(range(64, 96)))
NONCE = bytes(range(32))
NAME = "relay.example:443"
TOKEN = "a token"
T = 1000.0
WHOLE = bytes(MAX_RELAY)


class Client:
    """A client of version 3 on a core, and the frames that the server writes to it."""

    def __init__(
        self,
        core: RendezvousCore,
        identity: Identity,
        *,
        token: str | None = None,
        instance: bytes = b"instance",
        host: str = "192.0.2.1",
        ahead: Call | None = None,
    ) -> None:
        self.core = core
        self.state, challenge = core.connect(NONCE, T, host=host, version=3, names={NAME})
        assert decode_from_server(challenge) == Challenge(NONCE, 3)
        self.registration = Registrant(instance, relay_token=token).answer(identity, Challenge(NONCE, 3), NAME)
        if ahead is None:
            self.say(self.registration)
            (self.registered,) = self.drain()
        else:
            self.woken = core.call_ahead(self.state, ahead.encode(), T)

    def say(self, frame: FromClient, now: float = T) -> FromServer | None:
        answer, _ = self.core.receive(self.state, frame.encode(), now)
        return None if answer is None else decode_from_server(answer)

    def take(self) -> FromServer | None:
        """Write the next frame, and return it."""
        data = self.core.transmit(self.state, T)
        if data is None:
            return None
        self.core.written(self.state)
        return decode_from_server(data)

    def drain(self) -> list[FromServer]:
        return list(iter(self.take, None))

    def call(self, receiver: Identity, circuit: int = 1, now: float = T) -> FromServer | None:
        return self.say(Call(circuit, receiver.public_key, ANY_INSTANCE, b"hello"), now)


def open_core(**limits: float) -> RendezvousCore:
    relay = dataclasses.replace(RelayLimits(), **limits)  # type: ignore[arg-type]
    return RendezvousCore(relay=RelayRules(token=TOKEN, open_to_all=True, limits=relay))


def circuit_of(core: RendezvousCore) -> tuple[Client, Client]:
    """Alice has called Bob, who has answered: circuit 1 on Alice's side, 2 on Bob's."""
    alice, bob = Client(core, ALICE), Client(core, BOB)
    assert alice.call(BOB) is None
    assert bob.drain() == [Ring(2, b"hello")]
    assert bob.say(Answer(2, b"yes")) is None
    assert alice.drain() == [Answer(1, b"yes")]
    return alice, bob


def relayed(frames: Sequence[FromServer]) -> bytes:
    return b"".join(frame.data for frame in frames if isinstance(frame, Relay))


# -- calls -------------------------------------------------------------------------------------------------------------


def test_from_call_to_end() -> None:
    core = open_core()
    alice, bob = circuit_of(core)
    alice.say(Relay(1, b"ping"))
    assert bob.state in core.woken()
    assert bob.drain() == [Relay(2, b"ping")]
    bob.say(Relay(2, b"pong"))
    bob.say(RelayEnd(2, EndReason.CLOSED))
    assert alice.drain() == [Relay(1, b"pong"), RelayEnd(1, EndReason.CLOSED)]
    assert bob.drain() == []
    found = core.statistics().relay
    assert (found.circuits, found.held, found.calls, found.answered, found.relayed_bytes) == (0, 0, 1, 1, 8)


def test_who_may_relay_is_said_at_registration() -> None:
    closed = RendezvousCore(relay=RelayRules(token=TOKEN))
    assert relaying(Client(closed, ALICE)) == Capability.RELAY
    assert relaying(Client(closed, ALICE, token="another")) == Capability.RELAY
    assert relaying(Client(closed, ALICE, token=TOKEN)) == Capability.RELAY | Capability.MAY_RELAY
    assert relaying(Client(open_core(), ALICE)) == Capability.RELAY | Capability.MAY_RELAY
    assert relaying(Client(RendezvousCore(), ALICE, token=TOKEN)) == 0


def relaying(client: Client) -> int:
    """The capabilities concerning circuits that the server has announced."""
    assert isinstance(client.registered, Registered)
    return (client.registered.capabilities or 0) & (Capability.RELAY | Capability.MAY_RELAY)


@pytest.mark.parametrize("who", ["caller", "receiver"])
def test_one_of_the_two_needs_the_token(who: str) -> None:
    core = RendezvousCore(relay=RelayRules(token=TOKEN))
    alice = Client(core, ALICE, token=TOKEN if who == "caller" else None)
    bob = Client(core, BOB, token=TOKEN if who == "receiver" else None)
    assert alice.call(BOB) is None
    assert bob.drain() == [Ring(2, b"hello")]
    carol, dave = Client(core, CAROL), Client(core, Identity.from_seed(bytes(32)))
    assert carol.call(Identity.from_seed(bytes(32))) == RelayEnd(1, EndReason.NOT_ALLOWED)
    assert dave.drain() == []


# -- calls that come ahead of the registration -------------------------------------------------------------------------


AHEAD = Call(1, BOB.public_key, ANY_INSTANCE, b"hello")


def test_a_call_rings_before_its_caller_has_registered() -> None:
    core = open_core()
    bob = Client(core, BOB)
    alice = Client(core, ALICE, ahead=AHEAD)
    assert alice.woken == [bob.state]
    assert bob.drain() == [Ring(2, b"hello")]
    assert alice.say(alice.registration) is None
    assert [type(frame) for frame in alice.drain()] == [Registered]
    bob.say(Answer(2, b"yes"))
    bob.say(Relay(2, b"ping"))
    assert alice.drain() == [Answer(1, b"yes"), Relay(1, b"ping")]


def test_who_has_not_registered_hears_nothing_of_its_call() -> None:
    core = open_core()
    bob, alice = Client(core, BOB), Client(core, ALICE, ahead=AHEAD)
    bob.say(Answer(2, b"yes"))
    bob.say(Relay(2, b"ping"))
    assert alice.drain() == []
    alice.say(alice.registration)
    assert [type(frame) for frame in alice.drain()] == [Registered, Answer, Relay]
    assert alice.say(Relay(1, b"pong")) is None
    assert bob.drain() == [Ring(2, b"hello"), Relay(2, b"pong")]


@pytest.mark.parametrize("answered", [False, True])
@pytest.mark.parametrize("who", ["caller", "receiver", "nobody"])
def test_whether_a_call_may_be_relayed_is_judged_at_the_registration(who: str, answered: bool) -> None:
    core = RendezvousCore(relay=RelayRules(token=TOKEN))
    bob = Client(core, BOB, token=TOKEN if who == "receiver" else None)
    alice = Client(core, ALICE, token=TOKEN if who == "caller" else None, ahead=AHEAD)
    if answered:
        bob.say(Answer(2, b"yes"))
    alice.say(alice.registration)
    if not answered:
        bob.say(Answer(2, b"yes"))
    bob.say(Relay(2, b"ping"))
    heard = alice.drain()[1:]
    if who != "nobody":
        assert heard == [Answer(1, b"yes"), Relay(1, b"ping")]
    else:
        assert heard == [RelayEnd(1, EndReason.NOT_ALLOWED)], "an answer would be taken for a Pipe"
        assert bob.drain()[-1] == RelayEnd(2, EndReason.NOT_ALLOWED)
        assert core.statistics().relay.circuits == 0


def test_of_several_that_were_rung_those_stay_that_may_be() -> None:
    core = RendezvousCore(relay=RelayRules(token=TOKEN))
    without, with_token = Client(core, BOB), Client(core, BOB, token=TOKEN, instance=b"another.")
    alice = Client(core, ALICE, ahead=AHEAD)
    alice.say(alice.registration)
    assert without.drain() == [Ring(2, b"hello"), RelayEnd(2, EndReason.NOT_ALLOWED)]
    with_token.say(Answer(2, b"yes"))
    assert alice.drain()[1:] == [Answer(1, b"yes")]


def test_what_becomes_of_a_call_in_vain_is_said_behind_the_registration() -> None:
    core = open_core()
    alice = Client(core, ALICE, ahead=AHEAD)
    assert alice.drain() == []
    alice.say(alice.registration)
    assert alice.drain()[1:] == [RelayEnd(1, EndReason.NOBODY_HOME)]
    nobodys = RendezvousCore()
    alice, _ = Client(nobodys, ALICE, ahead=AHEAD), Client(nobodys, BOB)
    alice.say(alice.registration)
    assert alice.drain()[1:] == [RelayEnd(1, EndReason.NOT_ALLOWED)]


@pytest.mark.parametrize("answered", [False, True])
@pytest.mark.parametrize("leaves", [False, True])
def test_who_is_not_registered_after_all_has_called_nobody(leaves: bool, answered: bool) -> None:
    core = open_core()
    bob, alice = Client(core, BOB), Client(core, ALICE, ahead=AHEAD)
    if answered:
        bob.say(Answer(2, b"yes"))
    if leaves:
        core.disconnect(alice.state, T)
    else:
        assert isinstance(alice.say(msgspec.structs.replace(alice.registration, signature=bytes(64))), Error)
        assert alice.drain() == []
        core.disconnect(alice.state, T)
    assert bob.drain() == [Ring(2, b"hello"), RelayEnd(2, EndReason.GONE)]
    found = core.statistics()
    assert (found.queued, found.relay.circuits, found.relay.held) == (0, 0, 0)


def test_a_client_that_calls_ahead_and_speaks_of_no_circuits() -> None:
    core = open_core()
    bob, alice = Client(core, BOB), Client(core, ALICE, ahead=AHEAD)
    assert isinstance(alice.registration, Register3)
    registration = msgspec.structs.replace(alice.registration, capabilities=Capability(0))
    alice.say(msgspec.structs.replace(registration, signature=ALICE.sign(CONTEXT_3, NONCE + registration.signed)))
    assert [type(frame) for frame in alice.drain()] == [Registered]
    assert bob.drain() == [Ring(2, b"hello"), RelayEnd(2, EndReason.GONE)]


@settings(deadline=None, max_examples=50)
@given(st.binary(max_size=200) | st.binary(max_size=60).map(lambda data: b"\x0b\x00\x00\x00\x02" + data))
def test_what_comes_ahead_and_is_no_call_is_passed_over(data: bytes) -> None:
    core = open_core()
    bob = Client(core, BOB)
    stranger, _ = core.connect(NONCE, T, host="192.0.2.2", version=3, names={NAME})
    assert core.call_ahead(stranger, data, T) == []
    old, _ = core.connect(NONCE, T, host="192.0.2.2", version=2, names={NAME})
    assert core.call_ahead(old, AHEAD.encode(), T) == []
    assert not stranger.closing
    assert (bob.drain(), core.statistics().relay.circuits) == ([], 0)


def test_who_speaks_no_version_3_is_not_rung() -> None:
    core = open_core()
    alice = Client(core, ALICE)
    old, _ = core.connect(NONCE, T, host="192.0.2.2", version=2, names={NAME})
    core.receive(old, register_2(BOB, Challenge(NONCE, 2), b"instance", NAME).encode(), T)
    core.written(old)
    assert alice.call(BOB) == RelayEnd(1, EndReason.NOBODY_HOME)
    answer, _ = core.receive(old, Call(1, ALICE.public_key, ANY_INSTANCE, b"x").encode(), T)
    assert answer is not None
    error = decode_from_server(answer)
    assert isinstance(error, Error)
    assert error.code == ErrorCode.PROTOCOL


def test_a_server_that_relays_for_nobody_says_so_to_who_has_called_before_it_knew() -> None:
    core = RendezvousCore()
    alice, bob = Client(core, ALICE), Client(core, BOB)
    assert alice.call(BOB) == RelayEnd(1, EndReason.NOT_ALLOWED)
    assert alice.say(RelayEnd(1, EndReason.REFUSED)) is None
    assert bob.drain() == []


def test_an_instance_can_be_called() -> None:
    core = open_core()
    alice = Client(core, ALICE)
    one, other = (Client(core, BOB, instance=name) for name in (b"11111111", b"22222222"))
    alice.say(Call(1, BOB.public_key, b"22222222", b"hello"))
    assert one.drain() == []
    assert other.drain() == [Ring(2, b"hello")]
    assert alice.say(Call(3, BOB.public_key, b"33333333", b"hello")) == RelayEnd(3, EndReason.NOBODY_HOME)


def test_the_first_process_that_answers_has_the_circuit() -> None:
    core = open_core()
    alice, one, other = Client(core, ALICE), Client(core, BOB), Client(core, BOB)
    alice.call(BOB)
    assert one.drain() == other.drain() == [Ring(2, b"hello")]
    one.say(Answer(2, b"one"))
    other.say(Answer(2, b"other"))
    assert alice.drain() == [Answer(1, b"one")]
    assert other.drain() == [RelayEnd(2, EndReason.ANSWERED_ELSEWHERE)]


def test_a_call_ends_when_nobody_takes_it() -> None:
    core = open_core()
    alice, one, other = Client(core, ALICE), Client(core, BOB), Client(core, BOB)
    alice.call(BOB)
    one.say(RelayEnd(2, EndReason.REFUSED))
    assert alice.drain() == []
    core.disconnect(other.state, T)
    assert alice.drain() == [RelayEnd(1, EndReason.GONE)]
    assert core.statistics().relay.circuits == 0


def test_a_call_that_its_caller_takes_back() -> None:
    core = open_core()
    alice, bob = Client(core, ALICE), Client(core, BOB)
    alice.call(BOB)
    alice.say(RelayEnd(1, EndReason.CLOSED))
    assert bob.drain() == [Ring(2, b"hello"), RelayEnd(2, EndReason.CLOSED)]
    bob.say(Answer(2, b"too late"))
    assert alice.drain() == []
    assert core.statistics().relay.circuits == 0


@pytest.mark.parametrize("circuit", [0, 2, 1])
def test_a_number_that_is_taken_or_not_the_clients(circuit: int) -> None:
    alice, _ = circuit_of(open_core())
    error = alice.call(BOB, circuit)
    assert isinstance(error, Error)
    assert error.code == ErrorCode.PROTOCOL


def test_limits_are_said_by_their_names() -> None:
    core = open_core(circuits_per_connection=3, rings=2, circuits_per_address=4, circuits=100)
    alice, bob, carol = Client(core, ALICE), Client(core, BOB), Client(core, CAROL)
    assert [alice.call(BOB, number) for number in (1, 3)] == [None, None]
    assert alice.call(BOB, 5) == RelayEnd(5, EndReason.FULL), "rings"
    assert alice.call(CAROL, 5) is None
    assert alice.call(CAROL, 7) == RelayEnd(7, EndReason.TOO_MANY_HERE)
    assert carol.call(ALICE, 1) == RelayEnd(1, EndReason.FULL), "Alice has three"
    assert carol.call(BOB, 1) == RelayEnd(1, EndReason.FULL)
    assert [number for number, _ in enumerate(bob.drain())] == [0, 1]
    dave = Client(core, Identity.from_seed(bytes(32)))
    assert carol.call(Identity.from_seed(bytes(32)), 1) is None
    assert carol.call(Identity.from_seed(bytes(32)), 3) == RelayEnd(3, EndReason.TOO_MANY_OF_ADDRESS)
    assert len(dave.drain()) == 1
    full = open_core(circuits=0)
    alice, bob = Client(full, ALICE), Client(full, BOB)
    assert alice.call(BOB) == RelayEnd(1, EndReason.TOO_MANY_IN_ALL)


def test_calls_count_as_sends() -> None:
    core = RendezvousCore(RendezvousLimits(send_burst=2), relay=RelayRules(open_to_all=True))
    alice = Client(core, ALICE)
    assert [alice.call(BOB, number) for number in (1, 3)] == [
        RelayEnd(number, EndReason.NOBODY_HOME) for number in (1, 3)
    ]
    error = alice.call(BOB, 5)
    assert isinstance(error, Error)
    assert error.code == ErrorCode.RATE


def test_a_receiver_whose_queue_is_full() -> None:
    core = RendezvousCore(RendezvousLimits(queue=1), relay=RelayRules(open_to_all=True))
    alice, bob = Client(core, ALICE), Client(core, BOB)
    alice.say(Send(1, BOB.public_key, b"x"))
    assert alice.call(BOB) is None
    assert alice.drain() == [RelayEnd(1, EndReason.FULL)]
    assert bob.drain() == [Message(b"x")]
    assert core.statistics().relay.circuits == 0


# -- time --------------------------------------------------------------------------------------------------------------


def test_an_unanswered_call_ends() -> None:
    core = open_core()
    alice, bob = Client(core, ALICE), Client(core, BOB)
    alice.call(BOB)
    assert core.deadline(alice.state) == T + 60
    core.handle_timer(alice.state, T + 59)
    assert alice.drain() == []
    core.handle_timer(alice.state, T + 60)
    assert alice.drain() == [RelayEnd(1, EndReason.UNANSWERED)]
    assert bob.drain() == [Ring(2, b"hello"), RelayEnd(2, EndReason.UNANSWERED)]


def test_an_idle_circuit_ends() -> None:
    core = open_core()
    alice, bob = circuit_of(core)
    bob.say(Relay(2, b"x"), T + 100)
    assert core.deadline(alice.state) == T + 700
    core.handle_timer(alice.state, T + 700)
    assert alice.drain() == [Relay(1, b"x"), RelayEnd(1, EndReason.IDLE)]
    assert bob.drain() == [RelayEnd(2, EndReason.IDLE)]


def test_an_end_that_nobody_takes() -> None:
    core = open_core()
    alice, bob = circuit_of(core)
    for _ in range(2):
        alice.say(Relay(1, WHOLE))
        bob.take()
        alice.drain()
    alice.say(RelayEnd(1, EndReason.CLOSED), T + 1)
    assert bob.drain() == []  # Bob's circuit has no credit
    assert core.statistics().relay.circuits == 1
    assert core.deadline(bob.state) == T + 61
    core.handle_timer(bob.state, T + 61)
    found = core.statistics().relay
    assert (found.circuits, found.held) == (0, 0)


# -- credit ------------------------------------------------------------------------------------------------------------


def test_credit_is_renewed_as_the_server_writes_on() -> None:
    core = open_core()
    alice, bob = circuit_of(core)
    alice.say(Relay(1, WHOLE))
    assert alice.drain() == [], "nothing was written on"
    assert bob.drain() == [Relay(2, WHOLE)]
    assert alice.drain() == [RelayCredit(1, INITIAL_CREDIT + 2 * INITIAL_CREDIT)], "and its window has grown"


def test_the_window_grows_up_to_what_a_circuit_may_hold() -> None:
    core = open_core()
    alice, bob = circuit_of(core)
    limit = sent = 0
    limit = INITIAL_CREDIT
    for _ in range(20):
        while sent < limit:
            size = min(MAX_RELAY, limit - sent)
            alice.say(Relay(1, bytes(size)))
            sent += size
        bob.say(RelayCredit(2, 2 * sent))
        bob.drain()
        limit = max(frame.limit for frame in alice.drain() if isinstance(frame, RelayCredit))
    assert limit - sent == CIRCUIT_BYTES - INITIAL_CREDIT


def test_the_server_keeps_to_a_clients_credit() -> None:
    core = open_core()
    alice, bob = circuit_of(core)
    alice.say(Relay(1, bytes(40_000)))
    assert bob.drain() == [Relay(2, bytes(40_000))]
    alice.say(Relay(1, bytes(40_000)))
    assert bob.drain() == [Relay(2, bytes(INITIAL_CREDIT - 40_000))]
    bob.say(RelayCredit(2, 70_000))
    bob.say(RelayCredit(2, 60_000))
    assert bob.drain() == [Relay(2, bytes(70_000 - INITIAL_CREDIT))]


def test_who_exceeds_its_credit_loses_the_circuit() -> None:
    core = open_core()
    alice, bob = circuit_of(core)
    alice.say(Relay(1, WHOLE))
    alice.say(Relay(1, b"x"))
    assert alice.drain() == [RelayEnd(1, EndReason.OVERRUN)]
    assert bob.drain() == [Relay(2, WHOLE), RelayEnd(2, EndReason.OVERRUN)]
    assert alice.call(BOB, 3) is None, "and nothing else"


@pytest.mark.slow("32,768 frames")
def test_bytes_that_come_in_crumbs_cost_no_more_than_others() -> None:
    """An object for each two bytes would take twenty times as much memory as was counted."""
    alice, bob = circuit_of(open_core())
    sent = b"".join(number.to_bytes(2, "big") for number in range(INITIAL_CREDIT // 2))
    for start in range(0, INITIAL_CREDIT, 2):
        assert alice.say(Relay(1, sent[start : start + 2])) is None
    assert len(bob.state.legs[2].waiting) <= 2 * INITIAL_CREDIT // MERGED
    assert bob.say(RelayCredit(2, 2**20)) is None
    assert relayed(bob.drain()) == sent


def test_crumbs_cost_a_client_no_more_either() -> None:
    circuits = Circuits("ws://server")
    circuits.open(("", 0), ("", 0), lambda _: True, 0.0)
    circuit = circuits.make()
    circuits.hear(Answer(1, b"yes"))
    for _ in range(INITIAL_CREDIT // 16):
        circuits.hear(Relay(1, b"ab"))
    assert len(circuit._waiting) <= 2 * INITIAL_CREDIT // MERGED


def test_nothing_is_relayed_before_the_answer() -> None:
    core = open_core()
    alice, bob = Client(core, ALICE), Client(core, BOB)
    alice.call(BOB)
    alice.say(Relay(1, b"x"))
    assert alice.drain() == [RelayEnd(1, EndReason.OVERRUN)]
    assert bob.drain() == [Ring(2, b"hello"), RelayEnd(2, EndReason.OVERRUN)]


def test_a_circuit_that_is_not_read_stops_nothing_else() -> None:
    core = open_core()
    alice, bob = circuit_of(core)
    alice.call(BOB, 3)
    bob.drain()
    bob.say(Answer(4, b"yes"))
    alice.drain()
    for _ in range(2):
        alice.say(Relay(1, WHOLE))
        bob.drain()
    assert core.statistics().relay.held == MAX_RELAY
    alice.say(Relay(3, b"on and on"))
    assert bob.drain() == [Relay(4, b"on and on")]


# -- order -------------------------------------------------------------------------------------------------------------


def test_signals_overtake_relayed_bytes() -> None:
    core = open_core()
    alice, bob = circuit_of(core)
    carol = Client(core, CAROL)
    alice.say(Relay(1, b"1" * 1000))
    alice.say(Relay(1, b"2" * 1000))
    assert core.transmit(bob.state, T) == Relay(2, b"1" * 1000).encode(), "is being written"
    carol.say(Send(1, BOB.public_key, b"signal"))
    assert core.transmit(bob.state, T) == Relay(2, b"1" * 1000).encode()
    core.written(bob.state)
    assert bob.drain() == [Message(b"signal"), Relay(2, b"2" * 1000)]


def test_circuits_take_turns_and_credit_goes_before() -> None:
    core = open_core()
    alice, bob = circuit_of(core)
    alice.call(BOB, 3)
    bob.drain()
    bob.say(Answer(4, b"yes"))
    alice.drain()
    first, second = b"a" * MERGED, b"b" * MERGED  # frames with less data would be merged
    for data in (first, second):
        for circuit in (1, 3):
            alice.say(Relay(circuit, data))
    assert bob.drain() == [Relay(2, first), Relay(4, first), Relay(2, second), Relay(4, second)]
    bob.say(Relay(2, WHOLE))
    alice.say(Relay(1, b"c"))
    alice.take()
    assert [type(frame) for frame in bob.drain()] == [RelayCredit, Relay]


# -- any order of events -----------------------------------------------------------------------------------------------


class Side:
    """One side of a circuit in the model, which keeps to its credit."""

    def __init__(self, client: Client, circuit: int) -> None:
        self.client, self.circuit = client, circuit
        self.limit, self.sent = INITIAL_CREDIT, 0
        self.granted, self.got = INITIAL_CREDIT, 0
        self.to_come: deque[int] = deque()  # sizes of what the other side has sent

    def hear(self, frame: FromServer) -> None:
        if isinstance(frame, RelayCredit):
            assert frame.limit > self.limit, "credit grows"
            self.limit = frame.limit
        elif isinstance(frame, Relay):
            expected = bytes((self.got + n) % 251 for n in range(len(frame.data)))
            assert frame.data == expected, "whole, in order, once"
            self.got += len(frame.data)
            assert self.got <= self.granted, "never more than the client has granted"
        else:
            pytest.fail(f"{frame}")


@settings(deadline=None, max_examples=150)
@given(
    st.lists(
        st.tuples(st.sampled_from(["send", "take", "grant", "signal"]), st.booleans(), st.integers(1, MAX_RELAY)),
        max_size=60,
    )
)
@pytest.mark.slow("hypothesis")
def test_any_order_of_events(events: list[tuple[str, bool, int]]) -> None:
    core = open_core()
    alice, bob = circuit_of(core)
    sides = [Side(alice, 1), Side(bob, 2)]
    signals = 0
    for event, first, size in events:
        side = sides[0 if first else 1]
        client = side.client
        if event == "send":
            size = min(size, side.limit - side.sent)
            if size:
                client.say(Relay(side.circuit, bytes((side.sent + n) % 251 for n in range(size))))
                side.sent += size
        elif event == "grant":
            side.granted += size
            client.say(RelayCredit(side.circuit, side.granted))
        elif event == "signal":
            signals += 1
            client.say(Send(signals, (BOB if first else ALICE).public_key, b"x"))
            other = sides[1 if first else 0].client
            assert other.take() == Message(b"x"), "before all that is relayed"
        elif (frame := client.take()) is not None:
            side.hear(frame)
        held = core.statistics().relay.held
        assert held == sum(each.sent for each in sides) - sum(each.got for each in sides)
        assert held <= CIRCUIT_BYTES
    for side in sides:
        side.granted = 2**40
        side.client.say(RelayCredit(side.circuit, side.granted))
    for side in sides:
        for frame in side.client.drain():
            side.hear(frame)
    assert (sides[0].got, sides[1].got) == (sides[1].sent, sides[0].sent)
    for side in sides:
        core.disconnect(side.client.state, T)
    found = core.statistics().relay
    assert (found.circuits, found.held) == (0, 0)


# -- a server that is shut down ----------------------------------------------------------------------------------------


def test_a_server_that_drains_ends_circuits_behind_what_waits() -> None:
    core = open_core()
    alice, bob = circuit_of(core)
    alice.say(Relay(1, b"the last words"))
    core.drain(T)
    assert {alice.state, bob.state} <= set(core.woken())
    assert not core.is_over(bob.state)
    alice.say(Relay(1, b"too late"))
    assert bob.drain() == [Relay(2, b"the last words"), RelayEnd(2, EndReason.SHUTTING_DOWN)]
    assert alice.drain() == [RelayEnd(1, EndReason.SHUTTING_DOWN)]
    assert core.is_over(alice.state)
    assert core.is_over(bob.state)
    assert core.statistics().relay.circuits == 0


def test_a_server_that_drains_takes_no_calls_back_and_makes_none() -> None:
    core = open_core()
    alice, bob = Client(core, ALICE), Client(core, BOB)
    alice.call(BOB)
    core.drain(T)
    assert alice.drain() == [RelayEnd(1, EndReason.SHUTTING_DOWN)]
    assert bob.drain() == [Ring(2, b"hello"), RelayEnd(2, EndReason.SHUTTING_DOWN)]
    assert alice.call(BOB, 3) == RelayEnd(3, EndReason.SHUTTING_DOWN)
    assert bob.drain() == []
    assert core.statistics().relay.circuits == 0


def test_a_server_that_warns_keeps_the_circuits_that_are_answered() -> None:
    """Their clients receive the end of all circuits; clients without a circuit are over, and new calls are refused."""
    core = open_core()
    alice, bob = circuit_of(core)
    carol = Client(core, CAROL)
    carol.call(BOB, 1)
    assert bob.drain() == [Ring(4, b"hello")]
    core.warn(T)
    said = RelayEnd(ALL_CIRCUITS, EndReason.SHUTTING_DOWN)
    assert alice.drain() == [said]
    assert bob.drain() == [said, RelayEnd(4, EndReason.SHUTTING_DOWN)]
    assert carol.drain() == [RelayEnd(1, EndReason.SHUTTING_DOWN)]
    assert core.is_over(carol.state)
    assert carol.call(BOB, 3) == RelayEnd(3, EndReason.SHUTTING_DOWN)
    assert not core.is_over(alice.state)
    alice.say(Relay(1, b"still there"))
    assert bob.drain() == [Relay(2, b"still there")]
    core.woken()
    alice.say(RelayEnd(1, EndReason.CLOSED))
    assert alice.state in core.woken(), "to be closed"
    assert core.is_over(alice.state)
    assert bob.drain() == [RelayEnd(2, EndReason.CLOSED)]
    assert core.is_over(bob.state)


def test_a_server_that_has_warned_ends_what_was_not_left() -> None:
    core = open_core()
    alice, bob = circuit_of(core)
    core.warn(T)
    alice.say(Relay(1, b"the last words"))
    core.drain(T)
    said = RelayEnd(ALL_CIRCUITS, EndReason.SHUTTING_DOWN)
    assert bob.drain() == [said, Relay(2, b"the last words"), RelayEnd(2, EndReason.SHUTTING_DOWN)]
    assert alice.drain() == [said, RelayEnd(1, EndReason.SHUTTING_DOWN)]
    assert core.is_over(alice.state)
    assert core.is_over(bob.state)


def test_no_circuit_has_the_number_of_all() -> None:
    core = open_core()
    alice, bob = Client(core, ALICE), Client(core, BOB)
    bob.state.circuits_made = 2**32 - 2
    alice.call(BOB)
    assert bob.drain() == [Ring(2, b"hello")]


def test_a_client_that_drains_slowly_is_not_over_and_then_it_is() -> None:
    """Data without credit stays queued; the server may give up waiting for it, and still sends the circuit's end."""
    core = open_core()
    alice, bob = circuit_of(core)
    alice.say(Relay(1, WHOLE))
    assert bob.drain()[0] == Relay(2, WHOLE)
    alice.drain()
    alice.say(Relay(1, b"no credit for that"))
    core.drain(T)
    assert bob.drain() == []
    assert not core.is_over(bob.state)
    assert core.statistics().relay.held == 18
    core.give_up_waiting()
    assert bob.state in core.woken()
    assert bob.drain() == [RelayEnd(2, EndReason.SHUTTING_DOWN)]
    assert core.is_over(bob.state)
    assert core.statistics().relay.held == 0


def test_a_client_that_leaves_its_circuit_while_the_server_drains_is_over() -> None:
    core = open_core()
    alice, bob = circuit_of(core)
    alice.say(Relay(1, WHOLE))
    bob.drain()
    alice.drain()
    alice.say(Relay(1, b"no credit for that"))
    core.drain(T)
    core.woken()
    bob.say(RelayEnd(2, EndReason.CLOSED))
    assert bob.state in core.woken(), "there is nothing to write, and the connection is to be closed"
    assert core.is_over(bob.state)


def test_a_signal_that_waits_is_written_before_its_receiver_is_over() -> None:
    core = open_core()
    alice, bob = Client(core, ALICE), Client(core, BOB)
    alice.say(Send(1, BOB.public_key, b"signal"))
    core.drain(T)
    assert core.is_over(alice.state)
    assert not core.is_over(bob.state)
    assert bob.drain() == [Message(b"signal")]
    assert core.is_over(bob.state)


def test_nothing_is_over_on_a_server_that_does_not_drain() -> None:
    core = open_core()
    assert not core.is_over(Client(core, ALICE).state)


def test_a_reason_that_a_client_does_not_know_ends_its_circuit_like_any_other() -> None:
    circuits = Circuits("ws://relay.example")
    circuits.open(("", 0), ("", 0), lambda _: True, 0.0)
    circuit = circuits.make()
    circuits.hear(RelayEnd(1, 200))
    with pytest.raises(OSError, match="has ended: reason 200"):
        circuit._check_open()
    assert not circuits._open
