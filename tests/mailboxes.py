"""The mailboxes of pairing without a server around them: test clients send frames, and keep what they receive."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from warpgate_trio.limits import TokenBucket
from warpgate_trio.servers.mailbox_frames import Claim, Offer, Offered
from warpgate_trio.servers.mailboxes import Delivery, Mailboxes, PairingFrame
from warpgate_trio.servers.rendezvous_frames import FromServer, decode_from_server
from warpgate_trio.servers.server_connection import ServerConnection

T: Final = 1000.0
"""The time at which a server starts."""


@dataclass(eq=False)
class Server:
    """Mailboxes, and what their clients have received."""

    now: float = T
    mailboxes: Mailboxes = field(default_factory=Mailboxes)
    clients: dict[ServerConnection, Client] = field(default_factory=dict)

    def hand_on(self, told: list[Delivery]) -> None:
        for receiver, frame, _ in told:
            self.clients[receiver].heard.append(decode_from_server(frame))

    def client(self, host: str = "192.0.2.1", key: bytes | None = None) -> Client:
        connection = ServerConnection(b"", TokenBucket(1, 1), host=host, version=3, names=())
        connection.key = len(self.clients).to_bytes(32, "big") if key is None else key
        self.clients[connection] = Client(self, connection)
        return self.clients[connection]

    def offer(self, nameplate: int = 0, host: str = "192.0.2.1", key: bytes | None = None) -> Client:
        client = self.client(host, key)
        client.say(Offer(nameplate, 300))
        return client

    def claim(self, nameplate: int, host: str = "198.51.100.1", hello: bytes = b"hello") -> Client:
        client = self.client(host)
        client.say(Claim(nameplate, hello))
        return client


@dataclass(eq=False)
class Client:
    server: Server
    connection: ServerConnection
    heard: list[FromServer] = field(default_factory=list)

    def say(self, frame: PairingFrame) -> None:
        answer, told = self.server.mailboxes.receive(self.connection, frame, self.server.now)
        if answer is not None:
            self.heard.append(decode_from_server(answer))
        self.server.hand_on(told)

    def leave(self) -> None:
        self.server.hand_on(self.server.mailboxes.left(self.connection, self.server.now))

    def tick(self) -> None:
        self.server.hand_on(self.server.mailboxes.handle_timer(self.connection, self.server.now))

    @property
    def deadline(self) -> float:
        return self.server.mailboxes.deadline(self.connection)

    def take(self) -> FromServer:
        return self.heard.pop(0)

    @property
    def nameplate(self) -> int:
        offered = self.heard[0]
        assert isinstance(offered, Offered)
        return offered.nameplate
