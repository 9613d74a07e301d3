"""The TURN client without I/O, against a minimal server and against arbitrary input."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from typing import Any, Final

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.turn_model import RELAYED, ModelServer
from warpgate_trio.errors import StunMalformed, StunRefused, StunTimeout
from warpgate_trio.sockaddr import TransportAddress
from warpgate_trio.stun.codec import (
    ALTERNATE_SERVER,
    BINDING,
    ERROR_CODE,
    ErrorCode,
    MessageClass,
    decode,
    encode,
    opaque,
)
from warpgate_trio.turn.client_core import ASK_INTERVAL, TRANSITIONS, TurnClientCore, TurnState
from warpgate_trio.turn.framing import decode_channel_data, encode_channel_data, is_channel_data
from warpgate_trio.turn.grants import MAX_GRANTS, RENEWAL
from warpgate_trio.turn.login import Credentials
from warpgate_trio.turn.messages import DATA, LIFETIME, XOR_PEER_ADDRESS, XOR_RELAYED_ADDRESS, Code, Method

SERVER = ("198.51.100.1", 3478)
PEER = ("203.0.113.5", 4000)


class Net:
    """A client, a server and a clock; datagrams arrive at once."""

    def __init__(self, server: ModelServer | None = None, *, password: str = "secret", **options: Any) -> None:
        self.server = server or ModelServer()
        self.now = 1000.0
        self.sent: list[bytes] = []
        self.lossy: Callable[[bytes], bool] = lambda _: False
        chance = random.Random(1)
        self.client = TurnClientCore(
            SERVER, entropy=chance.randbytes, credentials=Credentials("user", password), **options
        )

    def state(self) -> TurnState:
        return self.client.state

    def flush(self) -> list[bytes]:
        """Transmit the client's requests, and return the answers without delivering them."""
        requests = self.client.transmit(self.now)
        self.sent += requests
        answers = [self.server.receive(each, self.now) for each in requests]
        return [each for each in answers if each is not None and not self.lossy(each)]

    def settle(self) -> None:
        """Exchange datagrams until neither side has anything to send."""
        while answers := self.flush():
            for each in answers:
                self.client.receive(each, self.now)

    def wait(self, seconds: float) -> None:
        """Let time pass, and exchange datagrams meanwhile."""
        end = self.now + seconds
        self.settle()
        while self.client.deadline <= end:
            self.now = max(self.now, self.client.deadline)
            self.client.handle_timer(self.now)
            self.settle()
        self.now = end

    def allocated(self) -> Net:
        self.client.allocate(self.now)
        self.settle()
        assert self.client.state is TurnState.ALLOCATED, self.client.error
        return self


def methods(net: Net) -> list[Method]:
    return [method for method, _ in net.server.seen]


# --- a server that will be shut down ----------------------------------------------------------------------------------

INDICATION = encode(BINDING, MessageClass.INDICATION, bytes(12), ())


def test_a_server_that_wants_to_be_asked_and_grants_little_is_left() -> None:
    net = Net().allocated()
    net.client.receive(INDICATION, net.now)
    net.settle()
    assert methods(net)[-1] is Method.REFRESH
    assert not net.client.leaving, "it has granted as much as ever"
    net.now += ASK_INTERVAL
    net.server.lifetime = 20
    net.client.receive(INDICATION, net.now)
    net.settle()
    assert net.client.leaving
    assert net.state() is TurnState.ALLOCATED


def test_who_wants_to_be_asked_all_the_time_is_not() -> None:
    net = Net().allocated()
    before = len(net.server.seen)
    for _ in range(10):
        net.client.receive(INDICATION, net.now)
        net.settle()
    assert len(net.server.seen) == before + 1


def test_a_server_that_never_grants_more_is_not_left() -> None:
    server = ModelServer()
    server.lifetime = 30
    net = Net(server).allocated()
    net.wait(100)
    assert methods(net).count(Method.REFRESH) > 3
    assert not net.client.leaving


# --- getting an allocation --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sha256", [False, True])
def test_an_allocation_takes_two_exchanges(sha256: bool) -> None:
    net = Net(ModelServer(sha256=sha256)).allocated()
    assert net.client.relayed == RELAYED
    assert net.server.seen == [(Method.ALLOCATE, False), (Method.ALLOCATE, True)]


def test_a_primed_one_takes_one() -> None:
    net = Net()
    net.client.prime(net.now)
    net.settle()
    assert net.state() is TurnState.PRIMED
    assert net.client.deadline == math.inf
    net.now += 50
    net.client.allocate(net.now)
    answers = net.flush()
    net.client.receive(answers[0], net.now)
    assert net.state() is TurnState.ALLOCATED


def test_permission_and_channel_go_in_one_flight_with_it() -> None:
    net = Net()
    permission, channel = net.client.permit("203.0.113.9", net.now), net.client.bind(PEER, net.now)
    net.client.allocate(net.now)
    for each in net.flush():
        net.client.receive(each, net.now)
    answers = net.flush()
    assert len(answers) == 3
    for each in answers:
        net.client.receive(each, net.now)
    assert permission.granted
    assert channel.granted
    assert net.client.transmit(net.now) == []


NOTHING_THERE: Final = [400, 437]
"""Error codes of servers for requests about an allocation that does not exist: coturn's, and RFC 8656's."""


@pytest.mark.parametrize("code", NOTHING_THERE)
@pytest.mark.parametrize("first", [0, 1])
def test_what_is_refused_before_the_allocation_stands_or_overtakes_it_is_asked_again(first: int, code: int) -> None:
    net = Net(ModelServer(nothing_there=code))
    grant = net.client.bind(PEER, net.now)
    net.client.prime(net.now)
    net.settle()
    net.client.allocate(net.now)
    allocate, bind = net.client.transmit(net.now)
    early = net.server.receive(bind, net.now)  # the server looks the user up asynchronously
    granted = net.server.receive(allocate, net.now)
    assert early is not None
    assert granted is not None
    for each in (early, granted) if first == 0 else (granted, early):
        net.client.receive(each, net.now)
    net.settle()
    assert grant.granted
    assert grant.error is None


@pytest.mark.parametrize("code", NOTHING_THERE)
def test_an_allocate_that_is_lost_is_repeated_whatever_is_said_to_what_went_with_it(code: int) -> None:
    net = Net(ModelServer(nothing_there=code))
    net.client.prime(net.now)
    net.settle()
    permission, channel = net.client.permit("203.0.113.9", net.now), net.client.bind(PEER, net.now)
    net.client.allocate(net.now)
    _lost, *others = net.client.transmit(net.now)
    for each in others:
        answer = net.server.receive(each, net.now)
        assert answer is not None
        net.client.receive(answer, net.now)
    net.wait(1)
    assert net.state() is TurnState.ALLOCATED, net.client.error
    assert permission.granted
    assert channel.granted


def test_no_data_goes_out_before_the_allocation_and_then_behind_the_request_for_its_channel() -> None:
    net = Net()
    net.client.bind(PEER, net.now)
    net.client.allocate(net.now)
    for each in net.flush():
        net.client.receive(each, net.now)
    granted, bound = net.flush()
    assert net.client.wrap(b"x", PEER) is None
    net.client.receive(granted, net.now)
    sent = net.client.wrap(b"x", PEER)
    net.client.receive(bound, net.now)
    assert sent == net.client.wrap(b"x", PEER)
    assert sent is not None
    assert is_channel_data(sent)
    assert net.client.wrap(b"x", (PEER[0], PEER[1] + 1)) is not None, "a channel carries a permission"


def test_a_server_that_lets_everybody_in_gives_it_to_the_first_request() -> None:
    net = Net(ModelServer(open=True))
    net.client.prime(net.now)
    net.settle()
    assert net.state() is TurnState.ALLOCATED
    net.client.release(net.now)
    net.settle()
    assert net.server.allocation is None


def test_ipv6_is_asked_for() -> None:
    net = Net(ModelServer(relayed=("2001:db8::7", 50_000)), family=6).allocated()
    assert net.client.relayed == ("2001:db8::7", 50_000)
    assert bytes.fromhex("0017000402000000") in net.sent[0]
    assert bytes.fromhex("0017") not in Net().allocated().sent[0]


@pytest.mark.parametrize(
    ("relayed", "why"),
    [
        (("127.0.0.1", 5000), "which no relay can have"),
        (("0.0.0.0", 5000), "which no relay can have"),
        (("224.0.0.1", 5000), "which no relay can have"),
        (("192.0.2.7", 0), "which no relay can have"),
        (("2001:db8::7", 5000), "no IPv4 relayed address"),
    ],
)
def test_a_relayed_address_that_cannot_be_is_given_back(relayed: TransportAddress, why: str) -> None:
    net = Net(ModelServer(relayed=relayed))
    net.client.allocate(net.now)
    net.settle()
    assert net.state() is TurnState.ENDED
    assert net.server.allocation is None
    assert isinstance(net.client.error, StunMalformed)
    assert why in str(net.client.error)


@pytest.mark.parametrize("code", [400, 420, 437, 440, 442, 486, 508])
def test_an_error_ends_it_and_says_which(code: int) -> None:
    net = Net(ModelServer(allocate_with=code))
    grant = net.client.permit(PEER[0], net.now)
    net.client.allocate(net.now)
    net.settle()
    assert net.state() is TurnState.ENDED
    assert isinstance(net.client.error, StunRefused)
    assert net.client.error.code == code
    assert str(code) in str(net.client.error)
    assert grant.error is net.client.error
    assert net.client.deadline == math.inf


def test_a_wrong_password_is_a_401_that_is_final() -> None:
    net = Net(password="wrong")
    net.client.allocate(net.now)
    net.settle()
    assert methods(net) == [Method.ALLOCATE] * 2
    assert isinstance(net.client.error, StunRefused)
    assert net.client.error.code == 401
    assert "\0" not in str(net.client.error)


def test_who_has_no_credentials_asks_once() -> None:
    net = Net()
    net.client = TurnClientCore(SERVER, entropy=random.Random(2).randbytes)
    net.client.allocate(net.now)
    net.settle()
    assert methods(net) == [Method.ALLOCATE]
    assert (
        str(net.client.error)
        == "TURN server 198.51.100.1:3478 asks for a username and a password, and none is configured"
    )


def test_a_300_names_another_server() -> None:
    net = Net()
    net.client.allocate(net.now)
    request = decode(net.client.transmit(net.now)[0])
    attributes = [ERROR_CODE(ErrorCode(300)), ALTERNATE_SERVER(("198.51.100.9", 3478))]
    net.client.receive(encode(request.method, MessageClass.ERROR, request.transaction_id, attributes), net.now)
    assert net.state() is TurnState.ENDED
    assert net.client.alternate == ("198.51.100.9", 3478)


def test_a_dead_server_is_given_up() -> None:
    net = Net(tries=3)
    net.lossy = lambda _: True
    net.client.allocate(net.now)
    net.wait(10)
    assert len(net.sent) == 3
    assert isinstance(net.client.error, StunTimeout)


def test_over_a_stream_nothing_is_repeated() -> None:
    net = Net(reliable=True)
    net.lossy = lambda _: True
    net.client.allocate(net.now)
    net.wait(39)
    assert len(net.sent) == 1
    assert net.state() is TurnState.ASKING
    net.wait(1)
    assert isinstance(net.client.error, StunTimeout)


# --- keeping it -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lifetime", [30, 600, 3600])
def test_what_stands_is_kept(lifetime: int) -> None:
    net = Net(ModelServer(lifetime=lifetime))
    net.client.permit("203.0.113.9", net.now)
    net.client.bind(PEER, net.now)
    net.allocated()
    allocation = net.server.allocation
    for _ in range(200):
        net.wait(29)
        assert net.server.allocation == allocation
        assert net.server.expires > net.now
        assert min(net.server.permissions.values()) > net.now
    assert len(net.server.permissions) == 2
    most = 5800 / (lifetime / 2) + 2 * 5800 / RENEWAL + 6
    assert len(net.sent) <= most


def test_a_server_that_gives_no_lifetime_does_not_have_us_refresh_without_end() -> None:
    net = Net(ModelServer(lifetime=0)).allocated()
    assert net.client.deadline >= net.now + 10


def test_a_stale_nonce_costs_one_exchange_each() -> None:
    net = Net()
    net.client.permit("203.0.113.9", net.now)
    net.client.bind(PEER, net.now)
    net.allocated()
    for _ in range(20):
        net.server.nonces += 1
        net.wait(250)
        assert net.state() is TurnState.ALLOCATED
    assert min(net.server.permissions.values()) > net.now


def test_a_server_that_knows_no_nonce_is_given_up() -> None:
    net = Net()
    net.client.allocate(net.now)
    for _ in range(20):
        for each in net.flush():
            net.server.nonces += 1
            net.client.receive(each, net.now)
    assert isinstance(net.client.error, StunRefused)
    assert net.client.error.code == 438
    assert len(net.sent) == 5


def test_a_restarted_server_is_noticed_at_once_when_asked() -> None:
    net = Net()
    grant = net.client.bind(PEER, net.now)
    net.allocated()
    net.server.forget()
    net.client.check(net.now)
    net.client.check(net.now)
    net.settle()
    assert net.state() is TurnState.ENDED
    assert isinstance(net.client.error, StunRefused)
    assert net.client.error.code == 437
    assert not grant.granted
    assert net.client.wrap(b"x", PEER) is None


def test_a_400_to_a_permission_has_the_allocation_looked_after() -> None:
    net = Net().allocated()
    net.server.forget()
    net.client.permit(PEER[0], net.now)
    net.settle()
    assert isinstance(net.client.error, StunRefused)
    assert net.client.error.code == 437


def test_one_peer_that_is_refused_does_no_harm_to_others() -> None:
    net = Net(ModelServer(forbidden={"203.0.113.9"}))
    bad, good = net.client.permit("203.0.113.9", net.now), net.client.permit(PEER[0], net.now)
    net.allocated()
    assert isinstance(bad.error, StunRefused)
    assert bad.error.code == Code.FORBIDDEN
    assert good.granted


def test_permissions_and_channels_are_bounded() -> None:
    net = Net()
    for port in range(1, MAX_GRANTS + 1):
        net.client.bind((PEER[0], port), net.now)
    with pytest.raises(ValueError, match="at most 64"):
        net.client.bind((PEER[0], MAX_GRANTS + 1), net.now)


# --- letting go -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("answers", range(6))
def test_at_every_step_letting_go_frees_the_allocation(answers: int) -> None:
    net = Net()
    net.client.permit(PEER[0], net.now)
    net.client.allocate(net.now)
    for _ in range(answers):
        for each in net.flush():
            net.client.receive(each, net.now)
    net.flush()
    net.client.release(net.now)
    net.client.release(net.now)
    net.wait(100)
    assert net.state() is TurnState.ENDED
    assert net.server.allocation is None
    assert net.client.error is None


def test_an_allocation_whose_answer_comes_after_it_was_given_up_is_freed() -> None:
    net = Net()
    net.client.allocate(net.now)
    for each in net.flush():
        net.client.receive(each, net.now)
    (late,) = net.flush()
    net.client.release(net.now)
    assert net.state() is TurnState.LEAVING
    assert net.server.allocation is not None
    net.client.receive(late, net.now)
    net.settle()
    assert net.state() is TurnState.ENDED
    assert net.server.allocation is None


def test_a_stale_nonce_while_leaving_allocates_nothing() -> None:
    net = Net()
    net.client.prime(net.now)
    net.settle()
    net.server.nonces += 1
    net.client.allocate(net.now)
    net.client.release(net.now)
    net.settle()
    assert net.state() is TurnState.ENDED
    assert net.server.allocation is None


# --- data -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reliable", [False, True])
def test_data_goes_by_channel_where_there_is_one_and_by_indication_where_not(reliable: bool) -> None:
    net = Net(reliable=reliable)
    net.client.permit(PEER[0], net.now)
    net.allocated()
    sent = net.client.wrap(b"hello", PEER)
    assert sent is not None
    message = decode(sent)
    assert (message.method, message.message_class) == (Method.SEND, MessageClass.INDICATION)
    assert [type_ for type_, _ in message.attributes] == [XOR_PEER_ADDRESS.type, DATA.type]  # without DONT-FRAGMENT
    assert (message.get(XOR_PEER_ADDRESS), message.get(DATA)) == (PEER, b"hello")
    net.client.bind(PEER, net.now)
    net.settle()
    sent = net.client.wrap(b"hello", PEER)
    assert sent is not None
    assert is_channel_data(sent)
    assert len(sent) == (12 if reliable else 9)
    assert net.server.channels[decode_channel_data(sent)[0]] == PEER
    assert net.client.wrap(b"hello", ("203.0.113.6", 1)) is None


def test_data_comes_by_channel_and_by_indication() -> None:
    net = Net()
    net.client.bind(PEER, net.now)
    net.allocated()
    (channel,) = net.server.channels
    assert net.client.receive(encode_channel_data(channel, b"a"), net.now) == ((b"a", PEER),)
    other = (PEER[0], 4001)
    assert net.client.receive(indication(other, b"b"), net.now) == ((b"b", other),)


def test_a_stranger_gets_nothing_in() -> None:
    net = Net()
    net.client.bind(PEER, net.now)
    net.allocated()
    assert net.client.receive(indication(("203.0.113.6", 4000), b"b"), net.now) == ()
    assert net.client.receive(encode_channel_data(0x4ABC, b"b"), net.now) == ()


def indication(peer: TransportAddress, data: bytes) -> bytes:
    return encode(Method.DATA, MessageClass.INDICATION, bytes(12), [XOR_PEER_ADDRESS(peer), DATA(data)])


# --- what else may come -----------------------------------------------------------------------------------------------


def test_a_success_without_our_mac_is_not_believed() -> None:
    net = Net()
    net.client.prime(net.now)
    net.settle()
    net.client.allocate(net.now)
    request = decode(net.client.transmit(net.now)[0])
    forged = [XOR_RELAYED_ADDRESS(("192.0.2.66", 1)), LIFETIME(600)]
    for key in (None, b"another"):
        answer = encode(request.method, MessageClass.SUCCESS, request.transaction_id, forged, integrity=key)
        assert net.client.receive(answer, net.now) == ()
    assert net.state() is TurnState.ALLOCATING
    error = encode(
        request.method, MessageClass.ERROR, request.transaction_id, [ERROR_CODE(ErrorCode(486))], integrity=b"another"
    )
    net.client.receive(error, net.now)
    assert net.state() is TurnState.ALLOCATING


def test_password_algorithms_that_were_taken_out_are_missed() -> None:
    net = Net(ModelServer(sha256=True))
    net.client.allocate(net.now)
    request = net.client.transmit(net.now)[0]
    answer = net.server.receive(request, net.now)
    assert answer is not None
    honest = decode(answer)
    kept = [opaque(type_, "any")(data) for type_, data in honest.attributes if type_ != 0x8002]
    net.client.receive(encode(honest.method, MessageClass.ERROR, honest.transaction_id, kept), net.now)
    assert isinstance(net.client.error, StunMalformed)


def test_an_answer_that_needs_what_we_do_not_know_is_none() -> None:
    net = Net(ModelServer(open=True))
    net.client.allocate(net.now)
    request = decode(net.client.transmit(net.now)[0])
    attributes = [XOR_RELAYED_ADDRESS(RELAYED), LIFETIME(600), opaque(0x7FFF, "new")(b"")]
    net.client.receive(encode(request.method, MessageClass.SUCCESS, request.transaction_id, attributes), net.now)
    assert isinstance(net.client.error, StunMalformed)


@settings(max_examples=30)
@given(st.lists(st.binary(max_size=60), max_size=20), st.integers(0, 3))
def test_garbage_changes_nothing(garbage: list[bytes], steps: int) -> None:
    net = Net()
    net.client.bind(PEER, net.now)
    net.client.allocate(net.now)
    for _ in range(steps):
        for each in net.flush():
            net.client.receive(each, net.now)
    before = net.state()
    for each in garbage:
        for data, peer in net.client.receive(each, net.now):
            assert peer == PEER
            assert encode_channel_data(int.from_bytes(each[:2], "big"), data) == each[: 4 + len(data)]
    assert net.state() is before


@settings(max_examples=25)
@given(st.integers(0, 2**32), st.booleans(), st.integers(0, 60))
def test_in_any_order_lost_and_doubled(seed: int, sha256: bool, released_at: int) -> None:
    """Whatever happens to datagrams, the client gets what it wants or ends, and no allocation outlives its release."""
    chance = random.Random(seed)
    net = Net(ModelServer(sha256=sha256))
    grants = [net.client.permit(PEER[0], net.now), net.client.bind(PEER, net.now)]
    net.client.allocate(net.now)
    flying: list[tuple[bool, bytes]] = []
    for step in range(120):
        flying += [(True, each) for each in net.client.transmit(net.now)]
        if step == released_at > 40:
            net.client.release(net.now)
        if not flying:
            if net.client.deadline > net.now + 200:
                break
            net.now = max(net.now, net.client.deadline)
            net.client.handle_timer(net.now)
            continue
        up, datagram = flying.pop(chance.randrange(len(flying)))
        fate = chance.random()
        if fate < 0.2:
            continue
        if fate > 0.8:
            flying.append((up, datagram))
        if chance.random() < 0.02:
            net.server.nonces += 1
        if not up:
            net.client.receive(datagram, net.now)
        elif (answer := net.server.receive(datagram, net.now)) is not None:
            flying.append((False, answer))
    net.wait(60)
    if net.state() is TurnState.ALLOCATED:
        assert net.server.allocation is not None
        assert all(grant.granted for grant in grants)
        net.client.release(net.now)
        net.wait(60)
    assert net.state() is TurnState.ENDED
    assert net.client.error is not None or net.server.allocation is None


def test_the_table_knows_every_state() -> None:
    assert {state for state, _ in TRANSITIONS} == set(TurnState)
    assert all(before is TurnState.ENDED or after is not TurnState.NEW for (before, _), after in TRANSITIONS.items())
