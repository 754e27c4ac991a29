"""Ridge regressions in a batch, as if each was refit every day, though solved but every few weeks.

Between two solutions the days' forecasts are the innovations of a Gaussian process whose covariance is the ridge's own
(Rasmussen and Williams 2006, 2.1; Gill, Golub, Murray and Saunders 1974): in the Cholesky factor of all those days, the
row of one has what the days before it say about it. That gives to rounding what daily refits give, in products of whole
matrices. Columns that all series see alike are eliminated once for all of them (Frisch, Waugh and Lovell's theorem).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[Any]

_SLAB: Final = 192  # regressions at a time: what they need stays in the processor's cache
_DAYS: Final = 16  # between solutions; more cost more in the factor, fewer in the solutions
_SERIES_A_DAY: Final = 8
_UNKNOWN: Final = 1e6  # days' variance of a row that is not learnt from


@dataclass(frozen=True, slots=True)
class Penalty:
    """own: as many days of evidence against a coefficient.  common: where given, `own` pulls to the coefficients that
    all series have in common at that step, which have themselves this penalty."""

    own: float
    common: float | None = None


def rolling_ridge(
    own: Floats, shared: Floats, target: Floats, first: int, last: int, lead: int, penalties: Sequence[Penalty]
) -> Floats:
    """Forecasts of blocks first + lead … last + lead, that of block o + lead by a fit on the blocks before o.

    own: (S, N, L, B) columns of each series; shared: (N, C, B) those of all; finite, of one float type.  target:
    (S, N, B); NaN rows are not learnt from, but that shared columns had no effect then.  Returns (penalties,
    last - first + 1, S, N).
    """
    series, steps, width, _ = own.shape
    known = np.isfinite(target)
    y = np.where(known, target, 0.0).astype(own.dtype)
    # One for all series and steps, as the loads are scaled.
    sizes = _sizes(own[..., :first], shared[..., :first], known[..., :first])
    count = last + 1 - first
    # What few series have in common moves with each day of them.
    between = _DAYS if all(each.common is None for each in penalties) else min(max(series // _SERIES_A_DAY, 1), _DAYS)
    cuts = np.array_split(np.arange(first, last + 1), -(-count // between))
    blocks = [(int(days[0]), int(days[-1]) + 1) for days in cuts]
    inverses = [_inverses(shared, blocks, each.own * sizes[:-width]) for each in penalties]
    commons = [_common(own, shared, y, known, first, last, each, sizes) for each in penalties]
    found = np.empty((len(penalties), count, series, steps), own.dtype)
    some = max(1, _SLAB // steps)
    for slab in (slice(start, start + some) for start in range(0, series, some)):
        sure = known[slab]
        learnt = own[slab] if sure.all() else own[slab] * sure[:, :, None]
        learnt = np.concatenate([learnt, y[slab, :, None]], axis=2)
        across = np.zeros((*learnt.shape[:2], shared.shape[1], width + 1), own.dtype)
        within = np.zeros((*learnt.shape[:2], width, width + 1), own.dtype)
        done = 0
        for nth, (start, end) in enumerate(blocks):
            fresh = learnt[..., done:start].swapaxes(2, 3)
            across += shared[..., done:start] @ fresh
            within += learnt[:, :, :-1, done:start] @ fresh
            done, seen = start, slice(start, end + lead)
            for at, (each, common) in enumerate(zip(penalties, commons, strict=True)):
                pull = each.own * sizes[:, None]
                prior = (pull * common[..., start - first : end - first]).astype(own.dtype)
                new = _innovations(
                    across, within, pull[-width:, 0].astype(own.dtype), prior, inverses[at][nth],
                    shared[..., seen], own[slab, ..., seen], y[slab, :, seen], sure[..., seen], lead,
                )  # fmt: skip
                found[at, start - first : end - first, slab] = new.transpose(2, 0, 1)
    return found


def _sizes(own: Floats, shared: Floats, known: NDArray[np.bool_]) -> Floats:
    """(C + L,) mean squares of the columns where the target is known."""
    total = np.einsum("snlb,snlb,snb->l", own, own, known.astype(own.dtype), optimize=False)
    of_all = np.einsum("ncb,nb->c", shared.astype(float) ** 2, known.sum(axis=0))
    return np.concatenate([of_all, total]) / known.size + 1e-4


def _inverses(shared: Floats, blocks: Sequence[tuple[int, int]], pull: Floats) -> list[Floats]:
    """(N, C, C) each of what the shared columns say before each of the blocks."""
    gram, done, found = np.diag(pull) + np.zeros((len(shared), 1, 1)), 0, []
    for start, _ in blocks:
        fresh = shared[..., done:start].astype(float)
        gram += fresh @ fresh.swapaxes(1, 2)
        found.append(np.linalg.inv(gram).astype(shared.dtype))
        done = start
    return found


def _innovations(
    across: Floats, within: Floats, pull: Floats, prior: Floats, inverse: Floats,
    shared: Floats, own: Floats, told: Floats, known: NDArray[np.bool_], lead: int,
) -> Floats:  # fmt: skip
    """Forecasts (S, N, b) of the rows from `lead` on, each by the rows more than `lead` before it and by what was
    before them all: across (S, N, C, L + 1), within (S, N, L, L + 1), the last column of the target.

    pull: (L,) of the own columns.  prior: (N, C + L, b) pull times what it pulls to, at each origin.  inverse:
    (N, C, C).  shared: (N, C, lead + b).  own: (S, N, L, lead + b).  told: (S, N, lead + b), and where it is known.
    """
    width, days, some = own.shape[2], told.shape[2], shared.shape[1]
    kind, rows = told.dtype, shared.swapaxes(1, 2)
    # Eliminate the shared columns: Schur's complement, and what they leave of own columns.
    moment = across[..., -1:] + prior[:, :some, :1]
    solved = inverse @ np.concatenate([across[..., :-1], moment], axis=3)
    back = across[..., :-1].swapaxes(2, 3)
    left = back @ solved
    system = within[..., :-1] - left[..., :-1]
    system[..., np.arange(width), np.arange(width)] += pull
    wanted = within[..., -1:] + prior[:, some:, :1] - left[..., -1:]
    by_shared = rows @ solved  # (S, N, lead + b, L + 1)
    rest = own.swapaxes(2, 3) - by_shared[..., :-1]
    gain = rest @ np.linalg.inv(system)
    base = by_shared[..., -1] + (gain @ wanted)[..., 0]
    # The last row of the factor has what is new in each day, so that no further system is to be solved.
    joint = np.zeros((*told.shape[:2], days + 1, days + 1), kind)
    joint[..., :-1, :-1] = gain @ rest.swapaxes(2, 3) + rows @ (inverse @ shared)
    day = np.arange(days)
    joint[..., day, day] += np.where(known, 1.0, _UNKNOWN).astype(kind)
    new = np.where(known, told - base, 0.0)
    joint[..., -1, :-1] = new
    joint[..., -1, -1] = (new**2).sum(axis=-1) + 1
    factor = np.linalg.cholesky(joint)
    earlier = np.tri(days, k=-1 - lead, dtype=kind)[lead:]
    learnt = (factor[..., lead:-1, :-1] * earlier) @ factor[..., -1, :-1, None]
    found: Floats = base[..., lead:] + learnt[..., 0]
    if prior.any():
        # What is common changes from day to day as well; how far the days themselves weaken that is left out.
        drift = prior - prior[..., :1]
        by_drift = inverse @ drift[:, :some]
        found += np.einsum("ncb,ncb->nb", shared[..., lead:], by_drift)
        found += np.einsum("snbl,snlb->snb", gain[..., lead:, :], drift[:, some:] - back @ by_drift)
    return found


def _common(
    own: Floats, shared: Floats, y: Floats, known: NDArray[np.bool_], first: int, last: int, penalty: Penalty,
    sizes: Floats,
) -> Floats:  # fmt: skip
    """Coefficients (N, C + L, E) that all series have in common at each step, of fits before each origin."""
    series, steps, alone, _ = own.shape
    width = len(sizes)
    if penalty.common is None:
        return np.zeros((steps, width, last + 1 - first))
    pull = np.diag(penalty.common * sizes)
    grams = np.zeros((last + 1 - first, steps, width, width + 1))
    rows = np.empty((last, width + 1, series), own.dtype)
    for step in range(steps):
        sure = known[:, step, :last].T[:, None]
        rows[:, : width - alone] = shared[step, :, :last].T[..., None] * sure
        rows[:, width - alone : -1] = own[:, step, :, :last].transpose(2, 1, 0) * sure
        rows[:, -1] = y[:, step, :last].T
        days = rows[:, :-1] @ rows.swapaxes(1, 2)
        grams[0, step] = days[:first].sum(axis=0)
        grams[1:, step] = days[first:]
    coefficients = np.empty((steps, width, len(grams)))
    system = np.zeros(grams.shape[1:])
    for at, gram in enumerate(grams):
        system += _near(gram)
        coefficients[..., at] = np.linalg.solve(system[..., :-1] + pull, system[..., -1:])[..., 0]
    return coefficients


def _near(values: Floats) -> Floats:
    """Sums over an hour to both sides; steps of the day are a circle, and axis 0."""
    hour = max(1, len(values) // 24)
    total = values.copy()
    for shift in range(1, hour + 1):
        total += np.roll(values, shift, axis=0) + np.roll(values, -shift, axis=0)
    return total
