"""Raw samples of a day as a Parquet file: ``gridloom export raw``."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from pathlib import Path
from typing import Any, Final
from zoneinfo import ZoneInfo

import click
import numpy as np
import psycopg
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from psycopg import sql
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from cloud import settings
from cloud.store.binary_copy import EPOCH_2000_US
from cloud.store.commands import open_store
from cloud.store.migrations import Connection
from protocols.quantities import ENERGY, POWER, Kind, Quality

Array = NDArray[Any]

ROWS_OF_A_GROUP: Final = 200_000  # in memory at once, some 25 MB
_HEADER_BYTES: Final = 19  # of a binary COPY, before its first row
_NULL: Final = np.iinfo(np.int64).min  # registers count up from 0, and -infinity is no instant

_NUMPY: Final = {"smallint": ">i2", "integer": ">i4", "bigint": ">i8", "real": ">f4", "timestamptz": ">i8"}
_INSTANT: Final = pa.timestamp("us", tz="UTC")


@dataclass(frozen=True, slots=True)
class Exported:
    rows: int
    start: datetime
    end: datetime
    bytes: int


def day_of(day: date, zone: ZoneInfo) -> tuple[datetime, datetime]:
    """The business day as [start, end), UTC."""
    edges = (datetime.combine(one, time(), zone).astimezone(UTC) for one in (day, day + timedelta(days=1)))
    return next(edges), next(edges)


def export_raw(
    connection: Connection,
    path: Path,
    kind: Kind,
    start: datetime,
    end: datetime,
    *,
    progress: Callable[[float], None] = lambda part: None,
) -> Exported:
    """Write all samples of ``kind`` with start <= at < end to ``path``, by meter and mark, as they were stored: every
    copy of a reading, no ratio applied. ``path`` is there whole or not at all. ``progress`` gets the part that is done.
    """
    part = path.with_name(f".{path.name}.part")
    rows = 0
    try:
        # One snapshot: what is committed meanwhile is in it whole or not at all.
        with connection.transaction(), connection.cursor() as cursor:
            cursor.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
            serials = _serials(cursor)
            with pq.ParquetWriter(part, _schema(kind, start, end), compression="zstd") as writer:
                for block in _blocks(cursor, kind, start, end):
                    writer.write_batch(_record_batch(block, kind, serials, writer.schema))
                    rows += len(block)
                    progress(float(np.searchsorted(serials[0], block["meter_id"][-1], "right") / len(serials[0])))
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
    progress(1.0)
    return Exported(rows, start, end, path.stat().st_size)


def _columns(kind: Kind) -> dict[str, str]:
    """Column → PostgreSQL type, in the table's order."""
    values = {q.name: "bigint" for q in ENERGY} if kind is Kind.ENERGY else {q.name: "real" for q in POWER}
    return {
        "meter_id": "integer",
        **dict.fromkeys(("at", "gateway_at", "meter_at"), "timestamptz"),
        "quality": "smallint",
        **values,
        "batch_id": "bigint",
    }


def _schema(kind: Kind, start: datetime, end: datetime) -> pa.Schema:
    quantities = {quantity.name: quantity for quantity in ENERGY + POWER}
    arrow = {"smallint": pa.int16(), "integer": pa.int32(), "bigint": pa.int64(), "real": pa.float32()}
    about = {
        "at": "the intended mark",
        "gateway_at": "when the gateway read it",
        "meter_at": "the meter's own clock",
        "quality": "bits: " + ", ".join(f"{flag.value} {flag.name}" for flag in Quality if flag),
        "batch_id": "the ledger's number of the batch that brought it",
    }
    fields = [pa.field("meter", pa.dictionary(pa.int32(), pa.string()), False, {"about": "serial number"})]
    for name, type_name in _columns(kind).items():
        words = {"about": about[name]} if name in about else {}
        if quantity := quantities.get(name):
            words = {"unit": quantity.unit, "obis": f"1-0:{quantity.obis}"}
        required = name in ("meter_id", "at", "gateway_at", "quality", "batch_id")
        fields.append(pa.field(name, arrow.get(type_name, _INSTANT), not required, words))
    return pa.schema(
        fields,
        {
            "source": f"Gridloom {kind.value}_sample",
            "from": start.isoformat(),
            "until": end.isoformat(),
            "values": "as the meter said them: no CT or PT ratio applied, positive power is import",
        },
    )


def _serials(cursor: psycopg.Cursor[Any]) -> tuple[NDArray[np.int32], pa.Array]:
    """All meters by meter_id, and their serial numbers."""
    found = cursor.execute("SELECT meter_id, serial FROM meter ORDER BY meter_id").fetchall()
    return np.array([meter_id for meter_id, _ in found], np.int32), pa.array([s for _, s in found], pa.string())


def _blocks(cursor: psycopg.Cursor[Any], kind: Kind, start: datetime, end: datetime) -> Iterator[Array]:
    """Rows as structured arrays, at most ROWS_OF_A_GROUP each.

    Every field is fixed in width, for a null is sent as _NULL or NaN, so no row is looked at. Meter by meter, because
    the samples' one index is by meter and time: a day costs the same in a table of years.
    """
    columns = _columns(kind)
    row = np.dtype(
        [("count", ">i2")]
        + [
            entry
            for name, type_name in columns.items()
            for entry in ((f"{name} bytes", ">i4"), (name, _NUMPY[type_name]))
        ]
    )
    absent = {"bigint": sql.Literal(_NULL), "real": sql.SQL("'NaN'::real"), "timestamptz": sql.SQL("'-infinity'")}
    chosen = [
        sql.SQL("coalesce({}, {})").format(sql.Identifier("s", name), absent[type_name])
        if type_name in absent
        else sql.Identifier("s", name)
        for name, type_name in columns.items()
    ]
    query = sql.SQL(
        "COPY (SELECT {} FROM (SELECT meter_id FROM meter ORDER BY meter_id) m CROSS JOIN LATERAL ("
        "SELECT * FROM {} WHERE meter_id = m.meter_id AND at >= {} AND at < {} ORDER BY at, batch_id) s"
        ") TO STDOUT (FORMAT binary)"
    ).format(sql.SQL(", ").join(chosen), sql.Identifier(f"{kind.value}_sample"), start, end)
    bound = ROWS_OF_A_GROUP * row.itemsize
    with cursor.copy(query) as copy:
        held = bytearray()
        header = _HEADER_BYTES
        for data in copy:
            held += data
            if len(held) >= header + bound:
                yield np.frombuffer(bytes(held[header : header + bound]), row)
                del held[: header + bound]
                header = 0
        # What is left, less the trailer.
        if rest := (len(held) - header) // row.itemsize:
            yield np.frombuffer(bytes(held[header : header + rest * row.itemsize]), row)


def _record_batch(
    block: Array, kind: Kind, serials: tuple[NDArray[np.int32], pa.Array], schema: pa.Schema
) -> pa.RecordBatch:
    meter_ids, names = serials
    indices = np.searchsorted(meter_ids, block["meter_id"]).astype(np.int32)
    arrays = [pa.DictionaryArray.from_arrays(pa.array(indices), names)]
    for name, type_name in _columns(kind).items():
        values = block[name].astype(block[name].dtype.newbyteorder("="))
        null = np.isnan(values) if type_name == "real" else values == _NULL if values.dtype == np.int64 else None
        if type_name == "timestamptz":
            values = values + EPOCH_2000_US
        arrays.append(pa.array(values, schema.field(name).type, mask=null))
    return pa.RecordBatch.from_arrays(arrays, schema=schema)


# ---- the command -----------------------------------------------------------------------------------------------------


@click.group(
    epilog="""\b
Copy and run:
  gridloom export raw --day 2026-11-21 --kind energy -o energy-2026-11-21.parquet
"""
)
def export() -> None:
    """Data out of the store, as files."""


@export.command(
    epilog="""\b
Copy and run:
  gridloom export raw --day 2026-11-21 --kind energy -o energy-2026-11-21.parquet
  gridloom export raw --day 2026-11-21 --kind power --zone UTC -o power-2026-11-21.parquet --json
"""
)
@click.option("--day", required=True, type=click.DateTime(["%Y-%m-%d"]), help="The day, in --zone.")
@click.option("--kind", required=True, type=click.Choice([Kind.ENERGY.value, Kind.POWER.value]), help="Which samples.")
@click.option("-o", "--output", required=True, type=click.Path(dir_okay=False, path_type=Path), help="Parquet file.")
@click.option("--zone", help="Time zone of the day.  [default: GRIDLOOM_ZONE, or Asia/Shanghai]")
@click.option("--json", "as_json", is_flag=True, help="For machines: one document.")
def raw(day: datetime, kind: str, output: Path, zone: str | None, as_json: bool) -> None:
    """Write one day's samples to a Parquet file, as the meters said them.

    Instants in the file are UTC, in microseconds; a missing value is null. Units, OBIS codes and the day's bounds are
    in the file's metadata. An existing file is replaced once the new one is whole.
    """
    try:
        where = ZoneInfo(zone) if zone else settings.zone()
    except (KeyError, ValueError, OSError) as error:
        raise click.BadParameter(f'--zone: "{zone}" is not a time zone; for example Asia/Shanghai') from error
    start, end = day_of(day.date(), where)
    console = Console(stderr=True)
    shown = Progress(
        TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn(),
        console=console, transient=True, disable=not console.is_terminal,
    )  # fmt: skip
    with open_store() as connection, shown:
        task = shown.add_task(f"{kind} {day:%F}", total=1.0)
        try:
            done = export_raw(
                connection, output, Kind(kind), start, end, progress=lambda part: shown.update(task, completed=part)
            )
        except OSError as error:
            raise click.ClickException(f"{output}: {error.strerror or error}; choose another place") from error
    if as_json:
        document = {"kind": kind, "day": f"{day:%F}", "zone": where.key, "from": start.isoformat()}
        click.echo(json.dumps({**document, "until": end.isoformat(), "rows": done.rows, "bytes": done.bytes}))
        return
    click.echo(f"{output}: {done.rows} rows, {done.bytes} bytes")
    click.echo(f"{day:%F} in {where.key} is {start:%F %H:%M} to {end:%F %H:%M} UTC")
