"""The TURN server without I/O: who gets an allocation, for how long, and what is relayed."""

from __future__ import annotations

import base64
import hashlib
import hmac

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.turn_bench import CLIENT, PEER, SERVER, SERVER6, UDP, WALL, Bench, Client, ListSink, allocated
from tests.turn_requests import Requests, channel_data, error_of, indication
from warpgate_trio.servers.turn_core import MAX_CHALLENGE, MAX_MESSAGE, REMINDERS
from warpgate_trio.servers.turn_credentials import NONCE_LIFETIME, TurnCredentials, TurnNonces, shared_secret
from warpgate_trio.servers.turn_requests import LAST_LIFETIME
from warpgate_trio.sockaddr import Family, TransportAddress
from warpgate_trio.stun.codec import (
    BINDING,
    MESSAGE_INTEGRITY,
    NONCE,
    REALM,
    UNKNOWN_ATTRIBUTES,
    USERNAME,
    XOR_MAPPED_ADDRESS,
    AttributeValue,
    Message,
    MessageClass,
    decode,
    encode,
)
from warpgate_trio.turn.messages import (
    ADDITIONAL_ADDRESS_FAMILY,
    CHANNEL_NUMBER,
    DATA,
    DONT_FRAGMENT,
    EVEN_PORT,
    LIFETIME,
    REQUESTED_ADDRESS_FAMILY,
    REQUESTED_TRANSPORT,
    RESERVATION_TOKEN,
    XOR_PEER_ADDRESS,
    XOR_RELAYED_ADDRESS,
    Code,
    Method,
)

OTHER = ("198.51.100.8", 40000)
PEER6 = ("2001:db8:9::9", 5000)

# -- Credentials -------------------------------------------------------------------------------------------------------


def test_a_first_request_is_challenged_by_a_small_answer() -> None:
    bench = Bench()
    request = Requests().allocate()
    ((sink, data, to),) = bench.say(request)
    answer = decode(data)
    assert (sink, to) == (UDP, CLIENT)
    assert error_of(answer) == Code.UNAUTHENTICATED
    assert answer.get(REALM) == "example.org"
    assert answer.get(NONCE)
    assert answer.get(MESSAGE_INTEGRITY) is None
    assert len(data) <= MAX_CHALLENGE
    assert bench.core.statistics().challenged == 1


def test_the_longest_realm_makes_no_long_challenge() -> None:
    with pytest.raises(ValueError, match="realm"):
        Bench().core.__class__(
            TurnCredentials("x" * 61), Bench().rules, entropy=lambda n: bytes(n), wall_time=lambda: 0.0
        )


def test_who_has_logged_in_gets_a_relayed_address() -> None:
    client = Client(Bench())
    answer = client.allocate()
    assert answer.message_class is MessageClass.SUCCESS
    assert answer.get(XOR_RELAYED_ADDRESS) == (SERVER, 50000)
    assert answer.get(XOR_MAPPED_ADDRESS) == CLIENT
    assert answer.get(LIFETIME) == 600
    assert answer.verify(client.requests.key)


@pytest.mark.parametrize(
    ("username", "password"), [("alice", "wrong"), ("mallory", "sesame"), ("bob", "sesame"), ("", ""), ("é:1", "x")]
)
def test_wrong_credentials_are_told_the_same(username: str, password: str) -> None:
    client = Client(Bench(secret="s3cret"), username, password)
    assert error_of(client.allocate()) == Code.UNAUTHENTICATED
    assert not client.bench.relays


@pytest.mark.parametrize("missing", [USERNAME, REALM, NONCE])
def test_credentials_that_lack_a_part_are_a_bad_request(missing: object) -> None:
    client = Client(Bench())
    assert client.requests.nonce is not None
    login = [USERNAME("alice"), REALM("example.org"), NONCE(client.requests.nonce)]
    attributes = [REQUESTED_TRANSPORT(17), *(each for each in login if each.attribute is not missing)]
    request = encode(Method.ALLOCATE, MessageClass.REQUEST, bytes(12), attributes, integrity=client.requests.key)
    assert error_of(client.ask(request)) == Code.BAD_REQUEST


def rest_password(secret: str, username: str) -> str:
    """As the draft defines it, computed without the package's code."""
    return base64.b64encode(hmac.new(secret.encode(), username.encode(), hashlib.sha1).digest()).decode()


@pytest.mark.parametrize(
    ("username", "works"),
    [
        (f"{WALL + 60:.0f}", True),
        (f"{WALL + 60:.0f}:some:name", True),
        (f"{WALL - 1:.0f}:late", False),
        ("", False),
        ("soon:x", False),
        ("٣٣٣٣٣٣٣٣٣٣٣", False),
        ("9" * 400, False),
    ],
)
def test_credentials_of_the_shared_secret_expire(username: str, works: bool) -> None:
    secret = shared_secret("the server's token")
    client = Client(Bench(secret=secret), username, rest_password(secret, username))
    assert error_of(client.allocate()) == (0 if works else Code.UNAUTHENTICATED)


def test_the_shared_secret_is_the_tokens_and_does_not_tell_it() -> None:
    assert shared_secret("a") == shared_secret("a") != shared_secret("b")
    assert len(bytes.fromhex(shared_secret("a"))) == 32


def test_an_allocation_outlives_the_credentials_that_made_it() -> None:
    secret, username = "s", f"{WALL + 60:.0f}:x"
    client = allocated(Bench(secret=secret), username=username, password=rest_password(secret, username))
    client.bench.wall += 100
    assert error_of(client.refresh(600)) == 0
    assert error_of(client.permit(PEER)) == 0


def test_another_users_request_is_wrong_and_newer_credentials_of_the_same_are_not() -> None:
    secret, first, second = "s", f"{WALL + 60:.0f}:x", f"{WALL + 90:.0f}:x"
    client = allocated(Bench(secret=secret), username=first, password=rest_password(secret, first))
    client.requests.username, client.requests.password = second, rest_password(secret, second)
    assert error_of(client.refresh(600)) == 0
    client.requests.username, client.requests.password = "bob", "hunter2"
    assert error_of(client.refresh(600)) == Code.WRONG_CREDENTIALS
    for nameless in (f"{WALL + 60:.0f}", f"{WALL + 61:.0f}:"):
        client.requests.username, client.requests.password = nameless, rest_password(secret, nameless)
        assert error_of(client.refresh(600)) == Code.WRONG_CREDENTIALS


# -- Nonces ------------------------------------------------------------------------------------------------------------


def test_a_nonce_is_good_for_its_time_and_one_address() -> None:
    nonces = TurnNonces(b"key")
    nonce = nonces.make(CLIENT, 1000.0)
    assert nonces.is_good(nonce, CLIENT, 1000.0 + NONCE_LIFETIME)
    assert not nonces.is_good(nonce, CLIENT, 1001.0 + NONCE_LIFETIME)
    assert not nonces.is_good(nonce, CLIENT, 998.0)
    assert not nonces.is_good(nonce, (CLIENT[0], CLIENT[1] + 1), 1000.0)
    assert not nonces.is_good(nonce, OTHER, 1000.0)
    assert not TurnNonces(b"other").is_good(nonce, CLIENT, 1000.0)


@settings(max_examples=30)
@given(
    st.one_of(
        st.binary(max_size=64).map(lambda data: data.decode("latin-1")), st.sampled_from(["", "ß" * 32, "0" * 32])
    )
)
def test_what_is_no_nonce_of_ours_is_never_good(text: str) -> None:
    assert not TurnNonces(b"key").is_good(text, CLIENT, 0.0)


def test_a_stale_nonce_gets_a_new_one_and_costs_nothing_else() -> None:
    client = allocated(Bench())
    client.bench.wait(NONCE_LIFETIME - 100)
    assert error_of(client.refresh(600)) == 0
    client.bench.wait(200)
    answer = client.refresh(600)
    assert error_of(answer) == Code.STALE_NONCE
    client.requests.learn(answer)
    assert error_of(client.refresh(600)) == 0
    assert not client.bench.closed


def test_a_nonce_that_another_socket_got_is_stale() -> None:
    bench = Bench()
    first, second = Client(bench), Client(bench, source=(CLIENT[0], 40001))
    second.requests.nonce = first.requests.nonce
    assert error_of(second.allocate()) == Code.STALE_NONCE


# -- Allocations -------------------------------------------------------------------------------------------------------


def test_a_repeated_request_gets_the_same_answer_and_another_one_a_mismatch() -> None:
    client = Client(Bench())
    request = client.requests.allocate(transaction_id=b"t" * 12)
    first, again = client.ask(request), client.ask(request)
    assert first.raw == again.raw
    assert error_of(client.allocate()) == Code.ALLOCATION_MISMATCH
    assert len(client.bench.relays) == 1


@pytest.mark.parametrize(("wanted", "granted"), [(5, 600), (700, 700), (10_000, 3600), (None, 600)])
def test_lifetimes_are_between_ten_minutes_and_an_hour(wanted: int | None, granted: int) -> None:
    client = Client(Bench())
    answer = client.allocate(*([] if wanted is None else [LIFETIME(wanted)]))
    assert answer.get(LIFETIME) == granted
    client.bench.wait(granted - 1)
    assert not client.bench.core.take_ended()
    client.bench.wait(2)
    client.bench.settle()
    assert len(client.bench.closed) == 1
    assert client.bench.core.statistics().allocations == 0


def test_a_refresh_keeps_it_and_a_refresh_to_nothing_frees_it_at_once() -> None:
    client = allocated(Bench())
    client.bench.wait(500)
    assert client.refresh(3600).get(LIFETIME) == 3600
    client.bench.wait(550)
    assert not client.bench.closed
    client.requests.learn(client.refresh(0))
    answer = client.refresh(0)
    assert (error_of(answer), answer.get(LIFETIME)) == (0, 0)
    assert len(client.bench.closed) == 1  # in the same step as the answer
    assert error_of(client.refresh(600)) == Code.ALLOCATION_MISMATCH
    assert error_of(client.allocate()) == 0


def test_a_connection_that_ends_takes_its_allocation_with_it() -> None:
    stream = ListSink("tcp", is_stream=True)
    client = allocated(Bench(), sink=stream)
    client.bench.core.disconnect(stream, CLIENT)
    client.bench.settle()
    assert len(client.bench.closed) == 1
    client.bench.core.disconnect(stream, CLIENT)


def test_a_relay_that_opens_too_late_is_not_wanted() -> None:
    bench = Bench()
    client = Client(bench)
    bench.core.receive(client.requests.allocate(), UDP, CLIENT, bench.now)
    (wanted,) = bench.core.take_wanted()
    assert error_of(client.permit(PEER)) == Code.ALLOCATION_MISMATCH  # the allocation does not exist yet
    bench.core.disconnect(UDP, CLIENT)
    assert not bench.core.opened(wanted, ListSink("relay"), (SERVER, 50000), bench.now)
    bench.core.not_opened(wanted, bench.now)
    assert bench.settle() == []
    assert error_of(client.allocate()) == 0


def test_without_a_port_it_is_out_of_capacity_and_can_be_asked_again() -> None:
    client = Client(Bench())
    client.bench.no_ports = True
    answer = client.allocate()
    assert error_of(answer) == Code.INSUFFICIENT_CAPACITY
    assert answer.verify(client.requests.key)
    client.bench.no_ports = False
    assert error_of(client.allocate()) == 0


@pytest.mark.parametrize(
    ("more", "code"),
    [
        ([DONT_FRAGMENT(b"")], Code.UNKNOWN_ATTRIBUTE),
        ([EVEN_PORT(True)], Code.INSUFFICIENT_CAPACITY),
        ([RESERVATION_TOKEN(b"r" * 8)], Code.INSUFFICIENT_CAPACITY),
        ([EVEN_PORT(False)], 0),
        ([REQUESTED_ADDRESS_FAMILY(6)], 0),
        ([ADDITIONAL_ADDRESS_FAMILY(6)], 0),  # it succeeds with one IPv4 address; clients count the addresses
    ],
)
def test_what_an_allocation_may_ask_for(more: list[AttributeValue], code: int) -> None:
    client = Client(Bench())
    answer = client.allocate(*more)
    assert error_of(answer) == code
    if code == Code.UNKNOWN_ATTRIBUTE:
        assert answer.get(UNKNOWN_ATTRIBUTES) == (DONT_FRAGMENT.type,)
    if more[0].attribute is REQUESTED_ADDRESS_FAMILY:
        assert client.relayed == (SERVER6, 50000)
    if more[0].attribute is ADDITIONAL_ADDRESS_FAMILY:
        assert len(answer.get_all(XOR_RELAYED_ADDRESS)) == 1
    if more[0].attribute is EVEN_PORT and not code:
        assert next(iter(client.bench.relays.values())).even_port


def test_tcp_is_not_relayed_and_no_transport_is_a_bad_request() -> None:
    client = Client(Bench())
    make = client.requests.make
    assert error_of(client.ask(make(Method.ALLOCATE, REQUESTED_TRANSPORT(6)))) == Code.TRANSPORT_NOT_SUPPORTED
    assert error_of(client.ask(make(Method.ALLOCATE))) == Code.BAD_REQUEST


# -- Quotas ------------------------------------------------------------------------------------------------------------


def test_a_user_has_a_quota_whose_freed_places_are_free_at_once() -> None:
    bench = Bench(allocations_per_user=2)
    clients = [allocated(bench, source=(f"198.51.{n}.7", 1)) for n in range(2)]
    third = Client(bench, source=("203.0.113.7", 1))
    assert error_of(third.allocate()) == Code.ALLOCATION_QUOTA_REACHED
    assert error_of(Client(bench, "bob", "hunter2", source=("203.0.113.8", 1)).allocate()) == 0
    clients[0].refresh(0)
    assert error_of(third.allocate()) == 0


def test_an_address_has_a_quota_whoever_its_users_are() -> None:
    secret = "s"
    bench = Bench(secret=secret, allocations_per_address=3)
    codes = []
    for port in range(4):
        username = f"{WALL + port + 1:.0f}:user{port}"
        client = Client(bench, username, rest_password(secret, username), source=(CLIENT[0], 1000 + port))
        codes.append(error_of(client.allocate()))
    assert codes == [0, 0, 0, Code.ALLOCATION_QUOTA_REACHED]


def test_one_network_never_takes_all() -> None:
    bench = Bench(allocations=30, allocations_per_address=100)
    taken = [error_of(Client(bench, source=(CLIENT[0], 1000 + n)).allocate()) for n in range(30)]
    assert taken.count(0) == 10
    assert error_of(Client(bench, "bob", "hunter2", source=("203.0.113.8", 1)).allocate()) == 0


def test_permissions_and_channels_of_an_allocation_are_bounded() -> None:
    client = allocated(Bench(permissions=3, channels=2))
    peers = [(f"203.0.113.{n}", 5000) for n in range(5)]
    assert error_of(client.permit(*peers[:4])) == Code.INSUFFICIENT_CAPACITY
    assert client.bench.core.statistics().permissions == 0  # all or none are installed
    assert error_of(client.permit(*peers[:3])) == 0
    assert error_of(client.permit(*peers[:3])) == 0
    assert error_of(client.bind(0x4000, peers[4])) == Code.INSUFFICIENT_CAPACITY
    assert error_of(client.bind(0x4000, peers[0])) == 0
    assert error_of(client.bind(0x4001, peers[1])) == 0
    assert error_of(client.bind(0x4002, peers[2])) == Code.INSUFFICIENT_CAPACITY
    assert error_of(client.bind(0x4001, peers[1])) == 0


def test_a_source_that_asks_too_much_is_not_answered() -> None:
    bench = Bench(rate=1.0, burst=3)
    answers = [bench.say(Requests().allocate()) for _ in range(5)]
    assert [len(each) for each in answers] == [1, 1, 1, 0, 0]
    assert len(bench.say(Requests().allocate(), source=OTHER)) == 1
    stream = ListSink("tcp", is_stream=True)
    assert len(bench.say(Requests().allocate(), stream)) == 1  # whoever forges its address does not reach this
    bench.now += 1
    assert len(bench.say(Requests().allocate())) == 1
    assert bench.core.statistics().limited == 2


@pytest.mark.parametrize("flood", [[f"2001:db8:1:{n:x}::1" for n in range(500)], [f"192.0.2.{n}" for n in range(256)]])
def test_one_network_does_not_use_up_the_rate_of_all_strangers(flood: list[str]) -> None:
    bench = Bench(rate=0.001, burst=5, total_rate=0.001, total_burst=300)
    assert sum(len(bench.say(Requests().allocate(), source=(host, 1))) for host in flood) < 100
    assert len(bench.say(Requests().allocate(), source=("203.0.113.1", 1))) == 1


def test_strangers_share_a_rate_that_costs_users_nothing() -> None:
    bench = Bench(total_rate=0.001, total_burst=4)
    client = allocated(bench)
    assert sum(len(bench.say(Requests().allocate(), source=(f"10.0.{n}.1", 1))) for n in range(9)) == 3
    assert error_of(client.refresh(600)) == 0


# -- Peers -------------------------------------------------------------------------------------------------------------

REFUSED = {
    "private": ["10.1.2.3", "172.16.0.1", "192.168.1.1", "fd00::1", "fec0::1"],
    "carrier-grade NAT": ["100.64.0.1", "100.127.255.254"],
    "loopback": ["127.0.0.1", "127.9.9.9", "::1"],
    "link-local": ["169.254.1.1", "fe80::1"],
    "multicast": ["224.0.0.1", "239.1.1.1", "ff02::1"],
    "reserved": ["0.0.0.0", "0.1.2.3", "240.0.0.1", "255.255.255.255", "192.0.0.8", "198.18.0.1", "::", "100::1"],
    "metadata": ["169.254.169.254", "168.63.129.16", "100.100.100.200", "192.0.0.192", "fd00:ec2::254"],
    "its own host": [SERVER, SERVER6],
    "an IPv4 address inside": [
        "::ffff:203.0.113.9",
        "::ffff:127.0.0.1",
        "64:ff9b::7f00:1",
        "64:ff9b::a00:1",
        "2002:7f00:1::",
        "2002:c000:201::1",
        "::7f00:1",
    ],
}


@pytest.mark.parametrize(("kind", "ip"), [(kind, ip) for kind, ips in REFUSED.items() for ip in ips])
def test_peers_that_are_refused(kind: str, ip: str) -> None:
    family: Family = 6 if ":" in ip else 4
    good = PEER6 if family == 6 else PEER
    client = Client(Bench())
    client.allocate(REQUESTED_ADDRESS_FAMILY(family))
    assert error_of(client.permit((ip, 5000))) == Code.FORBIDDEN
    assert error_of(client.permit(good, (ip, 5000))) == Code.FORBIDDEN
    assert error_of(client.bind(0x4000, (ip, 5000))) == Code.FORBIDDEN
    assert client.bench.core.statistics().permissions == 0
    assert client.say(indication((ip, 5000), b"x")) == []
    assert error_of(client.permit(good)) == 0


def test_a_peer_of_the_other_family_is_a_mismatch() -> None:
    client = allocated(Bench())
    assert error_of(client.permit(PEER6)) == Code.PEER_FAMILY_MISMATCH
    assert error_of(client.bind(0x4000, PEER6)) == Code.PEER_FAMILY_MISMATCH


def test_allowed_networks_do_not_allow_the_host_itself_nor_metadata() -> None:
    bench = Bench(allowed=["10.0.0.0/8", "127.0.0.0/8", "169.254.0.0/16", "192.0.2.0/24", "224.0.0.0/4"])
    client = allocated(bench)
    assert error_of(client.permit(("10.1.2.3", 1))) == 0
    for refused in ("127.0.0.1", "169.254.169.254", SERVER, "224.0.0.1", "192.168.0.1"):
        assert error_of(client.permit((refused, 1))) == Code.FORBIDDEN
    client = allocated(Bench(allowed=["127.0.0.1/32", "192.0.2.1/32", "169.254.169.254/32"]))
    for exactly in ("127.0.0.1", SERVER, "169.254.169.254"):
        assert error_of(client.permit((exactly, 1))) == 0


# -- Data --------------------------------------------------------------------------------------------------------------


def test_data_goes_by_indications_both_ways() -> None:
    client = allocated(Bench())
    assert error_of(client.permit((PEER[0], 1))) == 0
    relay = next(iter(client.bench.relays))
    assert client.say(indication(PEER, b"hello")) == [(relay, b"hello", PEER)]  # the port in a permission has no effect
    assert client.say(indication(PEER, b"")) == [(relay, b"", PEER)]
    ((sink, data, to),) = client.bench.from_peer(client.relayed, b"answer")
    message = decode(data)
    assert (sink, to) == (UDP, CLIENT)
    assert (message.method, message.message_class) == (Method.DATA, MessageClass.INDICATION)
    assert (message.get(XOR_PEER_ADDRESS), message.get(DATA)) == (PEER, b"answer")
    assert client.bench.from_peer(client.relayed, b"x", ("203.0.113.10", 5000)) == []
    assert client.say(indication(("203.0.113.10", 5000), b"x")) == []
    statistics = client.bench.core.statistics()
    assert (statistics.relayed, statistics.relayed_bytes, statistics.dropped) == (3, 11, 2)


def test_data_goes_by_channels_both_ways() -> None:
    client = allocated(Bench())
    assert error_of(client.bind(0x4ABC, PEER)) == 0
    relay = next(iter(client.bench.relays))
    assert client.say(channel_data(0x4ABC, b"hello")) == [(relay, b"hello", PEER)]
    assert client.say(channel_data(0x4ABC, b"hello") + b"\0\0\0") == [(relay, b"hello", PEER)]
    assert client.say(channel_data(0x4ABC, b"")) == [(relay, b"", PEER)]
    assert client.bench.from_peer(client.relayed, b"four+") == [(UDP, channel_data(0x4ABC, b"four+"), CLIENT)]
    # Data from another port of that peer is relayed, too, but as an indication.
    ((_, data, _),) = client.bench.from_peer(client.relayed, b"x", (PEER[0], 1))
    assert decode(data).get(XOR_PEER_ADDRESS) == (PEER[0], 1)


def test_channel_data_is_padded_on_a_stream_alone() -> None:
    client = allocated(Bench(), sink=ListSink("tcp", is_stream=True))
    client.bind(0x4000, PEER)
    for length in range(6):
        ((_, data, _),) = client.bench.from_peer(client.relayed, bytes(length))
        assert data == channel_data(0x4000, bytes(length)) + bytes(-length % 4)


@pytest.mark.parametrize(
    "data",
    [b"", b"\x40", channel_data(0x4001, b"x"), channel_data(0x4000, b"xy")[:-1], b"\x40\0\xff\xff", b"\xff" * 40],
)
def test_data_without_a_channel_or_cut_short_is_dropped(data: bytes) -> None:
    client = allocated(Bench())
    client.bind(0x4000, PEER)
    assert client.say(data) == []
    assert client.bench.say(channel_data(0x4000, b"x"), source=OTHER) == []


@pytest.mark.parametrize(
    ("number", "peer"),
    [
        (0x4001, PEER),
        (0x4000, (PEER[0], 1)),
        (0x3FFF, OTHER),
        (0x7FFF, OTHER),
        (0x8000, OTHER),
        (0x4002, (OTHER[0], 0)),
    ],
)
def test_bindings_that_cannot_be(number: int, peer: TransportAddress) -> None:
    client = allocated(Bench())
    assert error_of(client.bind(0x4000, PEER)) == 0
    assert error_of(client.bind(number, peer)) == Code.BAD_REQUEST
    assert client.bench.core.statistics().channels == 1


@pytest.mark.parametrize("kept", ["permission", "channel"])
def test_permissions_last_five_minutes_and_channels_ten_and_no_data_renews_them(kept: str) -> None:
    client = allocated(Bench())
    client.refresh(3600)
    if kept == "channel":
        client.bind(0x4000, PEER)
    else:
        client.permit(PEER)
    lasts = 600 if kept == "channel" else 300
    for _ in range(lasts // 100):
        assert client.bench.from_peer(client.relayed, b"x")
        client.bench.wait(100)
    client.bench.wait(1)
    assert client.bench.from_peer(client.relayed, b"x") == []
    assert client.say(indication(PEER, b"x")) == []
    assert client.say(channel_data(0x4000, b"x")) == []
    assert client.bench.core.statistics().permissions == 0
    assert client.bench.core.statistics().channels == 0


def test_asking_again_renews_permissions_and_channels() -> None:
    client = allocated(Bench())
    client.refresh(3600)
    client.bind(0x4000, PEER)
    for _ in range(10):
        client.bench.wait(290)
        client.requests.learn(client.bind(0x4000, PEER))
        assert error_of(client.bind(0x4000, PEER)) == 0
    assert client.bench.from_peer(client.relayed, b"x") == [(UDP, channel_data(0x4000, b"x"), CLIENT)]
    assert client.say(indication((PEER[0], 9), b"x"))


# -- Relay to relay ----------------------------------------------------------------------------------------------------


def pair(bench: Bench) -> tuple[Client, Client]:
    return allocated(bench), allocated(bench, username="bob", password="hunter2", source=OTHER)


def test_relay_to_relay_stays_inside() -> None:
    one, two = pair(Bench())
    assert error_of(one.bind(0x4000, two.relayed)) == 0
    assert one.say(channel_data(0x4000, b"early")) == []  # the other client has not permitted it yet
    assert error_of(two.permit(one.relayed)) == 0
    ((sink, data, to),) = one.say(channel_data(0x4000, b"hello"))
    assert (sink, to) == (UDP, OTHER)
    assert decode(data).get(XOR_PEER_ADDRESS) == one.relayed
    assert two.say(indication(one.relayed, b"back")) == [(UDP, channel_data(0x4000, b"back"), CLIENT)]


def test_no_other_port_of_the_host_is_ever_sent_to() -> None:
    one, two = pair(Bench())
    assert error_of(one.permit((SERVER, 22))) == Code.FORBIDDEN
    assert error_of(one.permit((SERVER6, 0))) == Code.PEER_FAMILY_MISMATCH
    assert error_of(one.permit((SERVER, 0))) == 0  # stands for any relayed address of the server, and nothing else
    assert error_of(one.permit(two.relayed)) == 0
    assert one.say(indication((SERVER, 22), b"x")) == []  # although its address is permitted
    assert error_of(one.bind(0x4000, (SERVER, 3478))) == Code.FORBIDDEN
    assert error_of(one.bind(0x4000, two.relayed)) == 0
    two.refresh(0)
    assert one.say(channel_data(0x4000, b"x")) == []  # the released port may belong to anybody now
    assert one.say(indication(two.relayed, b"x")) == []


def test_a_relay_that_sends_to_itself_ends() -> None:
    client = allocated(Bench())
    assert error_of(client.bind(0x4000, client.relayed)) == 0
    assert client.say(channel_data(0x4000, b"x")) == [(UDP, channel_data(0x4000, b"x"), CLIENT)]


def test_an_open_relay_scan_finds_nothing() -> None:
    """Tries each kind of address at several ports, with a permission for another address."""
    bench = Bench(rate=1e9, burst=10**9)
    one, two = pair(bench)
    one.permit(PEER, two.relayed)
    one.bind(0x4000, PEER)
    for ips in REFUSED.values():
        for ip in ips:
            for port in (1, 22, 53, 80, 3478, 50000, 65535):
                for number in (0x4000, 0x4001):
                    assert one.say(indication((ip, port), b"x")) == [] or (ip, port) in (one.relayed, two.relayed)
                    assert error_of(one.bind(number, (ip, port))) != 0 or (ip, port) in (one.relayed, two.relayed)
    sent = {to[0] for _, _, to in one.say(indication(PEER, b"x"))}
    assert sent == {PEER[0]}


# -- What is held ------------------------------------------------------------------------------------------------------


def test_nothing_is_left_of_what_is_over() -> None:
    bench = Bench()
    for round_ in range(3):
        clients = [allocated(bench, source=(f"198.51.100.{n}", 1)) for n in range(5)]
        for n, client in enumerate(clients):
            client.permit(PEER, (f"203.0.113.{n}", 1))
            client.bind(0x4000, PEER)
            client.refresh(0 if round_ else 3600)
        if not round_:
            bench.wait(3601)
    bench.settle()
    assert bench.core.deadline == float("inf")
    assert len(bench.closed) == 15
    statistics = bench.core.statistics()
    assert (statistics.allocations, statistics.permissions, statistics.channels) == (0, 0, 0)
    assert bench.core._requests.held == 0
    assert not bench.core._requests._quotas._accounts


def test_what_is_renewed_a_hundred_times_is_held_once() -> None:
    bench = Bench(rate=1e9, burst=10**9)
    client = allocated(bench)
    for _ in range(100):
        client.permit(PEER)
        client.refresh(600)
    assert len(bench.core._allocations._expiries) == 2


# -- Hostile input -----------------------------------------------------------------------------------------------------


def whole_conversation() -> list[bytes]:
    requests = Requests()
    requests.realm = "example.org"
    requests.nonce = TurnNonces((1).to_bytes(32, "big")).make(CLIENT, 1000.0)
    return [
        requests.allocate(),
        requests.allocate(EVEN_PORT(False), REQUESTED_ADDRESS_FAMILY(4), LIFETIME(7)),
        requests.permit(PEER, OTHER),
        requests.bind(0x4000, PEER),
        requests.refresh(600),
        requests.refresh(0),
        indication(PEER, b"data"),
        channel_data(0x4000, b"data"),
        encode(BINDING, MessageClass.REQUEST, bytes(12)),
        requests.make(Method.CHANNEL_BIND, CHANNEL_NUMBER(0x4000)),
        requests.make(Method.CREATE_PERMISSION),
        b"\x40\0",
        bytes(MAX_MESSAGE + 1),
    ]


CONVERSATION = whole_conversation()
STEPS = st.lists(
    st.one_of(
        st.sampled_from(CONVERSATION),
        st.binary(max_size=80),
        st.tuples(st.sampled_from(CONVERSATION), st.integers(0, 200), st.integers(0, 255)),
        st.integers(1, 400),
    ),
    max_size=30,
)


@settings(max_examples=20)
@given(STEPS)
def test_whatever_is_said_is_answered_to_who_said_it_or_relayed_to_who_is_permitted(
    steps: list[bytes | tuple[bytes, int, int] | int],
) -> None:
    bench = Bench()
    for step in steps:
        if isinstance(step, int):
            bench.wait(step)
            continue
        if isinstance(step, bytes):
            data = step
        else:
            changed = bytearray(step[0])
            changed[step[1] % len(changed)] = step[2]
            data = bytes(changed)
        for sink, sent, to in bench.say(data):
            if sink is UDP:
                assert to == CLIENT
                assert isinstance(decode(sent), Message)
            else:
                assert bench.relays[sink].permissions.keys() >= {to[0]}
        for allocation in bench.relays.values():
            if not allocation.ended:
                bench.from_peer(allocation.relayed or PEER, b"x", PEER)
    statistics = bench.core.statistics()
    assert statistics.allocations <= 1
    assert statistics.permissions <= 64
    bench.wait(4000)
    bench.settle()
    assert bench.core.deadline == float("inf")
    assert len(bench.closed) == len(bench.relays)


# -- A server that is shut down ----------------------------------------------------------------------------------------


def test_a_server_that_drains_makes_no_allocation_and_keeps_those_that_there_are() -> None:
    bench = Bench()
    client = Client(bench)
    request = client.requests.allocate()
    assert error_of(client.ask(request)) == 0
    other = Client(bench, "bob", "hunter2", source=OTHER)
    bench.core.drain(bench.now)
    bench.settle()
    assert error_of(other.allocate()) == Code.INSUFFICIENT_CAPACITY
    assert error_of(client.ask(request)) == 0, "the answer to the same request was lost"
    assert error_of(client.permit(PEER)) == 0
    assert error_of(client.ask(client.requests.refresh(600))) == 0
    assert not bench.core.is_over
    assert error_of(client.ask(client.requests.refresh(0))) == 0
    assert bench.core.is_over


def test_a_server_that_drains_has_its_clients_ask_until_they_have() -> None:
    """Binding indications ask them; a refresh then gets a short lifetime, so that the client goes elsewhere."""
    bench = Bench()
    client, other = Client(bench), Client(bench, "bob", "hunter2", source=OTHER)
    for each in (client, other):
        assert error_of(each.allocate()) == 0
    bench.core.drain(bench.now)
    said = bench.settle()
    assert {to for _, _, to in said} == {CLIENT, OTHER}
    for _, data, _ in said:
        message = decode(data)
        assert (message.method, message.message_class, message.attributes) == (BINDING, MessageClass.INDICATION, ())
    assert client.ask(client.requests.refresh(600)).get(LIFETIME) == LAST_LIFETIME
    for _ in REMINDERS[1:]:
        bench.now = bench.core.deadline
        bench.core.handle_timer(bench.now)
        assert [to for _, _, to in bench.settle()] == [OTHER]
    bench.core.drain(bench.now)
    assert bench.settle() == []
    bench.wait(LAST_LIFETIME)
    assert bench.core.statistics().allocations == 1, "the one that nobody has asked for"


def test_a_server_that_does_not_drain_is_not_over() -> None:
    assert not Bench().core.is_over
