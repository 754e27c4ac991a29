"""One small world and one site on disk for all tests of the meters."""

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


@pytest.fixture
def built(tmp_path: Path) -> Site:
    site.build(tmp_path, seed=SEED, meters=METERS, start=START)
    return site.load(tmp_path)
