"""What billing pulls, over HTTP from a real server on a real database."""

import csv
import io
from datetime import datetime, timedelta

from tests.api.site import FIRST, QUARTER, Served

FROM = f"{FIRST:%FT%TZ}"
DAY_LATER = f"{FIRST + timedelta(days=1):%FT%TZ}"


def test_intervals_are_half_open_integers_with_flags_and_version(served: Served) -> None:
    answer = served.get("/v1/intervals", point="A1-C01", from_=FROM, to=DAY_LATER)
    assert answer.status_code == 200
    page = answer.json()
    rows = page["intervals"]
    assert len(rows) == 96
    assert page["next"] is None
    assert page["as_of"] == 2
    assert rows[0]["start"] == FROM
    assert rows[-1]["end"] == DAY_LATER
    assert isinstance(rows[0]["energy_import_wh"], int)
    assert rows[0]["reactive_import_varh"] is None
    assert (rows[0]["quality"], rows[0]["quality_bits"], rows[0]["version"]) == (["BACKFILLED"], 2, 1)


def test_a_correction_replaces_the_value_and_as_of_shows_the_old_one(served: Served) -> None:
    at = FIRST + 3 * QUARTER
    asked = {"point": "A1-C01", "from_": f"{at:%FT%TZ}", "to": f"{at + QUARTER:%FT%TZ}"}
    [new] = served.get("/v1/intervals", **asked).json()["intervals"]
    [old] = served.get("/v1/intervals", as_of=1, **asked).json()["intervals"]
    assert (new["version"], new["quality"], old["version"]) == (2, ["ESTIMATED"], 1)
    assert new["energy_import_wh"] == old["energy_import_wh"] + 100


def test_pages_join_into_the_whole_with_nothing_missing_or_double(served: Served) -> None:
    points = ["A1-C01", "A2-HEAD"]
    span = {"from_": FROM, "to": DAY_LATER}
    whole = served.get("/v1/intervals", point=points, **span).json()["intervals"]
    assert len(whole) == 192
    joined, cursor = [], dict[str, str]()
    for _ in range(20):
        page = served.get("/v1/intervals", limit=37, point=points, **span, **cursor).json()
        joined += page["intervals"]
        if page["next"] is None:
            break
        cursor = {"cursor": page["next"]}
    assert joined == whole


def test_csv_has_the_same_rows_and_links_to_the_next_page(served: Served) -> None:
    asked = {"point": "A1-C01", "from_": FROM, "to": DAY_LATER}
    rows = served.get("/v1/intervals", **asked).json()["intervals"]
    by_accept = served.get("/v1/intervals", accept="text/csv", limit=50, **asked)
    assert by_accept.headers["content-type"] == "text/csv; charset=utf-8"
    assert by_accept.headers["x-as-of"] == "2"
    read = list(csv.DictReader(io.StringIO(by_accept.text)))
    assert len(read) == 50
    assert read[3]["quality"] == "ESTIMATED"
    assert read[0]["reactive_import_varh"] == ""
    assert [int(row["energy_import_wh"]) for row in read] == [row["energy_import_wh"] for row in rows[:50]]
    cursor = by_accept.headers["link"].split("cursor=")[1].split(">")[0]
    rest = served.get("/v1/intervals", format="csv", cursor=cursor, **asked)
    assert len(list(csv.DictReader(io.StringIO(rest.text)))) == 46
    assert "link" not in rest.headers


def test_times_with_an_offset_mean_the_same_instant(served: Served) -> None:
    local = served.get(
        "/v1/intervals", point="A1-C01", from_="2026-03-11T00:00:00+08:00", to="2026-03-12T00:00:00+08:00"
    ).json()
    assert [local["intervals"][0]["start"], local["intervals"][-1]["end"]] == [FROM, DAY_LATER]
    assert datetime.fromisoformat(local["intervals"][0]["start"]) == FIRST


def test_wrong_questions_are_answered_with_what_where_and_what_to_do(served: Served) -> None:
    for query, status, kind, where in (
        ({"point": "A9-C99"}, 404, "unknown-point", "query: point"),
        ({}, 422, "bad-parameter", "query: point"),
        ({"point": "A1-C01", "from_": "2026-03-11T00:00:00"}, 422, "bad-parameter", "query: from"),
        ({"point": "A1-C01", "from_": DAY_LATER, "to": FROM}, 422, "bad-parameter", "query: from, to"),
        ({"point": "A1-C01", "as_of": "3"}, 422, "bad-parameter", "query: as_of"),
        ({"point": "A1-C01", "cursor": "nonsense"}, 422, "bad-parameter", "query: cursor"),
        ({"point": "A1-C01", "limit": "0"}, 422, "bad-parameter", "query: limit"),
    ):
        answer = served.get("/v1/intervals", **query)
        problem = answer.json()
        assert (answer.status_code, answer.headers["content-type"]) == (status, "application/problem+json"), query
        assert problem["type"] == f"urn:gridloom:problem:{kind}", query
        assert problem["where"] == where
        assert problem["status"] == status
        assert problem["instance"] == "/v1/intervals"
        assert problem["detail"]
        assert problem["action"]
