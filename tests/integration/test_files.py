"""Transfers from disk to disk, over streams in memory that break where a test wants it."""

from __future__ import annotations

import errno
import os
import shutil
import stat
import sys
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any

import pytest
import trio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests import transfers
from tests.identities import ALICE, MALLORY
from tests.transfers import SMALL_BLOCK, content, make_tree, transfer, umask, wired
from warpgate_trio.errors import RemoteProtocolError, TransferError, TransferFailed, TransferRefused
from warpgate_trio.files import Inbox, Reason, look_at, receive_files, sources
from warpgate_trio.files import area as area_module
from warpgate_trio.files import folder as folder_module
from warpgate_trio.files import staging as staging_module
from warpgate_trio.files.area import AREA, lock_room, try_names
from warpgate_trio.files.naming import Destination
from warpgate_trio.files.tree import Tree
from warpgate_trio.files.wire import FURTHEST_TIME, Entry, EntryKind
from warpgate_trio.identity import peer_id_from_key

pytestmark = pytest.mark.usefixtures("small_blocks")
small_blocks = transfers.small_blocks

TREE = {"one.bin": 5 * SMALL_BLOCK, "empty": 0, "sub/two": 3 * SMALL_BLOCK + 7, "sub/deep/three": 1, "hollow/": 0}
BYTES = sum(TREE.values())


def source(tmp_path: Path) -> Path:
    return make_tree(tmp_path / "from" / "tree", TREE)


def wrong(errors: Sequence[BaseException], kind: type[BaseException]) -> Any:
    """The only error of a kind."""
    found = [each for each in errors if isinstance(each, kind)]
    assert found, errors
    return found[0]


async def test_a_folder_comes_whole(tmp_path: Path) -> None:
    """Contents, empty folders, the executable bit and times arrive, and nothing is left behind."""
    root, into = source(tmp_path), tmp_path / "into"
    (root / "one.bin").chmod(0o750)
    (root / "empty").chmod(0o600)
    os.utime(root / "one.bin", ns=(1, 1_234_567_890_123_456_789))
    with umask(0o022):
        received, errors, wire = await transfer(look_at([root]), Inbox(into))
    assert not errors
    assert received is not None
    assert (received.paths, received.files, received.size, received.there) == ((into / "tree",), 4, BYTES, 0)
    assert content(into / "tree") == content(root)
    assert stat.S_IMODE((into / "tree" / "one.bin").stat().st_mode) == 0o755
    assert stat.S_IMODE((into / "tree" / "empty").stat().st_mode) == 0o644
    assert (into / "tree" / "one.bin").stat().st_mtime_ns == 1_234_567_890_123_456_789
    assert os.listdir(into) == ["tree"]
    assert wire.carried < BYTES + 2000


async def test_nothing_is_overwritten(tmp_path: Path) -> None:
    root, into = source(tmp_path), tmp_path / "into"
    make_tree(into, {"tree/mine": 3, "one.bin": 4, "one (1).bin": 5})
    before = content(into)
    received, errors, _ = await transfer(look_at([root, root / "one.bin"]), Inbox(into))
    assert not errors
    assert received is not None
    assert received.paths == (into / "tree (1)", into / "one (2).bin")
    after = content(into)
    assert all(after[name] == data for name, data in before.items())
    assert after["one (2).bin"] == after["tree (1)/one.bin"]


async def test_a_link_in_the_way_is_not_followed(tmp_path: Path) -> None:
    """At the top, a symbolic link is a name that is taken; in place of the area, it makes the transfer fail."""
    root, into, elsewhere = source(tmp_path), tmp_path / "into", make_tree(tmp_path / "elsewhere", {})
    into.mkdir()
    (into / "tree").symlink_to(elsewhere)
    (into / "one.bin").symlink_to(elsewhere / "one.bin")
    received, errors, _ = await transfer(look_at([root, root / "one.bin"]), Inbox(into))
    assert not errors
    assert received is not None
    assert received.paths == (into / "tree (1)", into / "one (1).bin")
    (into / AREA).symlink_to(elsewhere)
    received, errors, _ = await transfer(look_at([root]), Inbox(into))
    assert received is None
    assert wrong(errors, TransferRefused).reason == Reason.CANNOT_WRITE
    assert not os.listdir(elsewhere)


async def test_an_area_that_others_may_write_in_is_not_used(tmp_path: Path) -> None:
    root, into = source(tmp_path), tmp_path / "into"
    (into / AREA).mkdir(parents=True)
    (into / AREA).chmod(0o777)
    _, errors, _ = await transfer(look_at([root]), Inbox(into))
    assert wrong(errors, TransferRefused).reason == Reason.CANNOT_WRITE


async def test_links_and_what_is_no_file_are_left_out(tmp_path: Path) -> None:
    root, into = source(tmp_path), tmp_path / "into"
    (root / "passwd").symlink_to("/etc/passwd")
    (root / "up").symlink_to(tmp_path)
    os.mkfifo(root / "fifo")
    outgoing = look_at([root])
    assert sorted(each.path.name for each in outgoing.skipped) == ["fifo", "passwd", "up"]
    _, errors, _ = await transfer(outgoing, Inbox(into))
    assert not errors
    assert sorted(os.listdir(into / "tree")) == ["empty", "hollow", "one.bin", "sub"]


def test_what_is_named_by_a_link_is_what_it_leads_to(tmp_path: Path) -> None:
    root = source(tmp_path)
    (tmp_path / "latest").symlink_to(root / "one.bin")
    outgoing = look_at([tmp_path / "latest"])
    assert [(each.path, each.size) for each in outgoing.entries] == [("latest", TREE["one.bin"])]


@pytest.mark.parametrize("path", ["missing", "fifo", "/", "twice"])
def test_what_cannot_be_offered_is_said_at_once(tmp_path: Path, path: str) -> None:
    root = source(tmp_path)
    os.mkfifo(tmp_path / "fifo")
    paths = [root, make_tree(tmp_path / "other" / "tree", {})] if path == "twice" else [tmp_path / path]
    with pytest.raises((ValueError, OSError)):
        look_at(paths)


def test_names_that_are_no_utf_8_are_left_out(tmp_path: Path) -> None:
    root = source(tmp_path)
    (root / os.fsdecode(b"caf\xe9")).write_bytes(b"x")
    (skipped,) = look_at([root]).skipped
    assert "UTF-8" in skipped.why


# --- breaks ---


@pytest.mark.slow("fifty transfers, each cut once")
async def test_every_break_costs_a_block_at_most(tmp_path: Path) -> None:
    """Cut at each boundary of a block of the stream and beside it: less than one block is sent again, each time."""
    root = source(tmp_path)
    whole = await transfer(look_at([root]), Inbox(tmp_path / "whole"))
    total = whole[2].carried
    overhead = total - BYTES
    cuts = sorted({max(at + beside, 1) for at in range(0, total, SMALL_BLOCK // 2) for beside in (-1, 0, 1)})
    for number, cut in enumerate(cuts):
        into = tmp_path / str(number)
        first, errors, wire = await transfer(look_at([root]), Inbox(into), cut)
        assert first is None
        assert errors
        assert not into.exists() or os.listdir(into) == [AREA]
        received, errors, again = await transfer(look_at([root]), Inbox(into))
        assert not errors, (cut, errors)
        assert received is not None
        assert content(into / "tree") == content(root)
        assert os.listdir(into) == ["tree"]
        assert wire.carried + again.carried <= total + SMALL_BLOCK + overhead, cut


@pytest.mark.slow("sixty transfers with many breaks each")
@pytest.mark.parametrize("seed", range(6))
async def test_many_breaks_anywhere(tmp_path: Path, seed: int) -> None:
    """Each side goes on in the same process or in a new one: the bytes are the same, and few are sent twice."""
    random = Random(seed)
    root = source(tmp_path)
    _, _, wire = await transfer(look_at([root]), Inbox(tmp_path / "whole"))
    overhead = wire.carried - BYTES
    for number in range(10):
        into = tmp_path / str(number)
        outgoing, inbox = look_at([root]), Inbox(into)
        carried = breaks = 0
        received = None
        while received is None:
            if random.random() < 0.5:
                inbox = Inbox(into)
            if random.random() < 0.5:
                outgoing = look_at([root], run=outgoing.offer.run)
            received, _, wire = await transfer(
                outgoing, inbox, random.randrange(1, 4 * SMALL_BLOCK) + 400 + breaks * 100
            )
            carried += wire.carried
            breaks += received is None
        assert content(into / "tree") == content(root)
        assert os.listdir(into) == ["tree"]
        assert carried <= BYTES + overhead + breaks * (SMALL_BLOCK + overhead)


async def test_who_was_not_told_that_all_has_come_is_told_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The sender learns it on its next Pipe, and no file arrives twice."""
    root, into = source(tmp_path), tmp_path / "into"
    outgoing, inbox = look_at([root]), Inbox(into)

    _, _, wire = await transfer(outgoing, Inbox(tmp_path / "whole"))
    # The receiver's DONE is lost: its end breaks when it sends that.
    old = transfers.End.send_all

    async def send_all(self: Any, data: bytes) -> None:
        if data[:1] == b"\x13":
            self._wire.cut()
            raise trio.BrokenResourceError("cut")
        await old(self, data)

    with monkeypatch.context() as patch:
        patch.setattr(transfers.End, "send_all", send_all)
        _, errors, _ = await transfer(outgoing, inbox)
    assert wrong(errors, trio.BrokenResourceError)
    assert sorted(os.listdir(into)) == [AREA, "tree"]
    received, errors, again = await transfer(outgoing, Inbox(into))
    assert not errors
    assert received is not None
    assert received.paths == (into / "tree",)
    assert os.listdir(into) == ["tree"]
    assert again.carried < wire.carried - BYTES + 100


async def test_what_was_sent_on_purpose_once_more_comes_once_more(tmp_path: Path) -> None:
    root, into = source(tmp_path), tmp_path / "into"
    for _ in range(2):
        _, errors, _ = await transfer(look_at([root]), Inbox(into))
        assert not errors
    assert sorted(os.listdir(into)) == ["tree", "tree (1)"]


async def test_another_sender_has_no_part_in_what_was_begun(tmp_path: Path) -> None:
    root, into = source(tmp_path), tmp_path / "into"
    await transfer(look_at([root]), Inbox(into), 6 * SMALL_BLOCK)
    _, _, wire = await transfer(look_at([root]), Inbox(into), sender=peer_id_from_key(MALLORY.public_key))
    assert wire.carried > BYTES
    received, errors, wire = await transfer(look_at([root]), Inbox(into))
    assert not errors
    assert received is not None
    assert received.there >= 3 * SMALL_BLOCK
    assert wire.carried < BYTES


async def test_bytes_that_changed_on_the_receivers_disk_are_sent_again(tmp_path: Path) -> None:
    root, into = source(tmp_path), tmp_path / "into"
    await transfer(look_at([root]), Inbox(into), 7 * SMALL_BLOCK)
    (part,) = into.rglob("one.bin")
    with part.open("r+b") as file:
        file.seek(SMALL_BLOCK + 5)
        file.write(b"????")
    received, errors, _ = await transfer(look_at([root]), Inbox(into))
    assert not errors
    assert received is not None
    assert received.there <= 2 * SMALL_BLOCK + 1  # the first block of this file, and what followed it
    assert content(into / "tree") == content(root)


@pytest.mark.parametrize("what", ["offer", "journal"])
async def test_notes_that_cannot_be_read_cost_the_bytes_alone(tmp_path: Path, what: str) -> None:
    root, into = source(tmp_path), tmp_path / "into"
    await transfer(look_at([root]), Inbox(into), 7 * SMALL_BLOCK)
    (note,) = into.rglob(what)
    note.write_bytes(b"\xc1" * 30)
    received, errors, _ = await transfer(look_at([root]), Inbox(into))
    assert not errors
    assert received is not None
    assert received.there == 0
    assert content(into / "tree") == content(root)


# --- files that change ---


def touched(path: Path, data: bytes) -> None:
    status = path.stat()
    path.write_bytes(data)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 1))


async def test_of_files_that_changed_between_two_tries_only_these_are_sent_again(tmp_path: Path) -> None:
    root, into = source(tmp_path), tmp_path / "into"
    _, _, whole = await transfer(look_at([root]), Inbox(tmp_path / "whole"))
    await transfer(look_at([root]), Inbox(into), whole.carried - 40)
    touched(root / "sub" / "two", b"other")
    (root / "empty").unlink()
    make_tree(root, {"new": 10})
    received, errors, wire = await transfer(look_at([root]), Inbox(into))
    assert not errors
    assert received is not None
    assert content(into / "tree") == content(root)
    assert wire.carried < whole.carried - TREE["one.bin"]


@pytest.mark.parametrize("how", ["rewritten", "longer", "shorter", "replaced", "gone", "a link"])
async def test_a_file_that_changed_since_it_was_offered_ends_it(tmp_path: Path, how: str) -> None:
    root, into = source(tmp_path), tmp_path / "into"
    outgoing = look_at([root])
    path, data = root / "one.bin", (root / "one.bin").read_bytes()
    if how == "replaced":
        other = root / "other"
        other.write_bytes(data)
        os.utime(other, ns=(path.stat().st_mtime_ns,) * 2)
        other.replace(path)
    elif how in ("gone", "a link"):
        path.rename(tmp_path / "moved")
        if how == "a link":
            path.symlink_to(tmp_path / "moved")
    else:
        touched(path, {"rewritten": data[::-1], "longer": data + b"x", "shorter": data[:-1]}[how])
    received, errors, _ = await transfer(outgoing, Inbox(into))
    assert received is None
    assert all(isinstance(each, TransferFailed) and each.reason == Reason.CHANGED for each in errors), errors
    assert len(errors) == 2
    assert os.listdir(into) == [AREA]
    received, errors, _ = await transfer(look_at([root]), Inbox(into))
    assert not errors
    assert received is not None


async def test_a_file_that_changes_while_it_is_read_ends_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The part that has arrived is thrown away."""
    root, into = make_tree(tmp_path / "tree", {"one": 40 * SMALL_BLOCK}), tmp_path / "into"
    outgoing, read = look_at([root]), os.read
    blocks = 0

    def reading(descriptor: int, size: int) -> bytes:
        nonlocal blocks
        data = read(descriptor, size)
        blocks += size == SMALL_BLOCK
        if blocks == 40:
            touched(root / "one", b"?" * 40 * SMALL_BLOCK)
        return data

    monkeypatch.setattr("warpgate_trio.files.sources.os.read", reading)
    received, errors, _ = await transfer(outgoing, Inbox(into))
    assert received is None
    assert {each.reason for each in errors if isinstance(each, TransferFailed)} == {Reason.CHANGED}
    assert not list(into.rglob("one"))


# --- what the receiver refuses ---


@pytest.mark.parametrize(
    ("options", "reason"),
    [({"max_size": 100}, Reason.TOO_LARGE), ({"max_files": 3}, Reason.TOO_MANY), ({}, Reason.NAME)],
)
async def test_what_is_refused_is_refused_before_a_byte(tmp_path: Path, options: Any, reason: Reason) -> None:
    root, into = source(tmp_path), tmp_path / "into"
    if reason is Reason.NAME:
        root = root.rename(root.with_name(".tree"))
    received, errors, wire = await transfer(look_at([root]), Inbox(into, **options))
    assert received is None
    assert [each.reason for each in errors if isinstance(each, TransferRefused)] == [reason] * 2
    assert wire.carried < BYTES
    assert not list(into.rglob("*.bin"))


async def test_hidden_names_are_taken_where_that_is_wanted(tmp_path: Path) -> None:
    root = source(tmp_path)
    root = root.rename(root.with_name(".tree"))
    _, errors, _ = await transfer(look_at([root]), Inbox(tmp_path / "into", hidden=True))
    assert not errors


async def test_a_disk_that_is_too_small_is_said_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root, into = source(tmp_path), tmp_path / "into"
    monkeypatch.setattr(folder_module.Folder, "free_space", lambda _: staging_module.RESERVE + BYTES - 1)
    _, errors, wire = await transfer(look_at([root]), Inbox(into))
    assert wrong(errors, TransferRefused).reason == Reason.NO_SPACE
    assert wire.carried < BYTES


@pytest.fixture
def full_after(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The bytes that the disk still takes, in a list of one, which a test may change."""
    room: list[int] = [1 << 60]
    writev = os.writev

    def writing(descriptor: int, pieces: Sequence[memoryview]) -> int:
        size = sum(map(len, pieces))
        if size > room[0]:
            if room[0] <= 0:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            size = os.write(descriptor, b"".join(pieces)[: room[0]])
        else:
            size = writev(descriptor, pieces)
        room[0] -= size
        if room[0] <= 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return size

    monkeypatch.setattr("warpgate_trio.files.area.os.writev", writing)
    return room


async def test_a_disk_that_becomes_full_costs_nothing_that_has_come(tmp_path: Path, full_after: list[int]) -> None:
    root, into = source(tmp_path), tmp_path / "into"
    full_after[0] = 4 * SMALL_BLOCK + 100
    received, errors, _ = await transfer(look_at([root]), Inbox(into))
    assert received is None
    ours, theirs = sorted((each for each in errors if isinstance(each, TransferError)), key=lambda each: each.by_peer)
    assert ours.reason == theirs.reason == Reason.NO_SPACE
    assert "full" in str(ours)
    full_after[0] = 1 << 60
    received, errors, _ = await transfer(look_at([root]), Inbox(into))
    assert not errors
    assert received is not None
    assert received.there >= 3 * SMALL_BLOCK
    assert content(into / "tree") == content(root)


async def test_a_folder_that_may_not_be_written_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error is made up, since for root no mode of a folder forbids writing."""

    def mkdir(*_: Any, **__: Any) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    root, into = source(tmp_path), tmp_path / "into"
    into.mkdir()
    monkeypatch.setattr("warpgate_trio.files.folder.os.mkdir", mkdir)
    _, errors, _ = await transfer(look_at([root]), Inbox(into))
    assert wrong(errors, TransferRefused).reason == Reason.CANNOT_WRITE
    assert "Permission denied" in str(wrong(errors, TransferRefused))


async def test_a_folder_that_is_a_file(tmp_path: Path) -> None:
    root, into = source(tmp_path), tmp_path / "into"
    into.write_bytes(b"")
    _, errors, _ = await transfer(look_at([root]), Inbox(into))
    assert wrong(errors, TransferRefused).reason == Reason.CANNOT_WRITE


async def test_two_at_once_do_not_write_the_same(tmp_path: Path) -> None:
    """A sender's second transfer is refused as busy."""
    root, into = source(tmp_path), tmp_path / "into"
    results: list[Any] = []
    async with trio.open_nursery() as nursery:

        async def one() -> None:
            results.append(await transfer(look_at([root]), Inbox(into)))

        nursery.start_soon(one)
        nursery.start_soon(one)
    for received, errors, _ in results:
        if received is None:
            assert wrong(errors, TransferRefused).reason == Reason.BUSY
    assert any(received is not None for received, _, _ in results)
    assert content(into / "tree") == content(root)


@pytest.mark.parametrize("step", ["mkdir", "try_names", "judge_names", "remove_abandoned", "lock_room"])
async def test_an_area_that_others_leave_and_remove_meanwhile_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    """The last transfer that leaves the area removes it, at whatever step of its work another one is there."""
    root, into, left = source(tmp_path), tmp_path / "into", 3
    mkdir, work = os.mkdir, getattr(staging_module, step, None)

    def leave() -> None:
        nonlocal left
        if left:
            left -= 1
            shutil.rmtree(into / AREA)

    def made(path: Any, *args: Any, **options: Any) -> None:
        """Makes a folder; if it is the area, that is removed before it can be opened."""
        mkdir(path, *args, **options)
        if path == AREA:
            leave()

    def late(*args: Any) -> Any:
        leave()
        assert work is not None
        return work(*args)

    if work is None:
        monkeypatch.setattr("warpgate_trio.files.folder.os.mkdir", made)
    else:
        monkeypatch.setattr(staging_module, step, late)
    received, errors, _ = await transfer(look_at([root]), Inbox(into))
    assert not errors
    assert received is not None
    assert left == 0
    assert content(into / "tree") == content(root)
    assert os.listdir(into) == ["tree"]


async def test_an_area_that_is_always_removed_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root, into, tries = source(tmp_path), tmp_path / "into", 0

    def removed(*_: Any) -> None:
        nonlocal tries
        tries += 1
        shutil.rmtree(into / AREA)

    monkeypatch.setattr(staging_module, "remove_abandoned", removed)
    _, errors, _ = await transfer(look_at([root]), Inbox(into))
    assert wrong(errors, TransferRefused).reason == Reason.CANNOT_WRITE
    assert tries == staging_module.MAX_ENTERED


@pytest.mark.parametrize("made_anew", [False, True])
def test_a_lock_that_was_removed_is_no_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, made_anew: bool) -> None:
    """A process that opened the lock's file before its owner removed it holds a lock that nobody else can find."""
    opened = folder_module.Folder.open_file

    def and_removed(self: folder_module.Folder, name: str, flags: int, mode: int = 0o666) -> int:
        descriptor = opened(self, name, flags, mode)
        os.unlink(tmp_path / name)
        if made_anew:
            (tmp_path / name).touch()
        return descriptor

    monkeypatch.setattr(folder_module.Folder, "open_file", and_removed)
    with folder_module.Folder.open(tmp_path) as folder, pytest.raises(FileNotFoundError):
        lock_room(folder)


async def test_a_peer_that_speaks_something_else(tmp_path: Path) -> None:
    ours, theirs, _ = wired()
    await ours.send_all(b"SSH-2.0-OpenSSH_9.2\r\n")
    with pytest.raises(RemoteProtocolError, match="does not run a file transfer"):
        await receive_files(theirs, into=tmp_path)


# --- what is rare ---


async def test_a_file_system_without_hard_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty file reserves the name first, so that nothing is overwritten there either."""

    def link(*_: Any, **__: Any) -> None:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr("warpgate_trio.files.folder.os.link", link)
    root, into = source(tmp_path), make_tree(tmp_path / "into", {"one.bin": 3})
    _, errors, _ = await transfer(look_at([root / "one.bin"]), Inbox(into))
    assert not errors
    assert content(into)["one (1).bin"] == (root / "one.bin").read_bytes()
    assert sorted(os.listdir(into)) == ["one (1).bin", "one.bin"]


async def test_a_system_without_descriptors_of_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Breaks, symbolic links in the way and names that are taken are handled as with such descriptors."""
    monkeypatch.setattr(folder_module, "_BY_DESCRIPTOR", False)
    root, into = source(tmp_path), make_tree(tmp_path / "into", {"tree/mine": 1})
    await transfer(look_at([root]), Inbox(into), 7 * SMALL_BLOCK)
    received, errors, _ = await transfer(look_at([root]), Inbox(into))
    assert not errors
    assert received is not None
    assert received.there >= 5 * SMALL_BLOCK
    assert content(into / "tree (1)") == content(root)
    (into / AREA).symlink_to(tmp_path)
    _, errors, _ = await transfer(look_at([root]), Inbox(into))
    assert wrong(errors, TransferRefused).reason == Reason.CANNOT_WRITE


@pytest.mark.parametrize("year", [1601, 1822, 1969, 2117, 2200])
async def test_a_time_that_no_offer_has_ends_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, year: int
) -> None:
    """The nearest possible time is offered; whether the file has changed is judged by its real time."""
    modified = (year - 1970) * 365_242_190 * 86_400_000  # not every file system can store this

    class Status:
        """The status of a file, with another modification time."""

        def __init__(self, status: os.stat_result) -> None:
            self._status = status
            self.st_mtime_ns = modified

        def __getattr__(self, name: str) -> Any:
            return getattr(self._status, name)

    add, identity = sources._Scan.add, sources._identity

    def add_old(self: Any, path: str, name: str, status: Any, **options: bool) -> None:
        add(self, path, name, Status(status) if stat.S_ISREG(status.st_mode) else status, **options)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(sources._Scan, "add", add_old)
        patch.setattr(sources, "_identity", lambda status: (*identity(status)[:3], modified))
        root, into = source(tmp_path), tmp_path / "into"
        outgoing = look_at([root])
        received, errors, _ = await transfer(outgoing, Inbox(into))
        modified += 1
        again = look_at([root])
    assert not errors
    assert received is not None
    assert content(into / "tree") == content(root)
    assert {each.identity[3] for each in outgoing.sources if each is not None} == {modified - 1}
    nearest = min(max(modified - 1, -FURTHEST_TIME), FURTHEST_TIME)
    assert {each.modified for each in outgoing.entries if not each.is_folder} == {nearest}
    assert not set(outgoing.entries[1:]) & {each for each in again.entries if not each.is_folder}


@pytest.mark.parametrize("by", ["descriptor", "name"])
@pytest.mark.parametrize("modified", [-FURTHEST_TIME, -1, FURTHEST_TIME])
@pytest.mark.parametrize("problem", [None, OSError(errno.EINVAL, "no such year"), OverflowError("no such year")])
def test_any_time_that_is_offered_can_be_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, by: str, modified: int, problem: Exception | None
) -> None:
    utime = os.utime

    def none(*args: Any, **options: Any) -> None:
        if problem is not None:
            raise problem
        utime(*args, **options)

    monkeypatch.setattr("warpgate_trio.files.tree.os.utime", none)
    monkeypatch.setattr(os, "supports_fd", os.supports_fd | ({none} if by == "descriptor" else set()))
    with Tree(folder_module.Folder.open(tmp_path)) as tree:
        tree.finish(Entry("a", EntryKind.FILE, 3, modified), 0)
    assert (tmp_path / "a").stat().st_size == 3


async def test_a_system_that_sets_no_times_by_descriptors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Times are then set by name, as on Windows."""
    monkeypatch.setattr(os, "supports_fd", os.supports_fd - {os.utime})
    monkeypatch.setattr(folder_module, "_BY_DESCRIPTOR", False)
    root, into = source(tmp_path), tmp_path / "into"
    os.utime(root / "sub" / "two", ns=(1, 1_234_567_890_123_456_700))
    _, errors, _ = await transfer(look_at([root]), Inbox(into))
    assert not errors
    assert (into / "tree" / "sub" / "two").stat().st_mtime_ns == 1_234_567_890_123_456_700


@pytest.mark.parametrize(
    ("destination", "name"),
    [
        (Destination(folds_case=True), "ONE.bin"),
        (Destination(windows=True), "aux.txt"),
        (Destination(windows=True), "file:stream"),
    ],
)
async def test_names_are_judged_as_the_file_system_has_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, destination: Destination, name: str
) -> None:
    root, into = source(tmp_path), tmp_path / "into"
    (root / name).write_bytes(b"x")
    _, errors, _ = await transfer(look_at([root]), Inbox(into))
    assert not errors
    monkeypatch.setattr(staging_module, "try_names", lambda *_: destination)
    _, errors, _ = await transfer(look_at([root]), Inbox(into))
    assert wrong(errors, TransferRefused).reason == Reason.NAME
    assert os.listdir(into) == ["tree", AREA] or sorted(os.listdir(into)) == [AREA, "tree"]


def test_what_a_file_system_does_is_tried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with folder_module.Folder.open(tmp_path) as folder:
        assert try_names(folder, False) == Destination()
        assert not folder.names()
        kind, opened = folder_module.Folder.kind, folder_module.Folder.open_file

        def any_kind(self: folder_module.Folder, name: str) -> int | None:
            return stat.S_IFREG if "try-" in name.lower() and not name.islower() else kind(self, name)

        def no_colon(self: folder_module.Folder, name: str, flags: int, mode: int = 0o666) -> int:
            if ":" in name:
                raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
            return opened(self, name, flags, mode)

        monkeypatch.setattr(folder_module.Folder, "kind", any_kind)
        monkeypatch.setattr(folder_module.Folder, "open_file", no_colon)
        found = try_names(folder, True)
        assert (found.windows, found.folds_case, found.hidden) == (True, True, True)


async def test_a_damaged_block_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Failing memory may be the cause.  The block ends the Pipe, and the next Pipe goes on from before that block."""
    root, into = source(tmp_path), tmp_path / "into"
    old, count = transfers.End.send_all, 0

    async def send_all(self: Any, data: bytes) -> None:
        nonlocal count
        count += len(data)
        at = 6 * SMALL_BLOCK - (count - len(data))
        if self._bounded and 0 <= at < len(data) and len(data) > 200:
            data = data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]
        await old(self, data)

    with monkeypatch.context() as patch:
        patch.setattr(transfers.End, "send_all", send_all)
        received, errors, _ = await transfer(look_at([root]), Inbox(into))
    assert received is None
    assert {each.reason for each in errors if isinstance(each, TransferFailed)} == {Reason.DAMAGED}
    received, errors, _ = await transfer(look_at([root]), Inbox(into))
    assert not errors
    assert received is not None
    assert content(into / "tree") == content(root)


@pytest.fixture(params=["posix", "windows"])
def system(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """This system, or one like Windows: no locks, and a file that is open cannot be removed."""
    if request.param == "windows":
        monkeypatch.setattr(folder_module, "_BY_DESCRIPTOR", False)
        monkeypatch.setattr(area_module, "_OPEN_FILES_STAY", True)
        monkeypatch.setitem(sys.modules, "fcntl", None)
        opened, unlink, locks = folder_module.Folder.open_file, os.unlink, set[int]()

        def open_file(self: folder_module.Folder, name: str, flags: int, mode: int = 0o666) -> int:
            descriptor = opened(self, name, flags, mode)
            if name == "lock":
                locks.add(descriptor)
            return descriptor

        def is_open(descriptor: int, path: str) -> bool:
            try:
                return os.path.samestat(os.fstat(descriptor), os.stat(path))
            except OSError:
                return False

        def remove(path: str, **_: Any) -> None:
            if any(is_open(each, path) for each in locks):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)
            unlink(path)

        monkeypatch.setattr(folder_module.Folder, "open_file", open_file)
        monkeypatch.setattr("warpgate_trio.files.folder.os.unlink", remove)
    return str(request.param)


def grow_old(*paths: Path) -> None:
    for path in paths:
        os.utime(path, (0, 0))


@pytest.mark.usefixtures("system")
async def test_nothing_is_left_of_what_has_come(tmp_path: Path) -> None:
    root, into = source(tmp_path), tmp_path / "into"
    _, errors, _ = await transfer(look_at([root]), Inbox(into))
    assert not errors
    assert os.listdir(into) == ["tree"]


@pytest.mark.usefixtures("system")
@pytest.mark.parametrize("without", ["nothing", "journal", "offer", "lock"])
async def test_what_nobody_goes_on_with_is_removed(tmp_path: Path, without: str) -> None:
    """This includes transfers that were interrupted while their room was being made or removed."""
    root, into = source(tmp_path), tmp_path / "into"
    for seed in (MALLORY, ALICE):
        await transfer(look_at([root]), Inbox(into), 6 * SMALL_BLOCK, sender=peer_id_from_key(seed.public_key))
    rooms = list((into / AREA).iterdir())
    assert len(rooms) == 2
    for room in rooms:
        (room / without).unlink(missing_ok=True)
        grow_old(*room.iterdir(), room)
    (into / AREA / "try-1234-a").touch()
    grow_old(into / AREA / "try-1234-a")
    await transfer(look_at([root / "one.bin"]), Inbox(into))
    assert not (into / AREA).exists()


@pytest.mark.usefixtures("system")
@pytest.mark.parametrize("without", ["nothing", "journal"])
async def test_an_old_room_that_somebody_has_just_entered_stays(tmp_path: Path, without: str) -> None:
    root, into = source(tmp_path), tmp_path / "into"
    await transfer(look_at([root]), Inbox(into), 6 * SMALL_BLOCK)
    (room,) = (into / AREA).iterdir()
    (room / without).unlink(missing_ok=True)
    grow_old(*room.iterdir(), room)
    before = content(room)
    with folder_module.Folder.open(room) as folder:
        lock = lock_room(folder)
        await transfer(look_at([root / "one.bin"]), Inbox(into), sender=peer_id_from_key(MALLORY.public_key))
        os.close(lock)
    assert content(room) == before


@pytest.mark.slow("twenty-five rows of transfers")
@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    files=st.dictionaries(st.sampled_from(["a", "b", "d/c", "d/e/f"]), st.integers(0, 4 * SMALL_BLOCK + 1), min_size=1),
    cuts=st.lists(st.integers(1, 12 * SMALL_BLOCK), max_size=6),
    again=st.lists(st.booleans(), min_size=6, max_size=6),
)
def test_whatever_is_cut_wherever_comes_as_it_was(
    tmp_path_factory: pytest.TempPathFactory, files: dict[str, int], cuts: list[int], again: list[bool]
) -> None:
    """Bytes and names are those of the sender, and a break costs at most a block."""
    place = tmp_path_factory.mktemp("cuts")
    root, into = make_tree(place / "tree", files), place / "into"

    async def run() -> None:
        outgoing, inbox = look_at([root]), Inbox(into)
        _, _, wire = await transfer(outgoing, Inbox(place / "whole"))
        overhead, carried, breaks, received = wire.carried - outgoing.size, 0, 0, None
        for cut, new in zip([*cuts, None], [*again, False], strict=False):
            inbox = Inbox(into) if new else inbox
            received, errors, wire = await transfer(outgoing, inbox, cut)
            carried += wire.carried
            if received is not None:
                break
            assert errors
            breaks += 1
        if received is None:
            received, errors, wire = await transfer(outgoing, inbox)
            assert not errors
            carried += wire.carried
        assert content(into / "tree") == content(root)
        assert carried <= outgoing.size + overhead + breaks * (SMALL_BLOCK + overhead)

    trio.run(run)
