"""Several workers, a worker that leaves, a database that is away, and what Prometheus is told."""

import os
import signal
import subprocess
import time
import urllib.request
from pathlib import Path
from urllib.parse import urlsplit

import psycopg
import pytest
from psycopg import sql

from cloud.ingest.broker import Broker
from cloud.ingest.supervisor import Supervisor
from cloud.settings import Mqtt
from cloud.store.migrations import Connection
from protocols.clock import SystemClock
from protocols.quantities import Kind
from protocols.uplink import Topic
from simulators.ports import free_port
from tests.conftest import stop
from tests.ingest.conftest import Address, Gateway, Start, drop_session, eventually
from tests.ingest.test_ingest import one
from tests.store.batches import EPOCH, energy_row, payload


def children(process: "subprocess.Popen[bytes]") -> list[int]:
    return [int(pid) for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]


def send(gateway: Gateway, *seqs: int) -> None:
    for seq in seqs:
        gateway.publish(Topic.ENERGY, payload(Kind.ENERGY, seq, [energy_row("m001", seq)]))


ON_EMBEDDED = pytest.mark.parametrize("empty_database", ["embedded"], indirect=True)
BESIDE_MOSQUITTO = pytest.mark.parametrize("empty_database", ["timescaledb"], indirect=True)


@BESIDE_MOSQUITTO
def test_workers_share_the_work_come_back_when_they_die_and_go_with_their_parent(
    gateway: Gateway, start_ingest: Start, connection: Connection
) -> None:
    parent = start_ingest("--workers", "2", workers=2)
    send(gateway, *range(1, 21))
    eventually(lambda: len(gateway.receipted) == 20)
    first, second = children(parent)
    os.kill(first, signal.SIGKILL)
    send(gateway, *range(21, 41))
    eventually(lambda: len(gateway.receipted) == 40, 30)  # some by the one that came back: its session waited
    assert first not in children(parent)
    assert second in children(parent)
    assert one(connection, "SELECT count(*) FROM energy_sample") == 40
    workers = children(parent)
    parent.kill()
    parent.wait(5)
    eventually(lambda: not any(Path(f"/proc/{pid}").exists() for pid in workers))


def test_a_worker_that_ends_well_is_not_started_again() -> None:
    """`gridloom --version` is soon done; `gridloom nothing` fails in a way that does not mend."""
    supervisor = Supervisor([["--version"], ["nothing"]], SystemClock())
    supervisor.run()  # returns


@BESIDE_MOSQUITTO
def test_a_worker_that_leaves_takes_what_its_session_holds(
    gateway: Gateway, start_ingest: Start, connection: Connection, broker: Address
) -> None:
    stop(start_ingest("--name", "leaving"))
    send(gateway, *range(1, 31))
    time.sleep(0.2)
    assert gateway.receipted == []
    assert start_ingest("--name", "leaving", "--drain").wait(20) == 0
    eventually(lambda: len(gateway.receipted) == 30)
    assert not drop_session(broker, "gridloom-ingest-leaving")
    assert one(connection, "SELECT count(*) FROM energy_sample") == 30


@BESIDE_MOSQUITTO
def test_what_there_is_no_room_for_is_asked_for_again(
    gateway: Gateway, broker: Address, empty_database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Five messages of 1 kB where 2.5 kB may wait: two stay, three are let go of and come over a second connection."""
    monkeypatch.setattr("cloud.ingest.broker.INBOX_BYTES_MAX", 2_500)
    url = urlsplit(broker.url)
    told = Mqtt(url.hostname or "", url.port or 1883, tls=False, username="cloud", password=broker.passwords["cloud"])
    ours = Broker(told, "small")
    ours.start()
    try:
        eventually(lambda: ours.connected)
        time.sleep(0.3)  # until it has subscribed
        gateway.publish(Topic.POWER, b"?")
        first = ours.inbox.get(timeout=10)
        ours.acknowledge(first)
        for i in range(5):
            gateway.publish(Topic.POWER, bytes([i]) * 1_000)
        held = [ours.inbox.get(timeout=10) for _ in range(2)]
        time.sleep(0.3)
        assert (ours.waiting, ours.waiting_bytes, ours.inbox.qsize()) == (2, 2_000, 0)
        came = held
        # An acknowledgement that was on its way when we connected again is asked for again: twice may be, never not.
        while len({delivery.message.payload[0] for delivery in came}) < 5:
            for delivery in held:
                ours.acknowledge(delivery)
            held = [ours.inbox.get(timeout=10)]
            came += held
        assert {delivery.message.payload for delivery in came} == {bytes([i]) * 1_000 for i in range(5)}
        assert held[0].connection > first.connection
    finally:
        ours.stop()
        drop_session(broker, "small")


@BESIDE_MOSQUITTO
def test_while_the_database_is_away_all_is_held(
    gateway: Gateway, start_ingest: Start, connection: Connection, empty_database: str
) -> None:
    start_ingest()
    send(gateway, 1)
    eventually(lambda: gateway.receipted)
    name = sql.Identifier(connection.info.dbname)
    with psycopg.connect(psycopg.conninfo.make_conninfo(empty_database, dbname="postgres"), autocommit=True) as admin:
        admin.execute(sql.SQL("ALTER DATABASE {} ALLOW_CONNECTIONS false").format(name))
        try:
            admin.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s AND pid <> %s"
                " AND application_name = 'gridloom ingest'",
                [connection.info.dbname, connection.info.backend_pid],
            )
            send(gateway, *range(2, 42))
            time.sleep(2)
            assert gateway.receipted == [(EPOCH, 1)]
        finally:
            admin.execute(sql.SQL("ALTER DATABASE {} ALLOW_CONNECTIONS true").format(name))
    eventually(lambda: len(gateway.receipted) == 41)
    counts = connection.execute("SELECT count(*), count(DISTINCT at) FROM energy_sample").fetchone()
    assert counts == (41, 41)


@ON_EMBEDDED
def test_prometheus_is_told_lag_and_when_each_gateway_was_seen(gateway: Gateway, start_ingest: Start) -> None:
    port = free_port()
    start_ingest("--metrics-port", str(port))
    send(gateway, 1, 2)
    eventually(lambda: len(gateway.receipted) == 2)
    send(gateway, 1)
    eventually(lambda: len(gateway.receipted) == 3)
    told = urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5).read().decode()
    lines = dict(line.rsplit(" ", 1) for line in told.splitlines() if not line.startswith("#"))
    assert lines['gridloom_ingest_batches_total{outcome="stored"}'] == "2.0"
    assert lines['gridloom_ingest_batches_total{outcome="duplicate"}'] == "1.0"
    assert lines["gridloom_ingest_lag_seconds_count"] == "3.0"
    assert float(lines["gridloom_ingest_lag_seconds_sum"]) > 3600  # they say they are of May
    assert float(lines['gridloom_ingest_gateway_last_seen_timestamp_seconds{gateway="gw-1"}']) > time.time() - 60


@ON_EMBEDDED
def test_what_the_quarantine_has_no_room_for_stays_with_its_gateway(
    gateway: Gateway, start_ingest: Start, connection: Connection
) -> None:
    gateway.publish(Topic.ENERGY, payload(Kind.ENERGY, 1, [energy_row("ghost", 1)]))
    process = start_ingest("--quarantine-gateway-bytes", "1")
    gateway.publish(Topic.ENERGY, payload(Kind.ENERGY, 1, [energy_row("ghost", 1)]))
    eventually(lambda: gateway.receipted)
    stop(process)
    start_ingest("--quarantine-gateway-bytes", "1")
    gateway.publish(Topic.ENERGY, payload(Kind.ENERGY, 2, [energy_row("ghost", 2)]))
    send(gateway, 3)
    gateway.publish(Topic.ENERGY, payload(Kind.ENERGY, 1, [energy_row("ghost", 1)]))  # stored, whatever the bound
    before = len(gateway.receipted)
    eventually(lambda: len(gateway.receipted) == before + 2)
    assert (EPOCH, 2) not in gateway.receipted
    assert connection.execute("SELECT seq FROM batch ORDER BY 1").fetchall() == [(1,), (3,)]
