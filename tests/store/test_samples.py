"""Batches into the store: once each, nulls as nulls, and nothing dropped silently."""

from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from cloud.store.installations import load_installations
from cloud.store.ledger import compact
from cloud.store.migrations import Connection
from cloud.store.quarantine import Bounds, full_gateways
from cloud.store.registry import Registry, read_registry, save_registry
from cloud.store.replay import replay
from cloud.store.rows import load_keep
from cloud.store.samples import Stored, entered, store
from protocols.quantities import Kind, Quality
from protocols.uplink import Batch, Event, decode_batch, encode_events, to_us
from tests.store.batches import EPOCH, QUARTER, START, batch, energy_row, power_row
from tests.store.conftest import NOW
from tests.store.registry_files import FILES, write_registry


def put(connection: Connection, *batches: Batch) -> Stored:
    with connection.transaction():
        return store(connection, batches, load_installations(connection), NOW)


def rows_of(connection: Connection, query: str) -> list[tuple[Any, ...]]:
    return list(connection.execute(query))


def one(connection: Connection, query: str) -> Any:
    return rows_of(connection, query)[0][0]


def test_rows_arrive_as_sent_with_null_for_what_is_missing(registered: Connection) -> None:
    stored = put(
        registered,
        batch(Kind.ENERGY, 1, [energy_row("m001", 1), energy_row("m002", 2)]),
        batch(Kind.POWER, 2, [power_row("m001", 1), power_row("m003", 1, offset_s=None)]),
    )
    assert (stored.batches, stored.rows) == (2, {"energy": 2, "power": 2})
    energy = rows_of(
        registered,
        "SELECT wire_name, at, meter_at, quality, energy_import_wh, energy_export_wh"
        " FROM energy_sample JOIN installation USING (meter_id) ORDER BY 1",
    )
    assert energy == [
        ("m001", START + QUARTER, START + QUARTER, 0, 10, None),
        ("m002", START + 2 * QUARTER, START + 2 * QUARTER, 0, 20, None),
    ]
    power = rows_of(
        registered,
        "SELECT wire_name, gateway_at, meter_at, active_power_w, voltage_l1_v, frequency_hz"
        " FROM power_sample JOIN installation USING (meter_id) ORDER BY 1",
    )
    read = START + QUARTER + timedelta(seconds=8)
    assert power == [("m001", read, read, 101.5, None, None), ("m003", read, None, 101.5, None, None)]


def test_a_batch_sent_again_is_stored_once(registered: Connection) -> None:
    twice = batch(Kind.ENERGY, 1, [energy_row("m001", 1)])
    put(registered, twice)
    again = put(registered, twice, batch(Kind.ENERGY, 2, [energy_row("m001", 2)]))
    assert (again.batches, again.duplicates) == (1, 1)
    assert one(registered, "SELECT count(*) FROM energy_sample") == 2


def test_the_same_mark_under_another_epoch_is_legal(registered: Connection) -> None:
    put(registered, batch(Kind.ENERGY, 1, [energy_row("m001", 1)]))
    put(registered, batch(Kind.ENERGY, 1, [energy_row("m001", 1)], epoch="f" * 32))
    assert one(registered, "SELECT count(*) FROM energy_sample") == 2


def test_dirty_ranges_are_per_meter_and_do_not_span_what_did_not_change(registered: Connection) -> None:
    put(
        registered,
        batch(Kind.ENERGY, 1, [energy_row("m001", k) for k in (3, 1, 2)] + [energy_row("m002", 5)]),
        batch(Kind.ENERGY, 2, [energy_row("m001", 12)]),
    )
    ranges = rows_of(
        registered,
        "SELECT wire_name, from_at, to_at FROM dirty_range JOIN installation USING (meter_id) ORDER BY 1, 2",
    )
    assert [(name, (a - START) // QUARTER, (b - START) // QUARTER) for name, a, b in ranges] == [
        ("m001", 1, 3),
        ("m001", 12, 12),
        ("m002", 5, 5),
    ]


def test_meter_state_keeps_the_latest_and_the_clock_of_live_power_rows_only(registered: Connection) -> None:
    put(registered, batch(Kind.POWER, 1, [power_row("m001", 3, offset_s=90), power_row("m001", 2, offset_s=1)]))
    put(registered, batch(Kind.POWER, 2, [power_row("m001", 1, offset_s=5)]))  # older: changes nothing
    put(registered, batch(Kind.POWER, 3, [power_row("m001", 4, offset_s=-700, quality=Quality.BACKFILLED)]))
    put(registered, batch(Kind.ENERGY, 4, [energy_row("m001", 2), energy_row("m002", 1)]))
    state = rows_of(
        registered,
        "SELECT wire_name, last_energy_at, last_power_at, clock_offset_s FROM meter_state"
        " JOIN installation USING (meter_id) ORDER BY 1",
    )
    assert state == [
        ("m001", START + 2 * QUARTER, START + 4 * QUARTER, 90.0),
        ("m002", START + QUARTER, None, None),
    ]


def test_unknown_meters_and_impossible_values_are_set_aside_beside_good_neighbours(registered: Connection) -> None:
    late = START + timedelta(days=3)
    future = energy_row("m001", round((late - START) / QUARTER))
    stored = put(
        registered,
        batch(Kind.ENERGY, 1, [energy_row("m001", 1), energy_row("ghost", 1), energy_row("m002", 1, wh=-5), future]),
        batch(Kind.POWER, 2, [power_row("ghost", 1)]),
    )
    assert stored.rows["energy"] == 1
    assert stored.quarantined == {"unknown_meter": 2, "impossible_value": 2}
    assert rows_of(registered, "SELECT seq, rows, quarantined FROM batch ORDER BY seq") == [(1, 1, 3), (2, 0, 1)]
    details = rows_of(registered, "SELECT reason, rows, detail FROM quarantine ORDER BY quarantine_id")
    assert [(reason, rows) for reason, rows, _ in details] == [
        ("unknown_meter", 1),
        ("impossible_value", 2),
        ("unknown_meter", 1),
    ]
    assert "ghost" in details[0][2]
    assert "energy_import_wh is -5" in details[1][2]


def test_unknown_rows_are_stored_once_their_meter_is_imported(registered: Connection, tmp_path: Path) -> None:
    put(
        registered,
        batch(Kind.ENERGY, 1, [energy_row("m001", 1), energy_row("m004", 1), energy_row("ghost", 1)]),
        batch(Kind.POWER, 2, [power_row("m004", 1, offset_s=7)]),
    )
    assert replay(registered, NOW).settled == 0
    more = FILES["meters.csv"] + "000000000004,modbus-tcp,gw-1,m004,A1-C03,A1,customer,a,A1-N1,false,1,1\n"
    registry = read_registry(write_registry(tmp_path / "more", meters=more))
    assert isinstance(registry, Registry)
    save_registry(registered, registry, since=NOW)
    done = replay(registered, NOW, reason="unknown_meter")
    assert (done.settled, done.rows) == (2, {"energy": 1, "power": 1})
    assert replay(registered, NOW).rows == {}
    assert rows_of(registered, "SELECT seq, rows, quarantined FROM batch ORDER BY seq") == [(1, 2, 1), (2, 1, 0)]
    assert one(registered, "SELECT count(*) FROM energy_sample") == 2
    assert one(registered, "SELECT count(*) FROM quarantine WHERE replayed_at IS NULL") == 1
    assert (
        one(registered, "SELECT clock_offset_s FROM meter_state JOIN meter USING (meter_id) WHERE serial LIKE '%4'")
        == 7
    )


def test_events_are_stored_also_of_meters_that_are_not_in_the_registry(registered: Connection) -> None:
    events = [
        Event(at=to_us(START), kind="meter_silent", meter="m001", detail={"failures": 3}),
        Event(at=to_us(START), kind="meter_back", meter="ghost"),
        Event(at=to_us(START), kind="queue_evicted"),
        Event(at=5, kind="meter_silent", meter="m001"),
        Event(at=2**63 - 1, kind="meter_silent"),
    ]
    made = decode_batch(encode_events(gateway="gw-1", epoch=EPOCH, seq=9, sent_at=START, events=events))
    stored = put(registered, made)
    assert stored.quarantined == {"impossible_value": 2}
    found = rows_of(registered, "SELECT kind, meter, meter_id IS NOT NULL, detail FROM event ORDER BY kind")
    assert found == [
        ("meter_back", "ghost", False, {}),
        ("meter_silent", "m001", True, {"failures": 3}),
        ("queue_evicted", None, False, {}),
    ]
    assert replay(registered, NOW).settled == 0


@pytest.mark.parametrize("rows", [5_000])
def test_a_large_unknown_batch_is_kept_in_documents_that_replay(registered: Connection, rows: int) -> None:
    put(registered, batch(Kind.POWER, 1, [power_row("ghost", k % 10, offset_s=k / 7) for k in range(rows)]))
    assert rows_of(registered, "SELECT rows FROM quarantine ORDER BY 1") == [(1000,), (2000,), (2000,)]
    registered.execute("UPDATE installation SET wire_name = 'ghost' WHERE wire_name = 'm001'")
    assert replay(registered, NOW).rows == {"power": rows}
    assert one(registered, "SELECT count(DISTINCT meter_at) FROM power_sample") == rows


def test_the_role_of_ingest_may_do_all_that_ingest_does(registered: Connection) -> None:
    registered.execute("SET ROLE gridloom_ingest")
    events = [Event(at=to_us(START), kind="meter_silent", meter="m001")]
    told = decode_batch(encode_events(gateway="gw-1", epoch=EPOCH, seq=3, sent_at=START, events=events))
    stored = put(
        registered,
        batch(Kind.ENERGY, 1, [energy_row("m001", 1), energy_row("ghost", 1)]),
        batch(Kind.POWER, 2, [power_row("m001", 1)]),
        told,
    )
    assert stored.rows == {"energy": 1, "power": 1, "events": 1}
    assert replay(registered, NOW).entries == 1
    compact(registered, older_than=timedelta(0))
    assert entered(registered, [("gw-1", EPOCH, seq) for seq in (1, 2, 3, 4)]) == {
        ("gw-1", EPOCH, seq) for seq in (1, 2, 3)
    }
    assert "gw-1" in full_gateways(registered, Bounds(gateway_bytes=1))
    assert load_keep(registered)[Kind.POWER] == timedelta(days=400)
