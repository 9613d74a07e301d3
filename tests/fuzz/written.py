"""Texts that people write: URLs, configurations, key files."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Final

from tests.fuzz.registry import target, text_of, texts
from tests.identities import ALICE, BOB
from warpgate_trio.config import NodeConfig, load_config
from warpgate_trio.config.server_url import ServerUrl
from warpgate_trio.contacts import find_callee
from warpgate_trio.contacts.file import read_contacts, write_contacts
from warpgate_trio.errors import AddressError, ConfigError, ContactError, ContactsFileError, IdentityError, PeerIdError
from warpgate_trio.identity import Identity

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
    assert url.published.password is None
    assert not url.published.params
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


@target(_toml_corpus, ConfigError, inputs=1_000, by=_toml_change)
def configuration(data: bytes) -> None:
    config = NodeConfig.from_toml(text_of(data), base_dir=Path("/nowhere"))
    assert repr(config)
    assert NodeConfig.from_toml(config.to_toml(), base_dir=Path("/nowhere")) == config


_contacts_corpus, _contacts_change = texts(
    f'version = 1\n\n[[contact]]\nname = "alice"\npeer = "{ALICE.peer_id}"\n'
    'added = 2026-11-30T08:00:00Z\nhow = "call"\nseen = 7\n',
    f'version = 1\n[[contact]]\nname="b"\npeer="{BOB.peer_id}"\naddress="wg1AAAA"\n'
    'added=2026-11-30T08:00:00\nhow="hand"\n',
    'version = 2\ncontact = [{name = "a"}]\n',
)


@target(_contacts_corpus, ContactsFileError, inputs=2_000, by=_contacts_change)
def contacts_file(data: bytes) -> None:
    contacts = read_contacts(text_of(data), where="contacts.toml")
    assert read_contacts(write_contacts(contacts.values()).decode(), where="again") == contacts


_peer_corpus, _peer_change = texts("alice", ALICE.peer_id, "wg1AAAA", "  wg1AA\nAA", "7-guitar-orbit")


@target(_peer_corpus, AddressError, ContactError, PeerIdError, inputs=5_000, by=_peer_change)
def callee(data: bytes) -> None:
    find_callee(text_of(data), None)


_environment_corpus, _environment_change = texts(
    *(f"LISTEN_PORT={each}" for each in ("7000", "-1", "x")),
    *("IDENTITY_EPHEMERAL=yes", "BUDGETS_TOTAL=30", "SERVERS_CA_FILE=~/ca.pem", "IDENTITY_KEY_FILE=~nobody/key"),
    *(
        f"SERVERS_{name}={url}"
        for name, url in zip(("WEBSOCKET", "MQTT", "STUN", "TURN", "NTP"), _URLS[1:], strict=False)
    ),
)


@target(_environment_corpus, ConfigError, inputs=200, by=_environment_change)
def environment(data: bytes) -> None:
    name, _, value = text_of(data).partition("=")
    load_config(env={f"WARPGATE_{name}": value})


@target(lambda: [ALICE.private_key_pem(), BOB.private_key_pem()], IdentityError, inputs=500)
def key_file(data: bytes) -> None:
    with tempfile.TemporaryDirectory(prefix="warpgate-fuzz-") as folder:
        file = Path(folder) / "key"
        file.write_bytes(data)
        file.chmod(0o600)
        Identity.load(file)
