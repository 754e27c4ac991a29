"""A network with measurements in a folder: CSV for what stands in the field, parquet for what was measured.

``nodes.csv``, ``lines.csv`` and ``transformers.csv`` may be missing (the technical loss is then fitted, not computed);
``meters.csv`` and ``measurements.parquet`` may not. ``areas.csv`` names limits and what areas are summed up in.
Every problem is told with its file and line, all at once.
"""

import csv
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any, Final, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from protocols.quantities import Quality

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]

PROBLEMS_MAX: Final = 20  # told one by one; the rest is counted
KINDS: Final = ("source", "bus", "customer")
TAP_STEP: Final = 0.025
_TURNS: Final = (0.8, 1.2)
ROLES: Final = ("supply", "customer", "check", "generation")
PHASES: Final = ("abc", "ab", "bc", "ac", "a", "b", "c")
AREA: Final = "area"  # where meters.csv names no area, all meters are one
_REFUSED: Final = Quality.IMPLAUSIBLE | Quality.METER_ERROR
_WORDS_ESTIMATED: Final = ("estimated", "e", "substituted", "imputed")
_WORDS_REFUSED: Final = ("missing", "bad", "invalid", "implausible", "m")


class FolderError(ValueError):
    """The folder cannot be read; ``problems`` has one sentence for each thing to correct."""

    def __init__(self, problems: Sequence[str]) -> None:
        self.problems = tuple(problems)
        more = len(problems) - PROBLEMS_MAX
        super().__init__("\n".join((*problems[:PROBLEMS_MAX], *([f"… and {more} more"] if more > 0 else []))))


def _text(value: str) -> str:
    return value


def _number(value: str) -> float:
    number = float(value)
    if not math.isfinite(number):
        raise ValueError("a finite number expected")
    return number


def _at_least_0(value: str) -> float:
    if (number := _number(value)) < 0:
        raise ValueError("0 or more expected")
    return number


def _above_0(value: str) -> float:
    if (number := _number(value)) <= 0:
        raise ValueError("more than 0 expected")
    return number


def _tap(value: str) -> float:
    """Ratio of turns over its rating. Nothing is built below 0.8 or above 1.2: any other number is a position."""
    number = _number(value)
    ratio = number if _TURNS[0] < number < _TURNS[1] else 1 + TAP_STEP * number
    if not _TURNS[0] < ratio < _TURNS[1]:
        raise ValueError("a ratio of turns near 1, or a position of 2.5 % each and 0 in the middle expected")
    return ratio


def _flag(value: str) -> bool:
    if value.lower() not in ("0", "1", "true", "false"):
        raise ValueError("0 or 1 expected")
    return value.lower() in ("1", "true")


def _one_of(*choices: str) -> Callable[[str], str]:
    def read(value: str) -> str:
        if value not in choices:
            raise ValueError(f"{', '.join(choices)} expected")
        return value

    return read


def _phases(value: str) -> str:
    phases = "".join(sorted(value.lower()))
    if phases not in PHASES:
        raise ValueError("abc, a, b or c expected")
    return phases


def _column(read: Callable[[str], Any], **options: Any) -> Any:
    """A column of a CSV file; without a default its value must be there in each row."""
    return field(metadata={"read": read}, **options)


@dataclass(frozen=True, slots=True)
class Node:
    node_id: str = _column(_text)
    kind: str = _column(_one_of(*KINDS))
    phases: str = _column(_phases, default="abc")
    area_id: str | None = _column(_text, default=None)
    x: float | None = _column(_number, default=None)
    y: float | None = _column(_number, default=None)
    neutral_earthed: bool = _column(_flag, default=False)


@dataclass(frozen=True, slots=True)
class Line:
    line_id: str = _column(_text)
    from_node: str = _column(_text)
    to_node: str = _column(_text)
    length_m: float = _column(_at_least_0)
    r_ohm_per_km: float = _column(_at_least_0)
    x_ohm_per_km: float = _column(_number)
    r0_ohm_per_km: float | None = _column(_at_least_0, default=None)
    x0_ohm_per_km: float | None = _column(_number, default=None)
    r_neutral_ohm_per_km: float | None = _column(_at_least_0, default=None)
    x_neutral_ohm_per_km: float | None = _column(_number, default=None)
    rated_current_a: float | None = _column(_above_0, default=None)
    phases: str = _column(_phases, default="abc")


@dataclass(frozen=True, slots=True)
class Transformer:
    """``tap``: turns of the high-voltage side over their rating, 1 in the middle; a position becomes one on reading."""

    transformer_id: str = _column(_text)
    hv_node: str = _column(_text)
    lv_node: str = _column(_text)
    rated_kva: float = _column(_above_0)
    hv_v: float = _column(_above_0)
    lv_v: float = _column(_above_0)
    no_load_loss_w: float = _column(_at_least_0)
    load_loss_w: float = _column(_at_least_0)
    impedance_percent: float = _column(_above_0)
    tap: float = _column(_tap, default=1.0)
    vector_group: str = _column(_text, default="Dyn11")


@dataclass(frozen=True, slots=True)
class Meter:
    meter_id: str = _column(_text)
    node_id: str = _column(_text)
    role: str = _column(_one_of(*ROLES))
    phases: str = _column(_phases, default="abc")
    ct_ratio: float = _column(_above_0, default=1.0)
    pt_ratio: float = _column(_above_0, default=1.0)
    accuracy_class: str | None = _column(_text, default=None)
    area_id: str = _column(_text, default=AREA)


@dataclass(frozen=True, slots=True)
class Area:
    """A row of areas.csv, which may be missing. ``parent_id``: the feeder or substation it is summed up in; limits of
    its loss in percent of the energy fed in."""

    area_id: str = _column(_text)
    parent_id: str | None = _column(_text, default=None)
    low_percent: float | None = _column(_number, default=None)
    high_percent: float | None = _column(_number, default=None)


@dataclass(frozen=True, slots=True)
class Meters:
    """M meters in the order of meters.csv, one column each in every array of ``Measurements``."""

    rows: tuple[Meter, ...]

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def meter_id(self) -> NDArray[np.str_]:
        return np.array([meter.meter_id for meter in self.rows], np.str_)

    @property
    def area_id(self) -> NDArray[np.str_]:
        return np.array([meter.area_id for meter in self.rows], np.str_)

    @property
    def role(self) -> NDArray[np.str_]:
        return np.array([meter.role for meter in self.rows], np.str_)


@dataclass(frozen=True, slots=True)
class Measurements:
    """T intervals of M meters, NaN where missing. Energies are primary: ratios are applied already.

    ``time``: (T,) UTC interval starts without a gap, ``step_s`` apart.  ``imported_wh``, ``exported_wh``: (T, M);
    a meter that never exports has 0.  ``imported_varh``, ``exported_varh``: (T, M), ``voltage_v``: (T, M, 3), None
    where no meter has them.  ``estimated``: (T, M), what the quality column calls so.
    """

    time: NDArray[np.datetime64]
    step_s: int
    imported_wh: Array
    exported_wh: Array
    imported_varh: Array | None
    exported_varh: Array | None
    voltage_v: Array | None
    estimated: Mask


@dataclass(frozen=True, slots=True)
class Folder:
    path: Path
    meters: Meters
    measurements: Measurements
    nodes: tuple[Node, ...]
    lines: tuple[Line, ...]
    transformers: tuple[Transformer, ...]
    registry: tuple[Area, ...] = ()

    @property
    def areas(self) -> list[str]:
        """In the order of meters.csv."""
        return list(dict.fromkeys(meter.area_id for meter in self.meters.rows))


def read(path: Path) -> Folder:
    """Raises FolderError with every problem found."""
    problems: list[str] = []
    meters = tuple(_rows(path / "meters.csv", Meter, problems, required=True))
    nodes = tuple(_rows(path / "nodes.csv", Node, problems))
    lines = tuple(_rows(path / "lines.csv", Line, problems))
    transformers = tuple(_rows(path / "transformers.csv", Transformer, problems))
    registry = tuple(_rows(path / "areas.csv", Area, problems))
    known = {node.node_id for node in nodes}
    if nodes:
        for file, ends in (
            ("lines.csv", [(line.line_id, (line.from_node, line.to_node)) for line in lines]),
            ("transformers.csv", [(unit.transformer_id, (unit.hv_node, unit.lv_node)) for unit in transformers]),
            ("meters.csv", [(meter.meter_id, (meter.node_id,)) for meter in meters]),
        ):
            problems += [
                f"{file}: {name}: node {node} is not in nodes.csv; add or correct it"
                for name, names in ends
                for node in names
                if node not in known
            ]
    measurements = _measurements(path / "measurements.parquet", [meter.meter_id for meter in meters], problems)
    if problems or measurements is None:
        raise FolderError(problems)
    return Folder(path, Meters(meters), measurements, nodes, lines, transformers, registry)


Row = TypeVar("Row", Node, Line, Transformer, Meter, Area)


def _rows(path: Path, kind: type[Row], problems: list[str], *, required: bool = False) -> Iterator[Row]:
    """The rows of a CSV file; what is wrong with it goes to ``problems``. Unknown columns are left alone."""
    if not path.exists():
        if required:
            problems.append(f"{path}: missing; the folder needs {path.name}")
        return
    columns = {column.name: column for column in fields(kind)}
    needed = [name for name, column in columns.items() if column.default is MISSING]
    key = next(iter(columns))
    seen: dict[str, int] = {}
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            header = reader.fieldnames or []
            if gone := [name for name in needed if name not in header]:
                problems.append(f"{path}:1: column {', '.join(gone)} missing; see the header of the format")
                return
            for row in reader:
                values: dict[str, Any] = {}
                for name in columns.keys() & set(header):
                    text = (row[name] or "").strip()
                    if not text:
                        if name in needed:
                            problems.append(f"{path}:{reader.line_num}: {name}: a value expected")
                        continue
                    try:
                        values[name] = columns[name].metadata["read"](text)
                    except ValueError as error:
                        why = str(error) if "expected" in str(error) else "a number expected"
                        problems.append(f'{path}:{reader.line_num}: {name}: {why}, got "{text}"')
                if not all(name in values for name in needed):
                    continue
                if values[key] in seen:
                    problems.append(
                        f"{path}:{reader.line_num}: {key}: {values[key]} is there twice, see line {seen[values[key]]}"
                    )
                    continue
                seen[values[key]] = reader.line_num
                yield kind(**values)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        problems.append(f"{path}: {error}; UTF-8 with a header line expected")
    if required and not seen and not problems:
        problems.append(f"{path}: no rows; name at least a supply and a customer meter")


_ENERGY: Final = ("imported_wh", "exported_wh", "imported_varh", "exported_varh")
_VOLTAGE: Final = ("voltage_l1_v", "voltage_l2_v", "voltage_l3_v")


def _measurements(path: Path, meter_ids: Sequence[str], problems: list[str]) -> Measurements | None:
    if not path.exists():
        problems.append(f"{path}: missing; the folder needs {path.name}")
        return None
    try:
        table = pq.read_table(path, partitioning=None)
    except (OSError, pa.ArrowException) as error:
        problems.append(f"{path}: not a parquet file that can be read: {error}")
        return None
    if gone := [name for name in ("time", "meter_id", "imported_wh") if name not in table.column_names]:
        problems.append(f"{path}: column {', '.join(gone)} missing")
        return None
    if not pa.types.is_timestamp(table["time"].type):
        problems.append(f"{path}: time: a timestamp in UTC expected, got {table['time'].type}")
        return None
    if table.num_rows == 0 or table["time"].null_count or table["meter_id"].null_count:
        problems.append(f"{path}: time, meter_id: a value expected in every row, and at least one row")
        return None
    column = _meter_columns(path, table["meter_id"], meter_ids, problems)
    at_us = table["time"].cast(pa.timestamp("us", table["time"].type.tz)).cast(pa.int64()).to_numpy()
    marks = np.sort(pc.unique(pa.array(at_us)).to_numpy())
    step_us = int(np.diff(marks).min()) if len(marks) > 1 else 900_000_000
    off = (marks - marks[0]) % step_us != 0
    if off.any():
        first = np.datetime64(int(marks[np.argmax(off)]), "us")
        problems.append(
            f"{path}: time: {first} is not a whole number of {step_us // 1_000_000} s intervals after "
            f"{np.datetime64(int(marks[0]), 'us')}; one interval length expected"
        )
    if problems or column is None:
        return None
    count = int((marks[-1] - marks[0]) // step_us) + 1
    row = (at_us - marks[0]) // step_us
    cell = row * len(meter_ids) + column
    times = np.bincount(cell, minlength=count * len(meter_ids))
    if times.max() > 1:
        twice = int(times.argmax())
        when = np.datetime64(int(marks[0] + twice // len(meter_ids) * step_us), "us")
        problems.append(f"{path}: {meter_ids[twice % len(meter_ids)]} has two rows at {when}; keep one")
        return None

    refused, estimated = _quality(path, table, problems)

    def wide(name: str) -> Array | None:
        if name not in table.column_names:
            return None
        try:
            values = pc.cast(table[name], pa.float64()).to_numpy().astype(np.float64)  # null becomes NaN
        except pa.ArrowException:
            problems.append(f"{path}: {name}: numbers expected, got {table[name].type}")
            return None
        values[~np.isfinite(values)] = np.nan
        if name in _ENERGY:
            if (values < 0).any():
                at = int(np.argmax(values < 0))
                problems.append(f"{path}: {name}: row {at + 1} has {values[at]:g}; energies are 0 or more")
                return None
            values[refused] = np.nan
        else:
            values[values <= 0] = np.nan  # a phase that is not connected shows 0
        grid = np.full(count * len(meter_ids), np.nan)
        grid[cell] = values
        return grid.reshape(count, len(meter_ids))

    imported, exported, imported_varh, exported_varh = (wide(name) for name in _ENERGY)
    volts = [wide(name) for name in _VOLTAGE]
    if problems or imported is None:
        return None
    gap = np.isnan(imported)
    exported = np.zeros_like(imported) if exported is None else exported
    # A meter without an export register has null there all along; one that has it and skipped a row has a gap.
    never = np.isnan(exported).all(axis=0)
    exported[:, never] = 0.0
    exported[gap] = np.nan
    guess = np.zeros(count * len(meter_ids), np.bool_)
    guess[cell] = estimated
    voltage = None
    if any(value is not None for value in volts):
        voltage = np.stack([np.full_like(imported, np.nan) if value is None else value for value in volts], axis=-1)
    return Measurements(
        time=(marks[0] + step_us * np.arange(count)).astype("datetime64[us]"),
        step_s=step_us // 1_000_000,
        imported_wh=imported,
        exported_wh=exported,
        imported_varh=imported_varh,
        exported_varh=exported_varh,
        voltage_v=voltage,
        estimated=guess.reshape(count, len(meter_ids)) & ~gap,
    )


def _meter_columns(path: Path, column: Any, meter_ids: Sequence[str], problems: list[str]) -> NDArray[np.int64] | None:
    """Column of each row's meter; None when the folder's meters.csv does not know one."""
    if not pa.types.is_dictionary(column.type):
        column = column.cast(pa.string()).dictionary_encode()
    column = column.unify_dictionaries().combine_chunks()
    names = [str(name) for name in column.dictionary.to_pylist()]
    position = {meter_id: at for at, meter_id in enumerate(meter_ids)}
    codes = column.indices.to_numpy(zero_copy_only=False).astype(np.int64)
    used = np.bincount(codes, minlength=len(names)) > 0
    unknown = [name for name, there in zip(names, used, strict=True) if there and name not in position]
    problems += [f"{path}: meter {name} is not in meters.csv; add or correct it" for name in unknown]
    if unknown:
        return None
    at: NDArray[np.int64] = np.array([position.get(name, -1) for name in names], np.int64)[codes]
    return at


def _quality(path: Path, table: pa.Table, problems: list[str]) -> tuple[Mask, Mask]:
    """What must not be used, and what was estimated: bits as in ``protocols.quantities.Quality``, or words."""
    none = np.zeros(table.num_rows, np.bool_)
    if "quality" not in table.column_names:
        return none, none
    column = table["quality"]
    if pa.types.is_integer(column.type):
        bits = column.cast(pa.int64()).fill_null(0).to_numpy()
        return (bits & int(_REFUSED)) != 0, (bits & int(Quality.ESTIMATED)) != 0
    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type) or pa.types.is_dictionary(column.type):
        words = pc.utf8_lower(column.cast(pa.string()).fill_null(""))
        refused, estimated = (
            pc.is_in(words, value_set=pa.array(choices)).to_numpy().astype(np.bool_)
            for choices in (_WORDS_REFUSED, _WORDS_ESTIMATED)
        )
        return refused, estimated
    problems.append(f"{path}: quality: words or whole numbers expected, got {column.type}")
    return none, none
