"""A simulated site whose meters' readings stand in a real database, as if ingest had just stored them."""

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import psycopg
import pytest

from cloud.jobs.derive import Connection, open_session
from cloud.store.binary_copy import Field, encode, instant
from cloud.store.migrations import migrate
from cloud.store.registry import Registry, read_registry, save_registry
from simulators.site import build
from simulators.world import INTERVAL_S, WH_PER_STEP, World

METERS = 36
DAYS = 35
START = datetime(2026, 3, 11, 9, tzinfo=UTC)  # 17:00 in Shanghai, a Wednesday


@dataclass
class FakeClock:
    moment: datetime
    seconds: float = 0.0

    def now(self) -> datetime:
        return self.moment

    def monotonic(self) -> float:
        self.seconds += 100
        return self.seconds

    async def sleep(self, real_s: float) -> None:
        raise NotImplementedError

    async def sleep_until(self, moment: datetime) -> None:
        raise NotImplementedError


@dataclass
class Store:
    """``put`` stores what the meters said at some marks, whole columns at a time, and marks it dirty."""

    connection: Connection
    dsn: str
    world: World
    meter_id: dict[str, int]
    batches: int = 0
    silent: set[str] = field(default_factory=set)

    def put(self, first: datetime, last: datetime, *, points: set[str] | None = None, quality: int = 0) -> None:
        """Registers at the marks in [first, last]."""
        world = self.world
        world.extend(last.timestamp() + 1)
        marks = np.arange(first.timestamp(), last.timestamp() + 1, INTERVAL_S).astype(np.int64)
        column = (marks - world.zero_s) // INTERVAL_S
        rows = [
            row for row, meter in enumerate(world.meters)
            if meter.point not in self.silent and (points is None or meter.point in points)
        ]  # fmt: skip
        meter_id = np.repeat([self.meter_id[world.meters[row].serial] for row in rows], len(marks))
        at = np.tile(marks * 1_000_000, len(rows))
        registers = world.registers[np.ix_(np.array(rows), column)].reshape(-1, 4).astype(np.int64) * WH_PER_STEP
        self.batches += 1
        fields = [
            Field(meter_id, ">i4"), instant(at), instant(at), instant(at), Field(np.full(len(at), quality), ">i2"),
            *(Field(values, ">i8") for values in registers.T), Field(np.full(len(at), self.batches), ">i8"),
        ]  # fmt: skip
        with self.connection.transaction(), self.connection.cursor() as cursor:
            with cursor.copy("COPY energy_sample FROM STDIN (FORMAT binary)") as copy:
                copy.write(encode(fields))
            cursor.executemany(
                "INSERT INTO dirty_range VALUES (%s, %s, %s)",
                [(int(one), first, last) for one in np.unique(meter_id)],
            )
            cursor.execute(
                """
                INSERT INTO meter_state (meter_id, last_energy_at, clock_offset_s) SELECT unnest(%s::int[]), %s, 0
                ON CONFLICT (meter_id) DO UPDATE
                SET last_energy_at = greatest(meter_state.last_energy_at, excluded.last_energy_at)
                """,
                (np.unique(meter_id).tolist(), last),
            )

    def put_head_voltages(self, at: datetime) -> None:
        for row, meter in enumerate(self.world.meters):
            if meter.role == "supply":
                volts = self.world.power(row, at.timestamp()).volts / meter.pt_ratio
                self.connection.execute(
                    "INSERT INTO power_sample (meter_id, at, gateway_at, quality, voltage_l1_v, voltage_l2_v,"
                    " voltage_l3_v, batch_id) VALUES (%s, %s, %s, 0, %s, %s, %s, 1)",
                    (self.meter_id[meter.serial], at, at, volts, volts, volts),
                )

    def online(self, at: datetime) -> None:
        self.connection.execute(
            "INSERT INTO gateway_status (gateway, online, at, status) SELECT gateway, true, %s, '{}' FROM area"
            " ON CONFLICT (gateway) DO UPDATE SET at = excluded.at",
            (at,),
        )


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, World]:
    directory = tmp_path_factory.mktemp("site")
    return directory, build(directory, seed=1, meters=METERS, start=START)


@pytest.fixture
def store(empty_database: str, built: tuple[Path, World]) -> Store:
    directory, world = built
    migrate(empty_database)
    registry = read_registry(directory / "registry")
    assert isinstance(registry, Registry)
    connection = psycopg.connect(empty_database, autocommit=True, options="-c timezone=UTC")
    save_registry(connection, registry, since=START - timedelta(days=365))
    open_session(connection)
    meter_id: dict[str, int] = dict(connection.execute("SELECT serial, meter_id FROM meter").fetchall())
    return Store(connection, empty_database, world, meter_id)
