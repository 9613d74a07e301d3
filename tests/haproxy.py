"""haproxy in front of a server on loopback, a separate process, as in docs/howto/reverse_proxy.md."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.documented import changed, code, page
from tests.programs import running
from tests.requirements import find_program
from warpgate_trio.websocket.proxies import ProxyHeader


@contextmanager
def haproxy(
    folder: Path, header: ProxyHeader, *, port: int, upstream: int, health: int, certificate: Path
) -> Iterator[None]:
    """Run it with TLS at a port, in front of two others, all of 127.0.0.1.

    Args:
      header: selects one of the page's two examples.
      health: the port that serves /healthz.
      certificate: a file with the certificate and its key.
    """
    program = find_program("haproxy")
    assert program is not None
    by_request, by_protocol = code(page("howto/reverse_proxy.md"), "haproxy")
    configuration = folder / "haproxy.cfg"
    configuration.write_text(
        changed(
            by_request if header is ProxyHeader.FORWARDED else by_protocol,
            {
                "bind :443 ssl": f"bind 127.0.0.1:{port} ssl",
                "/etc/ssl/relay.example.pem": certificate,
                "127.0.0.1:8765": f"127.0.0.1:{upstream}",
                "check port 9100": f"check port {health}",
            },
        ),
        encoding="utf-8",
    )
    with running([program, "-db", "-f", str(configuration)], [port], folder / "haproxy.log"):
        yield
