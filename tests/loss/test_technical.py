"""The technical loss of records whose clocks are off, against power-grid-model's of the true loads."""

from pathlib import Path

import numpy as np
import pytest

from cloud.engines.loss.balance import Filled
from cloud.loss import folder, records, simulate
from cloud.loss.technical import AreaFlow, area_flow

START = np.datetime64("2026-03-02")
CLOCK_S = 60.0


@pytest.mark.parametrize("measured_source", [False, True])
@pytest.mark.parametrize("seed", [40, 41])
def test_clocks_that_are_off_take_swings_from_records_and_their_loss_is_given_back(
    tmp_path: Path, seed: int, measured_source: bool
) -> None:
    [made] = simulate.generate(
        seed=seed, areas=1, customers=40, days=14, difficulty="easy", faulty_share=0, start=START
    )
    records.write([made], tmp_path, seed=seed, start=START, gains=False)
    read = folder.read(tmp_path)
    true = made.recorded_wh
    late = np.random.default_rng(seed).normal(0, CLOCK_S, true.shape[1]) / 900
    after, before = np.concatenate([true[1:], true[-1:]]), np.concatenate([true[:1], true[:-1]])
    seen = true + np.maximum(late, 0) * (after - true) + np.maximum(-late, 0) * (before - true)

    def off(wh: np.ndarray, clock_s: float) -> float:
        flow = area_flow(read, made.area_id, [0], list(range(1, 1 + wh.shape[1])), clock_s)
        assert isinstance(flow, AreaFlow)
        if measured_source:
            flow.source_pu = np.ones(len(wh))
        filled = Filled(wh, np.zeros_like(wh), np.zeros(wh.shape, np.bool_), np.ones(wh.shape[1]))
        found = flow.solve(filled, made.supplied_wh, np.ones(len(wh), np.bool_), 96)
        assert not isinstance(found, str), found
        assert flow.voltage_pu is not None
        assert len(found) == len(wh) == flow.voltage_pu.shape[-1]
        return float(found.sum() / made.technical_wh.sum() - 1)

    assert abs(off(true, 0.0)) < 1e-5
    without, given_back = off(seen, 0.0), off(seen, CLOCK_S)
    assert without < -0.002
    assert abs(given_back) < 0.4 * abs(without)
    # Clocks that are off by more than an interval leave a finite answer.
    assert 0 < off(seen, 3600.0) < 0.05
