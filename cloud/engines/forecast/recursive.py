"""Ridge regressions in a batch, updated by one day at a time.

Each has its own normal equations; the inverse is computed once and then kept up by Sherman and Morrison's formula, so
that a daily refit of R regressions with F features costs R·F² instead of R·F³.
"""

import numpy as np

from cloud.engines.forecast.inputs import Array


def rolling_ridge(
    features: Array, target: Array, first: int, last: int, lead: int, penalty: Array, prior: Array | None = None
) -> Array:
    """Forecasts of blocks first + lead … last + lead, that of block o + lead by a fit on the blocks before o.

    features: (R, B, F) finite.  target: (R, B), NaN rows are not learnt from.  penalty: (R, F) > 0.
    prior: (R, F) the coefficients that the penalty pulls to (0).  Returns (R, last - first + 1).
    """
    known = np.isfinite(target)
    x = np.where(known[..., None], features, 0.0)
    y = np.where(known, target, 0.0)[..., None]
    history = x[:, :first].swapaxes(1, 2)
    gram = history @ x[:, :first]
    moment = (history @ y[:, :first])[..., 0]
    if prior is not None:
        moment += penalty * prior
    diagonal = np.arange(x.shape[2])
    gram[:, diagonal, diagonal] += penalty
    inverse = np.linalg.inv(gram)
    forecasts = np.empty((len(x), last - first + 1))
    for origin in range(first, last + 1):
        if origin > first:
            row = x[:, origin - 1]
            pulled = (inverse @ row[..., None])[..., 0]
            scale = 1 + (row * pulled).sum(axis=1)
            inverse -= pulled[:, :, None] * (pulled / scale[:, None])[:, None, :]
            moment += row * y[:, origin - 1]
        coefficients = (inverse @ moment[..., None])[..., 0]
        forecasts[:, origin - first] = (features[:, origin + lead] * coefficients).sum(axis=1)
    return forecasts
