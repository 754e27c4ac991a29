"""The ledger kept small: batches entered long ago become ranges of seqs."""

from datetime import timedelta
from typing import Final, cast

import psycopg

from cloud.store.migrations import Connection

# For so long a row's batch_id still tells which batch, of which gateway, brought it. Gateways backfill 35 days.
KEEP: Final = timedelta(days=63)
STEP: Final = 20_000  # batches at a time, while every ingestor waits
LOCK_TIMEOUT_MS: Final = 2_000


def compact(connection: Connection, *, older_than: timedelta = KEEP, step: int = STEP) -> bool:
    """One step; whether there is more to do. Nothing is done where somebody holds the ledger for long."""
    try:
        with connection.transaction():
            connection.execute("SELECT set_config('lock_timeout', %s, true)", [str(LOCK_TIMEOUT_MS)])
            row = connection.execute("SELECT compact_ledger(now() - %s, %s)", [older_than, step]).fetchone()
    except psycopg.errors.LockNotAvailable:
        return False
    return row is not None and cast(int, row[0]) == step
