"""nginx in front of a server on loopback, a separate process, as in docs/howto/reverse_proxy.md."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from tests.documented import changed, code, page
from tests.ports import free_port
from tests.programs import running
from tests.requirements import find_program

STREAM_MODULE = Path("/usr/lib/nginx/modules/ngx_stream_module.so")
"""Where Debian installs it (libnginx-mod-stream)."""
CONFIGURATION = """\
load_module {module};
daemon off;
master_process off;
pid {folder}/pid;
error_log {folder}/log;
events {{ worker_connections 64; }}
http {{
    access_log off;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    {http}
    {https}
}}
stream {{
    {stream}
    {tls_stream}
}}
"""
"""The configuration around the server blocks that docs/howto/reverse_proxy.md shows."""


class Ports(NamedTuple):
    """Ports of 127.0.0.1: HTTP with X-Forwarded-For, without and with TLS; PROXY protocol, without and with TLS."""

    http: int
    https: int
    stream: int
    tls_stream: int


def free_ports() -> Ports:
    """Ports that nobody else takes before nginx does."""
    return Ports(*(free_port() for _ in Ports._fields))


@contextmanager
def nginx(folder: Path, ports: Ports, upstream: int, certificate: Path) -> Iterator[None]:
    """Run it in front of the port `upstream` of 127.0.0.1; `certificate` is a file with certificate and key."""
    program = find_program("nginx")
    assert program is not None
    servers = {}
    for name, port in ports._asdict().items():
        text = code(page("howto/reverse_proxy.md"), "nginx")["stream" in name]
        tls = name in ("https", "tls_stream")
        servers[name] = changed(
            text,
            {
                "listen 443 ssl;": f"listen 127.0.0.1:{port}{' ssl' if tls else ''};",
                "/etc/ssl/relay.example/fullchain.pem": certificate,
                "/etc/ssl/relay.example/privkey.pem": certificate,
                "127.0.0.1:8765": f"127.0.0.1:{upstream}",
            },
        )
    configuration = folder / "nginx.conf"
    configuration.write_text(CONFIGURATION.format(**servers, module=STREAM_MODULE, folder=folder), encoding="utf-8")
    with running([program, "-c", str(configuration), "-e", str(folder / "log")], ports, folder / "log"):
        yield
