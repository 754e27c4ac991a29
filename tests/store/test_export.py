"""A day of raw samples as Parquet: every row, exact, and no more in memory than a group."""

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from zoneinfo import ZoneInfo

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from cloud.gridloom import gridloom
from cloud.store import export
from cloud.store.migrations import Connection

DAY = datetime(2026, 5, 19, 16, 0, tzinfo=UTC)  # 20 May in Shanghai


@pytest.fixture
def filled(registered: Connection) -> Connection:
    """Three meters, a row each 15 min from a day before to a day after; every fifth value is missing."""
    registered.execute(
        """
        INSERT INTO energy_sample (meter_id, at, gateway_at, meter_at, quality, energy_import_wh, batch_id)
        SELECT meter_id, at, at + interval '6 s', CASE WHEN mod(k, 7) > 0 THEN at END, mod(k, 4),
               CASE WHEN mod(k, 5) > 0 THEN 9000000000000000 + k END, 1
        FROM meter, generate_series(0, 287) k, LATERAL (SELECT %(first)s + k * interval '15 min' AS at) a
        """,
        {"first": DAY - timedelta(days=1)},
    )
    registered.execute(
        """
        INSERT INTO power_sample (meter_id, at, gateway_at, quality, active_power_w, voltage_l1_v, batch_id)
        SELECT meter_id, at, at, 0, k / 7.0, CASE WHEN mod(k, 5) > 0 THEN 230.5 END, 2
        FROM meter, generate_series(0, 287) k, LATERAL (SELECT %(first)s + k * interval '15 min' AS at) a
        """,
        {"first": DAY - timedelta(days=1)},
    )
    return registered


@pytest.mark.parametrize("kind", ["energy", "power"])
def test_the_file_holds_what_the_table_holds(
    kind: str, filled: Connection, store_dsn: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export, "ROWS_OF_A_GROUP", 100)  # 288 rows in three groups
    monkeypatch.setenv("GRIDLOOM_DSN", store_dsn)
    path = tmp_path / "day.parquet"
    result = CliRunner().invoke(gridloom, ["export", "raw", "--day", "2026-05-20", "--kind", kind, "-o", str(path)])
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith(f"{path}: 288 rows, ")
    assert "2026-05-20 in Asia/Shanghai is 2026-05-19 16:00 to 2026-05-20 16:00 UTC" in result.stdout
    table = pq.read_table(path)
    assert pq.ParquetFile(path).num_row_groups == 3
    names = table.column_names[1:]
    cursor = filled.execute(
        f"SELECT serial, {', '.join('s.' + name for name in names)} FROM {kind}_sample s JOIN meter USING (meter_id)"  # noqa: S608
        " WHERE at >= %(day)s AND at < %(day)s + interval '1 day' ORDER BY meter_id, at",
        {"day": DAY},
        binary=True,  # as text a real loses its last bits
    )
    columns = [column.to_pylist() for column in table.columns]
    assert list(zip(*columns, strict=True)) == cursor.fetchall()
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["day.parquet"]


def test_the_file_says_what_it_holds(
    filled: Connection, store_dsn: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GRIDLOOM_DSN", store_dsn)
    path = tmp_path / "day.parquet"
    arguments = ["--day", "2026-05-20", "--kind", "power", "--zone", "UTC", "-o", str(path), "--json"]
    result = json.loads(CliRunner().invoke(gridloom, ["export", "raw", *arguments]).stdout)
    assert (result["rows"], result["zone"], result["from"]) == (288, "UTC", "2026-05-20T00:00:00+00:00")
    schema = pq.read_schema(path)
    assert schema.field("at").type == pa.timestamp("us", tz="UTC")
    assert schema.field("active_power_w").metadata == {b"unit": b"W", b"obis": b"1-0:16.7.0"}
    assert schema.metadata[b"source"] == b"Gridloom power_sample"
    assert schema.metadata[b"until"] == b"2026-05-21T00:00:00+00:00"
    assert pq.ParquetFile(path).metadata.row_group(0).column(0).compression == "ZSTD"


def test_an_empty_day_is_an_empty_file_and_a_failure_leaves_none(
    filled: Connection, store_dsn: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GRIDLOOM_DSN", store_dsn)
    command = ["export", "raw", "--day", "2020-01-01", "--kind", "energy", "-o"]
    assert CliRunner().invoke(gridloom, [*command, str(tmp_path / "none.parquet")]).exit_code == 0
    assert pq.read_table(tmp_path / "none.parquet").num_rows == 0
    result = CliRunner().invoke(gridloom, [*command, str(tmp_path / "missing" / "x.parquet")])
    assert result.exit_code == 1
    assert "choose another place" in result.stderr
    filled.execute("DROP TABLE energy_sample CASCADE")
    assert CliRunner().invoke(gridloom, [*command, str(tmp_path / "failed.parquet")]).exit_code == 1
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["none.parquet"]


def test_a_day_of_a_zone_with_summer_time_has_its_length() -> None:
    zone = ZoneInfo("Europe/Copenhagen")
    start, end = export.day_of(datetime(2026, 3, 29).date(), zone)  # noqa: DTZ001
    assert end - start == timedelta(hours=23)
