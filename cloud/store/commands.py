"""``gridloom migrate`` and ``gridloom registry``."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import datetime
from pathlib import Path

import click
import psycopg

from cloud import settings
from cloud.store import migrations
from cloud.store.registry import RegistryError, read_registry, save_registry
from cloud.store.replay import replay
from protocols.clock import SystemClock

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
"""
)
def registry() -> None:
    """What is installed where: feeders, areas, meters and the network between them."""


@registry.command(
    name="import",
    epilog="""\b
Copy and run:
  gridloom registry import registry/ --dry-run
  gridloom registry import registry/ --since 2026-05-01T00:00:00+08:00
""",
)
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--dry-run", is_flag=True, help="Check the files, and what they would change; change nothing.")
@click.option("--since", help="When meters were exchanged, ISO 8601 with offset. Default: now.")
@click.option("--json", "as_json", is_flag=True, help="For machines: one document.")
def import_registry(folder: Path, dry_run: bool, since: str | None, as_json: bool) -> None:
    """Read FOLDER's CSV files into the registry, all or nothing.

    The same files again change nothing. Rows that waited in quarantine for one of the meters are then stored.
    """
    now = SystemClock.from_environment().now()
    moment = now if since is None else _moment(since)
    found = read_registry(folder)
    if isinstance(found, list):
        for problem in found:
            click.echo(f"{folder / problem.file}:{problem.line}: {problem.text}", err=True)
        raise click.ClickException(f"{len(found)} problem{'s' if len(found) > 1 else ''}; nothing was imported")
    with open_store() as connection:
        try:
            saved = save_registry(connection, found, since=moment, dry_run=dry_run)
        except RegistryError as error:
            raise click.ClickException(str(error)) from error
        replayed = None if dry_run else replay(connection, now, reason="unknown_meter")
    if as_json:
        click.echo(
            json.dumps({"dry_run": dry_run, **asdict(saved), "replayed_rows": replayed.rows.total() if replayed else 0})
        )
        return
    click.echo(f"{saved.rows} rows read, {saved.changed} {'would change' if dry_run else 'changed'}")
    if replayed and replayed.rows:
        click.echo(f"{replayed.rows.total()} rows stored that waited for their meters")


def _moment(text: str) -> datetime:
    try:
        moment = datetime.fromisoformat(text)
    except ValueError as error:
        raise click.BadParameter(f'"{text}": ISO 8601 expected, e.g. 2026-05-01T00:00:00+08:00') from error
    if moment.tzinfo is None:
        raise click.BadParameter(f'"{text}": an offset expected, e.g. {text}+08:00')
    return moment


def _line(error: psycopg.Error) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
