"""The names by which clients may have dialled a rendezvous server.

Since version 2 of the protocol (`rendezvous_frames`) clients sign the name that they have dialled, and a server accepts
its own names only.  So a registration that was signed for another server is invalid here.  Names that the other side of
the connection sends are not used, neither the ``Host`` header nor the server name in TLS: an attacker that forwards a
challenge chooses both.  If the operator gives ``public_urls``, these are the only names.  Otherwise the names are:

* the address and port at which the connection arrived, and ``localhost`` if that address is loopback;
* with that port, the external addresses of a NAT in front that forwards all ports, which the operator gives;
* with that port, the host name of this host, which its administrator has chosen;
* with that port, the names in the certificate, if the server does TLS itself: clients verify them.
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

_ROUNDS = 4  # of a TLS handshake between two objects in memory; TLS 1.2 takes two


@final
class ServerNames:
    """The names of one server.

    Args:
      public_urls: all URLs by which clients dial it; empty if the operator gave none.
      ssl_context: its TLS context, or a function that returns it; None without TLS.
      hostname: the name of this host; empty if it has none.
      external_ips: the external addresses of a NAT in front of it.

    Raises:
      ConfigError: one of `public_urls` is not the URL of a rendezvous server.
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
        """The names by which the client of a connection may have dialled the server."""
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
        raise ConfigError(f"{parsed.redacted}: not the URL of a rendezvous server (ws or wss)")
    return server_name(parsed.host, parsed.port)


def certificate_hosts(context: ssl.SSLContext) -> frozenset[str]:
    """The DNS names and IP addresses in a server's certificate, without wildcards.

    A Python `ssl.SSLContext` does not tell which certificate it has, so this reads it by a handshake in memory.
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
            ):  # it waits for data; or it requires a client certificate, after it has sent its own
                side.do_handshake()
        with suppress(ValueError):  # the certificate has not arrived yet
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
