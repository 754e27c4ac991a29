"""The line to the cloud: MQTT 5, QoS 1, from the queue to the broker and back from receipt to queue.

The broker is never trusted with the only copy: its acknowledgement means *sent*. Only a receipt deletes a batch; what
has none is sent again after a reconnect and after a timeout.
"""

import asyncio
import logging
import random
import socket
import sqlite3
import ssl
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final

import aiomqtt
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

from gateway.queue import Queue, Queued
from protocols.clock import Clock
from protocols.quantities import Kind
from protocols.uplink import MSGPACK, PayloadError, Receipt, Status, Topic, decode, encode, split_topic, to_us, topic

if TYPE_CHECKING:  # config takes Broker from here, and commands take their sites from config
    from gateway.commands.journal import Journal

logger = logging.getLogger(__name__)

WINDOW: Final = 20  # batches without a receipt: 2.4 MB of energy at most in anybody's memory
RECEIPT_TIMEOUT_S: Final = 10.0
RECEIPT_TIMEOUT_MAX_S: Final = 60.0  # with nobody answering, a broker that keeps sessions fills slowly
RECONNECT_S: Final = 0.5
RECONNECT_MAX_S: Final = 15.0
STATUS_S: Final = 10.0
CONNECT_S: Final = 5.0
PUBACK_S: Final = 10.0
KEEPALIVE_S: Final = 15
SESSION_S: Final = 86_400  # the broker keeps commands for a gateway that is away this long
STOP_S: Final = 1.0

_TOPICS: Final = {Kind.ENERGY: Topic.ENERGY, Kind.POWER: Topic.POWER, Kind.EVENTS: Topic.EVENTS}


@dataclass(frozen=True, slots=True)
class Broker:
    """Where the broker is and who we are there. ``username`` is the gateway's name.

    With a client certificate the broker knows us by its common name, and a password is not needed.
    """

    host: str
    port: int
    username: str
    password: str = field(repr=False)
    tls: bool = False
    ca: str | None = None
    certificate: str | None = None
    key: str | None = None

    def tls_context(self) -> ssl.SSLContext | None:
        """Raises OSError (also ssl.SSLError) when a file is missing or is no certificate."""
        if not self.tls:
            return None
        context = ssl.create_default_context(cafile=self.ca)
        if self.certificate:
            context.load_cert_chain(self.certificate, self.key)
        return context


class _Client(aiomqtt.Client):
    """aiomqtt takes a PUBACK for granted, but a broker says there, too, that we may not publish."""

    refused = ""

    def _on_publish(self, client: Any, userdata: Any, mid: int, reason_code: ReasonCode, properties: Any) -> None:
        if reason_code.is_failure:
            self.refused = str(reason_code)
        super()._on_publish(client, userdata, mid, reason_code, properties)

    async def say(self, topic: str, payload: bytes, **how: Any) -> None:
        """Publish at QoS 1. Raises aiomqtt.MqttError also where the broker refuses."""
        await self.publish(topic, payload, 1, **how)
        if self.refused:
            raise aiomqtt.MqttError(f"may not publish {topic} ({self.refused}); check the broker's access list")


class Uplink:
    """Keeps one connection for ever. ``receive`` takes a command's payload, ``status`` says how the gateway does."""

    def __init__(
        self,
        broker: Broker,
        queue: Queue,
        journal: "Journal",
        clock: Clock,
        *,
        receive: Callable[[bytes], Awaitable[None]],
        status: Callable[[], Status],
    ) -> None:
        self._broker = broker
        self._queue = queue
        self._journal = journal
        self._clock = clock
        self._receive = receive
        self._status = status
        self.acknowledged = asyncio.Event()  # the broker has taken a status of ours
        self.state = "not connected yet"
        self.receipt_at: int | None = None
        self._work = asyncio.Event()
        self._news = asyncio.Event()
        self._in_flight: dict[int, float] = {}  # seq → monotonic() when it counts as lost
        self._timeout_s = RECEIPT_TIMEOUT_S

    def tell_status(self) -> None:
        """Something changed that nobody should wait for."""
        self._news.set()

    def wake(self) -> None:
        """Something waits in the queue."""
        self._work.set()

    async def run(self) -> None:
        """For ever."""
        task = asyncio.create_task(self._stay_connected())
        try:
            await asyncio.wait({task})
        finally:
            await end(task)
        task.result()

    async def _stay_connected(self) -> None:
        where = f"{self._broker.host}:{self._broker.port}"
        wait_s, down = RECONNECT_S, ""
        while True:
            reason, is_connected = "closed", False
            try:
                async with self._client() as client:
                    await self._subscribe(client)
                    is_connected = True
                    logger.info("uplink connected broker=%s", where)
                    wait_s, down, self.state = RECONNECT_S, "", "connected"
                    await self._session(client)
            # A full disk, too, is mended some day, and so is a certificate file.
            except* (aiomqtt.MqttError, sqlite3.OperationalError, OSError) as group:
                reason = str(group.exceptions[0])
            if not is_connected:
                reason = await self._why(reason)
            self.state = reason
            if reason != down:
                logger.warning("uplink down broker=%s reason=%s; trying again until it is back", where, reason)
                down = reason
            await self._clock.sleep(wait_s * random.uniform(0.5, 1.5))
            wait_s = min(2 * wait_s, RECONNECT_MAX_S)

    async def _why(self, reason: str) -> str:
        """What a person can act on, of an attempt that did not connect."""
        if self._broker.tls and (found := await asyncio.to_thread(diagnose, self._broker)):
            return found
        if reason == "Operation timed out":
            # Some brokers answer a wrong password by closing the connection.
            return "no answer to CONNECT; is it an MQTT 5 broker, and is the password right?"
        return reason

    def _client(self) -> _Client:
        gone = Status(online=False, at=to_us(self._clock.now()), epoch=self._queue.epoch)
        session = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]
        session.SessionExpiryInterval = SESSION_S
        client = _Client(
            self._broker.host,
            self._broker.port,
            identifier=self._broker.username,
            username=self._broker.username,
            password=self._broker.password or None,
            protocol=aiomqtt.ProtocolVersion.V5,
            clean_start=False,
            properties=session,
            will=aiomqtt.Will(self._topic(Topic.STATUS), encode(gone), qos=1, retain=True),
            keepalive=KEEPALIVE_S,
            timeout=CONNECT_S,
            tls_context=self._broker.tls_context(),  # read anew: a certificate may have been renewed
            max_inflight_messages=WINDOW,
        )
        client.pending_calls_threshold = 2 * WINDOW  # aiomqtt warns beyond 10; our window is the bound
        return client

    def _topic(self, last: Topic) -> str:
        return topic(self._queue.gateway, last)

    async def _subscribe(self, client: aiomqtt.Client) -> None:
        for last in (Topic.RECEIPT, Topic.COMMAND):
            for code in await client.subscribe(self._topic(last), qos=1):
                if (code if isinstance(code, int) else code.value) >= 0x80:
                    raise aiomqtt.MqttError(f"may not subscribe {self._topic(last)} ({code}); check the broker's ACL")

    async def _session(self, client: _Client) -> None:
        self._in_flight.clear()  # what the last connection carried may be lost with it
        self._timeout_s = RECEIPT_TIMEOUT_S
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._listen(client))
                tasks.create_task(self._send(client))
                tasks.create_task(self._tell_status(client))
        except asyncio.CancelledError:
            with suppress(aiomqtt.MqttError):
                gone = Status(online=False, at=to_us(self._clock.now()), epoch=self._queue.epoch)
                await client.publish(self._topic(Topic.STATUS), encode(gone), qos=1, retain=True, timeout=STOP_S)
            raise

    async def _listen(self, client: aiomqtt.Client) -> None:
        async for message in client.messages:
            payload = message.payload
            if not isinstance(payload, bytes):
                continue
            try:
                last = split_topic(message.topic.value)[1]
                if last is Topic.COMMAND:
                    await self._receive(payload)
                elif last is Topic.RECEIPT:
                    await self._settle(decode(payload, Receipt))
            except PayloadError as error:
                logger.warning("message ignored topic=%s: %s", message.topic, error)

    async def _settle(self, receipt: Receipt) -> None:
        await asyncio.to_thread(self._queue.settle, receipt.epoch, receipt.stored, self._clock.now())
        if receipt.epoch != self._queue.epoch:
            return
        for seq in list(self._in_flight):
            if any(first <= seq <= last for first, last in receipt.stored):
                del self._in_flight[seq]
        self._timeout_s = RECEIPT_TIMEOUT_S
        self.receipt_at = to_us(self._clock.now())
        self._work.set()

    async def _send(self, client: _Client) -> None:
        while True:
            _stop_if_told()
            self._work.clear()
            now_s = self._clock.monotonic()
            lost = [seq for seq, deadline_s in self._in_flight.items() if deadline_s <= now_s]
            if lost:
                self._timeout_s = min(2 * self._timeout_s, RECEIPT_TIMEOUT_MAX_S)
            for seq in lost:
                del self._in_flight[seq]
            # Replies first: somebody waits for them.
            for command_id, reply in await asyncio.to_thread(self._journal.replies):
                await client.say(self._topic(Topic.REPLY), reply)
                await asyncio.to_thread(self._journal.told, command_id)
            batches = await self._take(self._clock.now())
            for batch in batches:
                self._in_flight[batch.seq] = now_s + self._timeout_s
            await asyncio.gather(*(self._publish(client, batch) for batch in batches))
            if len(batches) and len(self._in_flight) < WINDOW:
                continue
            with suppress(TimeoutError):
                async with asyncio.timeout(self._patience_s()):
                    await self._work.wait()

    async def _take(self, now: datetime) -> list[Queued]:
        room = WINDOW - len(self._in_flight)
        return await asyncio.to_thread(self._queue.take, room, now, skip=tuple(self._in_flight)) if room else []

    def _patience_s(self) -> float | None:
        if not self._in_flight:
            return None
        return max(0.0, min(self._in_flight.values()) - self._clock.monotonic())

    async def _publish(self, client: _Client, batch: Queued) -> None:
        properties = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]
        properties.ContentType = MSGPACK
        await client.say(self._topic(_TOPICS[batch.kind]), batch.payload, properties=properties, timeout=PUBACK_S)

    async def _tell_status(self, client: _Client) -> None:
        while True:
            _stop_if_told()
            await client.say(self._topic(Topic.STATUS), encode(self._status()), retain=True)
            self.acknowledged.set()
            with suppress(TimeoutError):
                async with asyncio.timeout(STATUS_S):
                    await self._news.wait()
            self._news.clear()


async def end(*tasks: asyncio.Task[Any]) -> None:
    """Cancel tasks that may wait by aiomqtt. A cancellation is said again until it is heard, see ``_stop_if_told``."""
    running = {task for task in tasks if not task.done()}
    while running:
        for task in running:
            task.cancel()
        _, running = await asyncio.wait(running, timeout=2 * STOP_S)


def _stop_if_told() -> None:
    """Python 3.11's `asyncio.wait_for`, by which aiomqtt waits, loses a cancellation that comes as its wait ends
    (cpython issue 86296). Only for tasks without a TaskGroup: 3.11's leaves `cancelling` raised."""
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        raise asyncio.CancelledError


# ---- when TLS does not come about ------------------------------------------------------------------------------------

# What a broker's alert, or our own check of its certificate, means for the person who can mend it.
_TLS_REASONS: Final = (
    ("CERTIFICATE_REQUIRED", "the broker wants a client certificate; set GRIDLOOM_MQTT_CERT and GRIDLOOM_MQTT_KEY"),
    ("CERTIFICATE_EXPIRED", "the broker says our certificate has expired; renew GRIDLOOM_MQTT_CERT"),
    ("UNKNOWN_CA", "the broker does not know who signed our certificate; GRIDLOOM_MQTT_CERT must be of its CA"),
    ("ALERT_BAD_CERTIFICATE", "the broker refuses our certificate; look at GRIDLOOM_MQTT_CERT"),
    ("CERTIFICATE_REVOKED", "the broker says our certificate was revoked; renew GRIDLOOM_MQTT_CERT"),
    (
        "HANDSHAKE_FAILURE",
        "the broker broke the handshake off; does it want a certificate (GRIDLOOM_MQTT_CERT)?",
    ),
    ("WRONG_VERSION_NUMBER", "the broker speaks no TLS on this port; is it mqtt:// and not mqtts://?"),
)
_ALERT_S: Final = 2.0  # after a handshake: TLS 1.3 brokers tell what they think of us only then


def diagnose(broker: Broker) -> str | None:
    """Why TLS does not come about, by a handshake whose error nobody swallows. None where TLS is not the trouble."""
    try:
        context = broker.tls_context()
        assert context is not None
    except OSError as error:
        return f"a PEM file is missing or broken: {error}"
    try:
        wire = socket.create_connection((broker.host, broker.port), CONNECT_S)
    except OSError:  # nothing to do with certificates
        return None
    try:
        with wire, context.wrap_socket(wire, server_hostname=broker.host) as tls:
            tls.settimeout(_ALERT_S)
            with suppress(TimeoutError):
                tls.recv(1)
    except ssl.SSLCertVerificationError as error:
        ours = broker.ca or "the system's list; set GRIDLOOM_MQTT_CA"
        return f"the broker's certificate is not trusted: {error.verify_message} (CA: {ours})"
    except ssl.SSLError as error:
        alert = error.reason or str(error)
        return next((said for part, said in _TLS_REASONS if part in alert.upper()), f"TLS: {alert}")
    except OSError as error:
        return f"TLS does not come about ({error}); does the broker speak it on this port?"
    return None
