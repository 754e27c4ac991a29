"""Ridge regressions in a batch, updated by one day at a time.

Each has its own normal equations; the inverse is computed once and then kept up by Sherman and Morrison's formula, so
that a daily refit of R regressions with F features costs R·F² instead of R·F³.
"""

import numpy as np

from cloud.engines.forecast.inputs import Array


def rolling_ridge(
    features: Array, target: Array, first: int, last: int, lead: int, penalty: float, pool: float | None = None
) -> Array:
    """Forecasts of blocks first + lead … last + lead, that of block o + lead by a fit on the blocks before o.

    features: (S, N, B, F) finite.  target: (S, N, B), NaN rows are not learnt from.  penalty: as many days of evidence
    against a coefficient.  pool: where given, the penalty pulls to the coefficients that all series have in common at
    that step, which have themselves this penalty.  Returns (last - first + 1, S, N).
    """
    series, steps, _, width = features.shape
    known = np.isfinite(target)
    x = np.where(known[..., None], features, 0.0)
    y = np.where(known, target, 0.0)
    history = x[:, :, :first]
    size = np.mean(history**2, axis=(0, 2)) + 1e-4  # (N, F): one for all series, as their loads are scaled
    size = np.broadcast_to(size.mean(axis=0), size.shape)
    pull = penalty * size
    gram = history.swapaxes(2, 3) @ history
    moment = (history.swapaxes(2, 3) @ y[:, :, :first, None])[..., 0]
    if pool is not None:
        shared, joint = gram.sum(axis=0), moment.sum(axis=0)
    diagonal = np.arange(width)
    gram[..., diagonal, diagonal] += pull
    inverse = np.linalg.inv(gram)
    del gram
    forecasts = np.empty((last - first + 1, series, steps))
    for origin in range(first, last + 1):
        if origin > first:
            row, seen = x[:, :, origin - 1], y[:, :, origin - 1]
            pulled = (inverse @ row[..., None])[..., 0]
            scale = 1 + (row * pulled).sum(axis=2)
            inverse -= pulled[..., None] * (pulled / scale[..., None])[..., None, :]
            moment += row * seen[..., None]
            if pool is not None:
                shared += np.einsum("snf,sng->nfg", row, row, optimize=True)
                joint += (row * seen[..., None]).sum(axis=0)
        wanted = moment
        if pool is not None:
            system = _near(shared)
            system[:, diagonal, diagonal] += pool * size
            wanted = moment + pull * np.linalg.solve(system, _near(joint)[..., None])[..., 0]
        coefficients = (inverse @ wanted[..., None])[..., 0]
        forecasts[origin - first] = (features[:, :, origin + lead] * coefficients).sum(axis=2)
    return forecasts


def _near(values: Array) -> Array:
    """Sums over an hour to both sides; steps of the day are a circle, and axis 0."""
    hour = max(1, len(values) // 24)
    total = values.copy()
    for shift in range(1, hour + 1):
        total += np.roll(values, shift, axis=0) + np.roll(values, -shift, axis=0)
    return total
