"""Exponential smoothing in a batch: a usual day, what days off are less than that, and a level that fades."""

from typing import Final

import numpy as np

from cloud.engines.forecast.blocks import HOLIDAY, Blocks
from cloud.engines.forecast.inputs import Array

_DAY: Final = 0.15  # of what a day missed is learnt by the usual day
_OFF: Final = 0.1  # … and by the difference of days off to working days
_LEVEL: Final = 0.4  # … and by the level, of its mean
_FADE: Final = 0.8  # of the level is left a day later
_DAYS: Final = 90  # back from the first origin; what was before them is forgotten by then


def smoothing(blocks: Blocks, first: int, last: int) -> Array:
    """(E, K, S, N) by origins first … last, in the load's unit; NaN where nothing is known yet.

    Additive, with damped level and two day types (after Taylor 2003); young states learn as means do, so three days
    are enough to begin.
    """
    _, series, steps = blocks.load.shape
    off = ((blocks.kind == 5) | (blocks.kind == 6) | (blocks.kind == HOLIDAY)).astype(np.int64)
    usual, seen = np.zeros((series, steps)), np.zeros((series, steps))
    less, seen_as = np.zeros((2, series, steps)), np.zeros((2, series, steps))
    level = np.zeros((series, 1))
    made = np.empty((last - first + 1, blocks.ahead, series, steps))
    step = np.arange(steps)

    def season(block: int) -> Array:
        # A block that begins after midnight is of two days.
        one = off[block]
        found: Array = usual + (less[one[0]] if (one == one[0]).all() else less[one, :, step].T)
        return found

    for block in range(max(0, first - _DAYS), last + 1):
        if block >= first:
            for lead in range(blocks.ahead):
                made[block - first, lead] = np.where(
                    seen > 0, season(block + lead) + _FADE ** (lead + 1) * level, np.nan
                )
        if block == last:
            break
        missed = blocks.load[block] - season(block)
        known = np.isfinite(missed)
        old = known & (seen > 0)
        missed = np.where(known, missed, 0.0)
        missed -= np.where(old, _FADE * level, 0.0)
        mean = (missed * old).sum(axis=1, keepdims=True) / np.maximum(old.sum(axis=1, keepdims=True), 1)
        level = _FADE * level + _LEVEL * mean
        usual += np.maximum(_DAY, 1 / (seen + 1)) * missed
        for day in range(2):
            of_it = old & (off[block] == day)
            if of_it.any():
                less[day] += np.maximum(_OFF, 1 / (seen_as[day] + 2)) * missed * of_it
                seen_as[day] += of_it
        seen += known
    return made
