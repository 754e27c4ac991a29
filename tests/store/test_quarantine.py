"""Bounds of the quarantine, what is too old, and giving up."""

import json
from datetime import timedelta

import pytest
from click.testing import CliRunner

from cloud.gridloom import gridloom
from cloud.store.installations import load_installations
from cloud.store.migrations import Connection
from cloud.store.quarantine import Bounds, Choice, Message, drop, full_gateways, keep_message
from cloud.store.replay import replay
from cloud.store.rows import load_keep
from cloud.store.samples import prepare, store, write
from protocols.quantities import Kind
from tests.store.batches import EPOCH, QUARTER, batch, energy_row, power_row
from tests.store.conftest import NOW
from tests.store.test_samples import one, put, rows_of


def test_rows_past_retention_are_set_aside_and_replay_when_it_is_longer(registered: Connection) -> None:
    marks = round(timedelta(days=500) / QUARTER)
    with registered.transaction():
        stored = store(
            registered,
            [batch(Kind.POWER, 1, [power_row("m001", 1), power_row("m002", -marks)]),
             batch(Kind.ENERGY, 2, [energy_row("m001", -marks, wh=7)])],
            load_installations(registered), NOW, load_keep(registered),
        )  # fmt: skip
    assert (stored.rows, stored.quarantined) == ({"power": 1, "energy": 1}, {"too_old": 1})
    assert "gw-1 m002: at is 2025-01-05" in one(registered, "SELECT detail FROM quarantine")
    assert "kept for 400 days" in one(registered, "SELECT detail FROM quarantine")
    assert replay(registered, NOW).settled == 0
    registered.execute("UPDATE retention SET keep = '600 days' WHERE data = 'power_sample'")
    assert replay(registered, NOW).rows == {"power": 1}
    assert one(registered, "SELECT row_values IS NULL FROM quarantine WHERE replayed_at IS NOT NULL")


def test_at_its_bound_a_gateway_keeps_what_cannot_be_stored(registered: Connection) -> None:
    put(registered, batch(Kind.ENERGY, 1, [energy_row("ghost", 1)]))
    assert full_gateways(registered, Bounds()) == frozenset()
    full = full_gateways(registered, Bounds(gateway_bytes=400))
    assert full == {"gw-1"}
    assert "anybody" in full_gateways(registered, Bounds(total_bytes=400))
    batches = [
        batch(Kind.ENERGY, 2, [energy_row("ghost", 2), energy_row("m001", 2)]),
        batch(Kind.ENERGY, 3, [energy_row("m001", 3)]),
    ]
    prepared = prepare(batches, load_installations(registered), NOW, full=full)
    assert prepared.held == {("gw-1", EPOCH, 2)}
    with registered.transaction():
        assert write(registered, prepared).rows == {"energy": 1, "power": 0}
    assert rows_of(registered, "SELECT seq FROM batch ORDER BY 1") == [(1,), (3,)]


def test_a_gateway_that_invents_meters_reaches_a_bound_and_comes_back_from_it(registered: Connection) -> None:
    few = Bounds(gateway_unknown_meters=3)
    for seq, name in enumerate(("x1", "x2", "x1", "x2"), 1):
        put(registered, batch(Kind.ENERGY, seq, [energy_row(name, seq)]))
    assert full_gateways(registered, few) == frozenset()
    put(registered, batch(Kind.ENERGY, 5, [energy_row("x3", 5), energy_row("m001", 5)]))
    assert full_gateways(registered, few) == {"gw-1"}
    drop(registered, Choice(ids=[1]), because="test", by="somebody")
    assert full_gateways(registered, few) == {"gw-1"}  # of x1 another row waits, and x2 and x3 do
    drop(registered, Choice(gateway="gw-1"), because="test", by="somebody")
    assert full_gateways(registered, few) == frozenset()


def test_at_its_bound_messages_without_a_name_are_counted_by_the_day(registered: Connection) -> None:
    for payload in (b"a", b"b", b"c"):
        message = Message("gridloom/v1/gw-1/energy", payload, "")
        keep_message(registered, message, reason="undecodable", detail="?", gateway="gw-1", full=True)
    assert rows_of(registered, "SELECT times_seen, payload FROM quarantine") == [(3, None)]
    assert replay(registered, NOW).entries == 0


def test_dropping_asks_wants_a_reason_and_is_recorded(
    registered: Connection, store_dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GRIDLOOM_DSN", store_dsn)
    put(registered, batch(Kind.ENERGY, 1, [energy_row("ghost", 1), energy_row("m001", 1, wh=-1)]))
    run = CliRunner().invoke
    assert run(gridloom, ["quarantine", "drop", "--reason", "unknown_meter"]).exit_code == 2
    assert run(gridloom, ["quarantine", "drop", "--because", "x"]).exit_code == 2
    wanted = ["quarantine", "drop", "--reason", "unknown_meter", "--because", "another utility's"]
    assert run(gridloom, wanted, input="n\n").exit_code == 1
    assert one(registered, "SELECT count(*) FROM quarantine WHERE replayed_at IS NULL") == 2
    assert "1 entries dropped, 1 rows" in run(gridloom, wanted, input="y\n").output
    listed = json.loads(run(gridloom, ["quarantine", "list", "--all", "--json"]).output)
    assert {entry["reason"]: entry["state"] for entry in listed} == {
        "unknown_meter": "dropped",
        "impossible_value": "waiting",
    }
    dropped = rows_of(registered, "SELECT dropped_because, dropped_by <> '', row_values FROM quarantine ORDER BY 1")[0]
    assert dropped == ("another utility's", True, None)
    gone = run(gridloom, [*wanted, "--yes", "--json"])
    assert json.loads(gone.output)["entries"] == 0
