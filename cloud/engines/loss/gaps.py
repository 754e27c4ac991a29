"""Intervals that were not measured, as the head of the area knows them: what the others leave over."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cloud.engines.loss.balance import SMOOTHING_DAYS, Filled, within_days

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Settled:
    """``rest_wh``: (T,) unexplained of each interval, all of them.  ``drawn``: the deliveries that go with it.
    ``gap_sd_wh``: standard deviation of the sum over the intervals that are not aligned."""

    rest_wh: Array
    drawn: Filled
    gap_sd_wh: float


def settle(supplied_wh: Array, drawn: Filled, technical_wh: Array, use: Mask, steps_per_day: int) -> Settled:
    """Weigh what was filled in against what the head saw.

    A customer's gap is known twice: from its own habit, and as what the head supplied less all others, the technical
    loss and what is usually unexplained around then. Each counts as it is sure. Where the head is silent as well, what
    is usual stands in. Arrays (T,), ``use``: of ``aligned_steps``.
    """
    gap = drawn.filled
    variance = (np.where(gap, drawn.sd_wh, 0.0) ** 2).sum(axis=1)
    rest = np.where(use, supplied_wh - drawn.wh.sum(axis=1) - technical_wh, 0.0)
    usual, usual_var, spread = _usual(rest, variance, use, steps_per_day)
    trust = np.where(use, usual_var / np.maximum(usual_var + variance, 1e-12), 0.0)
    settled = usual + trust * (rest - usual)
    moved = np.where(use, rest - settled, 0.0) / np.maximum(variance, 1e-12)
    wh = drawn.wh + np.where(gap, drawn.sd_wh**2, 0.0) * moved[:, None]
    sd = np.where(gap & use[:, None], drawn.sd_wh * np.sqrt(trust)[:, None], drawn.sd_wh)
    # Those that follow what is usual share what it misses: n of them, from m that were measured, n + n²/m.
    shared = 1 + float((1 - trust).sum()) / max(float(trust.sum()), 1.0)
    gap_var = float(np.where(use, 0.0, usual_var).sum()) * spread * shared
    return Settled(settled, Filled(wh, sd, gap, drawn.spread * shared), float(np.sqrt(gap_var)))


def _usual(rest: Array, variance: Array, use: Mask, steps_per_day: int) -> tuple[Array, Array, float]:
    """What is expected of each interval by the others, (T,); variance of what that misses, (T,); of a run, relative.

    The same time of day within 7 days, and as much of the departure from it within a day, and within half an hour, as
    has proved to carry over.
    """
    steps = len(rest)
    days = -(-steps // steps_per_day)
    clean = use & (variance == 0)
    jumps = np.diff(rest)[clean[1:] & clean[:-1]]
    noise = float(np.median(jumps**2)) if len(jumps) else 0.0
    weight = np.where(use, (noise + 1e-9) / (noise + variance + 1e-9), 0.0)

    def by_day(values: Array) -> Array:
        padded = np.zeros(days * steps_per_day)
        padded[:steps] = values
        return padded.reshape(days, steps_per_day, 1)

    def flat(values: Array) -> Array:
        return np.asarray(values.ravel()[:steps], np.float64)

    known, there = by_day(weight * rest), by_day(weight)
    around, count = flat(within_days(known) - known), flat(within_days(there) - there)
    mean = float(known.sum() / max(float(there.sum()), 1e-12))
    usual = np.where(count > 1e-6, around / np.maximum(count, 1e-6), mean)
    correlation = 0.0
    for reach in (steps_per_day, max(1, steps_per_day // 48)):
        miss = weight * (rest - usual)
        near = (_near(miss, reach) - miss) / np.maximum(_near(weight, reach) - weight, 1.0)
        carried = float((miss * near).sum() / max(float((weight * near**2).sum()), 1e-12))
        usual = usual + min(max(carried, 0.0), 1.0) * near
        if reach == steps_per_day:
            left = np.where(clean, rest - usual, 0.0)
            correlation = float((left[1:] * left[:-1]).sum() / max(float((left**2).sum()), 1e-12))
    squares = by_day(np.where(clean, rest - usual, 0.0) ** 2).sum(axis=(0, 2))
    number = by_day(clean.astype(float)).sum(axis=(0, 2))
    pooled = float(squares.sum()) / max(float(number.sum()), 1.0)
    at_time = (squares + SMOOTHING_DAYS * pooled) / (number + SMOOTHING_DAYS)
    correlation = min(max(correlation, 0.0), 0.95)
    return usual, np.tile(at_time, days)[:steps], (1 + correlation) / (1 - correlation)


def _near(values: Array, reach: int) -> Array:
    """(T,) sums over the intervals within ``reach`` to each side."""
    running = np.concatenate([[0.0], np.cumsum(values)])
    at = np.arange(len(values))
    return np.asarray(running[np.minimum(at + reach + 1, len(values))] - running[np.maximum(at - reach, 0)])
