"""Commands out, replies in. The broker may be away at any time: what was not answered is sent again by its owner."""

import logging
import queue
import ssl
from dataclasses import dataclass

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from paho.mqtt.reasoncodes import ReasonCode

from cloud.settings import Mqtt
from protocols.uplink import ROOT, Command, PayloadError, Reply, Topic, decode, encode, split_topic, topic

logger = logging.getLogger(__name__)

CLIENT_ID = "gridloom-work"
# Replies nobody fetched: the gateway sends one again when the command is sent again, so the newest may be dropped.
REPLIES_MAX = 10_000
RECONNECT_S_MIN, RECONNECT_S_MAX = 1, 10


@dataclass(frozen=True, slots=True)
class Answer:
    gateway: str
    reply: Reply


class Mailbox:
    """One MQTT connection in a thread of its own, which reconnects for ever."""

    def __init__(self, mqtt: Mqtt) -> None:
        self._mqtt = mqtt
        self._answers: queue.Queue[Answer] = queue.Queue(REPLIES_MAX)
        self._said: str | None = None
        self._client = paho.Client(CallbackAPIVersion.VERSION2, CLIENT_ID, protocol=MQTTProtocolVersion.MQTTv5)
        self._client.username_pw_set(mqtt.username, mqtt.password)
        self._client.reconnect_delay_set(RECONNECT_S_MIN, RECONNECT_S_MAX)
        if mqtt.tls:
            context = ssl.create_default_context(cafile=mqtt.ca)
            if mqtt.certificate:
                context.load_cert_chain(mqtt.certificate, mqtt.key)
            self._client.tls_set_context(context)
        self._client.on_connect = self._on_connect
        self._client.on_connect_fail = lambda client, userdata: self._say("not reachable")
        self._client.on_disconnect = self._on_disconnect
        self._client.on_message = self._on_message

    def start(self) -> None:
        self._client.connect_async(self._mqtt.host, self._mqtt.port, keepalive=15)
        self._client.loop_start()

    def stop(self) -> None:
        self._client.disconnect()
        self._client.loop_stop()

    def send(self, gateway: str, command: Command) -> bool:
        """Whether it was handed to the broker's connection; not whether it arrived, which only a reply says."""
        if not self._client.is_connected():
            return False
        sent = self._client.publish(topic(gateway, Topic.COMMAND), encode(command), qos=1)
        return sent.rc == paho.MQTT_ERR_SUCCESS

    def answers(self) -> list[Answer]:
        """What came since the last call."""
        return [self._answers.get_nowait() for _ in range(self._answers.qsize())]

    def _say(self, state: str) -> None:
        """One line per change."""
        if state != self._said:
            self._said = state
            level = logging.INFO if state == "connected" else logging.WARNING
            logger.log(level, "broker %s:%s: %s", self._mqtt.host, self._mqtt.port, state)

    def _on_connect(
        self, client: paho.Client, userdata: object, flags: paho.ConnectFlags, reason: ReasonCode, properties: object
    ) -> None:
        if reason.is_failure:
            self._say(f"refused us ({reason}); check GRIDLOOM_MQTT_USERNAME and GRIDLOOM_MQTT_PASSWORD")
            return
        self._say("connected")
        client.subscribe(f"{ROOT}/+/{Topic.REPLY}", qos=1)

    def _on_disconnect(
        self, client: paho.Client, userdata: object, flags: object, reason: ReasonCode, properties: object
    ) -> None:
        if reason.is_failure and not (self._said or "").startswith("refused"):
            self._say("connection lost, will connect again")

    def _on_message(self, client: paho.Client, userdata: object, message: paho.MQTTMessage) -> None:
        try:
            gateway, _ = split_topic(message.topic)
            self._answers.put_nowait(Answer(gateway, decode(bytes(message.payload), Reply)))
        except PayloadError as error:
            logger.warning("reply ignored topic=%s: %s", message.topic, error)
        except queue.Full:
            logger.warning("reply dropped, %d are waiting for the database", REPLIES_MAX)
