from collections.abc import Iterator

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
