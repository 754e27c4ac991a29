"""What is expected, missing and why, on real databases with the readings of the simulated site."""

from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, date, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import msgspec
import numpy as np
import pytest
from psycopg.types.json import Jsonb

from cloud.jobs.calendar import Calendar
from cloud.jobs.completeness import GRACE, VALID, ask_for_gaps, expect, list_gaps
from cloud.jobs.derive import drain
from cloud.jobs.dispatch import give_up, store_replies
from cloud.jobs.mailbox import Answer
from cloud.store.installations import load_installations
from cloud.store.migrations import Connection as StoreConnection
from cloud.store.samples import store as store_batches
from cloud.store.samples import write_status
from gateway.commands.orders import _Tally
from protocols.quantities import Kind
from protocols.uplink import Backfill, Command, Outcome, Reply, Row, Status, decode_batch, encode_rows, from_us, to_us
from tests.jobs.conftest import START, Store

QUARTER = timedelta(minutes=15)
CALENDAR = Calendar(ZoneInfo("Asia/Shanghai"))
MIDNIGHT = datetime(2026, 3, 10, 16, tzinfo=UTC)  # 11 March begins at the site
NOW = START + GRACE  # 17:05
DAY = date(2026, 3, 11)
OVER = 68  # intervals of this day that are over


def settle(site: Store, now: datetime = NOW) -> None:
    """As the loop of `gridloom work` does, after a mark."""
    while drain(site.connection, CALENDAR, now, chunks_max=9):
        pass
    expect(site.connection, CALENDAR, now)
    while list_gaps(site.connection, CALENDAR, now):
        pass


def counts(site: Store, point: str) -> dict[date, tuple[int, int]]:
    return {
        day: (expected, received)
        for day, expected, received in site.connection.execute(
            "SELECT day, expected, received FROM completeness_day JOIN metering_point USING (point_id)"
            " WHERE point = %s ORDER BY day",
            (point,),
        )
    }


def gaps(site: Store, point: str) -> list[tuple[str, str, str]]:
    """(from, to, reason) in the site's time."""
    found = site.connection.execute(
        "SELECT start_at, end_at, reason FROM gap JOIN metering_point USING (point_id) WHERE point = %s ORDER BY 1",
        (point,),
    )
    return [(clock(start), clock(end), reason) for start, end, reason in found]


def clock(moment: datetime) -> str:
    return f"{moment.astimezone(CALENDAR.zone):%d %H:%M}"


def at(text: str) -> datetime:
    """ "11 03:00" in the site's time."""
    return datetime.strptime(f"2026-03-{text}", "%Y-%m-%d %H:%M").replace(tzinfo=CALENDAR.zone).astimezone(UTC)


def customers(site: Store) -> list[str]:
    """Of one gateway."""
    return [meter.point for meter in site.world.meters if meter.role == "customer" and meter.point.startswith("A1")]


def others(site: Store, *points: str) -> set[str]:
    return {meter.point for meter in site.world.meters} - set(points)


def without(site: Store, point: str, *missing: tuple[str, str]) -> None:
    """All marks of a day of all meters, but those in [from, to] of ``point``."""
    site.put(MIDNIGHT, START, points=others(site, point))
    edges = [MIDNIGHT - QUARTER, *(at(text) for gap in missing for text in gap), START + QUARTER]
    for last_missing, next_missing in zip(edges[::2], edges[1::2], strict=True):
        site.put(last_missing + QUARTER, next_missing - QUARTER, points={point})


def event(site: Store, kind: str, when: str, point: str | None = None, /, **detail: Any) -> None:
    gateway = "gw-a1"
    site.connection.execute(
        """
        INSERT INTO event (gateway, meter_id, meter, at, kind, detail, batch_id)
        SELECT %(gateway)s, i.meter_id, i.wire_name, %(at)s, %(kind)s, %(detail)s, 1
        FROM (SELECT 1) one LEFT JOIN (installation i JOIN metering_point USING (point_id)) ON point = %(point)s
        """,
        {"gateway": gateway, "at": at(when), "kind": kind, "detail": Jsonb(detail), "point": point},
    )


def say(site: Store, online: bool, when: datetime, **more: Any) -> None:
    """What the ingestor does with a status of gw-a1."""
    connection: StoreConnection = site.connection
    write_status(connection, {"gw-a1": Status(online=online, at=to_us(when), **more)})


@pytest.fixture
def site(store: Store) -> Store:
    store.online(MIDNIGHT)
    return store


# ---- what is expected ------------------------------------------------------------------------------------------------


def test_only_marks_with_a_meter_installed_are_expected(site: Store) -> None:
    late, gone, exchanged, never = customers(site)[:4]
    dates: Sequence[tuple[str, str, str]] = ((late, "10 12:07", "infinity"), (gone, "-infinity", "11 06:00"))
    for point, first, last in dates:
        set_dates(site, point, first, last)
    exchange(site, exchanged, at("11 09:07"))
    set_dates(site, never, "-infinity", "01 00:00")
    site.put(START - timedelta(days=2), START)
    settle(site)
    # From 12:15 on the 10th: 47 intervals. Until the mark before 06:00, as no meter is there at 06:00 itself.
    assert counts(site, late) == {date(2026, 3, 10): (47, 47), DAY: (OVER, OVER)}
    assert counts(site, gone) == {date(2026, 3, 9): (28, 28), date(2026, 3, 10): (96, 96), DAY: (23, 23)}
    assert counts(site, exchanged)[DAY][0] == OVER, "one meter after the other leaves no hole"
    assert counts(site, never) == {}
    assert gaps(site, late) == gaps(site, gone) == []


def test_dates_put_right_later_count_again(site: Store) -> None:
    point = customers(site)[0]
    site.put(START - timedelta(days=2), START)
    settle(site)
    before = rolled(site)
    set_dates(site, point, "11 10:00", "infinity")
    settle(site)
    assert counts(site, point) == {date(2026, 3, 9): (0, 0), date(2026, 3, 10): (0, 0), DAY: (28, 28)}
    assert rolled(site) == summed(site) != before
    set_dates(site, point, "-infinity", "infinity")
    settle(site)
    assert rolled(site) == summed(site) == before


def set_dates(site: Store, point: str, first: str, last: str) -> None:
    moments = [text if "inf" in text else at(text).isoformat() for text in (first, last)]
    site.connection.execute(
        "UPDATE installation SET valid_from = %s, valid_to = %s FROM metering_point p"
        " WHERE p.point_id = installation.point_id AND point = %s",
        (*moments, point),
    )


def exchange(site: Store, point: str, moment: datetime) -> None:
    site.connection.execute(
        """
        WITH old AS (
            UPDATE installation SET valid_to = %(at)s FROM metering_point p
            WHERE p.point_id = installation.point_id AND point = %(point)s RETURNING installation.*
        ), fresh AS (
            INSERT INTO meter (serial, protocol) VALUES ('999999999999', 'dlt645-2007') RETURNING meter_id
        )
        INSERT INTO installation (meter_id, point_id, gateway, wire_name, valid_from)
        SELECT fresh.meter_id, point_id, gateway, 'exchanged', %(at)s FROM old, fresh
        """,
        {"at": moment, "point": point},
    )


def rolled(site: Store) -> dict[tuple[str, date], tuple[int, int]]:
    found = site.connection.execute(
        "SELECT area_id, day, sum(expected), sum(received) FROM completeness_area_day GROUP BY 1, 2"
    )
    return {(area, day): (int(expected), int(received)) for area, day, expected, received in found}


def summed(site: Store) -> dict[tuple[str, date], tuple[int, int]]:
    found = site.connection.execute(
        "SELECT area_id, day, sum(expected), sum(received)"
        " FROM completeness_day JOIN metering_point USING (point_id) GROUP BY 1, 2"
    )
    return {(area, day): (int(expected), int(received)) for area, day, expected, received in found}


def missing(site: Store) -> dict[tuple[str, str, date, str], int]:
    """As the roll-up has it: by area, gateway, day and reason."""
    found = site.connection.execute("SELECT area_id, gateway, day, reason, intervals FROM missing_area_day")
    return {(area, gateway, day, reason): int(intervals) for area, gateway, day, reason, intervals in found}


def test_missing_intervals_roll_up_where_the_point_stood_that_day(site: Store) -> None:
    """A point moves to the next area and gateway between two days on which it misses something."""
    point = customers(site)[0]
    without(site, point, ("11 03:00", "11 04:45"))
    settle(site)
    assert missing(site) == {("A1", "gw-a1", DAY, "unknown"): 9}
    event(site, "meter_silent", "11 03:40", point)
    event(site, "meter_back", "11 04:52", point)
    settle(site)
    assert missing(site) == {("A1", "gw-a1", DAY, "meter_silent"): 9}, "a new reason takes the old one's place"
    site.connection.execute(
        """
        WITH moved AS (
            UPDATE point_in_area a SET valid_to = %(at)s FROM metering_point p
            WHERE p.point_id = a.point_id AND point = %(point)s RETURNING a.*
        ), now_there AS (
            INSERT INTO point_in_area SELECT point_id, 'A2', role, phases, node_id, controllable, %(at)s FROM moved
        ), here AS (
            UPDATE installation i SET valid_to = %(at)s FROM moved WHERE i.point_id = moved.point_id RETURNING i.*
        ), in_force AS (
            UPDATE metering_point SET area_id = 'A2' WHERE point = %(point)s
        )
        INSERT INTO installation (meter_id, point_id, gateway, wire_name, valid_from)
        SELECT meter_id, point_id, 'gw-a2', 'moved', %(at)s FROM here
        """,
        {"point": point, "at": at("12 00:00")},
    )
    site.put(START + QUARTER, at("12 17:00"), points=others(site, point))
    site.put(START + QUARTER, at("12 02:00"), points={point})
    site.put(at("12 03:00"), at("12 17:00"), points={point})
    settle(site, NOW + timedelta(days=1))
    assert missing(site) == {("A1", "gw-a1", DAY, "meter_silent"): 9, ("A2", "gw-a2", date(2026, 3, 12), "unknown"): 4}
    site.put(MIDNIGHT, START, points={point})
    settle(site, NOW + timedelta(days=1))
    assert missing(site) == {("A2", "gw-a2", date(2026, 3, 12), "unknown"): 4}, "what came is not missing any more"


def test_counts_are_the_same_however_the_days_came(site: Store) -> None:
    """Newest first, as backfill comes, so that the site's first mark moves, and with time going by between."""
    for back in range(3):
        day = START - timedelta(days=back)
        site.put(day - timedelta(days=1) + (QUARTER if back < 2 else timedelta(0)), day)
        settle(site, NOW - timedelta(hours=2 - back))
    by_day = counts(site, customers(site)[0])
    assert by_day == {
        date(2026, 3, 8): (28, 28), date(2026, 3, 9): (96, 96), date(2026, 3, 10): (96, 96), DAY: (OVER, OVER),
    }  # fmt: skip
    assert rolled(site) == summed(site)
    assert site.connection.execute("SELECT count(*) FROM gap").fetchone() == (0,)


# ---- what is missing -------------------------------------------------------------------------------------------------


def test_gaps_are_the_runs_of_missing_intervals(site: Store) -> None:
    """Against the runs counted one by one, for random marks that did not come."""
    point = customers(site)[0]
    random = np.random.default_rng(4)
    came = random.random(OVER + 1) < 0.8
    came[[0, OVER]] = True
    site.put(MIDNIGHT, START, points=others(site, point))
    for mark in np.flatnonzero(came):
        site.put(MIDNIGHT + int(mark) * QUARTER, MIDNIGHT + int(mark) * QUARTER, points={point})
    settle(site)
    runs: list[list[int]] = []
    for interval in np.flatnonzero(~(came[:-1] & came[1:])):
        if runs and runs[-1][1] == interval:
            runs[-1][1] += 1
        else:
            runs.append([int(interval), int(interval) + 1])
    expected = [(clock(MIDNIGHT + a * QUARTER), clock(MIDNIGHT + b * QUARTER), "unknown") for a, b in runs]
    assert gaps(site, point) == expected
    assert len(expected) > 5
    # What fills them removes them, and only them.
    site.put(MIDNIGHT, MIDNIGHT + 30 * QUARTER, points={point})
    settle(site)
    assert gaps(site, point) == [gap for gap in expected if at(gap[1]) > MIDNIGHT + 31 * QUARTER]
    site.put(MIDNIGHT, START, points={point})
    settle(site)
    assert gaps(site, point) == []


def test_a_gap_grows_with_every_mark_that_does_not_come(site: Store) -> None:
    point = customers(site)[0]
    without(site, point, ("11 16:30", "11 17:00"))
    settle(site)
    assert gaps(site, point) == [("11 16:15", "11 17:00", "unknown")]
    for later in (1, 2):
        site.put(START + later * QUARTER, START + later * QUARTER, points=others(site, point))
        settle(site, NOW + later * QUARTER)
        assert gaps(site, point) == [("11 16:15", clock(START + later * QUARTER), "unknown")]


def test_a_gateway_that_was_away_explains_its_gaps(site: Store) -> None:
    """What its status says is the history; marks it missed explain the intervals on both sides."""
    point = customers(site)[0]
    without(site, point, ("11 03:00", "11 04:45"))
    say(site, True, at("11 02:52"))
    say(site, False, MIDNIGHT)  # a will was written when its gateway connected
    settle(site)
    assert gaps(site, point) == [("11 02:45", "11 05:00", "gateway_offline")]
    say(site, True, at("11 04:31"))
    say(site, True, at("11 04:41"))
    settle(site)
    assert gaps(site, point) == [("11 02:45", "11 04:45", "gateway_offline"), ("11 04:45", "11 05:00", "unknown")]
    say(site, True, at("11 16:00"), backfill_left=3)
    settle(site)
    assert gaps(site, point)[1] == ("11 04:45", "11 05:00", "backfilling")


def test_a_gateway_never_heard_is_why(site: Store) -> None:
    site.connection.execute("DELETE FROM gateway_outage WHERE gateway = 'gw-a1'")
    site.connection.execute("DELETE FROM gateway_status WHERE gateway = 'gw-a1'")
    point = customers(site)[0]
    without(site, point, ("11 03:00", "11 04:45"))
    settle(site)
    assert gaps(site, point) == [("11 02:45", "11 05:00", "gateway_offline")]
    say(site, True, at("11 04:00"))
    settle(site)
    assert gaps(site, point) == [("11 02:45", "11 04:00", "gateway_offline"), ("11 04:00", "11 05:00", "unknown")]


def test_events_explain_gaps_also_when_they_come_late(site: Store) -> None:
    first, second, third, fourth = customers(site)[:4]
    without(site, first, ("11 03:00", "11 04:45"), ("11 09:00", "11 09:00"), ("11 12:00", "11 13:00"))
    settle(site)
    assert {reason for _, _, reason in gaps(site, first)} == {"unknown"}
    event(site, "meter_silent", "11 03:40", first, reason="silent")  # polls failed for a while before
    event(site, "meter_back", "11 04:52", first, failed_polls=20)
    event(site, "clock_corrected", "11 09:01", first, suspect_from=at("11 08:55").isoformat(),
          suspect_until=at("11 09:05").isoformat())  # fmt: skip
    event(site, "queue_evicted", "11 15:00", kind="power", **{"from": at("11 11:00").isoformat(),
          "to": at("11 14:00").isoformat()})  # fmt: skip
    event(site, "queue_evicted", "11 15:00", kind="energy", **{"from": at("11 12:00").isoformat(),
          "to": at("11 12:30").isoformat()})  # fmt: skip
    event(site, "queue_evicted", "11 15:00", kind="energy", **{"from": "nonsense", "to": at("11 14:00").isoformat()})
    event(site, "clock_set_back", "11 15:00", awaited="soon")
    settle(site)
    assert gaps(site, first) == [
        ("11 02:45", "11 05:00", "meter_silent"),
        ("11 08:45", "11 09:15", "clock"),
        ("11 11:45", "11 12:45", "evicted"),
        ("11 12:45", "11 13:15", "unknown"),
    ]
    assert gaps(site, second) == gaps(site, third) == gaps(site, fourth) == []


def test_silence_without_an_end_ends_with_the_next_interval(site: Store) -> None:
    point = customers(site)[0]
    without(site, point, ("11 03:00", "11 04:45"), ("11 16:00", "11 17:00"))
    event(site, "meter_silent", "11 04:20", point)
    settle(site)
    # An hour before at most, with the interval that the first mark ends.
    assert gaps(site, point) == [
        ("11 02:45", "11 03:15", "unknown"),
        ("11 03:15", "11 05:00", "meter_silent"),
        ("11 15:45", "11 17:00", "unknown"),
    ]
    event(site, "meter_silent", "11 16:04", point)
    settle(site)
    assert gaps(site, point)[2] == ("11 15:45", "11 17:00", "meter_silent")


def test_quarantined_rows_are_named_as_such(site: Store) -> None:
    """A register below zero, through the ingestor's own code."""
    point = customers(site)[0]
    without(site, point, ("11 03:00", "11 03:00"))
    settle(site)
    wire_name = wire(site)[point]
    row = Row(wire_name, at("11 03:00"), at("11 03:00"), None, 0, {"energy_import_wh": -5})
    payload = encode_rows(gateway="gw-a1", epoch="e" * 32, seq=1, kind=Kind.ENERGY, sent_at=NOW, rows=[row])
    connection: StoreConnection = site.connection
    with connection.transaction():
        stored = store_batches(connection, [decode_batch(payload)], load_installations(connection), NOW)
    assert stored.quarantined == {"impossible_value": 1}
    settle(site)
    assert gaps(site, point) == [("11 02:45", "11 03:15", "quarantined")]


def wire(site: Store) -> dict[str, str]:
    return dict(
        site.connection.execute(
            "SELECT point, wire_name FROM installation JOIN metering_point USING (point_id)"
        ).fetchall()
    )


# ---- asking for it ---------------------------------------------------------------------------------------------------


def commands(site: Store) -> list[tuple[str, Command]]:
    found = site.connection.execute(
        "SELECT gateway, body FROM command WHERE asked_by = 'completeness' ORDER BY issued_at"
    )
    return [(gateway, msgspec.convert(body, Command)) for gateway, body in found]


def asked(command: Command) -> tuple[str, str, list[str]]:
    assert isinstance(command.body, Backfill)
    return clock(from_us(command.body.start)), clock(from_us(command.body.end)), command.body.meters


def reply(site: Store, command: Command, meters: Mapping[str, str]) -> None:
    words = Reply(id=command.id, at=to_us(NOW), outcome=Outcome.DONE, detail="as told", meters=dict(meters))
    assert store_replies(site.connection, [Answer("gw-a1", words)], NOW)


def test_what_meters_remember_is_asked_for_once(site: Store) -> None:
    """Meters with the same gap in one command; one at a time; no mark twice that is not between missing ones."""
    first, second, third = customers(site)[:3]
    for point, last in ((first, "11 04:00"), (second, "11 04:00"), (third, "11 05:00")):
        site.put(MIDNIGHT, at("11 02:45"), points={point})
        site.put(at(last) + QUARTER, START, points={point})
    site.put(MIDNIGHT, START, points=others(site, first, second, third))
    settle(site)
    name = wire(site)
    assert ask_for_gaps(site.connection, NOW) == 1
    assert ask_for_gaps(site.connection, NOW) == 0, "one at a time"
    [(gateway, command)] = commands(site)
    assert gateway == "gw-a1"
    assert asked(command) == ("11 03:00", "11 04:15", sorted([name[first], name[second]]))
    assert command.expires_at == to_us(NOW + VALID)
    # The gateway's own words: one meter had nothing, the other refused.
    reply(site, command, {name[first]: _Tally(absent=5).said(5), name[second]: _Tally(refused=5, why="no").said(5)})
    settle(site)
    assert gaps(site, first) == [("11 02:45", "11 04:15", "not_in_memory")]
    assert gaps(site, second) == [("11 02:45", "11 04:15", "meter_refuses")]
    assert ask_for_gaps(site.connection, NOW) == 1
    assert asked(commands(site)[1][1]) == ("11 03:00", "11 05:15", [name[third]])
    reply(site, commands(site)[1][1], {name[third]: _Tally(read=9).said(9)})
    site.put(at("11 03:00"), at("11 05:00"), points={third})
    settle(site)
    assert gaps(site, third) == []
    assert ask_for_gaps(site.connection, NOW) == 0


def test_what_cannot_come_is_not_asked_for(site: Store) -> None:
    point = customers(site)[0]
    without(site, point, ("11 03:00", "11 04:00"), ("11 15:30", "11 16:00"))
    settle(site)
    assert len(gaps(site, point)) == 2
    late = NOW + timedelta(days=36)
    connection, heard = site.connection, "UPDATE meter_state SET last_energy_at = %s"
    changes: Sequence[tuple[str, Callable[[], object], datetime]] = (
        ("gateway offline", lambda: say(site, False, NOW), NOW),
        ("gateway busy with its own backfill", lambda: say(site, True, NOW, backfill_left=40), NOW),
        ("meter not heard", lambda: connection.execute(heard, (START - 4 * QUARTER,)), NOW),
        ("too old", lambda: connection.execute(heard, (late,)), late),
        ("another meter is there now", lambda: exchange(site, point, at("11 08:00")), NOW),
    )
    for why, change, now in changes:
        with connection.transaction(force_rollback=True):
            change()
            assert ask_for_gaps(connection, now) == 0, why
            assert commands(site) == [], why
    # The young one is left to the gateway.
    assert ask_for_gaps(connection, NOW) == 1
    assert asked(commands(site)[0][1])[:2] == ("11 03:00", "11 04:15")


def test_a_command_that_never_left_was_not_asked(site: Store) -> None:
    point = customers(site)[0]
    without(site, point, ("11 03:00", "11 04:00"))
    settle(site)
    assert ask_for_gaps(site.connection, NOW) == 1
    later = NOW + VALID + QUARTER
    site.put(START + QUARTER, START + 5 * QUARTER)
    settle(site, later)
    assert give_up(site.connection, later)
    assert ask_for_gaps(site.connection, later) == 1
    site.connection.execute("UPDATE command SET sent_at = issued_at")
    much_later = later + timedelta(hours=3)
    site.put(START + 6 * QUARTER, START + 17 * QUARTER)
    settle(site, much_later)
    assert give_up(site.connection, much_later)
    assert ask_for_gaps(site.connection, much_later) == 0


def test_a_gap_whose_marks_are_all_there_is_not_asked_for_and_not_looked_at_again(site: Store) -> None:
    """A register that ran backwards: both readings are stored, their difference is no energy."""
    point = customers(site)[0]
    site.put(MIDNIGHT, START)
    site.connection.execute(
        "UPDATE energy_sample SET energy_import_wh = 1 FROM installation i JOIN metering_point USING (point_id)"
        " WHERE i.meter_id = energy_sample.meter_id AND point = %s AND at = %s",
        (point, at("11 03:00")),
    )
    settle(site)
    assert gaps(site, point) == [("11 02:45", "11 03:15", "unknown")]
    assert ask_for_gaps(site.connection, NOW) == 0
    assert commands(site) == []
    assert site.connection.execute("SELECT count(*), count(command_id) FROM backfill_asked").fetchone() == (1, 0)
