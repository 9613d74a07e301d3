"""Every block of code in the documentation is run, parsed, or compared with the code; this module lists how.

A block that holds only command lines needs no row: `test_docs_commands.py` gives each line to the program's own parser,
and runs the simulations.  Any other block has a row: in `TRIED` if another test runs it, in `SHOWN` with the reason if
nothing does, in `HERE` if it is tried here.  A block without a row fails, and so does a row without a block.
"""

from __future__ import annotations

import ast
import inspect
import json
import re
import shlex
import tomllib
from collections.abc import Awaitable, Callable
from contextlib import nullcontext
from functools import partial
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from textwrap import indent
from typing import Any

import jsonschema
import pytest
import trio
from click.shell_completion import get_completion_class

from tests.documented import DOCS, ROOT, Block, blocks, changed
from tests.identities import ALICE
from tests.nodes import address_of, pair, pipes
from tests.unit.test_docs_commands import IN_BLOCK, command_of
from warpgate_trio import NodeConfig, Pipe, plugin, serve_pipes
from warpgate_trio.cli.options import Settings
from warpgate_trio.files import wire
from warpgate_trio.link.frames import FrameType
from warpgate_trio.nurseries import open_background_nursery
from warpgate_trio.pairing import broker_messages
from warpgate_trio.report import REMEDIES, Known
from warpgate_trio.servers import rendezvous_frames
from warpgate_trio.signal.instances import own_topic
from warpgate_trio.signal.mqtt import channel
from warpgate_trio.signal.mqtt.key_topic import KeyTopic

Key = tuple[str, str]

FRAMES = {kind.name for kind in (*FrameType, *wire.Kind)} | {name.upper() for name in vars(rendezvous_frames)}
FRAMES |= {"HELLO", "REPLY"}
NO_FRAMES = {"HOST", "NAT", "PORT", "QUIC", "RTT", "STUN", "SYN", "TCP", "TLS", "TURN", "UDP"}
TRIED: dict[Key, str] = {
    ("configuration.md", "from warpgate_trio import NodeConfig, Servers, load_config"): (
        "unit/test_docs.py::test_the_configuration_file_and_the_code_that_reads_it"
    ),
    ("configuration.md", "[identity]"): "unit/test_docs.py::test_the_configuration_file_and_the_code_that_reads_it",
    ("applications.md", "warpgate-trio serve > node.toml"): (
        "end_to_end/test_examples.py::test_two_people_chat_as_the_page_says"
    ),
    ("contacts.md", "import trio"): "integration/test_docs_contacts.py::test_the_program_calls_and_renames",
    ("contacts.md", "version = 1"): "integration/test_docs_contacts.py::test_the_file_is_what_the_page_shows",
    ("pairing.md", "from __future__ import annotations"): "integration/test_pairing.py::test_the_programs_of_the_page",
    ("howto/systemd.md", "[Unit]"): "unit/test_docs_serving.py::test_systemd_understands_the_unit",
    ("howto/container.md", "FROM docker.io/library/python:3.13-slim"): (
        "unit/test_docs_serving.py::test_the_container_starts_what_the_parser_understands"
    ),
    ("howto/container.md", "podman build -t warpgate-trio ."): (
        "unit/test_docs_serving.py::test_the_same_folder_is_mounted_and_used"
    ),
    ("howto/testing.md", "# news.py"): "sim/test_testing.py::test_the_programs_of_the_page_run",
    ("howto/testing.md", "# test_news.py"): "sim/test_testing.py::test_the_programs_of_the_page_run",
    ("howto/testing.md", "# chat.py"): "sim/test_testing.py::test_the_programs_of_the_page_run",
    ("howto/testing.md", "# test_chat.py"): "sim/test_testing.py::test_the_programs_of_the_page_run",
    ("howto/testing.md", "# test_my_nodes.py"): "sim/test_testing.py::test_the_programs_of_the_page_run",
    ("howto/testing.md", "# test_my_walk.py"): "sim/test_testing.py::test_the_programs_of_the_page_run",
    ("howto/testing.md", "# test_my_restart.py"): "sim/test_testing.py::test_the_programs_of_the_page_run",
    ("writing_a_plugin.md", "# warpgate_doorbell.py"): "unit/test_docs.py::test_the_guides_own_test_passes",
    ("writing_a_plugin.md", "[project]"): "unit/test_docs.py::test_the_guides_own_test_passes",
    ("writing_a_plugin.md", "# test_warpgate_doorbell.py, for pytest-trio"): (
        "unit/test_docs.py::test_the_guides_own_test_passes"
    ),
    ("writing_a_plugin.md", "# test_warpgate_doorbell_alone.py, for pytest-trio"): (
        "unit/test_docs.py::test_the_guides_tests_without_a_peer_pass"
    ),
}
"""Page and the beginning of the block -> the test that runs it."""
SEVERAL: dict[tuple[str, str], str] = {
    ("tutorial.md", "python"): "end_to_end/test_examples.py::test_the_two_programs_talk",
    ("applications.md", "python"): "integration/test_docs_applications.py",
    **{
        (f"howto/{name}.md", language): f"integration/test_howtos.py::{test}"
        for name, language, test in (
            ("mqtt", "text", "test_signals_pass_from_one_broker_to_the_other"),
            ("mqtt", "toml", "test_the_second_configuration_is_read"),
            ("coturn", "text", "test_coturn_with_the_text_of_the_page"),
            ("coturn", "toml", "test_coturn_with_the_text_of_the_page"),
            ("proxies", "text", "test_squid_lets_nodes_to_the_one_server"),
            ("proxies", "toml", "test_the_configuration_behind_a_proxy_is_read"),
        )
    },
    ("howto/reverse_proxy.md", "nginx"): "integration/test_nginx.py",
    ("howto/reverse_proxy.md", "haproxy"): "integration/test_haproxy.py",
}
"""Page and language -> the test that runs all such blocks of that page, which have the same first line."""

PICTURE = "a picture of the code's structure"
LADDER = "a ladder that was drawn by hand; the frames in it exist"
SHOWN: dict[Key, str] = {
    ("architecture.md", "your program                                    warpgate-tri"): PICTURE,
    ("architecture.md", "open_node()"): PICTURE,
    ("contacts.md", "you                      a server that both have"): LADDER,
    ("files.md", "send                                                    rece"): LADDER,
    (
        "kernel_lab.md",
        "a ── nat ──┐                        ┌── nat ── b          b:",
    ): (PICTURE),
    (
        "writing_a_plugin.md",
        "auto_connect ─► combos ─► per combo: your class(attempt) ─►",
    ): (PICTURE),
    **{
        (block.page, block.key[1]): LADDER
        for block in blocks()
        if block.key[1].split("  ")[0].partition(" (")[0] in ("Alice", "initiator", "client", "connect --code")
        and not block.language
    },
}
"""Page and the beginning of the block -> why nothing runs it."""


# -- blocks that are tried here ----------------------------------------------------------------------------------------


def run(block: Block, text: str, names: dict[str, Any]) -> dict[str, Any]:
    exec(compile(text, f"{block.page}:{block.line}", "exec"), names)
    return names


def body_of(block: Block, names: dict[str, Any]) -> Callable[[], Awaitable[None]]:
    """Make one async function of the block's statements."""
    body: Callable[[], Awaitable[None]] = run(block, f"async def body():\n{indent(block.text, '    ')}", names)["body"]
    return body


async def echo(pipe: Pipe) -> None:
    async for data in pipe:
        await pipe.send_all(data)


async def try_a_call(block: Block) -> None:
    """With a node that is already open."""
    async with pair() as both:
        names = {"open_node": lambda *_, **__: nullcontext(both.alice), "config": None, "my_rule": None}
        await body_of(block, {**names, "peer": both.bob.address})()


async def try_a_moved_program(block: Block) -> None:
    printed: list[object] = []
    async with pair() as both, open_background_nursery() as nursery:
        names = {
            "open_node": lambda *_, **__: nullcontext(both.bob),
            "serve_pipes": serve_pipes,
            "print": printed.append,
        }
        nursery.start_soon(run(block, block.text, names)["main"], None, None)
        async with await both.alice.auto_connect(both.bob.address) as pipe:
            await pipe.send_all(b"x")
            assert await pipe.receive_some() == b"x"
    assert printed == [both.bob.address]


async def try_forwarding(block: Block) -> None:
    """The block's handler serves, and its `talk` prints the greeting of the service at the target."""

    async def greet(stream: trio.SocketStream) -> None:
        await stream.send_all(b"SSH-2.0-there")

    printed: list[bytes] = []
    async with pair() as both, open_background_nursery() as nursery:
        (listener,) = await nursery.start(partial(trio.serve_tcp, greet, 0, host="127.0.0.1"))
        port = listener.socket.getsockname()[1]
        text = changed(block.text, {"127.0.0.1:22": f"127.0.0.1:{port}", ", 22)": f", {port})"})
        names = run(block, text, {"Pipe": Pipe, "print": printed.append})
        nursery.start_soon(serve_pipes, names["handler"], both.bob)
        async with await both.alice.auto_connect(both.bob.address) as pipe:
            await names["talk"](pipe)
    assert printed == [b"SSH-2.0-there"]


async def try_files(block: Block) -> None:
    """One side gives the files that the other side takes."""
    with TemporaryDirectory() as name:
        await _give_and_take(block, Path(name))


async def _give_and_take(block: Block, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    for name in ("photos/one.jpg", "report.pdf"):
        (tmp_path / name).write_text(name)
    text = changed(
        block.text, {f'"{each}"': repr(str(tmp_path / each)) for each in ("photos", "report.pdf", "incoming")}
    )
    printed: list[Any] = []
    names = run(block, text, {"Pipe": Pipe, "print": lambda *words: printed.append(words)})
    async with pipes() as (ours, theirs, _), trio.open_nursery() as nursery:
        nursery.start_soon(names["give"], ours)
        await names["take"](theirs)
    size = len("photos/one.jpg") + len("report.pdf")
    assert (size, size) in printed
    assert (tuple(tmp_path / "incoming" / each for each in ("photos", "report.pdf")),) in printed


def try_the_lab(block: Block) -> None:
    """Running it would need root and seconds, so its calls are only checked against the functions' signatures."""
    known = {
        **{name: value for module in LAB for name, value in vars(import_module(f"tests.kernel.{module}")).items()},
        "trio": trio,
    }
    tree = ast.parse(f"async def body():\n{indent(block.text, '    ')}")
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)]
    assert calls
    for call in calls:
        assert isinstance(call.func, ast.Name)
        keywords = {word.arg: None for word in call.keywords if word.arg}
        inspect.signature(known[call.func.id]).bind(*call.args, **keywords)


def try_a_configuration(block: Block) -> None:
    NodeConfig.from_toml(block.text, base_dir=ROOT)


def try_a_line_of_the_command(block: Block) -> None:
    event = json.loads(block.text.replace('"peer":"…"', f'"peer":"{ALICE.peer_id}"'))
    schema = json.loads((DOCS / "schemas" / f"{event['event']}.json").read_text(encoding="utf-8"))
    jsonschema.validate(event, schema)


def try_a_step(block: Block) -> None:
    """The line below a failed step is the advice for the cause in that step."""
    step, advice = block.text.splitlines()
    (known,) = [each for each in Known if str(each) in step]
    assert advice.strip() == f"→ {REMEDIES[known]}"


def try_completion(block: Block) -> None:
    for line in block.text.splitlines():
        match = re.search(r"_WARPGATE_TRIO_COMPLETE=(\w+)_source warpgate-trio", line)
        assert match is not None
        kind = get_completion_class(match[1])
        assert kind is not None
        assert match[1] == kind.name  # bash's own class would run bash to learn its version


def try_the_proxy_command(block: Block) -> None:
    """Only parsed here; tests/end_to_end/test_forward.py has ssh run it."""
    program, option, value, _ = shlex.split(block.text)
    assert (program, option) == ("ssh", "-o")
    words = shlex.split(value.removeprefix("ProxyCommand="))
    assert words[0] == "warpgate-trio"
    parameters = [word.replace("wg1…", str(address_of(ALICE, port=1))) for word in words[2:]]
    command_of([words[1]]).make_context(words[1], parameters, obj=Settings()).close()


def try_a_session_of_forwarding(block: Block) -> None:
    """`test_docs_commands.py` parses this project's command lines; the remaining line is ssh's."""
    ours = set(IN_BLOCK.findall(indent(block.text, "    ")))
    (rest,) = [line for line in block.text.splitlines() if line not in ours]
    assert rest.split("#")[0].split() == ["ssh", "-p", "2222", "localhost"]


def try_installing(block: Block) -> None:
    """Name and Python version fit the package; `make dist` really installs it."""
    *_, version, name = block.text.split()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["name"] == name
    assert f"Programming Language :: Python :: {version}" in project["classifiers"]


def try_the_topics(block: Block) -> None:
    """The names that tests/integration/test_mqtt_signals.py sees at a broker."""
    first, second = block.text.splitlines()
    assert first == f"[<path of the URL>/]{channel._ROOT}/<peer id>"
    assert (
        second == f"{first}/<instance, {2 * len(own_topic(bytes(8), listens=False))} hexadecimal digits in lower case>"
    )


def try_the_topics_of_pairing(block: Block) -> None:
    first, second = block.text.splitlines()
    known = broker_messages.try_topic("[<path of the URL>/]", 7, bytes(broker_messages.ID_LENGTH))
    named = second.replace("<nameplate>", "7").replace("<id, 16 hexadecimal digits in lower case>", "0" * 16)
    assert (named, second.rpartition("/<id")[0]) == (known, first)


def try_the_topic_of_key_records(block: Block) -> None:
    beginning, tag = KeyTopic("[<path of the URL>/]", bytes(32)).name.rsplit("/", 1)
    assert block.text.strip() == f"{beginning}/<tag, {len(tag)} hexadecimal digits in lower case>"


def try_the_outlook(block: Block) -> None:
    _, line = block.text.splitlines()
    signature = inspect.signature(plugin.Plugin.outlook)
    assert line == f"def outlook{str(signature).replace('(', '(cls, ', 1).replace(chr(39), '')}"


LAB = ("run", "lab", "nats", "theory", "namespaces", "wire")
HERE: dict[Key, Callable[[Block], Awaitable[None] | None]] = {
    ("README.md", "async with open_node(config, authorize=my_rule) as node:"): try_a_call,
    ("README.md", "pipx install --python 3.13 warpgate-trio"): try_installing,
    ("architecture.md", "async with open_node(config, authorize=my_rule) as node:"): try_a_call,
    ("command_line.md", 'eval "$(_WARPGATE_TRIO_COMPLETE=bash_source warpgate-trio)"'): (try_completion),
    (
        "command_line.md",
        "failed   here    NAT: this side's network blocks UDP; IPv4 b",
    ): (try_a_step),
    (
        "forwarding.md",
        "from warpgate_trio.forwarding import Exposed, Target, handle",
    ): (try_forwarding),
    (
        "forwarding.md",
        "ssh -o ProxyCommand='warpgate-trio forward -q --stdio wg1…:2",
    ): try_the_proxy_command,
    ("forwarding.md", "warpgate-trio listen --config warpgate.toml --allow-any --ex"): (try_a_session_of_forwarding),
    (
        "kernel_lab.md",
        'outcome = await pair("port-restricted", "symmetric", phases=',
    ): (try_the_lab),
    ("files.md", "from warpgate_trio.files import receive_files, send_files"): try_files,
    ("kernel_lab.md", "trio.socket.set_custom_socket_factory(SocketsOfNamespaces())"): try_the_lab,
    ("migration.md", "async def answer(pipe):"): try_a_moved_program,
    ("port_mapping.md", "[portmap]"): try_a_configuration,
    ("tutorial.md", "pipx install --python 3.13 warpgate-trio"): try_installing,
    ("wire_formats.md", "[<path of the URL>/]warpgate-trio/1/<peer id>"): try_the_topics,
    (
        "wire_formats.md",
        "[<path of the URL>/]warpgate-trio/1/key/<tag, 32 hexadecimal",
    ): (try_the_topic_of_key_records),
    ("wire_formats.md", "[<path of the URL>/]warpgate-trio/1/pair/<nameplate>"): try_the_topics_of_pairing,
    ("writing_a_plugin.md", "@classmethod"): try_the_outlook,
}
"""Page and the beginning of the block -> the function here that tries it."""
BLOCKS = list(blocks())


def is_of_commands(block: Block) -> bool:
    """Whether all lines of the block are command lines or their continuations."""
    text = indent(block.text, "    ")
    if block.language not in ("", "sh"):
        return False
    starts = {line.strip() for line in IN_BLOCK.findall(text)}
    lines = [line for line in text.splitlines() if line.strip()]
    return bool(starts) and all(line.strip() in starts or line.startswith(" " * 8) for line in lines)


def is_a_schema_line(block: Block) -> bool:
    return not block.language and block.text.startswith("{")


@pytest.mark.parametrize(
    "block",
    [
        pytest.param(
            block,
            id=f"{block.page}:{block.line}",
            marks=[pytest.mark.slow("two nodes")]
            if HERE.get(block.key) in (try_a_call, try_a_moved_program, try_forwarding)
            else [],
        )
        for block in BLOCKS
    ],
)
async def test_a_block_is_tried(block: Block) -> None:
    if block.key in HERE:
        done = HERE[block.key](block)
        if done is not None:
            await done
    elif is_a_schema_line(block):
        try_a_line_of_the_command(block)
    elif block.key in SHOWN:
        frames = set(re.findall(r"\b[A-Z]{3,}\b", block.text)) - NO_FRAMES
        assert SHOWN[block.key] != LADDER or frames <= FRAMES, frames - FRAMES
    else:
        tried = (
            block.key in TRIED
            or (block.page, block.language) in SEVERAL
            or is_of_commands(block)
            or (block.page.startswith("reference/") and block.language == "{eval-rst}")  # `make docs` fails on errors
        )
        assert tried, f"{block.page}:{block.line}: say in this file how this is tried, or why it is not: {block.key}"


def test_no_row_is_left_over() -> None:
    keys = {block.key for block in BLOCKS}
    assert {key for key in (*TRIED, *HERE, *SHOWN) if key not in keys} == set()
    assert set(SEVERAL) <= {(block.page, block.language) for block in BLOCKS}


@pytest.mark.parametrize("where", sorted({*TRIED.values(), *SEVERAL.values()}))
def test_the_test_that_a_row_names_is_there(where: str) -> None:
    file, _, name = where.partition("::")
    text = (ROOT / "tests" / file).read_text(encoding="utf-8")
    assert re.search(rf"^(?:async )?def {name}\b" if name else "^(?:async )?def test_", text, re.MULTILINE)
