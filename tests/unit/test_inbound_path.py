"""The path of a connection that a peer has opened to our port: the route type is by the scope of its address."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from warpgate_trio.node.inbound import _direct_path


@pytest.mark.parametrize(
    ("remote", "route"),
    [
        ("8.8.8.8", "EXT_BIND"),
        ("203.0.113.9", "EXT_BIND"),
        ("2001:db8::9", "EXT_BIND"),
        ("2002:808:808::1", "EXT_BIND"),
        ("::ffff:8.8.8.8", "EXT_BIND"),
        ("10.1.2.3", "NIC_BIND"),
        ("100.64.0.9", "NIC_BIND"),
        ("fe80::1%eth0", "NIC_BIND"),
        ("fec0::1", "NIC_BIND"),
        ("200::1", "NIC_BIND"),
        ("64:ff9b::a00:1", "NIC_BIND"),
        ("127.0.0.1", "LOOPBACK_BIND"),
        ("::1", "LOOPBACK_BIND"),
    ],
)
def test_the_route_is_by_the_scope(remote: str, route: str) -> None:
    carrier = SimpleNamespace(name="tls", local=("192.0.2.1", 1), remote=(remote, 2))
    assert _direct_path(cast("Any", carrier)).route_type == route
