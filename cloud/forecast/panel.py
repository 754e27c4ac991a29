"""A panel: a folder with loads, weather and what they are, read into what the forecast engine takes.

``load.parquet``: column ``time`` (naive, the panel's own standard time, a regular step) and a numeric column for each
series, null where missing.  ``weather.parquet``, where there is one: the same times, any numeric columns;
``X_forecast…`` is what was forecast of X for that step the day before.  ``meta.json``: unit, country, step_minutes.
"""

import json
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from cloud.engines.forecast import DAYS_AHEAD, Inputs
from cloud.forecast.calendar import Days, days

Array = NDArray[np.float64]

MINUTES_PER_DAY: Final = 1440
_EVER: Final = 2**31  # steps: known however far ahead
_TIME: Final = "time"


class PanelError(ValueError):
    """The folder is not a panel; the text says what, where and what to do."""


@dataclass(frozen=True, slots=True)
class Panel:
    """S series over whole days from midnight: T steps; W columns of weather. NaN where missing.

    load: (S, T) in ``unit``.  weather: (W, T), planned and measured columns beside each other.  lead: (W,) steps beyond
    an origin for which a column is known.  ex_post: weather taken as it was, since nobody kept what was forecast of it.
    planned: weather taken as it was forecast.
    """

    name: str
    series: tuple[str, ...]
    load: Array
    start: np.datetime64
    step_minutes: int
    unit: str
    country: str | None
    weather: Array
    lead: NDArray[np.int64]
    ex_post: tuple[str, ...] = ()
    planned: tuple[str, ...] = ()

    @property
    def steps_per_day(self) -> int:
        return MINUTES_PER_DAY // self.step_minutes

    @property
    def days(self) -> int:
        return int(self.load.shape[1]) // self.steps_per_day

    def times(self, steps: NDArray[np.int64]) -> NDArray[np.datetime64]:
        return self.start + steps * np.timedelta64(self.step_minutes, "m")

    def calendar(self) -> Days:
        first: date = self.start.astype("datetime64[D]").astype(date)
        try:
            return days(first, self.days + DAYS_AHEAD, self.country)
        except ValueError as error:
            raise PanelError(f"{self.name}/meta.json: {error}") from error

    def inputs(self) -> Inputs:
        worked = self.calendar()
        return Inputs(
            load=self.load, step_minutes=self.step_minutes, start=self.start, day_kind=worked.day_kind,
            holiday=worked.holiday, holiday_day=worked.holiday_day, weather=self.weather, weather_lead=self.lead,
        )  # fmt: skip

    def shifted(self, back: int) -> "Panel":
        """The panel as it was ``back`` days before its end."""
        if not 0 <= back < self.days:
            raise PanelError(f"{self.name}: {self.days} days cannot be shifted back by {back}")
        kept = (self.days - back) * self.steps_per_day
        return replace(self, load=self.load[:, :kept], weather=self.weather[:, :kept])


def read_panel(folder: Path) -> Panel:
    """Read a folder; the last day is left out unless it is whole. Raises PanelError."""
    if not folder.is_dir():
        raise PanelError(f"{folder}: a folder with load.parquet and meta.json expected")
    meta = _meta(folder / "meta.json")
    table = _table(folder / "load.parquet")
    times, names, load = _columns(table, folder / "load.parquet")
    step = _step(times, folder / "load.parquet")
    if (told := meta.get("step_minutes", step)) != step:
        raise PanelError(f"{folder}/meta.json: step_minutes is {told}, but load.parquet has a row every {step} minutes")
    day = MINUTES_PER_DAY // step
    start = times[0].astype("datetime64[D]").astype("datetime64[m]")
    before = int((times[0] - start) // np.timedelta64(step, "m"))
    if start + np.timedelta64(before * step, "m") != times[0]:
        raise PanelError(f"{folder}/load.parquet: {times[0]} is no whole number of {step}-minute steps after midnight")
    kept = (before + len(times)) // day * day
    if not kept:
        raise PanelError(f"{folder}/load.parquet: not one whole day from midnight to midnight")
    panel = Panel(
        name=folder.resolve().name,
        series=names,
        load=_placed(load, before, kept),
        start=start,
        step_minutes=step,
        unit=str(meta.get("unit", "")),
        country=None if meta.get("country") is None else str(meta["country"]),
        weather=np.empty((0, kept)),
        lead=np.empty(0, np.int64),
    )
    panel.calendar()  # an unknown country is told now
    if (folder / "weather.parquet").exists():
        panel = _with_weather(panel, folder / "weather.parquet")
    return panel


def _with_weather(panel: Panel, path: Path) -> Panel:
    times, names, values = _columns(_table(path), path)
    step = _step(times, path)
    if step != panel.step_minutes:
        raise PanelError(f"{path}: a row every {step} minutes, load.parquet every {panel.step_minutes}")
    before = int((times[0] - panel.start) // np.timedelta64(step, "m"))
    if panel.start + np.timedelta64(before * step, "m") != times[0]:
        raise PanelError(f"{path}: its times lie between those of load.parquet")
    if before >= panel.load.shape[1] or before + len(times) <= 0:
        raise PanelError(f"{path}: from {times[0]} to {times[-1]}, where load.parquet has nothing")
    column = dict(zip(names, _placed(values, before, panel.load.shape[1]), strict=True))
    forecasts = {name: _measured_name(name, names) for name in names if "_forecast" in name}
    rows: list[Array] = []
    leads: list[int] = []
    for name in names:
        planned = next((known for known, of in forecasts.items() if of == name and known != name), None)
        if name in forecasts and forecasts[name] != name:
            continue  # stands in the column it foretells
        rows.append(column[name])
        leads.append(_EVER if planned is None else 0)
        if planned is not None:
            # Where no forecast was kept, what came true stands for it: the years before the archive begins.
            rows.append(np.where(np.isfinite(column[planned]), column[planned], column[name]))
            leads.append(_EVER)
    return replace(
        panel,
        weather=np.stack(rows),
        lead=np.array(leads, np.int64),
        ex_post=tuple(name for name in names if name not in forecasts and name not in forecasts.values()),
        planned=tuple(forecasts),
    )


def _measured_name(name: str, names: tuple[str, ...]) -> str:
    """The column that ``X_forecast…`` foretells: X, or X and what follows; itself where neither is there."""
    stem, _, rest = name.partition("_forecast")
    return next((known for known in (stem, stem + rest) if known in names), name)


def _meta(path: Path) -> dict[str, object]:
    try:
        meta = json.loads(path.read_text())
    except FileNotFoundError:
        raise PanelError(f'{path}: missing; a document such as {{"unit": "kW", "country": "CN"}} expected') from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise PanelError(f"{path}: no JSON: {error}") from error
    if not isinstance(meta, dict):
        raise PanelError(f"{path}: an object with unit, country and step_minutes expected")
    return meta


def _table(path: Path) -> pa.Table:
    try:
        return pq.read_table(path)
    except FileNotFoundError:
        raise PanelError(f"{path}: missing") from None
    except (OSError, pa.ArrowInvalid) as error:
        raise PanelError(f"{path}: no parquet file: {error}") from error


def _columns(table: pa.Table, path: Path) -> tuple[NDArray[np.datetime64], tuple[str, ...], Array]:
    """Times (T,), names of the other columns, and their values (S, T)."""
    if _TIME not in table.column_names:
        raise PanelError(f"{path}: no column {_TIME}, only {', '.join(table.column_names[:5])}")
    names = tuple(name for name in table.column_names if name != _TIME)
    if not names:
        raise PanelError(f"{path}: no column beside {_TIME}")
    if len(set(names)) < len(names):
        raise PanelError(f"{path}: two columns of the same name")
    kind = table.schema.field(_TIME).type
    if not pa.types.is_timestamp(kind) or kind.tz is not None:
        raise PanelError(f"{path}: {_TIME}: naive timestamps in the panel's own standard time expected, got {kind}")
    for name in names:
        kind = table.schema.field(name).type
        if not (pa.types.is_floating(kind) or pa.types.is_integer(kind) or pa.types.is_boolean(kind)):
            raise PanelError(f"{path}: column {name}: numbers expected, got {kind}")
    if table.column(_TIME).null_count:
        raise PanelError(f"{path}: {_TIME}: {table.column(_TIME).null_count} rows without a time")
    times = table.column(_TIME).to_numpy().astype("datetime64[s]")
    values = np.empty((len(names), table.num_rows))
    for row, name in enumerate(names):
        values[row] = pc.cast(table.column(name), pa.float64()).to_numpy()
    values[~np.isfinite(values)] = np.nan
    return times, names, values


def _step(times: NDArray[np.datetime64], path: Path) -> int:
    """Minutes from row to row."""
    if len(times) < 2:
        raise PanelError(f"{path}: {len(times)} rows; at least two expected")
    gaps = np.diff(times).astype(np.int64)
    if not gaps.all():
        at = int(np.flatnonzero(gaps == 0)[0])
        raise PanelError(f"{path}: {times[at]} is there twice")
    usual = int(np.median(gaps))
    if (gaps != usual).any():
        at = int(np.flatnonzero(gaps != usual)[0])
        raise PanelError(
            f"{path}: irregular step: {usual / 60:g} minutes is usual, but {times[at + 1]} follows {times[at]}; "
            "give every step a row in order of time, null where nothing was measured"
        )
    if usual < 60 or usual % 60 or MINUTES_PER_DAY % (usual // 60):
        raise PanelError(f"{path}: a step of {usual / 60:g} minutes; whole minutes that divide a day expected")
    return usual // 60


def _placed(values: Array, before: int, steps: int) -> Array:
    """(R, steps) of ``values`` (R, N), the first of which stands at step ``before``; NaN elsewhere."""
    placed = np.full((len(values), steps), np.nan)
    first, last = max(0, before), min(steps, before + values.shape[1])
    placed[:, first:last] = values[:, first - before : last - before]
    return placed
