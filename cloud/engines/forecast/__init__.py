"""Load of the next hours and days for many series at once: points and quantiles from an ensemble of cheap members.

Day-ahead or intraday, 15 minutes to several days, from any hour; calendar, holidays and any number of weather columns.
Nothing of load at or after an origin is used for it, nor weather beyond what was known then.
"""

from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from cloud.engines.forecast.blocks import Blocks
from cloud.engines.forecast.first import DAYS_MIN
from cloud.engines.forecast.inputs import LEVELS, Array, Forecasts, Inputs
from cloud.engines.forecast.members import DEFAULT, MEMBERS

__all__ = [
    "DAYS_MIN",
    "DEFAULT",
    "LEVELS",
    "MEMBERS",
    "MODEL",
    "MODEL_VERSION",
    "Array",
    "Forecasts",
    "Inputs",
    "forecast",
]

MODEL: Final = "ensemble"
MODEL_VERSION: Final = "2"
_ROLLED: Final = 56  # origins before the first one, from whose errors weights and quantiles are learnt


def forecast(
    inputs: Inputs,
    origins: NDArray[np.int64],
    horizon: int,
    *,
    members: Sequence[str] = DEFAULT,
    levels: Sequence[float] = LEVELS,
) -> Forecasts:
    """Forecast `horizon` steps from each origin.

    origins: (O,) ascending steps at the same time of day; load and calendar of the T steps reach to the end of the last
    horizon (load NaN there).  members: names in MEMBERS; one alone gives that member with its own quantiles.
    Raises ValueError where shapes, origins or names do not fit.
    """
    inputs.check(origins, horizon)
    if unknown := sorted(set(members) - set(MEMBERS)):
        raise ValueError(f"members: {', '.join(MEMBERS)} expected, got {', '.join(unknown)}")
    blocks = Blocks.cut(inputs, origins, horizon)
    last = int(blocks.origins[-1])
    first = max(1, int(blocks.origins[0]) - _ROLLED)
    guesses = np.stack([MEMBERS[name](blocks, first, last) for name in members])  # (M, E, K, S, N)
    count, series = len(blocks.origins), inputs.load.shape[0]
    nothing = ~np.isfinite(blocks.load).any(axis=(0, 2))
    point = guesses.mean(axis=0)
    steps = np.arange(blocks.ahead * blocks.steps_per_day)[:horizon]
    chosen = np.empty((count, series, horizon))
    bands = np.empty((count, series, horizon, len(levels)))
    for at, origin in enumerate(blocks.origins):
        flat = point[origin - first].transpose(1, 0, 2).reshape(series, -1)[:, steps]
        chosen[at] = np.where(nothing[:, None], np.nan, flat)
        errors = []
        for lead in range(blocks.ahead):
            made = np.arange(first, origin - lead)
            missed = blocks.load[made + lead] - point[made - first, lead]
            found = np.zeros((len(levels), *missed.shape[1:]))
            if len(made):
                known = np.isfinite(missed)
                empty = np.logical_not(known.any(axis=0))
                found = np.nanquantile(np.where(empty, 0.0, missed), levels, axis=0)
            errors.append(found)
        band = np.stack(errors, axis=2).reshape(len(levels), series, -1)[:, :, steps]
        bands[at] = np.sort(chosen[at][..., None] + np.moveaxis(band, 0, -1), axis=-1)
    share = np.full((count, series), 1 / len(members))
    return Forecasts(chosen, bands, dict.fromkeys(members, share))
