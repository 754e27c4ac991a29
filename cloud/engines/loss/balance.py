"""Statistical loss of an area, what is left of it after the technical loss, and how sure both are.

loss = supplied − delivered, over aligned intervals: the head and most customers were measured. Positive is import, so
that generation and feeding back count by their sign. A customer's missing interval is filled from its neighbours and
its own profile, and the error this brings is carried on: dropping every interval in which one of a hundred meters was
silent would leave a third of the month, and not the same third of each hour.

The errors of a window (interval, day, month) add in squares:

- gain: a meter is wrong by one factor for good, so its error grows with the window's energy;
- clock: an offset δ books δ · (power at the end − power at the start) into the wrong window, which telescopes;
- register: rounding at the two ends of each unbroken run, resolution²/12 each;
- filled and estimated intervals: what filling misses where the truth is known;
- the technical loss: the network model's share, or the fit's covariance.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]
Index = NDArray[np.intp]

Z80: Final = 1.2815515655446004  # a normal's 10 % and 90 % points: an 80 % interval
STATES: Final = ("normal", "high", "negative", "not_computable")
NORMAL, HIGH, NEGATIVE, NOT_COMPUTABLE = range(4)
PROFILE_DAYS: Final = 7  # to each side
_FILLED_SHARE_MAX: Final = 0.3  # of an interval's deliveries
SMOOTHING_DAYS: Final = 10.0  # of prior weight for the spread of one time of day


@dataclass(frozen=True, slots=True)
class Errors:
    """Standard deviations of what meters get wrong, beside their gain.

    ``clock_s``: offset of each meter.  ``resolution_wh``: of its register.  ``technical_share``: of the technical loss
    computed by flow (lengths, conductor temperature, power factor), as one factor for the area. On areas of the
    fault generator, whose network is known exactly, it was 0.1 % (rms) where nobody is fed from elsewhere.
    """

    clock_s: float = 60.0
    resolution_wh: float = 10.0
    technical_share: float = 0.02


@dataclass(frozen=True, slots=True)
class Limits:
    """Loss in percent of the energy fed in. The last two say when a window is not worth a figure."""

    low_percent: float = -1.0
    high_percent: float = 8.0
    filled_share_max: float = _FILLED_SHARE_MAX
    aligned_share_min: float = 0.5


def gain_sd(accuracy_class: str | None, supply: bool) -> float:
    """Relative standard deviation of a meter's gain: half of its class, whose limit hardly any meter exceeds.

    accuracy_class: ``0.2S``, ``0.5``, ``1``, ``2`` (IEC 62053) or ``A`` … ``D`` (MID, GB/T 17215.321: C = 0.5).
    Unknown: 0.2 at the head and 1 at a customer, which is 0.1 % and 0.5 %.
    """
    letters = {"a": 2.0, "b": 1.0, "c": 0.5, "d": 0.2, "e": 0.1}
    text = (accuracy_class or "").strip().lower()
    try:
        percent = letters[text] if text in letters else float(text.rstrip("s"))
    except ValueError:
        percent = 0.2 if supply else 1.0
    return percent / 200


@dataclass(frozen=True, slots=True)
class Filled:
    """``wh``: (T, M) without NaN where the meter was ever seen.  ``sd_wh``: (T, M) error of a filled or estimated
    value, 0 where measured.  ``filled``: (T, M).  ``spread``: (M,) variance of a sum of successive filled values over
    the sum of their variances, more than 1 because a meter above its habit stays above it for a while."""

    wh: Array
    sd_wh: Array
    filled: Mask
    spread: Array


def fill(wh: Array, steps_per_day: int, *, estimated: Mask | None = None, level: bool = True) -> Filled:
    """Put a value where one is missing, and say how wrong it may be.

    wh: (T, M), NaN where missing.  estimated: (T, M) values that somebody else put there; kept, but not trusted.
    Two guesses are weighed by what they miss where the truth is known (both leave it out): the mean of the neighbours,
    where both are there, and the same time of day within 7 days to each side, times the day's level when ``level``.
    The error is that of the weighed guess at this time of day. A meter that was never seen keeps NaN.
    """
    steps, meters = wh.shape
    if not meters:
        return Filled(wh, wh.copy(), np.zeros(wh.shape, np.bool_), np.zeros(0))
    days = -(-steps // steps_per_day)
    shape = (days, steps_per_day, meters)
    unsure = np.isnan(wh) if estimated is None else np.isnan(wh) | estimated

    def by_day(values: Array) -> Array:
        padded = np.zeros((days * steps_per_day, meters))
        padded[:steps] = values
        return padded.reshape(shape)

    there = by_day((~unsure).astype(float))
    known = by_day(np.where(unsure, 0.0, wh))
    seen = there.sum(axis=(0, 1))
    mean = known.sum(axis=(0, 1)) / np.maximum(seen, 1)
    around, count = within_days(known) - known, within_days(there) - there
    profile = np.where(count > 0, around / np.maximum(count, 1), mean)
    if level:
        # A day of few readings stays near its habit: a quarter of a day is the prior.
        prior = 0.25 * steps_per_day * np.abs(mean) + 1e-9
        day_level = (known.sum(axis=1) + prior) / ((profile * there).sum(axis=1) + prior)
        profile = profile * np.clip(day_level, 0.3, 3.0)[:, None]

    profile = profile.reshape(-1, meters)[:steps]
    sure = ~unsure
    values = np.where(unsure, 0.0, wh)
    between, both = np.zeros_like(values), np.zeros_like(unsure)
    between[1:-1] = (values[:-2] + values[2:]) / 2
    both[1:-1] = sure[:-2] & sure[2:]
    miss_profile = np.where(sure, values - profile, 0.0)
    miss_between = np.where(sure & both, values - between, 0.0)
    profile_var = (miss_profile**2).sum(axis=0) / np.maximum(sure.sum(axis=0), 1)
    between_var = (miss_between**2).sum(axis=0) / np.maximum((sure & both).sum(axis=0), 1)
    weight = np.where(both, profile_var / np.maximum(profile_var + between_var, 1e-12), 0.0)
    guess = weight * between + (1 - weight) * profile

    def at_time_of_day(miss: Array, where: Mask, variance: Array) -> Array:
        squares, number = by_day(miss**2).sum(axis=0), by_day(where.astype(float)).sum(axis=0)
        here = (squares + SMOOTHING_DAYS * variance) / (number + SMOOTHING_DAYS)
        return np.asarray(np.tile(np.sqrt(here), (days, 1))[:steps], np.float64)

    mixed = weight * miss_between + (1 - weight) * miss_profile
    mixed_var = (np.where(both, mixed, 0.0) ** 2).sum(axis=0) / np.maximum((sure & both).sum(axis=0), 1)
    sd = np.where(
        both,
        at_time_of_day(np.where(both, mixed, 0.0), sure & both, mixed_var),
        at_time_of_day(miss_profile, sure, profile_var),
    )
    lag = (miss_profile[1:] * miss_profile[:-1]).sum(axis=0) / np.maximum((miss_profile**2).sum(axis=0), 1e-12)
    correlation = np.clip(lag, 0.0, 0.95)
    blank = np.isnan(wh)
    filled_wh = np.where(blank, guess, wh)
    filled_wh[:, seen == 0] = np.nan
    return Filled(filled_wh, np.where(unsure, sd, 0.0), blank, (1 + correlation) / (1 - correlation))


def within_days(values: Array) -> Array:
    """Sums over the days within ``PROFILE_DAYS`` to each side, per time of day and meter; values (D, S, M)."""
    days = len(values)
    running = np.concatenate([np.zeros((1, *values.shape[1:])), np.cumsum(values, axis=0)])
    at = np.arange(days)
    last, first = np.minimum(at + PROFILE_DAYS + 1, days), np.maximum(at - PROFILE_DAYS, 0)
    return np.asarray(running[last] - running[first], np.float64)


@dataclass(frozen=True, slots=True)
class Meters:
    """M meters of one side of an area's balance: net energy, import less export.

    ``filled``: of ``fill``.  ``gain``: (M,) relative standard deviation.
    """

    filled: Filled
    gain: Array

    def net(self, use: Mask) -> Array:
        """(T,) Wh, 0 outside ``use``."""
        return np.asarray(np.where(use, np.where(np.isnan(self.filled.wh), 0.0, self.filled.wh).sum(axis=1), 0.0))

    def variance(self, use: Mask, window: Index, errors: Errors, step_s: float) -> Array:
        """(W,) Wh² of their sum in each window. window: (T,) ascending from 0, without a hole."""
        wh = np.where(np.isnan(self.filled.wh), 0.0, self.filled.wh)
        used = np.where(use[:, None], wh, 0.0)
        variance = (sums(used, window) ** 2) @ self.gain**2
        edge = np.concatenate([wh[:1], wh, wh[-1:]])
        drift = np.where(use[:, None], (edge[2:] - edge[:-2]) / 2 / step_s, 0.0)
        variance += (sums(drift, window) ** 2).sum(axis=1) * errors.clock_s**2
        # A register's rounding comes in at the ends of each unbroken run of measured intervals.
        measured = use[:, None] & ~self.filled.filled
        opens = measured.copy()
        opens[1:] &= ~measured[:-1] | (window[1:] != window[:-1])[:, None]
        variance += sums(opens.astype(float), window).sum(axis=1) * errors.resolution_wh**2 / 6
        filled = np.where(use[:, None], self.filled.sd_wh, 0.0) ** 2
        # A lone interval is at most itself; many in a row miss to the same side.
        several = np.minimum(self.filled.spread, np.maximum(sums((filled > 0).astype(float), window), 1.0))
        return np.asarray(variance + (sums(filled, window) * several).sum(axis=1), np.float64)


def sums(values: Array, window: Index) -> Array:
    """(W, …) sums over each window of values (T, …); window (T,) ascending."""
    return np.asarray(np.add.reduceat(values, np.flatnonzero(np.diff(window, prepend=-1)), axis=0), np.float64)


@dataclass(frozen=True, slots=True)
class Balance:
    """An area's loss in W windows, over the aligned intervals of each; NaN where not computable.

    ``technical_wh`` and ``unexplained_wh`` are NaN where no technical loss is known. ``lo_wh``, ``hi_wh``: 80 %
    interval of the unexplained energy.  ``input_wh``: all that was fed in, by the head and by generation.
    ``loss_sd_wh``: of supplied − delivered.  ``aligned``: intervals used.  ``state``: index in ``STATES``.
    ``reason``: words, "" when all is well.
    """

    supplied_wh: Array
    delivered_wh: Array
    technical_wh: Array
    unexplained_wh: Array
    lo_wh: Array
    hi_wh: Array
    input_wh: Array
    loss_sd_wh: Array
    aligned: NDArray[np.int64]
    state: NDArray[np.int8]
    reason: NDArray[np.object_]

    @property
    def loss_wh(self) -> Array:
        return self.supplied_wh - self.delivered_wh


def aligned_steps(head: Meters, drawn: Meters, share_max: float = _FILLED_SHARE_MAX) -> Mask:
    """(T,) every head meter was there, and little of what was delivered had to be filled in.

    None are when a meter was never seen: what it drew is unknown, and would be taken for a loss.
    """
    size = np.abs(np.where(np.isnan(drawn.filled.wh), 0.0, drawn.filled.wh))
    filled = np.where(drawn.filled.filled, size, 0.0).sum(axis=1)
    few = filled <= share_max * np.maximum(size.sum(axis=1), 1e-9)
    there = ~drawn.filled.filled.all(axis=1) & (not np.isnan(drawn.filled.wh).any())
    return np.asarray(~head.filled.filled.any(axis=1) & few & there, np.bool_)


def balance(
    head: Meters,
    drawn: Meters,
    export_wh: Array,
    technical_wh: Array | None,
    window: Index,
    *,
    use: Mask,
    step_s: float,
    errors: Errors,
    limits: Limits,
    technical_sd_wh: Array | None = None,
    why: str = "",
    why_never: str = "",
) -> Balance:
    """Balance of one area in each window.

    head, drawn: supply meters, and customers with generation, over T intervals.
    export_wh: (T,) what customers and generation fed in, for the share that a loss is.
    technical_wh: (T,) Wh, None when it is not known.  technical_sd_wh: (W,) when it was fitted.
    window: (T,) ascending window numbers 0 … W-1.  use: (T,) of ``aligned_steps``.
    why: what to know about the technical loss; ``why_never``: why nothing is aligned.
    """
    count = int(window[-1]) + 1
    steps, aligned = sums(np.ones(len(use)), window), sums(use.astype(float), window)
    supplied_t, delivered_t = head.net(use), drawn.net(use)
    supplied, delivered = sums(supplied_t, window), sums(delivered_t, window)
    fed_in = sums(np.maximum(supplied_t, 0) + np.where(use, np.nan_to_num(export_wh), 0.0), window)
    variance = head.variance(use, window, errors, step_s) + drawn.variance(use, window, errors, step_s)
    sd = np.sqrt(variance)
    if technical_wh is None:
        technical, technical_sd = np.full(count, np.nan), np.zeros(count)
    else:
        technical = sums(np.where(use, technical_wh, 0.0), window)
        technical_sd = errors.technical_share * np.abs(technical) if technical_sd_wh is None else technical_sd_wh
    unexplained = supplied - delivered - technical
    wide = Z80 * np.sqrt(variance + technical_sd**2)

    with np.errstate(invalid="ignore", divide="ignore"):
        percent = 100 * (supplied - delivered) / fed_in
        margin = 100 * Z80 * sd / fed_in
    state = np.full(count, NORMAL, np.int8)
    state[percent - margin > limits.high_percent] = HIGH
    state[percent + margin < limits.low_percent] = NEGATIVE
    reason = _words(state, percent, margin, limits, why)

    silent_head = head.filled.filled.any(axis=1)
    head_gap = sums(silent_head.astype(float), window)
    nothing, few = aligned == 0, aligned < limits.aligned_share_min * steps
    too_little = fed_in <= 3 * sd
    for mask, why in (
        (too_little, "the area drew less than its meters can tell apart"),
        (few, "measured in too few of its intervals; see the completeness of its points"),
        (nothing, "too many customer meters are missing; see the completeness of its points"),
        (nothing & (head_gap > 0), "no reading from the head meter; visit or replace"),
        (nothing & bool(why_never), why_never),
    ):
        state[mask], reason[mask] = NOT_COMPUTABLE, why
    blank = nothing | (few & (steps > 1))
    values = (supplied, delivered, technical, unexplained, unexplained - wide, unexplained + wide, fed_in, sd)
    supplied, delivered, technical, unexplained, lo, hi, fed_in, sd = (np.where(blank, np.nan, v) for v in values)
    return Balance(
        supplied, delivered, technical, unexplained, lo, hi, fed_in, sd, aligned.astype(np.int64), state, reason
    )


def _words(state: NDArray[np.int8], percent: Array, margin: Array, limits: Limits, why: str) -> NDArray[np.object_]:
    """(W,) reasons; with its figures where there are few windows, so that a year of intervals shares its sentences."""
    reason = np.full(len(state), why, object)
    limit = {HIGH: f"above the limit of {limits.high_percent:g} %", NEGATIVE: f"below {limits.low_percent:g} %"}
    for kind, words in limit.items():
        at = np.flatnonzero(state == kind)
        if len(state) > 1000:
            reason[at] = f"loss {words} beyond its uncertainty"
        else:
            reason[at] = [f"loss {p:.2f} ± {m:.2f} % {words}" for p, m in zip(percent[at], margin[at], strict=True)]
    return reason


def together(children: Sequence[Balance], names: Sequence[str], limits: Limits) -> Balance:
    """Balance of a feeder or a substation: the sums of its areas in the same W windows, errors added in squares.

    Not computable where an area is not: what is missing would look like no loss at all.
    """

    def total(name: str) -> Array:
        return np.asarray(np.sum([getattr(child, name) for child in children], axis=0), np.float64)

    supplied, delivered, fed_in, rest = (
        total(n) for n in ("supplied_wh", "delivered_wh", "input_wh", "unexplained_wh")
    )
    sd = np.sqrt(np.sum([child.loss_sd_wh**2 for child in children], axis=0))
    wide = np.sqrt(np.sum([((child.hi_wh - child.lo_wh) / 2) ** 2 for child in children], axis=0))
    with np.errstate(invalid="ignore", divide="ignore"):
        percent, margin = 100 * (supplied - delivered) / fed_in, 100 * Z80 * sd / fed_in
    state = np.full(len(supplied), NORMAL, np.int8)
    state[percent - margin > limits.high_percent] = HIGH
    state[percent + margin < limits.low_percent] = NEGATIVE
    reason = _words(state, percent, margin, limits, "")
    gone = np.array([child.state == NOT_COMPUTABLE for child in children])
    for at in np.flatnonzero(gone.any(axis=0)).tolist():
        first = int(gone[:, at].argmax())
        more = f" and {int(gone[:, at].sum()) - 1} more" if gone[:, at].sum() > 1 else ""
        state[at], reason[at] = NOT_COMPUTABLE, f"{names[first]}{more}: {children[first].reason[at]}"
    return Balance(
        supplied, delivered, total("technical_wh"), rest, rest - wide, rest + wide, fed_in, sd,
        np.min([child.aligned for child in children], axis=0), state, reason,
    )  # fmt: skip
