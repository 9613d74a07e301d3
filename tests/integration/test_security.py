"""What a stranger cannot do to a node; docs/threat_model.md refers to each of these tests."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from ipaddress import IPv4Address, ip_address

import pytest
import trio
import trio.testing

from tests.hangs import HANG
from tests.identities import ALICE, BOB, CAROL
from tests.nodes import LoopbackHost, address_of, config, loopback_node, pair
from tests.waiting import wait_until
from warpgate_strategies.reverse_connect import DialMe
from warpgate_trio import LOOPBACK_BIND, Identity, Node, PeerAddress, anyone
from warpgate_trio.address import AddressInterface, Endpoint, EndpointKind, Transport
from warpgate_trio.address.nat_profile import NatProfile, NatProfiles, TransportProfile
from warpgate_trio.carrier import Carrier
from warpgate_trio.config.server_url import ServerUrl
from warpgate_trio.errors import AttemptFailed, SignalMalformed
from warpgate_trio.host import Interface, InterfaceAddress, host_id
from warpgate_trio.identity import seal
from warpgate_trio.limits import TokenBucket
from warpgate_trio.nurseries import open_background_nursery
from warpgate_trio.plugin import Plugin, RouteType
from warpgate_trio.punch.allowance import DIALS, TARGET_DIALS
from warpgate_trio.servers.rendezvous import RendezvousServer, open_rendezvous
from warpgate_trio.servers.rendezvous_core import RendezvousLimits
from warpgate_trio.signal import (
    Cancel,
    ClockReply,
    Delivery,
    Envelope,
    Failed,
    Inbox,
    InboxLimits,
    Incoming,
    Message,
    RefusalReason,
    Refused,
    ServerState,
    SignalHub,
    open_message,
    seal_message,
    wire_name,
)
from warpgate_trio.signal.sender import SignalSender

CONTEXT = b"warpgate-trio signal v1"


def sealed(
    sender: Identity,
    receiver: PeerAddress,
    own: PeerAddress,
    message: Message,
    *,
    owner: str = "reverse_connect",
    message_id: bytes = bytes(16),
    in_reply_to: bytes | None = None,
    time: float | None = None,
) -> bytes:
    return seal_message(
        sender,
        receiver,
        own,
        wire_name=wire_name(owner, type(message)),
        payload=message,
        message_id=message_id,
        session=b"S" * 16,
        attempt=b"A" * 16,
        in_reply_to=in_reply_to,
        time_ms=int(1000 * (LoopbackHost().wall_time() if time is None else time)),
    )


def give(node: Node, blob: bytes) -> str:
    """Hands a node a blob as a server would; returns the outcome that the node counted."""
    counters = node._runtime.router.counters
    before = counters.copy()
    node._runtime.router.handle(Incoming(blob, "ws://127.0.0.1:1"))
    changed = counters - before
    return "+".join(sorted(changed)) or "nothing"


async def test_messages_cannot_be_replayed() -> None:
    async with loopback_node(BOB, config(), authorize=anyone) as bob:
        blob = sealed(ALICE, bob.address, address_of(ALICE, port=1), Cancel(), owner="core")
        assert give(bob, blob) == "Accepted"
        assert give(bob, blob) == "Replayed"
        # The same signed message, sealed again, is still the same message.
        plaintext = BOB.open_sealed(blob[1:], info=CONTEXT)
        again = blob[:1] + seal(bob.address.sealing_key, plaintext, info=CONTEXT)
        assert again != blob
        assert give(bob, again) == "Replayed"
        for when in (LoopbackHost().wall_time() - 400, LoopbackHost().wall_time() + 400):
            another = int(when).to_bytes(16, "big")
            old = sealed(
                ALICE, bob.address, address_of(ALICE, port=1), Cancel(), owner="core", time=when, message_id=another
            )
            assert "OutsideWindow" in give(bob, old)


async def test_a_message_from_before_the_start_is_refused() -> None:
    """The node cannot know whether it received this message before the restart."""
    async with loopback_node(BOB, config(), authorize=anyone) as bob:
        earlier = LoopbackHost().wall_time() - 60
        blob = sealed(ALICE, bob.address, address_of(ALICE, port=1), Cancel(), owner="core", time=earlier)
        assert give(bob, blob) == "TooOld"


async def test_messages_cannot_be_readdressed_or_resealed() -> None:
    """Carol passes on to Bob what Alice has sent to her."""
    carols = address_of(CAROL, port=1)
    blob = sealed(ALICE, carols, address_of(ALICE, port=1), Cancel(), owner="core")
    async with loopback_node(BOB, config(), authorize=anyone) as bob:
        assert give(bob, blob) == "SignalMalformed"  # sealed to Carol: Bob cannot even open it
        plaintext = CAROL.open_sealed(blob[1:], info=CONTEXT)
        resealed = blob[:1] + seal(bob.address.sealing_key, plaintext, info=CONTEXT)
        assert give(bob, resealed) == "SignalMisdirected"


async def test_nobody_speaks_for_another() -> None:
    async with loopback_node(BOB, config(), authorize=anyone) as bob:
        # Carol signs, but presents Alice's address as her own.
        with pytest.raises(ValueError, match="belongs to another key than identity"):
            sealed(CAROL, bob.address, address_of(ALICE, port=1), Cancel(), owner="core")
        blob = sealed(CAROL, bob.address, address_of(CAROL, port=1), Cancel(), owner="core")
        plaintext = bytearray(BOB.open_sealed(blob[1:], info=CONTEXT))
        at = plaintext.index(CAROL.public_key)
        plaintext[at : at + 32] = ALICE.public_key
        forged = blob[:1] + seal(bob.address.sealing_key, bytes(plaintext), info=CONTEXT)
        assert give(bob, forged) == "SignalForged"
        assert open_message(BOB, blob).header.sender == CAROL.public_key


@pytest.mark.parametrize("blob", [b"", b"\x01", bytes(16385), b"\x01" + bytes(200), b"\x09" + bytes(200)])
async def test_garbage_is_counted_and_dropped(blob: bytes) -> None:
    async with loopback_node(BOB, config(), authorize=anyone) as bob:
        assert give(bob, blob) in ("SignalMalformed", "SignalUnsupported")


@pytest.mark.slow("a hundred signals through a real server")
async def test_a_flood_is_bounded_before_it_is_decrypted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Signals beyond the rate wait in the queue of their channel, and are dropped when that is full."""
    limits = InboxLimits(rate=1e-3, burst=7)
    monkeypatch.setattr("warpgate_trio.signal.router.Inbox", partial(Inbox, limits=limits))
    async with (
        open_rendezvous() as server,
        loopback_node(BOB, config(server), authorize=anyone) as bob,
        hub_of(CAROL, server) as hub,
    ):
        await bob.wait_signals()
        for _ in range(100):
            await hub.send(BOB.public_key, b"\x01" + bytes(200))
        await wait_until(lambda: bob.stats().signals_dropped >= 100 - 7 - 64)
        assert bob.stats().signals == {"SignalMalformed": 7}


@pytest.mark.slow("a hundred signals through a real server")
async def test_what_is_no_signal_at_a_glance_costs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes neither a place in a queue nor a share of the signals that may be opened in a second."""
    limits = InboxLimits(rate=1e-3, burst=1)
    monkeypatch.setattr("warpgate_trio.signal.router.Inbox", partial(Inbox, limits=limits))
    async with (
        open_rendezvous() as server,
        loopback_node(BOB, config(server), authorize=anyone) as bob,
        hub_of(CAROL, server) as hub,
    ):
        await bob.wait_signals()
        for number in range(150):
            await hub.send(BOB.public_key, [b"\x01", b"x", b"\x02" + bytes(200)][number % 3])
        own = address_of(CAROL, port=1)
        await hub.send(BOB.public_key, sealed(CAROL, bob.address, own, Cancel(), owner="core"))
        await wait_until(lambda: bob.stats().signals.get("Accepted"))
        assert bob.stats().signals == {"SignalMalformed": 50, "SignalUnsupported": 100, "Accepted": 1}
        assert bob.stats().signals_dropped == 0


@pytest.mark.slow("a hundred signals through a real server")
async def test_a_flood_on_one_channel_leaves_the_others_their_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stranger who knows the peer id floods one server, as far as that allows it; Alice uses the other server."""
    limits = InboxLimits(rate=50.0, burst=1)
    monkeypatch.setattr("warpgate_trio.signal.router.Inbox", partial(Inbox, limits=limits))
    allowed = RendezvousLimits(sends_per_second=10**6, send_burst=10**6)
    async with (
        open_rendezvous(limits=allowed) as flooded,
        open_rendezvous() as quiet,
        loopback_node(BOB, config(flooded, quiet), authorize=anyone) as bob,
        hub_of(CAROL, flooded) as carol,
        hub_of(ALICE, quiet) as alice,
        open_background_nursery() as nursery,
    ):
        await wait_until(lambda: [each.state for each in bob.signal_servers] == [ServerState.CONNECTED] * 2)
        with trio.fail_after(HANG):

            async def flood() -> None:
                while True:
                    await carol.send(BOB.public_key, b"\x01" + bytes(200))

            nursery.start_soon(flood)
            while not bob.stats().signals_dropped:
                await trio.lowlevel.checkpoint()
            own = address_of(ALICE, port=1)
            for number in range(3):
                message_id = bytes([number]) * 16
                blob = sealed(ALICE, bob.address, own, Cancel(), owner="core", message_id=message_id)
                await alice.send(BOB.public_key, blob)
                while bob.stats().signals.get("Accepted", 0) <= number:
                    await trio.lowlevel.checkpoint()
            assert bob.stats().signals_dropped


class Unheard(Message, frozen=True):
    """A message of a plugin that nobody has: a sender that `authorize` lets in gets a `Refused`."""


@asynccontextmanager
async def hub_of(identity: Identity, server: RendezvousServer) -> AsyncGenerator[SignalHub]:
    hub = SignalHub(identity, [ServerUrl.parse(f"ws://127.0.0.1:{server.port}")])
    async with open_background_nursery() as nursery:
        await nursery.start(hub.run)
        await hub.wait_connected()
        yield hub


async def ask(hub: SignalHub, sender: Identity, node: Node, message_id: bytes) -> Envelope:
    """Sends a node a message that it does not know, and returns the answer."""
    own = address_of(sender, port=1)
    await hub.send(node.address.public_key, sealed(sender, node.address, own, Unheard(), message_id=message_id))
    with trio.fail_after(HANG):
        return open_message(sender, (await hub.receive()).payload)


async def test_an_address_that_nothing_can_be_sealed_to_harms_only_its_owner() -> None:
    """A stranger signs an address whose sealing key is a point of small order, and sends a message to be answered."""
    async with open_rendezvous() as server, loopback_node(BOB, config(server), authorize=anyone) as bob:
        await bob.wait_signals()
        mallory = Identity.generate()
        mallory.sealing_key = bytes(32)  # type: ignore[misc]
        outcome = give(bob, sealed(mallory, bob.address, address_of(mallory, port=1), Unheard()))
        assert outcome == "Accepted+unknown_type"
        await trio.testing.wait_all_tasks_blocked(0.01)
        assert "sent" not in bob.stats().signals
        async with hub_of(ALICE, server) as hub:
            assert (await ask(hub, ALICE, bob, b"1" * 16)).header.type == "core.Refused"
    async with loopback_node(ALICE, config("ws://127.0.0.1:1")) as alice:  # the same address, when we call it
        with pytest.raises(SignalMalformed, match="sealing key"):
            await alice.refresh_address(address_of(mallory, port=1))


@pytest.mark.parametrize("claimed", [0, 2**53 - 1])
async def test_a_peer_that_lies_about_its_clock_harms_only_itself(claimed: int) -> None:
    async with open_rendezvous() as server, loopback_node(BOB, config(server), authorize=anyone) as bob:
        await bob.wait_signals()
        async with hub_of(CAROL, server) as hub:
            answer = await ask(hub, CAROL, bob, b"1" * 16)
            lie = sealed(
                CAROL,
                bob.address,
                address_of(CAROL, port=1),
                ClockReply(time_ms=claimed),
                owner="core",
                message_id=b"2" * 16,
                in_reply_to=answer.header.message_id,
            )
            assert give(bob, lie) == "Accepted"
            # Her next messages are stamped by the clock that she claims, which is no excuse, or by ours.
            own, now = address_of(CAROL, port=1), max(claimed - 100, 0) / 1000
            more = sealed(CAROL, bob.address, own, Unheard(), message_id=b"3" * 16, time=now)
            assert give(bob, more) == "OutsideWindow"
            more = sealed(CAROL, bob.address, own, Unheard(), message_id=b"4" * 16)
            assert give(bob, more) == "Accepted+unknown_type"
            await trio.testing.wait_all_tasks_blocked(0.05)
        async with hub_of(ALICE, server) as hub:
            assert (await ask(hub, ALICE, bob, b"5" * 16)).header.type == "core.Refused"


async def test_a_signal_that_fails_in_a_way_that_nobody_foresaw_does_not_end_the_node(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with open_rendezvous() as server, loopback_node(BOB, config(server), authorize=anyone) as bob:
        await bob.wait_signals()
        with monkeypatch.context() as patch:

            async def broken(*args: object, **kwargs: object) -> Delivery:
                raise KeyError("a bug")

            patch.setattr(bob._runtime.sender, "send", broken)
            give(bob, sealed(CAROL, bob.address, address_of(CAROL, port=1), Unheard()))
            await trio.testing.wait_all_tasks_blocked(0.01)
            patch.undo()
            patch.setattr(bob._runtime.router, "_on_request", None)
            dial_me = DialMe(af=4, route_type=LOOPBACK_BIND, address=bytes(4), port=9)
            give(bob, sealed(CAROL, bob.address, address_of(CAROL, port=1), dial_me, message_id=b"2" * 16))
        assert "a reply could not be sent" in caplog.text
        assert "a signal could not be handled" in caplog.text
        async with hub_of(ALICE, server) as hub:
            assert (await ask(hub, ALICE, bob, b"1" * 16)).header.type == "core.Refused"


async def connected(listener: trio.socket.SocketType, within: float = 0.05) -> bool:
    """Whether anybody connects within so many seconds."""
    with trio.move_on_after(within):
        sock, _ = await listener.accept()
        sock.close()
        return True
    return False


async def test_a_stranger_makes_a_node_dial_nothing() -> None:
    """The node does not even dial an address that the stranger has signed as its own."""

    async def nobody(_: str) -> bool:
        return False

    victim = trio.socket.socket()
    await victim.bind(("127.0.0.1", 0))
    victim.listen(1)
    port = victim.getsockname()[1]
    async with pair(authorize=nobody) as both:
        own = address_of(CAROL, port=port)
        dial_me = DialMe(af=4, route_type=LOOPBACK_BIND, address=ip_address("127.0.0.1").packed, port=port)
        assert give(both.bob, sealed(CAROL, both.bob.address, own, dial_me)) == "Accepted"
        assert not await connected(victim)
    async with pair() as both:  # the same from an authorized peer: that is what reverse_connect is for
        assert give(both.bob, sealed(CAROL, both.bob.address, own, dial_me, message_id=b"2" * 16)) == "Accepted"
        assert await connected(victim, within=5)
    victim.close()


FORBIDDEN = (
    "10.20.30.40",  # private, in other networks than ours
    "172.16.0.1",
    "192.168.77.1",
    "100.64.0.1",  # carrier-grade NAT
    "127.0.0.1",  # ours
    "169.254.169.254",  # link-local; clouds answer there
    "224.0.0.251",  # multicast
    "255.255.255.255",
    "0.0.0.0",
    "fd00::1",
    "fe80::1",
    "ff02::1",
    "::1",
    "::",
    "::ffff:192.168.77.1",
    "::ffff:169.254.169.254",
    "::ffff:127.0.0.1",
    "198.18.0.1",  # for benchmarks, and used by local proxies
    "200::1",  # an overlay network
    "64:ff9b::a9fe:a9fe",  # embedded addresses: link-local, private, ours
    "64:ff9b::7f00:1",
    "64:ff9b:1::a14:1e28",
    "2002:a14:1e28::1",
    "2002:7f00:1::1",
    "2001:0:808:808::f5eb:e1d7",
    "::a14:1e28",
    "10.0.0.5",  # our own, published or not, by itself or embedded
    "203.0.113.200",
    "10.88.0.1",
    "2001:db8:5::5",
    "64:ff9b::cb00:71c8",
    "203.0.113.1",  # our NAT's
)


def signed(
    identity: Identity,
    address: str,
    kind: EndpointKind,
    *,
    port: int = 22,
    machine: tuple[bytes, bytes] = (bytes(8), b"another machine."),
) -> PeerAddress:
    """An address record that claims this address, by default from another machine."""
    now = int(LoopbackHost().wall_time())
    endpoint = Endpoint.make(transport=Transport.TCP, kind=kind, ip=ip_address(address), port=port, prefix=None)
    return PeerAddress.issue(
        identity,
        seq=now,
        issued_at=now,
        expires_at=now + 60,
        host_salt=machine[0],
        host_id=machine[1],
        interfaces=(AddressInterface(1, (endpoint,)),),
    )


class Routed(LoopbackHost):  # type: ignore[misc]  # final outside of the tests
    """A host with a network of its own, two more addresses that it does not publish, and a default route."""

    def interfaces(self) -> tuple[Interface, ...]:
        own = (
            InterfaceAddress(ip=ip_address("10.0.0.5"), prefix=24),
            InterfaceAddress(ip=ip_address("2001:db8:5::5"), prefix=64),
        )
        hidden = (InterfaceAddress(ip=ip_address("203.0.113.200"), prefix=32),)
        lan = Interface(name="eth0", index=2, addresses=own, is_loopback=False, is_virtual=False)
        bridge = Interface(name="docker0", index=3, addresses=hidden, is_loopback=False, is_virtual=True)
        return (*super().interfaces(), lan, bridge)

    def source_address(self, dest: object) -> IPv4Address:
        routed_to_itself = IPv4Address("10.88.0.1")
        return routed_to_itself if dest == routed_to_itself else IPv4Address("10.0.0.5")


Ask = Callable[..., Awaitable[None]]
HostId = Callable[[bytes, PeerAddress], tuple[bytes, bytes]]
"""Makes a peer's claim about its machine (salt and id) from its key and Bob's address."""


def another(_: bytes, __: PeerAddress) -> tuple[bytes, bytes]:
    return bytes(8), b"another machine."


def copied(_: bytes, theirs: PeerAddress) -> tuple[bytes, bytes]:
    """The claim in Bob's own address, which everybody may have."""
    return theirs.host_salt, theirs.host_id


def true(key: bytes, _: PeerAddress) -> tuple[bytes, bytes]:
    """The claim that only a process on Bob's machine can make."""
    return bytes(8), host_id(bytes(32), bytes(8), key)


@asynccontextmanager
async def asked_to_dial(monkeypatch: pytest.MonkeyPatch) -> AsyncGenerator[tuple[Ask, list[str]]]:
    """A function that asks Bob to dial, each time as a new peer, and the list of what he dialled."""
    dialled: list[str] = []

    async def dial(plugin: Plugin) -> Carrier:
        await trio.lowlevel.checkpoint()
        dialled.append(str(plugin.dest.ip))
        raise AttemptFailed("recorded")

    monkeypatch.setattr("warpgate_strategies.reverse_connect.dial", dial)
    limits = InboxLimits(stranger_burst=1000)
    monkeypatch.setattr("warpgate_trio.signal.router.Inbox", partial(Inbox, limits=limits))
    number = 0
    async with loopback_node(BOB, config(), authorize=anyone, host=Routed()) as bob:
        nat = NatProfile(udp=TransportProfile(external=(IPv4Address("203.0.113.1"),)))
        bob._runtime.nat.profiles = NatProfiles({(None, 4): nat})

        async def ask(
            address: str,
            kind: EndpointKind,
            route: RouteType,
            host_id: HostId = another,
        ) -> None:
            nonlocal number
            number += 1
            identity = Identity.generate()
            try:
                own = signed(identity, address, kind, machine=host_id(identity.public_key, bob.address))
            except ValueError:
                return  # such an address cannot even be signed
            ip = ip_address(address)
            message = DialMe(af=ip.version, route_type=route, address=ip.packed, port=22)
            blob = sealed(identity, bob.address, own, message, message_id=number.to_bytes(16, "big"))
            assert give(bob, blob) == "Accepted"
            await trio.testing.wait_all_tasks_blocked()

        yield ask, dialled


@pytest.mark.slow("a hundred requests, each of another peer")
@pytest.mark.parametrize("kind", EndpointKind)
@pytest.mark.parametrize("host_id", [another, copied])
async def test_a_peer_cannot_have_a_foreign_network_scanned(
    monkeypatch: pytest.MonkeyPatch, host_id: HostId, kind: EndpointKind
) -> None:
    """Addresses that the asking peer cannot own are never dialled, signed or not, under any kind of endpoint."""
    async with asked_to_dial(monkeypatch) as (ask, dialled):
        for address in FORBIDDEN:
            for route in RouteType:
                await ask(address, kind, route, host_id)
    assert dialled == []


async def test_what_a_peer_may_ask_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """A public address, one in a network that we are in ourselves, and an IPv6 one that embeds a public address."""
    async with asked_to_dial(monkeypatch) as (ask, dialled):
        for host_id in (copied, true):
            await ask("203.0.113.9", EndpointKind.EXT, RouteType.EXT_BIND, host_id)
            await ask("2001:db8:6::9", EndpointKind.EXT, RouteType.EXT_BIND, host_id)
            await ask("64:ff9b::808:808", EndpointKind.EXT, RouteType.EXT_BIND, host_id)
            await ask("10.0.0.77", EndpointKind.NIC, RouteType.NIC_BIND, host_id)
    assert dialled == ["203.0.113.9", "2001:db8:6::9", "64:ff9b::808:808", "10.0.0.77"] * 2


@pytest.mark.slow("as many requests as a node takes at once")
async def test_peers_of_all_names_have_a_node_dial_so_much_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """If everybody is let in, a new identity costs nothing, so dials are limited for each target and in total."""
    refused: list[Refused] = []

    def reply_soon(self: SignalSender, envelope: object, via: str, message: Message) -> None:
        assert isinstance(message, Failed | Refused)
        refused.extend([message] if isinstance(message, Refused) else [])

    monkeypatch.setattr(SignalSender, "reply_soon", reply_soon)
    monkeypatch.setattr(TokenBucket, "earn", lambda self, now: None)  # no refill, however long the test takes
    async with asked_to_dial(monkeypatch) as (ask, dialled):
        for number in range(TARGET_DIALS + 3):
            ip = "203.0.113.9" if number < TARGET_DIALS else f"203.0.113.{number}"
            await ask(ip, EndpointKind.EXT, RouteType.EXT_BIND)
        await ask("203.0.113.9", EndpointKind.EXT, RouteType.EXT_BIND)
        assert len(dialled) == TARGET_DIALS + 3
        assert refused == [Refused(reason=RefusalReason.BUSY, retry_after=2.0)]
        # With IPv6 the /64 counts as the address, since it holds any number of them.
        for number in range(1, TARGET_DIALS + 2):
            await ask(f"2001:db8:6::{number:x}", EndpointKind.EXT, RouteType.EXT_BIND)
        assert len(dialled) == 2 * TARGET_DIALS + 3
        assert len(refused) == 2
        for number in range(DIALS - len(dialled) + 3):
            await ask(f"198.51.{number}.1", EndpointKind.EXT, RouteType.EXT_BIND)
        assert len(dialled) == DIALS
        assert len(refused) == 5


OWN = ("127.0.0.1", "::1", "10.0.0.5", "10.88.0.1", "203.0.113.200", "2001:db8:5::5", "64:ff9b::cb00:71c8")


@pytest.mark.parametrize("address", OWN)
@pytest.mark.parametrize("kind", [EndpointKind.EXT, EndpointKind.NIC, EndpointKind.MAPPED])
async def test_a_call_does_not_dial_our_own_addresses(address: str, kind: EndpointKind) -> None:
    """The text of an address names them as its owner's, who is on another machine."""
    async with loopback_node(ALICE, config(), host=Routed()) as alice:
        planned = alice._runtime.home.plan(signed(BOB, address, kind), ["direct_connect"], None, None)
        assert [str(combo.target.ip) for combo in planned if combo.target and not combo.hopeless] == []


@pytest.mark.parametrize("address", ["10.20.30.40", "198.18.0.1", "200::1", "64:ff9b::a14:1e28"])
@pytest.mark.parametrize("kind", [EndpointKind.EXT, EndpointKind.NIC, EndpointKind.MAPPED])
async def test_a_private_address_of_another_network_holds_nothing_up_whatever_it_is_called(
    address: str, kind: EndpointKind
) -> None:
    async with loopback_node(ALICE, config(), host=Routed()) as alice:
        planned = alice._runtime.home.plan(signed(BOB, address, kind), ["direct_connect"], None, None)
        assert all(combo.elsewhere or combo.hopeless for combo in planned)


async def test_who_runs_on_our_machine_may_have_it_dialled_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    async with asked_to_dial(monkeypatch) as (ask, dialled):
        for address in FORBIDDEN:
            route = RouteType.LOOPBACK_BIND if ip_address(address).is_loopback else RouteType.NIC_BIND
            await ask(address, EndpointKind.NIC, route, true)
    assert sorted(dialled) == sorted(OWN)


async def test_a_colliding_private_address_does_not_pass_for_the_peer() -> None:
    """Alice and the real Bob are in two homes with the same private network; Carol has Bob's address in Alice's."""
    async with (
        loopback_node(CAROL, config(), authorize=anyone) as carol,
        loopback_node(ALICE, config()) as alice,
    ):
        port = next(endpoint.port for _, endpoint in carol.address.endpoints())
        with pytest.raises(Exception, match="wrong_peer"):
            await alice.auto_connect(address_of(BOB, port=port), early_data=b"a secret for Bob")
        with trio.move_on_after(0.02):
            await carol.listener.accept()
            pytest.fail("Carol got a Pipe that was meant for Bob")
