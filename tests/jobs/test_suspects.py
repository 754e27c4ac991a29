"""The daily search for suspects: what it takes, what it cannot search, and what it leaves."""

from datetime import date, datetime, timedelta
from zoneinfo import ZoneInfo

import numpy as np
import pytest

from cloud.jobs import suspects
from cloud.jobs.areas import load_areas
from cloud.jobs.calendar import INTERVAL, Calendar
from cloud.jobs.derive import drain
from cloud.jobs.retention import retain
from cloud.jobs.suspects import Search, search
from cloud.settings import zone
from tests.jobs.conftest import DAYS, START, Store

CALENDAR = Calendar(zone())
THROUGH = CALENDAR.day(START) - timedelta(days=1)


def put(store: Store, days: int, *silent: str) -> None:
    points = {meter.point for meter in store.world.meters} - set(silent)
    store.put(CALENDAR.bounds(THROUGH - timedelta(days=days - 1))[0], START, points=points)
    while drain(store.connection, CALENDAR, START, chunks_max=8):
        pass


def searches(store: Store) -> dict[str, tuple[date, date, int, str]]:
    rows = store.connection.execute("SELECT area_id, day, from_day, customers, reason FROM loss_search").fetchall()
    return {area: (day, first, customers, reason) for area, day, first, customers, reason in rows}


def test_a_search_names_who_steals_and_the_next_one_of_the_day_takes_its_place(store: Store) -> None:
    """With the rights that work has, a day later and with the days that retention keeps."""
    put(store, DAYS - 1)
    store.connection.execute("SET ROLE gridloom_work")
    for _ in range(2):
        searched, left_out, _ = search(store.connection, CALENDAR, THROUGH, START)
        assert (searched, left_out) == (6, 0)
    first = THROUGH - timedelta(days=DAYS - 2)
    assert {tuple(found[:2]) for found in searches(store).values()} == {(THROUGH, first)}
    rows = store.connection.execute(
        "SELECT point, rank, since, stolen_lo_wh <= stolen_wh AND stolen_wh <= stolen_hi_wh"
        " FROM loss_suspect JOIN metering_point USING (point_id) ORDER BY rank"
    ).fetchall()
    scaled = next(meter.point for meter in store.world.meters if meter.habit.value == "scaled")
    # Since before the record.
    assert (scaled, 1, None, True) in rows
    assert retain(store.connection, START + timedelta(days=390)) == []
    assert {one.data for one in retain(store.connection, START + timedelta(days=402))} == {"loss_search"}
    assert store.connection.execute("SELECT count(*) FROM loss_suspect").fetchone() == (0,)


def test_what_cannot_be_searched_says_why(store: Store) -> None:
    put(store, 10)
    assert search(store.connection, CALENDAR, THROUGH, START) == (0, 6, 0)
    assert {found[3] for found in searches(store).values()} == {"10 whole days on record, 14 needed"}


def test_an_area_with_a_meter_that_was_never_read_is_left_out(store: Store) -> None:
    """What it drew would be taken for a theft."""
    put(store, 20, "A2-C01")
    assert search(store.connection, CALENDAR, THROUGH, START)[:2] == (5, 1)
    assert searches(store)["A2"][2:] == (0, "no reading in 20 days from A2-C01; visit or replace")
    assert searches(store)["A1"][3] == ""


def test_a_search_is_due_once_a_day_and_waits_for_a_backfill(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[date] = []
    monkeypatch.setattr(Search, "_run", lambda self, through, now: begun.append(through))
    watch = Search(store.dsn, CALENDAR)

    def step(now: datetime) -> None:
        watch.step(store.connection, now)
        if watch._thread is not None:
            watch._thread.join()

    store.online(START)
    store.connection.execute("UPDATE gateway_status SET status = '{\"backfill_left\": 3}'")
    step(START)
    assert begun == [], "the past is on its way"
    store.connection.execute("UPDATE gateway_status SET status = '{\"backfill_left\": 0}'")
    for hours in (0, 1, 7.5):  # 00:30 of the next day: its last readings may be on their way
        step(START + timedelta(hours=hours))
    assert begun == [THROUGH]
    step(START + timedelta(hours=8.5))
    assert begun == [THROUGH, THROUGH + timedelta(days=1)]
    watch.past_changed()
    watch._again_s = 0.0
    step(START + timedelta(hours=9))
    step(START + timedelta(hours=9))
    assert begun[2:] == [THROUGH + timedelta(days=1)]


def test_days_of_23_and_25_hours_keep_the_time_of_day() -> None:
    """Copenhagen, 28 March (23 h) and 31 October (25 h) of 2027."""
    calendar = Calendar(ZoneInfo("Europe/Copenhagen"))
    for around, hours in ((date(2027, 3, 28), 23), (date(2027, 10, 31), 25)):
        first, last = around - timedelta(days=2), around + timedelta(days=2)
        steps, there = suspects._local_steps(calendar, first, last)
        assert len(steps) == 5 * 96
        assert (np.diff(steps) >= 0).all()
        assert there.sum() == 5 * 96 - (4 if hours == 23 else 0)
        origin = calendar.bounds(first)[0]
        for number in range(5):
            begin = origin + int(steps[96 * number]) * INTERVAL
            assert begin.astimezone(calendar.zone).hour == 0
        noon = origin + int(steps[4 * 96 + 48]) * INTERVAL
        assert noon.astimezone(calendar.zone).hour == 12


def test_areas_of_one_feeder_are_searched_together_as_far_as_they_fit(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def groups() -> list[list[str]]:
        areas = load_areas(store.connection, None, START)
        return [[area.area_id for area in group] for group in suspects._together(store.connection, areas)]

    assert groups() == [["A1", "A2", "A3"], ["A4", "A5", "A6"]]
    monkeypatch.setattr(suspects, "TOGETHER_MAX", 11)
    assert groups() == [["A1", "A2"], ["A3"], ["A4", "A5"], ["A6"]]
    monkeypatch.setattr(suspects, "TOGETHER_MAX", 3)
    assert groups() == [["A1"], ["A2"], ["A3"], ["A4"], ["A5"], ["A6"]]
