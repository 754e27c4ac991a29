"""A network folder: what is read, and that every problem is told."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cloud.loss.folder import FolderError, read

START = datetime(2026, 3, 2, tzinfo=UTC)
METERS = "meter_id,node_id,role,phases,ct_ratio,pt_ratio,accuracy_class,area_id\n"


def write(path: Path, rows: list[tuple[int, str, float | None]], meters: str, **columns: list[object]) -> Path:
    path.mkdir(exist_ok=True)
    (path / "meters.csv").write_text(meters, encoding="utf-8")
    table = pa.table(
        {
            "time": pa.array(
                [START + timedelta(minutes=15 * step) for step, _, _ in rows], pa.timestamp("us", tz="UTC")
            ),
            "meter_id": [meter for _, meter, _ in rows],
            "imported_wh": pa.array([wh for _, _, wh in rows], pa.float64()),
            **columns,
        }
    )
    pq.write_table(table, path / "measurements.parquet")
    return path


TWO = METERS + "h,n0,supply,abc,1,1,0.2S,A\nc,n1,customer,b,1,1,1,A\n"


def test_rows_become_a_full_grid_with_nan_where_missing(tmp_path: Path) -> None:
    folder = read(write(tmp_path, [(0, "h", 10), (0, "c", 9), (1, "h", 20), (3, "c", 5), (3, "h", None)], TWO))
    measured = folder.measurements
    assert measured.step_s == 900
    assert folder.areas == ["A"]
    assert [meter.phases for meter in folder.meters.rows] == ["abc", "b"]
    np.testing.assert_array_equal(measured.imported_wh, [[10, 9], [20, np.nan], [np.nan, np.nan], [np.nan, 5]])
    np.testing.assert_array_equal(measured.exported_wh, [[0, 0], [0, np.nan], [np.nan, np.nan], [np.nan, 0]])
    assert measured.time[3] == np.datetime64("2026-03-02T00:45")


def test_quality_words_and_bits_say_what_was_estimated_and_what_must_not_be_used(tmp_path: Path) -> None:
    rows: list[tuple[int, str, float | None]] = [(0, "h", 10), (0, "c", 9), (1, "c", 8), (2, "c", 8)]
    words = read(write(tmp_path / "w", rows, TWO, quality=["good", "Estimated", "bad", ""])).measurements
    bits = read(write(tmp_path / "b", rows, TWO, quality=[0, 1, 16, None])).measurements
    for measured in (words, bits):
        np.testing.assert_array_equal(measured.estimated[:, 1], [True, False, False])
        np.testing.assert_array_equal(measured.imported_wh[:, 1], [9, np.nan, 8])


def test_every_problem_is_told_with_its_file_and_line(tmp_path: Path) -> None:
    write(
        tmp_path, [(0, "h", 10)], METERS + "h,n0,head,abc,1,1,,A\nc,n1,customer,b,zero,1,1,A\nc,n9,customer,q,1,1,1,A\n"
    )
    (tmp_path / "nodes.csv").write_text("node_id,kind\nn0,source\n", encoding="utf-8")
    (tmp_path / "lines.csv").write_text("line_id,from_node\nl1,n0\n", encoding="utf-8")
    with pytest.raises(FolderError) as raised:
        read(tmp_path)
    text = str(raised.value)
    for part in (
        'meters.csv:2: role: supply, customer, check, generation expected, got "head"',
        'meters.csv:3: ct_ratio: a number expected, got "zero"',
        'meters.csv:4: phases: abc, a, b or c expected, got "q"',
        "lines.csv:1: column to_node, length_m, r_ohm_per_km, x_ohm_per_km missing",
    ):
        assert part in text


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([(0, "h", 1.0), (0, "x", 1.0)], "meter x is not in meters.csv"),
        ([(0, "h", 1.0), (0, "h", 2.0)], "h has two rows at 2026-03-02T00:00"),
        ([(0, "h", -1.0), (1, "h", 2.0)], "imported_wh: row 1 has -1"),
    ],
)
def test_rows_that_cannot_be(tmp_path: Path, rows: list[tuple[int, str, float | None]], words: str) -> None:
    with pytest.raises(FolderError, match=words):
        read(write(tmp_path, rows, TWO))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FolderError, match=r"meters\.csv: missing") as raised:
        read(tmp_path)
    assert len(raised.value.problems) == 2
