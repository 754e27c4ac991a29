"""Forecasts on real databases: what is stored adds up and says what it was made from, and a bad model gives way."""

from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np
import psycopg
import pytest

from cloud.engines.forecast import LEVELS, MODEL
from cloud.jobs.calendar import INTERVAL, Calendar
from cloud.jobs.forecast_inputs import Loads, country_of
from cloud.jobs.forecasts import FALLBACK, NAIVE, Forecaster, judge
from cloud.jobs.watch import update_alerts
from cloud.store.migrations import migrate

Connection = psycopg.Connection[tuple[Any, ...]]

SHANGHAI = Calendar(ZoneInfo("Asia/Shanghai"))
TODAY = date(2026, 3, 11)
MIDNIGHT = SHANGHAI.bounds(TODAY)[0]
DAYS = 40
AREAS = {"A1": "F1", "A2": "F1", "A3": "F2"}


def watts(days: int, seed: int = 1) -> np.ndarray:
    """(3, T) W of the areas: an evening peak, quieter weekends, a level that wanders, noise; the third feeds back."""
    rng = np.random.default_rng(seed)
    step = np.arange(days * 96)
    hour, day = step % 96 / 4, step // 96
    shape = 1 + 0.5 * np.exp(-(((hour - 19) / 2.5) ** 2)) - 0.2 * ((day - days + 2) % 7 >= 5)
    level = 1 + 0.05 * np.cumsum(rng.normal(0, 1, (3, days)), axis=1)[:, day]
    load = np.array([[4e4], [7e4], [2e4]]) * shape * level * (1 + rng.normal(0, 0.03, (3, len(step))))
    load[2] -= 3e4 * np.maximum(0, np.sin((hour - 6) / 12 * np.pi))
    return load


def put(connection: Connection, series: dict[str, np.ndarray], start: datetime) -> None:
    with connection.cursor() as cursor, cursor.copy(
        "COPY load (series, start, supplied_wh, meters_expected, meters_received) FROM STDIN"
    ) as copy:  # fmt: skip
        for name, load_w in series.items():
            for i, w in enumerate(load_w):
                if np.isfinite(w):
                    copy.write_row((name, start + i * INTERVAL, round(w / 4), 1, 1))


def put_all(connection: Connection, areas_w: np.ndarray, start: datetime) -> None:
    wh = np.round(areas_w / 4) * 4
    names = {f"area:{area}": wh[i] for i, area in enumerate(AREAS)}
    sums = {"feeder:F1": wh[0] + wh[1], "feeder:F2": wh[2], "substation:S1": wh.sum(axis=0)}
    put(connection, names | sums, start)


@pytest.fixture
def site(empty_database: str) -> Iterator[Connection]:
    """Two feeders and three areas, without load."""
    migrate(empty_database)
    with psycopg.connect(empty_database, autocommit=True, options="-c timezone=UTC") as connection:
        connection.execute("INSERT INTO feeder VALUES ('F1', 'North', '北线', 2e5), ('F2', 'South', '南线', 1e5)")
        for area, feeder in AREAS.items():
            connection.execute(
                "INSERT INTO area (area_id, feeder_id, name_en, name_zh, gateway, capacity_w)"
                " VALUES (%s, %s, 'Area', '台区', %s, 1e6)",
                (area, feeder, f"gw-{area}"),
            )
        yield connection


@pytest.fixture
def filled(site: Connection) -> Connection:
    put_all(site, watts(DAYS), MIDNIGHT - timedelta(days=DAYS))
    return site


def one(connection: Connection, query: str, *parameters: Any) -> tuple[Any, ...]:
    row = connection.execute(query, parameters).fetchone()
    assert row
    return row


def fans(connection: Connection, model: str, origin: datetime) -> dict[str, np.ndarray]:
    """(H, Q) W of each series of the newest run."""
    rows = connection.execute(
        "SELECT series, quantiles FROM forecast WHERE run_id = (SELECT max(run_id) FROM forecast_run"
        " WHERE model = %s AND origin = %s) ORDER BY series, start",
        (model, origin),
    ).fetchall()
    return {name: np.array([fan for series, fan in rows if series == name]) for name in {row[0] for row in rows}}


def adds_up(found: dict[str, np.ndarray]) -> bool:
    median = {name: fan[:, LEVELS.index(0.5)] for name, fan in found.items()}
    return (
        np.allclose(median["area:A1"] + median["area:A2"], median["feeder:F1"], atol=0.1)
        and np.allclose(median["area:A3"], median["feeder:F2"], atol=0.1)
        and np.allclose(median["feeder:F1"] + median["feeder:F2"], median["substation:S1"], atol=0.1)
    )


def test_a_cycle_stores_what_adds_up_and_says_what_it_was_made_from(filled: Connection) -> None:
    forecaster = Forecaster(SHANGHAI, "CN")
    forecaster.update(filled, MIDNIGHT + timedelta(minutes=4), grown=True)
    (version, horizon_h, until, levels, inputs) = one(
        filled,
        "SELECT model_version, horizon_h, inputs_until, levels, inputs FROM forecast_run"
        " WHERE origin = %s AND model = %s",
        MIDNIGHT, MODEL,
    )  # fmt: skip
    assert version
    assert (horizon_h, until) == (36, MIDNIGHT)
    assert levels == pytest.approx(LEVELS)
    assert inputs["calendar"] == "CN"
    assert datetime.fromisoformat(inputs["load"]["from"]) == MIDNIGHT - timedelta(days=DAYS)
    assert inputs["weather"] == []
    assert sum(inputs["members"].values()) == pytest.approx(1, abs=0.02)

    found = fans(filled, MODEL, MIDNIGHT)
    assert len(found) == 6
    assert all(fan.shape == (144, len(LEVELS)) for fan in found.values())
    assert all((np.diff(fan, axis=1) >= 0).all() for fan in found.values())
    assert adds_up(found)
    # The columns of old are three of the levels.
    assert one(
        filled,
        "SELECT max(abs(p10_w - quantiles[2])), max(abs(p50_w - quantiles[6])), max(abs(p90_w - quantiles[10])) "
        "FROM forecast",
    ) == pytest.approx((0, 0, 0), abs=0.1)

    # The next mark brings the next run, and no mark brings none.
    put_all(filled, watts(DAYS + 1)[:, -96:-95], MIDNIGHT)
    for minutes in (19, 20):
        forecaster.update(filled, MIDNIGHT + timedelta(minutes=minutes), grown=False)
    later = one(filled, "SELECT count(*), max(origin) FROM forecast_run WHERE made_at > %s", MIDNIGHT + INTERVAL)
    assert later == (1, MIDNIGHT + INTERVAL)


def test_accuracy_is_that_of_the_stored_forecasts(filled: Connection) -> None:
    Forecaster(SHANGHAI, None).update(filled, MIDNIGHT + timedelta(minutes=4), grown=True)
    assert one(filled, "SELECT count(DISTINCT day), count(DISTINCT series), count(*) FROM forecast_accuracy") == (
        7,
        6,
        84,
    )
    day, (begin, end) = TODAY - timedelta(days=2), SHANGHAI.bounds(TODAY - timedelta(days=2))
    fan = fans(filled, MODEL, begin)["area:A2"][:96]
    rows = filled.execute(
        "SELECT supplied_wh * 4.0 FROM load WHERE series = 'area:A2' AND start >= %s AND start < %s ORDER BY start",
        (begin, end),
    ).fetchall()
    actual = np.array([float(row[0]) for row in rows])
    pinball = [
        np.maximum(level * (actual - fan[:, i]), (level - 1) * (actual - fan[:, i])).sum() / 4
        for i, level in enumerate(LEVELS)
        if 0.1 <= level <= 0.9
    ]
    inside = ((actual >= fan[:, 1]) & (actual <= fan[:, -2])).sum()
    columns = "abs_error_wh, actual_wh, intervals, pinball_wh, inside_80"
    query = f"SELECT {columns} FROM forecast_accuracy WHERE (series, day, model) = ('area:A2', %s, %s)"  # noqa: S608
    assert one(filled, query, day, MODEL) == pytest.approx(
        (np.abs(fan[:, 5] - actual).sum() / 4, actual.sum() / 4, 96, np.mean(pinball), inside), rel=1e-5
    )
    week_ago = filled.execute(
        "SELECT supplied_wh * 4.0 FROM load WHERE series = 'area:A2' AND start >= %s AND start < %s ORDER BY start",
        (begin - timedelta(days=7), end - timedelta(days=7)),
    ).fetchall()
    naive = np.array([float(row[0]) for row in week_ago])
    assert one(filled, query, day, NAIVE)[0] == pytest.approx(np.abs(naive - actual).sum() / 4, rel=1e-5)


def test_only_a_backtest_is_made_again_when_older_readings_come(filled: Connection) -> None:
    forecaster = Forecaster(SHANGHAI, None)
    yesterday = SHANGHAI.bounds(TODAY - timedelta(days=1))[0]
    forecaster.update(filled, MIDNIGHT + timedelta(minutes=4), grown=True)
    filled.execute("UPDATE forecast_run SET made_at = origin + interval '4 min' WHERE origin = %s", (yesterday,))
    before: dict[datetime, int] = dict(
        filled.execute("SELECT origin, max(run_id) FROM forecast_run GROUP BY 1").fetchall()
    )
    forecaster.update(filled, MIDNIGHT + timedelta(minutes=9), grown=True)
    after: dict[datetime, int] = dict(
        filled.execute("SELECT origin, max(run_id) FROM forecast_run GROUP BY 1").fetchall()
    )
    assert before.keys() == after.keys()
    assert [origin for origin in before if before[origin] == after[origin]] == [yesterday]


def test_a_model_worse_than_naive_for_a_week_gives_way_until_it_is_better(filled: Connection) -> None:
    forecaster, now = Forecaster(SHANGHAI, None), MIDNIGHT + timedelta(minutes=4)
    forecaster.update(filled, now, grown=True)
    filled.execute("DELETE FROM forecast_run WHERE model = %s", (FALLBACK,))

    def alerts() -> list[tuple[Any, ...]]:
        update_alerts(filled, SHANGHAI, now=now, lookahead=timedelta(hours=24))
        return filled.execute(
            "SELECT subject, message_en, message_zh FROM alert WHERE rule = 'forecast_worse_than_naive'"
            " AND closed_at IS NULL"
        ).fetchall()

    def set_error(share: float) -> None:
        """Of the naive one's: this of A1, half of it of the others."""
        filled.execute(
            "UPDATE forecast_accuracy e SET abs_error_wh = n.abs_error_wh * CASE e.series WHEN 'area:A1' THEN %s"
            " ELSE 0.5 END FROM forecast_accuracy n"
            " WHERE (e.series, e.day) = (n.series, n.day) AND n.model = %s AND e.model = %s",
            (share, NAIVE, MODEL),
        )

    set_error(0.9)
    assert alerts() == []
    forecaster.run(filled, now)
    assert one(filled, "SELECT count(*) FROM forecast_run WHERE model = %s", FALLBACK) == (0,)

    set_error(1.3)
    [(subject, english, chinese)] = alerts()
    assert subject == "area:A1"
    assert "Area A1" in english
    assert "7 days" in english
    assert "上周同日" in chinese
    forecaster.run(filled, now)
    mixed, ours = fans(filled, FALLBACK, MIDNIGHT), fans(filled, MODEL, MIDNIGHT)
    assert adds_up(mixed)
    load_w = watts(DAYS)
    # By weekday, then moved until it adds up: near the load of a week before, and nearer than the ensemble's.
    naive = load_w[0, -7 * 96 :][:96]
    off = {name: np.abs(fan["area:A1"][:96, 5] - naive).mean() for name, fan in (("mixed", mixed), ("ours", ours))}
    assert off["mixed"] < 0.5 * off["ours"]
    assert one(filled, "SELECT inputs -> 'fallback' FROM forecast_run WHERE model = %s", FALLBACK) == (["area:A1"],)

    # Too few days say nothing: the alert stays.
    filled.execute("DELETE FROM forecast_accuracy WHERE series = 'area:A1' AND day >= %s", (TODAY - timedelta(days=3),))
    assert len(alerts()) == 1
    forecaster.score(filled)
    set_error(0.8)
    assert alerts() == []
    forecaster.run(filled, now)
    assert one(filled, "SELECT count(*) FROM forecast_run WHERE model = %s", FALLBACK) == (1,)
    assert not any(facts.worse for facts in judge(filled, TODAY) if facts.series == "area:A1")


def test_weather_is_read_as_it_was_known_at_the_origin(filled: Connection) -> None:
    first = MIDNIGHT - timedelta(days=DAYS)
    filled.execute(
        """
        INSERT INTO weather (source, "column", at, available_at, value)
        SELECT 'station', 'temperature_c', at, at + interval '10 min', 10
        FROM generate_series(%(first)s, %(last)s, interval '1 hour') AS at
        UNION ALL
        SELECT 'model', 'temperature_c', at, issued, extract(epoch FROM issued - %(first)s) / 86400
        FROM generate_series(%(first)s, %(last)s + interval '1 day', interval '1 day') AS issued,
             generate_series(issued, issued + interval '60 hours', interval '1 hour') AS at
        """,
        {"first": first, "last": MIDNIGHT},
    )
    loads = Loads(SHANGHAI)
    loads.read(filled, MIDNIGHT + timedelta(minutes=4))
    origin = MIDNIGHT - timedelta(hours=6)
    model, station = loads.weather(filled, origin, 144)
    assert (model.source, station.source) == ("model", "station")
    assert station.lead == 0
    assert model.lead == 144
    assert model.available_until == MIDNIGHT - timedelta(days=1)
    at = loads.step(origin)
    assert np.isnan(station.values[at:]).all()
    # Issued on the day before, whatever was issued since.
    assert (model.values[at : at + 144] == DAYS - 1).all()
    assert loads.weather(filled, MIDNIGHT, 144)[0].values[-1] == DAYS

    forecaster = Forecaster(SHANGHAI, None)
    forecaster.update(filled, MIDNIGHT + timedelta(minutes=4), grown=True)
    (told,) = one(filled, "SELECT inputs -> 'weather' FROM forecast_run WHERE origin = %s", MIDNIGHT)
    assert [(row["source"], row["column"], row["ahead_h"]) for row in told] == [
        ("model", "temperature_c", 36.0), ("station", "temperature_c", 0.0),
    ]  # fmt: skip
    assert datetime.fromisoformat(told[1]["available_until"]) <= MIDNIGHT


def test_days_of_ones_own_go_before_the_published_ones(filled: Connection) -> None:
    filled.execute("INSERT INTO calendar_day VALUES (%s, 'holiday', 'Founders day')", (TODAY,))
    loads = Loads(SHANGHAI)
    loads.read(filled, MIDNIGHT + timedelta(minutes=4))
    inputs = loads.inputs(filled, "CN", 144, [])
    assert inputs.start == np.datetime64("2026-01-30T00:00")
    assert inputs.day_kind[DAYS] == 3
    assert inputs.holiday_day[DAYS] == 1
    assert inputs.day_kind[DAYS + 1] == 0
    assert inputs.day_kind[date(2026, 2, 28).toordinal() - date(2026, 1, 30).toordinal()] == 4  # after Spring Festival
    assert country_of(ZoneInfo("Asia/Shanghai")) == "CN"


def test_gaps_zeros_a_new_meter_and_one_that_is_silent(site: Connection) -> None:
    load_w = watts(DAYS)
    load_w[0, 10 * 96 : 12 * 96] = np.nan
    load_w[1] = 0.0
    load_w[2, : -3 * 96] = np.nan
    put_all(site, load_w, MIDNIGHT - timedelta(days=DAYS))
    site.execute("INSERT INTO area VALUES ('A4', 'F2', 'Never', '从未', 'gw-A4', 1e5)")
    Forecaster(SHANGHAI, "CN").update(site, MIDNIGHT + timedelta(minutes=4), grown=True)
    found = fans(site, MODEL, MIDNIGHT)
    assert found.keys() >= {"area:A1", "area:A2", "area:A3", "feeder:F1"}
    assert "area:A4" not in found
    assert all(len(fan) == 144 for fan in found.values())
    assert np.abs(found["area:A2"]).max() < 0.05 * np.abs(found["area:A1"]).max()


def test_summer_time_moves_the_day_and_not_the_grid(site: Connection) -> None:
    """Clocks in Berlin went forward on 29 March 2026; days after it begin at 23:00 of standard time."""
    berlin = Calendar(ZoneInfo("Europe/Berlin"))
    now = berlin.bounds(date(2026, 4, 1))[0]
    put_all(site, watts(DAYS), now - timedelta(days=DAYS))
    forecaster = Forecaster(berlin, "DE")
    forecaster.update(site, now + timedelta(minutes=4), grown=True)
    assert forecaster.loads.start.astimezone(UTC).hour == 23
    short = one(site, "SELECT min(intervals), max(intervals) FROM forecast_accuracy WHERE day = '2026-03-29'")
    assert short == (92, 92)
    assert one(site, "SELECT count(DISTINCT day) FROM forecast_accuracy") == (7,)


def test_runs_within_the_day_go_after_two_days(filled: Connection) -> None:
    for hours in (72, 71, 49, 47, 1):
        filled.execute(
            "INSERT INTO forecast_run (origin, made_at, model, model_version, horizon_h, inputs_until)"
            " VALUES (%(at)s, %(at)s, 'x', '1', 36, %(at)s)",
            {"at": MIDNIGHT - timedelta(hours=hours)},
        )
    Forecaster(SHANGHAI, None).update(filled, MIDNIGHT + timedelta(minutes=4), grown=True)
    kept = filled.execute("SELECT origin FROM forecast_run WHERE model = 'x' ORDER BY 1").fetchall()
    assert [(MIDNIGHT - origin) // timedelta(hours=1) for (origin,) in kept] == [72, 47, 1]
