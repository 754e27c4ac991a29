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
_MANY: Final = 128  # series, from which on what they have in common is as good as the same for so many days
_UNKNOWN: Final = 1e6  # days' variance of a row that is not learnt from


@dataclass(frozen=True, slots=True)
class Penalty:
    """own: as many days of evidence against a coefficient.  common: where given, `own` pulls to the coefficients that
    all series have in common at that step, which have themselves this penalty."""

    own: float
    common: float | None = None


def rolling_ridge(
    told: Floats, shared: Floats, first: int, last: int, lead: int, penalties: Sequence[Penalty]
) -> Floats:
    """Forecasts of blocks first + lead … last + lead, that of block o + lead by a fit on the blocks before o.

    told: (S, N, L + 1, B) columns of each series, and its target last; shared: (N, C, B) columns of all; finite and of
    one float type but for targets that are NaN: these rows are not learnt from, but that shared columns had no effect
    then (and are 0 in `told` afterwards).  Returns (penalties, last - first + 1, S, N).
    """
    series, steps, width, _ = told.shape
    own, y = told[:, :, :-1], told[:, :, -1]
    known = np.isfinite(y)
    whole = bool(known[..., :last].all())
    y[~known] = 0
    some = max(1, _SLAB // steps)
    slabs = [slice(start, start + some) for start in range(0, series, some)]
    begun = _begin(told, shared, known, whole, slabs, first)
    # One size for all series and steps, as the loads are scaled.
    totals = np.einsum("ncc->c", begun.counted), np.einsum("snll->l", begun.within, dtype=float)[:-1]
    sizes = np.concatenate(totals) / known[..., :first].size + 1e-4
    count = last + 1 - first
    cuts = np.array_split(np.arange(first, last + 1), -(-count // _DAYS))
    blocks = [(int(days[0]), int(days[-1]) + 1) for days in cuts]
    inverses = [_inverses(begun.shared, shared, blocks, each.own * sizes[: 1 - width]) for each in penalties]
    commons = [_common(begun, told, shared, known, first, last, each, sizes) for each in penalties]
    found = np.empty((len(penalties), count, series, steps), told.dtype)
    for slab in slabs:
        learnt = told[slab] if whole else told[slab] * known[slab, :, None]
        across, within, done = begun.across[slab], begun.within[slab, :, :-1], first
        for nth, (start, end) in enumerate(blocks):
            fresh = learnt[..., done:start].swapaxes(2, 3)
            if start > done:
                across += shared[..., done:start] @ fresh
                within += learnt[:, :, :-1, done:start] @ fresh
            done, seen = start, slice(start, end + lead)
            for at, (each, common) in enumerate(zip(penalties, commons, strict=True)):
                pull = each.own * sizes[:, None]
                prior = (pull * common[..., start - first : end - first]).astype(told.dtype)
                new = _innovations(
                    across, within, pull[1 - width :, 0].astype(told.dtype), prior, inverses[at][nth],
                    shared[..., seen], own[slab, ..., seen], y[slab, :, seen], known[slab, :, seen], lead,
                    exact=series < _MANY,
                )  # fmt: skip
                found[at, start - first : end - first, slab] = new.transpose(2, 0, 1)
    return found


@dataclass(frozen=True, slots=True)
class _Begun:
    """Products of all columns before the first origin: shared ones with each other (N, C, C), the same counted as often
    as there are series that know the target, shared with own ones (S, N, C, L + 1), own ones (S, N, L + 1, L + 1)."""

    shared: Floats
    counted: Floats
    across: Floats
    within: Floats


def _begin(
    told: Floats, shared: Floats, known: NDArray[np.bool_], whole: bool, slabs: Sequence[slice], first: int
) -> _Begun:
    series, steps, width, _ = told.shape
    across = np.empty((series, steps, shared.shape[1], width), told.dtype)
    within = np.empty((series, steps, width, width), told.dtype)
    for slab in slabs:
        past = told[slab, ..., :first]
        past = past if whole else past * known[slab, :, None, :first]
        # Of all series of a step at once: a view where a step's series are beside each other in memory.
        wide = shared[..., :first] @ past.swapaxes(0, 1).reshape(steps, -1, first).swapaxes(1, 2)
        across[slab] = wide.reshape(*wide.shape[:2], -1, width).transpose(2, 0, 1, 3)
        np.matmul(past, past.swapaxes(2, 3), out=within[slab])
    rows = shared[..., :first].astype(float)
    alike = rows @ rows.swapaxes(1, 2)
    counted = series * alike if whole else (rows * known[:, :, None, :first].sum(axis=0)) @ rows.swapaxes(1, 2)
    return _Begun(alike, counted, across, within)


def _inverses(begun: Floats, shared: Floats, blocks: Sequence[tuple[int, int]], pull: Floats) -> list[Floats]:
    """(N, C, C) each of what the shared columns say before each of the blocks."""
    gram, done, found = begun + np.diag(pull), blocks[0][0], []
    for start, _ in blocks:
        fresh = shared[..., done:start].astype(float)
        gram += fresh @ fresh.swapaxes(1, 2)
        found.append(np.linalg.inv(gram).astype(shared.dtype))
        done = start
    return found


def _innovations(
    across: Floats, within: Floats, pull: Floats, prior: Floats, inverse: Floats,
    shared: Floats, own: Floats, told: Floats, known: NDArray[np.bool_], lead: int, *, exact: bool,
) -> Floats:  # fmt: skip
    """Forecasts (S, N, b) of the rows from `lead` on, each by the rows more than `lead` before it and by what was
    before them all: across (S, N, C, L + 1), within (S, N, L, L + 1), the last column of the target.

    pull: (L,) of the own columns.  prior: (N, C + L, b) pull times what it pulls to, at each origin.  inverse:
    (N, C, C).  shared: (N, C, lead + b).  own: (S, N, L, lead + b).  told: (S, N, lead + b), and where it is known.
    exact: else it is left out how far the rows themselves weaken what changes in the prior.
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
    # The last rows of the factor have what is new in each day, so that no further system is to be solved.
    extra = np.where(known, told - base, 0.0)[..., None, :]
    drift = prior - prior[..., :1]
    drifts = bool(drift.any())
    if drifts:
        by_drift = inverse @ drift[:, :some]
        by_own = drift[:, some:] - back @ by_drift
        if exact:
            moved = (rows @ by_drift + gain @ by_own).swapaxes(2, 3)  # (S, N, b, lead + b): each row's, by origin
            extra = np.concatenate([extra, moved], axis=2)
    size = days + extra.shape[2]
    joint = np.zeros((*told.shape[:2], size, size), kind)
    joint[..., :days, :days] = gain @ rest.swapaxes(2, 3) + rows @ (inverse @ shared)
    day, last = np.arange(days), np.arange(days, size)
    joint[..., day, day] += np.where(known, 1.0, _UNKNOWN).astype(kind)
    joint[..., days:, :days] = extra
    joint[..., last, last] = ((extra**2).sum(axis=(2, 3)) + 1)[..., None]
    factor = np.linalg.cholesky(joint)
    earlier = np.tri(days, k=-1 - lead, dtype=kind)[lead:]
    learnt = (factor[..., lead:days, :days] * earlier) @ factor[..., days:, :days].swapaxes(2, 3)
    found: Floats = base[..., lead:] + learnt[..., 0]
    if drifts and exact:
        at = np.arange(days - lead)
        found += moved[..., at, lead + at] - learnt[..., at, 1 + at]
    elif drifts:
        found += np.einsum("ncb,ncb->nb", shared[..., lead:], by_drift)
        found += np.einsum("snbl,snlb->snb", gain[..., lead:, :], by_own)
    return found


def _common(
    begun: _Begun, told: Floats, shared: Floats, known: NDArray[np.bool_], first: int, last: int,
    penalty: Penalty, sizes: Floats,
) -> Floats:  # fmt: skip
    """Coefficients (N, C + L, E) that all series have in common at each step, of fits before each origin.

    A fit at one step sees the steps of an hour to both sides.
    """
    _, steps, alone, _ = told.shape
    if penalty.common is None:
        return np.zeros((steps, len(sizes), last + 1 - first))
    # Products of columns that all series see alike need but the sums over these.
    some, total = shared.shape[1], np.empty((steps, alone, last - first))
    own = np.empty((last + 1 - first, steps, alone - 1, alone))
    own[0] = begun.within[:, :, :-1].sum(axis=0, dtype=float)
    for step in range(steps):
        late = told[:, step, :, first:last] * known[:, step, None, first:last]
        total[step] = late.sum(axis=0)
        late = np.ascontiguousarray(late.transpose(2, 1, 0))
        own[1:, step] = late[:, :-1] @ late.swapaxes(1, 2)
    own = _near(own.swapaxes(0, 1)).swapaxes(0, 1)
    count = known[..., first:last].sum(axis=0)
    hour = max(1, steps // 24)
    around = (np.arange(steps)[:, None] + np.arange(-hour, hour + 1)) % steps
    system = np.zeros((steps, len(sizes), len(sizes) + 1))
    pull = np.diag(penalty.common * sizes)
    coefficients = np.empty((steps, len(sizes), len(own)))
    system[:, :some, :some] = _near(begun.counted)
    system[:, :some, some:] = _near(begun.across.sum(axis=0, dtype=float))
    for at, inner in enumerate(own):
        if at:
            rows = shared[..., first + at - 1].astype(float)[around]  # (N, steps around, C)
            system[:, :some, :some] += (rows * count[around, at - 1, None]).swapaxes(1, 2) @ rows
            system[:, :some, some:] += rows.swapaxes(1, 2) @ total[..., at - 1][around]
        system[:, some:, :some] = system[:, :some, some:-1].swapaxes(1, 2)
        system[:, some:, some:] += inner
        coefficients[..., at] = np.linalg.solve(system[..., :-1] + pull, system[..., -1:])[..., 0]
    return coefficients


def _near(values: Floats) -> Floats:
    """Sums over an hour to both sides; steps of the day are a circle, and axis 0."""
    hour = max(1, len(values) // 24)
    total = values.copy()
    for shift in range(1, hour + 1):
        total += np.roll(values, shift, axis=0) + np.roll(values, -shift, axis=0)
    return total
