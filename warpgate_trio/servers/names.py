"""By which names clients may have dialled a rendezvous server.

Version 2 of the protocol (`rendezvous_frames`) has clients sign the name that they have dialled, and a server takes its
own names alone: what a client has signed for another server is worth nothing here then.  So nothing counts that the
other side of the connection says, neither a ``Host`` header nor the server name in TLS: whoever passes a challenge on
writes both himself.  What counts is, in this order,

* what the operator says: ``public_urls``, and then nothing else;
* the address and port that the connection came in at, and ``localhost`` where that is loopback;
* with that port, the addresses of a NAT in front that hands everything on: the operator says them, too;
* with that port, the name that this machine has: its administrator gave it, so no stranger can choose it;
* where the server does TLS itself, the names in its certificate, with that port: clients verify them.
"""

from __future__ import annotations

import ssl
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from typing import final

from cryptography import x509

from ..config import ServerUrl
from ..errors import ConfigError
from ..sockaddr import parse_ip
from ..websocket import Accepted
from .rendezvous_frames import server_name

__all__ = ["ServerNames", "certificate_hosts"]

_ROUNDS = 4  # Of a TLS handshake, between two objects in memory; version 1.2 takes two.


@final
class ServerNames:
    """The names of one server.

    Args:
      public_urls: all of its URLs, if somebody has said them.
      ssl_context: what it serves TLS with, or how to get that.
      hostname: the machine's; empty where it has none.
      external_ips: the addresses of a NAT in front of it.

    Raises:
      ConfigError: one of `public_urls` is no URL of a rendezvous server.
    """

    def __init__(
        self,
        public_urls: Sequence[ServerUrl | str] = (),
        ssl_context: ssl.SSLContext | Callable[[], ssl.SSLContext] | None = None,
        hostname: str = "",
        external_ips: Iterable[str] = (),
    ) -> None:
        self._public = frozenset(_public_name(url) for url in public_urls)
        self._ssl_context = ssl_context
        self._hostnames = frozenset({hostname, hostname.partition(".")[0], *external_ips} - {""})
        self._certified: tuple[ssl.SSLContext, frozenset[str]] | None = None

    def of(self, accepted: Accepted) -> frozenset[str]:
        """What a client may have dialled whose connection came in there."""
        if self._public:
            return self._public
        ip, port = accepted.local
        hosts = {ip, *self._hostnames, *self._certificate_hosts()}
        if parse_ip(ip).is_loopback:
            hosts.add("localhost")
        return frozenset(server_name(host, port) for host in hosts)

    def _certificate_hosts(self) -> frozenset[str]:
        context = self._ssl_context() if callable(self._ssl_context) else self._ssl_context
        if context is None:
            return frozenset()
        if self._certified is None or self._certified[0] is not context:
            self._certified = (context, certificate_hosts(context))
        return self._certified[1]


def _public_name(url: ServerUrl | str) -> str:
    parsed = ServerUrl.parse(url) if isinstance(url, str) else url
    if parsed.scheme not in ("ws", "wss"):
        raise ConfigError(f"{parsed.redacted}: not the URL of a rendezvous server")
    return server_name(parsed.host, parsed.port)


def certificate_hosts(context: ssl.SSLContext) -> frozenset[str]:
    """The DNS names and IP addresses that a server's certificate is good for.  A wildcard is no name.

    Python does not say which certificate a context has, but the context shows it to whoever connects.
    """
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.check_hostname = False
    client.verify_mode = ssl.CERT_NONE
    to_client, to_server = ssl.MemoryBIO(), ssl.MemoryBIO()
    sides = (client.wrap_bio(to_client, to_server), context.wrap_bio(to_server, to_client, server_side=True))
    der: bytes | None = None
    for _ in range(_ROUNDS):
        for side in sides:
            with suppress(
                ssl.SSLError
            ):  # it wants to read on; or it wants a certificate of a client, when it has shown its own
                side.do_handshake()
        with suppress(ValueError):  # not there yet
            der = der or sides[0].getpeercert(binary_form=True)
    if der is None:
        return frozenset()
    try:
        names = (
            x509.load_der_x509_certificate(der).extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        )
    except (x509.ExtensionNotFound, ValueError):
        return frozenset()
    hosts = {name.lower() for name in names.get_values_for_type(x509.DNSName) if "*" not in name}
    return frozenset(hosts | {str(ip) for ip in names.get_values_for_type(x509.IPAddress)})
