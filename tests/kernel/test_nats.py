"""Each kind of NAT of the lab is what it is declared to be, over UDP and over TCP."""

from __future__ import annotations

import pytest

from tests.kernel.classify import KINDS

PROGRAM = "tests.kernel.classify"
QUESTIONS = [f"{kind} {transport}" for kind in KINDS for transport in ("udp", "tcp")]


def words(questions: list[str]) -> list[str]:
    return list(dict.fromkeys(question.split()[0] for question in questions))


@pytest.mark.slow("real time: seconds, all in the first test")
@pytest.mark.needs("network_namespaces", "nft", "tun")
def test_is_as_declared(question: str, answer: list[str]) -> None:
    assert answer == []
