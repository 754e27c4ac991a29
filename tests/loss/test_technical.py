"""The technical loss of records whose clocks are off, against power-grid-model's of the true loads."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from cloud.engines.loss.balance import Filled
from cloud.engines.loss.network import Line, compile_network
from cloud.engines.loss.pieces import place
from cloud.engines.loss.technical import technical_loss
from cloud.loss import folder, records, simulate
from cloud.loss.technical import AreaFlow, area_flow, tree

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
        flow = area_flow(read, made.area_id, [0], list(range(1, 1 + wh.shape[1])))
        assert isinstance(flow, AreaFlow)
        if measured_source:
            flow = replace(flow, source_pu=np.ones(len(wh)))
        filled = Filled(wh, np.zeros_like(wh), np.zeros(wh.shape, np.bool_), np.ones(wh.shape[1]))
        use = np.ones(len(wh), np.bool_)
        found = flow.solve(filled, made.supplied_wh, use, steps_per_day=96, clock_s=clock_s, voltages=True)
        assert not isinstance(found, str), found
        assert found.voltage_pu is not None
        assert len(found.wh) == len(wh) == found.voltage_pu.shape[-1]
        return float(found.wh.sum() / made.technical_wh.sum() - 1)

    assert abs(off(true, 0.0)) < 1e-5
    without, given_back = off(seen, 0.0), off(seen, CLOCK_S)
    assert without < -0.002
    assert abs(given_back) < 0.4 * abs(without)
    # Clocks that are off by more than an interval leave a finite answer.
    assert 0 < off(seen, 3600.0) < 0.05


def test_the_head_s_clock_is_no_load(tmp_path: Path) -> None:
    """A head two minutes late shows swings that nobody drew; taken for load they would hide some of the loss."""
    [made] = simulate.generate(seed=42, areas=1, customers=40, days=14, difficulty="easy", faulty_share=0, start=START)
    records.write([made], tmp_path, seed=42, start=START, gains=False)
    flow = area_flow(folder.read(tmp_path), made.area_id, [0], list(range(1, 41)))
    assert isinstance(flow, AreaFlow)
    wh, head = made.recorded_wh, made.supplied_wh
    late = head + 120 / 900 * (np.append(head[1:], head[-1]) - head)
    drawn = Filled(wh, np.zeros_like(wh), np.zeros(wh.shape, np.bool_), np.ones(wh.shape[1]))

    def off(clock_s: float) -> float:
        # Customers' clocks are right, so what is given back for theirs is taken off again.
        lost = [
            technical_loss(flow.placed, drawn, supplied_wh, use, steps_per_day=96, clock_s=clock_s).wh.sum()
            for supplied_wh in (late, head)
        ]
        return float((lost[0] - lost[1]) / made.technical_wh.sum())

    use = np.ones(len(wh), np.bool_)
    assert off(0.0) < -0.002
    assert abs(off(CLOCK_S)) < 0.2 * abs(off(0.0))


def test_a_theft_costs_more_where_it_is_drawn(tmp_path: Path) -> None:
    [made] = simulate.generate(seed=43, areas=1, customers=40, days=14, difficulty="easy", faulty_share=0, start=START)
    records.write([made], tmp_path, seed=43, start=START, gains=False)
    flow = area_flow(folder.read(tmp_path), made.area_id, [0], list(range(1, 41)))
    assert isinstance(flow, AreaFlow)
    use = np.ones(len(made.supplied_wh), np.bool_)
    taken = np.zeros_like(made.recorded_wh)
    thief = int(made.recorded_wh.sum(axis=0).argmax())
    taken[:, thief] = 0.7 * made.recorded_wh[:, thief]
    wh = made.recorded_wh - taken
    drawn = Filled(wh, np.zeros_like(wh), np.zeros(wh.shape, np.bool_), np.ones(wh.shape[1]))
    spread, placed = (
        technical_loss(flow.placed, drawn, made.supplied_wh, use, steps_per_day=96, beside_wh=beside).wh.sum()
        / made.technical_wh.sum()
        - 1
        for beside in (None, taken)
    )
    assert abs(placed) < 1e-6 < 1e-3 < abs(spread)


def test_an_area_with_parallel_lines_is_computed_and_drawn_as_a_tree(tmp_path: Path) -> None:
    [made] = simulate.generate(seed=43, areas=1, customers=40, days=2, difficulty="easy", faulty_share=0, start=START)
    records.write([made], tmp_path, seed=43, start=START, gains=False)
    read = folder.read(tmp_path)
    wh = made.recorded_wh
    drawn = Filled(wh, np.zeros_like(wh), np.zeros(wh.shape, np.bool_), np.ones(wh.shape[1]))
    lost, trees = [], []
    again = tuple(replace(line, line_id=f"{line.line_id}-2") for line in read.lines)
    for lines in (read.lines, read.lines + again):
        one = replace(read, lines=lines)
        flow = area_flow(one, made.area_id, [0], list(range(1, 41)))
        assert isinstance(flow, AreaFlow)
        found = flow.solve(drawn, made.supplied_wh, np.ones(len(wh), np.bool_), steps_per_day=96, clock_s=0.0)
        assert not isinstance(found, str), found
        lost.append(found.wh.sum())
        trees.append(tree(flow, one, made.area_id))
    assert 0.2 * lost[0] < lost[1] < 0.99 * lost[0]
    assert trees[1].num_rows == trees[0].num_rows
    assert trees[1]["parent_id"].null_count == 1


def test_energy_without_reactive_readings_is_taken_at_power_factor_0_95() -> None:
    network = compile_network("source", [Line("source", "end", 100, 0.3, 0.1)], [])
    wh = np.full((8, 1), 2_000.0)
    drawn = Filled(wh, np.zeros_like(wh), np.zeros(wh.shape, np.bool_), np.ones(1))
    known, some, none = (
        technical_loss(
            place(network, ["end"]), drawn, np.full(8, np.nan), np.zeros(8, np.bool_), steps_per_day=96, varh=varh
        ).wh
        for varh in (wh * np.tan(np.arccos(0.95)), np.where(np.arange(8)[:, None] < 4, np.nan, wh), None)
    )
    np.testing.assert_allclose(none, known)
    np.testing.assert_allclose(some[:4], known[:4])
    assert (some[4:] > known[4:]).all()
