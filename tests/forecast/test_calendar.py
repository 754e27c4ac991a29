"""Days off: what was announced, and how they are numbered."""

from datetime import date, timedelta

import pytest

from cloud.forecast.calendar import Days, days


def at(found: Days, first: date, day: date) -> tuple[int, str, int]:
    i = (day - first).days
    number = int(found.holiday[i])
    return int(found.day_kind[i]), found.names[number - 1] if number else "", int(found.holiday_day[i])


def test_golden_week_of_2024_and_the_weekend_days_worked_for_it() -> None:
    """国办发明电〔2023〕7号: off from 1 to 7 October, worked on Sunday 29 September and Saturday 12 October."""
    first = date(2024, 9, 1)
    found = days(first, 61, "CN")
    for n in range(7):
        assert at(found, first, date(2024, 10, 1) + timedelta(n)) == (3, "National Day", n + 1)
    assert at(found, first, date(2024, 9, 29)) == (4, "", 0)
    assert at(found, first, date(2024, 10, 12)) == (4, "", 0)
    assert at(found, first, date(2024, 9, 28)) == (1, "", 0)
    assert at(found, first, date(2024, 10, 13)) == (2, "", 0)
    assert at(found, first, date(2024, 10, 8)) == (0, "", 0)


def test_lunar_new_years_day_has_the_same_number_every_year() -> None:
    """Whether or not the eve was a day off, and whatever the date of the lunar calendar."""
    first = date(2012, 1, 1)
    found = days(first, 15 * 366, "CN")
    spring = {at(found, first, day)[1:] for day in (
        date(2013, 2, 10), date(2015, 2, 19), date(2020, 1, 25), date(2024, 2, 10), date(2025, 1, 29),
        date(2026, 2, 17),
    )}  # fmt: skip
    assert spring == {("Chinese New Year (Spring Festival)", 2)}
    assert at(found, first, date(2025, 1, 28))[1:] == ("Chinese New Year (Spring Festival)", 1)
    assert at(found, first, date(2024, 2, 17))[0] == 3  # the Saturday that ends eight days off
    assert at(found, first, date(2024, 2, 18))[0] == 4


def test_a_window_that_begins_within_a_festival_counts_on() -> None:
    first = date(2024, 10, 3)
    assert at(days(first, 3, "CN"), first, first) == (3, "National Day", 3)


def test_a_part_of_a_country_has_holidays_of_its_own() -> None:
    first = date(2013, 11, 1)
    assert at(days(first, 10, "AU-VIC"), first, date(2013, 11, 5))[1] == "Melbourne Cup Day"
    assert at(days(first, 10, "AU"), first, date(2013, 11, 5)) == (0, "", 0)


def test_a_weekend_beside_one_holiday_stays_a_weekend() -> None:
    first = date(2021, 9, 1)
    found = days(first, 10, "US")
    assert at(found, first, date(2021, 9, 4))[0] == 1
    assert at(found, first, date(2021, 9, 5))[0] == 2
    assert at(found, first, date(2021, 9, 6)) == (3, "Labor Day", 1)


def test_weekends_follow_the_country() -> None:
    first = date(2025, 3, 1)  # a Saturday
    assert days(first, 7, None).day_kind.tolist() == [1, 2, 0, 0, 0, 0, 0]
    assert days(date(2023, 2, 2), 3, "EG").day_kind.tolist() == [0, 1, 2]  # Thursday, Friday, Saturday


def test_a_table_of_ones_own_goes_before_the_package() -> None:
    first = date(2024, 10, 1)
    own = {
        date(2024, 10, 4): (0, ""),
        date(2024, 10, 12): (1, ""),
        date(2024, 10, 15): (3, "National Day"),
        date(2024, 10, 16): (3, ""),
    }
    found = days(first, 20, "CN", own)
    assert at(found, first, date(2024, 10, 4)) == (0, "", 0)
    assert at(found, first, date(2024, 10, 12))[0] == 1
    assert at(found, first, date(2024, 10, 15))[:2] == (3, "National Day")
    assert at(found, first, date(2024, 10, 16))[0] == 3


@pytest.mark.parametrize("country", ["XX", "AU-QQ"])
def test_an_unknown_country_is_told(country: str) -> None:
    with pytest.raises(ValueError, match=f'country "{country}" is not known'):
        days(date(2024, 1, 1), 3, country)


@pytest.mark.parametrize(
    ("off", "until", "worked"),
    [  # the State Council's notices on each year's holidays
        (date(2023, 1, 21), date(2023, 1, 27), [date(2023, 1, 28), date(2023, 1, 29)]),
        (date(2023, 9, 29), date(2023, 10, 6), [date(2023, 10, 7), date(2023, 10, 8)]),
        (date(2024, 2, 10), date(2024, 2, 17), [date(2024, 2, 4), date(2024, 2, 18)]),
        (date(2024, 5, 1), date(2024, 5, 5), [date(2024, 4, 28), date(2024, 5, 11)]),
        (date(2025, 1, 28), date(2025, 2, 4), [date(2025, 1, 26), date(2025, 2, 8)]),
        (date(2025, 10, 1), date(2025, 10, 8), [date(2025, 9, 28), date(2025, 10, 11)]),
        (date(2026, 2, 15), date(2026, 2, 23), [date(2026, 2, 14), date(2026, 2, 28)]),
        (date(2026, 10, 1), date(2026, 10, 7), [date(2026, 9, 20), date(2026, 10, 10)]),
    ],
)
def test_long_holidays_of_china_and_the_days_worked_for_them(off: date, until: date, worked: list[date]) -> None:
    first = date(2023, 1, 1)
    found = days(first, 4 * 365, "CN")
    assert all(at(found, first, off + timedelta(n))[0] == 3 for n in range((until - off).days + 1))
    assert at(found, first, off - timedelta(1))[0] != 3
    assert at(found, first, until + timedelta(1))[0] != 3
    assert [at(found, first, day)[0] for day in worked] == [4] * len(worked)
