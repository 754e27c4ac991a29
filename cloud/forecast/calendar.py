"""Which days are worked: weekends, public holidays, and weekend days that are worked instead (调休).

From the package ``holidays``. China's 调休 days are announced a year ahead and known as far as the installed
release knows them; rows of one's own go before.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date, timedelta
from typing import Final

import holidays
import numpy as np
from numpy.typing import NDArray

WORKING: Final = 0
SATURDAY: Final = 1
SUNDAY: Final = 2
HOLIDAY: Final = 3
WORKED_WEEKEND: Final = 4

_DAY: Final = timedelta(days=1)
_MARGIN: Final = 16 * _DAY  # a run of days off that begins before the first day is numbered from its beginning
_LONG: Final = 3  # holidays in a run from which the weekends that touch it belong to it
_SPRING: Final = "Chinese New Year (Spring Festival)"
_EVE: Final = "Chinese New Year's Eve"


@dataclass(frozen=True, slots=True)
class Days:
    """D days in a row, as ``cloud.engines.forecast.Inputs`` wants them.

    day_kind: (D,) 0 working day, 1 Saturday-like (the first day of a weekend), 2 Sunday-like (its last), 3 public
    holiday, 4 working day made of a weekend day.  holiday: (D,) 0 none, else which one.  holiday_day: (D,) its n-th day
    off, counted from its own first day (what is off before that is day 1, too; New Year's Day of the lunar calendar is
    day 2, its eve day 1), 0 elsewhere.  names: of the holidays, number 1 first.
    """

    day_kind: NDArray[np.int8]
    holiday: NDArray[np.int16]
    holiday_day: NDArray[np.int16]
    names: tuple[str, ...]


def days(first: date, count: int, country: str | None, overrides: Mapping[date, tuple[int, str]] | None = None) -> Days:
    """``count`` days from ``first`` on.

    country: ISO code, with a subdivision where it has holidays of its own ("CN", "AU-VIC"); None: weekends alone.
    overrides: what is so whatever the package says: (kind, name of the holiday or "").
    Raises ValueError where the package does not know the country.
    """
    begin, end = first - _MARGIN, first + count * _DAY + _MARGIN
    told = _published(country, begin, end)
    ruled = overrides or {}
    dates = [begin + i * _DAY for i in range((end - begin).days)]
    kinds = {day: ruled[day][0] if day in ruled else told.kind(day) for day in dates}
    names = {
        day: (ruled[day][1] or "holiday") if day in ruled else told.names[day] for day in dates if kinds[day] == HOLIDAY
    }
    numbered: dict[date, tuple[str, int]] = {}
    for run in _runs(dates, kinds):
        numbered |= _numbered(run, names, ruled)
    order = sorted({name for name, _ in numbered.values()})
    number = {name: i + 1 for i, name in enumerate(order)}
    asked = dates[_MARGIN.days : _MARGIN.days + count]
    return Days(
        np.array([HOLIDAY if day in numbered else kinds[day] for day in asked], np.int8),
        np.array([number[numbered[day][0]] if day in numbered else 0 for day in asked], np.int16),
        np.array([numbered[day][1] if day in numbered else 0 for day in asked], np.int16),
        tuple(order),
    )


class _Published:
    """What the package says of the years asked for."""

    def __init__(self, known: holidays.HolidayBase | None, begin: date, end: date) -> None:
        self._known = known
        self.names: dict[date, str] = {}
        if known is not None:
            self.names = {day: name for day, name in known.items() if begin <= day < end}

    def weekend(self, day: date) -> bool:
        return day.weekday() >= 5 if self._known is None else self._known.is_weekend(day)

    def kind(self, day: date) -> int:
        if day in self.names:
            return HOLIDAY
        if not self.weekend(day):
            return WORKING
        if self._known is not None and day in self._known.weekend_workdays:
            return WORKED_WEEKEND
        return SATURDAY if self.weekend(day + _DAY) else SUNDAY


def _published(country: str | None, begin: date, end: date) -> _Published:
    if country is None:
        return _Published(None, begin, end)
    code, _, part = country.partition("-")
    years = range(begin.year, end.year + 1)
    try:
        known = holidays.country_holidays(code.upper(), subdiv=part.upper() or None)
        # The names must not depend on the language this machine speaks.
        language = "en_US" if "en_US" in known.supported_languages else None
        known = holidays.country_holidays(code.upper(), subdiv=part.upper() or None, years=years, language=language)
    except NotImplementedError as error:
        raise ValueError(
            f'country "{country}" is not known to the package holidays; an ISO code such as CN, NL or AU-VIC expected'
        ) from error
    return _Published(known, begin, end)


def _runs(dates: list[date], kinds: Mapping[date, int]) -> list[list[date]]:
    """Days off that follow each other."""
    runs: list[list[date]] = [[]]
    for day in dates:
        if kinds[day] in (WORKING, WORKED_WEEKEND):
            runs.append([])
        else:
            runs[-1].append(day)
    return runs


def _numbered(
    run: list[date], names: Mapping[date, str], ruled: Mapping[date, tuple[int, str]]
) -> dict[date, tuple[str, int]]:
    """Name and number of each day of the run that belongs to its holiday; the name is that of most of its days."""
    off = [day for day in run if day in names]
    if not off:
        return {}
    own = {day: [_own(part) for part in names[day].split("; ") if "substituted from" not in part] for day in off}
    counted = Counter(name for day in off for name in own[day])
    name = counted.most_common(1)[0][0] if counted else "Day off"
    proper = [day for day in off if name in own[day] and "(observed)" not in names[day] and _EVE not in names[day]]
    anchor = proper[0] if proper else off[0]
    if name == _SPRING:
        anchor -= _DAY
    belongs = run if len(off) >= _LONG else [day for day in run if off[0] <= day <= off[-1]]
    return {day: (name, max(1, (day - anchor).days + 1)) for day in belongs if day in names or day not in ruled}


def _own(name: str) -> str:
    """The name a holiday has every year."""
    name = name.replace(" (observed)", "").replace("Queen's ", "King's ").strip()
    return _SPRING if name in (_EVE, "Chinese New Year Extended Holiday") else name
