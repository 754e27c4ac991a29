"""``gridloom forecast``: try the forecasts on a folder of loads, and draw them."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import click
import numpy as np

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
from cloud.forecast.plot import picture
from cloud.forecast.scores import mean
from cloud.pictures import NO_CHINESE, PictureError, check, chinese_font, save, style
from cloud.progress import progress

_PARQUET: Final = ".parquet"

_panel = click.option(
    "--panel", "folder", required=True, type=click.Path(path_type=Path), help="Folder with load.parquet."
)
_days = click.option(
    "--days", default=28, show_default=True, type=click.IntRange(1, 3660), help="Test days, the last whole ones."
)
_origin_hour = click.option(
    "--origin-hour", default=0, show_default=True, type=click.IntRange(0, 23), help="When forecasts are made."
)
_horizon_h = click.option(
    "--horizon-h", default=24, show_default=True, type=click.IntRange(1, 168),
    help="Hours ahead; the last day they reach is the test day.",
)  # fmt: skip
_shift_days = click.option(
    "--shift-days", default=0, show_default=True, type=click.IntRange(0, 36600),
    help="End the panel so many days earlier: a window to tune on.",
)  # fmt: skip


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
@_panel
@_days
@_origin_hour
@_horizon_h
@_shift_days
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
    with progress(len(names)) as begin:
        for name in names:
            begin(name)
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


@forecast.command(
    name="plot",
    epilog="""\b
Copy and run:
  gridloom forecast plot --panel panels/town --out fan.png
  gridloom forecast plot --panel panels/town --series feeder-3 --method ridge --shown-days 14 --out fan.svg
""",
)
@_panel
@_days
@_origin_hour
@_horizon_h
@_shift_days
@click.option("--method", default=ENSEMBLE, show_default=True, help="One, or members joined by +.")
@click.option("--series", help="Column of load.parquet.  [default: the largest]")
@click.option("--shown-days", default=7, show_default=True, type=click.IntRange(1, 60), help="Days in the fan.")
@click.option("--out", required=True, type=click.Path(dir_okay=False, path_type=Path), help="FILE.png or FILE.svg.")
def plot_command(
    folder: Path, days: int, origin_hour: int, horizon_h: int, shift_days: int, method: str, series: str | None,
    shown_days: int, out: Path,
) -> None:  # fmt: skip
    """Draw the backtest of one series: fan with what came, residuals by hour and day, calibration."""
    panel, test = _opened(folder, [method], days, origin_hour, horizon_h, shift_days)
    row = int(np.argmax(np.nan_to_num(mean(np.abs(panel.load), axis=1))))
    if series is not None:
        if series not in panel.series:
            raise click.BadParameter(f'"{series}": one of {_some(panel.series)} expected', param_hint="--series")
        row = panel.series.index(series)
    try:
        check(out)
        with style() as label:
            if chinese_font() is None:
                click.echo(NO_CHINESE, err=True)
            with progress(1) as begin:
                begin(method)
                made = _made(panel, test, method)
            save(picture(panel, test, made, row, method, label, shown_days), out)
    except PictureError as error:
        raise click.ClickException(str(error)) from error
    click.echo(f"{out}: {panel.name}, {panel.series[row]}, {method}; {weather(panel)}")
