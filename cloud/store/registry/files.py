"""The registry's files: what is installed where, as CSV, read and checked whole. ``record`` puts it on record.

A file states what is the case now, or, where it has the column ``valid_from``, the whole history of what it names.
"""

import csv
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from math import isfinite
from pathlib import Path
from typing import Final

from protocols.quantities import ENERGY_NAMES
from protocols.templates import names as template_names

PROTOCOLS: Final = ("dlt645-2007", "dlt645-1997", "modbus-tcp", "modbus-rtu", "modbus-ascii")
ROLES: Final = ("supply", "customer", "check", "generation")
NODE_KINDS: Final = ("source", "bus", "customer")
ROWS_MAX: Final = 1_000_000

Value = str | int | float | bool | datetime | None
Row = dict[str, Value]


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
    """``kind``: str, int, float, bool or datetime. ``low``: the lowest number allowed. ``choice``: the words allowed.

    ``optional``: the column may be left out and a cell be empty, which is None.
    """

    name: str
    kind: type = str
    low: float | None = None
    choice: tuple[str, ...] = ()
    optional: bool = False

    def parse(self, text: str) -> Value:
        """Raises ValueError with what was expected."""
        if not text:
            if self.optional:
                return None
            raise ValueError("a value expected")
        if self.choice and text not in self.choice:
            raise ValueError(f"one of {', '.join(self.choice)} expected")
        if self.kind is bool:
            if text.lower() not in ("true", "false", "1", "0"):
                raise ValueError("true or false expected")
            return text.lower() in ("true", "1")
        if self.kind is datetime:
            return parse_instant(text)
        if self.kind is str:
            return text
        try:
            number: int | float = int(text) if self.kind is int else float(text)
        except ValueError as error:
            raise ValueError("a whole number expected" if self.kind is int else "a number expected") from error
        if not isfinite(number) or (self.low is not None and number < self.low):
            raise ValueError("a finite number expected" if self.low is None else f"{self.low:g} or more expected")
        if self.kind is int and abs(number) >= 2**63:
            raise ValueError("a number below 2**63 expected")
        return number


def parse_instant(text: str) -> datetime:
    """Raises ValueError with what was expected."""
    try:
        moment = datetime.fromisoformat(text)
    except ValueError as error:
        raise ValueError("ISO 8601 expected, e.g. 2026-05-01T00:00:00+08:00") from error
    if moment.tzinfo is None:
        raise ValueError(f"an offset expected, e.g. {text}+08:00")
    return moment.astimezone(UTC)


@dataclass(frozen=True, slots=True)
class File:
    """One CSV file. ``key`` columns are unique together, ``unique`` each alone; ``refers``: column → file, column.

    Where the file has the column ``valid_from``, lines with one key follow each other in time instead.
    """

    name: str
    columns: tuple[Column, ...]
    key: tuple[str, ...]
    unique: tuple[str, ...] = ()
    refers: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    optional: bool = False


_NAMES = (Column("name_en"), Column("name_zh"))
_DATES = (Column("valid_from", datetime, optional=True), Column("valid_to", datetime, optional=True))
OPENING: Final = tuple(f"opening_{name}" for name in ENERGY_NAMES)
CLOSING: Final = tuple(f"closing_{name}" for name in ENERGY_NAMES)
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
        "area_feeders.csv", (Column("area_id"), Column("feeder_id"), *_DATES), ("area_id",), (),
        {"area_id": ("areas.csv", "area_id"), "feeder_id": ("feeders.csv", "feeder_id")}, optional=True,
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
            Column("template", optional=True), Column("counter_modulus_wh", int, 1, optional=True), *_DATES,
            *(Column(name, int, 0, optional=True) for name in (*OPENING, *CLOSING)),
        ),
        ("gateway", "wire_name"), ("serial", "point"),
        {"area_id": ("areas.csv", "area_id"), "node_id": ("nodes.csv", "node_id"), "gateway": ("areas.csv", "gateway")},
    ),
)  # fmt: skip
_BY_NAME: Final = {file.name: file for file in FILES}
REFERRED: Final = frozenset(target for file in FILES for target in file.refers.values())


@dataclass(frozen=True, slots=True)
class Registry:
    """Rows by file name, checked, with their lines; ``dated``: the files that state whole histories."""

    rows: Mapping[str, Sequence[Row]]
    lines: Mapping[str, Sequence[int]]
    dated: frozenset[str]


def read_registry(
    source: Path | Sequence[Path], known: Mapping[tuple[str, str], Collection[Value]] | None = None
) -> Registry | list[Problem]:
    """The registry in a folder, or in some of its files, or every problem of every file.

    ``known``: file and column → what is on record, for references to files that are not given.
    """
    problems: list[Problem] = []
    rows: dict[str, list[Row]] = {file.name: [] for file in FILES}
    lines: dict[str, list[int]] = {file.name: [] for file in FILES}
    dated: set[str] = set()
    paths = [source / file.name for file in FILES] if isinstance(source, Path) else list(source)
    given = {path.name: path for path in paths}
    problems += [
        Problem(str(path), 0, f"one of {', '.join(_BY_NAME)} expected") for path in paths if path.name not in _BY_NAME
    ]
    for name, path in given.items():
        if name in _BY_NAME and (not _BY_NAME[name].optional or path.exists()):
            rows[name], lines[name], header = _read(path, _BY_NAME[name], problems)
            if "valid_from" in header:
                dated.add(name)
    broken = {problem.file for problem in problems if problem.line <= 1}  # what refers to these cannot be judged
    for file in FILES:
        for column, (target, target_column) in file.refers.items():
            if target in broken:
                continue
            here = {row.get(target_column) for row in rows[target]}
            if target not in given:
                here |= set((known or {}).get((target, target_column), ()))
            problems += [
                Problem(file.name, line, f'{column}: "{row[column]}" is not in {target}')
                for row, line in zip(rows[file.name], lines[file.name], strict=True)
                if column in row and row[column] not in here
            ]
    return (
        sorted(problems, key=lambda one: (one.file, one.line)) if problems else Registry(rows, lines, frozenset(dated))
    )


def _read(path: Path, file: File, problems: list[Problem]) -> tuple[list[Row], list[int], list[str]]:
    """Rows, their lines, the header. A row keeps the columns that parsed, so that one bad cell is one problem."""
    rows: list[Row] = []
    lines: list[int] = []
    header: list[str] = []
    seen: dict[tuple[str, ...], dict[tuple[Value, ...], int]] = {}
    names = [column.name for column in file.columns]
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            reader = csv.DictReader(stream, strict=True)
            header = list(reader.fieldnames or [])
            absent = [column.name for column in file.columns if column.name not in header and not column.optional]
            strange = [name for name in header if name not in names]
            problems += [Problem(file.name, 1, f'column "{name}" is missing') for name in absent]
            problems += [
                Problem(file.name, 1, f'column "{name}" is not known; {", ".join(names)} expected') for name in strange
            ]
            if absent or strange or len(set(header)) < len(header):
                if not absent and not strange:
                    problems.append(Problem(file.name, 1, "a column is there twice"))
                return rows, lines, header
            columns = [column for column in file.columns if column.name in header]
            keys = () if "valid_from" in header else (file.key, *((name,) for name in file.unique))
            for cells in reader:
                if len(rows) == ROWS_MAX:
                    problems.append(Problem(file.name, reader.line_num, f"at most {ROWS_MAX} rows expected"))
                    break
                line = reader.line_num
                if None in cells or None in cells.values():
                    problems.append(Problem(file.name, line, f"{len(header)} columns expected"))
                    continue
                row: Row = {}
                for column in columns:
                    text = cells[column.name].strip()
                    try:
                        row[column.name] = column.parse(text)
                    except ValueError as error:
                        problems.append(Problem(file.name, line, f'{column.name}: {error}, got "{text}"'))
                for key in keys:
                    if all(name in row for name in key):
                        value = tuple(row[name] for name in key)
                        first = seen.setdefault(key, {}).setdefault(value, line)
                        if first != line:
                            text = f"{'+'.join(key)}: {' '.join(map(str, value))} is already on line {first}"
                            problems.append(Problem(file.name, line, text))
                start, end = row.get("valid_from"), row.get("valid_to")
                if isinstance(start, datetime) and isinstance(end, datetime) and start >= end:
                    problems.append(Problem(file.name, line, f"valid_to: later than {start:%FT%TZ} expected"))
                template = row.get("template")
                if template and template not in template_names() and not row.get("counter_modulus_wh"):
                    text = f'template: "{template}" is none of ours; state counter_modulus_wh with it'
                    problems.append(Problem(file.name, line, text))
                rows.append(row)
                lines.append(line)
    except FileNotFoundError:
        problems.append(Problem(file.name, 0, f"not found in {path.parent}"))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        problems.append(Problem(file.name, 0, f"cannot be read: {error}"))
    return rows, lines, header


def write_registry(folder: Path, rows: Mapping[str, Sequence[Sequence[Value]]]) -> None:
    """All files, their columns in the order of ``FILES``; what ``read_registry`` reads again."""
    folder.mkdir(parents=True, exist_ok=True)
    for file in FILES:
        with (folder / file.name).open("w", encoding="utf-8", newline="") as stream:
            writer = csv.writer(stream, lineterminator="\n")
            writer.writerow([column.name for column in file.columns])
            writer.writerows([[_text(value) for value in row] for row in rows[file.name]])


def _text(value: Value) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    return value.astimezone(UTC).isoformat().replace("+00:00", "Z") if isinstance(value, datetime) else str(value)
