from __future__ import annotations

import errno
import os
import pickle
import ssl
import stat
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.identities import ALICE, BOB
from warpgate_trio import host, identity
from warpgate_trio.errors import ConfigError, IdentityError, PeerIdError, SealError, WarpgateError
from warpgate_trio.identity import (
    Identity,
    PrivateFileProblem,
    is_usable_key,
    key_from_peer_id,
    peer_id_from_key,
    private_file,
    verify,
)

posix = pytest.mark.skipif(os.name != "posix", reason="file modes are POSIX's")
quick = settings(max_examples=50, deadline=None)


@pytest.fixture
def umask_open() -> Iterator[None]:
    """With a umask that shares everything: key files have to be private nevertheless."""
    old = os.umask(0)
    yield
    os.umask(old)


class TestGolden:
    """What is derived from a seed never changes: existing nodes are known by it."""

    def test_names_and_keys(self) -> None:
        assert ALICE.public_key.hex() == "03a107bff3ce10be1d70dd18e74bc09967e4d6309ba50d5f1ddc8664125531b8"
        assert ALICE.sealing_key.hex() == "5ef9d37fcab6427a783a6ec8606ae37f14dc7fd35ea2d44785e82d3079e56310"
        assert ALICE.peer_id == "aoqqpp7tzyil4hlq3umoos6atft6jvrqtosq2xy53sdgiesvgg4a"

    def test_seed_is_the_private_key_of_rfc_8032(self) -> None:
        seed = bytes.fromhex("9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60")  # section 7.1, TEST 1
        public = "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a"
        assert Identity.from_seed(seed).public_key.hex() == public

    def test_signature(self) -> None:
        assert ALICE.sign(b"test v1", b"hello").hex() == (
            "f45fe9cb9a49963851ef8dac48818794b0c8c70d97dbf1a824d82d806827c978"
            "ef07d149c0c80e441925b534474f5a4568c420d482954d16730d06a79882710a"
        )

    def test_signature_is_over_context_nul_data(self) -> None:
        Ed25519PublicKey.from_public_bytes(ALICE.public_key).verify(ALICE.sign(b"test v1", b"hello"), b"test v1\0hello")

    def test_proof(self) -> None:
        assert identity.prove(ALICE, server_key=b"\1" * 32, session_id=b"\2" * 16).hex() == (
            "22b0d05358eac850f9cdebd0034a50c9df60873a048abd249ac5b653a78729bf"
            "2a3bfade3283a988b62230d2a4172074cf070c0e095534e51bb1248c1ed05e09"
        )

    def test_sealed_blob_of_an_earlier_run_opens(self) -> None:
        blob = bytes.fromhex(
            "46668f77d3a444bd66100219c061970d3871510d431d5ce05111915840b51438"
            "412de6b4c35f1bb0e5e0f825d5808ca27518790f5132e0d10efd6a5d5e54"
        )
        assert ALICE.open_sealed(blob, info=b"test v1") == b"attack at dawn"

    def test_certificate(self) -> None:
        assert ALICE.certificate_pem().decode() == (
            "-----BEGIN CERTIFICATE-----\n"
            "MIHeMIGRoAMCAQICAQEwBQYDK2VwMBgxFjAUBgNVBAMMDXdhcnBnYXRlLXRyaW8w\n"
            "IBcNMDAwMTAxMDAwMDAwWhgPOTk5OTEyMzEyMzU5NTlaMBgxFjAUBgNVBAMMDXdh\n"
            "cnBnYXRlLXRyaW8wKjAFBgMrZXADIQADoQe/884Qvh1w3RjnS8CZZ+TWMJulDV8d\n"
            "3IZkElUxuDAFBgMrZXADQQDBq3UN5Iz5bwjAxGTdGHgay72K3/2c2J8IA8hIsdP4\n"
            "jUq6Sqsmz1oYpZcfabBB61yToL/+X6We3/jxIzoZbLAG\n"
            "-----END CERTIFICATE-----\n"
        )

    def test_key_file(self) -> None:
        assert ALICE.private_key_pem().decode() == (
            "-----BEGIN PRIVATE KEY-----\n"
            "MC4CAQAwBQYDK2VwBCIEIAABAgMEBQYHCAkKCwwNDg8QERITFBUWFxgZGhscHR4f\n"
            "-----END PRIVATE KEY-----\n"
        )


class TestIdentity:
    def test_seed_of_another_length_is_refused(self) -> None:
        with pytest.raises(ValueError, match="32 bytes, not 31"):
            Identity.from_seed(bytes(31))

    def test_generated_identities_differ(self) -> None:
        assert Identity.generate().peer_id != Identity.generate().peer_id

    async def test_generate_takes_the_entropy_of_the_current_host(self) -> None:
        fake = FakeHost()
        host.set_provider(lambda: cast(Any, fake))
        assert Identity.generate().peer_id == Identity.from_seed(b"\7" * 32).peer_id

    def test_shows_no_secret(self) -> None:
        seed = b"correct horse battery staple!!!!"
        shown = repr(Identity.from_seed(seed)) + str(Identity.from_seed(seed))
        assert Identity.from_seed(seed).peer_id in shown
        assert "horse" not in shown
        assert seed.hex() not in shown

    def test_is_not_pickled(self) -> None:
        with pytest.raises(TypeError, match="holds a private key"):
            pickle.dumps(ALICE)

    def test_certificate_is_of_the_key_and_valid_for_ever(self) -> None:
        certificate = x509.load_pem_x509_certificate(ALICE.certificate_pem())
        key = certificate.public_key()
        assert isinstance(key, Ed25519PublicKey)
        assert key.public_bytes_raw() == ALICE.public_key
        certificate.verify_directly_issued_by(certificate)
        assert (certificate.not_valid_before_utc.year, certificate.not_valid_after_utc.year) == (2000, 9999)

    def test_certificate_and_key_fit_the_standard_library(self, tmp_path: Path) -> None:
        (tmp_path / "both.pem").write_bytes(ALICE.private_key_pem() + ALICE.certificate_pem())
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(tmp_path / "both.pem")

    def test_default_key_file(self) -> None:
        assert identity.default_key_file().parts[-2:] == ("warpgate-trio", "node.key")

    @pytest.mark.usefixtures("no_home")
    def test_a_user_without_a_home(self) -> None:
        with pytest.raises(IdentityError, match=r"no home directory .* set HOME, name a file with identity.key_file"):
            identity.default_key_file()


class TestKeyFile:
    @posix
    @pytest.mark.usefixtures("umask_open")
    def test_is_made_private_with_its_directory(self, tmp_path: Path) -> None:
        file = tmp_path / "conf" / "node.key"
        made = Identity.load_or_create(file)
        assert file.stat().st_mode & 0o777 == 0o600
        assert file.parent.stat().st_mode & 0o777 == 0o700
        assert [path.name for path in file.parent.iterdir()] == ["node.key"]
        assert Identity.load(file).peer_id == Identity.load_or_create(str(file)).peer_id == made.peer_id
        assert Identity.load(file).sealing_key == made.sealing_key

    def test_all_who_start_at_once_get_one_identity(self, tmp_path: Path) -> None:
        barrier = threading.Barrier(8)
        ids: list[str] = []

        def start() -> None:
            barrier.wait()
            ids.append(Identity.load_or_create(tmp_path / "conf" / "node.key").peer_id)

        threads = [threading.Thread(target=start) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(ids) == 8
        assert len(set(ids)) == 1
        assert [path.name for path in (tmp_path / "conf").iterdir()] == ["node.key"]

    async def test_who_loses_the_race_takes_the_winner_s(self, tmp_path: Path) -> None:
        file = tmp_path / "node.key"

        def somebody_else() -> None:  # between the check for the file and its creation
            if not file.exists():
                file.touch(mode=0o600)
                file.write_bytes(BOB.private_key_pem())

        fake = FakeHost(before_entropy=somebody_else)
        host.set_provider(lambda: cast(Any, fake))
        assert Identity.load_or_create(file).peer_id == BOB.peer_id
        assert file.read_bytes() == BOB.private_key_pem()
        assert [path.name for path in tmp_path.iterdir()] == ["node.key"]

    @posix
    @pytest.mark.parametrize("number", [errno.EPERM, errno.EACCES, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK])
    def test_where_there_are_no_hard_links(self, number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(os, "link", refusing(number))
        self.test_is_made_private_with_its_directory(tmp_path)

    @posix
    def test_where_there_are_no_hard_links_all_get_one_identity(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(os, "link", refusing(errno.EPERM))
        self.test_all_who_start_at_once_get_one_identity(tmp_path)

    @posix
    async def test_where_there_are_no_hard_links_nothing_is_overwritten(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(os, "link", refusing(errno.EPERM))
        await self.test_who_loses_the_race_takes_the_winner_s(tmp_path)

    @posix
    def test_a_file_system_that_keeps_no_modes_gets_no_key(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        real = os.open
        monkeypatch.setattr(os, "open", lambda path, flags, mode=0o777: real(path, flags, mode and 0o644))
        with pytest.raises(IdentityError, match=r"its file system does not support file permissions .mode 0644"):
            Identity.load_or_create(tmp_path / "node.key")
        assert list(tmp_path.iterdir()) == []

    @posix
    @pytest.mark.parametrize("number", [errno.EINVAL, errno.EPERM, errno.ENOTSUP, errno.EBADF])
    def test_a_directory_that_cannot_be_synced(
        self, number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        real = os.fsync

        def fsync(descriptor: int) -> None:
            if stat.S_ISDIR(os.fstat(descriptor).st_mode):
                raise OSError(number, os.strerror(number))
            real(descriptor)

        monkeypatch.setattr(os, "fsync", fsync)
        made = Identity.load_or_create(tmp_path / "node.key")
        assert Identity.load(tmp_path / "node.key").peer_id == made.peer_id

    @pytest.mark.parametrize("change", [b"\xef\xbb\xbf%b", b"# mine\r\n%b"])
    def test_as_an_editor_on_windows_saves_it(self, change: bytes, tmp_path: Path) -> None:
        content = change % ALICE.private_key_pem().replace(b"\n", b"\r\n")
        assert Identity.load(key_file(tmp_path, content)).peer_id == ALICE.peer_id

    def test_missing(self, tmp_path: Path) -> None:
        with pytest.raises(IdentityError, match="there is no key file"):
            Identity.load(tmp_path / "node.key")

    @posix
    @pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o602, 0o610])
    def test_open_to_others(self, tmp_path: Path, mode: int) -> None:
        file = key_file(tmp_path, ALICE.private_key_pem(), mode)
        with pytest.raises(IdentityError, match=f"open to others .mode {mode:04o}.; run: chmod 600"):
            Identity.load_or_create(file)

    @posix
    @pytest.mark.parametrize(
        ("owner", "mode", "ours", "refusal"),
        [
            (7, 0o600, 7, None),
            (7, 0o400, 7, None),
            (0, 0o600, 0, None),
            (0, 0o440, 7, None),  # a Kubernetes Secret with fsGroup
            (0, 0o640, 7, None),
            (0, 0o400, 7, None),
            (0, 0o440, 0, "is open to others .mode 0440.; run: chmod 600"),
            (7, 0o440, 7, "is open to others .mode 0440.; run: chmod 600"),
            (0, 0o660, 7, "is open to others .mode 0660.; have root run: chmod 640"),
            (0, 0o450, 7, "is open to others .mode 0450."),
            (0, 0o444, 7, "is open to others .mode 0444."),
            (0, 0o642, 7, "is open to others .mode 0642."),
            (8, 0o600, 7, r"belongs to another user .uid 8., who can .* ours .uid 7. or root's"),
            (8, 0o400, 0, "belongs to another user .uid 8."),
            (8, 0o440, 7, "belongs to another user"),
        ],
    )
    def test_who_may_have_access(self, owner: int, mode: int, ours: int, refusal: str | None) -> None:
        status = os.stat_result((stat.S_IFREG | mode, 1, 1, 1, owner, 7, 119, 0, 0, 0))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(os, "geteuid", lambda: ours)
            with pytest.raises(PrivateFileProblem, match=refusal) if refusal else nullcontext():
                private_file._check_access("key file", Path("node.key"), status)

    @pytest.mark.needs("root", "linux")
    def test_a_secret_of_kubernetes(self) -> None:
        """Root's file, readable by our group, behind two symbolic links; a file that another user left is refused."""
        with tempfile.TemporaryDirectory() as name, as_other_user(uid=61234, gid=61235) as become:
            mount = Path(name)
            mount.chmod(0o755)
            (mount / "..2026_01").mkdir()
            file = key_file(mount / "..2026_01", ALICE.private_key_pem(), 0o440)
            os.chown(file, 0, 61235)
            (mount / "..data").symlink_to("..2026_01")
            (mount / "node.key").symlink_to("..data/node.key")
            planted = mount / "planted.key"
            planted.write_bytes(BOB.private_key_pem())
            planted.chmod(0o644)
            os.chown(planted, 61236, 61235)
            become()
            assert Identity.load_or_create(mount / "node.key").peer_id == ALICE.peer_id
            with pytest.raises(IdentityError, match=r"belongs to another user .uid 61236."):
                Identity.load_or_create(planted)

    @pytest.mark.parametrize(
        "content",
        [
            b"",
            b"\xff" * 100,
            b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n",
            ALICE.private_key_pem().replace(b"K2VwBC", b"K2VxBC"),  # names a key of Ed448, which is longer
            bytes(16_384),
        ],
    )
    def test_garbage(self, tmp_path: Path, content: bytes) -> None:
        with pytest.raises(IdentityError, match="does not hold a private key in PEM form"):
            Identity.load_or_create(key_file(tmp_path, content))
        assert (tmp_path / "node.key").read_bytes() == content  # the file is never replaced

    def test_too_large(self, tmp_path: Path) -> None:
        with pytest.raises(IdentityError, match="too large"):
            Identity.load(key_file(tmp_path, ALICE.private_key_pem() + bytes(16_384)))

    def test_a_certificate_is_no_key(self, tmp_path: Path) -> None:
        with pytest.raises(IdentityError, match="does not hold a private key"):
            Identity.load(key_file(tmp_path, ALICE.certificate_pem()))

    def test_key_of_another_type(self, tmp_path: Path) -> None:
        pem = X25519PrivateKey.generate().private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        with pytest.raises(IdentityError, match="is not an Ed25519 key"):
            Identity.load(key_file(tmp_path, pem))

    def test_encrypted_key(self, tmp_path: Path) -> None:
        encryption = serialization.BestAvailableEncryption(b"password")
        pem = Ed25519PrivateKey.generate().private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption
        )
        with pytest.raises(IdentityError, match="is encrypted"):
            Identity.load(key_file(tmp_path, pem))

    def test_directory(self, tmp_path: Path) -> None:
        with pytest.raises(IdentityError, match=r"not a regular file|cannot be read"):
            Identity.load(tmp_path)

    @pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no FIFOs here")
    def test_fifo_does_not_block(self, tmp_path: Path) -> None:
        os.mkfifo(tmp_path / "node.key", 0o600)
        with pytest.raises(IdentityError, match="not a regular file"):
            Identity.load(tmp_path / "node.key")

    def test_unreadable(self, tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        with pytest.raises(IdentityError, match="cannot be read: Not a directory"):
            Identity.load(tmp_path / "file" / "node.key")

    def test_path_with_a_nul(self) -> None:
        with pytest.raises(IdentityError, match="cannot be read"):
            Identity.load("a\0b")

    def test_cannot_be_made(self, tmp_path: Path) -> None:
        (tmp_path / "node.key").symlink_to(tmp_path / "nowhere" / "node.key")  # a dangling link, whose name is taken
        with pytest.raises(IdentityError, match="there is no key file"):
            Identity.load_or_create(tmp_path / "node.key")
        (tmp_path / "dead").symlink_to(tmp_path / "nowhere")
        with pytest.raises(IdentityError, match="cannot be made: File exists; name another file, or use an ephemeral"):
            Identity.load_or_create(tmp_path / "dead" / "node.key")

    def test_identity_errors_are_configuration_errors(self) -> None:
        assert issubclass(IdentityError, ConfigError)


class TestSignatures:
    def test_holds_for_its_own_context_data_and_key_only(self) -> None:
        signature = ALICE.sign(b"one", b"data")
        assert identity.verify(ALICE.public_key, signature, b"one", b"data")
        assert not identity.verify(ALICE.public_key, signature, b"two", b"data")
        assert not identity.verify(ALICE.public_key, signature, b"one", b"other")
        assert not identity.verify(BOB.public_key, signature, b"one", b"data")

    def test_context_does_not_run_into_the_data(self) -> None:
        assert not identity.verify(ALICE.public_key, ALICE.sign(b"a", b"bc"), b"ab", b"c")

    def test_context_holds_no_nul(self) -> None:
        with pytest.raises(ValueError, match="no NUL"):
            ALICE.sign(b"a\0b", b"")
        with pytest.raises(ValueError, match="no NUL"):
            identity.verify(ALICE.public_key, bytes(64), b"a\0b", b"")

    @quick
    @given(key=st.binary(max_size=80), signature=st.binary(max_size=80), data=st.binary(max_size=80))
    @example(key=b"\xff" * 32, signature=bytes(64), data=b"")
    @example(key=ALICE.public_key, signature=b"\xff" * 64, data=b"")
    def test_hostile_bytes_are_false(self, key: bytes, signature: bytes, data: bytes) -> None:
        assert not identity.verify(key, signature, b"test", data)

    def test_proof(self) -> None:
        session = bytes(range(16))
        signature = identity.prove(ALICE, server_key=BOB.public_key, session_id=session)

        def check(client: bytes = ALICE.public_key, server: bytes = BOB.public_key, session: bytes = session) -> bool:
            return identity.check_proof(client_key=client, server_key=server, session_id=session, signature=signature)

        assert check()
        assert not check(client=BOB.public_key)
        assert not check(server=ALICE.public_key)
        assert not check(session=bytes(16))
        assert not check(client=b"", server=b"", session=b"")
        # The same bytes in all, but with another border between key and session.
        assert not check(server=BOB.public_key + session[:1], session=session[1:])

    def test_proof_is_of_fixed_lengths(self) -> None:
        with pytest.raises(ValueError, match="16-byte session id"):
            identity.prove(ALICE, server_key=bytes(32), session_id=bytes(15))
        with pytest.raises(ValueError, match="32-byte key"):
            identity.prove(ALICE, server_key=bytes(33), session_id=bytes(16))


class TestSeal:
    @quick
    @given(plaintext=st.binary(max_size=300), info=st.binary(max_size=40))
    def test_round_trip(self, plaintext: bytes, info: bytes) -> None:
        blob = identity.seal(ALICE.sealing_key, plaintext, info=info)
        assert len(blob) == len(plaintext) + identity.SEAL_OVERHEAD
        assert ALICE.open_sealed(blob, info=info) == plaintext

    def test_two_blobs_of_one_plaintext_differ(self) -> None:
        assert identity.seal(ALICE.sealing_key, b"x", info=b"") != identity.seal(ALICE.sealing_key, b"x", info=b"")

    def test_opens_for_its_receiver_and_info_only(self) -> None:
        blob = identity.seal(ALICE.sealing_key, b"hello", info=b"one")
        with pytest.raises(SealError):
            BOB.open_sealed(blob, info=b"one")
        with pytest.raises(SealError):
            ALICE.open_sealed(blob, info=b"two")

    def test_every_flipped_or_missing_byte_is_found(self) -> None:
        blob = identity.seal(ALICE.sealing_key, b"hello", info=b"")
        for position in range(len(blob)):
            with pytest.raises(SealError):
                ALICE.open_sealed(blob[:position] + bytes([blob[position] ^ 1]) + blob[position + 1 :], info=b"")
            with pytest.raises(SealError):
                ALICE.open_sealed(blob[:position], info=b"")

    @quick
    @given(st.binary(max_size=200))
    @example(bytes(48))
    def test_hostile_bytes(self, blob: bytes) -> None:
        with pytest.raises(SealError):
            ALICE.open_sealed(blob, info=b"")

    @pytest.mark.parametrize(
        "key",
        [
            b"",
            bytes(31),
            bytes(33),
            bytes(32),  # points of low order: RFC 7748 section 6.1 with https://cr.yp.to/ecdh.html "validate"
            b"\1" + bytes(31),
            bytes.fromhex("e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800"),
            bytes.fromhex("5f9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f1157"),
            bytes.fromhex("ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f"),
        ],
    )
    def test_unusable_keys(self, key: bytes) -> None:
        with pytest.raises(SealError, match="not a usable X25519"):
            identity.seal(key, b"x", info=b"")


class TestPeerId:
    @quick
    @given(st.binary(min_size=32, max_size=32).filter(is_usable_key))
    def test_round_trip(self, key: bytes) -> None:
        text = identity.peer_id_from_key(key)
        assert len(text) == identity.PEER_ID_LENGTH
        assert text == text.lower()
        assert identity.key_from_peer_id(text) == key

    @pytest.mark.parametrize(
        ("text", "reason"),
        [
            ("", "52 characters, not 0"),
            (ALICE.peer_id[:-1], "52 characters, not 51"),
            (ALICE.peer_id + "=", "52 characters, not 53"),
            (ALICE.peer_id.upper(), "lower case"),
            (ALICE.peer_id[:-2] + "1a", "letters a to z and the digits 2 to 7"),
            (ALICE.peer_id[:-1] + "\n", "letters a to z and the digits 2 to 7"),
            (ALICE.peer_id[:-1] + "\u0660", "letters a to z and the digits 2 to 7"),  # an Arabic digit
            ("\u212a" + ALICE.peer_id[1:], "letters a to z"),  # the Kelvin sign, which lower() turns into a k
            (ALICE.peer_id[:-1] + "b", "last character"),
        ],
    )
    def test_says_what_is_wrong(self, text: str, reason: str) -> None:
        with pytest.raises(PeerIdError, match=reason):
            identity.key_from_peer_id(text)

    @quick
    @given(st.text("abcxyz234567", min_size=52, max_size=52) | st.text("ab2A1=-\0\n\u0660\u212a\ud800", max_size=60))
    def test_hostile_text(self, text: str) -> None:
        try:
            key = identity.key_from_peer_id(text)
        except PeerIdError:
            return
        assert identity.peer_id_from_key(key) == text

    def test_key_of_another_length(self) -> None:
        with pytest.raises(PeerIdError, match="32 bytes, not 31"):
            identity.peer_id_from_key(bytes(31))

    def test_error_is_a_value_error(self) -> None:
        assert issubclass(PeerIdError, ValueError)
        assert issubclass(PeerIdError, WarpgateError)


def key_file(directory: Path, content: bytes, mode: int = 0o600) -> Path:
    file = directory / "node.key"
    file.write_bytes(content)
    file.chmod(mode)
    return file


def refusing(number: int) -> Callable[..., None]:
    """A system call that always fails with the same error."""

    def refuse(*_arguments: object) -> None:
        raise OSError(number, os.strerror(number))

    return refuse


@contextmanager
def as_other_user(*, uid: int, gid: int) -> Iterator[Callable[[], None]]:
    """Yields a function that switches this process, which runs as root, to another user until the block ends."""
    groups = os.getgroups()

    def become() -> None:
        os.setgroups([gid])
        os.seteuid(uid)

    try:
        yield become
    finally:
        os.seteuid(0)
        os.setgroups(groups)


@dataclass
class FakeHost:
    """The part of a host that `identity` uses: entropy (bytes of 7), and a callback before it is drawn."""

    before_entropy: Callable[[], None] = lambda: None

    def entropy(self, n: int) -> bytes:
        self.before_entropy()
        return b"\7" * n


# -- keys of small order -----------------------------------------------------------------------------------------------

P = 2**255 - 19
D = -121665 * pow(121666, -1, P) % P
L = 2**252 + 27742317777372353535851937790883648493  # the order of the base point, RFC 8032 section 5.1

Point = tuple[int, int]


def add(a: Point, b: Point) -> Point:
    (x1, y1), (x2, y2) = a, b
    product = D * x1 * x2 * y1 * y2
    x3 = (x1 * y2 + x2 * y1) * pow(1 + product, -1, P)
    y3 = (y1 * y2 + x1 * x2) * pow(1 - product, -1, P)
    return x3 % P, y3 % P


def times(n: int, point: Point) -> Point:
    result = (0, 1)
    while n:
        if n & 1:
            result = add(result, point)
        point = add(point, point)
        n >>= 1
    return result


def small_order_points() -> set[Point]:
    """All eight, found by multiplying points of the curve by the base point's order."""
    found: set[Point] = set()
    y = 2
    while len(found) < 8:
        square = (y * y - 1) * pow(D * y * y + 1, -1, P) % P
        x = pow(square, (P + 3) // 8, P)
        if x * x % P != square:
            x = x * pow(2, (P - 1) // 4, P) % P
        if x * x % P == square:
            point = times(L, (x, y))
            found |= {times(n, point) for n in range(8)}
        y += 1
    return found


def test_a_key_of_small_order_is_nobodys() -> None:
    """For such a key some signatures verify for every message, so everybody would own the identity."""
    for x, y in small_order_points():
        key = (y | (x & 1) << 255).to_bytes(32, "little")
        assert not is_usable_key(key)
        with pytest.raises(PeerIdError, match="a weak key"):
            key_from_peer_id(peer_id_from_key(key))
        for forged in (key + bytes(32), bytes(64), (1).to_bytes(32, "little") + bytes(32)):
            assert not any(verify(key, forged, b"context", bytes([n])) for n in range(64))


def test_a_key_has_one_encoding() -> None:
    for y in (P, P + 1, P + 2, 2**255 - 1):
        assert not is_usable_key(y.to_bytes(32, "little"))
        assert not is_usable_key((y | 1 << 255).to_bytes(32, "little"))
    assert is_usable_key(Identity.from_seed(bytes(32)).public_key)
    assert not is_usable_key(bytes(31))
