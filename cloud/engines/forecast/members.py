"""The members of the ensemble: each forecasts all origins from `first` to `last`, by what was known at each.

A member takes Blocks and returns (E, K, S, N): origins first … last, blocks ahead, series, steps; the load's unit.
"""

from collections.abc import Callable, Mapping
from typing import Final

import numpy as np

from cloud.engines.forecast.blocks import HOLIDAY, KINDS, Blocks
from cloud.engines.forecast.inputs import Array
from cloud.engines.forecast.recursive import rolling_ridge

Member = Callable[[Blocks, int, int], Array]
WEEK = 7
_RIDGE: Final = 20.0  # as many days of evidence against leaving the usual day


def naive7(blocks: Blocks, first: int, last: int) -> Array:
    """The latest known block of the same weekday."""
    return _each(blocks, first, last, lambda target, lead: lagged(blocks, target, _weeks(lead)))


def mean4(blocks: Blocks, first: int, last: int) -> Array:
    """Mean of the latest four known blocks of the same weekday."""

    def mean(target: int, lead: int) -> Array:
        found: Array = np.mean([lagged(blocks, target, _weeks(lead) + WEEK * i) for i in range(4)], axis=0)
        return found

    return _each(blocks, first, last, mean)


def ridge(blocks: Blocks, first: int, last: int) -> Array:
    """One ridge per series and step of the day on lags, calendar and weather, refit daily."""
    scale = np.mean(np.abs(blocks.filled[:first]), axis=(0, 2))
    scale = np.where(scale > 0, scale, 1.0)
    parts = []
    for lead in range(blocks.ahead):
        usual, x = _features(blocks, lead, scale)
        count, series, steps = usual.shape
        y = (blocks.load / scale[:, None] - usual).transpose(1, 2, 0).reshape(-1, count)
        x = x.transpose(1, 2, 0, 3).reshape(len(y), count, -1)
        penalty = _RIDGE * (np.mean(x[:, :first] ** 2, axis=1) + 1e-4)
        found = rolling_ridge(x, y, first, last, lead, penalty).reshape(series, steps, -1).transpose(2, 0, 1)
        parts.append((found + usual[first + lead : last + lead + 1]) * scale[:, None])
    return np.stack(parts, axis=1)


def _features(blocks: Blocks, lead: int, scale: Array) -> tuple[Array, Array]:
    """The usual day (B, S, N) of each block and features (B, S, N, F), as known `lead` blocks before it."""
    load = blocks.filled / scale[:, None]
    shape = load.shape

    def back(days: int) -> Array:
        return load[np.maximum(np.arange(shape[0]) - days, 0)]

    week = np.mean([back(lead + 1 + i) for i in range(WEEK)], axis=0)
    same = np.mean([back(_weeks(lead) + WEEK * i) for i in range(4)], axis=0)
    usual = (week + same) / 2
    latest = back(lead + 1)
    columns = [np.ones(shape), latest - usual, back(lead + 2) - usual, week - usual]
    columns += [back(_weeks(lead)) - usual, back(_weeks(lead) + WEEK) - usual]
    columns += [np.broadcast_to((latest - week).mean(axis=2, keepdims=True), shape)]
    columns += [np.broadcast_to((latest - week)[:, :, -1:], shape)]
    columns += [np.broadcast_to((blocks.kind == kind)[:, None], shape).astype(float) for kind in range(KINDS)]
    columns += [
        np.broadcast_to((blocks.kind[np.maximum(np.arange(shape[0]) - lead - 1, 0)] == HOLIDAY)[:, None], shape)
    ]
    angle = 2 * np.pi * blocks.yearday / 365.25
    columns += [np.broadcast_to(wave[:, None], shape) for wave in (np.sin(angle), np.cos(angle))]
    return usual, np.stack(columns, axis=-1)


def _weeks(lead: int) -> int:
    """Days back from a block `lead` ahead to the latest known one of its weekday."""
    return WEEK * -(-(lead + 1) // WEEK)


def lagged(blocks: Blocks, target: int, days: int) -> Array:
    """The load (S, N) so many days before a block; where there is none, that of the first day."""
    found: Array = blocks.filled[max(target - days, 0)]
    return found


def _each(blocks: Blocks, first: int, last: int, guess: Callable[[int, int], Array]) -> Array:
    ahead = range(blocks.ahead)
    return np.stack([np.stack([guess(origin + lead, lead) for lead in ahead]) for origin in range(first, last + 1)])


MEMBERS: Final[Mapping[str, Member]] = {"naive7": naive7, "mean4": mean4, "ridge": ridge}
DEFAULT: Final = ("naive7", "mean4", "ridge")
