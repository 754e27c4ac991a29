"""The ingestor as a process, between a real broker and a real database."""

import signal
from pathlib import Path
from typing import Any

import msgspec
import psycopg
import pytest

from cloud.ingest.worker import receipts
from cloud.store.migrations import Connection
from cloud.store.registry import Registry, read_registry, save_registry
from protocols.quantities import Kind
from protocols.uplink import JSON, Event, Status, Topic, encode, encode_events, to_us
from tests.ingest.conftest import Gateway, Start, eventually
from tests.store.batches import EPOCH, START, batch, energy_row, payload, power_row
from tests.store.conftest import NOW
from tests.store.registry_files import FILES, write_registry


def one(connection: Connection, query: str) -> Any:
    row = connection.execute(query).fetchone()
    assert row
    return row[0]


def test_batches_are_stored_once_and_receipted_each_time(
    gateway: Gateway, start_ingest: Start, connection: Connection
) -> None:
    start_ingest()
    for seq in range(1, 6):
        gateway.publish(Topic.ENERGY, payload(Kind.ENERGY, seq, [energy_row("m001", seq), energy_row("m002", seq)]))
    gateway.publish(Topic.POWER, payload(Kind.POWER, 6, [power_row("m003", 1)]))
    events = [Event(at=to_us(START), kind="meter_silent", meter="m002")]
    gateway.publish(Topic.EVENTS, encode_events(gateway="gw-1", epoch=EPOCH, seq=7, sent_at=START, events=events))
    eventually(lambda: len(gateway.receipted) >= 7)
    assert sorted(gateway.receipted) == [(EPOCH, seq) for seq in range(1, 8)]
    gateway.publish(Topic.ENERGY, payload(Kind.ENERGY, 3, [energy_row("m001", 3), energy_row("m002", 3)]))
    eventually(lambda: gateway.receipted.count((EPOCH, 3)) == 2)
    assert one(connection, "SELECT count(*) FROM energy_sample") == 10
    assert one(connection, "SELECT count(*) FROM power_sample") == 1
    assert one(connection, "SELECT kind FROM event") == "meter_silent"
    eventually(
        lambda: one(connection, "SELECT count(last_energy_at) = 2 AND count(last_power_at) = 1 FROM meter_state")
    )


def test_what_is_malformed_is_set_aside_and_nothing_stops(
    gateway: Gateway, start_ingest: Start, connection: Connection
) -> None:
    process = start_ingest()
    good = payload(Kind.ENERGY, 1, [energy_row("m001", 1)])
    for bad in (b"", b"\xc1", good[:-7], good, payload(Kind.ENERGY, 2, [energy_row("m001", 1)], gateway="gw-2")):
        gateway.publish(Topic.POWER, bad)
    gateway.publish(Topic.ENERGY, good, content_type="text/plain")
    gateway.publish(Topic.STATUS, b"?")
    gateway.publish(Topic.STATUS, b"?")
    nul = [Event(at=to_us(START), kind="x", detail={"text": "\0"})]  # PostgreSQL cannot hold it
    gateway.publish(Topic.EVENTS, encode_events(gateway="gw-1", epoch=EPOCH, seq=8, sent_at=START, events=nul))
    gateway.publish(Topic.ENERGY, payload(Kind.ENERGY, 9, [energy_row("m001", 9)]))
    eventually(lambda: {(EPOCH, 8), (EPOCH, 9)} <= set(gateway.receipted))
    assert set(gateway.receipted) == {(EPOCH, 8), (EPOCH, 9)}
    reasons = connection.execute("SELECT reason, sum(times_seen)::int FROM quarantine GROUP BY 1 ORDER BY 1").fetchall()
    assert reasons == [("not_storable", 1), ("undecodable", 6), ("wrong_gateway", 1), ("wrong_topic", 1)]
    assert one(connection, "SELECT count(*) FROM energy_sample") == 1
    assert process.poll() is None


def test_a_json_batch_is_as_good_whatever_else_is_said_of_it(
    gateway: Gateway, start_ingest: Start, connection: Connection
) -> None:
    start_ingest()
    document = {
        "version": 1, "gateway": "gw-1", "epoch": EPOCH, "seq": 1, "kind": "energy", "sent_at": to_us(START),
        "meters": ["m001"],
        "columns": {
            "meter_index": [0, 0], "at": [to_us(START), to_us(START)], "gateway_at": [to_us(START), to_us(START)],
            "energy_import_wh": [12, None],
        },
    }  # fmt: skip
    gateway.publish(Topic.ENERGY, msgspec.json.encode({**document, "seq": 2}), content_type=JSON, note="by hand")
    gateway.publish(Topic.ENERGY, payload(Kind.ENERGY, 3, [energy_row("m001", 3)]), content_type="")
    gateway.publish(Topic.ENERGY, msgspec.json.encode(document), content_type=JSON)
    eventually(lambda: len(gateway.receipted) == 3)
    found = connection.execute("SELECT energy_import_wh FROM energy_sample ORDER BY 1").fetchall()
    assert found == [(12,), (12,), (30,), (None,), (None,)]


def test_rows_of_an_unknown_meter_are_stored_by_themselves_after_its_import(
    gateway: Gateway, start_ingest: Start, connection: Connection, tmp_path: Path
) -> None:
    start_ingest()
    gateway.publish(Topic.ENERGY, payload(Kind.ENERGY, 1, [energy_row("m004", 1), energy_row("m001", 1)]))
    eventually(lambda: gateway.receipted)
    assert one(connection, "SELECT count(*) FROM energy_sample") == 1
    more = FILES["meters.csv"] + "000000000004,modbus-tcp,gw-1,m004,A1-C03,A1,customer,a,A1-N1,false,1,1\n"
    registry = read_registry(write_registry(tmp_path / "more", meters=more))
    assert isinstance(registry, Registry)
    save_registry(connection, registry, since=NOW)  # alone: it is the ingestor that notices
    eventually(lambda: one(connection, "SELECT count(*) FROM energy_sample") == 2)
    assert one(connection, "SELECT count(*) FROM quarantine WHERE replayed_at IS NULL") == 0


def test_the_status_of_a_gateway_is_kept(gateway: Gateway, start_ingest: Start, connection: Connection) -> None:
    gateway.publish(Topic.STATUS, encode(Status(online=True, at=to_us(START), meters=3)), retain=True)
    start_ingest()  # a retained status reaches whoever comes later
    eventually(lambda: connection.execute("SELECT 1 FROM gateway_status WHERE online").fetchone())
    will = Status(online=False, at=to_us(START) - 1)  # written when the gateway connected
    gateway.publish(Topic.STATUS, encode(will))
    eventually(lambda: connection.execute("SELECT 1 FROM gateway_status WHERE NOT online").fetchone())
    assert connection.execute("SELECT at, status->>'meters' FROM gateway_status").fetchone() == (START, "3")
    gateway.publish(Topic.STATUS, b"", retain=True)  # clear it for other tests


def test_nothing_is_acknowledged_or_receipted_before_the_commit(
    gateway: Gateway, start_ingest: Start, connection: Connection, store_dsn: str
) -> None:
    """The database connection is killed while a batch waits inside its transaction."""
    start_ingest()
    with psycopg.connect(store_dsn) as blocker:
        blocker.execute("LOCK TABLE energy_sample IN ACCESS EXCLUSIVE MODE")
        gateway.publish(Topic.ENERGY, payload(Kind.ENERGY, 1, [energy_row("m001", 1)]))
        waiting = "SELECT pid FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
        eventually(lambda: connection.execute(waiting).fetchone())
        killed = one(connection, waiting)
        connection.execute("SELECT pg_terminate_backend(%s)", [killed])
        eventually(lambda: (connection.execute(waiting).fetchone() or (killed,))[0] != killed)  # it tries again
        assert gateway.receipted == []
        assert one(connection, "SELECT count(*) FROM batch") == 0
    eventually(lambda: gateway.receipted == [(EPOCH, 1)])
    assert one(connection, "SELECT count(*) FROM energy_sample") == 1


@pytest.mark.parametrize("batches", [60])
def test_a_killed_ingestor_loses_nothing_and_doubles_nothing(
    gateway: Gateway, start_ingest: Start, connection: Connection, batches: int
) -> None:
    """Killed again and again while batches come; each is sent again until it has its receipt."""
    process = start_ingest()
    sent = {
        seq: payload(Kind.ENERGY, seq, [energy_row("m001", 2 * seq + k) for k in range(2)])
        for seq in range(1, batches + 1)
    }
    for seq, content in sent.items():
        gateway.publish(Topic.ENERGY, content)
        if seq % 20 == 10:
            process.send_signal(signal.SIGKILL)
            process.wait(5)
            process = start_ingest()

    def all_receipted() -> bool:
        missing = [seq for seq in sent if (EPOCH, seq) not in gateway.receipted]
        for seq in missing[:20]:
            gateway.publish(Topic.ENERGY, sent[seq])
        return not missing

    eventually(all_receipted, 30)
    counts = connection.execute("SELECT count(*), count(DISTINCT at) FROM energy_sample").fetchone()
    assert counts == (2 * batches, 2 * batches)


@pytest.mark.parametrize("options", [(), ("--workers", "1")])
@pytest.mark.parametrize("empty_database", ["embedded"], indirect=True)
def test_it_stops_cleanly_when_asked(start_ingest: Start, options: tuple[str, ...]) -> None:
    process = start_ingest(*options)
    process.send_signal(signal.SIGTERM)
    assert process.wait(5) == 0


def test_receipts_join_neighbouring_seqs() -> None:
    rows = [energy_row("m001", 1)]
    other = "f" * 32
    made = receipts(
        [*(batch(Kind.ENERGY, seq, rows) for seq in (5, 1, 2, 2, 9)), batch(Kind.ENERGY, 7, rows, epoch=other)]
    )
    assert made["gw-1", EPOCH].stored == [(1, 2), (5, 5), (9, 9)]
    assert made["gw-1", other].stored == [(7, 7)]
