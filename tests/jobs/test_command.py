"""`gridloom command` between a real database, the dispatch of `gridloom work`, a real broker and a gateway's end."""

import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import paho.mqtt.client as paho
import psycopg
import pytest
from click.testing import CliRunner, Result
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion

from cloud.gridloom import gridloom
from cloud.jobs.dispatch import Dispatch, give_up, order, store_replies
from cloud.jobs.mailbox import Answer, Mailbox
from cloud.settings import Mqtt
from cloud.store.migrations import migrate
from protocols.uplink import (
    Backfill,
    Command,
    Configure,
    ItemResult,
    Outcome,
    Prepared,
    Read,
    RelayConfirm,
    RelayPrepare,
    Reply,
    Restart,
    SyncClock,
    Topic,
    Value,
    decode,
    encode,
    to_us,
    topic,
)
from simulators.ports import LOOPBACK
from simulators.services import Broker
from tests.conftest import BROKER_USERS


class Gateway:
    """gw-1's end of the line: remembers what was ordered, and answers what ``answers`` says."""

    def __init__(self, port: int) -> None:
        self.commands: list[Command] = []
        self.answers: Callable[[Command], dict[str, Any] | None] = lambda command: {"outcome": Outcome.DONE}
        self.client = paho.Client(CallbackAPIVersion.VERSION2, "gw-1-orders", protocol=MQTTProtocolVersion.MQTTv5)
        self.client.username_pw_set("gw-1", BROKER_USERS["gw-1"])
        ready = threading.Event()
        self.client.on_connect = lambda client, *_: client.subscribe(topic("gw-1", Topic.COMMAND), qos=1)
        self.client.on_subscribe = lambda *_: ready.set()
        self.client.on_message = self._on_message
        self.client.connect(LOOPBACK, port)
        self.client.loop_start()
        assert ready.wait(10)

    def _on_message(self, client: paho.Client, userdata: object, message: paho.MQTTMessage) -> None:
        command = decode(bytes(message.payload), Command)
        self.commands.append(command)
        said = self.answers(command)
        if said is not None:
            client.publish(
                topic("gw-1", Topic.REPLY), encode(Reply(id=command.id, at=command.issued_at, **said)), qos=1
            )


@pytest.fixture
def gateway(embedded_broker: Broker) -> Iterator[Gateway]:
    gateway = Gateway(embedded_broker.port)
    yield gateway
    gateway.client.disconnect()
    gateway.client.loop_stop()


@pytest.fixture
def store_dsn(empty_database: str) -> str:
    migrate(empty_database)
    return empty_database


@pytest.fixture
def at_work(store_dsn: str, embedded_broker: Broker) -> Iterator[None]:
    """What `gridloom work` does with commands, again and again."""
    mailbox = Mailbox(Mqtt(LOOPBACK, embedded_broker.port, False, "cloud", BROKER_USERS["cloud"]))
    mailbox.start()
    stop = threading.Event()

    def work() -> None:
        dispatch = Dispatch()
        with psycopg.connect(store_dsn, autocommit=True) as connection:
            while not stop.wait(0.05):
                dispatch.step(connection, mailbox, now=datetime.now(UTC), monotonic_s=time.monotonic())

    thread = threading.Thread(target=work)
    thread.start()
    yield
    stop.set()
    thread.join(10)
    mailbox.stop()


def run(dsn: str, *arguments: str, typed: str = "") -> Result:
    environment = {"GRIDLOOM_DSN": dsn, "GRIDLOOM_CLOCK": "", "GRIDLOOM_ZONE": "Asia/Shanghai"}
    assert "GRIDLOOM_CLOCK" not in os.environ
    return CliRunner().invoke(gridloom, ["command", *arguments], env=environment, input=typed)


@pytest.mark.usefixtures("at_work")
def test_what_a_person_orders_reaches_the_gateway_and_stays_on_record(
    store_dsn: str, gateway: Gateway, tmp_path: Path
) -> None:
    values = [Value(name="energy_import_wh", value="123.45", unit="kWh"), Value(name="nul", value="a\0b")]
    result = ItemResult(item="00010000", values=values, reply="68 01")
    gateway.answers = lambda command: {
        "outcome": Outcome.DONE,
        "detail": "1 of 1 items of m1 read",
        "results": [result],
    }
    done = run(store_dsn, "--by", "Wang", "gw-1", "read", "m1", "00010000")
    assert done.exit_code == 0, done.output
    assert "123.45 kWh" in done.stdout
    assert "raw 68 01" in done.stdout
    assert "done: 1 of 1 items of m1 read" in done.stdout

    said = json.loads(run(store_dsn, "--json", "gw-1", "read", "m1", "00010000").stdout)
    assert (said["outcome"], said["results"][0]["values"][0]["value"]) == ("done", "123.45")

    site = tmp_path / "site.toml"
    site.write_text("[gateway]\n")
    wrong = {"outcome": Outcome.REJECTED, "problems": ["site.toml: line: at least one [[line]] expected"]}
    gateway.answers = lambda command: wrong
    refused = run(store_dsn, "gw-1", "configure", str(site))
    assert refused.exit_code == 1
    assert "at least one [[line]] expected" in refused.stdout
    gateway.answers = lambda command: {"outcome": Outcome.DONE}
    assert run(store_dsn, "gw-1", "restart").exit_code == 0
    assert run(store_dsn, "gw-1", "sync-clock", "m1").exit_code == 0
    span = ("--start", "2026-03-01", "--end", "2026-03-01T01:00Z")
    assert run(store_dsn, "gw-1", "backfill", "m1", *span).exit_code == 0
    start, end = datetime(2026, 2, 28, 16, tzinfo=UTC), datetime(2026, 3, 1, 1, tzinfo=UTC)
    assert [command.body for command in gateway.commands] == [
        Read(meter="m1", items=["00010000"]),
        Read(meter="m1", items=["00010000"]),
        Configure(site="[gateway]\n"),
        Restart(),
        SyncClock(meters=["m1"]),
        Backfill(start=to_us(start), end=to_us(end), meters=["m1"]),
    ]
    assert all(
        command.expires_at - command.issued_at == timedelta(minutes=2) // timedelta(microseconds=1)
        for command in gateway.commands
    )

    kept = [json.loads(line) for line in run(store_dsn, "--json", "gw-1", "log").stdout.splitlines()]
    assert [one["body"]["kind"] for one in reversed(kept)] == [
        "read", "read", "configure", "restart", "sync_clock", "backfill"
    ]  # fmt: skip
    assert (kept[-1]["asked_by"], kept[-1]["outcome"]) == ("Wang", "done")
    assert all(one["replied_at"] for one in kept)
    assert "Wang" in run(store_dsn, "gw-1", "log").stdout


@pytest.mark.usefixtures("at_work")
def test_a_relay_asks_for_a_yes_before_the_second_step(store_dsn: str, gateway: Gateway) -> None:
    void_at = to_us(datetime.now(UTC) + timedelta(minutes=5))

    def answers(command: Command) -> dict[str, Any]:
        if isinstance(command.body, RelayPrepare):
            prepared = Prepared(token="t-1", void_at=void_at)
            return {"outcome": Outcome.DONE, "detail": "m1: prepared to open; nothing has moved", "prepared": prepared}
        return {"outcome": Outcome.DONE, "detail": "m1: opened"}

    gateway.answers = answers
    no = run(store_dsn, "gw-1", "relay", "m1", "open", typed="n\n")
    assert no.exit_code == 1
    assert "Nothing has moved." in no.stderr
    assert [command.body for command in gateway.commands] == [RelayPrepare(meter="m1", closed=False)]
    yes = run(store_dsn, "gw-1", "relay", "m1", "open", typed="y\n")
    assert yes.exit_code == 0, yes.output
    assert "done: m1: opened" in yes.stdout
    assert gateway.commands[-1].body == RelayConfirm(token="t-1")
    only = run(store_dsn, "gw-1", "relay", "m1", "open", "--prepare-only")
    assert "gridloom command gw-1 confirm t-1" in only.stdout
    assert run(store_dsn, "gw-1", "confirm", "t-1").exit_code == 0


def test_without_gridloom_work_it_says_so(store_dsn: str) -> None:
    nobody = run(store_dsn, "--valid", "1s", "gw-1", "restart")
    assert nobody.exit_code == 1
    assert "is `gridloom work` running" in nobody.stderr


def test_a_command_nobody_answers_ends_and_a_late_reply_still_counts(store_dsn: str) -> None:
    now = datetime(2026, 3, 1, 4, tzinfo=UTC)
    with psycopg.connect(store_dsn, autocommit=True) as connection:
        expires_at = now + timedelta(minutes=2)
        unsent = order(connection, "gw-1", Restart(), now=now, expires_at=expires_at, asked_by="Li")
        assert give_up(connection, now) == []
        (ended,) = give_up(connection, now + timedelta(minutes=3))
        assert (ended.command_id, ended.outcome, ended.event_id) == (unsent, None, None)
        late = Answer("gw-1", Reply(id=unsent, at=0, outcome=Outcome.DONE))
        assert store_replies(connection, [Answer("gw-2", late.reply)], now) == [], "another gateway's word"
        (answered,) = store_replies(connection, [late], now)
        assert (answered.command_id, answered.outcome) == (unsent, Outcome.DONE)
        assert store_replies(connection, [late], now) == [], "once"


def test_mistyped_times_and_missing_tables_are_told(empty_database: str) -> None:
    wrong = run(empty_database, "gw-1", "backfill", "--start", "soon", "--end", "2026-03-01")
    assert wrong.exit_code == 2
    assert "a time like 2026-03-01T04:00 expected" in wrong.stderr
    empty = run(empty_database, "gw-1", "restart")
    assert empty.exit_code == 1
    assert "run: gridloom migrate" in empty.stderr
