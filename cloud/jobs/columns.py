"""Rows out of PostgreSQL as numpy columns: binary COPY with every field fixed in width, so that no row is looked at."""

from collections.abc import Mapping
from typing import Any, Final, LiteralString

import numpy as np
from numpy.typing import NDArray
from psycopg import Cursor

from cloud.engines.intervals import MISSING
from cloud.store.binary_copy import EPOCH_2000_US

INTERVAL_S: Final = 900
INTERVAL_H: Final = INTERVAL_S / 3600
_HEADER_BYTES: Final = 19
_INTERVAL_US: Final = INTERVAL_S * 1_000_000
_TYPES: Final = {
    "smallint": ">i2", "integer": ">i4", "bigint": ">i8", "timestamptz": ">i8",
    "real": ">f4", "double precision": ">f8",
}  # fmt: skip


def read_columns(
    cursor: Cursor[Any], query: LiteralString, parameters: Mapping[str, Any], columns: Mapping[str, str]
) -> dict[str, NDArray[Any]]:
    """Columns of ``query`` by name, (N,) each. ``columns``: name → PostgreSQL type, as the query gives them, no nulls.

    A timestamptz becomes int64 µs since 1970 UTC.
    """
    layout: list[tuple[str, str]] = [("count", ">i2")]
    for name, kind in columns.items():
        layout += [(f"{name} bytes", ">i4"), (name, _TYPES[kind])]
    row = np.dtype(layout)  # unaligned, as on the wire
    with cursor.copy(f"COPY ({query}) TO STDOUT (FORMAT binary)", parameters) as copy:
        stream = b"".join(copy)
    rows = np.frombuffer(stream, row, (len(stream) - _HEADER_BYTES) // row.itemsize, _HEADER_BYTES)
    native = {name: rows[name].astype(rows[name].dtype.newbyteorder("=")) for name in columns}
    for name, kind in columns.items():
        if len(rows) and (rows[f"{name} bytes"] != row[name].itemsize).any():
            raise ValueError(f"{name}: a {kind} without nulls expected")
        if kind == "timestamptz":
            native[name] += EPOCH_2000_US
    return native


def to_mark(us: NDArray[np.int64]) -> NDArray[np.int64]:
    """Number of the mark an instant lies at or after, counted from 1970 UTC."""
    return us // _INTERVAL_US


def from_mark(mark: NDArray[np.int64]) -> NDArray[np.int64]:
    """µs since 1970 UTC."""
    return mark * _INTERVAL_US


def to_float(values: NDArray[np.int64]) -> NDArray[np.float64]:
    """MISSING becomes NaN."""
    return np.where(values == MISSING, np.nan, values.astype(np.float64))
