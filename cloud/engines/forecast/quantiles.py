"""Quantiles from what the ensemble itself has missed at earlier origins, known when the forecast is made.

How large an error will be is a log-linear regression shared by all series: on the recent errors of that hour, on how
far the members are apart and on the forecast itself.  Errors divided by that have the quantiles of those made when
things were alike: how high the forecast is, how far from it the latest load, how many hours ahead.  Their width is then
corrected online by what they covered so far (adaptive conformal inference: Gibbs and Candes 2021), and their middle is
moved to the past median as far as that has helped.
"""

from collections.abc import Iterator, Sequence
from math import gcd
from typing import Final

import numpy as np
from numpy.typing import NDArray

from cloud.engines.forecast import alike
from cloud.engines.forecast.ensemble import parts_of
from cloud.engines.forecast.inputs import Array

HOURS_PER_DAY: Final = 24
Relative = NDArray[np.float32]  # errors to their expected size: many
_HALF_LIFE: Final = 14.0  # days of the recent size
_WHOLE_SIZE: Final = 0.1  # of it comes from the whole day
_MEMORY: Final = 60.0  # half-life of the regression, days
_PRIOR: Final = 300.0  # errors of evidence for _GUESS
_GUESS: Final = np.array([0.0, 0.9, 0.0, 0.0])
_FREE: Final = 1e-6  # of the prior on the intercept
_SAMPLE: Final = 20_000  # errors a day that the regression looks at
_BOUND: Final = 2.0  # of a logarithm
_HIGH: Final = 0.5  # width of the kernel on how high the forecast is, of its deviation
_AWAY: Final = 0.5  # … on how far the latest load is from it
_LATE: Final = 0.5  # … on the logarithm of the hours since the origin
_RATIO: Final = 0.5  # … on the logarithm of the series' expected errors to its load
_BIG: Final = 10.0
_FAR: Final = 2.5  # deviations
_MOVED: Final = 3.0  # expected errors, at most, of the middle: what was never seen is not to be trusted further
_STEPS: Final = 36  # of a day, above which an hour's steps share a distribution
_DAYS: Final = 84
_BURN: Final = 2  # days until a size says something
_BEGIN: Final = 7  # origins until coverage is judged
_JUDGED: Final = 3  # days between quantiles that are only judged
_WHOLE: Final = 0.5  # of the quick quantiles come from the whole day
_POOL: Final = 40.0  # days of evidence for those of all series
_WIDE: Final = 0.5  # as much wider for few days as conformal prediction is
_INSIDE: Final = (0.1, 0.9)
_GAIN: Final = 0.2  # of the logarithm of the width, for a day that covered all or nothing; own and of all
_LEAK: Final = 0.97


def offsets(
    errors: Array, point: Array, apart: Array, first: int, lead: int, levels: Sequence[float], *, quick: bool = False
) -> tuple[Array, Array]:
    """What to add to the points of origins `first` … E - 1, in the load's unit: (E - first, S, N) so that they are
    medians, and (E - first, S, N, Q) for quantiles.

    errors: (E, S, N) of all origins, NaN where not known; the origin `o` uses those before o - lead only.
    point, apart: (E, S, N) the forecasts, and how far the members were apart.
    quick: errors count by series and part of the day alone, at a tenth of the work.
    """
    count, series, steps = errors.shape
    scale = np.stack(list(_sizes(errors, point, apart, lead)))
    seen = steps if steps <= _STEPS else gcd(steps, HOURS_PER_DAY)
    each = steps // seen
    with np.errstate(divide="ignore", invalid="ignore"):
        relative = np.where(scale > 0, errors / scale, np.nan).astype(np.float32)[:, :, each // 2 :: each]
        away = (_latest(point + errors, lead)[..., None] - point) / scale
    kernels = [
        (values[:, :, each // 2 :: each].astype(np.float32), width) for values, width in ((point, _HIGH), (away, _AWAY))
    ]
    late = np.log1p((np.arange(seen) + 0.5) * HOURS_PER_DAY / seen + HOURS_PER_DAY * lead) / _LATE
    asked = np.array([*_INSIDE, 0.5, *levels])
    begin = min(first, _BEGIN + lead)
    wider = np.zeros(series)  # logarithm
    misses = np.zeros(3)  # of the middle moved by nothing, half and all of the way
    told: dict[int, tuple[Array, Array]] = {}
    middles = np.zeros((count - first, series, steps))
    found = np.zeros((count - first, series, steps, len(levels)))
    for origin in range(begin, count):
        made = origin - lead - 1
        if made in told:
            _learn(relative[made], *told.pop(made), wider, misses)
        if made < 0 or (origin < first and (origin - begin) % _JUDGED):
            continue
        past = slice(max(min(_BURN, made), made + 1 - _DAYS, 0), made + 1)
        days = past.stop - past.start
        level = np.clip(0.5 + (asked - 0.5) * (1 + _WIDE / days), 0.0, 1.0)
        if quick:
            shape = _shape(relative[past], level)
        else:
            before, now = np.empty((days, series, seen, 4), np.float32), np.empty((series, seen, 4), np.float32)
            for at, (values, width) in enumerate(kernels):
                before[..., at], now[..., at] = _usual(values[past], values[origin], width)
            before[..., 2] = now[..., 2] = late
            before[..., 3] = now[..., 3] = _ratio(scale[past], point[past])[:, None] / _RATIO
            shape = alike.quantiles(relative[past], before, now, level).astype(float)
        middle = np.clip(shape[..., 2:3], -_MOVED, _MOVED)
        centre = _part_of_the_way(misses) * middle
        band = centre + (shape - shape[..., 2:3]) * np.exp(wider)[:, None, None]
        told[origin] = band[..., :2], middle
        if origin >= first:
            size = scale[origin].reshape(series, seen, each)
            middles[origin - first] = np.nan_to_num(centre * size).reshape(series, steps)
            found[origin - first] = np.nan_to_num(band[:, :, None, 3:] * size[..., None]).reshape(series, steps, -1)
    return middles, found


def _latest(load: Array, lead: int) -> Array:
    """(E, S) mean load (E, S, N) of the last hour known at each origin, which is in the block `lead` + 1 before its."""
    count, _, steps = load.shape
    hour = max(1, steps // HOURS_PER_DAY)
    found = np.full(load.shape[:2], np.nan)
    known = load[: max(count - lead - 1, 0)]
    end = steps - np.argmax(np.isfinite(known)[..., ::-1], axis=2)[..., None]
    hours = np.take_along_axis(known, np.maximum(end - np.arange(1, hour + 1), 0), axis=2)
    there = np.isfinite(hours)
    with np.errstate(invalid="ignore"):
        found[lead + 1 :] = np.where(there, hours, 0.0).sum(axis=2) / there.sum(axis=2)
    return found


def _ratio(scale: Array, point: Array) -> Array:
    """(S,) logarithm of what errors (D, S, N) are to be expected of a load so large: which series are alike."""
    with np.errstate(divide="ignore", invalid="ignore"):
        found: Array = np.log(np.nansum(scale, axis=(0, 2)) / np.nansum(np.abs(point), axis=(0, 2)))
    return np.clip(np.nan_to_num(found), -_BIG, _BIG)


def _usual(past: Relative, now: Relative, width: float) -> tuple[Relative, Relative]:
    """Values (D, S, N) and (S, N) as they differ from the series' past mean, in its deviations, bounded, and widths."""
    known = np.isfinite(past)
    count = np.maximum(known.sum(axis=(0, 2)), 1)[:, None]
    mean = np.where(known, past, 0).sum(axis=(0, 2))[:, None] / count
    apart = np.where(known, past - mean, 0)
    spread = np.sqrt((apart**2).sum(axis=(0, 2))[:, None] / count)
    per = 1 / (np.where(spread > 0, spread, 1) * width)
    bound = _FAR / width
    return np.clip(apart * per, -bound, bound), np.clip(np.nan_to_num((now - mean) * per), -bound, bound)


def _learn(relative: Relative, inside: Array, middle: Array, wider: Array, misses: Array) -> None:
    """Correct `wider` (S,) and count `misses` (3,) by one day's errors (S, n), given what had been told of them."""
    known = np.isfinite(relative)
    seen = known.sum(axis=1)
    if not seen.any():
        return
    within = known & (relative >= inside[..., 0]) & (relative <= inside[..., 1])
    short = np.where(seen > 0, _INSIDE[1] - _INSIDE[0] - within.sum(axis=1) / np.maximum(seen, 1), 0.0)
    wider *= _LEAK
    wider += _GAIN * (short + short.sum() / (seen > 0).sum())
    for way in range(3):
        misses[way] += np.abs(np.where(known, relative - 0.5 * way * middle[..., 0], 0.0)).sum() / seen.sum()


def _part_of_the_way(misses: Array) -> float:
    """Where a parabola through the misses at 0, 1/2 and 1 is lowest."""
    half, full = misses[1:] - misses[0]
    bend = 2 * (full - 2 * half)
    return float(np.clip((full - 4 * half) / (2 * bend), 0.0, 1.0)) if bend > 0 else float(full < 0)


def _sizes(errors: Array, point: Array, apart: Array, lead: int) -> Iterator[Array]:
    """(S, N) the size of error to be expected at each origin; NaN before any is known."""
    count, series, steps = errors.shape
    stride = max(1, series * steps // _SAMPLE)
    while gcd(stride, steps) > 1:  # else some hours are never looked at
        stride += 1
    fade = 0.5 ** (1 / _HALF_LIFE)
    total, usual_apart, usual_point, weight = (np.zeros((series, steps)) for _ in range(4))
    prior = _PRIOR * np.where(np.arange(len(_GUESS)) == 0, _FREE, 1.0)
    gram, moment = np.zeros((len(_GUESS), len(_GUESS))), np.zeros(len(_GUESS))
    features: dict[int, tuple[Array, Array]] = {}
    for origin in range(count):
        if (made := origin - lead - 1) >= 0:
            size = np.abs(errors[made])
            known = np.isfinite(size)
            total = fade * total + np.where(known, size, 0.0)
            usual_apart = fade * usual_apart + np.where(known, apart[made], 0.0)
            usual_point = fade * usual_point + np.where(known, np.abs(point[made]), 0.0)
            weight = fade * weight + known
            x, whole = features.pop(made)
            with np.errstate(divide="ignore", invalid="ignore"):
                y = np.log((size.reshape(-1)[::stride] / whole + 0.1) / 1.1)
            rows = np.where(np.isfinite(y)[:, None], x, 0.0)
            decay = 0.5 ** (1 / _MEMORY)
            gram, moment = decay * gram + rows.T @ rows, decay * moment + rows.T @ np.nan_to_num(y)
        count_of = np.maximum(weight, 1e-12)
        with np.errstate(divide="ignore", invalid="ignore"):
            whole = total.sum(axis=1, keepdims=True) / weight.sum(axis=1, keepdims=True)
            near = _near(total) / _near(weight)
            local = (1 - _WHOLE_SIZE) * np.where(np.isfinite(near), near, whole) + _WHOLE_SIZE * whole
            ordinary = usual_apart / count_of
            columns = (
                _log(local / whole),
                _log((apart[origin] / ordinary + 0.05) / 1.05),
                _log(np.abs(point[origin]) / (usual_point / count_of)),
            )
        x = np.stack([np.ones((series, steps)), *columns], axis=-1).reshape(series * steps, -1)
        features[origin] = x[::stride].copy(), np.broadcast_to(whole, (series, steps)).reshape(-1)[::stride].copy()
        coefficients = np.linalg.solve(gram + np.diag(prior), moment + prior * _GUESS)
        yield whole * np.exp(x @ coefficients).reshape(series, steps)


def _log(ratio: Array) -> Array:
    """Bounded, and 0 where there is none."""
    found: Array = np.clip(np.nan_to_num(np.log(ratio), nan=0.0), -_BOUND, _BOUND)
    return found


def _near(values: Array) -> Array:
    """(S, N) sums of an hour to both sides; not over the ends, as what is a day ahead is less certain."""
    steps = values.shape[1]
    hour = max(1, steps // 24)
    upto = np.concatenate([np.zeros((len(values), 1)), np.cumsum(values, axis=1)], axis=1)
    step = np.arange(steps)
    found: Array = upto[:, np.minimum(step + hour + 1, steps)] - upto[:, np.maximum(step - hour, 0)]
    return found


def _shape(past: Relative, levels: Array) -> Array:
    """(S, N, Q) quantiles of relative errors (D, S, N) by part of the day, pulled to those of all of it and of all
    series."""
    days, series, steps = past.shape
    parts = parts_of(steps)
    of_part = _quantiles(past.reshape(days, series, parts, -1).transpose(1, 2, 0, 3).reshape(series, parts, -1), levels)
    of_day = _quantiles(past.transpose(1, 0, 2).reshape(series, 1, -1), levels)
    whole = past.reshape(-1)
    of_all = _quantiles(whole[:: max(1, len(whole) // 1_000_000)], levels)
    mixed = (1 - _WHOLE) * np.where(np.isnan(of_part), of_day, of_part) + _WHOLE * of_day
    own_share = days / (days + _POOL)
    found: Array = own_share * np.where(np.isnan(mixed), of_all, mixed) + (1 - own_share) * of_all
    return np.repeat(np.nan_to_num(found), steps // parts, axis=1)


def _quantiles(values: Relative, levels: Array) -> Array:
    """(…, n) -> (…, Q), of what is finite; NaN where nothing is."""
    ordered = np.sort(values, axis=-1)  # NaN last
    count = np.isfinite(ordered).sum(axis=-1, keepdims=True)
    at = levels * np.maximum(count - 1, 0)
    low = np.floor(at).astype(np.int64)
    high = np.minimum(low + 1, np.maximum(count - 1, 0))
    below, above = np.take_along_axis(ordered, low, -1), np.take_along_axis(ordered, high, -1)
    found: Array = below + (at - low) * (above - below)
    return found
