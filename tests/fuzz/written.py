"""What people write: URLs, configurations, key files."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Final

from tests.fuzz.registry import target, text_of, texts
from tests.identities import ALICE, BOB
from warpgate_trio.config import NodeConfig, load_config
from warpgate_trio.config.server_url import ServerUrl
from warpgate_trio.errors import ConfigError, IdentityError
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
