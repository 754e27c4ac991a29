"""Quantiles from what the ensemble itself has missed at earlier origins, known when the forecast is made.

Errors are divided by a local scale (recent, of about that hour); their empirical quantiles, by part of the day, are
taken at levels widened for few days as conformal prediction does (Vovk, Gammerman and Shafer 2005), and scaled back.
"""

from collections.abc import Sequence
from typing import Final

import numpy as np

from cloud.engines.forecast.inputs import Array

_HALF_LIFE: Final = 14.0  # days of the local scale
_PARTS: Final = 6  # of the day, that have their own distribution
_WHOLE: Final = 0.5  # of the offset comes from the distribution of the whole day
_DAYS: Final = 56
_BURN: Final = 2  # days until a scale says something


def offsets(errors: Array, first: int, lead: int, levels: Sequence[float]) -> Array:
    """What to add to the points of origins `first` … E - 1, (E - first, S, N, Q), in the load's unit.

    errors: (E, S, N) of all origins, NaN where not known; the origin `o` uses those before o - lead only.
    """
    count, series, steps = errors.shape
    size = np.abs(errors)
    known = np.isfinite(size)
    fade = 0.5 ** (1 / _HALF_LIFE)
    total, weight = np.zeros((series, steps)), np.zeros((series, steps))
    scale = np.full((count, series, steps), np.nan)
    hour = max(1, steps // 24)
    for origin in range(count):
        if (made := origin - lead - 1) >= 0:
            total = fade * total + np.where(known[made], size[made], 0.0)
            weight = fade * weight + known[made]
        near = sum(np.roll(total, k, axis=1) for k in (-hour, 0, hour))
        near_weight = sum(np.roll(weight, k, axis=1) for k in (-hour, 0, hour))
        whole = total.sum(axis=1, keepdims=True) / np.maximum(weight.sum(axis=1, keepdims=True), 1e-12)
        local = np.where(near_weight > 0, near / np.maximum(near_weight, 1e-12), whole)
        scale[origin] = 0.8 * local + 0.2 * whole
    with np.errstate(divide="ignore", invalid="ignore"):
        relative = np.where(scale > 0, errors / scale, np.nan)
    parts = _PARTS if steps % _PARTS == 0 else 1
    found = np.zeros((count - first, series, steps, len(levels)))
    for origin in range(first, count):
        past = relative[max(min(_BURN, origin - lead - 1), origin - lead - _DAYS, 0) : max(origin - lead, 0)]
        if not len(past):
            continue
        wider = 1 + 1 / len(past)
        level = np.clip(0.5 + (np.asarray(levels) - 0.5) * wider, 0.0, 1.0)
        by_part = past.reshape(len(past), series, parts, -1).transpose(1, 2, 0, 3).reshape(series, parts, -1)
        of_part = _quantiles(by_part, level).repeat(steps // parts, axis=1)
        of_day = _quantiles(by_part.reshape(series, 1, -1), level)
        mixed = (1 - _WHOLE) * np.where(np.isnan(of_part), of_day, of_part) + _WHOLE * of_day
        found[origin - first] = np.nan_to_num(mixed * scale[origin][..., None])
    return found


def _quantiles(values: Array, levels: Array) -> Array:
    """(…, n) -> (…, Q), of what is finite; NaN where nothing is."""
    ordered = np.sort(values, axis=-1)  # NaN last
    count = np.isfinite(ordered).sum(axis=-1, keepdims=True)
    at = levels * np.maximum(count - 1, 0)
    low = np.floor(at).astype(np.int64)
    high = np.minimum(low + 1, np.maximum(count - 1, 0))
    below, above = np.take_along_axis(ordered, low, -1), np.take_along_axis(ordered, high, -1)
    found: Array = below + (at - low) * (above - below)
    return found
