"""The forecasts somebody would have had: rolling origins over the last days of a panel, scored, with what they cost."""

import os
import resource
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Final, ParamSpec, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from cloud.engines.forecast import DEFAULT, LEVELS, MEMBERS, forecast
from cloud.forecast import trees
from cloud.forecast.panel import Panel, PanelError
from cloud.forecast.scores import Array, Scores, scores

HOURS_PER_DAY: Final = 24
ENSEMBLE: Final = "ensemble"
# A week to have last week's value, and a day of it to be measured against.
PAST_DAYS_MIN: Final = 8
_FIGURES: Final = ("mase", "wape", "wql", "cov80", "wall_s", "cpu_s", "series_origins_per_s_core", "peak_mb")

P = ParamSpec("P")
T = TypeVar("T")


class MethodError(ValueError):
    """No such method."""


@dataclass(frozen=True, slots=True)
class Window:
    """What is forecast when: ``horizon`` steps from each of O origins, of which the steps ``scored`` count.

    Those are the last day the horizon reaches: the same 24 hours of a day however early they are forecast.
    """

    origins: NDArray[np.int64]
    horizon: int
    scored: slice

    @property
    def steps(self) -> NDArray[np.int64]:
        """(O·N,) steps of the panel that are scored, ascending."""
        ahead = np.arange(self.scored.start, self.scored.stop)
        return (self.origins[:, None] + ahead).ravel()

    @property
    def made(self) -> NDArray[np.int64]:
        """(O·N,) the origin of each."""
        return np.repeat(self.origins, self.scored.stop - self.scored.start)


def window(panel: Panel, days: int = 28, origin_hour: int = 0, horizon_h: int = 24) -> Window:
    """The last ``days`` days of the panel. Raises PanelError where it is too short for them."""
    day, hour = panel.steps_per_day, panel.steps_per_day / HOURS_PER_DAY
    if (origin_hour * hour) % 1 or (horizon_h * hour) % 1:
        raise PanelError(f"{panel.name}: hours that are whole steps of {panel.step_minutes} minutes expected")
    before = -(-(origin_hour + horizon_h) // HOURS_PER_DAY) - 1  # days from the origin's day to the test day
    past = panel.days - days - before
    if past < PAST_DAYS_MIN:
        need = PAST_DAYS_MIN + before
        enough = panel.days - need
        hint = f"; try --days {enough}" if enough > 0 else ""
        raise PanelError(f"{panel.name}: {panel.days} days of load, {need + days} needed ({need} before {days}){hint}")
    origin, horizon = int(origin_hour * hour), int(horizon_h * hour)
    first = (panel.days - days - before) * day + origin
    return Window(first + day * np.arange(days), horizon, slice(max(0, before * day - origin), horizon))


def members(method: str) -> tuple[str, ...]:
    """The members a method stands for: a name, or several as in ``ridge+kernel``; ``ensemble`` are those by default.

    Raises MethodError where there is no such member, or not without LightGBM.
    """
    names: list[str] = []
    for part in method.split("+"):
        if part not in (ENSEMBLE, trees.NAME, *MEMBERS):
            every = ", ".join((ENSEMBLE, *MEMBERS, trees.NAME))
            raise MethodError(f'"{part}": {every}, or several as in {ENSEMBLE}+NAME expected')
        if part == trees.NAME and not trees.installed():
            raise MethodError(trees.NEEDS)
        names += DEFAULT if part == ENSEMBLE else (part,)
    return tuple(dict.fromkeys(names))


@dataclass(frozen=True, slots=True)
class Cost:
    """Of fitting and forecasting alone: seconds of wall and of CPU, and the process's peak memory with all it holds."""

    wall_s: float
    cpu_s: float
    peak_mb: float


@dataclass(frozen=True, slots=True)
class Backtest:
    """A method over a window: S series, N scored steps.  point: (S, N).  quantiles: (S, N, Q) at LEVELS."""

    point: Array
    quantiles: Array
    cost: Cost


def backtest(panel: Panel, test: Window, method: str) -> Backtest:
    """Forecast in this process."""
    inputs = panel.inputs()
    chosen = members(method)
    wall, cpu = time.perf_counter(), time.process_time()
    made = forecast(inputs, test.origins, test.horizon, members=chosen, extra={trees.NAME: trees.trees})
    cost = Cost(time.perf_counter() - wall, time.process_time() - cpu, peak_mb())
    series = len(panel.series)
    point = made.point[:, :, test.scored].swapaxes(0, 1).reshape(series, -1)
    quantiles = made.quantiles[:, :, test.scored].swapaxes(0, 1).reshape(series, -1, len(LEVELS))
    return Backtest(point, quantiles, cost)


def score(panel: Panel, test: Window, made: Backtest) -> Scores:
    week = 7 * panel.steps_per_day
    steps = test.steps
    return scores(panel.load[:, steps], made.point, made.quantiles, LEVELS, panel.load[:, : steps[0]], week)


def figures(scored: Scores, cost: Cost, series_origins: int) -> dict[str, float | None]:
    """As `--json` prints them; null where there is none."""
    told = asdict(scored) | asdict(cost) | {"series_origins_per_s_core": series_origins / max(cost.cpu_s, 1e-9)}
    return {key: _rounded(told[key]) for key in _FIGURES}


def _rounded(value: float) -> float | None:
    return float(f"{value:.6g}") if np.isfinite(value) else None


def write(path: Path, panel: Panel, test: Window, made: Backtest) -> None:
    """One row a series and step: series, origin, time, mean, q5 … q95; parquet."""
    series, steps = made.point.shape
    names = pa.DictionaryArray.from_arrays(
        pa.array(np.repeat(np.arange(series, dtype=np.int32), steps)), pa.array(panel.series)
    )
    columns: dict[str, Any] = {
        "series": names.cast(pa.string()),
        "origin": pa.array(np.tile(panel.times(test.made), series).astype("datetime64[ns]")),
        "time": pa.array(np.tile(panel.times(test.steps), series).astype("datetime64[ns]")),
        "mean": pa.array(made.point.ravel()),
    }
    for k, level in enumerate(LEVELS):
        columns[f"q{round(100 * level)}"] = pa.array(made.quantiles[..., k].ravel())
    try:
        pq.write_table(pa.table(columns), path, compression="zstd")
    except OSError as error:
        raise PanelError(f"{path}: cannot be written: {error.strerror or error}") from error


# ---- a process of its own --------------------------------------------------------------------------------------------


def apart(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Call in a fresh process with one thread a core, so that memory and time are its own."""
    before = {name: os.environ.get(name) for name in _THREADS}
    os.environ.update({name: value or "1" for name, value in before.items()})
    try:
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            return pool.submit(function, *args, **kwargs).result()
    except BrokenProcessPool as error:
        raise MemoryError("the process that forecast was ended, most likely for want of memory") from error
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]


_THREADS: Final = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS")


def peak_mb() -> float:
    """Peak resident memory of this process."""
    try:
        # Not getrusage: a child begins there with its parent's peak.
        status = Path("/proc/self/status").read_text()
        return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM")) / 1024
    except (OSError, StopIteration):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
