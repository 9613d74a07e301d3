"""The options of `serve` and its output: the token that it keeps, its addresses, and how it divides open files."""

from __future__ import annotations

import os
import stat
from ipaddress import ip_address
from pathlib import Path

import pytest

from warpgate_trio.cli.exits import UsageProblem
from warpgate_trio.cli.files import share_files
from warpgate_trio.cli.options import Settings
from warpgate_trio.cli.reachable import configuration, reachable_urls, turn_urls, with_login
from warpgate_trio.cli.relay_token import kept_token, read_token
from warpgate_trio.cli.services import turn_credentials, turn_login
from warpgate_trio.config import NodeConfig, ServerUrl, TurnServer
from warpgate_trio.servers.names import ServerNames
from warpgate_trio.stun.codec import long_term_key
from warpgate_trio.websocket import Accepted

TOKEN = "a-token-that-nobody-guesses"
Capture = pytest.CaptureFixture[str]


def test_a_token_is_made_once_and_is_nobody_elses_to_read(tmp_path: Path) -> None:
    directory = tmp_path / "state" / "of the server"
    token = kept_token(Settings(), directory)
    file = directory / "relay_token"
    assert len(token) == 43
    assert file.read_text(encoding="ascii") == token + "\n"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert kept_token(Settings(), directory) == token
    assert read_token(file) == token
    assert kept_token(Settings(), tmp_path / "another") != token


@pytest.mark.parametrize(
    ("content", "mode", "said"),
    [
        (b"short", 0o600, "expected 16 to 256 printable ASCII characters"),
        (b"\xff" * 20, 0o600, "expected 16 to 256 printable ASCII characters"),
        (TOKEN.encode(), 0o644, "is open to others"),
    ],
)
def test_a_kept_token_that_is_none_is_an_error_that_does_not_show_it(
    content: bytes, mode: int, said: str, tmp_path: Path
) -> None:
    file = tmp_path / "relay_token"
    file.write_bytes(content)
    file.chmod(mode)
    with pytest.raises(UsageProblem, match=said) as caught:
        kept_token(Settings(), tmp_path)
    assert str(file) in str(caught.value)
    assert content.decode("utf-8", "replace") not in str(caught.value)


def test_where_nothing_can_be_kept_the_token_is_good_for_one_run(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: Capture
) -> None:
    (tmp_path / "a file").touch()
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "a file"))
    assert kept_token(Settings(), None) != kept_token(Settings(), None)
    said = capfd.readouterr().err
    assert said.count("peers need another configuration after each start (--state-dir keeps the token)") == 2
    with pytest.raises(UsageProblem, match="--state-dir"):
        kept_token(Settings(), tmp_path / "a file")


def test_who_has_no_home_serves_too(no_home: None, capfd: Capture) -> None:
    assert len(kept_token(Settings(), None)) == 43
    assert "--state-dir keeps the token" in capfd.readouterr().err


def test_the_login_that_is_printed_is_one_that_the_server_takes() -> None:
    name, password = turn_login(TOKEN)
    credentials = turn_credentials(TOKEN)
    assert credentials.key(name, 1.8e9) == long_term_key(name, credentials.realm, password)
    assert credentials.account(name) == "", "all who have it are counted by their addresses alone"
    assert turn_login(TOKEN) == (name, password)
    assert turn_credentials(TOKEN + "!").key(name, 1.8e9) != credentials.key(name, 1.8e9)
    assert TOKEN not in password


def test_turn_is_offered_by_udp_then_tcp_then_tls_at_its_best_address_of_each_family() -> None:
    addresses = ("10.0.0.1", "203.0.113.1", "203.0.113.2", "[2001:db8::1]", "[2001:db8::2]")
    urls = [f"{scheme}:{address}:1" for address in addresses for scheme in ("turn", "turns")]
    assert turn_urls(urls, (), ()) == [
        "turn:203.0.113.1:1",
        "turn:[2001:db8::1]:1",
        "turn:203.0.113.1:1?transport=tcp",
        "turn:[2001:db8::1]:1?transport=tcp",
        "turns:203.0.113.1:1",
        "turns:[2001:db8::1]:1",
    ]


def test_the_login_is_in_what_is_to_be_pasted() -> None:
    turn = [TurnServer("turn:203.0.113.1:1", "name", "pass/word="), TurnServer("turns:relay.example", "n", "p")]
    assert str(with_login(turn[0])) == "turn:name:pass%2Fword%3D@203.0.113.1:1"
    servers = NodeConfig.from_toml(
        configuration({"websocket": ["wss://relay.example"]}, turn, TOKEN), base_dir="/"
    ).servers
    assert servers.turn == tuple(turn)
    assert servers.relay_token == TOKEN


def test_an_external_address_stands_for_those_of_its_family() -> None:
    external = [ip_address("203.0.113.9")]
    urls = ["ws://0.0.0.0:1", "ws://[2001:db8::5]:2"]
    assert reachable_urls(urls, (), external) == ["ws://203.0.113.9:1", "ws://[2001:db8::5]:2"]
    assert reachable_urls(["ws://10.0.0.5:1", "ws://10.0.0.6:1"], (), external) == ["ws://203.0.113.9:1"]


def test_a_client_may_have_dialled_an_external_address() -> None:
    accepted = Accepted(host="198.51.100.1", port=4711, local=("10.0.0.5", 8765))
    names = ServerNames(external_ips=["203.0.113.9"]).of(accepted)
    assert names == {"10.0.0.5:8765", "203.0.113.9:8765"}
    public = ServerNames([ServerUrl.parse("wss://relay.example")], external_ips=["203.0.113.9"])
    assert public.of(accepted) == {"relay.example:443"}


@pytest.mark.parametrize("files", [66, 100, 1024, 65536])
@pytest.mark.parametrize(("stun", "turn"), [(False, False), (True, False), (True, True)])
def test_what_strangers_can_make_serve_hold_is_less_than_its_files(files: int, stun: bool, turn: bool) -> None:
    shares = share_files(files, stun=stun, turn=turn)
    held = shares.rendezvous.connections
    if stun:
        held += max(shares.stun.connections, shares.turn.connections if turn else 0)
    if turn:
        held += shares.turn.allocations
    assert held <= max(files - 64, 3)
    assert min(shares.rendezvous.connections, shares.stun.connections, shares.turn.allocations) >= 1


def test_a_directory_of_the_token_that_is_made_is_its_owners(tmp_path: Path) -> None:
    kept_token(Settings(), tmp_path / "state")
    assert stat.S_IMODE(os.stat(tmp_path / "state").st_mode) == 0o700
