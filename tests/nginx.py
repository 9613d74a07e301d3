"""nginx for tests: a reverse proxy in front of a server on loopback, a process of its own."""

from __future__ import annotations

import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from tests.ports import free_port
from tests.requirements import find_program

STREAM_MODULE = Path("/usr/lib/nginx/modules/ngx_stream_module.so")
"""Where Debian has it (libnginx-mod-stream)."""
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
    server {{
        listen 127.0.0.1:{http};
        listen 127.0.0.1:{https} ssl;
        ssl_certificate {certificate};
        ssl_certificate_key {certificate};
        location /rendezvous {{
            proxy_pass http://127.0.0.1:{upstream};
            proxy_http_version 1.1;
            proxy_set_header Upgrade $http_upgrade;
            proxy_set_header Connection upgrade;
            proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;
        }}
    }}
}}
stream {{
    server {{
        listen 127.0.0.1:{stream};
        proxy_pass 127.0.0.1:{upstream};
        proxy_protocol on;
    }}
    server {{
        listen 127.0.0.1:{tls_stream} ssl;
        ssl_certificate {certificate};
        ssl_certificate_key {certificate};
        proxy_pass 127.0.0.1:{upstream};
        proxy_protocol on;
    }}
}}
"""


class Ports(NamedTuple):
    """Of 127.0.0.1: HTTP with X-Forwarded-For, the same over TLS; the PROXY protocol, the same with TLS ended here."""

    http: int
    https: int
    stream: int
    tls_stream: int


def free_ports() -> Ports:
    """Ports that nobody else takes before nginx does."""
    return Ports(*(free_port() for _ in Ports._fields))


@contextmanager
def nginx(folder: Path, ports: Ports, upstream: int, certificate: Path) -> Iterator[None]:
    """Run it, in front of a port of 127.0.0.1; `certificate` is a file with the key too."""
    program = find_program("nginx")
    assert program is not None
    configuration = folder / "nginx.conf"
    configuration.write_text(
        CONFIGURATION.format(
            **ports._asdict(), module=STREAM_MODULE, folder=folder, upstream=upstream, certificate=certificate
        )
    )
    with (folder / "out").open("wb") as log:
        process = subprocess.Popen(
            [program, "-c", str(configuration), "-e", str(folder / "log")],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
        try:
            for port in ports:
                _wait(port, process, folder)
            yield
        finally:
            process.terminate()
            process.wait(10)


def _wait(port: int, process: subprocess.Popen[bytes], folder: Path) -> None:
    """Until it takes connections."""
    for _ in range(2000):
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
        except OSError:
            assert process.poll() is None, (folder / "log").read_text()
            time.sleep(0.005)
        else:
            return
    raise AssertionError("nginx does not take connections")
