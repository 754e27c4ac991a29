"""Demand response: from a peak alert to an event, to a command, to its reply, to the reduction that was measured.

planned (on record) → sent (the command is out) → done or failed (the gateway replied) → measured.
"""

import logging
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Final

import numpy as np
import psycopg
from numpy.typing import NDArray

from cloud.engines.demand_response import METHOD, baseline, reduction
from cloud.jobs.alerts import PEAK
from cloud.jobs.calendar import INTERVAL, Calendar, ceil_mark
from cloud.jobs.dispatch import Dispatch, Finished, order
from cloud.jobs.mailbox import Mailbox
from protocols.uplink import Outcome, Shed, to_us

logger = logging.getLogger(__name__)

Connection = psycopg.Connection[tuple[Any, ...]]

# People who were switched off get this long before they may be again.
REST: Final = timedelta(hours=4)
# An event is planned, and its command goes out, this long before the notice it must give: a broker away for a moment
# costs nothing, and a peak that is still far may yet vanish.
EARLY: Final = timedelta(minutes=15)
# Readings that come later than this come too late for the settlement.
READINGS_MAX: Final = timedelta(days=2)
BEFORE: Final = 8  # intervals before the event that tell how today differs
LOOK_BACK_DAYS: Final = 45


@dataclass(frozen=True, slots=True)
class Terms:
    """``lead``: shortest notice.  ``duration``: rounded up to whole intervals."""

    lead: timedelta
    duration: timedelta


@dataclass(slots=True)
class Response:
    calendar: Calendar
    terms: Terms
    dispatch: Dispatch = field(default_factory=Dispatch)

    def step(self, connection: Connection, mailbox: Mailbox, *, now: datetime, monotonic_s: float) -> None:
        plan(connection, self.terms, now)
        prepare(connection, now)
        # What the dispatch wrote and the state of the event it belongs to change together.
        with connection.transaction():
            out, done = self.dispatch.step(connection, mailbox, now=now, monotonic_s=monotonic_s)
            for event_id in out:
                connection.execute(
                    "UPDATE dr_event SET state = 'sent' WHERE event_id = %s AND state = 'planned'", (event_id,)
                )
            finish(connection, done)
        measure(connection, self.calendar, now)


def plan(connection: Connection, terms: Terms, now: datetime) -> None:
    """One event for each area with an open peak alert, controllable points, and none running or just over."""
    for alert_id, area_id, above_from, points in connection.execute(_WANTED, {"rule": PEAK, "now": now}).fetchall():
        start = ceil_mark(max(now + terms.lead, min(above_from, now + timedelta(days=7))))
        end = start + -(-terms.duration // INTERVAL) * INTERVAL
        busy = connection.execute(_BUSY, {"area": area_id, "from": start - REST}).fetchone() is not None
        if busy or start - now > terms.lead + EARLY:
            continue
        event_id = f"{area_id}-{start:%Y%m%dT%H%MZ}"
        connection.execute(_PLAN, (event_id, area_id, alert_id, start, end, points))
        logger.info("demand response %s planned: %d points until %s", event_id, len(points), end)


def prepare(connection: Connection, now: datetime) -> None:
    """Turn planned events into commands, one for each gateway."""
    for event_id, start, end, gateway, names in connection.execute(_DUE, {"now": now}).fetchall():
        shed = Shed(event=event_id, start=to_us(start), end=to_us(end), meters=names)
        order(connection, gateway, shed, now=now, expires_at=end, asked_by="demand response", event_id=event_id)


def finish(connection: Connection, done: Iterable[Finished]) -> None:
    """Events whose command ended."""
    for one in done:
        if one.event_id is None:
            continue
        state = "done" if one.outcome is Outcome.DONE else "failed"
        connection.execute(
            "UPDATE dr_event SET state = %s WHERE event_id = %s AND state IN ('planned', 'sent')",
            (state, one.event_id),
        )
        level = logging.INFO if state == "done" else logging.WARNING
        logger.log(level, "demand response %s %s: %s", one.event_id, state, one.detail)


def measure(connection: Connection, calendar: Calendar, now: datetime) -> None:
    """Settle events that are over, when the readings of all their points are there."""
    for event_id, area_id, start, end, points in connection.execute(_TO_MEASURE, {"now": now}).fetchall():
        slots = (end - start) // INTERVAL
        energy = _Energy.load(connection, points, start - timedelta(days=LOOK_BACK_DAYS), end)
        actual_wh = energy.window(start, slots)
        if np.isnan(actual_wh).any() and now < end + READINGS_MAX:
            continue
        past = [
            energy.window(then - BEFORE * INTERVAL, BEFORE + slots)
            for then in _comparable(connection, calendar, area_id, start, end)
        ]
        past_wh = np.array(past).reshape(-1, BEFORE + slots)
        baseline_wh = baseline(past_wh, energy.window(start - BEFORE * INTERVAL, BEFORE))
        saved_wh = reduction(baseline_wh, actual_wh)
        measured = not np.isnan(saved_wh)
        connection.execute(
            _MEASURED,
            (
                *((float(baseline_wh.sum()), float(actual_wh.sum()), saved_wh) if measured else (None, None, None)),
                METHOD if measured else "not measured: readings are missing",
                now,
                event_id,
            ),
        )
        logger.info("demand response %s measured: %.1f kWh less than the baseline", event_id, saved_wh / 1000)


def _comparable(
    connection: Connection, calendar: Calendar, area_id: str, start: datetime, end: datetime
) -> list[datetime]:
    """The same local time on earlier days of the same kind, workday or not, without an event; latest first."""
    others = connection.execute(
        "SELECT start_at, end_at FROM dr_event WHERE area_id = %s AND start_at < %s AND state <> 'planned'",
        (area_id, start),
    ).fetchall()
    local = start.astimezone(calendar.zone)
    found = []
    for back in range(1, LOOK_BACK_DAYS):
        then = (local - timedelta(days=back)).astimezone(start.tzinfo)  # wall clock, so that it is the same hour
        same_kind = (calendar.day(then).weekday() >= 5) == (local.weekday() >= 5)
        first, last = then - BEFORE * INTERVAL, then + (end - start)
        if same_kind and not any(a < last and b > first for a, b in others):
            found.append(then)
    return found


@dataclass(frozen=True, slots=True)
class _Energy:
    """Net energy of some points together, (T,) Wh from ``start`` on; NaN where any of them is missing."""

    start: datetime
    wh: NDArray[np.float64]

    @classmethod
    def load(cls, connection: Connection, points: list[int], start: datetime, end: datetime) -> "_Energy":
        wh = np.full((end - start) // INTERVAL, np.nan)
        for at, energy in connection.execute(
            _ENERGY, {"points": points, "count": len(points), "from": start, "to": end}
        ):
            wh[(at - start) // INTERVAL] = energy
        return cls(start, wh)

    def window(self, start: datetime, steps: int) -> NDArray[np.float64]:
        first = (start - self.start) // INTERVAL
        if first < 0:
            return np.full(steps, np.nan)
        return self.wh[first : first + steps]


_WANTED: Final = """
    SELECT a.alert_id, p.area_id, (a.evidence ->> 'above_from')::timestamptz, array_agg(DISTINCT p.point_id)
    FROM alert a JOIN metering_point p ON a.subject = 'area:' || p.area_id AND p.controllable
    JOIN installation i ON i.point_id = p.point_id AND %(now)s BETWEEN i.valid_from AND i.valid_to
    WHERE a.rule = %(rule)s AND a.closed_at IS NULL GROUP BY a.alert_id, p.area_id
"""
# An event that failed leaves no need for rest only where it is sure that nobody was switched off: its command was never
# sent, or the reply says of every meter that it refused or was not ours to switch.
_BUSY: Final = """
    SELECT FROM dr_event e
    WHERE area_id = %(area)s AND (
        state IN ('planned', 'sent')
        OR end_at > %(from)s AND (
            state <> 'failed'
            OR EXISTS (
                SELECT FROM command c
                WHERE c.event_id = e.event_id AND c.sent_at IS NOT NULL AND (
                    c.replied_at IS NULL
                    OR EXISTS (
                        SELECT FROM jsonb_each_text(coalesce(c.reply -> 'meters', '{}')) m
                        WHERE m.value !~ '^(refused|rejected):'
                    )
                )
            )
        )
    )
    LIMIT 1
"""
_PLAN: Final = """
    INSERT INTO dr_event (event_id, area_id, alert_id, start_at, end_at, points, state)
    VALUES (%s, %s, %s, %s, %s, %s, 'planned') ON CONFLICT (event_id) DO NOTHING
"""
_DUE: Final = """
    SELECT e.event_id, e.start_at, e.end_at, i.gateway, array_agg(i.wire_name ORDER BY i.wire_name)
    FROM dr_event e JOIN installation i ON i.point_id = ANY(e.points) AND %(now)s BETWEEN i.valid_from AND i.valid_to
    WHERE e.state = 'planned' AND NOT EXISTS (SELECT FROM command c WHERE c.event_id = e.event_id)
    GROUP BY e.event_id, i.gateway
"""
_TO_MEASURE: Final = """
    SELECT event_id, area_id, start_at, end_at, points FROM dr_event WHERE state = 'done' AND end_at <= %(now)s
"""
_ENERGY: Final = """
    SELECT start, sum(energy_import_wh - coalesce(energy_export_wh, 0))::float8
    FROM interval_current
    WHERE point_id = ANY(%(points)s) AND start >= %(from)s AND start < %(to)s AND energy_import_wh IS NOT NULL
    GROUP BY start HAVING count(*) = %(count)s
"""
_MEASURED: Final = """
    UPDATE dr_event SET baseline_wh = %s, actual_wh = %s, reduction_wh = %s, method = %s, measured_at = %s,
                        state = 'measured'
    WHERE event_id = %s
"""
