"""TCP connections and listeners of a host: they drive the state machine of tcp.py, its timers and the waiting tasks.

After each step a `Connection` sends the segments of its endpoint, sets the timer, and wakes the tasks that can go on.
It outlives its socket until its state is CLOSED, and then leaves the `TcpPorts` of its host.
"""

from __future__ import annotations

import errno
from collections import deque
from math import inf
from typing import Final, final

from .addr import Endpoint
from .ip_layer import IpLayer
from .packet import Icmp, Packet
from .ports import Binding, PortTable, os_error
from .slots import Slot
from .tcp import TcpEndpoint
from .tcp_states import Options, State

TCP_IP_HEADERS: Final = 40
TCP_IP6_HEADERS: Final = 60


@final
class Connection:
    """One end of a TCP connection on a host.

    Attributes:
      endpoint: its state machine.
      readable, writable: where tasks wait to receive and to send.
    """

    __slots__ = (
        "_acking",
        "_binding",
        "_timer",
        "endpoint",
        "host",
        "listener",
        "owns_binding",
        "ports",
        "readable",
        "writable",
    )

    def __init__(
        self,
        ports: TcpPorts,
        binding: Binding,
        local: Endpoint,
        remote: Endpoint,
        options: Options,
        *,
        owns_binding: bool,
    ) -> None:
        host = ports.host
        headers = TCP_IP6_HEADERS if ":" in local[0] else TCP_IP_HEADERS
        iss = host.random.getrandbits(32)
        mss = host.mtu_to(remote[0]) - headers
        self.host: IpLayer = host
        self.ports: TcpPorts = ports
        self.endpoint: TcpEndpoint = TcpEndpoint(local, remote, iss=iss, mss=mss, options=options)
        self.readable: Slot = Slot("reading from")
        self.writable: Slot = Slot("writing to")
        self.listener: Listener | None = None
        self.owns_binding: bool = owns_binding
        self._binding = binding
        self._timer = inf
        self._acking = False
        ports.connections[local, remote] = self

    @property
    def key(self) -> tuple[Endpoint, Endpoint]:
        return self.endpoint.local, self.endpoint.remote

    def receive(self, packet: Packet) -> None:
        """Process a segment."""
        self.endpoint.receive(packet, self.host.clock.now)
        self.pump()

    def icmp(self, error: Icmp, mtu: int) -> None:
        """Process an ICMP error."""
        self.endpoint.icmp(error, mtu, self.host.clock.now)
        self.pump()

    def pump(self) -> None:
        """Carry out what the endpoint decided: send, set the timer, wake tasks, forget a closed connection."""
        endpoint = self.endpoint
        if endpoint.out:
            out, endpoint.out = endpoint.out, []
            for packet in out:
                self.host.reply(packet)
        if endpoint.ack_due and not self._acking:
            self._acking = True
            self.host.clock.at_end_of_instant(self._flush_ack)
        if endpoint.deadline < self._timer:
            self._timer = endpoint.deadline
            self.host.clock.at(endpoint.deadline, self._tick, endpoint.deadline)
        if self.listener is not None:
            self.listener.progressed(self)
        if endpoint.readable:
            self.readable.wake()
        if not endpoint.opening and (endpoint.is_writable or not endpoint.may_send):
            self.writable.wake()
        if endpoint.state is State.CLOSED:
            self.forget()

    def forget(self) -> None:
        """Leave the host's tables."""
        connections = self.ports.connections
        if connections.get(self.key) is self:
            del connections[self.key]
        if self.owns_binding:
            self.ports.release(self._binding)

    def close(self) -> None:
        """The program closes its socket."""
        self.endpoint.close(self.host.clock.now)
        self.pump()
        self.readable.close()
        self.writable.close()

    def abort(self) -> None:
        """The program closes its socket with SO_LINGER 0, or its listener is gone: reset."""
        self.endpoint.abort()
        self.pump()
        self.readable.close()
        self.writable.close()

    def _flush_ack(self) -> None:
        self._acking = False
        self.endpoint.flush_ack(self.host.clock.now)
        if self.endpoint.out:
            self.pump()

    def _tick(self, due: float) -> None:
        if self._timer == due:
            self._timer = inf
        endpoint = self.endpoint
        if endpoint.state is not State.CLOSED and endpoint.deadline <= due:
            endpoint.tick(due)
        self.pump()


@final
class Listener:
    """A listening TCP socket, with the connections that are in their handshake and those that wait to be accepted."""

    __slots__ = ("_backlog", "_opening", "binding", "closed", "host", "options", "ports", "queue", "readable")

    def __init__(self, ports: TcpPorts, binding: Binding, options: Options, backlog: int, readable: Slot) -> None:
        self.host: IpLayer = ports.host
        self.ports: TcpPorts = ports
        self.binding: Binding = binding
        self.options: Options = options
        self.readable: Slot = readable
        self.queue: deque[Connection] = deque()
        self.closed: bool = False
        self._backlog = backlog
        self._opening: set[tuple[Endpoint, Endpoint]] = set()

    def set_backlog(self, backlog: int) -> None:
        self._backlog = backlog

    def receive(self, syn: Packet) -> None:
        """Process a SYN.  If the accept queue is full it is dropped, as by Linux: the client retransmits it."""
        if len(self.queue) > self._backlog:
            self.host.drop(syn, "backlog full")
            return
        options = Options(
            self.options.ttl,
            self.options.send_buffer,
            self.options.receive_buffer,
            max_segment=self.options.max_segment,
        )
        share = Binding(
            syn.dst[0],
            syn.dst[1],
            reuse_address=self.binding.reuse_address,
            reuse_port=self.binding.reuse_port,
        )
        connection = Connection(self.ports, share, syn.dst, syn.src, options, owns_binding=True)
        self.ports.bindings.add(share)
        connection.listener = self
        self._opening.add(connection.key)
        connection.endpoint.accept(syn, self.host.clock.now)
        connection.pump()

    def progressed(self, connection: Connection) -> None:
        """Move a connection of this listener to the accept queue when its handshake is over, unless it has failed."""
        state = connection.endpoint.state
        if state is State.SYN_RECEIVED:
            return
        self._opening.discard(connection.key)
        connection.listener = None
        if state is not State.CLOSED:
            self.queue.append(connection)
            self.readable.wake()

    def accept(self) -> Connection:
        """The connection that has waited longest; IndexError without one."""
        return self.queue.popleft()

    def close(self) -> None:
        """Reset all connections that were not accepted."""
        self.closed = True
        connections = self.ports.connections
        for key in sorted(self._opening):
            if key in connections:
                connections[key].listener = None
                connections[key].abort()
        for connection in self.queue:
            connection.abort()
        self.queue.clear()


@final
class TcpPorts:
    """The TCP ports of one host, with their listeners and connections.

    Attributes:
      host: the host.
      bindings: which ports are bound.
      listeners: by port.  Several listeners share a port with SO_REUSEPORT, or by different addresses.
      connections: by (local, remote), including those whose socket is closed but whose state is not yet CLOSED.
    """

    __slots__ = ("bindings", "connections", "host", "listeners")

    def __init__(self, host: IpLayer) -> None:
        self.host: IpLayer = host
        self.bindings: PortTable = PortTable(host.random, stream=True)
        self.listeners: dict[int, list[Listener]] = {}
        self.connections: dict[tuple[Endpoint, Endpoint], Connection] = {}

    def add_listener(self, listener: Listener) -> None:
        self.bindings.listen(listener.binding)
        self.listeners.setdefault(listener.binding.port, []).append(listener)

    def remove_listener(self, listener: Listener) -> None:
        listeners = self.listeners.get(listener.binding.port)
        if listeners is not None and listener in listeners:
            listeners.remove(listener)
            if not listeners:
                del self.listeners[listener.binding.port]

    def release(self, binding: Binding) -> None:
        self.bindings.remove(binding)

    def check_free(self, local: Endpoint, remote: Endpoint) -> None:
        """Raise OSError(EADDRNOTAVAIL) if there is already a connection between these endpoints."""
        if (local, remote) in self.connections:
            raise os_error(errno.EADDRNOTAVAIL)
