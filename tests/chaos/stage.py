"""Everything a chaos run is played with, each in a process of its own: gateways, mosquitto, two ingestors, PostgreSQL.

Between them proxies, under database and some queues small disks.
"""

import asyncio
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any, Final

import msgspec
import psycopg

from cloud.store.migrations import migrate
from cloud.store.registry import Registry, read_registry, save_registry
from gateway.queue import QUEUE_FILE
from gateway.uplink import end
from simulators.ports import free_port
from simulators.services import Postgres, new_password
from tests.chaos.content import METERS
from tests.chaos.gateways import Crew
from tests.conftest import wait_for_postgres
from tests.mosquitto import DEPLOY, Mosquitto, new_mosquitto
from tests.proxy import Proxy
from tests.store.registry_files import FILES, write_registry

GATEWAYS: Final = tuple(f"gw-{number:02}" for number in range(1, 21))
ON_A_SMALL_DISK: Final = GATEWAYS[-4:]
DATABASE_DISK_MB: Final = 384
QUEUE_DISK_MB: Final = 96  # 8 MB of each queue are its reserve
WORKERS: Final = ("one", "two")
RESTART_S: Final = 0.3
WATCHER: Final = "watcher"  # may read what mosquitto tells of itself

Launch = Callable[[], "subprocess.Popen[Any]"]


@dataclass
class Program:
    """A process that is started again whenever it is gone, unless it is meant to stay away."""

    name: str
    launch: Launch
    may_die: bool = False  # by itself, as a database without room for its journal does
    process: "subprocess.Popen[Any] | None" = None
    wanted: bool = True
    starts: int = 0
    kills: int = 0
    died: list[str] = field(default_factory=list)

    @property
    def is_running(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def look_after(self) -> None:
        if not self.wanted or self.is_running:
            return
        if self.process:
            self.died.append(f"{self.name} ended by itself with {self.process.returncode}")
        self.process = self.launch()
        self.starts += 1

    def kill(self, how: signal.Signals = signal.SIGKILL) -> None:
        """Nothing starts it until it is wanted again."""
        self.wanted = False
        if self.process and self.process.poll() is None:
            self.process.send_signal(how)
            self.process.wait()
            self.kills += 1
        self.process = None


class SmallDisk:
    """A tmpfs that can be filled to its last page."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def fill(self) -> None:
        with (self.path / "ballast").open("ab", buffering=0) as ballast, suppress(OSError):
            while True:
                ballast.write(bytes(4_096) * 256)
        with (self.path / "ballast").open("ab", buffering=0) as ballast, suppress(OSError):
            while True:
                ballast.write(bytes(512))

    def free(self) -> None:
        (self.path / "ballast").unlink(missing_ok=True)


@contextmanager
def small_disk(path: Path, size_mb: int, *, wanted: bool) -> Iterator[SmallDisk | None]:
    """None where it is not wanted, or nobody may mount; ``path`` is then a folder like any other."""
    path.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size_mb}m,mode=755", "tmpfs", str(path)]
    may_mount = wanted and os.geteuid() == 0 and shutil.which("mount") is not None
    if not may_mount or subprocess.run(mount, check=False, capture_output=True).returncode:
        yield None
        return
    try:
        yield SmallDisk(path)
    finally:
        subprocess.run(["umount", "--lazy", str(path)], check=False)


@dataclass
class Stage:
    """``said``: what each program wrote, by its name, also while its disk is full."""

    folder: Path
    crew: Crew
    users: dict[str, str]
    postgres: Postgres
    database_disk: SmallDisk | None
    queue_disk: SmallDisk | None
    mosquitto: Mosquitto
    field_line: Proxy  # gateways to broker
    hall_line: Proxy  # ingestors to broker
    database_line: Proxy  # ingestors to database
    gateways: tuple[Program, ...]
    workers: tuple[Program, ...]
    broker: Program
    database: Program

    @property
    def programs(self) -> tuple[Program, ...]:
        return (self.database, self.broker, *self.workers, *self.gateways)

    @property
    def queue_files(self) -> list[Path]:
        return sorted(self.folder.glob(f"queues*/*/{QUEUE_FILE}"))

    @property
    def lines(self) -> tuple[Proxy, ...]:
        return (self.field_line, self.hall_line, self.database_line)

    def said(self, name: str) -> str:
        if name == self.broker.name:
            return self.mosquitto.log
        path = self.folder / f"{name}.log"
        return path.read_text(errors="replace") if path.exists() else ""

    def forget_broker(self) -> None:
        """Delete what a broker that is down would remember."""
        for path in (self.mosquitto.directory / "data").iterdir():
            path.unlink()

    def children_of_database(self) -> list[int]:
        process = self.database.process
        if process is None or process.poll() is not None:
            return []
        with suppress(OSError):
            return [int(pid) for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]
        return []

    async def look_after(self) -> None:
        while True:
            for program in self.programs:
                program.look_after()
            await asyncio.sleep(RESTART_S)


@asynccontextmanager
async def stage(
    folder: Path, *, start: datetime, period_s: float, small_disks: bool, mosquitto_conf: Mapping[str, int]
) -> AsyncIterator[Stage]:
    """Set up, and everything ended at the end. ``mosquitto_conf``: what is other than in production."""
    with (
        small_disk(folder / "database", DATABASE_DISK_MB, wanted=small_disks) as database_disk,
        small_disk(folder / "queues", QUEUE_DISK_MB, wanted=small_disks) as queue_disk,
    ):
        for name in ("queues-free", "witness", "broker"):
            (folder / name).mkdir()
        users = {name: new_password() for name in ("cloud", WATCHER, *GATEWAYS)}
        postgres = Postgres(folder / "database" / "data", free_port(), new_password())
        await asyncio.to_thread(postgres.initialize)
        mosquitto = _mosquitto(folder / "broker", users, mosquitto_conf)
        field_line, hall_line = Proxy(free_port(), mosquitto.port), Proxy(free_port(), mosquitto.port)
        database_line = Proxy(free_port(), postgres.port)
        worker_password = new_password()
        behind_line = Postgres(postgres.directory, database_line.port, worker_password)
        worker_dsn = behind_line.dsn_for("ingest", worker_password, "postgres")
        crew = Crew(
            port=field_line.port, gateways={}, queues="", witnesses=str(folder / "witness"),
            enough=str(folder / "enough"), start=start, period_s=period_s,
        )  # fmt: skip
        set_up = Stage(
            folder=folder,
            crew=crew,
            users=users,
            postgres=postgres,
            database_disk=database_disk,
            queue_disk=queue_disk,
            mosquitto=mosquitto,
            field_line=field_line,
            hall_line=hall_line,
            database_line=database_line,
            gateways=tuple(_crews(folder, crew, users)),
            workers=tuple(_worker(folder, name, worker_dsn, hall_line.port, users["cloud"]) for name in WORKERS),
            broker=Program("broker", mosquitto.launch),
            database=Program("database", _database(folder, postgres), may_die=True),
        )
        helpers = [asyncio.create_task(line.serve()) for line in set_up.lines]
        try:
            set_up.database.look_after()
            await asyncio.to_thread(wait_for_postgres, postgres.dsn)
            await asyncio.to_thread(_prepare_store, folder, postgres.dsn, worker_password)
            helpers.append(asyncio.create_task(set_up.look_after()))
            yield set_up
        finally:
            await end(*helpers)
            for pid in set_up.children_of_database():
                with suppress(ProcessLookupError):
                    os.kill(pid, 9)
            for program in set_up.programs:
                program.kill()


def _crews(folder: Path, crew: Crew, users: dict[str, str]) -> Iterator[Program]:
    """Three processes; one of them has its queues on the small disk."""
    on_good_disks = [name for name in GATEWAYS if name not in ON_A_SMALL_DISK]
    half = len(on_good_disks) // 2
    for name, those, queues in (
        ("gateways a", on_good_disks[:half], "queues-free"),
        ("gateways b", on_good_disks[half:], "queues-free"),
        ("gateways c", list(ON_A_SMALL_DISK), "queues"),
    ):
        told = msgspec.json.encode(
            msgspec.structs.replace(
                crew, gateways={gateway: users[gateway] for gateway in those}, queues=str(folder / queues)
            )
        )

        def launch(name: str = name, told: bytes = told) -> "subprocess.Popen[Any]":
            with log(folder, name) as out:
                process = subprocess.Popen(
                    [sys.executable, "-m", "tests.chaos.gateways"], stdin=subprocess.PIPE, stdout=out, stderr=out
                )
            assert process.stdin
            process.stdin.write(told)
            process.stdin.close()
            return process

        # A gateway that starts on a full disk gives up, and is started again.
        yield Program(name, launch, may_die=queues == "queues")


def _worker(folder: Path, name: str, dsn: str, port: int, password: str) -> Program:
    def launch() -> "subprocess.Popen[Any]":
        environment = {
            **os.environ,
            "GRIDLOOM_DSN": dsn,
            "GRIDLOOM_MQTT_URL": f"mqtt://127.0.0.1:{port}",
            "GRIDLOOM_MQTT_USERNAME": "cloud",
            "GRIDLOOM_MQTT_PASSWORD": password,
        }
        command = [sys.executable, "-c", "from cloud.gridloom import main; main()", "ingest", "--name", name]
        with log(folder, f"ingest {name}") as out:
            return subprocess.Popen(command, env=environment, stdout=out, stderr=out)

    return Program(f"ingest {name}", launch)


def _database(folder: Path, postgres: Postgres) -> Launch:
    # On so small a disk the journal must be small, too.
    command = [*postgres.command(), "--max_wal_size=128MB", "--min_wal_size=32MB", "--shared_buffers=64MB"]

    def launch() -> "subprocess.Popen[Any]":
        with log(folder, "database") as out:
            return subprocess.Popen(command, stdout=out, stderr=out, **postgres.popen_arguments())

    return launch


def log(folder: Path, name: str) -> IO[bytes]:
    return (folder / f"{name}.log").open("ab")


def _mosquitto(folder: Path, users: dict[str, str], other: Mapping[str, int]) -> Mosquitto:
    """As production has it but for ``other`` settings, and one more user."""
    broker = new_mosquitto(folder)
    config = folder / "config"
    shutil.copytree(DEPLOY / "mosquitto", config)
    settings = (config / "mosquitto.conf").read_text()
    for name, value in other.items():
        settings, found = re.subn(rf"(?m)^{name} .*$", f"{name} {value}", settings)
        assert found == 1, f"mosquitto.conf: {name} expected once, found {found} times"
    (config / "mosquitto.conf").write_text(settings)
    with (config / "acl").open("a") as acl:
        acl.write(f"\nuser {WATCHER}\ntopic read $SYS/#\n")
    broker.environment = {
        "MQTT_CONFIG": str(config),
        "MQTT_USERS": " ".join(f"{name}:{password}" for name, password in users.items()),
    }
    return broker


def _prepare_store(folder: Path, dsn: str, worker_password: str) -> None:
    """Schema, a registry with every gateway's meters, and a login that may do what ingest may."""
    migrate(dsn)
    with psycopg.connect(dsn, autocommit=True) as connection:
        import_registry(connection, folder / "registry")
        connection.execute(
            psycopg.sql.SQL("CREATE ROLE ingest LOGIN PASSWORD {} IN ROLE gridloom_ingest").format(
                psycopg.sql.Literal(worker_password)
            )
        )


def import_registry(connection: psycopg.Connection[Any], folder: Path) -> None:
    """Every gateway with its meters."""
    areas, nodes, meters = (FILES[name].splitlines()[0] + "\n" for name in ("areas.csv", "nodes.csv", "meters.csv"))
    for number, gateway in enumerate(GATEWAYS):
        areas += f"A{number},F1,Area,台区,{gateway},100000,-1,8\n"
        nodes += f"N{number},A{number},bus,abc\n"
        for meter in range(METERS):
            serial, point = f"{number:06}{meter:06}", f"P{number}-{meter}"
            meters += f"{serial},dlt645-2007,{gateway},m{meter:02},{point},A{number},customer,abc,N{number},false,1,1\n"
    empty = {name: FILES[f"{name}.csv"].splitlines()[0] + "\n" for name in ("lines", "transformers")}
    registry = read_registry(write_registry(folder, areas=areas, nodes=nodes, meters=meters, **empty))
    assert isinstance(registry, Registry), registry
    save_registry(connection, registry, since=datetime.now(UTC))
