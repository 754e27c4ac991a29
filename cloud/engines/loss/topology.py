"""Where a meter really hangs, before anybody is called a thief: by voltages of transformers and phases, by sums.

Meters behind one transformer and on one phase see the same voltage but for the drop along their own wires, so that
their voltages move together from interval to interval; what all transformers share (the voltage of the network above)
tells nothing and is taken off. A check meter sees the sum of those behind it, so that changes of a record appear in it
one to one, or not at all.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Index = NDArray[np.int64]

PAIRS_MIN: Final = 96  # intervals with voltages at both ends: less tells nothing
SURE_Z: Final = 5.0  # standard deviations between two correlations before a registry is doubted
CORRELATION_MIN: Final = 0.5  # the better group must be followed, not only be less bad
SERIAL: Final = 0.25  # of the intervals count: neighbouring changes of voltage are not independent
BEHIND_SURE: Final = 4.0  # standard errors that a share of a record in a check meter must be away from 0 or 1


@dataclass(frozen=True, slots=True)
class Followed:
    """Which group's voltage each of N meters follows. own, best: (N,) correlation with its registered group (the meter
    itself left out) and with the best one; group: (N,) number of the best; z: (N,) by how many standard deviations
    best beats own; doubted: (N,) the registry is likely wrong. NaN and False where there is too little to say.
    """

    own: Array
    best: Array
    group: Index
    z: Array
    doubted: NDArray[np.bool_]


def followed(voltage_v: Array, group: Index) -> Followed:
    """voltage_v: (T, N) V, NaN where missing, one column a meter and phase; group: (N,) 0 … G-1 as registered, such as
    area × phase. A transformer's own meter is a member of its group like others.

    Error of a correlation by Fisher's z. Zimmerman and others do the same with k-means; here the registry is the start.
    """
    steps, count = voltage_v.shape
    groups = int(group.max(initial=-1)) + 1
    change = np.diff(voltage_v, axis=0)
    there = np.isfinite(change)
    change = np.where(there, change, 0.0)
    member = np.eye(groups)[group]  # (N, G)
    # Means of groups, and what all groups share.
    present = there @ member
    mean = np.divide(change @ member, present, out=np.zeros_like(present), where=present > 0)
    shared = np.divide(
        mean.sum(1), (present > 0).sum(1), out=np.zeros(len(mean)), where=(present > 0).any(1)
    )[:, None]  # fmt: skip
    x = np.where(there, change - shared, 0.0)
    y = np.where(present > 0, mean - shared, 0.0)
    both = there.T.astype(float) @ (present > 0)
    xx = (x**2).T @ (present > 0)
    yy = there.T.astype(float) @ y**2
    correlation = (x.T @ y) / np.sqrt(np.maximum(xx * yy, 1e-12))
    # The own group without oneself: mean' = (n mean - x) / (n - 1).
    n = present[:, group] if steps > 1 else np.zeros((0, count))
    alone = n - there
    rest = np.divide(n * mean[:, group] - change, alone, out=np.zeros_like(n), where=alone > 0) - shared
    valid = there & (alone > 0)
    rest = np.where(valid, rest, 0.0)
    own_x = np.where(valid, x, 0.0)
    own = (own_x * rest).sum(0) / np.sqrt(np.maximum((own_x**2).sum(0) * (rest**2).sum(0), 1e-12))
    correlation[np.arange(count), group] = own
    correlation[both < PAIRS_MIN] = np.nan
    correlation[np.arange(count), group] = np.where(valid.sum(0) < PAIRS_MIN, np.nan, own)
    # A group with nobody but the meter itself says nothing of it.
    filled = np.where(np.isnan(correlation), -2.0, correlation)
    best = filled.argmax(1) if groups else np.zeros(count, np.int64)
    top = filled[np.arange(count), best] if groups else np.full(count, np.nan)
    own = correlation[np.arange(count), group]
    enough = np.maximum(SERIAL * valid.sum(0) - 3, 1.0)
    with np.errstate(invalid="ignore"):
        z = (_fisher(top) - _fisher(own)) * np.sqrt(enough / 2)
        doubted = (z > SURE_Z) & (top > CORRELATION_MIN) & (best != group)
    return Followed(own, np.where(top < -1, np.nan, top), best.astype(np.int64), z, doubted)


def _fisher(r: Array) -> Array:
    return np.asarray(np.arctanh(np.clip(r, -0.9999, 0.9999)))


@dataclass(frozen=True, slots=True)
class Behind:
    """Of M customers and K check meters. share: (M, K) of a record that the check meter sees, about 0 or 1; sd: (M, K);
    doubted: (M, K) seen though registered elsewhere, or registered there and not seen. A thief's share is above 1.
    """

    share: Array
    sd: Array
    doubted: NDArray[np.bool_]


def behind(check_wh: Array, customer_wh: Array, registered: NDArray[np.bool_]) -> Behind:
    """check_wh: (T, K) Wh, customer_wh: (T, M) Wh, NaN where missing; registered: (M, K) whether behind it.

    Least squares of changes from interval to interval, in which loads are nearly independent; a small ridge around
    what is registered keeps meters that hardly move where they are.
    """
    change, seen = np.diff(customer_wh, axis=0), np.diff(check_wh, axis=0)
    count = change.shape[1]
    shares, sds = registered.astype(float), np.ones(registered.shape)
    for k in range(check_wh.shape[1]):  # check meters are few
        use = np.isfinite(seen[:, k]) & np.isfinite(change).all(1)
        if use.sum() < max(PAIRS_MIN, 2 * count):
            continue
        a = change[use]
        target = seen[use, k] - a @ registered[:, k]
        gram = a.T @ a
        noise = float(np.var(target))
        for _ in range(2):
            inverse = np.linalg.inv(gram + noise * 4.0 * np.eye(count))
            off = inverse @ (a.T @ target)
            noise = max(float(np.var(target - a @ off)), 1e-9)
        shares[:, k] += off
        sds[:, k] = np.sqrt(noise * np.diag(inverse))
    wrong = np.where(registered, 1 - shares, shares)
    return Behind(shares, sds, (wrong > BEHIND_SURE * sds) & (wrong > 0.5))


def voltage_words(found: Followed, names: Sequence[str], registered: Index, who: int) -> str:
    """Evidence of one meter, such as: voltage follows area2 phase b (r 0.93), not area1 phase a (r 0.21)."""
    if not found.doubted[who]:
        return ""
    return (
        f"voltage follows {names[found.group[who]]} (r {found.best[who]:.2f}), not {names[registered[who]]} "
        f"(r {found.own[who]:.2f}): check where it is connected first"
    )
