"""The mailboxes of pairing on a rendezvous server: who may offer, claim and post, what each side is told, and when."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.documented import page, table
from tests.mailboxes import Server, T
from warpgate_trio.errors import RemoteProtocolError
from warpgate_trio.servers.claim_rates import FIRST_WAIT, LONGEST_WAIT, WRONG_MEMORY, ClaimRates
from warpgate_trio.servers.mailbox_frames import MAX_POST, Claim, Claimed, Offer, Offered, Outcome, Post, Settle
from warpgate_trio.servers.mailboxes import (
    MAX_LIFETIME,
    MAX_OFFERS,
    OFFERS_PER_ADDRESS,
    POSTS_PER_TRY,
    SPENT_MEMORY,
    TRIES_AT_ONCE,
    TRY_TIME,
    WRONG_TRIES,
    PairingFrame,
)
from warpgate_trio.servers.rendezvous_frames import decode_from_client, decode_from_server

FRAMES: list[tuple[str, PairingFrame | Offered | Claimed]] = [
    ("110000000000 3c", Offer(0, 60)),
    ("12000000070 12c", Offered(7, 300)),
    ("130000000768656c6c6f", Claim(7, b"hello")),
    ("140000000168656c6c6f", Claimed(1, b"hello")),
    ("150000000168656c6c6f", Post(1, b"hello")),
    ("16000000000a003c", Settle(0, Outcome.WAIT, 60)),
]


# -- frames ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("golden", "frame"), FRAMES)
def test_golden_frames(golden: str, frame: PairingFrame | Offered | Claimed) -> None:
    golden = golden.replace(" ", "")
    assert frame.encode().hex() == golden
    decode = decode_from_server if isinstance(frame, Offered | Claimed) else decode_from_client
    assert decode(bytes.fromhex(golden)) == frame


@pytest.mark.parametrize("frame", [frame for _, frame in FRAMES])
def test_frames_of_another_length_are_none(frame: PairingFrame | Offered | Claimed) -> None:
    decode = decode_from_server if isinstance(frame, Offered | Claimed) else decode_from_client
    for wrong in (frame.encode()[:5], frame.encode() + bytes(MAX_POST)):
        with pytest.raises(RemoteProtocolError):
            decode(wrong)


def test_each_outcome_has_words_and_its_row() -> None:
    assert all(each.words for each in Outcome)
    rows = table(page("wire_formats.md"), "pairing outcome", "name")
    assert [(int(row["pairing outcome"]), row["name"]) for row in rows] == [(each.value, each.name) for each in Outcome]
    for row in table(page("pairing.md"), "outcome", "name"):
        assert Outcome(int(row["outcome"])).name == row["name"]


# -- offers ------------------------------------------------------------------------------------------------------------


def test_the_smallest_free_number_is_given() -> None:
    server = Server()
    assert [server.offer().nameplate for _ in range(3)] == [1, 2, 3]
    assert server.offer(2).take() == Settle(0, Outcome.TAKEN)
    assert server.offer(7).take() == Offered(7, 300)


def test_a_lifetime_is_within_bounds() -> None:
    server = Server()
    for asked, given_ in ((0, 1), (10, 10), (65535, MAX_LIFETIME)):
        client = server.client()
        client.say(Offer(0, asked))
        offered = client.take()
        assert isinstance(offered, Offered)
        assert offered.lifetime == given_


def test_one_connection_offers_once_or_claims_once() -> None:
    server = Server()
    bob = server.offer()
    bob.heard.clear()
    bob.say(Offer(0, 300))
    bob.say(Claim(1, b"hello"))
    assert bob.heard == [Settle(0, Outcome.TOO_MANY), Settle(0, Outcome.BUSY)]
    alice = server.claim(1)
    alice.say(Offer(0, 300))
    alice.say(Claim(1, b"hello"))
    assert alice.heard == [Settle(0, Outcome.TOO_MANY), Settle(0, Outcome.BUSY)]


@pytest.mark.parametrize("ends", ["by itself", "by who offers", "by the other one"])
def test_a_connection_that_has_offered_or_claimed_may_not_do_so_again_when_that_is_over(ends: str) -> None:
    server = Server()
    bob = server.offer()
    alice = server.claim(1)
    if ends == "by itself":
        server.now += 300
        alice.tick()
        bob.tick()
    elif ends == "by who offers":
        bob.say(Settle(0, Outcome.LEFT))
    else:
        alice.say(Settle(0, Outcome.LEFT))
        bob.say(Settle(0, Outcome.LEFT))
    server.offer(2)
    for client in (alice, bob):
        assert client.deadline == math.inf
        client.heard.clear()
        client.say(Offer(0, 300))
        client.say(Offer(1, 300))
        client.say(Claim(2, b"hello"))
        assert client.heard == [Settle(0, Outcome.TOO_MANY)] * 2 + [Settle(0, Outcome.BUSY)]
    assert isinstance(server.offer(host="192.0.2.9").take(), Offered)


def test_what_was_refused_may_be_tried_again_on_the_same_connection() -> None:
    server = Server()
    server.offer(7)
    bob, alice = server.client(), server.client()
    bob.say(Offer(7, 300))
    bob.say(Offer(8, 300))
    assert bob.heard == [Settle(0, Outcome.TAKEN), Offered(8, 300)]
    alice.say(Claim(1, b"hello"))
    assert alice.heard == [Settle(0, Outcome.UNKNOWN)]
    alice.say(Claim(8, b"hello"))
    assert bob.heard[-1] == Claimed(1, b"hello")


@pytest.mark.slow("thousands of offers")
@pytest.mark.parametrize("network", ["2001:db8:0:{:x}00::1", "203.0.113.{}"])
def test_one_network_does_not_have_the_ends_of_other_peoples_offers_forgotten(network: str) -> None:
    server, number = Server(), 99_999
    server.offer(number).say(Settle(0, Outcome.LEFT))
    while server.now < T + SPENT_MEMORY - 20:
        for part in range(1, 251):
            server.offer(host=network.format(part)).say(Settle(0, Outcome.LEFT))
        server.now += 20
    assert server.offer(number, host="192.0.2.7").take() == Settle(0, Outcome.TAKEN)


def test_offers_are_bounded_by_address_and_in_all() -> None:
    server = Server()
    for _ in range(OFFERS_PER_ADDRESS):
        assert isinstance(server.offer(host="192.0.2.1").take(), Offered)
    assert server.offer(host="192.0.2.1").take() == Settle(0, Outcome.TOO_MANY)
    assert isinstance(server.offer(host="192.0.2.2").take(), Offered)


@pytest.mark.slow("fills a server")
def test_one_customer_leaves_room_for_others() -> None:
    server = Server()
    taken = 0
    for number in range(MAX_OFFERS):
        host = f"2001:db8:0:{number // OFFERS_PER_ADDRESS:x}::1"
        taken += isinstance(server.offer(host=host).take(), Offered)
    assert taken <= MAX_OFFERS // 2
    assert isinstance(server.offer(host="2001:db8:1::1").take(), Offered)


def test_an_offer_ends_with_its_time() -> None:
    server = Server()
    bob = server.offer()
    bob.heard.clear()
    alice = server.claim(1)
    server.now = bob.deadline
    assert server.now == T + TRY_TIME
    bob.tick()
    assert alice.heard == [Settle(0, Outcome.SLOW)]
    assert bob.heard == [Claimed(1, b"hello"), Settle(1, Outcome.SLOW)]
    server.now = bob.deadline
    assert server.now == T + 300
    assert server.claim(1).take() == Settle(0, Outcome.EXPIRED)
    bob.tick()
    assert bob.heard[-1] == Settle(0, Outcome.EXPIRED)
    assert bob.deadline == math.inf
    assert server.claim(1, "198.51.100.9").take() == Settle(0, Outcome.EXPIRED)


def test_a_number_is_not_given_again_for_a_while() -> None:
    server = Server()
    bob = server.offer()
    bob.say(Settle(0, Outcome.LEFT))
    assert bob.heard[-1] == Settle(0, Outcome.LEFT)
    assert server.offer().nameplate == 2
    assert server.offer(1).take() == Settle(0, Outcome.TAKEN)
    assert server.claim(1).take() == Settle(0, Outcome.LEFT)
    server.now += SPENT_MEMORY
    assert server.offer().nameplate == 1


def test_who_comes_back_has_the_offer_again() -> None:
    server = Server()
    bob = server.offer(key=b"bob")
    alice = server.claim(1)
    bob.leave()
    assert alice.take() == Settle(0, Outcome.AWAY)
    assert server.claim(1).take() == Settle(0, Outcome.AWAY)
    assert server.offer(1).take() == Settle(0, Outcome.TAKEN), "another key"
    server.now += 100.5
    assert server.offer(1, key=b"bob").take() == Offered(1, 200)


def test_who_comes_back_before_he_is_missed_takes_his_ghosts_place() -> None:
    server = Server()
    ghost = server.offer(key=b"bob")
    bob = server.offer(1, key=b"bob")
    assert bob.take() == Offered(1, 300)
    server.claim(1)
    assert bob.take() == Claimed(1, b"hello")
    ghost.leave()
    assert isinstance(server.claim(1, "198.51.100.7").heard, list)
    assert bob.take() == Claimed(2, b"hello")


def test_the_offer_of_who_does_not_come_back_is_forgotten() -> None:
    server = Server()
    server.offer().leave()
    server.now += 300
    assert server.claim(1).take() == Settle(0, Outcome.EXPIRED)
    assert server.mailboxes.statistics().offers == 0


# -- tries -------------------------------------------------------------------------------------------------------------


def test_a_pairing() -> None:
    server = Server()
    bob = server.offer()
    bob.heard.clear()
    alice = server.claim(1)
    assert bob.take() == Claimed(1, b"hello")
    bob.say(Post(1, b"reply"))
    assert alice.take() == Post(0, b"reply")
    alice.say(Post(0, b"proof"))
    assert bob.take() == Post(1, b"proof")
    bob.say(Post(1, b"mine"))
    bob.say(Settle(1, Outcome.PAIRED))
    assert alice.heard == [Post(0, b"mine"), Settle(0, Outcome.PAIRED)]
    assert bob.heard == [Settle(0, Outcome.USED)]
    assert server.claim(1).take() == Settle(0, Outcome.USED), "one use"
    statistics = server.mailboxes.statistics()
    assert (statistics.offers, statistics.claims, statistics.paired, statistics.wrong) == (0, 2, 1, 0)


def test_three_wrong_tries_end_an_offer_and_no_other_one() -> None:
    server = Server()
    bob, carol = server.offer(), server.offer()
    for number in range(1, WRONG_TRIES + 1):
        mallory = server.claim(1, f"198.51.{number}.1")
        mallory.say(Post(0, b"guess"))
        bob.say(Settle(number, Outcome.WRONG))
        assert mallory.heard == [Settle(0, Outcome.WRONG)]
    assert bob.heard[-1] == Settle(0, Outcome.SPENT)
    assert server.claim(1).take() == Settle(0, Outcome.SPENT)
    server.claim(2)
    assert carol.heard[-1] == Claimed(1, b"hello")


def test_only_so_many_try_one_code_at_a_time() -> None:
    server = Server()
    server.offer()
    tries = [server.claim(1, f"198.51.{number}.1") for number in range(TRIES_AT_ONCE)]
    assert server.claim(1, "203.0.113.1").take() == Settle(0, Outcome.BUSY)
    tries[0].leave()
    assert not server.claim(1, "203.0.113.1").heard


def test_who_leaves_before_a_proof_is_told_of_and_forgotten() -> None:
    server = Server()
    bob = server.offer()
    server.claim(1).leave()
    assert bob.heard[-1] == Settle(1, Outcome.LEFT)
    bob.say(Post(1, b"reply"))
    bob.say(Settle(1, Outcome.WRONG))
    assert server.mailboxes.statistics().wrong == 0


def test_who_leaves_behind_a_wrong_proof_waits_nevertheless() -> None:
    server = Server()
    bob = server.offer()
    for number in (1, 2):
        mallory = server.claim(1)
        mallory.say(Post(0, b"guess"))
        mallory.leave()
        bob.say(Settle(number, Outcome.WRONG))
    assert server.claim(1).take() == Settle(0, Outcome.WAIT, int(FIRST_WAIT))


@pytest.mark.parametrize("leaves", [False, True])
@pytest.mark.parametrize("why", [Outcome.SLOW, Outcome.EXPIRED])
@pytest.mark.parametrize("timed", ["claimer", "offerer"])
def test_a_proof_that_nobody_has_judged_in_time_counts_as_wrong(timed: str, why: Outcome, leaves: bool) -> None:
    """It is posted just before the deadline; when the offerer's judgement arrives, the try is over already."""
    server = Server()
    for number in range(2):
        bob = server.offer()
        nameplate = bob.nameplate
        server.now += (300 if why is Outcome.EXPIRED else TRY_TIME) - TRY_TIME / 2
        mallory = server.claim(nameplate)
        server.now = bob.deadline - 0.05
        mallory.say(Post(0, b"guess"))
        assert bob.heard[-1] == Post(1, b"guess")
        if leaves:
            mallory.leave()
        server.now += 0.05
        if timed == "claimer" and not leaves:
            mallory.tick()
        bob.tick()
        bob.say(Settle(1, Outcome.WRONG))
        assert server.mailboxes.statistics().wrong == 0
        waits = server.claim(99).take()
        assert waits == (Settle(0, Outcome.UNKNOWN) if number == 0 else Settle(0, Outcome.WAIT, int(FIRST_WAIT)))


def test_a_slow_try_without_a_proof_costs_no_wait() -> None:
    """Nobody has learned anything from it.  The same holds where the offerer loses his connection after a proof."""
    server = Server()
    for _ in range(3):
        bob = server.offer()
        alice = server.claim(bob.nameplate)
        server.now += TRY_TIME
        alice.tick()
        assert alice.take() == Settle(0, Outcome.SLOW)
        alice = server.claim(bob.nameplate)
        alice.say(Post(0, b"proof"))
        bob.leave()
        assert alice.take() == Settle(0, Outcome.AWAY)
    assert server.claim(99).take() == Settle(0, Outcome.UNKNOWN)


def test_late_proofs_are_worth_no_more_than_early_ones() -> None:
    server, checked = Server(), 0
    end = server.now + 3600
    while server.now < end:
        bob, mallory = server.offer(), server.client()
        mallory.say(Claim(bob.nameplate, b"hello"))
        if not mallory.heard:
            server.now += TRY_TIME - 0.05
            mallory.say(Post(0, b"guess"))
            checked += isinstance(bob.heard[-1], Post)
            server.now += 0.05
            mallory.tick()
            bob.say(Settle(1, Outcome.WRONG))
        bob.say(Settle(0, Outcome.LEFT))
        server.now += 10
    assert checked <= 3 * WRONG_TRIES


def test_a_try_passes_on_so_many_messages_and_only_to_its_own_two() -> None:
    server = Server()
    bob, carol = server.offer(), server.offer()
    alice = server.claim(1)
    for client in (bob, carol, alice):
        client.heard.clear()
    for _ in range(POSTS_PER_TRY + 1):
        alice.say(Post(0, b"a"))
        bob.say(Post(1, b"b"))
        carol.say(Post(1, b"c"))
    alice.say(Post(1, b"a"))
    bob.say(Post(2, b"b"))
    server.client().say(Post(1, b"m"))
    server.client().say(Settle(1, Outcome.WRONG))
    assert bob.heard == [Post(1, b"a")] * POSTS_PER_TRY
    assert alice.heard == [Post(0, b"b")] * POSTS_PER_TRY
    assert carol.heard == []


def test_our_own_key_is_told_and_not_counted() -> None:
    server = Server()
    bob = server.offer()
    alice = server.claim(1)
    alice.say(Post(0, b"proof"))
    bob.say(Settle(1, Outcome.OWN_KEY))
    assert alice.take() == Settle(0, Outcome.OWN_KEY)
    assert not server.claim(1).heard, "it may come again at once"


def test_a_slow_claimer_is_timed_by_its_own_connection_too() -> None:
    server = Server()
    bob = server.offer()
    alice = server.claim(1)
    assert alice.deadline == T + TRY_TIME
    server.now = alice.deadline
    alice.tick()
    assert alice.take() == Settle(0, Outcome.SLOW)
    assert bob.heard[-1] == Settle(1, Outcome.SLOW)
    assert alice.deadline == math.inf


# -- rates -------------------------------------------------------------------------------------------------------------


def test_a_slip_costs_nothing_a_second_one_a_minute() -> None:
    rates = ClaimRates()
    for wait in (0.0, FIRST_WAIT):
        assert rates.begin("192.0.2.1", T) == 0
        rates.end("192.0.2.1", T, wrong=True)
        assert rates.begin("192.0.2.1", T) == wait
        rates.end("192.0.2.1", T)
    assert rates.begin("198.51.100.1", T) == 0


def test_pairing_is_free() -> None:
    rates = ClaimRates()
    for _ in range(1000):
        assert rates.begin("192.0.2.1", T) == 0
        rates.end("192.0.2.1", T, paired=True)


def test_what_is_under_way_is_bounded_and_less_so_after_wrong_tries() -> None:
    rates = ClaimRates()
    assert [rates.begin("192.0.2.1", T) > 0 for _ in range(3)] == [False, False, True]
    rates.end("192.0.2.1", T, wrong=True)
    assert rates.begin("192.0.2.1", T) > 0
    rates.end("192.0.2.1", T)
    assert rates.begin("192.0.2.1", T) == 0


def test_wrong_tries_are_forgotten_in_the_end() -> None:
    rates, now = ClaimRates(), T
    for _ in range(20):
        now += rates.begin("192.0.2.1", now)
        rates.end("192.0.2.1", now, wrong=True)
    assert rates.begin("192.0.2.1", now) <= LONGEST_WAIT
    assert rates.begin("192.0.2.1", now + WRONG_MEMORY) == 0
    rates.end("192.0.2.1", now + WRONG_MEMORY, wrong=True)
    assert rates.begin("192.0.2.1", now + WRONG_MEMORY) == 0, "one is free again"


@pytest.mark.parametrize("network", ["2001:db8:2:{:x}::1", "192.0.2.{}"])
def test_a_network_whose_claims_are_refused_has_nobody_elses_wrong_tries_forgotten(network: str) -> None:
    rates, attacker = ClaimRates(size=100), "203.0.113.5"
    for _ in range(2):
        assert rates.begin(attacker, T) == 0
        rates.end(attacker, T, wrong=True)
    for number in range(1, 255):
        host = network.format(number)
        if rates.begin(host, T) == 0:
            rates.end(host, T)
    assert rates.begin(attacker, T) == FIRST_WAIT


def test_who_has_to_wait_is_told_the_longest_wait_of_all_that_he_is_counted_under() -> None:
    rates = ClaimRates()
    for _ in range(4):  # counted for its /64 and for its /48
        rates.end("2001:db8::1", T, wrong=True)
    assert rates.begin("2001:db8::1", T) > rates.begin("2001:db8:0:ff00::1", T) > 0


def greedy(rates: ClaimRates, hosts: list[str], seconds: float) -> int:
    """The number of wrong tries by somebody who has these addresses, and tries as soon and as often as he may."""
    now, wrong = T, 0
    while now < T + seconds:
        begun = [host for host in hosts if rates.begin(host, now) == 0]
        for host in begun:
            rates.end(host, now, wrong=True)
        wrong += len(begun)
        now += 1.0 if begun else max(1.0, min(rates.begin(host, now) for host in hosts))
    return wrong


@pytest.mark.slow("some thousand tries of some hundred addresses")
@pytest.mark.parametrize("network", ["2001:db8:0:{:x}::1", "192.0.2.{}"])
def test_one_network_spends_three_codes_an_hour_and_not_one_more(network: str) -> None:
    hosts = [network.format(number) for number in range(1, 129)]
    assert greedy(ClaimRates(), hosts, 3600) <= 3 * WRONG_TRIES
    assert greedy(ClaimRates(), hosts, 24 * 3600) <= 24 * 3 * WRONG_TRIES
    assert greedy(ClaimRates(), hosts[:1], 3600) <= 3 * WRONG_TRIES


@pytest.mark.slow("some thousand frames")
@settings(max_examples=40)
@given(st.data())
def test_whatever_is_said_in_whatever_order_the_counts_hold(data: st.DataObject) -> None:
    server = Server()
    clients = [server.client(host=f"192.0.2.{number % 3}") for number in range(6)]
    frames = st.one_of(
        st.builds(Offer, st.integers(0, 3), st.integers(0, 400)),
        st.builds(Claim, st.integers(0, 3), st.just(b"hello")),
        st.builds(Post, st.integers(0, 3), st.just(b"post")),
        st.builds(Settle, st.integers(0, 3), st.integers(0, 20)),
        st.sampled_from(["leave", "tick", "wait"]),
    )
    for number, frame in data.draw(st.lists(st.tuples(st.integers(0, 5), frames), max_size=40)):
        if frame == "wait":
            server.now += 7
        elif frame == "tick":
            clients[number].tick()
        elif frame == "leave":
            clients[number].leave()
            clients[number] = server.client(host=f"192.0.2.{number % 3}")
        else:
            assert not isinstance(frame, str)
            clients[number].say(frame)
    server.now += 1000
    for client in clients:
        client.tick()
        client.leave()
    server.client().say(Post(0, b"somebody comes"))
    assert server.mailboxes.statistics().offers == 0
    assert server.mailboxes._room.held == 0
    assert all(not source.under_way for source in server.mailboxes._rates._sources._items.values())
