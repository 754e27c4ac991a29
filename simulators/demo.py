"""The demo: every part of Gridloom as its own process on loopback, kept running, with a one-screen status.

Data, secrets, logs and the simulated clock live in one folder; a second run goes on where the first one stopped.
"""

import fcntl
import json
import logging
import os
import secrets
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from types import FrameType
from typing import IO, Any

import click
import httpx
import psycopg
from psycopg import sql
from rich.console import Console
from rich.live import Live
from rich.table import Table

from protocols.clock import Anchor, read_anchor, write_anchor
from simulators.ports import LOOPBACK, free_port
from simulators.report import check, make_report, summary
from simulators.services import Broker, Postgres, ServiceError, new_password
from simulators.supervisor import Program, ProgramError, Supervisor, port_answers

DATA_DEFAULT = Path("~/.local/share/gridloom")
LOGINS = ("ingest", "work", "api", "grafana")
BACKFILL_S_MAX = 240
ONCE_S_MAX = 350
REPORT_S_MAX = 30


class DemoError(RuntimeError):
    """The demo cannot go on; the text says what, where and what to do."""


@dataclass(frozen=True)
class Options:
    data: Path
    meters: int
    seed: int
    port: int
    rate: float
    once: bool


@click.command(
    epilog="""\b
Copy and run:
  gridloom demo
  gridloom demo --meters 60 --port 8090 --data /tmp/gridloom
  gridloom demo --once --json report.json
"""
)
@click.option(
    "--data", type=click.Path(path_type=Path), default=DATA_DEFAULT, show_default=True, help="Where it all lives."
)
@click.option("--meters", type=click.IntRange(30, 2000), default=300, show_default=True, help="Only for new data.")
@click.option("--seed", type=int, default=1, show_default=True, help="Only for new data.")
@click.option("--port", type=click.IntRange(1, 65535), default=8080, show_default=True, help="Of console and API.")
@click.option(
    "--rate", type=click.FloatRange(1, 120), default=60, show_default=True, help="Simulated seconds a second."
)
@click.option("--once", is_flag=True, help="Headless: run until a demand-response event is measured, check, report.")
@click.option("--json", "report", type=click.Path(path_type=Path), help="With --once: where the report goes.")
def demo(data: Path, meters: int, seed: int, port: int, rate: float, once: bool, report: Path | None) -> None:
    """Simulated meters, gateways, broker, database, engines, API and console, on this machine.

    The simulated clock starts yesterday at 17:00 (Shanghai). It runs at real speed until the gateways have read 35 days
    from the meters' memory, then at --rate until it reaches the wall clock.
    """
    if report and not once:
        raise click.UsageError("--json goes with --once")
    logging.getLogger("httpx").setLevel(logging.WARNING)  # the status is asked for twice a second
    options = Options(data.expanduser().resolve(), meters, seed, port, rate, once)
    try:
        with _terminating(), _locked(options.data):
            sys.exit(Demo(options).run(report))
    except (DemoError, ProgramError, ServiceError) as error:
        click.echo(f"gridloom demo: {error}", err=True)
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(0)


@contextmanager
def _terminating() -> Iterator[None]:
    """SIGTERM and SIGHUP stop us as Ctrl-C does."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, stop)
    yield


@contextmanager
def _locked(directory: Path) -> Iterator[None]:
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DemoError(f"{directory} is in use by another demo; stop it, or choose another --data") from None
        yield


class Demo:
    """One run on one data folder."""

    def __init__(self, options: Options) -> None:
        self._options = options
        self._data = options.data
        self._console = Console(stderr=True)
        self._supervisor = Supervisor(self._data)
        self._secrets = _load_secrets(self._data / "secrets.json")
        self._api: httpx.Client | None = None
        self._began_s = time.monotonic()

    # ---- start and stop ----------------------------------------------------------------------------------------------

    def run(self, report: Path | None) -> int:
        if port_answers(self._options.port):
            raise DemoError(
                f"port {self._options.port} on {LOOPBACK} is in use; stop what listens there, or choose another --port"
            )
        try:
            self._start()
            return self._once(report) if self._options.once else self._watch()
        finally:
            self._heartbeat()
            self._say("stopping")
            self._supervisor.stop()
            self._say(f"stopped; the data stays in {self._data}")

    def _start(self) -> None:
        self._say(f"data in {self._data}")
        if not (self._data / "site.json").exists():
            self._say(f"building a substation with {self._options.meters} meters")
            self._supervisor.run(
                Program("build", _simulators("build", "--data", str(self._data), "--meters", str(self._options.meters),
                                             "--seed", str(self._options.seed)))
            )  # fmt: skip
        site = json.loads((self._data / "site.json").read_text())
        self._start_clock(datetime.fromisoformat(site["start"]))

        self._say("starting database, broker and meters")
        postgres = Postgres(self._data / "postgres", free_port(), self._password("postgres"))
        postgres.initialize()
        self._supervisor.start(
            Program("postgres", postgres.command(), popen=postgres.popen_arguments(), stop_signal=signal.SIGINT)
        )
        gateways = sorted(path.parent for path in (self._data / "gateways").glob("*/site.toml"))
        users = {name: self._password(f"mqtt-{name}") for name in ("cloud", *(path.name for path in gateways))}
        broker = Broker(self._data / "broker", free_port(), users)
        broker.initialize()
        self._supervisor.start(Program("broker", broker.command(), healthy=broker.accepts))
        clock = {"GRIDLOOM_CLOCK": str(self._clock), "GRIDLOOM_645_PASSWORD": self._relay_password()}
        self._supervisor.start(Program("simulators", _simulators("run", "--data", str(self._data)), clock))

        self._supervisor.wait_ready("postgres", postgres.accepts)
        self._supervisor.wait_ready("broker", broker.accepts)
        dsn = self._prepare_database(postgres)

        def cloud(role: str) -> dict[str, str]:
            return {
                "GRIDLOOM_DSN": dsn[role],
                "GRIDLOOM_MQTT_URL": broker.url,
                "GRIDLOOM_MQTT_USERNAME": "cloud",
                "GRIDLOOM_MQTT_PASSWORD": users["cloud"],
                "GRIDLOOM_CLOCK": str(self._clock),
            }

        peak = ["--peak-lookahead", "30m", "--dr-duration", "30m"] if self._options.once else []
        self._supervisor.start(Program("ingest", _gridloom("ingest", "--fresh-session"), cloud("ingest")))
        self._supervisor.start(Program("work", _gridloom("work", *peak), cloud("work")))
        self._supervisor.start(Program("serve", _gridloom("serve", "--port", str(self._options.port)), cloud("api")))
        for path in gateways:
            environment = clock | {"GRIDLOOM_MQTT_URL": broker.url, "GRIDLOOM_MQTT_PASSWORD": users[path.name]}
            command = [_script("meterctl"), "run", str(path / "site.toml")]
            self._supervisor.start(Program(path.name, command, environment))
        self._supervisor.wait_ready("simulators", lambda: _listens(site), 60)
        self._supervisor.wait_ready("serve", lambda: port_answers(self._options.port))
        self._api = httpx.Client(
            base_url=f"http://{LOOPBACK}:{self._options.port}",
            headers={"Authorization": f"Bearer {self._secrets['api-key']}"},
            timeout=30,
        )
        key = self._secrets["api-key"]
        self._say(f"console  http://{LOOPBACK}:{self._options.port}/#key={key}")
        self._say(f"API      http://{LOOPBACK}:{self._options.port}/docs   key: {key}")

    def _prepare_database(self, postgres: Postgres) -> dict[str, str]:
        """Schema, logins with one role each, registry and an API key; DSN by role. Every step can be repeated."""
        with psycopg.connect(postgres.dsn, autocommit=True) as admin:
            _login(admin, "gridloom", self._password("db-gridloom"), sql.SQL("CREATEROLE"))
            if not admin.execute("SELECT 1 FROM pg_database WHERE datname = 'gridloom'").fetchone():
                admin.execute("CREATE DATABASE gridloom OWNER gridloom")
        owner = {"GRIDLOOM_DSN": postgres.dsn_for("gridloom", self._password("db-gridloom"))}
        self._supervisor.run(Program("migrate", _gridloom("migrate"), owner))
        with psycopg.connect(postgres.dsn, autocommit=True) as admin:
            for role in LOGINS:
                _login(admin, f"demo_{role}", self._password(f"db-{role}"), sql.SQL(""))
                admin.execute(
                    sql.SQL("GRANT {} TO {}").format(sql.Identifier(f"gridloom_{role}"), sql.Identifier(f"demo_{role}"))
                )
        self._supervisor.run(Program("registry", _gridloom("registry", "import", str(self._data / "registry")), owner))
        if "api-key" not in self._secrets:
            made = self._supervisor.run(Program("key", _gridloom("key", "create", "demo"), owner))
            self._secrets["api-key"] = made.split()[-1]
            _save_secrets(self._data / "secrets.json", self._secrets)
        return {role: postgres.dsn_for(f"demo_{role}", self._password(f"db-{role}")) for role in LOGINS}

    # ---- the simulated clock -----------------------------------------------------------------------------------------

    @property
    def _clock(self) -> Path:
        return self._data / "clock.json"

    def _start_clock(self, start: datetime) -> None:
        """Go on from the simulated instant at which the last run was seen alive; at real speed at first."""
        beat = self._data / "heartbeat"
        now_s = time.time()
        simulated_s = start.timestamp()
        if self._clock.exists() and beat.exists():
            simulated_s = read_anchor(self._clock).at(min(beat.stat().st_mtime, now_s))
        write_anchor(self._clock, Anchor(now_s, min(simulated_s, now_s), 1.0))

    def _speed_up(self) -> None:
        now_s = time.time()
        write_anchor(self._clock, Anchor(now_s, read_anchor(self._clock).at(now_s), self._options.rate))

    def _heartbeat(self) -> None:
        (self._data / "heartbeat").touch()

    # ---- watch, or run once ------------------------------------------------------------------------------------------

    def _watch(self) -> int:
        fast, said_s = False, 0.0
        with Live(console=self._console, refresh_per_second=2, transient=True) as live:
            for status in self._statuses():
                if self._console.is_terminal:
                    live.update(self._screen(status))
                elif status and time.monotonic() - said_s > 30:
                    said_s = time.monotonic()
                    self._say(_line("demo", status))
                if not fast and status and status["backfill_left"] == 0 and status["completeness"]:
                    fast = True
                    self._speed_up()
        return 0

    def _once(self, report: Path | None) -> int:
        phase, said_s, phase_s = "backfill", 0.0, time.monotonic()
        for status in self._statuses():
            now_s = time.monotonic()
            if status and now_s - said_s > 5:
                said_s = now_s
                self._say(_line(phase, status))
            if phase == "backfill":
                if status and status["backfill_left"] == 0 and (status["completeness"] or 0) >= 0.999:
                    self._say(
                        f"backfill done after {now_s - phase_s:.0f} s; the clock now runs at {self._options.rate:g}×"
                    )
                    self._speed_up()
                    phase, phase_s = "live", now_s
                elif now_s - phase_s > BACKFILL_S_MAX:
                    self._say(f"backfill not complete after {BACKFILL_S_MAX} s; reporting what is there")
                    break
            elif phase == "live":
                made = self._make_report() if status else None
                if (made and not check(made)) or now_s - self._began_s > ONCE_S_MAX:
                    break
                time.sleep(1)
        return self._conclude(report)

    def _conclude(self, path: Path | None) -> int:
        asked_s = time.monotonic()
        for _ in self._statuses():  # whoever was killed a moment ago comes back
            report = self._make_report()
            if report or time.monotonic() - asked_s > REPORT_S_MAX:
                break
        if not report:
            raise click.ClickException(f"the API gives no report within {REPORT_S_MAX} s; see the logs in {self._data}")
        problems = check(report)
        for line in summary(report):
            self._say(line)
        text = json.dumps(report, indent=2, ensure_ascii=False)
        if path:
            path.write_text(text + "\n")
            self._say(f"report in {path}")
        else:
            click.echo(text)
        for problem in problems:
            self._say(f"FAILED: {problem}")
        if not problems:
            self._say(f"all checks hold, after {time.monotonic() - self._began_s:.0f} s")
        return 1 if problems else 0

    def _make_report(self) -> dict[str, Any] | None:
        """None while the API or its database does not answer."""
        assert self._api is not None
        try:
            return make_report(self._api, self._data, restarts=self._supervisor.restarts)
        except httpx.HTTPError:
            return None

    def _statuses(self) -> Iterator[dict[str, Any] | None]:
        """The cloud's one-screen status about twice a second, None while it does not answer; tends the programs."""
        assert self._api is not None
        while True:
            self._supervisor.tend()
            self._heartbeat()
            try:
                answer = self._api.get("/v1/status", timeout=5)
                yield answer.json() if answer.status_code == 200 else None
            except httpx.HTTPError:
                yield None
            time.sleep(0.4)

    def _screen(self, status: dict[str, Any] | None) -> Table:
        table = Table(title=f"Gridloom · http://{LOOPBACK}:{self._options.port}   Ctrl-C stops", show_header=False)
        table.add_column(style="bold")
        table.add_column()
        for label, value in _rows(status):
            table.add_row(label, value)
        for name, count in self._supervisor.restarts.items():
            table.add_row("restarted 重启", f"{name} {count}×")
        return table

    def _say(self, text: str) -> None:
        self._console.print(
            f"[{time.monotonic() - self._began_s:6.1f} s] {text}", highlight=False, markup=False, soft_wrap=True
        )

    # ---- secrets -----------------------------------------------------------------------------------------------------

    def _password(self, name: str) -> str:
        if name not in self._secrets:
            self._secrets[name] = new_password()
            _save_secrets(self._data / "secrets.json", self._secrets)
        return self._secrets[name]

    def _relay_password(self) -> str:
        """DL/T 645 password: level 02, which may switch relays, and six random digits."""
        if "645" not in self._secrets:
            self._secrets["645"] = f"02{secrets.randbelow(10**6):06d}"
            _save_secrets(self._data / "secrets.json", self._secrets)
        return self._secrets["645"]


def _rows(status: dict[str, Any] | None) -> Iterator[tuple[str, str]]:
    if status is None:
        yield "status 状态", "waiting for the API"
        return
    yield "simulated time 仿真时间", str(status["now"])
    yield "gateways online 在线网关", f"{status['gateways_online']} of {status['gateways']}"
    yield "rows stored 入库行数", f"{status['rows']:,}"
    yield "backfill left 待补采", f"{status['backfill_left']:,} marks"
    completeness = status["completeness"]
    yield "completeness 采集成功率", "–" if completeness is None else f"{completeness:.2%}"
    yield "alerts open 告警", str(status["alerts_open"])
    yield "demand response 需求响应", str(status["demand_response"])


def _line(phase: str, status: dict[str, Any]) -> str:
    return f"{phase}: " + ", ".join(f"{label.split(' ')[0]} {value}" for label, value in _rows(status))


def _listens(site: dict[str, Any]) -> bool:
    return all(port_answers(line["port"]) for line in site["lines"])


def _login(admin: "psycopg.Connection[Any]", name: str, password: str, options: sql.SQL) -> None:
    known = admin.execute("SELECT 1 FROM pg_roles WHERE rolname = %s", (name,)).fetchone()
    admin.execute(
        sql.SQL("{} ROLE {} LOGIN PASSWORD {} {}").format(
            sql.SQL("ALTER" if known else "CREATE"), sql.Identifier(name), sql.Literal(password), options
        )
    )


def _script(name: str) -> str:
    """A command of this environment, also when its ``bin`` is not on the path."""
    beside = Path(sys.executable).parent / name
    return str(beside) if beside.exists() else name


def _gridloom(*arguments: str) -> list[str]:
    return [_script("gridloom"), *arguments]


def _simulators(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "simulators", *arguments]


def _load_secrets(path: Path) -> dict[str, str]:
    return json.loads(path.read_text()) if path.exists() else {}


def _save_secrets(path: Path, values: dict[str, str]) -> None:
    fresh = path.with_suffix(".new")

    def private(name: str, flags: int) -> int:
        return os.open(name, flags, 0o600)

    handle: IO[str]
    with open(fresh, "w", opener=private) as handle:
        json.dump(values, handle)
    fresh.replace(path)
