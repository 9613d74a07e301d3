from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import msgspec
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from warpgate_trio.config import (
    Budgets,
    IdentityConfig,
    InterfacesConfig,
    ListenConfig,
    NodeConfig,
    PathsConfig,
    Servers,
    ServerUrl,
    TurnServer,
    config,
    load_config,
)
from warpgate_trio.errors import ConfigError

quick = settings(max_examples=60, deadline=None)


class Home:
    """A user's home directory, which holds no configuration file but the user's own, and a working directory."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.cwd = path / "cwd"
        self.user_file = config.default_config_file()

    def write(self, name: str, text: str) -> Path:
        file = self.path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        return file

    def write_user_file(self, text: str) -> None:
        self.user_file.parent.mkdir(parents=True)
        self.user_file.write_text(text)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    monkeypatch.setattr("platformdirs.user_config_path", lambda name, appauthor: tmp_path / ".config" / name)
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")
    return Home(tmp_path)


class TestServerUrl:
    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ("ws://a.example", ServerUrl("ws", "a.example", 80)),
            ("wss://a.example", ServerUrl("wss", "a.example", 443)),
            ("wss://a.example:444/x/y", ServerUrl("wss", "a.example", 444, path="/x/y")),
            ("ws://a/?k=v&e=", ServerUrl("ws", "a", 80, path="/", params=(("k", "v"), ("e", "")))),
            ("mqtt://10.0.0.1", ServerUrl("mqtt", "10.0.0.1", 1883)),
            ("mqtts://u:p%40%3A%2F@h", ServerUrl("mqtts", "h", 8883, "u", "p@:/")),
            ("mqtt://u@h", ServerUrl("mqtt", "h", 1883, "u")),
            ("stun:s.example", ServerUrl("stun", "s.example", 3478)),
            ("stun:s.example:19302", ServerUrl("stun", "s.example", 19302)),
            ("stuns:[2001:db8::1]", ServerUrl("stuns", "2001:db8::1", 5349)),
            ("turn:t:1?transport=tcp", ServerUrl("turn", "t", 1, params=(("transport", "tcp"),))),
            ("turns:t", ServerUrl("turns", "t", 5349)),
            ("ntp://time.example", ServerUrl("ntp", "time.example", 123)),
            ("ws://[::1]:8080", ServerUrl("ws", "::1", 8080)),
            ("ws://my_host-1.local.", ServerUrl("ws", "my_host-1.local.", 80)),
        ],
    )
    def test_parse_and_back(self, text: str, expected: ServerUrl) -> None:
        assert ServerUrl.parse(text) == expected
        assert str(expected) == text

    @pytest.mark.parametrize(
        ("text", "normal"),
        [
            ("WS://A.Example:80", "ws://a.example"),
            ("stun:h:3478", "stun:h"),
            ("ntp://[2001:DB8:0::1]", "ntp://[2001:db8::1]"),
            ("ws://a?x", "ws://a?x="),
            ("ws://a?", "ws://a"),
        ],
    )
    def test_normal_form(self, text: str, normal: str) -> None:
        assert str(ServerUrl.parse(text)) == normal
        assert ServerUrl.parse(normal) == ServerUrl.parse(text)

    @pytest.mark.parametrize(
        ("text", "reason"),
        [
            ("", "printable ASCII"),
            ("ws://a b", "printable ASCII"),
            ("ws://a/\r\nHost: b", "printable ASCII"),
            ("ws://\u00e4.example", "printable ASCII"),
            ("a.example", "expected scheme://host:port"),
            ("ws://a#f", "expected scheme://host:port"),
            ("http://a", "expected one of the schemes ws, wss,"),
            ("ws:a", "expected ws://host:port"),
            ("ntp:a", "expected ntp://host:port"),
            ("stun://a", "expected stun:host:port"),
            ("turn://a", "expected turn:host:port"),
            ("ws://a:", "the port has to be 1 to 65535"),
            ("ws://a:0", "the port has to be 1 to 65535"),
            ("ws://a:65536", "the port has to be 1 to 65535"),
            ("ws://a:+80", "the port has to be 1 to 65535"),
            ("ws://a:99999999999999999999", "the port has to be 1 to 65535"),
            ("ws://::1", "the port has to be 1 to 65535"),
            ("ws://", "the host is a DNS name"),
            ("ws://a..b", "the host is a DNS name"),
            ("ws://-a", "the host is a DNS name"),
            ("ws://" + "a" * 64, "the host is a DNS name"),
            ("ws://" + "a." * 127, "the host is a DNS name"),
            ("ws://1.2.3", "the host is a DNS name"),
            ("ws://1.2.3.256", "the host is a DNS name"),
            ("ws://[::1", "expected ws://host:port"),
            ("ws://[1.2.3.4]", "the host is a DNS name"),
            ("ws://[fe80::1%25eth0]", "the host is a DNS name"),
            ("ws://@a", "needs a name"),
            ("ws://:p@a", "needs a name"),
            ("ws://u%00@a", "control characters"),
            ("ws://u:%ff@a", "percent-encoded UTF-8"),
            ("ws://a?%ff", "percent-encoded UTF-8"),
            ("stun:u:p@a", "a stun URL cannot have a login"),
            ("ntp://u@a", "a ntp URL cannot have a login"),
            ("stun:a/x", "a stun URL cannot have a path"),
            ("ntp://a/", "a ntp URL cannot have a path"),
            ("stun:a?transport=udp", "a stun URL cannot have a query"),
            ("turn:a?transport=sctp", "transport=udp or transport=tcp"),
            ("turn:a?x=y", "transport=udp or transport=tcp"),
            ("turns:a?transport=udp", "not supported"),
        ],
    )
    def test_says_what_is_wrong(self, text: str, reason: str) -> None:
        with pytest.raises(ConfigError, match=reason):
            ServerUrl.parse(text)

    @pytest.mark.parametrize(
        ("text", "transport", "tls"),
        [
            ("ws://a", "tcp", False),
            ("wss://a", "tcp", True),
            ("mqtts://a", "tcp", True),
            ("stun:a", "udp", False),
            ("stuns:a", "tcp", True),
            ("turn:a", "udp", False),
            ("turn:a?transport=udp", "udp", False),
            ("turn:a?transport=tcp", "tcp", False),
            ("turns:a?transport=tcp", "tcp", True),
            ("ntp://a", "udp", False),
        ],
    )
    def test_transport(self, text: str, transport: str, tls: bool) -> None:
        url = ServerUrl.parse(text)
        assert (url.transport, url.tls) == (transport, tls)

    @pytest.mark.parametrize(
        ("text", "target"), [("ws://a", "/"), ("ws://a?k=v", "/?k=v"), ("ws://a/b?k=v+w", "/b?k=v+w")]
    )
    def test_target(self, text: str, target: str) -> None:
        assert ServerUrl.parse(text).target == target

    def test_hides_secrets(self) -> None:
        url = ServerUrl.parse("wss://name:secret@a/path?token=secret&transport=x")
        assert url.redacted == "wss://name:***@a/path?token=***&transport=x"
        assert repr(url) == f"ServerUrl('{url.redacted}')"
        assert "secret" in str(url)
        assert ServerUrl.parse("ws://a?secret").redacted == ServerUrl.parse("ws://a?secret=").redacted == "ws://a?***="

    @pytest.mark.parametrize(
        ("text", "published"),
        [
            ("wss://name:secret@a:5/path?token=secret&secret", "wss://a:5/path"),
            ("wss://a/?token=secret", "wss://a/"),
            ("mqtts://name@a/topics", "mqtts://a/topics"),
        ],
    )
    def test_publishes_no_secrets(self, text: str, published: str) -> None:
        assert str(ServerUrl.parse(text).published) == published

    @pytest.mark.parametrize(
        "text",
        [
            "http://name:secret@a",
            "mqtt://name:sec/secret@a",
            "mqtt://name:sec@secret@a",
            "mqtt://name:secret @a",
            "mqtt://name:sec?secret@a",
            "stun:name:secret@a",
            "ws://a/?token=secret#",
            "ws:name:secret@a",
        ],
    )
    def test_errors_hide_secrets(self, text: str) -> None:
        with pytest.raises(ConfigError) as caught:
            ServerUrl.parse(text)
        assert "secret" not in str(caught.value)
        assert "***" in str(caught.value)
        assert caught.value.__cause__ is None

    @quick
    @given(
        st.text("wsturn:/@?[]%#.=&0123\\ \n\x00\u00e4", max_size=40).map("ws://".__add__) | st.text("ws:/a", max_size=9)
    )
    @example("ws://[::ffff:1.2.3.4%1]")
    def test_hostile_text(self, text: str) -> None:
        try:
            url = ServerUrl.parse(text)
        except ConfigError:
            return
        assert ServerUrl.parse(str(url)) == url
        assert str(ServerUrl.parse(str(url))) == str(url)

    printable = st.text(
        st.characters(min_codepoint=33, max_codepoint=126) | st.sampled_from("\u00e4\u20ac"), min_size=1
    )

    @quick
    @given(username=printable, password=printable, params=st.lists(st.tuples(printable, printable), max_size=3))
    def test_round_trip(self, username: str, password: str, params: list[tuple[str, str]]) -> None:
        url = ServerUrl("mqtt", "h", 5, username, password, "/p", tuple(params))
        assert ServerUrl.parse(str(url)) == url


class TestTurnServer:
    def test_login_beside_the_url(self) -> None:
        server = TurnServer("turn:h?transport=tcp", "name", "secret")
        assert str(server.url) == "turn:h?transport=tcp"
        assert repr(server) == "TurnServer('turn:h?transport=tcp', username='name', password='***')"

    def test_login_in_the_url(self) -> None:
        assert TurnServer("turn:name:se%2Fcret@h") == TurnServer(ServerUrl.parse("turn:h"), "name", "se/cret")

    def test_without_login(self) -> None:
        server = TurnServer("turns:h")
        assert (server.username, server.password) == (None, None)
        assert repr(server) == "TurnServer('turns:h', username=None, password=None)"

    @pytest.mark.parametrize(
        ("arguments", "reason"),
        [
            (("stun:h",), "scheme turn or turns"),
            (("turn:h:x",), "the port"),
            ((5,), "scheme turn or turns"),
            (("turn:h", "name"), "both a username and a password"),
            (("turn:h", None, "secret"), "both a username and a password"),
            (("turn:h", "", "secret"), "both a username and a password"),
            (("turn:h", 5, "secret"), "both a username and a password"),
            (("turn:name@h",), "both a username and a password"),
            (("turn:name:secret@h", "name", "secret"), "given twice"),
        ],
    )
    def test_says_what_is_wrong(self, arguments: tuple[Any, ...], reason: str) -> None:
        with pytest.raises(ConfigError, match=reason) as caught:
            TurnServer(*arguments)
        assert "secret" not in str(caught.value)


class TestInCode:
    def test_defaults(self) -> None:
        made = NodeConfig()
        assert made == NodeConfig(
            identity=IdentityConfig(), listen=ListenConfig(), servers=Servers(), budgets=Budgets()
        )
        assert made.identity == IdentityConfig(key_file=None, ephemeral=False)
        assert made.listen.port == 0
        assert not any((made.servers.websocket, made.servers.mqtt, made.servers.stun, made.servers.turn))
        assert msgspec.structs.asdict(made.budgets) == {
            "direct_min": 0.3,
            "direct_max": 2.0,
            "punch": 1.5,
            "spray": 5.0,
            "relay_base": 4.0,
            "total": 30.0,
            "handshake": 10.0,
            "commit": 5.0,
            "authorize": 10.0,
            "goodbye": 2.0,
            "signal": 5.0,
        }

    def test_texts_become_urls(self) -> None:
        servers = Servers(
            websocket=["ws://a", ServerUrl.parse("wss://b")],
            mqtt=("mqtt://m",),
            stun=(each for each in ["stun:s"]),
            turn=["turn:n:p@t", TurnServer("turn:u")],
            ntp=["ntp://n"],
        )
        assert servers.websocket == (ServerUrl("ws", "a", 80), ServerUrl("wss", "b", 443))
        assert servers.stun == (ServerUrl("stun", "s", 3478),)
        assert servers.turn == (TurnServer("turn:t", "n", "p"), TurnServer("turn:u"))
        assert isinstance(hash(servers), int)

    def test_checked_like_everything_else(self) -> None:
        with pytest.raises(ConfigError, match=r"^listen.port = 65536: expected a port number, 0 to 65535$"):
            ListenConfig(port=65536)
        with pytest.raises(ConfigError, match=r"^servers.stun\[1\] = 'ws://a': expected a URL with the scheme stun or"):
            Servers(stun=["stun:a", "ws://a"])
        with pytest.raises(ConfigError, match=r"^servers.websocket = 'ws://a': expected a list of ws and wss URLs$"):
            Servers(websocket="ws://a")
        with pytest.raises(ConfigError, match="port"):
            msgspec.structs.replace(ListenConfig(), port=-1)

    @pytest.mark.parametrize("name", Budgets.__struct_fields__)
    @pytest.mark.parametrize("value", [0, -1.0, float("inf"), float("nan"), True, "1", None])
    def test_every_budget_is_a_positive_number(self, name: str, value: object) -> None:
        with pytest.raises(ConfigError, match=f"budgets.{name} = .*: expected a number of seconds above 0"):
            Budgets(**cast("dict[str, Any]", {name: value}))

    @pytest.mark.parametrize("value", [-1.0, float("inf"), float("nan"), True, "1", None])
    def test_a_death_is_noticed_within_seconds_or_not_asked_about(self, value: object) -> None:
        assert (PathsConfig().dead_after, PathsConfig(dead_after=6).dead_after) == (0.0, 6.0)
        with pytest.raises(ConfigError, match=r"^paths.dead_after = .*: expected a number of seconds, or 0$"):
            PathsConfig(**cast("dict[str, Any]", {"dead_after": value}))

    def test_direct_phase(self) -> None:
        assert Budgets(direct_min=2, direct_max=2).direct_min == 2.0
        with pytest.raises(ConfigError, match=r"budgets.direct_min = 2.5 is more than budgets.direct_max = 2.0"):
            Budgets(direct_min=2.5)

    def test_paths_are_left_as_they_are(self, home: Home) -> None:
        assert IdentityConfig(key_file=Path("a/b")).key_file == Path("a/b")
        assert IdentityConfig(key_file=Path("~/b")).key_file == home.path / "b"

    def test_shows_no_secret(self) -> None:
        made = NodeConfig(
            servers=Servers(
                websocket=["wss://name:secret@a?token=secret"],
                mqtt=["mqtt://name:secret@a"],
                turn=["turn:name:secret@a"],
            )
        )
        assert "secret" not in repr(made)
        assert "secret" not in made.to_toml(redact=True)
        assert made.to_toml(redact=True).count("***") == 4
        assert made.to_toml().count("secret") == 4


FULL = NodeConfig(
    identity=IdentityConfig(key_file=Path("/keys/node.key"), ephemeral=True),
    listen=ListenConfig(port=4433),
    interfaces=InterfacesConfig(include=["eth*", "vEthernet (External)"], exclude=["tun?"]),
    servers=Servers(
        websocket=["wss://name:p%40ss@a/x?k=v", "ws://[::1]:5"],
        mqtt=["mqtts://m"],
        stun=["stun:s"],
        turn=[TurnServer("turn:t?transport=tcp", "name", 'pass"word\\'), TurnServer("turns:t")],
        ntp=["ntp://n"],
        ca_file=Path("/ca.pem"),
    ),
    budgets=Budgets(punch=2.25),
)


class TestToml:
    @pytest.mark.parametrize("made", [NodeConfig(), FULL])
    def test_round_trip(self, made: NodeConfig) -> None:
        assert NodeConfig.from_toml(made.to_toml(), base_dir="/") == made

    def test_defaults_are_written_and_none_is_not(self) -> None:
        assert (
            NodeConfig()
            .to_toml()
            .startswith("[identity]\nephemeral = false\n\n[listen]\nport = 0\nfindable = true\n\n[interfaces]\n")
        )

    def test_turn_servers_as_text_and_as_table(self) -> None:
        text = 'servers.turn = ["turn:n:p@a", {url = "turn:b", username = "n", password = "p"}, {url = "turn:c"}]'
        assert NodeConfig.from_toml(text, base_dir="/").servers.turn == (
            TurnServer("turn:a", "n", "p"),
            TurnServer("turn:b", "n", "p"),
            TurnServer("turn:c"),
        )

    def test_paths(self, home: Home) -> None:
        text = '[identity]\nkey_file = "sub/node.key"\n[servers]\nca_file = "~/ca.pem"'
        made = NodeConfig.from_toml(text, base_dir="/etc/warpgate")
        assert made.identity.key_file == Path("/etc/warpgate/sub/node.key")
        assert made.servers.ca_file == home.path / "ca.pem"

    @pytest.mark.parametrize(
        ("text", "reason"),
        [
            ("[listen]\nprot = 1", r"^the TOML text: unknown key listen.prot; the nearest known one is listen.port$"),
            ("[lisen]\nport = 1", "unknown key lisen; the nearest known one is listen$"),
            ("port = 1", "unknown key port; the nearest known one is listen.port$"),
            ("listen = 1", r"listen = 1: expected a table, \[listen\]$"),
            ("[[listen]]\nport = 1", r"expected a table, \[listen\]$"),
            ("[listen]\nport = '1'", "listen.port = '1': expected a port number, 0 to 65535$"),
            ("[listen]\nport = 1.0", "listen.port = 1.0: expected a port number"),
            ("[listen]\nport = true", "listen.port = True: expected a port number"),
            ("[identity]\nephemeral = 1", "identity.ephemeral = 1: expected true or false"),
            ("[identity]\nkey_file = 1", "identity.key_file = 1: expected a path"),
            ("[identity]\nkey_file = ''", "identity.key_file = '': expected a path"),
            ('[identity]\nkey_file = "a\\u0000b"', r"identity.key_file = 'a\\x00b': expected a path"),
            ('[identity]\nkey_file = "~nobody-here/k"', "home directory that '~' stands for is not known"),
            ('[identity]\nkey_file = "~\ud800/k"', "'~' is followed by an invalid user name"),
            ("[budgets]\npunch = '1'", "budgets.punch = '1': expected a number of seconds above 0"),
            ("[budgets]\npunch = 0x" + "f" * 9000, "budgets.punch = a huge number: expected"),
            ("[budgets]\npunch = " + "9" * 400, "budgets.punch = a huge number: expected"),
            (
                "[interfaces]\ninclude = 'eth0'",
                "interfaces.include = 'eth0': expected a list of globs of interface names",
            ),
            ("[interfaces]\nexclude = ['a', '']", r"interfaces.exclude\[1\] = '': expected a glob of interface names"),
            (
                "[interfaces]\nexclude = [1]",
                r"interfaces.exclude\[0\] = 1: expected a glob of interface names, such as 'wg",
            ),
            ("[servers]\nstun = 'stun:a'", "servers.stun = 'stun:a': expected a list of stun and stuns URLs"),
            ("[servers]\nstun = {a = 1}", "servers.stun = {a: 1}: expected a list"),
            ("[servers]\nstun = ['stun:a', 1]", r"servers.stun\[1\] = 1: expected a URL with the scheme stun or stuns"),
            ("[servers]\nturn = [1]", r"servers.turn\[0\] = 1: expected a URL with the scheme turn or turns"),
            ("[servers]\nturn = [{url='turn:a', user='x'}]", "unknown key user; the nearest known one is username"),
            ("[servers]\nturn = [{username='x'}]", "needs a url"),
            (
                "[servers]\nturn = [{url='turn:a', password='secret'}]",
                r"turn\[0\] = {url: 'turn:a', password: \*\*\*}:",
            ),
            ("[listen]\nport = \n", r"the TOML text: .*line 2"),
            ("a = " + "[" * 5000, "the TOML text: "),
            ("a = " + "9" * 5000, "the TOML text: "),
        ],
    )
    def test_errors(self, text: str, reason: str) -> None:
        with pytest.raises(ConfigError, match=reason) as caught:
            NodeConfig.from_toml(text, base_dir="/")
        assert len(str(caught.value)) < 400
        assert "secret" not in str(caught.value)

    @quick
    @given(st.text("[]{}=\"'.,#\n abeilnprstuv0159-:", max_size=60))
    @example("servers.turn = [{}]")
    @example("servers.stun = [[]]")
    @example("budgets.punch = 1979-05-27")
    def test_hostile_text(self, text: str) -> None:
        try:
            NodeConfig.from_toml(text, base_dir="/")
        except ConfigError:
            return


class TestLoad:
    def test_defaults(self, home: Home) -> None:
        assert load_config(env={}) == NodeConfig()

    def test_precedence(self, home: Home) -> None:
        """Each source names one key more than the one above it; every key comes from the strongest that names it."""
        overrides: dict[str, object] = {"budgets.punch": 1}
        env = {"WARPGATE_BUDGETS_PUNCH": "2", "WARPGATE_BUDGETS_SPRAY": "2"}
        file = home.write("named.toml", "budgets = {punch = 3, spray = 3, total = 3}")
        home.write_user_file("budgets = {punch = 4, spray = 4, total = 4, commit = 4}")
        budgets = load_config(file=file, env=env, overrides=overrides).budgets
        assert (budgets.punch, budgets.spray, budgets.total, budgets.commit, budgets.signal) == (1, 2, 3, 4, 5)

    def test_file_named_by_the_environment(self, home: Home) -> None:
        home.write("cwd/env.toml", "listen.port = 5")
        other = home.write("other.toml", "listen.port = 6")
        assert load_config(env={"WARPGATE_CONFIG": "env.toml"}).listen.port == 5
        assert load_config(env={"WARPGATE_CONFIG": "~/cwd/env.toml"}).listen.port == 5
        assert load_config(env={"WARPGATE_CONFIG": "env.toml"}, file=other).listen.port == 6
        assert load_config(env={"WARPGATE_CONFIG": ""}).listen.port == 0

    def test_real_environment(self, home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("WARPGATE_LISTEN_PORT", "77")
        assert load_config().listen.port == 77

    def test_lists_are_replaced_whole(self, home: Home) -> None:
        file = home.write("a.toml", "servers.stun = ['stun:a', 'stun:b']")
        made = load_config(file=file, overrides={"servers.stun": ["stun:c"]})
        assert made.servers.stun == (ServerUrl.parse("stun:c"),)

    def test_environment(self, home: Home) -> None:
        made = load_config(
            env={
                "WARPGATE_SERVERS_WEBSOCKET": "ws://a, ws://b,",
                "WARPGATE_SERVERS_STUN": "",
                "WARPGATE_SERVERS_TURN": "turn:n:p@t",
                "WARPGATE_SERVERS_CA_FILE": "",
                "WARPGATE_IDENTITY_EPHEMERAL": "1",
                "WARPGATE_IDENTITY_KEY_FILE": "k",
                "WARPGATE_LISTEN_PORT": "65535",
                "WARPGATE_INTERFACES_INCLUDE": "eth*, wg0",
                "WARPGATE_INTERFACES_EXCLUDE": "",
                "WARPGATE_BUDGETS_GOODBYE": "2.5",
                "WARPGATE_REQUIRE": "netns",
                "WARPGATE_PYTHON": "/usr/bin/python3",
                "PATH": "/bin",
            }
        )
        assert made == NodeConfig(
            identity=IdentityConfig(key_file=home.cwd / "k", ephemeral=True),
            listen=ListenConfig(port=65535),
            interfaces=InterfacesConfig(include=("eth*", "wg0")),
            servers=Servers(websocket=["ws://a", "ws://b"], turn=["turn:n:p@t"]),
            budgets=Budgets(goodbye=2.5),
        )

    def test_every_key_has_a_variable(self, home: Home) -> None:
        tables: Mapping[str, msgspec.Struct] = msgspec.structs.asdict(FULL)
        names = {f"WARPGATE_{table}_{key}".upper() for table, made in tables.items() for key in made.__struct_fields__}
        for name in names:
            with pytest.raises(ConfigError) as caught:
                load_config(env={name: "?\0"})
            assert f"environment {name}: " in str(caught.value)

    @pytest.mark.parametrize(
        ("env", "reason"),
        [
            (
                {"WARPGATE_LISTEN_PROT": "1"},
                "unknown variable WARPGATE_LISTEN_PROT; the nearest .* WARPGATE_LISTEN_PORT",
            ),
            ({"WARPGATE_LISTEN_PORT": "-1"}, "environment WARPGATE_LISTEN_PORT: listen.port = '-1': expected a port"),
            ({"WARPGATE_LISTEN_PORT": ""}, "listen.port = '': expected a port number"),
            ({"WARPGATE_LISTEN_PORT": "65536"}, "listen.port = 65536: expected|listen.port = '65536': expected"),
            ({"WARPGATE_BUDGETS_PUNCH": "soon"}, "budgets.punch = 'soon': expected a number of seconds"),
            ({"WARPGATE_BUDGETS_PUNCH": "inf"}, "budgets.punch = 'inf': expected a number of seconds"),
            ({"WARPGATE_IDENTITY_EPHEMERAL": "maybe"}, "identity.ephemeral = 'maybe': expected true or false"),
            ({"WARPGATE_SERVERS_STUN": "stun:a,b"}, r"servers.stun\[1\] = 'b': expected scheme"),
            (
                {"WARPGATE_SERVERS_TURN": "turn:n:secret@a/b"},
                r"servers.turn\[0\] = 'turn:\*\*\*@a/b': a turn URL cannot have a",
            ),
        ],
    )
    def test_environment_errors(self, home: Home, env: dict[str, str], reason: str) -> None:
        with pytest.raises(ConfigError, match=reason):
            load_config(env=env)

    @pytest.mark.parametrize("start", ["ws://a.example/", "ws://a.example/?jwt=", "wss://me:pass@a.example/"])
    def test_a_url_that_no_address_has_room_for(self, start: str, home: Home) -> None:
        """It is refused where it is configured, since no address that names it could be issued."""
        longest = start + "p" * (256 - len(start.replace("me:pass@", "")))
        longer = longest + "p"
        file = home.write("a.toml", f"servers.websocket = ['ws://b', '{longer}']")
        said = "a URL has at most 256 characters, its login apart, and this one has 257"
        with pytest.raises(ConfigError, match=rf"a.toml: servers.websocket\[1\] = 'wss?:.*: {said}"):
            load_config(file=file, env={})
        with pytest.raises(
            ConfigError, match=rf"environment WARPGATE_SERVERS_WEBSOCKET: servers.websocket\[0\].*{said}"
        ):
            load_config(env={"WARPGATE_SERVERS_WEBSOCKET": longer})
        for url in (longer, ServerUrl.parse(longer)):
            with pytest.raises(ConfigError, match=rf"servers.websocket\[0\] = .*{said}"):
                load_config(env={}, overrides={"servers.websocket": [url]})
        assert len(str(Servers(websocket=[longest]).websocket[0].published)) <= 256

    def test_a_long_password_is_no_long_url(self) -> None:
        (url,) = Servers(mqtt=[f"mqtts://me:{'e' * 800}@a.example"]).mqtt
        assert str(url.published) == "mqtts://a.example"

    def test_overrides(self, home: Home) -> None:
        made = load_config(
            env={},
            overrides={"listen.port": 5, "identity.key_file": "k", "budgets.punch": None, "servers.ntp": ("ntp://n",)},
        )
        assert made.listen.port == 5
        assert made.identity.key_file == home.cwd / "k"
        assert made.budgets.punch == 1.5
        assert made.servers.ntp == (ServerUrl("ntp", "n", 123),)

    @pytest.mark.parametrize(
        ("overrides", "reason"),
        [
            ({"listen.prot": 5}, "command line: unknown key listen.prot; the nearest known one is listen.port"),
            ({"paths.dead_after": -1.0}, "command line: paths.dead_after = -1.0: expected a number of seconds, or 0"),
            ({"listen.port": "5"}, "command line: listen.port = '5': expected a port number"),
        ],
    )
    def test_override_errors(self, home: Home, overrides: dict[str, object], reason: str) -> None:
        with pytest.raises(ConfigError, match=reason):
            load_config(env={}, overrides=overrides)

    def test_paths_are_of_the_file_that_names_them(self, home: Home) -> None:
        home.write_user_file("identity.key_file = 'user.key'")
        named = home.write("sub/named.toml", "servers.ca_file = '../ca.pem'")
        made = load_config(file=named, env={})
        assert made.identity.key_file == home.user_file.parent / "user.key"
        assert made.servers.ca_file == home.path / "sub" / ".." / "ca.pem"
        made = load_config(file=Path("..") / "sub" / "named.toml", env={})
        assert made.servers.ca_file is not None
        assert made.servers.ca_file.is_absolute()

    def test_file_errors(self, home: Home) -> None:
        with pytest.raises(ConfigError, match=r"file .*missing.toml cannot be read: No such file"):
            load_config(file="missing.toml", env={})
        with pytest.raises(ConfigError, match=r"file .*missing.toml cannot be read"):
            load_config(env={"WARPGATE_CONFIG": "missing.toml"})
        with pytest.raises(ConfigError, match="cannot be read"):
            load_config(file=home.path, env={})
        with pytest.raises(ConfigError, match="cannot be read"):
            load_config(file="a\0b", env={})
        with pytest.raises(ConfigError, match="cannot be read: the home directory"):
            load_config(file="~nobody-here/a.toml", env={})
        (home.path / "latin.toml").write_bytes(b"# \xe4")
        with pytest.raises(ConfigError, match=r"latin.toml cannot be read: 'utf-8'"):
            load_config(file=home.path / "latin.toml", env={})
        bad = home.write("bad.toml", "[listen]\nport = \n")
        with pytest.raises(ConfigError, match=r"bad.toml: .*line 2"):
            load_config(file=bad, env={})
        home.write_user_file("[listen]\nprot = 1")
        with pytest.raises(ConfigError, match=r"config.toml: unknown key listen.prot; the nearest"):
            load_config(env={})

    @pytest.mark.usefixtures("no_home")
    def test_a_user_without_a_home(self, tmp_path: Path) -> None:
        file = tmp_path / "node.toml"
        file.write_text("listen.port = 5")
        assert load_config(env={}) == NodeConfig()
        assert load_config(env={"WARPGATE_LISTEN_PORT": "4"}).listen.port == 4
        assert load_config(file=file, env={}).listen.port == 5
        with pytest.raises(ConfigError, match=r"no home directory .*; set HOME"):
            config.default_config_file()
        with pytest.raises(ConfigError, match=r"~/k'?: the home directory that '~' stands for is not known"):
            load_config(env={"WARPGATE_IDENTITY_KEY_FILE": "~/k"})

    def test_the_home_of_somebody_else(self, home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
        """``sudo -u nobody`` keeps HOME, and nobody may not look into that directory."""

        def is_file(path: Path) -> bool:
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr(Path, "is_file", is_file)
        assert load_config(env={}) == NodeConfig()

    @pytest.mark.parametrize("mark", ["", "\ufeff"])
    @pytest.mark.parametrize("end", ["\n", "\r\n"])
    def test_as_an_editor_on_windows_saves_it(self, mark: str, end: str, home: Home) -> None:
        text = mark + end.join(["# \u00fcber", "[listen]", "port = 5", "[servers]", "stun = [", " 'stun:a',", "]", ""])
        file = home.path / "a.toml"
        file.write_bytes(text.encode())
        for made in (load_config(file=file, env={}), NodeConfig.from_toml(text, base_dir="/")):
            assert made.listen.port == 5
            assert made.servers.stun == (ServerUrl.parse("stun:a"),)

    def test_utf_16_is_refused_with_a_sentence(self, home: Home) -> None:
        file = home.path / "a.toml"
        file.write_bytes("listen.port = 5".encode("utf-16"))
        with pytest.raises(ConfigError, match=r"a\.toml cannot be read: 'utf-8' codec"):
            load_config(file=file, env={})

    def test_variables_of_services_are_passed_over(self, home: Home) -> None:
        """Kubernetes and Docker links set such variables for the services that run beside this one."""
        services = {"": "10.96.0.7:8765", "STUN_": "[fd00::8]:3478", "LISTEN_": "10.96.0.9:80", "A_2_PORT_": "a:1"}
        env: dict[str, str] = {}
        for name, place in services.items():
            host, _, port = place.rpartition(":")
            env |= {
                f"WARPGATE_{name}SERVICE_HOST": host,
                f"WARPGATE_{name}SERVICE_PORT": port,
                f"WARPGATE_{name}SERVICE_PORT_SIGNAL_2": port,
                f"WARPGATE_{name}PORT": f"udp://{place}",
                f"WARPGATE_{name}NAME": "/web/warpgate",
                f"WARPGATE_{name}ENV_LISTEN_PORT": "7",
            }
            for protocol in ("TCP", "UDP", "SCTP"):
                made = f"WARPGATE_{name}PORT_{port}_{protocol}"
                env |= {
                    made: f"{protocol.lower()}://{place}",
                    f"{made}_PROTO": protocol.lower(),
                    f"{made}_PORT": port,
                    f"{made}_ADDR": host,
                }
        assert load_config(env=env) == NodeConfig()
        assert load_config(env={**env, "WARPGATE_LISTEN_PORT": "5"}).listen.port == 5

    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("WARPGATE_SERVERS_STUNN", "stun:a"),
            ("WARPGATE_SERVICES_STUN", "stun:a"),
            ("WARPGATE_PORT", "8765"),
            ("WARPGATE_SERVER_PORT", "8765"),
            ("WARPGATE_PORT_TCP", "tcp://10.0.0.1:5"),
            ("WARPGATE_NAME", "me"),
            ("WARPGATE_SERVICE", "10.0.0.1"),
            ("WARPGATE_", ""),
        ],
    )
    def test_what_is_no_variable_of_a_service_is_told(self, name: str, value: str, home: Home) -> None:
        with pytest.raises(ConfigError, match=f"unknown variable {name}; the nearest known one is WARPGATE_"):
            load_config(env={name: value})

    def test_working_directory_that_is_gone(self, home: Home) -> None:
        home.cwd.rmdir()
        assert load_config(env={"WARPGATE_IDENTITY_KEY_FILE": "/k"}).identity.key_file == Path("/k")
