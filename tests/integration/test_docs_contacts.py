"""The code of docs/contacts.md, run as it stands there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.documented import blocks, changed, code, page
from tests.identities import BOB
from tests.nodes import address_of, config, loopback_node
from warpgate_trio import Contacts, anyone
from warpgate_trio.contacts import How
from warpgate_trio.contacts.file import read_contacts
from warpgate_trio.servers.rendezvous import open_rendezvous


@pytest.mark.slow("two nodes and a server")
async def test_the_program_calls_and_renames(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    (program,) = code(page("contacts.md"), "python")
    names: dict[str, Any] = {}
    exec(compile(program, "contacts.md", "exec", dont_inherit=True), names)
    async with open_rendezvous() as server, loopback_node(BOB, config(server), authorize=anyone) as bob:
        Contacts.load().add("alice", bob.address)
        await names["main"](server.url)
        pipe = await bob.listener.accept()
        assert b"".join([data async for data in pipe]) == b"hello\n"
        await pipe.aclose()
    assert [each.name for each in Contacts.load()] == ["alice.laptop"]


def test_the_file_is_what_the_page_shows() -> None:
    (block,) = [each for each in blocks() if each.page == "contacts.md" and "[[contact]]" in each.text]
    filled = changed(block.text, {'"…"': f'"{BOB.peer_id}"', '"wg1…"': f'"{address_of(BOB, port=1)}"'})
    contact = read_contacts(filled, where="contacts.md")["alice"]
    assert (contact.peer_id, contact.how) == (BOB.peer_id, How.CALL)
