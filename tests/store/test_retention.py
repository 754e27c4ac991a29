"""Retention: what the table says goes and nothing else, on every edition, by whoever may do no more than ask for it."""

from datetime import UTC, datetime, timedelta

import psycopg
import pytest

from cloud.jobs.retention import retain
from cloud.store.migrations import Connection, Edition, probe

NOW = datetime(2026, 5, 20, 4, 0, tzinfo=UTC)
OLD, NEW = NOW - timedelta(days=6 * 365), NOW - timedelta(days=30)


@pytest.fixture
def aged(registered: Connection) -> Connection:
    """A row of six years ago and one of last month, of everything."""
    for moment in (OLD, NEW):
        when = {"at": moment, "day": moment.date()}
        for table in ("energy_sample", "power_sample"):
            registered.execute(
                f"INSERT INTO {table} (meter_id, at, gateway_at, quality, batch_id)"  # noqa: S608
                " SELECT meter_id, %(at)s, %(at)s, 0, 1 FROM meter",
                when,
            )
        registered.execute("INSERT INTO event VALUES ('gw-1', 1, 'm001', %(at)s, 'meter_silent', '{}', 1)", when)
        registered.execute("INSERT INTO interval VALUES (1, %(at)s, 1, 5, 0, 0, 0, 0)", when)
        registered.execute("INSERT INTO load VALUES ('area:A1', %(at)s, 1, 1, 1, 1)", when)
        registered.execute(
            "INSERT INTO quarantine (topic, reason, detail, rows, recorded_at, replayed_at)"
            " VALUES ('t', 'r', 'd', 1, %(at)s, NULL), ('t', 'r', 'd', 1, %(at)s, %(at)s)",
            when,
        )
        registered.execute(
            "INSERT INTO forecast_run (origin, made_at, model, model_version, horizon_h, inputs_until)"
            " VALUES (%(at)s, %(at)s, 'm', '1', 24, %(at)s)",
            when,
        )
        registered.execute("INSERT INTO forecast SELECT max(run_id), 's', %(at)s, 1, 1, 1 FROM forecast_run", when)
        if probe(registered) is not Edition.COMMUNITY:
            registered.execute("INSERT INTO power_hour (meter_id, start, marks) VALUES (1, %(at)s, 4)", when)
            registered.execute("INSERT INTO power_day (meter_id, start, marks) VALUES (1, %(at)s, 4)", when)
    if probe(registered) is Edition.COMMUNITY:
        registered.execute("CALL refresh_continuous_aggregate('power_hour', NULL, NULL)")
        registered.execute("CALL refresh_continuous_aggregate('power_day', NULL, NULL)")
    return registered


def ages(connection: Connection, table: str, column: str) -> list[str]:
    query = f"SELECT DISTINCT {column} < %s FROM {table} ORDER BY 1 DESC"  # noqa: S608
    return ["old" if old else "new" for (old,) in connection.execute(query, [NEW - timedelta(days=2)])]


def test_what_is_too_old_goes_and_the_rest_stays(aged: Connection) -> None:
    aged.execute("SET ROLE gridloom_work")
    removed = {one.data: one for one in retain(aged, NOW)}
    assert retain(aged, NOW) == []
    aged.execute("RESET ROLE")
    assert set(removed) == {"energy_sample", "power_sample", "power_hour", "event", "quarantine", "forecast_run"}
    chunked = probe(aged) is not Edition.POSTGRESQL
    assert (removed["energy_sample"].amount, removed["energy_sample"].unit) == (
        (1, "chunks") if chunked else (3, "rows")
    )
    assert removed["forecast_run"].older_than == datetime(2025, 4, 15, tzinfo=UTC)
    for table, column in (
        ("energy_sample", "at"), ("power_sample", "at"), ("power_hour", "start"), ("event", "at"),
        ("forecast_run", "origin"), ("forecast", "start"),
    ):  # fmt: skip
        assert ages(aged, table, column) == ["new"], table
    for table, column in (("interval", "start"), ("load", "start"), ("power_day", "start")):
        assert ages(aged, table, column) == ["old", "new"], table
    # Rows that still wait for their meter stay, however old they are.
    left = aged.execute("SELECT recorded_at, replayed_at IS NULL FROM quarantine ORDER BY 1, 2").fetchall()
    assert left == [(OLD, True), (NEW, False), (NEW, True)]


def test_a_changed_setting_counts_and_a_dangerous_one_is_refused(aged: Connection) -> None:
    aged.execute("UPDATE retention SET keep = NULL")
    assert retain(aged, NOW) == []
    aged.execute("UPDATE retention SET keep = '20 days' WHERE data = 'event'")
    assert [one.data for one in retain(aged, NOW)] == ["event"]
    assert aged.execute("SELECT count(*) FROM event").fetchone() == (0,)
    with pytest.raises(psycopg.errors.CheckViolation):
        aged.execute("UPDATE retention SET keep = '20 days' WHERE data = 'energy_sample'")


def test_a_refresh_ends_where_retention_begins(registered: Connection) -> None:
    """Over hours whose samples are gone it would remove the hours."""
    if probe(registered) is not Edition.COMMUNITY:
        pytest.skip("only TimescaleDB Community refreshes")
    registered.execute("UPDATE retention SET keep = '100 days' WHERE data = 'power_sample'")
    offsets = registered.execute(
        "SELECT config->>'start_offset' FROM timescaledb_information.jobs"
        " WHERE proc_name = 'policy_refresh_continuous_aggregate' ORDER BY job_id"
    ).fetchall()
    assert offsets == [("86 days",), ("84 days",)]


def test_a_piece_is_bounded(aged: Connection) -> None:
    aged.execute("INSERT INTO event SELECT 'gw-1', 1, 'm001', %s, 'x', '{}', 1 FROM generate_series(1, 24)", [OLD])
    amounts = []
    while found := [one for one in retain(aged, NOW, rows_max=10) if one.data == "event"]:
        amounts.append(found[0].amount)
    assert amounts == [10, 10, 5]
