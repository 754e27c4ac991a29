"""What a query costs as the tables grow old: what it reads, not how long it takes."""

from typing import Any, LiteralString, cast

import psycopg

from cloud.store.migrations import Connection
from protocols.quantities import Kind
from tests.store.batches import batch, energy_row
from tests.store.test_samples import one, put, rows_of

POINTS = 60
FIRST = "2026-03-01 00:00Z"


def add_days(connection: Connection, first: int, end: int) -> None:
    """Mark by mark, as they come."""
    span = {"points": POINTS, "first": first * 96, "last": end * 96 - 1, "at": FIRST}
    connection.execute(
        """
        INSERT INTO interval (point_id, start, version, energy_import_wh, energy_export_wh, quality)
        SELECT point, %(at)s::timestamptz + n * interval '15 min', 1, n, 0, 0
        FROM generate_series(%(first)s::integer, %(last)s::integer) n, generate_series(1, %(points)s::integer) point
        ORDER BY n
        """,
        span,
    )
    connection.execute(
        """
        INSERT INTO load SELECT 'area:A' || area, %(at)s::timestamptz + n * interval '15 min', n, n, 9, 9
        FROM generate_series(%(first)s::integer, %(last)s::integer) n, generate_series(1, %(points)s::integer) area
        ORDER BY n
        """,
        span,
    )
    connection.execute("VACUUM ANALYZE interval")
    connection.execute("VACUUM ANALYZE load")


def blocks(connection: Connection, query: LiteralString) -> int:
    explain: LiteralString = "EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) " + query
    connection.execute(explain)
    row = connection.execute(explain).fetchone()
    assert row is not None
    plan = cast(list[dict[str, Any]], row[0])[0]["Plan"]
    return int(plan["Shared Hit Blocks"] + plan["Shared Read Blocks"])


def test_a_series_and_a_point_are_read_where_their_rows_are_side_by_side(connection: Connection) -> None:
    asked: tuple[LiteralString, ...] = (
        "SELECT * FROM interval_current WHERE point_id = 7 AND start >= '2026-03-01Z' AND start < '2026-03-03Z'",
        "SELECT start, supplied_wh, delivered_wh, meters_expected, meters_received FROM load"
        " WHERE series = 'area:A7' AND start >= '2026-03-01Z' AND start < '2026-03-03Z' ORDER BY start",
    )
    add_days(connection, 0, 2)
    young = [blocks(connection, query) for query in asked]
    add_days(connection, 2, 10)
    old = [blocks(connection, query) for query in asked]
    assert max(young + old) <= 20, "192 rows, each in a block of its own where they lie by time"
    assert all(later <= earlier + 4 for earlier, later in zip(young, old, strict=True))


def test_vacuum_comes_after_so_many_rows_however_old_the_table_is(connection: Connection) -> None:
    """The index alone will do only where it has been."""
    for table in ("interval", "load"):
        found = connection.execute("SELECT unnest(reloptions) FROM pg_class WHERE oid = %s::regclass", [table])
        options = dict(str(option).split("=", 1) for (option,) in found)
        assert options["autovacuum_vacuum_insert_scale_factor"] == "0"
        assert 0 < int(options["autovacuum_vacuum_insert_threshold"]) <= 100_000


def test_what_was_stored_is_counted_by_whoever_may_ingest(registered: Connection) -> None:
    with psycopg.connect(registered.info.dsn, password=registered.info.password, autocommit=True) as ingest:
        ingest.execute("SET ROLE gridloom_ingest")
        for seq in (1, 2, 2):
            put(ingest, batch(Kind.ENERGY, seq, [energy_row("m001", seq), energy_row("ghost", seq)]))
    counted = "SELECT kind, sum(batches)::integer, sum(rows)::integer FROM batch_count GROUP BY kind"
    assert rows_of(registered, counted) == [("energy", 2, 2)], "what came again or was set aside is not"
    assert one(registered, "SELECT count(*) FROM batch_count") >= 2
    registered.execute("UPDATE batch SET rows = rows + 1 WHERE seq = 1")  # as a replay does
    registered.execute("SELECT compact_ledger(now(), 10)")
    assert rows_of(registered, counted) == [("energy", 2, 3)]
    assert one(registered, "SELECT count(*) FROM batch_count") == 1
    assert one(registered, "SELECT max(last_recorded_at) < now() + interval '1 s' FROM batch_count")
