"""Weather as an origin sees it: columns that tell the same are one, what is not known yet is yesterday's, and what has
been felt for a day or three counts as well as what is felt now."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy.signal import lfilter

from cloud.engines.forecast.blocks import Blocks
from cloud.engines.forecast.inputs import Array

_SAME: Final = 0.9  # stations of one region correlate above this; temperature and radiation do not
_FELT_H: Final = (24.0, 72.0)  # buildings take one to three days to follow the air


@dataclass(frozen=True, slots=True)
class Weather:
    """(B, G, N) each, of G groups of columns, standardised.  felt: one for each of `_FELT_H`."""

    now: Array
    felt: Sequence[Array]


def seen(blocks: Blocks, lead: int, first: int) -> Weather:
    """The weather of each block as it is known `lead` blocks before it; means and groups are learnt before `first`."""
    count, columns, steps = blocks.weather.shape
    past = blocks.weather[:first].transpose(1, 0, 2).reshape(columns, first * steps)
    if not columns or not np.isfinite(past).any():
        nothing = np.zeros((count, 0, steps))
        return Weather(nothing, [nothing for _ in _FELT_H])
    known = np.isfinite(past)
    seen_at_all = known.sum(axis=1)
    middle = np.where(known, past, 0).sum(axis=1) / np.maximum(seen_at_all, 1)
    centred = np.where(known, past - middle[:, None], 0.0)
    spread = np.sqrt((centred**2).sum(axis=1) / np.maximum(seen_at_all, 1))
    useful = np.flatnonzero(spread > 1e-9 * (1 + np.abs(middle)))
    if not len(useful):
        nothing = np.zeros((count, 0, steps))
        return Weather(nothing, [nothing for _ in _FELT_H])
    scaled = np.nan_to_num((blocks.weather[:, useful] - middle[useful, None]) / spread[useful, None])
    # Beyond what the past has shown nothing can be learnt; a sensor's wild value stays within reason.
    scaled = np.clip(scaled, -6, 6)
    groups = _groups(centred[useful] / spread[useful, None], blocks.weather_lead[useful])
    values = np.stack([scaled[:, group].mean(axis=1) for group in groups], axis=1)
    reach = np.array([blocks.weather_lead[useful[group[0]]] for group in groups])
    now = _visible(values, reach, lead)
    return Weather(now, [_felt(values, now, reach, lead, 1 - np.exp(-24 / steps / hours)) for hours in _FELT_H])


def _groups(columns: Array, lead: NDArray[np.int64]) -> list[list[int]]:
    """Columns (W, T) that say the same, with the same lead, together; each with the first that it is like."""
    like = columns @ columns.T / columns.shape[1]
    found: list[list[int]] = []
    for column in range(len(columns)):
        for group in found:
            if like[group[0], column] > _SAME and lead[group[0]] == lead[column]:
                group.append(column)
                break
        else:
            found.append([column])
    return found


def _visible(values: Array, reach: NDArray[np.int64], lead: int) -> Array:
    """Values (B, G, N), those beyond their reach replaced by the same step of the latest known block."""
    count, _, steps = values.shape
    known = lead * steps + np.arange(steps) < reach[:, None]
    latest = values[np.maximum(np.arange(count) - lead - 1, 0)]
    return np.where(known, values, latest)


def _felt(values: Array, now: Array, reach: NDArray[np.int64], lead: int, share: float) -> Array:
    """Exponential mean of what is seen, with `share` for the newest step."""
    count, groups, steps = values.shape
    flat = values.transpose(1, 0, 2).reshape(groups, -1)
    felt = _exponential(flat, share).reshape(groups, count, steps).transpose(1, 0, 2)
    if (reach >= (lead + 1) * steps).all():
        return felt
    # Some columns end before their block does: go on from the origin with what is seen.
    state = felt[np.maximum(np.arange(count) - lead - 1, 0), :, -1]
    path = np.empty_like(felt)
    for ahead in range(lead + 1):
        block = _visible(values[np.maximum(np.arange(count) - lead + ahead, 0)], reach, ahead) if ahead < lead else now
        for step in range(steps):
            state = state + share * (block[:, :, step] - state)
            path[:, :, step] = state
    return path


def _exponential(values: Array, share: float) -> Array:
    found: Array = lfilter([share], [1, share - 1], values, axis=1, zi=(1 - share) * values[:, :1])[0]
    return found
