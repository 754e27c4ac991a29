"""The whole of `gridloom work` on a real database, with readings of the simulated site and its known truth."""

import threading
import time
from collections.abc import Iterator
from datetime import timedelta
from itertools import pairwise
from typing import Any

import numpy as np
import paho.mqtt.client as paho
import pytest
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion

from cloud.jobs.calendar import Calendar, floor_mark
from cloud.jobs.derive import derive_chunk
from cloud.jobs.mailbox import Mailbox
from cloud.jobs.response import Response, Terms
from cloud.jobs.worker import Cycle, Worker
from cloud.settings import Mqtt, zone
from protocols.quantities import Quality
from protocols.uplink import Command, Outcome, Reply, Shed, Topic, decode, encode, split_topic, to_us, topic
from simulators.ports import LOOPBACK
from simulators.services import Broker
from tests.conftest import BROKER_USERS
from tests.jobs.conftest import DAYS, METERS, START, FakeClock, Store

INTERVAL = timedelta(minutes=15)


class Gateways:
    """All gateways of the site in one: remembers commands, answers when told to."""

    def __init__(self, port: int) -> None:
        self.commands: dict[str, tuple[str, Command]] = {}
        self.arrived = threading.Event()
        self.client = paho.Client(CallbackAPIVersion.VERSION2, "gateways", protocol=MQTTProtocolVersion.MQTTv5)
        self.client.username_pw_set("gw-1", BROKER_USERS["gw-1"])
        ready = threading.Event()
        self.client.on_connect = lambda client, *_: client.subscribe("gridloom/v1/+/command", qos=1)
        self.client.on_subscribe = lambda *_: ready.set()
        self.client.on_message = self._on_message
        self.client.connect(LOOPBACK, port)
        self.client.loop_start()
        assert ready.wait(10)

    def _on_message(self, client: paho.Client, userdata: object, message: paho.MQTTMessage) -> None:
        command = decode(bytes(message.payload), Command)
        self.commands[command.id] = split_topic(message.topic)[0], command
        self.arrived.set()

    def reply(self, outcome: Outcome) -> None:
        for gateway, command in self.commands.values():
            assert isinstance(command.body, Shed)
            reply = Reply(id=command.id, at=command.body.end, outcome=outcome, detail="as told")
            self.client.publish(topic(gateway, Topic.REPLY), encode(reply), qos=1).wait_for_publish(10)


@pytest.fixture
def gateways(embedded_broker: Broker) -> Iterator[Gateways]:
    gateways = Gateways(embedded_broker.port)
    yield gateways
    gateways.client.disconnect()
    gateways.client.loop_stop()


@pytest.fixture
def mailbox(embedded_broker: Broker) -> Iterator[Mailbox]:
    mailbox = Mailbox(Mqtt(LOOPBACK, embedded_broker.port, False, "cloud", BROKER_USERS["cloud"]))
    mailbox.start()
    yield mailbox
    mailbox.stop()


def cycle_of(store: Store, mailbox: Mailbox, clock: FakeClock) -> Cycle:
    calendar = Calendar(zone())
    response = Response(calendar, Terms(lead=timedelta(minutes=5), duration=timedelta(minutes=30)))
    return Cycle(Worker(store.dsn, clock, calendar, mailbox, response, timedelta(minutes=30)), store.connection)


def settle(cycle: Cycle) -> None:
    for _ in range(50):
        if not cycle.step():
            return
        while cycle.search.busy:
            time.sleep(0.01)
    pytest.fail("the work never ends")


def one(store: Store, query: str, *parameters: Any) -> tuple[Any, ...]:
    row = store.connection.execute(query, parameters).fetchone()
    assert row
    return row


def test_from_samples_to_a_measured_event(store: Store, mailbox: Mailbox, gateways: Gateways) -> None:
    """Backfill, live marks, a peak, a command, its reply, and what the event was worth."""
    first, clock = START - timedelta(days=DAYS), FakeClock(START + timedelta(minutes=1))
    cycle = cycle_of(store, mailbox, clock)
    assert not cycle.step(), "nothing to do before the first reading"
    store.put(first, START)
    store.put_head_voltages(START)
    store.online(START)
    settle(cycle)

    steps = DAYS * 96
    assert one(store, "SELECT count(*), count(DISTINCT (point_id, start)) FROM interval") == (METERS * steps,) * 2
    assert one(store, "SELECT count(*), min(meters_received) FROM load WHERE series = 'substation:S1'") == (
        steps, METERS,
    )  # fmt: skip
    # Integers add up: substation = feeders = areas.
    totals = [
        one(store, "SELECT sum(supplied_wh) FROM load WHERE series LIKE %s", f"{kind}:%")
        for kind in ("substation", "feeder", "area")
    ]
    assert len(set(totals)) == 1
    assert one(store, "SELECT sum(expected), sum(received) FROM completeness_day") == (METERS * steps,) * 2

    _check_losses(store)
    _check_suspects(store)
    _check_forecasts(store)

    # The demo's stressed area goes above its limit in the evening; the rule looks 30 minutes ahead.
    while not gateways.commands:
        clock.moment += INTERVAL
        assert clock.moment < START + timedelta(hours=6), "no peak in the whole evening"
        mark = floor_mark(clock.moment)
        store.put(mark, mark)
        settle(cycle)
        gateways.arrived.wait(0.5)
    (gateway, command) = next(iter(gateways.commands.values()))
    (area,) = one(store, "SELECT subject FROM alert WHERE rule = 'forecast_above_capacity'")
    assert gateway == f"gw-{area.removeprefix('area:').lower()}"
    assert isinstance(command.body, Shed)
    assert command.body.end - command.body.start == 30 * 60 * 1_000_000
    assert command.body.start >= to_us(clock.moment + timedelta(minutes=5))
    assert command.body.start % (900 * 1_000_000) == 0

    # The same loads go on during the event here; only a reply and readings are needed for the settlement.
    gateways.reply(Outcome.DONE)
    for _ in range(4):
        clock.moment += INTERVAL
        mark = floor_mark(clock.moment)
        store.put(mark, mark)
        settle(cycle)
    state, baseline_wh, actual_wh, reduction_wh, method = one(
        store, "SELECT state, baseline_wh, actual_wh, reduction_wh, method FROM dr_event"
    )
    assert state == "measured"
    assert reduction_wh == pytest.approx(baseline_wh - actual_wh)
    assert 0 < actual_wh < 2 * baseline_wh
    assert "10 comparable days" in method
    assert one(store, "SELECT outcome, count(*) OVER () FROM command") == ("done", 1)


def _check_losses(store: Store) -> None:
    """Technical loss against power-grid-model's, day by day; thieves' areas stand out, honest ones do not."""
    rows = store.connection.execute(
        "SELECT area_id, day, supplied_wh, technical_wh, unexplained_wh FROM loss_day WHERE aligned = 96"
    ).fetchall()
    assert len(rows) >= 6 * (DAYS - 1)
    truth = {(area, day): balance for area, day, balance in store.world.balances()}
    share: dict[str, list[float]] = {}
    for area, day, supplied_wh, technical_wh, unexplained_wh in rows:
        balance = truth[area, day]
        assert supplied_wh == pytest.approx(balance.supplied_wh, rel=2e-3)
        # The flow is computed from what the meters say, so what is stolen is missing from it.
        stolen = balance.unexplained_wh / balance.supplied_wh
        assert technical_wh == pytest.approx(balance.technical_wh, rel=0.01 + 2 * stolen)
        assert abs(unexplained_wh - balance.unexplained_wh) < 0.005 * balance.supplied_wh + 0.1 * balance.unexplained_wh
        share.setdefault(area, []).append(unexplained_wh / supplied_wh)
    stealing = {m.area for m in store.world.meters if m.habit.value in ("scaled", "bypass")}
    alerted = {
        subject.removeprefix("area:")
        for (subject,) in store.connection.execute("SELECT subject FROM alert WHERE rule = 'loss_out_of_range'")
    }
    assert stealing <= alerted


def _check_suspects(store: Store) -> None:
    """Nobody is suspected where nobody steals; whose meter counts too little all day comes first; names have alerts."""
    rows = store.connection.execute(
        "SELECT point, s.area_id, day, rank, named, stolen_lo_wh < stolen_hi_wh, evidence_zh <> ''"
        " FROM loss_suspect s JOIN metering_point USING (point_id)"
    ).fetchall()
    stealing = {m.area: m.point for m in store.world.meters if m.habit.value in ("scaled", "bypass")}
    assert {area for _, area, *_ in rows} <= set(stealing)
    (scaled,) = (m.point for m in store.world.meters if m.habit.value == "scaled")
    assert (scaled, 1) in {(point, rank) for point, _, _, rank, *_ in rows}
    through = Calendar(zone()).day(START) - timedelta(days=1)
    assert {(day, ordered, told) for _, _, day, _, _, ordered, told in rows} == {(through, True, True)}
    assert one(store, "SELECT count(*), min(customers) > 0, max(reason) FROM loss_search") == (6, True, "")
    alerted = store.connection.execute("SELECT subject FROM alert WHERE rule = 'suspect_named' AND closed_at IS NULL")
    assert {subject for (subject,) in alerted} == {f"meter:{point}" for point, _, _, _, named, *_ in rows if named}


def _check_forecasts(store: Store) -> None:
    origin, runs = one(store, "SELECT max(origin), count(*) FROM forecast_run")
    assert origin == START
    assert runs >= 1
    ordered = "bool_and(p10_w <= p50_w AND p50_w <= p90_w)"
    assert one(store, f"SELECT count(DISTINCT series), {ordered} FROM forecast") == (9, True)  # noqa: S608
    wape: dict[str, float] = dict(
        store.connection.execute(
            "SELECT model, sum(abs_error_wh) / sum(actual_wh) FROM forecast_accuracy GROUP BY model"
        ).fetchall()
    )
    assert wape["ensemble"] < wape["seasonal_naive"]


def test_what_did_not_change_is_not_written_again(store: Store) -> None:
    calendar, first = Calendar(zone()), START - timedelta(days=1)
    store.put(first, START)
    assert derive_chunk(store.connection, calendar, START).intervals == METERS * 96
    store.put(first, START, quality=int(Quality.BACKFILLED))  # the same readings again, from a rebuilt queue
    again = derive_chunk(store.connection, calendar, START)
    assert (again.ranges, again.intervals) == (METERS, 0)
    assert one(store, "SELECT max(version) FROM interval_version") == (1,)
    # Another account of one mark changes the two intervals beside it, under one new version.
    store.connection.execute(
        "INSERT INTO energy_sample (meter_id, at, gateway_at, quality, energy_import_wh, batch_id)"
        " SELECT meter_id, at, gateway_at, quality, energy_import_wh + 10, 99 FROM energy_sample"
        " WHERE (meter_id, at, batch_id) = (1, %s, 2)",
        [START - timedelta(hours=3)],
    )
    store.connection.execute("INSERT INTO dirty_range (meter_id, from_at, to_at) VALUES (1, %s, %s)", [first, START])
    assert derive_chunk(store.connection, calendar, START).intervals == 2
    assert one(store, "SELECT count(*), max(version) FROM interval WHERE version > 1") == (2, 2)
    assert one(store, "SELECT max(meters_received) FROM load WHERE series = 'substation:S1'") == (METERS,)


def test_any_order_of_arrival_gives_the_same_intervals(store: Store) -> None:
    """Marks come as gaps are filled, newest first here; every interval appears once its two marks are there."""
    calendar, first = Calendar(zone()), START - timedelta(hours=12)
    edges = [first + i * timedelta(hours=3) for i in range(5)]
    for a, b in reversed(list(pairwise(edges))):
        store.put(a, b - INTERVAL)
        derive_chunk(store.connection, calendar, START)
    store.put(START, START)
    derive_chunk(store.connection, calendar, START)
    rows = store.connection.execute(
        "SELECT point, array_agg(energy_import_wh ORDER BY start) FROM interval_current JOIN metering_point"
        " USING (point_id) GROUP BY point"
    ).fetchall()
    world = store.world
    column = int((first.timestamp() - world.zero_s) // 900)
    for point, energy_wh in rows:
        row = world.row_of[point]
        registers = world.registers[row, column : column + 49, 0].astype(np.int64)
        assert energy_wh == (np.diff(registers) * 10 * world.meters[row].ratio).tolist()


def test_silence_shows(store: Store, mailbox: Mailbox) -> None:
    """A meter that never speaks is expected all the same, makes its area's loss not computable, and is alerted."""
    quiet = next(meter.point for meter in store.world.meters if meter.role == "customer")
    area = quiet.split("-")[0]
    store.silent.add(quiet)
    store.put(START - timedelta(days=2), START)
    store.online(START)
    settle(cycle_of(store, mailbox, FakeClock(START + timedelta(minutes=6))))
    completeness = """
        SELECT count(*), sum(received), min(expected) > 0
        FROM completeness_day JOIN metering_point USING (point_id) WHERE point = %s
    """
    assert one(store, completeness, quiet) == (3, 0, True)
    reasons = store.connection.execute("SELECT DISTINCT state, reason FROM loss_day WHERE area_id = %s", (area,))
    assert reasons.fetchall() == [("not_computable", f"no reading all day from {quiet}; visit or replace")]
    assert one(store, "SELECT subject FROM alert WHERE rule = 'meter_silent'") == (f"meter:{quiet}",)


def test_work_rolls_power_up_and_lets_go_of_what_is_too_old(store: Store, mailbox: Mailbox) -> None:
    row = {"meter": 1, "at": START, "old": START - timedelta(days=4 * 365)}
    store.connection.execute(
        "INSERT INTO power_sample (meter_id, at, gateway_at, quality, active_power_w, batch_id)"
        " VALUES (%(meter)s, %(at)s, %(at)s, 0, 750, 1)",
        row,
    )
    store.connection.execute("INSERT INTO dirty_hour VALUES (date_trunc('hour', %(at)s), ARRAY[%(meter)s])", row)
    store.connection.execute("INSERT INTO event VALUES ('gw-a1', NULL, NULL, %(old)s, 'queue_evicted', '{}', 1)", row)
    settle(cycle_of(store, mailbox, FakeClock(START + timedelta(minutes=1))))
    assert one(store, "SELECT meter_id, active_power_mean_w FROM power_hour") == (1, 750)
    assert one(store, "SELECT meter_id, active_power_mean_w FROM power_day") == (1, 750)
    assert one(store, "SELECT count(*) FROM event") == (0,)
    assert one(store, "SELECT count(*) FROM dirty_hour") == (0,)
