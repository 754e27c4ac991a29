"""Forecast runs of all series, how good the day-ahead ones were, and what stands in for one that is not."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta
from typing import Any, Final

import numpy as np
import psycopg
from numpy.typing import NDArray
from psycopg.types.json import Jsonb

from cloud.engines.forecast import LEVELS, MODEL, MODEL_VERSION, Forecasts, forecast
from cloud.engines.forecast.coherence import reconcile
from cloud.jobs.calendar import INTERVAL, Calendar
from cloud.jobs.columns import INTERVAL_H, read_columns
from cloud.jobs.forecast_inputs import STEPS_PER_DAY, Loads, WeatherColumn
from cloud.store.binary_copy import Field, encode, instant, reals
from protocols.uplink import to_us

logger = logging.getLogger(__name__)

Connection = psycopg.Connection[tuple[Any, ...]]
Array = NDArray[np.float64]

HORIZON: Final = timedelta(hours=36)
DAYS_MIN: Final = 3
NAIVE: Final = "seasonal_naive"
# The ensemble, with seasonal naive for those series of which it is the better one.
FALLBACK: Final = "fallback"
_NAIVE_MEMBER: Final = "naive7"
SCORED_DAYS: Final = 7
# Day-ahead forecasts of these days say how errors hang together; a day is scored where most of it was measured.
_PAST_DAYS: Final = 14
_SCORED_SHARE: Final = 0.9
# A run made later than this after its origin is a backtest: it may be made again when older readings have come in.
_IN_TIME: Final = timedelta(hours=6)
# Worse on the sum of a week, of which this many days could be scored.
JUDGED_DAYS: Final = 7
JUDGED_DAYS_MIN: Final = 5
# By less than this one of two is the better by chance.
WORSE_TIMES: Final = 1.05
# All runs for two days; then those from the beginning of a day, until `retention` takes them.
INTRADAY_KEPT: Final = timedelta(days=2)
_THINNED_MAX: Final = 8  # runs at a time
# Errors of neighbouring quarters of an hour say the same thing.
_ERROR_EVERY: Final = 4
_MEDIAN: Final = LEVELS.index(0.5)
_P10, _P90 = LEVELS.index(0.1), LEVELS.index(0.9)
_WQL: Final = [i for i, level in enumerate(LEVELS) if 0.1 <= level <= 0.9]


@dataclass(frozen=True, slots=True)
class Judged:
    """Day-ahead errors of a series over the last week, on the days that were scored."""

    series: str
    days: int
    error_wh: float
    naive_error_wh: float
    actual_wh: float

    @property
    def enough(self) -> bool:
        return self.days >= JUDGED_DAYS_MIN

    @property
    def worse(self) -> bool:
        return self.enough and self.error_wh > WORSE_TIMES * self.naive_error_wh


@dataclass
class Forecaster:
    """Forecasts from the loads it keeps; O past days, S series, H steps ahead.

    ``origins``: (O,) steps, the beginnings of the last days.  ``point``, ``naive``: (O, S, H) W from there, neither
    reconciled: their errors say how far each series may move until all add up.
    """

    calendar: Calendar
    country: str | None
    loads: Loads = field(init=False)
    origins: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))
    point: Array = field(default_factory=lambda: np.empty((0, 0, 0)))
    naive: Array = field(default_factory=lambda: np.empty((0, 0, 0)))

    _looked: tuple[int, date] | None = None
    _made: datetime | None = None

    def __post_init__(self) -> None:
        self.loads = Loads(self.calendar)

    def update(self, connection: Connection, now: datetime, *, grown: bool) -> None:
        """What is due now. ``grown``: the history has got longer by days at once, as a backfill does it."""
        loads = self.loads
        loads.read(connection, now, whole=grown)
        if loads.length < DAYS_MIN * STEPS_PER_DAY or not loads.series:
            return
        if self._looked != (looked := (loads.version, self.calendar.day(loads.end))):
            self.look_back(connection, now, again=grown)
            self.score(connection)
            self._looked = looked
        if grown or self._made is None or loads.end > self._made:
            self.run(connection, now)
            self._made = loads.end
            days = loads.length // STEPS_PER_DAY
            logger.info("forecast of %d series from %s, %d days of history", len(loads.series), loads.end, days)

    def run(self, connection: Connection, now: datetime) -> None:
        """Forecast from the end of the loads and store it."""
        loads, steps = self.loads, HORIZON // INTERVAL
        origin = np.array([loads.length])
        weather = loads.weather(connection, loads.end, steps)
        inputs = loads.inputs(connection, self.country, steps, weather)
        made = forecast(inputs, origin, steps)
        errors = self._errors(self.point, loads.length)
        told = self._told(now, weather, made)
        with connection.transaction():
            _store(connection, loads, MODEL, loads.end, now, *_coherent(made, 0, loads.parents, errors), told)
            worse = {one.series for one in judge(connection, self.calendar.day(now)) if one.worse}
            rows = [i for i, name in enumerate(loads.series) if name in worse]
            if rows:
                naive = forecast(inputs, origin, steps, members=(_NAIVE_MEMBER,))
                for mixed, instead in ((made.point, naive.point), (made.quantiles, naive.quantiles)):
                    mixed[:, rows] = instead[:, rows]
                errors[:, rows] = 0.0  # what stands in stays as it is, and the others move
                told = {**told, "fallback": sorted(worse)}
                _store(connection, loads, FALLBACK, loads.end, now, *_coherent(made, 0, loads.parents, errors), told)
            connection.execute(
                _THIN, {"until": now - INTRADAY_KEPT, "zone": str(self.calendar.zone), "runs": _THINNED_MAX}
            )

    def look_back(self, connection: Connection, now: datetime, *, again: bool) -> None:
        """Forecast the last days from their beginnings, with loads before those alone; store what no run foretold.

        ``again``: also what an earlier look back stored, since older readings have come in.
        """
        loads, steps = self.loads, HORIZON // INTERVAL
        begins = [start for _, start, _ in self._days(_PAST_DAYS)]
        parts = []
        told: dict[datetime, dict[str, object]] = {}
        for group in self._groups(connection, begins):
            weather = loads.weather(connection, group[-1], steps)
            inputs = loads.inputs(connection, self.country, steps, weather)
            origins = np.array([loads.step(begin) for begin in group])
            made = forecast(inputs, origins, steps)
            naive = forecast(inputs, origins, steps, members=(_NAIVE_MEMBER,), levels=(0.5,))
            parts.append((origins, made, naive.point))
            told |= dict.fromkeys(group, self._told(now, weather, made))
        order = np.argsort(np.concatenate([part[0] for part in parts])) if parts else np.empty(0, np.int64)
        if not len(order):
            self.origins = order
            return
        self.origins = np.concatenate([part[0] for part in parts])[order]
        self.point = np.concatenate([part[1].point for part in parts])[order]
        self.naive = np.concatenate([part[2] for part in parts])[order]
        quantiles = np.concatenate([part[1].quantiles for part in parts])[order]
        with connection.transaction():
            for begin in self._unforetold(connection, begins[-SCORED_DAYS:], again=again):
                at = int(np.searchsorted(self.origins, loads.step(begin)))
                errors = self._errors(self.point, loads.step(begin))
                fan = reconcile(self.point[at], quantiles[at], loads.parents, errors)
                _store(connection, loads, MODEL, begin, now, *_in_order(*fan), told[begin])

    def score(self, connection: Connection) -> None:
        """Errors of the stored day-ahead forecasts of the last whole days, and of seasonal naive beside them."""
        loads = self.loads
        scored: list[tuple[str, date, str, float, float, int, float | None, int | None]] = []
        for day, begin, end in self._days(SCORED_DAYS):
            point_w, quantiles_w = _stored(connection, loads.series, begin, end)
            origin, steps = loads.step(begin), (end - begin) // INTERVAL
            actual_w = loads.load_w[:, origin : origin + steps]
            naive_w = self.naive[np.searchsorted(self.origins, origin), :, :steps]
            known = np.isfinite(actual_w) & np.isfinite(point_w) & np.isfinite(naive_w)
            count = known.sum(axis=1)
            pinball_w = _pinball(actual_w, quantiles_w)
            inside = (actual_w >= quantiles_w[..., _P10]) & (actual_w <= quantiles_w[..., _P90]) & known
            energy_wh, point_wh, naive_wh, pinball_wh = (
                np.where(known, np.abs(values), 0).sum(axis=1) * INTERVAL_H
                for values in (actual_w, point_w - actual_w, naive_w - actual_w, pinball_w)
            )
            for i in np.flatnonzero(count >= _SCORED_SHARE * steps):
                about = (loads.series[i], day)
                common = (float(energy_wh[i]), int(count[i]))
                scored.append((*about, MODEL, float(point_wh[i]), *common, float(pinball_wh[i]), int(inside[i].sum())))
                scored.append((*about, NAIVE, float(naive_wh[i]), *common, None, None))
        if scored:
            connection.execute(_SCORE, [list(column) for column in zip(*scored, strict=True)])

    def _days(self, count: int) -> list[tuple[date, datetime, datetime]]:
        """The last ``count`` whole days that are over and have enough history before them: day, begin, end."""
        last = self.calendar.day(self.loads.end)
        days = [last - timedelta(days=i) for i in range(count, 0, -1)]
        first = self.loads.start + DAYS_MIN * STEPS_PER_DAY * INTERVAL
        return [(day, *self.calendar.bounds(day)) for day in days if self.calendar.bounds(day)[0] >= first]

    def _groups(self, connection: Connection, begins: Sequence[datetime]) -> list[list[datetime]]:
        """Origins that one call can serve: at one time of the standard day, and without weather, which each of them
        knew another forecast of."""
        if connection.execute("SELECT 1 FROM weather LIMIT 1").fetchone():
            return [[begin] for begin in begins]
        groups: dict[int, list[datetime]] = {}
        for begin in begins:
            groups.setdefault(self.loads.step(begin) % STEPS_PER_DAY, []).append(begin)
        return list(groups.values())

    def _unforetold(self, connection: Connection, begins: Sequence[datetime], *, again: bool) -> list[datetime]:
        """Those that no run was made from in time; what was made later goes, if it is to be made again."""
        asked = {"model": MODEL, "origins": list(begins), "late": _IN_TIME}
        if again:
            connection.execute(_FORGET, asked)
        there = {origin for (origin,) in connection.execute(_FORETOLD, asked).fetchall()}
        return [begin for begin in begins if begin not in there]

    def _errors(self, point: Array, before: int) -> Array:
        """(E, S) W of day-ahead forecasts ``point`` (O, S, H) whose day ended by step ``before``."""
        parts = [
            (self.loads.load_w[:, origin : origin + STEPS_PER_DAY] - point[i, :, :STEPS_PER_DAY])[:, ::_ERROR_EVERY].T
            for i, origin in enumerate(self.origins)
            if origin + STEPS_PER_DAY <= before
        ]
        return np.concatenate([np.empty((0, len(self.loads.series))), *parts])

    def _told(self, now: datetime, weather: Sequence[WeatherColumn], made: Forecasts) -> dict[str, object]:
        """What a run was made from."""
        return {
            "load": {"from": self.loads.start.isoformat(), "read_at": now.isoformat()},
            "calendar": self.country,
            "weather": [
                {
                    "source": one.source,
                    "column": one.column,
                    "available_until": one.available_until.isoformat(),
                    "ahead_h": one.lead * INTERVAL_H,
                }
                for one in weather
            ],
            "members": {name: round(float(np.nanmean(share)), 3) for name, share in made.weights.items()},
        }


def judge(connection: Connection, today: date) -> list[Judged]:
    """Every series that was scored of late, by its last week."""
    return [
        Judged(*row)
        for row in connection.execute(
            _JUDGE,
            {"model": MODEL, "naive": NAIVE, "from": today - timedelta(days=JUDGED_DAYS), "today": today},
        ).fetchall()
    ]


def _coherent(made: Forecasts, origin: int, parents: NDArray[np.int64], errors: Array) -> tuple[Array, Array]:
    return _in_order(*reconcile(made.point[origin], made.quantiles[origin], parents, errors))


def _in_order(point: Array, quantiles: Array) -> tuple[Array, Array]:
    """The point is the median, and no quantile lies on its other side."""
    quantiles[..., :_MEDIAN] = np.minimum(quantiles[..., :_MEDIAN], point[..., None])
    quantiles[..., _MEDIAN + 1 :] = np.maximum(quantiles[..., _MEDIAN + 1 :], point[..., None])
    quantiles[..., _MEDIAN] = point
    return point, quantiles


def _pinball(actual: Array, quantiles: Array) -> Array:
    """Mean pinball loss over the levels 0.1 … 0.9.  actual: (S, H); quantiles: (S, H, Q)."""
    total = np.zeros_like(actual)
    for i in _WQL:
        gap = actual - quantiles[..., i]
        total += np.maximum(LEVELS[i] * gap, (LEVELS[i] - 1) * gap)
    return total / len(_WQL)


def _store(
    connection: Connection, loads: Loads, model: str, origin: datetime, now: datetime,
    point: Array, quantiles: Array, told: Mapping[str, object],
) -> None:  # fmt: skip
    """One run. point: (S, H) W; quantiles: (S, H, Q) W; series without a forecast (NaN) have no rows."""
    row = connection.execute(
        """
        INSERT INTO forecast_run
            (origin, made_at, model, model_version, horizon_h, inputs_until, levels, inputs)
        VALUES (%s, %s, %s, %s, %s, %s, %s, %s) RETURNING run_id
        """,
        (origin, now, model, MODEL_VERSION, HORIZON // timedelta(hours=1), origin, list(LEVELS), Jsonb(told)),
    ).fetchone()
    assert row
    names = np.array([name.encode() for name in loads.series])
    length = np.char.str_len(names)
    steps = point.shape[1]
    starts_us = to_us(origin) + np.arange(steps) * (INTERVAL // timedelta(microseconds=1))
    whole = np.isfinite(quantiles).all(axis=2) & np.isfinite(point)
    for size in np.unique(length):  # COPY wants fields of one size
        of, step = np.nonzero(whole & (length == size)[:, None])
        fan = quantiles[of, step]
        fields = [
            Field(np.full(len(of), row[0]), ">i8"),
            Field(names[of], f"S{size}"),
            instant(starts_us[step]),
            *(Field(fan[:, i], ">f8") for i in (_P10, _MEDIAN, _P90)),
            reals(fan),
        ]
        with connection.cursor() as cursor, cursor.copy(_COPY) as copy:
            copy.write(encode(fields))


def _stored(connection: Connection, series: Sequence[str], begin: datetime, end: datetime) -> tuple[Array, Array]:
    """The first day-ahead forecast from ``begin``: points (S, H), quantiles (S, H, Q), NaN where there is none."""
    point = np.full((len(series), (end - begin) // INTERVAL), np.nan)
    quantiles = np.full((*point.shape, len(LEVELS)), np.nan)
    levels = [f"q{i}" for i in range(len(LEVELS))]
    kinds = {"row": "bigint", "start": "timestamptz", "p50_w": "double precision"} | dict.fromkeys(levels, "real")
    with connection.transaction(), connection.cursor() as cursor:
        asked = {"series": list(series), "model": MODEL, "origin": begin, "end": end}
        rows = read_columns(cursor, _STORED, asked, kinds)
    at = rows["row"] - 1, (rows["start"] - to_us(begin)) // (INTERVAL // timedelta(microseconds=1))
    point[at] = rows["p50_w"]
    quantiles[at] = np.stack([rows[name] for name in levels], axis=1)
    return point, quantiles


_COPY: Final = "COPY forecast (run_id, series, start, p10_w, p50_w, p90_w, quantiles) FROM STDIN (FORMAT binary)"
_STORED: Final = f"""
    SELECT n AS row, start, p50_w, {", ".join(f"quantiles[{i + 1}]" for i in range(len(LEVELS)))}
    FROM forecast JOIN unnest(%(series)s::text[]) WITH ORDINALITY AS s(series, n) USING (series)
    WHERE run_id = (SELECT min(run_id) FROM forecast_run WHERE model = %(model)s AND origin = %(origin)s)
      AND start < %(end)s AND cardinality(quantiles) = {len(LEVELS)}
"""  # noqa: S608
_FORETOLD: Final = "SELECT DISTINCT origin FROM forecast_run WHERE model = %(model)s AND origin = ANY(%(origins)s)"
_FORGET: Final = """
    DELETE FROM forecast_run
    WHERE model = %(model)s AND origin = ANY(%(origins)s) AND made_at > origin + %(late)s::interval
"""
_THIN: Final = """
    DELETE FROM forecast_run WHERE run_id IN (
        SELECT run_id FROM forecast_run
        WHERE origin < %(until)s AND (origin AT TIME ZONE %(zone)s)::time <> '00:00' ORDER BY origin LIMIT %(runs)s)
"""
_SCORE: Final = """
    INSERT INTO forecast_accuracy (series, day, model, abs_error_wh, actual_wh, intervals, pinball_wh, inside_80)
    SELECT * FROM unnest(%s::text[], %s::date[], %s::text[], %s::float8[], %s::float8[], %s::int[], %s::float8[],
                         %s::int[])
    ON CONFLICT (series, day, model) DO UPDATE SET
        abs_error_wh = excluded.abs_error_wh, actual_wh = excluded.actual_wh, intervals = excluded.intervals,
        pinball_wh = excluded.pinball_wh, inside_80 = excluded.inside_80
"""
_JUDGE: Final = """
    SELECT series, count(*) FILTER (WHERE day >= %(from)s),
           coalesce(sum(e.abs_error_wh) FILTER (WHERE day >= %(from)s), 0),
           coalesce(sum(n.abs_error_wh) FILTER (WHERE day >= %(from)s), 0),
           coalesce(sum(e.actual_wh) FILTER (WHERE day >= %(from)s), 0)
    FROM forecast_accuracy e JOIN forecast_accuracy n USING (series, day)
    WHERE e.model = %(model)s AND n.model = %(naive)s
      AND day >= %(from)s::date - 7 AND day < %(today)s
    GROUP BY series ORDER BY series
"""
