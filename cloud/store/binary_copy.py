"""Rows for PostgreSQL's binary COPY, built from numpy columns without a loop over rows.

Format: PostgreSQL documentation, COPY, "Binary Format". A row is a 16-bit field count, then per field a 32-bit length
and the value, all big-endian. A null is the length -1 and no value, so rows are ragged where there are nulls.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import psycopg
from numpy.typing import NDArray
from psycopg import Copy
from psycopg.adapt import Dumper
from psycopg.pq import Format

HEADER: Final = b"PGCOPY\n\xff\r\n\x00" + bytes(8)
TRAILER: Final = b"\xff\xff"
# timestamptz counts microseconds from 2000-01-01 UTC; the wire counts from 1970.
EPOCH_2000_US: Final = 946_684_800_000_000
_FLOAT4_OID: Final = 700


@dataclass(frozen=True, slots=True)
class Field:
    """One column. ``values``: (N,) in ``dtype`` or castable to it; ``valid``: (N,) bool, None where none is null."""

    values: NDArray[Any]
    # Big-endian: ">i2" smallint, ">i4" integer, ">i8" bigint and timestamptz, ">f4" real, ">f8" double precision;
    # "S7" text of that many bytes in every row; ``reals_dtype`` an array.
    dtype: str | np.dtype[Any]
    valid: NDArray[np.bool_] | None = None


def instant(us: NDArray[np.int64], valid: NDArray[np.bool_] | None = None) -> Field:
    """timestamptz from (N,) µs since 1970."""
    return Field(us - EPOCH_2000_US, ">i8", valid)


def reals_dtype(length: int) -> np.dtype[Any]:
    """A one-dimensional real[] of ``length`` without nulls, as array_recv and array_send have it."""
    item = np.dtype([("length", ">i4"), ("value", ">f4")])
    return np.dtype([("head", ">i4", (5,)), ("items", item, (length,))])


def reals(values: NDArray[Any]) -> Field:
    """real[] from (N, K), none of them null."""
    table = np.empty(len(values), reals_dtype(values.shape[1]))
    table["head"] = [1, 0, _FLOAT4_OID, values.shape[1], 1]  # dimensions, no nulls, element type, length, lower bound
    table["items"]["length"] = 4
    table["items"]["value"] = values
    return Field(table, table.dtype)


@dataclass(frozen=True, slots=True)
class Stream:
    """N rows ready for COPY. ``ends``: (N,) where each row ends in ``body``."""

    body: NDArray[np.uint8]
    ends: NDArray[np.int64]

    def fill_last(self, values: NDArray[np.int64]) -> None:
        """Overwrite the last field of each row, a bigint that is nowhere null. values: (N,)"""
        places = self.ends[:, None] + np.arange(-8, 0)
        self.body[places] = values.astype(">i8").view(np.uint8).reshape(-1, 8)

    def write(self, copy: Copy) -> None:
        copy.write(HEADER)
        copy.write(self.body.data)
        copy.write(TRAILER)


def stream(fields: Sequence[Field]) -> Stream:
    """N rows of ``fields``; all fields are N long."""
    rows = len(fields[0].values)
    layout: list[tuple[str, str | np.dtype[Any]]] = [("count", ">i2")]
    for i, field in enumerate(fields):
        layout += [(f"length{i}", ">i4"), (f"value{i}", field.dtype)]
    packed = np.dtype(layout)  # unaligned, as on the wire
    table = np.empty(rows, packed)
    table["count"] = len(fields)
    length = np.full(rows, packed.itemsize, np.int64)
    keep: NDArray[np.bool_] | None = None
    for i, field in enumerate(fields):
        size = np.dtype(field.dtype).itemsize
        table[f"length{i}"] = size
        table[f"value{i}"] = field.values
        if field.valid is None or field.valid.all():
            continue
        if keep is None:
            keep = np.ones((rows, packed.itemsize), bool)
        table[f"length{i}"][~field.valid] = -1
        length -= ~field.valid * size
        first = packed.fields[f"value{i}"][1] if packed.fields else 0
        keep[:, first : first + size] = field.valid[:, None]
    whole = table.view(np.uint8).reshape(rows, packed.itemsize)
    return Stream(whole.reshape(-1) if keep is None else whole[keep], np.cumsum(length))


def encode(fields: Sequence[Field]) -> bytes:
    """The whole COPY stream of N rows of ``fields``."""
    return HEADER + stream(fields).body.tobytes() + TRAILER


# ---- arrays as parameters --------------------------------------------------------------------------------------------

# µs since 1970 that become PostgreSQL's -infinity.
NEVER_US: Final = -(2**63) + EPOCH_2000_US


@dataclass(frozen=True, slots=True)
class Packed:
    """(N,) values, none of them null, as a parameter of one of the array types below. A list would cost more to adapt
    than its rows cost to store."""

    values: NDArray[Any]


class Int4s(Packed):
    __slots__ = ()


class Int8s(Packed):
    __slots__ = ()


class Instants(Packed):
    """timestamptz[] from µs since 1970."""

    __slots__ = ()


def _register(kind: type[Packed], array_oid: int, element_oid: int, dtype: str) -> None:
    class PackedDumper(Dumper):
        format = Format.BINARY
        oid = array_oid

        def dump(self, obj: Packed) -> bytes:
            """As PostgreSQL's array_recv reads it: dimensions, no nulls, element type, length, lower bound; then the
            length and value of each."""
            table = np.empty(len(obj.values), [("length", ">i4"), ("value", dtype)])
            table["length"] = np.dtype(dtype).itemsize
            table["value"] = obj.values - EPOCH_2000_US if kind is Instants else obj.values
            shape = [1, 0, element_oid, len(table), 1] if len(table) else [0, 0, element_oid]
            return np.array(shape, ">i4").tobytes() + table.tobytes()

    psycopg.adapters.register_dumper(kind, PackedDumper)


_register(Int4s, 1007, 23, ">i4")
_register(Int8s, 1016, 20, ">i8")
_register(Instants, 1185, 1184, ">i8")
