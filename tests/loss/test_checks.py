"""Where meters hang is told by check meters' sums and by voltages, before anybody is called a thief."""

import csv
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from cloud.gridloom import gridloom
from cloud.loss import run, simulate
from cloud.loss.folder import read
from cloud.loss.run import AreaRun

pytest.importorskip("power_grid_model", reason="the simulator's truth is power-grid-model's")

Row = dict[str, str]
VOLTAGES = ["voltage_l1_v", "voltage_l2_v", "voltage_l3_v"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two areas of 40 with two check meters each, voltages, two thieves each, who take a fifth."""
    path = tmp_path_factory.mktemp("folder")
    options = ["--areas", "2", "--customers", "40", "--days", "70", "--size", "0.2", "--kind", "scaled", "--seed", "2"]
    result = CliRunner().invoke(
        simulate.simulate, ["--out", str(path), "--check-meters", "--voltages", "--difficulty", "easy", *options]
    )
    assert result.exit_code == 0, result.output
    return path


def meters(path: Path) -> list[Row]:
    with (path / "meters.csv").open() as file:
        return list(csv.DictReader(file))


def thieves(path: Path) -> set[str]:
    with (path / "truth.csv").open() as file:
        return {row["meter_id"] for row in csv.DictReader(file)}


def feeder(path: Path, node: str) -> str:
    with (path / "lines.csv").open() as file:
        parent = {row["to_node"]: row["from_node"] for row in csv.DictReader(file)}
    while "-f" not in node:
        node = parent[node]
    return node.split("-")[1]


def booked(path: Path, out: Path, change: Callable[[Row], Row], *, voltages: bool = True) -> list[AreaRun]:
    """The run of the same folder with another registry, or without voltages."""
    for file in path.iterdir():
        (out / file.name).write_bytes(file.read_bytes())
    rows = [row for meter in meters(path) if (row := change(dict(meter)))]
    with (out / "meters.csv").open("w", newline="") as book:
        writer = csv.DictWriter(book, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    table = pq.read_table(path / "measurements.parquet")
    names = {row["meter_id"] for row in rows}
    table = table.filter([name in names for name in table["meter_id"].to_pylist()])
    pq.write_table(table if voltages else table.drop_columns(VOLTAGES), out / "measurements.parquet")
    return run.run(read(out), run.Options())


def named(areas: list[AreaRun]) -> dict[str, str]:
    answer = {}
    for area in areas:
        assert area.suspects is not None
        for at in np.flatnonzero(area.suspects.named):
            answer[area.customers[at]] = area.suspects.kind[at]
    return answer


def honest(path: Path, area: str, **wanted: str) -> list[Row]:
    stolen = thieves(path)
    rows = [row for row in meters(path) if row["role"] == "customer" and row["area_id"] == area]
    return [
        row for row in rows if row["meter_id"] not in stolen and all(row[key] in value for key, value in wanted.items())
    ]


def test_a_right_book_raises_no_doubt_and_check_meters_find_more(folder: Path, tmp_path: Path) -> None:
    areas = run.run(read(folder), run.Options())
    assert [dict(area.doubts) for area in areas] == [{}, {}]
    stolen = thieves(folder)
    with_checks = named(areas)
    assert set(with_checks) <= stolen and len(with_checks) >= 3
    without = booked(folder, tmp_path, lambda row: {} if row["role"] == "check" else row, voltages=False)

    def score(runs: list[AreaRun]) -> float:
        """Of thieves over the highest of the honest."""
        each = {n: s for a in runs if a.suspects for n, s in zip(a.customers, a.suspects.score, strict=True)}
        return float(min(each[n] for n in stolen) - max(s for n, s in each.items() if n not in stolen))

    assert score(areas) > score(without)


def test_who_is_booked_behind_the_wrong_check_meter_is_told_so(folder: Path, tmp_path: Path) -> None:
    rows = honest(folder, "area1")
    moved, target = rows[3], next(r for r in rows if feeder(folder, r["node_id"]) != feeder(folder, rows[3]["node_id"]))
    areas = booked(
        folder, tmp_path,
        lambda row: {**row, "node_id": target["node_id"]} if row["meter_id"] == moved["meter_id"] else row,
        voltages=False,
    )  # fmt: skip
    assert set(areas[0].doubts) == {moved["meter_id"]} and not areas[1].doubts
    words = areas[0].doubts[moved["meter_id"]]
    right, wrong = (f"area1-check{feeder(folder, row['node_id'])[1:]}" for row in (moved, target))
    assert words.startswith(f"check meter {right} sees this record (")
    assert f"{wrong}, behind which it is booked, does not" in words and "kWh a day" in words
    assert set(named(areas)) <= thieves(folder)
    assert areas[0].suspects is not None
    evidence = areas[0].suspects.evidence[areas[0].customers.index(moved["meter_id"])]
    assert evidence.startswith(words)


def test_a_wrong_phase_is_told_by_voltages_and_nobody_is_called_a_thief_for_it(folder: Path, tmp_path: Path) -> None:
    moved = honest(folder, "area2", phases="a")[0]
    areas = booked(
        folder, tmp_path, lambda row: {**row, "phases": "c"} if row["meter_id"] == moved["meter_id"] else row
    )
    assert set(areas[1].doubts) == {moved["meter_id"]} and not areas[0].doubts
    assert areas[1].doubts[moved["meter_id"]].startswith("voltage follows area2 phase a (r ")
    assert set(named(areas)) <= thieves(folder)


@pytest.mark.parametrize("by", ["voltages", "check meters"])
def test_who_is_booked_in_the_wrong_area_is_no_thief_and_nobody_there_is(folder: Path, tmp_path: Path, by: str) -> None:
    moved, target = honest(folder, "area1", phases="b")[1], honest(folder, "area2")[0]
    billed = 0.0

    def change(row: Row) -> Row:
        if row["role"] == "check" and by == "voltages":
            return {}
        wrong = row["meter_id"] == moved["meter_id"]
        return {**row, "node_id": target["node_id"], "area_id": "area2"} if wrong else row

    areas = booked(folder, tmp_path, change, voltages=by == "voltages")
    assert set(areas[1].doubts) == {moved["meter_id"]} and not areas[0].doubts
    words = areas[1].doubts[moved["meter_id"]]
    start = "voltage follows area1 phase b" if by == "voltages" else "check meter area1-check"
    assert words.startswith(start)
    said = named(areas)
    assert said.pop(moved["meter_id"]) == "wrong_area"
    assert set(said) <= thieves(folder)
    # What the book has of it is another area's, since the first day.
    found, at = areas[1].suspects, areas[1].customers.index(moved["meter_id"])
    assert found is not None and found.since_step[at] == 0
    billed = float(areas[1].drawn.wh[:, at].sum())
    assert found.stolen_wh[at] == pytest.approx(billed, rel=0.02) and found.lo_wh[at] < billed < found.hi_wh[at]


def test_a_check_meter_with_a_wrong_ratio_is_not_used(folder: Path, tmp_path: Path) -> None:
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    table = pq.read_table(folder / "measurements.parquet")
    wrong = np.array([name == "area1-check1" for name in table["meter_id"].to_pylist()])
    energy = table["imported_wh"].to_numpy() * np.where(wrong, 0.2, 1.0)
    position = table.column_names.index("imported_wh")
    pq.write_table(table.set_column(position, "imported_wh", [energy]), tmp_path / "measurements.parquet")
    areas = run.run(read(tmp_path), run.Options())
    assert set(areas[0].doubts) == {"area1-check1"}
    assert "0.2" in areas[0].doubts["area1-check1"] and "its sum is not used" in areas[0].doubts["area1-check1"]
    assert set(named(areas)) <= thieves(folder)


def test_doubts_are_printed_before_the_visits(folder: Path, tmp_path: Path) -> None:
    moved = honest(folder, "area2", phases="a")[0]
    booked(folder, tmp_path, lambda row: {**row, "phases": "c"} if row["meter_id"] == moved["meter_id"] else row)
    result = CliRunner().invoke(gridloom, ["loss", "run", "--network", str(tmp_path), "--out", str(tmp_path / "o")])
    assert result.exit_code == 0, result.output
    assert result.output.index("Where meters hang") < result.output.index("Visit first")
    assert f"area2 {moved['meter_id']}: voltage follows" in result.output
