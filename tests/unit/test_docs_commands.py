"""Every command line in the documentation can be parsed, and those that need no network do what they say."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from importlib.util import find_spec

import click
import pytest

from tests.documented import PAGES, ROOT
from tests.identities import ALICE
from tests.nodes import address_of
from warpgate_trio.cli.group import call, cli
from warpgate_trio.cli.options import Settings

STANDS_FOR = {"wg1…": str(address_of(ALICE, port=1)), "PEER_ID": ALICE.peer_id}

IN_BLOCK = re.compile(r"^ {4,}((?:warpgate-trio|python|make|sudo make) [^\n]*)$", re.MULTILINE)
IN_LINE = re.compile(r"`((?:warpgate-trio|python|make) [^`\n]+)`")


def shown() -> Iterator[tuple[str, str]]:
    """Page and command line of each command, without comments and redirections; patterns are left out."""
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for line in [*IN_BLOCK.findall(text), *IN_LINE.findall(text)]:
            command = re.split(r"\s+#|\s+[<>]", line)[0].removeprefix("sudo ").strip()
            pattern = "…" in command.replace("wg1…", "") or command.endswith(".NAME")  # `warpgate-trio … --json`
            if not pattern and not re.search(
                r" v\d\b", command
            ):  # a signature's context, such as `warpgate-trio address v1`
                yield page.relative_to(ROOT).as_posix(), command


SHOWN = sorted(set(shown()))
SYNOPSES = [each for each in SHOWN if "[" in each[1]]
COMMANDS = [each for each in SHOWN if each[1].startswith("warpgate-trio ") and each not in SYNOPSES]


def words_of(command: str) -> list[str]:
    return [STANDS_FOR.get(word, word) for word in shlex.split(command)[1:]]


def command_of(words: list[str]) -> click.Command:
    found = cli.get_command(click.Context(cli), words[0])
    assert found is not None, f"there is no command {words[0]!r}"
    return found


def test_the_documentation_shows_commands() -> None:
    assert {command.split()[1] for _, command in COMMANDS} >= {"serve", "listen", "connect", "netcheck", "simulate"}
    assert {page for page, _ in COMMANDS} >= {"README.md", "docs/command_line.md"}


@pytest.mark.parametrize(("page", "line"), COMMANDS)
def test_a_command_line_is_understood(page: str, line: str) -> None:
    words = words_of(line)
    if words == ["--version"]:
        return
    command = command_of(words)
    if words[1:] or not any(parameter.required for parameter in command.params):  # else it is only the command's name
        command.make_context(words[0], words[1:], obj=Settings()).close()


@pytest.mark.slow("whole simulations")
@pytest.mark.usefixtures("own_logging")
@pytest.mark.parametrize("command", sorted({command for _, command in COMMANDS if " simulate " in command}))
def test_a_simulation_runs(command: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert call(words_of(command)) == 0, capfd.readouterr().err


@pytest.mark.parametrize(("page", "command"), SYNOPSES)
def test_a_synopsis_names_what_there_is(page: str, command: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    whole = re.split(r"\n {4}warpgate-trio|\n\n", text.split(command, 1)[1])[0]  # its continuation lines
    found = command_of(command.split()[1:])
    parameters = [*found.params]
    for each in found.commands.values() if isinstance(found, click.Group) else ():
        parameters += each.params
    known = {option for each in parameters for option in (*each.opts, *each.secondary_opts)}
    assert set(re.findall(r"--[a-z0-9-]+", command + whole)) <= known


@pytest.mark.parametrize(("page", "command"), [each for each in SHOWN if not each[1].startswith("warpgate-trio ")])
def test_a_target_or_a_file_is_there(page: str, command: str) -> None:
    program, *words = shlex.split(command)
    if program == "make":
        targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
        assert {word for word in words if "=" not in word} <= set(targets)
    elif words[0] == "-m":
        assert find_spec(words[1]) is not None
    else:
        assert (ROOT / words[0]).exists()
