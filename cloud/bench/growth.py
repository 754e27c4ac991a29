"""What age costs: rate of ingest and time of the queries people wait for, with more and more days in the tables.

The days are put there by COPY, in the form ingest and work would have left them.
"""

import asyncio
import statistics
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from operator import truediv
from typing import Any, Final, LiteralString, TypeAlias, cast
from zoneinfo import ZoneInfo

import numpy as np
from numpy.typing import NDArray

from cloud.api.access import Days, Site, Span
from cloud.api.completeness import completeness, gaps
from cloud.api.database import Database, Row
from cloud.api.operations import IngestCount, status_of
from cloud.bench.feed import column_names, copy_fields, day_of_rows
from cloud.bench.line import HEADLINE_ROWS, Document, Line, table_of
from cloud.bench.services import Ingestors
from cloud.store.binary_copy import Field, instant, stream
from cloud.store.migrations import Connection, Edition
from protocols.clock import SystemClock
from protocols.quantities import Kind
from protocols.uplink import to_us

YEAR: Final = 365
DAY: Final = timedelta(days=1)
MARKS: Final = 96
POINTS_OF_A_MONTH: Final = 1_000
TURNS_MAX: Final = 3  # of each at a step: what they add must fit behind the last day

Statement: TypeAlias = tuple[LiteralString, dict[str, Any]]


class Day:
    """A day's rows ready for COPY, for this day and, by moving their instants, for others: making them takes longer."""

    def __init__(self, query: LiteralString, fields: Sequence[Field], instants: Sequence[int]) -> None:
        """``instants``: which of the fields are."""
        self._query = query
        self._rows = stream(fields)
        self._later = timedelta()
        self._places: list[NDArray[np.int64]] = []
        at = np.concatenate(([0], self._rows.ends[:-1])) + 2  # a row begins with its number of fields,
        for i, field in enumerate(fields):
            valid = np.ones(len(at), bool) if field.valid is None else field.valid
            at = at + 4  # and a field with its length
            if i in instants:
                self._places.append(at[valid][:, None] + np.arange(8))
            at = at + valid * np.dtype(field.dtype).itemsize

    def copy(self, connection: Connection, later: timedelta) -> None:
        """The rows as they are ``later``."""
        body = self._rows.body
        for places in self._places:
            moved = body[places].view(">i8") + (later - self._later) // timedelta(microseconds=1)
            body[places] = moved.astype(">i8").view(np.uint8)
        self._later = later
        with connection.cursor().copy(self._query) as copy:
            self._rows.write(copy)


def day_of_samples(kind: Kind, meter_ids: NDArray[np.int32], day: datetime) -> Day:
    names = column_names(kind)
    rows = day_of_rows(kind, meter_ids, to_us(day), MARKS)
    query: LiteralString = f"COPY {table_of(kind)} ({', '.join(names)}) FROM STDIN (FORMAT BINARY)"
    return Day(
        query,
        copy_fields(rows, slice(None)),
        [i for i, name in enumerate(names) if name in ("at", "gateway_at", "meter_at")],
    )


def day_of_intervals(point_ids: NDArray[np.int32], day: datetime) -> Day:
    """Mark by mark, as they are derived."""
    count = MARKS * len(point_ids)
    row = np.arange(count)
    wh = (row * 7919 % 1000).astype(np.int64)
    fields = [
        Field(point_ids[row % len(point_ids)], ">i4"),
        instant(to_us(day) + row // len(point_ids) * 900_000_000),
        Field(np.ones(count, np.int64), ">i8"),
        *[Field(wh // (i + 1), ">i8", np.full(count, i < 2)) for i in range(4)],
        Field(np.zeros(count, np.int16), ">i2"),
    ]
    return Day(
        "COPY interval (point_id, start, version, energy_import_wh, energy_export_wh, reactive_import_varh,"
        " reactive_export_varh, quality) FROM STDIN (FORMAT BINARY)",
        fields,
        [1],
    )


class Table:
    """Days on record, from ``first`` on: samples and what work derives from them."""

    def __init__(self, line: Line, days: int) -> None:
        self._line = line
        self._connection = line.connection
        self._meters = line.meter_ids.ravel()
        today = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
        # Behind the last day stand the days that are ingested while it is measured: 25 hours a turn.
        self.first = today - timedelta(days=days + 20)
        self.days = 0
        self._behind = self.first + timedelta(days=days)

    def fill(self, days: int) -> None:
        made = [day_of_samples(Kind.POWER, self._meters, self.first), day_of_intervals(self._meters, self.first)]
        for day in range(self.days, days):
            for rows in made:
                rows.copy(self._connection, day * DAY)
        self._connection.execute(
            "INSERT INTO interval_version (version, closed_at) VALUES (1, now()) ON CONFLICT DO NOTHING"
        )
        self._connection.execute(
            "INSERT INTO batch (gateway, epoch, seq, kind, rows, sent_at)"
            " SELECT gateway, 'filled', seq, 'power', %s, %s::timestamptz + seq * interval '15 min'"
            " FROM generate_series(%s::integer, %s::integer) AS seq CROSS JOIN area ORDER BY seq",
            [self._line.meter_ids.shape[1], self.first, self.days * MARKS, days * MARKS - 1],
        )
        self._derive(self.days, days)
        self.days = days
        if self._line.here.edition is Edition.COMMUNITY:
            for (job,) in self._connection.execute(
                "SELECT job_id FROM timescaledb_information.jobs"
                " WHERE hypertable_name = 'power_sample' AND proc_name IN ('policy_compression', 'policy_columnstore')"
            ).fetchall():
                self._connection.execute("CALL run_job(%s)", [job])
        self._connection.execute("VACUUM ANALYZE")

    def _derive(self, first: int, end: int) -> None:
        """Completeness of days [first, end) on record, and a year of loads, since that is what is asked for."""
        self._connection.execute(
            "INSERT INTO completeness_day (point_id, day, expected, received)"
            " SELECT point_id, %s::date + n, 96, 96 - (point_id * 7 + n) %% 5"
            " FROM generate_series(%s::integer, %s::integer) AS n CROSS JOIN metering_point ORDER BY n",
            [self.first, first, end - 1],
        )
        self._connection.execute(
            "INSERT INTO gap (point_id, day, start_at, end_at, reason)"
            " SELECT point_id, day, at, at + (expected - received) * interval '15 min', 'meter_silent'"
            " FROM completeness_day, LATERAL (SELECT day::timestamp AT TIME ZONE 'UTC') AS t (at)"
            " WHERE received < expected AND day >= %s::date + %s::integer ORDER BY day",
            [self.first, first],
        )
        for rolled in (
            "INSERT INTO completeness_area_day (area_id, gateway, day, expected, received)"
            " SELECT area_id, gateway, day, sum(expected), sum(received)"
            " FROM completeness_day JOIN metering_point USING (point_id) JOIN area USING (area_id)"
            " WHERE day >= %s::date + %s::integer GROUP BY area_id, gateway, day ORDER BY day",
            "INSERT INTO missing_area_day (area_id, gateway, day, reason, intervals)"
            " SELECT area_id, gateway, day, reason, sum(extract(epoch FROM end_at - start_at)) / 900"
            " FROM gap JOIN metering_point USING (point_id) JOIN area USING (area_id)"
            " WHERE day >= %s::date + %s::integer GROUP BY area_id, gateway, day, reason ORDER BY day",
        ):
            self._connection.execute(rolled, [self.first, first])
        if first == 0:
            self._connection.execute(
                "INSERT INTO load (series, start, supplied_wh, delivered_wh, meters_expected, meters_received)"
                " SELECT 'area:' || area_id, %s::timestamptz + n * interval '15 min', 25000 + n, 24000 + n, 100, 100"
                " FROM generate_series(0, %s) AS n CROSS JOIN area ORDER BY n",
                [self.first - (YEAR - 1) * DAY, YEAR * MARKS - 1],
            )

    def rates(self, running: Ingestors) -> Document:
        """The line and COPY alone behind the last day, at the same commit size, nothing emptied."""
        rates: dict[str, list[float]] = {"ingest": [], "copy": []}
        for _ in range(min(self._line.effort.rounds, TURNS_MAX)):
            for turn, found in rates.items():
                feed = self._line.feed(Kind.POWER, HEADLINE_ROWS, self._line.effort.rows // 2, start=self._behind)
                self._behind += timedelta(minutes=15) * -(-feed.messages * feed.rows // feed.meters)
                told = self._line.ingest(feed, running) if turn == "ingest" else self._line.copy(feed)
                found.append(told["rows_per_s"])
        return {
            "rows_per_s": statistics.median(rates["ingest"]),
            "copy_rows_per_s": statistics.median(rates["copy"]),
            "ratio_to_copy": statistics.median(map(truediv, rates["ingest"], rates["copy"])),
        }


# ---- queries ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Query:
    """``runs``: of how many p50 and p99 are told. ``ask``: parameters of one run."""

    what: str
    sql: LiteralString
    ask: Callable[[np.random.Generator], dict[str, Any]]
    runs: int


# The statements of GET /v1/intervals and /v1/loads without their bounds on one answer; a month's rows are counted on
# the server, since fetching millions would measure the client.
_CURVE: Final = """
    SELECT at, active_power_w, voltage_l1_v, voltage_l2_v, voltage_l3_v, current_l1_a, current_l2_a, current_l3_a
    FROM power_sample WHERE meter_id = %(meter)s AND at >= %(from)s AND at < %(to)s ORDER BY at
"""
_MONTH: Final = """
    SELECT count(*), sum(energy_import_wh) FROM (
        SELECT DISTINCT ON (point_id, start) point_id, start, energy_import_wh, energy_export_wh,
               reactive_import_varh, reactive_export_varh, quality, version
        FROM interval
        WHERE point_id = ANY(%(points)s) AND start >= %(from)s AND start < %(to)s AND version <= 1
        ORDER BY point_id, start, version DESC) page
"""
_YEAR: Final = """
    SELECT start, supplied_wh, supplied_wh * 4.0::double precision AS supplied_w, delivered_wh, meters_expected,
           meters_received
    FROM load WHERE series = %(series)s AND start >= %(from)s AND start < %(to)s ORDER BY start
"""


def queries(line: Line, table: Table) -> Iterator[Query]:
    last = table.first + table.days * DAY
    meters, areas = line.meter_ids.size, len(line.meter_ids)
    runs = line.effort.queries

    def day(random: np.random.Generator) -> dict[str, Any]:
        start = table.first + int(random.integers(table.days)) * DAY
        return {"meter": int(random.integers(1, meters + 1)), "from": start, "to": start + DAY}

    def month(random: np.random.Generator) -> dict[str, Any]:
        first = int(random.integers(max(1, meters - POINTS_OF_A_MONTH)))
        points = list(range(first + 1, first + 1 + min(meters, POINTS_OF_A_MONTH)))
        return {"points": points, "from": max(table.first, last - 30 * DAY), "to": last}

    def year(random: np.random.Generator) -> dict[str, Any]:
        series = f"area:A{int(random.integers(1, areas + 1))}"
        return {"series": series, "from": table.first - (YEAR - 1) * DAY, "to": table.first + DAY}

    yield Query("a day's curve of one meter", _CURVE, day, runs * 5)
    yield Query("a month's intervals of 1,000 meters", _MONTH, month, max(3, runs // 8))
    yield Query("an area's load for a year", _YEAR, year, runs)


def ask(connection: Connection, query: Query) -> Document:
    """Times as the client sees them, and what the plan did."""
    random = np.random.default_rng(11)
    connection.execute(query.sql, query.ask(random)).fetchall()
    times_ms, rows = [], 0
    for _ in range(query.runs):
        parameters = query.ask(random)
        begin_s = time.perf_counter()
        found = connection.execute(query.sql, parameters).fetchall()
        times_ms.append(1000 * (time.perf_counter() - begin_s))
        rows = cast(int, found[0][0]) if query.sql is _MONTH else len(found)
    return _told(connection, query.what, times_ms, rows, [(query.sql, query.ask(random))])


def _told(
    connection: Connection, what: str, times_ms: list[float], rows: int, statements: Sequence[Statement]
) -> Document:
    plans = []
    for sql, parameters in statements:
        explain: LiteralString = "EXPLAIN (ANALYZE, BUFFERS, TIMING OFF, FORMAT JSON) " + sql
        explained = connection.execute(explain, parameters).fetchone()
        assert explained is not None
        plans.append(cast(list[dict[str, Any]], explained[0])[0]["Plan"])
    return {
        "query": what,
        "runs": len(times_ms),
        "rows": rows,
        "p50_ms": float(np.percentile(times_ms, 50)),
        "p99_ms": float(np.percentile(times_ms, 99)),
        "blocks": sum(plan["Shared Hit Blocks"] + plan["Shared Read Blocks"] for plan in plans),
        "plan": list(dict.fromkeys(node for plan in plans for node in _nodes(plan))),
    }


def _nodes(plan: dict[str, Any]) -> Iterator[str]:
    """What the plan does, from its top; a node that did not run is left out, chunks of one table are one."""
    if plan.get("Actual Loops", 1):
        on = plan.get("Index Name") or plan.get("Relation Name") or ""
        on = "power_sample" + on.split("_chunk", 1)[1] if on.startswith("_hyper_") and "_chunk" in on else on
        yield f"{plan.get('Custom Plan Provider') or plan['Node Type']} {on}".strip()
        for child in plan.get("Plans", []):
            yield from _nodes(child)


# ---- pages of the API, with all they ask -----------------------------------------------------------------------------


class Watched(Database):
    """Keeps what was asked."""

    def __init__(self, dsn: str) -> None:
        super().__init__(dsn)
        self.asked: list[Statement] = []

    async def rows(
        self, kind: type[Row], query: LiteralString, parameters: Mapping[str, object] | None = None
    ) -> list[Row]:
        self.asked.append((query, dict(parameters or {})))
        return await super().rows(kind, query, parameters)


Page: TypeAlias = Callable[[Site], Awaitable[int]]


def pages(table: Table) -> dict[str, Page]:
    """What the completeness page (采集成功率) and those of operators ask for; each tells how many rows it shows."""
    last = (table.first + table.days * DAY).date()
    day, month = Days(last - DAY, last), Days(last - min(30, table.days) * DAY, last)

    async def by_area(site: Site) -> int:
        return len((await completeness(site, month, by="area")).groups)

    async def of_points(site: Site) -> int:
        return len((await completeness(site, day, by="point", area="A1")).groups)

    async def missing(site: Site) -> int:
        return len((await gaps(site, day)).gaps)

    newest = Span(table.first + (table.days - 1) * DAY, table.first + table.days * DAY)

    async def stored(site: Site) -> int:
        return len([await IngestCount().get(site, newest, newest=False)])

    async def line(site: Site) -> int:
        return len([await status_of(site)])

    return {
        "completeness page: areas, a month": by_area,
        "completeness page: an area's meters, a day": of_points,
        "completeness page: gaps of a day": missing,
        "ingest: rows stored, a day's duplicates": stored,
        "status line": line,
    }


def ask_page(line: Line, what: str, page: Page) -> Document:
    """As the API's own code does it, from the call to the answer as objects."""

    async def run() -> tuple[list[float], int, list[Statement]]:
        database = Watched(line.here.dsn)
        site = Site(database, SystemClock(), ZoneInfo("UTC"))
        rows = await page(site)
        statements, times_ms = list(database.asked), []
        for _ in range(line.effort.queries):
            begin_s = time.perf_counter()
            await page(site)
            times_ms.append(1000 * (time.perf_counter() - begin_s))
        await database.close()
        return times_ms, rows, statements

    times_ms, rows, statements = asyncio.run(run())
    return _told(line.connection, what, times_ms, rows, statements)


def growth(line: Line, steps: Sequence[int], running: Ingestors, say: Callable[[str], None]) -> list[Document]:
    """For each number of days: rates and queries."""
    line.empty()
    line.connection.execute(
        "TRUNCATE interval, interval_version, load, completeness_day, completeness_area_day, missing_area_day, gap"
    )
    table = Table(line, max(steps))
    told = []
    for days in steps:
        say(f"filling {days} days")
        table.fill(days)
        say(f"asking with {days} days on record")
        asked = [ask(line.connection, query) for query in queries(line, table)]
        asked += [ask_page(line, what, page) for what, page in pages(table).items()]
        told.append(
            {"days": days, "rows": days * MARKS * line.meter_ids.size, **table.rates(running), "queries": asked}
        )
    return told


# ---- disk ------------------------------------------------------------------------------------------------------------

_SIZES: Final = """
    SELECT coalesce(sum(pg_table_size(part)), 0)::bigint, coalesce(sum(pg_indexes_size(part)), 0)::bigint
    FROM unnest(%s::regclass[]) AS part
"""


def disk(line: Line, kind: Kind) -> Document:
    """Bytes a row of some days of some meters: the rows, with their index, and as columns where the server can."""
    line.empty()
    connection, table = line.connection, table_of(kind)
    meters = np.arange(1, line.effort.disk_meters + 1, dtype=np.int32)
    # A week that fills one chunk: TimescaleDB's weeks begin on Thursdays, like 1970.
    now = datetime.now(UTC)
    first = datetime(1970, 1, 1, tzinfo=UTC) + ((now - datetime(1970, 1, 1, tzinfo=UTC)) // (7 * DAY) - 3) * 7 * DAY
    for i in range(line.effort.disk_days):
        day_of_samples(kind, meters, first + i * DAY).copy(connection, timedelta())
    rows = line.effort.disk_days * MARKS * len(meters)
    hyper = line.here.edition >= Edition.TIMESCALEDB
    parts: list[str] = [table]
    if hyper:
        parts = [str(chunk) for (chunk,) in connection.execute("SELECT show_chunks(%s)::text", [table])]
    sizes = connection.execute(_SIZES, [parts]).fetchone()
    assert sizes is not None
    raw, index = cast(int, sizes[0]) / rows, cast(int, sizes[1]) / rows
    found: Document = {"kind": kind.value, "rows": rows, "raw": raw, "with_index": raw + index, "compressed": None}
    if line.here.edition is Edition.COMMUNITY:
        for part in parts:
            connection.execute("SELECT compress_chunk(%s::regclass)", [part])
        query = "SELECT hypertable_size(%s)"
        size = connection.execute(query, [table]).fetchone()
        assert size is not None
        found["compressed"] = cast(int, size[0]) / rows
    connection.execute("TRUNCATE energy_sample, power_sample")
    return found
