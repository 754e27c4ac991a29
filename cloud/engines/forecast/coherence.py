"""Forecasts that add up: areas to their feeder, feeders to the substation.

MinT with shrinkage: Wickramasuriya, Athanasopoulos and Hyndman (2019), "Optimal forecast reconciliation for
hierarchical and grouped time series through trace minimization", JASA 114, in its projection form
``ỹ = ŷ − W Cᵀ (C W Cᵀ)⁻¹ C ŷ`` with one row of C for each parent (parent less children).  W is the covariance of past
errors, its correlations shrunk towards none as Schäfer and Strimmer (2005), "A shrinkage approach to large-scale
covariance matrix estimation", choose.  No matrix of series × series is ever built, so thousands of series cost no more
than their past errors do.
"""

from typing import Final

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

ROOT: Final = -1
_FLOOR: Final = 1e-6  # of the mean variance: what never erred yet is trusted, not believed blindly
_ERRORS_MIN: Final = 8  # with fewer, a variance is no more than a guess


def reconcile(point: Array, quantiles: Array, parents: NDArray[np.int64], errors: Array) -> tuple[Array, Array]:
    """One origin's forecasts, moved as little as their past errors justify until children add up to their parent.

    point: (S, H), any unit.  quantiles: (S, H, Q).  parents: (S,) row of each series' parent, ``ROOT`` where none.
    errors: (E, S) past errors of these forecasts before they were reconciled, NaN where unknown; E may be 0.
    Returns both anew. Points add up exactly (to rounding). Quantiles of a sum are not the sum of quantiles: each series
    keeps the shape of its own distribution, which moves along with its point.
    A parent that has no forecast itself, or a child without one (NaN), is not held to its children.
    Raises ValueError if the shapes differ or a parent is its own ancestor.
    """
    if not len(parents) == len(point) == len(quantiles) == errors.shape[1]:
        raise ValueError(
            f"series differ: point {len(point)}, quantiles {len(quantiles)}, parents {len(parents)}, "
            f"errors {errors.shape[1]}"
        )
    leaves = _leaves(parents)
    known = np.asarray(np.isfinite(point).all(axis=1))
    child = np.flatnonzero(parents != ROOT)
    held = known.copy()
    held[parents[child[~known[child]]]] = False
    held &= np.bincount(parents[child], minlength=len(parents)) > 0
    rows = np.flatnonzero(held)
    if not len(rows):
        return point.copy(), quantiles.copy()
    constraint = np.zeros((len(rows), len(parents)))
    constraint[np.arange(len(rows)), rows] = 1.0
    child = child[held[parents[child]]]
    constraint[np.searchsorted(rows, parents[child]), child] = -1.0

    spread = _covariance_times(constraint, errors, leaves)  # (S, P)
    gap = constraint @ np.where(known[:, None], point, 0.0)
    shift = -spread @ np.linalg.solve(constraint @ spread, gap)
    return point + shift, quantiles + shift[:, :, None]


def _leaves(parents: NDArray[np.int64]) -> Array:
    """(S,) how many series without children each one consists of, itself if it is one."""
    size = len(parents)
    is_leaf = np.bincount(parents[parents != ROOT], minlength=size) == 0
    count: Array = is_leaf.astype(float)
    ancestor, who = parents.copy(), is_leaf
    for _ in range(size + 1):  # a level of the hierarchy each time
        who = who & (ancestor != ROOT)
        if not who.any():
            break
        count += np.bincount(ancestor[who], minlength=size)
        ancestor = np.where(who, parents[ancestor], ROOT)
    if who.any() or not count.all():
        raise ValueError("parents: a series is its own ancestor")
    return count


def _covariance_times(constraint: Array, errors: Array, leaves: Array) -> Array:
    """W Cᵀ (S, P) of the shrunk covariance W, without W."""
    seen = np.isfinite(errors)
    count = seen.sum(axis=0)
    clean = np.where(seen, errors, 0.0)
    variance = (clean**2).sum(axis=0) / np.maximum(count, 1)  # about 0: a bias is an error, too
    judged = count >= _ERRORS_MIN
    per_leaf = float((variance[judged] / leaves[judged]).mean()) if judged.any() else 0.0
    # A series that nothing is known about errs like the others do for their size.
    variance = np.where(judged, variance, (per_leaf or 1.0) * leaves)
    variance = np.maximum(variance, _FLOOR * (float(variance.mean()) or 1.0))
    deviation = np.sqrt(variance)

    unit = clean / deviation * (judged / np.sqrt(np.maximum(count, 1)))  # (E, S); unitᵀ unit are the correlations
    shrunk = _shrinkage(unit)
    scaled = deviation[:, None] * constraint.T  # (S, P)
    together = shrunk * scaled + (1 - shrunk) * (unit.T @ (unit @ scaled))
    # The diagonal stays what it is: a series without errors on record is missing from the second term.
    alone = 1 - shrunk - (1 - shrunk) * (unit**2).sum(axis=0)
    product: Array = deviation[:, None] * (together + alone[:, None] * scaled)
    return product


def _shrinkage(unit: Array) -> float:
    """Schäfer and Strimmer's λ for correlations ``unitᵀ unit`` of (E, S): noise of the off-diagonal over its size."""
    length = len(unit)
    if length < 2:
        return 1.0
    power = unit**2
    alone = power.sum(axis=0)
    size = float((np.einsum("es,fs->ef", unit, unit, optimize=True) ** 2).sum() - (alone**2).sum())
    # Σ over i ≠ j of Σ over e of (unit_ei · unit_ej)², of which the mean's part is ``size`` / E.
    raw = float((power.sum(axis=1) ** 2).sum() - (power**2).sum())
    noise = length / (length - 1) * (raw - size / length)
    return float(np.clip(noise / size, 0.0, 1.0)) if size > 0 else 1.0
