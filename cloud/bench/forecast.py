"""``gridloom bench forecast``: the default ensemble and the fastest ridge beside the field's peers, on real panels.

Ours and theirs are programs of the same run, and one program scores them all. Speeds are per second of CPU time, so
that a busy machine does not count against either; wall times are as they were.
"""

import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from datetime import date
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final, TypeAlias

import click
import numpy as np

from cloud.bench.services import BenchError
from cloud.engines.forecast import DAYS_AHEAD, MEMBERS, Inputs, forecast, usual_members
from cloud.forecast.backtest import ENSEMBLE, apart, backtest, peak_mb, score, window
from cloud.forecast.calendar import days
from cloud.forecast.panel import PanelError, read_panel
from cloud.progress import progress

Document: TypeAlias = dict[str, Any]
Begin: TypeAlias = Callable[[str], None]

PANELS: Final = Path("../shared/forecast/panels")
PEERS: Final = Path("../shared/forecast/peers.py")
RIDGES: Final = tuple(name for name in ("ridge", "pooled") if name in MEMBERS)
WITH_TREES: Final = f"{ENSEMBLE}+trees"
WINDOW_DAYS: Final = 28  # as peers.py
NEAR_BEST: Final = 1.02
STEPS_PER_DAY: Final = 96
HISTORY_DAYS: Final = 60
CHUNK: Final = 500  # series a call, so that memory does not grow with their number
PROGRAM_S: Final = 7200
TARGETS: Final = {
    "mase_ratio_mean": 0.98, "mase_ratio_worst": 1.05, "trees_mase_ratio_mean": 0.95, "trees_mase_ratio_worst": 1.0,
    "wql_ratio_worst": 1.0, "ridge_series_origins_per_s_core": 5000.0, "ensemble_to_lightgbm_quantile_speed": 5.0,
}  # fmt: skip
AT_LEAST: Final = ("ridge_series_origins_per_s_core", "ensemble_to_lightgbm_quantile_speed")
_GRIDLOOM: Final = (sys.executable, "-c", "from cloud.gridloom import main; main()")


@click.command(
    name="forecast",
    epilog="""\b
Copy and run:
  gridloom bench forecast --panels panels --peers peers.py
  gridloom bench forecast --quick
  gridloom bench forecast --windows 12 --json
  gridloom bench forecast --part speed --series 100000
""",
)
@click.option("--panels", type=click.Path(path_type=Path), help=f"Folder of panels.  [default: {PANELS}]")
@click.option("--panel", "only", multiple=True, help="Only the panel of this name; may be repeated.")
@click.option("--peers", type=click.Path(path_type=Path), help=f"With score.py beside it.  [default: {PEERS}]")
@click.option("--part", "parts", multiple=True, type=click.Choice(("panels", "speed")), help="Only this.")
@click.option("--windows", default=0, type=click.IntRange(0, 60), help="cov80 over so many windows of 28 days, too.")
@click.option("--series", type=click.IntRange(1, 1_000_000), help="Series of part speed.  [default: 1000 and 10000]")
@click.option("--trees", is_flag=True, help=f"{WITH_TREES}, too.")
@click.option("--quick", is_flag=True, help="The smallest panel, fewer series: shows that it works.")
@click.option("--json", "as_json", is_flag=True, help="Print the figures as one JSON document.")
def forecast_command(
    panels: Path | None, only: tuple[str, ...], peers: Path | None, parts: tuple[str, ...], windows: int,
    series: int | None, trees: bool, quick: bool, as_json: bool,
) -> None:  # fmt: skip
    """Accuracy and speed of the load forecast beside LightGBM, point and quantile, by the protocol on each panel.

    The peers need pip install "gridloom[bench]". Everything is scored by score.py beside peers.py. Takes minutes a
    panel.
    """
    parts = parts or ("panels", "speed")
    sizes = [series] if series else [200] if quick else [1_000, 10_000]
    told: Document = {"panels": [], "speed": [], "summary": {}}
    try:
        folders = _folders(panels or PANELS, only, quick) if "panels" in parts else []
        program = _peers(peers or PEERS) if folders else Path()
        contests = _contests(trees, quick)
        work = len(folders) * (len(contests) + (windows > 0)) + (len(sizes) * 2 if "speed" in parts else 0)
        with TemporaryDirectory(prefix="gridloom-bench-") as room, progress(work) as begin:
            for folder in folders:
                told["panels"].append(_panel(folder, program, contests, windows, Path(room), begin))
            for size in sizes if "speed" in parts else ():
                told["speed"] += [_speed(size, method, begin) for method in (RIDGES[0], ENSEMBLE)]
    except (BenchError, PanelError) as error:
        raise click.ClickException(str(error)) from error
    told["summary"] = _summary(told["panels"])
    load = round(os.getloadavg()[0], 2)
    told["machine"] = {"python": platform.python_version(), "cpus": os.cpu_count(), "load": load, "quick": quick}
    click.echo(json.dumps(told, indent=2) if as_json else "\n".join(_report(told)))


def _contests(trees: bool, quick: bool) -> list[tuple[str, bool]]:
    """Methods, and whether they are ours."""
    ours = [ENSEMBLE, *RIDGES, *([WITH_TREES] if trees else [])]
    theirs = ["naive7", "lightgbm", *([] if quick else ["lightgbm_quantile"])]
    return [(name, True) for name in ours] + [(name, False) for name in theirs]


def _folders(panels: Path, only: Sequence[str], quick: bool) -> list[Path]:
    found = sorted(path.parent for path in panels.glob("*/load.parquet"))
    if unknown := set(only) - {path.name for path in found}:
        raise BenchError(f"{panels}: no panel {', '.join(sorted(unknown))}")
    found = [path for path in found if not only or path.name in only]
    if not found:
        raise BenchError(f"{panels}: no folder with load.parquet; name one with --panels, or try --part speed")
    return sorted(found, key=lambda path: (path / "load.parquet").stat().st_size)[:1] if quick else found


def _peers(path: Path) -> Path:
    for needed in (path, path.with_name("score.py")):
        if not needed.is_file():
            raise BenchError(f"{needed}: missing; name peers.py with --peers (score.py stands beside it)")
    return path.absolute()


# ---- accuracy --------------------------------------------------------------------------------------------------------


def _panel(
    folder: Path, peers: Path, contests: list[tuple[str, bool]], windows: int, room: Path, begin: Begin
) -> Document:
    panel = read_panel(folder)
    rows = {}
    for method, ours in contests:
        begin(f"{panel.name}: {method}")
        out = room / f"{panel.name}-{method}.parquet"
        rows[method] = _ours(folder, method, out) if ours else _theirs(folder, peers, method, out)
        rows[method] |= _scored(folder, peers.with_name("score.py"), out)
        each = len(panel.series) * WINDOW_DAYS
        rows[method]["series_origins_per_s_core"] = each / max(rows[method]["cpu_s"], 1e-9)
    told: Document = {"panel": panel.name, "series": len(panel.series), "methods": rows}
    if windows:
        begin(f"{panel.name}: {windows} windows")
        told["windows"] = apart(_windows, folder, windows)
    return told | _ratios(rows)


def _ours(folder: Path, method: str, out: Path) -> Document:
    options = ["--panel", str(folder), "--methods", method, "--days", str(WINDOW_DAYS), "--json", "--out", str(out)]
    told: Document = _run([*_GRIDLOOM, "forecast", "backtest", *options], f"{folder.name}, {method}")
    (figures,) = told["methods"].values()
    return {key: figures[key] for key in ("wall_s", "cpu_s", "peak_mb")}


def _theirs(folder: Path, peers: Path, method: str, out: Path) -> Document:
    options = ["--panel", str(folder.absolute()), "--method", method, "--out", str(out)]
    told = _run([sys.executable, str(peers), *options], f"{folder.name}, {method}")
    return {key: told[key] for key in ("wall_s", "cpu_s", "peak_mb")}


def _scored(folder: Path, program: Path, out: Path) -> Document:
    options = ["--panel", str(folder.absolute()), "--forecasts", str(out), "--json"]
    told = _run([sys.executable, str(program), *options], f"{folder.name}, score.py")
    return {key: told.get(key) for key in ("mase", "wape", "wql", "cov80")}


def _run(command: Sequence[str], what: str) -> Document:
    """The JSON document a program prints last."""
    one_thread = dict.fromkeys(("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "OMP_THREAD_LIMIT"), "1")
    try:
        done = subprocess.run(
            command, env=os.environ | one_thread, capture_output=True, text=True, timeout=PROGRAM_S, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise BenchError(f"{what}: not done within {PROGRAM_S} s") from error
    lines = done.stdout.strip().splitlines()
    if done.returncode or not lines:
        last = (done.stderr.strip().splitlines() or ["nothing said"])[-1]
        hint = '; pip install "gridloom[bench]"' if "ModuleNotFoundError" in last else ""
        raise BenchError(f"{what}: {last}{hint}")
    told: Document = json.loads(lines[-1])
    return told


def _windows(folder: Path, count: int) -> Document:
    """cov80 of the ensemble over successive windows, the last first; as many as the history bears."""
    panel = read_panel(folder)
    shares: list[float] = []
    measured: list[int] = []
    for back in range(count):
        try:
            earlier = panel.shifted(back * WINDOW_DAYS)
            test = window(earlier, WINDOW_DAYS)
        except PanelError:
            break
        shares.append(score(earlier, test, backtest(earlier, test, ENSEMBLE)).cov80)
        measured.append(int(np.isfinite(earlier.load[:, test.steps]).sum()))
    return {
        "windows": len(shares),
        "cov80": float(np.average(shares, weights=measured)),
        "cov80_lowest": min(shares),
        "cov80_highest": max(shares),
        "cov80_each": [round(share, 4) for share in shares],
    }


def _ratios(rows: dict[str, Document]) -> Document:
    """To LightGBM; the fastest ridge is one whose MASE is near that of the best."""
    best = min(rows[name]["mase"] for name in RIDGES)
    fastest = max(
        (name for name in RIDGES if rows[name]["mase"] <= NEAR_BEST * best),
        key=lambda name: float(rows[name]["series_origins_per_s_core"]),
    )
    ensemble, point, banded = rows[ENSEMBLE], rows["lightgbm"], rows.get("lightgbm_quantile")
    told: Document = {
        "mase_ratio": ensemble["mase"] / point["mase"],
        "fastest_ridge": fastest,
        "ridge_mase_to_best": rows[fastest]["mase"] / best,
        "ridge_series_origins_per_s_core": rows[fastest]["series_origins_per_s_core"],
        "wql_ratio": ensemble["wql"] / banded["wql"] if banded else None,
        "speed_ratio": banded["cpu_s"] / ensemble["cpu_s"] if banded else None,
    }
    if WITH_TREES in rows:
        told["trees_mase_ratio"] = rows[WITH_TREES]["mase"] / point["mase"]
    return told


def _summary(panels: list[Document]) -> Document:
    def all_of(key: str) -> list[float]:
        return [panel[key] for panel in panels if panel.get(key) is not None]

    told: Document = {}
    for name in ("mase_ratio", "trees_mase_ratio", "wql_ratio"):
        if ratios := all_of(name):
            told |= {f"{name}_mean": float(np.mean(ratios)), f"{name}_worst": max(ratios)}
    if speeds := all_of("ridge_series_origins_per_s_core"):
        told["ridge_series_origins_per_s_core"] = min(speeds)
    if ratios := all_of("speed_ratio"):
        told["ensemble_to_lightgbm_quantile_speed"] = min(ratios)
    return told


# ---- speed -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Turn:
    """One chunk of series in one process."""

    process: int
    wall_s: float
    cpu_s: float
    peak_mb: float
    finite: bool


def synthetic(series: int, seed: int) -> Inputs:
    """Households and shops at 15 minutes: their own daily shape and weekend, days that differ, noise that lasts hours;
    60 days of history and the day to forecast."""
    rng = np.random.default_rng(seed)
    count = HISTORY_DAYS + 1
    hour = np.arange(STEPS_PER_DAY) / STEPS_PER_DAY * 2 * np.pi
    shape = np.ones((series, STEPS_PER_DAY))
    for k in (1, 2, 3):
        size, phase = rng.uniform(0, 0.5 / k, (series, 1)), rng.uniform(0, 2 * np.pi, (series, 1))
        shape += size * np.cos(k * hour + phase)
    worked = days(date(2026, 3, 1), count + DAYS_AHEAD, "CN")
    free = np.isin(worked.day_kind[:count], (1, 2, 3))
    daily = np.where(free, rng.uniform(0.5, 1.1, (series, 1)), 1) * np.exp(rng.normal(0, 0.08, (series, count)))
    noise = rng.normal(0, 0.1, (series, count * STEPS_PER_DAY))
    for back in (1, 2, 4):
        noise[:, back:] += 0.5 * noise[:, :-back]
    load = rng.lognormal(0, 1, (series, 1)) * ((daily[:, :, None] * shape[:, None]).reshape(series, -1) + 0.3 * noise)
    load[:, HISTORY_DAYS * STEPS_PER_DAY :] = np.nan
    return Inputs(
        load=load, step_minutes=1440 // STEPS_PER_DAY, start=np.datetime64("2026-03-01T00:00", "m"),
        day_kind=worked.day_kind, holiday=worked.holiday, holiday_day=worked.holiday_day,
        weather=np.empty((0, load.shape[1])), weather_lead=np.empty(0, np.int64),
    )  # fmt: skip


def _turn(series: int, seed: int, names: tuple[str, ...]) -> Turn:
    inputs = synthetic(series, seed)
    wall, cpu = time.perf_counter(), time.process_time()
    made = forecast(inputs, np.array([HISTORY_DAYS * STEPS_PER_DAY]), STEPS_PER_DAY, members=names)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    return Turn(os.getpid(), wall, cpu, peak_mb(), bool(np.isfinite(made.point).all()))


def _speed(series: int, method: str, begin: Begin) -> Document:
    """Day-ahead once for all series, on all cores, a chunk at a time; making the loads does not count."""
    # What a call with all of them would choose, not one with a chunk.
    names = usual_members(series * STEPS_PER_DAY, 0) if method == ENSEMBLE else (method,)
    begin(f"{method}: {series:,} series")
    sizes = [min(CHUNK, series - first) for first in range(0, series, CHUNK)]
    workers = min(os.cpu_count() or 1, len(sizes))
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        turns = list(pool.map(_turn, sizes, range(len(sizes)), [names] * len(sizes)))
    if not all(turn.finite for turn in turns):
        raise BenchError(f"{method}: a forecast of {series} series has gaps")
    processes = {turn.process for turn in turns}
    busy = [sum(turn.wall_s for turn in turns if turn.process == each) for each in processes]
    peaks = [max(turn.peak_mb for turn in turns if turn.process == each) for each in processes]
    cpu_s = sum(turn.cpu_s for turn in turns)
    return {
        "method": method,
        "members": names,
        "series": series,
        "wall_s": max(busy),
        "cpu_s": cpu_s,
        "workers": len(processes),
        "series_origins_per_s_core": series / max(cpu_s, 1e-9),
        "peak_mb": sum(peaks),
    }


# ---- for people ------------------------------------------------------------------------------------------------------


def _report(told: Document) -> Iterator[str]:
    for one in told["panels"]:
        yield f"{one['panel']}, {one['series']} series"
        yield (
            f"  {'':<20}{'MASE':>7}{'WAPE %':>8}{'wQL %':>8}{'cov80':>7}{'wall s':>9}{'CPU s':>9}"
            f"{'per s core':>12}{'MB':>7}"
        )
        for name, row in one["methods"].items():
            cells = _cell(row["mase"], 7, 3) + _cell(row["wape"], 8, 2) + _cell(row["wql"], 8, 2)
            cells += _cell(row["cov80"], 7, 3) + _cell(row["wall_s"], 9, 2) + _cell(row["cpu_s"], 9, 2)
            yield f"  {name:<20}{cells}{_cell(row['series_origins_per_s_core'], 12, 0)}{_cell(row['peak_mb'], 7, 0)}"
        yield (
            f"  ensemble to LightGBM: MASE {one['mase_ratio']:.3f}"
            + (f", with trees {one['trees_mase_ratio']:.3f}" if "trees_mase_ratio" in one else "")
            + (f"; to its quantiles: wQL {one['wql_ratio']:.3f}" if one["wql_ratio"] else "")
            + (f", {one['speed_ratio']:.1f} times as fast by CPU" if one["speed_ratio"] else "")
        )
        yield f"  fastest ridge: {one['fastest_ridge']}, MASE {one['ridge_mase_to_best']:.3f} of the best ridge's"
        if over := one.get("windows"):
            verdict = "met" if 0.77 <= over["cov80"] <= 0.83 else "MISSED"
            yield (
                f"  cov80 over {over['windows']} windows of {WINDOW_DAYS} days: {over['cov80']:.3f}  "
                f"0.77 to 0.83  {verdict}; single windows {over['cov80_lowest']:.3f} to {over['cov80_highest']:.3f}"
            )
        yield ""
    for name, value in told["summary"].items():
        target = TARGETS.get(name)
        verdict = ""
        if target is not None:
            least = name in AT_LEAST
            met = value >= target if least else value <= target
            verdict = f"  {'≥' if least else '≤'} {target:,g}  {'met' if met else 'MISSED'}"
        yield f"{name.replace('_', ' '):<44}{value:>10,.3f}{verdict}"
    for one in told["speed"]:
        yield (
            f"{one['series']:,} series, {HISTORY_DAYS} days at 15 min, {one['method']}, day-ahead: "
            f"{one['wall_s']:.1f} s on {one['workers']} processes ({one['cpu_s']:.0f} s of CPU), "
            f"{one['series_origins_per_s_core']:,.0f} series-origins/s/core, {one['peak_mb']:,.0f} MB together; "
            f"members {', '.join(one['members'])}"
        )
    machine = told["machine"]
    quick = "; quick, so only roughly" if machine["quick"] else ""
    yield f"Python {machine['python']}, load {machine['load']} on {machine['cpus']} CPUs{quick}"


def _cell(value: float | None, width: int, digits: int) -> str:
    return f"{'-':>{width}}" if value is None else f"{value:>{width},.{digits}f}"
