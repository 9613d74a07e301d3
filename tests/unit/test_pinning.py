"""Whose key a certificate shows: hostile certificates show nobody's, whatever the library raises for them."""

from __future__ import annotations

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.x509 import load_pem_x509_certificate

from tests.identities import ALICE
from warpgate_trio.carrier._pinning import certificate_key

DER = load_pem_x509_certificate(ALICE.certificate_pem()).public_bytes(serialization.Encoding.DER)
VERSION = bytes.fromhex("a003020102")  # [0] INTEGER 2, which is X.509 version 3
SERIAL = bytes.fromhex("020101")  # INTEGER 1
ED25519 = bytes.fromhex("300506032b6570032100")
X448 = bytes.fromhex("300506032b656f032100")


def test_the_key_of_a_certificate() -> None:
    assert certificate_key(DER) == ALICE.public_key
    assert certificate_key(None) is None


@pytest.mark.parametrize("version", [1, 3, 127])
def test_a_version_that_there_is_not(version: int) -> None:
    """The library raises an exception for it that is no ValueError."""
    hostile = DER.replace(VERSION, VERSION[:-1] + bytes([version]), 1)
    assert hostile != DER
    assert certificate_key(hostile) is None


def test_what_the_library_warns_of_is_read_in_silence() -> None:
    hostile = DER.replace(SERIAL, b"\x02\x01\x00", 1)
    assert hostile != DER
    assert certificate_key(hostile) == ALICE.public_key


def test_a_key_that_cannot_be_set_up() -> None:
    hostile = DER.replace(ED25519, X448, 1)
    assert hostile != DER
    assert certificate_key(hostile) is None
