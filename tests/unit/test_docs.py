"""The documentation against the code: tables of numbers, states, frames, keys and verdicts, links, and the examples."""

from __future__ import annotations

import ast
import dataclasses
import importlib
import inspect
import json
import re
import sys
import tomllib
import types
from collections.abc import Awaitable, Callable, Iterator, Sequence
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any, get_args

import msgspec
import pytest
import trio

import warpgate_trio
from tests.documented import DOCS, bare, code, page, table, tables
from tests.hangs import HANG
from tests.identities import ALICE, BOB
from tests.nodes import LoopbackHost, loopback_node, on_host, pair
from tests.nodes import config as node_config
from tools import limits
from warpgate_trio import config, plugin
from warpgate_trio.carrier import quic, quic_protocol, tls
from warpgate_trio.cli.exits import exit_code_of_verdict
from warpgate_trio.combos import Likelihood, dialling
from warpgate_trio.combos import meeting as meetings
from warpgate_trio.combos.relaying import RENDEZVOUS_RULES, TURN_RULES
from warpgate_trio.errors import ConfigError, ProtocolError
from warpgate_trio.files import protocol as transfers
from warpgate_trio.files import wire as files_wire
from warpgate_trio.forwarding.wire import BIND, BOUND, TCP, Answer, encode_answer
from warpgate_trio.link import channels, frame_codec, frames, life, quiet, states
from warpgate_trio.link.ends import GoAwayCode
from warpgate_trio.node import inbound, listener
from warpgate_trio.pairing import handshake
from warpgate_trio.plugin import Aim, Message, Plugin, load_plugins
from warpgate_trio.plugin.registry import ENTRY_POINT_GROUP
from warpgate_trio.report import ADVICE, BETTER_ADVICE, Known, Outcome, Verdict
from warpgate_trio.servers import rendezvous_frames
from warpgate_trio.servers.relay_frames import EndReason
from warpgate_trio.servers.rendezvous import open_rendezvous
from warpgate_trio.signal import inbox, replays, wire_name
from warpgate_trio.signal.transport import supports

ROOT = Path(__file__).parents[2]
PAGES = sorted(path for path in DOCS.rglob("*.md") if "_build" not in path.parts) + sorted(ROOT.glob("*.md"))

# -- links -------------------------------------------------------------------------------------------------------------


def anchors(text: str) -> set[str]:
    """A heading's anchor, as GitHub makes it."""
    heads = re.findall(r"^#+ (.*)$", re.sub(r"```.*?```", "", text, flags=re.DOTALL), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(path: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", path.read_text(encoding="utf-8")):
        if "://" in target:
            continue
        name, _, anchor = target.partition("#")
        file = (path.parent / name).resolve() if name else path
        assert file.exists(), target
        if anchor:
            assert anchor in anchors(file.read_text(encoding="utf-8")), target


def test_every_page_is_in_the_index() -> None:
    index = page("README.md")
    assert [path.name for path in DOCS.glob("*.md") if path.name != "README.md" and f"({path.name})" not in index] == []


@pytest.mark.parametrize("name", ["punching.md", "threat_model.md"])
def test_the_tests_that_a_page_names_exist(name: str) -> None:
    text = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("test_*.py"))
    written = set(re.findall(r"def (test_\w+)", text)) | set(re.findall(r"class (Test\w+)", text))
    files = {path.name for path in (ROOT / "tests").rglob("test_*.py")}
    for cell in re.findall(r"`(test_[^`]+)`", page(name)):
        file, _, test = cell.rpartition("::")
        assert not file or file in files, cell
        assert test in (written if file or not test.endswith(".py") else files), cell


# -- numbers -----------------------------------------------------------------------------------------------------------

STRATEGIES = "strategies"
UNITS = {"B": 1, "KiB": 1024, "MiB": 1024**2, "s": 1, "/s": 1}


def resolve(dotted: str) -> object:
    """``link.channels.WINDOW_MIN``, ``config.Budgets.total``: a constant, or the default of a field."""
    parts = dotted.split(".")
    package = ["warpgate_trio"]
    if parts[0] == STRATEGIES:
        package = [parts.pop(0)]
    for end in range(len(parts), 0, -1):
        try:
            value: Any = importlib.import_module(
                ".".join([*package, *parts[:end]]).replace(STRATEGIES, "warpgate_strategies")
            )
        except ModuleNotFoundError:
            continue
        for name in parts[end:]:
            value = default_of(value, name) if inspect.isclass(value) else getattr(value, name)
        return value
    raise AssertionError(dotted)


def default_of(kind: type, name: str) -> object:
    if dataclasses.is_dataclass(kind):
        return next(field.default for field in dataclasses.fields(kind) if field.name == name)
    if issubclass(kind, msgspec.Struct):
        return next(field.default for field in msgspec.structs.fields(kind) if field.name == name)
    return getattr(kind, name)


def number(text: str) -> float:
    digits, _, unit = text.partition(" ")
    return float(digits) * (UNITS[unit] if unit else 1)


CONSTANTS = [
    (path.name, bare(row["constant"]), row["value"])
    for path in sorted(DOCS.glob("*.md"))
    for rows in tables(path.read_text(encoding="utf-8"))
    for row in rows
    if "constant" in row
]


@pytest.mark.parametrize(("name", "constant", "value"), CONSTANTS, ids=[f"{c[0]}-{c[1]}" for c in CONSTANTS])
def test_a_number_is_the_codes(name: str, constant: str, value: str) -> None:
    assert resolve(constant) == number(value)


MQTT_IS_BUILT = supports(config.ServerUrl.parse("mqtt://broker.example"))


@pytest.mark.slow("imports every module")
def test_the_page_of_limits_is_what_the_code_says() -> None:
    assert limits.undescribed() == []
    assert page("limits.md") == limits.render(), "run python tools/limits.py"


def test_a_limit_has_its_unit_and_its_first_sentence() -> None:
    rows = {bare(row["limit"]): row for rows in tables(page("limits.md")) for row in rows}
    assert rows["carrier.records.RECORD"]["value"] == "16 KiB"
    assert rows["signal.replays.WINDOW"]["value"] == "300 s"
    assert rows["websocket.stream.BUDGET_RATE"]["value"] == "64 B/s"
    assert rows["link.budget.CONTROL_RATE"]["value"] == "100,000 /s"
    assert rows["clock.estimate.DRIFT"]["value"] == "0.000015 s"
    assert rows["link.channels.MAX_CHANNELS"]["value"] == "1,024"
    stun = rows["servers.stun_core.StunLimits.silence"]
    assert (stun["value"], stun["meaning"]) == (
        "300 s",
        "Seconds without a request after which a connection is closed; keep-alives come far more often",
    )
    assert "link.frame_codec.HEADER_SIZE" not in rows  # fixed by the format, so no limit


def test_every_budget_is_among_the_timeouts() -> None:
    rows = table(page("back_pressure_and_timeouts.md"), "who waits")
    named = {bare(row["constant"]).removeprefix("config.Budgets.") for row in rows if "Budgets" in row["constant"]}
    assert named == set(config.Budgets.__struct_fields__)


def test_what_the_numbers_add_up_to() -> None:
    text = page("back_pressure_and_timeouts.md")
    rates = inbox.InboxLimits()
    assert (1 + life.MISSES) * tls.IDLE_INTERVAL == 240
    assert (1 + life.MISSES) * quic.IDLE_INTERVAL == quic_protocol.IDLE_TIMEOUT == 100
    assert "240 s after the last byte over TCP, 100 s over UDP" in text
    assert tls.IDLE_INTERVAL + life.SLACK + life.DEATH == 76.5
    assert quic.IDLE_INTERVAL + life.SLACK + life.DEATH == 41.5
    assert "77 s after the last byte over TCP" in text
    assert "42 s over\nUDP" in text
    assert quiet.GROWTH * quic.IDLE_INTERVAL + life.SLACK + life.DEATH == 66.5
    assert "67 s where NATs are known to bear longer silences" in text
    assert 2 * channels.MAX_CHANNELS * channels.WINDOW_FLOOR == channels.WINDOWS_TOTAL
    assert inbound.MAX_HANDSHAKES * channels.EARLY_DATA_LIMIT == 16 * 2**20
    assert "16 MiB of early data" in text
    assert listener.MAX_WAITING_PIPES * channels.WINDOW_MIN == 64 * 2**20
    assert "one window each, since credit is given with ACCEPT: 64 MiB" in text
    longest = 2 * replays.WINDOW / replays.CATCH_UP  # seconds for which an id is kept, as the docstring of ids says
    assert longest * rates.stranger_rate + rates.stranger_burst < rates.stranger_ids


# -- states, frames, rules ---------------------------------------------------------------------------------------------


def generated(text: str, name: str) -> str:
    match = re.search(rf"<!-- generated: {name} -->\n(.*?)<!-- end -->", text, re.DOTALL)
    assert match is not None
    return match[1]


def link_states() -> str:
    lines = ["| state | frame | who | next |", "| --- | --- | --- | --- |"]
    for state in states.LinkState:
        rows: dict[tuple[str, str], list[str]] = {}
        for kind in frames.FrameType:
            after, who = None, []
            for role in states.Role:
                try:
                    after = states.next_link_state(state, frozenset({role}), kind, ours=False)
                except ProtocolError:
                    continue
                who.append(role.value)
            if after is not None:
                key = ("either" if len(who) == len(states.Role) else ", ".join(who), after.name)
                rows.setdefault(key, []).append(kind.name)
        lines += [f"| {state.name} | {', '.join(kinds)} | {who} | {after} |" for (who, after), kinds in rows.items()]
        if not rows:
            lines.append(f"| {state.name} | none | | |")
    return "\n".join(lines) + "\n"


def direction_states() -> str:
    lines = ["| state | frame | next |", "| --- | --- | --- |"]
    for state in states.DirectionState:
        rows: dict[str, list[str]] = {}
        for kind in frames.FrameType:
            try:
                after = states.next_direction_state(state, kind, ours=False)
            except ProtocolError:
                continue
            rows.setdefault(after.name, []).append(kind.name)
        lines += [f"| {state.name} | {', '.join(kinds)} | {after} |" for after, kinds in rows.items()]
    return "\n".join(lines) + "\n"


def file_states() -> str:
    lines = ["| state | message | who | next |", "| --- | --- | --- | --- |"]
    for state in transfers.State:
        rows: dict[tuple[str, str], list[str]] = {}
        for (before, message), after in transfers._NEXT.items():
            if before is state:
                who = "sender" if message in SAID_BY_SENDERS else "receiver"
                rows.setdefault((who, after.name), []).append(FILE_MESSAGES[message])
        lines += [f"| {state.name} | {', '.join(said)} | {who} | {after} |" for (who, after), said in rows.items()]
        if not rows:
            lines.append(f"| {state.name} | none | | |")
    return "\n".join(lines) + "\n"


FILE_MESSAGES: dict[type, str] = {kind: name.name for name, kind in files_wire._TYPES.items()} | {
    files_wire.Block: "BLOCK"
}
SAID_BY_SENDERS = {kind for kind, name in FILE_MESSAGES.items() if files_wire.Kind[name] in transfers._SENDERS}


def test_the_messages_of_file_transfers() -> None:
    """Each message with its fields, and those of what it lists; a BLOCK by offset."""
    rows = table(page("wire_formats.md"), "file kind", "message", "from")
    kinds = {name: kind for kind, name in FILE_MESSAGES.items()}
    assert [(int(row["file kind"]), row["message"]) for row in rows] == [(k.value, k.name) for k in files_wire.Kind]
    nested = {"ENTRIES": files_wire.Entry, "ACCEPT": files_wire.Held}
    for row in rows:
        kind = kinds[row["message"]]
        assert row["from"] == ("sender" if kind in SAID_BY_SENDERS else "receiver")
        if kind is files_wire.Block:
            offset = last_field(row["fields"].removesuffix(" bytes").rpartition(" · ")[0])
            assert offset == len(files_wire.block_header(0, 0, bytes(16), 0)) == 29
            continue
        listed = nested.get(row["message"])
        fields = [*kind.__struct_fields__, *(() if listed is None else listed.__struct_fields__)]  # type: ignore[attr-defined]
        assert re.findall(r"`(\w+)`", row["fields"]) == fields
        assert bool(fields) == (row["fields"] != "none")


def test_the_reasons_of_file_transfers() -> None:
    rows = table(page("wire_formats.md"), "file reason", "name")
    assert [(int(row["file reason"]), row["name"]) for row in rows] == [(r.value, r.name) for r in files_wire.Reason]


def test_what_who_forwards_says() -> None:
    rows = table(page("wire_formats.md"), "label", "from")
    assert [bare(row["label"]) for row in rows] == [f"{each}HOST:PORT" for each in (TCP, BIND, BOUND)]
    rows = table(page("wire_formats.md"), "forwarding answer", "name")
    assert [(int(row["forwarding answer"]), row["name"]) for row in rows] == [(a.value, a.name) for a in Answer]
    assert encode_answer(Answer.BUSY, "so") == bytes([4, 2]) + b"so"


def test_the_messages_of_a_pairing() -> None:
    rows = table(page("wire_formats.md"), "kind", "message", "from")
    said = [(int(row["kind"]), f"{row['from'].upper()}S_{row['message']}") for row in rows]
    short = {"CLAIMERS_HELLO": "HELLO", "OFFERERS_REPLY": "REPLY"}
    assert [(kind, short.get(name, name)) for kind, name in said] == [(k.value, k.name) for k in handshake._Kind]


STATE_TABLES = [("link states", link_states), ("direction states", direction_states), ("file states", file_states)]


@pytest.mark.parametrize(("name", "render"), STATE_TABLES)
def test_the_state_tables(name: str, render: Callable[[], str]) -> None:
    assert generated(page("wire_formats.md"), name) == render()


def last_field(layout: str) -> int:
    """Offset of the end of a layout such as ``0 version u16 · 2 key 32``; fields without a width have length 0."""
    if not (match := re.search(r"(?:^|· )(\d+) [^·]*?(?:u(\d+)|(\d+))?$", layout)):
        return 0
    offset, bits, width = (int(each) if each else 0 for each in match.groups())
    return offset + bits // 8 + width


TERMS = frames.Terms(resume_timeout=0, secret=bytes(16), instance=bytes(8))
SAMPLES: dict[str, frames.Frame] = {
    "PROOF": frames.Proof(client_key=bytes(32), session_id=bytes(16), attempt_id=bytes(16), signature=bytes(64)),
    "COMMIT": frames.Commit(session_id=bytes(16), link_id=bytes(16), epoch=1, credit=1, terms=TERMS),
    "ACCEPT": frames.Accept(channel=1, credit=1, terms=TERMS),
    "REFUSE": frames.Refuse(channel=1, reason=1),
    "OPEN": frames.Open(channel=1, credit=1, label=""),
    "CREDIT": frames.Credit(channel=1, limit=1),
    "FIN": frames.Fin(channel=1, final_offset=1),
    "RESET": frames.Reset(channel=1, code=1),
    "PING": frames.Ping(token=1),
    "PONG": frames.Pong(token=1),
    "GOAWAY": frames.GoAway(),
    "ACK": frames.Ack(position=1),
    "ATTACH": frames.Attach(link_id=bytes(16), lane=3, received=1, turn=1, mac=bytes(16)),
    "ATTACHED": frames.Attached(lane=3, received=1, turn=1, mac=bytes(16)),
    "AT": frames.At(position=1, turn=1),
    "DROP": frames.Drop(lane=3),
    "NEWS": frames.News(payload=b""),
}


def test_the_link_frames() -> None:
    rows = table(page("wire_formats.md"), "type", "frame", "channel")
    assert [(bare(row["type"]), row["frame"]) for row in rows] == [(f"0x{k:02x}", k.name) for k in frames.FrameType]
    for row in rows:
        if row["frame"] == "DATA":
            continue
        encoded = frame_codec.encode(SAMPLES[row["frame"]])
        assert encoded[0] == int(bare(row["type"]), 16)
        layout = re.sub(r" · \d+ (text|label|signal) ≤ \d+$", "", row["payload, by offset"])  # empty in the samples
        layout = layout.partition(":")[0] if "limit" in layout or "position" in layout else layout
        assert len(encoded) - frame_codec.HEADER_SIZE == last_field(layout), row
        assert (int.from_bytes(encoded[4:8], "big") == 0) == (row["channel"] == "0")


def test_the_refuse_reasons() -> None:
    rows = table(page("wire_formats.md"), "refuse reason")
    assert {int(row["refuse reason"]): row["name"] for row in rows} == {r.value: r.name for r in frames.RefuseReason}


def test_the_reset_codes() -> None:
    rows = table(page("wire_formats.md"), "reset code")
    assert {int(row["reset code"]): row["name"] for row in rows} == {r.value: r.name for r in frames.ResetCode}
    rows = table(page("wire_formats.md"), "end code")
    assert {int(row["end code"]): row["name"] for row in rows} == {r.value: r.name for r in GoAwayCode}


def test_the_rendezvous_frames() -> None:
    rows = table(page("wire_formats.md"), "type", "frame", "from")
    expected = [
        *((code, kind.__name__.upper(), "server") for code, kind in rendezvous_frames._FROM_SERVER.items()),
        *((code, kind.__name__.upper(), "client") for code, kind in rendezvous_frames._FROM_CLIENT.items()),
    ]
    assert [(int(bare(row["type"]), 16), row["frame"], row["from"]) for row in rows] == sorted(expected)
    ends = table(page("wire_formats.md"), "end reason", "name")
    assert [(int(row["end reason"]), row["name"]) for row in ends] == [(each.value, each.name) for each in EndReason]
    for each in rendezvous_frames.ErrorCode:
        assert re.search(rf"\b{each.value} {each.name.lower().replace('_', ' ')}\b", page("wire_formats.md"))


def test_the_rules_of_the_planner() -> None:
    rows = table(page("walk.md"), "rule", "opinion")
    assert [bare(row["rule"]) for row in rows] == [rule.__name__.removeprefix("_") for rule in dialling.RULES]
    for row in rows:
        assert row["opinion"].partition(":")[0] in {each.value for each in Likelihood}


@pytest.mark.parametrize(("column", "rules"), [("relay rule", RENDEZVOUS_RULES), ("TURN rule", TURN_RULES)])
def test_the_rules_of_relays(column: str, rules: Sequence[Callable[..., object]]) -> None:
    rows = table(page("walk.md"), column, "opinion")
    assert [bare(row[column]) for row in rows] == [rule.__name__.removeprefix("_") for rule in rules]
    for row in rows:
        assert row["opinion"].partition(":")[0] in {each.value for each in Likelihood}


def test_the_rules_of_meetings() -> None:
    rows = table(page("walk.md"), "meeting rule", "opinion")
    rules = [rule.__name__.removeprefix("_") for rule in meetings.MEETING_RULES]
    assert [bare(row["meeting rule"]) for row in rows] == rules
    for row in rows:
        likelihood = row["opinion"].partition(":")[0]
        assert likelihood in {each.value for each in Likelihood} or row["meeting rule"] == "`outlook`"


def test_the_messages_of_the_plugins_that_meet() -> None:
    rows = table(page("wire_formats.md"), "message", "fields of its own")
    path = set(plugin.PathRequest.__struct_fields__)
    expected = {
        wire_name(name, message): [field for field in message.__struct_fields__ if field not in path]
        for name, kind in load_plugins().plugins.items()
        if kind.aim in (Aim.MEET, Aim.RELAY)
        for message in kind.proto_messages
    }
    assert {bare(row["message"]): re.findall(r"`(\w+)`", row["fields of its own"]) for row in rows} == expected


# -- the code's map ----------------------------------------------------------------------------------------------------

PACKAGE = ROOT / "warpgate_trio"
STRATEGIES_FOLDER = ROOT / "strategies" / "warpgate_strategies"


def source_of(path: str) -> Path:
    """The file that architecture.md calls, for example, ``walk/walk.py`` or ``strategies/fan_out.py``."""
    first, _, rest = path.partition("/")
    return STRATEGIES_FOLDER / rest if first == STRATEGIES else PACKAGE / path


def names_in(path: str) -> set[str]:
    """The functions, classes, methods and constants of a module: ``walk``, ``Walk.run``."""
    found: set[str] = set()
    for node in ast.parse(source_of(path).read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            found.add(node.name)
        if isinstance(node, ast.ClassDef):
            inner = [each for each in node.body if isinstance(each, ast.FunctionDef | ast.AsyncFunctionDef)]
            found |= {f"{node.name}.{each.name}" for each in inner}
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            found.add(node.target.id)
    return found


def test_the_architecture_is_read_in_twenty_minutes() -> None:
    lines = page("architecture.md").splitlines()
    assert len(lines) <= 250
    assert [line for line in lines if len(line) > 120 and not line.startswith("|")] == []


def test_the_routes_lead_through_functions_that_exist() -> None:
    routes = [rows for rows in tables(page("architecture.md")) if tuple(rows[0])[:2] == ("file", "name")]
    assert len(routes) == 4
    for row in (row for rows in routes for row in rows):
        assert bare(row["name"]) in names_in(bare(row["file"])), row


def test_the_files_that_the_architecture_names_exist_and_no_folder_is_left_out() -> None:
    text = page("architecture.md")
    rows = [bare(name) for row in table(text, "folder") for name in row["folder"].split(", ")]
    assert [name for name in rows if not source_of(name).exists()] == []
    inside = re.findall(r"`((?:\w+/)+\w+\.py)`", text)
    tools = {"tools/house_lint.py"}
    assert [name for name in inside if name not in tools and not source_of(name).exists()] == []
    there = {f"{each.name}/" for each in PACKAGE.iterdir() if (each / "__init__.py").exists()}
    there |= {each.name for each in PACKAGE.glob("*.py") if each.name not in ("__init__.py", "__main__.py")}
    assert there <= set(rows)


def test_a_page_that_the_code_names_exists() -> None:
    folders = ("warpgate_trio", "strategies", "tests", "tools", "benchmarks", "examples")
    sources = [path for folder in folders for path in (ROOT / folder).rglob("*.py")]
    named = {
        name for path in sources for name in re.findall(r"docs/((?:\w+/)?\w+\.md)", path.read_text(encoding="utf-8"))
    }
    assert named
    assert {name for name in named if not (DOCS / name).exists()} == set()


# -- configuration -----------------------------------------------------------------------------------------------------


def shown_default(value: object) -> str:
    if value is None:
        return "none"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if isinstance(value, tuple):
        return f"`{json.dumps(value)}`"
    return f"`{value}`"


def test_every_key_with_its_default_and_variable() -> None:
    defaults = config.NodeConfig()
    expected = [
        (f"`{section}.{key}`", shown_default(getattr(getattr(defaults, section), key)))
        for section in config.NodeConfig.__struct_fields__
        for key in getattr(defaults, section).__struct_fields__
    ]
    rows = table(page("configuration.md"), "key", "default", "environment", "meaning")
    assert [(row["key"], row["default"]) for row in rows] == expected
    for row in rows:
        assert bare(row["environment"]) == "WARPGATE_" + bare(row["key"]).upper().replace(".", "_")


def test_what_is_not_built_is_called_so() -> None:
    rows = {bare(row["key"]): row["meaning"] for row in table(page("configuration.md"), "key", "default")}
    assert ("*Read, not used yet*" in rows["servers.mqtt"]) is not MQTT_IS_BUILT
    assert ("no MQTT transport" in page("architecture.md")) is not MQTT_IS_BUILT
    shipped = {kind.phase for kind in load_plugins().plugins.values()}
    for phase in ("punch", "spray"):
        assert ("it has no plugins yet" in rows[f"budgets.{phase}"]) is (phase not in shipped)
    assert ("it has no plugins yet" in rows["budgets.relay_base"]) is ("relay" not in shipped)


def test_every_variable_is_known_and_no_other() -> None:
    samples = {
        "key_file": "k",
        "ephemeral": "1",
        "port": "1",
        "proxy": "none",
        "ca_file": "c",
        "protocols": "pcp",
    }
    samples["relay_token"] = "16 or more is so".replace(" ", "-")
    urls = {"websocket": "ws://a", "mqtt": "mqtt://a", "stun": "stun:a", "turn": "turn:a", "ntp": "ntp://a"}
    for row in table(page("configuration.md"), "key", "default", "environment"):
        name = bare(row["key"]).partition(".")[2]
        value = (samples | urls).get(name, "1")
        changed = config.load_config(env={bare(row["environment"]): value})
        section = bare(row["key"]).partition(".")[0]
        assert getattr(getattr(changed, section), name) not in (None, ())
    for name in ("WARPGATE_REQUIRE", "WARPGATE_PYTHON"):
        assert config.load_config(env={name: "x"}) == config.load_config(env={})
    with pytest.raises(ConfigError, match="unknown variable WARPGATE_OTHER"):
        config.load_config(env={"WARPGATE_OTHER": "1"})


def test_the_configuration_file_and_the_code_that_reads_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (text,) = code(page("configuration.md"), "toml")
    parsed = config.NodeConfig.from_toml(text, base_dir=tmp_path)
    assert set(tomllib.loads(text)) == set(config.NodeConfig.__struct_fields__)
    assert parsed.servers.turn[0].username == "u"
    (tmp_path / "node.toml").write_text(text)
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    (program,) = code(page("configuration.md"), "python")
    exec(compile(program, "configuration.md", "exec"), names)
    assert names["config"] == parsed


# -- verdicts ----------------------------------------------------------------------------------------------------------


def test_every_verdict_with_its_advice_and_exit_code() -> None:
    rows = table(page("verdicts.md"), "verdict")
    assert {bare(row["verdict"]) for row in rows} == {verdict.value for verdict in Verdict}
    assert len(rows) == len(Verdict)
    for row in rows:
        verdict = Verdict(bare(row["verdict"]))
        assert row["advice"] == ADVICE[verdict]
        assert int(row["exit"]) == exit_code_of_verdict(verdict.value)


def test_better_advice() -> None:
    rows = table(page("verdicts.md"), "verdict, where")
    assert {(Verdict(bare(row["verdict, where"])), Known(row["more is known"])) for row in rows} == set(BETTER_ADVICE)
    for row in rows:
        assert row["advice"] == BETTER_ADVICE[Verdict(bare(row["verdict, where"])), Known(row["more is known"])]


def test_every_outcome() -> None:
    rows = table(page("verdicts.md"), "outcome", "meaning")
    assert [bare(row["outcome"]) for row in rows] == [outcome.value for outcome in Outcome]


# -- plugins -----------------------------------------------------------------------------------------------------------

GUIDE = "writing_a_plugin.md"
DECLARED = ("name", "phase", "transport", "route_types", "timeout", "proto_messages", "aim", "pathless")


def test_what_a_plugin_declares() -> None:
    rows = table(page(GUIDE), "attribute", "default", "meaning")
    assert [bare(row["attribute"]) for row in rows] == list(DECLARED)
    for name in ("timeout", "proto_messages", "pathless"):
        (row,) = [each for each in rows if bare(each["attribute"]) == name]
        assert bare(row["default"]) == str(getattr(Plugin, name))
    assert get_args(plugin.Phase) == tuple(re.findall(r'"(\w+)"', rows[1]["meaning"]))


def test_what_run_sees_is_in_the_table_and_nothing_else() -> None:
    named = {bare(row["`self.…`"]) for row in table(page(GUIDE), "`self.…`")}
    members = {name for name in dir(Plugin) if not name.startswith("_")}
    assert named == members - set(DECLARED) - {"run", "setup", "outlook"}


def test_what_a_node_shows_is_in_the_table_and_nothing_else() -> None:
    named = {bare(row["`self.node.…`"]) for row in table(page(GUIDE), "`self.node.…`")}
    methods = {name for name in vars(plugin.NodeView) if not name.startswith("_")}
    assert named == set(plugin.NodeView.__annotations__) | methods


@pytest.fixture
def guide(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, own_plugins: None) -> Iterator[types.ModuleType]:
    """The guide's plugin, made from the guide's text and installed as it says."""
    programs = code(page(GUIDE), "python")
    (project,) = code(page(GUIDE), "toml")
    ((name, value),) = tomllib.loads(project)["project"]["entry-points"][ENTRY_POINT_GROUP].items()
    names = [text.partition("\n")[0].removeprefix("# ").partition(",")[0] for text in programs]
    assert names == [f"{value}.py", f"test_{value}.py", f"test_{value}_alone.py"]
    for file_name, text in zip(names, programs, strict=True):
        (tmp_path / file_name).write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))
    loaded = load_plugins(entry_points=[EntryPoint(name=name, value=value, group=ENTRY_POINT_GROUP)])
    assert loaded.problems == ()
    assert loaded.plugins["doorbell"].__module__ == value
    yield sys.modules[value]
    for module in [value, f"test_{value}", f"test_{value}_alone"]:
        sys.modules.pop(module, None)


async def run_tests_of(module: str) -> int:
    """Run the functions of the module that are called `test_…`, and return their number."""
    tests = [each for name, each in vars(importlib.import_module(module)).items() if name.startswith("test_")]
    for test in tests:
        await test()
    return len(tests)


async def test_the_guides_own_test_passes(guide: types.ModuleType) -> None:
    async with on_host(LoopbackHost()):
        assert await run_tests_of(f"test_{guide.__name__}") == 1


async def test_the_guides_tests_without_a_peer_pass(guide: types.ModuleType) -> None:
    assert await run_tests_of(f"test_{guide.__name__}_alone") == 2
    played: Any = sys.modules[f"test_{guide.__name__}_alone"]
    assert {name for name in dir(plugin.AttemptContext) if not name.startswith("_")} <= set(dir(played.AloneRun()))


async def test_the_guides_plugin_opens_and_closes_its_door(
    guide: types.ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[str, str]] = []
    closed = trio.Event()

    async def note_open(self: object, door: object) -> None:
        await trio.lowlevel.checkpoint()
        seen.append(("open", str(door)))

    async def note_close(self: object, door: object) -> None:
        await trio.lowlevel.checkpoint()
        seen.append(("close", str(door)))
        closed.set()

    doors: Any = vars(guide)["Doors"]
    monkeypatch.setattr(doors, "open", note_open)
    monkeypatch.setattr(doors, "close", note_close)
    async with pair(plugins=["doorbell"]) as both:
        async with await both.alice.auto_connect(both.bob.address, afs=[4]) as pipe:
            assert pipe.report is not None
            assert pipe.report.winner is not None
            door = pipe.report.winner.target
            with trio.fail_after(HANG):
                await closed.wait()
    assert seen == [("open", door), ("close", door)]


class Look(plugin.PathRequest, frozen=True):
    """Asks the peer to look, too."""


def looker(seen: dict[bool, dict[str, object]], finished: list[str]) -> type[Plugin]:
    """A plugin that records each attribute in the guide's table, then connects as `reverse_connect` does."""

    class Looker(Plugin):
        name = "looker"
        proto_messages = (Look,)
        aim = plugin.Aim.OURS

        async def run(self, reply: Message | None = None) -> Any:
            from warpgate_strategies.direct_connect import dial

            names = [bare(row["`self.…`"]) for row in table(page(GUIDE), "`self.…`")]
            seen[self.inbound] = {name: getattr(self, name) for name in names} | {"reply": reply}
            self.adopt(self._work("adopted"))
            self.goodbye(self._work("goodbye"))
            self.nursery.start_soon(trio.sleep_forever)
            if self.inbound:
                return await dial(self)
            dest = self.dest
            await self.send_signal(Look(af=dest.af, route_type=self.route_type, address=dest.address, port=dest.port))
            return await self.wait_inbound()

        def _work(self, what: str) -> Callable[[], Awaitable[None]]:
            async def work() -> None:
                try:
                    finished.append(what)
                    await trio.sleep_forever()
                finally:
                    finished.append(f"{what} ended")

            return work

    return plugin.register(phase="punch")(Looker)


async def test_what_both_halves_see(own_plugins: None) -> None:
    seen: dict[bool, dict[str, object]] = {}
    finished: list[str] = []
    kind = looker(seen, finished)
    budgets = config.Budgets(goodbye=0.15)
    async with pair(plugins=[kind], budgets=budgets) as both:
        async with await both.alice.connect(both.bob.address, plugin="looker", af=4) as pipe:
            alice, bob = seen[False], seen[True]
            for name in ("session_id", "attempt_id", "af", "route_type", "dest"):
                assert alice[name] == bob[name]
            assert alice["peer"] == both.bob.address
            assert bob["peer"] == both.alice.address
            assert (alice["inbound"], bob["inbound"]) == (False, True)
            assert alice["reply"] is None
            assert isinstance(bob["reply"], Look)
            assert alice["src"] is bob["src"] is None  # both nodes are on one host
            assert alice["nat"] is bob["nat"] is None
            for each in (alice["budget"], bob["budget"]):
                assert isinstance(each, float)
                assert 9 < each <= 10
            for each, node in ((alice, both.alice), (bob, both.bob)):
                view: Any = each["node"]
                assert (view.peer_id, view.address) == (node.peer_id, node.address)
                assert view.budgets == budgets
                assert view.clock is each["clock"]
            assert pipe.path.phase == "punch"
            await trio.testing.wait_all_tasks_blocked()
            assert finished.count("adopted") == finished.count("goodbye") == 2
            assert "adopted ended" not in finished
    assert sorted(finished) == 2 * ["adopted"] + 2 * ["adopted ended"] + 2 * ["goodbye"] + 2 * ["goodbye ended"]


async def test_a_plugin_that_the_peer_lacks_fails_alone(own_plugins: None) -> None:
    """As the guide says: that combo fails, and the others go on."""
    seen: dict[bool, dict[str, object]] = {}
    kind = looker(seen, [])
    asked = trio.Event()

    class Patient(Plugin):
        """Dials once the request of the other plugin has been answered, or after 0.1 s."""

        name = "patient"

        async def run(self, reply: Message | None = None) -> Any:
            from warpgate_strategies.direct_connect import dial

            with trio.move_on_after(0.1):
                await asked.wait()
            return await dial(self)

    plugin.register(phase="punch")(Patient)
    async with (
        open_rendezvous() as server,
        loopback_node(BOB, node_config(server), authorize=warpgate_trio.anyone, plugins=["direct_connect"]) as bob,
        loopback_node(
            ALICE, node_config(server, budgets=config.Budgets(goodbye=0.05)), plugins=[kind, Patient]
        ) as alice,
    ):
        await bob.wait_signals()
        await alice.wait_signals()
        async with await alice.auto_connect(bob.address, afs=[4]) as pipe:
            assert pipe.path.plugin == "patient"
