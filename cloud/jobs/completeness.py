"""Completeness (采集成功率): what is expected, what is missing since when and why, and the commands that fetch it.

Everything is set-based and follows what changed: a point's new marks, its installation dates, days with new intervals.
Gaps are found by difference: the multirange a point is expected in, less the intervals that are there. What explains
them are multiranges too: events, outages, quarantined rows, replies. The first that covers a missing interval names it.
"""

import logging
from datetime import datetime, timedelta
from typing import Any, Final

import psycopg

from cloud.jobs.calendar import INTERVAL, Calendar, floor_mark
from cloud.jobs.dispatch import order
from protocols.uplink import METERS_MAX, Backfill, to_us

logger = logging.getLogger(__name__)

Connection = psycopg.Connection[tuple[Any, ...]]

SUBSTATION: Final = "substation:S1"
# A sweep, its way here and its intervals take this long after a mark; what is not there then is missing.
GRACE: Final = timedelta(minutes=5)
POINT_DAYS_MAX: Final = 20_000  # looked through for gaps at once, about 2 million intervals; the rest comes next
# What explains a gap may be told late: gaps of these days are judged again at every mark. So far back gateways read
# meters' memory by themselves (`[backfill] days`), and so far back they are asked to.
MEMORY: Final = timedelta(days=35)
QUARANTINE_MAX: Final = 200  # entries looked into for missing rows, the newest

# A gateway fills gaps by itself after an outage, and its meters' clocks may be behind.
SETTLED: Final = timedelta(hours=2)
HEARD: Final = 2 * INTERVAL + GRACE  # a meter that was not heard for longer has no memory within reach
OUTSTANDING_MAX: Final = 1  # backfill commands a gateway has at once: each is up to a day of its meters
COMMANDS_MAX: Final = 20  # written at one step
VALID: Final = timedelta(hours=1)
ASKED_BY: Final = "completeness"

REASONS: Final = (
    "quarantined", "evicted", "clock", "meter_silent", "gateway_offline", "meter_refuses", "not_in_memory",
    "backfilling", "unknown",
)  # fmt: skip


def open_session(connection: Connection) -> None:
    """Make the connection's own temporary tables. Once per connection."""
    connection.execute(_SESSION)


# ---- what is expected and received -----------------------------------------------------------------------------------


def first_mark(cursor: psycopg.Cursor[Any]) -> datetime | None:
    """Start of the site's first interval; every area is part of the substation."""
    row = cursor.execute("SELECT min(start) FROM load WHERE series = %s", (SUBSTATION,)).fetchone()
    return row[0] if row else None


def expect(connection: Connection, calendar: Calendar, now: datetime) -> datetime | None:
    """Bring the counts up to ``now``: marks that passed, installation dates that changed, and days in ``recount``.

    Returns the site's first mark, None before there is one. Points that never said anything are counted too, from the
    day a meter was installed: silence must show.
    """
    with connection.transaction(), connection.cursor() as cursor:
        first = first_mark(cursor)
        if first is None:
            return None
        asked = {"first": first, "until": floor_mark(now), "zone": str(calendar.zone)}
        for statement in (
            _WANTED, _DATED, _EXPECTED, _RECEIVED, _KEPT, _TOUCHED, _UNROLL, _ROLL_UP,
            _UNROLL_MISSING, _ROLL_UP_MISSING,
        ):  # fmt: skip
            cursor.execute(statement, asked)
        return first


# Whole intervals with a meter at both their marks; one that follows another at once leaves no hole. ``again``: where
# the dates changed; ``passed``: that and the time that went by.
_SESSION: Final = """
    CREATE TEMP TABLE wanted (point_id integer, during tstzmultirange, again tstzmultirange, passed tstzmultirange)
        ON COMMIT DELETE ROWS;
    CREATE TEMP TABLE recount (point_id integer, day date) ON COMMIT DELETE ROWS;
    CREATE TEMP TABLE counted (point_id integer, day date) ON COMMIT DELETE ROWS;
    CREATE TEMP TABLE rolled (area_id text, day date) ON COMMIT DELETE ROWS;
    CREATE TEMP TABLE listing (point_id integer, day date, missing tstzmultirange) ON COMMIT DELETE ROWS;
    CREATE TEMP TABLE place (
        point_id integer, meter_id integer, gateway text, wire_name text, valid_from timestamptz, valid_to timestamptz
    ) ON COMMIT DELETE ROWS;
    CREATE TEMP TABLE cause (point_id integer, reason text, from_at timestamptz, to_at timestamptz)
        ON COMMIT DELETE ROWS;
    CREATE TEMP TABLE judged (LIKE gap) ON COMMIT DELETE ROWS
"""
_WANTED: Final = """
    INSERT INTO wanted
    WITH held AS (
        SELECT point_id, unnest(range_agg(tstzrange(greatest(valid_from, %(first)s), valid_to))) AS one
        FROM installation WHERE valid_to > %(first)s GROUP BY point_id
    ), marks AS (
        SELECT point_id, date_bin('15 min', lower(one) + interval '15 min' - interval '1 us', 'epoch') AS first,
               date_bin('15 min', upper(one) - interval '1 us', 'epoch') AS last
        FROM held
    ), wanted AS (
        SELECT point_id, coalesce(range_agg(tstzrange(first, last)) FILTER (WHERE first < last), '{}') AS during
        FROM metering_point LEFT JOIN marks USING (point_id) GROUP BY point_id
    ), compared AS (
        SELECT w.*, e.point_id IS NULL AS new, coalesce(e.during, '{}') AS before, coalesce(e.until, %(until)s) AS until
        FROM wanted w LEFT JOIN point_expected e USING (point_id)
        WHERE e.until IS NULL OR e.until < %(until)s OR e.during <> w.during
    ), again AS (
        SELECT *, ((during - before) + (before - during)) * tstzmultirange(tstzrange(NULL, until)) AS again
        FROM compared
    )
    SELECT point_id, during, again,
           again + during * tstzmultirange(tstzrange(until, greatest(until, %(until)s)))
    FROM again
"""
_DATED: Final = """
    INSERT INTO recount
    SELECT DISTINCT point_id, day::date
    FROM wanted, unnest(again) one,
         generate_series((lower(one) AT TIME ZONE %(zone)s)::date,
                         ((upper(one) - interval '1 us') AT TIME ZONE %(zone)s)::date, interval '1 day') day
"""
_EXPECTED: Final = """
    WITH due AS (
        SELECT DISTINCT point_id, day::date AS day
        FROM wanted, unnest(passed) one,
             generate_series((lower(one) AT TIME ZONE %(zone)s)::date,
                             ((upper(one) - interval '1 us') AT TIME ZONE %(zone)s)::date, interval '1 day') day
    ), expected AS (
        SELECT point_id, day, (
            SELECT coalesce(sum(extract(epoch FROM upper(part) - lower(part))) / 900, 0)::integer
            FROM unnest(during * tstzmultirange(tstzrange(
                day::timestamp AT TIME ZONE %(zone)s,
                least((day + 1)::timestamp AT TIME ZONE %(zone)s, %(until)s)))) part
        ) AS expected
        FROM due JOIN wanted USING (point_id)
    ), done AS (
        INSERT INTO completeness_day AS held (point_id, day, expected, received)
        SELECT point_id, day, expected, 0 FROM expected
        ON CONFLICT (point_id, day) DO UPDATE SET expected = excluded.expected WHERE held.expected <> excluded.expected
        RETURNING point_id, day
    )
    INSERT INTO counted SELECT * FROM done
"""
# A day is looked through once for all its new intervals; what came from outside the installation dates does not count.
# Written by key, not joined: for the days of 10,000 points the planner would read through those of years.
_RECEIVED: Final = """
    WITH due AS (
        SELECT point_id, day, during
        FROM (SELECT DISTINCT point_id, day FROM recount) d JOIN (
            SELECT point_id, during FROM wanted
            UNION ALL SELECT point_id, during FROM point_expected WHERE point_id NOT IN (SELECT point_id FROM wanted)
        ) w USING (point_id)
        WHERE during && tstzrange(day::timestamp AT TIME ZONE %(zone)s, (day + 1)::timestamp AT TIME ZONE %(zone)s)
           OR EXISTS (SELECT FROM completeness_day c WHERE (c.point_id, c.day) = (d.point_id, d.day))
    ), found AS MATERIALIZED (
        SELECT point_id, day, (
            SELECT count(v.energy_import_wh) FROM interval_current v
            WHERE v.point_id = due.point_id AND during @> v.start
              AND v.start >= day::timestamp AT TIME ZONE %(zone)s
              AND v.start < (day + 1)::timestamp AT TIME ZONE %(zone)s
        ) AS received
        FROM due
    ), done AS (
        INSERT INTO completeness_day AS held (point_id, day, expected, received)
        SELECT point_id, day, 0, received FROM found
        ON CONFLICT (point_id, day) DO UPDATE SET received = excluded.received WHERE held.received <> excluded.received
        RETURNING point_id, day
    )
    INSERT INTO counted SELECT * FROM done
"""
_KEPT: Final = """
    INSERT INTO point_expected AS held SELECT point_id, during, %(until)s FROM wanted
    ON CONFLICT (point_id) DO UPDATE SET during = excluded.during, until = greatest(held.until, excluded.until)
"""
_TOUCHED: Final = """
    INSERT INTO rolled
    SELECT DISTINCT area_id, day FROM counted JOIN point_in_area USING (point_id)
    WHERE valid_from < (day + 1)::timestamp AT TIME ZONE %(zone)s
"""
_UNROLL: Final = """
    DELETE FROM completeness_area_day held USING rolled r WHERE (held.area_id, held.day) = (r.area_id, r.day)
"""
_UNROLL_MISSING: Final = """
    DELETE FROM missing_area_day held USING rolled r WHERE (held.area_id, held.day) = (r.area_id, r.day)
"""
# A point counts where it stood at the end of the day: in its area, and with the gateway that polled it last.
_STOOD: Final = """
    JOIN LATERAL (
        SELECT area_id FROM point_in_area a
        WHERE a.point_id = c.point_id AND a.valid_from < (day + 1)::timestamp AT TIME ZONE %(zone)s
        ORDER BY valid_from DESC LIMIT 1
    ) a ON a.area_id = r.area_id
    LEFT JOIN LATERAL (
        SELECT gateway FROM installation i
        WHERE i.point_id = c.point_id AND i.valid_from < (day + 1)::timestamp AT TIME ZONE %(zone)s
          AND i.valid_to > day::timestamp AT TIME ZONE %(zone)s
        ORDER BY valid_from DESC LIMIT 1
    ) i ON true
"""
_ROLL_UP: Final = f"""
    INSERT INTO completeness_area_day
    SELECT r.area_id, coalesce(i.gateway, (SELECT gateway FROM area WHERE area.area_id = r.area_id)), day,
           sum(expected), sum(received)
    FROM (SELECT DISTINCT area_id, day FROM rolled) r
    JOIN (SELECT DISTINCT area_id, point_id FROM point_in_area) p USING (area_id)
    JOIN completeness_day c USING (point_id, day) {_STOOD}
    GROUP BY 1, 2, 3
"""  # noqa: S608 the part is the literal above
_ROLL_UP_MISSING: Final = f"""
    INSERT INTO missing_area_day
    SELECT r.area_id, coalesce(i.gateway, (SELECT gateway FROM area WHERE area.area_id = r.area_id)), day, reason,
           sum(extract(epoch FROM end_at - start_at)) / 900
    FROM (SELECT DISTINCT area_id, day FROM rolled) r
    JOIN (SELECT DISTINCT area_id, point_id FROM point_in_area) p USING (area_id)
    JOIN gap c USING (point_id, day) {_STOOD}
    GROUP BY 1, 2, 3, 4
"""  # noqa: S608 the part is the literal above


# ---- what is missing and why -----------------------------------------------------------------------------------------


def list_gaps(connection: Connection, calendar: Calendar, now: datetime) -> bool:
    """Find the gaps of days whose counts changed, and judge them and those of the last days again.

    Meant for GRACE after a mark. Returns whether there are more days to look through.
    """
    with connection.transaction(), connection.cursor() as cursor:
        asked = {
            "zone": str(calendar.zone), "until": floor_mark(now), "since": calendar.day(now - MEMORY),
            "days": POINT_DAYS_MAX, "quarantined": QUARANTINE_MAX, "reasons": list(REASONS),
        }  # fmt: skip
        found = cursor.execute(_LISTING, asked).rowcount
        cursor.execute(_RECENT, asked)
        for statement in (
            _PLACES, "ANALYZE listing", "ANALYZE place", *_CAUSES, "ANALYZE cause", _JUDGED, *_KEEP,
            _TOUCHED, _UNROLL_MISSING, _ROLL_UP_MISSING,
        ):  # fmt: skip
            cursor.execute(statement, asked)
        return found == POINT_DAYS_MAX


_LISTING: Final = """
    INSERT INTO listing
    SELECT point_id, day, e.during * tstzmultirange(tstzrange(
               day::timestamp AT TIME ZONE %(zone)s, least((day + 1)::timestamp AT TIME ZONE %(zone)s, %(until)s)))
           - coalesce((
               SELECT range_agg(tstzrange(v.start, v.start + interval '15 min')) FROM interval_current v
               WHERE v.point_id = d.point_id AND v.energy_import_wh IS NOT NULL
                 AND v.start >= day::timestamp AT TIME ZONE %(zone)s
                 AND v.start < (day + 1)::timestamp AT TIME ZONE %(zone)s
           ), '{}')
    FROM (
        SELECT point_id, day FROM completeness_day
        WHERE (expected - received <> listed_missing OR received <> listed_received)
          AND (received < expected OR listed_missing > 0)
        ORDER BY day DESC LIMIT %(days)s
    ) d JOIN point_expected e USING (point_id)
    WHERE day::timestamp AT TIME ZONE %(zone)s <= %(until)s
"""
_RECENT: Final = """
    INSERT INTO listing
    SELECT point_id, day, range_agg(tstzrange(start_at, end_at)) FROM gap
    WHERE day >= %(since)s AND (point_id, day) NOT IN (SELECT point_id, day FROM listing)
    GROUP BY point_id, day
"""

_PLACES: Final = """
    INSERT INTO place
    SELECT point_id, meter_id, gateway, wire_name, valid_from, valid_to FROM installation
    WHERE point_id IN (SELECT point_id FROM listing)
"""
# Times in events are what gateways wrote: text that is no time explains nothing.
_CAUSES: Final = (
    """
    INSERT INTO cause
    WITH entry AS (
        SELECT gateway, row_values -> 'meters' AS meters, row_values -> 'columns' AS columns FROM quarantine
        WHERE replayed_at IS NULL AND row_values ->> 'kind' = 'energy' AND gateway IN (SELECT gateway FROM place)
          AND reason IN ('unknown_meter', 'impossible_value')
        ORDER BY quarantine_id DESC LIMIT %(quarantined)s
    ), held AS (
        SELECT gateway, meters ->> (i::text)::integer AS wire_name, to_timestamp((us::text)::float8 / 1e6) AS at
        FROM entry, ROWS FROM (jsonb_array_elements(columns -> 'meter_index'), jsonb_array_elements(columns -> 'at'))
            AS r (i, us)
        WHERE (us::text)::float8 BETWEEN 0 AND 4e15
    )
    SELECT point_id, 'quarantined', at, at + interval '1 us' FROM held JOIN place USING (gateway, wire_name)
    """,
    """
    INSERT INTO cause
    SELECT point_id, 'evicted', (detail ->> 'from')::timestamptz, (detail ->> 'to')::timestamptz + interval '1 us'
    FROM event JOIN place USING (gateway)
    WHERE kind = 'queue_evicted' AND detail ->> 'kind' = 'energy'
      AND pg_input_is_valid(detail ->> 'from', 'timestamptz') AND pg_input_is_valid(detail ->> 'to', 'timestamptz')
    """,
    """
    INSERT INTO cause
    SELECT point_id, 'clock', at, (detail ->> 'awaited')::timestamptz FROM event JOIN place USING (gateway)
    WHERE kind = 'clock_set_back' AND pg_input_is_valid(detail ->> 'awaited', 'timestamptz')
    UNION ALL
    SELECT point_id, 'clock', (detail ->> 'suspect_from')::timestamptz, (detail ->> 'suspect_until')::timestamptz
    FROM event JOIN place USING (meter_id)
    WHERE kind = 'clock_corrected' AND pg_input_is_valid(detail ->> 'suspect_from', 'timestamptz')
      AND pg_input_is_valid(detail ->> 'suspect_until', 'timestamptz')
    """,
    # Polls fail for a while before a meter counts as silent: it was so since its last interval, an hour before at most.
    # Where the end was never told (the gateway was restarted meanwhile), the next interval is it.
    """
    INSERT INTO cause
    WITH told AS (
        SELECT meter_id, kind, at, lead(at) OVER (PARTITION BY meter_id ORDER BY at) AS next_at
        FROM event WHERE kind IN ('meter_silent', 'meter_back') AND meter_id IN (SELECT meter_id FROM place)
    )
    SELECT point_id, 'meter_silent', coalesce(
               (SELECT max(start) + interval '15 min' FROM interval_current v
                WHERE v.point_id = place.point_id AND v.energy_import_wh IS NOT NULL
                  AND v.start >= at - interval '1 hour' AND v.start < at),
               at - interval '1 hour'), coalesce(
               next_at,
               (SELECT min(start) FROM interval_current v
                WHERE v.point_id = place.point_id AND v.start >= at AND v.energy_import_wh IS NOT NULL),
               'infinity')
    FROM told JOIN place USING (meter_id) WHERE kind = 'meter_silent' AND at >= valid_from AND at < valid_to
    """,
    """
    INSERT INTO cause
    WITH away AS (
        SELECT gateway, from_at, to_at FROM gateway_outage
        UNION ALL
        SELECT gateway, '-infinity', 'infinity' FROM area WHERE gateway NOT IN (SELECT gateway FROM gateway_status)
    )
    SELECT point_id, 'gateway_offline', greatest(from_at, valid_from), least(to_at, valid_to)
    FROM away JOIN place USING (gateway) WHERE greatest(from_at, valid_from) < least(to_at, valid_to)
    UNION ALL
    SELECT point_id, 'backfilling', valid_from, valid_to
    FROM gateway_status JOIN place USING (gateway) WHERE online AND (status ->> 'backfill_left')::numeric > 0
    """,
    # The gateway's words on each meter, see `gateway.commands.orders`.
    """
    INSERT INTO cause
    WITH said AS (
        SELECT DISTINCT a.point_id, a.start_at, a.end_at, c.reply -> 'meters' ->> place.wire_name AS words
        FROM backfill_asked a JOIN command c USING (command_id)
        JOIN place ON (place.point_id, place.gateway) = (a.point_id, c.gateway)
    )
    SELECT point_id, CASE WHEN words LIKE '%% refused%%' THEN 'meter_refuses' ELSE 'not_in_memory' END, start_at, end_at
    FROM said WHERE words LIKE '%% refused%%' OR words LIKE '%% the meter does not have%%'
    """,
)
# A cause that covers a mark explains the intervals on both sides of it. Each keeps what no better one explains.
_JUDGED: Final = """
    INSERT INTO judged
    WITH marks AS (
        SELECT point_id, reason, date_bin('15 min', from_at + interval '15 min' - interval '1 us', 'epoch') AS first,
               date_bin('15 min', to_at - interval '1 us', 'epoch') AS last
        FROM cause
    ), covered AS (
        SELECT point_id, reason, range_agg(tstzrange(first - interval '15 min', last + interval '15 min')) AS during
        FROM marks WHERE first <= last GROUP BY point_id, reason
    ), own AS (
        SELECT point_id, reason, during - coalesce(range_agg(during) OVER (
                   PARTITION BY point_id ORDER BY array_position(%(reasons)s::text[], reason)
                   ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING), '{}') AS during
        FROM covered
    ), piece AS (
        SELECT l.point_id, day, unnest(missing * during) AS part, reason FROM listing l JOIN own USING (point_id)
        UNION ALL
        SELECT l.point_id, day, unnest(missing - coalesce(every, '{}')), 'unknown'
        FROM listing l
        LEFT JOIN (SELECT point_id, range_agg(during) AS every FROM own GROUP BY point_id) o USING (point_id)
    )
    SELECT point_id, day, lower(part), upper(part), reason FROM piece
"""
_KEEP: Final = (
    """
    WITH gone AS (
        DELETE FROM gap USING listing l
        WHERE (gap.point_id, gap.day) = (l.point_id, l.day) AND NOT EXISTS (
            SELECT FROM judged j
            WHERE (j.point_id, j.start_at, j.end_at, j.reason) = (gap.point_id, gap.start_at, gap.end_at, gap.reason))
        RETURNING gap.point_id, gap.day
    )
    INSERT INTO counted SELECT * FROM gone
    """,
    """
    WITH come AS (
        INSERT INTO gap SELECT * FROM judged ON CONFLICT (point_id, start_at) DO NOTHING RETURNING point_id, day
    )
    INSERT INTO counted SELECT * FROM come
    """,
    """
    INSERT INTO completeness_day AS held (point_id, day, expected, received) SELECT point_id, day, 0, 0 FROM listing
    ON CONFLICT (point_id, day) DO UPDATE
    SET listed_missing = held.expected - held.received, listed_received = held.received
    WHERE (held.expected - held.received, held.received) <> (held.listed_missing, held.listed_received)
    """,
)


# ---- asking for it ---------------------------------------------------------------------------------------------------


def ask_for_gaps(connection: Connection, now: datetime) -> int:
    """Order what meters may still remember from gateways that are done with their own backfill; the commands written.

    Each range once. Only the marks between which something is missing are asked for, so that little comes twice.
    """
    with connection.transaction(), connection.cursor() as cursor:
        asked = {
            "now": now, "oldest": now - MEMORY, "settled": now - SETTLED, "heard": now - HEARD, "by": ASKED_BY,
            "outstanding": OUTSTANDING_MAX, "commands": COMMANDS_MAX, "meters": METERS_MAX, "gaps": POINT_DAYS_MAX,
        }  # fmt: skip
        groups = cursor.execute(_ASK, asked).fetchall()
        for gateway, first, last, names, points, starts, ends in groups:
            command_id = None
            if first is not None:
                body = Backfill(start=to_us(first), end=to_us(last + INTERVAL), meters=names)
                command_id = order(connection, gateway, body, now=now, expires_at=now + VALID, asked_by=ASKED_BY)
                logger.info("gaps asked for: %s to %s of %d meters of %s", first, last, len(names), gateway)
            cursor.execute(_ASKED, (now, command_id, points, starts, ends))
        return sum(group[1] is not None for group in groups)


# Marks not stored are what to ask for: an interval is also missing where one of its marks is. Gaps without such a mark
# are on record as asked, so that nobody looks again. A command that never left was not asked.
_ASK: Final = """
    WITH free AS (
        SELECT gateway FROM gateway_status g
        WHERE online AND coalesce((status ->> 'backfill_left')::numeric, 0) = 0 AND %(outstanding)s > (
            SELECT count(*) FROM command c
            WHERE c.gateway = g.gateway AND c.asked_by = %(by)s AND c.replied_at IS NULL AND c.outcome IS NULL)
    ), wanted AS (
        SELECT g.point_id, g.start_at, g.end_at, i.gateway, i.wire_name, i.meter_id
        FROM gap g
        JOIN installation i ON i.point_id = g.point_id AND i.valid_from <= g.start_at AND i.valid_to > %(now)s
        JOIN free USING (gateway) JOIN meter_state s USING (meter_id)
        WHERE g.day >= (%(oldest)s::timestamptz - interval '1 day')::date
          AND g.start_at >= %(oldest)s AND g.end_at <= %(settled)s AND s.last_energy_at >= %(heard)s
          AND g.reason NOT IN ('quarantined', 'backfilling') AND NOT EXISTS (
            SELECT FROM backfill_asked a LEFT JOIN command c USING (command_id)
            WHERE a.point_id = g.point_id AND a.start_at <= g.start_at AND a.end_at >= g.end_at
              AND NOT (c.command_id IS NOT NULL AND c.outcome = 'expired' AND c.sent_at IS NULL))
        ORDER BY g.day DESC LIMIT %(gaps)s
    ), unread AS (
        SELECT w.*, m.first, m.last FROM wanted w, LATERAL (
            SELECT min(mark) AS first, max(mark) AS last
            FROM generate_series(w.start_at, w.end_at, interval '15 min') mark
            WHERE NOT EXISTS (SELECT FROM energy_sample s WHERE s.meter_id = w.meter_id AND s.at = mark)
        ) m
    ), grouped AS (
        SELECT gateway, first, last, count(*) AS size,
               (array_agg(wire_name ORDER BY wire_name))[:%(meters)s] AS names,
               (array_agg(point_id ORDER BY wire_name))[:%(meters)s] AS points,
               (array_agg(start_at ORDER BY wire_name))[:%(meters)s] AS starts,
               (array_agg(end_at ORDER BY wire_name))[:%(meters)s] AS ends
        FROM unread GROUP BY gateway, first, last
    ), turns AS (
        SELECT *, row_number() OVER (PARTITION BY gateway, first IS NULL ORDER BY size DESC, last DESC) AS turn
        FROM grouped
    )
    SELECT gateway, first, last, names, points, starts, ends FROM turns
    WHERE first IS NULL OR turn <= %(outstanding)s ORDER BY size DESC, gateway LIMIT %(commands)s
"""
_ASKED: Final = """
    INSERT INTO backfill_asked (point_id, start_at, end_at, asked_at, command_id)
    SELECT point_id, start_at, end_at, %s, %s
    FROM unnest(%s::integer[], %s::timestamptz[], %s::timestamptz[]) AS a (point_id, start_at, end_at)
    ON CONFLICT DO NOTHING
"""
