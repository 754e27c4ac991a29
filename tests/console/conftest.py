from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from simulators.services import Postgres
from tests.api.site import Served, create_database, fill, serve
from tests.conftest import IN_CI

if TYPE_CHECKING:
    from playwright.sync_api import Browser

CHROMIUM = Path("/usr/bin/chromium")
ARGUMENTS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


@pytest.fixture(scope="package")
def served(postgres: Postgres, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    dsn = create_database(postgres)
    fill(dsn)
    with serve(dsn, tmp_path_factory.mktemp("serve")) as server:
        yield server


@pytest.fixture(scope="package")
def browser() -> "Iterator[Browser]":
    if not CHROMIUM.exists():
        reason = "Chromium is not installed; on Debian: apt-get install chromium fonts-noto-cjk"
        if IN_CI:
            pytest.fail(reason)
        pytest.skip(reason)
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=CHROMIUM, args=list(ARGUMENTS))
        yield opened
        opened.close()
