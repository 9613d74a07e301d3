"""A Link that is closing goes on until the peer has everything, whatever happens to its carriers; without I/O."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import initialize, invariant, precondition, rule

from tests.unit.test_link_lanes import SAYS_AGAIN, TERMS, Ends, Schedules
from warpgate_trio.link.channel import Channel
from warpgate_trio.link.frames import Terms
from warpgate_trio.link.states import DirectionState, LinkState


def close(ends: Ends, name: str) -> None:
    """As the shell does when the last Pipe is closed."""
    link = ends.links[name]
    link.close_channel(ends.main(name))
    link.close()


def test_a_goodbye_is_said_again_where_the_carrier_that_said_it_is_gone() -> None:
    ends = Ends()
    wire = ends.wires[0]
    reader = ends.main("b")
    wire.holes = {"a"}
    ends.send("a", b"hello")
    close(ends, "a")
    ends.settle()
    assert ends.links["a"].state is LinkState.CLOSING
    ends.cut(wire)
    ends.attach("a")
    ends.settle()
    assert reader.take(None) == b"hello"
    assert reader.incoming is DirectionState.FINISHED
    assert [link.state for link in ends.links.values()] == [LinkState.ENDED, LinkState.ENDED]
    assert ends.links["a"].is_acknowledged


def test_nothing_is_said_behind_a_goodbye() -> None:
    """Nobody would acknowledge it, since a peer that has received the goodbye is done with the Link."""
    ends = Ends()
    ends.wires[0].holes = {"a"}
    close(ends, "a")
    outgoing = ends.links["a"].outgoing
    assert outgoing is not None
    end = outgoing.end
    ends.links["b"].open_channel("late", now=ends.now)
    ends.settle()
    (opened,) = ends.links["a"].take_opened()
    ends.links["a"].accept_channel(opened.channel)
    ends.settle()
    assert outgoing.end == end


def test_a_link_that_is_closing_is_offered_carriers_by_the_peer_too() -> None:
    ends = Ends()
    close(ends, "a")
    ends.cut(ends.wires[0])
    ends.attach("b")
    ends.settle()
    assert ends.links["a"].is_acknowledged


class Closings(Schedules):
    """Each end closes at some moment, or never: the other one receives all that was sent before, and the end."""

    @initialize(terms=st.sampled_from([TERMS, SAYS_AGAIN]))
    def begin(self, terms: Terms) -> None:
        super().begin(terms)
        self.channels: dict[str, Channel] = {name: self.ends.main(name) for name in "ab"}
        self.ends.main = self.channels.__getitem__  # type: ignore[method-assign, assignment]
        self.closed: set[str] = set()

    @property
    def standing(self) -> bool:
        """Whether both ends still have the Link."""
        return all(link.is_up for link in self.ends.links.values())

    @precondition(lambda self: len(self.ends.wires) > 0)
    @rule(name=st.sampled_from("ab"), size=st.integers(1, 3000))
    def write(self, name: str, size: int) -> None:
        if self.ends.links[name].state is LinkState.OPEN:
            super().write(name, size)

    @rule(name=st.sampled_from("ab"))
    def close(self, name: str) -> None:
        if self.ends.links[name].state is LinkState.OPEN:
            self.read()
            close(self.ends, name)
            self.closed.add(name)

    @rule(name=st.sampled_from("ab"))
    def attach(self, name: str) -> None:
        if self.standing:
            super().attach(name)

    @precondition(lambda self: len(self.ends.wires) > 0)
    @rule(name=st.sampled_from("ab"), pick=st.integers(0, 5))
    def promote(self, name: str, pick: int) -> None:
        if self.ends.links[name].is_up:
            super().promote(name, pick)

    @invariant()
    def what_is_taken_in_is_what_was_said(self) -> None:
        if hasattr(self, "closed") and self.standing:
            super().what_is_taken_in_is_what_was_said()

    def teardown(self) -> None:
        if not hasattr(self, "closed"):
            return
        ends = self.ends
        for wire in list(ends.wires):
            if wire.holes or any(wire.lanes[name] not in ends.links[name].lanes for name in "ab"):
                ends.cut(wire)
        if self.standing:
            ends.attach("a")
        for _ in range(10):
            ends.settle()
            ends.close_dropped()
            self.read()
        for name, other in (("a", "b"), ("b", "a")):
            assert self.sent[name].startswith(self.got[name])
            if name in self.closed and other not in self.closed:
                assert self.got[name] == self.sent[name]
                assert self.channels[other].incoming is DirectionState.FINISHED
        if self.closed:
            assert LinkState.ENDED in {link.state for link in ends.links.values()}


Closings.TestCase.settings = settings(max_examples=100, stateful_step_count=50, deadline=None)
TestClosings = pytest.mark.slow("Hypothesis: 100 schedules of 50 steps")(Closings.TestCase)
