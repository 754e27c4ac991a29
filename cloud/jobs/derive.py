"""Samples become intervals, and intervals roll up: what ingest marked dirty, in chunks, each in one transaction.

An interval whose value did not change is not written again. Loads and completeness are recomputed, not added to, so
that doing a range twice is harmless.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, datetime
from typing import Any, Final

import numpy as np
import psycopg

from cloud.engines.intervals import MISSING, Intervals, derive
from cloud.jobs.calendar import Calendar
from cloud.jobs.columns import from_mark, read_columns, to_mark
from cloud.store.binary_copy import Field, encode, instant
from protocols.quantities import ENERGY_NAMES

Connection = psycopg.Connection[tuple[Any, ...]]

SUBSTATION: Final = "substation:S1"
# Marks in one transaction: about 100 MB of arrays.
MARKS_MAX: Final = 1_000_000
RANGES_MAX: Final = 20_000
# Whoever numbers an interval version holds this to the end of its transaction: numbers follow the order of commits.
VERSION_LOCK: Final = 0x6772_6964_0000_0001

# Where registers roll over: DL/T 645 has eight digits of 0.01 kWh, our Modbus templates 32 bits of 10 Wh.
_DLT645_MODULUS_WH: Final = 10**8 * 10
_MODBUS_MODULUS_WH: Final = 2**32 * 10


_SESSION: Final = """
    CREATE TEMP TABLE taken (meter_id integer, from_at timestamptz, to_at timestamptz) ON COMMIT DELETE ROWS;
    CREATE TEMP TABLE derived (
        point_id integer, start timestamptz, energy_import_wh bigint, energy_export_wh bigint,
        reactive_import_varh bigint, reactive_export_varh bigint, quality smallint
    ) ON COMMIT DELETE ROWS;
    CREATE TEMP TABLE changed (LIKE derived) ON COMMIT DELETE ROWS;
    CREATE TEMP TABLE touched (area_id text, start timestamptz) ON COMMIT DELETE ROWS
"""

# One `gridloom work` leads at a time, so the ranges need no row locks; ingest only adds to them.
_CLAIM: Final = """
    WITH waiting AS MATERIALIZED (
        SELECT ctid AS place, ceil(extract(epoch FROM to_at - from_at) / 900) + 3 AS marks
        FROM dirty_range LIMIT %(ranges)s
    ), bounded AS (
        SELECT place, sum(marks) OVER (ORDER BY place) - marks AS before FROM waiting
    ), gone AS (
        DELETE FROM dirty_range USING bounded
        WHERE dirty_range.ctid = place AND before < %(marks)s
        RETURNING meter_id, from_at, to_at
    )
    INSERT INTO taken SELECT * FROM gone
"""

# Each range with the marks beside it, overlapping ones of a meter as one.
_SAMPLES: Final = """
    SELECT i.point_id, s.meter_id, s.at, s.quality, s.batch_id, i.ct_ratio::bigint * i.pt_ratio AS ratio,
           (CASE m.protocol WHEN 'dlt645-2007' THEN %(dlt645)s ELSE %(modbus)s END)::bigint,
           coalesce(s.energy_import_wh, (%(missing)s)::bigint),
           coalesce(s.energy_export_wh, (%(missing)s)::bigint),
           coalesce(s.reactive_import_varh, (%(missing)s)::bigint),
           coalesce(s.reactive_export_varh, (%(missing)s)::bigint)
    FROM (
        SELECT meter_id, unnest(range_agg(tstzrange(from_at - interval '15 min', to_at + interval '15 min', '[]'))) r
        FROM taken GROUP BY meter_id
    ) t
    JOIN energy_sample s ON s.meter_id = t.meter_id AND s.at BETWEEN lower(r) AND upper(r)
    JOIN installation i ON i.meter_id = s.meter_id AND s.at BETWEEN i.valid_from AND i.valid_to
    JOIN meter m ON m.meter_id = s.meter_id
"""
_SAMPLE_CONSTANTS: Final = {"dlt645": _DLT645_MODULUS_WH, "modbus": _MODBUS_MODULUS_WH, "missing": MISSING}
_SAMPLE_COLUMNS: Final = {
    "point_id": "integer",
    "meter_id": "integer",
    "at": "timestamptz",
    "quality": "smallint",
    "batch_id": "bigint",
    "ratio": "bigint",
    "modulus": "bigint",
    **dict.fromkeys(ENERGY_NAMES, "bigint"),
}

_CHANGED: Final = """
    INSERT INTO changed
    SELECT d.* FROM derived d LEFT JOIN LATERAL (
        SELECT * FROM interval i WHERE i.point_id = d.point_id AND i.start = d.start ORDER BY version DESC LIMIT 1
    ) c ON true
    WHERE c.point_id IS NULL
       OR (c.energy_import_wh, c.energy_export_wh, c.reactive_import_varh, c.reactive_export_varh, c.quality)
          IS DISTINCT FROM
          (d.energy_import_wh, d.energy_export_wh, d.reactive_import_varh, d.reactive_export_varh, d.quality)
"""
_VERSION: Final = """
    INSERT INTO interval_version (version, closed_at)
    SELECT coalesce(max(version), 0) + 1, %s FROM interval_version
"""
_APPEND: Final = """
    INSERT INTO interval (point_id, start, version, energy_import_wh, energy_export_wh,
                          reactive_import_varh, reactive_export_varh, quality)
    SELECT point_id, start, (SELECT max(version) FROM interval_version), energy_import_wh, energy_export_wh,
           reactive_import_varh, reactive_export_varh, quality
    FROM changed
"""
_TOUCHED: Final = """
    INSERT INTO touched SELECT DISTINCT area_id, start FROM changed JOIN metering_point USING (point_id)
"""

# Supplied is null where any head meter is missing; delivered is what is there. Check meters count in neither.
_AREA_LOAD: Final = """
    INSERT INTO load
    SELECT 'area:' || t.area_id, t.start,
           CASE WHEN bool_and(v.energy_import_wh IS NOT NULL) FILTER (WHERE p.role = 'supply')
                THEN sum(v.energy_import_wh - coalesce(v.energy_export_wh, 0)) FILTER (WHERE p.role = 'supply') END,
           sum(v.energy_import_wh - coalesce(v.energy_export_wh, 0)) FILTER (WHERE p.role <> 'supply'),
           count(*), count(v.energy_import_wh)
    FROM touched t JOIN metering_point p ON p.area_id = t.area_id AND p.role <> 'check'
    LEFT JOIN LATERAL (
        SELECT energy_import_wh, energy_export_wh FROM interval i
        WHERE i.point_id = p.point_id AND i.start = t.start ORDER BY version DESC LIMIT 1
    ) v ON true
    GROUP BY t.area_id, t.start
    ON CONFLICT (series, start) DO UPDATE SET
        supplied_wh = excluded.supplied_wh, delivered_wh = excluded.delivered_wh,
        meters_expected = excluded.meters_expected, meters_received = excluded.meters_received
"""
# Feeders and the substation are sums of areas; supplied is null where it is of any.
_WIDER_LOAD: Final = """
    INSERT INTO load
    WITH member AS (
        SELECT 'feeder:' || feeder_id AS series, area_id FROM area UNION ALL SELECT %(substation)s, area_id FROM area
    ), points AS (
        SELECT area_id, count(*) AS count FROM metering_point WHERE role <> 'check' GROUP BY area_id
    )
    SELECT w.series, w.start,
           CASE WHEN count(l.supplied_wh) = count(*) THEN sum(l.supplied_wh) END, sum(l.delivered_wh),
           sum(points.count), coalesce(sum(l.meters_received), 0)
    FROM (SELECT DISTINCT series, start FROM touched JOIN member USING (area_id)) w
    JOIN member USING (series) JOIN points USING (area_id)
    LEFT JOIN load l ON l.series = 'area:' || member.area_id AND l.start = w.start
    GROUP BY w.series, w.start
    ON CONFLICT (series, start) DO UPDATE SET
        supplied_wh = excluded.supplied_wh, delivered_wh = excluded.delivered_wh,
        meters_expected = excluded.meters_expected, meters_received = excluded.meters_received
"""

# A day is looked through once for all its points with a change.
_RECEIVED: Final = """
    INSERT INTO completeness_day
    SELECT point_id, day, 0, (
        SELECT count(energy_import_wh) FROM interval_current v
        WHERE v.point_id = d.point_id
          AND v.start >= day::timestamp AT TIME ZONE %(zone)s AND v.start < (day + 1)::timestamp AT TIME ZONE %(zone)s
    )
    FROM (SELECT DISTINCT point_id, (start AT TIME ZONE %(zone)s)::date AS day FROM changed) d
    ON CONFLICT (point_id, day) DO UPDATE SET received = excluded.received
"""
_AREA_DAYS: Final = "SELECT DISTINCT area_id, (start AT TIME ZONE %(zone)s)::date FROM touched"
_EXPECTED: Final = """
    INSERT INTO completeness_day
    SELECT point_id, day, expected, 0
    FROM unnest(%(days)s::date[], %(expected)s::integer[]) AS d (day, expected) CROSS JOIN metering_point
    ON CONFLICT (point_id, day) DO UPDATE SET expected = excluded.expected
    WHERE completeness_day.expected <> excluded.expected
"""


@dataclass(frozen=True, slots=True)
class Derived:
    """What one chunk changed. ``area_days``: business days of areas with a new or corrected interval."""

    ranges: int = 0
    intervals: int = 0
    area_days: frozenset[tuple[str, date]] = frozenset()


def open_session(connection: Connection) -> None:
    """Make the connection's own temporary tables. Once per connection."""
    connection.execute(_SESSION)


def derive_chunk(connection: Connection, calendar: Calendar, now: datetime) -> Derived:
    """Take dirty ranges, derive, write. Nothing is taken where anything fails."""
    with connection.transaction(), connection.cursor() as cursor:
        ranges = cursor.execute(_CLAIM, {"ranges": RANGES_MAX, "marks": MARKS_MAX}).rowcount
        if not ranges:
            return Derived()
        found = _derive(read_columns(cursor, _SAMPLES, _SAMPLE_CONSTANTS, _SAMPLE_COLUMNS))
        if not len(found.mark):
            return Derived(ranges)
        _copy(cursor, found)
        # Held to the end of the transaction: whoever comes next sees our intervals and takes the next number.
        cursor.execute("SELECT pg_advisory_xact_lock(%s)", (VERSION_LOCK,))
        changed = cursor.execute(_CHANGED).rowcount
        if not changed:
            return Derived(ranges)
        cursor.execute(_VERSION, (now,))
        for statement in (_APPEND, _TOUCHED, "ANALYZE touched", _AREA_LOAD):
            cursor.execute(statement)
        cursor.execute(_WIDER_LOAD, {"substation": SUBSTATION})
        cursor.execute(_RECEIVED, {"zone": str(calendar.zone)})
        expect(connection, calendar, now)  # in the same transaction: nobody ever reads more received than expected
        cursor.execute(_AREA_DAYS, {"zone": str(calendar.zone)})
        return Derived(ranges, changed, frozenset((area, day) for area, day in cursor))


def _derive(rows: dict[str, np.ndarray[Any, Any]]) -> Intervals:
    on_mark = from_mark(to_mark(rows["at"])) == rows["at"]
    rows = {name: values[on_mark] for name, values in rows.items()}
    # A source is one meter at one point: after a meter change the new one's registers start from somewhere else.
    found = derive(
        rows["point_id"].astype(np.int64) << 32 | rows["meter_id"],
        to_mark(rows["at"]),
        np.stack([rows[name] for name in ENERGY_NAMES], axis=1),
        rows["quality"],
        rows["batch_id"],
        ratio=rows["ratio"],
        modulus=rows["modulus"],
    )
    # Two meters on record for one point at one time would be one energy counted twice: the first installed counts.
    point = found.source >> 32
    _, first = np.unique(np.stack([point, found.mark]), axis=1, return_index=True)
    return Intervals(point[first], found.mark[first], found.energy[first], found.quality[first])


def _copy(cursor: psycopg.Cursor[Any], found: Intervals) -> None:
    energies = [Field(column, ">i8", column != MISSING) for column in found.energy.T]
    fields = [Field(found.source, ">i4"), instant(from_mark(found.mark)), *energies, Field(found.quality, ">i2")]
    with cursor.copy("COPY derived FROM STDIN (FORMAT binary)") as copy:
        copy.write(encode(fields))
    cursor.execute("ANALYZE derived")


def expect(connection: Connection, calendar: Calendar, now: datetime) -> datetime | None:
    """Bring every point's expected intervals up to ``now``. Returns the site's first mark, None before there is one.

    Points that never said anything get their rows too: silence must show.
    """
    with connection.transaction(), connection.cursor() as cursor:
        first = first_mark(cursor)
        if first is None:
            return None
        days = calendar.days(first, now)
        expected = [calendar.over(day, first, now) for day in days]
        cursor.execute(_EXPECTED, {"days": days, "expected": expected})
        return first


def first_mark(cursor: psycopg.Cursor[Any]) -> datetime | None:
    row = cursor.execute("SELECT min(start) FROM load").fetchone()
    return row[0] if row else None


def drain(connection: Connection, calendar: Calendar, now: datetime, *, chunks_max: int) -> tuple[Derived, ...]:
    """Chunks until nothing is dirty, at most ``chunks_max``."""
    done: list[Derived] = []
    while len(done) < chunks_max and (chunk := derive_chunk(connection, calendar, now)).ranges:
        done.append(chunk)
    return tuple(done)


def changed_days(done: Sequence[Derived]) -> set[tuple[str, date]]:
    return {area_day for chunk in done for area_day in chunk.area_days}
