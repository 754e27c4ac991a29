"""How good forecasts are: the measures everybody in the field uses, by one protocol.

A figure that a series cannot have (nothing measured, a constant past) is left out of the mean over series.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

SCORED_LEVELS: Final = tuple(round(k / 10, 1) for k in range(1, 10))


@dataclass(frozen=True, slots=True)
class Scores:
    """mase: mean over series of MAE to the MAE of last week's value in the past.  wape, wql: % of the energy that
    flowed either way.  cov80: share of actuals between q10 and q90; cov80_series: its 5th, 50th and 95th percentile
    over series.  left_out: series that have no MASE."""

    mase: float
    wape: float
    wql: float
    cov80: float
    cov80_series: tuple[float, float, float]
    left_out: int


def scores(actual: Array, point: Array, quantiles: Array, levels: tuple[float, ...], past: Array, week: int) -> Scores:
    """actual, point: (S, N), NaN where nothing was measured.  quantiles: (S, N, Q) at ``levels``, 0.1 … 0.9 among them.
    past: (S, P) load before the first step that is scored.  week: steps in seven days."""
    error = np.abs(point - actual)
    seen = np.isfinite(error)
    ratio = mean(error, axis=1) / naive_error(past, week)
    there = np.isfinite(ratio)
    level = np.array(SCORED_LEVELS)
    banded = quantiles[..., [levels.index(each) for each in SCORED_LEVELS]]
    gap = actual[..., None] - banded
    loss = np.nansum(np.maximum(level * gap, (level - 1) * gap)) / len(level)
    measured = np.isfinite(actual)
    inside = np.where(measured, (actual >= banded[..., 0]) & (actual <= banded[..., -1]), np.nan)
    covered = mean(inside, axis=1)
    covered = covered[np.isfinite(covered)]
    return Scores(
        mase=float(ratio[there].mean()) if there.any() else np.nan,
        wape=_share(100 * error[seen].sum(), np.abs(actual[seen]).sum()),
        wql=_share(200 * loss, np.abs(actual[measured]).sum()),
        cov80=_share(np.nansum(inside), measured.sum()),
        cov80_series=_percentiles(covered),
        left_out=int((~there).sum()),
    )


def naive_error(past: Array, week: int) -> Array:
    """(S,) mean absolute error of last week's value; NaN where it is nought or nothing is known."""
    missed = mean(np.abs(past[:, week:] - past[:, :-week]), axis=1)
    return np.where(missed > 0, missed, np.nan)


def mean(values: Array, axis: int) -> Array:
    """Mean of what is there, NaN where nothing is."""
    count = np.isfinite(values).sum(axis=axis)
    found: Array = np.where(count > 0, np.nansum(values, axis=axis) / np.maximum(count, 1), np.nan)
    return found


def _share(part: float, whole: float) -> float:
    return float(part / whole) if whole > 0 else np.nan


def _percentiles(values: Array) -> tuple[float, float, float]:
    if not len(values):
        return np.nan, np.nan, np.nan
    low, middle, high = np.quantile(values, [0.05, 0.5, 0.95])
    return float(low), float(middle), float(high)
