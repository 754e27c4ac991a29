"""Half a minute of chaos; a database away; and that the accounting sees a row lost, double, or other than it was."""

from datetime import UTC, datetime
from pathlib import Path

import psycopg
import pytest

from cloud.store.installations import load_installations
from cloud.store.migrations import migrate
from cloud.store.samples import store
from gateway.uplink import WINDOW
from protocols.uplink import decode_batch
from tests.chaos.content import KINDS, digest_of, hashes_of, kind_of, payload_of, stored_digests
from tests.chaos.outage import document, run_outage
from tests.chaos.outage import markdown as outage_as_markdown
from tests.chaos.report import markdown
from tests.chaos.run import run
from tests.chaos.stage import GATEWAYS, import_registry
from tests.chaos.trouble import TROUBLES

START = datetime(2026, 5, 20, tzinfo=UTC)
SECONDS, SEED, PERIOD_S = 25.0, 4, 1.0


@pytest.mark.timeout(400)
def test_chaos_loses_nothing_doubles_nothing_and_breaks_no_promise(tmp_path: Path) -> None:
    result = run(SECONDS, SEED, period_s=PERIOD_S)
    report = markdown(result, "")
    assert not result.problems, report
    assert (result.lost, result.double, result.checks.missing) == (0, 0, [])
    assert result.collected == result.stored
    assert result.timeline.told.keys() >= set(TROUBLES), report
    assert result.rows > 2_000, report
    assert result.checks.after_kills >= 5, report
    assert result.sent_again > 50, report
    assert result.in_ranges > 50, report
    if "database disk full" in result.timeline.told:
        assert result.said["the database: No space left on device"] > 0, report
        assert result.refused > 0, report
    else:
        print("chaos: no disk was filled, because nobody may mount a small one here")


@pytest.mark.timeout(200)
def test_while_the_database_is_away_the_broker_holds_what_is_on_its_way_and_gateways_hold_the_rest() -> None:
    on_their_way = len(GATEWAYS) * WINDOW
    outage = run_outage(4.0, SEED, period_s=PERIOD_S / 2, before_s=3.0, sample_s=1, held_min=on_their_way + 1)
    result, report = outage.result, document(outage)
    assert not result.problems, report
    assert (result.lost, result.double) == (0, 0)
    assert result.collected == result.stored
    assert report["gateway_batches_max"] > on_their_way, report
    assert report["broker_messages_max"] >= on_their_way, report
    assert report["broker_dropped"] == 0, report
    assert "| lost; double | 0; 0 |" in outage_as_markdown(outage, "")


def test_the_accounting_sees_what_is_lost_double_or_other_than_it_was(empty_database: str, tmp_path: Path) -> None:
    gateway, steps = "gw-01", range(6)
    migrate(empty_database)
    with psycopg.connect(empty_database, autocommit=True) as connection:
        import_registry(connection, tmp_path / "registry")
        batches = [decode_batch(payload_of(gateway, "0" * 32, step + 1, START, step, START)) for step in steps]
        with connection.transaction():
            store(connection, batches, load_installations(connection), datetime.now(UTC))
        collected = {
            (gateway, kind): digest_of(
                [hash_ for step in steps if kind_of(step) is kind for hash_ in hashes_of(gateway, START, step)]
            )
            for kind in KINDS
        }
        assert stored_digests(connection) == collected
        for spoil in (
            "DELETE FROM energy_sample WHERE (meter_id, at) IN (SELECT meter_id, at FROM energy_sample LIMIT 1)",
            "INSERT INTO power_sample SELECT * FROM power_sample LIMIT 1",
            "UPDATE power_sample SET frequency_hz = NULL WHERE frequency_hz > 0",
            "UPDATE energy_sample SET quality = quality + 1",
            "UPDATE event SET at = at + '1 us'",
        ):
            with connection.transaction(force_rollback=True):
                connection.execute(spoil)
                found = stored_digests(connection)
                assert sum(found[key] != collected[key] for key in collected) == 1, spoil
        assert stored_digests(connection) == collected
