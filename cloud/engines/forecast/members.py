"""The members of the ensemble: each forecasts all origins from `first` to `last`, by what was known at each.

A member takes Blocks and returns (E, K, S, N): origins first … last, blocks ahead, series, steps; the load's unit.
"""

from collections.abc import Callable, Mapping
from typing import Final

import numpy as np

from cloud.engines.forecast.blocks import Blocks
from cloud.engines.forecast.features import WEEK, calendar, lags, usual, weather, weeks
from cloud.engines.forecast.inputs import Array
from cloud.engines.forecast.recursive import rolling_ridge
from cloud.engines.forecast.smoothing import smoothing
from cloud.engines.forecast.structure import structure
from cloud.engines.forecast.weather import seen as look

Member = Callable[[Blocks, int, int], Array]
_RIDGE: Final = 60.0  # as many days of evidence against leaving the usual day
_BOUND: Final = 8.0  # medians
_LOCAL: Final = 100.0  # against leaving what all series have in common
_POOL: Final = 50.0


def naive7(blocks: Blocks, first: int, last: int) -> Array:
    """The latest known block of the same weekday."""
    return _each(blocks, first, last, lambda target, lead: lagged(blocks, target, weeks(lead)))


def naive1(blocks: Blocks, first: int, last: int) -> Array:
    """The latest known block: what is left after a level has shifted."""
    return _each(blocks, first, last, lambda target, lead: lagged(blocks, target, lead + 1))


def mean4(blocks: Blocks, first: int, last: int) -> Array:
    """Mean of the latest four known blocks of the same weekday."""

    def mean(target: int, lead: int) -> Array:
        found: Array = np.mean([lagged(blocks, target, weeks(lead) + WEEK * i) for i in range(4)], axis=0)
        return found

    return _each(blocks, first, last, mean)


def ridge(blocks: Blocks, first: int, last: int) -> Array:
    """One ridge per series and step of the day on lags, calendar and weather, refit daily."""
    return _regress(blocks, first, last, _RIDGE, None, kernel=False)


def pooled(blocks: Blocks, first: int, last: int) -> Array:
    """The same, but pulled to what all series have in common."""
    return _regress(blocks, first, last, _LOCAL, _POOL, kernel=False)


def kernel(blocks: Blocks, first: int, last: int) -> Array:
    """Non-linear in weather and calendar; what that missed lately is corrected by a ridge as above."""
    return _regress(blocks, first, last, _LOCAL, _POOL, kernel=True)


def change(blocks: Blocks, first: int, last: int) -> Array:
    """As kernel, but how load differs from the usual day by how weather and calendar do."""
    return _regress(blocks, first, last, _LOCAL, _POOL, kernel=True, change=True)


def _regress(
    blocks: Blocks,
    first: int,
    last: int,
    penalty: float,
    pool: float | None,
    *,
    kernel: bool,
    change: bool = False,
) -> Array:
    scale = np.mean(np.abs(blocks.filled[:first]), axis=(0, 2))
    scale = np.where(scale > 0, scale, 1.0)
    load = blocks.filled / scale[:, None]
    parts = []
    for lead in range(blocks.ahead):
        seen = look(blocks, lead, first)
        ordinary = usual(load, lead)
        base = ordinary
        columns = []
        if kernel:
            base = structure(blocks, lead, first, scale, change=change)
            columns = lags(load, np.nan_to_num(base), lead)
            columns += [ordinary - np.nan_to_num(base)]
        columns += lags(load, ordinary, lead) if not kernel else []
        lagged_columns = len(columns)
        columns += calendar(blocks, lead) + ([] if kernel else weather(seen, lead))
        shape = base.shape
        x = np.empty((shape[1], shape[2], shape[0], len(columns) + 1))
        x[..., 0] = 1
        for at, column in enumerate(columns, 1):
            x[..., at] = np.broadcast_to(column, shape).transpose(1, 2, 0)
        y = (blocks.load / scale[:, None] - base).transpose(1, 2, 0)
        # An outage teaches nothing, nor what follows it; a constant series stays what it is.
        bound = _bound(y[:, :, :first])[:, None, None]
        np.clip(x[..., 1 : 1 + lagged_columns], -bound[..., None], bound[..., None], out=x[..., 1 : 1 + lagged_columns])
        found = np.clip(
            rolling_ridge(x, np.clip(y, -bound, bound), first, last, lead, penalty, pool), -bound[:, 0], bound[:, 0]
        )
        parts.append((found + base[first + lead : last + lead + 1]) * scale[:, None])
    return np.stack(parts, axis=1)


def _bound(missed: Array) -> Array:
    """(S,) beyond which a difference from the base is no ordinary day, from (S, N, B) of the past."""
    size = np.sort(np.abs(missed).reshape(len(missed), -1), axis=1)  # NaN last
    known = np.isfinite(size).sum(axis=1)
    middle = size[np.arange(len(size)), np.maximum(known - 1, 0) // 2]
    return np.where(known > 0, _BOUND * middle, np.inf)


def lagged(blocks: Blocks, target: int, days: int) -> Array:
    """The load (S, N) so many days before a block; where there is none, that of the first day."""
    found: Array = blocks.filled[max(target - days, 0)]
    return found


def _each(blocks: Blocks, first: int, last: int, guess: Callable[[int, int], Array]) -> Array:
    ahead = range(blocks.ahead)
    return np.stack([np.stack([guess(origin + lead, lead) for lead in ahead]) for origin in range(first, last + 1)])


MEMBERS: Final[Mapping[str, Member]] = {
    "naive1": naive1,
    "naive7": naive7,
    "mean4": mean4,
    "smoothing": smoothing,
    "ridge": ridge,
    "pooled": pooled,
    "kernel": kernel,
    "change": change,
}
THRIFTY: Final = ("naive1", "mean4", "pooled")
DEFAULT: Final = ("naive1", "mean4", "smoothing", "ridge", "pooled", "kernel", "change")
