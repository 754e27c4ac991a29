"""Completeness, and what is missing and why, over HTTP from a real server on a real database."""

from collections import Counter
from datetime import datetime
from pathlib import Path
from typing import Any

import psycopg

from cloud.jobs import derive
from cloud.jobs.calendar import Calendar
from simulators.services import Postgres
from tests.api.site import AREAS, CUSTOMERS, DAYS, NOW, ZONE, Served, create_database, fill, serve


def totals(answer: dict[str, Any]) -> tuple[int, int, Counter[str]]:
    """Expected, received and missing by reason, added up over the groups."""
    why: Counter[str] = Counter()
    for group in answer["groups"]:
        for missing in group["missing"]:
            why[missing["reason"]] += missing["intervals"]
    groups = answer["groups"]
    return sum(row["expected"] for row in groups), sum(row["received"] for row in groups), why


def test_every_way_to_group_comes_to_the_same_total_with_the_same_reasons(served: Served) -> None:
    ways: list[dict[str, Any]] = [
        {"by": "day"}, {"by": "area"}, {"by": "gateway"}, {"by": "point"}, {"by": "area", "daily": True},
        {"by": "gateway", "daily": True}, {"by": "point", "daily": True},
    ]  # fmt: skip
    answers = [served.get("/v1/completeness", **way).json() for way in ways]
    total = answers[0]["total"]
    assert 0.98 < total["completeness"] < 1
    for way, answer in zip(ways, answers, strict=True):
        assert answer["total"] == total, way
        expected, received, why = totals(answer)
        assert (expected, received) == (total["expected"], total["received"]), way
        assert why == {row["reason"]: row["intervals"] for row in total["missing"]}, way
        assert why.total() == expected - received, "every missing interval has one reason"
    assert [len(answer["groups"]) for answer in answers] == [
        DAYS, AREAS, AREAS, AREAS * (CUSTOMERS + 1), DAYS * AREAS, DAYS * AREAS, DAYS * AREAS * (CUSTOMERS + 1),
    ]  # fmt: skip


def test_why_is_said_for_each_group(served: Served) -> None:
    areas = {row["area"]: row["missing"] for row in served.get("/v1/completeness", by="area").json()["groups"]}
    assert areas == {
        "A1": [], "A3": [], "A6": [],
        "A2": [{"reason": "gateway_offline", "intervals": 18 * (CUSTOMERS + 1)}],
        "A4": [{"reason": "not_in_memory", "intervals": 8}],
        "A5": [{"reason": "meter_silent", "intervals": 191}],
    }  # fmt: skip
    gateways = {
        row["gateway"]: row["received"] for row in served.get("/v1/completeness", by="gateway").json()["groups"]
    }
    assert gateways["gw-a5"] < gateways["gw-a1"]


def test_days_area_and_gateway_narrow_it(served: Served) -> None:
    one = served.get("/v1/completeness", by="point", area="A2", from_="2026-03-14", to="2026-03-15").json()
    assert {row["area"] for row in one["groups"]} == {"A2"}
    assert {(row["expected"], row["received"]) for row in one["groups"]} == {(96, 78)}
    assert one["total"]["completeness"] == 78 / 96
    assert (
        served.get("/v1/completeness", by="point", gateway="gw-a2", from_="2026-03-14", to="2026-03-15").json() == one
    )
    assert served.get("/v1/completeness", gateway="gw-a9").json()["total"]["completeness"] is None


def test_gaps_newest_first_with_the_next_step(served: Served) -> None:
    found = served.get("/v1/completeness/gaps").json()
    assert found["next"] is None
    starts = [row["start"] for row in found["gaps"]]
    assert starts == sorted(starts, reverse=True)
    silent, forgot, *away = found["gaps"]
    # Over three business days, and still going on: one range.
    assert (silent["point"], silent["gateway"], silent["meter"]) == ("A5-C04", "gw-a5", "m004")
    assert (silent["start"], silent["end"], silent["intervals"]) == (
        "2026-03-16T10:45:00Z",
        "2026-03-18T10:30:00Z",
        191,
    )
    assert silent["reason"] == "meter_silent"
    assert silent["run"] == "meterctl status", "its gateway is away: somebody must go there"
    assert forgot["reason"] == "not_in_memory"
    assert forgot["asked"]["said"] == "0 of 7 read, 7 the meter does not have"
    assert (forgot["asked"]["outcome"], forgot["run"]) == ("failed", None)
    assert {row["point"] for row in away} == {"A2-HEAD", *(f"A2-C{n:02}" for n in range(1, CUSTOMERS + 1))}
    assert away[0]["run"] == ("gridloom command gw-a2 backfill m001 --start 2026-03-13T18:00Z --end 2026-03-13T22:30Z")


def test_gaps_by_page_reason_point_and_day(served: Served) -> None:
    every = served.get("/v1/completeness/gaps").json()["gaps"]
    pages, cursor = [], ""
    while cursor is not None:
        page = served.get("/v1/completeness/gaps", limit=2, **({"cursor": cursor} if cursor else {})).json()
        pages += page["gaps"]
        cursor = page["next"]
    assert pages == every
    silent = served.get("/v1/completeness/gaps", reason="meter_silent").json()["gaps"]
    assert silent == [every[0]] == served.get("/v1/completeness/gaps", point="A5-C04").json()["gaps"]
    day = served.get("/v1/completeness/gaps", from_="2026-03-17", to="2026-03-18", gateway="gw-a5").json()["gaps"]
    assert [row["intervals"] for row in day] == [96]


def test_what_is_asked_wrongly_is_a_problem_with_a_way_out(served: Served) -> None:
    for query, status in (
        ({"area": "A9"}, 404), ({"point": "A9-C01"}, 404), ({"reason": "bad luck"}, 422), ({"cursor": "!"}, 422),
        ({"cursor": "WzEsMV0"}, 200), ({"limit": 0}, 422), ({"from_": "2026-03-02", "to": "2026-03-01"}, 422),
    ):  # fmt: skip
        answer = served.get("/v1/completeness/gaps", **query)
        assert answer.status_code == status, query
        if status != 200:
            assert answer.headers["content-type"] == "application/problem+json"
            assert answer.json()["action"]


def test_a_point_counts_where_it_stood_on_the_day(postgres: Postgres, tmp_path: Path) -> None:
    """A2-C01 moves to A1 on 16 March: what it missed on the 14th stays A2's, whichever way one asks."""
    dsn = create_database(postgres)
    fill(dsn)
    moved = datetime(2026, 3, 16, tzinfo=ZONE)
    with psycopg.connect(dsn) as connection:
        connection.execute(
            """
            WITH moved AS (
                UPDATE point_in_area a SET valid_to = %(at)s FROM metering_point p
                WHERE p.point_id = a.point_id AND point = 'A2-C01' RETURNING a.*
            ), here AS (
                UPDATE installation i SET valid_to = %(at)s FROM moved WHERE i.point_id = moved.point_id RETURNING i.*
            ), there AS (
                INSERT INTO installation (meter_id, point_id, gateway, wire_name, valid_from)
                SELECT meter_id, point_id, 'gw-a1', 'm099', %(at)s FROM here
            ), in_force AS (
                UPDATE metering_point SET area_id = 'A1' WHERE point = 'A2-C01'
            )
            INSERT INTO point_in_area SELECT point_id, 'A1', role, phases, node_id, controllable, %(at)s FROM moved
            """,
            {"at": moved},
        )
        # As the registry marks it, and `gridloom work` then counts again.
        connection.execute("INSERT INTO dirty_range (series, from_at, to_at) VALUES ('area:A1', %(at)s, %(to)s),"
                           " ('area:A2', %(at)s, %(to)s)", {"at": moved, "to": NOW})  # fmt: skip
        derive.open_session(connection)
        while derive.derive_chunk(connection, Calendar(ZONE), NOW).ranges:
            pass
    away = 18 * (CUSTOMERS + 1)
    with serve(dsn, tmp_path) as served:
        for by in ("area", "point"):
            groups = served.get("/v1/completeness", by=by).json()["groups"]
            missing = {area: sum(row["expected"] - row["received"] for row in groups if row["area"] == area)
                       for area in ("A1", "A2")}  # fmt: skip
            assert missing == {"A1": 0, "A2": away}, by
            told = {area: sum(why["intervals"] for row in groups if row["area"] == area for why in row["missing"])
                    for area in ("A1", "A2")}  # fmt: skip
            assert told == missing, by
        days = served.get("/v1/completeness", by="point", area="A1", daily="true").json()["groups"]
        assert [row["day"] for row in days if row["point"] == "A2-C01"] == ["2026-03-16", "2026-03-17", "2026-03-18"]
        assert {row["gateway"] for row in served.get("/v1/completeness", by="gateway", area="A2").json()["groups"]} == {
            "gw-a2"
        }
        point = served.get("/v1/completeness", by="point", gateway="gw-a1").json()["groups"]
        assert [row["area"] for row in point if row["point"] == "A2-C01"] == ["A1"]
        [gap] = served.get("/v1/completeness/gaps", point="A2-C01").json()["gaps"]
        assert (gap["area"], gap["gateway"]) == ("A2", "gw-a2")
        assert served.get("/v1/completeness/gaps", area="A1").json()["gaps"] == []
