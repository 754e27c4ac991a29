"""The registry's files: every problem with file and line, and an import that can be repeated."""

import json
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from uuid import uuid4

import psycopg
import pytest
from click.testing import CliRunner, Result

from cloud.gridloom import gridloom
from cloud.store.installations import load_installations
from cloud.store.migrations import Connection, migrate
from cloud.store.registry import (
    Problem,
    Registry,
    RegistryError,
    Saved,
    export_registry,
    known_names,
    load_history,
    read_registry,
    save_registry,
)
from cloud.store.replay import replay
from cloud.store.samples import store
from protocols.quantities import Kind
from simulators.services import Postgres
from tests.store.batches import batch, energy_row
from tests.store.conftest import NOW
from tests.store.registry_files import FILES, write_registry

HEADER = FILES["meters.csv"].splitlines()[0]
AREAS = FILES["areas.csv"] + "A2,F1,Area 2,二号台区,gw-2,100000,-1,8\n"


@pytest.fixture
def empty_database(postgres: Postgres) -> Iterator[str]:
    """Embedded alone: nothing here differs between editions, and tests/jobs/test_derive.py imports on all of them."""
    name = f"t_{uuid4().hex}"
    with psycopg.connect(postgres.dsn, autocommit=True) as admin:
        admin.execute(f'CREATE DATABASE "{name}"')
        yield psycopg.conninfo.make_conninfo(postgres.dsn, dbname=name)
        admin.execute(f'DROP DATABASE "{name}" WITH (FORCE)')


def test_every_problem_is_listed_with_file_and_line(tmp_path: Path) -> None:
    folder = write_registry(
        tmp_path,
        feeders="feeder_id,name_en,name_zh,capacity_w\nF1,Feeder 1,一号馈线,-5\nF1,Again,又,1\n",
        areas=FILES["areas.csv"].replace("A1,F1", "A1,F9"),
        lines="line_id,from_node,to_node,length_m,r_ohm_per_km\n",
        meters=FILES["meters.csv"]
        .replace("dlt645-2007,gw-1,m001", "dlt645-1999,gw-1,m001")
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
        "meters.csv:2: protocol: one of dlt645-2007, dlt645-1997, modbus-tcp, modbus-rtu, modbus-ascii expected,"
        ' got "dlt645-1999"',
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


def command(dsn: str, monkeypatch: pytest.MonkeyPatch, *arguments: str, verb: str = "import") -> Result:
    monkeypatch.setenv("GRIDLOOM_DSN", dsn)
    return CliRunner().invoke(gridloom, ["registry", verb, *arguments])


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
    saved = save_registry(registered, exchanged, since=later)
    assert saved.changes["meter"] == {"added": 1, "changed": 0}
    assert saved.changes["installation"] == {"added": 1, "changed": 1, "removed": 0}
    assert saved.told == (
        "A1-C01: 000000000002 (gw-1 m002) → 000000000009 (gw-1 m002), 2026-05-20T05:00:00Z to for good",
    )
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


# ---- dated files -----------------------------------------------------------------------------------------------------


def dated(*lines: str, columns: str = "valid_from,valid_to") -> str:
    """meters.csv with dates: each line is serial, wire name, point, ratio, area, gateway, then ``columns``."""
    rows = [f"{HEADER},{columns}"]
    for line in lines:
        serial, wire, point, ratio, area, gateway, *more = line.split(",")
        rows.append(
            f"{serial},dlt645-2007,{gateway},{wire},{point},{area},customer,a,A1-N1,false,{ratio},1,{','.join(more)}"
        )
    return "\n".join(rows) + "\n"


REGISTERS = (
    "valid_from,valid_to,template,counter_modulus_wh,"
    "opening_energy_import_wh,opening_energy_export_wh,opening_reactive_import_varh,opening_reactive_export_varh,"
    "closing_energy_import_wh,closing_energy_export_wh,closing_reactive_import_varh,closing_reactive_export_varh"
)
# An exchange with registers off the mark, a new ratio on one, a move to another area, one to another gateway, a point
# that came and went, and one whose next meter comes in the future.
LIFE = dated(
    "S1,m1,P1,1,A1,gw-1,,2026-03-01T10:07:00+08:00,dlt645-2007,,,,,,4711080,0,,",
    "S2,m1,P1,1,A1,gw-1,2026-03-01T10:07:00+08:00,2026-04-01T00:00:00+08:00,,,120,0,,,,,,",
    "S2,m1,P1,30,A1,gw-1,2026-04-01T00:00:00+08:00,2026-04-05T09:30:00+08:00,,,,,,,,,,",
    "S2,m1,P1,30,A2,gw-1,2026-04-05T09:30:00+08:00,2026-04-09T00:00:00+08:00,,,,,,,,,,",
    "S2,m7,P1,30,A2,gw-2,2026-04-09T00:00:00+08:00,,,,,,,,,,,",
    "S3,m3,P2,1,A1,gw-1,2026-02-01T00:00:00+08:00,2026-03-01T00:00:00+08:00,,10000000,,,,,,,,",
    "S4,m4,P3,1,A1,gw-1,,2027-01-01T00:00:00+08:00,,,,,,,,,,",
    "S5,m4,P3,1,A2,gw-1,2027-01-01T00:00:00+08:00,,,,,,,,,,,",
    columns=REGISTERS,
)


def imported(connection: Connection, folder: Path) -> Saved:
    registry = read_registry(folder)
    assert isinstance(registry, Registry), registry
    return save_registry(connection, registry, since=NOW)


def test_a_dated_file_is_the_history_of_its_points(connection: Connection, tmp_path: Path) -> None:
    folder = write_registry(tmp_path, meters=LIFE, areas=AREAS)
    imported(connection, folder)
    history = load_history(connection)
    assert [(one.serial, one.wire_name, one.ct_ratio) for one in history.installations["P1"]] == [
        ("S1", "m1", 1), ("S2", "m1", 1), ("S2", "m1", 30), ("S2", "m7", 30),
    ]  # fmt: skip
    assert history.installations["P1"][0].closing == (4711080, 0, None, None)
    assert [(one.area_id, one.valid_to.year) for one in history.memberships["P1"]] == [("A1", 2026), ("A2", 9999)]
    assert history.memberships["P2"][0].valid_from.month == 1  # 31 January in UTC
    # What is in force now stands in the undated tables.
    rows = connection.execute("SELECT point, area_id FROM metering_point ORDER BY 1").fetchall()
    assert rows == [("P1", "A2"), ("P2", "A1"), ("P3", "A1")]
    rows = connection.execute("SELECT serial, template, counter_modulus_wh FROM meter ORDER BY 1 LIMIT 3").fetchall()
    assert rows == [("S1", "dlt645-2007", 10**9), ("S2", None, 10**9), ("S3", None, 10**7)]
    assert imported(connection, folder).changed == 0


def test_what_is_exported_imports_again_to_the_same(
    store_dsn: str, postgres: Postgres, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    feeders = FILES["feeders.csv"] + "F2,Feeder 2,二号馈线,5\n"
    folder = write_registry(tmp_path / "first", meters=LIFE, areas=AREAS, feeders=feeders)
    (folder / "area_feeders.csv").write_text(
        "area_id,feeder_id,valid_from,valid_to\nA1,F1,,2026-05-01T00:00:00Z\nA1,F2,2026-05-01T00:00:00Z,\n"
    )
    name = f"t_{uuid4().hex}"
    with psycopg.connect(store_dsn, autocommit=True) as one, psycopg.connect(postgres.dsn, autocommit=True) as admin:
        imported(one, folder)
        assert one.execute("SELECT feeder_id FROM area WHERE area_id = 'A1'").fetchone() == ("F2",)
        assert command(store_dsn, monkeypatch, "-o", str(tmp_path / "out"), verb="export").exit_code == 0
        assert imported(one, tmp_path / "out").changed == 0
        admin.execute(f'CREATE DATABASE "{name}"')
        other_dsn = psycopg.conninfo.make_conninfo(postgres.dsn, dbname=name)
        migrate(other_dsn)
        with psycopg.connect(other_dsn, autocommit=True) as other:
            imported(other, tmp_path / "out")
            assert load_history(other) == load_history(one)
            export_registry(other, tmp_path / "again")
        admin.execute(f'DROP DATABASE "{name}" WITH (FORCE)')
    for file in (tmp_path / "out").iterdir():
        assert (tmp_path / "again" / file.name).read_text() == file.read_text()


def test_every_contradiction_is_listed_with_its_line(
    store_dsn: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = write_registry(tmp_path / "first")
    assert command(store_dsn, monkeypatch, str(first)).exit_code == 0
    day = "2026-03-01T00:00:00+08:00"
    folder = write_registry(
        tmp_path / "second",
        meters=dated(
            f"S1,m1,P1,1,A1,gw-1,,{day}",
            "S2,m1,P1,1,A1,gw-1,2026-02-28T00:00:00+08:00,",
            "S3,m3,P3,1,A1,gw-1,2026-03-01T00:00:00,",
            f"S4,m4,P4,1,A1,gw-1,{day},2026-02-01T00:00:00Z",
        ),
    )
    result = command(store_dsn, monkeypatch, str(folder), "--dry-run")
    assert result.exit_code == 1
    assert f"{folder}/meters.csv:4: valid_from: an offset expected, e.g. 2026-03-01T00:00:00+08:00" in result.stderr
    assert f"{folder}/meters.csv:5: valid_to: later than 2026-02-28T16:00:00Z expected" in result.stderr
    folder = write_registry(
        tmp_path / "third",
        meters=dated(
            f"S1,m1,P1,1,A1,gw-1,,{day}",
            "S2,m1,P1,1,A1,gw-1,2026-02-28T00:00:00+08:00,",
            "000000000002,m5,P5,1,A1,gw-1,,",
            f"S6,m6,P6,1,A1,gw-1,,{day}".replace("00:00+", "07:00+"),
            f"S6,m6,P6,2,A1,gw-1,{day},".replace("00:00+", "07:00+"),
        ),
    )
    result = command(store_dsn, monkeypatch, str(folder), "--dry-run")
    told = [line.removeprefix(f"{folder}/") for line in result.stderr.splitlines()]
    assert told == [
        "meters.csv:3: point: P1 is on line 2 as S1 at P1, always to 2026-02-28T16:00:00Z;"
        " let one end before the other begins",
        "meters.csv:3: gateway+wire_name: gw-1 m1 is on line 2 as S1 at P1, always to 2026-02-28T16:00:00Z;"
        " let one end before the other begins",
        "meters.csv:4: serial: 000000000002 is on record as 000000000002 at A1-C01, always to for good;"
        " let one end before the other begins",
        "meters.csv:6: valid_from: P6 has another ratio from 2026-02-28T16:07:00Z on, between two marks;"
        " give a quarter of an hour, or the registers then, as closing_… and opening_…",
        "Error: 4 problems; nothing was imported",
    ]


def test_the_database_itself_refuses_two_at_one_time(registered: Connection) -> None:
    """Whoever writes: neither a point, nor a meter, nor a wire name is there twice. Without any extension."""
    registered.execute("DELETE FROM installation WHERE wire_name <> 'm002'")
    for name, serial, point, wire in (
        ("one_meter_of_a_point", "000000000001", "A1-C01", "m9"),
        ("one_place_of_a_meter", "000000000002", "A1-HEAD", "m9"),
        ("one_meter_of_a_wire_name", "000000000001", "A1-HEAD", "m002"),
    ):
        with pytest.raises(psycopg.errors.ExclusionViolation, match=name):
            registered.execute(
                "INSERT INTO installation (meter_id, point_id, gateway, wire_name, valid_from)"
                " SELECT meter_id, point_id, 'gw-1', %s, '2026-01-01' FROM meter, metering_point"
                " WHERE serial = %s AND point = %s",
                [wire, serial, point],
            )


def test_a_move_to_another_area_is_dated(registered: Connection, tmp_path: Path) -> None:
    moved = FILES["meters.csv"].replace("A1-C02,A1", "A1-C02,A2")
    saved = imported(registered, write_registry(tmp_path / "x", meters=moved, areas=AREAS))
    assert saved.changes["point_in_area"] == {"added": 1, "changed": 1, "removed": 0}
    assert saved.changes["installation"] == {"added": 0, "changed": 0, "removed": 0}
    places = load_history(registered).memberships["A1-C02"]
    assert [(one.area_id, one.valid_from) for one in places][1] == ("A2", NOW)
    assert registered.execute("SELECT area_id FROM metering_point WHERE point = 'A1-C02'").fetchone() == ("A2",)


def test_single_files_refer_to_what_is_on_record(
    registered: Connection, store_dsn: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "meters.csv"
    path.write_text(FILES["meters.csv"] + "000000000004,dlt645-2007,gw-1,m004,A1-C03,A1,customer,c,A1-N2,false,1,1\n")
    result = json.loads(command(store_dsn, monkeypatch, str(path), "--json").stdout)
    assert result["changes"]["metering_point"] == {"added": 1, "changed": 0}
    path.write_text(FILES["meters.csv"].replace("A1-N2", "A1-N7"))
    result2 = command(store_dsn, monkeypatch, str(path))
    assert f'{path}:4: node_id: "A1-N7" is not in nodes.csv' in result2.stderr


def test_exchange_command(registered: Connection, store_dsn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    said = (
        "A1-C01", "--old", "000000000002", "--new", "000000000009", "--at", "2026-05-20T10:20:00+08:00",
        "--old-register", "4711.08", "--old-register", "export=0", "--new-register", "0.12",
    )  # fmt: skip
    trial = command(store_dsn, monkeypatch, *said, "--dry-run", verb="exchange")
    assert "000000000002 (gw-1 m002) → 000000000009 (gw-1 m002)" in trial.stdout
    assert len(load_history(registered).installations["A1-C01"]) == 1
    done = json.loads(command(store_dsn, monkeypatch, *said, "--json", verb="exchange").stdout)
    assert done["changes"]["installation"] == {"added": 1, "changed": 1, "removed": 0}
    old, new = load_history(registered).installations["A1-C01"]
    assert (old.closing, new.opening) == ((4711080, 0, None, None), (120, None, None, None))
    assert (new.serial, new.wire, new.ct_ratio) == ("000000000009", ("gw-1", "m002"), 1)
    assert "nothing changed" in command(store_dsn, monkeypatch, *said, verb="exchange").stdout
    # Said again with what was read wrong the first time, it is corrected.
    corrected = [*said[:8], "4712.08", *said[9:]]
    assert command(store_dsn, monkeypatch, *corrected, verb="exchange").exit_code == 0
    assert load_history(registered).installations["A1-C01"][0].closing[0] == 4712080


def test_an_exchange_that_cannot_be_says_why(
    registered: Connection, store_dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = ("--old", "000000000002", "--at", "2026-05-20T10:20:00Z")
    said_answered = {
        ("A9", *old, "--new", "9"): "no such metering point",
        ("A1-C02", *old, "--new", "9"): "000000000003 is there since always",
        ("A1-C01", *old, "--new", "000000000003"): "000000000003 is on record as 000000000003 at A1-C02",
        ("A1-C01", *old[:2], "--new", "9", "--at", "noon"): "ISO 8601 expected",
        ("A1-C01", *old, "--new", "9", "--new-register", "1,5"): '"1,5": kWh expected',
        ("A1-C01", *old, "--new", "9", "--new-register", "gas=1"): '"gas": one of import',
        ("A1-C01", *old, "--new", "000000000002", "--ratio", "2", "1"): "lies between two marks; give the registers",
    }
    for said, answer in said_answered.items():
        result = command(store_dsn, monkeypatch, *said, verb="exchange")
        assert result.exit_code in (1, 2)
        assert answer in result.output
    assert registered.execute("SELECT count(*) FROM installation").fetchone() == (3,)


def test_rows_outside_a_meters_time_wait_and_replay_once_it_is_extended(registered: Connection, tmp_path: Path) -> None:
    """A meter that is registered from a later day on than its readings; then from an earlier one."""
    line = "000000000008,dlt645-2007,gw-1,m008,A1-C08,A1,customer,a,A1-N1,false,1,1,"
    for day, waiting in (("2026-05-21T00:00:00Z", 2), ("2026-05-20T03:50:00Z", 1), ("2026-05-01T00:00:00Z", 0)):
        path = tmp_path / f"{waiting}.csv"
        path.mkdir()
        (path / "meters.csv").write_text(f"{HEADER},valid_from\n{line}{day}\n")
        found = read_registry([path / "meters.csv"], known_names(registered))
        assert isinstance(found, Registry), found
        save_registry(registered, found, since=NOW)
        if waiting == 2:
            rows = [energy_row("m008", 14), energy_row("m008", 16)]  # 03:30 and 04:00
            with registered.transaction():
                store(registered, [batch(Kind.ENERGY, 1, rows)], load_installations(registered), NOW)
        else:
            replay(registered, NOW, reason="unknown_meter")
        stored = registered.execute(
            "SELECT count(*) FROM energy_sample JOIN meter USING (meter_id) WHERE serial = '000000000008'"
        ).fetchone()
        assert stored == (2 - waiting,)
