"""One small world and one site on disk for all tests of the meters."""

import shutil
from datetime import UTC, datetime
from pathlib import Path

import pytest

from simulators import site
from simulators.site import Site
from simulators.world import World

START = datetime(2026, 3, 1, 9, tzinfo=UTC)  # a Sunday, 17:00 local
METERS, SEED = 60, 3


def new_world(hours_ahead: float = 30) -> World:
    world = World(SEED, METERS, START)
    world.extend(world.start_s + hours_ahead * 3600)
    return world


@pytest.fixture(scope="session")
def world() -> World:
    """Read-only: a test that switches relays makes its own."""
    return new_world()


@pytest.fixture(scope="session")
def _built_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("site")
    site.build(directory, seed=SEED, meters=METERS, start=START)
    return directory


@pytest.fixture
def built(_built_once: Path, tmp_path: Path) -> Site:
    """A copy of its own: relay actions are journaled in the folder."""
    return site.load(shutil.copytree(_built_once, tmp_path / "site"))
