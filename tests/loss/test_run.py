"""``gridloom loss run`` and ``plot`` on folders of the simulator, whose losses come from power-grid-model."""

import csv
import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner, Result

from cloud.gridloom import gridloom
from cloud.loss import folder, records, run, simulate
from cloud.loss.run import Options

START = np.datetime64("2026-03-02")
DAYS = 61
LOSSES = [
    "area_id", "time", "supplied_wh", "delivered_wh", "technical_wh", "unexplained_wh", "unexplained_lo_wh",
    "unexplained_hi_wh", "state", "reason",
]  # fmt: skip
SUSPECTS = [
    "area_id", "meter_id", "rank", "score", "kind", "stolen_wh", "stolen_lo_wh", "stolen_hi_wh", "since", "evidence",
]  # fmt: skip


@pytest.fixture(scope="module")
def made() -> list[records.Area]:
    return simulate.generate(
        seed=3, areas=1, customers=14, days=DAYS, difficulty="easy", size=0.5, kinds=("scaled",), start=START
    )


@pytest.fixture(scope="module")
def network(made: list[records.Area], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Gains are exact, so that what is left is the theft."""
    path = tmp_path_factory.mktemp("network")
    records.write(made, path, seed=3, start=START, gains=False)
    return path


@pytest.fixture(scope="module")
def found(network: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, object]]:
    out = tmp_path_factory.mktemp("found")
    truth = str(network / "truth.csv")
    result = cli("loss", "run", "--network", str(network), "--out", str(out), "--truth", truth, "--json")
    assert result.exit_code == 0, result.output
    return out, json.loads(result.stdout)


def cli(*arguments: str) -> Result:
    return CliRunner().invoke(gridloom, arguments)


def test_files_are_as_the_format_says(found: tuple[Path, dict[str, object]]) -> None:
    out, _ = found
    losses = pq.read_table(out / "losses.parquet")
    assert losses.column_names[: len(LOSSES)] == LOSSES
    assert losses.num_rows == DAYS * 96
    assert set(losses["state"].to_pylist()) <= {"normal", "high", "negative", "not_computable"}
    gone = np.array(losses["state"].to_pylist()) == "not_computable"
    assert 0.02 < gone.mean() < 0.1  # one gap of six hours each week, and 1 % of the head's intervals
    assert "no reading from the head meter; visit or replace" in losses["reason"].to_pylist()
    suspects = pq.read_table(out / "suspects.parquet")
    assert suspects.column_names[: len(SUSPECTS)] == SUSPECTS
    assert suspects["rank"].to_pylist() == list(range(1, 15))
    assert pq.read_table(out / "losses_day.parquet").num_rows == DAYS
    assert pq.read_table(out / "losses_month.parquet").num_rows == 3


def test_what_is_unexplained_is_what_was_stolen(
    made: list[records.Area], network: Path, found: tuple[Path, dict[str, object]]
) -> None:
    """Half of a customer's energy, gains exact: the rest of the 80 % interval's width is the network model's."""
    losses = pq.read_table(found[0] / "losses.parquet")
    rest = losses["unexplained_wh"].to_numpy(zero_copy_only=False).astype(float)
    area = made[0]
    truth = area.supplied_wh - area.technical_wh - area.recorded_wh.sum(axis=1)
    there = np.isfinite(rest)
    technical = losses["technical_wh"].to_numpy(zero_copy_only=False).astype(float)
    assert technical[there].sum() == pytest.approx(area.technical_wh[there].sum(), rel=0.03)
    assert abs(rest[there].sum() - truth[there].sum()) < 0.03 * area.technical_wh[there].sum() + 100


def test_the_customer_is_named_and_scored(found: tuple[Path, dict[str, object]]) -> None:
    scores = found[1]["scores"]
    assert isinstance(scores, dict)
    assert scores["faulty"] == 1
    assert scores["auc"] == 1.0
    assert scores["precision_at_k"] == 1.0
    assert scores["area_coverage"] == 1.0


def test_a_fit_takes_over_where_the_network_is_unknown(made: list[records.Area], network: Path, tmp_path: Path) -> None:
    for name in ("meters.csv", "measurements.parquet"):
        (tmp_path / name).write_bytes((network / name).read_bytes())
    area = run.run(folder.read(tmp_path), Options())[0]
    assert area.how == "fitted"
    assert "nodes.csv" in area.why
    assert area.technical_wh is not None
    truth = made[0].technical_wh
    assert area.technical_wh.sum() == pytest.approx(truth.sum(), rel=0.15)
    assert area.voltages is None


def test_voltages_fall_along_the_feeder_and_violations_are_counted(found: tuple[Path, dict[str, object]]) -> None:
    volts = pq.read_table(found[0] / "voltages.parquet").to_pylist()
    nodes = {row["node_id"]: row["parent_id"] for row in pq.read_table(found[0] / "nodes.parquet").to_pylist()}
    poles = [row for row in volts if "-p" in row["node_id"]]
    bar = np.mean([row["predicted_mean_v"] for row in volts if row["node_id"] == "area1-lv"])
    assert 200 < np.mean([row["predicted_mean_v"] for row in poles]) < bar < 232
    assert nodes["area1-lv"] == "area1-hv"
    assert nodes["area1-hv"] is None


def test_measured_voltages_stand_beside_the_predicted(network: Path, tmp_path: Path) -> None:
    """Every customer meter shows 215 V on its phase; at -5 % of 231 V that is below the limit."""
    for file in network.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    table = pq.read_table(network / "measurements.parquet")
    supply = np.array([name.endswith("supply") for name in table["meter_id"].to_pylist()])
    shown = np.where(supply, 10_000 / 3**0.5, 215.0)
    pq.write_table(table.append_column("voltage_l1_v", [shown]), tmp_path / "measurements.parquet")
    area = run.run(folder.read(tmp_path), Options(voltage_low=-5))[0]
    assert area.voltages is not None
    rows = [row for row in area.voltages.to_pylist() if row["measured_mean_v"] is not None and "-c" in row["node_id"]]
    assert rows
    assert {round(row["measured_mean_v"], 6) for row in rows} == {215.0}
    assert all(row["below_limit"] > 60 and row["above_limit"] == 0 for row in rows)
    one = rows[0]
    assert one["difference_v"] == pytest.approx(215 - one["predicted_mean_v"], abs=0.5)


@pytest.mark.parametrize("suffix", [".png", ".svg"])
def test_a_picture_is_drawn_from_what_a_run_wrote(
    found: tuple[Path, dict[str, object]], tmp_path: Path, suffix: str
) -> None:
    pytest.importorskip("matplotlib", reason='pip install "gridloom[report]"')
    out = tmp_path / f"area{suffix}"
    result = cli("loss", "plot", "--run", str(found[0]), "--out", str(out))
    assert result.exit_code == 0, result.output
    assert out.stat().st_size > 20_000


def test_a_picture_of_an_area_that_is_not_there(found: tuple[Path, dict[str, object]], tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason='pip install "gridloom[report]"')
    result = cli("loss", "plot", "--run", str(found[0]), "--area", "x", "--out", str(tmp_path / "a.png"))
    assert result.exit_code == 1
    assert "area x is not in" in result.output


def test_a_truth_that_cannot_be_read(network: Path, tmp_path: Path) -> None:
    truth = tmp_path / "truth.csv"
    with truth.open("w", newline="") as file:
        csv.writer(file).writerows([["meter_id", "kind"], ["m", "night"]])
    result = cli("loss", "run", "--network", str(network), "--out", str(tmp_path / "o"), "--truth", str(truth))
    assert result.exit_code == 1
    assert "truth.csv:1: column since, stolen_wh missing" in result.output
