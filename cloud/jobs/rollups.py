"""Power by hour and by day, from the hours ingest marked dirty, where TimescaleDB does not keep it itself.

Hours and days are made anew from what they consist of, not added to, so that late rows land where they belong and doing
an hour twice is harmless. What they hold is said once, by the schema (``power_hour_of``, ``power_day_of``).
"""

from datetime import datetime
from typing import Any, Final

import psycopg

Connection = psycopg.Connection[tuple[Any, ...]]

# Meters' hours in one transaction: about a second. A row of dirty_hour, one hour of the meters of one commit of ingest,
# is taken whole.
HOURS_MAX: Final = 10_000
CLAIMS_MAX: Final = 5_000

# Hours of UTC become those of the site. Those whose samples retention has begun to remove stay as they are: they would
# be made from what is left.
_CLAIM: Final = """
    WITH waiting AS MATERIALIZED (
        SELECT ctid AS place, cardinality(meter_ids) AS hours FROM dirty_hour LIMIT %(claims)s
    ), bounded AS (
        SELECT place, sum(hours) OVER (ORDER BY place) - hours AS before FROM waiting
    ), gone AS (
        DELETE FROM dirty_hour USING bounded WHERE dirty_hour.ctid = place AND before < %(hours)s
        RETURNING start, meter_ids
    ), hour AS (
        SELECT date_bin('1 hour', start + part, midnight) AS start, midnight, meter_ids
        FROM gone, (VALUES (interval '0'), ('59 min 59 s')) AS edge (part),
             (SELECT timestamptz '2000-01-01 00:00Z' - utc_offset AS midnight FROM site_zone) AS site
    )
    SELECT date_bin('1 day', start, midnight), start, array_agg(DISTINCT meter_id)
    FROM hour CROSS JOIN unnest(meter_ids) AS meter_id
    WHERE start > coalesce((SELECT %(now)s - keep FROM retention WHERE data = 'power_sample'), '-infinity')
    GROUP BY 1, 2
"""
_HOUR: Final = (
    "DELETE FROM power_hour WHERE start = %(start)s AND meter_id = ANY (%(meters)s)",
    "INSERT INTO power_hour SELECT * FROM power_hour_of(%(start)s, %(meters)s)",
)
_DAY: Final = (
    "DELETE FROM power_day WHERE start = %(start)s AND meter_id = ANY (%(meters)s)",
    "INSERT INTO power_day SELECT * FROM power_day_of(%(start)s, %(meters)s)",
)


def roll_up(connection: Connection, now: datetime) -> int:
    """Make a bounded piece of what is dirty anew, in one transaction. Returns how many hours that were.

    0: nothing is left. On TimescaleDB Community nothing ever is.
    """
    with connection.transaction(), connection.cursor() as cursor:
        hours = cursor.execute(_CLAIM, {"claims": CLAIMS_MAX, "hours": HOURS_MAX, "now": now}).fetchall()
        days: dict[datetime, set[int]] = {}
        for day, start, meters in hours:
            for statement in _HOUR:
                cursor.execute(statement, {"start": start, "meters": meters})
            days.setdefault(day, set()).update(meters)
        for day, of_day in days.items():
            for statement in _DAY:
                cursor.execute(statement, {"start": day, "meters": list(of_day)})
        return len(hours)
