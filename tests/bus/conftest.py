"""The two brokers Gridloom runs on: the embedded one of the demo, and mosquitto with the settings of `deploy/`."""

import queue
import socket
import ssl
import threading
import time
from typing import Any

import pytest
from paho.mqtt.client import Client, ConnectFlags, DisconnectFlags, MQTTMessage
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode
from paho.mqtt.subscribeoptions import SubscribeOptions

from simulators.services import Broker
from tests.conftest import BROKER_USERS
from tests.mosquitto import Mosquitto

SESSION_S = 3600


@pytest.fixture(params=["embedded", "mosquitto"])
def port(request: pytest.FixtureRequest) -> int:
    """Of a running broker, on loopback; each test runs once on either."""
    broker: Broker | Mosquitto = request.getfixturevalue(
        "embedded_broker" if request.param == "embedded" else "mosquitto"
    )
    return broker.port


class Peer:
    """One MQTT 5 client.

    ``keep``: its session outlives its connection. ``manual``: it acknowledges only what the test tells it to.
    """

    def __init__(self, port: int, user: str | None, client_id: str, *, password: str | None = None, keep: bool = False,
                 manual: bool = False, will: tuple[str, bytes] | None = None, tls: ssl.SSLContext | None = None,
                 ) -> None:  # fmt: skip
        self.received: queue.Queue[MQTTMessage] = queue.Queue()
        self.outcome: str | None = None
        self.session_present = False
        self._answered = threading.Event()
        self._acknowledged: dict[int, ReasonCode] = {}
        self._condition = threading.Condition()
        self.client = Client(CallbackAPIVersion.VERSION2, client_id, protocol=MQTTProtocolVersion.MQTTv5,
                             manual_ack=manual, reconnect_on_failure=False)  # fmt: skip
        self.client.on_connect = self._connected
        self.client.on_disconnect = self._disconnected
        self.client.on_message = lambda client, data, message: self.received.put(message)
        self.client.on_publish = self._published
        self.client.on_subscribe = lambda client, data, mid, codes, properties: self._note(mid, codes[0])
        if user is not None:
            self.client.username_pw_set(user, BROKER_USERS[user] if password is None else password)
        if will:
            self.client.will_set(*will, qos=1, retain=True)
        if tls:
            self.client.tls_set_context(tls)
        properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]
        if keep:
            properties.SessionExpiryInterval = SESSION_S
        self.client.connect("127.0.0.1", port, keepalive=10, clean_start=not keep, properties=properties)
        self.client.loop_start()
        assert self._answered.wait(10), "the broker answered nothing"

    def _connected(self, client: Client, data: Any, flags: ConnectFlags, reason: ReasonCode, properties: Any) -> None:
        self.outcome = str(reason)
        self.session_present = flags.session_present
        self._answered.set()

    def _disconnected(self, client: Client, data: Any, flags: DisconnectFlags, reason: ReasonCode, props: Any) -> None:
        if self.outcome is None:
            self.outcome = f"closed: {reason}"
        self._answered.set()

    def _published(self, client: Client, data: Any, mid: int, reason: ReasonCode, properties: Any) -> None:
        self._note(mid, reason)

    def _note(self, mid: int, reason: ReasonCode) -> None:
        with self._condition:
            self._acknowledged[mid] = reason
            self._condition.notify_all()

    def _wait(self, mid: int) -> ReasonCode:
        with self._condition:
            assert self._condition.wait_for(lambda: mid in self._acknowledged, 10), "the broker acknowledged nothing"
            return self._acknowledged[mid]

    def subscribe(self, topic: str) -> None:
        _, mid = self.client.subscribe(topic, options=SubscribeOptions(qos=1))
        assert mid is not None
        assert not self._wait(mid).is_failure

    def publish(self, topic: str, payload: bytes, *, retain: bool = False) -> ReasonCode:
        """Returns the broker's answer, once it is there."""
        return self._wait(self.client.publish(topic, payload, qos=1, retain=retain).mid)

    def publish_many(self, topic: str, payloads: list[bytes]) -> None:
        for mid in [self.client.publish(topic, payload, qos=1).mid for payload in payloads]:
            self._wait(mid)

    def take(self, count: int, timeout_s: float = 10) -> list[MQTTMessage]:
        """The next ``count`` messages."""
        deadline = time.monotonic() + timeout_s
        taken: list[MQTTMessage] = []
        while len(taken) < count:
            try:
                taken.append(self.received.get(timeout=max(0.0, deadline - time.monotonic())))
            except queue.Empty:
                raise AssertionError(f"{len(taken)} of {count} messages came") from None
        return taken

    def rest(self, quiet_s: float = 0.5) -> list[bytes]:
        """What comes until nothing comes for a moment."""
        taken: list[bytes] = []
        while True:
            try:
                taken.append(bytes(self.received.get(timeout=quiet_s).payload))
            except queue.Empty:
                return taken

    def acknowledge(self, message: MQTTMessage) -> None:
        self.client.ack(message.mid, message.qos)

    def vanish(self) -> None:
        """As when the power fails: no DISCONNECT."""
        wire = self.client.socket()
        assert isinstance(wire, socket.socket)
        wire.shutdown(socket.SHUT_RDWR)
        self.client.loop_stop()

    def leave(self) -> None:
        self.client.disconnect()
        self.client.loop_stop()
