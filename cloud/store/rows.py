"""Rows of many batches as numpy columns, judged: what can be stored, and what is set aside and why."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import IntEnum
from typing import Any, Final, cast

import msgspec
import numpy as np
from numpy.typing import NDArray

from cloud.store.binary_copy import EPOCH_2000_US, Field, Stream, instant, stream
from cloud.store.installations import UNKNOWN, Installations
from cloud.store.migrations import Connection
from protocols.quantities import ENERGY_NAMES, POWER_NAMES, Kind
from protocols.uplink import COLUMN_TYPES, NULLABLE_INTEGERS, VERSION, Batch, from_us, to_us

AHEAD_MAX: Final = timedelta(days=1)  # a mark later than this is a wrong clock, not a fast one
METER_AT_MAX_US: Final = 7_258_118_400_000_000  # 2200: a meter's clock may be wrong, but it is a date
FLOAT_MAX: Final = 1e30  # above this a float is a broken register, or infinite
ROWS_SET_ASIDE_MAX: Final = 2_000  # in one quarantine entry, so that its document fits the contract's bound on bytes
_NAN: Final = np.float32(np.nan).tobytes()


class Verdict(IntEnum):
    """What becomes of a row. The names of all but the first are the quarantine's reasons."""

    STORED = 0
    UNKNOWN_METER = 1
    IMPOSSIBLE_VALUE = 2
    TOO_OLD = 3

    @property
    def reason(self) -> str:
        return self.name.lower()


# How long samples of a kind are kept. What is older when it comes would be stored only to be removed.
Keep = Mapping[Kind, timedelta]


def load_keep(connection: Connection) -> Keep:
    """From the table ``retention``; a kind that is kept for ever is not in it."""
    found = connection.execute("SELECT data, keep FROM retention WHERE keep IS NOT NULL")
    tables = {f"{kind.value}_sample": kind for kind in (Kind.ENERGY, Kind.POWER)}
    return {tables[str(table)]: cast(timedelta, keep) for table, keep in found if table in tables}


@dataclass(frozen=True, slots=True)
class Columns:
    """N rows of one kind, of several batches. ``valid`` holds (N,) masks of the nullable integers; floats use NaN."""

    kind: Kind
    batch: NDArray[np.int64]  # (N,) which of the batches
    meter_id: NDArray[np.int32]  # (N,) UNKNOWN where not installed
    values: dict[str, NDArray[Any]]
    valid: dict[str, NDArray[np.bool_]]

    def __len__(self) -> int:
        return len(self.batch)

    def __getitem__(self, rows: NDArray[np.bool_] | NDArray[np.intp]) -> "Columns":
        return Columns(
            self.kind,
            self.batch[rows],
            self.meter_id[rows],
            {name: values[rows] for name, values in self.values.items()},
            {name: values[rows] for name, values in self.valid.items()},
        )


def names_of(kind: Kind) -> tuple[str, ...]:
    return ENERGY_NAMES if kind is Kind.ENERGY else POWER_NAMES


def columns_of(kind: Kind, batches: Sequence[Batch], installations: Installations) -> Columns:
    """All rows of ``batches``, which are of one kind; ``batch`` counts them from 0."""
    sizes = [batch.rows for batch in batches]
    which = np.repeat(np.arange(len(batches)), sizes)
    values: dict[str, NDArray[Any]] = {}
    valid: dict[str, NDArray[np.bool_]] = {}
    bits = _bit_of_each_row(np.array(sizes, np.int64), which)
    for name in ("meter_index", "at", "gateway_at", "meter_at", "quality", *names_of(kind)):
        dtype = np.dtype(COLUMN_TYPES[name])
        absent = _NAN if dtype.kind == "f" else bytes(dtype.itemsize)
        columns = [batch.columns.get(name) for batch in batches]
        # One join for all batches: an array for each would cost more than the rows of a small one.
        packed = [
            absent * batch.rows if column is None else column for column, batch in zip(columns, batches, strict=True)
        ]
        values[name] = np.frombuffer(b"".join(packed), dtype)
        if name in NULLABLE_INTEGERS:
            valid[name] = _valid(name, batches, columns, bits)
    meter_id = installations.meter_ids(
        [(batch.gateway, batch.meters) for batch in batches], which, values.pop("meter_index"), values["at"]
    )
    return Columns(kind, which, meter_id, values, valid)


def _bit_of_each_row(sizes: NDArray[np.int64], which: NDArray[np.int64]) -> NDArray[np.int64]:
    """(N,) where each row's bit is, when the bitmaps of all batches, which end at whole bytes, stand in a row."""
    whole = (sizes + 7) // 8 * 8
    start = np.cumsum(whole) - whole - (np.cumsum(sizes) - sizes)
    return start[which] + np.arange(len(which))


def _valid(
    name: str, batches: Sequence[Batch], columns: Sequence[bytes | None], bits: NDArray[np.int64]
) -> NDArray[np.bool_]:
    bitmaps = b"".join(
        [
            bytes((batch.rows + 7) // 8)
            if column is None
            else batch.valid.get(name) or b"\xff" * ((batch.rows + 7) // 8)
            for column, batch in zip(columns, batches, strict=True)
        ]
    )
    return np.unpackbits(np.frombuffer(bitmaps, np.uint8), bitorder="little").view(bool)[bits]


def judge(columns: Columns, now: datetime, keep: Keep) -> NDArray[np.uint8]:
    """(N,) Verdict of each row. An unknown meter goes first: its values are judged when it is replayed."""
    impossible = ~possible(columns.values["at"], now) | ~possible(columns.values["gateway_at"], now)
    meter_at = columns.values["meter_at"]
    impossible |= columns.valid["meter_at"] & ((meter_at < 0) | (meter_at > METER_AT_MAX_US))
    impossible |= columns.values["quality"] > np.iinfo(np.int16).max
    for name in names_of(columns.kind):
        values = columns.values[name]
        if name in columns.valid:
            impossible |= columns.valid[name] & (values < 0)  # a register counts up from 0
        else:
            impossible |= np.abs(values) > FLOAT_MAX
    verdicts = np.full(len(columns), Verdict.STORED, np.uint8)
    if columns.kind in keep:
        verdicts[columns.values["at"] < to_us(now - keep[columns.kind])] = Verdict.TOO_OLD
    verdicts[impossible] = Verdict.IMPOSSIBLE_VALUE
    verdicts[columns.meter_id == UNKNOWN] = Verdict.UNKNOWN_METER
    return verdicts


def possible(at_us: NDArray[np.int64], now: datetime) -> NDArray[np.bool_]:
    """Whether instants, µs since 1970, lie between 2000 and a day ahead of ``now``."""
    return (at_us >= EPOCH_2000_US) & (at_us <= to_us(now + AHEAD_MAX))


def sample_stream(columns: Columns) -> Stream:
    """All rows for COPY. Their last field, the number the ledger gives their batch, is still to be filled in."""
    fields = [
        Field(columns.meter_id, ">i4"),
        instant(columns.values["at"]),
        instant(columns.values["gateway_at"]),
        instant(columns.values["meter_at"], columns.valid["meter_at"]),
        Field(columns.values["quality"], ">i2"),
    ]
    for name in names_of(columns.kind):
        values = columns.values[name]
        if name in columns.valid:
            fields.append(Field(values, ">i8", columns.valid[name]))
        else:
            fields.append(Field(values, ">f4", ~np.isnan(values)))
    fields.append(Field(columns.batch, ">i8"))
    return stream(fields)


# ---- rows set aside --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class SetAside:
    """Rows of one batch for one reason. ``document`` is a batch in the contract's JSON form with these rows alone;
    ``unknown``: its meters, where they are not in the registry."""

    batch: Batch
    reason: Verdict
    detail: str
    rows: int
    document: bytes
    unknown: Sequence[str] = ()


def set_aside(batch: Batch, columns: Columns, verdicts: NDArray[np.uint8], now: datetime, keep: Keep) -> list[SetAside]:
    """The rows of ``batch`` that cannot be stored. columns, verdicts: all N rows of this batch."""
    index = np.frombuffer(batch.columns["meter_index"], np.uint16)
    found = []
    for reason in (Verdict.UNKNOWN_METER, Verdict.IMPOSSIBLE_VALUE, Verdict.TOO_OLD):
        rows = np.flatnonzero(verdicts == reason)
        for first in range(0, len(rows), ROWS_SET_ASIDE_MAX):
            some = rows[first : first + ROWS_SET_ASIDE_MAX]
            names, local = np.unique(index[some], return_inverse=True)
            meters = [batch.meters[i] for i in names]
            detail = f"{batch.gateway} {batch.meters[index[some[0]]]}: "
            if reason is Verdict.UNKNOWN_METER:
                detail = (
                    f"{batch.gateway}: {_few(meters)} not in the registry at that time; `gridloom registry import` it"
                )
            elif reason is Verdict.TOO_OLD:
                detail += (
                    f"at is {_date(columns.values['at'][some[0]])}; {batch.kind.value} samples are kept for"
                    f" {keep[batch.kind].days} days, see the table retention"
                )
            else:
                detail += _explain(columns, int(some[0]), now)
            listed: dict[str, list[Any]] = {"meter_index": local.tolist()}
            for name in columns.values:
                listed[name] = _listed(columns, name, some)
            unknown = meters if reason is Verdict.UNKNOWN_METER else ()
            found.append(SetAside(batch, reason, detail, len(some), _document(batch, meters, listed), unknown))
    return found


def _document(batch: Batch, meters: list[str], columns: dict[str, list[Any]]) -> bytes:
    return msgspec.json.encode(
        {
            "version": VERSION,
            "gateway": batch.gateway,
            "epoch": batch.epoch,
            "seq": batch.seq,
            "kind": batch.kind.value,
            "sent_at": batch.sent_at,
            "meters": meters,
            "columns": columns,
        }
    )


def _listed(columns: Columns, name: str, rows: NDArray[np.intp]) -> list[Any]:
    """The values as JSON has them: null for a missing one, and the largest float for an infinite one."""
    values = columns.values[name][rows]
    if name in columns.valid:
        present = columns.valid[name][rows]
        return [value if there else None for value, there in zip(values.tolist(), present.tolist(), strict=True)]
    if values.dtype.kind != "f":
        return list(values.tolist())
    return [None if value != value else value for value in np.nan_to_num(values, nan=np.nan).tolist()]


def _explain(columns: Columns, row: int, now: datetime) -> str:
    """What is impossible about a row, and what was expected."""
    for name in ("at", "gateway_at"):
        if not possible(columns.values[name][row : row + 1], now)[0]:
            latest = f"{now + AHEAD_MAX:%F %T} UTC"
            return f"{name} is {_date(columns.values[name][row])}; between 2000 and {latest} expected"
    if columns.valid["meter_at"][row] and not 0 <= columns.values["meter_at"][row] <= METER_AT_MAX_US:
        return f"meter_at is {_date(columns.values['meter_at'][row])}; between 1970 and 2200 expected"
    for name in names_of(columns.kind):
        value = columns.values[name][row]
        if name in columns.valid and columns.valid[name][row] and value < 0:
            return f"{name} is {value}; 0 or more expected"
        if abs(value) > FLOAT_MAX and name not in columns.valid:
            return f"{name} is {value}; a physical value expected"
    return f"quality is {columns.values['quality'][row]}; at most {np.iinfo(np.int16).max} expected"


def _date(us: int) -> str:
    try:
        return f"{from_us(int(us)):%F %T} UTC"
    except OverflowError:
        return f"{us} µs since 1970"


def _few(names: list[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
