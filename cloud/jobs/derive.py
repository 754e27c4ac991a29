"""Samples become intervals, and intervals roll up: what ingest and the registry marked dirty, in chunks, each in one
transaction.

An interval whose value did not change is not written again. Loads and completeness are recomputed, not added to, so
that doing a range twice is harmless.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, datetime
from typing import Any, Final, LiteralString

import numpy as np
import psycopg

from cloud.engines.intervals import MISSING, Intervals, Readings, derive
from cloud.jobs import completeness
from cloud.jobs.calendar import Calendar
from cloud.jobs.columns import INTERVAL_S, from_mark, read_columns
from cloud.jobs.completeness import SUBSTATION
from cloud.store.binary_copy import Field, encode, instant
from protocols.quantities import ENERGY_NAMES

Connection = psycopg.Connection[tuple[Any, ...]]

# Marks in one transaction: about 100 MB of arrays.
MARKS_MAX: Final = 1_000_000
RANGES_MAX: Final = 20_000
# Whoever numbers an interval version holds this to the end of its transaction: numbers follow the order of commits.
VERSION_LOCK: Final = 0x6772_6964_0000_0001

_INTERVAL_US: Final = INTERVAL_S * 1_000_000


_SESSION: Final = """
    CREATE TEMP TABLE taken (
        meter_id integer, point_id integer, series text, from_at timestamptz, to_at timestamptz
    ) ON COMMIT DELETE ROWS;
    CREATE TEMP TABLE span (point_id integer, from_at timestamptz, to_at timestamptz) ON COMMIT DELETE ROWS;
    CREATE TEMP TABLE derived (
        point_id integer, start timestamptz, energy_import_wh bigint, energy_export_wh bigint,
        reactive_import_varh bigint, reactive_export_varh bigint, quality smallint
    ) ON COMMIT DELETE ROWS;
    CREATE TEMP TABLE changed (LIKE derived) ON COMMIT DELETE ROWS;
    CREATE TEMP TABLE touched (area_id text, start timestamptz) ON COMMIT DELETE ROWS;
    CREATE TEMP TABLE widened (series text, start timestamptz) ON COMMIT DELETE ROWS
"""

# One `gridloom work` leads at a time, so the ranges need no row locks; others only add to them. A series' mark costs
# about as much as the points of an area.
_CLAIM: Final = """
    WITH waiting AS MATERIALIZED (
        SELECT ctid AS place, (ceil(extract(epoch FROM to_at - from_at) / 900) + 3)
               * CASE WHEN series IS NULL THEN 1 ELSE 200 END AS marks
        FROM dirty_range LIMIT %(ranges)s
    ), bounded AS (
        SELECT place, sum(marks) OVER (ORDER BY place) - marks AS before FROM waiting
    ), gone AS (
        DELETE FROM dirty_range USING bounded
        WHERE dirty_range.ctid = place AND before < %(marks)s
        RETURNING meter_id, point_id, series, from_at, to_at
    )
    INSERT INTO taken SELECT * FROM gone
"""

# Rows that came under a meter's wire name after another meter had taken its place, before that was on record: they are
# the other meter's, as they would have been had the registry known in time.
_STRAY: Final = """
    SELECT DISTINCT t.meter_id, i.meter_id, greatest(t.from_at, i.valid_from)::text, least(t.to_at, i.valid_to)::text
    FROM taken t JOIN installation was ON was.meter_id = t.meter_id
    JOIN installation i ON (i.gateway, i.wire_name) = (was.gateway, was.wire_name) AND i.meter_id <> t.meter_id
     AND i.valid_from <= t.to_at AND i.valid_to > t.from_at
    WHERE was.valid_to <= t.to_at OR was.valid_from > t.from_at
"""
_HAND_OVER: Final = """
    UPDATE energy_sample s SET meter_id = %(to)s
    WHERE s.meter_id = %(from)s AND s.at >= %(start)s::timestamptz AND s.at <= %(end)s::timestamptz
      AND EXISTS (SELECT FROM installation i
                  WHERE i.meter_id = %(to)s AND s.at >= i.valid_from AND s.at < i.valid_to)
      AND NOT EXISTS (SELECT FROM installation i
                      WHERE i.meter_id = %(from)s AND s.at >= i.valid_from AND s.at < i.valid_to)
"""

# The points' ranges with the marks beside them, overlapping ones as one.
_SPANS: Final = """
    INSERT INTO span
    SELECT point_id, lower(r), upper(r) FROM (
        SELECT point_id, unnest(range_agg(tstzrange(from_at - interval '15 min', to_at + interval '15 min', '[]'))) r
        FROM (
            SELECT DISTINCT i.point_id, t.from_at, t.to_at FROM taken t JOIN installation i USING (meter_id)
            WHERE t.from_at <= i.valid_to + interval '15 min' AND t.to_at >= i.valid_from - interval '15 min'
            UNION SELECT point_id, from_at, to_at FROM taken WHERE point_id IS NOT NULL
        ) wanted
        GROUP BY point_id
    ) merged
"""

# A reading at the very instant at which one stretch ends and the next begins belongs to both. What somebody noted of
# the registers then stands beside the samples, as batch 0.
_READINGS: Final = """
    WITH placed AS MATERIALIZED (
        SELECT i.*, i.ct_ratio::bigint * i.pt_ratio AS ratio, coalesce(m.counter_modulus_wh, 0) AS modulus,
               sum(CASE WHEN goes_on THEN 0 ELSE 1 END) OVER (PARTITION BY i.point_id ORDER BY i.valid_from)::integer
                   AS stretch
        FROM (
            SELECT *,
                   num_nonnulls(opening_energy_import_wh, opening_energy_export_wh,
                                opening_reactive_import_varh, opening_reactive_export_varh) = 0
                   AND valid_from = lag(valid_to) OVER whole
                   AND (meter_id, ct_ratio::bigint * pt_ratio)
                       = (lag(meter_id) OVER whole, lag(ct_ratio::bigint * pt_ratio) OVER whole) AS goes_on
            FROM installation WHERE point_id IN (SELECT point_id FROM span)
            WINDOW whole AS (PARTITION BY point_id ORDER BY valid_from)
        ) i JOIN meter m USING (meter_id)
    ), here AS (
        SELECT p.*, greatest(p.valid_from, s.from_at) AS first_at, least(p.valid_to, s.to_at) AS last_at
        FROM span s JOIN placed p USING (point_id)
        WHERE p.valid_from <= s.to_at AND p.valid_to >= s.from_at
    )
    SELECT h.point_id, h.stretch, s.at, s.quality, s.batch_id, h.ratio, h.modulus,
           coalesce(s.energy_import_wh, (%(missing)s)::bigint),
           coalesce(s.energy_export_wh, (%(missing)s)::bigint),
           coalesce(s.reactive_import_varh, (%(missing)s)::bigint),
           coalesce(s.reactive_export_varh, (%(missing)s)::bigint)
    FROM here h JOIN energy_sample s ON s.meter_id = h.meter_id AND s.at BETWEEN h.first_at AND h.last_at
    UNION ALL
    SELECT h.point_id, h.stretch, n.at, 0::smallint, 0::bigint, h.ratio, h.modulus,
           coalesce(n.a, (%(missing)s)::bigint), coalesce(n.b, (%(missing)s)::bigint),
           coalesce(n.c, (%(missing)s)::bigint), coalesce(n.d, (%(missing)s)::bigint)
    FROM here h CROSS JOIN LATERAL (VALUES
        (valid_from, opening_energy_import_wh, opening_energy_export_wh,
         opening_reactive_import_varh, opening_reactive_export_varh),
        (valid_to, closing_energy_import_wh, closing_energy_export_wh,
         closing_reactive_import_varh, closing_reactive_export_varh)
    ) n (at, a, b, c, d)
    WHERE num_nonnulls(n.a, n.b, n.c, n.d) > 0 AND n.at BETWEEN h.first_at AND h.last_at
"""
_READING_COLUMNS: Final = {
    "point_id": "integer",
    "stretch": "integer",
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
# Where the registry changed, an interval that does not follow from it any more is withdrawn: a version without values.
_WITHDRAWN: Final = """
    INSERT INTO changed
    SELECT point_id, start, NULL, NULL, NULL, NULL, 0 FROM (
        SELECT DISTINCT ON (i.point_id, i.start) i.*
        FROM taken t JOIN interval i ON i.point_id = t.point_id AND i.start >= t.from_at
         AND i.start + interval '15 min' <= t.to_at
        ORDER BY i.point_id, i.start, version DESC
    ) c
    WHERE num_nonnulls(energy_import_wh, energy_export_wh, reactive_import_varh, reactive_export_varh) > 0
      AND NOT EXISTS (SELECT FROM derived d WHERE d.point_id = c.point_id AND d.start = c.start)
"""
_TOUCHED: Final = """
    INSERT INTO touched
    SELECT p.area_id, c.start FROM changed c
    JOIN point_in_area p ON p.point_id = c.point_id AND c.start >= p.valid_from AND c.start < p.valid_to
    UNION
    SELECT substr(series, 6), start FROM taken
    CROSS JOIN generate_series(from_at, to_at, interval '15 min') start WHERE series LIKE 'area:%%'
"""
_WIDENED: Final = """
    INSERT INTO widened
    SELECT 'feeder:' || f.feeder_id, t.start FROM touched t
    JOIN area_on_feeder f ON f.area_id = t.area_id AND t.start >= f.valid_from AND t.start < f.valid_to
    UNION SELECT %(substation)s, start FROM touched
    UNION
    SELECT series, start FROM taken
    CROSS JOIN generate_series(from_at, to_at, interval '15 min') start WHERE series LIKE 'feeder:%%'
"""

# Supplied is null where any head meter is missing; delivered is what is there. Check meters count in neither.
# An interval belongs to the area its point was in, in the role it had, when it began.
_AREA_LOAD: Final = """
    INSERT INTO load
    SELECT 'area:' || t.area_id, t.start,
           CASE WHEN bool_and(v.energy_import_wh IS NOT NULL) FILTER (WHERE p.role = 'supply')
                THEN sum(v.energy_import_wh - coalesce(v.energy_export_wh, 0)) FILTER (WHERE p.role = 'supply') END,
           sum(v.energy_import_wh - coalesce(v.energy_export_wh, 0)) FILTER (WHERE p.role <> 'supply'),
           count(*), count(v.energy_import_wh)
    FROM touched t JOIN point_in_area p
        ON p.area_id = t.area_id AND p.role <> 'check' AND t.start >= p.valid_from AND t.start < p.valid_to
    LEFT JOIN LATERAL (
        SELECT energy_import_wh, energy_export_wh FROM interval i
        WHERE i.point_id = p.point_id AND i.start = t.start ORDER BY version DESC LIMIT 1
    ) v ON true
    GROUP BY t.area_id, t.start
    ON CONFLICT (series, start) DO UPDATE SET
        supplied_wh = excluded.supplied_wh, delivered_wh = excluded.delivered_wh,
        meters_expected = excluded.meters_expected, meters_received = excluded.meters_received
    WHERE (load.supplied_wh, load.delivered_wh, load.meters_expected, load.meters_received) IS DISTINCT FROM
          (excluded.supplied_wh, excluded.delivered_wh, excluded.meters_expected, excluded.meters_received)
"""
# Feeders and the substation are sums of areas; supplied is null where it is of any.
_WIDER_LOAD: Final = """
    INSERT INTO load
    WITH member AS (
        SELECT 'feeder:' || feeder_id AS series, area_id, valid_from, valid_to FROM area_on_feeder
        UNION ALL SELECT %(substation)s, area_id, '-infinity', 'infinity' FROM area
    ), points AS MATERIALIZED (
        SELECT p.area_id, w.start, count(*) AS count
        FROM (SELECT DISTINCT start FROM widened) w
        JOIN point_in_area p ON p.role <> 'check' AND w.start >= p.valid_from AND w.start < p.valid_to
        GROUP BY p.area_id, w.start
    )
    SELECT w.series, w.start,
           CASE WHEN count(l.supplied_wh) = count(*) THEN sum(l.supplied_wh) END, sum(l.delivered_wh),
           sum(points.count), coalesce(sum(l.meters_received), 0)
    FROM widened w
    JOIN member ON member.series = w.series AND w.start >= member.valid_from AND w.start < member.valid_to
    JOIN points ON points.area_id = member.area_id AND points.start = w.start
    LEFT JOIN load l ON l.series = 'area:' || member.area_id AND l.start = w.start
    GROUP BY w.series, w.start
    ON CONFLICT (series, start) DO UPDATE SET
        supplied_wh = excluded.supplied_wh, delivered_wh = excluded.delivered_wh,
        meters_expected = excluded.meters_expected, meters_received = excluded.meters_received
    WHERE (load.supplied_wh, load.delivered_wh, load.meters_expected, load.meters_received) IS DISTINCT FROM
          (excluded.supplied_wh, excluded.delivered_wh, excluded.meters_expected, excluded.meters_received)
"""
# A registry that moved the last point out of an area, or the last area off a feeder, leaves no load there.
_EMPTIED: Final = """
    DELETE FROM load l USING taken t
    WHERE l.series = t.series AND l.start BETWEEN t.from_at AND t.to_at AND NOT EXISTS (
        SELECT FROM point_in_area p
        WHERE p.role <> 'check' AND l.start >= p.valid_from AND l.start < p.valid_to
          AND ('area:' || p.area_id = l.series OR EXISTS (
              SELECT FROM area_on_feeder f
              WHERE f.area_id = p.area_id AND 'feeder:' || f.feeder_id = l.series
                AND l.start >= f.valid_from AND l.start < f.valid_to)))
"""

_IN_FORCE: Final[tuple[LiteralString, ...]] = (
    """
    UPDATE metering_point p SET area_id = n.area_id, role = n.role, phases = n.phases, node_id = n.node_id,
                                controllable = n.controllable
    FROM point_in_area n WHERE n.point_id = p.point_id AND %(now)s >= n.valid_from AND %(now)s < n.valid_to
     AND (p.area_id, p.role, p.phases, p.node_id, p.controllable)
         IS DISTINCT FROM (n.area_id, n.role, n.phases, n.node_id, n.controllable)
    """,
    """
    UPDATE area a SET feeder_id = n.feeder_id
    FROM area_on_feeder n WHERE n.area_id = a.area_id AND %(now)s >= n.valid_from AND %(now)s < n.valid_to
     AND a.feeder_id <> n.feeder_id
    """,
)

# For completeness: days of points with a changed interval, days of areas whose points may have moved.
_RECOUNT: Final = """
    INSERT INTO recount SELECT DISTINCT point_id, (start AT TIME ZONE %(zone)s)::date FROM changed
"""
_ROLL_UP: Final = """
    INSERT INTO rolled SELECT DISTINCT area_id, (start AT TIME ZONE %(zone)s)::date FROM touched
"""
_AREA_DAYS: Final = "SELECT DISTINCT area_id, (start AT TIME ZONE %(zone)s)::date FROM touched"


@dataclass(frozen=True, slots=True)
class Derived:
    """What one chunk changed. ``area_days``: business days of areas with a new or corrected interval."""

    ranges: int = 0
    intervals: int = 0
    area_days: frozenset[tuple[str, date]] = frozenset()


def open_session(connection: Connection) -> None:
    """Make the connection's own temporary tables. Once per connection."""
    connection.execute(_SESSION)
    completeness.open_session(connection)


def derive_chunk(connection: Connection, calendar: Calendar, now: datetime) -> Derived:
    """Take dirty ranges, derive, write. Nothing is taken where anything fails."""
    with connection.transaction(), connection.cursor() as cursor:
        ranges = cursor.execute(_CLAIM, {"ranges": RANGES_MAX, "marks": MARKS_MAX}).rowcount
        if not ranges:
            return Derived()
        _hand_over(cursor)
        cursor.execute(_SPANS)
        cursor.execute("ANALYZE span")
        _copy(cursor, _derive(_read(cursor)))
        # Held to the end of the transaction: whoever comes next sees our intervals and takes the next number.
        cursor.execute("SELECT pg_advisory_xact_lock(%s)", (VERSION_LOCK,))
        changed = cursor.execute(_CHANGED).rowcount + cursor.execute(_WITHDRAWN).rowcount
        if changed:
            cursor.execute(_VERSION, (now,))
            cursor.execute(_APPEND)
        if not cursor.execute(_TOUCHED, {}).rowcount + cursor.execute(_WIDENED, {"substation": SUBSTATION}).rowcount:
            return Derived(ranges)
        for statement in ("ANALYZE touched", "ANALYZE widened", _AREA_LOAD):
            cursor.execute(statement)
        cursor.execute(_WIDER_LOAD, {"substation": SUBSTATION})
        if cursor.execute("SELECT 1 FROM taken WHERE series IS NOT NULL LIMIT 1").fetchone():
            cursor.execute(_EMPTIED)
        for statement in (_RECOUNT, _ROLL_UP):
            cursor.execute(statement, {"zone": str(calendar.zone)})
        # In the same transaction: nobody ever reads more received than expected.
        completeness.expect(connection, calendar, now)
        cursor.execute(_AREA_DAYS, {"zone": str(calendar.zone)})
        return Derived(ranges, changed, frozenset((area, day) for area, day in cursor))


def put_in_force(connection: Connection, now: datetime) -> None:
    """What the registry has for a later date, once that date has come."""
    for statement in _IN_FORCE:
        connection.execute(statement, {"now": now})


def _hand_over(cursor: psycopg.Cursor[Any]) -> None:
    for held_by, meter_id, start, end in cursor.execute(_STRAY).fetchall():
        found = {"from": held_by, "to": meter_id, "start": start, "end": end}
        if cursor.execute(_HAND_OVER, found).rowcount:
            cursor.execute("INSERT INTO taken (meter_id, from_at, to_at) VALUES (%(to)s, %(start)s, %(end)s)", found)


def _read(cursor: psycopg.Cursor[Any]) -> Readings:
    rows = read_columns(cursor, _READINGS, {"missing": MISSING}, _READING_COLUMNS)
    return Readings(
        rows["point_id"],
        rows["stretch"],
        rows["at"],
        np.stack([rows[name] for name in ENERGY_NAMES], axis=1),
        rows["quality"],
        rows["batch_id"],
        rows["batch_id"] == 0,
        rows["ratio"],
        rows["modulus"],
    )


def _derive(readings: Readings) -> Intervals:
    found = derive(readings, _INTERVAL_US)
    return found[found.marks == 1]


def _copy(cursor: psycopg.Cursor[Any], found: Intervals) -> None:
    energies = [Field(column, ">i8", column != MISSING) for column in found.energy.T]
    fields = [Field(found.point, ">i4"), instant(from_mark(found.mark)), *energies, Field(found.quality, ">i2")]
    with cursor.copy("COPY derived FROM STDIN (FORMAT binary)") as copy:
        copy.write(encode(fields))
    cursor.execute("ANALYZE derived")


def drain(connection: Connection, calendar: Calendar, now: datetime, *, chunks_max: int) -> tuple[Derived, ...]:
    """Chunks until nothing is dirty, at most ``chunks_max``."""
    done: list[Derived] = []
    while len(done) < chunks_max and (chunk := derive_chunk(connection, calendar, now)).ranges:
        done.append(chunk)
    return tuple(done)


def changed_days(done: Sequence[Derived]) -> set[tuple[str, date]]:
    return {area_day for chunk in done for area_day in chunk.area_days}
