"""A store with the small registry, a broker, and ingestors as real processes."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from uuid import uuid4

import psycopg
import pytest
from paho.mqtt.client import Client, MQTTMessage, MQTTv5
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from cloud.store.migrations import Connection, migrate
from cloud.store.registry import Registry, read_registry, save_registry
from protocols.uplink import MSGPACK, Receipt, Topic, decode, topic
from tests.conftest import BROKER_USERS, running_broker, stop
from tests.mosquitto import new_mosquitto
from tests.store.conftest import NOW
from tests.store.registry_files import write_registry


@dataclass(frozen=True)
class Address:
    """A broker and its users."""

    url: str
    passwords: dict[str, str] = field(repr=False)
    ingest_options: tuple[str, ...] = ()

    @property
    def keeps_sessions(self) -> bool:
        return "--fresh-session" not in self.ingest_options


# Brokers of our own: on those of the whole run other rooms' tests leave retained messages.
@pytest.fixture(scope="package")
def beside_embedded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Address]:
    with running_broker(tmp_path_factory.mktemp("broker")) as broker:
        yield Address(broker.url, BROKER_USERS, ("--fresh-session",))


@pytest.fixture(scope="package")
def beside_timescaledb(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Address]:
    mosquitto = new_mosquitto(tmp_path_factory.mktemp("mosquitto"))
    mosquitto.start()
    yield Address(f"mqtt://127.0.0.1:{mosquitto.port}", BROKER_USERS)
    mosquitto.stop()


@pytest.fixture
def broker(request: pytest.FixtureRequest) -> Address:
    """The embedded broker beside the embedded database, mosquitto beside TimescaleDB."""
    address: Address = request.getfixturevalue(f"beside_{request.node.callspec.params['empty_database']}")
    return address


@pytest.fixture
def store_dsn(empty_database: str, tmp_path: Path) -> str:
    migrate(empty_database)
    registry = read_registry(write_registry(tmp_path / "registry"))
    assert isinstance(registry, Registry)
    with psycopg.connect(empty_database, autocommit=True) as connection:
        save_registry(connection, registry, since=NOW)
    return empty_database


@pytest.fixture
def connection(store_dsn: str) -> Iterator[Connection]:
    with psycopg.connect(store_dsn, autocommit=True) as opened:
        yield opened


class Gateway:
    """A gateway's end of the line: publishes what it is told, and collects receipts."""

    def __init__(self, broker: Address, name: str) -> None:
        self.name = name
        self.receipted: list[tuple[str, int]] = []
        self._client = Client(CallbackAPIVersion.VERSION2, f"test-{uuid4().hex}", protocol=MQTTv5)
        self._client.username_pw_set(name, broker.passwords[name])
        self._client.on_message = self._on_message
        url = urlsplit(broker.url)
        self._client.connect(url.hostname or "", url.port or 1883)
        self._client.subscribe(topic(name, Topic.RECEIPT), 1)
        self._client.loop_start()

    def publish(
        self, last: Topic, payload: bytes, *, content_type: str = MSGPACK, retain: bool = False, note: str = ""
    ) -> None:
        properties = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]
        if content_type:
            properties.ContentType = content_type
        if note:
            properties.UserProperty = ("note", note)
        self._client.publish(topic(self.name, last), payload, 1, retain, properties).wait_for_publish(10)

    def close(self) -> None:
        self._client.disconnect()
        self._client.loop_stop()

    def _on_message(self, _client: Client, _data: Any, message: MQTTMessage) -> None:
        receipt = decode(bytes(message.payload), Receipt)
        for first, last in receipt.stored:
            self.receipted += [(receipt.epoch, seq) for seq in range(first, last + 1)]


@pytest.fixture
def gateway(broker: Address) -> Iterator[Gateway]:
    opened = Gateway(broker, "gw-1")
    yield opened
    opened.close()


Start = Callable[..., "subprocess.Popen[Any]"]


@pytest.fixture
def start_ingest(store_dsn: str, broker: Address, tmp_path: Path) -> Iterator[Start]:
    """Starts `gridloom ingest` with further options and waits until it listens, or until all its ``workers`` do; the
    same session however often it is started."""
    name = uuid4().hex
    started: list[subprocess.Popen[Any]] = []
    log_path = tmp_path / "ingest.log"
    main = "from cloud.gridloom import main; main()"
    expected = 0

    def start(*options: str, workers: int = 1) -> "subprocess.Popen[Any]":
        nonlocal expected
        expected += workers
        with log_path.open("ab") as log:
            started.append(
                subprocess.Popen(
                    [sys.executable, "-c", main, "ingest", "--name", name, *broker.ingest_options, *options],
                    env={
                        **os.environ,
                        "GRIDLOOM_DSN": store_dsn,
                        "GRIDLOOM_MQTT_URL": broker.url,
                        "GRIDLOOM_MQTT_USERNAME": "cloud",
                        "GRIDLOOM_MQTT_PASSWORD": broker.passwords["cloud"],
                    },
                    stderr=log,
                )
            )
        eventually(lambda: log_path.read_text().count("broker connected") >= expected)
        return started[-1]

    yield start
    for process in started:
        stop(process)
    for suffix in ("", "-1", "-2"):
        drop_session(broker, f"gridloom-ingest-{name}{suffix}")


def drop_session(broker: Address, client_id: str) -> bool:
    """So that the next test's messages are not shared with a session that nobody serves any more. Returns whether the
    broker held one."""
    client = Client(CallbackAPIVersion.VERSION2, client_id, protocol=MQTTv5)
    client.username_pw_set("cloud", broker.passwords["cloud"])
    held: list[bool] = []
    client.on_connect = lambda _client, _data, flags, _reason, _properties: held.append(flags.session_present)
    url = urlsplit(broker.url)
    client.connect(url.hostname or "", url.port or 1883, clean_start=not broker.keeps_sessions)
    client.loop_start()
    eventually(lambda: held, 5)
    ended = Properties(PacketTypes.DISCONNECT)  # type: ignore[no-untyped-call]
    ended.SessionExpiryInterval = 0
    client.disconnect(properties=ended)
    client.loop_stop()
    return held[0]


def eventually(check: Callable[[], object], timeout_s: float = 15) -> None:
    """Wait until ``check`` is true."""
    deadline = time.monotonic() + timeout_s
    while not check():
        assert time.monotonic() < deadline, "it did not come"
        time.sleep(0.05)
