"""Each kind of NAT of the lab behaves as declared, over UDP and over TCP."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.kernel.classify import KINDS
from tests.kernel.nats import NATS, nat

PROGRAM = "tests.kernel.classify"
QUESTIONS = [f"{kind} {transport}" for kind in KINDS for transport in ("udp", "tcp")]


def words(questions: list[str]) -> list[str]:
    return [*dict.fromkeys(question.split()[0] for question in questions), "--json"]


@pytest.mark.slow("real time, if the answers are not there yet")
@pytest.mark.needs("network_namespaces", "nft", "tun")
def test_is_as_declared(question: str, answer: list[str]) -> None:
    assert answer == []


def test_an_unknown_kind_is_an_error() -> None:
    for kind in ("cone", "full-cone/rude"):
        with pytest.raises(KeyError):
            nat(kind)


def test_the_documentation_has_every_kind_in_order() -> None:
    page = (Path(__file__).resolve().parents[2] / "docs" / "kernel_lab.md").read_text(encoding="utf-8")
    rows = [line.split("|")[1].strip(" `") for line in page.splitlines() if line.startswith("| `")]
    assert rows == list(NATS)
