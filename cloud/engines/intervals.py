"""Registers at marks become energy per interval, for any number of meters at once.

An interval is the difference of a meter's registers at two neighbouring marks. A gap stays a gap: energy is never
spread over a missing mark, because billing must be able to tell what was measured.
"""

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from protocols.quantities import Quality

Integers = NDArray[np.integer[Any]]

MISSING: Final = np.iinfo(np.int64).min

# What a register can at most advance in 15 min, before CT and PT: 4 MW. More is a misread or a replaced meter.
ADVANCE_MAX_WH: Final = 1_000_000
# A rollover is believed only from the register's last thousandth; below that it is a reset or a misread.
_ROLLOVER_FROM: Final = 0.999
# These bits say how a row came here, not that it is worse.
_HARMLESS: Final = int(Quality.BACKFILLED)


@dataclass(frozen=True, slots=True)
class Intervals:
    """``source`` (N,) as given; ``mark`` (N,) number of the mark the interval starts at; ``energy`` (N, Q) int64 in the
    registers' unit × ratio, MISSING where null; ``quality`` (N,) int16. Sorted by source and mark."""

    source: NDArray[np.int64]
    mark: NDArray[np.int64]
    energy: NDArray[np.int64]
    quality: NDArray[np.int16]


def derive(
    source: Integers,
    mark: Integers,
    register: Integers,
    quality: Integers,
    batch: Integers,
    *,
    ratio: Integers,
    modulus: Integers,
) -> Intervals:
    """Intervals between neighbouring marks of each source.

    source: (N,) which installation of a meter.  mark: (N,) running number of the mark.
    register: (N, Q) int64 Wh or varh at the mark, MISSING where null.  quality: (N,) bits.
    batch: (N,) order of storing: of several rows for one mark, those without a complaint go first, then the latest.
    ratio: (N,) CT × PT of the source.  modulus: (N,) where the source's registers roll over.

    No interval where a mark is missing. A register that ran backwards or leapt gives MISSING and IMPLAUSIBLE.
    """
    suspect = ((quality & ~_HARMLESS) != 0) | (register == MISSING).all(axis=1)
    order = np.lexsort((-batch.astype(np.int64), suspect, mark, source))
    source, mark = source[order], mark[order]
    first = np.ones(len(order), bool)
    first[1:] = (source[1:] != source[:-1]) | (mark[1:] != mark[:-1])
    order, source, mark = order[first], source[first], mark[first]

    start = np.flatnonzero((source[1:] == source[:-1]) & (mark[1:] == mark[:-1] + 1))
    row, row_next = order[start], order[start + 1]
    before, after = register[row].astype(np.int64), register[row_next].astype(np.int64)
    known = (before != MISSING) & (after != MISSING)
    advance = np.where(known, after, 0) - np.where(known, before, 0)
    wrap = modulus[row, None].astype(np.int64)
    rolled = (advance < 0) & (before >= _ROLLOVER_FROM * wrap) & (advance + wrap <= ADVANCE_MAX_WH)
    advance = np.where(rolled, advance + wrap, advance)
    implausible = known & ((advance < 0) | (advance > ADVANCE_MAX_WH))
    energy = np.where(known & ~implausible, advance * ratio[row, None], MISSING)
    bits = (quality[row] | quality[row_next]).astype(np.int16)
    bits[implausible.any(axis=1)] |= int(Quality.IMPLAUSIBLE)
    return Intervals(source[start].astype(np.int64), mark[start].astype(np.int64), energy, bits)
