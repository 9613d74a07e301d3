"""`send` and `receive` as processes: files that arrive, breaks of every kind, and what both sides report."""

from __future__ import annotations

import os
import signal
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from tests.end_to_end.conftest import Server
from tests.end_to_end.processes import Command, on_terminal, ran, started
from tests.ports import free_port
from tests.transfers import content, make_tree
from tests.waiting import wait_until
from warpgate_trio.files.area import AREA

pytestmark = pytest.mark.slow("starts processes; each imports Trio and cryptography for 0.4 s")

MIB = 1 << 20
TREE = {"large.bin": 24 * MIB + 5, "empty": 0, "sub/small": 1000, "sub/none/": 0}


@asynccontextmanager
async def receiving(server: Server, into: Path, *words: str | Path) -> AsyncGenerator[tuple[Command, str]]:
    """A `receive`, and its address."""
    config = ("--config", server.config, "--into", into, "--json")
    keys = () if "--key-file" in words else ("--ephemeral",)
    allow = () if "--allow" in words else ("--allow-any",)
    async with started("receive", *config, *keys, *allow, *words) as receive:
        yield receive, (await receive.event())["address"]


def sending(server: Server, key: Path, address: str, *paths: str | Path) -> Sequence[str | Path]:
    """The words of a `send`."""
    return ("send", *paths, "--to", address, "--config", server.config, "--key-file", key, "--json")


async def last_event(command: Command) -> dict[str, object]:
    """The last JSON line of a command that has ended."""
    return await command.event(bytes(command.out).count(b"\n") - 1)


async def wait_bytes(folder: Path, size: int) -> None:
    """Wait until a folder has `size` bytes of partial files."""
    await wait_until(lambda: sum(path.stat().st_size for path in folder.rglob("*.bin")) >= size)


async def test_files_and_folders_arrive(server: Server, tmp_path: Path) -> None:
    """The sender is allowed by its id and learns what was left out; a second transfer gets new names."""
    root, into, key = make_tree(tmp_path / "tree", TREE), tmp_path / "into", tmp_path / "key"
    (root / "link").symlink_to("/etc/passwd")
    shown = await ran("id", "--key-file", key, "--json")
    peer = (await shown.event())["peer"]
    async with receiving(server, into, "--allow", peer, "--keep") as (receive, address):
        for number, name in enumerate(("tree", "tree (1)")):
            sent = await ran(*sending(server, key, address, root))
            assert sent.process.returncode == 0, sent.stderr_text
            assert f"left out: {root / 'link'} is a link" in sent.stderr_text
            event = await last_event(sent)
            assert (event["event"], event["files"], event["size"]) == ("transferred", 3, 24 * MIB + 1005)
            assert event["skipped"] == [str(root / "link")]
            await receive.wait_out(b'"transferred"' if not number else b"tree (1)")
            (root / "link").unlink()
            assert content(into / name) == content(root)
            (root / "link").symlink_to("/etc/passwd")
        stranger = await ran(*sending(server, tmp_path / "other", address, root))
        assert stranger.process.returncode == 3
        receive.process.send_signal(signal.SIGTERM)
        assert await receive.code() == 0
    assert sorted(os.listdir(into)) == ["tree", "tree (1)"]


@pytest.mark.parametrize("who", ["sender", "receiver", "both"])
async def test_who_was_killed_goes_on_where_it_was(server: Server, tmp_path: Path, who: str) -> None:
    """After SIGKILL in the middle, only the last block is sent again."""
    root, into, key = make_tree(tmp_path / "tree", TREE), tmp_path / "into", tmp_path / "key"
    words = ("--key-file", tmp_path / "theirs", "--port", str(free_port()))
    async with receiving(server, into, *words) as (receive, address):
        async with started(*sending(server, key, address, root)) as send:
            await wait_bytes(into, 4 * MIB)
            if who != "receiver":
                send.process.kill()
            if who == "sender":
                await send.process.wait()
                again = await ran(*sending(server, key, address, root))
                assert again.process.returncode == 0, again.stderr_text
                assert await receive.code() == 0
            else:
                receive.process.kill()
                await receive.process.wait()
                noted = sum(path.stat().st_size for path in into.rglob("*.bin"))
                async with receiving(server, into, *words) as (second, address):
                    if who == "both":
                        again = await ran(*sending(server, key, address, root))
                    else:
                        again = send
                    assert await again.code() == 0, again.stderr_text
                    assert await second.code() == 0, second.stderr_text
                    there = (await last_event(second))["there"]
                    assert isinstance(there, int)
                    assert there >= min(noted, 24 * MIB) - 2 * MIB
            there = (await last_event(again))["there"]
            assert isinstance(there, int)
            assert there >= 2 * MIB
    assert content(into / "tree") == content(root)
    assert os.listdir(into) == ["tree"]


async def test_what_is_interrupted_says_how_to_go_on(server: Server, tmp_path: Path) -> None:
    root, into, key = make_tree(tmp_path / "tree", TREE), tmp_path / "into", tmp_path / "key"
    async with receiving(server, into) as (receive, address):
        async with started(*sending(server, key, address, root)) as send:
            await wait_bytes(into, 2 * MIB)
            send.interrupt()
            assert await send.code() == 130
            assert "run the same command again to resume" in send.stderr_text
        await receive.wait_err("the data so far is kept")
        receive.interrupt()
        assert await receive.code() == 130
        assert "is kept" in receive.stderr_text.splitlines()[-2] + receive.stderr_text.splitlines()[-1]
    assert os.listdir(into) == [AREA]


async def test_what_is_not_taken(server: Server, tmp_path: Path) -> None:
    """Files are refused before any byte is sent, with the reason on both sides, and `receive` goes on."""
    root, into, key = make_tree(tmp_path / ".tree", {"x": 2000}), tmp_path / "into", tmp_path / "key"
    async with receiving(server, into, "--max-size", "1kB") as (receive, address):
        large = await ran(*sending(server, key, address, root / "x"))
        assert large.process.returncode == 3
        assert "too large: the offer has 2,000 bytes; at most 1,000 are accepted" in large.stderr_text
        await receive.wait_err(": the offer has 2,000 bytes; at most 1,000 are accepted")
        (root / "x").write_bytes(b"small")
        hidden = await ran(*sending(server, key, address, root))
        assert hidden.process.returncode == 3
        assert "'.tree' is hidden" in hidden.stderr_text
        good = await ran(*sending(server, key, address, root / "x"))
        assert good.process.returncode == 0
        assert await receive.code() == 0
    assert content(into) == {"x": b"small"}


async def test_a_peer_that_does_not_receive(server: Server, tmp_path: Path) -> None:
    root, key = make_tree(tmp_path / "tree", {"x": 1}), tmp_path / "key"
    words = ("--config", server.config, "--ephemeral", "--allow-any", "--echo", "--json")
    async with started("listen", *words) as listen:
        sent = await ran(*sending(server, key, (await listen.event())["address"], root))
        assert sent.process.returncode == 4
        assert "from the wrong side" in sent.stderr_text


async def test_what_cannot_be_sent_is_said_before_anybody_is_called(server: Server, tmp_path: Path) -> None:
    address = (await ran_listen_address(server)).strip()
    for paths, why in ((["missing"], "No such file"), (["/dev/null"], "neither a file nor a folder")):
        sent = await ran(*sending(server, tmp_path / "key", address, *paths))
        assert sent.process.returncode == 2
        assert why in sent.stderr_text
        assert "calling" not in sent.stderr_text


async def ran_listen_address(server: Server) -> str:
    """The address of a `listen` that has ended."""
    async with started("listen", "--config", server.config, "--ephemeral", "--allow-any", "--json") as listen:
        address: str = (await listen.event())["address"]
        return address


async def test_a_terminal_shows_how_far_it_is(server: Server, tmp_path: Path) -> None:
    root, into, key = make_tree(tmp_path / "tree", {"large.bin": 48 * MIB}), tmp_path / "into", tmp_path / "key"
    async with receiving(server, into) as (receive, address):
        words = [each for each in sending(server, key, address, root) if each != "--json"]
        async with on_terminal(*words) as terminal:
            assert await terminal.command.code() == 0
        assert await receive.code() == 0
    assert "large.bin" in terminal.text
    assert "MB/s" in terminal.text
    assert "sent one file to" in terminal.text
