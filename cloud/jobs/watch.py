"""Alerts on record: gather the facts, let the rules judge, open, refresh and close."""

import logging
from datetime import datetime, timedelta
from typing import Any, Final

import psycopg
from psycopg.types.json import Jsonb

from cloud.jobs.alerts import (
    UNEXPLAINED_DAYS,
    AreaFacts,
    Expected,
    ForecastFacts,
    Loss,
    MeterFacts,
    SuspectFacts,
    evaluate,
)
from cloud.jobs.calendar import INTERVAL, Calendar
from cloud.jobs.forecasts import judge

logger = logging.getLogger(__name__)

Connection = psycopg.Connection[tuple[Any, ...]]


def update_alerts(connection: Connection, calendar: Calendar, *, now: datetime, lookahead: timedelta) -> None:
    with connection.transaction(), connection.cursor() as cursor:
        verdict = evaluate(
            load_areas(cursor, calendar, now, lookahead),
            load_meters(cursor, now),
            load_forecasts(connection, calendar, now),
            load_suspects(cursor),
            now=now,
            lookahead=lookahead,
            calendar=calendar,
        )
        known = {
            (rule, subject): (alert_id, message)
            for alert_id, rule, subject, message in cursor.execute(
                "SELECT alert_id, rule, subject, message_en FROM alert WHERE closed_at IS NULL"
            )
        }
        for finding in verdict.findings:
            alert_id, message = known.pop((finding.rule, finding.subject), (None, None))
            words = (finding.severity, finding.message_en, finding.message_zh, Jsonb(finding.evidence))
            if alert_id is None:
                cursor.execute(_OPEN, (finding.rule, finding.subject, now, *words))
                logger.warning("alert opened: %s: %s", finding.rule, finding.message_en)
            elif message != finding.message_en:
                cursor.execute(_REFRESH, (*words, alert_id))
        for (rule, subject), (alert_id, _) in known.items():
            if (rule, subject) not in verdict.undecided:
                cursor.execute("UPDATE alert SET closed_at = %s WHERE alert_id = %s", (now, alert_id))
                logger.info("alert closed: %s %s", rule, subject)


def load_areas(
    cursor: psycopg.Cursor[tuple[Any, ...]], calendar: Calendar, now: datetime, lookahead: timedelta
) -> list[AreaFacts]:
    loads = {
        series: Expected(start, energy_wh * (timedelta(hours=1) / INTERVAL))
        for series, start, energy_wh in cursor.execute(_LOADS, {"from": now - timedelta(days=1), "to": now})
    }
    forecasts: dict[str, list[Expected]] = {}
    for series, start, p50_w in cursor.execute(_FORECASTS, {"from": now - INTERVAL, "to": now + lookahead}):
        forecasts.setdefault(series, []).append(Expected(start, p50_w))
    today = calendar.day(now)
    losses: dict[str, list[Loss]] = {}
    for area_id, *values in cursor.execute(_LOSSES, {"from": today - timedelta(days=UNEXPLAINED_DAYS), "to": today}):
        losses.setdefault(area_id, []).append(Loss(*values))
    collected: dict[str, tuple[float, str | None]] = {
        area_id: (share, reason)
        for area_id, share, reason in cursor.execute(_COLLECTED, {"day": today - timedelta(days=1)})
    }
    return [
        AreaFacts(
            area_id, name_en, name_zh, capacity_w, low_percent, high_percent,
            loads.get(f"area:{area_id}"), forecasts.get(f"area:{area_id}", ()), losses.get(area_id, ()),
            *collected.get(area_id, (None, None)),
        )
        for area_id, name_en, name_zh, capacity_w, low_percent, high_percent in cursor.execute(_AREAS).fetchall()
    ]  # fmt: skip


def load_meters(cursor: psycopg.Cursor[tuple[Any, ...]], now: datetime) -> list[MeterFacts]:
    return [MeterFacts(*row) for row in cursor.execute(_METERS, {"now": now})]


def load_forecasts(connection: Connection, calendar: Calendar, now: datetime) -> list[ForecastFacts]:
    names = {series: (en, zh) for series, en, zh in connection.execute(_NAMES)}
    return [
        ForecastFacts(
            one.series, *names.get(one.series, ("", "")), one.days, one.error_wh, one.naive_error_wh, one.actual_wh,
            one.enough, one.worse,
        )
        for one in judge(connection, calendar.day(now))
    ]  # fmt: skip


def load_suspects(cursor: psycopg.Cursor[tuple[Any, ...]]) -> list[SuspectFacts]:
    """Whom the newest search of each area names; a day on which it could not be searched changes nothing."""
    return [SuspectFacts(*row) for row in cursor.execute(_SUSPECTS)]


_NAMES: Final = """
    SELECT 'area:' || area_id, name_en, name_zh FROM area
    UNION ALL SELECT 'feeder:' || feeder_id, name_en, name_zh FROM feeder
"""
_AREAS: Final = """
    SELECT area_id, name_en, name_zh, capacity_w, loss_low_percent, loss_high_percent FROM area ORDER BY area_id
"""
_LOADS: Final = """
    SELECT DISTINCT ON (series) series, start, supplied_wh FROM load
    WHERE series LIKE 'area:%%' AND supplied_wh IS NOT NULL AND start >= %(from)s AND start < %(to)s
    ORDER BY series, start DESC
"""
_FORECASTS: Final = """
    SELECT series, start, p50_w FROM forecast
    WHERE run_id = (SELECT run_id FROM forecast_run ORDER BY origin DESC, run_id DESC LIMIT 1)
      AND series LIKE 'area:%%' AND start > %(from)s AND start < %(to)s
    ORDER BY series, start
"""
_LOSSES: Final = """
    SELECT area_id, day::text, supplied_wh, delivered_wh, unexplained_wh, aligned::float8 / greatest(expected, 1),
           unexplained_lo_wh, unexplained_hi_wh, fed_in_wh, CASE WHEN fed_in_wh IS NOT NULL THEN state END
    FROM loss_day WHERE day >= %(from)s AND day < %(to)s AND supplied_wh IS NOT NULL AND delivered_wh IS NOT NULL
    ORDER BY area_id, day DESC
"""
_COLLECTED: Final = """
    SELECT area_id, (sum(received) / sum(expected))::float8, (
        SELECT reason FROM missing_area_day m WHERE m.day = %(day)s AND m.area_id = c.area_id
        GROUP BY reason ORDER BY sum(intervals) DESC, reason LIMIT 1)
    FROM completeness_area_day c WHERE day = %(day)s GROUP BY area_id HAVING sum(expected) > 0
"""
_METERS: Final = """
    SELECT p.point, p.area_id, i.gateway, coalesce(g.online, false),
           coalesce((g.status->>'backfill_left')::bigint > 0, false), s.last_energy_at, s.clock_offset_s
    FROM installation i JOIN metering_point p USING (point_id)
    LEFT JOIN gateway_status g USING (gateway) LEFT JOIN meter_state s USING (meter_id)
    WHERE %(now)s BETWEEN i.valid_from AND i.valid_to ORDER BY p.point
"""
_SUSPECTS: Final = """
    SELECT point, s.area_id, kind, since, from_day, stolen_wh, stolen_lo_wh, stolen_hi_wh, score, evidence_en
    FROM (SELECT area_id, max(day) AS day FROM loss_search WHERE reason = '' GROUP BY area_id) newest
    JOIN loss_search USING (area_id, day) JOIN loss_suspect s USING (area_id, day) JOIN metering_point USING (point_id)
    WHERE named ORDER BY s.area_id, rank
"""
_OPEN: Final = """
    INSERT INTO alert (rule, subject, opened_at, severity, message_en, message_zh, evidence)
    VALUES (%s, %s, %s, %s, %s, %s, %s)
"""
_REFRESH: Final = "UPDATE alert SET severity = %s, message_en = %s, message_zh = %s, evidence = %s WHERE alert_id = %s"
