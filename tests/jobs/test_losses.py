"""Daily losses where something is missing: what is put in, what that costs in certainty, and when it is too much."""

from datetime import date, datetime, timedelta

import numpy as np
import pytest

from cloud.jobs.calendar import Calendar
from cloud.jobs.derive import drain
from cloud.jobs.losses import update_losses
from cloud.settings import zone
from tests.jobs.conftest import START, Store

CALENDAR = Calendar(zone())
TODAY = CALENDAR.day(START)
FIRST = CALENDAR.bounds(TODAY - timedelta(days=9))[0]
COLUMNS = (
    "supplied_wh, delivered_wh, technical_wh, unexplained_wh, unexplained_lo_wh, unexplained_hi_wh, fed_in_wh, aligned,"
    " filled, expected, state, reason"
)


def put_but(store: Store, silent: set[str], first: datetime, last: datetime) -> None:
    """All that the meters said, but that the silent ones said nothing at the marks in (first, last)."""
    everyone = {meter.point for meter in store.world.meters}
    store.put(FIRST, START, points=everyone - silent)
    store.put(FIRST, first, points=silent)
    store.put(last, START, points=silent)
    drain_all(store)


def drain_all(store: Store) -> None:
    while drain(store.connection, CALENDAR, START, chunks_max=4):
        pass


def loss_of(store: Store, area: str, day: date) -> dict[str, object]:
    update_losses(store.connection, CALENDAR, [(area, day)], first_mark=FIRST, now=START + timedelta(minutes=6))
    row = store.connection.execute(
        f"SELECT {COLUMNS} FROM loss_day WHERE area_id = %s AND day = %s",  # noqa: S608 our own names
        (area, day),
    ).fetchone()
    assert row
    return dict(zip(COLUMNS.split(", "), row, strict=True))


def shares_of(store: Store, area: str, first: datetime, last: datetime) -> dict[str, float]:
    """Each customer's largest share of what is delivered in one interval."""
    world = store.world
    world.extend(START.timestamp() + 1)
    a, b = (int((edge.timestamp() - world.zero_s) // 900) for edge in (first, last))
    rows = [row for row, meter in enumerate(world.meters) if meter.area == area and meter.role == "customer"]
    ratio = np.array([world.meters[row].ratio for row in rows])[:, None]
    drawn = np.diff(world.registers[np.array(rows), a : b + 1, 0].astype(np.int64)) * ratio
    largest = (drawn / drawn.sum(axis=0)).max(axis=1)
    return {world.meters[row].point: float(share) for row, share in zip(rows, largest, strict=True)}


@pytest.mark.parametrize("days_ago", [3, 1])
def test_a_customer_silent_for_a_day_is_taken_from_the_days_around(store: Store, days_ago: int) -> None:
    """An honest area: what is unexplained is 0, and the interval, wider than without a gap, has it."""
    day = TODAY - timedelta(days=days_ago)
    first, last = CALENDAR.bounds(day)
    shares = shares_of(store, "A5", FIRST, START)
    small = min(shares, key=lambda point: shares[point])
    put_but(store, {small}, first - timedelta(minutes=15), last + timedelta(minutes=15))
    whole, gap = loss_of(store, "A5", day - timedelta(days=1 + days_ago)), loss_of(store, "A5", day)
    assert (whole["aligned"], whole["filled"], whole["state"], whole["reason"]) == (96, 0, "normal", "")
    assert gap["state"] == "normal"
    assert gap["reason"] == f"no reading all day from {small}, taken from the days around; visit or replace"
    assert gap["filled"] == gap["aligned"]
    assert int(str(gap["aligned"])) > 48
    for loss in (whole, gap):
        low, rest, high = (float(str(loss[f"unexplained{name}_wh"])) for name in ("_lo", "", "_hi"))
        assert low < rest < high
        assert low - (high - low) < 0 < high + (high - low)
    width = [float(str(one["unexplained_hi_wh"])) - float(str(one["unexplained_lo_wh"])) for one in (whole, gap)]
    assert width[1] > 1.2 * width[0]


def test_a_large_customer_silent_for_a_day_is_too_much_to_put_in(store: Store) -> None:
    day = TODAY - timedelta(days=3)
    first, last = CALENDAR.bounds(day)
    shares = shares_of(store, "A5", FIRST, START)
    large = max(shares, key=lambda point: shares[point])
    put_but(store, {large}, first - timedelta(minutes=15), last + timedelta(minutes=15))
    loss = loss_of(store, "A5", day)
    assert (loss["state"], loss["supplied_wh"], loss["unexplained_lo_wh"]) == ("not_computable", None, None)
    assert loss["reason"] == f"no reading all day from {large}; visit or replace"


def test_a_day_chunk_and_a_day_alone_say_the_same(store: Store) -> None:
    """Backfills compute many days at once, live marks one."""
    shares = shares_of(store, "A5", FIRST, START)
    small = min(shares, key=lambda point: shares[point])
    gap = CALENDAR.bounds(TODAY - timedelta(days=3))[0]
    put_but(store, {small}, gap, gap + timedelta(hours=2))
    days = [TODAY - timedelta(days=n) for n in range(9)]
    alone = {day: loss_of(store, "A5", day) for day in days}
    now = START + timedelta(minutes=6)
    update_losses(store.connection, CALENDAR, [("A5", day) for day in days], first_mark=FIRST, now=now)
    rows = store.connection.execute(f"SELECT day, {COLUMNS} FROM loss_day WHERE area_id = 'A5'").fetchall()  # noqa: S608
    assert len(rows) == len(days)
    for day, *values in rows:
        near = 0.001 * float(str(alone[day]["supplied_wh"]))
        for value, before in zip(values, alone[day].values(), strict=True):
            assert value == (pytest.approx(before, abs=near) if isinstance(before, float) else before), day


def test_a_day_of_which_little_was_read_is_not_computable(store: Store) -> None:
    first, last = CALENDAR.bounds(TODAY - timedelta(days=2))
    store.put(FIRST, first + timedelta(hours=4))
    store.put(last, START)
    drain_all(store)
    loss = loss_of(store, "A2", TODAY - timedelta(days=2))
    assert (loss["aligned"], loss["state"], loss["supplied_wh"]) == (16, "not_computable", None)
    assert "too few" in str(loss["reason"])
    assert loss_of(store, "A2", TODAY)["expected"] == 68
