"""What the bench stands on: a database of its own, a broker, ingestors as processes, and what each has cost.

All of it is on loopback or where ``--dsn`` and ``--broker`` say, and gone when the bench ends.
"""

import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, cast
from urllib.parse import urlsplit

import psycopg
from paho.mqtt.client import Client, MQTTv5
from paho.mqtt.enums import CallbackAPIVersion
from psycopg import sql

from cloud.store.migrations import Connection, Edition, migrate, probe

LOOPBACK: Final = "127.0.0.1"
CLOUD: Final = "cloud"
TICK_S: Final = 1 / os.sysconf("SC_CLK_TCK")
READY_S: Final = 60.0


class BenchError(RuntimeError):
    """The bench cannot go on; the text says what, where and what to do."""


# ---- the broker ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Broker:
    """``passwords``: of the cloud's user and of each gateway. ``process``: None where somebody else started it."""

    name: str
    host: str
    port: int
    passwords: Mapping[str, str] = field(repr=False)
    process: int | None = None
    resumes: bool = True  # rumqttd cannot resume a session with shared subscriptions

    @property
    def url(self) -> str:
        return f"mqtt://{self.host}:{self.port}"

    @property
    def gateways(self) -> list[str]:
        return [name for name in self.passwords if name != CLOUD]


# As in deploy/mosquitto/mosquitto.conf, where a password is needed besides; a test holds both together.
MOSQUITTO: Final = {
    "per_listener_settings": "false",
    "persistence": "true",
    "autosave_interval": "30",
    "max_queued_messages": "0",
    "max_queued_bytes": "268435456",
    "max_inflight_messages": "2000",
    "max_inflight_bytes": "67108864",
    "max_packet_size": "1114112",
    "persistent_client_expiration": "14d",
    "set_tcp_nodelay": "true",
    "sys_interval": "0",
}
_ACCESS: Final = """\
user cloud
topic readwrite gridloom/v1/#
pattern write gridloom/v1/%u/+
pattern read gridloom/v1/%u/receipt
"""


def mosquitto() -> str | None:
    return shutil.which("mosquitto", path=os.environ.get("PATH", "") + os.pathsep + "/usr/sbin")


@contextmanager
def own_mosquitto(program: str, folder: Path, users: Sequence[str]) -> Iterator[Broker]:
    """mosquitto with production's settings; who signs in is believed to be who he says: loopback, for minutes."""
    folder.mkdir()
    port = _free_port()
    (folder / "acl").write_text(_ACCESS)
    settings = [f"{name} {value}" for name, value in MOSQUITTO.items()]
    settings += ["allow_anonymous true", f"acl_file {folder / 'acl'}", f"persistence_location {folder}/"]
    settings += ["log_dest stderr", "log_type error", "log_type warning", f"listener {port} {LOOPBACK}"]
    if os.geteuid() == 0:
        settings.append("user root")
    (folder / "mosquitto.conf").write_text("\n".join(settings) + "\n")
    (folder / "acl").chmod(0o600)
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen([program, "-c", str(folder / "mosquitto.conf")], stdout=log, stderr=log)
    try:
        deadline_s = time.monotonic() + 10
        while not _answers(port):
            if process.poll() is not None or time.monotonic() > deadline_s:
                raise BenchError(f"mosquitto does not start: {(folder / 'log').read_text().strip()[-300:]}")
            time.sleep(0.02)
        yield Broker("mosquitto", LOOPBACK, port, dict.fromkeys((CLOUD, *users), "bench"), process.pid)
    finally:
        end(process)


def given_broker(url: str) -> Broker:
    """The broker at ``url``; who may sign in there is in the environment."""
    parts = urlsplit(url)
    if parts.scheme != "mqtt" or not parts.hostname:
        raise BenchError(f'--broker: mqtt://host:port expected, got "{url}"')
    pairs = os.environ.get("GRIDLOOM_BENCH_GATEWAYS", "").split()
    gateways = dict(pair.split(":", 1) for pair in pairs if ":" in pair)
    password = os.environ.get("GRIDLOOM_MQTT_PASSWORD")
    if not gateways or not password:
        raise BenchError(
            "--broker: GRIDLOOM_MQTT_PASSWORD (of the cloud's user) and GRIDLOOM_BENCH_GATEWAYS "
            '("name:password name:password", gateways that nobody else is) are needed; no other ingestor may run there'
        )
    user = {CLOUD: password}
    return Broker(url, parts.hostname, parts.port or 1883, user | gateways)


# ---- the database ----------------------------------------------------------------------------------------------------


@contextmanager
def scratch_database(server: str) -> Iterator[str]:
    """A migrated database of our own on the server behind ``server``, dropped at the end. Nothing else is touched."""
    name = f"gridloom_bench_{secrets.token_hex(4)}"
    try:
        with psycopg.connect(server, autocommit=True, connect_timeout=10) as connection:
            connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
    except psycopg.Error as error:
        raise BenchError(
            f"--dsn: {str(error).strip().splitlines()[0]}; a login is needed that may create a database: the bench "
            "makes one of its own and touches no other"
        ) from error
    dsn = psycopg.conninfo.make_conninfo(server, dbname=name)
    try:
        migrate(dsn)
        yield dsn
    finally:
        with psycopg.connect(server, autocommit=True) as connection:
            connection.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))


@contextmanager
def embedded(folder: Path, users: Sequence[str]) -> Iterator[dict[str, Any]]:
    """The database, and with ``users`` the broker, that `gridloom demo` uses."""
    command = [sys.executable, "-m", "simulators", "services", "--data", str(folder)]
    for user in users:
        command += ["--user", user]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stderr is not None
    try:
        told = process.stdout.readline()
        if not told:
            process.wait(10)
            said = process.stderr.read().decode(errors="replace").strip().splitlines()[-1:]
            raise BenchError(f"no embedded services: {said[0] if said else 'no output'}; or give --dsn and --broker")
        yield json.loads(told)
    finally:
        process.stdin.close()
        with suppress(subprocess.TimeoutExpired):
            process.wait(15)
        end(process)
        process.stdout.close()
        process.stderr.close()


# ---- all together ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Place:
    """Where the bench runs. ``dsn``: of the scratch database."""

    dsn: str
    broker: Broker
    edition: Edition
    server: dict[str, str]
    folder: Path


@contextmanager
def place(folder: Path, dsn: str | None, broker_url: str | None, gateways: int) -> Iterator[Place]:
    """The services asked for, the others started here."""
    users = [f"bench-{i:03d}" for i in range(gateways)]
    program = mosquitto()
    embed_broker = broker_url is None and program is None
    with ExitStack() as stack:
        told: dict[str, Any] = {}
        if dsn is None or embed_broker:
            told = stack.enter_context(embedded(folder / "services", [CLOUD, *users] if embed_broker else []))
        if broker_url is not None:
            broker = given_broker(broker_url)
        elif program is not None:
            broker = stack.enter_context(own_mosquitto(program, folder / "mosquitto", users))
        else:
            url = urlsplit(told["broker"])
            process = told["processes"]["broker"]
            broker = Broker("embedded (rumqttd)", LOOPBACK, url.port or 0, told["passwords"], process, resumes=False)
        scratch = stack.enter_context(scratch_database(dsn or told["dsn"]))
        with psycopg.connect(scratch, autocommit=True) as connection:
            yield Place(scratch, broker, probe(connection), _server(connection), folder)


def _server(connection: Connection) -> dict[str, str]:
    names = ("server_version", "fsync", "synchronous_commit", "full_page_writes", "shared_buffers", "max_wal_size")
    found = connection.execute("SELECT name, current_setting(name) FROM unnest(%s::text[]) AS name", [list(names)])
    told = {str(name): str(value) for name, value in found}
    version = connection.execute("SELECT extversion FROM pg_extension WHERE extname = 'timescaledb'").fetchone()
    return told | ({"timescaledb": str(version[0])} if version else {})


def _free_port() -> int:
    with socket.socket() as taken:
        taken.bind((LOOPBACK, 0))
        return cast(int, taken.getsockname()[1])


def _answers(port: int) -> bool:
    try:
        socket.create_connection((LOOPBACK, port), 0.5).close()
    except OSError:
        return False
    return True


def end(process: "subprocess.Popen[bytes]") -> None:
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(15)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(10)


# ---- ingestors -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Ingestors:
    """``workers`` of them, descendants of ``processes``."""

    workers: int
    processes: Sequence[int]


@contextmanager
def ingestors(here: Place, workers: int, profile: Path | None = None) -> Iterator[Ingestors]:
    """A real `gridloom ingest --workers` and its process. ``profile``: a folder for what cProfile says of each worker;
    each is then started alone."""
    environment = {
        **os.environ,
        "GRIDLOOM_DSN": here.dsn,
        "GRIDLOOM_MQTT_URL": here.broker.url,
        "GRIDLOOM_MQTT_USERNAME": CLOUD,
        "GRIDLOOM_MQTT_PASSWORD": here.broker.passwords[CLOUD],
    }
    environment.pop("GRIDLOOM_CLOCK", None)
    # Names that are used again: a session that nobody serves keeps its share of the messages.
    names = [f"bench-{i}" for i in range(1, workers + 1)]
    run = [sys.executable, "-c", _INGEST]
    commands = [[*run, "", "ingest", "--name", "bench", "--workers", str(workers)]]
    if profile:
        commands = [[*run, str(profile / f"{name}.prof"), "ingest", "--name", name] for name in names]
    if not here.broker.resumes:
        commands = [[*command, "--fresh-session"] for command in commands]
    started: list[subprocess.Popen[bytes]] = []
    path = here.folder / "ingest.log"
    try:
        with path.open("ab") as log:
            started += [subprocess.Popen(command, env=environment, stdout=log, stderr=log) for command in commands]
        yield Ingestors(workers, [process.pid for process in started])
        for process in started:
            if process.poll() is not None:
                raise BenchError(f"gridloom ingest ended with {process.returncode}")
    except BenchError as error:
        last = path.read_text(errors="replace").strip().splitlines()[-1:]
        raise BenchError(f"{error} (ingest says: {last[0] if last else 'nothing'})") from error
    finally:
        for process in started:
            end(process)
        if here.broker.process is None:
            for name in names:
                _forget_session(here.broker, f"gridloom-ingest-{name}")


def _forget_session(broker: Broker, client_id: str) -> None:
    """So that a broker that is not ours keeps nothing for an ingestor that never comes back."""
    client = Client(CallbackAPIVersion.VERSION2, client_id, protocol=MQTTv5)
    client.username_pw_set(CLOUD, broker.passwords[CLOUD])
    client.connect(broker.host, broker.port, clean_start=True)
    deadline_s = time.monotonic() + 5
    while not client.is_connected() and time.monotonic() < deadline_s:
        client.loop(0.1)
    client.disconnect()


_INGEST: Final = """
import cProfile, sys
from cloud.gridloom import main
path = sys.argv.pop(1)
if path:
    profile = cProfile.Profile()
    try:
        profile.runcall(main)
    finally:
        profile.dump_stats(path)
else:
    main()
"""


# ---- what processes have cost ----------------------------------------------------------------------------------------


def cpu_of_all() -> dict[int, tuple[int, float]]:
    """Parent and seconds of CPU of every process we may look at (Linux)."""
    found = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            # The name in parentheses may hold anything; what follows its end does not.
            rest = path.read_text().rpartition(")")[2].split()
            found[int(path.parent.name)] = (int(rest[1]), (int(rest[11]) + int(rest[12])) * TICK_S)
    return found


def tree(all_of_them: Mapping[int, tuple[int, float]], roots: Iterable[int]) -> set[int]:
    """``roots`` and all their descendants."""
    children: dict[int, list[int]] = {}
    for process, (parent, _) in all_of_them.items():
        children.setdefault(parent, []).append(process)
    found: set[int] = set()
    waiting = [root for root in roots if root in all_of_them]
    while waiting:
        process = waiting.pop()
        found.add(process)
        waiting += children.get(process, [])
    return found


class Meter:
    """CPU seconds since it was made: of ingestors, their database sessions, the rest of the server, the broker.

    What runs where we cannot look, on another machine or in a container, is missing.
    """

    def __init__(self, connection: Connection, ingest: Sequence[int], broker: int | None) -> None:
        every = cpu_of_all()
        own = connection.info.backend_pid
        sessions = {
            cast(int, process)
            for (process,) in connection.execute(
                "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND pid <> %s"
                " AND backend_type = 'client backend'",
                [own],
            )
        }
        self._groups: dict[str, set[int]] = {"ingest": tree(every, ingest)}
        if own in every and _is_postgres(own):
            self._groups["postgres_session"] = sessions
            server = tree(every, [every[own][0]])
            self._groups["postgres_rest"] = server - sessions - {own}
        if broker is not None:
            self._groups["broker"] = tree(every, [broker])
        self._before = every

    def spent_s(self) -> dict[str, float]:
        after = cpu_of_all()
        return {
            name: sum(after[p][1] - self._before[p][1] for p in group if p in after and p in self._before)
            for name, group in self._groups.items()
        }


def _is_postgres(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/comm").read_text().startswith("postgres")
    except OSError:
        return False
