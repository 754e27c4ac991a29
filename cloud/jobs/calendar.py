"""Marks and business days of a site."""

from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from typing import Final
from zoneinfo import ZoneInfo

import numpy as np
from numpy.typing import NDArray

from cloud.jobs.columns import INTERVAL_S

INTERVAL: Final[timedelta] = timedelta(seconds=INTERVAL_S)


def floor_mark(moment: datetime) -> datetime:
    """The newest mark not after ``moment``."""
    return datetime.fromtimestamp(moment.timestamp() // INTERVAL_S * INTERVAL_S, UTC)


def ceil_mark(moment: datetime) -> datetime:
    """The first mark not before ``moment``."""
    return datetime.fromtimestamp(-(-moment.timestamp() // INTERVAL_S) * INTERVAL_S, UTC)


@dataclass(frozen=True, slots=True)
class Calendar:
    """Business days run from midnight to midnight in the site's zone."""

    zone: ZoneInfo

    def day(self, moment: datetime) -> date:
        return moment.astimezone(self.zone).date()

    def bounds(self, day: date) -> tuple[datetime, datetime]:
        """The day as [start, end), UTC; 23 or 25 hours where the zone changes its clocks."""
        first, last = (datetime.combine(d, time(), self.zone) for d in (day, day + timedelta(days=1)))
        return first.astimezone(UTC), last.astimezone(UTC)

    def days(self, start: datetime, end: datetime) -> list[date]:
        """Every day that has a part in [start, end)."""
        if start >= end:
            return []
        first, last = self.day(start), self.day(end - timedelta(microseconds=1))
        return [first + timedelta(days=i) for i in range((last - first).days + 1)]

    def minute_of_week(self, start: datetime, steps: int) -> NDArray[np.int64]:
        """(steps,) local minutes since Monday 00:00 at the start of each interval from ``start`` on."""
        minutes = np.empty(steps, np.int64)
        for day in self.days(start, start + steps * INTERVAL):
            first, last = self.bounds(day)
            a, b = (int(np.clip((edge - start) // INTERVAL, 0, steps)) for edge in (first, last))
            since_midnight = (start - first) // timedelta(minutes=1) + np.arange(a, b) * (INTERVAL_S // 60)
            minutes[a:b] = day.weekday() * 1440 + since_midnight
        return minutes

    def over(self, day: date, first: datetime, now: datetime) -> int:
        """Intervals of the day that are over by now, counted from the site's first mark."""
        start, end = self.bounds(day)
        return max(0, (min(floor_mark(now), end) - max(first, start)) // INTERVAL)
