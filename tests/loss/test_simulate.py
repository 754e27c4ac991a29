"""The simulator writes what FORMAT.md says: faults of their size, noise of its size, a truth that adds up."""

import csv
import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from cloud.loss import faults, profiles, radial, records, simulate
from cloud.loss.folder import read

pytest.importorskip("power_grid_model", reason="the simulator's truth is power-grid-model's")

SIZED = ("scaled", "night", "peak", "cap", "intermittent", "subtract", "phase_missing", "stopped")
DAYS = 90
FIRST = 40 * profiles.STEPS_OF_DAY


def load() -> profiles.Array:
    rng = np.random.default_rng(1)
    kind = np.array([profiles.HOUSEHOLD])
    drawn = profiles.draw(rng, kind, np.array([True]), np.array([0]), np.datetime64("2026-03-02", "D"), DAYS)
    return drawn.load_wh[:, 0]


@pytest.mark.parametrize("kind", SIZED)
@pytest.mark.parametrize("size", [0.05, 0.2])
def test_a_fault_takes_its_size_from_its_start_on(kind: str, size: float) -> None:
    wh = load()
    share = faults.resplit(np.full((len(wh), 3), 1 / 3), 1, size)[:, 1]
    recorded = faults.record(np.random.default_rng(2), kind, wh, share, size, FIRST)
    assert np.array_equal(recorded[:FIRST], wh[:FIRST])
    assert recorded.min() >= -1e-9
    after = wh[FIRST:]
    touched = {"night": faults.NIGHT, "peak": faults.PEAK}.get(kind)
    most = after[faults.between(np.arange(FIRST, len(wh)), touched)].sum() / after.sum() if touched else 1.0
    one_step = after.max() / after.sum()  # a standstill ends with a step
    assert 1 - recorded[FIRST:].sum() / after.sum() == pytest.approx(min(size, most), rel=0.02, abs=one_step)


def test_each_kind_leaves_its_own_trace() -> None:
    wh = load()
    step = np.arange(len(wh))

    def recorded(kind: str) -> profiles.Array:
        return faults.record(np.random.default_rng(3), kind, wh, np.full(len(wh), 0.2), 0.2, FIRST)

    lost = wh - recorded("night")
    assert lost[~faults.between(step, faults.NIGHT)].max() == 0
    lost = wh - recorded("peak")
    assert lost[~faults.between(step, faults.PEAK)].max() == 0
    cap = recorded("cap")[FIRST:]
    assert np.isclose(cap, cap.max()).sum() > 50
    lost = (wh - recorded("subtract"))[FIRST:]
    assert np.isclose(lost, lost.max())[wh[FIRST:] > lost.max()].all()
    days_lost = (wh - recorded("intermittent"))[FIRST:].reshape(-1, profiles.STEPS_OF_DAY).sum(1) > 0
    assert days_lost.mean() == pytest.approx(faults.INTERMITTENT_DAYS, abs=0.02)
    stopped = recorded("stopped")[FIRST:]
    assert set(np.unique(np.where(stopped == 0, 0, stopped == wh[FIRST:]))) == {0, 1}
    signs = {
        float(np.sign((wh - faults.record(np.random.default_rng(s), "ct_ratio", wh, wh, 0.2, FIRST)).sum()))
        for s in range(8)
    }
    assert signs == {-1.0, 1.0}
    with pytest.raises(ValueError, match="one of scaled"):
        faults.record(np.random.default_rng(0), "magic", wh, wh, 0.2, FIRST)


def test_meters_err_as_meters_do() -> None:
    rng = np.random.default_rng(4)
    true = np.full((DAYS * 96, 200), 250.0)
    imported, exported, present = faults.measure(rng, true, np.arange(200) < 100)
    gain = imported.mean(0) / 250 - 1
    assert gain[:100].std() == pytest.approx(faults.SUPPLY_GAIN, rel=0.3)
    assert gain[100:].std() == pytest.approx(faults.CUSTOMER_GAIN, rel=0.3)
    assert (imported % faults.REGISTER_WH == 0).all() and not exported.any()
    whole = (~present).all(1)
    assert whole.sum() == pytest.approx(24 * DAYS / 7, rel=0.1)  # six hours a week
    assert 1 - present[~whole].mean() == pytest.approx(faults.MISSING_SHARE, rel=0.05)
    exact, _, _ = faults.measure(rng, true, np.arange(200) < 100, gains=False)
    assert abs(exact.mean(0) / 250 - 1).max() < 1e-4


def test_a_clock_offset_books_into_the_next_interval() -> None:
    true = np.zeros((96, 3000))
    true[48] = 100_000.0
    imported, _, _ = faults.measure(np.random.default_rng(5), true, np.zeros(3000, dtype=bool), gains=False)
    early, late = imported[47] / 100_000, imported[49] / 100_000
    assert np.std(early - late) * 900 == pytest.approx(faults.CLOCK_S, rel=0.1)


def test_the_folder_can_be_read_and_its_truth_adds_up(tmp_path: Path) -> None:
    result = CliRunner().invoke(
        simulate.simulate,
        ["--out", str(tmp_path), "--areas", "2", "--customers", "12", "--seed", "3", "--json"],
    )
    assert result.exit_code == 0, result.output
    summary = json.loads(result.output)
    assert summary["areas"] == 2 and summary["customers"] == 24 and 0.5 < summary["technical_percent"] < 6
    folder = read(tmp_path)
    assert len(folder.meters.meter_id) == 26
    with (tmp_path / "truth.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2  # at least one of each area
    assert all("2026-04-01" <= row["since"] <= "2026-05-01T00:00:00Z" for row in rows)
    with (tmp_path / "truth_areas.csv").open() as file:
        truth = {row["area_id"]: row for row in csv.DictReader(file)}
    made = simulate.generate(seed=3, areas=2, customers=12)
    for area in made:
        left = area.supplied_wh - area.technical_wh - area.recorded_wh.sum(1)
        assert float(truth[area.area_id]["stolen_wh"]) == pytest.approx(left.sum(), abs=1)
    measured = pq.read_table(tmp_path / "measurements.parquet")
    assert measured.num_rows == pytest.approx(26 * DAYS * 96 * 0.99 * (1 - 6 / 168), rel=0.01)


def test_the_seed_decides_and_honest_areas_have_no_faults() -> None:
    one, same, other = (simulate.generate(seed=s, areas=1, customers=8, days=14, faulty_share=0) for s in (1, 1, 2))
    assert np.array_equal(one[0].supplied_wh, same[0].supplied_wh)
    assert not np.array_equal(one[0].supplied_wh, other[0].supplied_wh)
    assert not one[0].faults
    assert np.allclose(one[0].supplied_wh, one[0].recorded_wh.sum(1) + one[0].technical_wh)


def test_a_customer_in_the_wrong_area_unsettles_both() -> None:
    made = simulate.generate(seed=5, areas=2, customers=10, kinds=("wrong_area",), difficulty="easy")
    left = [a.supplied_wh - a.technical_wh - a.recorded_wh.sum(1) for a in made]
    assert sum(float(wh.sum()) for wh in left) == pytest.approx(0, abs=1)
    for here, area in enumerate(made):
        for fault in area.faults:
            assert fault.supplied_from != here
    first = min(f.first_step for a in made for f in a.faults)
    assert all(abs(wh[:first]).max() < 1e-6 < abs(wh).max() for wh in left)


def test_given_network_and_profiles(tmp_path: Path) -> None:
    areas = simulate.generate(seed=6, areas=1, customers=8, days=14, faulty_share=0)
    records.write(areas, tmp_path, seed=6, start=simulate.START)
    networks = radial.read_networks(tmp_path)
    assert len(networks) == 1 and len(networks[0].customer_node) == 8
    given = simulate.read_profiles(tmp_path / "measurements.parquet")
    assert given.shape == (14 * 96, 9)
    again = simulate.generate(seed=7, days=21, faulty_share=0, networks=networks, given=given[:, :8])
    assert again[0].supplied_wh.shape == (21 * 96,) and (again[0].technical_wh > 0).all()
    (tmp_path / "lines.csv").unlink()
    with pytest.raises(Exception, match=r"lines\.csv"):
        radial.read_networks(tmp_path)


def test_days_too_few_for_faults_are_refused() -> None:
    with pytest.raises(Exception, match="--days above 60"):
        simulate.generate(seed=0, areas=1, customers=5, days=40)
