"""How much was stolen: of a mixture of kinds and starts, each beyond what a meter's gain explains."""

import numpy as np

from cloud.engines.loss.telling import LEVELS, _mixture


def test_quantiles_of_what_a_fault_takes_are_those_of_draws() -> None:
    rng = np.random.default_rng(1)
    share, mean, sd = np.array([0.5, 0.3, 0.2]), np.array([100.0, 0.0, -20.0]), np.array([20.0, 60.0, 30.0])
    side, least = np.array([1.0, 1.0, -1.0]), np.array([3.0, 3.0, 1.0])
    kind = rng.choice(3, size=400_000, p=share)
    draws = rng.normal(mean[kind], sd[kind])
    fit = side[kind] * draws >= least[kind]
    # Each kind keeps its share, however much of it is beyond what a gain explains.
    wanted = np.array([
        np.interp(level, *_cumulative(draws[fit], share[kind[fit]] / np.bincount(kind[fit])[kind[fit]]))
        for level in LEVELS
    ])  # fmt: skip
    assert np.allclose(_mixture(share, mean, sd, side, least), wanted, atol=1.5)


def _cumulative(values: np.ndarray, weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    order = np.argsort(values)
    total = np.cumsum(weight[order])
    return total / total[-1], values[order]


def test_a_suspect_of_whom_nothing_is_seen_may_still_have_taken_what_the_balance_would_not_show() -> None:
    low, middle, high = _mixture(np.ones(1), np.zeros(1), np.array([50.0]), np.ones(1), np.array([3.0]))
    assert 3 < low < middle < high
    assert 75 < high < 95  # 90 % of what is beyond 3: half a normal of 50


def test_a_sure_one_is_told_as_before_and_a_meter_that_never_moved_as_nothing() -> None:
    one = np.ones(1)
    found = _mixture(one, 1000 * one, 10 * one, one, 30 * one)
    assert np.allclose(found, (1000 - 12.82, 1000, 1000 + 12.82), atol=0.1)
    assert _mixture(0 * one, one, one, one, one) == (0.0, 0.0, 0.0)
