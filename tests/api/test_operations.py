"""Every other route, over HTTP from a real server on a real database."""

import time
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest

from simulators.services import Postgres
from tests.api.site import AREAS, CUSTOMERS, FIRST, NOW, QUARTER, Served, create_database, database_closed, serve


def test_loads_of_areas_add_up_to_the_substation(served: Served) -> None:
    span = {"from_": f"{FIRST:%FT%TZ}", "to": f"{FIRST + timedelta(hours=2):%FT%TZ}"}
    whole = served.get("/v1/loads", series="substation:S1", **span).json()
    parts = [served.get("/v1/loads", series=f"area:A{n}", **span).json() for n in range(1, AREAS + 1)]
    assert len(whole["loads"]) == 8
    assert whole["capacity_w"] == 780_000
    for i, load in enumerate(whole["loads"]):
        assert load["start"] == f"{FIRST + i * QUARTER:%FT%TZ}"
        assert load["supplied_wh"] == pytest.approx(sum(part["loads"][i]["supplied_wh"] for part in parts), abs=AREAS)
        assert load["supplied_w"] == 4 * load["supplied_wh"]


def test_the_newest_forecast_run_or_the_one_from_an_origin(served: Served) -> None:
    newest = served.get("/v1/forecasts", series="area:A1").json()
    assert newest["origin"] == "2026-03-18T10:15:00Z"
    assert len(newest["forecasts"]) == 96
    assert all(row["p10_w"] <= row["p50_w"] <= row["p90_w"] for row in newest["forecasts"])
    older = served.get("/v1/forecasts", series="area:A1", origin="2026-03-17T09:30:00Z").json()
    assert {row["origin"] for row in older["forecasts"]} == {"2026-03-17T09:30:00Z"}
    joined = served.get("/v1/forecasts", series="area:A1", from_="2026-03-17T09:30:00Z").json()["forecasts"]
    assert len({row["start"] for row in joined}) == len(joined) == 96 + 96
    assert served.get("/v1/forecasts", series="area:A1", origin="2020-01-01T00:00:00Z").json()["forecasts"] == []


def test_the_whole_distribution_for_those_who_ask(served: Served) -> None:
    found = served.get("/v1/forecasts", series="area:A1", quantiles="true").json()
    assert found["levels"] == [0.1, 0.5, 0.9]
    assert found["inputs"] == {"calendar": "CN"}
    for row in found["forecasts"]:
        assert row["quantiles_w"] == pytest.approx([row["p10_w"], row["p50_w"], row["p90_w"]], rel=1e-6)
    assert served.get("/v1/forecasts", series="area:A1").json()["forecasts"][0]["quantiles_w"] is None


def test_accuracy_is_pooled_and_per_series_next_to_seasonal_naive(served: Served) -> None:
    found = served.get("/v1/forecasts/accuracy").json()
    assert found["model"] == "ridge"
    assert found["horizon_h"] == 24
    assert found["pooled"]["wape"] == pytest.approx(0.08)
    assert found["pooled"]["wape_seasonal_naive"] == pytest.approx(0.12)
    assert [row["series"] for row in found["series"]] == ["area:A1", "feeder:F1"]
    assert found["series"][0]["days"] == 3
    assert found["pooled"]["wql"] == pytest.approx(2 * 25 / 1000)
    assert found["pooled"]["inside_80"] == pytest.approx(72 / 96)


def test_losses_by_day_and_in_total(served: Served) -> None:
    found = served.get("/v1/losses").json()
    totals = {row["area"]: row for row in found["totals"]}
    assert set(totals) == {f"A{n}" for n in range(1, AREAS + 1)}
    for row in totals.values():
        rest = row["supplied_kwh"] - row["delivered_kwh"] - row["technical_kwh"]
        assert row["unexplained_kwh"] == pytest.approx(rest)
    assert (totals["A2"]["days_out_of_range"], totals["A1"]["days_out_of_range"]) == (7, 0)
    assert totals["A5"]["days"] == 7, "a day that could not be computed adds nothing"
    assert totals["A5"]["state"] == "not_computable"
    one = served.get("/v1/losses", area="A2", from_="2026-03-12", to="2026-03-14").json()
    assert [row["day"] for row in one["days"]] == ["2026-03-12", "2026-03-13"]
    assert [row["area"] for row in one["totals"]] == ["A2"]
    assert one["totals"][0]["supplied_kwh"] == pytest.approx(sum(row["supplied_kwh"] for row in one["days"]))
    for row in [*found["totals"], *one["days"]]:
        assert row["unexplained_lo_kwh"] < row["unexplained_kwh"] < row["unexplained_hi_kwh"]
    (unread,) = [row for row in found["days"] if row["state"] == "not_computable"]
    assert (unread["unexplained_lo_kwh"], unread["filled"]) == (None, 0)


def test_suspects_are_ranked_and_no_suspects_is_an_answer(served: Served) -> None:
    areas = {row["area"]: row for row in served.get("/v1/suspects").json()["areas"]}
    assert set(areas) == {f"A{n}" for n in range(1, AREAS + 1)}
    assert [(one["rank"], one["point"], one["named"]) for one in areas["A2"]["suspects"]] == [
        (1, "A2-C03", True), (2, "A2-C01", True), (3, "A2-C04", False),
    ]  # fmt: skip
    first = areas["A2"]["suspects"][0]
    assert (first["since"], first["kind"], first["stolen_kwh"]) == (None, "scaled", 1050)
    assert first["stolen_lo_kwh"] < first["stolen_kwh"] < first["stolen_hi_kwh"]
    assert (areas["A1"]["suspects"], areas["A1"]["reason"], areas["A1"]["customers"]) == ([], "", 4)
    assert "A5-C04" in areas["A5"]["reason"]
    one = served.get("/v1/suspects", area="A2", day=areas["A2"]["day"]).json()["areas"]
    assert [row["area"] for row in one] == ["A2"]
    assert served.get("/v1/suspects", area="A2", day="2026-01-01").json() == {"areas": []}


def test_alerts_newest_first_in_both_languages(served: Served) -> None:
    every = served.get("/v1/alerts").json()["alerts"]
    assert len(every) == 4
    assert [row["opened_at"] for row in every] == sorted((row["opened_at"] for row in every), reverse=True)
    assert all(row["message_en"] and row["message_zh"] and row["evidence"] == {"limit": 8} for row in every)
    assert [row["rule"] for row in served.get("/v1/alerts", state="closed").json()["alerts"]] == ["clock_drift"]
    silent = served.get("/v1/alerts", state="open", rule="meter_silent").json()["alerts"]
    assert [row["subject"] for row in silent] == ["meter:A5-C04"]


def test_ingest_counts_rows_and_finds_what_is_there_twice(postgres: Postgres, tmp_path: Path) -> None:
    """The same (meter, instant) twice under one epoch is a duplicate; under another epoch it is legal."""
    dsn = create_database(postgres)
    with psycopg.connect(dsn) as connection:
        connection.execute(
            """
            INSERT INTO batch (gateway, epoch, seq, kind, rows, sent_at, recorded_at) VALUES
                ('gw', 'a', 1, 'energy', 2, now(), '2026-01-01 00:00:00Z'),
                ('gw', 'b', 1, 'energy', 1, now(), '2026-01-01 00:00:42Z'),
                ('gw', 'b', 2, 'power', 3, now(), '2026-01-01 00:00:10Z'),
                ('gw', 'b', 3, 'events', 4, now(), '2026-01-01 00:00:11Z')
            """
        )
        connection.execute("INSERT INTO meter (serial, protocol) SELECT n, 'modbus-tcp' FROM generate_series(1, 3) n")
        connection.execute(
            """
            INSERT INTO energy_sample (meter_id, at, gateway_at, quality, batch_id)
            VALUES (1, %(at)s, %(at)s, 0, 1), (1, %(at)s, %(at)s, 0, 1), (1, %(at)s, %(at)s, 0, 2)
            """,
            {"at": FIRST},
        )
        connection.execute("INSERT INTO power_sample (meter_id, at, gateway_at, quality, batch_id) "
                           "SELECT n, %(at)s, %(at)s, 0, 3 FROM generate_series(1, 3) n", {"at": FIRST})  # fmt: skip
        connection.execute("INSERT INTO load VALUES ('area:A1', %s, 1, 1, 5, 6), ('area:A1', %s, 1, 1, 5, 5)",
                           (FIRST, NOW))  # fmt: skip
    days = {"from_": FIRST.isoformat(), "to": NOW.isoformat()}
    with serve(dsn, tmp_path) as served:
        found = served.get("/v1/ingest", **days).json()
        assert (found["rows"], found["rows_energy"], found["rows_power"], found["events"]) == (6, 3, 3, 4)
        assert (found["batches"], found["ingest_seconds"]) == (4, 42.0)
        assert (found["duplicates"], found["duplicates_raw"], found["duplicates_interval"]) == (2, 1, 1)
        newest = served.get("/v1/ingest").json()
        assert (newest["rows"], newest["duplicates_raw"], newest["duplicates_interval"]) == (6, 0, 1), (
            "a day's instants"
        )
        looked = [datetime.fromisoformat(newest[f"duplicates_raw_{end}"]) for end in ("from", "to")]
        assert looked[1] - looked[0] == timedelta(days=1)
        too_long = served.get("/v1/ingest", from_="2025-01-01T00:00:00Z", to="2026-01-01T00:00:00Z")
        assert (too_long.status_code, too_long.json()["where"]) == (422, "query: from, to")
        # Taken out of the ledger they are counted still, and so is what is replayed into one of them.
        with psycopg.connect(dsn) as connection:
            connection.execute("UPDATE batch SET rows = rows + 2 WHERE batch_id = 3")
            connection.execute("SELECT compact_ledger(now(), 100)")
            connection.execute(
                "INSERT INTO interval (point_id, start, version, quality) VALUES (1, '2020-01-01 00:07Z', 1, 0)"
            )
            left = connection.execute("SELECT (SELECT count(*) FROM batch), (SELECT count(*) FROM batch_count)")
            assert left.fetchone() == (0, 3), "one of each kind"
        found = served.get("/v1/ingest", **days).json()
        assert (found["rows_energy"], found["rows_power"], found["events"], found["batches"]) == (3, 5, 4, 4)
        assert (found["ingest_seconds"], found["duplicates_interval"]) == (42.0, 2)
        assert served.get("/v1/status").json()["rows"] == 8


def test_ingest_of_a_clean_site(served: Served) -> None:
    found = served.get("/v1/ingest").json()
    assert (found["rows"], found["duplicates"], found["quarantined"]) == (3, 0, 2)


def test_events_demand_response_registry_and_gateways(served: Served) -> None:
    [event] = served.get("/v1/events", kind="clock_drift").json()["events"]
    assert (event["gateway"], event["point"], event["meter"]) == ("gw-a3", "A3-C02", "m002")
    assert event["detail"] == {"offset_s": 94}
    assert served.get("/v1/events", point="A1-C01").json()["events"] == []
    found = served.get("/v1/dr").json()
    assert [row["state"] for row in found["events"]] == ["sent", "measured"]
    assert found["reduction_kwh"] == pytest.approx(9.2)
    measured = found["events"][1]
    assert (measured["points"], measured["outcome"], measured["baseline_kwh"]) == (["A2-C02"], "done", 24.3)
    registry = served.get("/v1/registry").json()
    assert (len(registry["feeders"]), len(registry["areas"])) == (2, AREAS)
    assert len(registry["points"]) == AREAS * (CUSTOMERS + 1)
    assert registry["points"][0]["serial"] == "000001000001"
    gateways = served.get("/v1/gateways").json()["gateways"]
    assert [row["gateway"] for row in gateways if not row["online"]] == ["gw-a5"]


def test_status_is_one_small_line(served: Served) -> None:
    status = served.get("/v1/status")
    assert len(status.content) < 1000
    line = status.json()
    assert line["now"].startswith("2026-03-18T10:3")
    assert (line["gateways"], line["gateways_online"], line["alerts_open"], line["alerts_critical"]) == (6, 5, 3, 1)
    assert line["load_at"] == "2026-03-18T10:15:00Z"
    assert line["demand_response"] == "planned"
    assert 0.98 < line["completeness"] < 1


def test_unknown_names_are_404(served: Served) -> None:
    for path, query in (
        ("/v1/loads", {"series": "area:A9"}),
        ("/v1/forecasts", {"series": "nonsense"}),
        ("/v1/losses", {"area": "A9"}),
        ("/v1/suspects", {"area": "A9"}),
        ("/v1/completeness", {"area": "A9"}),
        ("/v1/dr", {"area": "A9"}),
        ("/v1/events", {"point": "A9-C01"}),
        ("/v1/nothing", {}),
    ):
        answer = served.get(path, **query)
        assert (answer.status_code, answer.headers["content-type"]) == (404, "application/problem+json"), path
        assert answer.json()["action"]


def test_every_route_needs_a_key_except_health_and_pages(served: Served) -> None:
    for path in served.get("/openapi.json").json()["paths"]:
        answer = served.get(path, key=None)
        if path == "/healthz":
            assert answer.json() == {"status": "ok"}
            continue
        assert answer.status_code == 401, path
        assert answer.headers["content-type"] == "application/problem+json"
        assert answer.headers["www-authenticate"].startswith("Bearer")
    wrong = served.get("/v1/status", key="gl_wrong")
    assert (wrong.status_code, wrong.json()["type"]) == (401, "urn:gridloom:problem:key-wrong")
    named = httpx.get(served.url + "/v1/status", headers={"X-API-Key": "gl_test"})
    assert named.status_code == 200


def test_metrics_are_prometheus_text(served: Served) -> None:
    text = served.get("/metrics").text
    lines = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    assert float(lines["gridloom_gateways_online"]) == 5
    assert float(lines["gridloom_alerts_open"]) == 3
    assert 'gridloom_http_requests_total{route="/v1/status",status="200"}' in lines


def test_pages_come_from_here_alone(served: Served) -> None:
    for path in ("/", "/docs", "/console/main.js", "/console/vendor/uplot/uPlot.esm.js"):
        answer = served.get(path, key=None)
        assert answer.status_code == 200, path
        policy = answer.headers["content-security-policy"]
        assert "script-src 'self'" in policy
        assert "http" not in policy
    assert served.get("/v1/status").headers["cache-control"] == "no-store"


def until(condition: Any, timeout_s: float = 15) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.2)


def test_without_the_database_it_says_503_and_recovers(served: Served, postgres: Postgres) -> None:
    with database_closed(postgres, served.dsn):
        for path in ("/v1/status", "/healthz", "/metrics"):
            answer = served.get(path)
            assert (answer.status_code, answer.headers["content-type"]) == (503, "application/problem+json"), path
            assert answer.json()["type"] == "urn:gridloom:problem:database-unavailable"
            assert answer.headers["retry-after"]
    until(lambda: served.get("/healthz").status_code == 200)
    assert served.get("/v1/status").status_code == 200


def test_a_database_without_tables_is_named_as_such(empty_plain_database: str, tmp_path: Path) -> None:
    with serve(empty_plain_database, tmp_path, role="postgres") as served:
        answer = served.get("/healthz")
        assert (answer.status_code, answer.json()["action"]) == (503, "Run: gridloom migrate")
