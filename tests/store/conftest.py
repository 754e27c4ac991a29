"""A migrated database on both editions, and the small registry in it."""

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import psycopg
import pytest

from cloud.store.migrations import Connection, migrate
from cloud.store.registry import Registry, read_registry, save_registry
from tests.store.registry_files import write_registry

NOW = datetime(2026, 5, 20, 4, 0, tzinfo=UTC)


@pytest.fixture
def store_dsn(empty_database: str) -> str:
    migrate(empty_database)
    return empty_database


@pytest.fixture
def connection(store_dsn: str) -> Iterator[Connection]:
    with psycopg.connect(store_dsn, autocommit=True) as opened:
        yield opened


@pytest.fixture
def registered(connection: Connection, tmp_path: Path) -> Connection:
    """The store with the small registry imported."""
    registry = read_registry(write_registry(tmp_path / "registry"))
    assert isinstance(registry, Registry)
    save_registry(connection, registry, since=NOW)
    return connection
