"""Our end of the broker: one MQTT 5 session that outlives connections, and acknowledgement by hand.

paho-mqtt runs its own thread; what comes in waits in ``inbox``, which the broker bounds by our receive maximum.
"""

import logging
import queue
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from paho.mqtt.client import Client, ConnectFlags, DisconnectFlags, MQTTMessage, MQTTv5
from paho.mqtt.enums import CallbackAPIVersion, MQTTErrorCode
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode
from paho.mqtt.subscribeoptions import SubscribeOptions

from cloud.settings import Mqtt
from cloud.store.quarantine import Message
from protocols.uplink import MSGPACK, ROOT, Topic

logger = logging.getLogger(__name__)

# Messages on their way to us and not acknowledged: enough for full transactions where a message holds one row.
RECEIVE_MAX: Final = 2_000
# What may wait here. mosquitto stops earlier, at its max_inflight_bytes; what comes beyond is let go unacknowledged,
# and asked for again by a new connection once the rest is stored.
INBOX_BYTES_MAX: Final = 200_000_000
RECEIPTS_IN_FLIGHT: Final = 1_000
CONTENT_TYPE_ID: Final = 0x03  # MQTT 5.0, 2.2.2.2
PACKETS_AT_ONCE: Final = 100  # then it writes, and looks after its keepalive
SESSION_EXPIRY_S: Final = 24 * 3600
KEEPALIVE_S: Final = 20
RECEIPTS_QUEUED_MAX: Final = 10_000  # what is beyond is not sent, and its gateway asks again
# Batches are shared among ingestors; a status is retained, which shared subscriptions are not sent.
# Each filter has a group of its own: rumqttd, the embedded broker, delivers only one filter of a group.
SUBSCRIPTIONS: Final = (
    *(f"$share/ingest-{last.value}/{ROOT}/+/{last.value}" for last in (Topic.ENERGY, Topic.POWER, Topic.EVENTS)),
    f"{ROOT}/+/{Topic.STATUS.value}",
)


@dataclass(frozen=True, slots=True)
class Delivery:
    """A message and what acknowledges it: a packet identifier, good for one connection only."""

    message: Message
    packet: int
    qos: int
    connection: int


class _Client(Client):
    """paho, quicker with many small messages. It asks `select` before each packet and builds an object of all
    properties for each message: half of what a message with one row costs."""

    take: Callable[[str, bytes, str, int, int], None]  # topic, payload, content type, packet, QoS
    publishes = 0

    def loop_read(self, max_packets: int = 1) -> MQTTErrorCode:
        for _ in range(PACKETS_AT_ONCE):
            before = self.publishes
            code = super().loop_read(max_packets)
            if code or self.publishes == before:
                return code
        return MQTTErrorCode.MQTT_ERR_SUCCESS

    def _handle_publish(self) -> MQTTErrorCode:
        """What our gateways send: QoS 0 or 1, with no property or a content type alone. All else is paho's."""
        self.publishes += 1
        packet = self._in_packet["packet"]
        qos = self._in_packet["command"] >> 1 & 3
        topic_end = 2 + int.from_bytes(packet[:2], "big")
        properties = topic_end + 2 * qos
        if qos < 2 and properties < len(packet):
            length = packet[properties]  # in one byte below 128
            end = properties + 1 + length
            alone = length > 3 and packet[properties + 1] == CONTENT_TYPE_ID
            alone = alone and 3 + int.from_bytes(packet[properties + 2 : properties + 4], "big") == length
            if end <= len(packet) and (length == 0 or (length < 128 and alone)):
                try:
                    topic = packet[2:topic_end].decode()
                    content_type = packet[properties + 4 : end].decode()
                except UnicodeDecodeError:
                    return super()._handle_publish()
                mid = int.from_bytes(packet[topic_end:properties], "big")
                self.take(topic, bytes(packet[end:]), content_type, mid, qos)
                return MQTTErrorCode.MQTT_ERR_SUCCESS
        return super()._handle_publish()


class Broker:
    """Connects and reconnects for ever, from ``start`` to ``stop``."""

    def __init__(self, settings: Mqtt, client_id: str, *, fresh_session: bool = False, leaving: bool = False) -> None:
        """``leaving``: take what the session holds, and nothing new.

        ``fresh_session``: start anew at every connection. Nothing is lost by it, since gateways send again what has
        no receipt; rumqttd needs it, for its router dies when a resumed session with a share group ends.
        """
        self.inbox: queue.SimpleQueue[Delivery] = queue.SimpleQueue()
        self._came = self._came_bytes = 0  # counted by paho's thread
        self._went = self._went_bytes = 0  # counted by whoever acknowledges
        self._let_go = False
        self._settings = settings
        self._fresh_session = fresh_session
        self._leaving = leaving
        self._connection = 0
        self._resumed = False
        self._refused = ""
        self._client = _Client(CallbackAPIVersion.VERSION2, client_id=client_id, protocol=MQTTv5, manual_ack=True)
        self._client.username_pw_set(settings.username, settings.password)
        if settings.tls:
            self._client.tls_set(ca_certs=settings.ca, certfile=settings.certificate, keyfile=settings.key)
        self._client.max_queued_messages_set(RECEIPTS_QUEUED_MAX)
        self._client.max_inflight_messages_set(RECEIPTS_IN_FLIGHT)
        self._client.on_connect = self._on_connect
        self._client.on_connect_fail = self._on_connect_fail
        self._client.on_disconnect = self._on_disconnect
        self._client.on_subscribe = self._on_subscribe
        self._client.on_message = self._on_message
        self._client.take = self._take

    @property
    def connected(self) -> bool:
        return self._client.is_connected()

    @property
    def waiting(self) -> int:
        """Messages received and not acknowledged."""
        return self._came - self._went

    @property
    def waiting_bytes(self) -> int:
        return self._came_bytes - self._went_bytes

    def start(self) -> None:
        properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]
        properties.SessionExpiryInterval = SESSION_EXPIRY_S
        properties.ReceiveMaximum = RECEIVE_MAX
        self._spread_reconnects()
        self._client.connect_async(
            self._settings.host,
            self._settings.port,
            KEEPALIVE_S,
            clean_start=self._fresh_session,
            properties=properties,
        )
        self._client.loop_start()

    def stop(self) -> None:
        """Go; the session stays, and what was not acknowledged comes again. Who is leaving ends the session."""
        self._disconnect(0 if self._leaving else SESSION_EXPIRY_S)

    def _disconnect(self, expiry_s: int) -> None:
        properties = Properties(PacketTypes.DISCONNECT)  # type: ignore[no-untyped-call]
        properties.SessionExpiryInterval = expiry_s
        self._client.disconnect(properties=properties)
        self._client.loop_stop()

    def acknowledge(self, delivery: Delivery) -> None:
        """After a reconnect the broker delivers again, so an old connection's packet is left alone."""
        if delivery.qos and delivery.connection == self._connection:
            self._client.ack(delivery.packet, delivery.qos)
        self._went += 1
        self._went_bytes += len(delivery.message.payload)
        if self._let_go and not self.waiting:
            logger.info("broker: connecting again for what was let go of")
            self._let_go = False
            self._disconnect(SESSION_EXPIRY_S)
            self.start()

    def publish(self, topic: str, payload: bytes) -> None:
        """A receipt that is lost is asked for again, so none is kept for a broker that is away."""
        if self.connected:
            self._client.publish(topic, payload, qos=1)

    def _spread_reconnects(self) -> None:
        self._client.reconnect_delay_set(random.uniform(0.2, 1), random.uniform(3, 6))  # type: ignore[arg-type]

    def _on_connect(
        self, client: Client, _data: Any, flags: ConnectFlags, reason: ReasonCode, _properties: Properties | None
    ) -> None:
        if reason.is_failure:
            if self._refused != str(reason):
                self._refused = str(reason)
                logger.error("broker refuses us host=%s port=%s reason=%s", *self._address, reason)
            return
        self._refused = ""
        self._connection += 1
        self._resumed = flags.session_present
        if self._leaving:
            if not flags.session_present:
                logger.warning("broker holds no session of ours; is the --name right?")
            client.unsubscribe(list(SUBSCRIPTIONS))
            logger.info("broker connected host=%s port=%s; taking nothing new", *self._address)
            return
        client.subscribe([(topic, SubscribeOptions(qos=1)) for topic in SUBSCRIPTIONS])

    def _on_connect_fail(self, _client: Client, _data: Any) -> None:
        if self._refused != "unreachable":
            self._refused = "unreachable"
            logger.warning("broker unreachable host=%s port=%s; trying on", *self._address)

    def _on_disconnect(
        self, _client: Client, _data: Any, _flags: DisconnectFlags, reason: ReasonCode, _properties: Properties | None
    ) -> None:
        self._spread_reconnects()
        if self._refused:  # said already, and not been connected since
            return
        self._refused = "gone"
        if reason.getName() == "Session taken over":
            logger.error("broker: another ingestor uses our name; give each its own --name")
        else:
            logger.log(logging.WARNING if reason.is_failure else logging.INFO, "broker disconnected reason=%s", reason)

    def _on_subscribe(
        self, _client: Client, _data: Any, _mid: int, reasons: list[ReasonCode], _properties: Properties | None
    ) -> None:
        for topic, reason in zip(SUBSCRIPTIONS, reasons, strict=False):
            if reason.is_failure:
                logger.error("broker refuses subscription topic=%s reason=%s; see its access list", topic, reason)
        session = "resumed" if self._resumed else "new"
        logger.info("broker connected host=%s port=%s session=%s", *self._address, session)

    def _on_message(self, _client: Client, _data: Any, message: MQTTMessage) -> None:
        content_type = getattr(message.properties, "ContentType", "")
        self._take(message.topic, bytes(message.payload), content_type, message.mid, message.qos)

    def _take(self, topic: str, payload: bytes, content_type: str, packet: int, qos: int) -> None:
        if self.waiting and self.waiting_bytes + len(payload) > INBOX_BYTES_MAX:
            if not self._let_go:
                self._let_go = True
                logger.warning("broker: %d MB wait for the database; letting go of more", INBOX_BYTES_MAX // 1_000_000)
            return
        self._came += 1
        self._came_bytes += len(payload)
        self.inbox.put(Delivery(Message(topic, payload, content_type or MSGPACK), packet, qos, self._connection))

    @property
    def _address(self) -> tuple[str, int]:
        return self._settings.host, self._settings.port
