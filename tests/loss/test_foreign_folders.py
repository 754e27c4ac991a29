"""Folders that others made: few columns, several areas, other clocks, steps and ratios."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray

from cloud.engines.loss.balance import STATES
from cloud.loss import folder, run, tables
from cloud.loss.run import AreaRun, Options

Array = NDArray[np.float64]
FULL = "meter_id,node_id,role,phases,ct_ratio,pt_ratio,accuracy_class,area_id\n"
DAYS = 5


def load(seed: int, steps: int = DAYS * 96) -> Array:
    swing = 1 + 0.5 * np.sin(np.arange(steps) * 2 * np.pi / 96)
    return np.asarray(np.round(100 * swing * np.random.default_rng(seed).lognormal(0, 0.3, steps)))


def found(
    path: Path, meters: str, wh: dict[str, Array], *, zone: str | None = "UTC", step_s: int = 900, **columns: Array
) -> list[AreaRun]:
    steps = len(next(iter(wh.values())))
    time = np.datetime64("2026-03-02", "us") + np.arange(steps) * np.timedelta64(step_s, "s")
    table = {
        "time": pa.array(np.tile(time, len(wh)), pa.timestamp("us", tz=zone)),
        "meter_id": np.repeat(list(wh), steps),
        "imported_wh": np.concatenate(list(wh.values())),
        **columns,
    }
    (path / "meters.csv").write_text(meters, encoding="utf-8")
    pq.write_table(pa.table(table), path / "measurements.parquet")
    return run.run(folder.read(path), Options())


@pytest.mark.parametrize("zone", ["UTC", "Asia/Shanghai", None])
@pytest.mark.parametrize("step_s", [900, 3600])
def test_three_columns_of_meters_and_of_measurements_are_enough(tmp_path: Path, zone: str | None, step_s: int) -> None:
    a, b = load(1), load(2)
    meters = "meter_id,node_id,role\nh,n0,supply\na,n1,customer\nb,n2,customer\n"
    (area,) = found(tmp_path, meters, {"h": a + b + 3, "a": a, "b": b}, zone=zone, step_s=step_s)
    assert area.how == "fitted"
    assert area.whole.loss_wh[0] == pytest.approx(3 * len(a))
    assert (area.suspects is None) == (step_s == 900)  # 5 days are too few, 20 are not


def test_an_area_without_a_head_is_told_and_does_not_stop_the_others(tmp_path: Path) -> None:
    a, b = load(1), load(2)
    meters = FULL + "h,n0,supply,abc,1,1,0.2,A\na,n1,customer,a,1,1,1,A\nb,n2,customer,b,1,1,1,B\n"
    one, other = found(tmp_path, meters, {"h": a + 3, "a": a, "b": b})
    assert np.isfinite(one.whole.loss_wh[0])
    assert STATES[other.whole.state[0]] == "not_computable"
    assert other.whole.reason[0] == "no head meter in B; add it to meters.csv"


def test_a_head_before_its_transformer_is_told(tmp_path: Path) -> None:
    a, b = load(1), load(2)
    meters = FULL + "h,n0,supply,abc,50,1,0.2,A\na,n1,customer,a,1,1,1,A\nb,n2,customer,b,1,1,1,A\n"
    (area,) = found(tmp_path, meters, {"h": (a + b + 3) / 50, "a": a, "b": b})
    assert STATES[area.whole.state[0]] == "not_computable"
    assert "multiply its energies by its ct_ratio x pt_ratio of 50" in area.whole.reason[0]


def test_generation_counts_as_fed_in(tmp_path: Path) -> None:
    a, b = load(1), load(2)
    meters = FULL + "h,n0,supply,abc,1,1,0.2,A\na,n1,customer,a,1,1,1,A\nb,n2,generation,b,1,1,1,A\n"
    head = a - b + 3
    (area,) = found(
        tmp_path, meters, {"h": np.maximum(head, 0), "a": a, "b": 0 * b},
        exported_wh=np.concatenate([np.maximum(-head, 0), 0 * a, b]),
    )  # fmt: skip
    assert area.whole.loss_wh[0] == pytest.approx(3 * len(a))
    assert area.whole.input_wh[0] == pytest.approx(np.maximum(head, 0).sum() + b.sum())


def test_areas_have_limits_of_their_own_and_are_summed_up(tmp_path: Path) -> None:
    a, b = load(1), load(2)
    meters = FULL + "".join(f"h{n},n0,supply,abc,1,1,0.2,{n}\nc{n},n1,customer,a,1,1,1,{n}\n" for n in "AB")
    (tmp_path / "areas.csv").write_text(
        "area_id,parent_id,high_percent\nA,feeder,2\nB,feeder,\nfeeder,station,4\nstation,,\n", encoding="utf-8"
    )
    runs = found(tmp_path, meters, {"hA": 1.05 * a, "cA": a, "hB": 1.05 * b, "cB": b})
    assert [STATES[area.whole.state[0]] for area in runs] == ["high", "normal"]
    tables.write(runs, folder.read(tmp_path), Options(), tmp_path / "out")
    rows = pq.read_table(tmp_path / "out/sums.parquet").to_pylist()
    assert {(row["area_id"], row["period"]) for row in rows} == {
        (name, period) for name in ("feeder", "station") for period in ("day", "month")
    }
    month = {row["area_id"]: row for row in rows if row["period"] == "month"}
    assert month["feeder"]["supplied_wh"] == pytest.approx(1.05 * (a.sum() + b.sum()))
    assert [month[name]["state"] for name in ("feeder", "station")] == ["high", "normal"]
    assert sum(row["period"] == "day" for row in rows) == 2 * DAYS
