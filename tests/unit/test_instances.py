"""Several processes with one key: the tables of instances, and what is known of a peer's addresses."""

from __future__ import annotations

import pytest

from tests.identities import BOB
from warpgate_trio.address import AddressInterface, PeerAddress
from warpgate_trio.address import record as address
from warpgate_trio.node.address_book import AddressBook
from warpgate_trio.servers import rendezvous_frames
from warpgate_trio.signal.instances import (
    HERE_INTERVAL,
    HERE_LASTS,
    MAX_CORRESPONDENTS,
    MAX_SIBLINGS,
    SILENCE,
    Correspondents,
    Siblings,
    topic_of,
)

FIRST, SECOND, THIRD = (bytes([number]) * 8 for number in (1, 2, 3))
PEER = bytes(32)


def record(
    instance: bytes | None,
    *,
    listens: bool = True,
    capabilities: tuple[str, ...] = (),
    seq: int = 1,
    interfaces: tuple[AddressInterface, ...] | None = None,
) -> PeerAddress:
    return PeerAddress.issue(
        BOB,
        seq=seq,
        issued_at=1,
        expires_at=2,
        host_salt=bytes(8),
        host_id=bytes(16),
        interfaces=(AddressInterface(1, ()),) if interfaces is None else interfaces,
        capabilities=capabilities,
        instance=instance,
        listens=listens,
    )


def test_an_instance_is_as_long_in_an_address_as_at_a_rendezvous_server() -> None:
    assert address.INSTANCE_LENGTH == rendezvous_frames.INSTANCE_LENGTH


def test_which_topic_an_address_names() -> None:
    listener = record(FIRST, capabilities=("ws_relay", "topic"))
    caller = record(SECOND, listens=False, capabilities=("topic",))
    assert topic_of(listener, FIRST) == bytes(8)  # the topic of the listening process
    assert topic_of(caller, SECOND) == SECOND
    assert topic_of(listener, None) is topic_of(caller, None) is None  # no particular process is meant
    assert topic_of(record(FIRST, capabilities=("ws_relay",)), FIRST) is None


class TestSiblings:
    def test_one_is_there_for_as_long_as_it_says_so(self) -> None:
        siblings = Siblings(FIRST)
        assert not siblings.is_there(SECOND, 0)
        assert siblings.hear(SECOND, 0)
        assert siblings.is_there(SECOND, HERE_LASTS - 1)
        assert not siblings.hear(SECOND, HERE_INTERVAL)
        assert siblings.any_there(HERE_INTERVAL + HERE_LASTS - 1)
        assert not siblings.any_there(HERE_INTERVAL + HERE_LASTS)
        assert siblings.hear(SECOND, 1000)  # it had been away in between

    def test_we_are_no_other(self) -> None:
        siblings = Siblings(FIRST)
        assert not siblings.hear(FIRST, 0)
        assert not siblings.is_there(FIRST, 0)
        assert not siblings.is_there(None, 0)
        assert not siblings.any_there(0)

    def test_two_words_may_get_lost(self) -> None:
        assert 2 * HERE_INTERVAL < HERE_LASTS

    def test_they_are_bounded(self) -> None:
        siblings = Siblings(FIRST)
        for number in range(MAX_SIBLINGS + 1):
            siblings.hear(number.to_bytes(8, "big"), 0)
        assert not siblings.is_there(bytes(8), 0)
        assert siblings.is_there((1).to_bytes(8, "big"), 0)


class TestCorrespondents:
    def test_who_does_not_answer_is_asked_for_by_key_alone(self) -> None:
        asked = Correspondents()
        assert asked.ask(PEER, FIRST, 0) == FIRST
        assert asked.ask(PEER, FIRST, SILENCE - 0.1) == FIRST
        assert asked.ask(PEER, FIRST, SILENCE) is None
        assert asked.ask(PEER, SECOND, SILENCE) == SECOND
        asked.hear(PEER, FIRST)
        assert asked.ask(PEER, FIRST, 100) == FIRST

    def test_old_peers_name_none(self) -> None:
        asked = Correspondents()
        asked.hear(PEER, None)
        assert asked.ask(PEER, None, 0) is None

    def test_they_are_bounded(self) -> None:
        asked = Correspondents()
        for number in range(MAX_CORRESPONDENTS + 1):
            asked.ask(PEER, number.to_bytes(8, "big"), 0)
        assert asked.ask(PEER, (1).to_bytes(8, "big"), SILENCE) is None
        assert asked.ask(PEER, bytes(8), SILENCE) == bytes(8)  # its entry was evicted


class TestAddressBook:
    def test_who_only_calls_takes_no_place_of_who_listens(self) -> None:
        book = AddressBook()
        listener, caller = record(FIRST), record(SECOND, listens=False, seq=9)
        book.hear(listener)
        book.hear(caller)
        assert book.heard(BOB.public_key) == caller  # for exchanges that are under way with it
        assert book.records(BOB.public_key) == [listener]

    def test_nor_is_walked_to_beside_one_that_was_passed(self) -> None:
        book = AddressBook()
        listener, caller = record(FIRST), record(SECOND, listens=False, seq=9)
        book.hear(caller)
        assert book.records(BOB.public_key) == [caller]  # better than no record: the caller may say what it is
        book.note_passed(listener)
        assert book.records(BOB.public_key) == [listener]
        assert book.heard(BOB.public_key) == caller

    @pytest.mark.parametrize("later", [record(SECOND, seq=0), record(None, seq=0)])
    def test_who_listens_takes_the_place_of_what_was_there(self, later: PeerAddress) -> None:
        book = AddressBook()
        for earlier in (record(FIRST), record(THIRD, listens=False)):
            book.hear(earlier)
            book.hear(later)
            assert book.heard(BOB.public_key) == later
            assert book.records(BOB.public_key) == [later]
