"""Load of the next hours for many series at once: seasonal naive, and one batched ridge regression.

The ridge learns how the hours after an origin differed from their usual day: the training rows are the same series'
earlier origins at the same time of day, one regression per series and step ahead, solved together. It starts from the
usual day and moves away from it only as far as the data insist, so three days of history are enough to begin with.

Nothing at or after the origin is ever an argument: ``load_w`` ends where the forecast begins.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

Array = NDArray[np.float64]

MODEL: Final = "ridge"
MODEL_VERSION: Final = "1"
DAYS_MIN: Final = 3
DAYS_USED_MAX: Final = 70  # older days teach another season
_WEEK: Final = 7
_RIDGE: Final = 200.0  # as many rows of evidence against leaving the usual day
_POOL_H: Final = 1.0  # neighbouring steps within this share their training rows
_BAND_H: Final = 2.0  # and their past errors
_HALF_LIFE_DAYS: Final = 30.0
_ROLLED_ORIGINS: Final = 14  # how many past origins the band is learnt from
_ERRORS_MIN: Final = 7  # with fewer, the usual day's own errors join them


@dataclass(frozen=True, slots=True)
class Forecast:
    """Mean power per step, W, (S, H) each, p10 <= p50 <= p90; NaN where the history says nothing."""

    p10_w: Array
    p50_w: Array
    p90_w: Array


def seasonal_naive(load_w: Array, horizon: int, steps_per_day: int) -> Array:
    """The load a week before each step, where that is missing a day before (or as many days as lie in the past).

    load_w: (S, T) W up to the origin, NaN where missing.  Returns (S, horizon) W.
    """
    guess = np.full((load_w.shape[0], horizon), np.nan)
    for days in (_WEEK, *range(1, _WEEK), *range(_WEEK + 1, 2 * _WEEK + 1)):
        lagged = _lag(load_w, load_w.shape[1], horizon, days * steps_per_day)
        guess = np.where(np.isnan(guess), lagged, guess)
    return guess


def forecast(load_w: Array, minute_of_week: NDArray[np.int64], horizon: int, steps_per_day: int) -> Forecast:
    """Ridge forecast of the ``horizon`` steps after the history, with the band of its own past errors.

    load_w: (S, T) W, NaN where missing; T covers at least ``DAYS_MIN`` days.
    minute_of_week: (T + horizon,) local minutes since Monday 00:00 at the start of each step.
    """
    if minute_of_week.shape[0] != load_w.shape[1] + horizon:
        raise ValueError(f"minute_of_week: {load_w.shape[1] + horizon} steps expected, got {minute_of_week.shape[0]}")
    kept = min(load_w.shape[1], DAYS_USED_MAX * steps_per_day)
    load_w, minute_of_week = load_w[:, load_w.shape[1] - kept :], minute_of_week[-kept - horizon :]
    scale = _mean(np.abs(load_w), axis=1)[:, None]
    scale = np.where(np.isfinite(scale) & (scale > 0), scale, 1.0)
    rows = _Rows.build(load_w / scale, minute_of_week, horizon, steps_per_day)
    point, past_errors = rows.solve(steps_per_day)
    low, high = _band(past_errors, steps_per_day)
    return Forecast(np.minimum(point + low, point) * scale, point * scale, np.maximum(point + high, point) * scale)


@dataclass(frozen=True, slots=True)
class _Rows:
    """Origins J (0 is now, j is j days ago) of S series and H steps ahead; F features; all scaled to each series' mean.

    usual: (J, S, H) the usual day.  features: (J, S, H, F).  target: (J, S, H) load less usual; NaN where unknown,
    as all of origin 0 is.
    """

    usual: Array
    features: Array
    target: Array

    @classmethod
    def build(cls, load: Array, minute_of_week: NDArray[np.int64], horizon: int, steps_per_day: int) -> "_Rows":
        length = load.shape[1]
        origins = range(max(1, length // steps_per_day - 1))
        parts = [_features(load, length - j * steps_per_day, minute_of_week, horizon, steps_per_day) for j in origins]
        usual = np.stack([part[0] for part in parts])
        target = np.full(usual.shape, np.nan)
        for j in origins:
            known = min(horizon, j * steps_per_day)
            start = length - j * steps_per_day
            target[j, :, :known] = load[:, start : start + known]
        return cls(usual, np.stack([part[1] for part in parts]), target - usual)

    def solve(self, steps_per_day: int) -> tuple[Array, Array]:
        """Point forecast (S, H) of origin 0, and errors (R, S, H) of earlier origins, each forecast by a fit on
        nothing but what was known at its own origin."""
        window = max(1, round(_POOL_H * steps_per_day / 24))
        known = np.isfinite(self.target)
        features = np.where(known[..., None], self.features, 0.0)
        target = np.where(known, self.target, 0.0)
        gram = np.einsum("jshf,jshg->jshfg", features, features, optimize=True)
        moment = features * target[..., None]
        # Steps of one day ahead are pooled among themselves: the next day's targets are known a day later.
        for day in range(0, target.shape[2], steps_per_day):
            _pool(gram[:, :, day : day + steps_per_day], window)
            _pool(moment[:, :, day : day + steps_per_day], window)
        size = (features**2).sum(axis=(0, 2)) / np.maximum(known.sum(axis=(0, 2)), 1)[:, None]
        penalty = _RIDGE * (size + 1e-6)[:, None, :, None] * np.eye(features.shape[-1])

        # Step h of the origin j days ago was known to the origin o days ago when j - o days cover it.
        days_ahead = np.arange(target.shape[2]) // steps_per_day + 1
        rolled = min(_ROLLED_ORIGINS, len(target) - 2) if len(target) > 2 else 0
        point = np.empty((rolled + 1, *target.shape[1:]))
        for origin in range(rolled + 1):
            age = np.arange(len(target))[:, None] - origin
            weight = np.where(age >= days_ahead, 0.5 ** (age / _HALF_LIFE_DAYS), 0.0)
            coefficient = np.linalg.solve(
                np.einsum("jh,jshfg->shfg", weight, gram, optimize=True) + penalty,
                np.einsum("jh,jshf->shf", weight, moment, optimize=True)[..., None],
            )[..., 0]
            point[origin] = self.usual[origin] + (self.features[origin] * coefficient).sum(axis=2)
        errors = self.target[1:].copy()  # of the usual day, while no earlier fit is there to be judged
        errors[:rolled] += self.usual[1 : rolled + 1] - point[1:]
        return point[0], errors[: max(rolled, _ERRORS_MIN)]


def _lag(load: Array, start: int, horizon: int, lag: int) -> Array:
    """Load ``lag`` steps before each of the steps from ``start`` on; NaN where that is not before ``start``."""
    index = start - lag + np.arange(horizon)
    known = (index >= 0) & (index < start)
    return np.where(known, load[:, np.clip(index, 0, load.shape[1] - 1)], np.nan)


def _mean(values: Array, axis: int) -> Array:
    """Mean of what is there; NaN where nothing is."""
    count = np.isfinite(values).sum(axis=axis)
    total: Array = np.where(count > 0, np.nansum(values, axis=axis) / np.maximum(count, 1), np.nan)
    return total


def _smooth(values: Array, window: int) -> Array:
    """Centred mean over 2·window + 1 steps of the last axis, of what is there."""
    padded = np.pad(values, ((0, 0), (window, window)), constant_values=np.nan)
    return _mean(sliding_window_view(padded, 2 * window + 1, axis=1), axis=2)


def _features(
    load: Array, start: int, minute_of_week: NDArray[np.int64], horizon: int, steps_per_day: int
) -> tuple[Array, Array]:
    """The usual day (S, H) and features (S, H, F) of one origin, from load before ``start`` alone."""
    hour = max(1, steps_per_day // 24)
    step = np.arange(horizon)
    first_day = step // steps_per_day + 1  # days back to the latest day that is known for this step
    back = [_lag(load, start, horizon, (d + 1) * steps_per_day) for d in range(2 * _WEEK)]

    def days_back(extra: int) -> Array:
        """The load ``extra`` days before the latest known day."""
        picked = np.full((load.shape[0], horizon), np.nan)
        for day in np.unique(first_day):
            if day + extra <= len(back):
                picked = np.where(first_day == day, back[day + extra - 1], picked)
        return picked

    recent = [days_back(extra) for extra in range(_WEEK)]
    usual = _mean(np.stack(recent), axis=0)
    weekday = minute_of_week[start : start + horizon] // 1440
    past = load[:, max(0, start - _WEEK * steps_per_day) : start]
    level = _mean(past[:, -steps_per_day:], axis=1) - _mean(past, axis=1)
    ends = range(start - steps_per_day, hour - 1, -steps_per_day)[:_WEEK]
    same_hour = np.concatenate([past[:, :0], *(load[:, end - hour : end] for end in ends)], axis=1)
    now = _mean(load[:, max(0, start - hour) : start], axis=1) - _mean(same_hour, axis=1)
    # How yesterday ended matters most for the next hours.
    fade = np.exp(-step / (3 * hour))
    columns = [
        np.ones_like(usual),
        recent[0] - usual,
        recent[1] - usual,
        _smooth(recent[0] - usual, hour),
        back[_WEEK - 1] - usual,
        _smooth(back[_WEEK - 1] - usual, hour),
        back[2 * _WEEK - 1] - usual,
        np.broadcast_to(level[:, None], usual.shape),
        now[:, None] * fade,
        now[:, None] * np.ones_like(fade),
        np.broadcast_to((weekday == 5).astype(float), usual.shape),
        np.broadcast_to((weekday == 6).astype(float), usual.shape),
        np.broadcast_to((weekday == 0).astype(float), usual.shape),
    ]
    return usual, np.nan_to_num(np.stack(columns, axis=2))


def _pool(values: Array, window: int) -> None:
    """Add each step's neighbours within ``window`` to it, in place; steps are axis 2."""
    total = np.cumsum(values, axis=2)
    steps = np.arange(values.shape[2])
    values[...] = total[:, :, np.minimum(steps + window, len(steps) - 1)]
    values[:, :, window + 1 :] -= total[:, :, : len(steps) - window - 1]


def _band(errors: Array, steps_per_day: int) -> tuple[Array, Array]:
    """How far p10 and p90 lie from p50: quantiles of past errors (R, S, H) at about the same time of day.

    Widened as conformal prediction does for few samples: of R days the level is (R + 1) / R · q.
    """
    window = max(1, round(_BAND_H * steps_per_day / 24))
    padded = np.pad(errors, ((0, 0), (0, 0), (window, window)), mode="edge")
    near = sliding_window_view(padded, 2 * window + 1, axis=2)
    near = np.moveaxis(near, 3, 1).reshape(-1, *errors.shape[1:])
    spread = (1 + 1 / max(1, len(errors))) * 0.4
    levels = np.clip([0.5 - spread, 0.5 + spread], 0, 1)
    everywhere = _quantiles(np.moveaxis(errors, 2, 1).reshape(-1, errors.shape[1]), levels)[..., None]
    band = _quantiles(near, levels)
    low, high = np.where(np.isnan(band), everywhere, band)
    return low, high


def _quantiles(values: Array, levels: Array) -> Array:
    """Quantiles over axis 0, NaN where a column has nothing."""
    if not len(values):
        return np.full((len(levels), *values.shape[1:]), np.nan)
    nothing = ~np.isfinite(values).any(axis=0)
    found: Array = np.where(nothing, np.nan, np.nanquantile(np.where(nothing, 0.0, values), levels, axis=0))
    return found
