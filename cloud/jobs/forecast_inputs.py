"""What a forecast is made from: loads, calendar and weather as they stood at an origin, on one grid of steps."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from typing import Any, Final
from zoneinfo import ZoneInfo

import numpy as np
import psycopg
from numpy.typing import NDArray

from cloud.engines.forecast import DAYS_AHEAD, Inputs
from cloud.engines.forecast.coherence import ROOT
from cloud.forecast.calendar import HOLIDAY, SATURDAY, SUNDAY, WORKED_WEEKEND, WORKING, days
from cloud.jobs.calendar import INTERVAL, Calendar
from cloud.jobs.columns import INTERVAL_H, INTERVAL_S, read_columns
from cloud.jobs.completeness import SUBSTATION
from protocols.uplink import to_us

Connection = psycopg.Connection[tuple[Any, ...]]
Array = NDArray[np.float64]

STEPS_PER_DAY: Final = 96
DAYS_MAX: Final = 3 * 366
# A year of 9 series is nothing and of 1,000 half a gigabyte: with more of them the history is shorter.
VALUES_MAX: Final = 20_000_000
_DAYS_MIN_READ: Final = 70
# Late readings of older days are seen when the next day begins and everything is read again.
_FRESH: Final = timedelta(days=3)
# A head meter that has been away for longer does not hold the origin back.
_STRAGGLER: Final = timedelta(hours=1) // INTERVAL
_WEATHER_GAP: Final = timedelta(hours=3) // INTERVAL
KINDS: Final = {
    "working": WORKING, "saturday": SATURDAY, "sunday": SUNDAY, "holiday": HOLIDAY, "worked_weekend": WORKED_WEEKEND,
}  # fmt: skip
_COUNTRIES: Final = {
    "Asia/Shanghai": "CN", "Asia/Urumqi": "CN", "Asia/Hong_Kong": "HK", "Asia/Singapore": "SG", "Europe/Berlin": "DE",
    "Europe/London": "GB", "Europe/Paris": "FR", "Europe/Madrid": "ES", "Europe/Rome": "IT", "Europe/Amsterdam": "NL",
    "America/New_York": "US", "America/Chicago": "US", "America/Los_Angeles": "US", "Australia/Sydney": "AU-NSW",
    "Australia/Melbourne": "AU-VIC", "Asia/Tokyo": "JP", "Asia/Kolkata": "IN",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class WeatherColumn:
    """One column as known at an origin. ``values``: (T,); ``lead``: steps from the origin on for which it is known."""

    source: str
    column: str
    available_until: datetime
    values: Array
    lead: int


@dataclass
class Loads:
    """Loads of all registered series, kept between two runs; ``read`` brings them up to date.

    load_w: (S, T) mean power in the T intervals from ``start`` on, NaN where missing.  ``start`` is 00:00 of a day in
    the zone's standard time, since a grid has no summer time.  parents: (S,) row of the feeder or substation a series
    adds up to, ``ROOT`` where none.
    """

    calendar: Calendar
    series: tuple[str, ...] = ()
    parents: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))
    start: datetime = datetime(1970, 1, 1, tzinfo=UTC)
    load_w: Array = field(default_factory=lambda: np.empty((0, 0)))
    end: datetime = datetime(1970, 1, 1, tzinfo=UTC)
    version: int = 0  # one more when rows or steps have moved
    _read: datetime | None = None
    _asked: tuple[str, ...] = ()  # those without any load, too

    @property
    def length(self) -> int:
        """Steps of history."""
        return (self.end - self.start) // INTERVAL

    def step(self, moment: datetime) -> int:
        return (moment - self.start) // INTERVAL

    def read(self, connection: Connection, now: datetime, *, whole: bool = False) -> None:
        """Every series up to the newest mark that the areas which are still heard have in common.

        Reads the last days; all of them when asked to, once a day, and after the registry changed.
        """
        parent_of: dict[str, str | None] = dict(connection.execute(_SERIES, {"substation": SUBSTATION}).fetchall())
        if (
            whole or self._read is None or self.calendar.day(now) != self.calendar.day(self._read)
            or parent_of.keys() != set(self._asked)
        ):  # fmt: skip
            self._read_whole(connection, now, parent_of)
        else:
            self._fill(connection, max(self.start, now - _FRESH), now)
        self._read = now

    def _read_whole(self, connection: Connection, now: datetime, parent_of: Mapping[str, str | None]) -> None:
        self._asked = self.series = tuple(sorted(parent_of))
        kept = max(_DAYS_MIN_READ, min(DAYS_MAX, VALUES_MAX // STEPS_PER_DAY // max(1, len(self.series))))
        first = connection.execute("SELECT min(start) FROM load").fetchone()
        oldest = max(now - timedelta(days=kept), first[0] if first and first[0] else now)
        self.start = standard_midnight(self.calendar.zone, oldest)
        until = standard_midnight(self.calendar.zone, now) + timedelta(days=2)
        self.load_w = np.full((len(self.series), (until - self.start) // INTERVAL), np.nan)
        self._fill(connection, self.start, now)
        known = np.any(np.isfinite(self.load_w), axis=1)  # a series nothing is known of is no series
        self.series = tuple(name for name, there in zip(self.series, known, strict=True) if there)
        self.load_w = self.load_w[known]
        row = {name: i for i, name in enumerate(self.series)}
        self.version += 1
        self.parents = np.array([row.get(parent_of[name] or "", ROOT) for name in self.series], np.int64)

    def _fill(self, connection: Connection, since: datetime, until: datetime) -> None:
        with connection.transaction(), connection.cursor() as cursor:
            asked = {"series": list(self.series), "from": since, "until": until}
            rows = read_columns(cursor, _LOAD, asked, {"row": "bigint", "start": "timestamptz", "wh": "bigint"})
        self.load_w[:, max(0, self.step(since)) :] = np.nan
        at = (rows["start"] - to_us(self.start)) // (INTERVAL_S * 1_000_000)
        there = (at >= 0) & (at < self.load_w.shape[1])
        self.load_w[rows["row"][there] - 1, at[there]] = rows["wh"][there] / INTERVAL_H
        self._find_end()

    def _find_end(self) -> None:
        known = np.isfinite(self.load_w)
        if not known.any():
            self.end = self.start
            return
        last = np.where(known.any(axis=1), known.shape[1] - np.argmax(known[:, ::-1], axis=1), 0)
        areas = np.array([name.startswith("area:") for name in self.series])
        heard = last[areas] if last[areas].any() else last
        self.end = self.start + int(heard[heard >= heard.max() - _STRAGGLER].min()) * INTERVAL

    def inputs(self, connection: Connection, country: str | None, steps: int, weather: list[WeatherColumn]) -> Inputs:
        """The whole history up to its end, and ``steps`` beyond it."""
        total = self.length + steps
        load_w = np.full((len(self.series), total), np.nan)
        load_w[:, : self.length] = self.load_w[:, : self.length]
        kinds = days(
            self.calendar.day(self.start + timedelta(hours=2)),  # the standard day, in summer time as well
            -(-total // STEPS_PER_DAY) + DAYS_AHEAD,
            country,
            _overrides(connection),
        )
        known = np.full((len(weather), total), np.nan)
        for row, column in zip(known, weather, strict=True):
            row[: len(column.values)] = column.values[:total]
        local = self.start + standard_offset(self.calendar.zone, self.start)
        return Inputs(
            load=load_w,
            step_minutes=INTERVAL_S // 60,
            start=np.datetime64(local.replace(tzinfo=None), "m"),
            day_kind=kinds.day_kind,
            holiday=kinds.holiday,
            holiday_day=kinds.holiday_day,
            weather=known,
            weather_lead=np.array([column.lead for column in weather], np.int64),
        )

    def weather(self, connection: Connection, origin: datetime, steps: int) -> list[WeatherColumn]:
        """Every column as it was known at ``origin``, on the grid up to ``steps`` beyond it."""
        asked = {"from": self.start, "until": origin + (steps + _WEATHER_GAP) * INTERVAL, "origin": origin}
        rows = connection.execute(_WEATHER, asked).fetchall()
        first, grid = self.step(origin), np.arange(self.step(origin) + steps)
        columns = []
        for source, column, available_until, at_s, value in rows:
            at = (np.array(at_s) - self.start.timestamp()) // INTERVAL_S
            values = np.interp(grid, at, np.array(value, float))
            after = np.minimum(np.searchsorted(at, grid), len(at) - 1)
            near = at[after] - at[np.maximum(after - 1, 0)] <= _WEATHER_GAP
            known = (grid <= at[-1]) & (grid >= at[0]) & (near | (at[after] == grid))
            values[~known] = np.nan
            ahead = np.flatnonzero(~known[first:])
            columns.append(
                WeatherColumn(source, column, available_until, values, int(ahead[0]) if len(ahead) else steps)
            )
        return columns


def country_of(zone: ZoneInfo) -> str | None:
    """Whose public holidays a zone keeps, where that is plain; None: none but those in ``calendar_day``."""
    return _COUNTRIES.get(zone.key)


def standard_offset(zone: ZoneInfo, moment: datetime) -> timedelta:
    """UTC offset of the zone's standard time in the year of ``moment``."""
    local = moment.astimezone(zone)
    return (local.utcoffset() or timedelta()) - (local.dst() or timedelta())


def standard_midnight(zone: ZoneInfo, moment: datetime) -> datetime:
    """The newest 00:00 of standard time not after ``moment``."""
    offset = standard_offset(zone, moment)
    return (moment.astimezone(UTC) + offset).replace(hour=0, minute=0, second=0, microsecond=0) - offset


def _overrides(connection: Connection) -> dict[date, tuple[int, str]]:
    return {
        day: (KINDS[kind], name)
        for day, kind, name in connection.execute("SELECT day, kind, name FROM calendar_day").fetchall()
    }


_SERIES: Final = """
    SELECT %(substation)s, NULL
    UNION ALL SELECT 'feeder:' || feeder_id, %(substation)s FROM feeder
    UNION ALL SELECT 'area:' || area_id, 'feeder:' || feeder_id FROM area
"""
_LOAD: Final = """
    SELECT n AS row, start, supplied_wh AS wh
    FROM load JOIN unnest(%(series)s::text[]) WITH ORDINALITY AS s(series, n) USING (series)
    WHERE supplied_wh IS NOT NULL AND start >= %(from)s AND start < %(until)s
"""
# What was said last about an instant, of what had been said by the origin.
_WEATHER: Final = """
    SELECT source, "column", max(available_at), array_agg(extract(epoch FROM at)::float8 ORDER BY at),
           array_agg(value ORDER BY at)
    FROM (SELECT DISTINCT ON (source, "column", at) * FROM weather
          WHERE at >= %(from)s AND at < %(until)s AND available_at <= %(origin)s
          ORDER BY source, "column", at, available_at DESC) AS newest
    GROUP BY source, "column" ORDER BY source, "column"
"""
