"""The schema's migrations: numbered SQL files, forward only, applied once, whichever edition of the database runs.

A file may open with ``-- edition: timescaledb`` or ``-- edition: community``. It is then skipped, not recorded,
where the server cannot do it, and applied by the first ``migrate`` after the server can.
"""

import hashlib
import logging
import re
from dataclasses import dataclass
from enum import IntEnum
from itertools import pairwise
from pathlib import Path
from typing import LiteralString, cast

import psycopg

from cloud import settings

logger = logging.getLogger(__name__)

SCHEMA = Path(__file__).with_name("schema")
# One lock per database for every process that migrates; the number is arbitrary and ours.
LOCK = 0x6772_6964_6C6F_6F6D

Connection = psycopg.Connection[tuple[object, ...]]


class Edition(IntEnum):
    """What the database server can do; each edition does all that the lower ones do."""

    POSTGRESQL = 0
    TIMESCALEDB = 1  # Apache 2: hypertables
    COMMUNITY = 2  # Timescale licence: columnstore, continuous aggregates

    def __str__(self) -> str:
        return self.name.lower()


class MigrationError(RuntimeError):
    """The schema cannot be brought up to date; the text says what to do."""


@dataclass(frozen=True, slots=True)
class Migration:
    version: int
    name: str
    edition: Edition
    sql: str

    @property
    def digest(self) -> str:
        return hashlib.sha256(self.sql.encode()).hexdigest()

    @property
    def about(self) -> str:
        """The file's first words on itself."""
        lines = (line for line in self.sql.splitlines() if not line.startswith("-- edition:"))
        return next((line.removeprefix("--").strip() for line in lines if line.startswith("--")), "")


def migrations() -> list[Migration]:
    """Every migration, in order."""
    found = []
    for path in sorted(SCHEMA.glob("[0-9][0-9][0-9][0-9]_*.sql")):
        sql = path.read_text(encoding="utf-8")
        marked = re.match(r"-- edition: (\w+)\n", sql)
        edition = Edition[marked[1].upper()] if marked else Edition.POSTGRESQL
        found.append(Migration(int(path.name[:4]), path.stem, edition, sql))
    for before, after in pairwise(found):
        assert before.version != after.version, f"{before.name} and {after.name} have one number"
    return found


def migrate(dsn: str) -> list[Migration]:
    """Bring the schema up to date and return what was applied. Several processes may do so at once.

    Raises MigrationError, or psycopg.OperationalError where the server does not answer.
    """
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute("SELECT pg_advisory_lock(%s)", [LOCK])  # held until the connection closes
        # Where business days begin, for what the database itself adds up by day.
        connection.execute("SELECT set_config('gridloom.zone', %s, false)", [settings.zone().key])
        _create_extension(connection)
        edition = probe(connection)
        waiting = _waiting(connection, edition)
        for migration in waiting:
            _apply(connection, migration, edition)
        return waiting


def plan(dsn: str) -> tuple[Edition, list[Migration]]:
    """The edition, and what ``migrate`` would apply now. Changes nothing."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        # Only an extension that is there tells its licence, so it is made and unmade.
        with connection.transaction(force_rollback=True):
            _create_extension(connection)
            edition = probe(connection)
        return edition, _waiting(connection, edition)


def probe(connection: Connection) -> Edition:
    """What this database can do, judged by the extension it has and that extension's licence."""
    if not _one(connection, "SELECT EXISTS (SELECT FROM pg_extension WHERE extname = 'timescaledb')"):
        return Edition.POSTGRESQL
    # The setting is known only once the extension's library is loaded, which calling into it does.
    licence = _one(connection, "SELECT current_setting('timescaledb.license', true)")
    return Edition.COMMUNITY if licence == "timescale" else Edition.TIMESCALEDB


def _create_extension(connection: Connection) -> None:
    if not _one(connection, "SELECT EXISTS (SELECT FROM pg_available_extensions WHERE name = 'timescaledb')"):
        return
    # A setting of its loader's. Without it CREATE EXTENSION ends the connection.
    if _one(connection, "SELECT current_setting('timescaledb.max_background_workers', true)") is None:
        logger.warning("timescaledb is installed but not in shared_preload_libraries; plain PostgreSQL is used")
        return
    try:
        with connection.transaction():
            connection.execute("CREATE EXTENSION IF NOT EXISTS timescaledb")
    except psycopg.OperationalError:
        raise
    except psycopg.Error as error:
        # Not ours to create: plain PostgreSQL serves as well, only slower over years of data.
        logger.warning("timescaledb is installed but cannot be used: %s", str(error).splitlines()[0])


def _waiting(connection: Connection, edition: Edition) -> list[Migration]:
    recorded: dict[int, str] = {}
    if _one(connection, "SELECT to_regclass('schema_migration') IS NOT NULL"):
        for version, digest in connection.execute("SELECT version, digest FROM schema_migration"):
            recorded[cast(int, version)] = str(digest)
    known = {migration.version: migration for migration in migrations()}
    for version, digest in recorded.items():
        if version not in known:
            raise MigrationError(
                f"the database is at migration {version:04}, which this program does not have; install a newer gridloom"
            )
        if known[version].digest != digest:
            raise MigrationError(
                f"{known[version].name}.sql was changed after it was applied here; "
                "put the change into a new file, or start with an empty database"
            )
    return [one for one in known.values() if one.version not in recorded and one.edition <= edition]


def _apply(connection: Connection, migration: Migration, edition: Edition) -> None:
    try:
        with connection.transaction():
            connection.execute(
                "CREATE TABLE IF NOT EXISTS schema_migration (version integer PRIMARY KEY, name text NOT NULL,"
                " digest text NOT NULL, edition text NOT NULL, applied_at timestamptz NOT NULL DEFAULT now())"
            )
            connection.execute(migration.sql)
            connection.execute(
                "INSERT INTO schema_migration (version, name, digest, edition) VALUES (%s, %s, %s, %s)",
                [migration.version, migration.name, migration.digest, str(edition)],
            )
    except psycopg.OperationalError:
        raise
    except psycopg.Error as error:
        raise MigrationError(f"{migration.name}.sql: {str(error).splitlines()[0]}") from error
    logger.info("migration applied name=%s edition=%s", migration.name, edition)


def _one(connection: Connection, query: LiteralString) -> object:
    row = connection.execute(query).fetchone()
    return row[0] if row else None
