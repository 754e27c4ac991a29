"""The schema on every edition: applied once, whoever applies it; each program may do its work and no more."""

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from uuid import uuid4

import psycopg
import pytest
from click.testing import CliRunner

from cloud.gridloom import gridloom
from cloud.store import migrations
from cloud.store.migrations import Connection, Edition, MigrationError, migrate, plan


def test_migrating_again_changes_nothing(empty_database: str) -> None:
    edition, planned = plan(empty_database)
    assert [one.name for one in migrate(empty_database)] == [one.name for one in planned]
    assert planned[0].name == "0001_tables"
    assert migrate(empty_database) == []
    assert plan(empty_database) == (edition, [])


def test_several_programs_migrate_at_once(empty_database: str) -> None:
    with ThreadPoolExecutor(4) as pool:
        applied = list(pool.map(migrate, [empty_database] * 4))
    assert sorted(map(bool, applied)) == [False, False, False, True]


def test_two_processes_migrate_at_once(empty_database: str) -> None:
    """One applies all, the other waits for it and finds nothing to do."""
    command = [sys.executable, "-c", "from cloud.gridloom import main; main()", "migrate", "--json"]
    environment = {**os.environ, "GRIDLOOM_DSN": empty_database, "GRIDLOOM_LOG": "WARNING"}
    started = [
        subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE) for _ in range(2)
    ]
    answers = [process.communicate(timeout=60) for process in started]
    assert [process.returncode for process in started] == [0, 0], answers
    edition, left = plan(empty_database)
    applied = sorted(len(json.loads(out)["migrations"]) for out, _ in answers)
    assert applied == [0, sum(one.edition <= edition for one in migrations.migrations())]
    assert left == []


def test_databases_of_one_server_migrate_at_once(empty_database: str) -> None:
    """Roles belong to the server: making them must not collide."""
    names = [f"t_{uuid4().hex}" for _ in range(3)]
    with psycopg.connect(empty_database, autocommit=True) as admin:
        for name in names:
            admin.execute(f'CREATE DATABASE "{name}"')
        try:
            with ThreadPoolExecutor(3) as pool:
                dsns = [psycopg.conninfo.make_conninfo(empty_database, dbname=name) for name in names]
                assert all(pool.map(migrate, dsns))
        finally:
            for name in names:
                admin.execute(f'DROP DATABASE "{name}" WITH (FORCE)')


def test_samples_are_hypertables_where_timescaledb_is(connection: Connection) -> None:
    edition = migrations.probe(connection)
    if edition is Edition.POSTGRESQL:
        return
    found = connection.execute("SELECT hypertable_name FROM timescaledb_information.hypertables ORDER BY 1").fetchall()
    assert found == [("energy_sample",), ("power_sample",)]
    indexes = connection.execute("SELECT count(*) FROM pg_indexes WHERE tablename = 'energy_sample'").fetchone()
    assert indexes == (1,)


def test_dry_run_names_the_migrations_and_changes_nothing(empty_database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRIDLOOM_DSN", empty_database)
    result = CliRunner().invoke(gridloom, ["migrate", "--dry-run"])
    assert result.exit_code == 0
    assert "0001_tables: One dialect for TimescaleDB Community" in result.output
    edition = result.stdout.split(":")[0]
    assert "CREATE TABLE feeder" in CliRunner().invoke(gridloom, ["migrate", "--dry-run", "--sql"]).output
    with psycopg.connect(empty_database) as connection:
        assert connection.execute("SELECT to_regclass('feeder')").fetchone() == (None,)
        assert connection.execute("SELECT count(*) FROM pg_extension WHERE extname = 'timescaledb'").fetchone() == (0,)
    assert json.loads(CliRunner().invoke(gridloom, ["migrate", "--json"]).stdout)["edition"] == edition


def test_a_changed_migration_is_refused(store_dsn: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for path in migrations.SCHEMA.glob("*.sql"):
        (tmp_path / path.name).write_text(path.read_text() + "\n-- edited\n")
    monkeypatch.setattr(migrations, "SCHEMA", tmp_path)
    with pytest.raises(MigrationError, match=r"0001_tables\.sql was changed"):
        migrate(store_dsn)
    monkeypatch.setenv("GRIDLOOM_DSN", store_dsn)
    result = CliRunner().invoke(gridloom, ["migrate"])
    assert result.exit_code == 1
    assert "put the change into a new file" in result.output


def test_a_database_that_does_not_answer_is_one_clear_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRIDLOOM_DSN", "postgresql://nobody@127.0.0.1:1/none")
    result = CliRunner().invoke(gridloom, ["migrate"])
    assert result.exit_code == 1
    assert result.output.startswith("Error: GRIDLOOM_DSN: ")
    assert result.output.count("\n") == 1


RIGHTS = [
    ("gridloom_ingest", "INSERT INTO dirty_range VALUES (1, now(), now())", True),
    ("gridloom_ingest", "INSERT INTO energy_sample (meter_id, at, gateway_at, quality, batch_id) VALUES"
     " (1, now(), now(), 0, 1)", True),
    ("gridloom_ingest", "DELETE FROM energy_sample", False),
    ("gridloom_ingest", "SELECT hash FROM api_key", False),
    ("gridloom_ingest", "UPDATE meter SET serial = 'x'", False),
    ("gridloom_work", "SELECT * FROM energy_sample", True),
    ("gridloom_work", "DELETE FROM dirty_range", True),
    ("gridloom_work", "INSERT INTO interval_version VALUES (1, now())", True),
    ("gridloom_work", "UPDATE interval SET quality = 0", False),
    ("gridloom_work", "INSERT INTO energy_sample (meter_id, at, gateway_at, quality, batch_id) VALUES"
     " (1, now(), now(), 0, 1)", False),
    ("gridloom_work", "DELETE FROM power_sample", False),
    ("gridloom_work", "SELECT * FROM retain(now(), 1)", True),
    ("gridloom_work", "UPDATE retention SET keep = NULL", False),
    ("gridloom_ingest", "INSERT INTO dirty_hour VALUES (now(), '{1}')", True),
    ("gridloom_api", "SELECT * FROM interval_current", True),
    ("gridloom_api", "SELECT * FROM retain(now(), 1)", False),
    ("gridloom_grafana", "SELECT * FROM power_hour JOIN power_day USING (meter_id)", True),
    ("gridloom_api", "SELECT hash FROM api_key", True),
    ("gridloom_api", "INSERT INTO power_sample (meter_id, at, gateway_at, quality, batch_id) VALUES"
     " (1, now(), now(), 0, 1)", False),
    ("gridloom_api", "INSERT INTO api_key (name, hash) VALUES ('x', 'x')", False),
    ("gridloom_grafana", "SELECT * FROM load", True),
    ("gridloom_grafana", "SELECT hash FROM api_key", False),
    ("gridloom_grafana", "SELECT payload FROM quarantine", False),
    ("gridloom_grafana", "CREATE TABLE mine (x int)", False),
]  # fmt: skip


def test_each_role_may_do_its_work_and_no_more(connection: Connection) -> None:
    assert [row for row in RIGHTS if may(connection, *row[:2]) is not row[2]] == []


def may(connection: Connection, role: str, statement: str) -> bool:
    try:
        with connection.transaction(force_rollback=True):
            connection.execute(f"SET LOCAL ROLE {role}")
            connection.execute(statement)
    except psycopg.errors.InsufficientPrivilege:
        return False
    return True
