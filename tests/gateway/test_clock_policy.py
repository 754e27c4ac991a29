"""The policy that sets clocks, as properties: any line, any measurement, any moment."""

from datetime import UTC, datetime, timedelta, timezone
from math import floor

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from gateway.clocks.policy import Broadcast, Known, Leave, Offset, Policy, Write, decide

BEIJING = timezone(timedelta(hours=8))
DAY = timedelta(days=1)
NOON = datetime(2026, 3, 1, 4, tzinfo=UTC)
LIMIT_S = 60.0
LATE_S = 5.0  # what an order may be sent after its moment
QUARTER_S, HOUR_S = 900, 3600

Truth = dict[str, float]


@st.composite
def lines(draw: st.DrawFn, offsets: st.SearchStrategy[float]) -> tuple[list[Known], Truth, datetime]:
    """Meters with what was measured, what is true, and now. The truth is anywhere the measurement allows."""
    now = NOON + timedelta(seconds=draw(st.integers(0, 40 * 86_400)))
    in_order = draw(st.booleans())  # all heard lately, and none set today
    known, truth = [], {}
    for number in range(draw(st.integers(1, 5))):
        name = f"m{number}"
        true_s, unsure_s = draw(offsets), draw(st.floats(0.5, 8.0))
        measured_s = true_s + draw(st.floats(-1, 1)) * unsure_s
        age_s = draw(st.floats(0, 590 if in_order else 700))
        is_heard = in_order or draw(st.integers(0, 9)) > 0
        corrected_h = None if in_order else draw(st.none() | st.floats(0, 60))
        truth[name] = true_s
        known.append(
            Known(
                name,
                BEIJING,
                Offset(measured_s, unsure_s, now - timedelta(seconds=age_s)) if is_heard else None,
                None if corrected_h is None else now - timedelta(hours=corrected_h),
                wanted=number == 0 or draw(st.booleans()),
            )
        )
    return known, truth, now


SMALL = st.one_of(st.floats(20, 290), st.floats(-290, -20), st.floats(-1000, 1000), st.floats(-5, 5))
ANY = st.one_of(SMALL, st.floats(-4 * 86_400, 4 * 86_400))


def unsure_s(known: Known, at: datetime) -> float:
    assert known.offset is not None
    return known.offset.uncertainty_s + 1e-4 * (at - known.offset.at).total_seconds()


def marks_passed(at: datetime, old_s: float, new_s: float, period_s: int = QUARTER_S) -> int:
    """Multiples of the period on the local clock between two offsets, ends included."""
    local_s = at.timestamp() + 8 * 3600
    low, high = local_s + min(old_s, new_s), local_s + max(old_s, new_s)
    return floor(high / period_s) - floor(low / period_s) + (low % period_s == 0)


def outcomes(known: list[Known], at: datetime) -> list[tuple[float, float]]:
    """(lateness, error after) at the extremes: the frame took all or none of its way, and a second was cut off."""
    worst_s = max(unsure_s(meter, at) for meter in known)
    return [(late_s, error_s) for late_s in (0.0, LATE_S) for error_s in (-worst_s, 0.0, worst_s + 1)]


@settings(max_examples=400, deadline=None)
@given(lines(st.floats(20, 290)) | lines(st.floats(-290, -20)) | lines(SMALL), st.booleans(), st.floats(0, 100))
def test_a_broadcast_passes_no_mark_makes_nobody_worse_and_steps_five_minutes_at_most(
    line: tuple[list[Known], Truth, datetime], may_write: bool, over_s: float
) -> None:
    known, truth, now = line
    decision = decide(known, now, now + DAY, Policy(over_s, may_write))
    assume(isinstance(decision, Broadcast))
    assert isinstance(decision, Broadcast)
    at = decision.at
    assert now <= at <= now + DAY
    assert any(meter.wanted and abs(truth[meter.meter]) > over_s - 9 for meter in known)
    for meter in known:
        assert meter.offset is not None, "a meter that was not heard would be moved unseen"
        assert now - meter.offset.at <= timedelta(minutes=10)
        true_s = truth[meter.meter]
        assert abs(true_s) <= 300
        if meter.corrected_at is not None:
            assert meter.corrected_at.astimezone(BEIJING).date() < now.astimezone(BEIJING).date(), "once a day"
        for late_s, error_s in outcomes(known, now):
            sent_at = at + timedelta(seconds=late_s)
            assert marks_passed(sent_at, true_s, error_s) == 0
            assert abs(error_s) <= abs(true_s) + unsure_s(meter, now) + 1e-6
            for offset_s in (true_s, error_s):
                within_s = (sent_at.timestamp() + offset_s) % HOUR_S
                assert 290 < within_s < HOUR_S - 290, "meters freeze on the hour"


@settings(max_examples=150, deadline=None)
@given(lines(ANY), st.floats(0, 200), st.sampled_from([DAY, timedelta(hours=1)]))
def test_a_write_goes_to_one_wanted_meter_and_passes_a_mark_only_where_the_step_is_longer(
    line: tuple[list[Known], Truth, datetime], over_s: float, wait: timedelta
) -> None:
    known, truth, now = line
    decision = decide(known, now, now + wait, Policy(over_s, may_write=True))
    assume(isinstance(decision, Write))
    assert isinstance(decision, Write)
    at, meter = decision.at, next(meter for meter in known if meter.meter == decision.meter)
    assert now <= at <= now + wait
    assert meter.wanted
    assert meter.corrected_at is None or meter.corrected_at.astimezone(BEIJING).date() < now.astimezone(BEIJING).date()
    true_s = truth[meter.meter]
    assert abs(true_s) > over_s
    for late_s, error_s in outcomes([meter], now):
        sent_at = at + timedelta(seconds=late_s)
        passed = marks_passed(sent_at, true_s, error_s)
        assert abs(error_s) < abs(true_s) + 1e-6, "it gets better, surely"
        if abs(true_s) < 780:
            assert passed == 0
        else:
            assert passed <= abs(true_s) // QUARTER_S + 1
        if abs(true_s) < 20 * 3600 and wait == DAY:
            assert marks_passed(sent_at, true_s, error_s, 86_400) == 0, "no midnight is lived twice or skipped"
        for offset_s in (true_s, error_s):
            within_s = (sent_at.timestamp() + offset_s) % QUARTER_S
            assert 20 < within_s < QUARTER_S - 20


@settings(max_examples=200, deadline=None)
@given(st.lists(st.floats(70, 290), min_size=1, max_size=5), st.sampled_from([-1, 1]), st.integers(0, 86_400))
def test_a_line_whose_meters_are_all_off_is_set_within_the_hour(offsets: list[float], sign: int, later_s: int) -> None:
    """Not only never wrong: it does its work."""
    now = NOON + timedelta(seconds=later_s)
    known = [Known(f"m{i}", BEIJING, Offset(sign * off_s, 0.6, now)) for i, off_s in enumerate(offsets)]
    decision = decide(known, now, now + timedelta(hours=1), Policy(LIMIT_S, may_write=False))
    assert isinstance(decision, Broadcast)


@pytest.mark.parametrize("offset_s", [-400.0, 700.0, -7000.0, 86_400.0 * 3, -86_400.0 * 400])
def test_one_meter_far_off_is_written_to(offset_s: float) -> None:
    line = [at(offset_s, "far"), at(0.2, "right")]
    decision = decide(line, NOON, NOON + timedelta(hours=1), Policy(LIMIT_S, may_write=True))
    assert isinstance(decision, Write)
    assert decision.meter == "far"


def at(offset_s: float, meter: str = "m1", *, zone: timezone = BEIJING, hours_ago: float | None = None) -> Known:
    corrected_at = None if hours_ago is None else NOON - timedelta(hours=hours_ago)
    return Known(meter, zone, Offset(offset_s, 0.6, NOON), corrected_at)


SILENT = Known("m9", BEIJING, None)
OLD = Known("m8", BEIJING, Offset(90, 0.6, NOON - timedelta(minutes=11)))


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ([at(90), SILENT], "m9 does not answer"),
        ([at(90), OLD], "m8 does not answer"),
        ([at(90), at(301, "m2")], "m2 is +301 s off, 08H takes 5 minutes at most"),
        ([at(90), at(0.1, "m2")], "m2 is only +0.1 s off and might get worse"),
        ([at(90), at(90, "m2", hours_ago=2)], "m2 was set today already"),
        ([at(90), at(90, "m2", zone=UTC)], "different local times"),
    ],
)
def test_what_stands_against_a_broadcast_is_told_and_14h_takes_its_place(line: list[Known], reason: str) -> None:
    until = NOON + timedelta(hours=1)
    left = decide(line, NOON, until, Policy(LIMIT_S, may_write=False))
    assert isinstance(left, Leave)
    assert reason in left.why["m1"]
    assert "GRIDLOOM_645_PASSWORD" in left.why["m1"]
    assert isinstance(decide(line, NOON, until, Policy(LIMIT_S, may_write=True)), Write)


def test_a_meter_is_set_once_a_day_and_the_day_is_its_own() -> None:
    ten_past_midnight = datetime(2026, 2, 28, 16, 10, tzinfo=UTC)
    policy = Policy(LIMIT_S, may_write=True)
    for hours_ago, wanted in ((0.1, Leave), (0.5, Broadcast)):  # 00:04 and 23:40, in Beijing
        known = Known("m1", BEIJING, Offset(90, 0.6, ten_past_midnight), ten_past_midnight - timedelta(hours=hours_ago))
        assert isinstance(decide([known], ten_past_midnight, ten_past_midnight + DAY, policy), wanted)


def test_the_least_harmful_moment_of_a_long_step_spares_midnight_and_the_month() -> None:
    """A clock 6 h slow at 02:00 on the first: at once, the step would skip midnight and the end of the month."""
    two = datetime(2026, 2, 28, 18, 7, tzinfo=UTC)
    known = [Known("m1", BEIJING, Offset(-6 * 3600, 0.6, two))]
    decision = decide(known, two, two + DAY, Policy(LIMIT_S, may_write=True))
    assert isinstance(decision, Write)
    assert (decision.at - timedelta(hours=6)).astimezone(BEIJING).date() == decision.at.astimezone(BEIJING).date()
    soon = decide(known, two, two + timedelta(hours=1), Policy(LIMIT_S, may_write=True))
    assert isinstance(soon, Write), "who asks gets the best of the hour"


@given(st.floats(-100, 100), st.floats(0, 3), st.floats(0, 1))
def test_an_offset_holds_the_truth(true_s: float, trip_s: float, where: float) -> None:
    """The meter showed a whole second at some instant of the exchange."""
    asked_at = NOON
    answered_at = asked_at + timedelta(seconds=trip_s)
    shown_s = floor((asked_at + timedelta(seconds=where * trip_s + true_s)).timestamp())
    found = Offset.of(datetime.fromtimestamp(shown_s, UTC), asked_at, answered_at)
    assert abs(found.offset_s - true_s) <= found.uncertainty_s + 1e-5
    assert found.uncertainty_s == pytest.approx(trip_s / 2 + 0.5, abs=1e-5)
