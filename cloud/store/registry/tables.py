"""The registry's tables, and rows written to them at once."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Final, LiteralString, cast

from psycopg import Cursor

from cloud.store.migrations import Connection
from cloud.store.registry.files import REFERRED, Value
from cloud.store.registry.history import BEGIN, END

# Table, file, columns; the first column is the key. Order: what is referred to comes first.
TABLES: Final[tuple[tuple[LiteralString, str, tuple[LiteralString, ...]], ...]] = (
    ("feeder", "feeders.csv", ("feeder_id", "name_en", "name_zh", "capacity_w")),
    (
        "area",
        "areas.csv",
        (
            "area_id", "name_en", "name_zh", "gateway", "capacity_w", "loss_low_percent", "loss_high_percent",
        ),
    ),
    ("network_node", "nodes.csv", ("node_id", "area_id", "kind", "phases")),
    (
        "network_line",
        "lines.csv",
        ("line_id", "from_node", "to_node", "length_m", "r_ohm_per_km", "x_ohm_per_km"),
    ),
    (
        "network_transformer",
        "transformers.csv",
        (
            "transformer_id", "hv_node", "lv_node", "rated_kva", "hv_v", "lv_v",
            "no_load_loss_w", "load_loss_w", "impedance_percent",
        ),
    ),
)  # fmt: skip


@contextmanager
def fresh(
    connection: Connection, definition: LiteralString, rows: Iterable[Sequence[object]]
) -> Iterator[Cursor[tuple[object, ...]]]:
    """``rows`` in a table of that name, which is gone afterwards. ``definition``: its columns, or a query."""
    with connection.cursor() as cursor:
        cursor.execute(f"CREATE TEMP TABLE fresh {definition}")
        with cursor.copy("COPY fresh FROM STDIN") as copy:
            for row in rows:
                copy.write_row(row)
        yield cursor
        cursor.execute("DROP TABLE fresh")


def upsert(
    connection: Connection, table: LiteralString, columns: tuple[LiteralString, ...], rows: Iterable[Sequence[object]]
) -> dict[str, int]:
    """Add and change rows; the first column is the key. What is not in ``rows`` stays."""
    key, *rest = columns
    listed: LiteralString = ", ".join(columns)
    wanted: LiteralString = ", ".join([f"f.{name}" for name in rest])
    held: LiteralString = ", ".join([f"t.{name}" for name in rest])
    settings: LiteralString = ", ".join([f"{name} = f.{name}" for name in rest])
    with fresh(connection, f"ON COMMIT DROP AS SELECT {listed} FROM {table} WITH NO DATA", rows) as cursor:  # noqa: S608
        # Unchanged rows are left alone, so that importing the same files twice writes nothing.
        changed = cursor.execute(
            f"UPDATE {table} t SET {settings} FROM fresh f"  # noqa: S608
            f" WHERE t.{key} = f.{key} AND ({held}) IS DISTINCT FROM ({wanted})"
        ).rowcount
        added = cursor.execute(
            f"INSERT INTO {table} ({listed}) SELECT {listed} FROM fresh f"  # noqa: S608
            f" WHERE NOT EXISTS (SELECT FROM {table} t WHERE t.{key} = f.{key})"
        ).rowcount
    return {"added": added, "changed": changed}


def infinite(value: object) -> object:
    return "-infinity" if value == BEGIN else "infinity" if value == END else value


def known_names(connection: Connection) -> dict[tuple[str, str], set[Value]]:
    """What files that are not given may be referred to for."""
    tables: dict[str, LiteralString] = {"feeders.csv": "feeder", "areas.csv": "area", "nodes.csv": "network_node"}
    return {
        (file, column): {
            cast(str, name)
            for (name,) in connection.execute(f"SELECT {column} FROM {tables[file]}")  # noqa: S608
        }
        for file, column in REFERRED
    }
