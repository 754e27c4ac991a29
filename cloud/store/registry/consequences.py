"""What must be derived again when the history changes, and what changes hands."""

from collections.abc import Sequence
from datetime import datetime
from typing import Final, LiteralString

from cloud.store.migrations import Connection
from cloud.store.registry.difference import differences
from cloud.store.registry.history import NOT_NOTED, History, Installation, Registers
from cloud.store.registry.tables import fresh, infinite


def mark_points(connection: Connection, before: History, after: History) -> None:
    """Intervals of meters and points; power and events under a wire name follow the meter that was there."""
    dirty: list[tuple[str, str, datetime, datetime]] = []  # point, meter whose readings are concerned, from, to
    moved: list[tuple[str, str, datetime, datetime]] = []  # meter, the one that stands under its wire name now
    for point in after.installations:
        old, new = before.installations.get(point, []), after.installations[point]
        if old == new:
            continue
        for start, end, was, now in differences(old, new, lambda one: (one.serial, one.ct_ratio * one.pt_ratio)):
            dirty += [(point, one.serial, start, end) for one in {was, now} if one]
            if was and now and was.serial != now.serial:
                moved.append((was.serial, now.serial, start, end))
        dirty += [(point, serial, at, at) for at, serial, _ in _noted(old) ^ _noted(new)]
    if not dirty:
        return
    columns: LiteralString = "(point text, serial text, from_at timestamptz, to_at timestamptz) ON COMMIT DROP"
    with fresh(connection, columns, ([infinite(value) for value in dirt] for dirt in dirty)) as cursor:
        # Only where there are readings, in weeks. Meters first: rows of the one that went may be those of the one that
        # came. A mark more on either side: an interval ends where the next begins.
        cursor.execute(_DIRTY)
        cursor.execute("INSERT INTO dirty_range (meter_id, from_at, to_at) SELECT DISTINCT meter_id, a, b FROM dirt")
        cursor.execute("INSERT INTO dirty_range (point_id, from_at, to_at) SELECT DISTINCT point_id, a, b FROM dirt")
        cursor.execute("DROP TABLE dirt")
        for one, other, start, end in moved:
            span = {"one": one, "other": other, "start": infinite(start), "end": infinite(end)}
            cursor.execute(_DIRTY_HOURS, span)
            cursor.execute(_HAND_OVER_POWER, span)
            cursor.execute(_HAND_OVER_EVENTS, span)


def _noted(periods: Sequence[Installation]) -> set[tuple[datetime, str, Registers]]:
    opening = {(one.valid_from, one.serial, one.opening) for one in periods if one.opening != NOT_NOTED}
    return opening | {(one.valid_to, one.serial, one.closing) for one in periods if one.closing != NOT_NOTED}


_DIRTY: Final = """
    CREATE TEMP TABLE dirt ON COMMIT DROP AS
    SELECT meter_id, point_id, a, least(a + interval '7 days', last) AS b
    FROM (
        SELECT meter_id, point_id,
               date_bin('15 min', greatest(f.from_at, oldest.at), 'epoch') - interval '15 min' AS first,
               date_bin('15 min', least(f.to_at, newest.at), 'epoch') + interval '30 min' AS last
        FROM fresh f JOIN meter m USING (serial) JOIN metering_point USING (point)
        CROSS JOIN LATERAL (
            SELECT at FROM energy_sample s WHERE s.meter_id = m.meter_id ORDER BY at LIMIT 1) oldest
        CROSS JOIN LATERAL (
            SELECT at FROM energy_sample s WHERE s.meter_id = m.meter_id ORDER BY at DESC LIMIT 1) newest
        WHERE f.from_at <= newest.at + interval '15 min' AND f.to_at >= oldest.at - interval '15 min'
    ) ranges, generate_series(first, last, interval '7 days') a
"""
# What came under a wire name after another meter had taken its place there. Energy follows when it is derived.
_STRAY_POWER: Final[LiteralString] = """
    FROM meter one, meter other
    WHERE one.serial = %(one)s AND other.serial = %(other)s AND s.meter_id = one.meter_id
      AND s.at >= %(start)s::timestamptz AND s.at < %(end)s::timestamptz
      AND NOT EXISTS (SELECT FROM installation i
                      WHERE i.meter_id = one.meter_id AND s.at >= i.valid_from AND s.at < i.valid_to)
"""
_DIRTY_HOURS: Final[LiteralString] = f"""
    INSERT INTO dirty_hour (start, meter_ids)
    SELECT DISTINCT date_trunc('hour', at), ARRAY[one_id, other_id]
    FROM (SELECT s.at, one.meter_id AS one_id, other.meter_id AS other_id
          {_STRAY_POWER.replace("FROM meter one", "FROM power_sample s, meter one")}) stray
"""  # noqa: S608
_HAND_OVER_POWER: Final[LiteralString] = f"UPDATE power_sample s SET meter_id = other.meter_id {_STRAY_POWER}"  # noqa: S608
_HAND_OVER_EVENTS: Final = """
    UPDATE event s SET meter_id = i.meter_id
    FROM meter one, installation i
    WHERE one.serial = %(one)s AND s.meter_id = one.meter_id
      AND s.at >= %(start)s::timestamptz AND s.at < %(end)s::timestamptz
      AND (i.gateway, i.wire_name) = (s.gateway, s.meter) AND s.at >= i.valid_from AND s.at < i.valid_to
      AND i.meter_id <> s.meter_id
"""


def mark_series(connection: Connection, before: History, after: History) -> None:
    """Loads of areas whose points, and of feeders whose areas, are others than they were."""
    dirty: set[tuple[str, datetime, datetime]] = set()
    for point, places in after.memberships.items():
        old = before.memberships.get(point, [])
        if old != places:
            for start, end, was, now in differences(old, places, lambda one: (one.area_id, one.role, one.node_id)):
                dirty |= {(f"area:{one.area_id}", start, end) for one in (was, now) if one}
    for area_id, feedings in after.feedings.items():
        held = before.feedings.get(area_id, [])
        if held != feedings:
            for start, end, on, onto in differences(held, feedings, lambda one: one.feeder_id):
                dirty |= {(f"feeder:{one.feeder_id}", start, end) for one in (on, onto) if one}
    with connection.cursor() as cursor:
        cursor.executemany(
            """
            INSERT INTO dirty_range (series, from_at, to_at)
            SELECT %s, week, least(week + interval '7 days' - interval '15 min', last)
            FROM (SELECT greatest(date_bin('15 min', %s::timestamptz, 'epoch'), min(start)) AS first,
                         least(%s::timestamptz, max(start)) AS last
                  FROM load WHERE series = 'substation:S1' HAVING count(*) > 0) load,
                      generate_series(first, last, interval '7 days') week
            """,
            [(series, infinite(start), infinite(end)) for series, start, end in sorted(dirty)],
        )
