"""The bench's gateways, as a program of their own: many MQTT 5 sessions in one loop, as cheap as can be.

They stand on the same cores as what is measured, so whatever they cost is taken from it: messages are made before the
start, and the few MQTT packets that are needed are made here (no TLS). Each gateway publishes at QoS 1 and has a window
of batches without a receipt, as real ones have.

Reads one ``Order`` as JSON, prints ``ready`` when the ingestor answers, and starts with the next line it reads.
"""

import selectors
import socket
import struct
import sys
import time
from dataclasses import dataclass, field
from typing import Final

import msgspec
import numpy as np

from cloud.bench.feed import Feed, payloads, sent_at_offset
from protocols.quantities import Kind
from protocols.uplink import MSGPACK, Receipt, Topic, decode, topic

SILENCE_S: Final = 60.0  # without a receipt we give up
PROBES_S: Final = 30.0
PROBE_S: Final = 1.0
_CONNACK, _PUBLISH, _PUBACK, _SUBACK = 0x20, 0x30, 0x40, 0x90


class Order(msgspec.Struct, frozen=True, kw_only=True):
    """``window``: batches a gateway may have without a receipt. ``rate``: messages/s of all, None for no limit."""

    feed: Feed
    host: str
    port: int
    passwords: dict[str, str]
    window: int
    rate: float | None = None


class Told(msgspec.Struct, frozen=True, kw_only=True):
    """``rows_per_s``: receipted, between the first and the last tenth. Lag: from when a message was due until its
    receipt was here. ``wire_bytes``: MQTT, sent to the broker."""

    messages: int
    rows: int
    wire_bytes: int
    seconds: float
    rows_per_s: float
    lag_p50_ms: float
    lag_p99_ms: float
    cpu_s: float


class LineError(RuntimeError):
    """The broker or the ingestor did not do its part."""


# ---- MQTT 5, as much as is needed ------------------------------------------------------------------------------------


def _text(value: str) -> bytes:
    data = value.encode()
    return struct.pack(">H", len(data)) + data


def _packet(first: int, body: bytes) -> bytes:
    length, size = bytearray(), len(body)
    while True:
        size, low = divmod(size, 128)
        length.append(low | (0x80 if size else 0))
        if not size:
            return bytes([first]) + bytes(length) + body


def _publish(topic: str, packet: int, payload: bytes) -> bytes:
    properties = b"\x03" + _text(MSGPACK)  # content type
    head = _text(topic) + struct.pack(">H", packet) + bytes([len(properties)]) + properties
    return _packet(_PUBLISH | 0x02, head + payload)


def _varint(data: bytearray, at: int) -> tuple[int, int] | None:
    """The number at ``at`` and where it ends; None where it is not whole yet."""
    value = 0
    for i in range(4):
        if at + i >= len(data):
            return None
        value |= (data[at + i] & 0x7F) << 7 * i
        if data[at + i] < 0x80:
            return value, at + i + 1
    raise LineError("the broker sent a length of more than four bytes")


# ---- one gateway -----------------------------------------------------------------------------------------------------


@dataclass
class Gateway:
    """``messages``: PUBLISH packets, of seq 1 and on; ``due_s``, ``receipted_s``: when, of each; 0 for not yet."""

    name: str
    socket: socket.socket
    epoch: str
    messages: list[bytearray] = field(default_factory=list)
    stamp_at: list[int] = field(default_factory=list)
    sent: int = 0
    receipted: int = 0
    due_s: list[float] = field(default_factory=list)
    receipted_s: list[float] = field(default_factory=list)
    replies: list[int] = field(default_factory=list)  # types of packets that came
    probed: bool = False
    _received: bytearray = field(default_factory=bytearray)

    def load(self, feed: Feed, gateway: int) -> None:
        """Make every message."""
        for seq, payload in enumerate(payloads(feed, gateway), 1):
            packet = _publish(topic(self.name, Topic(feed.kind.value)), seq % 65_535 + 1, payload)
            self.messages.append(bytearray(packet))
            self.stamp_at.append(len(packet) - len(payload) + sent_at_offset(payload))
        self.due_s = [0.0] * len(self.messages)
        self.receipted_s = [0.0] * len(self.messages)

    def send(self, due_s: float) -> int:
        """The next message, stamped with the time. Returns its bytes."""
        message = self.messages[self.sent]
        at = self.stamp_at[self.sent]
        message[at : at + 8] = (time.time_ns() // 1000).to_bytes(8, "big")
        self.due_s[self.sent] = due_s
        self.sent += 1
        self.socket.sendall(message)
        return len(message)

    def read(self) -> None:
        """Take what has come. Raises LineError where the broker refuses or leaves."""
        data = self.socket.recv(1 << 16)
        if not data:
            raise LineError(f"{self.name}: the broker closed the connection")
        received = self._received
        received += data
        now_s = time.perf_counter()
        start = 0
        while start + 2 <= len(received):
            length = _varint(received, start + 1)
            if length is None or length[1] + length[0] > len(received):
                break
            size, body = length
            self._take(received[start], bytes(received[body : body + size]), now_s)
            start = body + size
        del received[:start]

    def _take(self, first: int, body: bytes, now_s: float) -> None:
        kind = first & 0xF0
        if kind == _PUBLISH:
            at = 2 + int.from_bytes(body[:2], "big")
            if first & 0x06:
                self.socket.sendall(b"\x40\x02" + body[at : at + 2])
                at += 2
            self._receipt(decode(body[at + 1 + body[at] :], Receipt), now_s)
        elif kind == _PUBACK:
            reason = body[2] if len(body) > 2 else 0
            if reason >= 0x80:
                raise LineError(f"{self.name}: the broker refuses a batch, reason {reason:#04x}; see its access list")
        elif kind == _CONNACK and body[1]:
            raise LineError(f"{self.name}: the broker refuses the connection, reason {body[1]:#04x}; see its users")
        elif kind == _SUBACK and body[-1] >= 0x80:
            raise LineError(
                f"{self.name}: the broker refuses the receipts, reason {body[-1]:#04x}; see its access list"
            )
        if kind in (_CONNACK, _SUBACK):
            self.replies.append(kind)

    def _receipt(self, receipt: Receipt, now_s: float) -> None:
        if receipt.epoch != self.epoch:
            self.probed = True
            return
        for first, last in receipt.stored:
            for i in range(first - 1, last):
                if not self.receipted_s[i]:
                    self.receipted_s[i] = now_s
                    self.receipted += 1

    def wait(self, kind: int) -> None:
        while kind not in self.replies:
            self.read()


def connect(order: Order, name: str) -> Gateway:
    opened = socket.create_connection((order.host, order.port), 10)
    opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    opened.settimeout(30)
    gateway = Gateway(name, opened, order.feed.epoch)
    client = f"bench-{name}-{order.feed.epoch[:8]}"
    flags = 0xC2  # user name, password, clean start
    head = _text("MQTT") + bytes([5, flags, 0, 0, 0])  # no keepalive, no properties
    opened.sendall(_packet(0x10, head + _text(client) + _text(name) + _text(order.passwords[name])))
    gateway.wait(_CONNACK)
    opened.sendall(_packet(0x82, b"\x00\x01\x00" + _text(topic(name, Topic.RECEIPT)) + b"\x01"))
    gateway.wait(_SUBACK)
    return gateway


# ---- the run ---------------------------------------------------------------------------------------------------------


def probe(gateway: Gateway, feed: Feed, position: int) -> None:
    """Wait until an ingestor answers: one row of the other kind, so that the table that is measured stays empty."""
    other = Kind.POWER if feed.kind is Kind.ENERGY else Kind.ENERGY
    one = msgspec.structs.replace(feed, kind=other, rows=1, messages=1, epoch=feed.epoch[::-1])
    payload = next(payloads(one, position))
    deadline_s = time.perf_counter() + PROBES_S
    gateway.socket.settimeout(PROBE_S)
    while not gateway.probed:
        if time.perf_counter() > deadline_s:
            raise LineError(f"no ingestor gave a receipt within {PROBES_S:.0f} s")
        gateway.socket.sendall(_publish(topic(gateway.name, Topic(other.value)), 65_535, payload))
        try:
            while not gateway.probed:
                gateway.read()
        except TimeoutError:
            pass  # nobody had subscribed yet: a broker acknowledges all the same
    gateway.socket.settimeout(30)


def run(order: Order, gateways: list[Gateway]) -> Told:
    """Send everything, and wait for every receipt."""
    feed = order.feed
    selector = selectors.DefaultSelector()
    for gateway in gateways:
        selector.register(gateway.socket, selectors.EVENT_READ, gateway)
    wire_bytes, sent, total = 0, 0, feed.total_messages
    begin_s, begin_cpu_s = time.perf_counter(), time.process_time()
    heard_s = begin_s
    open_gateways = set(range(len(gateways)))
    if order.rate is None:
        for _ in range(min(order.window, feed.messages)):
            for gateway in gateways:
                wire_bytes += gateway.send(time.perf_counter())
                sent += 1
    while open_gateways:
        now_s = time.perf_counter()
        timeout_s = 1.0
        if order.rate is not None and sent < total:
            while sent < total and (next_s := begin_s + sent / order.rate) <= now_s:
                gateway = gateways[sent % len(gateways)]
                if gateway.sent - gateway.receipted >= order.window:
                    break  # late: its lag counts from when it was due
                wire_bytes += gateway.send(next_s)
                sent += 1
            timeout_s = min(max(begin_s + sent / order.rate - now_s, 0.001), 0.01)
        for key, _ in selector.select(timeout_s):
            gateway = key.data
            gateway.read()
            heard_s = time.perf_counter()
            if order.rate is None:
                while gateway.sent < feed.messages and gateway.sent - gateway.receipted < order.window:
                    wire_bytes += gateway.send(time.perf_counter())
                    sent += 1
        if now_s - heard_s > SILENCE_S:
            missing = sum(gateway.sent - gateway.receipted for gateway in gateways)
            raise LineError(
                f"no receipt for {SILENCE_S:.0f} s; {missing} of {sent} batches have none; see ingest's log"
            )
        open_gateways = {i for i in open_gateways if gateways[i].receipted < feed.messages}
    was_due_s = np.array([gateway.due_s for gateway in gateways]).ravel()
    receipted_s = np.array([gateway.receipted_s for gateway in gateways]).ravel()
    lag_ms = (receipted_s - was_due_s) * 1000
    done_s = np.sort(receipted_s)
    tenth = len(done_s) // 10
    steady_s = done_s[-1 - tenth] - done_s[tenth]
    return Told(
        messages=sent,
        rows=feed.total_rows,
        wire_bytes=wire_bytes,
        seconds=float(done_s[-1] - begin_s),
        rows_per_s=float((len(done_s) - 2 * tenth - 1) * feed.rows / steady_s) if steady_s else 0.0,
        lag_p50_ms=float(np.percentile(lag_ms, 50)),
        lag_p99_ms=float(np.percentile(lag_ms, 99)),
        cpu_s=time.process_time() - begin_cpu_s,
    )


def main() -> None:
    order = msgspec.json.decode(sys.stdin.buffer.readline(), type=Order)
    try:
        gateways = [connect(order, name) for name in order.feed.gateways]
        for i, gateway in enumerate(gateways):
            gateway.load(order.feed, i)
        probe(gateways[0], order.feed, 0)
        print("ready", flush=True)
        sys.stdin.buffer.readline()
        told = run(order, gateways)
    except (LineError, OSError) as error:
        sys.exit(f"bench publisher: {error}")
    print(msgspec.json.encode(told).decode(), flush=True)


if __name__ == "__main__":
    main()
