"""Technical loss of an area whose network is unknown, fitted on its own past.

    loss = a + b·P² + c·Σp² + d·U² + g·P        a, b, c, d ≥ 0

P: power of the area, p: of each customer, U: what the neutral carries when phases are known. With one voltage and one
power factor ΣI² over the branches lies between the two squares: all current through one wire, or a wire for each
customer. a is the transformer's no-load loss. g is no loss at all but the meters' usual gain error, held near 0 by how
wrong meters are; without it the squares would have to explain it. What was already stolen in the past is in the fit:
what follows is a departure from it.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import lsq_linear

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]

_HUBER: Final = 1.5
_ROUNDS: Final = 10
PAST_MIN: Final = 96  # intervals; fewer do not tell a curve from a line


class PastError(ValueError):
    """Too little past to fit a technical loss; the text says how much is there."""


@dataclass(frozen=True, slots=True)
class Fitted:
    """``technical_wh``: (T,).  ``features``: (T, F).  ``coefficients``: (F,).  ``covariance``: (F, F).
    ``explained``: share of the past losses' variance that the fit explains."""

    technical_wh: Array
    features: Array
    coefficients: Array
    covariance: Array
    explained: float

    def sd(self, window_features: Array) -> Array:
        """(W,) Wh standard deviation of the technical loss summed over windows; window_features: (W, F) sums."""
        return np.asarray(np.sqrt(np.einsum("wf,fg,wg->w", window_features, self.covariance, window_features)))


def fit_technical(
    supplied_wh: Array,
    drawn_wh: Array,
    past: Mask,
    loss_sd_wh: Array,
    gain: float,
    *,
    steps_per_day: int,
    phase_share: Array | None = None,
) -> Fitted:
    """Robust fit (Huber) of what an area loses.

    supplied_wh: (T,) at the head.  drawn_wh: (T, M) customers, filled.  past: (T,) intervals to learn from.
    loss_sd_wh: (T,) error of supplied − delivered without its gain.  gain: standard deviation of the area's gain error.
    phase_share: (M, 3) share of each customer on each phase, where known.
    The covariance counts days, not intervals, as independent (sandwich), and the gain's prior.
    Raises PastError.
    """
    if past.sum() < PAST_MIN:
        raise PastError(f"{int(past.sum())} intervals to fit the technical loss on; at least {PAST_MIN} needed")
    mean = float(np.abs(supplied_wh[past]).mean()) or 1.0
    power = supplied_wh / mean
    squares = (drawn_wh**2).sum(axis=1) / mean**2
    columns = [np.ones_like(power), power**2, squares]
    if phase_share is not None:
        at_phase = drawn_wh @ phase_share / mean
        turn = np.exp(2j * np.pi / 3 * np.arange(3))
        columns.append(np.abs(at_phase @ turn) ** 2)
    features = np.column_stack([*columns, power])
    count = features.shape[1]
    lower = np.r_[np.zeros(count - 1), -np.inf]
    loss = supplied_wh - drawn_wh.sum(axis=1)
    prior = np.zeros((count, count))
    prior[-1, -1] = 1 / (max(gain, 1e-6) * mean) ** 2

    x, y, sd = features[past], loss[past], np.maximum(loss_sd_wh[past], 1e-3 * mean)
    trust, scale = np.ones(len(y)), 1.0
    coefficients = np.zeros(count)
    for _ in range(_ROUNDS):
        weight = trust / (sd * scale) ** 2
        normal = x.T @ (weight[:, None] * x) + prior
        # One fit of F unknowns: the square root of the normal equations carries all of the intervals.
        values, vectors = np.linalg.eigh(normal)
        keep = values > values[-1] * 1e-12
        root = np.sqrt(values[keep])[:, None] * vectors[:, keep].T
        target = (vectors[:, keep].T @ (x.T @ (weight * y))) / np.sqrt(values[keep])
        coefficients = np.asarray(
            lsq_linear(root, target, (lower, np.full(count, np.inf)), method="bvls").x, np.float64
        )
        miss = (y - x @ coefficients) / sd
        scale = max(float(np.median(np.abs(miss))) / 0.6745, 1e-6)
        trust = np.minimum(1.0, _HUBER / np.maximum(np.abs(miss) / scale, 1e-9))

    free = np.r_[coefficients[:-1] > 1e-9 * mean, True]
    weight = trust / (sd * scale) ** 2
    bread = np.zeros((count, count))
    bread[np.ix_(free, free)] = np.linalg.pinv((x.T @ (weight[:, None] * x) + prior)[np.ix_(free, free)])
    day = np.flatnonzero(past) // steps_per_day
    pull = (weight * (y - x @ coefficients))[:, None] * x
    by_day = np.add.reduceat(pull, np.flatnonzero(np.diff(day, prepend=-1)), axis=0)
    covariance = bread @ (by_day.T @ by_day + prior) @ bread
    total = float(((y - y.mean()) ** 2).sum())
    rest = float(((y - x @ coefficients) ** 2).sum())
    return Fitted(features @ coefficients, features, coefficients, covariance, 1 - rest / total if total > 0 else 0.0)
