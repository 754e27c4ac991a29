"""Demand response: from a peak alert to an event, to a command, to its reply, to the reduction that was measured.

planned (on record) → sent (the command is out) → done or failed (the gateway replied) → measured.
"""

import logging
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Final
from uuid import uuid4

import msgspec
import numpy as np
import psycopg
from numpy.typing import NDArray
from psycopg.types.json import Jsonb

from cloud.engines.demand_response import METHOD, baseline, reduction
from cloud.jobs.alerts import PEAK
from cloud.jobs.calendar import INTERVAL, Calendar, ceil_mark
from cloud.jobs.mailbox import Answer, Mailbox
from protocols.uplink import Command, Outcome, Shed, to_us

logger = logging.getLogger(__name__)

Connection = psycopg.Connection[tuple[Any, ...]]

# People who were switched off get this long before they may be again.
REST: Final = timedelta(hours=4)
# An event is planned, and its command goes out, this long before the notice it must give: a broker away for a moment
# costs nothing, and a peak that is still far may yet vanish.
EARLY: Final = timedelta(minutes=15)
RESEND_S: Final = 10.0
# A gateway that was away during the whole event still says so when it is back; after this nobody waits for it.
REPLY_MAX: Final = timedelta(hours=1)
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
    """``sent``: command → when it was last handed to the broker, on the monotonic clock."""

    calendar: Calendar
    terms: Terms
    sent: dict[str, float] = field(default_factory=dict)

    def step(self, connection: Connection, mailbox: Mailbox, *, now: datetime, monotonic_s: float) -> None:
        plan(connection, self.terms, now)
        prepare(connection, now)
        self._send(connection, mailbox, now, monotonic_s)
        store_replies(connection, mailbox.answers(), now)
        give_up(connection, now)
        measure(connection, self.calendar, now)

    def _send(self, connection: Connection, mailbox: Mailbox, now: datetime, monotonic_s: float) -> None:
        for command_id, gateway, event_id, body in connection.execute(_UNANSWERED).fetchall():
            if monotonic_s - self.sent.get(command_id, -np.inf) < RESEND_S:
                continue
            if not mailbox.send(gateway, msgspec.convert(body, Command)):
                return
            if command_id not in self.sent:
                logger.info("demand response %s: command %s sent to %s", event_id, command_id, gateway)
            self.sent[command_id] = monotonic_s
            with connection.transaction():
                connection.execute(
                    "UPDATE command SET sent_at = coalesce(sent_at, %s) WHERE command_id = %s", (now, command_id)
                )
                connection.execute(
                    "UPDATE dr_event SET state = 'sent' WHERE event_id = %s AND state = 'planned'", (event_id,)
                )


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
        command = Command(
            id=uuid4().hex,
            issued_at=to_us(now),
            expires_at=to_us(end),
            body=Shed(event=event_id, start=to_us(start), end=to_us(end), meters=names),
        )
        connection.execute(
            "INSERT INTO command (command_id, gateway, event_id, body, issued_at, expires_at)"
            " VALUES (%s, %s, %s, %s, %s, %s)",
            (command.id, gateway, event_id, Jsonb(msgspec.to_builtins(command)), now, end),
        )


def store_replies(connection: Connection, answers: Iterable[Answer], now: datetime) -> None:
    for answer in answers:
        reply = answer.reply
        with connection.transaction():
            row = connection.execute(
                _REPLY, (now, reply.outcome, Jsonb(msgspec.to_builtins(reply)), reply.id, answer.gateway)
            ).fetchone()
            if row:
                state = "done" if reply.outcome is Outcome.DONE else "failed"
                _finish(connection, row[0], state, f"{reply.outcome} {reply.detail}")


def give_up(connection: Connection, now: datetime) -> None:
    """Commands that were never sent in time, or never answered, end here."""
    with connection.transaction():
        for (event_id,) in connection.execute(_GIVE_UP, {"now": now, "silent": now - REPLY_MAX}).fetchall():
            _finish(connection, event_id, "failed", "no reply from the gateway")


def _finish(connection: Connection, event_id: str, state: str, why: str) -> None:
    connection.execute(
        "UPDATE dr_event SET state = %s WHERE event_id = %s AND state IN ('planned', 'sent')", (state, event_id)
    )
    logger.log(logging.INFO if state == "done" else logging.WARNING, "demand response %s %s: %s", event_id, state, why)


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
_UNANSWERED: Final = """
    SELECT command_id, gateway, event_id, body FROM command WHERE replied_at IS NULL AND outcome IS NULL
    ORDER BY issued_at
"""
_REPLY: Final = """
    UPDATE command SET replied_at = %s, outcome = %s, reply = %s
    WHERE command_id = %s AND gateway = %s AND replied_at IS NULL RETURNING event_id
"""
_GIVE_UP: Final = """
    UPDATE command SET outcome = 'expired'
    WHERE outcome IS NULL AND (expires_at < %(silent)s OR (sent_at IS NULL AND expires_at < %(now)s))
    RETURNING event_id
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
