"""The command line in one process: options, errors and exit codes of commands that end before a node is opened."""

from __future__ import annotations

import errno
import json
import os
import socket
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import click
import pytest
from click.shell_completion import ShellComplete

from tests.end_to_end.processes import PROGRAM, checked_event, environment
from tests.identities import ALICE, BOB, CAROL
from warpgate_trio import node
from warpgate_trio.address import PeerAddress
from warpgate_trio.cli.group import call, cli
from warpgate_trio.cli.options import NodeOptions, Settings
from warpgate_trio.cli.parameters import PHASES as PHASES_OF_OPTION
from warpgate_trio.cli.parameters import ROUTES, Size, read_route
from warpgate_trio.combos import RouteType
from warpgate_trio.config import NodeConfig
from warpgate_trio.contacts import Contacts, How
from warpgate_trio.errors import ConfigError
from warpgate_trio.identity import Identity
from warpgate_trio.plugin import PHASES

Capture = pytest.CaptureFixture[str]

NO_HOSTS = ("a..b", ".a", "a" * 64, "ä" * 60)
"""Names for which Python raises UnicodeError when they are looked up."""

pytestmark = pytest.mark.usefixtures("own_logging")


def issue(identity: Identity, *, expires_at: int = 200_000_000_000) -> str:
    return str(
        PeerAddress.issue(identity, seq=1, issued_at=1, expires_at=expires_at, host_salt=bytes(8), host_id=bytes(16))
    )


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["frobnicate"], "no such command 'frobnicate'"),
        (["lisen"], "the nearest is 'listen'"),
        (["listen", "--allow-any", "--allow", "x"], "exclude each other"),
        (["listen", "--allow-any", "--code"], "exclude each other"),
        (["listen", "--allow-any", "--save", "x"], "--save needs --code"),
        (["listen"], "name the peers to let in"),
        (["receive", "--allow-any", "--allow-contacts"], "exclude each other"),
        (["receive", "--allow-any", "--code", "7-guitar-orbit"], "exclude each other"),
        (["receive", "--allow-contacts", "--save", "x"], "--save needs --code"),
        (["receive"], "name the peers to let in"),
        (
            ["listen", "--echo"],
            "--allow PEER_ID, which `warpgate-trio id` prints over there, or --allow-any;",
        ),
        (["listen", "--allow", "x"], "--allow x: there is no contact 'x'"),
        (["listen", "--allow-any", "--ephemeral", "--key-file", "f"], "exclude each other"),
        (["listen", "--allow-any", "--port", "70000"], "70000"),
        (["connect"], "PEER"),
        (["connect", "wg1", "--af", "5"], "'5'"),
        (
            ["connect", "wg1", "--route", "sideways"],
            "there are nic, ext, loopback (or NIC_BIND, EXT_BIND, LOOPBACK_BIND)",
        ),
        (["connect", "wg1", "--phases", "direct,brute"], "'brute' is no phase; there are direct, punch, spray, relay"),
        (["connect", "wg1", "--phases", ","], "at least one of"),
        (["connect", "wg1", "--plugin", "p", "--phases", "direct"], "give one of them"),
        (["connect", "wg1", "--timeout", "0"], "--timeout"),
        (["connect", "wg1", "--dead-after", "-1"], "--dead-after"),
        (
            ["listen", "--allow-any", "--dead-after", "nan"],
            "paths.dead_after = nan: expected a number of seconds, or 0",
        ),
        (["connect", "wg1", "--echo-test", "0"], "'0': at least one byte"),
        (["connect", "wg1", "--echo-test", "10 apples"], "'10 apples' is no size; 1000000, 10MB or 16MiB are"),
        (["connect", "wg1", "--echo-test", "-1"], "'-1' is no size"),
        (["netcheck", "--timeout", "0"], "--timeout"),
        (["netcheck", "--config", "/none/config.toml"], "/none/config.toml"),
        (["serve", "--tls-cert", "f"], "go together"),
        (["serve", "--ntp-port", "1123", "--no-ntp"], "exclude each other"),
        (["serve", "--tls-cert", "/none", "--tls-key", "/none"], "No such file"),
        (["serve", "--no-stun", "--stun-port", "0"], "--no-stun goes with neither"),
        (["serve", "--second-host", "127.0.0.2"], "goes together with --host"),
        (["serve", "--trust-proxy", "10.0.0.0/8"], "--trust-proxy goes together with --public-url"),
        (["serve", "--proxy-header", "proxy"], "--proxy-header goes together with --trust-proxy"),
        (["serve", "--trust-proxy", "10.0.0.0/99", "--public-url", "wss://a"], "--trust-proxy: '10.0.0.0/99' does not"),
        (["serve", "--public-url", "https://a"], "--public-url 'https://a': expected one of the schemes"),
        (["serve", "--public-url", "mqtt://a"], "--public-url mqtt://a: expected ws, wss, stun, turn, turns, ntp"),
        (["serve", "--public-url", "wss://me:secret@a"], "--public-url wss://me:***@a: expected"),
        (["serve", "--public-url", "wss://a?token=secret"], "--public-url wss://a?token=***: expected"),
        (
            ["serve", "--host", "127.0.0.1", "--port", "0", "--stun-port", "0", "--second-host", "::1"],
            "have to differ, be of one family",
        ),
        (["serve", "--open", "--no-relay"], "--open, --token-file and --no-relay exclude each other"),
        (["serve", "--state-dir", "d", "--token-file", "f"], "--state-dir, where a token is kept"),
        (["serve", "--no-turn", "--relay-ports", "50000-50100"], "are for the TURN server"),
        (["serve", "--no-stun", "--relay-peers", "10.0.0.0/8"], "are for the TURN server"),
        (["serve", "--turns-port", "5349"], "--turns-port goes together with --tls-cert"),
        (["serve", "--external-ip", "relay.example"], "'relay.example' does not appear to be an IPv4 or IPv6 address"),
        (["serve", "--external-ip", "203.0.113.1", "--external-ip", "203.0.113.2"], "--external-ip is given once"),
        (
            ["serve", "--host", "127.0.0.1", "--port", "0", "--external-ip", "2001:db8::1"],
            "no address of IPv6 for relays",
        ),
        (["serve", "--relay-peers", "10.0.0.1/8"], "has host bits set"),
        (["serve", "--relay-ports", "50000"], "'50000': expected two ports, MIN-MAX"),
        (["serve", "--relay-ports", "2-1"], "'2-1': expected two ports, MIN-MAX, of 1 to 65535"),
        (["serve", "--relay-ports", "0-70000"], "of 1 to 65535"),
        (["serve", "--token-file", "/none/token"], "--token-file /none/token: No such file"),
        (["serve", "--state-dir", "/dev/null/state"], "--state-dir /dev/null/state: the token file"),
        (["serve", "--health", "9100"], "'9100': expected HOST:PORT"),
        (["serve", "--health", "127.0.0.1:70000"], "expected HOST:PORT"),
        *((["serve", "--health", f"{host}:80"], "no name of a host") for host in NO_HOSTS),
        *((["serve", "--host", host], "no name of a host") for host in NO_HOSTS),
        (["serve", "--drain", "-1"], "--drain"),
        (["id", "--config", "/none/config.toml"], "/none/config.toml"),
    ],
)
def test_wrong_usage_is_2_and_one_sentence(words: list[str], said: str, capfd: Capture) -> None:
    assert call(words) == 2
    shown = capfd.readouterr()
    assert shown.out == ""
    assert shown.err.startswith("error: ")
    assert shown.err.count("\n") == 1
    assert said in shown.err


def test_help_and_version(capfd: Capture) -> None:
    assert call(["--version"]) == 0
    assert capfd.readouterr().out.startswith("warpgate-trio ")
    assert call(["--help"]) == 0
    shown = capfd.readouterr().out
    for command in ("demo", "serve", "listen", "connect", "ping", "simulate", "id", "config"):
        assert f"  {command} " in shown
        assert call([command, "--help"]) == 0


def test_nothing_is_a_question_for_help(capfd: Capture) -> None:
    assert call([]) == 0
    shown = capfd.readouterr()
    assert shown.err == ""
    assert call(["--help"]) == 0
    assert shown.out == capfd.readouterr().out


@pytest.mark.parametrize(
    ("words", "level"),
    [(["-v", "config"], 1), (["config", "-v"], 1), (["-v", "config", "-v"], 2), (["-vv", "config"], 2)],
)
def test_how_much_is_said_may_be_said_before_the_command(
    words: list[str], level: int, monkeypatch: pytest.MonkeyPatch, capfd: Capture
) -> None:
    seen: list[Settings] = []
    monkeypatch.setattr(Settings, "start_logging", lambda settings: seen.append(settings))
    assert call(words) == 0
    assert seen[0].verbose == level
    assert call(["-q", "--debug", "config"]) == 0
    assert (seen[1].quiet, seen[1].debug) == (True, True)
    capfd.readouterr()


@pytest.mark.slow("starts an interpreter")
def test_it_runs_as_a_module(tmp_path: Path) -> None:
    """Started in another folder, so that the installed package is used."""
    words = [sys.executable, "-m", "warpgate_trio", "--version"]
    done = subprocess.run(words, capture_output=True, text=True, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("warpgate-trio ")


def test_phases_and_routes_are_those_of_the_walk() -> None:
    assert PHASES_OF_OPTION == PHASES
    assert tuple(route.name for route in RouteType) == ROUTES


@pytest.mark.parametrize("given", ["loopback", "LOOPBACK_BIND", "Loopback_Bind"])
def test_a_route_has_two_names(given: str) -> None:
    assert read_route(click.Context(cli), click.Option(["--route"]), given) is RouteType.LOOPBACK_BIND


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("1", 1),
        ("1000000", 10**6),
        ("10MB", 10**7),
        ("3 kB", 3000),
        ("2gb", 2 * 10**9),
        ("16KiB", 16384),
        ("1GiB", 2**30),
    ],
)
def test_sizes(text: str, size: int) -> None:
    assert Size().convert(text, None, None) == size


@pytest.mark.slow("starts interpreters")
def test_a_shell_completes_commands_options_and_plugins() -> None:
    """With the line that docs/command_line.md puts into ~/.bashrc."""

    def completed(*words: str) -> list[str]:
        env = environment(
            {
                "_WARPGATE_TRIO_COMPLETE": "bash_complete",
                "COMP_WORDS": " ".join(words),
                "COMP_CWORD": f"{len(words) - 1}",
            }
        )
        done = subprocess.run([*PROGRAM], capture_output=True, text=True, env=env, check=True)
        assert done.stderr == ""
        return [line.partition(",")[2] for line in done.stdout.splitlines()]

    assert completed("warpgate-trio", "co") == ["connect", "contacts", "config"]
    assert completed("warpgate-trio", "listen", "--allow") == ["--allow", "--allow-contacts", "--allow-any"]
    assert completed("warpgate-trio", "connect", "--plugin", "d") == ["direct_connect"]


@pytest.fixture
def contacts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Contacts:
    """This user's contacts file, with three entries."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    contacts = Contacts.load()
    for name, identity in (("alice", ALICE), ("Alfred", BOB), ("carol", CAROL)):
        contacts.add(name, identity.peer_id, how=How.HAND)
    return contacts


def completions(*words: str) -> list[str]:
    """What the shell offers for the last of these words."""
    found = ShellComplete(cli, {}, "warpgate-trio", "").get_completions(list(words[:-1]), words[-1])
    return sorted(item.value for item in found)


@pytest.mark.parametrize(
    "before",
    [
        ("connect",),
        ("connect", "--save", "x"),
        ("ping",),
        ("send", "file", "--to"),
        ("listen", "--allow"),
        ("receive", "--allow", "carol", "--allow"),
        ("contacts", "remove"),
        ("contacts", "rename"),
    ],
)
def test_names_of_contacts_are_completed(contacts: Contacts, before: tuple[str, ...]) -> None:
    assert completions(*before, "AL") == ["Alfred", "alice"]
    assert completions(*before, "x") == []


def test_names_of_contacts_are_completed_up_to_the_port(contacts: Contacts) -> None:
    """Bash treats a colon as a separate word."""
    assert completions("forward", "22", "al") == ["Alfred:", "alice:"]
    assert completions("forward", "--stdio", "c") == ["carol:"]
    assert completions("forward", "22", "alice:2") == []
    assert completions("forward", "22", "alice", ":", "") == []


@pytest.mark.needs("bash")
@pytest.mark.slow("starts a shell, which starts interpreters")
def test_bash_goes_on_behind_a_colon_and_nowhere_else(contacts: Contacts, tmp_path: Path) -> None:
    """Switched on as docs/command_line.md says; `compopt` is faked, since it works only while a user completes."""
    program = tmp_path / "bin" / "warpgate-trio"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec {" ".join(PROGRAM)} "$@"\n')
    program.chmod(0o755)
    script = """
        eval "$(_WARPGATE_TRIO_COMPLETE=bash_source warpgate-trio)"
        compopt() { echo "compopt $*"; }
        complete -p warpgate-trio
        for line in "forward 22 al" "connect al"; do
            COMPREPLY=() COMP_WORDS=(warpgate-trio $line)
            COMP_CWORD=$((${#COMP_WORDS[@]} - 1))
            _warpgate_trio_completion_colon warpgate-trio
            echo "${COMPREPLY[@]}"
        done
    """
    env = environment({"PATH": f"{program.parent}:{os.environ['PATH']}"})
    done = subprocess.run(["bash", "--norc", "-c", script], capture_output=True, text=True, env=env, check=True)
    assert done.stderr == ""
    assert done.stdout.splitlines() == [
        "complete -o nosort -F _warpgate_trio_completion_colon warpgate-trio",
        "compopt -o nospace",
        "alice: Alfred:",
        "alice Alfred",
    ]


def test_contacts_that_cannot_be_read_complete_nothing(contacts: Contacts) -> None:
    contacts.path.write_text("nonsense")
    assert completions("connect", "a") == []


@pytest.mark.slow("starts an interpreter")
def test_version_and_wrong_usage_import_next_to_nothing() -> None:
    script = (
        "import sys; from warpgate_trio.cli.group import call; call(['--version']); call(['nonsense']);"
        "heavy = {'trio', 'cryptography', 'rich', 'msgspec'} & set(sys.modules); assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", script], check=True, capture_output=True)


@pytest.mark.slow("starts an interpreter")
@pytest.mark.parametrize("command", [["connect", "wg1…", "--echo-test", "9"], ["listen", "--allow-any", "--echo"]])
def test_what_a_call_needs_is_imported_before_its_node_is_open(command: list[str]) -> None:
    """An import during the call would delay the first byte."""
    script = (
        "import os, sys; from warpgate_trio import node; from warpgate_trio.address import PeerAddress\n"
        "def open_node(*_, **__): print(*sorted(sys.modules), flush=True); os._exit(0)\n"
        "node.open_node, PeerAddress.from_text = open_node, lambda _: None\n"
        f"from warpgate_trio.cli.group import call; call({[*command, '--ephemeral']!r})"
    )
    done = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    needed = {"warpgate_trio.cli.echo_test", "warpgate_trio.cli.render", "encodings.idna"}
    assert needed <= set(done.stdout.split())


@pytest.mark.slow("starts an interpreter")
def test_the_collector_looks_seldom_until_a_command_first_waits_and_leaves_alone_what_is_loaded() -> None:
    """A collection that goes through all modules would take some 40 ms, in the middle of a first call."""
    script = (
        "import gc, trio; from warpgate_trio.cli import group, main, runner\n"
        "async def command():\n"
        "    assert gc.get_threshold()[0] == main.WHILE_LOADING and gc.isenabled()\n"
        "    await trio.testing.wait_all_tasks_blocked()\n"
        "    assert gc.get_threshold() == main.USUAL_THRESHOLDS and gc.get_freeze_count() > 10_000\n"
        "import trio.testing; group.call = lambda _: runner.run(command); main.main()"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow("starts an interpreter")
def test_an_interrupt_while_it_starts_is_130_without_a_traceback() -> None:
    script = (
        "import signal; from warpgate_trio.cli import main;"
        "main.reserve_standard_descriptors = lambda: signal.raise_signal(signal.SIGINT); main.main(['--version'])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")


@pytest.mark.slow("starts an interpreter")
def test_closed_standard_descriptors_are_not_handed_out() -> None:
    """After a shell's ``<&- >&-``, the next file that is opened must not become stdin or stdout."""
    script = (
        "import os; from warpgate_trio.cli.main import reserve_standard_descriptors; os.closerange(0, 2);"
        "reserve_standard_descriptors(); d = os.open(os.devnull, os.O_RDONLY); assert d > 2, d"
    )
    done = subprocess.run([sys.executable, "-c", script], stderr=subprocess.PIPE, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("command", [["listen", "--allow-any"], ["receive", "--allow-any"]])
def test_who_is_called_writes_down_where_contacts_are(
    command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept: list[Contacts | None] = []

    def open_node(*_: object, contacts: Contacts | None = None, **__: object) -> NoReturn:
        kept.append(contacts)
        raise ConfigError("enough")

    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    Contacts.load().add("bob", BOB.peer_id)
    monkeypatch.setattr(node, "open_node", open_node)
    assert call([*command, "--ephemeral"]) == 2
    assert [contacts.of(BOB.peer_id) is not None for contacts in kept if contacts is not None] == [True]


# -- id and config -----------------------------------------------------------------------------------------------------


def test_id_makes_its_key_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Capture) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    assert call(["id"]) == 0
    peer_id = capfd.readouterr().out.strip()
    key_file = tmp_path / "warpgate-trio" / "node.key"
    assert Identity.load(key_file).peer_id == peer_id
    assert call(["id", "--json"]) == 0
    event = checked_event(capfd.readouterr().out)
    assert (event["peer"], event["key_file"]) == (peer_id, str(key_file))
    assert call(["id", "--json", "--ephemeral"]) == 0
    event = checked_event(capfd.readouterr().out)
    assert event["peer"] != peer_id
    assert event["key_file"] is None


@pytest.mark.needs("linux")
def test_a_key_that_others_can_read_is_2(tmp_path: Path, capfd: Capture) -> None:
    key_file = tmp_path / "node.key"
    Identity.load_or_create(key_file)
    key_file.chmod(0o644)
    assert call(["id", "--key-file", str(key_file)]) == 2
    assert str(key_file) in capfd.readouterr().err


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch) -> list[NodeConfig]:
    """The configurations that commands load; each command ends there."""
    found: list[NodeConfig] = []
    load = NodeOptions.load

    def stop_with(options: NodeOptions) -> NodeConfig:
        found.append(load(options))
        raise ConfigError("that is all")

    monkeypatch.setattr(NodeOptions, "load", stop_with)
    return found


@pytest.mark.parametrize("words", [["connect", "wg1"], ["listen", "--allow-any"]])
@pytest.mark.parametrize("name", ["dead_after", "resume_timeout"])
def test_what_is_said_of_paths_is_the_configurations(
    name: str, words: list[str], loaded: list[NodeConfig], monkeypatch: pytest.MonkeyPatch, capfd: Capture
) -> None:
    monkeypatch.setenv(f"WARPGATE_PATHS_{name.upper()}", "9")
    option = f"--{name.replace('_', '-')}"
    for given in (list[str](), [option, "2.5"], [option, "0"]):
        assert call([*words, *given]) == 2
    assert [getattr(each.paths, name) for each in loaded] == [9.0, 2.5, 0.0]


def test_whether_the_relay_comes_first_is_the_configurations(
    loaded: list[NodeConfig], monkeypatch: pytest.MonkeyPatch, capfd: Capture
) -> None:
    for variable in ("false", "true"):
        monkeypatch.setenv("WARPGATE_PATHS_RELAY_FIRST", variable)
        for given in (list[str](), ["--relay-first"], ["--no-relay-first"]):
            assert call(["connect", "wg1", *given]) == 2
    assert [each.paths.relay_first for each in loaded] == [False, True, False, True, True, False]
    assert "that is all" in capfd.readouterr().err


def test_config_show_names_its_sources_and_masks_secrets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Capture
) -> None:
    file = tmp_path / "my.toml"
    file.write_text(
        '[servers]\nmqtt = ["mqtts://me:hunter2@broker.example"]\n'
        'turn = [{ url = "turn:turn.example", username = "u", password = "hunter2" }]\n',
        encoding="utf-8",
    )
    monkeypatch.setenv("WARPGATE_LISTEN_PORT", "4433")
    monkeypatch.setenv("WARPGATE_SERVICE_HOST", "10.96.0.7")  # set by Kubernetes where a Service has the project's name
    assert call(["config", "--show", "--config", str(file), "--ephemeral"]) == 0
    text = capfd.readouterr().out
    assert "hunter2" not in text
    assert "WARPGATE_SERVICE_HOST" not in text
    values = tomllib.loads(text)
    assert values["listen"]["port"] == 4433
    assert values["identity"]["ephemeral"] is True
    for source in ("identity.ephemeral", "WARPGATE_LISTEN_PORT", str(file), "config.toml (not there)"):
        assert source in text


@pytest.mark.needs("linux")
@pytest.mark.slow("processes")
@pytest.mark.parametrize("unbuffered", ["", "1"], ids=["as it is", "unbuffered"])
@pytest.mark.parametrize(
    "command",
    [
        ["id", "--ephemeral"],
        ["id", "--ephemeral", "--json"],
        ["config"],
        ["netcheck", "--timeout=0.1"],
        ["simulate", "--list"],
        ["serve", "--host=127.0.0.1", "--port=0", "--no-stun", "--no-ntp"],
        ["--version"],
        ["--help"],
        [],
    ],
)
def test_a_full_disk_is_no_success(command: list[str], unbuffered: str) -> None:
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            [sys.executable, "-m", "warpgate_trio", *command],
            env=os.environ | {"PYTHONUNBUFFERED": unbuffered},
            stdout=full,
            stderr=subprocess.PIPE,
            stdin=subprocess.DEVNULL,
            text=True,
            check=False,
        )
    assert done.returncode == 4
    assert done.stderr.endswith("error: stdout cannot be written: No space left on device\n")


def test_a_key_that_finds_no_room_is_no_mistake_of_the_user(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Capture
) -> None:
    def fsync(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", fsync)
    assert call(["id", "--key-file", str(tmp_path / "key")]) == 4
    assert "cannot be made: No space left on device" in capfd.readouterr().err


@pytest.mark.needs("linux")
def test_a_file_s_name_may_be_in_any_encoding(tmp_path: Path, capfd: Capture) -> None:
    file = tmp_path / os.fsdecode(b"k\xe4y")
    assert call(["id", "--key-file", str(file), "--json"]) == 0
    assert json.loads(capfd.readouterr().out)["key_file"] == f"{tmp_path}/k\\udce4y"
    assert call(["config", "--show", "--key-file", str(file)]) == 0
    tomllib.loads(capfd.readouterr().out)


@pytest.mark.usefixtures("no_home")
def test_commands_of_a_user_without_a_home(tmp_path: Path, capfd: Capture) -> None:
    file = tmp_path / "node.toml"
    file.write_text(f"identity.key_file = '{tmp_path / 'node.key'}'")
    assert call(["id", "--config", str(file)]) == 0
    assert call(["id", "--key-file", str(tmp_path / "node.key")]) == 0
    first, second = capfd.readouterr().out.split()
    assert first == second
    assert call(["id", "--ephemeral"]) == 0
    assert call(["config", "--show"]) == 0
    assert capfd.readouterr().out.count("nowhere: there is no home directory") == 2
    assert call(["id"]) == 2
    assert "error: there is no home directory to keep the node's key in; set HOME, name" in capfd.readouterr().err


# -- connect, before anything is tried ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda good: "wg1hello", "checksum"),
        (lambda good: good[:-7] + "AAAAAAA", "checksum"),
        (lambda good: good[: len(good) // 2], "checksum"),
        (lambda good: issue(Identity.generate(), expires_at=1_000_000), "expired"),
    ],
)
def test_a_bad_address_is_2(spoil: Callable[[str], str], said: str, capfd: Capture) -> None:
    assert call(["connect", spoil(issue(Identity.generate())), "--ephemeral", "--json"]) == 2
    shown = capfd.readouterr()
    event = checked_event(shown.out)
    assert (event["verdict"], event["report"]) == ("bad_address", None)
    assert shown.err.splitlines()[-1] == f"error: {event['error']}"
    assert said in event["error"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("hello", "there is no contact 'hello'"),
        ("no/name", "'no/name' is no name"),
        ("x" * 51, "neither an address (wg1…) nor a peer id: a peer id has 52 characters, not 51"),
    ],
)
def test_a_peer_that_is_nobody_is_2(text: str, said: str, capfd: Capture) -> None:
    assert call(["connect", text, "--ephemeral", "--json"]) == 2
    shown = capfd.readouterr()
    event = checked_event(shown.out)
    assert (event["verdict"], event["report"]) == ("bad_peer", None)
    assert shown.err.splitlines()[-1] == f"error: {event['error']}"
    assert said in event["error"]


@pytest.mark.parametrize(
    "words",
    [
        ["connect", "7-guitar-orbit"],
        ["ping", "7-guitar-orbit"],
        ["forward", "2222", "7-guitar-orbit:22"],
        ["forward", "--stdio", "7-guitar-orbit:22"],
        ["send", __file__, "--to", "7-guitar-orbit"],
        ["listen", "7-guitar-orbit"],
        ["listen", "--allow", "7-guitar-orbit"],
        ["receive", "7-guitar-orbit"],
        ["receive", "--allow-any", "7-guitar-orbit"],
    ],
)
def test_a_code_where_none_is_read_is_told_where_it_belongs(words: list[str], capfd: Capture) -> None:
    assert call([*words, "--ephemeral"]) == 2
    assert "'7-guitar-orbit' looks like a code: give it by --code, to connect or receive" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["receive", "7", "guitar", "orbit"], "'7 guitar orbit' looks like a code"),
        (["receive", "files"], "unexpected extra argument (files)"),
        (["receive", "7-guitar"], "unexpected extra argument (7-guitar)"),
        (["connect", "7-guitar"], "'7-guitar' is no name"),
        (["connect", "192.0.2.7"], "'192.0.2.7' is no name"),
    ],
)
def test_what_else_is_typed_there_is_told_as_it_is(words: list[str], said: str, capfd: Capture) -> None:
    assert call([*words, "--ephemeral"]) == 2
    assert said in capfd.readouterr().err


@pytest.mark.parametrize("words", [[], ["bob", "--code", "7-guitar-orbit"]])
def test_connect_wants_a_peer_or_a_code(words: list[str], capfd: Capture) -> None:
    assert call(["connect", *words]) == 2
    assert "give either PEER or --code CODE" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('[servers]\nwebsockets = ["ws://a"]\n', "the nearest known one is servers.websocket"),
        ("[listen\n", "config.toml"),
        ('[servers]\nwebsocket = ["http://a"]\n', "http"),
    ],
)
def test_a_bad_configuration_is_2(text: str, said: str, tmp_path: Path, capfd: Capture) -> None:
    file = tmp_path / "config.toml"
    file.write_text(text, encoding="utf-8")
    assert call(["connect", "wg1", "--config", str(file), "--json"]) == 2
    shown = capfd.readouterr()
    assert said in shown.err
    assert shown.err.count("\n") == 1
    assert checked_event(shown.out)["verdict"] == "bad_configuration"


def test_ones_own_address_and_an_unknown_plugin_are_2(tmp_path: Path, capfd: Capture) -> None:
    key_file = tmp_path / "node.key"
    own = issue(Identity.load_or_create(key_file))
    assert call(["connect", own, "--key-file", str(key_file), "--json"]) == 2
    shown = capfd.readouterr()
    assert checked_event(shown.out)["verdict"] == "bad_usage"
    assert "own address" in shown.err


@pytest.mark.parametrize("words", [["connect", issue(Identity.generate()), "--ephemeral"], ["simulate"]])
def test_plugins_are_listed_and_those_that_make_no_path_are_refused(words: list[str], capfd: Capture) -> None:
    there = "there are direct_connect, fan_out, random_probe, reverse_connect, tcp_punch, turn, udp_punch, ws_relay"
    assert call([*words, "--plugin", "carrier_pigeon"]) == 2
    assert capfd.readouterr().err == f"error: --plugin: there is no plugin 'carrier_pigeon'; {there}\n"
    for auxiliary in ("get_addr", "return_addr"):
        assert call([*words, "--plugin", auxiliary]) == 2
        assert capfd.readouterr().err == f"error: --plugin: plugin {auxiliary!r} makes no path; {there}\n"
    assert call([words[0], "--help"]) == 0
    assert there.removeprefix("there are ") in " ".join(capfd.readouterr().out.split())


def test_an_address_without_endpoints_is_no_path(capfd: Capture) -> None:
    words = ["--plugin", "direct_connect", "--ephemeral", "--json", "-q"]
    assert call(["connect", issue(Identity.generate()), *words]) == 1
    shown = capfd.readouterr()
    assert checked_event(shown.out)["verdict"] == "nothing_to_try"
    assert shown.err.count("\n") == 1


# -- serve -------------------------------------------------------------------------------------------------------------


def test_a_port_that_is_taken_is_2(capfd: Capture) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert call(["serve", "--host", "127.0.0.1", "--port", str(port)]) == 2
    assert capfd.readouterr().err == f"error: cannot listen on 127.0.0.1 port {port}: Address already in use\n"


def test_a_stun_port_that_is_taken_is_2_where_it_was_asked_for(capfd: Capture) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert call(["serve", "--host", "127.0.0.1", "--port", "0", "--stun-port", str(port)]) == 2
    said = capfd.readouterr()
    assert said.out == ""
    assert said.err == f"error: cannot listen on 127.0.0.1 port {port} for STUN and TURN: Address already in use\n"


def test_a_time_servers_port_that_is_taken_is_2(capfd: Capture) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        assert call(["serve", "--host", "127.0.0.1", "--port", "0", "--no-stun", "--ntp-port", str(port)]) == 2
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith(f"error: cannot listen on 127.0.0.1 UDP port {port}: Address already in use (--no-ntp")


def test_certificates_that_are_none_are_2(tmp_path: Path, capfd: Capture) -> None:
    empty = tmp_path / "empty.pem"
    empty.touch()
    assert call(["serve", "--tls-cert", str(empty), "--tls-key", str(empty)]) == 2
    assert "cannot be used" in capfd.readouterr().err


# -- what goes wrong here ----------------------------------------------------------------------------------------------


def test_a_fault_of_the_program_is_70_without_a_traceback(monkeypatch: pytest.MonkeyPatch, capfd: Capture) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr("warpgate_trio.cli.show._sources", fail)
    assert call(["config"]) == 70
    assert capfd.readouterr().err == (
        "error: internal error of warpgate-trio: RuntimeError: a bug; --debug shows where\n"
    )
    assert call(["config", "--debug"]) == 70
    assert "Traceback" in capfd.readouterr().err


def test_an_interrupt_outside_of_trio_is_130(monkeypatch: pytest.MonkeyPatch, capfd: Capture) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("warpgate_trio.cli.show._sources", interrupt)
    assert call(["config"]) == 130
    assert capfd.readouterr().err.strip() == "interrupted"


def test_a_stdout_that_nobody_reads_is_no_error(capfd: Capture) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    kept = os.dup(1)
    try:
        os.dup2(writing, 1)
        assert call(["config"]) == 0
    finally:
        os.dup2(kept, 1)
        os.close(kept)
        os.close(writing)
    assert capfd.readouterr().err == ""
