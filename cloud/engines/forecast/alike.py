"""Quantiles of the errors that were made when things were alike: a kernel on past errors, as analogue ensembles do.

After Nadaraya and Watson's estimate of a conditional distribution.  A load that is either on or off errs to one side
when it is forecast high and to the other when low, and by how much it was off when the forecast was made.
"""

from math import gcd
from typing import Final

import numpy as np
from numpy.typing import NDArray

Values = NDArray[np.float32]  # many
_POOL: Final = 30.0  # days of evidence for the quantiles of all series
_SAMPLE: Final = 4_000  # errors of all series
_CHUNKS: Final = 40  # of errors in order, within which they count alike
_AT_ONCE: Final = 4_000_000  # weights
_ANY: Final = 1e-4  # weight of what is not alike at all


def quantiles(errors: Values, before: Values, now: Values, levels: NDArray[np.float64]) -> Values:
    """(S, N, Q) of errors (D, S, N), NaN where unknown, each as it counts by how near `before` (D, S, N, K) is to `now`
    (S, N, K), in widths of the kernel; pulled to those of all series.  0 where nothing is known.
    """
    days, series, steps = errors.shape
    width = now.shape[2]
    own = errors.transpose(1, 0, 2).reshape(series, -1)
    order = np.argsort(own, axis=1)  # NaN last
    own = np.take_along_axis(own, order, axis=1)
    features = before.transpose(1, 0, 2, 3).reshape(series, -1, width)
    features = np.take_along_axis(features, order[..., None], axis=1)
    found = _by_weight(own, features, now, levels)
    if series > 1:
        known = np.flatnonzero(np.isfinite(errors))
        stride = max(1, len(known) // _SAMPLE)
        while gcd(stride, steps) > 1:  # else some hours are never looked at
            stride += 1
        some = known[::stride]
        some = some[np.argsort(errors.reshape(-1)[some])]
        of_all = _by_weight(
            errors.reshape(1, -1)[:, some],
            before.reshape(1, -1, width)[:, some],
            now.reshape(1, -1, width),
            levels,
        ).reshape(series, steps, -1)
        share = days / (days + _POOL)
        found = np.where(np.isnan(found), of_all, share * found + (1 - share) * of_all)
    return np.nan_to_num(found)


def _by_weight(ordered: Values, features: Values, now: Values, levels: NDArray[np.float64]) -> Values:
    """(R, N, Q) of errors (R, P), ascending and NaN last, with features (R, P, K), as they count for now (R, N, K)."""
    rows, count = ordered.shape
    asked = now.shape[1]
    found = np.full((rows, asked, len(levels)), np.nan, np.float32)
    if not count:
        return found
    size = -(-count // _CHUNKS)
    chunks = -(-count // size)
    known = np.isfinite(ordered)
    most = np.take_along_axis(ordered, np.maximum(known.sum(axis=1, keepdims=True) - 1, 0), axis=1)
    filled = np.where(known, ordered, most)
    between = (filled[:, size::size][:, : chunks - 1] + filled[:, size - 1 :: size][:, : chunks - 1]) / 2
    edges: Values = np.concatenate([filled[:, :1], between, most], axis=1)
    far = -0.5 * (features**2).sum(axis=2)
    begins = np.arange(0, count, size)
    rows_at_once = max(1, _AT_ONCE // (count * min(asked, _AT_ONCE)))
    asked_at_once = max(1, _AT_ONCE // count)
    for row in range(0, rows, rows_at_once):
        few = slice(row, row + rows_at_once)
        for at in range(0, asked, asked_at_once):
            some = now[few, at : at + asked_at_once]
            weight = some @ features[few].swapaxes(1, 2)
            weight += far[few, None]
            weight -= 0.5 * (some**2).sum(axis=2, keepdims=True)
            np.exp(weight, out=weight)
            weight += _ANY
            weight *= known[few, None]
            heard: Values = np.add.reduceat(weight, begins, axis=2)
            found[few, at : at + asked_at_once] = _cut(edges[few], heard, levels)
    return found


def _cut(edges: Values, heard: Values, levels: NDArray[np.float64]) -> Values:
    """(R, N, Q) where the shares of weights (R, N, C) between edges (R, C + 1) reach the levels; linear in between."""
    upto = np.zeros((*heard.shape[:2], heard.shape[2] + 1), np.float32)
    np.cumsum(heard, axis=2, out=upto[..., 1:])
    with np.errstate(invalid="ignore"):
        upto /= upto[..., -1:]
    found = np.empty((*heard.shape[:2], len(levels)), np.float32)
    for place, level in enumerate(levels):
        after = np.clip((upto < level).sum(axis=2), 1, heard.shape[2])[..., None]
        low, high = np.take_along_axis(upto, after - 1, 2), np.take_along_axis(upto, after, 2)
        below, above = np.take_along_axis(edges[:, None], after - 1, 2), np.take_along_axis(edges[:, None], after, 2)
        part = np.clip((level - low) / np.maximum(high - low, 1e-9), 0.0, 1.0)
        found[..., place] = (below + part * (above - below))[..., 0]
    return found
