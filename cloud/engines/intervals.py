"""Registers become energy per interval, for any number of metering points at once.

A point's readings stand in a row, in time. Between two of one meter at one ratio lies what its register advanced, times
the ratio; between a closing register and the opening one of the same instant lies nothing. What lies between two marks
is the sum, so an interval over an exchange or a new ratio is exact where the registers were noted. A gap stays a gap:
its energy is known as a whole and never spread over the marks that are missing, because billing must be able to tell
what was measured.
"""

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from protocols.quantities import Quality

Integers = NDArray[np.integer[Any]]

MISSING: Final = np.iinfo(np.int64).min

# What a register can at most advance in an interval, before CT and PT: 4 MW over 15 min. More is a misread.
ADVANCE_MAX_WH: Final = 1_000_000
# A row that is taken for its mark's may have been read so late, as a share of the interval; later it is OFF_MARK.
_LATE_SHARE: Final = 0.01
# A rollover is believed only from the register's last part: this much for each interval that passed, at most half.
_ROLLOVER_SHARE: Final = 0.001
# This bit says how a row came here, not that it is worse.
_HARMLESS: Final = int(Quality.BACKFILLED)


@dataclass(frozen=True, slots=True)
class Intervals:
    """What lies between neighbouring readings at marks, sorted by point and mark.

    point: (N,) as given.  mark: (N,) number of the mark it starts at.  marks: (N,) how many intervals it spans: 1, or
    more over a gap.  energy: (N, Q) int64 in the registers' unit × ratio, MISSING where null.  quality: (N,) int16.
    """

    point: NDArray[np.int64]
    mark: NDArray[np.int64]
    marks: NDArray[np.int64]
    energy: NDArray[np.int64]
    quality: NDArray[np.int16]

    def __getitem__(self, mask: NDArray[np.bool_]) -> "Intervals":
        return Intervals(self.point[mask], self.mark[mask], self.marks[mask], self.energy[mask], self.quality[mask])


@dataclass(frozen=True, slots=True)
class Readings:
    """N rows in any order.

    point: (N,) metering point.  stretch: (N,) one meter at one ratio; later ones of a point have higher numbers.
    at: (N,) instant.  register: (N, Q) int64 Wh or varh, MISSING where null.  quality: (N,) bits.
    batch: (N,) order of storing.  noted: (N,) whether the row is an opening or closing register from the registry.
    ratio: (N,) CT × PT.  modulus: (N,) where the registers return to 0; 0 where that is not known.
    """

    point: Integers
    stretch: Integers
    at: Integers
    register: Integers
    quality: Integers
    batch: Integers
    noted: NDArray[np.bool_]
    ratio: Integers
    modulus: Integers

    def __getitem__(self, rows: NDArray[Any]) -> "Readings":
        return Readings(*(getattr(self, name)[rows] for name in self.__slots__))


def derive(readings: Readings, step: int) -> Intervals:
    """Energy between neighbouring marks of each point; ``step``: an interval in the unit of ``at``.

    Of several rows of one meter at one instant a noted register counts first, then rows without a complaint, then ones
    that are only off the mark. Rows without a complaint that say the same are one, the first stored; where they differ
    the meter's own record wins over what was read live, then the latest, and the intervals on both sides are
    CLOCK_SUSPECT unless coming late within its tolerance explains the difference: a register has one value at a mark.

    A register that ran backwards or leapt gives MISSING and IMPLAUSIBLE. Nothing comes out over a change of meter or
    ratio whose registers nobody noted. Readings off every mark count for nothing, unless noted.
    """
    rows, disputed = _one_each(readings[readings.noted | (readings.at % step == 0)])
    energy, lost, implausible, broken = _advances(rows, step)

    on_mark = rows.at % step == 0
    changes = (rows.point[1:] != rows.point[:-1]) | (rows.at[1:] != rows.at[:-1])
    first = np.flatnonzero(on_mark & np.r_[True, changes][: len(on_mark)])  # of the rows of its instant: ends the past
    last = np.flatnonzero(on_mark & np.r_[changes, True][: len(on_mark)])  # begins what follows
    start, end = last[:-1], first[1:]
    whole = (rows.point[start] == rows.point[end]) & (broken[end] == broken[start])
    start, end = start[whole], end[whole]
    known = lost[end] == lost[start]
    bits = (rows.quality[start] | rows.quality[end]).astype(np.int16)
    bits[(implausible[end] != implausible[start]).any(axis=1)] |= int(Quality.IMPLAUSIBLE)
    bits[disputed[start] | disputed[end]] |= int(Quality.CLOCK_SUSPECT)
    mark = rows.at[start].astype(np.int64) // step
    return Intervals(
        rows.point[start].astype(np.int64),
        mark,
        rows.at[end].astype(np.int64) // step - mark,
        np.where(known, energy[end] - energy[start], MISSING),
        bits,
    )


def _one_each(rows: Readings) -> tuple[Readings, NDArray[np.bool_]]:
    """One row for each point, instant and stretch, sorted so; and (N,) whether others contradicted it."""
    bad = rows.quality & ~_HARMLESS
    complaint = np.where(bad == 0, 0, np.where(bad == int(Quality.OFF_MARK), 1, 2))
    complaint[(rows.register == MISSING).all(axis=1)] = 3
    complaint[rows.noted] = -1
    order = np.lexsort((rows.batch, complaint, rows.stretch, rows.at, rows.point))
    rows, complaint = rows[order], complaint[order]
    new = np.ones(len(order), bool)
    new[1:] = (
        (rows.stretch[1:] != rows.stretch[:-1]) | (rows.at[1:] != rows.at[:-1]) | (rows.point[1:] != rows.point[:-1])
    )
    group = np.cumsum(new) - 1
    disputed = np.zeros(np.count_nonzero(new), bool)
    chosen = np.flatnonzero(new)
    if len(chosen) == len(order):
        return rows, disputed
    # Rows as good as the chosen one that say something else. Only these few are looked at more closely.
    equal = complaint == complaint[chosen[group]]
    differs = equal & (rows.register != rows.register[chosen[group]]).any(axis=1) & (complaint <= 2)
    contested = np.zeros(len(chosen), bool)
    contested[group[differs]] = True
    rivals = np.flatnonzero(equal & contested[group])
    live = (rows.quality[rivals] & _HARMLESS) == 0
    best = rivals[np.lexsort((-rows.batch[rivals].astype(np.int64), live, group[rivals]))]
    winner = best[np.r_[True, group[best][1:] != group[best][:-1]][: len(best)]]
    chosen[group[winner]] = winner
    own, other = rows.register[chosen[group[rivals]]], rows.register[rivals]
    both = (own != MISSING) & (other != MISSING)
    late = np.where(both, other, 0) - np.where(both, own, 0)  # what a live row shows more than the record
    explained = (late == 0) | (live[:, None] & (late > 0) & (late <= _LATE_SHARE * ADVANCE_MAX_WH))
    disputed[group[rivals[~explained.all(axis=1)]]] = True
    return rows[chosen], disputed


def _advances(rows: Readings, step: int) -> tuple[NDArray[np.int64], ...]:
    """Sums from the first row on, so that a difference tells of any span: energy, and how many pieces of it are not
    known and implausible, (N, Q) each; and over how many changes without registers it leads, (N,)."""
    same_point = rows.point[1:] == rows.point[:-1]
    same = same_point & (rows.stretch[1:] == rows.stretch[:-1])
    at = rows.at.astype(np.int64)
    seam = same_point & ~same & (at[1:] == at[:-1])  # closing and opening register of one instant
    before, after = rows.register[:-1].astype(np.int64), rows.register[1:].astype(np.int64)
    known = same[:, None] & (before != MISSING) & (after != MISSING)
    advance = np.where(known, after, 0) - np.where(known, before, 0)
    steps = np.maximum(-(-(at[1:] - at[:-1]) // step), 1)[:, None]
    advance_max = steps * ADVANCE_MAX_WH
    wrap = rows.modulus[:-1, None].astype(np.int64)
    near_end = before >= wrap * (1 - np.minimum(_ROLLOVER_SHARE * steps, 0.5))
    rolled = (advance < 0) & (wrap > 0) & near_end & (advance + wrap >= 0) & (advance + wrap <= advance_max)
    advance = np.where(rolled, advance + wrap, advance)
    implausible = known & ((advance < 0) | (advance > advance_max))
    energy = np.where(known & ~implausible, advance * rows.ratio[:-1, None], 0)
    lost = ~known & ~seam[:, None] | implausible
    return _sum(energy), _sum(lost), _sum(implausible), _sum(~same & ~seam)


def _sum(pieces: NDArray[Any]) -> NDArray[np.int64]:
    """(N,) or (N, Q) sums of the N - 1 pieces before each row."""
    start = np.zeros((1, *pieces.shape[1:]), np.int64)
    return np.concatenate([start, np.cumsum(pieces, axis=0, dtype=np.int64)])
