"""Real parts for every test: an embedded PostgreSQL, TimescaleDB and mosquitto where they run, all on loopback."""

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import psycopg
import pytest

from simulators import ports
from simulators.ports import free_port
from simulators.services import Broker, Postgres, new_password

if TYPE_CHECKING:
    from tests.mosquitto import Mosquitto

IN_CI = os.environ.get("CI") == "true"
# What one process still runs when the others have nothing left is waited for; so the longest files begin.
LONGEST_FIRST = (
    "tests/test_demo.py",
    "tests/gateway/test_agent.py",
    "tests/chaos/test_chaos.py",
    "tests/jobs/test_completeness.py",
    "tests/ingest/test_ingest.py",
)
PROCESSES_MAX = 8  # TimescaleDB takes 100 connections


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """``-n auto``: one process more than cores, since tests wait for sockets and processes half of their time."""
    return min((os.cpu_count() or 1) + 1, PROCESSES_MAX)


def pytest_configure() -> None:
    """Each process, with the programs it starts, draws free ports from a share of its own: nothing holds one from
    draw to listen, and while its listener is started again."""
    if worker := os.environ.get("PYTEST_XDIST_WORKER"):
        size = len(ports.PORTS) // int(os.environ["PYTEST_XDIST_WORKER_COUNT"])
        first = ports.PORTS.start + int(worker.removeprefix("gw")) * size
        os.environ[ports.NARROWED] = f"{first}-{first + size - 1}"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    begin = {name: place for place, name in enumerate(LONGEST_FIRST)}
    items.sort(key=lambda item: begin.get(item.nodeid.partition("::")[0], len(begin)))


def stop(process: "subprocess.Popen[Any]", how: signal.Signals = signal.SIGINT) -> None:
    """End a process this test run started."""
    if process.poll() is None:
        process.send_signal(how)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(10)


def wait_for_postgres(dsn: str, timeout_s: float = 60) -> None:
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            psycopg.connect(dsn, connect_timeout=2).close()
            return
        except psycopg.OperationalError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)


@contextmanager
def open_folder() -> Iterator[Path]:
    """A folder for what a database's own user must reach. pytest closes its folders to others at every start."""
    with TemporaryDirectory(prefix="gridloom-", ignore_cleanup_errors=True) as name:
        yield Path(name)


@contextmanager
def running_postgres() -> Iterator[Postgres]:
    """An embedded PostgreSQL server, empty."""
    with open_folder() as folder:
        server = Postgres(folder / "data", free_port(), new_password())
        server.initialize()
        process = subprocess.Popen(
            server.command(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, **server.popen_arguments()
        )
        try:
            wait_for_postgres(server.dsn)
            yield server
        finally:
            stop(process)


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    with running_postgres() as server:
        yield server


def missing_service(what: str) -> None:
    """Under CI a missing service fails the run; elsewhere its tests are skipped and the reason printed."""
    reason = f"{what} is not running; start it with `make services`"
    if IN_CI:
        pytest.fail(reason)
    pytest.skip(reason)


@pytest.fixture(params=["embedded", "timescaledb"])
def empty_database(request: pytest.FixtureRequest) -> Iterator[str]:
    """DSN of a fresh, empty database; once on embedded PostgreSQL and once on TimescaleDB."""
    if request.param == "embedded":
        admin = request.getfixturevalue("postgres").dsn
    else:
        admin = os.environ.get("GRIDLOOM_TEST_TIMESCALE_DSN", "")
        if not admin:
            missing_service("TimescaleDB (GRIDLOOM_TEST_TIMESCALE_DSN)")
    name = f"t_{uuid4().hex}"
    with psycopg.connect(admin, autocommit=True) as connection:
        connection.execute(f'CREATE DATABASE "{name}"')
    yield psycopg.conninfo.make_conninfo(admin, dbname=name)
    with psycopg.connect(admin, autocommit=True) as connection:
        connection.execute(f'DROP DATABASE "{name}" WITH (FORCE)')


BROKER_USERS = {name: new_password() for name in ("cloud", "gw-1", "gw-2")}


@contextmanager
def running_broker(folder: Path) -> Iterator[Broker]:
    """The embedded broker, with nothing in its memory."""
    broker = Broker(folder, free_port(), BROKER_USERS)
    broker.initialize()
    process = subprocess.Popen(broker.command(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_for_port(broker.port)
        yield broker
    finally:
        stop(process, signal.SIGTERM)


@pytest.fixture(scope="session")
def embedded_broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    with running_broker(tmp_path_factory.mktemp("broker")) as broker:
        yield broker


@pytest.fixture(scope="session")
def mosquitto(tmp_path_factory: pytest.TempPathFactory) -> Iterator["Mosquitto"]:
    from tests.mosquitto import new_mosquitto

    broker = new_mosquitto(tmp_path_factory.mktemp("mosquitto"))
    broker.start()
    yield broker
    broker.stop()


def wait_for_port(port: int, timeout_s: float = 10) -> None:
    import socket

    deadline = time.monotonic() + timeout_s
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            return
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The facts and data beside the project; tests that read them are skipped where they are not."""
    path = Path(__file__).resolve().parents[2] / "shared"
    if not path.is_dir():
        pytest.skip("../shared is not here")
    return path
