"""Ridge regressions in a batch, updated by one day at a time.

Each has its own normal equations; the inverse is computed once and then kept up by Sherman and Morrison's formula, so
that a daily refit of R regressions with F features costs R·F² instead of R·F³.  They are worked on in slabs whose
inverses stay in the processor's cache, as reading them is what takes time.
"""

from typing import Final

import numpy as np
from numpy.typing import NDArray

from cloud.engines.forecast.inputs import Array

_SLAB: Final = 256  # regressions


def rolling_ridge(
    features: Array, target: Array, first: int, last: int, lead: int, penalty: float, pool: float | None = None
) -> Array:
    """Forecasts of blocks first + lead … last + lead, that of block o + lead by a fit on the blocks before o.

    features: (S, N, B, F) finite.  target: (S, N, B), NaN rows are not learnt from.  penalty: as many days of evidence
    against a coefficient.  pool: where given, the penalty pulls to the coefficients that all series have in common at
    that step, which have themselves this penalty.  Returns (last - first + 1, S, N).
    """
    series, steps, count, width = features.shape
    known = np.isfinite(target)
    y = np.where(known, target, 0.0)
    seen = features[:, :, :first] * known[:, :, :first, None]
    size = np.mean(seen**2, axis=(0, 1, 2)) + 1e-4  # one for all series and steps, as the loads are scaled
    del seen
    pull = penalty * size
    origins = last - first + 1
    prior = np.zeros((origins, steps, width))
    if pool is not None:
        prior = _common(features, known, y, first, last, pool * size)
    x, y = features.reshape(-1, count, width), y.reshape(-1, count)
    known = known.reshape(-1, count)
    forecasts = np.empty((origins, series * steps))
    diagonal = np.arange(width)
    for start in range(0, len(x), _SLAB):
        slab = slice(start, min(start + _SLAB, len(x)))
        step = np.arange(slab.start, slab.stop) % steps
        rows = x[slab] * known[slab, :, None]
        told = y[slab]
        history = rows[:, :first].swapaxes(1, 2)
        gram = history @ rows[:, :first]
        moment = (history @ told[:, :first, None])[..., 0]
        gram[:, diagonal, diagonal] += pull
        inverse = np.linalg.inv(gram)
        for origin in range(first, last + 1):
            if origin > first:
                row = rows[:, origin - 1]
                pulled = (inverse @ row[..., None])[..., 0]
                scale = 1 + (row * pulled).sum(axis=1)
                inverse -= pulled[:, :, None] * (pulled / scale[:, None])[:, None, :]
                moment += row * told[:, origin - 1, None]
            wanted = moment + pull * prior[origin - first, step]
            coefficients = (inverse @ wanted[..., None])[..., 0]
            forecasts[origin - first, slab] = (x[slab, origin + lead] * coefficients).sum(axis=1)
    return forecasts.reshape(origins, series, steps)


def _common(features: Array, known: NDArray[np.bool_], target: Array, first: int, last: int, pull: Array) -> Array:
    """Coefficients (E, N, F) that all series have in common at each step of the day, of fits before each origin."""
    _, steps, _, width = features.shape
    gram, moment = np.zeros((steps, width, width)), np.zeros((steps, width))
    for step in range(steps):
        x = (features[:, step, :first] * known[:, step, :first, None]).reshape(-1, width)
        gram[step] = x.T @ x
        moment[step] = x.T @ target[:, step, :first].reshape(-1)
    found = np.empty((last - first + 1, steps, width))
    diagonal = np.arange(width)
    for origin in range(first, last + 1):
        if origin > first:
            row = (features[:, :, origin - 1] * known[:, :, origin - 1, None]).swapaxes(0, 1)  # (N, S, F)
            gram += row.swapaxes(1, 2) @ row
            moment += (row.swapaxes(1, 2) @ target[:, :, origin - 1].T[..., None])[..., 0]
        system = _near(gram)
        system[:, diagonal, diagonal] += pull
        found[origin - first] = np.linalg.solve(system, _near(moment)[..., None])[..., 0]
    return found


def _near(values: Array) -> Array:
    """Sums over an hour to both sides; steps of the day are a circle, and axis 0."""
    hour = max(1, len(values) // 24)
    total = values.copy()
    for shift in range(1, hour + 1):
        total += np.roll(values, shift, axis=0) + np.roll(values, -shift, axis=0)
    return total
