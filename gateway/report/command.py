"""The command ``meterctl report``."""

import asyncio
import json
import sqlite3
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import click
import msgspec

from gateway import local
from gateway.config import Site
from gateway.lines import Failed, load_site
from gateway.local import LocalAgent, LocalError
from gateway.report.gather import DAYS_MAX, AgentReader, Progress, Reader, gather, own_reader
from gateway.report.model import Report
from gateway.report.page import render
from protocols.clock import SystemClock


@click.command(
    "report",
    epilog="""\b
Copy and run:
  meterctl report site.toml
  meterctl report site.toml -o report.html --by "W. Wang"
  meterctl report site.toml --json
""",
)
@click.argument("site", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("-o", "--output", type=click.Path(dir_okay=False, path_type=Path), default=Path("report.html"),
              show_default=True, help="The HTML file to write.")  # fmt: skip
@click.option("--by", "made_by", default="", help="Who makes it; for the head of the report.")
@click.option("--days", type=click.IntRange(1, DAYS_MAX), default=14, show_default=True, help="Of completeness.")
@click.option("--no-read", is_flag=True, help="Read no meter: only what the gateway already knows.")
@click.option("--json", "as_json", is_flag=True, help="Print the same as one JSON document; write no file.")
def report_command(site: Path, output: Path, made_by: str, days: int, no_read: bool, as_json: bool) -> None:
    """Read every meter of SITE once and write a commissioning report: found, read, clock, completeness, what to do.

    Works through the running agent when there is one, otherwise on its own connections. Exit 0 also when meters are at
    fault: they are in the report.
    """
    found = load_site(site)
    try:
        agent = local.connect(found)
        report = asyncio.run(_make(found, site.name, agent, made_by, days, reads=not no_read))
    except (LocalError, sqlite3.DatabaseError, OSError) as error:
        raise Failed(str(error)) from error
    if as_json:
        click.echo(json.dumps(as_document(report), ensure_ascii=False, indent=2))
        return
    try:
        output.write_text(render(report), encoding="utf-8")
    except OSError as error:
        raise Failed(f"{output}: {error.strerror}; choose another place with -o") from error
    click.echo(f"read through {report.through.en}", err=True)
    faults, looks, good = (report.count(state) for state in ("fault", "look", "good"))
    click.echo(f"{output}: {len(report.meters)} meters, {good} in order, {looks} to look at, {faults} at fault")


async def _make(site: Site, name: str, agent: LocalAgent | None, made_by: str, days: int, *, reads: bool) -> Report:
    clock = SystemClock.from_environment()
    software = agent.software if agent else _software()
    with _progress(len(site.meters) if reads else 0) as progress:

        async def made(reader: Reader | None) -> Report:
            return await gather(
                site,
                name,
                reader,
                agent=agent,
                software=software,
                made_by=made_by,
                now=clock.now(),
                days=days,
                progress=progress,
            )

        if not reads:
            return await made(None)
        if agent is not None:
            return await made(AgentReader(agent))
        async with own_reader(site, clock) as reader:
            return await made(reader)


@contextmanager
def _progress(total: int) -> Iterator[Progress]:
    """A bar where a person is watching."""
    if not total or not sys.stderr.isatty():
        yield lambda _name: None
        return
    with click.progressbar(length=total, file=sys.stderr, item_show_func=lambda name: name) as bar:
        yield lambda name: bar.update(1, name)


def as_document(report: Report) -> dict[str, object]:
    """The data, with what the page derives from it."""
    document: dict[str, object] = msgspec.to_builtins(report)
    document["meters"] = [
        {**msgspec.to_builtins(meter), "state": meter.state, "complete": meter.share} for meter in report.meters
    ]
    return document


def _software() -> str:
    try:
        return f"gridloom {version('gridloom')}"
    except PackageNotFoundError:  # run from a checkout
        return "gridloom"
