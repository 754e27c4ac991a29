"""The registry: what is installed where. Read from CSV files, checked whole, written in one transaction."""

import csv
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from math import isfinite
from pathlib import Path
from typing import Final, LiteralString

from cloud.store.migrations import Connection

PROTOCOLS: Final = ("dlt645-2007", "modbus-tcp", "modbus-rtu")
ROLES: Final = ("supply", "customer", "check", "generation")
NODE_KINDS: Final = ("source", "bus", "customer")
ROWS_MAX: Final = 1_000_000

Value = str | int | float | bool
Row = dict[str, Value]


class RegistryError(RuntimeError):
    """The files are well formed but contradict what is on record; the text says what to do."""


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing wrong in one file: where, and what was expected."""

    file: str
    line: int
    text: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.text}"


@dataclass(frozen=True, slots=True)
class Column:
    """``kind``: str, int, float or bool. ``low``: the lowest number allowed. ``choice``: the words allowed."""

    name: str
    kind: type = str
    low: float | None = None
    choice: tuple[str, ...] = ()

    def parse(self, text: str) -> Value:
        """Raises ValueError with what was expected."""
        if not text:
            raise ValueError("a value expected")
        if self.choice and text not in self.choice:
            raise ValueError(f"one of {', '.join(self.choice)} expected")
        if self.kind is bool:
            if text.lower() not in ("true", "false", "1", "0"):
                raise ValueError("true or false expected")
            return text.lower() in ("true", "1")
        if self.kind is str:
            return text
        try:
            number: int | float = int(text) if self.kind is int else float(text)
        except ValueError as error:
            raise ValueError("a whole number expected" if self.kind is int else "a number expected") from error
        if not isfinite(number) or (self.low is not None and number < self.low):
            raise ValueError("a finite number expected" if self.low is None else f"{self.low:g} or more expected")
        return number


@dataclass(frozen=True, slots=True)
class File:
    """One CSV file. ``key`` columns are unique together, ``unique`` each alone; ``refers``: column → file, column."""

    name: str
    columns: tuple[Column, ...]
    key: tuple[str, ...]
    unique: tuple[str, ...] = ()
    refers: Mapping[str, tuple[str, str]] = field(default_factory=dict)


_NAMES = (Column("name_en"), Column("name_zh"))
FILES: Final = (
    File("feeders.csv", (Column("feeder_id"), *_NAMES, Column("capacity_w", float, 0)), ("feeder_id",)),
    File(
        "areas.csv",
        (
            Column("area_id"), Column("feeder_id"), *_NAMES, Column("gateway"), Column("capacity_w", float, 0),
            Column("loss_low_percent", float), Column("loss_high_percent", float),
        ),
        ("area_id",), ("gateway",), {"feeder_id": ("feeders.csv", "feeder_id")},
    ),
    File(
        "nodes.csv",
        (Column("node_id"), Column("area_id"), Column("kind", choice=NODE_KINDS), Column("phases")),
        ("node_id",), (), {"area_id": ("areas.csv", "area_id")},
    ),
    File(
        "lines.csv",
        (
            Column("line_id"), Column("from_node"), Column("to_node"), Column("length_m", float, 0),
            Column("r_ohm_per_km", float, 0), Column("x_ohm_per_km", float, 0),
        ),
        ("line_id",), (), {"from_node": ("nodes.csv", "node_id"), "to_node": ("nodes.csv", "node_id")},
    ),
    File(
        "transformers.csv",
        (
            Column("transformer_id"), Column("hv_node"), Column("lv_node"),
            *(
                Column(name, float, 0)
                for name in ("rated_kva", "hv_v", "lv_v", "no_load_loss_w", "load_loss_w", "impedance_percent")
            ),
        ),
        ("transformer_id",), (), {"hv_node": ("nodes.csv", "node_id"), "lv_node": ("nodes.csv", "node_id")},
    ),
    File(
        "meters.csv",
        (
            Column("serial"), Column("protocol", choice=PROTOCOLS), Column("gateway"), Column("wire_name"),
            Column("point"), Column("area_id"), Column("role", choice=ROLES), Column("phases"), Column("node_id"),
            Column("controllable", bool), Column("ct_ratio", int, 1), Column("pt_ratio", int, 1),
        ),
        ("gateway", "wire_name"), ("serial", "point"),
        {"area_id": ("areas.csv", "area_id"), "node_id": ("nodes.csv", "node_id"), "gateway": ("areas.csv", "gateway")},
    ),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Registry:
    """Rows by file name, checked."""

    rows: Mapping[str, Sequence[Row]]


def read_registry(folder: Path) -> Registry | list[Problem]:
    """The registry in ``folder``, or every problem of every file."""
    problems: list[Problem] = []
    rows: dict[str, list[Row]] = {}
    lines: dict[str, list[int]] = {}
    for file in FILES:
        rows[file.name], lines[file.name] = _read(folder / file.name, file, problems)
    broken = {problem.file for problem in problems if problem.line <= 1}  # what refers to these cannot be judged
    for file in FILES:
        for column, (target, target_column) in file.refers.items():
            if target in broken:
                continue
            known = {row.get(target_column) for row in rows[target]}
            problems += [
                Problem(file.name, line, f'{column}: "{row[column]}" is not in {target}')
                for row, line in zip(rows[file.name], lines[file.name], strict=True)
                if column in row and row[column] not in known
            ]
    return sorted(problems, key=lambda one: (one.file, one.line)) if problems else Registry(rows)


def _read(path: Path, file: File, problems: list[Problem]) -> tuple[list[Row], list[int]]:
    """Rows and their line numbers. A row keeps the columns that parsed, so that one bad cell is one problem."""
    rows: list[Row] = []
    lines: list[int] = []
    seen: dict[tuple[str, ...], dict[tuple[Value, ...], int]] = {}
    names = [column.name for column in file.columns]
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            reader = csv.DictReader(stream, strict=True)
            header = list(reader.fieldnames or [])
            problems += [Problem(file.name, 1, f'column "{name}" is missing') for name in names if name not in header]
            problems += [
                Problem(file.name, 1, f'column "{name}" is not known; {", ".join(names)} expected')
                for name in header
                if name not in names
            ]
            if set(header) != set(names):
                return rows, lines
            for cells in reader:
                if len(rows) == ROWS_MAX:
                    problems.append(Problem(file.name, reader.line_num, f"at most {ROWS_MAX} rows expected"))
                    break
                line = reader.line_num
                if None in cells or None in cells.values():
                    problems.append(Problem(file.name, line, f"{len(names)} columns expected"))
                    continue
                row: Row = {}
                for column in file.columns:
                    text = cells[column.name].strip()
                    try:
                        row[column.name] = column.parse(text)
                    except ValueError as error:
                        problems.append(Problem(file.name, line, f'{column.name}: {error}, got "{text}"'))
                for key in (file.key, *((name,) for name in file.unique)):
                    if all(name in row for name in key):
                        value = tuple(row[name] for name in key)
                        first = seen.setdefault(key, {}).setdefault(value, line)
                        if first != line:
                            text = f"{'+'.join(key)}: {' '.join(map(str, value))} is already on line {first}"
                            problems.append(Problem(file.name, line, text))
                rows.append(row)
                lines.append(line)
    except FileNotFoundError:
        problems.append(Problem(file.name, 0, f"not found in {path.parent}"))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        problems.append(Problem(file.name, 0, f"cannot be read: {error}"))
    return rows, lines


# ---- writing ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Saved:
    """Rows of the files, and how many of them changed the database."""

    rows: int
    changed: int


# Table, file, columns; the first column is the key. Order: what is referred to comes first.
_TABLES: Final[tuple[tuple[LiteralString, str, tuple[LiteralString, ...]], ...]] = (
    ("feeder", "feeders.csv", ("feeder_id", "name_en", "name_zh", "capacity_w")),
    (
        "area",
        "areas.csv",
        (
            "area_id", "feeder_id", "name_en", "name_zh", "gateway", "capacity_w",
            "loss_low_percent", "loss_high_percent",
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
    ("metering_point", "meters.csv", ("point", "area_id", "role", "phases", "node_id", "controllable")),
    ("meter", "meters.csv", ("serial", "protocol")),
)  # fmt: skip


def save_registry(connection: Connection, registry: Registry, *, since: datetime, dry_run: bool = False) -> Saved:
    """Write ``registry`` in one transaction; the same files again change nothing.

    Rows that are in the database and not in the files stay. A meter that is installed elsewhere than before, or with
    other ratios, is so from ``since`` on; what was true until then stays on record. A first installation holds always.
    """
    changed = 0
    with connection.transaction(force_rollback=dry_run):
        for table, file, columns in _TABLES:
            changed += _upsert(connection, table, columns, registry.rows[file])
        changed += _install(connection, registry.rows["meters.csv"], since)
    return Saved(sum(len(rows) for rows in registry.rows.values()), changed)


def _upsert(
    connection: Connection, table: LiteralString, columns: tuple[LiteralString, ...], rows: Iterable[Row]
) -> int:
    key, *rest = columns
    listed: LiteralString = ", ".join(columns)
    fresh: LiteralString = ", ".join([f"excluded.{name}" for name in rest])
    held: LiteralString = ", ".join([f"{table}.{name}" for name in rest])
    settings: LiteralString = ", ".join([f"{name} = excluded.{name}" for name in rest])
    marks: LiteralString = ", ".join(["%s"] * len(columns))
    # Unchanged rows are left alone, so that importing the same files twice writes nothing.
    query: LiteralString = (
        f"INSERT INTO {table} ({listed}) VALUES ({marks}) ON CONFLICT ({key}) DO UPDATE SET {settings}"  # noqa: S608
        f" WHERE ({held}) IS DISTINCT FROM ({fresh})"
    )
    with connection.cursor() as cursor:
        cursor.executemany(query, [[row[name] for name in columns] for row in rows])
        return max(cursor.rowcount, 0)


def _install(connection: Connection, meters: Sequence[Row], since: datetime) -> int:
    names = ("serial", "point", "gateway", "wire_name", "ct_ratio", "pt_ratio")
    columns = [[row[name] for row in meters] for name in names]
    connection.execute(
        """
        CREATE TEMPORARY TABLE wanted ON COMMIT DROP AS
        SELECT meter_id, point_id, gateway, wire_name, ct_ratio, pt_ratio
        FROM unnest(%s::text[], %s::text[], %s::text[], %s::text[], %s::int[], %s::int[])
            AS w (serial, point, gateway, wire_name, ct_ratio, pt_ratio)
        JOIN meter USING (serial) JOIN metering_point USING (point)
        """,
        columns,
    )
    # A meter, a point and a wire name each stand in one installation at a time: a different one ends the old.
    touching: LiteralString = """
        SELECT i.*, w AS wanted FROM installation i JOIN wanted w ON w.meter_id = i.meter_id
        UNION SELECT i.*, w FROM installation i JOIN wanted w ON w.point_id = i.point_id
        UNION SELECT i.*, w FROM installation i JOIN wanted w
            ON (w.gateway, w.wire_name) = (i.gateway, i.wire_name)
        """
    connection.execute(f"CREATE TEMPORARY TABLE touching ON COMMIT DROP AS {touching}")
    connection.execute(
        """
        CREATE TEMPORARY TABLE ended ON COMMIT DROP AS
        SELECT DISTINCT gateway, wire_name, valid_from FROM touching
        WHERE valid_to = 'infinity' AND (meter_id, point_id, gateway, wire_name, ct_ratio, pt_ratio)
            IS DISTINCT FROM ((wanted).meter_id, (wanted).point_id, (wanted).gateway, (wanted).wire_name,
                              (wanted).ct_ratio, (wanted).pt_ratio)
        """
    )
    late = connection.execute(
        "SELECT gateway, wire_name, valid_from FROM ended WHERE valid_from >= %s LIMIT 1", [since]
    ).fetchone()
    if late:
        raise RegistryError(
            f"meter {late[1]} of {late[0]}: installed since {late[2]}, so it cannot change as of {since}; "
            "give a later --since"
        )
    connection.execute(
        "UPDATE installation i SET valid_to = %s FROM ended e"
        " WHERE (i.gateway, i.wire_name, i.valid_from) = (e.gateway, e.wire_name, e.valid_from)",
        [since],
    )
    return connection.execute(
        """
        INSERT INTO installation (meter_id, point_id, gateway, wire_name, ct_ratio, pt_ratio, valid_from)
        SELECT meter_id, point_id, gateway, wire_name, ct_ratio, pt_ratio,
               CASE WHEN (meter_id, gateway, wire_name) IN
                         (SELECT (wanted).meter_id, (wanted).gateway, (wanted).wire_name FROM touching)
                    THEN %s ELSE '-infinity'::timestamptz END
        FROM wanted w
        WHERE NOT EXISTS (
            SELECT FROM installation i WHERE i.valid_to = 'infinity'
            AND (i.meter_id, i.point_id, i.gateway, i.wire_name, i.ct_ratio, i.pt_ratio)
              = (w.meter_id, w.point_id, w.gateway, w.wire_name, w.ct_ratio, w.pt_ratio))
        """,
        [since],
    ).rowcount
