"""Every text of SQL Grafana will send, run on a real PostgreSQL by a login that may do no more than Grafana's."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import psycopg
import pytest

from dashboards.__main__ import DASHBOARDS
from dashboards.macros import expand
from dashboards.rules import RULES

START, END = datetime(2026, 2, 27, tzinfo=UTC), datetime(2026, 3, 3, tzinfo=UTC)
ZONE = "Asia/Shanghai"
VARIABLES = {"zone": ZONE, "area": ["A1", "A2", "no'such"], "series": "area:A1"}


@dataclass(frozen=True)
class Sql:
    name: str
    text: str
    series: bool


def every_sql() -> Iterator[Sql]:
    """All that a built dashboard holds, found by walking its JSON as Grafana does."""
    for dashboard in DASHBOARDS:
        document: Any = dashboard.json(ZONE)
        for variable in document["templating"]["list"]:
            if variable["type"] == "query":
                yield Sql(f"{dashboard.uid}/${variable['name']}", variable["query"], False)
        for mark in document["annotations"]["list"]:
            yield Sql(f"{dashboard.uid}/{mark['name']}", mark["target"]["rawSql"], False)
        for panel in document["panels"]:
            for target in panel["targets"]:
                name = f"{dashboard.uid}/{panel['title']}/{target['refId']}"
                yield Sql(name, target["rawSql"], target["format"] == "time_series")
    for rule in RULES:
        data: Any = rule.json("gridloom")["data"]
        yield Sql(rule.uid, data[0]["model"]["rawSql"], False)


def run(dsn: str, sql: str, **variables: str) -> tuple[list[str], list[tuple[Any, ...]]]:
    with psycopg.connect(dsn) as connection:
        cursor = connection.execute(expand(sql, {**VARIABLES, **variables}, START, END))
        return [column.name for column in cursor.description or []], cursor.fetchall()


@pytest.mark.parametrize("sql", list(every_sql()), ids=lambda sql: re.sub(" · [^/]*", "", sql.name))
def test_grafana_may_run_it_and_gets_rows(sql: Sql, as_grafana: str) -> None:
    columns, rows = run(as_grafana, sql.text)
    assert rows, "the rows of the fixture should show"
    assert len(set(columns)) == len(columns)
    if sql.series:
        assert columns[0] == "time"
        times = [row[0] for row in rows]
        assert times == sorted(times), "Grafana wants series sorted by time"
        assert all(time.tzinfo for time in times)
        numbers = [i for i, name in enumerate(columns) if name not in ("time", "metric")]
        # With a metric column Grafana names a line by it only where there is one number.
        assert numbers and ("metric" not in columns or len(numbers) == 1)


@pytest.mark.parametrize("series", ["substation:S1", "feeder:F1", "area:A1", "area:none", "it's"])
def test_the_load_dashboard_works_for_every_kind_of_series(series: str, as_grafana: str) -> None:
    for sql in every_sql():
        if sql.name.startswith("gridloom-load/"):
            run(as_grafana, sql.text, series=series)


def find(name: str) -> str:
    [text] = [sql.text for sql in every_sql() if sql.name == name]
    return text


def test_suspects_are_those_of_the_newest_search(as_grafana: str) -> None:
    columns, rows = run(as_grafana, find("gridloom-loss/Who to visit first · 优先排查/A"))
    assert len(rows) == 1
    told = dict(zip(columns, rows[0], strict=True))
    assert (told["Kind · 类型"], told["Since · 起始"], told["Missing · 少计"]) == ("scaled", "< 2026-02-01", 99000)


def test_the_newest_forecast_is_the_one_with_the_newest_origin(as_grafana: str) -> None:
    """Run 2 was made later, but from an earlier origin: a backtest."""
    _, rows = run(as_grafana, find("gridloom-load/Load, forecast and capacity · 负荷、预测与限额/B"))
    assert {row[2] for row in rows} == {40001.0}
    assert len(rows) == 25


@pytest.mark.parametrize(
    ("series", "capacity_w"),
    [("area:A1", 300_000), ("feeder:F1", 900_000), ("substation:S1", 900_000), ("area:x", None)],
)
def test_capacity_follows_the_series(series: str, capacity_w: float | None, as_grafana: str) -> None:
    _, rows = run(as_grafana, find("gridloom-load/Load, forecast and capacity · 负荷、预测与限额/C"), series=series)
    assert [row[1] for row in rows] == ([] if capacity_w is None else [capacity_w] * 2)


def test_load_is_mean_power_of_the_interval(as_grafana: str) -> None:
    """10 kWh in a quarter of an hour is 40 kW, 13.3 % of 300 kW."""
    assert run(as_grafana, find("gridloom-load/Load now · 当前负荷/A"))[1] == [(40_000,)]
    [[percent]] = run(as_grafana, find("gridloom-load/Of capacity · 负载率/A"))[1]
    assert percent == pytest.approx(13.33, abs=0.01)


def test_a_business_day_starts_at_local_midnight(as_grafana: str) -> None:
    _, rows = run(as_grafana, find("gridloom-loss/Unexplained by day · 每日不明损耗/A"))
    assert rows[0][0] == datetime(2026, 2, 28, 16, tzinfo=UTC)  # 1 March, 00:00 in Shanghai


def test_collection_success_counts_intervals(as_grafana: str) -> None:
    [[percent]] = run(as_grafana, find("gridloom-collection/Collection success · 采集成功率/A"))[1]
    assert float(percent) == pytest.approx(100 * (6 * 96 - 8) / (6 * 96))


def test_collection_success_by_gateway_has_the_worst_first(as_grafana: str) -> None:
    _, rows = run(as_grafana, find("gridloom-collection/Collection success by gateway · 各网关采集成功率/A"))
    assert [(gateway, round(float(percent), 2)) for gateway, percent in rows] == [("gw-a1", 97.92), ("gw-a2", 100.0)]


def test_missing_intervals_have_their_reasons(as_grafana: str) -> None:
    _, rows = run(as_grafana, find("gridloom-collection/Intervals missing by reason · 按原因的缺失区间/A"))
    assert [(row[1], row[2]) for row in rows] == [("meter_silent", 4), ("unknown", 4)]


def test_a_rule_gives_one_number_and_otherwise_labels(as_grafana: str) -> None:
    """Grafana takes a table as numbers with labels only where exactly one column is a number."""
    for rule in RULES:
        _, rows = run(as_grafana, rule.sql)
        numbers = [value for value in rows[0] if not isinstance(value, str)]
        assert len(numbers) == 1, rule.uid


def test_grafana_may_change_nothing(as_grafana: str) -> None:
    with psycopg.connect(as_grafana) as connection, pytest.raises(psycopg.errors.InsufficientPrivilege):
        connection.execute("DELETE FROM load")


def test_voltage_limits_are_for_low_voltage_alone(filled: str, as_grafana: str) -> None:
    assert run(as_grafana, find("gridloom-power/Lowest voltage · 最低电压/A"))[1] == [(205,)]
    with psycopg.connect(filled, autocommit=True) as connection:
        connection.execute("UPDATE installation SET pt_ratio = 100 WHERE meter_id = 1")
        connection.execute("UPDATE power_day SET voltage_l1_max_v = 240 WHERE meter_id = 1")
        try:
            _, rows = run(as_grafana, find("gridloom-power/Points outside the voltage limits · 电压越限计量点/A"))
            _, power = run(as_grafana, find("gridloom-power/Power at the head · 总表功率/B"))
        finally:
            connection.execute("UPDATE installation SET pt_ratio = 1 WHERE meter_id = 1")
    assert rows == [("A1-C01", "A1", 1, 190, 240)]
    assert {w for *_, w in power} == {100_000}
