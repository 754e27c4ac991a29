"""The member `trees`: LightGBM, one model for all series, on what they differ from the usual day.

It costs a hundred times what the others do and needs the extra `trees`; asked for by name only, as ensemble+trees.
"""

from importlib.util import find_spec
from itertools import pairwise
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from cloud.engines.forecast.blocks import Blocks
from cloud.engines.forecast.features import back, lags, usual, weeks
from cloud.engines.forecast.inputs import Array
from cloud.engines.forecast.weather import seen

NAME: Final = "trees"
NEEDS: Final = 'trees: LightGBM is missing; pip install "gridloom[trees]"'
_PAST: Final = 365  # days that are learnt from
_AGE: Final = 28  # days of a model
_LEVEL: Final = 28  # days that tell how large a series is
_TREES: Final = 400
_OPTIONS: Final = {
    "objective": "l1", "learning_rate": 0.05, "num_leaves": 63, "min_data_in_leaf": 100, "feature_fraction": 0.8,
    "bagging_fraction": 0.8, "bagging_freq": 1, "seed": 1, "verbose": -1, "deterministic": True, "force_row_wise": True,
}  # fmt: skip


def installed() -> bool:
    return find_spec("lightgbm") is not None


def trees(blocks: Blocks, first: int, last: int) -> Array:
    """(E, K, S, N) of origins first … last, fit before the first one and before those asked for, then monthly."""
    import lightgbm

    series, steps = blocks.load.shape[1:]
    asked = max(int(blocks.origins[0]), first + 1)
    fits = [first, *range(asked, last + 1, _AGE), last + 1]
    found = np.empty((last + 1 - first, blocks.ahead, series, steps))
    for lead in range(blocks.ahead):
        level = _level(blocks, lead)
        base = usual(blocks.filled, lead)
        x = _columns(blocks, first, lead, base, level)
        y = (blocks.load - base) / level[..., None]
        for start, end in pairwise(fits):
            past = slice(max(0, start - _PAST), start)
            known = np.isfinite(y[past])
            if known.any():
                data = lightgbm.Dataset(x[past][known], y[past][known], free_raw_data=True)
                model = lightgbm.train(dict(_OPTIONS), data, _TREES)
                target = x[start + lead : end + lead]
                said = np.asarray(model.predict(target.reshape(-1, x.shape[-1]))).reshape(-1, series, steps)
            else:
                said = np.zeros((end - start, series, steps))
            ahead = slice(start + lead, end + lead)
            found[start - first : end - first, lead] = base[ahead] + said * level[ahead, :, None]
    return found


def _level(blocks: Blocks, lead: int) -> Array:
    """(B, S) mean size over the days known before each block."""
    daily = np.abs(blocks.filled).mean(axis=2)
    total = np.cumsum(np.concatenate([np.zeros((1, daily.shape[1])), daily]), axis=0)
    end = np.maximum(np.arange(len(daily)) - lead, 1)
    start = np.maximum(end - _LEVEL, 0)
    level = (total[end] - total[start]) / (end - start)[:, None]
    return np.where(level > 0, level, 1.0)


def _columns(blocks: Blocks, first: int, lead: int, base: Array, level: Array) -> NDArray[np.float32]:
    """(B, S, N, F)."""
    size = level[..., None]
    less = (blocks.filled - base) / size
    columns: list[NDArray[Any]] = [*lags(less, lead), base / size, np.log(size)]
    columns += [back(less, lead + 1 + day) for day in range(2, 7)]
    columns += [back(blocks.filled, ago) / size for ago in (lead + 1, weeks(lead), weeks(lead) + 7)]
    columns += [np.arange(blocks.steps_per_day)[None, None], np.arange(size.shape[1])[None, :, None]]
    columns += [blocks.kind[:, None], back(blocks.kind, lead + 1)[:, None], blocks.yearday[:, None]]
    weather = seen(blocks, lead, first)
    for group in range(weather.now.shape[1]):
        now = weather.now[:, group : group + 1]
        columns += [now, now - back(now, lead + 1), now - back(now, weeks(lead))]
        columns += [felt[:, group : group + 1] for felt in weather.felt]
    found = np.empty((*blocks.filled.shape, len(columns)), np.float32)
    for at, column in enumerate(columns):
        found[..., at] = column
    return found
