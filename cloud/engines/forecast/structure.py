"""What weather and calendar alone say: one non-linear regression, shared by all series, by random Fourier features.

Each weather group has its own random cosines of (now, felt, hour, season), after Rahimi and Recht (2007), "Random
features for large-scale kernel machines"; the calendar has the hour by kind of day and by season. The normal equations
grow block by block; each block is forecast by a fit on earlier ones only, so its errors are honest ones to learn from.
"""

from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cho_factor, cho_solve

from cloud.engines.forecast.blocks import HOLIDAY, KINDS, Blocks
from cloud.engines.forecast.features import take_usual, usual
from cloud.engines.forecast.inputs import Array
from cloud.engines.forecast.weather import Weather, seen

BLOCKS_MIN: Final = 28  # fewer say nothing about weather
_COSINES: Final = 320  # shared by the groups
_COSINES_MIN: Final = 24
_REFIT: Final = 7
_REFIT_EARLY: Final = 28
_HALF_LIFE: Final = 500.0
_PENALTY: Final = 30.0
_SEED: Final = 20


def structure(blocks: Blocks, lead: int, first: int, scale: Array, *, change: bool) -> Array:
    """(B, S, N) the load / scale of each block by a fit on blocks before its origin, `lead` blocks before it.

    NaN for the first blocks.
    """
    count, series, steps = blocks.load.shape
    x = features(blocks, seen(blocks, lead, first))
    y: NDArray[np.float32] = (blocks.filled / scale[:, None]).transpose(0, 2, 1).astype(x.dtype)
    ordinary = usual(y, lead) if change else np.zeros_like(y)
    if change:
        take_usual(x, lead)
        y = y - ordinary
    found = np.full((count, steps, series), np.nan)
    width = x.shape[2]
    gram, moment = np.zeros((width, width)), np.zeros((width, series))
    penalty = _PENALTY * steps / 24 * np.eye(width)
    start = 0
    fit = BLOCKS_MIN
    while fit + lead < count:
        decay = 0.5 ** ((fit - start) / _HALF_LIFE)
        weight = np.repeat(0.5 ** ((fit - 1 - np.arange(start, fit)) / _HALF_LIFE / 2), steps)[:, None].astype(x.dtype)
        rows = x[start:fit].reshape(-1, width) * weight
        gram = decay * gram + rows.T @ rows  # of an array with itself: half the work
        moment = decay * moment + rows.T @ (y[start:fit].reshape(-1, series) * weight)
        coefficients = cho_solve(cho_factor(gram + penalty, check_finite=False), moment, check_finite=False)
        following = fit + (_REFIT if fit >= first - _REFIT_EARLY else _REFIT_EARLY)
        ahead = slice(fit + lead, min(following + lead, count))
        found[ahead] = (x[ahead].reshape(-1, width) @ coefficients.astype(x.dtype)).reshape(-1, steps, series)
        start, fit = fit, following
    found += ordinary
    return found.transpose(0, 2, 1)


def features(blocks: Blocks, weather: Weather) -> NDArray[np.float32]:
    """(B, N, M) calendar columns and cosines."""
    count, steps = blocks.kind.shape
    hour = 2 * np.pi * np.arange(steps) / steps
    waves = np.stack([np.ones(steps), *(f(n * hour) for n in range(1, 7) for f in (np.sin, np.cos))], axis=1)
    season = 2 * np.pi * blocks.yearday[..., None] / 365.25
    seasons = np.concatenate([np.sin(season), np.cos(season), np.sin(2 * season), np.cos(2 * season)], axis=2)
    kinds = (blocks.kind[..., None] == np.arange(KINDS)).astype(float)
    # Kinds of day by the hour, coarse ones in detail.
    work = (blocks.kind < 5)[..., None].astype(float)
    off = ((blocks.kind == 6) | (blocks.kind == HOLIDAY))[..., None].astype(float)
    parts = [waves, kinds]
    parts += [kinds[..., k : k + 1] * waves[:, 1:7] for k in range(KINDS)]
    parts += [work * waves[:, 1:], off * waves[:, 1:]]
    parts += [seasons[..., k : k + 1] * waves[:, :7] for k in range(4)]
    parts += [(np.arange(count) / 365.25)[:, None, None]]
    groups = weather.now.shape[1]
    cosines = max(_COSINES_MIN, _COSINES // max(groups, 1))
    simple = sum(part.shape[-1] for part in parts)
    found = np.empty((count, steps, simple + groups * (cosines + 2 + 2 * len(weather.felt))), np.float32)
    at = 0
    rng = np.random.default_rng(_SEED)
    for group in range(groups):
        now = weather.now[:, group, :, None]
        felt = [f[:, group, :, None] for f in weather.felt]
        parts += [now, now**2, *felt, *(f**2 for f in felt)]
        at = _put(found, at, parts)
        clock = np.broadcast_to(waves[:, 1:5], (count, steps, 4))
        z = np.concatenate([now, *felt, clock, seasons[..., :2], work], axis=2, dtype=np.float32, casting="same_kind")
        width = np.array([0.7, 0.7, 0.5, 0.6, 0.6, 0.3, 0.3, 0.3, 0.3, 0.5])
        angle = z @ (rng.standard_normal((z.shape[2], cosines)) * width[:, None]).astype(np.float32)
        angle += rng.uniform(0, 2 * np.pi, cosines).astype(np.float32)
        np.cos(angle, out=found[..., at : at + cosines])
        at, parts = at + cosines, []
    _put(found, at, parts)
    return found


def _put(found: NDArray[np.float32], at: int, columns: Sequence[Array]) -> int:
    """Write columns (…, n) each from `at` on; what follows them."""
    for part in columns:
        found[..., at : at + part.shape[-1]] = part
        at += part.shape[-1]
    return at
