"""What goes wrong between a load and its record: ten kinds of faults, and the noise that every meter has.

Sizes: the share of the customer's energy from the start that is not recorded. A kind that can only touch part of the
energy (night hours, one phase, 40 % of days) takes at most that part.
"""

from typing import Final

import numpy as np
import numpy.typing as npt

from cloud.loss.profiles import STEPS_OF_DAY, Array

KINDS: Final = (
    "scaled",
    "night",
    "peak",
    "cap",
    "intermittent",
    "subtract",
    "phase_missing",
    "ct_ratio",
    "wrong_area",
    "stopped",
)
SIZES: Final = (0.05, 0.20, 0.50)
FIRST_DAYS: Final = (30, 60)  # a fault starts on one of these, the last included
INTERMITTENT_DAYS: Final = 0.4
NIGHT, PEAK = (22, 6), (17, 21)  # hours, local

CUSTOMER_GAIN, SUPPLY_GAIN, CLOCK_S = 0.005, 0.001, 60.0
VOLTAGE_GAIN, VOLTAGE_NOISE = 0.005, 0.001  # of rated: class 0.5; 0.2 V at 220 V
MISSING_SHARE, GAP_HOURS, REGISTER_WH = 0.01, 6, 10.0


def level(x: Array, energy: float) -> float:
    """The level c for which the sum of min(x, c) is `energy`; x: (T,) not negative."""
    ascending = np.sort(x)
    below = np.concatenate(([0.0], np.cumsum(ascending)[:-1]))
    clipped = below + ascending * np.arange(len(x), 0, -1)
    i = min(int(np.searchsorted(clipped, energy)), len(x) - 1)
    return float((energy - below[i]) / (len(x) - i))


def between(step: npt.NDArray[np.int64], hours: tuple[int, int]) -> npt.NDArray[np.bool_]:
    """Steps of a quarter hour inside the hours of day, across midnight where they end before they start."""
    hour = (step % STEPS_OF_DAY) * 24 // STEPS_OF_DAY
    first, last = hours
    return (hour >= first) & (hour < last) if first < last else (hour >= first) | (hour < last)


def resplit(shares: Array, phase: int, size: float) -> Array:
    """Phase shares (T, 3) in which `phase` has `size` of the energy on average, to be lost with it."""
    mean = float(shares[:, phase].mean())
    weighted = shares.copy()
    weighted[:, phase] *= size * (1 - mean) / ((1 - size) * mean)
    return np.asarray(weighted / weighted.sum(1, keepdims=True))


def record(rng: np.random.Generator, kind: str, load: Array, share: Array, size: float, first: int) -> Array:
    """What the faulty meter records of `load` (T,) Wh from step `first` on; share: (T,) of the missing phase.

    wrong_area records all of it, in the wrong book.
    """
    step = np.arange(first, len(load))
    x = load[first:]
    total = float(x.sum())
    lost = np.zeros_like(x)
    match kind:
        case "scaled":
            lost = size * x
        case "ct_ratio":
            lost = x * (size if rng.random() < 0.5 else -size)
        case "night" | "peak":
            inside = between(step, NIGHT if kind == "night" else PEAK)
            lost = np.where(inside, x * min(size * total / max(float(x[inside].sum()), 1e-9), 1.0), 0.0)
        case "cap":
            lost = np.maximum(x - level(x, (1 - size) * total), 0)
        case "subtract":
            lost = np.minimum(x, level(x, size * total))
        case "intermittent":
            days = step // STEPS_OF_DAY
            count = len(np.unique(days))
            chosen = rng.choice(np.unique(days), size=max(1, round(INTERMITTENT_DAYS * count)), replace=False)
            inside = np.isin(days, chosen)
            lost = np.where(inside, x * min(size * total / max(float(x[inside].sum()), 1e-9), 1.0), 0.0)
        case "phase_missing":
            lost = x * share[first:]
        case "stopped":
            while lost.sum() < size * total:
                begins, lasts = int(rng.integers(len(x))), int(rng.integers(24, 4 * STEPS_OF_DAY))
                spell = np.arange(begins, min(begins + lasts, len(x)))
                fits = np.cumsum(np.where(lost[spell] > 0, 0, x[spell])) <= size * total - lost.sum()
                spell = spell[: max(int(fits.sum()), 1)]
                lost[spell] = x[spell]
        case "wrong_area":
            pass
        case _:
            raise ValueError(f"fault {kind!r}: one of {', '.join(KINDS)} expected")
    return np.concatenate([load[:first], x - lost])


def measure(
    rng: np.random.Generator, net: Array, supply: npt.NDArray[np.bool_], *, gains: bool = True
) -> tuple[Array, Array, npt.NDArray[np.bool_]]:
    """What meters read of the true energies `net` (T, M) Wh: (imported, exported (T, M) Wh, present (T, M)).

    Gain, clock offset, rounded registers, intervals missing at random, and six hours of the whole area each week.
    `supply`: (M,) which are supply meters; gains=False leaves the gain errors out.
    """
    steps, count = net.shape
    gain = rng.normal(0, 1, count) * np.where(supply, SUPPLY_GAIN, CUSTOMER_GAIN) * gains
    late = rng.normal(0, CLOCK_S, count) / 900
    after = np.concatenate([net[1:], net[-1:]])
    before = np.concatenate([net[:1], net[:-1]])
    seen = net + np.maximum(late, 0) * (after - net) + np.maximum(-late, 0) * (before - net)
    seen *= 1 + gain

    def register(energy: Array) -> Array:
        total = rng.uniform(0, REGISTER_WH, count) + np.cumsum(np.concatenate([np.zeros((1, count)), energy]), axis=0)
        return np.diff(np.floor(total / REGISTER_WH), axis=0) * REGISTER_WH

    imported, exported = register(np.maximum(seen, 0)), register(np.maximum(-seen, 0))
    present = rng.random((steps, count)) >= MISSING_SHARE
    week, gap = 7 * STEPS_OF_DAY, GAP_HOURS * STEPS_OF_DAY // 24
    for first in range(0, steps, week):
        begins = first + int(rng.integers(max(min(week, steps - first) - gap, 1)))
        present[begins : begins + gap] = False
    return imported, exported, present


def measure_voltage(rng: np.random.Generator, voltage_v: Array, *, gains: bool = True) -> Array:
    """What meters show of the true means of intervals (T, M, 3) V: a gain of each phase, noise, one decimal place."""
    gain = 1 + rng.normal(0, VOLTAGE_GAIN, voltage_v.shape[1:]) * gains
    noise = rng.normal(0, VOLTAGE_NOISE, voltage_v.shape) * voltage_v.mean(0)
    return np.asarray(np.round(voltage_v * gain + noise, 1))
