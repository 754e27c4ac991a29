"""The registry's files: every problem with file and line, and an import that can be repeated."""

import json
from datetime import timedelta
from pathlib import Path

import psycopg
import pytest
from click.testing import CliRunner, Result

from cloud.gridloom import gridloom
from cloud.store.migrations import Connection
from cloud.store.registry import Problem, Registry, RegistryError, read_registry, save_registry
from tests.store.conftest import NOW
from tests.store.registry_files import FILES, write_registry


def test_every_problem_is_listed_with_file_and_line(tmp_path: Path) -> None:
    folder = write_registry(
        tmp_path,
        feeders="feeder_id,name_en,name_zh,capacity_w\nF1,Feeder 1,一号馈线,-5\nF1,Again,又,1\n",
        areas=FILES["areas.csv"].replace("A1,F1", "A1,F9"),
        lines="line_id,from_node,to_node,length_m,r_ohm_per_km\n",
        meters=FILES["meters.csv"]
        .replace("dlt645-2007,gw-1,m001", "dlt645-1997,gw-1,m001")
        .replace("m003", "m002")
        .replace("true,1,1", "perhaps,one,1"),
    )
    (folder / "transformers.csv").unlink()
    problems = read_registry(folder)
    assert isinstance(problems, list)
    assert [str(problem) for problem in problems] == [
        'areas.csv:2: feeder_id: "F9" is not in feeders.csv',
        'feeders.csv:2: capacity_w: 0 or more expected, got "-5"',
        "feeders.csv:3: feeder_id: F1 is already on line 2",
        'lines.csv:1: column "x_ohm_per_km" is missing',
        'meters.csv:2: protocol: one of dlt645-2007, modbus-tcp, modbus-rtu expected, got "dlt645-1997"',
        'meters.csv:3: controllable: true or false expected, got "perhaps"',
        'meters.csv:3: ct_ratio: a whole number expected, got "one"',
        "meters.csv:4: gateway+wire_name: gw-1 m002 is already on line 3",
        f"transformers.csv:0: not found in {folder}",
    ]


@pytest.mark.parametrize(
    "content", ["feeder_id,name_en,name_zh,capacity_w\nF1,only\n", "\0", 'a,b\n"x', "", "\xff\xfe"]
)
def test_files_that_are_not_tables_are_problems(tmp_path: Path, content: str) -> None:
    folder = write_registry(tmp_path, feeders=content)
    problems = read_registry(folder)
    assert isinstance(problems, list)
    assert all(isinstance(problem, Problem) for problem in problems)


def command(dsn: str, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> Result:
    monkeypatch.setenv("GRIDLOOM_DSN", dsn)
    return CliRunner().invoke(gridloom, ["registry", "import", *arguments])


def test_import_is_idempotent(store_dsn: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = str(write_registry(tmp_path))
    trial = json.loads(command(store_dsn, monkeypatch, folder, "--dry-run", "--json").stdout)
    first = json.loads(command(store_dsn, monkeypatch, folder, "--json").stdout)
    again = json.loads(command(store_dsn, monkeypatch, folder, "--json").stdout)
    assert trial["changed"] == first["changed"] == 1 + 1 + 4 + 2 + 1 + 3 + 3 + 3
    assert again["changed"] == 0
    with psycopg.connect(store_dsn) as connection:
        counts = connection.execute(
            "SELECT (SELECT count(*) FROM meter), (SELECT count(*) FROM installation)"
        ).fetchone()
    assert counts == (3, 3)


def test_a_bad_folder_imports_nothing_and_fails(
    store_dsn: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_registry(tmp_path, nodes=FILES["nodes.csv"].replace("bus", "buss"))
    result = command(store_dsn, monkeypatch, str(folder))
    assert result.exit_code == 1
    assert f'{folder}/nodes.csv:3: kind: one of source, bus, customer expected, got "buss"' in result.stderr
    with psycopg.connect(store_dsn) as connection:
        assert connection.execute("SELECT count(*) FROM feeder").fetchone() == (0,)


def test_an_exchanged_meter_is_dated_and_the_old_one_stays_on_record(registered: Connection, tmp_path: Path) -> None:
    later = NOW + timedelta(hours=1)
    exchanged = read_registry(
        write_registry(tmp_path / "x", meters=FILES["meters.csv"].replace("000000000002", "000000000009"))
    )
    assert isinstance(exchanged, Registry)
    assert save_registry(registered, exchanged, since=later).changed == 2  # the meter and its installation
    held = registered.execute(
        "SELECT serial, isfinite(valid_from), isfinite(valid_to) FROM installation JOIN meter USING (meter_id)"
        " WHERE wire_name = 'm002' ORDER BY valid_from"
    ).fetchall()
    assert held == [("000000000002", False, True), ("000000000009", True, False)]
    before = read_registry(write_registry(tmp_path / "y"))
    assert isinstance(before, Registry)
    with pytest.raises(RegistryError, match="later --since"):
        save_registry(registered, before, since=later)


def test_without_a_schema_the_answer_is_to_migrate(
    empty_database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = command(empty_database, monkeypatch, str(write_registry(tmp_path)))
    assert result.exit_code == 1
    assert "run: gridloom migrate" in result.output
