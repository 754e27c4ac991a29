"""Measured load profiles (see ``data/README.md``), resampled from hours to quarter hours."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]

DATA = Path(__file__).parent / "data"
QUARTERS = 96  # per day
WEEK = 7 * QUARTERS


@dataclass(frozen=True, slots=True)
class Profiles:
    """One network's profiles per unit of nominal load; each (quarters,), whole weeks from Monday 00:00 local time.

    ``active`` and ``reactive`` by category; ``pv`` per unit of peak power.
    """

    active: Mapping[str, Array]
    reactive: Mapping[str, Array]
    pv: Array


def resample(hourly: Array, *, signed: bool = False) -> Array:
    """(H,) hourly means to (4 H,) quarter-hour means with the same mean in every hour.

    Linear between the middles of the hours, round the end; then each hour is scaled (``signed``: shifted, since a
    value may be near 0) back to its mean.
    """
    hours = len(hourly)
    middles = np.arange(hours) + 0.5
    quarters = np.interp(np.arange(4 * hours) / 4 + 0.125, middles, hourly, period=hours).reshape(hours, 4)
    mean = quarters.mean(axis=1, keepdims=True)
    if signed:
        quarters += hourly[:, None] - mean
    else:
        quarters *= np.divide(hourly[:, None], mean, out=np.zeros_like(mean), where=mean > 0)
    flat: Array = quarters.ravel()
    return flat


@cache
def load(network: int) -> Profiles:
    with np.load(DATA / "profiles.npz") as archive:
        hourly = {name.split(" ", 1)[1]: archive[name] / 1e4 for name in archive.files if name[:2] == str(network)}
    return Profiles(
        active={name[:-2]: resample(values.clip(0)) for name, values in hourly.items() if name.endswith(" P")},
        reactive={name[:-2]: resample(values, signed=True) for name, values in hourly.items() if name.endswith(" Q")},
        pv=resample(hourly["PV"].clip(0)),
    )


def take(profile: Array, first_quarter: int, count: int) -> Array:
    """``count`` quarters from ``first_quarter`` on; the data comes round again at its end."""
    return profile[np.arange(first_quarter, first_quarter + count) % len(profile)]
