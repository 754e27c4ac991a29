"""Load profiles of a low-voltage area: households, shops, workshops and roof PV, drawn at 15 minutes.

A customer is a habit (level, hours of day, weekend, weather) plus appliances switched on at random. Levels are those of
urban low-voltage areas: households 3-15 kWh a day, shops 10-50, workshops 40-150.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.signal import lfilter

Array = npt.NDArray[np.float64]

STEPS_OF_DAY = 96
HOUSEHOLD, SHOP, WORKSHOP = 0, 1, 2
SHARES = (0.80, 0.14, 0.06)
DAILY_WH = (7_500.0, 22_000.0, 75_000.0)
DAILY_SPREAD = (0.45, 0.5, 0.4)  # of the logarithm


@dataclass(frozen=True, slots=True)
class Profiles:
    """load_wh, pv_wh: (T, N) Wh in each interval; kind: (N,) HOUSEHOLD ...; phase_share: (T, N, 3) adds up to 1."""

    load_wh: Array
    pv_wh: Array
    kind: npt.NDArray[np.int64]
    phase_share: Array


def _bump(hour: Array, centre: Array, width: Array) -> Array:
    """(H, N) a daily bell around each customer's own hour, around the clock."""
    away = (hour[:, None] - centre[None, :] + 12) % 24 - 12
    return np.asarray(np.exp(-0.5 * (away / width[None, :]) ** 2))


def weather(rng: np.random.Generator, days: int, day_of_year: int) -> tuple[Array, Array]:
    """Mean temperature (D,) °C and clearness of the sky (D,) 0..1 of a temperate year, day by day."""
    day = day_of_year + np.arange(days)
    season = 14 - 12 * np.cos(2 * np.pi * (day - 20) / 365.25)
    swing = lfilter([1.0], [1.0, -0.75], rng.normal(0, 2.2, days + 30))[30:]
    clear = 1 / (1 + np.exp(-lfilter([1.0], [1.0, -0.4], rng.normal(0.5, 1.2, days + 30))[30:]))
    return season + swing, 0.15 + 0.85 * clear


def customer_kinds(rng: np.random.Generator, count: int) -> npt.NDArray[np.int64]:
    return rng.choice(3, size=count, p=SHARES)


def draw(
    rng: np.random.Generator,
    kind: npt.NDArray[np.int64],
    three_phase: npt.NDArray[np.bool_],
    phase: npt.NDArray[np.int64],
    start: np.datetime64,
    days: int,
) -> Profiles:
    """Profiles of an area without PV; `phase` (N,) 0..2 is the phase of a single-phase customer.

    start: a midnight. Load follows hours, weekdays, the season's temperature, day-to-day moods and random appliances.
    """
    count = len(kind)
    steps = days * STEPS_OF_DAY
    hour = np.arange(STEPS_OF_DAY) / 4.0
    weekday = (np.arange(days) + (start.astype("datetime64[D]").astype(int) + 3)) % 7
    weekend = (weekday >= 5).astype(float)
    sunday = (weekday == 6).astype(float)
    first_day = int((start.astype("datetime64[D]") - start.astype("datetime64[Y]")).astype(int))
    temperature, _ = weather(rng, days, first_day)

    def normal(mean: float, sd: float) -> Array:
        return rng.normal(mean, sd, count)

    # The day's shape by kind, one for working days and one for weekends: (H, N).
    morning, noon, evening = (
        _bump(hour, normal(m, s), rng.uniform(w, 2 * w, count))
        for m, s, w in ((7.2, 0.8, 0.7), (12.4, 0.7, 0.8), (19.8, 1.0, 1.3))
    )
    at_home = rng.beta(2, 3, count)
    home = 0.25 + 0.5 * morning + (0.2 + 0.6 * at_home) * noon + rng.uniform(0.9, 1.8, count) * evening
    home_weekend = 0.3 + 0.35 * np.roll(morning, 4, axis=0) + 0.7 * noon + rng.uniform(0.9, 1.6, count) * evening

    def business(opens: Array, closes: Array, standby: Array) -> Array:
        edge = rng.uniform(0.2, 0.7, count)
        rise = 1 / (1 + np.exp(-(hour[:, None] - opens) / edge))
        fall = 1 / (1 + np.exp((hour[:, None] - closes) / edge))
        return standby + rise * fall

    shop = business(normal(9, 0.8), normal(20.5, 1.3), rng.uniform(0.08, 0.3, count))
    workshop = business(normal(7.5, 0.6), normal(17.5, 1.0), rng.uniform(0.03, 0.12, count))
    workshop -= 0.5 * _bump(hour, normal(12.3, 0.3), np.full(count, 0.4)) * (workshop > 0.6)
    pick = np.stack([kind == HOUSEHOLD, kind == SHOP, kind == WORKSHOP]).astype(float)
    working = home * pick[0] + shop * pick[1] + workshop * pick[2]
    free = (
        home_weekend * pick[0]
        + shop * rng.uniform(0.5, 1.3, count) * pick[1]
        + workshop * rng.uniform(0.05, 0.5, count) * pick[2]
    )
    closed_sunday = (pick[1] * (rng.random(count) < 0.2) + pick[2]) > 0
    quiet = np.where(closed_sunday, rng.uniform(0.1, 0.3, count), 1.0)
    working, free = working / working.mean(0), free / working.mean(0)

    # Days: weather, moods that last a few days, days away.
    heating = np.maximum(15 - temperature, 0)[:, None] * rng.gamma(1.2, 0.012, count)
    cooling = np.maximum(temperature - 23, 0)[:, None] * rng.gamma(1.5, 0.03, count)
    mood = lfilter([1.0], [1.0, -0.6], rng.normal(0, 1, (days + 20, count)), axis=0)[20:] * 0.8
    sd = np.where(kind == HOUSEHOLD, rng.uniform(0.1, 0.25, count), rng.uniform(0.05, 0.15, count))
    level = np.exp(sd * mood - sd**2 / 2) * (1 + heating + cooling)
    away_starts = rng.random((days, count)) < 0.008 * (kind == HOUSEHOLD)
    away = lfilter(np.ones(3), [1.0], away_starts.astype(float), axis=0) > 0
    level = np.where(away, 0.15 * level, level) * np.where(sunday[:, None] > 0, quiet, 1.0)
    day_wh = np.asarray(DAILY_WH)[kind] * np.exp(rng.normal(0, 1, count) * np.asarray(DAILY_SPREAD)[kind])
    day_wh = np.minimum(day_wh, np.where(three_phase, 200_000.0, 30_000.0))  # who needs more gets three phases
    shape = np.where(weekend[:, None, None] > 0, free, working)  # (D, H, N)
    habit = (shape * (level * day_wh / STEPS_OF_DAY)[:, None, :]).reshape(steps, count)

    # Appliances: switched on at random in proportion to the habit, each with its own power and duration.
    switched = np.where(kind == HOUSEHOLD, rng.uniform(0.4, 0.75, count), rng.uniform(0.1, 0.35, count))
    load = habit * (1 - switched)
    for lasts in (1, 3, 8):
        each_wh = np.asarray([350.0, 400.0, 1_500.0])[kind] * rng.uniform(0.5, 1.5, count)
        each_wh = np.minimum(each_wh, day_wh / 12)
        starts = rng.poisson(habit * (switched / 3) / (each_wh * lasts)).astype(float)
        starts *= each_wh * rng.lognormal(0, 0.2, (steps, count))
        load += lfilter(np.ones(lasts), [1.0], starts, axis=0)
    load *= rng.lognormal(0, 0.05, (steps, count))

    # Three-phase customers: an own split that wanders; single-phase ones have all on their phase.
    split = rng.dirichlet((6.0, 6.0, 6.0), count)
    wander = rng.lognormal(0, 0.25, (steps // 4, count, 3)).repeat(4, axis=0)
    shares = np.where(three_phase[:, None], split * wander, np.eye(3)[phase])
    shares /= shares.sum(2, keepdims=True)
    return Profiles(load, np.zeros_like(load), kind, shares)


def pv(rng: np.random.Generator, daily_wh: Array, start: np.datetime64, days: int) -> Array:
    """(T, N) Wh of roof PV, sized 0.5-1.5 of each owner's daily use, under one sky for the area."""
    first_day = int((start.astype("datetime64[D]") - start.astype("datetime64[Y]")).astype(int))
    _, clear = weather(rng, days, first_day)
    hour = np.arange(STEPS_OF_DAY) / 4.0
    half_day = 6 + 1.5 * np.sin(2 * np.pi * (first_day + np.arange(days) - 80) / 365.25)
    height = np.maximum(np.cos((hour[None, :] - 12) / half_day[:, None] * np.pi / 2), 0) ** 1.3
    height[np.abs(hour[None, :] - 12) > half_day[:, None]] = 0
    cloud = np.clip(clear[:, None] * rng.lognormal(0, 0.25, (days, STEPS_OF_DAY)), 0, 1)
    sun = (height * cloud).reshape(-1)
    sun /= sun.mean() * STEPS_OF_DAY
    roof = sun[:, None] * rng.lognormal(0, 0.08, (len(sun), len(daily_wh)))
    return np.asarray(roof * daily_wh * rng.uniform(0.5, 1.5, len(daily_wh)))


def perturb(rng: np.random.Generator, given: Array, count: int, days: int) -> Array:
    """(T, N) customers made of given profiles (T', K): one each, moved by whole weeks, its level and moods its own."""
    steps, week = days * STEPS_OF_DAY, 7 * STEPS_OF_DAY
    weeks = max(len(given) // week, 1)
    source = rng.integers(given.shape[1], size=count)
    moved = rng.integers(weeks, size=count) * week + rng.integers(-2, 3, size=count)
    length = weeks * week if len(given) >= week else len(given)
    load = np.maximum(given, 0)[(np.arange(steps)[:, None] + moved) % length, source]
    mood = lfilter([1.0], [1.0, -0.6], rng.normal(0, 0.1, (days, count)), axis=0)
    noise = rng.lognormal(0, 0.15, (steps, count))
    return np.asarray(load * np.exp(mood).repeat(STEPS_OF_DAY, axis=0) * noise * rng.lognormal(0, 0.3, count))
