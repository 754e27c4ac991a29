from collections.abc import Iterator
from uuid import uuid4

import psycopg
import pytest

from simulators.services import Postgres
from tests.api.site import Served, create_database, fill, serve


@pytest.fixture(scope="package")
def served(postgres: Postgres, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """The API in front of the synthetic site; nothing in this package may write to it."""
    dsn = create_database(postgres)
    fill(dsn)
    with serve(dsn, tmp_path_factory.mktemp("serve")) as server:
        yield server


@pytest.fixture
def empty_plain_database(postgres: Postgres) -> str:
    name = f"api_{uuid4().hex}"
    with psycopg.connect(postgres.dsn, autocommit=True) as connection:
        connection.execute(f'CREATE DATABASE "{name}"')
    return psycopg.conninfo.make_conninfo(postgres.dsn, dbname=name)
