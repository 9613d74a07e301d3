"""`contacts`, and names in place of addresses, as processes: each has its own home, where contacts are kept."""

from __future__ import annotations

import subprocess
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

import pytest

from tests.end_to_end.conftest import Server
from tests.end_to_end.processes import Command, checked_event, ran, started
from tests.identities import BOB, CAROL
from tests.servers_mqtt import Broker
from tests.servers_mqtt import mosquitto_fixture as mosquitto_fixture

pytestmark = pytest.mark.slow("starts processes; each imports Trio and cryptography for 0.4 s")

PIPE: Final = subprocess.PIPE


@pytest.fixture
def home(tmp_path: Path) -> dict[str, str]:
    """The environment of one user."""
    return {name: str(tmp_path / name) for name in ("XDG_DATA_HOME", "XDG_CONFIG_HOME")}


@asynccontextmanager
async def listening(server: Server, key: Path, *words: str) -> AsyncGenerator[tuple[Command, str]]:
    """A `listen` with its own key, and its address."""
    config = ("--config", str(server.config), "--key-file", str(key), "--keep-open", "--json")
    async with started("listen", *config, *words) as listen:
        yield listen, (await listen.event())["address"]


async def listed(home: dict[str, str]) -> dict[str, dict[str, str]]:
    """The contacts by name, as `contacts list --json` prints them."""
    done = await ran("contacts", "list", "--json", env=home)
    assert done.process.returncode == 0, done.stderr_text
    events = [checked_event(line) for line in bytes(done.out).splitlines()]
    return {event["name"]: event for event in events}


async def test_who_was_called_and_saved_is_called_by_name(server: Server, home: dict[str, str], tmp_path: Path) -> None:
    common = ("--config", str(server.config))
    async with listening(server, tmp_path / "key", "--allow-any", "--echo") as (_, address):
        first = await ran("connect", *common, "--save", "alice", "--echo-test", "1kB", address, env=home)
        assert first.process.returncode == 0, first.stderr_text
        assert "saved as alice" in first.stderr_text
        contact = (await listed(home))["alice"]
        assert (contact["address"], contact["how"]) == (address, "call")
        for words in (("connect", "--echo-test", "1kB"), ("ping", "--count", "1")):
            again = await ran(*words, *common, "ALICE", env=home)
            assert again.process.returncode == 0, again.stderr_text
        plain = await ran("contacts", "list", env=home)
        assert plain.out.split() == [b"alice", contact["peer"].encode(), b"call", contact["added"][:10].encode()]


async def test_who_files_were_sent_to_is_saved_as_well(server: Server, home: dict[str, str], tmp_path: Path) -> None:
    """The peer is saved once it is connected, even if it refuses the files; an invalid name is reported at once."""
    (tmp_path / "file").write_text("hello")
    words = ("send", "--config", server.config, "--ephemeral", tmp_path / "file")
    receiving = ("--config", server.config, "--ephemeral", "--allow-any", "--max-size", "1", "--json")
    async with started("receive", *receiving) as receive:
        address = (await receive.event())["address"]
        refused = await ran(*words, "--to", address, "--save", "alice", env=home)
        assert refused.process.returncode == 3
        assert "saved as alice" in refused.stderr_text
    contact = (await listed(home))["alice"]
    assert (contact["address"], contact["how"]) == (address, "call")
    for bad in (("--to", BOB.peer_id, "--save", "alice"), ("--code", "--save", "1")):
        assert (await ran(*words, *bad, env=home)).process.returncode == 2


async def test_a_call_that_fails_saves_nobody(server: Server, home: dict[str, str], tmp_path: Path) -> None:
    async with listening(server, tmp_path / "key", "--allow", BOB.peer_id) as (_, address):
        failed = await ran("connect", "--config", server.config, "--save", "alice", address, env=home)
        assert failed.process.returncode == 3
    assert await listed(home) == {}


async def test_a_name_keeps_its_key(server: Server, home: dict[str, str], tmp_path: Path) -> None:
    await ran("contacts", "add", "--offline", "alice", CAROL.peer_id, env=home)
    async with listening(server, tmp_path / "key", "--allow-any") as (listen, address):
        refused = await ran("connect", "--config", server.config, "--save", "Alice", address, env=home)
        assert refused.process.returncode == 2
        assert f"the key of 'alice' has changed: it is known as {CAROL.peer_id}" in refused.stderr_text
        assert listen.out.count(b"\n") == 1, "nobody was called"
    assert (await listed(home))["alice"]["peer"] == CAROL.peer_id


async def test_a_peer_that_answers_is_added_and_its_listen_goes_on(
    server: Server, home: dict[str, str], tmp_path: Path
) -> None:
    common = ("--config", str(server.config))
    async with listening(server, tmp_path / "key", "--allow-any", "--echo") as (listen, address):
        added = await ran("contacts", "add", *common, "--json", "alice", address, env=home)
        assert added.process.returncode == 0, added.stderr_text
        assert checked_event(bytes(added.out))["how"] == "call"
        assert listen.out.count(b"\n") == 1, "no Pipe came"
    failed = await ran("contacts", "add", *common, "--timeout", "3", "bob", address, env=home)
    assert failed.process.returncode == 2, "that key is alice's"
    await ran("contacts", "remove", "alice", env=home)
    failed = await ran("contacts", "add", *common, "--timeout", "3", "bob", address, env=home)
    assert failed.process.returncode == 1
    assert "not added: " in failed.stderr_text
    assert "--offline adds it without asking" in failed.stderr_text
    assert await listed(home) == {}


@pytest.mark.parametrize("rule", ["--allow", "--allow-contacts"])
async def test_contacts_are_let_in_and_nobody_else(
    server: Server, home: dict[str, str], tmp_path: Path, rule: str
) -> None:
    mine = await ran("id", "--key-file", tmp_path / "caller", env=home)
    await ran("contacts", "add", "--offline", "caller", mine.out.decode().strip(), env=home)
    words = [rule] if rule == "--allow-contacts" else [rule, "caller"]
    config = ("--config", str(server.config), "--key-file", str(tmp_path / "key"), "--echo", "--keep-open", "--json")
    async with started("listen", *config, *words, env=home) as listen:
        address = (await listen.event())["address"]
        call = ("connect", "--config", str(server.config), "--echo-test", "1kB", address)
        welcome = await ran(*call, "--key-file", tmp_path / "caller", env=home)
        assert welcome.process.returncode == 0, welcome.stderr_text
        stranger = await ran(*call, "--ephemeral", env=home)
        assert stranger.process.returncode == 3


async def test_a_port_leads_to_a_contact(server: Server, home: dict[str, str], tmp_path: Path) -> None:
    async with listening(server, tmp_path / "key", "--allow-any", "--expose", "1") as (_, address):
        await ran("contacts", "add", "--offline", "alice", address, env=home)
        refused = await ran("forward", "--config", server.config, "--stdio", "alice:22", env=home)
        assert "the peer says: 127.0.0.1:22 is not exposed here" in refused.stderr_text


async def test_renaming_removing_and_what_cannot_be(home: dict[str, str]) -> None:
    for words, code, said in (
        (("list",), 0, "no contacts yet"),
        (("add", "--offline", "bob", BOB.peer_id), 0, f"bob is {BOB.peer_id}"),
        (("add", "--offline", "wg1", BOB.peer_id), 2, "'wg1' is no name"),
        (("add", "--offline", "robert", BOB.peer_id), 2, "that peer is your contact 'bob'"),
        (("add", "--offline", "carol", "hello"), 2, "there is no contact 'hello'"),
        (("rename", "Bob", "robert"), 0, "Bob is called robert now"),
        (("rename", "bob", "x"), 2, "there is no contact 'bob'"),
        (("remove", "robert"), 0, "robert is forgotten"),
        (("remove", "robert"), 2, "there is no contact 'robert'"),
    ):
        done = await ran("contacts", *words, env=home)
        assert (done.process.returncode, said in done.stderr_text) == (code, True), (words, done.stderr_text)


async def test_a_broken_file_stops_names_and_nothing_else(server: Server, home: dict[str, str], tmp_path: Path) -> None:
    await ran("contacts", "add", "--offline", "bob", BOB.peer_id, env=home)
    (file,) = Path(home["XDG_DATA_HOME"]).rglob("contacts.toml")
    broken = file.read_text() + "\nhow = 3\n"
    file.write_text(broken)
    for words in (("ping", "bob"), ("contacts", "list"), ("contacts", "remove", "bob"), ("listen", "--allow", "bob")):
        failed = await ran(*words, env=home)
        assert failed.process.returncode == 2
        assert f"{file}: " in failed.stderr_text
        assert "line" in failed.stderr_text
    async with listening(server, tmp_path / "key", "--allow-any", "--echo") as (_, address):
        done = await ran("connect", "--config", server.config, "--echo-test", "1kB", address, env=home)
        assert done.process.returncode == 0
        assert "warning: no contacts: " in done.stderr_text
    assert file.read_text() == broken


async def test_a_peer_id_is_enough(server: Server, home: dict[str, str], tmp_path: Path) -> None:
    """A peer id suffices to call, to add a contact, and to learn that the peer is not there."""
    common = ("--config", str(server.config))
    async with listening(server, tmp_path / "key", "--allow-any", "--echo"):
        peer_id = (await ran("id", "--key-file", tmp_path / "key")).out.decode().strip()
        first = await ran("connect", *common, "--save", "alice", "--echo-test", "1kB", peer_id, env=home)
        assert first.process.returncode == 0, first.stderr_text
        assert (await listed(home))["alice"]["address"].startswith("wg1"), "what the peer has told"
        ping = await ran("ping", *common, "--count", "1", peer_id, env=home)
        assert ping.process.returncode == 0, ping.stderr_text
    absent = await ran("connect", *common, "--json", BOB.peer_id, env=home)
    assert absent.process.returncode == 1
    event = checked_event(bytes(absent.out))
    assert event["verdict"] == "peer_not_found"
    assert f"none of your servers has a usable record of it ({server.url}: it knows no such peer)" in event["error"]
    nobody = await ran("ping", *common, BOB.peer_id, env=home)
    assert nobody.process.returncode == 2
    added = await ran("contacts", "add", *common, "bob", BOB.peer_id, env=home)
    assert added.process.returncode == 1
    assert "not added: " in added.stderr_text


@pytest.mark.needs("mosquitto")
async def test_a_peer_id_is_enough_where_both_have_a_broker_alone(
    mosquitto: Broker, home: dict[str, str], tmp_path: Path
) -> None:
    file = tmp_path / "node.toml"
    file.write_text(f'[servers]\nmqtt = ["{mosquitto.url}"]\n')
    common = ("--config", str(file))
    words = ("--key-file", str(tmp_path / "key"), "--allow-any", "--echo", "--keep-open", "--json")
    async with started("listen", *common, *words) as listen:
        await listen.event()
        peer_id = (await ran("id", "--key-file", tmp_path / "key")).out.decode().strip()
        done = await ran("connect", *common, "--save", "alice", "--echo-test", "1kB", peer_id, env=home)
        assert done.process.returncode == 0, done.stderr_text
        assert (await listed(home))["alice"]["address"].startswith("wg1"), "what the peer has told"
    absent = await ran("connect", *common, BOB.peer_id, env=home)
    assert absent.process.returncode == 1
    assert "it knows no such peer" in absent.stderr_text
