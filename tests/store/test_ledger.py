"""The ledger when it is compacted: smaller, and as sure."""

import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import numpy as np
import psycopg

from cloud.store.installations import load_installations
from cloud.store.ledger import compact
from cloud.store.migrations import Connection
from cloud.store.samples import entered, store
from protocols.quantities import Kind
from tests.store.batches import EPOCH, batch, energy_row
from tests.store.conftest import NOW
from tests.store.test_samples import one, put, rows_of

AT_ONCE = timedelta(0)


def test_batches_become_ranges_and_are_known_still(registered: Connection) -> None:
    some = [batch(Kind.ENERGY, seq, [energy_row("m001", seq)]) for seq in (1, 2, 3, 5)]
    put(registered, *some)
    assert not compact(registered), "they are young"
    assert one(registered, "SELECT count(*) FROM batch") == 4
    assert compact(registered, older_than=AT_ONCE, step=3)  # as many as it may: there is more
    assert not compact(registered, older_than=AT_ONCE)
    assert rows_of(registered, "SELECT gateway, epoch, seqs::text FROM batch_range") == [
        ("gw-1", EPOCH, "{[1,4),[5,6)}")
    ]
    assert one(registered, "SELECT count(*) FROM batch") == 0
    missing = batch(Kind.ENERGY, 4, [energy_row("m001", 4)])
    again = put(registered, *some, missing)
    assert (again.batches, again.duplicates, again.rows["energy"]) == (1, 4, 1)
    assert entered(registered, [("gw-1", EPOCH, seq) for seq in (1, 4, 6)]) == {("gw-1", EPOCH, 1), ("gw-1", EPOCH, 4)}
    other = put(registered, batch(Kind.ENERGY, 1, [energy_row("m001", 1)], epoch="f" * 32))
    assert other.batches == 1


def test_a_batch_whose_rows_wait_in_quarantine_keeps_its_number(registered: Connection) -> None:
    put(registered, batch(Kind.ENERGY, 1, [energy_row("ghost", 1)]), batch(Kind.ENERGY, 2, [energy_row("m001", 1)]))
    compact(registered, older_than=AT_ONCE)
    assert rows_of(registered, "SELECT seq FROM batch") == [(1,)]


def test_ingestors_and_compaction_at_once_store_each_batch_once(registered: Connection) -> None:
    """Each of 60 batches comes six times, from three ingestors, while the ledger is compacted without pause."""
    batches = [batch(Kind.ENERGY, seq, [energy_row("m001", seq)]) for seq in range(1, 61)]
    installations = load_installations(registered)
    done = threading.Event()
    dsn = psycopg.conninfo.make_conninfo(registered.info.dsn, password=registered.info.password)

    def ingest(seed: int) -> int:
        with psycopg.connect(dsn, autocommit=True) as connection:
            new = 0
            for order in (np.random.default_rng((seed, turn)).permutation(60) for turn in range(2)):
                for some in np.split(order, 12):
                    with connection.transaction():
                        new += store(connection, [batches[i] for i in some], installations, NOW).batches
            return new

    def compact_on() -> int:
        steps = 0
        with psycopg.connect(dsn, autocommit=True) as connection:
            while not done.is_set():
                compact(connection, older_than=AT_ONCE)
                steps += 1
        return steps

    with ThreadPoolExecutor(4) as pool:
        compacting = pool.submit(compact_on)
        new = sum(pool.map(ingest, range(3)))
        done.set()
        assert compacting.result() > 5
    assert new == 60
    assert rows_of(registered, "SELECT count(*), count(DISTINCT at) FROM energy_sample") == [(60, 60)]
    compact(registered, older_than=AT_ONCE)
    assert one(registered, "SELECT seqs::text FROM batch_range") == "{[1,61)}"
