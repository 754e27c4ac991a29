"""``gridloom migrate`` and ``gridloom registry``."""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from decimal import Decimal, InvalidOperation
from pathlib import Path

import click
import psycopg

from cloud import settings
from cloud.store import migrations
from cloud.store.registry import (
    Problem,
    Registers,
    RegistryError,
    Saved,
    exchange,
    export_registry,
    known_names,
    parse_instant,
    read_registry,
    save_registry,
)
from cloud.store.replay import replay
from protocols import templates
from protocols.clock import SystemClock
from protocols.quantities import ENERGY_NAMES

CONNECT_TIMEOUT_S = 10


@contextmanager
def open_store() -> Iterator[migrations.Connection]:
    """A connection to GRIDLOOM_DSN, whose schema is there; one clear line otherwise."""
    try:
        with psycopg.connect(settings.dsn(), autocommit=True, connect_timeout=CONNECT_TIMEOUT_S) as connection:
            yield connection
    except psycopg.errors.UndefinedTable as error:
        raise click.ClickException("the database has no Gridloom schema; run: gridloom migrate") from error
    except psycopg.Error as error:
        raise click.ClickException(
            f"GRIDLOOM_DSN: {_line(error)}; is the database running, and the login right?"
        ) from error


@click.command(
    epilog="""\b
Copy and run:
  gridloom migrate --dry-run
  gridloom migrate --dry-run --sql
  gridloom migrate
"""
)
@click.option("--dry-run", is_flag=True, help="Say what would be applied, change nothing.")
@click.option("--sql", is_flag=True, help="With --dry-run: the statements, too.")
@click.option("--json", "as_json", is_flag=True, help="For machines: one document.")
def migrate(dry_run: bool, sql: bool, as_json: bool) -> None:
    """Bring the database's schema up to date. Safe to run again, and by several programs at once.

    Says which edition it found: postgresql, timescaledb (Apache licence) or community (Timescale licence).
    Business days of rollups begin at midnight of GRIDLOOM_ZONE, as it is when this is first run.
    """
    if sql and not dry_run:
        raise click.UsageError("--sql shows what --dry-run would apply; try: gridloom migrate --dry-run --sql")
    dsn = settings.dsn()
    try:
        edition, waiting = migrations.plan(dsn)
        if not dry_run:
            waiting = migrations.migrate(dsn)
            edition, _ = migrations.plan(dsn)
    except migrations.MigrationError as error:
        raise click.ClickException(str(error)) from error
    except psycopg.Error as error:
        raise click.ClickException(
            f"GRIDLOOM_DSN: {_line(error)}; is the database running, and the login right?"
        ) from error
    names = [migration.name for migration in waiting]
    if as_json:
        click.echo(json.dumps({"edition": str(edition), "dry_run": dry_run, "migrations": names}))
        return
    click.echo(f"{edition}: {'nothing to apply' if not names else 'would apply' if dry_run else 'applied'}")
    for migration in waiting:
        click.echo(f"  {migration.name}" + (f": {migration.about}" if dry_run else ""))
        if sql:
            click.echo(migration.sql)


@click.group(
    epilog="""\b
Copy and run:
  gridloom registry import registry/ --dry-run
  gridloom registry import registry/
  gridloom registry export -o registry/
  gridloom registry exchange A1-C01 --old 000000000002 --new 000000000009 --at 2026-05-01T10:20:00+08:00
"""
)
def registry() -> None:
    """What is installed where, and since when: feeders, areas, points, meters and the network between them."""


@registry.command(
    name="import",
    epilog="""\b
Copy and run:
  gridloom registry import registry/ --dry-run
  gridloom registry import registry/ --since 2026-05-01T00:00:00+08:00
  gridloom registry import registry/meters.csv --dry-run
""",
)
@click.argument("source", nargs=-1, required=True, type=click.Path(exists=True, path_type=Path))
@click.option("--dry-run", is_flag=True, help="Check the files, and say what they would change; change nothing.")
@click.option("--since", help="Since when it is as the files say, ISO 8601 with offset. Default: now.")
@click.option("--json", "as_json", is_flag=True, help="For machines: one document.")
def import_registry(source: tuple[Path, ...], dry_run: bool, since: str | None, as_json: bool) -> None:
    """Read SOURCE, a folder of CSV files or some of them, into the registry, all or nothing.

    A file states what is the case: where that differs from the record, it is so from --since on. A file with the
    column valid_from states the whole history of each point it names. What is on record and not in the files stays,
    and the same files again change nothing. What a change concerns is derived anew, and rows that waited in quarantine
    for one of the meters are stored.
    """
    now = SystemClock.from_environment().now()
    moment = now if since is None else _moment(since)
    folder = source[0] if len(source) == 1 and source[0].is_dir() else None
    if folder is None and any(path.is_dir() for path in source):
        raise click.UsageError("one folder, or files, expected")
    found = read_registry(folder) if folder else []
    if folder and isinstance(found, list):
        raise _refused(found, source)
    with open_store() as connection:
        found = found or read_registry(source, known_names(connection))
        if isinstance(found, list):
            raise _refused(found, source)
        try:
            saved = save_registry(connection, found, since=moment, now=now, dry_run=dry_run)
        except RegistryError as error:
            raise _refused(error.problems, source) from error
        replayed = None if dry_run else replay(connection, now, reason="unknown_meter")
    stored = replayed.rows.total() if replayed else 0
    if as_json:
        click.echo(json.dumps({"dry_run": dry_run, **_summary(saved), "replayed_rows": stored}))
        return
    click.echo(f"{saved.rows} rows read, {saved.changed} {'would change' if dry_run else 'changed'}")
    _tell(saved)
    if stored:
        click.echo(f"{stored} rows stored that waited for their meters")


def _refused(problems: Sequence[Problem], source: Sequence[Path]) -> click.ClickException:
    paths = {path.name: path for path in source if not path.is_dir()}
    for problem in problems:
        path = paths.get(problem.file, source[0] / problem.file)
        click.echo(f"{path}:{problem.line}: {problem.text}", err=True)
    return click.ClickException(f"{len(problems)} problem{'s' * (len(problems) > 1)}; nothing was imported")


@registry.command(
    name="export",
    epilog="""\b
Copy and run:
  gridloom registry export -o registry/
""",
)
@click.option("-o", "folder", required=True, type=click.Path(file_okay=False, path_type=Path), help="Folder to write.")
def export(folder: Path) -> None:
    """Write the registry with all its history as CSV files. Imported again they change nothing; elsewhere, they give
    the same registry."""
    with open_store() as connection:
        rows = export_registry(connection, folder)
    click.echo(f"{rows} rows in {folder}")


_QUANTITIES = {
    "import": "energy_import_wh",
    "export": "energy_export_wh",
    "reactive-import": "reactive_import_varh",
    "reactive-export": "reactive_export_varh",
}


@registry.command(
    name="exchange",
    epilog="""\b
Copy and run:
  gridloom registry exchange A1-C01 --old 000000000002 --new 000000000009 --at 2026-05-01T10:20:00+08:00 \\
    --old-register 4711.08 --new-register 0.12 --dry-run
  gridloom registry exchange A1-C01 --old 000000000002 --new 000000000009 --at 2026-05-01T10:20:00+08:00 \\
    --old-register 4711.08 --old-register export=12.5 --new-register 0 --new-register export=0
""",
)
@click.argument("point")
@click.option("--old", required=True, help="Serial of the meter that was there.")
@click.option(
    "--new", required=True, help="Serial of the one that is; the same where it was reset or its ratio changed."
)
@click.option("--at", required=True, help="When, ISO 8601 with offset.")
@click.option(
    "--old-register",
    multiple=True,
    metavar="[QUANTITY=]KWH",
    help="What the old one showed then, before CT and PT. QUANTITY: import (default), export, reactive-import, "
    "reactive-export. Without registers the interval of the exchange stays a gap.",
)
@click.option("--new-register", multiple=True, metavar="[QUANTITY=]KWH", help="What the new one showed then.")
@click.option("--wire-name", help="What its gateway calls the new meter. Default: as the old one.")
@click.option("--template", help="Table of the new meter, where it is of another family.")
@click.option("--ratio", nargs=2, type=click.IntRange(1), metavar="CT PT", help="New ratios. Default: as before.")
@click.option("--dry-run", is_flag=True, help="Say what would change; change nothing.")
@click.option("--json", "as_json", is_flag=True, help="For machines: one document.")
def exchange_meter(
    point: str,
    old: str,
    new: str,
    at: str,
    old_register: tuple[str, ...],
    new_register: tuple[str, ...],
    wire_name: str | None,
    template: str | None,
    ratio: tuple[int, int] | None,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Put on record that the meter at POINT was exchanged. With the registers of both, no energy is lost over it.

    Readings that came since under the old meter's wire name become the new one's, and all intervals since are derived
    anew.
    """
    now = SystemClock.from_environment().now()
    if template is not None and template not in templates.names():
        raise click.BadParameter(f'--template: "{template}" is none of {", ".join(templates.names())}')
    with open_store() as connection:
        try:
            saved = exchange(
                connection, point, old=old, new=new, at=_moment(at), closing=_registers(old_register),
                opening=_registers(new_register), wire_name=wire_name, template=template, ratios=ratio, dry_run=dry_run,
            )  # fmt: skip
        except RegistryError as error:
            raise click.ClickException(str(error)) from error
        replayed = None if dry_run else replay(connection, now, reason="unknown_meter")
    stored = replayed.rows.total() if replayed else 0
    if as_json:
        click.echo(json.dumps({"dry_run": dry_run, **_summary(saved), "replayed_rows": stored}))
        return
    _tell(saved)
    if not saved.changed:
        click.echo("already on record; nothing changed")
    if stored:
        click.echo(f"{stored} rows stored that waited for their meters")


def _registers(told: tuple[str, ...]) -> Registers:
    """Wh and varh by quantity, from kWh as read off a display: exact, never through a float."""
    found: dict[str, int] = {}
    for text in told:
        name, _, number = text.rpartition("=")
        quantity = _QUANTITIES.get(name or "import")
        if quantity is None:
            raise click.BadParameter(f'"{name}": one of {", ".join(_QUANTITIES)} expected')
        try:
            wh = Decimal(number) * 1000
        except InvalidOperation as error:
            raise click.BadParameter(f'"{number}": kWh expected, e.g. 4711.08') from error
        if not wh.is_finite() or wh != wh.to_integral_value() or not 0 <= wh < 2**62:
            raise click.BadParameter(f'"{number}": kWh of 0 or more with at most three decimals expected')
        found[quantity] = int(wh)
    return tuple(found.get(name) for name in ENERGY_NAMES)


def _summary(saved: Saved) -> dict[str, object]:
    return {"rows": saved.rows, "changed": saved.changed, "changes": saved.changes, "told": saved.told}


def _tell(saved: Saved) -> None:
    for table, counts in saved.changes.items():
        if any(counts.values()):
            click.echo(f"  {table}: {', '.join(f'{number} {how}' for how, number in counts.items() if number)}")
    for line in saved.told:
        click.echo(f"  {line}")


def _moment(text: str) -> datetime:
    try:
        return parse_instant(text)
    except ValueError as error:
        raise click.BadParameter(f'"{text}": {error}') from error


def _line(error: psycopg.Error) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
