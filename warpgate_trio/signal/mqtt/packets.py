"""A filter for the bytes that a broker sends: bounds every MQTT packet before a client library buffers it.  No I/O.

MQTT 3.1.1 lets a packet be 256 MiB long, and any client that may publish to our topic (on a public broker: anybody)
chooses its size.  The client library buffers a whole packet before it handles it.  This filter stands between the
broker's stream and the library.  It passes packets on as they are, with two exceptions:

* The connection ends on a packet that a broker has no reason to send to a client that subscribes with QoS 1 at most, on
  one that the library would fail on, and on bytes that are not MQTT.
* A PUBLISH that is too long is cut down to its topic and packet id.  The library acknowledges the emptied message, so
  that the broker forgets it.  Closing the connection instead would help the sender of a *retained* message: it would
  come again with every new connection.

Section numbers are those of MQTT Version 3.1.1, OASIS Standard, 2014.
"""

from __future__ import annotations

from typing import Final, final

from ...errors import RemoteProtocolError

__all__ = ["PacketFilter"]

_CONNACK, _PUBLISH, _PUBACK, _SUBACK, _UNSUBACK, _PINGRESP = 2, 3, 4, 9, 11, 13  # 2.2.1
_LONGEST: Final = {_CONNACK: 2, _PUBACK: 2, _SUBACK: 16, _UNSUBACK: 2, _PINGRESP: 0}
"""Most bytes behind the fixed header; a SUBACK has one byte for each topic of the SUBSCRIBE, of which we send one."""
_MAX_TOPIC: Final = 512  # bytes; ours have less than half of that

_REFUSALS: Final = {  # 3.2.2.3
    1: "it does not speak MQTT 3.1.1",
    2: "it rejects our client identifier",
    3: "its MQTT service is not available",
    4: "the user name or password is wrong",
    5: "we are not authorized; does it want a user name and a password?",
}


@final
class PacketFilter:
    """See the module's page.

    Args:
      max_payload: bytes of a PUBLISH's payload that are always passed on; a few hundred more may be.
    """

    def __init__(self, *, max_payload: int) -> None:
        self._max_packet = max_payload + 2 + _MAX_TOPIC + 2  # 3.3.2: length of topic, topic, packet id
        self._buffer = bytearray()  # the beginning of a packet that is not decided on yet; never more than a topic
        self._pass = 0
        self._skip = 0
        self._greeted = False
        self.refusal: str | None = None
        """Why the broker has refused us in its CONNACK; None: it has not."""
        self.cut: int = 0
        """How many messages were too long, and were cut."""

    def feed(self, data: bytes) -> bytes:
        """Take bytes from the broker, in chunks of any size; returns the bytes for the client library.

        Raises:
          RemoteProtocolError: a broker has no reason to send us these bytes.
        """
        self._buffer += data
        passed = bytearray()
        while self._buffer:
            if self._pass:
                piece = self._buffer[: self._pass]
                passed += piece
                self._pass -= len(piece)
                del self._buffer[: len(piece)]
            elif self._skip:
                skipped = min(self._skip, len(self._buffer))
                self._skip -= skipped
                del self._buffer[:skipped]
            elif not self._begin(passed):
                break
        return bytes(passed)

    def _begin(self, passed: bytearray) -> bool:
        """Decide about the packet that starts in the buffer; False: that needs more of it."""
        buffer = self._buffer
        kind, flags = buffer[0] >> 4, buffer[0] & 15
        if self._greeted == (kind == _CONNACK):  # 3.2: CONNACK, first and once
            raise RemoteProtocolError("the broker does not speak MQTT, or sends packets in the wrong order")
        if kind != _PUBLISH and kind not in _LONGEST:
            raise RemoteProtocolError(
                f"the broker sent an MQTT packet of type {kind}, which it must not send to this client"
            )
        length = _remaining_length(buffer)
        if length is None:
            return False
        body, size = length
        if kind == _PUBLISH:
            return self._begin_publish(passed, body, size, with_id=_has_packet_id(flags))
        if size > _LONGEST[kind]:
            raise RemoteProtocolError(
                f"the broker sent an MQTT packet of type {kind} with {size} bytes, more than {_LONGEST[kind]}"
            )
        if kind == _CONNACK:
            if len(buffer) < body + 2 <= body + size:
                return False
            if size != 2:
                raise RemoteProtocolError("the broker does not speak MQTT, or sends packets in the wrong order")
            self._greeted = True
            code = buffer[body + 1]
            if code:
                self.refusal = f"the broker refuses us: {_REFUSALS.get(code, f'code {code}')}"
        self._pass = body + size
        return True

    def _begin_publish(self, passed: bytearray, body: int, size: int, *, with_id: bool) -> bool:
        buffer = self._buffer
        if len(buffer) < body + 2 <= body + size:
            return False
        topic = int.from_bytes(buffer[body : body + 2], "big")
        head = 2 + topic + 2 * with_id
        if not 0 < topic <= _MAX_TOPIC or head > size:
            raise RemoteProtocolError(
                f"the broker sent a PUBLISH of {size} bytes with an invalid topic length, {topic}"
            )
        if len(buffer) < body + head:
            return False
        _check_topic(bytes(buffer[body + 2 : body + 2 + topic]))
        if size <= self._max_packet:
            self._pass = body + size
            return True
        passed += bytes([buffer[0]]) + _encode_length(head) + buffer[body : body + head]
        del buffer[: body + head]
        self._skip = size - head
        self.cut += 1
        return True


def _check_topic(topic: bytes) -> None:
    """Reject topics on which the client library fails, and then neither reads on nor closes its socket."""
    try:
        text = topic.decode()
    except UnicodeDecodeError:
        raise RemoteProtocolError("the broker sent a message whose topic is not UTF-8") from None
    if any(char in text for char in "+#\0"):  # 3.3.2.1, 1.5.3
        raise RemoteProtocolError("the broker sent a message whose topic has a wildcard or a null character")


def _has_packet_id(flags: int) -> bool:
    qos = flags >> 1 & 3
    if qos > 1:
        raise RemoteProtocolError(f"the broker sent a message with QoS {qos}; we subscribe with 1")  # 3.8.4
    return qos == 1


def _remaining_length(buffer: bytearray) -> tuple[int, int] | None:
    """Where the body starts, and how long it is (2.2.3); None if the length field is incomplete."""
    value = 0
    for position in range(1, 5):
        if position >= len(buffer):
            return None
        value += (buffer[position] & 127) << 7 * (position - 1)
        if not buffer[position] & 128:
            return position + 1, value
    raise RemoteProtocolError("the broker sent a packet whose length field has more than four bytes")


def _encode_length(value: int) -> bytes:
    """Encode a remaining length of up to two bytes, enough for topic and packet id."""
    return bytes([value]) if value < 128 else bytes([value & 127 | 128, value >> 7])
