"""采集成功率: how much of what was expected is there, what is missing and why, as `gridloom work` keeps it."""

import base64
import binascii
import json
from dataclasses import dataclass
from datetime import UTC, date, datetime
from typing import Annotated, Final, Literal, LiteralString

from fastapi import APIRouter, Query

from cloud.api.access import DaysAsked, SiteNeeded
from cloud.api.grid import AreaAsked, known_area
from cloud.api.intervals import find_points
from cloud.api.models import Asked, Collected, Completeness, Gap, Gaps, Missing, Reason
from cloud.api.problems import bad_parameter

LIMIT_MAX: Final = 1000
GROUPS_MAX: Final = 50_000

router = APIRouter(tags=["operations"])

GatewayAsked = Annotated[str | None, Query(description="default: all gateways")]


@dataclass(frozen=True, slots=True)
class _Counted:
    day: date | None
    area: str | None
    gateway: str | None
    point: str | None
    expected: int
    received: int


@dataclass(frozen=True, slots=True)
class _Explained:
    day: date | None
    area: str | None
    gateway: str | None
    point: str | None
    reason: Reason
    intervals: int


# Columns of a group by what was asked; days and areas are few in the rollup, points are many and have no rollup.
_KEYS: Final[dict[str, tuple[LiteralString, ...]]] = {
    "day": ("day",),
    "area": ("area",),
    "gateway": ("gateway",),
    "point": ("area", "point"),
}


@router.get("/v1/completeness", summary="Collection completeness (采集成功率)")
async def completeness(
    site: SiteNeeded,
    days: DaysAsked,
    by: Annotated[
        Literal["day", "area", "gateway", "point"], Query(description="what `groups` has one entry for")
    ] = "day",
    daily: Annotated[bool, Query(description="one entry for each day of it, too")] = False,
    area: AreaAsked = None,
    gateway: GatewayAsked = None,
) -> Completeness:
    """Intervals received of those that are over and whose meter was installed, per business day of the site's zone.

    `missing` explains those that were looked for and not found, some minutes after each mark.
    """
    await known_area(site, area)
    keys = _KEYS[by]
    if daily and by != "day":
        keys = (*keys, "day")
    asked = {"area": area, "gateway": gateway, "from": days.first, "to": days.end, "zone": site.zone.key}
    chosen: LiteralString = ", ".join(
        name if name in keys else f"NULL::{kind} AS {name}"
        for name, kind in (("day", "date"), ("area", "text"), ("gateway", "text"), ("point", "text"))
    )
    grouped: LiteralString = ", ".join(keys)
    counted = await site.database.rows(
        _Counted,
        f"""
        SELECT {chosen}, coalesce(sum(expected), 0)::bigint AS expected, coalesce(sum(received), 0)::bigint AS received
        FROM ({_POINTS if by == "point" else _AREAS}) c
        WHERE (%(from)s::date IS NULL OR day >= %(from)s) AND (%(to)s::date IS NULL OR day < %(to)s)
          AND (%(area)s::text IS NULL OR area = %(area)s) AND (%(gateway)s::text IS NULL OR gateway = %(gateway)s)
        GROUP BY GROUPING SETS (({grouped}), ()) ORDER BY grouping({grouped}) DESC, {grouped} LIMIT %(groups)s
        """,  # noqa: S608 the parts are the literals above
        {**asked, "groups": GROUPS_MAX + 2},
    )
    if len(counted) > GROUPS_MAX + 1:
        raise bad_parameter(
            "by, daily", f"More than {GROUPS_MAX} groups in one answer.", "Ask for an area, or for fewer days."
        )
    explained = await site.database.rows(
        _Explained,
        f"""
        SELECT {chosen}, reason, sum(intervals)::bigint AS intervals
        FROM ({_MISSING_OF_POINTS if by == "point" else _MISSING_OF_AREAS}) g
        WHERE (%(from)s::date IS NULL OR day >= %(from)s) AND (%(to)s::date IS NULL OR day < %(to)s)
          AND (%(area)s::text IS NULL OR area = %(area)s) AND (%(gateway)s::text IS NULL OR gateway = %(gateway)s)
        GROUP BY {grouped}, reason ORDER BY reason
        """,  # noqa: S608 the parts are the literals above
        asked,
    )
    why: dict[tuple[object, ...], list[Missing]] = {}
    every: dict[Reason, int] = {}
    for row in explained:
        key = (row.day, row.area, row.gateway, row.point)
        why.setdefault(key, []).append(Missing(reason=row.reason, intervals=row.intervals))
        every[row.reason] = every.get(row.reason, 0) + row.intervals
    first, *rest = counted
    total = _collected(first, [Missing(reason=reason, intervals=intervals) for reason, intervals in every.items()])
    groups = [_collected(row, why.get((row.day, row.area, row.gateway, row.point), [])) for row in rest]
    return Completeness(total=total, groups=groups)


def _collected(row: _Counted, missing: list[Missing]) -> Collected:
    return Collected(
        day=row.day,
        area=row.area,
        gateway=row.gateway,
        point=row.point,
        expected=row.expected,
        received=row.received,
        completeness=row.received / row.expected if row.expected else None,
        missing=sorted(missing, key=lambda one: -one.intervals),
    )


# A point counts where it stood at the end of the day, as in the roll-ups.
_STOOD: Final[LiteralString] = """
    JOIN area_of_point a ON a.point_id = c.point_id AND a.after < (day + 1)::timestamp AT TIME ZONE %(zone)s
     AND a.until >= (day + 1)::timestamp AT TIME ZONE %(zone)s
"""
_GATEWAY: Final[LiteralString] = """
    JOIN area ON area.area_id = a.area_id
    LEFT JOIN gateway_of_point i ON i.point_id = c.point_id AND i.after < (day + 1)::timestamp AT TIME ZONE %(zone)s
     AND i.until >= (day + 1)::timestamp AT TIME ZONE %(zone)s AND i.valid_to > day::timestamp AT TIME ZONE %(zone)s
"""
_AREAS: Final[LiteralString] = """
    SELECT day, area_id AS area, gateway, expected, received FROM completeness_area_day
"""
_POINTS: Final[LiteralString] = f"""
    SELECT day, a.area_id AS area, coalesce(i.gateway, area.gateway) AS gateway, point, expected, received
    FROM completeness_day c JOIN metering_point p USING (point_id) {_STOOD} {_GATEWAY}
"""  # noqa: S608 the parts are the literals above
_MISSING_OF_AREAS: Final[LiteralString] = """
    SELECT day, area_id AS area, gateway, reason, intervals FROM missing_area_day
"""
_MISSING_OF_POINTS: Final[LiteralString] = f"""
    SELECT day, a.area_id AS area, coalesce(i.gateway, area.gateway) AS gateway, point, reason,
           extract(epoch FROM end_at - start_at) / 900 AS intervals
    FROM gap c JOIN metering_point p USING (point_id) {_STOOD} {_GATEWAY}
"""  # noqa: S608 the parts are the literals above
# The gateway: of the meter that was there, or that is there now.
_GAPS: Final[LiteralString] = f"""
    SELECT c.point_id, day, a.area_id AS area, point, start_at, end_at, reason, i.gateway, i.wire_name
    FROM gap c JOIN metering_point p USING (point_id) {_STOOD}
    LEFT JOIN LATERAL (
        SELECT gateway, wire_name FROM installation i WHERE i.point_id = c.point_id
        ORDER BY i.valid_from <= c.start_at DESC, CASE WHEN i.valid_from <= c.start_at THEN valid_from END DESC LIMIT 1
    ) i ON true
"""  # noqa: S608 the parts are the literals above


# ---- what is missing ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Place:
    """Where the last page ended: newest first, then by point."""

    start: datetime
    point: str

    def encode(self) -> str:
        document = json.dumps([int(self.start.timestamp()), self.point], separators=(",", ":"), ensure_ascii=False)
        return base64.urlsafe_b64encode(document.encode()).decode().rstrip("=")

    @classmethod
    def decode(cls, text: str) -> "_Place":
        try:
            start_s, point = json.loads(base64.urlsafe_b64decode(text + "=="))
            return cls(datetime.fromtimestamp(int(start_s), UTC), str(point).replace("\0", ""))
        except (ValueError, TypeError, OverflowError, OSError, binascii.Error) as error:
            raise bad_parameter(
                "cursor", "This is not a cursor.", "Use `next` of the page before, unchanged."
            ) from error


@dataclass(frozen=True, slots=True)
class _Gap:
    point: str
    area: str
    gateway: str | None
    meter: str | None
    start: datetime
    end: datetime
    intervals: int
    reason: Reason
    away: bool
    asked_at: datetime | None
    command: str | None
    outcome: str | None
    said: str | None

    def gap(self) -> Gap:
        asked = None
        if self.asked_at and self.command:
            asked = Asked(at=self.asked_at, command=self.command, outcome=self.outcome, said=self.said)
        return Gap(
            point=self.point,
            area=self.area,
            gateway=self.gateway,
            meter=self.meter,
            start=self.start,
            end=self.end,
            intervals=self.intervals,
            reason=self.reason,
            asked=asked,
            run=self._run(),
        )

    def _run(self) -> str | None:
        if self.reason == "quarantined":
            return "gridloom quarantine list"
        if self.gateway is None or self.meter is None or self.reason == "backfilling":
            return None
        if self.away:
            return "meterctl status"
        if self.reason == "meter_silent":
            return f"gridloom command {self.gateway} read {self.meter} energy_import_wh"
        if self.reason in ("meter_refuses", "not_in_memory"):
            return None
        return (
            f"gridloom command {self.gateway} backfill {self.meter}"
            f" --start {self.start:%Y-%m-%dT%H:%MZ} --end {self.end:%Y-%m-%dT%H:%MZ}"
        )


@router.get("/v1/completeness/gaps", summary="What is missing, since when and why, newest first")
async def gaps(
    site: SiteNeeded,
    days: DaysAsked,
    area: AreaAsked = None,
    gateway: GatewayAsked = None,
    point: Annotated[str | None, Query(description="default: all points")] = None,
    reason: Annotated[Reason | None, Query(description="default: all reasons")] = None,
    cursor: Annotated[str | None, Query(max_length=500, description="`next` of the page before")] = None,
    limit: Annotated[int, Query(ge=1, le=LIMIT_MAX)] = 200,
) -> Gaps:
    """Ranges of missing intervals, [start, end), within the days asked for; one that goes on has `end` at the newest
    mark looked at. Ranges of one point that touch and have one reason are one. Days that are over keep their reasons
    unless something new is known within 35 days.
    """
    await known_area(site, area)
    if point:
        await find_points(site, [point])
    after = _Place.decode(cursor) if cursor else None
    found = await site.database.rows(
        _Gap,
        f"""
        WITH piece AS (
            SELECT *, lag(end_at) OVER w IS DISTINCT FROM start_at OR lag(reason) OVER w <> reason
                      OR lag(gateway) OVER w IS DISTINCT FROM gateway AS begins
            FROM ({_GAPS}) g
            WHERE (%(from)s::date IS NULL OR day >= %(from)s) AND (%(to)s::date IS NULL OR day < %(to)s)
              AND (%(area)s::text IS NULL OR area = %(area)s) AND (%(gateway)s::text IS NULL OR gateway = %(gateway)s)
              AND (%(point)s::text IS NULL OR point = %(point)s)
            WINDOW w AS (PARTITION BY point_id ORDER BY start_at)
        ), numbered AS (
            SELECT *, sum(begins::integer) OVER (PARTITION BY point_id ORDER BY start_at) AS run FROM piece
        ), whole AS (
            SELECT point_id, point, area, gateway, wire_name AS meter, reason,
                   min(start_at) AS start, max(end_at) AS end
            FROM numbered GROUP BY point_id, point, area, gateway, wire_name, reason, run
        ), page AS (
            SELECT * FROM whole
            WHERE (%(reason)s::text IS NULL OR reason = %(reason)s)
              AND (%(after)s::timestamptz IS NULL OR start < %(after)s
                   OR (start = %(after)s AND point > %(after_point)s))
            ORDER BY start DESC, point LIMIT %(limit)s
        )
        SELECT point, area, gateway, meter, start, "end", reason,
               (extract(epoch FROM "end" - start) / 900)::bigint AS intervals,
               NOT coalesce((SELECT online FROM gateway_status s WHERE s.gateway = page.gateway), false) AS away,
               asked_at, command, outcome, said
        FROM page LEFT JOIN LATERAL (
            SELECT asked_at, command_id AS command, outcome, reply -> 'meters' ->> meter AS said
            FROM backfill_asked a JOIN command USING (command_id)
            WHERE a.point_id = page.point_id AND a.start_at < page.end AND a.end_at > page.start
            ORDER BY asked_at DESC, a.start_at DESC LIMIT 1
        ) asked ON true
        ORDER BY start DESC, point
        """,  # noqa: S608 the part is the literal above
        {
            "area": area,
            "gateway": gateway,
            "point": point,
            "reason": reason,
            "from": days.first,
            "to": days.end,
            "zone": site.zone.key,
            "after": after.start if after else None,
            "after_point": after.point if after else None,
            "limit": limit + 1,
        },
    )
    following = _Place(found[limit - 1].start, found[limit - 1].point).encode() if len(found) > limit else None
    return Gaps(gaps=[row.gap() for row in found[:limit]], next=following)
