"""Rows for PostgreSQL's binary COPY, built from numpy columns without a loop over rows.

Format: PostgreSQL documentation, COPY, "Binary Format". A row is a 16-bit field count, then per field a 32-bit length
and the value, all big-endian. A null is the length -1 and no value, so rows are ragged where there are nulls.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

HEADER: Final = b"PGCOPY\n\xff\r\n\x00" + bytes(8)
TRAILER: Final = b"\xff\xff"
# timestamptz counts microseconds from 2000-01-01 UTC; the wire counts from 1970.
EPOCH_2000_US: Final = 946_684_800_000_000


@dataclass(frozen=True, slots=True)
class Field:
    """One column. ``values``: (N,) in ``dtype`` or castable to it; ``valid``: (N,) bool, None where none is null."""

    values: NDArray[Any]
    dtype: str  # big-endian: ">i2" smallint, ">i4" integer, ">i8" bigint and timestamptz, ">f4" real
    valid: NDArray[np.bool_] | None = None


def instant(us: NDArray[np.int64], valid: NDArray[np.bool_] | None = None) -> Field:
    """timestamptz from (N,) µs since 1970."""
    return Field(us - EPOCH_2000_US, ">i8", valid)


def encode(fields: Sequence[Field]) -> bytes:
    """The whole COPY stream of N rows of ``fields``; all fields are N long."""
    rows = len(fields[0].values)
    layout = [("count", ">i2")]
    for i, field in enumerate(fields):
        layout += [(f"length{i}", ">i4"), (f"value{i}", field.dtype)]
    packed = np.dtype(layout)  # unaligned, as on the wire
    table = np.empty(rows, packed)
    table["count"] = len(fields)
    ragged = [i for i, field in enumerate(fields) if field.valid is not None and not field.valid.all()]
    for i, field in enumerate(fields):
        table[f"length{i}"] = np.dtype(field.dtype).itemsize
        table[f"value{i}"] = field.values
    if not ragged:
        return HEADER + table.tobytes() + TRAILER
    keep = np.ones((rows, packed.itemsize), bool)
    for i in ragged:
        null = ~np.asarray(fields[i].valid)
        table[f"length{i}"][null] = -1
        first = packed.fields[f"value{i}"][1] if packed.fields else 0
        keep[null, first : first + np.dtype(fields[i].dtype).itemsize] = False
    return HEADER + table.view(np.uint8).reshape(rows, packed.itemsize)[keep].tobytes() + TRAILER
