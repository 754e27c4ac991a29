"""Intervals and loads under a registry that changes: always as if it had been right from the start."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import uuid4
from zoneinfo import ZoneInfo

import psycopg
import pytest

from cloud.jobs.calendar import Calendar
from cloud.jobs.derive import Connection, Derived, drain, open_session, put_in_force
from cloud.jobs.losses import update_losses
from cloud.jobs.rollups import roll_up
from cloud.store.installations import load_installations
from cloud.store.migrations import migrate
from cloud.store.registry import Registry, exchange, known_names, read_registry, save_registry
from cloud.store.replay import replay
from cloud.store.samples import store
from protocols.quantities import Kind, Quality
from protocols.uplink import Row
from simulators.services import Postgres
from tests.conftest import missing_service
from tests.store.batches import QUARTER, START, batch, energy_row, power_row
from tests.store.registry_files import FILES, write_registry

NOW = datetime(2026, 5, 20, 12, tzinfo=UTC)
CALENDAR = Calendar(ZoneInfo("Asia/Shanghai"))
HEADER = FILES["meters.csv"].splitlines()[0]
AREAS = FILES["areas.csv"] + "A2,F1,Area 2,二号台区,gw-2,100000,-1,8\n"
IMPLAUSIBLE, BACKFILLED = int(Quality.IMPLAUSIBLE), int(Quality.BACKFILLED)


@contextmanager
def new_database(admin: str, *, template: str = "template0") -> Iterator[str]:
    """DSN of a database of our own."""
    name = f"t_{uuid4().hex}"
    with psycopg.connect(admin, autocommit=True) as connection:
        connection.execute(f'CREATE DATABASE "{name}" TEMPLATE "{template}"')
        yield psycopg.conninfo.make_conninfo(admin, dbname=name)
        connection.execute(f'DROP DATABASE "{name}" WITH (FORCE)')


def prepare(dsn: str, path: Path) -> None:
    """The small registry, with two areas."""
    migrate(dsn)
    with psycopg.connect(dsn, autocommit=True) as connection:
        found = read_registry(write_registry(path, areas=AREAS))
        assert isinstance(found, Registry), found
        save_registry(connection, found, since=START, now=NOW)


@pytest.fixture(scope="module")
def prepared(postgres: Postgres, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with new_database(postgres.dsn) as dsn:
        prepare(dsn, tmp_path_factory.mktemp("registry"))
        yield psycopg.conninfo.conninfo_to_dict(dsn)["dbname"]  # type: ignore[misc]


@pytest.fixture
def edition(request: pytest.FixtureRequest) -> str:
    """Embedded PostgreSQL, unless a test asks for more."""
    return getattr(request, "param", "embedded")


on_both = pytest.mark.parametrize("edition", ["embedded", "timescaledb"], indirect=True)


@pytest.fixture
def db(edition: str, postgres: Postgres, prepared: str, tmp_path: Path) -> Iterator[Connection]:
    admin, template = postgres.dsn, prepared
    if edition == "timescaledb":
        admin, template = os.environ.get("GRIDLOOM_TEST_TIMESCALE_DSN", ""), "template0"
        if not admin:
            missing_service("TimescaleDB (GRIDLOOM_TEST_TIMESCALE_DSN)")
    with new_database(admin, template=template) as dsn:
        if edition == "timescaledb":
            prepare(dsn, tmp_path / "registry")
        with psycopg.connect(dsn, autocommit=True, options="-c timezone=UTC") as connection:
            connection.execute("SET ROLE gridloom_work")
            open_session(connection)
            connection.execute("RESET ROLE")
            yield connection


def state(connection: Connection, tmp_path: Path, *lines: str, columns: str = "valid_from,valid_to") -> None:
    """The whole history of the points that ``lines`` of meters.csv name."""
    path = tmp_path / "meters.csv"
    path.write_text("\n".join([f"{HEADER},{columns}", *lines]) + "\n")
    found = read_registry([path], known_names(connection))
    assert isinstance(found, Registry), found
    save_registry(connection, found, since=START, now=NOW)


def put(connection: Connection, seq: int, *rows: Row, kind: Kind = Kind.ENERGY, epoch: str = "0" * 32) -> None:
    with connection.transaction():
        store(connection, [batch(kind, seq, rows, epoch=epoch)], load_installations(connection), NOW)


def settle(connection: Connection) -> tuple[Derived, ...]:
    """All that is dirty, with the rights that work has."""
    connection.execute("SET ROLE gridloom_work")
    done = drain(connection, CALENDAR, NOW, chunks_max=100)
    connection.execute("RESET ROLE")
    assert connection.execute("SELECT count(*) FROM dirty_range").fetchone() == (0,)
    return done


def intervals(connection: Connection, point: str, *, as_of: int = 2**31) -> list[tuple[int, int | None, int]]:
    """Number of the interval since START, energy, quality."""
    rows = connection.execute(
        """
        SELECT DISTINCT ON (start) extract(epoch FROM start - %s)::int / 900, energy_import_wh, quality
        FROM interval JOIN metering_point USING (point_id) WHERE point = %s AND version <= %s
        ORDER BY start, version DESC
        """,
        [START, point, as_of],
    )
    return rows.fetchall()


def loads(connection: Connection, series: str) -> list[tuple[int, int | None, int | None, int, int]]:
    rows = connection.execute(
        "SELECT extract(epoch FROM start - %s)::int / 900, supplied_wh, delivered_wh, meters_expected, meters_received"
        " FROM load WHERE series = %s ORDER BY start",
        [START, series],
    )
    return rows.fetchall()


def at(k: float) -> datetime:
    return START + k * QUARTER


def newest_version(connection: Connection) -> int:
    row = connection.execute("SELECT coalesce(max(version), 0) FROM interval_version").fetchone()
    assert row
    return int(row[0])


@on_both
def test_an_exchange_that_comes_on_record_late_is_exact_and_the_old_version_stays(db: Connection) -> None:
    """Two marks of the new meter were taken for the old one's; its registers stand elsewhere."""
    old = [energy_row("m002", k, wh=10_000 + 100 * k) for k in range(3)]
    new = [energy_row("m002", k, wh=50 * k) for k in (3, 4)]
    put(db, 1, *old, *new)
    put(db, 2, power_row("m002", 2), power_row("m002", 4), kind=Kind.POWER)  # in two hours
    roll_up(db, NOW)
    settle(db)
    before = [(0, 100, 0), (1, 100, 0), (2, None, IMPLAUSIBLE), (3, 50, 0)]
    assert intervals(db, "A1-C01") == before
    version = newest_version(db)
    assert version == 1
    exchange(
        db, "A1-C01", old="000000000002", new="000000000009", at=at(2.4),
        closing=(10_240, None, None, None), opening=(120, None, None, None),
    )  # fmt: skip
    settle(db)
    assert intervals(db, "A1-C01") == [(0, 100, 0), (1, 100, 0), (2, 40 + 30, 0), (3, 50, 0)]
    assert intervals(db, "A1-C01", as_of=version) == before
    for table in ("energy_sample", "power_sample"):
        held = db.execute(
            f"SELECT serial, min(at), max(at) FROM {table} JOIN meter USING (meter_id) GROUP BY 1 ORDER BY 1"  # noqa: S608
        ).fetchall()
        (serial, _, last), (serial_new, first, _) = held
        assert (serial, last, serial_new) == ("000000000002", at(2), "000000000009")
        assert first >= at(3)
    roll_up(db, NOW)
    # Rolled up before, the hour of the new meter's power is not the old one's any more.
    assert db.execute("SELECT serial FROM power_hour JOIN meter USING (meter_id) ORDER BY 1").fetchall() == [
        ("000000000002",), ("000000000009",),
    ]  # fmt: skip
    # Only what the exchange concerns was written again.
    assert db.execute("SELECT count(*) FROM interval WHERE version > 1").fetchone() == (1,)


def test_an_ingestor_that_has_not_heard_of_the_exchange_loses_nothing(db: Connection) -> None:
    stale = load_installations(db)
    exchange(db, "A1-C01", old="000000000002", new="000000000009", at=at(2))
    rows = [energy_row("m002", k, wh=10_000 + k if k < 2 else k) for k in range(4)]
    with db.transaction():
        store(db, [batch(Kind.ENERGY, 1, rows)], stale, NOW)
    settle(db)
    assert intervals(db, "A1-C01") == [(0, 1, 0), (2, 1, 0)]


def test_a_ratio_that_changes_on_a_mark_needs_no_exchange(db: Connection, tmp_path: Path) -> None:
    put(db, 1, *(energy_row("m002", k) for k in range(5)))
    settle(db)
    line = "000000000002,dlt645-2007,gw-1,m002,A1-C01,A1,customer,a,A1-N1,true,{},1,{},{}"
    state(db, tmp_path, line.format(1, "", at(2).isoformat()), line.format(30, at(2).isoformat(), ""))
    settle(db)
    assert intervals(db, "A1-C01") == [(0, 10, 0), (1, 10, 0), (2, 300, 0), (3, 300, 0)]
    assert intervals(db, "A1-C01", as_of=1) == [(k, 10, 0) for k in range(4)]
    assert newest_version(db) == 2
    state(db, tmp_path, line.format(30, "", ""))  # it was wrong from the start
    settle(db)
    assert intervals(db, "A1-C01") == [(k, 300, 0) for k in range(4)]


def test_a_meter_that_moves_to_another_gateway_goes_on_counting(db: Connection, tmp_path: Path) -> None:
    line = "000000000002,dlt645-2007,{},{},A1-C01,A1,customer,a,A1-N1,true,1,1,{},{}"
    when = at(1.5).isoformat()
    state(db, tmp_path, line.format("gw-1", "m002", "", when), line.format("gw-2", "x", when, ""))
    put(db, 1, energy_row("m002", 0), energy_row("m002", 1))
    with db.transaction():
        moved = batch(Kind.ENERGY, 1, [energy_row("x", 2), energy_row("x", 3)], gateway="gw-2")
        store(db, [moved], load_installations(db), NOW)
    settle(db)
    assert intervals(db, "A1-C01") == [(0, 10, 0), (1, 10, 0), (2, 10, 0)]


@on_both
def test_a_meter_that_was_on_record_at_the_wrong_point_is_withdrawn_there(db: Connection, tmp_path: Path) -> None:
    put(db, 1, *(energy_row("m002", k) for k in range(3)))
    settle(db)
    line = "{},dlt645-2007,gw-1,{},{},A1,customer,a,A1-N1,true,1,1,{},"
    state(
        db, tmp_path, line.format("000000000002", "m002", "A1-C02", ""),
        line.format("000000000003", "m003", "A1-C01", at(1).isoformat()),
    )  # fmt: skip
    settle(db)
    assert intervals(db, "A1-C01") == [(0, None, 0), (1, None, 0)]
    assert intervals(db, "A1-C02") == [(0, 10, 0), (1, 10, 0)]
    assert intervals(db, "A1-C01", as_of=1) == [(0, 10, 0), (1, 10, 0)]


def test_the_same_mark_under_another_epoch_counts_once(db: Connection) -> None:
    rows = [energy_row("m002", k) for k in range(3)]
    put(db, 1, *rows)
    settle(db)
    put(db, 1, *(energy_row("m002", k, quality=BACKFILLED) for k in range(3)), epoch="f" * 32)
    assert sum(done.intervals for done in settle(db)) == 0
    assert newest_version(db) == 1
    assert intervals(db, "A1-C01") == [(0, 10, 0), (1, 10, 0)]


def test_rows_quarantined_for_their_date_are_intervals_once_it_is_corrected(db: Connection, tmp_path: Path) -> None:
    line = "000000000008,dlt645-2007,gw-1,m008,A1-C08,A1,customer,a,A1-N1,false,1,1,{},"
    state(db, tmp_path, line.format(at(2).isoformat()))
    put(db, 1, *(energy_row("m008", k) for k in range(4)))
    settle(db)
    assert intervals(db, "A1-C08") == [(2, 10, 0)]
    state(db, tmp_path, line.format(""))
    replay(db, NOW, reason="unknown_meter")
    settle(db)
    assert intervals(db, "A1-C08") == [(k, 10, 0) for k in range(3)]


# ---- loads -----------------------------------------------------------------------------------------------------------


@on_both
def test_loads_follow_a_point_to_its_new_area_from_the_date_on(db: Connection, tmp_path: Path) -> None:
    for seq, meter in enumerate(("m001", "m002"), 1):
        put(db, seq, *(energy_row(meter, k) for k in range(5)))
    settle(db)
    assert loads(db, "area:A1") == [(k, 10, 10, 3, 2) for k in range(4)]
    line = "000000000002,dlt645-2007,gw-1,m002,A1-C01,{},customer,a,A1-N1,true,1,1,{},{}"
    when = at(2).isoformat()
    state(db, tmp_path, line.format("A1", "", when), line.format("A2", when, ""))
    done = settle(db)
    assert loads(db, "area:A1") == [(0, 10, 10, 3, 2), (1, 10, 10, 3, 2), (2, 10, None, 2, 1), (3, 10, None, 2, 1)]
    assert loads(db, "area:A2") == [(2, None, 10, 1, 1), (3, None, 10, 1, 1)]
    # An area without a head meter makes its feeder's supply unknown.
    assert loads(db, "feeder:F1") == [(0, 10, 10, 3, 2), (1, 10, 10, 3, 2), (2, None, 10, 3, 2), (3, None, 10, 3, 2)]
    assert {area for one in done for area, _ in one.area_days} == {"A1", "A2"}
    assert newest_version(db) == 1  # no interval changed
    state(db, tmp_path, line.format("A1", "", ""))
    settle(db)
    assert loads(db, "area:A2") == []
    assert loads(db, "feeder:F1") == [(k, 10, 10, 3, 2) for k in range(4)]


def test_loads_follow_a_role_and_a_feeder(db: Connection, tmp_path: Path) -> None:
    for seq, meter in enumerate(("m001", "m002"), 1):
        put(db, seq, *(energy_row(meter, k) for k in range(3)))
    settle(db)
    line = "000000000002,dlt645-2007,gw-1,m002,A1-C01,A1,{},a,A1-N1,true,1,1,{},{}"
    when = at(1).isoformat()
    state(db, tmp_path, line.format("customer", "", when), line.format("check", when, ""))
    (tmp_path / "feeders.csv").write_text(FILES["feeders.csv"] + "F2,Feeder 2,二号馈线,1\n")
    (tmp_path / "area_feeders.csv").write_text(f"area_id,feeder_id,valid_from,valid_to\nA1,F1,,{when}\nA1,F2,{when},\n")
    found = read_registry([tmp_path / "feeders.csv", tmp_path / "area_feeders.csv"], known_names(db))
    assert isinstance(found, Registry), found
    save_registry(db, found, since=START, now=NOW)
    settle(db)
    assert loads(db, "area:A1") == [(0, 10, 10, 3, 2), (1, 10, None, 2, 1)]
    assert loads(db, "feeder:F1") == [(0, 10, 10, 3, 2)]
    assert loads(db, "feeder:F2") == [(1, 10, None, 2, 1)]


def test_losses_follow_a_point_that_moves_within_the_day(db: Connection, tmp_path: Path) -> None:
    """From mark 2 on the customer draws from the other area: nothing is missing here, and it is not counted."""
    put(db, 1, *(energy_row("m001", k, wh=1000 * k) for k in range(5)))
    for seq, meter in enumerate(("m002", "m003"), 2):
        put(db, seq, *(energy_row(meter, k) for k in range(5)))
    line = "000000000002,dlt645-2007,gw-1,m002,A1-C01,{},customer,a,A1-N1,true,1,1,{},{}"
    when = at(2).isoformat()
    state(db, tmp_path, line.format("A1", "", when), line.format("A2", when, ""))
    settle(db)
    day = CALENDAR.day(START)
    update_losses(db, CALENDAR, [("A1", day), ("A2", day)], first_mark=START, now=at(4))
    rows = db.execute("SELECT area_id, supplied_wh, delivered_wh, aligned FROM loss_day ORDER BY 1").fetchall()
    assert rows == [("A1", 4000.0, 2 * (10 + 300) + 2 * 300, 4), ("A2", None, None, 0)]


def test_what_is_dated_ahead_comes_into_force_then(db: Connection, tmp_path: Path) -> None:
    line = "000000000002,dlt645-2007,gw-1,m002,A1-C01,{},customer,a,A1-N1,true,1,1,{},{}"
    when = NOW + timedelta(days=1)
    state(db, tmp_path, line.format("A1", "", when.isoformat()), line.format("A2", when.isoformat(), ""))
    for now, area in ((NOW, "A1"), (when, "A2")):
        db.execute("SET ROLE gridloom_work")
        put_in_force(db, now)
        db.execute("RESET ROLE")
        assert db.execute("SELECT area_id FROM metering_point WHERE point = 'A1-C01'").fetchone() == (area,)


@on_both
@pytest.mark.parametrize("late", [False, True])
def test_whenever_the_registry_learns_it_the_end_is_the_same(db: Connection, tmp_path: Path, late: bool) -> None:
    """A life with everything in it, on record before any reading came, or after all had."""
    line = "{},dlt645-2007,gw-1,m002,A1-C01,{},customer,a,A1-N1,true,{},1,{},{},{},{}"
    edges = [at(k).isoformat() for k in (3.3, 6, 8)]
    life = (
        line.format("000000000002", "A1", 2, "", edges[0], "", 10_035),
        line.format("S9", "A1", 3, edges[0], edges[1], 500, ""),
        line.format("S9", "A2", 5, edges[1], edges[2], "", 545),
        line.format("S9", "A2", 5, edges[2], "", 0, ""),  # a reset at a mark, noted
    )
    columns = "valid_from,valid_to,opening_energy_import_wh,closing_energy_import_wh"
    registers = [10_000, 10_010, 10_020, 10_030, 505, 515, 525, 535, 545, 5, 15]
    if not late:
        state(db, tmp_path, *life, columns=columns)
    order = [9, 3, 0, 10, 4, 8, 2, 5, 1, 7, 6]
    for seq, k in enumerate(order, 1):
        put(db, seq, energy_row("m002", k, wh=registers[k]))
        if seq % 3 == 0:
            settle(db)
    settle(db)
    if late:
        state(db, tmp_path, *life, columns=columns)
        settle(db)
    assert intervals(db, "A1-C01") == [
        (0, 20, 0), (1, 20, 0), (2, 20, 0), (3, 5 * 2 + 5 * 3, 0), (4, 30, 0), (5, 30, 0), (6, 50, 0), (7, 50, 0),
        (8, 25, 0), (9, 50, 0),
    ]  # fmt: skip
    energy_wh = [(k, wh) for k, wh, _ in intervals(db, "A1-C01")]
    assert [(k, wh) for k, _, wh, *_ in loads(db, "area:A1") if wh is not None] == energy_wh[:6]
    assert [(k, wh) for k, _, wh, *_ in loads(db, "area:A2")] == energy_wh[6:]
