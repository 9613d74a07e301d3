"""Contacts: names, the file, concurrent changes, and errors in the file."""

from __future__ import annotations

import functools
import multiprocessing
import os
import stat
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.identities import ALICE, BOB, CAROL
from warpgate_trio import host
from warpgate_trio.address import PeerAddress
from warpgate_trio.contacts import MAX_CONTACTS, MAX_NAME, Contact, Contacts, How, check_name, find_callee
from warpgate_trio.contacts import contacts as module
from warpgate_trio.contacts.file import read_contacts, write_contacts
from warpgate_trio.errors import (
    AddressError,
    ContactError,
    ContactExists,
    ContactKeyChanged,
    ContactNameError,
    ContactsFileError,
    ContactUnknown,
    PeerIdError,
)
from warpgate_trio.identity import Identity


@functools.cache
def identity(number: int) -> Identity:
    return Identity.from_seed(number.to_bytes(32))


@functools.cache
def issue(of: Identity, seq: int = 1) -> PeerAddress:
    return PeerAddress.issue(
        of, seq=seq, issued_at=1_000, expires_at=2_000, host_salt=bytes(8), host_id=bytes(16), signals=["ws://a:1"]
    )


NAMES = st.text("abcXYZ.-_09", max_size=8).map(lambda text: f"n{text}x")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "data" / "contacts.toml"


@pytest.fixture
def contacts(file: Path) -> Contacts:
    return Contacts.load(file)


def names(contacts: Contacts) -> list[str]:
    return [each.name for each in contacts]


# --- names ---


@pytest.mark.parametrize("name", ["alice", "A", "a1", "alice.laptop", "home-nas_2", "wg", "wgx1", "a" * MAX_NAME])
def test_a_name(name: str) -> None:
    assert check_name(name) == name


@pytest.mark.parametrize(
    "name",
    [
        *("", " ", "alice ", "-a", "--json", "2222", "7-guitar-orbit", "a:b", "a/b", "..", "a.", "alice\n", "ä"),
        *("аlice", "wg1", "wg1abc", "WG2", "a" * (MAX_NAME + 1), "127.0.0.1", "alice@home", "x\x1b[2J"),
    ],
)
def test_no_name(name: str) -> None:
    with pytest.raises(ContactNameError) as caught:
        check_name(name)
    assert str(caught.value).isprintable()


@settings(max_examples=50)
@given(st.integers(0, 50))
def test_no_peer_id_and_no_address_is_a_name(number: int) -> None:
    someone = identity(number)
    for text in (someone.peer_id, issue(someone).text):
        with pytest.raises(ContactNameError):
            check_name(text)


@settings(max_examples=50)
@given(st.text(max_size=60))
def test_a_name_or_an_error(text: str) -> None:
    try:
        assert check_name(text) == text
        assert len(text) <= MAX_NAME
        assert text.isascii()
    except ContactNameError:
        pass


# --- whom a name means ---


def test_who_is_meant(contacts: Contacts) -> None:
    address = issue(ALICE)
    contacts.add("Alice", address)
    for text in ("alice", "ALICE", ALICE.peer_id, address.text, f"  {address.text[:40]}\n{address.text[40:]}"):
        callee = find_callee(text, contacts)
        assert (callee.peer_id, callee.address) == (ALICE.peer_id, address)
        assert callee.contact is not None
    assert find_callee(BOB.peer_id, contacts).address is None
    assert find_callee(issue(BOB).text, None).contact is None


def test_a_peer_id_that_begins_as_an_address_does() -> None:
    someone = next(each for each in map(identity, range(5_000)) if each.peer_id.startswith("wg"))
    assert find_callee(someone.peer_id, None).peer_id == someone.peer_id


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("bob", ContactUnknown),
        ("", ContactNameError),
        ("no name", ContactNameError),
        (ALICE.peer_id[:-1], PeerIdError),
        (ALICE.peer_id.upper(), PeerIdError),
        ("wg1nonsense", AddressError),
        ("wg1" + "a" * 300, AddressError),
        ("wg9abc", AddressError),
        ("x" * 10_000, PeerIdError),
    ],
)
def test_nobody_is_meant(contacts: Contacts, text: str, error: type[Exception]) -> None:
    for known in (contacts, None):
        with pytest.raises(error):
            find_callee(text, known)


# --- what the file keeps ---


def test_what_is_added_is_there_for_the_next_process(contacts: Contacts, file: Path) -> None:
    assert names(contacts) == []
    assert not file.exists()
    made = contacts.add("Alice", issue(ALICE))
    contacts.add("bob", BOB.peer_id, how=How.PAIRING)
    again = Contacts.load(file)
    assert list(again) == list(contacts)
    alice = again.find("aLICE")
    assert alice == made
    assert (alice.name, alice.peer_id, alice.address, alice.how) == ("Alice", ALICE.peer_id, issue(ALICE), How.CALL)
    assert abs(alice.added.timestamp() - host.current().wall_time()) < 60
    assert again.get("BOB") == again.of(BOB.peer_id)
    assert again.of(CAROL.peer_id) is None
    if os.name == "posix":
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
        assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700


def test_adding_again_renews_the_address(contacts: Contacts) -> None:
    first = contacts.add("alice", ALICE.peer_id, how=How.PAIRING)
    assert contacts.add("ALICE", issue(ALICE)).address == issue(ALICE)
    assert contacts.add("alice", ALICE.peer_id).address == issue(ALICE)
    assert [(each.name, each.how, each.added) for each in contacts] == [("alice", How.PAIRING, first.added)]


def test_two_keys_for_a_name(contacts: Contacts) -> None:
    contacts.add("alice", issue(ALICE))
    before = contacts.path.read_bytes()
    with pytest.raises(ContactKeyChanged) as caught:
        contacts.add("Alice", issue(BOB))
    assert (caught.value.name, caught.value.known, caught.value.offered) == ("alice", ALICE.peer_id, BOB.peer_id)
    assert ALICE.peer_id in str(caught.value)
    assert BOB.peer_id in str(caught.value)
    assert contacts.path.read_bytes() == before


def test_two_names_for_a_key(contacts: Contacts) -> None:
    contacts.add("alice", issue(ALICE))
    with pytest.raises(ContactExists, match="your contact 'alice'"):
        contacts.add("carol", ALICE.peer_id)


def test_renaming_and_removing(contacts: Contacts) -> None:
    for name, who in (("alice", ALICE), ("bob", BOB), ("carol", CAROL)):
        contacts.add(name, issue(who))
    contacts.rename("ALICE", "Alice")
    contacts.rename("bob", "robert")
    assert names(contacts) == ["Alice", "robert", "carol"]
    with pytest.raises(ContactExists):
        contacts.rename("robert", "CAROL")
    with pytest.raises(ContactNameError):
        contacts.rename("robert", "wg1")
    with pytest.raises(ContactUnknown, match="the nearest is 'robert'"):
        contacts.rename("rober", "x")
    assert contacts.remove("Robert").peer_id == BOB.peer_id
    with pytest.raises(ContactUnknown):
        contacts.remove("robert")
    assert names(Contacts.load(contacts.path)) == ["Alice", "carol"]


def test_there_is_an_end_to_them(contacts: Contacts, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_CONTACTS", 1)
    contacts.add("alice", ALICE.peer_id)
    with pytest.raises(ContactExists, match="contacts already, the maximum"):
        contacts.add("bob", BOB.peer_id)
    contacts.add("alice", issue(ALICE))


def test_what_was_learned(contacts: Contacts) -> None:
    contacts.add("alice", ALICE.peer_id)
    assert contacts.learn(BOB.peer_id, address=issue(BOB)) is None
    contacts.learn(ALICE.peer_id, address=issue(ALICE), seen=7)
    contacts.learn(ALICE.peer_id, seen=3)
    alice = Contacts.load(contacts.path).find("alice")
    assert (alice.address, alice.seen) == (issue(ALICE), 7)


async def test_contacts_are_let_in_as_they_are_now(contacts: Contacts) -> None:
    assert not await contacts.authorize(ALICE.peer_id)
    other = Contacts.load(contacts.path)
    other.add("alice", ALICE.peer_id)
    assert await contacts.authorize(ALICE.peer_id)
    assert not await contacts.authorize(BOB.peer_id)
    other.remove("alice")
    assert not await contacts.authorize(ALICE.peer_id)
    contacts.path.write_text("nonsense")
    with pytest.raises(ContactsFileError):
        await contacts.authorize(ALICE.peer_id)


# --- concurrent changes ---


def test_two_objects_lose_nothing_of_each_other(contacts: Contacts) -> None:
    other = Contacts.load(contacts.path)
    contacts.add("alice", ALICE.peer_id)
    other.add("bob", BOB.peer_id)
    contacts.rename("alice", "alicia")
    other.learn(BOB.peer_id, address=issue(BOB))
    assert names(Contacts.load(contacts.path)) == ["alicia", "bob"]


def _add_some(path: Path, first: int) -> None:
    contacts = Contacts.load(path)
    for n in range(first, first + 10):
        contacts.add(f"peer{n}", identity(n).peer_id)


@pytest.mark.slow("starts two processes")
def test_two_processes_lose_nothing_of_each_other(file: Path) -> None:
    spawn = multiprocessing.get_context("spawn")
    workers = [spawn.Process(target=_add_some, args=(file, first)) for first in (100, 200)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
        assert worker.exitcode == 0
    assert len(Contacts.load(file)) == 20


def test_a_change_that_cannot_be_written_leaves_all_as_it_was(
    contacts: Contacts, monkeypatch: pytest.MonkeyPatch
) -> None:
    contacts.add("alice", ALICE.peer_id)
    before = contacts.path.read_bytes()

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ContactsFileError, match="cannot be written: No space left on device"):
        contacts.add("bob", BOB.peer_id)
    assert names(contacts) == ["alice"]
    assert contacts.path.read_bytes() == before
    assert {each.name for each in contacts.path.parent.iterdir()} == {"contacts.toml", ".contacts.toml.lock"}


@pytest.mark.skipif(os.name != "posix", reason="links")
def test_a_linked_file_is_changed_where_it_is(tmp_path: Path) -> None:
    real, link = tmp_path / "real.toml", tmp_path / "contacts.toml"
    Contacts.load(real).add("alice", ALICE.peer_id)
    link.symlink_to(real)
    Contacts.load(link).add("bob", BOB.peer_id)
    assert link.is_symlink()
    assert names(Contacts.load(real)) == ["alice", "bob"]


# --- broken files ---

GOOD = f"""version = 1

[[contact]]
name = "alice"
peer = "{ALICE.peer_id}"
added = 2026-11-30T08:00:00Z
how = "call"
"""


def entry(name: str, peer: str, *more: str) -> str:
    lines = (f'name = "{name}"', f'peer = "{peer}"', "added = 2026-11-30T08:00:00Z", 'how = "call"', *more)
    return "\n[[contact]]\n" + "\n".join(lines) + "\n"


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("version = 1\nnonsense", "at end of document"),
        (GOOD.replace('"alice"', "alice"), "at line 4"),
        ("", ": version is None; this release reads 1"),
        ("version = 2\n", ", line 1: version is 2"),
        ("version = true\n", ", line 1: version is True"),
        ("version = 1\ncontact = 3\n", ", line 2: expected a table"),
        (
            GOOD + entry("Alice", BOB.peer_id),
            ", line 10: 'Alice' is a duplicate name (case is ignored), with another key",
        ),
        (
            GOOD + entry("alice", ALICE.peer_id),
            ", line 10: 'alice' is a duplicate name (case is ignored), with the same key",
        ),
        (GOOD + entry("carol", ALICE.peer_id), ", line 11: 'carol' has the same peer id as 'alice'"),
        (GOOD + entry("wg1x", BOB.peer_id), ", line 10: 'wg1x' is no name"),
        (GOOD + entry("bob", "abc"), ", line 11: the peer id of 'bob'"),
        (GOOD + entry("bob", BOB.peer_id, 'address = "wg1"'), ", line 14: the address of 'bob'"),
        (GOOD + entry("bob", BOB.peer_id, "address = 3"), ", line 14: the address of 'bob'"),
        (
            GOOD + entry("bob", BOB.peer_id, f'address = "{issue(ALICE).text}"'),
            f", line 14: the address of 'bob' belongs to another peer, {ALICE.peer_id}",
        ),
        (GOOD + entry("bob", BOB.peer_id, "seen = -1"), ", line 14: the field seen of 'bob' is -1"),
        (
            GOOD.replace('"call"', '"magic"'),
            ", line 7: the field how of 'alice' is 'magic'; expected one of call, pairing, hand",
        ),
        (GOOD.replace("2026-11-30T08:00:00Z", '"today"'), ", line 6: the field added of 'alice'"),
        (GOOD.replace("name =", "nome ="), ", line 3: the field name is missing"),
        (GOOD.replace("peer =", "pier ="), ", line 3: the field peer of 'alice' is missing"),
        ("version = 1\ncontact = [{}]\n", ": the field name is missing"),
        ("version = " + "9" * 5000, ": "),
        ("contact = " + "[" * 5000, ": "),
    ],
)
def test_a_broken_file_is_one_sentence_and_stays(file: Path, text: str, problem: str) -> None:
    file.parent.mkdir(mode=0o700)
    file.write_text(text)
    file.chmod(0o600)
    with pytest.raises(ContactsFileError) as caught:
        Contacts.load(file)
    assert str(caught.value).startswith(str(file))
    assert problem in str(caught.value)
    with pytest.raises(ContactsFileError):
        Contacts(file, {}, None).add("carol", CAROL.peer_id)
    assert file.read_text() == text


VALUES = [
    '""',
    '"a text"',
    "3",
    "0x" + "f" * 5000,
    "1.5",
    "nan",
    "true",
    "2026-11-30T08:00:00Z",
    "2026-11-30",
    "08:00:00",
    "[]",
    '["call"]',
    "[[1], [2]]",
    "{}",
    '{ call = "call" }',
]
"""At least one value of each TOML type."""


@pytest.mark.parametrize("value", VALUES, ids=lambda value: str(value)[:20])
@pytest.mark.parametrize("key", ["version", "contact", "name", "peer", "address", "added", "how", "seen", "later"])
def test_a_value_of_any_type_is_a_contact_or_one_error(key: str, value: str) -> None:
    """Contacts that were read can be written, and read again."""
    line = f"{key} = {value}\n"
    if key == "version":
        text = GOOD.replace("version = 1\n", line)
    elif key == "contact":
        text = f"version = 1\n{line}"
    else:
        text = "".join(each for each in GOOD.splitlines(True) if not each.startswith(key)) + line
    found: dict[str, Contact] = {}
    with suppress(ContactsFileError):
        found = read_contacts(text, where="here")
    again = read_contacts(write_contacts(found.values()).decode(), where="here")
    assert list(map(repr, again.values())) == list(map(repr, found.values()))  # nan does not equal itself


def test_what_could_not_be_written_again_is_not_read() -> None:
    """A lone surrogate, which UTF-8 cannot encode, in a field that only a later release knows."""
    with pytest.raises(ContactsFileError, match="surrogates not allowed"):
        read_contacts(f'version = 1\n[[contact]]\nname = "b"\npeer = "{BOB.peer_id}"\nmore = "\udcc1"\n', where="here")


def test_a_file_that_is_not_text(file: Path) -> None:
    file.parent.mkdir(mode=0o700)
    file.write_bytes(b"version = 1\n\n# \xff\n")
    file.chmod(0o600)
    with pytest.raises(ContactsFileError, match="line 3: not UTF-8"):
        Contacts.load(file)


@pytest.mark.skipif(os.name != "posix", reason="modes")
def test_a_file_that_others_can_write(contacts: Contacts) -> None:
    contacts.add("alice", ALICE.peer_id)
    contacts.path.chmod(0o622)
    with pytest.raises(ContactsFileError, match="is open to others"):
        Contacts.load(contacts.path)


def test_more_than_there_can_be(file: Path) -> None:
    text = "version = 1\n" + "[[contact]]\n" * (MAX_CONTACTS + 1)
    with pytest.raises(ContactsFileError, match="1025 contacts, more than 1024"):
        read_contacts(text, where="x")
    file.parent.mkdir(mode=0o700)
    file.write_bytes(b"#" * (5 * 1024 * 1024))
    file.chmod(0o600)
    with pytest.raises(ContactsFileError, match="too large"):
        Contacts.load(file)


def test_what_a_later_release_has_added_is_kept(file: Path) -> None:
    file.parent.mkdir(mode=0o700)
    file.write_text(GOOD + 'colour = "green"\n')
    file.chmod(0o600)
    Contacts.load(file).add("bob", BOB.peer_id)
    assert 'colour = "green"' in file.read_text()
    assert names(Contacts.load(file)) == ["alice", "bob"]


CONTACTS = st.builds(
    Contact,
    name=NAMES,
    peer_id=st.integers(0, 9).map(lambda n: identity(n).peer_id),
    added=st.datetimes(datetime(2020, 1, 1), datetime(2100, 1, 1), timezones=st.just(UTC)).map(
        lambda at: at.replace(microsecond=0)
    ),
    how=st.sampled_from(How),
    seen=st.integers(0, 2**50),
)


@settings(max_examples=50)
@given(st.lists(CONTACTS, max_size=3, unique_by=(lambda each: each.name.lower(), lambda each: each.peer_id)))
def test_what_is_written_is_read(some: list[Contact]) -> None:
    assert list(read_contacts(write_contacts(some).decode(), where="x").values()) == some


@settings(max_examples=50)
@given(st.text(max_size=200))
def test_any_text_is_contacts_or_one_error(text: str) -> None:
    for content in (text, GOOD + text, "version = 1\n[[contact]]\n" + text):
        try:
            read_contacts(content, where="x")
        except ContactsFileError as error:
            assert str(error).isprintable()  # noqa: PT017


def test_the_errors_have_one_base() -> None:
    assert issubclass(ContactKeyChanged, ContactError)
    assert isinstance(issue(ALICE), PeerAddress)
