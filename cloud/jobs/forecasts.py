"""Forecast runs of all series, and how good the day-ahead ones were."""

from dataclasses import dataclass
from datetime import date, datetime, timedelta
from typing import Any, Final

import numpy as np
import psycopg
from numpy.typing import NDArray

from cloud.engines.forecast.first import (
    DAYS_MIN,
    DAYS_USED_MAX,
    MODEL,
    MODEL_VERSION,
    Forecast,
    forecast,
    seasonal_naive,
)
from cloud.jobs.calendar import INTERVAL, Calendar
from cloud.jobs.columns import INTERVAL_H

Connection = psycopg.Connection[tuple[Any, ...]]

STEPS_PER_DAY: Final = 96
HORIZON: Final = timedelta(hours=36)
NAIVE: Final = "seasonal_naive"
SCORED_DAYS: Final = 7
# A day is scored where most of it was measured.
_SCORED_SHARE: Final = 0.9
RUNS_KEPT: Final = timedelta(days=60)
# A head meter that has been away for longer does not hold the origin back.
_STRAGGLER: Final = timedelta(hours=1)


@dataclass(frozen=True, slots=True)
class History:
    """``load_w`` (S, T) mean power of S series in the T intervals from ``start`` on; NaN where missing."""

    series: tuple[str, ...]
    start: datetime
    load_w: NDArray[np.float64]

    @property
    def end(self) -> datetime:
        return self.start + int(self.load_w.shape[1]) * INTERVAL

    def before(self, origin: datetime) -> NDArray[np.float64]:
        return self.load_w[:, : max(0, (origin - self.start) // INTERVAL)]


def load_history(connection: Connection, until: datetime, *, days: int = DAYS_USED_MAX + SCORED_DAYS + 1) -> History:
    """Every series up to the newest mark that the areas which are still heard have in common."""
    rows = connection.execute(_HISTORY, {"from": until - timedelta(days=days), "until": until}).fetchall()
    if not rows:
        return History((), until, np.empty((0, 0)))
    series = tuple(sorted({row[0] for row in rows}))
    index = {name: i for i, name in enumerate(series)}
    start = min(row[1][0] for row in rows)
    newest = [row[1][-1] for row in rows if row[0].startswith("area:")]
    end = min((last for last in newest if last >= max(newest) - _STRAGGLER), default=max(row[1][-1] for row in rows))
    steps = (end - start) // INTERVAL + 1
    load_w = np.full((len(series), steps), np.nan)
    for name, starts, supplied_wh in rows:  # one row a series
        at = np.array([(moment - start) // INTERVAL for moment in starts])
        load_w[index[name], at[at < steps]] = np.array(supplied_wh, float)[at < steps] / INTERVAL_H
    return History(series, start, load_w)


def run(connection: Connection, calendar: Calendar, history: History, now: datetime) -> None:
    """Forecast from the end of the history and store it."""
    steps = HORIZON // INTERVAL
    result = _forecast(calendar, history, history.end, steps)
    starts = [history.end + i * INTERVAL for i in range(steps)]
    with connection.transaction(), connection.cursor() as cursor:
        row = cursor.execute(
            """
            INSERT INTO forecast_run (origin, made_at, model, model_version, horizon_h, inputs_until)
            VALUES (%s, %s, %s, %s, %s, %s) RETURNING run_id
            """,
            (history.end, now, MODEL, MODEL_VERSION, HORIZON // timedelta(hours=1), history.end),
        ).fetchone()
        assert row
        for name, p10_w, p50_w, p90_w in zip(history.series, result.p10_w, result.p50_w, result.p90_w, strict=True):
            known = np.isfinite(p50_w)
            cursor.execute(
                """
                INSERT INTO forecast (run_id, series, start, p10_w, p50_w, p90_w)
                SELECT %s, %s, * FROM unnest(%s::timestamptz[], %s::float8[], %s::float8[], %s::float8[])
                """,
                (
                    row[0], name, [start for start, there in zip(starts, known, strict=True) if there],
                    *(_finite_or(p, p50_w)[known].tolist() for p in (p10_w, p50_w, p90_w)),
                ),
            )  # fmt: skip
        cursor.execute("DELETE FROM forecast_run WHERE origin < %s", (now - RUNS_KEPT,))


def score(connection: Connection, calendar: Calendar, history: History) -> None:
    """Day-ahead errors of both models from 00:00 of each of the last whole days, with load before that alone."""
    last = calendar.day(history.end)
    scored: list[tuple[str, date, str, float, float, int]] = []
    for day in (last - timedelta(days=i) for i in range(SCORED_DAYS, 0, -1)):
        origin, end = calendar.bounds(day)
        past = history.before(origin)
        if past.shape[1] < DAYS_MIN * STEPS_PER_DAY:
            continue
        steps = (end - origin) // INTERVAL
        actual_w = history.before(end)[:, past.shape[1] :]
        guesses = {
            MODEL: _forecast(calendar, history, origin, steps).p50_w,
            NAIVE: seasonal_naive(past, steps, STEPS_PER_DAY),
        }
        known = np.isfinite(actual_w) & np.logical_and.reduce([np.isfinite(guess) for guess in guesses.values()])
        for model, guess in guesses.items():
            error_wh = np.where(known, np.abs(guess - actual_w), 0).sum(axis=1) * INTERVAL_H
            actual_wh = np.where(known, actual_w, 0).sum(axis=1) * INTERVAL_H
            scored += [
                (name, day, model, float(error_wh[i]), float(actual_wh[i]), int(known[i].sum()))
                for i, name in enumerate(history.series)
                if known[i].sum() >= _SCORED_SHARE * steps
            ]
    with connection.transaction(), connection.cursor() as cursor:
        cursor.executemany(
            """
            INSERT INTO forecast_accuracy (series, day, model, abs_error_wh, actual_wh, intervals)
            VALUES (%s, %s, %s, %s, %s, %s)
            ON CONFLICT (series, day, model) DO UPDATE SET
                abs_error_wh = excluded.abs_error_wh, actual_wh = excluded.actual_wh, intervals = excluded.intervals
            """,
            scored,
        )


def _forecast(calendar: Calendar, history: History, origin: datetime, steps: int) -> Forecast:
    past = history.before(origin)
    return forecast(past, calendar.minute_of_week(history.start, past.shape[1] + steps), steps, STEPS_PER_DAY)


def _finite_or(values: NDArray[np.float64], instead: NDArray[np.float64]) -> NDArray[np.float64]:
    """A band that nothing is known about yet has no width."""
    return np.where(np.isfinite(values), values, instead)


_HISTORY: Final = """
    SELECT series, array_agg(start ORDER BY start), array_agg(supplied_wh ORDER BY start)
    FROM load WHERE supplied_wh IS NOT NULL AND start >= %(from)s AND start < %(until)s
    GROUP BY series ORDER BY series
"""
