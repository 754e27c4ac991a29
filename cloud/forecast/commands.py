"""``gridloom forecast``: try the forecasts on a folder of loads, and draw them."""

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from cloud.engines.forecast import DEFAULT
from cloud.forecast.backtest import (
    ENSEMBLE,
    Backtest,
    MethodError,
    Window,
    apart,
    backtest,
    figures,
    members,
    score,
    window,
    write,
)
from cloud.forecast.panel import Panel, PanelError, read_panel

_PARQUET: Final = ".parquet"


@click.group(
    epilog="""\b
Copy and run:
  gridloom forecast backtest --panel panels/town
  gridloom forecast plot --panel panels/town --out fan.png
"""
)
def forecast() -> None:
    """Load forecasts of folders. `gridloom work` makes those of the store."""


@forecast.command(
    name="backtest",
    epilog="""\b
Copy and run:
  gridloom forecast backtest --panel panels/town
  gridloom forecast backtest --panel panels/town --methods ensemble,ridge,naive7 --json
  gridloom forecast backtest --panel panels/town --origin-hour 6 --horizon-h 42 --out forecasts.parquet
  gridloom forecast backtest --panel panels/town --shift-days 28
""",
)
@click.option("--panel", "folder", required=True, type=click.Path(path_type=Path), help="Folder with load.parquet.")
@click.option(
    "--days", default=28, show_default=True, type=click.IntRange(1, 3660), help="Test days, the last whole ones."
)
@click.option(
    "--origin-hour", default=0, show_default=True, type=click.IntRange(0, 23), help="When forecasts are made."
)
@click.option(
    "--horizon-h", default=24, show_default=True, type=click.IntRange(1, 168),
    help="Hours ahead; the last day they reach is the test day.",
)  # fmt: skip
@click.option(
    "--shift-days", default=0, show_default=True, type=click.IntRange(0, 36600),
    help="End the panel so many days earlier: a window to tune on.",
)  # fmt: skip
@click.option("--methods", default=ENSEMBLE, show_default=True, help="Comma between; members joined by + are weighed.")
@click.option("--json", "as_json", is_flag=True, help="For machines: one document.")
@click.option(
    "--out", type=click.Path(dir_okay=False, path_type=Path),
    help="The forecasts as parquet; of several methods FILE-METHOD.parquet each.",
)  # fmt: skip
def backtest_command(
    folder: Path, days: int, origin_hour: int, horizon_h: int, shift_days: int, methods: str, as_json: bool,
    out: Path | None,
) -> None:  # fmt: skip
    """Forecast the last days of a panel as they would have been forecast, and score that.

    MASE is the error to that of last week's value before the window, WAPE and wQL are % of the energy, cov80 is the
    share of what came between q10 and q90. Nothing of the load at or after an origin is used for it. A column
    X_forecast… of weather.parquet is what was forecast the day before and is used instead of X; without one X is taken
    as it was, and the table says so.
    """
    names = list(dict.fromkeys(name.strip() for name in methods.split(",") if name.strip()))
    panel, test = _opened(folder, names, days, origin_hour, horizon_h, shift_days)
    told: dict[str, dict[str, float | None]] = {}
    rows: list[str] = []
    with _progress("forecasting", len(names)) as advance:
        for name in names:
            advance(name)
            made = _made(panel, test, name)
            scored = score(panel, test, made)
            told[name] = figures(scored, made.cost, len(panel.series) * len(test.origins))
            low, _, high = scored.cov80_series
            left_out = f"  {scored.left_out} series without MASE" if scored.left_out else ""
            rows.append(f"{low:>6.2f} to {high:<4.2f}{left_out}")
            if out is not None:
                _write(out if len(names) == 1 else out.with_name(f"{out.stem}-{name}{_PARQUET}"), panel, test, made)
    if as_json:
        click.echo(json.dumps({"panel": panel.name, "methods": told}))
        return
    click.echo("\n".join(_table(panel, test, told, rows)))


def _opened(
    folder: Path, names: list[str], days: int, origin_hour: int, horizon_h: int, shift_days: int
) -> tuple[Panel, Window]:
    try:
        for name in names:
            members(name)
        if not names:
            raise MethodError("one at least expected")
    except MethodError as error:
        raise click.BadParameter(str(error), param_hint="--methods") from error
    try:
        panel = read_panel(folder)
        if shift_days:
            panel = panel.shifted(shift_days)
        return panel, window(panel, days, origin_hour, horizon_h)
    except PanelError as error:
        raise click.ClickException(str(error)) from error


def _made(panel: Panel, test: Window, name: str) -> Backtest:
    try:
        return apart(backtest, panel, test, name)
    except MemoryError as error:
        raise click.ClickException(f"{panel.name}, {name}: {error}; fewer --days or series need less") from error
    except ModuleNotFoundError as error:
        raise click.ClickException(f'{name}: {error.name} is not installed; pip install "gridloom[bench]"') from error


def _write(path: Path, panel: Panel, test: Window, made: Backtest) -> None:
    try:
        write(path, panel, test, made)
    except PanelError as error:
        raise click.ClickException(str(error)) from error


def _table(panel: Panel, test: Window, told: dict[str, dict[str, float | None]], rows: list[str]) -> Iterator[str]:
    first, last = panel.times(test.steps[[0, -1]])
    yield (
        f"{panel.name}: {len(panel.series)} series every {panel.step_minutes} min, "
        f"{first.astype('datetime64[D]')} to {last.astype('datetime64[D]')}, {len(test.origins)} origins, "
        f"{len(test.steps) // len(test.origins)} steps scored of {test.horizon}"
    )
    yield weather(panel)
    yield ""
    width = max(12, *map(len, told)) + 1
    yield (
        f"{'method':<{width}}{'MASE':>7}{'WAPE %':>8}{'wQL %':>8}{'cov80':>7}{'wall s':>9}{'CPU s':>9}"
        f"{'series-origins/s/core':>23}{'peak MB':>9}  cov80 of series, 5 to 95 %"
    )
    for (name, one), row in zip(told.items(), rows, strict=True):
        yield (
            f"{name:<{width}}{_cell(one['mase'], 7, 3)}{_cell(one['wape'], 8, 2)}{_cell(one['wql'], 8, 2)}"
            f"{_cell(one['cov80'], 7, 3)}{_cell(one['wall_s'], 9, 2)}{_cell(one['cpu_s'], 9, 2)}"
            f"{_cell(one['series_origins_per_s_core'], 23, 0)}{_cell(one['peak_mb'], 9, 0)}{row}"
        )
    if any(ENSEMBLE in name for name in told):
        yield f"{ENSEMBLE}: {', '.join(DEFAULT)}"


def _cell(value: float | None, width: int, digits: int) -> str:
    return f"{'-':>{width}}" if value is None else f"{value:>{width},.{digits}f}"


def weather(panel: Panel) -> str:
    """What the forecasts knew of the weather."""
    parts = []
    if panel.planned:
        parts.append(f"as forecast the day before: {_some(panel.planned)}")
    if panel.ex_post:
        parts.append(f"ex-post, as it was on the day (nobody forecast it): {_some(panel.ex_post)}")
    return f"weather {'; '.join(parts)}" if parts else "no weather"


def _some(names: tuple[str, ...]) -> str:
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")


@contextmanager
def _progress(what: str, total: int) -> Iterator["Advance"]:
    """A bar on stderr while a person is watching."""
    console = Console(stderr=True)
    with Progress(
        SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
        console=console, transient=True, disable=not sys.stderr.isatty(),
    ) as progress:  # fmt: skip
        yield Advance(progress, what, total)


class Advance:
    """Says what is being done now; what was before is then done."""

    def __init__(self, progress: Progress, what: str, total: int) -> None:
        self._progress = progress
        self._task = progress.add_task(what, total=total, completed=-1)

    def __call__(self, what: str) -> None:
        self._progress.update(self._task, advance=1, description=what)
