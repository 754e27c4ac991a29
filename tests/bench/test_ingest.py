"""``gridloom bench ingest`` runs, verifies what it stored and has every figure. How large they are is no matter of a
test on a shared machine."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import psycopg
import pytest

from cloud.bench.feed import Feed, all_rows, copy_streams, payloads, quantities, sent_at_offset, tuples
from cloud.bench.services import MOSQUITTO
from cloud.store.binary_copy import HEADER, TRAILER
from protocols.quantities import Kind
from protocols.uplink import NULLABLE_INTEGERS, decode_batch
from simulators.services import Postgres
from tests.conftest import missing_service

ROOT = Path(__file__).resolve().parents[2]
KEYS = {
    "rows",
    "rows_per_s",
    "values_per_s",
    "copy_rows_per_s",
    "executemany_rows_per_s",
    "ratio_to_copy",
    "ratio_to_executemany",
    "workers",
    "messages_per_s",
    "bytes_per_row_disk",
}
EPOCH = "0123456789abcdef" * 2


def bench(*arguments: str) -> dict[str, Any]:
    gridloom = [sys.executable, "-c", "from cloud.gridloom import main; main()", "bench", "ingest", "--quick", "--json"]
    ran = subprocess.run([*gridloom, *arguments], capture_output=True, timeout=240, cwd=ROOT, check=False)
    assert ran.returncode == 0, ran.stderr.decode()
    told: dict[str, Any] = json.loads(ran.stdout)
    return told


def figures(document: object, where: str = "") -> dict[str, float]:
    """Every number, by its way through the document."""
    if isinstance(document, dict):
        return {
            key: value for name, part in document.items() for key, value in figures(part, f"{where}.{name}").items()
        }
    if isinstance(document, list):
        return {key: value for i, part in enumerate(document) for key, value in figures(part, f"{where}.{i}").items()}
    number = isinstance(document, int | float) and not isinstance(document, bool)
    return {where: float(document)} if number else {}  # type: ignore[arg-type]


def test_every_figure_is_measured_on_services_of_its_own() -> None:
    told = bench()
    assert told.keys() >= {*KEYS, "lag_ms", "edition"}
    assert told["edition"] == "postgresql"
    assert told["server"]["fsync"] == told["server"]["synchronous_commit"] == "on"
    assert all(told[key] > 0 for key in KEYS)
    assert 0 < told["lag_ms"]["p50"] <= told["lag_ms"]["p99"]
    assert {one["rows_per_message"] for one in told["line"]} == {50, 500, 5_000}
    assert {one["workers"] for one in told["line"]} == {one["workers"] for one in told["singles"]} == {1, 2}
    # CPU is counted in ticks of 10 ms, and a short turn may pass between two of them.
    rest = {key: value for key, value in figures(told).items() if "cpu_us" not in key and "by_cpu" not in key}
    assert min(rest.values()) >= 0
    for one in told["line"]:
        assert one["rows"] == one["rows_per_commit"] * round(one["rows"] / one["rows_per_commit"])
        assert {"ingest", "postgres_session", "postgres_rest", "broker", "publisher"} <= one["cpu_us_per_row"].keys()
    (grown,) = told["growth"]
    assert all(query["rows"] > 0 and query["blocks"] > 0 and query["plan"] for query in grown["queries"])
    assert {one["kind"] for one in told["disk"]} == {"power", "energy"}
    assert all(one["with_index"] > one["raw"] > 80 for one in told["disk"])


def test_a_given_server_gets_a_scratch_database_and_loses_it_again() -> None:
    server = os.environ.get("GRIDLOOM_TEST_TIMESCALE_DSN", "")
    if not server:
        missing_service("TimescaleDB (GRIDLOOM_TEST_TIMESCALE_DSN)")
    told = bench("--dsn", server, "--part", "disk", "--part", "growth")
    assert told["edition"] in ("timescaledb", "community")
    assert told["rows_per_s"] is None
    for one in told["disk"]:
        assert one["with_index"] > one["raw"] > 80
        assert (one["compressed"] is not None) == (told["edition"] == "community")
        assert one["compressed"] is None or 0 < one["compressed"] < one["raw"]
    with psycopg.connect(server, autocommit=True) as connection:
        left = connection.execute(
            "SELECT datname FROM pg_database WHERE datname LIKE 'gridloom\\_bench\\_%'"
        ).fetchall()
    assert left == []


def test_a_login_that_may_not_create_databases_is_told_so(postgres: Postgres) -> None:
    with psycopg.connect(postgres.dsn, autocommit=True) as connection:
        connection.execute("CREATE ROLE bench_guest LOGIN PASSWORD 'guest'")
    try:
        gridloom = [sys.executable, "-c", "from cloud.gridloom import main; main()", "bench", "ingest", "--quick"]
        dsn = postgres.dsn_for("bench_guest", "guest", "postgres")
        ran = subprocess.run([*gridloom, "--dsn", dsn], capture_output=True, timeout=60, cwd=ROOT, check=False)
        assert ran.returncode == 1
        assert "permission denied to create database; a login is needed" in ran.stderr.decode()
    finally:
        with psycopg.connect(postgres.dsn, autocommit=True) as connection:
            connection.execute("DROP ROLE bench_guest")


@pytest.mark.parametrize("kind", [Kind.ENERGY, Kind.POWER])
@pytest.mark.parametrize("rows", [3, 5, 12])
def test_copy_and_executemany_get_the_rows_that_gateways_send(kind: Kind, rows: int) -> None:
    feed = Feed(
        kind=kind, gateways=["gw-1", "gw-2"], meters=5, rows=rows, messages=10, start_us=1_700_000_000_000_000,
        epoch=EPOCH,
    )  # fmt: skip
    meter_ids = np.arange(1, 11, dtype=np.int32).reshape(2, 5)
    ours = all_rows(feed, meter_ids)
    assert len(ours) == feed.total_rows
    messages = [list(payloads(feed, gateway)) for gateway in range(2)]
    sent = [decode_batch(messages[i % 2][i // 2]) for i in range(feed.total_messages)]  # the gateways take turns
    assert [batch.seq for batch in sent[::2]] == list(range(1, 11))
    nulls = []
    for name in ("at", "gateway_at", "meter_at", "quality", *quantities(kind)):
        dtype = ours.values[name].dtype
        values = np.concatenate([np.frombuffer(batch.columns[name], dtype) for batch in sent])
        np.testing.assert_array_equal(values, ours.values[name])
        if name in NULLABLE_INTEGERS:
            valid = [_valid(batch.valid.get(name), rows) for batch in sent]
            np.testing.assert_array_equal(np.concatenate(valid), ours.valid[name])
            nulls.append(1 - ours.valid[name].mean())
        elif dtype.kind == "f":
            nulls.append(np.isnan(values).mean())
    assert 0.1 < np.mean(nulls) < 0.3
    said = [
        meter_ids[i % 2][int(batch.meters[index][1:])]
        for i, batch in enumerate(sent)
        for index in np.frombuffer(batch.columns["meter_index"], np.uint16)
    ]
    assert said == ours.values["meter_id"].tolist()

    streams = copy_streams(ours, 7)
    assert len(streams) == -(-len(ours) // 7)
    assert all(stream.startswith(HEADER) and stream.endswith(TRAILER) for stream in streams)
    many = tuples(ours, len(ours))
    assert [row[0] for row in many] == said
    assert sum(value is None for row in many for value in row) == round(sum(nulls) * len(ours))


def _valid(bitmap: bytes | None, rows: int) -> np.ndarray[Any, Any]:
    if bitmap is None:
        return np.ones(rows, bool)
    return np.unpackbits(np.frombuffer(bitmap, np.uint8), count=rows, bitorder="little").view(bool)


def test_a_message_is_stamped_in_place() -> None:
    feed = Feed(
        kind=Kind.POWER, gateways=["gw-1"], meters=2, rows=2, messages=1, start_us=1_700_000_000_000_000, epoch=EPOCH
    )
    (payload,) = payloads(feed, 0)
    message = bytearray(payload)
    at = sent_at_offset(payload)
    message[at : at + 8] = (1_777_777_777_777_777).to_bytes(8, "big")
    assert decode_batch(bytes(message)).sent_at == 1_777_777_777_777_777


def test_the_own_mosquitto_has_the_settings_of_production() -> None:
    text = (ROOT / "deploy" / "mosquitto" / "mosquitto.conf").read_text()
    settings = dict(line.split(" ", 1) for line in text.splitlines() if line and not line.startswith("#"))
    different = {name for name in settings if not name.startswith("log_") and settings[name] != MOSQUITTO.get(name)}
    assert different == {"allow_anonymous"}
