"""How much each member counts, per series, by what it has missed before."""

from typing import Final

import numpy as np
from numpy.typing import NDArray

from cloud.engines.forecast.inputs import Array

_HALF_LIFE: Final = 21.0  # days
_SHRINK: Final = 5.0  # days of evidence that all series share
_STEPS: Final = 60
_RATE: Final = 3.0


def weigh(errors: Array) -> Array:
    """Shares (E, M, S) of M members at E successive origins, from what each missed at earlier ones.

    errors: (E, M, S, N) of the first block from each origin; NaN where either side is missing.  The shares minimise the
    ensemble's own past squared error on the simplex (Bates and Granger 1969), each day scaled by how hard it was, by
    exponentiated gradient; evidence of a young series is filled up with that of all.  At first all are equal.
    """
    count, members, series, _ = errors.shape
    missing = np.isnan(errors)
    silent: NDArray[np.bool_] = np.all(missing, axis=3)
    silent &= np.logical_not(np.all(silent, axis=1, keepdims=True))
    values = np.where(np.any(missing & ~silent[..., None], axis=1, keepdims=True), 0.0, np.nan_to_num(errors))
    shares = np.full((count, members, series), 1 / members)
    past = np.zeros((series, members, members))
    weight = np.zeros(series)
    fade = 0.5 ** (1 / _HALF_LIFE)
    for origin in range(1, count):
        made = values[origin - 1]
        hard = np.abs(made).mean(axis=(0, 2))
        day = np.einsum("msn,ksn->smk", made, made) / made.shape[2]
        # A day on which a member had nothing to say counts as twice the worst against it.
        worst = np.einsum("smm->sm", day).max(axis=1)
        for member in range(members):
            day[:, member, member] += np.where(silent[origin - 1, member], 4 * worst, 0.0)
        seen = hard > 0
        past = fade * past + np.where(seen[:, None, None], day / np.where(seen, hard, 1)[:, None, None] ** 2, 0.0)
        weight = fade * weight + seen
        if not weight.any():
            continue
        joint = past.sum(axis=0) / weight.sum()
        mean = (past + _SHRINK * joint) / (weight + _SHRINK)[:, None, None]
        mean = mean / np.einsum("smm->s", mean)[:, None, None] * members
        share = np.full((series, members), 1 / members)
        for _ in range(_STEPS):
            share = share * np.exp(-_RATE * (mean @ share[..., None])[..., 0])
            share /= share.sum(axis=1, keepdims=True)
        shares[origin] = share.T
    return shares


def mix(guesses: Array, shares: Array) -> Array:
    """Weighted mean (E, K, S, N) of guesses (M, E, K, S, N); a member that is silent (NaN) leaves its to the others."""
    share = np.where(np.isfinite(guesses), shares.transpose(1, 0, 2)[:, :, None, :, None], 0.0)
    total = share.sum(axis=0)
    found: Array = np.where(
        total > 0, (np.nan_to_num(guesses) * share).sum(axis=0) / np.where(total > 0, total, 1), np.nan
    )
    return found
