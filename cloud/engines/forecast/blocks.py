"""The same steps cut into blocks of one day that begin at the origins' time of day.

Seen from an origin at the start of block o everything is simple whatever the hour: blocks before o are known, and
the forecast is of blocks o, o + 1 … o + K - 1.  Rows of a regression are blocks; a fit is updated by one at a time.
"""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from cloud.engines.forecast.inputs import Array, Inputs

KINDS = 9  # Monday … Sunday, public holiday, working day made of a weekend day
HOLIDAY, MADE_UP = 7, 8


@dataclass(frozen=True, slots=True)
class Blocks:
    """B blocks of N steps, S series, W weather columns, K blocks ahead.

    load: (B, S, N) NaN where missing or not known before the last origin.  filled: the same, each gap taken from the
    nearest earlier day at that step (before the first day, from that).  kind: (B, N) 0 … 6 weekday, 7 holiday,
    8 made-up working day.
    """

    load: Array
    filled: Array
    kind: NDArray[np.int64]
    dates: NDArray[np.int64]  # (3, D) kind, holiday and its n-th day of each calendar day, also of those that follow
    yearday: Array  # (B, N)
    weather: Array  # (B, W, N) gaps filled from earlier days
    weather_lead: NDArray[np.int64]
    ahead: int
    origins: NDArray[np.int64]  # (O,) blocks
    late: int  # steps from midnight to a block's begin

    @property
    def steps_per_day(self) -> int:
        return int(self.load.shape[2])

    def of(self, series: slice) -> "Blocks":
        """The same of some series."""
        return replace(self, load=self.load[:, series], filled=self.filled[:, series])

    @classmethod
    def cut(cls, inputs: Inputs, origins: NDArray[np.int64], horizon: int) -> "Blocks":
        day = inputs.steps_per_day
        late = int(origins[0] % day)
        # Block 0 begins before step 0 where the origin is not at 00:00, so that no history is lost.
        lead_in = (day - late) % day
        first = (origins + lead_in) // day
        ahead = -(-horizon // day)
        count = int(first[-1]) + ahead
        load = np.where(np.arange(inputs.load.shape[1]) < origins[-1], inputs.load, np.nan)
        load = np.moveaxis(_cut(load, lead_in, count, day), 1, 0)
        weather = np.moveaxis(_cut(inputs.weather, lead_in, count, day), 1, 0)
        days = np.clip((np.arange(count * day) - lead_in) // day, 0, len(inputs.day_kind) - 1).reshape(count, day)
        dates = inputs.start.astype("datetime64[D]") + np.arange(len(inputs.day_kind))
        weekday = (dates.astype(np.int64) + 3) % 7  # 1970-01-01 was a Thursday
        kind = np.where(inputs.day_kind == 1, 5, np.where(inputs.day_kind == 2, 6, weekday))
        kind = np.where(inputs.day_kind == 3, HOLIDAY, np.where(inputs.day_kind == 4, MADE_UP, kind))
        on_record = np.minimum(np.arange(max(len(dates), count)), len(dates) - 1)  # the last block may end a day later
        yearday = (dates - dates.astype("datetime64[Y]")).astype(float)
        return cls(
            load=np.ascontiguousarray(load),
            filled=fill(load),
            kind=kind[days],
            dates=np.stack([kind, inputs.holiday, inputs.holiday_day]).astype(np.int64)[:, on_record],
            yearday=yearday[days],
            weather=fill_forward(weather),
            weather_lead=inputs.weather_lead,
            ahead=ahead,
            origins=first,
            late=late,
        )


def fill_forward(values: Array) -> Array:
    """Values (B, …) with each gap taken from the nearest earlier block; NaN before the first."""
    known = np.isfinite(values)
    whole = known.reshape(len(values), -1).all(axis=1)
    if whole.all():
        return values
    if (since := int(np.argmin(whole)) - 1) > 0:  # what is whole needs no filling
        return np.concatenate([values[:since], fill_forward(values[since:])])
    block = np.arange(len(values)).reshape(-1, *[1] * (values.ndim - 1))
    latest = np.maximum.accumulate(np.where(known, block, 0), axis=0)
    return np.take_along_axis(values, latest, axis=0)


def fill(load: Array) -> Array:
    """Gaps of (B, S, N) from earlier blocks; those before a series' first block from that."""
    filled = fill_forward(load)
    if np.isfinite(filled).all():
        return filled
    began = np.argmax(np.isfinite(load).any(axis=2), axis=0)
    birth = load[began, np.arange(load.shape[1])]  # (S, N)
    count = np.isfinite(birth).sum(axis=1, keepdims=True)
    level = np.nansum(birth, axis=1, keepdims=True) / np.maximum(count, 1)
    return np.where(np.isnan(filled), np.where(np.isnan(birth), level, birth), filled)


def _cut(values: Array, lead_in: int, count: int, day: int) -> Array:
    """(R, T) -> (R, count, day), NaN before the first step and after the last."""
    padded = np.full((values.shape[0], count * day), np.nan)
    kept = min(values.shape[1], count * day - lead_in)
    padded[:, lead_in : lead_in + kept] = values[:, :kept]
    return padded.reshape(values.shape[0], count, day)
