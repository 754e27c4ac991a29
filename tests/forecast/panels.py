"""Small panels as folders, made by a rule."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

_TIME = {
    "name": "time", "field_name": "time", "pandas_type": "datetime", "numpy_type": "datetime64[ns]", "metadata": None,
}  # fmt: skip


def times(days: int, step_minutes: int = 60, start: str = "2023-01-02") -> np.ndarray[Any, np.dtype[np.datetime64]]:
    steps = np.arange(days * 1440 // step_minutes)
    return (np.datetime64(start, "m") + steps * np.timedelta64(step_minutes, "m")).astype("datetime64[ns]")


def loads(at: np.ndarray[Any, np.dtype[np.datetime64]], series: int = 3) -> dict[str, np.ndarray[Any, np.dtype[Any]]]:
    """A daily wave, a weekend, slow noise; the second has gaps."""
    rng = np.random.default_rng(5)
    minute = (at - at.astype("datetime64[D]")).astype("timedelta64[m]").astype(float)
    free = (at.astype("datetime64[D]").astype(int) + 3) % 7 >= 5
    made = {}
    for i in range(series):
        wave = 10 + 4 * np.sin(2 * np.pi * minute / 1440 + i) - 2 * free + rng.normal(0, 0.8, len(at))
        made[f"s{i}"] = wave.astype(np.float32)
    if series > 1:
        made["s1"][::50] = np.nan
    return made


def write(folder: Path, table: dict[str, Any], name: str = "load.parquet", **meta: Any) -> Path:
    folder.mkdir(exist_ok=True)
    # As pandas writes an index: score.py reads it so.
    index = {"index_columns": ["time"], "column_indexes": [], "columns": [_TIME], "pandas_version": "2.3"}
    pq.write_table(pa.table(table).replace_schema_metadata({"pandas": json.dumps(index)}), folder / name)
    if name == "load.parquet":
        (folder / "meta.json").write_text(json.dumps({"unit": "kW", "country": "CN", **meta}))
    return folder


def panel(folder: Path, days: int = 50, step_minutes: int = 60, series: int = 3) -> Path:
    at = times(days, step_minutes)
    return write(folder, {**loads(at, series), "time": at}, step_minutes=step_minutes)
