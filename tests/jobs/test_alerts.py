"""Alert rules one by one: when they speak, when they stay silent, and when they cannot say."""

from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest

from cloud.jobs.alerts import (
    DRIFT,
    INCOMPLETE,
    LOSS,
    PEAK,
    SILENT,
    SUSPECT,
    AreaFacts,
    Expected,
    Loss,
    MeterFacts,
    SuspectFacts,
    Verdict,
    evaluate,
)
from cloud.jobs.calendar import Calendar, ceil_mark, floor_mark

NOW = datetime(2026, 3, 11, 9, 7, tzinfo=UTC)
MARK = datetime(2026, 3, 11, 9, 0, tzinfo=UTC)
CALENDAR = Calendar(ZoneInfo("Asia/Shanghai"))
AREA = AreaFacts("A1", "Mill Lane", "磨坊里", 100_000, -1, 8)
METERS = [MeterFacts(f"A1-C{i:02d}", "A1", "gw-a1", True, False, MARK, 0.0) for i in range(4)]


def judge(*areas: AreaFacts, meters: list[MeterFacts] | None = None, hours: float = 24) -> Verdict:
    return evaluate(areas, meters or [], now=NOW, lookahead=timedelta(hours=hours), calendar=CALENDAR)


def rules(verdict: Verdict) -> list[tuple[str, str]]:
    return [(finding.rule, finding.subject) for finding in verdict.findings]


def loss(day: str, percent: float, unexplained: float | None, aligned: float = 1.0) -> Loss:
    wh = None if unexplained is None else 1e6 * unexplained / 100
    return Loss(day, 1e6, 1e6 * (1 - percent / 100), wh, aligned)


@pytest.mark.parametrize(("hours", "found"), [(24, [(PEAK, "area:A1")]), (2, [])])
def test_a_peak_counts_within_the_lookahead(hours: float, found: list[tuple[str, str]]) -> None:
    ahead = [Expected(MARK, 90_000), Expected(MARK + timedelta(hours=3), 120_000)]
    verdict = judge(replace(AREA, forecast=ahead), hours=hours)
    assert rules(verdict) == found
    for finding in verdict.findings:
        assert "120 kW expected at 03-11 20:00, 120 %" in finding.message_en
        assert "预计 03-11 20:00 负荷 120 kW" in finding.message_zh
        assert finding.evidence["above_from"] == (MARK + timedelta(hours=3)).isoformat()


def test_a_measured_peak_counts_while_it_is_fresh() -> None:
    fresh, stale = (Expected(MARK - timedelta(hours=h), 130_000) for h in (0, 2))
    assert rules(judge(replace(AREA, load=fresh))) == [(PEAK, "area:A1")]
    assert rules(judge(replace(AREA, load=stale))) == []


@pytest.mark.parametrize(
    ("losses", "says"),
    [
        ([loss("2026-03-10", 9, 0.1)], "loss of 9.0 % on 2026-03-10"),
        ([loss("2026-03-10", -2, 0.1)], "negative loss of -2.0 %"),
        ([loss(f"2026-03-{d}", 4, 2.0) for d in (10, 9, 8)], "60 kWh in 3 days (2.0 % of supply)"),
        ([loss("2026-03-10", 4, 2.0)], None),  # one day proves nothing
        ([loss(f"2026-03-{d}", 4, 1.0) for d in (10, 9, 8)], None),
        ([loss("2026-03-10", 9, 9, aligned=0.5)], None),  # half a day is not judged
    ],
)
def test_loss_out_of_range(losses: list[Loss], says: str | None) -> None:
    verdict = judge(replace(AREA, losses=losses))
    assert [says in finding.message_en for finding in verdict.findings if says] == ([True] if says else [])
    assert len(verdict.findings) == (1 if says else 0)


def test_what_is_within_its_uncertainty_is_no_alert() -> None:
    """2 % unexplained on three days, unsure by 1 or by 3 % of supply; 9 % lost, where the state does not say high."""
    days = [loss(f"2026-03-{d}", 4, 2.0) for d in (10, 9, 8)]
    sure, unsure = (
        [replace(day, lo_wh=2e4 - wide, hi_wh=2e4 + wide, fed_in_wh=1e6, state="normal") for day in days]
        for wide in (1e4, 3e4)
    )
    (finding,) = judge(replace(AREA, losses=sure)).findings
    assert "60 kWh (30 to 90) in 3 days" in finding.message_en
    assert "60 kWh（30～90）" in finding.message_zh
    assert judge(replace(AREA, losses=unsure)).findings == ()
    near = replace(loss("2026-03-10", 9, 0.1), state="normal")
    assert judge(replace(AREA, losses=[near])).findings == ()
    assert rules(judge(replace(AREA, losses=[replace(near, state="high")]))) == [(LOSS, "area:A1")]


SUSPECTED = SuspectFacts(
    "A1-C14", "A1", "scaled", None, date(2026, 2, 4), 10_500_000, 9_000_000, 12_000_000, 30.2, "the balance misses …"
)


@pytest.mark.parametrize(
    ("facts", "en", "zh"),
    [
        (SUSPECTED, "a constant share is missing, since before 2026-02-04: 10,500 kWh (9,000 to 12,000) missing from",
         "恒定比例少计，早于 2026-02-04，未计入约 10,500 kWh（80% 区间 9,000～12,000）"),
        (replace(SUSPECTED, kind="night", since=datetime(2026, 2, 19, 16, tzinfo=UTC)),
         "it is missing at night, since 2026-02-20: 10,500 kWh", "夜间少计，自 2026-02-20 起"),
        (replace(SUSPECTED, kind="ct_ratio", stolen_wh=-5_000_000, lo_wh=-6_000_000, hi_wh=-4_000_000),
         "5,000 kWh (4,000 to 6,000) too much in its record", "多计约 5,000 kWh（80% 区间 4,000～6,000）"),
        (replace(SUSPECTED, kind="not_yet_known"), "not_yet_known, since before", "not_yet_known，早于"),
    ],
)  # fmt: skip
def test_a_named_suspect_is_told_with_what_to_do(facts: SuspectFacts, en: str, zh: str) -> None:
    verdict = evaluate([], [], suspects=[facts], now=NOW, lookahead=timedelta(hours=1), calendar=CALENDAR)
    (finding,) = verdict.findings
    assert (finding.rule, finding.subject, finding.severity) == (SUSPECT, "meter:A1-C14", "warning")
    assert en in finding.message_en
    assert "First check by which transformer and on which phases it is fed, then visit" in finding.message_en
    assert zh in finding.message_zh
    assert "请先核对户变关系和相位" in finding.message_zh


def test_without_facts_an_alert_stays_as_it_is() -> None:
    assert judge(AREA).undecided == {(PEAK, "area:A1"), (LOSS, "area:A1")}


def test_a_meter_is_silent_while_its_gateway_reads_the_others() -> None:
    late = replace(METERS[0], last_energy_at=MARK - timedelta(minutes=45))
    assert rules(judge(meters=[late, *METERS[1:]])) == [(SILENT, "meter:A1-C00")]
    assert rules(judge(meters=[replace(late, last_energy_at=None), *METERS[1:]])) == [(SILENT, "meter:A1-C00")]
    first_backfill = replace(late, last_energy_at=None, backfilling=True)
    assert rules(judge(meters=[first_backfill, *METERS[1:]])) == [], "its turn may still come"
    in_time = replace(late, last_energy_at=MARK - timedelta(minutes=30))
    assert rules(judge(meters=[in_time, *METERS[1:]])) == []


def test_a_gateway_that_is_away_says_nothing_about_its_meters() -> None:
    away = [replace(meter, online=False, last_energy_at=MARK - timedelta(days=1)) for meter in METERS]
    verdict = judge(meters=away)
    assert not verdict.findings
    assert (SILENT, "meter:A1-C00") in verdict.undecided


@pytest.mark.parametrize(("offset_s", "says"), [(59, None), (-61, "61 s behind"), (200, "200 s ahead")])
def test_a_clock_may_be_a_minute_off(offset_s: float, says: str | None) -> None:
    verdict = judge(meters=[replace(METERS[0], clock_offset_s=offset_s), *METERS[1:]])
    assert rules(verdict) == ([(DRIFT, "meter:A1-C00")] if says else [])
    assert all(says in finding.message_en for finding in verdict.findings if says)


def test_business_days_follow_the_zone() -> None:
    day = CALENDAR.day(datetime(2026, 3, 10, 16, tzinfo=UTC))
    assert day.isoformat() == "2026-03-11"
    assert CALENDAR.bounds(day)[0] == datetime(2026, 3, 10, 16, tzinfo=UTC)
    assert CALENDAR.over(day, datetime(2026, 1, 1, tzinfo=UTC), NOW) == 68
    assert CALENDAR.minute_of_week(datetime(2026, 3, 10, 16, tzinfo=UTC), 2).tolist() == [2 * 1440, 2 * 1440 + 15]
    berlin = Calendar(ZoneInfo("Europe/Berlin"))
    start, end = berlin.bounds(datetime(2026, 3, 29, tzinfo=UTC).date())
    assert end - start == timedelta(hours=23)
    assert (floor_mark(NOW), ceil_mark(NOW), ceil_mark(MARK)) == (MARK, MARK + timedelta(minutes=15), MARK)


@pytest.mark.parametrize(
    ("hour", "collected", "found"),
    [(9, 0.949, True), (9, 0.95, False), (9, None, False), (7, 0.2, None)],
)
def test_an_incomplete_day_is_told_in_the_morning(hour: int, collected: float | None, found: bool | None) -> None:
    """Before 08:00 at the site gateways still fill gaps: an alert from the day before stays as it is."""
    now = datetime(2026, 3, 11, hour, 30, tzinfo=CALENDAR.zone)
    area = replace(AREA, collected=collected, missing_for="meter_silent")
    verdict = evaluate([area], [], now=now, lookahead=timedelta(hours=1), calendar=CALENDAR)
    assert ((INCOMPLETE, "area:A1") in rules(verdict)) is bool(found)
    assert ((INCOMPLETE, "area:A1") in verdict.undecided) is (found is None)
    if found:
        [finding] = verdict.findings
        assert "94.9 % of yesterday's intervals are there, 95 % expected by 08:00" in finding.message_en
        assert "check their supply" in finding.message_en
        assert "电表失联" in finding.message_zh
