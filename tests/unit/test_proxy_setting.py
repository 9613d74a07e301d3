"""Which proxy leads to a server: the setting, curl's environment variables, and exempt servers."""

from __future__ import annotations

import pytest

from warpgate_trio.config import NetworkConfig, NodeConfig, Proxies, ServerUrl, load_config
from warpgate_trio.config.proxies import ProxySetting
from warpgate_trio.errors import ConfigError

WSS = "wss://signal.example.org"


def to(server: str, environment: dict[str, str], setting: ProxySetting = "env") -> str | None:
    proxy = Proxies(setting, environment).to(ServerUrl.parse(server))
    return None if proxy is None else str(proxy)


class TestTheSetting:
    def test_is_the_environment_by_default(self) -> None:
        assert NodeConfig().network.proxy == "env"

    @pytest.mark.parametrize(
        ("text", "read"),
        [
            ("env", "env"),
            ("none", "none"),
            ("http://proxy.example:3128", ServerUrl("http", "proxy.example", 3128)),
            ("http://Proxy.Example/", ServerUrl("http", "proxy.example", 80)),
            ("socks5://proxy.example", ServerUrl("socks5", "proxy.example", 1080)),
            ("socks5h://ann:pw@proxy.example:9050", ServerUrl("socks5h", "proxy.example", 9050, "ann", "pw")),
            ("proxy.example:3128", ServerUrl("http", "proxy.example", 3128)),
            ("http://ann:a%40b%3A@[2001:db8::1]:8080", ServerUrl("http", "2001:db8::1", 8080, "ann", "a@b:")),
        ],
    )
    def test_reads(self, text: str, read: ProxySetting) -> None:
        assert NetworkConfig(proxy=text).proxy == read
        assert load_config(env={"WARPGATE_NETWORK_PROXY": text}).network.proxy == read
        config = NodeConfig(network=NetworkConfig(proxy=text))
        assert NodeConfig.from_toml(config.to_toml(), base_dir=".") == config

    @pytest.mark.parametrize(
        ("value", "why"),
        [
            ("https://proxy.example", "expected one of the schemes http"),
            ("http://proxy.example/pac", "a http URL cannot have a path"),
            ("http://proxy.example:0", "the port has to be 1 to 65535"),
            ("http://a%3Ab:c@proxy.example", "cannot contain a colon"),
            ("", 'expected "env", "none", or the URL'),
            ("Env", 'expected "env", "none", or the URL'),
            (5, 'expected "env", "none", or the URL'),
            (True, 'expected "env", "none", or the URL'),
            (ServerUrl("wss", "proxy.example", 443), "expected one of the schemes http"),
        ],
    )
    def test_refuses(self, value: object, why: str) -> None:
        with pytest.raises(ConfigError, match=r"^network\.proxy = .*" + why):
            NetworkConfig(proxy=value)  # type: ignore[arg-type]

    def test_masks_the_password(self) -> None:
        config = NodeConfig(network=NetworkConfig(proxy="http://ann:hunter2@proxy.example:3128"))
        assert 'proxy = "http://ann:***@proxy.example:3128"' in config.to_toml(redact=True)
        assert "hunter2" not in repr(config)
        for text in ("http://ann:hunter2@proxy.example:0", "ann:hunter2@proxy.example:0"):
            with pytest.raises(ConfigError) as refused:
                NetworkConfig(proxy=text)
            assert "hunter2" not in str(refused.value)

    def test_a_proxy_is_no_server(self) -> None:
        with pytest.raises(ConfigError, match="expected one of the schemes ws, "):
            ServerUrl.parse("http://proxy.example")


class TestTheEnvironment:
    def test_names_none(self) -> None:
        assert to(WSS, {}) is None
        assert to(WSS, {"HTTPS_PROXY": " ", "http_proxy": "http://c", "HTTP_PROXY": "http://d"}) is None

    @pytest.mark.parametrize(
        ("names", "first"),
        [
            ("https_proxy HTTPS_PROXY all_proxy ALL_PROXY", "https_proxy"),
            ("HTTPS_PROXY all_proxy ALL_PROXY", "HTTPS_PROXY"),
            ("all_proxy ALL_PROXY", "all_proxy"),
            ("ALL_PROXY", "ALL_PROXY"),
        ],
    )
    @pytest.mark.parametrize("server", [WSS, "mqtts://b.example", "turns:t.example", "turn:t.example?transport=tcp"])
    def test_goes_by_the_first(self, names: str, first: str, server: str) -> None:
        environment = {name: f"http://{name.replace('_', '-')}.{name.islower()}:1" for name in names.split()}
        assert to(server, environment) == environment[first].lower()

    @pytest.mark.parametrize("server", ["ws://signal.example.org", "mqtt://b.example"])
    def test_without_tls_goes_by_all_proxy_alone(self, server: str) -> None:
        assert to(server, {"HTTPS_PROXY": "http://a:1"}) is None
        assert to(server, {"HTTPS_PROXY": "http://a:1", "ALL_PROXY": "http://b:1"}) == "http://b:1"

    def test_is_not_looked_at_where_the_setting_says_so(self) -> None:
        assert to(WSS, {"HTTPS_PROXY": "http://a:1"}, "none") is None
        assert to(WSS, {"HTTPS_PROXY": "http://a:1"}, ServerUrl("http", "b", 1)) == "http://b:1"
        assert to("ws://signal.example.org", {}, ServerUrl("http", "b", 1)) == "http://b:1"

    def test_that_names_what_is_no_proxy_is_told_when_it_is_needed(self) -> None:
        proxies = Proxies("env", {"HTTPS_PROXY": "gopher://ann:hunter2@a:1"})
        assert proxies.to(ServerUrl.parse("ws://signal.example.org")) is None
        with pytest.raises(ConfigError) as refused:
            proxies.to(ServerUrl.parse(WSS))
        assert str(refused.value) == (
            "environment HTTPS_PROXY = 'gopher://***@a:1': expected one of the schemes http, socks5, socks5h; "
            'set network.proxy = "none" to use no proxy'
        )


class TestExempt:
    @pytest.mark.parametrize(
        ("no_proxy", "server", "exempt"),
        [
            ("*", WSS, True),
            ("example.org", WSS, True),
            (".example.org", WSS, True),
            ("a, signal.example.org. ,b", WSS, True),
            ("SIGNAL.example.ORG", "wss://signal.example.org.", True),
            ("ample.org", WSS, False),
            ("org.example", WSS, False),
            (".", WSS, False),
            ("10.1.2.3", "wss://10.1.2.3", True),
            ("10.0.0.0/8 x", "wss://10.1.2.3", True),
            ("10.0.0.1/8", "wss://10.1.2.3", True),
            ("11.0.0.0/8", "wss://10.1.2.3", False),
            ("2001:db8::/32", "wss://[2001:db8::5]", True),
            ("[2001:db8::5]", "wss://[2001:db8::5]", True),
            ("1.2.3", "wss://10.1.2.3", False),
            ("3", "wss://10.1.2.3", False),
        ],
    )
    def test_what_is_listed(self, no_proxy: str, server: str, exempt: bool) -> None:
        for setting in ("env", ServerUrl("http", "a", 1)):
            for name in ("no_proxy", "NO_PROXY"):
                found = to(server, {"HTTPS_PROXY": "http://a:1", name: no_proxy}, setting)
                assert (found is None) is exempt

    @pytest.mark.parametrize(
        "host", ["localhost", "localhost.", "a.localhost", "127.0.0.1", "127.9.9.9", "[::1]", "0.0.0.0"]
    )
    def test_this_machine(self, host: str) -> None:
        assert to(f"wss://{host}", {"HTTPS_PROXY": "http://a:1"}) is None
        assert to(f"wss://{host}", {}, ServerUrl("http", "a", 1)) is None
