"""``gridloom loss``: where the energy of a network goes, and who is to be visited first."""

import json
from pathlib import Path
from typing import Any, Final
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import click
import numpy as np
from rich.console import Console
from rich.table import Table

from cloud import pictures
from cloud.engines.loss.balance import STATES, Balance, Errors, Limits
from cloud.loss import run as engine
from cloud.loss import scores, tables
from cloud.loss.folder import Folder, FolderError, read
from cloud.loss.plot import draw, load
from cloud.loss.run import AreaRun, Options
from cloud.loss.simulate import simulate
from cloud.progress import progress

_VISITS_MAX: Final = 20  # printed; the file has all


@click.group(
    epilog="""\b
Copy and run:
  gridloom loss simulate --out sim0 --seed 0
  gridloom loss run --network sim0 --out found0 --truth sim0/truth.csv
  gridloom loss plot --run found0 --area area1 --out area1.png
"""
)
def loss() -> None:
    """Statistical and technical loss of areas, and which customers explain the rest."""


loss.add_command(simulate)


def _zone(context: click.Context, parameter: click.Parameter, value: str) -> ZoneInfo:
    try:
        return ZoneInfo(value)
    except (ZoneInfoNotFoundError, ValueError) as error:
        raise click.BadParameter(f'"{value}" is no time zone; Asia/Shanghai, for one') from error


@loss.command(
    epilog="""\b
Copy and run:
  gridloom loss run --network sim0 --out found0
  gridloom loss run --network sim0 --out found0 --truth sim0/truth.csv --json
  gridloom loss run --network sim0 --out found0 --zone Asia/Shanghai --high 5 --fit
"""
)
@click.option(
    "--network",
    required=True,
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="A folder with meters.csv and measurements.parquet; nodes, lines, transformers where known.",
)
@click.option("--out", required=True, type=click.Path(file_okay=False, path_type=Path), help="Folder to write.")
@click.option(
    "--truth",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="CSV with meter_id, kind, stolen_wh, since: print the scores.",
)
@click.option("--zone", default="UTC", show_default=True, callback=_zone, help="Whose days and months.")
@click.option(
    "--low", default=-1.0, show_default=True, help="Percent of the energy fed in below which a loss is negative."
)
@click.option("--high", default=8.0, show_default=True, help="Percent above which a loss is high.")
@click.option("--fit", is_flag=True, help="Fit the technical loss on the past even where the network is known.")
@click.option("--past-days", default=30, show_default=True, type=click.IntRange(1), help="What the fit learns from.")
@click.option(
    "--voltage-low", default=-10.0, show_default=True, help="Percent of rated (GB/T 12325: -7 at 380 V, -10 at 220 V)."
)
@click.option("--voltage-high", default=7.0, show_default=True, help="Percent of rated.")
@click.option(
    "--clock-s",
    default=60.0,
    show_default=True,
    type=click.FloatRange(0),
    help="Standard deviation of a meter's clock.",
)
@click.option(
    "--resolution-wh", default=10.0, show_default=True, type=click.FloatRange(0), help="Last digit of a register."
)
@click.option(
    "--model-error",
    default=2.0,
    show_default=True,
    type=click.FloatRange(0),
    help="Percent of the technical loss by which the network model is off.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def run(
    network: Path, out: Path, truth: Path | None, zone: ZoneInfo, low: float, high: float, fit: bool, past_days: int,
    voltage_low: float, voltage_high: float, clock_s: float, resolution_wh: float, model_error: float, as_json: bool,
) -> None:  # fmt: skip
    """Balance every area, explain what the wires lose, and rank who explains the rest.

    OUT gets losses.parquet (also by day and month), suspects.parquet and voltages.parquet.
    """
    options = Options(
        zone=zone, limits=Limits(low, high), errors=Errors(clock_s, resolution_wh, model_error / 100),
        past_days=past_days, fit=fit, voltage_low=voltage_low, voltage_high=voltage_high,
    )  # fmt: skip
    try:
        folder = read(network)
        faults = scores.read_truth(truth) if truth else None
        with progress(len(folder.areas) + 2) as begin:
            areas = engine.run(folder, options, begin)
        tables.write(areas, folder, options, out)
    except FolderError as error:
        raise click.ClickException(str(error)) from error
    except OSError as error:
        raise click.ClickException(f"{out}: cannot be written: {error.strerror or error}") from error
    scored = scores.score(areas, faults, folder.measurements.time) if faults is not None else None
    if as_json:
        document: dict[str, object] = {"out": str(out), "areas": [_document(area) for area in areas]}
        if scored:
            document["scores"] = scored.document()
        click.echo(json.dumps(document, ensure_ascii=False))
        return
    _print(areas, folder, scored)


def _number(value: float) -> float | None:
    return round(float(value), 1) if np.isfinite(value) else None


def _document(area: AreaRun) -> dict[str, object]:
    whole = area.whole
    volts = area.voltages
    return {
        "area_id": area.area_id,
        "technical": area.how,
        "aligned_share": round(float(area.use.mean()), 4),
        **{
            name: _number(getattr(whole, name)[0])
            for name in ("supplied_wh", "delivered_wh", "technical_wh", "unexplained_wh")
        },
        "unexplained_lo_wh": _number(whole.lo_wh[0]),
        "unexplained_hi_wh": _number(whole.hi_wh[0]),
        "all_intervals_unexplained_wh": _number(area.rest_wh),
        "all_intervals_sd_wh": _number(area.rest_sd_wh),
        "state": STATES[whole.state[0]],
        "reason": str(whole.reason[0]),
        "voltage_violations": None if volts is None else _violations(volts),
        "doubts": dict(area.doubts),
        "named": [] if area.suspects is None else [
            {
                "meter_id": area.customers[at],
                "kind": area.suspects.kind[at],
                "score": round(float(area.suspects.score[at]), 3),
                "stolen_wh": _number(area.suspects.stolen_wh[at]),
                "evidence": area.suspects.evidence[at],
            }
            for at in _named(area)
        ],
    }  # fmt: skip


def _violations(volts: Any) -> int:
    return int(sum(volts["below_limit"].to_pylist()) + sum(volts["above_limit"].to_pylist()))


def _named(area: AreaRun) -> list[int]:
    """Positions of the named customers, the likeliest first."""
    if area.suspects is None:
        return []
    order = np.argsort(-area.suspects.score, kind="stable")
    return [int(at) for at in order if area.suspects.named[at]]


def _kwh(value: float) -> str:
    return "" if not np.isfinite(value) else f"{value / 1000:,.0f}"


def _print(areas: list[AreaRun], folder: Folder, scored: scores.Scores | None) -> None:
    console = Console()
    first, last = folder.measurements.time[[0, -1]].astype("datetime64[m]")
    table = Table(title=f"{len(areas)} areas, {first} to {last} UTC; kWh over aligned intervals", title_justify="left")
    for name in ("area", "supplied", "delivered", "technical", "unexplained", "80 %", "by", "aligned", "state"):
        table.add_column(name, justify="left" if name in ("area", "by", "state") else "right")
    for area in areas:
        w: Balance = area.whole
        interval = "" if not np.isfinite(w.lo_wh[0]) else f"{_kwh(w.lo_wh[0])} … {_kwh(w.hi_wh[0])}"
        table.add_row(
            area.area_id, *(_kwh(v[0]) for v in (w.supplied_wh, w.delivered_wh, w.technical_wh, w.unexplained_wh)),
            interval, area.how, f"{area.use.mean():.1%}", STATES[w.state[0]].replace("_", " "),
        )  # fmt: skip
    console.print(table)
    for area in areas:
        if area.whole.reason[0]:
            console.print(f"{area.area_id}: {area.whole.reason[0]}", markup=False, soft_wrap=True)
    if wrong := [(area.area_id, name, words) for area in areas for name, words in area.doubts.items()]:
        console.print(f"\nWhere meters hang, before anybody is suspected ({len(wrong)} unlike the registry):")
        for area_id, name, words in wrong[:_VISITS_MAX]:
            console.print(f"  {area_id} {name}: {words}", markup=False, soft_wrap=True)
    visits = [(area, at) for area in areas for at in _named(area)]
    visits.sort(key=lambda visit: -float(visit[0].suspects.score[visit[1]]) if visit[0].suspects else 0.0)
    if visits:
        console.print(f"\nVisit first ({len(visits)} named):")
    else:
        console.print("\nNobody is named: the rest is within what meters get wrong.")
    for area, at in visits[:_VISITS_MAX]:
        assert area.suspects is not None
        console.print(
            f"  {area.area_id} {area.customers[at]}: {area.suspects.evidence[at]}", markup=False, soft_wrap=True
        )
    if scored:
        console.print("\nAgainst the truth:")
        for name, value in scored.document().items():
            if name != "confusion":
                console.print(f"  {name:30} {value}", markup=False)
        for kind, said in scored.confusion.items():
            console.print(f"  {kind:14} said {', '.join(f'{k} {n}' for k, n in said.items())}", markup=False)


@loss.command(
    epilog="""\b
Copy and run:
  gridloom loss plot --run found0 --out area.png
  gridloom loss plot --run found0 --area area1 --out area1.svg
"""
)
@click.option(
    "--run", "folder", required=True, type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="A folder that gridloom loss run wrote.",
)  # fmt: skip
@click.option("--area", help="Which area.  [default: that of the likeliest suspect]")
@click.option("--out", required=True, type=click.Path(dir_okay=False, path_type=Path), help="FILE.png or FILE.svg.")
def plot(folder: Path, area: str | None, out: Path) -> None:
    """Loss waterfall, what is left against the first suspect's record, and a map of the area."""
    try:
        pictures.check(out)
        found = load(folder, area)
        with pictures.style() as label:
            if pictures.chinese_font() is None:
                click.echo(pictures.NO_CHINESE, err=True)
            pictures.save(draw(found, label), out)
    except pictures.PictureError as error:
        raise click.ClickException(str(error)) from error
    click.echo(str(out))
