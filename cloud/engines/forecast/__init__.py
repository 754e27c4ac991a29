"""Load of the next hours and days for many series at once: points and quantiles from an ensemble of cheap members.

Day-ahead or intraday, 15 minutes to several days, from any hour; calendar, holidays and any number of weather columns.
Nothing of load at or after an origin is used for it, nor weather beyond what was known then.
"""

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Final

import numpy as np
from numpy.typing import NDArray

from cloud.engines.forecast.blocks import Blocks
from cloud.engines.forecast.ensemble import mix, weigh
from cloud.engines.forecast.festival import without
from cloud.engines.forecast.inputs import DAYS_AHEAD, LEVELS, Array, Forecasts, Inputs
from cloud.engines.forecast.members import DEFAULT, MEMBERS, THRIFTY, Member, guess, usual_members
from cloud.engines.forecast.quantiles import offsets

__all__ = [
    "DAYS_AHEAD",
    "DAYS_MIN",
    "DEFAULT",
    "LEVELS",
    "MEMBERS",
    "MODEL",
    "MODEL_VERSION",
    "THRIFTY",
    "Array",
    "Forecasts",
    "Inputs",
    "Member",
    "forecast",
    "usual_members",
]

MODEL: Final = "ensemble"
MODEL_VERSION: Final = "2"
DAYS_MIN: Final = 3
_CELLS: Final = 1_000_000  # of history that are worked on at a time, about 1 GB
_ROLLED: Final = 56  # origins before the first one, from whose errors weights and quantiles are learnt
_QUICK: Final = 40_000  # series x steps of the day, above which quantiles are the quick ones
_ALONE: Final = 28  # the same for one member alone, which has no weights to learn


def forecast(
    inputs: Inputs,
    origins: NDArray[np.int64],
    horizon: int,
    *,
    members: Sequence[str] = DEFAULT,
    levels: Sequence[float] = LEVELS,
    workers: int = 1,
    extra: Mapping[str, Member] | None = None,
) -> Forecasts:
    """Forecast `horizon` steps from each origin.

    origins: (O,) ascending steps at the same time of day; load and calendar of the T steps reach to the end of the last
    horizon (load NaN there).  members: names in MEMBERS or `extra`; one alone gives that member with its own quantiles;
    DEFAULT stands for `usual_members`, which are fewer without weather or with very many series.
    workers: threads that share the series where these are many (set OPENBLAS_NUM_THREADS=1 then).
    extra: more members by name, as the engine itself has none that need other libraries.
    Raises ValueError where shapes, origins or names do not fit.
    """
    inputs.check(origins, horizon)
    known = dict(MEMBERS) | dict(extra or {})
    if unknown := sorted(set(members) - set(known)):
        raise ValueError(f"members: {', '.join(known)} expected, got {', '.join(unknown)}")
    if tuple(members[: len(DEFAULT)]) == DEFAULT:
        fewer = usual_members(inputs.load.shape[0] * inputs.steps_per_day, len(inputs.weather))
        members = (*fewer, *members[len(DEFAULT) :])
    chosen = {name: known[name] for name in members}
    blocks = Blocks.cut(inputs, origins, horizon)
    series = inputs.load.shape[0]
    size = max(1, _CELLS // (blocks.load.shape[0] * blocks.steps_per_day))
    quick = len(chosen) == 1 or series * blocks.steps_per_day > _QUICK
    slices = [slice(at, at + size) for at in range(0, series, size)]

    def part(some: slice) -> Forecasts:
        return _forecast(blocks.of(some), horizon, chosen, levels, quick)

    if len(slices) == 1 or workers == 1:
        parts = [part(some) for some in slices]
    else:
        with ThreadPoolExecutor(workers) as pool:
            parts = list(pool.map(part, slices))
    return Forecasts(
        np.concatenate([part.point for part in parts], axis=1),
        np.concatenate([part.quantiles for part in parts], axis=1),
        {name: np.concatenate([part.weights[name] for part in parts], axis=1) for name in members},
    )


def _forecast(
    blocks: Blocks, horizon: int, members: Mapping[str, Member], levels: Sequence[float], quick: bool
) -> Forecasts:
    last = int(blocks.origins[-1])
    first = int(blocks.origins[0])
    first -= min(_ROLLED if len(members) > 1 else _ALONE, first // 2)
    _, series, steps = blocks.load.shape
    guesses = _guesses(blocks, first, last, members)
    shares = weigh(blocks.load[first : last + 1, None] - guesses[:, :, 0].transpose(1, 0, 2, 3))
    point, apart = mix(guesses, shares)
    asked = blocks.origins - first
    chosen_of, bands = [], []
    for lead in range(blocks.ahead):
        errors = blocks.load[first + lead : last + lead + 1] - point[:, lead]
        middle, band = offsets(errors, point[:, lead], apart[:, lead], int(asked[0]), lead, levels, quick=quick)
        at = asked - asked[0]
        # A member asked for alone is given as it is.
        chosen_of.append(point[asked, lead] + (middle[at] if len(members) > 1 else 0.0))
        bands.append(point[asked, lead, ..., None] + band[at])
    begun = np.logical_or.accumulate(np.isfinite(blocks.load).any(axis=2), axis=0)[blocks.origins - 1]  # (O, S)
    chosen = np.stack(chosen_of, axis=2).reshape(len(asked), series, -1)[:, :, :horizon]
    chosen = np.where(begun[..., None], chosen, np.nan)
    fan = np.stack(bands, axis=2).reshape(len(asked), series, blocks.ahead * steps, -1)[:, :, :horizon]
    quantiles = np.where(begun[..., None, None], np.sort(fan, axis=-1), np.nan)
    views = shares[asked].mean(axis=3).reshape(len(asked), -1, len(members), series).sum(axis=1)
    return Forecasts(chosen, quantiles, {name: views[:, at] for at, name in enumerate(members)})


def _guesses(blocks: Blocks, first: int, last: int, members: Mapping[str, Member]) -> Array:
    """(M, E, K, S, N) of the members; near a festival each twice: as the load was, and less what the festival does.

    Which of the two is right about the days that follow it is for the shares to find out.
    """
    guesses = guess(blocks, first, last, members)
    plain = without(blocks, first, last) if len(members) > 1 else None
    if plain is None:
        return guesses
    others = guess(plain.blocks, first, last, members)
    for lead in range(blocks.ahead):
        at = slice(first + lead, last + lead + 1)
        put_back = others[:, :, lead] * plain.times[lead, at] + plain.plus[lead, at]
        others[:, :, lead] = np.where(plain.felt[at][:, None], put_back, guesses[:, :, lead])
    return np.concatenate([guesses, others])
