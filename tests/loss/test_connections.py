"""What voltages say of the registry stands before what the balance says of a thief."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from cloud.engines.loss.localise import Suspects
from cloud.loss.connections import doubts, told
from cloud.loss.folder import Folder, read

STEPS, EACH = 480, 4
START = datetime(2026, 3, 2, tzinfo=UTC)


def folder_with_voltages(path: Path) -> Folder:
    """Two areas, four single-phase customers on each phase; c0 is booked in A, phase a, and hangs in B, phase a."""
    rng = np.random.default_rng(1)
    above = 230 + np.cumsum(rng.normal(0, 0.2, STEPS))
    drop = {(area, phase): rng.normal(0, 0.6, STEPS) for area in "AB" for phase in "abc"}
    places = [(area, phase) for area in "AB" for phase in "abc" for _ in range(EACH)]
    lines = ["meter_id,node_id,role,phases,ct_ratio,pt_ratio,accuracy_class,area_id"]
    tables = []
    time = pa.array([START + timedelta(minutes=15 * i) for i in range(STEPS)], pa.timestamp("us", tz="UTC"))
    for number, (area, phase) in enumerate(places):
        lines.append(f"c{number},n{number},customer,{phase},1,1,1,{area}")
        real = ("B", "a") if number == 0 else (area, phase)
        volts = np.round(above - drop[real] - rng.exponential(0.3, STEPS), 1)
        # Some meters write their only voltage as the first one, some at their phase.
        column = 0 if number % 2 else "abc".index(phase)
        values = {
            f"voltage_l{i + 1}_v": pa.array(volts) if i == column else pa.nulls(STEPS, pa.float64()) for i in range(3)
        }
        tables.append(
            pa.table({"time": time, "meter_id": [f"c{number}"] * STEPS, "imported_wh": np.full(STEPS, 100.0), **values})
        )
    path.mkdir(exist_ok=True)
    (path / "meters.csv").write_text("\n".join(lines) + "\n")
    pq.write_table(pa.concat_tables(tables), path / "measurements.parquet")
    return read(path)


def nobody(count: int) -> Suspects:
    zero = np.zeros(count)
    return Suspects(
        zero - 5, ("scaled",) * count, np.zeros(count, np.int64), zero, zero, zero, np.zeros(count, bool),
        ("the balance says this",) * count,
    )  # fmt: skip


def test_a_meter_that_follows_another_area_is_in_the_wrong_book_and_no_thief(tmp_path: Path) -> None:
    folder = folder_with_voltages(tmp_path / "f")
    found = doubts(folder)
    assert set(found) == {"c0"}
    assert (found["c0"].area_id, found["c0"].phase) == ("B", "a")
    customers = [f"c{i}" for i in range(12)]
    said = told(nobody(12), customers, "A", found)
    assert said.kind[0] == "wrong_area" and said.named.tolist() == [True] + [False] * 11
    assert said.score.argmax() == 0
    assert said.evidence[0].startswith("voltage follows B phase a (r 0.")
    assert said.evidence[0].endswith("the balance says this") and said.evidence[1] == "the balance says this"


def test_without_voltages_nothing_is_doubted(tmp_path: Path) -> None:
    folder = folder_with_voltages(tmp_path / "f")
    silent = replace(folder, measurements=replace(folder.measurements, voltage_v=None))
    assert doubts(silent) == {}
    before = nobody(3)
    assert told(before, ["c0", "c1", "c2"], "A", {}) is before
