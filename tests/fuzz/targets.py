"""Everything that takes bytes or text from outside, each with valid inputs and the exceptions that it may raise.

A format that is signed, sealed or authenticated is a target twice: as it comes from a stranger, and as its own author
may write it, so that the changes reach what is behind the check.  `feed` also uses what was decoded, as the node would.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from random import Random
from typing import Final, TypeVar

import msgspec
from cryptography.hazmat.primitives import serialization
from cryptography.x509 import load_pem_x509_certificate

from tests.fuzz.mutation import mutated, mutated_msgpack, mutated_text
from tests.nodes import ALICE, BOB
from tests.unit.test_plugin_messages import GOLDEN as GOLDEN_MESSAGES
from warpgate_trio.address import AddressInterface, Endpoint, EndpointKind, PeerAddress, Transport
from warpgate_trio.carrier._pinning import certificate_key
from warpgate_trio.clock.ntp import NtpExchange, NtpRejected
from warpgate_trio.config import NodeConfig, load_config
from warpgate_trio.errors import (
    AddressError,
    AddressMalformed,
    AddressUnsupported,
    ConfigError,
    IdentityError,
    PeerIdError,
    RemoteProtocolError,
    SealError,
    SignalError,
    SignalMalformed,
    SignalUnsupported,
    StunError,
    StunMalformed,
)
from warpgate_trio.identity import Identity, key_from_peer_id, seal, verify
from warpgate_trio.link import frames as link
from warpgate_trio.link.protocol import WINDOW_MIN, LinkProtocol
from warpgate_trio.mqtt_packets import PacketFilter
from warpgate_trio.nat import stun
from warpgate_trio.nat.candidates import Candidate, admit
from warpgate_trio.nat.checks import PathChecks
from warpgate_trio.nat.probe import SECRET_LENGTH, ProbeCodec
from warpgate_trio.nat.profile import (
    Filtering,
    Mapping,
    NatProfile,
    NatProfiles,
    TransportProfile,
    delta_type,
    describe,
    nat_type,
)
from warpgate_trio.nat.stun_transaction import StunTransaction, binding_request, read_binding_answer
from warpgate_trio.server_url import ServerUrl
from warpgate_trio.servers import rendezvous_core as rendezvous
from warpgate_trio.servers.ntp_core import NtpResponder
from warpgate_trio.servers.stun_core import StunCore
from warpgate_trio.signal import decode_payload, open_message, seal_message
from warpgate_trio.signal.inbox import Inbox
from warpgate_trio.signal.message import Envelope, Header

__all__ = ["TARGETS", "Target"]

T = TypeVar("T")
NOW: Final = 1_700_000_000.0
Make = Callable[[Random], bytes]
Feed = Callable[[bytes], object]


@dataclass(frozen=True)
class Target:
    """One thing to feed.

    Attributes:
      make: an input, from a source of choices.
      feed: takes it.
      may_raise: what it may raise; anything else, and whatever is no `Exception` above all, is a fault.
      inputs: how many the test suite gives it: about a second's work.
    """

    name: str
    make: Make
    feed: Feed
    may_raise: tuple[type[Exception], ...]
    inputs: int


TARGETS: Final[dict[str, Target]] = {}


def target(
    corpus: Callable[[], Sequence[bytes]],
    *may_raise: type[Exception],
    inputs: int,
    by: Callable[[Random, Sequence[bytes]], bytes] = mutated,
) -> Callable[[Feed], Feed]:
    """Register the decorated function under its name; `corpus` is made when it is first needed."""
    corpus = functools.cache(corpus)

    def register(feed: Feed) -> Feed:
        name = feed.__name__
        TARGETS[name] = Target(name, lambda random: by(random, corpus()), feed, may_raise, inputs)
        return feed

    return register


def text_of(data: bytes) -> str:
    """Bytes of `texts` as the text that they stand for, surrogates and all."""
    return data.decode("utf-8", "surrogatepass")


def texts(*corpus: str) -> tuple[Callable[[], Sequence[bytes]], Callable[[Random, Sequence[bytes]], bytes]]:
    """Corpus and mutation of a target of text."""

    def change(random: Random, _: Sequence[bytes]) -> bytes:
        return mutated_text(random, corpus).encode("utf-8", "surrogatepass")

    return (lambda: [text.encode() for text in corpus]), change


def pieces(data: bytes) -> Iterator[bytes]:
    """A stream's bytes as they may come in: cut at places that the bytes themselves decide."""
    random = Random(len(data))
    while data:
        size = random.choice((1, 2, 3, 11, 12, 13, 100, 5000))
        yield data[:size]
        data = data[size:]


# -- addresses ---------------------------------------------------------------------------------------------------------


def _addresses() -> list[PeerAddress]:
    nic = Endpoint.make(transport=Transport.TCP, kind=EndpointKind.NIC, ip="192.168.1.9", port=7000, prefix=24)
    public = Endpoint.make(transport=Transport.UDP, kind=EndpointKind.EXT, ip="203.0.113.9", port=4000, base=0)
    six = Endpoint.make(transport=Transport.UDP, kind=EndpointKind.NIC, ip="2001:db8::9", port=7000, prefix=64)
    profile = NatProfile(
        udp=TransportProfile(mapping=Mapping.ENDPOINT_INDEPENDENT, filtering=Filtering.ADDRESS_DEPENDENT)
    )
    nat = NatProfiles({(None, 4): profile}).to_bytes(interfaces=2)
    common = {"seq": 1, "issued_at": int(NOW), "expires_at": int(NOW) + 3600, "host_salt": bytes(8)}
    return [
        PeerAddress.issue(
            identity,
            **common,  # type: ignore[arg-type]
            host_id=bytes(16),
            signals=["wss://example.org:443", "mqtt://example.org"][:count],
            interfaces=[AddressInterface(1, (nic, public)), AddressInterface(2, (six,))][:count],
            nat=nat if count else None,
        )
        for identity in (ALICE, BOB)
        for count in (0, 1, 2)
    ]


_START: Final = 1 + 32 + 64
"""Where the body of a record starts, behind version, key and signature."""


def use_address(address: PeerAddress) -> None:
    """What a node does with one before it dials."""
    assert PeerAddress.from_text(address.text).to_bytes() == address.to_bytes()
    assert repr(address)
    assert hash(address) == hash(PeerAddress.from_bytes(address.to_bytes()))
    for _, profile in address.nat_profiles:
        use_profile(profile)
    for _, endpoint in address.endpoints():
        assert endpoint.ip.version == endpoint.af
    ours = [endpoint for _, endpoint in address.endpoints()]
    admit([Candidate(each.address, each.port) for each in ours], af=4, loopback=False, network_of=None, ours=ours)


def use_profile(profile: NatProfile) -> None:
    for each in (profile.udp, profile.tcp):
        assert describe(each)
        nat_type(each)
        delta_type(each)
    profile.is_fresh(NOW)


@target(lambda: [each.to_bytes() for each in _addresses()], AddressError, inputs=4_000)
def address(data: bytes) -> None:
    use_address(PeerAddress.from_bytes(data))


@target(lambda: [each.to_bytes()[_START:] for each in _addresses()], AddressError, inputs=2_000, by=mutated_msgpack)
def address_of_its_author(body: bytes) -> None:
    head = b"\x01" + ALICE.public_key
    use_address(PeerAddress.from_bytes(head + ALICE.sign(b"warpgate-trio address v1", head + body) + body))


@target(lambda: [each.text.encode() for each in _addresses()], AddressError, inputs=10_000)
def address_text(data: bytes) -> None:
    use_address(PeerAddress.from_text(data.decode("utf-8", "surrogateescape")))


@target(lambda: [each.nat for each in _addresses() if each.nat], AddressMalformed, AddressUnsupported, inputs=10_000)
def nat_profile(data: bytes) -> None:
    for _, profile in NatProfiles.from_bytes(data, measured_at=NOW):
        use_profile(profile)


# -- keys and certificates ---------------------------------------------------------------------------------------------


@target(lambda: [each.peer_id.encode() for each in (ALICE, BOB)], PeerIdError, inputs=20_000)
def peer_id(data: bytes) -> None:
    assert len(key_from_peer_id(data.decode("utf-8", "surrogateescape"))) == 32


@target(lambda: [ALICE.public_key + ALICE.sign(b"test", b"x")], inputs=8_000)
def signature(data: bytes) -> None:
    assert not verify(data[:32], data[32:], b"test", b"x") or data == ALICE.public_key + ALICE.sign(b"test", b"x")


@target(lambda: [seal(ALICE.sealing_key, b"plain", info=b"test")], SealError, inputs=6_000)
def sealed_blob(data: bytes) -> None:
    ALICE.open_sealed(data, info=b"test")


@target(lambda: [ALICE.sealing_key], SealError, inputs=8_000)
def sealing_key(data: bytes) -> None:
    seal(data, b"plain", info=b"test")


@target(
    lambda: [
        load_pem_x509_certificate(each.certificate_pem()).public_bytes(serialization.Encoding.DER)
        for each in (ALICE, BOB)
    ],
    inputs=10_000,
)
def certificate(data: bytes) -> None:
    key = certificate_key(data)
    assert key is None or len(key) == 32


# -- signals -----------------------------------------------------------------------------------------------------------

_SIGNAL: Final = b"warpgate-trio signal v1"


def _signals() -> list[bytes]:
    theirs, ours = (next(each for each in _addresses() if each.public_key == who.public_key) for who in (ALICE, BOB))
    return [
        seal_message(
            ALICE,
            ours,
            theirs,
            wire_name=f"{owner}.{type(message).__name__}",
            payload=message,
            message_id=bytes([number]) * 16,
            session=b"s" * 16,
            attempt=None if number % 2 else b"a" * 16,
            time_ms=int(NOW * 1000),
        )
        for number, (owner, message, _) in enumerate(GOLDEN_MESSAGES)
    ]


def take_envelope(envelope: Envelope) -> None:
    """As the dispatch does: is it fresh, and then what is in it."""
    verdict = type(Inbox(NOW - 60).check(envelope.header, NOW)).__name__
    assert repr(envelope.header)
    use_address(envelope.sender_address)
    for owner, message, _ in GOLDEN_MESSAGES:
        if verdict == "Accepted" and envelope.header.type == f"{owner}.{type(message).__name__}":
            decode_payload(envelope, type(message))


@target(_signals, SignalError, inputs=5_000)
def signal(data: bytes) -> None:
    take_envelope(open_message(BOB, data))


@target(
    lambda: [BOB.open_sealed(blob[1:], info=_SIGNAL)[64:] for blob in _signals()],
    SignalError,
    inputs=1_500,
    by=mutated_msgpack,
)
def signal_of_its_author(body: bytes) -> None:
    plaintext = ALICE.sign(_SIGNAL, body) + body
    take_envelope(open_message(BOB, b"\x01" + seal(BOB.sealing_key, plaintext, info=_SIGNAL)))


@target(
    lambda: [bytes.fromhex(golden) for _, _, golden in GOLDEN_MESSAGES],
    SignalMalformed,
    inputs=5_000,
    by=mutated_msgpack,
)
def payloads(data: bytes) -> None:
    header = Header(
        type="x.X", sender=bytes(32), receiver=bytes(32), message_id=bytes(16), session=bytes(16), time_ms=0
    )
    failures = 0
    for _, message, _ in GOLDEN_MESSAGES:
        try:
            decoded = decode_payload(Envelope(header, _addresses_once()[0], data), type(message))
        except SignalMalformed:
            failures += 1
        else:
            assert repr(decoded)
            msgspec.msgpack.encode(decoded)
            candidates = getattr(decoded, "candidates", ())
            for af in (4, 6):
                admit(candidates, af=af, loopback=False, network_of=ip_address("192.168.1.1"), ours=())
    assert failures <= len(GOLDEN_MESSAGES)


_addresses_once = functools.cache(_addresses)


# -- the rendezvous server and its clients -----------------------------------------------------------------------------


def _from_server() -> list[bytes]:
    return [
        rendezvous.Challenge(b"n" * 32).encode(),
        rendezvous.Registered().encode(),
        rendezvous.Sent(7, 1).encode(),
        rendezvous.Message(b"payload").encode(),
        rendezvous.Error(3, "slow").encode(),
    ]


@target(_from_server, RemoteProtocolError, SignalUnsupported, inputs=20_000)
def rendezvous_frames_to_a_client(data: bytes) -> None:
    assert repr(rendezvous.decode_from_server(data))


def _from_client() -> list[bytes]:
    registration = rendezvous.register(ALICE, rendezvous.Challenge(b"n" * 32))
    sends = [rendezvous.Send(1, key, b"payload") for key in (ALICE.public_key, BOB.public_key)]
    return [registration.encode(), *(send.encode() for send in sends)]


@target(_from_client, inputs=2_500)
def rendezvous_frames_to_a_server(data: bytes) -> None:
    """Before and after a registration; a server says ERROR, and raises nothing."""
    core = rendezvous.RendezvousCore()
    stranger, _ = core.connect(b"n" * 32, 0.0)
    core.receive(stranger, data, 0.0)
    known, _ = core.connect(b"n" * 32, 0.0)
    core.receive(known, _from_client()[0], 0.0)
    core.receive(known, data, 1.0)
    for connection in (stranger, known):
        core.disconnect(connection)
    assert core.statistics().mailboxes == 0


# -- the link ----------------------------------------------------------------------------------------------------------

_PROOF: Final = link.Proof(client_key=b"k" * 32, session_id=b"s" * 16, attempt_id=b"t" * 16, signature=b"g" * 64)
_COMMIT: Final = link.Commit(session_id=b"s" * 16, link_id=b"l" * 16, epoch=1, credit=WINDOW_MIN)
_DATA: Final = link.data_header(0, 5) + b"hello"


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
    frames: list[link.Frame] = [_PROOF, _COMMIT, *opened]
    whole = [link.encode(frame) for frame in frames]
    return [*whole, _DATA, whole[0] + whole[1] + _DATA, whole[2] + _DATA + whole[6], b"".join(whole[2:7])]


@target(_frames, RemoteProtocolError, inputs=10_000)
def link_frames(data: bytes) -> None:
    reader = link.FrameReader()
    for piece in pieces(data):
        for item in reader.feed([piece]):
            assert repr(item)


@target(_frames, RemoteProtocolError, inputs=1_500)
def link_protocol(data: bytes) -> None:
    """In every role, from the first frame on and behind a handshake; each ends for itself."""
    failed: RemoteProtocolError | None = None
    for dialer in (True, False):
        for initiator in (True, False):
            for committed in (False, True):
                try:
                    _converse(dialer, initiator, committed, data)
                except RemoteProtocolError as error:
                    failed = error
    if failed is not None:
        raise failed


def _converse(dialer: bool, initiator: bool, committed: bool, data: bytes) -> None:
    protocol = LinkProtocol(dialer=dialer, initiator=initiator if dialer else None, now=0.0, idle_interval=10.0)
    if dialer:
        protocol.send_proof(_PROOF)
    if committed:
        if not dialer:
            protocol.receive([link.encode(_PROOF)], 0.0)
            protocol.become(initiator=initiator, now=0.0)
        if initiator:
            protocol.send_commit(session_id=b"s" * 16, link_id=b"l" * 16, epoch=1, now=0.0)
            protocol.receive([link.encode(link.Accept(channel=0, credit=WINDOW_MIN))], 0.0)
        else:
            protocol.receive([link.encode(_COMMIT)], 0.0)
            protocol.send_accept(now=0.0)
        protocol.open_channel("ours", now=0.0)
    for number, piece in enumerate(pieces(data)):
        now = 1.0 + number
        protocol.receive([piece], now)
        for channel in protocol.take_touched():
            protocol.note_read(channel, channel.buffered, now)
        for opened in protocol.take_opened():
            protocol.accept_channel(opened.channel)
        protocol.take_outbox()
        protocol.handle_timer(protocol.next_timer())
        if not dialer and not committed and protocol.proof is not None:
            protocol.become(initiator=initiator, now=now)


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
    """With the length that a message of so many bytes has: nothing else would be looked at."""
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
    """With our transaction id: who has seen the request may answer whatever he likes."""
    data = with_length(data[:8] + _TID + data[20:])
    transaction = StunTransaction(binding_request(_TID), _SERVER)
    transaction.start(0.0)
    if transaction.receive(data, _SERVER, 0.1):
        read_binding_answer(transaction)


@target(lambda: _stun(stun.MessageClass.REQUEST), inputs=6_000)
def stun_request(data: bytes) -> None:
    """With one address and with two; a server raises nothing."""
    places = {(a, p): (f"203.0.113.{1 + a}", 3478 + p) for a in (0, 1) for p in (0, 1)}
    for core in (StunCore(), StunCore(places)):
        for variant in (data, with_length(data)):
            answer = core.datagram(variant, ("198.51.100.7", 4000), 0.0)
            assert answer is None or len(answer.data) <= 128
            core.stream_message(variant, ("2001:db8::7", 4000))


_SECRET: Final = bytes(range(SECRET_LENGTH))


def _probes() -> list[bytes]:
    codec = ProbeCodec(_SECRET, initiator=True)
    return [codec.request(_TID), *(codec.response(_TID, (ip, 1000)) for ip in ("203.0.113.1", "2001:db8::1"))]


def _take_probe(data: bytes) -> None:
    checks = PathChecks(ProbeCodec(_SECRET, initiator=False), entropy=lambda _: _TID)
    pair = (0, _SERVER)
    checks.add([pair], 0.0, opening=False)
    checks.probe(0.0)
    checks.due(0.1)
    for source in (_SERVER, ("198.51.100.9", 9)):
        checks.receive(0, data, source, 0.2)


@target(_probes, inputs=10_000)
def probe(data: bytes) -> None:
    _take_probe(data)


@target(lambda: [each[:-20] for each in _probes()] + _stun(stun.MessageClass.SUCCESS), inputs=8_000)
def probe_of_the_peer(data: bytes) -> None:
    """Behind its MAC."""
    from warpgate_trio.nat import probe as module

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
    answer = NtpResponder().answer(request, ip_address("127.0.0.1"), received=NOW, sent=NOW, now=0.0)
    assert answer is not None
    return [answer]


@target(_ntp_answers, NtpRejected, inputs=10_000)
def ntp_answer(data: bytes) -> None:
    """With our nonce where an answer has it, and without."""
    exchange = NtpExchange()
    for variant in (data, data[:24] + _NONCE + data[32:]):
        exchange.request(_NONCE, NOW)
        exchange.receive(variant, NOW + 0.1)


@target(lambda: [NtpExchange().request(_NONCE, NOW)], inputs=10_000)
def ntp_request(data: bytes) -> None:
    answer = NtpResponder().answer(data, ip_address("127.0.0.1"), received=NOW, sent=NOW, now=0.0)
    assert answer is None or len(answer) <= max(len(data), 48)


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


# -- what people write -------------------------------------------------------------------------------------------------

_URLS: Final = (
    *("ws://example.org", "wss://example.org:8443/rendezvous?token=x", "mqtts://alice:p%40ss@broker:8883"),
    *("stun:192.0.2.1:3478", "stuns:[2001:db8::1]", "turn:u:p@example.org?transport=tcp", "ntp://ntp.example.org:123"),
)
_url_corpus, _url_change = texts(*_URLS)


@target(_url_corpus, ConfigError, inputs=10_000, by=_url_change)
def server_url(data: bytes) -> None:
    url = ServerUrl.parse(text_of(data))
    assert ServerUrl.parse(str(url)) == url
    assert repr(url)
    assert url.redacted
    assert url.without_login.password is None
    assert url.target.startswith("/")


_TOML: Final = (
    'identity.key_file = "~/key"\nlisten.port = 7000\n',
    f"[servers]\nwebsocket = {list(_URLS[:2])}\nmqtt = {list(_URLS[2:3])}\nstun = {list(_URLS[3:5])}\n".replace(
        "'", '"'
    ),
    '[servers]\nturn = [{ url = "turn:example.org", username = "u", password = "p" }, "turn:u:p@example.org"]\n',
    "[budgets]\ndirect_min = 0.5\ntotal = 30\n[listen]\nport = 0\n[identity]\nephemeral = true\n",
)
_toml_corpus, _toml_change = texts(*_TOML)


@target(_toml_corpus, ConfigError, inputs=4_000, by=_toml_change)
def configuration(data: bytes) -> None:
    config = NodeConfig.from_toml(text_of(data), base_dir=Path("/nowhere"))
    assert repr(config)
    assert NodeConfig.from_toml(config.to_toml(), base_dir=Path("/nowhere")) == config


_environment_corpus, _environment_change = texts(
    *(f"LISTEN_PORT={each}" for each in ("7000", "-1", "x")),
    *("IDENTITY_EPHEMERAL=yes", "BUDGETS_TOTAL=30", "SERVERS_CA_FILE=~/ca.pem", "IDENTITY_KEY_FILE=~nobody/key"),
    *(
        f"SERVERS_{name}={url}"
        for name, url in zip(("WEBSOCKET", "MQTT", "STUN", "TURN", "NTP"), _URLS[1:], strict=False)
    ),
)


@target(_environment_corpus, ConfigError, inputs=1_000, by=_environment_change)
def environment(data: bytes) -> None:
    name, _, value = text_of(data).partition("=")
    load_config(env={f"WARPGATE_{name}": value})


@target(lambda: [ALICE.private_key_pem(), BOB.private_key_pem()], IdentityError, inputs=2_000)
def key_file(data: bytes) -> None:
    file = _key_folder() / "key"
    file.write_bytes(data)
    file.chmod(0o600)
    Identity.load(file)


@functools.cache
def _key_folder() -> Path:
    import tempfile

    return Path(tempfile.mkdtemp(prefix="warpgate-fuzz-"))
