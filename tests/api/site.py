"""A small synthetic site in a real database, and `gridloom serve` as a real process in front of it."""

import json
import math
import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import uuid4
from zoneinfo import ZoneInfo

import httpx
import psycopg

from cloud.jobs.calendar import Calendar
from cloud.jobs.completeness import expect, list_gaps, open_session
from cloud.store.migrations import migrate
from protocols.clock import Anchor, write_anchor
from simulators.ports import LOOPBACK, free_port
from simulators.services import Postgres
from tests.conftest import stop

ZONE = ZoneInfo("Asia/Shanghai")
NOW = datetime(2026, 3, 18, 10, 37, 20, tzinfo=UTC)  # 18:37 at the site
QUARTER = timedelta(minutes=15)
DAYS = 8
AREAS = 6
CUSTOMERS = 4  # per area; the first point of each area is its head
FIRST = datetime(2026, 3, 10, 16, 0, tzinfo=UTC)  # a business day starts
SILENT_FROM = datetime(2026, 3, 16, 10, 45, tzinfo=UTC)
AWAY = (datetime(2026, 3, 13, 18, 0, tzinfo=UTC), datetime(2026, 3, 13, 22, 30, tzinfo=UTC))  # 14 March at the site
FORGOTTEN = (datetime(2026, 3, 15, 1, 0, tzinfo=UTC), datetime(2026, 3, 15, 3, 0, tzinfo=UTC))
KEY = "gl_test"
GRIDLOOM = (sys.executable, "-c", "from cloud.gridloom import main; main()")

NAMES = (
    ("Harbour Road", "港湾路"),
    ("Old Market", "老集市"),
    ("Cotton Mill", "棉纺厂"),
    ("Willow Lane", "柳巷"),
    ("Station East", "东站"),
    ("Orchard Hill", "果园坡"),
)


def create_database(server: Postgres) -> str:
    name = f"api_{uuid4().hex}"
    with psycopg.connect(server.dsn, autocommit=True) as connection:
        connection.execute(f'CREATE DATABASE "{name}"')
    dsn = psycopg.conninfo.make_conninfo(server.dsn, dbname=name)
    migrate(dsn)
    with psycopg.connect(dsn) as connection:
        connection.execute("INSERT INTO api_key (name, hash) VALUES ('test', sha256(%s))", (KEY.encode(),))
    return dsn


def load_w(area: int, start: datetime) -> float:
    """A plausible day: a morning and an evening peak."""
    hour = (start.astimezone(ZONE).hour * 60 + start.minute) / 60
    shape = 0.45 + 0.3 * math.exp(-(((hour - 8) / 2.2) ** 2)) + 0.55 * math.exp(-(((hour - 19.5) / 2.6) ** 2))
    return (62_000 + 9_000 * area) * shape * (1 + 0.03 * math.sin(area * 7 + start.timestamp() / 5000))


def fill(dsn: str) -> None:
    with psycopg.connect(dsn) as connection:
        _fill_registry(connection)
        _fill_energy(connection)
        _fill_forecasts(connection)
        _fill_operations(connection)
        _fill_completeness(connection)


def _fill_registry(connection: psycopg.Connection[tuple[object, ...]]) -> None:
    execute = connection.execute
    execute("INSERT INTO feeder VALUES ('F1', 'North feeder', '北线', 360000), ('F2', 'South feeder', '南线', 420000)")
    for area in range(1, AREAS + 1):
        en, zh = NAMES[area - 1]
        execute(
            "INSERT INTO area VALUES (%s, %s, %s, %s, %s, %s, -1, 8)",
            (
                f"A{area}",
                "F1" if area <= 3 else "F2",
                en,
                zh,
                f"gw-a{area}",
                78_000 if area == 2 else 95_000 + 9_000 * area,
            ),
        )
        for number in range(CUSTOMERS + 1):
            name = f"A{area}-HEAD" if number == 0 else f"A{area}-C{number:02}"
            execute(
                "INSERT INTO metering_point (point, area_id, role, node_id, controllable) VALUES (%s, %s, %s, %s, %s)",
                (name, f"A{area}", "customer" if number else "supply", f"A{area}-N{number:03}", number == 2),
            )
            serial = f"{area:06}{number:06}"
            execute("INSERT INTO meter (serial, protocol) VALUES (%s, 'dlt645-2007')", (serial,))
            execute(
                """
                INSERT INTO installation (meter_id, point_id, gateway, wire_name)
                SELECT meter_id, point_id, %s, %s FROM meter, metering_point WHERE serial = %s AND point = %s
                """,
                (f"gw-a{area}", f"m{number:03}", serial, name),
            )


def _fill_energy(connection: psycopg.Connection[tuple[object, ...]]) -> None:
    """One broken meter (A5-C04 is silent for the last two days), one gateway (A2's) that was away for a while, one
    meter that forgot, one late correction (version 2 of A1-C01)."""
    seeded = random.Random(7)
    quarters = int((NOW - FIRST) / QUARTER)
    connection.execute(
        "INSERT INTO batch (gateway, epoch, seq, kind, rows, sent_at) VALUES ('gw-a1', %s, 1, 'energy', 3, %s)",
        ("0" * 32, NOW),
    )
    connection.execute("INSERT INTO interval_version VALUES (1, %s), (2, %s)", (NOW, NOW))
    names = connection.execute("SELECT point_id, point, area_id FROM metering_point ORDER BY point_id").fetchall()
    with connection.cursor() as cursor:
        with cursor.copy(
            "COPY interval (point_id, start, version, energy_import_wh, energy_export_wh, quality) FROM STDIN"
        ) as copy:
            for point_id, point, area_id in names:
                number = int(str(area_id)[1:])
                for i in range(quarters):
                    start = FIRST + i * QUARTER
                    if point == "A5-C04" and start >= SILENT_FROM:
                        continue
                    if area_id == "A2" and AWAY[0] <= start < AWAY[1]:
                        continue
                    if point == "A4-C03" and FORGOTTEN[0] <= start < FORGOTTEN[1]:
                        continue
                    share = 1.0 if str(point).endswith("HEAD") else 0.96 / CUSTOMERS
                    wh = round(load_w(number, start) * share / 4)
                    copy.write_row((point_id, start, 1, wh, 0, 2 if i < quarters - 4 else 0))
        with cursor.copy(
            "COPY load (series, start, supplied_wh, delivered_wh, meters_expected, meters_received) FROM STDIN"
        ) as copy:
            for i in range(quarters):
                start = FIRST + i * QUARTER
                watts = {f"area:A{n}": load_w(n, start) * seeded.uniform(0.98, 1.02) for n in range(1, AREAS + 1)}
                watts["feeder:F1"] = sum(watts[f"area:A{n}"] for n in (1, 2, 3))
                watts["feeder:F2"] = sum(watts[f"area:A{n}"] for n in (4, 5, 6))
                watts["substation:S1"] = watts["feeder:F1"] + watts["feeder:F2"]
                for series, w in watts.items():
                    meters = {"s": 30, "f": 15, "a": 5}[series[0]]
                    copy.write_row((series, start, round(w / 4), round(w * 0.96 / 4), meters, meters))
    connection.execute(
        """
        INSERT INTO interval SELECT point_id, start, 2, energy_import_wh + 100, 0, NULL, NULL, 1
        FROM interval JOIN metering_point USING (point_id) WHERE point = 'A1-C01' AND start = %s
        """,
        (FIRST + 3 * QUARTER,),
    )


def _fill_forecasts(connection: psycopg.Connection[tuple[object, ...]]) -> None:
    for origin, horizon_h in ((NOW - timedelta(hours=25), 24), (NOW - timedelta(minutes=22), 24)):
        origin = datetime.fromtimestamp(origin.timestamp() // 900 * 900, UTC)
        made = connection.execute(
            """
            INSERT INTO forecast_run (origin, made_at, model, model_version, horizon_h, inputs_until, levels, inputs)
            VALUES (%s, %s, 'ridge', '1', %s, %s, '{0.1, 0.5, 0.9}', '{"calendar": "CN"}') RETURNING run_id
            """,
            (origin, NOW, horizon_h, origin),
        ).fetchone()
        assert made is not None
        with (
            connection.cursor() as cursor,
            cursor.copy("COPY forecast (run_id, series, start, p10_w, p50_w, p90_w, quantiles) FROM STDIN") as copy,
        ):
            for i in range(4 * horizon_h):
                start = origin + i * QUARTER
                watts = {f"area:A{n}": load_w(n, start) * 1.02 for n in range(1, AREAS + 1)}
                watts["feeder:F1"] = sum(watts[f"area:A{n}"] for n in (1, 2, 3))
                watts["feeder:F2"] = sum(watts[f"area:A{n}"] for n in (4, 5, 6))
                watts["substation:S1"] = watts["feeder:F1"] + watts["feeder:F2"]
                spread = 0.03 + 0.05 * i / (4 * horizon_h)
                for series, w in watts.items():
                    fan = [w * (1 - spread), w, w * (1 + spread)]
                    copy.write_row((made[0], series, start, *fan, fan))
    for day in range(3):
        for series in ("area:A1", "feeder:F1"):
            for model, error in (("ridge", 80.0), ("seasonal_naive", 120.0)):
                connection.execute(
                    "INSERT INTO forecast_accuracy VALUES (%s, %s, %s, %s, 1000, 96, %s, %s)",
                    (
                        series,
                        (FIRST + timedelta(days=5 + day, hours=9)).date(),
                        model,
                        error,
                        *((25, 72) if model == "ridge" else (None, None)),
                    ),
                )


def _fill_operations(connection: psycopg.Connection[tuple[object, ...]]) -> None:
    execute = connection.execute
    unexplained = {1: 0.004, 2: 0.093, 3: 0.006, 4: -0.002, 5: 0.051, 6: 0.003}
    for area in range(1, AREAS + 1):
        execute(
            "INSERT INTO gateway_status VALUES (%s, %s, %s, %s)",
            (
                f"gw-a{area}",
                area != 5,
                NOW - timedelta(seconds=40),
                json.dumps({"software": "0.1.0", "meters": 5, "queued_batches": 0, "backfill_left": 0}),
            ),
        )
        for day in range(DAYS - 1):
            supplied = 1_400_000.0 + 120_000 * area + 9_000 * day
            technical = supplied * (0.021 + 0.001 * area)
            missing = supplied * unexplained[area]
            percent = 100 * (technical + missing) / supplied
            execute(
                "INSERT INTO loss_day VALUES (%s, %s, %s, %s, %s, %s, %s, 96, %s, '', %s, %s, %s, %s)",
                (
                    f"A{area}",
                    (FIRST + timedelta(days=day, hours=9)).date(),
                    supplied,
                    supplied - technical - missing,
                    technical,
                    missing,
                    96,
                    "high" if percent > 8 else "normal",
                    NOW,
                    missing - 0.004 * supplied,
                    missing + 0.004 * supplied,
                    supplied,
                ),
            )
    execute(
        "INSERT INTO loss_day VALUES ('A5', %s, NULL, NULL, NULL, NULL, 0, 40, 'not_computable', 'no reading', %s)",
        (NOW.astimezone(ZONE).date(), NOW),
    )
    through = (FIRST + timedelta(days=DAYS - 2, hours=9)).date()
    for area in range(1, AREAS + 1):
        unread = "no reading in 34 days from A5-C04; visit or replace" if area == 5 else ""
        execute(
            "INSERT INTO loss_search VALUES (%s, %s, %s, %s, %s, %s)",
            (f"A{area}", through, through - timedelta(days=33), 0 if unread else 4, unread, NOW),
        )
    for rank, (point, score, kind, named, stolen_wh, since, en, zh) in enumerate(
        (
            ("A2-C03", 30.2, "scaled", True, 1_050_000, None,
             "the balance misses a constant share of this record; log odds 30.2", ""),
            ("A2-C01", 12.9, "night", True, 310_000, NOW - timedelta(days=12),
             "the balance misses energy in this customer's nights; log odds 12.9", "台区电量平衡在该户夜间缺失电量"),
            ("A2-C04", 0.4, "cap", False, 20_000, NOW - timedelta(days=9),
             "the balance misses energy when this record is at its ceiling; log odds 0.4", ""),
        ), 1
    ):  # fmt: skip
        execute(
            "INSERT INTO loss_suspect SELECT 'A2', %s, point_id, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s"
            " FROM metering_point WHERE point = %s",
            (through, rank, score, kind, named, stolen_wh, 0.8 * stolen_wh, 1.2 * stolen_wh, since, en, zh, point),
        )
    for rule, subject, severity, minutes, closed, en, zh in (
        (
            "forecast_above_capacity", "area:A2", "critical", 12, None,
            "A2 Old Market: forecast peak 82 kW at 19:30 is above the limit of 78 kW",
            "A2 老集市：预测 19:30 峰值 82 kW，超过限值 78 kW",
        ),
        (
            "loss_out_of_range", "area:A2", "warning", 640, None,
            "A2 Old Market: loss 11.6 % on 17 March, expected −1 to 8 %; 151 kWh are unexplained",
            "A2 老集市：3月17日线损率 11.6%，正常范围 −1～8%，不明损耗 151 kWh",
        ),
        (
            "meter_silent", "meter:A5-C04", "warning", 2800, None,
            "A5-C04: no reading for 46 h; check the meter and its RS-485 wiring",
            "A5-C04：已 46 小时无数据，请检查电表及 RS-485 接线",
        ),
        (
            "clock_drift", "meter:A3-C02", "info", 4000, 300,
            "A3-C02: the meter's clock is 94 s fast",
            "A3-C02：电表时钟快 94 秒",
        ),
    ):  # fmt: skip
        execute(
            """
            INSERT INTO alert (rule, subject, severity, opened_at, closed_at, message_en, message_zh, evidence)
            VALUES (%s, %s, %s, %s, %s, %s, %s, '{"limit": 8}')
            """,
            (
                rule, subject, severity, NOW - timedelta(minutes=minutes),
                NOW - timedelta(minutes=closed) if closed else None, en, zh,
            ),
        )  # fmt: skip
    execute(
        """
        INSERT INTO dr_event SELECT 'dr-1', 'A2', 1, %s, %s, array_agg(point_id), 'measured', 24300, 15100, 9200,
               'same time, last 5 working days', %s FROM metering_point WHERE area_id = 'A2' AND controllable
        """,
        (NOW - timedelta(hours=23), NOW - timedelta(hours=22, minutes=30), NOW - timedelta(hours=22)),
    )
    execute(
        """
        INSERT INTO dr_event (event_id, area_id, alert_id, start_at, end_at, points, state)
        SELECT 'dr-2', 'A2', 1, %s, %s, array_agg(point_id), 'sent' FROM metering_point
        WHERE area_id = 'A2' AND controllable
        """,
        (NOW + timedelta(minutes=8), NOW + timedelta(minutes=38)),
    )
    execute(
        """
        INSERT INTO command (command_id, gateway, event_id, body, issued_at, expires_at, outcome)
        VALUES ('c1', 'gw-a2', 'dr-1', '{}', %s, %s, 'done')
        """,
        (NOW - timedelta(hours=23), NOW - timedelta(hours=22)),
    )
    execute(
        """
        INSERT INTO event SELECT 'gw-a3', meter_id, 'm002', %s, 'clock_drift', '{"offset_s": 94}', 1
        FROM installation WHERE gateway = 'gw-a3' AND wire_name = 'm002'
        """,
        (NOW - timedelta(hours=5),),
    )
    execute(
        """
        INSERT INTO energy_sample (meter_id, at, gateway_at, quality, energy_import_wh, batch_id)
        SELECT 1, %(at)s + n * interval '15 minutes', %(at)s, 0, n, 1 FROM generate_series(1, 3) n
        """,
        {"at": FIRST},
    )
    execute(
        """
        INSERT INTO quarantine (gateway, topic, reason, detail, rows)
        VALUES ('gw-a9', 'gridloom/v1/gw-a9/energy', 'unknown_meter', 'm099 is not in the registry', 2)
        """
    )


def _fill_completeness(connection: psycopg.Connection[tuple[object, ...]]) -> None:
    """Counted, listed and judged by the job itself, from what stands there of intervals, events and outages."""
    execute = connection.execute
    execute(
        """
        INSERT INTO event SELECT 'gw-a5', meter_id, 'm004', %s, 'meter_silent', '{"reason": "silent"}', 1
        FROM installation WHERE gateway = 'gw-a5' AND wire_name = 'm004'
        """,
        (SILENT_FROM + timedelta(minutes=4),),
    )
    execute("DELETE FROM gateway_outage")  # they were there before the first day
    execute(
        "INSERT INTO gateway_outage VALUES ('gw-a2', %s, %s), ('gw-a5', %s, 'infinity')",
        (*AWAY, NOW - timedelta(seconds=40)),
    )
    asked_at = FORGOTTEN[1] + timedelta(hours=3)
    execute(
        """
        INSERT INTO command (command_id, gateway, body, issued_at, expires_at, sent_at, replied_at, outcome, reply,
                             asked_by)
        VALUES ('c-backfill', 'gw-a4', '{}', %(at)s, %(at)s, %(at)s, %(at)s, 'failed',
                '{"meters": {"m003": "0 of 7 read, 7 the meter does not have"}}', 'completeness')
        """,
        {"at": asked_at},
    )
    execute(
        "INSERT INTO backfill_asked SELECT point_id, %s, %s, %s, 'c-backfill' FROM metering_point"
        " WHERE point = 'A4-C03'",
        (*FORGOTTEN, asked_at),
    )
    connection.commit()
    open_session(connection)
    expect(connection, Calendar(ZONE), NOW)
    list_gaps(connection, Calendar(ZONE), NOW)


@dataclass(frozen=True)
class Served:
    """A running `gridloom serve`."""

    dsn: str
    url: str
    process: "subprocess.Popen[bytes]"

    def get(
        self, path: str, *, key: str | None = KEY, accept: str = "*/*", **query: str | int | list[str]
    ) -> httpx.Response:
        headers = {"Accept": accept} | ({"Authorization": f"Bearer {key}"} if key else {})
        named = {name.rstrip("_"): value for name, value in query.items()}
        return httpx.get(self.url + path, params=named, headers=headers, timeout=30)


@contextmanager
def serve(dsn: str, directory: Path, *, role: str = "gridloom_api") -> Iterator[Served]:
    """The site's clock starts at NOW. The server may do what its role may and no more."""
    granted = psycopg.conninfo.make_conninfo(dsn, options=f"-c role={role}")
    clock = directory / "clock.json"
    write_anchor(clock, Anchor(real_s=datetime.now(UTC).timestamp(), simulated_s=NOW.timestamp(), rate=1.0))
    port = free_port()
    with (directory / "serve.log").open("w") as log:
        process = subprocess.Popen(
            [*GRIDLOOM, "serve", "--port", str(port)],
            env=os.environ | {"GRIDLOOM_DSN": granted, "GRIDLOOM_CLOCK": str(clock), "GRIDLOOM_ZONE": "Asia/Shanghai"},
            stdout=subprocess.DEVNULL,
            stderr=log,
        )
    served = Served(dsn, f"http://{LOOPBACK}:{port}", process)
    try:
        for _ in range(200):
            try:
                httpx.get(served.url + "/openapi.json", timeout=5)
                break
            except httpx.TransportError:
                assert process.poll() is None, (directory / "serve.log").read_text()
                time.sleep(0.1)
        yield served
    finally:
        stop(process)


@contextmanager
def database_closed(server: Postgres, dsn: str) -> Iterator[None]:
    """Nobody gets into this database meanwhile, and who is in is thrown out."""
    name = psycopg.conninfo.conninfo_to_dict(dsn)["dbname"]
    quoted = psycopg.sql.Identifier(str(name))
    with psycopg.connect(server.dsn, autocommit=True) as connection:
        connection.execute(psycopg.sql.SQL("ALTER DATABASE {} ALLOW_CONNECTIONS false").format(quoted))
        connection.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", (name,))
        try:
            yield
        finally:
            connection.execute(psycopg.sql.SQL("ALTER DATABASE {} ALLOW_CONNECTIONS true").format(quoted))
