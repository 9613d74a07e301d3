"""Bytes that come over the network between nodes, and between a node and servers."""

from __future__ import annotations

import functools
from ipaddress import ip_address
from typing import Any, Final

from msgspec.structs import replace

from tests.fuzz.registry import pieces, target
from tests.identities import ALICE, BOB
from tests.one_lane import OneLane
from tests.turn_bench import PEER, Bench, allocated
from tests.turn_requests import Requests, channel_data, indication
from warpgate_trio.address import KeyRecord
from warpgate_trio.clock.ntp import NtpExchange, NtpRejected
from warpgate_trio.config import ServerUrl
from warpgate_trio.errors import (
    ProxyError,
    RemoteProtocolError,
    SignalUnsupported,
    StunError,
    StunMalformed,
)
from warpgate_trio.link import frame_codec
from warpgate_trio.link import frames as link
from warpgate_trio.link.ahead import AHEAD_UNITS
from warpgate_trio.link.attaching import LinkSecret
from warpgate_trio.link.channels import WINDOW_MIN
from warpgate_trio.link.frame_reader import FrameReader
from warpgate_trio.link.lane import LaneProtocol
from warpgate_trio.link.protocol import LinkProtocol
from warpgate_trio.messages import MessageReader, encode_header
from warpgate_trio.ports.connect import ConnectRequest
from warpgate_trio.punch.checks import PathChecks
from warpgate_trio.punch.probe import SECRET_LENGTH, ProbeCodec
from warpgate_trio.servers import relay_frames as relay
from warpgate_trio.servers import rendezvous_frames as rendezvous
from warpgate_trio.servers.health_core import HealthRequest, Pages
from warpgate_trio.servers.key_record_frames import Found, Lookup, Publish, Published
from warpgate_trio.servers.ntp_core import NtpResponder
from warpgate_trio.servers.relay_core import CIRCUIT_BYTES, RelayRules
from warpgate_trio.servers.rendezvous_core import RendezvousCore
from warpgate_trio.servers.stun_core import StunCore
from warpgate_trio.signal.circuits import WINDOW, Circuit, Circuits, Leaving, Ringing
from warpgate_trio.signal.mqtt.packets import PacketFilter
from warpgate_trio.stun import codec as stun
from warpgate_trio.stun.transaction import StunTransaction, binding_request, read_binding_answer
from warpgate_trio.turn import messages as turn
from warpgate_trio.turn.framing import TurnStreamReader
from warpgate_trio.websocket.proxies import ProxyHeader, ProxyReader, TrustedProxies

NOW: Final = 1_700_000_000.0


# -- the rendezvous server and its clients -----------------------------------------------------------------------------


def _from_server() -> list[bytes]:
    return [
        rendezvous.Challenge(b"n" * 32).encode(),
        rendezvous.Registered().encode(),
        rendezvous.Sent(7, 1).encode(),
        rendezvous.Message(b"payload").encode(),
        rendezvous.Error(3, "slow").encode(),
        rendezvous.Registered(3).encode(),
        Published(0).encode(),
        Found(7, 0, b"record").encode(),
        Found(7, 1).encode(),
        relay.Ring(2, b"payload").encode(),
        *_of_circuits(1),
    ]


def _of_circuits(circuit: int) -> list[bytes]:
    return [
        relay.Answer(circuit, b"payload").encode(),
        relay.Relay(circuit, b"bytes").encode(),
        relay.RelayCredit(circuit, 100_000).encode(),
        relay.RelayEnd(circuit, relay.EndReason.CLOSED).encode(),
        relay.RelayEnd(relay.ALL_CIRCUITS, relay.EndReason.SHUTTING_DOWN).encode(),
    ]


@target(_from_server, RemoteProtocolError, SignalUnsupported, inputs=20_000)
def rendezvous_frames_to_a_client(data: bytes) -> None:
    assert repr(rendezvous.decode_from_server(data))


@target(_from_server, RemoteProtocolError, SignalUnsupported, inputs=10_000)
def frames_of_circuits_to_a_client(data: bytes) -> None:
    """On a circuit that the node opened, and on incoming ones: received data and the outbox stay within bounds."""
    rung: list[Circuit] = []

    def arrive(arrival: bytes | Ringing | Leaving) -> bool:
        if isinstance(arrival, Ringing):
            rung.append(arrival.circuit)
        return True

    circuits = Circuits("ws://server")
    circuits.open(("", 0), ("", 0), arrive, 0.0)
    called = circuits.make()
    circuits.hear(relay.Answer(1, b"payload"))
    for _ in range(3):
        frame = rendezvous.decode_from_server(data)
        if isinstance(frame, relay.Ring | relay.Answer | relay.Relay | relay.RelayCredit | relay.RelayEnd):
            circuits.hear(frame)
    assert sum(map(len, called._waiting)) <= WINDOW
    for circuit in (called, *rung):
        circuit.close()
    assert len(circuits) == 0
    assert not circuits.outbox.is_overfull


_NAME: Final = "signal.example.org:443"
_INSTANCE: Final = b"instance"


def _from_client() -> list[bytes]:
    challenge, keys = rendezvous.Challenge(b"n" * 32), (ALICE.public_key, BOB.public_key)
    return [
        rendezvous.register(ALICE, challenge).encode(),
        rendezvous.register_2(ALICE, challenge, name=_NAME, instance=_INSTANCE).encode(),
        rendezvous.register_3(ALICE, challenge, name=_NAME, instance=_INSTANCE).encode(),
        *(rendezvous.Send(1, key, b"payload").encode() for key in keys),
        *(Lookup(1, key).encode() for key in keys),
        Publish(KeyRecord.issue(ALICE, issued_ms=1, signals=["ws://a"], instance=_INSTANCE).to_bytes()).encode(),
        *(rendezvous.Send2(1, key, _INSTANCE, b"payload").encode() for key in keys),
        *(relay.Call(circuit, key, bytes(8), b"payload").encode() for key in keys for circuit in (1, 3)),
        *(frame for circuit in (1, 2, 4) for frame in _of_circuits(circuit)),
    ]


@target(_from_client, inputs=500)
def rendezvous_frames_to_a_server(data: bytes) -> None:
    """With and without a registration, in each version: the server raises nothing, and leaves nothing counted."""
    core = RendezvousCore()
    connections = []
    for version in (1, 2, 3):
        for registered in (False, True):
            connection, _ = core.connect(b"n" * 32, 0.0, host="192.0.2.1", version=version, names=[_NAME])
            connections.append(connection)
            core.call_ahead(connection, data, 0.0)
            if registered:
                core.receive(connection, _from_client_once()[version - 1], 0.0)
            core.receive(connection, data, 1.0)
    for connection in connections:
        core.disconnect(connection, 2.0)
    assert core.statistics().mailboxes == 0
    assert core.statistics().queued == 0


_from_client_once = functools.cache(_from_client)


@target(_from_client, inputs=500)
def frames_of_circuits_to_a_server(data: bytes) -> None:
    """From both sides of a circuit, before and after its answer, and from a stranger: the counts stay right."""
    core = RendezvousCore(relay=RelayRules(open_to_all=True))
    sides = []
    for identity in (ALICE, BOB):
        connection, _ = core.connect(b"n" * 32, 0.0, host="192.0.2.1", version=3, names=[_NAME])
        challenge = rendezvous.Challenge(b"n" * 32, 3)
        core.receive(connection, rendezvous.register_3(identity, challenge, _INSTANCE, _NAME).encode(), 0.0)
        sides.append(connection)
    alice, bob = sides
    core.receive(alice, relay.Call(1, BOB.public_key, bytes(8), b"payload").encode(), 1.0)
    core.receive(bob, data, 2.0)
    stranger, _ = core.connect(b"n" * 32, 0.0, host="192.0.2.1", version=3, names=[_NAME])
    core.call_ahead(stranger, data, 2.0)
    sides.append(stranger)
    core.receive(bob, relay.Answer(2, b"payload").encode(), 3.0)
    for connection in sides:
        core.receive(connection, data, 4.0)
        while core.transmit(connection, 5.0) is not None:
            core.written(connection)
        core.handle_timer(connection, 1000.0)
    assert core.statistics().relay.held <= CIRCUIT_BYTES
    for connection in sides:
        core.disconnect(connection, 1001.0)
    assert (core.statistics().relay.held, core.statistics().relay.circuits) == (0, 0)


# -- a reverse proxy in front of the rendezvous server -----------------------------------------------------------------


def _proxy_headers() -> list[bytes]:
    addresses = bytes([198, 51, 100, 7, 203, 0, 113, 1]) + (50000).to_bytes(2, "big") + (443).to_bytes(2, "big")
    fixed = b"\r\n\r\n\0\r\nQUIT\n"
    return [
        b"PROXY TCP4 198.51.100.7 203.0.113.1 50000 443\r\nGET",
        b"PROXY TCP6 2001:db8::7 2001:db8::1 50000 443\r\n",
        b"PROXY UNKNOWN\r\n",
        fixed + b"\x21\x11\0\x0c" + addresses + b"GET",
        fixed + b"\x21\x21\0\x24" + bytes(36),
        fixed + b"\x20\0\0\0",
    ]


@target(_proxy_headers, RemoteProtocolError, inputs=20_000)
def proxy_protocol(data: bytes) -> None:
    reader = ProxyReader()
    for piece in pieces(data):
        if reader.feed(piece):
            break


def _forwarded() -> list[bytes]:
    return [
        b"for=198.51.100.7",
        b'For="[2001:db8::7]:4711";proto=https;by=10.0.0.1, for=10.0.0.2',
        b"for=unknown, for=_hidden",
        b"198.51.100.7, 10.0.0.2, 2001:db8::7",
    ]


@target(_forwarded, RemoteProtocolError, inputs=10_000)
def forwarded(data: bytes) -> None:
    """In either header, and in both (one value reversed): a client that is accepted is always an IP address."""
    proxies = TrustedProxies(["10.0.0.0/8"], ProxyHeader.FORWARDED)
    headers = [(b"forwarded", data), (b"x-forwarded-for", data[::-1])]
    refused: RemoteProtocolError | None = None
    for chosen in (headers[:1], [(b"x-forwarded-for", data)], headers):
        try:
            ip_address(proxies.client("10.0.0.1", chosen))
        except RemoteProtocolError as error:
            refused = error
    if refused is not None:
        raise refused


# -- proxies on the way to a server ------------------------------------------------------------------------------------


def _answers_to_connect() -> list[bytes]:
    return [
        b"HTTP/1.1 200 Connection established\r\n\r\n\x16\x03\x03",
        b"HTTP/1.0 200 OK\r\nProxy-agent: tinyproxy/1.11.1\r\n\r\n",
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 204 No\r\nContent-Length: 3\r\n\r\n",
        b'HTTP/1.1 407 Login\r\nProxy-Authenticate: Negotiate, Basic realm="a, b"\r\nContent-Length: 3\r\n\r\nno!',
        b"HTTP/1.1 403 Forbidden\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"HTTP/1.1 502 " + b"x" * 100 + b"\r\nA:\r\n b\r\n\r\n",
    ]


@target(_answers_to_connect, ProxyError, inputs=5_000)
def answer_to_connect(data: bytes) -> None:
    request = ConnectRequest(ServerUrl("http", "proxy.example", 3128, "ann", "pw"), "2001:db8::1", 443)
    fed = 0
    said: ProxyError | None = None
    try:
        for piece in pieces(data):
            fed += len(piece)
            if request.receive(piece):
                assert data[:fed].endswith(request.rest)
                return
        request.receive(b"")
    except ProxyError as error:
        said = error
    assert said is not None
    assert len(str(said)) < 400
    raise said


# -- the link ----------------------------------------------------------------------------------------------------------

_PROOF: Final = link.Proof(client_key=b"k" * 32, session_id=b"s" * 16, attempt_id=b"t" * 16, signature=b"g" * 64)
_COMMIT: Final = link.Commit(session_id=b"s" * 16, link_id=b"l" * 16, epoch=1, credit=WINDOW_MIN)
_TERMS: Final = link.Terms(resume_timeout=120, secret=b"h" * 16, instance=b"i" * 8)
_DATA: Final = frame_codec.data_header(0, 5) + b"hello"


def _frames() -> list[bytes]:
    opened: list[link.Frame] = [
        link.Accept(channel=0, credit=WINDOW_MIN),
        link.Open(channel=2, credit=1000, label="a"),
        link.Open(channel=3, credit=1000, label="b"),
        link.Accept(channel=1, credit=1000),
        link.Accept(channel=2, credit=1000),
        link.Refuse(channel=1, reason=link.RefuseReason.BUSY, text="no"),
        link.Credit(channel=0, limit=2 * WINDOW_MIN),
        link.Fin(channel=0, final_offset=5),
        link.Reset(channel=0, code=link.ResetCode.CLOSED),
        link.Ping(token=1),
        link.Pong(token=1),
        link.GoAway(code=0),
    ]
    lasting: list[link.Frame] = [
        replace(_COMMIT, terms=_TERMS),
        link.Accept(channel=0, credit=WINDOW_MIN, terms=_TERMS),
        link.Attach(link_id=b"l" * 16, lane=3, received=0, turn=0, mac=b"m" * 16),
        link.Attached(lane=3, received=0, turn=0, mac=b"m" * 16),
        link.Ack(position=1),
        link.At(position=0, turn=1),
        link.At(position=0, turn=2, graceful=True),
        link.Drop(lane=3),
        link.Drop(lane=1, reason=link.DropReason.GIVES_WAY),
        link.News(payload=b"sealed"),
    ]
    frames: list[link.Frame] = [_PROOF, _COMMIT, *opened]
    whole = [frame_codec.encode(frame) for frame in frames]
    more = [frame_codec.encode(frame) for frame in lasting]
    talks = [whole[0] + whole[1] + _DATA, whole[2] + _DATA + whole[6], b"".join(whole[2:7])]
    return [*whole, *more, _DATA, *talks, more[5] + _DATA + more[4], more[6] + _DATA + more[7] + more[9]]


@target(_frames, RemoteProtocolError, inputs=10_000)
def link_frames(data: bytes) -> None:
    reader = FrameReader()
    for piece in pieces(data):
        for item in reader.feed([piece]):
            assert repr(item)


@target(_frames, RemoteProtocolError, inputs=1_500)
def link_protocol(data: bytes) -> None:
    """In every role, from the first frame on and after a handshake; each case has a protocol object of its own."""
    failed: RemoteProtocolError | None = None
    for dialler in (True, False):
        for initiator in (True, False):
            for committed in (False, True):
                try:
                    _converse(dialler, initiator, committed, data)
                except RemoteProtocolError as error:
                    failed = error
        try:
            _converse_on_lanes(dialler, data)
        except RemoteProtocolError as error:
            failed = error
    if failed is not None:
        raise failed


def _converse(dialler: bool, initiator: bool, committed: bool, data: bytes) -> None:
    protocol = OneLane(dialler=dialler, initiator=initiator if dialler else None, now=0.0, idle_interval=10.0)
    if dialler:
        protocol.send_proof(_PROOF)
    if committed:
        if not dialler:
            protocol.receive([frame_codec.encode(_PROOF)], 0.0)
            protocol.set_role(initiator=initiator, now=0.0)
        if initiator:
            protocol.send_commit(session_id=b"s" * 16, link_id=b"l" * 16, epoch=1, now=0.0)
            protocol.receive([frame_codec.encode(link.Accept(channel=0, credit=WINDOW_MIN))], 0.0)
        else:
            protocol.receive([frame_codec.encode(_COMMIT)], 0.0)
            protocol.send_accept(now=0.0)
        protocol.open_channel("ours", now=0.0)
    for number, piece in enumerate(pieces(data)):
        now = 1.0 + number
        protocol.receive([piece], now)
        for channel in protocol.take_touched():
            protocol.note_read(channel, channel.buffered, now)
        for opened in protocol.take_opened():
            protocol.accept_channel(opened.channel)
        protocol.transmit(now)
        protocol.handle_timer(protocol.deadline)
        if not dialler and not committed and protocol.proof is not None:
            protocol.set_role(initiator=initiator, now=now)


def _converse_on_lanes(initiator: bool, data: bytes) -> None:
    """Feed the two carriers of an established Link in turn."""

    def lane() -> LaneProtocol:
        return LaneProtocol(dialler=initiator, initiator=initiator, now=0.0, idle_interval=10.0)

    first, second = lane(), lane()
    protocol = LinkProtocol(first, initiator=initiator)
    if initiator:
        first.send_proof(_PROOF)
        protocol.send_commit(session_id=b"s" * 16, link_id=b"l" * 16, epoch=1, now=0.0, terms=_TERMS)
        accept = link.Accept(channel=0, credit=WINDOW_MIN, terms=_TERMS)
        protocol.receive(first, [frame_codec.encode(accept)], 0.0)
    else:
        protocol.receive(first, [frame_codec.encode(_PROOF) + frame_codec.encode(replace(_COMMIT, terms=_TERMS))], 0.0)
        protocol.send_accept(now=0.0, terms=_TERMS)
        first.send_ping(0.0)
        protocol.receive(first, [frame_codec.encode(link.Pong(token=1))], 0.0)
    halves = (_TERMS.secret, _TERMS.secret, b"l" * 16)
    peer = LinkSecret(*halves, initiator=not initiator)
    where = {"received": 0, "turn": 0, "session_id": b"s" * 16, "server_key": b"k" * 32}
    keys: dict[str, Any] = {"session_id": b"s" * 16, "server_key": b"k" * 32}
    if initiator:
        second.send_proof(_PROOF)
        protocol.attach(second, **keys, now=0.0)
        second.receive([frame_codec.encode(peer.attached(lane=3, **where))], 0.0)  # type: ignore[arg-type]
        assert second.attached is not None
        protocol.hear_attached(second, second.attached, **keys, now=0.0)
    else:
        attach = peer.attach(lane=3, **where)  # type: ignore[arg-type]
        second.receive([frame_codec.encode(_PROOF) + frame_codec.encode(attach)], 0.0)
        assert protocol.judge_attach(attach, **keys) is None
        protocol.take_attach(second, **keys, now=0.0)
    for number, piece in enumerate(pieces(data)):
        now = 1.0 + number
        each = (first, second)[number % 2]
        if each in protocol.lanes and not each.is_over:
            protocol.receive(each, [piece], now)
        for channel in protocol.take_touched():
            protocol.note_read(channel, channel.buffered, now)
        for opened in protocol.take_opened():
            protocol.accept_channel(opened.channel)
        for lane_ in protocol.lanes:
            if lane_.is_over:
                protocol.lose(lane_, now)
                continue
            protocol.transmit(lane_, now)
            protocol.handle_timer(lane_, protocol.deadline(lane_))
        assert len(protocol.take_news()) <= len(data)
        assert protocol.incoming is not None
        for each in protocol.lanes:
            assert each.received <= protocol.incoming.received or each in protocol._ahead
            if each in protocol._ahead:
                assert each.received - protocol._ahead[each].start <= AHEAD_UNITS
                assert protocol._ahead[each].start > protocol.incoming.received, "it is taken in as soon as it can be"


# -- STUN --------------------------------------------------------------------------------------------------------------

_TID: Final = bytes(range(100, 112))
_SERVER: Final = ("203.0.113.1", 3478)
_KEY: Final = b"key" * 6


def _stun(message_class: stun.MessageClass) -> list[bytes]:
    attributes = [
        stun.XOR_MAPPED_ADDRESS(("203.0.113.7", 4000)),
        stun.MAPPED_ADDRESS(("2001:db8::7", 4000)),
        stun.OTHER_ADDRESS(("203.0.113.2", 3479)),
        stun.RESPONSE_ORIGIN(_SERVER),
        stun.SOFTWARE("a server"),
        stun.ERROR_CODE(stun.ErrorCode(420, "unknown")),
        stun.UNKNOWN_ATTRIBUTES((1, 2)),
        stun.CHANGE_REQUEST(stun.ChangeRequest(ip=True, port=True)),
        stun.RESPONSE_PORT(5000),
    ]
    return [
        stun.encode(stun.BINDING, message_class, _TID, chosen, **options)
        for chosen in (
            [],
            attributes[:1],
            attributes[1:2],
            attributes[2:5],
            attributes[5:7],
            attributes[7:],
            attributes,
        )
        for options in ({}, {"integrity_sha256": _KEY}, {"integrity": _KEY, "fingerprint": True})
    ]


def _all_stun() -> list[bytes]:
    return [each for message_class in stun.MessageClass for each in _stun(message_class)]


def with_length(data: bytes) -> bytes:
    """Set the length field to the real length; otherwise the decoder would look at nothing else."""
    data += bytes(-len(data) % 4)
    return data if len(data) < 20 else data[:2] + (len(data) - 20).to_bytes(2, "big") + data[4:]


_ATTRIBUTES: Final = [each for each in vars(stun).values() if isinstance(each, stun.Attribute)]


@target(_all_stun, StunMalformed, inputs=10_000)
def stun_message(data: bytes) -> None:
    for variant in (data, with_length(data)):
        message = stun.decode(variant)
        message.verify(_KEY)
        message.verify_sha256(_KEY)
        message.unknown_required(_ATTRIBUTES)
        for attribute in _ATTRIBUTES:
            try:
                message.get(attribute)
            except StunMalformed:
                continue


@target(_all_stun, StunMalformed, inputs=10_000)
def stun_stream(data: bytes) -> None:
    reader = stun.StreamReader(most=600)
    for piece in pieces(data):
        for message in reader.feed(piece):
            stun.decode(message)


@target(lambda: _stun(stun.MessageClass.SUCCESS) + _stun(stun.MessageClass.ERROR), StunError, inputs=10_000)
def stun_answer(data: bytes) -> None:
    """With the right transaction id: an attacker who has seen the request can answer anything."""
    data = with_length(data[:8] + _TID + data[20:])
    transaction = StunTransaction(binding_request(_TID), _SERVER)
    transaction.start(0.0)
    transaction.transmit(0.0)  # a request that was never sent has no answer
    if transaction.receive(data, _SERVER, 0.1):
        read_binding_answer(transaction)


@target(lambda: _stun(stun.MessageClass.REQUEST), inputs=6_000)
def stun_request(data: bytes) -> None:
    """To a server with one address, and to one with two: it raises nothing."""
    places = {(a, p): (f"203.0.113.{1 + a}", 3478 + p) for a in (0, 1) for p in (0, 1)}
    for core in (StunCore(), StunCore(places)):
        for variant in (data, with_length(data)):
            answer = core.receive(variant, ("198.51.100.7", 4000), 0.0)
            assert answer is None or len(answer.data) <= 128
            core.receive_message(variant, ("2001:db8::7", 4000))


def _to_turn() -> list[bytes]:
    requests = Requests()
    requests.learn(stun.decode(Bench().say(requests.allocate())[0][1]))
    return [
        requests.allocate(turn.LIFETIME(700), turn.REQUESTED_ADDRESS_FAMILY(4), turn.EVEN_PORT(False)),
        requests.permit(PEER, ("198.51.100.9", 1)),
        requests.bind(0x4001, ("198.51.100.9", 9)),
        requests.refresh(0),
        indication(PEER, b"to a peer"),
        channel_data(0x4000, b"to a peer"),
    ]


@target(_to_turn, StunMalformed, inputs=1_000)
def turn_to_a_server(data: bytes) -> None:
    """From a stranger and from a client with an allocation: data goes only to the client or to a permitted peer."""
    bench = Bench()
    client = allocated(bench)
    client.bind(0x4000, PEER)
    for variant in (data, with_length(data)):
        bench.say(variant, source=("198.51.100.8", 1))
        for sink, _, to in client.say(variant):
            assert to == client.source if sink is client.sink else to[0] in bench.relays[sink].permissions
        bench.from_peer(client.relayed, variant)
    bench.wait(3601)
    assert not bench.core.statistics().allocations
    reader = TurnStreamReader(most=2048)
    for piece in pieces(data):
        reader.feed(piece)


_SECRET: Final = bytes(range(SECRET_LENGTH))


def _probes() -> list[bytes]:
    codec = ProbeCodec(_SECRET, initiator=True)
    return [codec.request(_TID), *(codec.response(_TID, (ip, 1000)) for ip in ("203.0.113.1", "2001:db8::1"))]


def _take_probe(data: bytes) -> None:
    checks = PathChecks(ProbeCodec(_SECRET, initiator=False), entropy=lambda _: _TID)
    pair = (0, _SERVER)
    checks.add([pair], 0.0, opening=False)
    checks.probe(0.0)
    checks.handle_timer(0.1)
    checks.transmit(0.1)
    for source in (_SERVER, ("198.51.100.9", 9)):
        checks.receive(0, data, source, 0.2)
        checks.transmit(0.2)


@target(_probes, inputs=10_000)
def probe(data: bytes) -> None:
    _take_probe(data)


@target(lambda: [each[:-20] for each in _probes()] + _stun(stun.MessageClass.SUCCESS), inputs=8_000)
def probe_of_the_peer(data: bytes) -> None:
    """With a valid MAC."""
    from warpgate_trio.punch import probe as module

    data = with_length(data)[:200]
    data = with_length(data[: len(data) // 4 * 4])
    if len(data) < 20:
        return
    length = len(data) - 20 + 4 + module.MAC_LENGTH
    head = data[:2] + length.to_bytes(2, "big") + data[4:]
    mac = stun._mac(head, length, ProbeCodec(_SECRET, initiator=True)._ours, "sha256")[: module.MAC_LENGTH]
    _take_probe(head + stun._tlv(stun.MESSAGE_INTEGRITY_SHA256.type, mac))


# -- time --------------------------------------------------------------------------------------------------------------

_NONCE: Final = b"nonceful"


def _ntp_answers() -> list[bytes]:
    request = NtpExchange().request(_NONCE, NOW)
    answer = NtpResponder().receive(request, ip_address("127.0.0.1"), received=NOW, sent=NOW, now=0.0)
    assert answer is not None
    return [answer]


@target(_ntp_answers, NtpRejected, inputs=10_000)
def ntp_answer(data: bytes) -> None:
    """With and without the nonce of the request."""
    exchange = NtpExchange()
    for variant in (data, data[:24] + _NONCE + data[32:]):
        exchange.request(_NONCE, NOW)
        exchange.receive(variant, NOW + 0.1)


@target(lambda: [NtpExchange().request(_NONCE, NOW)], inputs=10_000)
def ntp_request(data: bytes) -> None:
    answer = NtpResponder().receive(data, ip_address("127.0.0.1"), received=NOW, sent=NOW, now=0.0)
    assert answer is None or len(answer) <= max(len(data), 48)


# -- requests for a server's health ------------------------------------------------------------------------------------


def _health() -> list[bytes]:
    return [
        b"GET /healthz HTTP/1.1\r\nHost: relay.example:9100\r\nUser-Agent: curl/8\r\n\r\n",
        b"HEAD http://x/metrics?y HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n",
        b"POST /metrics HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nExpect: 100-continue\r\n\r\n0\r\n\r\n",
        b"GET /metrics HTTP/1.0\r\nContent-Length: 3\r\n\r\nabc",
    ]


@target(_health, inputs=3_000)
def health_request(data: bytes) -> None:
    """Any input is answered once, or the connection ends without an answer."""
    pages = Pages(lambda: [NtpResponder().statistics()], lambda: False, lambda: NOW)
    request = HealthRequest(pages, head=1024)
    for piece in (*pieces(data), b""):
        answer = request.receive(piece)
        if answer is not None:
            assert not answer or answer.startswith(b"HTTP/1.1 ")
            return
    raise AssertionError("neither answered nor over")


# -- MQTT --------------------------------------------------------------------------------------------------------------


def _mqtt() -> list[bytes]:
    connack = b"\x20\x02\0\0"
    publish = b"\x32\x0f\0\x05topic\0\x07payload"[:17]
    long = b"\x32" + b"\x8a\x10" + b"\0\x05topic\0\x07" + bytes(2049)
    others = b"\x40\x02\0\x01", b"\x90\x03\0\x01\0", b"\xb0\x02\0\x01", b"\xd0\0"
    return [connack, connack + publish, connack + long + publish, connack + b"".join(others)]


@target(_mqtt, RemoteProtocolError, inputs=10_000)
def mqtt_packets(data: bytes) -> None:
    packets = PacketFilter(max_payload=1000)
    passed = b"".join(packets.feed(piece) for piece in pieces(data))
    assert len(passed) <= len(data)


# -- messages of applications ------------------------------------------------------------------------------------------


def _messages() -> list[bytes]:
    some = [b"", b"hello", b"x" * 300, b"\0\0\0\5"]
    return [b"".join(encode_header(len(each)) + each for each in some[begin:]) for begin in range(len(some))]


@target(_messages, RemoteProtocolError, inputs=20_000)
def messages(data: bytes) -> None:
    reader, most = MessageReader(300), 0
    for piece in pieces(data):
        reader.feed(piece)
        while (message := reader.next_message()) is not None:
            most = max(most, len(message))
    assert most <= 300
    reader.check_end()
