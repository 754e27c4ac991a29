"""What a forecast is made from, and what comes back."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

LEVELS: Final[tuple[float, ...]] = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95)
MINUTES_PER_DAY: Final = 1440
DAYS_AHEAD: Final = 30


@dataclass(frozen=True, slots=True)
class Inputs:
    """S series, T steps of history and what follows it; W weather columns; D local days, at least those that the T
    steps cover; better DAYS_AHEAD more, by which it is known that a festival comes and how long it lasts.

    load: (S, T) any unit, NaN where missing or not yet measured.
    start: [m] local standard time of step 0, which is 00:00 of a day (pad with NaN).
    day_kind: (D,) 0 working day, 1 Saturday-like, 2 Sunday-like, 3 public holiday, 4 working day made of a weekend
    day (调休).  holiday: (D,) 0 none, else which one, the same number each year (also for lunar ones).
    holiday_day: (D,) its n-th day, 0 elsewhere.
    weather: (W, T) NaN where unknown.  weather_lead: (W,) steps beyond an origin for which the column is known when
    the forecast is made; 0: measured only; the horizon or more: a forecast, or the truth (ex-post).
    """

    load: Array
    step_minutes: int
    start: np.datetime64
    day_kind: NDArray[np.int8]
    holiday: NDArray[np.int16]
    holiday_day: NDArray[np.int16]
    weather: Array
    weather_lead: NDArray[np.int64]

    @property
    def steps_per_day(self) -> int:
        return MINUTES_PER_DAY // self.step_minutes

    def check(self, origins: NDArray[np.int64], horizon: int) -> None:
        """Raise ValueError where the shapes or the origins do not fit together."""
        if self.load.ndim != 2 or self.load.shape[0] < 1:
            raise ValueError(f"load: (S, T) with at least one series expected, got {self.load.shape}")
        if self.step_minutes < 1 or MINUTES_PER_DAY % self.step_minutes:
            raise ValueError(f"step_minutes: a divisor of {MINUTES_PER_DAY} expected, got {self.step_minutes}")
        steps, day = self.load.shape[1], self.steps_per_day
        days = -(-steps // day)
        for name in ("day_kind", "holiday", "holiday_day"):
            if (got := getattr(self, name).shape)[0] < days:
                raise ValueError(f"{name}: one value for each of at least {days} days expected, got {got[0]}")
        if self.weather.shape != (len(self.weather_lead), steps):
            expected = (len(self.weather_lead), steps)
            raise ValueError(
                f"weather: shape {expected} expected as weather_lead and load say, got {self.weather.shape}"
            )
        if self.start != self.start.astype("datetime64[D]"):
            raise ValueError(f"start: 00:00 of a local day expected, got {self.start}; pad load with NaN")
        if horizon < 1:
            raise ValueError(f"horizon: at least one step expected, got {horizon}")
        if not len(origins):
            raise ValueError("origins: at least one expected")
        if (np.diff(origins) <= 0).any() or np.ptp(origins % day):
            raise ValueError("origins: ascending steps at the same time of day expected")
        if origins[0] < 1 or origins[-1] + horizon > steps:
            raise ValueError(
                f"origins: each needs history before it and {horizon} steps of calendar (load NaN) from it on; "
                f"got {origins[0]} to {origins[-1]} in {steps} steps"
            )


@dataclass(frozen=True, slots=True)
class Forecasts:
    """O origins, S series, H steps ahead, Q levels; the load's unit; NaN where the series has no history at all.

    point: (O, S, H).  quantiles: (O, S, H, Q), non-decreasing along Q.  weights: member -> (O, S) its share.
    """

    point: Array
    quantiles: Array
    weights: Mapping[str, Array]
