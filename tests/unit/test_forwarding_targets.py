"""Which targets a forwarded connection may lead to; without I/O."""

from __future__ import annotations

from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from warpgate_trio.forwarding import Bindable, Exposed, Target
from warpgate_trio.sockaddr import IpAddress


def choose(exposed: Exposed, target: str, *addresses: str) -> list[str]:
    """The addresses that may be dialled: among those of the target's host, or the target's own."""
    asked = Target.parse(target)
    found: list[IpAddress] = [ip_address(each) for each in addresses] if addresses else [ip_address(asked.host)]
    return [str(each) for each in exposed.choose(asked, found)]


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("22", "127.0.0.1", 22),
        ("127.0.0.1:22", "127.0.0.1", 22),
        ("DB.Example.org.:5432", "db.example.org", 5432),
        ("[2001:DB8::1]:443", "2001:db8::1", 443),
        ("[::1]:65535", "::1", 65535),
        ("localhost:1", "localhost", 1),
    ],
)
def test_targets(text: str, host: str, port: int) -> None:
    target = Target.parse(text)
    assert (target.host, target.port) == (host, port)
    assert Target.parse(str(target)) == target


NONE = """
:22|host:|host:0|host:65536|host:-1|host:ssh|host:２２|2001:db8::1:443|a b:22|a/b:1|user@host:22|höst:22|[]:22|host:22:
[::1%eth0]:22|*:22|.:22|a..b:22|[127.0.0.1]:22
"""


@pytest.mark.parametrize(
    "text",
    [
        "",
        "host\n:22",
        "h" * 64 + ".example:22",
        "h." * 100 + "h:22",
        'a"b:1',
        *NONE.strip().replace("\n", "|").split("|"),
    ],
)
def test_what_names_no_target(text: str) -> None:
    with pytest.raises(ValueError, match=r"names no host|has no port|in brackets"):
        Target.parse(text)


def test_nothing_is_exposed_by_default() -> None:
    assert not Exposed()
    assert choose(Exposed(), "127.0.0.1:22") == []
    assert not Exposed().may_name(Target.parse("localhost:22"))


@pytest.mark.parametrize(
    ("entry", "target", "addresses", "chosen"),
    [
        ("127.0.0.1:22", "127.0.0.1:22", (), ["127.0.0.1"]),
        ("22", "127.0.0.1:22", (), ["127.0.0.1"]),
        ("22", "127.0.0.1:23", (), []),
        ("22", "127.0.0.2:22", (), []),
        ("127.0.0.1:*", "127.0.0.1:9", (), ["127.0.0.1"]),
        ("10.1.0.0/16:80", "10.1.2.3:80", (), ["10.1.2.3"]),
        ("10.1.0.0/16:80", "10.2.2.3:80", (), []),
        ("10.1.2.3/16:80", "10.1.9.9:80", (), ["10.1.9.9"]),
        ("[fd00::]/8:80", "[fd00::5]:80", (), ["fd00::5"]),
        ("0.0.0.0/0:80", "[2001:db8::1]:80", (), []),
        # The same host in another notation.
        ("127.0.0.1:22", "[::ffff:127.0.0.1]:22", (), ["127.0.0.1"]),
        ("[::1]:22", "127.0.0.1:22", (), []),
        # A name may lead to an address that is on the list, and to no other one.
        ("10.0.0.5:80", "web.lan:80", ("10.0.0.5", "10.0.0.6"), ["10.0.0.5"]),
        ("web.lan:80", "web.lan:80", ("10.0.0.5", "93.184.216.34"), ["10.0.0.5", "93.184.216.34"]),
        ("web.lan:80", "WEB.lan.:80", ("10.0.0.5",), ["10.0.0.5"]),
        ("web.lan:80", "other.lan:80", ("10.0.0.5",), []),
        ("web.lan:80", "10.0.0.5:80", (), []),
        ("web.lan:80", "web.lan:81", ("10.0.0.5",), []),
        # Whoever controls a name's DNS cannot direct it to services of this host, nor to the cloud's metadata service.
        ("web.lan:80", "web.lan:80", ("127.0.0.1", "::1", "169.254.169.254", "0.0.0.0", "224.0.0.1"), []),
        ("web.lan:80", "web.lan:80", ("::ffff:127.0.0.1", "64:ff9b::7f00:1", "fe80::1"), []),
        ("localhost:80", "localhost:80", ("127.0.0.1", "::1", "10.0.0.5"), ["127.0.0.1", "::1"]),
        ("169.254.169.254:80", "169.254.169.254:80", (), ["169.254.169.254"]),
    ],
)
def test_what_may_be_dialled(entry: str, target: str, addresses: tuple[str, ...], chosen: list[str]) -> None:
    assert choose(Exposed([entry]), target, *addresses) == chosen


def test_a_name_that_cannot_be_on_the_list_is_not_looked_up() -> None:
    exposed = Exposed(["web.lan:80", "10.0.0.0/8:443"])
    asked = {
        text: exposed.may_name(Target.parse(text)) for text in ("web.lan:80", "web.lan:81", "x.lan:80", "x.lan:443")
    }
    assert asked == {"web.lan:80": True, "web.lan:81": False, "x.lan:80": False, "x.lan:443": True}


@pytest.mark.parametrize("entry", ["", "host", "host:x", "10.0.0.0/40:80", "web.lan/8:80", "*:80", "10.0.0.0/8"])
def test_entries_that_are_none(entry: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        Exposed([entry])


def test_where_a_peer_may_have_us_listen() -> None:
    bindable = Bindable(["8080", "0.0.0.0:9000", "[::1]:*"])
    asked = ["127.0.0.1:8080", "127.0.0.1:8081", "0.0.0.0:8080", "0.0.0.0:9000", "[::1]:7", "localhost:8080"]
    assert [bindable.allows(Target.parse(each)) for each in asked] == [True, False, False, True, True, False]
    assert not Bindable().allows(Target.parse("8080"))
    with pytest.raises(ValueError, match="not an address to listen on"):
        Bindable(["localhost:80"])


@given(st.text(max_size=30), st.sampled_from(["", "tcp:", "127.0.0.1:", "[::1]:"]))
def test_whatever_a_peer_writes(text: str, before: str) -> None:
    """The text is refused, or is a target that its own text describes exactly."""
    try:
        target = Target.parse(before + text, least=0)
    except ValueError:
        return
    assert Target.parse(str(target), least=0) == target
    assert str(target).isascii()
