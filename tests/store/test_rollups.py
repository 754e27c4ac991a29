"""Power by hour and day: the same names and numbers on every edition, late rows included."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, LiteralString
from zoneinfo import ZoneInfo

import psycopg
import pytest
from psycopg.sql import SQL

from cloud.jobs.calendar import Calendar
from cloud.jobs.derive import drain, open_session
from cloud.jobs.retention import retain
from cloud.jobs.rollups import roll_up
from cloud.store.installations import load_installations
from cloud.store.migrations import Connection, Edition, migrate, probe
from cloud.store.samples import store
from protocols.quantities import Kind
from protocols.uplink import Row
from tests.store.batches import batch

# Local midnight in Shanghai, a month ago: TimescaleDB's policies go by the wall clock.
DAY = datetime.now(UTC).replace(hour=16, minute=0, second=0, microsecond=0) - timedelta(days=30)
NOW = DAY + timedelta(days=30)
STEP = timedelta(minutes=15)
HOUR = timedelta(hours=1)


def power(meter: str, at: datetime, **values: float | None) -> Row:
    return Row(meter, at, at + timedelta(seconds=8), None, 0, values)


_seq = iter(range(1, 1_000_000))


def put(connection: Connection, *rows: Row, epoch: str = "e" * 32) -> None:
    with connection.transaction():
        made = batch(Kind.POWER, next(_seq), rows, epoch=epoch)
        assert store(connection, [made], load_installations(connection), NOW).rows["power"] == len(rows)


def bring_up_to_date(connection: Connection) -> None:
    """What `gridloom work` does on two editions, and TimescaleDB's policies, told to run now, on the third."""
    if probe(connection) is not Edition.COMMUNITY:
        while roll_up(connection, NOW):
            pass
        return
    jobs = connection.execute(
        "SELECT job_id FROM timescaledb_information.jobs"
        " WHERE proc_name = 'policy_refresh_continuous_aggregate' ORDER BY job_id"
    ).fetchall()
    assert len(jobs) == 2
    for (job,) in jobs:
        connection.execute(SQL("CALL run_job({})").format(job))


def hours(connection: Connection, columns: LiteralString, name: str = "m001") -> list[tuple[Any, ...]]:
    return connection.execute(
        SQL(
            "SELECT start, {} FROM power_hour JOIN installation USING (meter_id) WHERE wire_name = {} ORDER BY 1"
        ).format(SQL(columns), name)
    ).fetchall()


def days(connection: Connection, columns: LiteralString) -> list[tuple[Any, ...]]:
    return connection.execute(
        SQL(
            "SELECT start, {} FROM power_day JOIN installation USING (meter_id) WHERE wire_name = 'm001' ORDER BY 1"
        ).format(SQL(columns))
    ).fetchall()


def quarter_hours(meter: str, start: datetime, watts: Sequence[float | None]) -> list[Row]:
    return [power(meter, start + k * STEP, active_power_w=w, voltage_l1_v=230 + k) for k, w in enumerate(watts)]


def test_an_hour_and_a_day_hold_mean_extremes_and_marks(registered: Connection) -> None:
    """By hand: 100, 200, none, 300 W → mean 200 of three; voltages 230 … 233."""
    put(registered, *quarter_hours("m001", DAY, [100, 200, None, 300]), *quarter_hours("m001", DAY + HOUR, [-50]))
    bring_up_to_date(registered)
    found = hours(
        registered,
        "marks, active_power_mean_w, active_power_min_w, active_power_max_w, voltage_l1_mean_v, voltage_l1_min_v,"
        " voltage_l1_max_v, voltage_l2_mean_v, voltage_l2_max_v, power_factor_mean",
    )
    assert found == [
        (DAY, 4, 200, 100, 300, 231.5, 230, 233, None, None, None),
        (DAY + HOUR, 1, -50, -50, -50, 230, 230, 230, None, None, None),
    ]
    # Hours weigh by their marks: (200 × 4 − 50 × 1) / 5.
    assert days(registered, "marks, active_power_mean_w, active_power_min_w, active_power_max_w") == [
        (DAY, 5, pytest.approx(150), -50, 300)
    ]


def test_a_day_begins_at_local_midnight(registered: Connection) -> None:
    put(registered, *(power("m001", DAY + k * HOUR, active_power_w=k) for k in (-1, 0, 23, 24)))
    bring_up_to_date(registered)
    day = timedelta(days=1)
    assert days(registered, "active_power_min_w, active_power_max_w") == [
        (DAY - day, -1, -1),
        (DAY, 0, 23),
        (DAY + day, 24, 24),
    ]


@pytest.mark.parametrize(
    ("zone", "offset_min"), [("Asia/Kolkata", 330), ("Europe/Copenhagen", 60), ("America/New_York", -300)]
)
def test_hours_and_days_are_of_the_zones_standard_time(
    empty_database: str, zone: str, offset_min: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GRIDLOOM_ZONE", zone)
    migrate(empty_database)
    midnight = DAY.replace(hour=0) - timedelta(minutes=offset_min)
    with psycopg.connect(empty_database, autocommit=True) as connection:
        for k in (-1, 0, 95, 96):
            at = {"at": midnight + k * STEP, "w": k, "hour": (midnight + k * STEP).replace(minute=0)}
            connection.execute(
                "INSERT INTO power_sample (meter_id, at, gateway_at, quality, active_power_w, batch_id)"
                " VALUES (1, %(at)s, %(at)s, 0, %(w)s, 1)",
                at,
            )
            connection.execute("INSERT INTO dirty_hour VALUES (%(hour)s, '{1}')", at)
        bring_up_to_date(connection)
        found = connection.execute("SELECT start, active_power_min_w, active_power_max_w FROM power_day ORDER BY 1")
        one = timedelta(days=1)
        assert found.fetchall() == [(midnight - one, -1, -1), (midnight, 0, 95), (midnight + one, 96, 96)]
        by_hour = connection.execute("SELECT start FROM power_hour ORDER BY 1").fetchall()
        assert by_hour == [(midnight + k * HOUR,) for k in (-1, 0, 23, 24)]


def test_a_reading_that_came_under_two_epochs_counts_once(registered: Connection) -> None:
    rows = quarter_hours("m001", DAY, [100, 200, 400, 500])
    put(registered, *rows)
    put(registered, *rows[2:], epoch="f" * 32)
    bring_up_to_date(registered)
    assert hours(registered, "marks, active_power_mean_w") == [(DAY, 4, 300)]


def test_late_rows_out_of_order_reach_hour_and_day(registered: Connection) -> None:
    put(registered, *quarter_hours("m001", DAY + 30 * HOUR, [7]), *quarter_hours("m002", DAY, [1, 1]))
    put(registered, *quarter_hours("m001", DAY, [None, 300]))
    bring_up_to_date(registered)
    put(registered, power("m001", DAY + 3 * STEP, active_power_w=100))
    put(registered, power("m001", DAY, active_power_w=200), power("m001", DAY - HOUR, active_power_w=9))
    bring_up_to_date(registered)
    assert hours(registered, "active_power_mean_w") == [(DAY - HOUR, 9), (DAY, 200), (DAY + 30 * HOUR, 7)]
    assert [mean for _, mean in days(registered, "active_power_mean_w")] == [9, 200, 7]
    assert hours(registered, "active_power_mean_w, marks", "m002") == [(DAY, 1, 2)]
    assert registered.execute("SELECT count(*) FROM dirty_hour").fetchone() == (0,)


def test_late_rows_into_compressed_chunks_reach_hour_and_day(registered: Connection) -> None:
    if probe(registered) is not Edition.COMMUNITY:
        pytest.skip("only TimescaleDB Community compresses")
    put(registered, *quarter_hours("m001", DAY, [100, None, 300]), *quarter_hours("m002", DAY, [5]))
    bring_up_to_date(registered)
    registered.execute("SELECT compress_chunk(chunk) FROM show_chunks('power_sample') AS chunk")
    [(compressed,)] = registered.execute(
        "SELECT count(*) FROM timescaledb_information.chunks WHERE hypertable_name = 'power_sample' AND is_compressed"
    ).fetchall()
    assert compressed == 1
    put(registered, power("m001", DAY + STEP, active_power_w=800), power("m002", DAY + 5 * HOUR, active_power_w=6))
    bring_up_to_date(registered)
    assert hours(registered, "marks, active_power_mean_w, active_power_max_w") == [(DAY, 3, 400, 800)]
    assert days(registered, "active_power_mean_w") == [(DAY, 400)]
    assert hours(registered, "active_power_mean_w", "m002") == [(DAY, 5), (DAY + 5 * HOUR, 6)]
    registered.execute("SELECT compress_chunk(chunk) FROM show_chunks('power_sample') AS chunk")  # sorts them in
    assert registered.execute("SELECT count(*), sum(active_power_w) FROM power_sample").fetchone() == (6, 1211)


def test_late_energy_also_into_compressed_chunks_is_a_new_version(registered: Connection) -> None:
    calendar = Calendar(ZoneInfo("Asia/Shanghai"))
    open_session(registered)

    def read(*marks: int) -> list[tuple[Any, ...]]:
        rows = [Row("m001", DAY + k * STEP, DAY + k * STEP, None, 0, {"energy_import_wh": 100 * k}) for k in marks]
        with registered.transaction():
            made = batch(Kind.ENERGY, next(_seq), rows)
            assert store(registered, [made], load_installations(registered), NOW).rows["energy"] == len(rows)
        while drain(registered, calendar, NOW, chunks_max=4):
            pass
        return registered.execute(
            "SELECT start, energy_import_wh FROM interval_current WHERE energy_import_wh IS NOT NULL ORDER BY start"
        ).fetchall()

    assert read(4, 3, 0, 1) == [(DAY, 100), (DAY + 3 * STEP, 100)]
    if probe(registered) is Edition.COMMUNITY:
        registered.execute("SELECT compress_chunk(chunk) FROM show_chunks('energy_sample') AS chunk")
    assert read(2) == [(DAY + k * STEP, 100) for k in range(4)]


def test_the_newest_hour_is_there_before_any_policy_ran(registered: Connection) -> None:
    if probe(registered) is not Edition.COMMUNITY:
        pytest.skip("elsewhere `gridloom work` adds up, within a minute")
    put(registered, *quarter_hours("m001", DAY, [100, 300]))
    assert hours(registered, "active_power_mean_w") == [(DAY, 200)]
    assert days(registered, "active_power_mean_w") == [(DAY, 200)]


def test_hours_outlive_their_samples(registered: Connection) -> None:
    """Late rows of a time whose samples have gone do not undo its hour, and neither does a refresh."""
    old = NOW - timedelta(days=450)
    put(registered, *quarter_hours("m001", old, [100, 300]), *quarter_hours("m001", DAY, [5]))
    if probe(registered) is Edition.COMMUNITY:  # as it was made when this was new
        registered.execute("CALL refresh_continuous_aggregate('power_hour', NULL, NULL)")
        registered.execute("CALL refresh_continuous_aggregate('power_day', NULL, NULL)")
    else:
        while roll_up(registered, old):
            pass
    assert [one.data for one in retain(registered, NOW)] == ["power_sample"]
    put(registered, power("m001", old + STEP, active_power_w=9_999))
    bring_up_to_date(registered)
    assert [mean for _, mean in hours(registered, "active_power_mean_w")] == [200, 5]
    assert [mean for _, mean in days(registered, "active_power_mean_w")] == [200, 5]


def test_rollups_move_to_community_with_the_server(empty_database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A database that was migrated as Apache edition and whose server can more now."""
    from cloud.store import migrations

    monkeypatch.setattr(migrations, "probe", lambda connection: Edition.POSTGRESQL)
    migrate(empty_database)
    monkeypatch.undo()
    with psycopg.connect(empty_database, autocommit=True) as connection:
        if probe(connection) is Edition.POSTGRESQL:
            pytest.skip("plain PostgreSQL has nothing more to apply")
        connection.execute(
            "INSERT INTO power_sample (meter_id, at, gateway_at, quality, active_power_w, batch_id)"
            " VALUES (1, %(at)s, %(at)s, 0, 100, 1)",
            {"at": DAY},
        )
        connection.execute("INSERT INTO dirty_hour VALUES (%s, '{1}')", [DAY])
        roll_up(connection, NOW)
        assert migrate(empty_database)
        bring_up_to_date(connection)
        found = connection.execute("SELECT meter_id, start, active_power_mean_w FROM power_day").fetchall()
        assert found == [(1, DAY, 100)]
