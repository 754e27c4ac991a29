"""The whole line as its users start it: one command, real processes, and SIGKILL for every one of them."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest
from paho.mqtt.client import Client, MQTTv5
from paho.mqtt.enums import CallbackAPIVersion

from dashboards.macros import expand
from protocols.quantities import Kind
from protocols.uplink import Row, encode_rows
from simulators.ports import LOOPBACK, free_port
from tests.conftest import open_folder, stop
from tests.dashboards.test_sql import every_sql

DEMO = [str(Path(sys.executable).parent / "gridloom"), "demo"]
METERS = 120
ONCE_S = 420
START = datetime(2026, 3, 1, tzinfo=UTC)


class Run:
    """One `gridloom demo`, its words as they come, and the ids of its programs."""

    def __init__(self, data: Path, *arguments: str) -> None:
        self.data = data
        self.port = free_port()
        self.words = data.with_suffix(f".{self.port}.log")
        with self.words.open("wb") as log:
            self.process = subprocess.Popen(
                [*DEMO, "--data", str(data), "--port", str(self.port), *arguments], stdout=log, stderr=log
            )

    def said(self) -> str:
        return self.words.read_text(errors="replace")

    def ids(self) -> dict[str, int]:
        found: dict[str, int] = json.loads((self.data / "processes.json").read_text())
        return found

    def wait(self, until: Callable[[], bool], timeout_s: float) -> None:
        deadline = time.monotonic() + timeout_s
        while not until():
            assert self.process.poll() is None, self.said()[-3000:]
            assert time.monotonic() < deadline, self.said()[-3000:]
            time.sleep(0.2)

    def kill(self, name: str) -> None:
        """SIGKILL one of its programs, and wait until another one has taken its place."""
        old = self.ids()[name]
        os.kill(old, signal.SIGKILL)
        self.wait(lambda: self.ids().get(name, old) != old, 30)


@pytest.fixture(scope="module")
def killed() -> Iterator[tuple[Path, dict[str, Any]]]:
    """The data folder and the report of a headless run in which every part was killed once."""
    with open_folder() as folder:
        yield from run_and_kill(folder / "data")


def run_and_kill(data: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    path = data.with_suffix(".json")
    run = Run(data, "--once", "--meters", str(METERS), "--json", str(path))
    try:
        run.wait(lambda: "backfill: " in run.said(), 120)
        for name in ("gw-a1", "ingest", "broker", "postgres"):
            run.kill(name)
            time.sleep(1)
        run.wait(lambda: "the clock now runs" in run.said(), 240)
        for name in ("gw-a6", "ingest", "broker", "simulators", "work", "postgres", "serve"):
            run.kill(name)
            time.sleep(2)
        code = run.process.wait(ONCE_S)
        assert code == 0, run.said()[-3000:]
        yield data, json.loads(path.read_text())
    finally:
        stop(run.process)


def test_nothing_is_missing_and_nothing_is_double_after_every_part_was_killed(
    killed: tuple[Path, dict[str, Any]],
) -> None:
    _, report = killed
    assert report["meters"] == METERS
    assert report["intervals_received"] == report["intervals_expected"] > 30 * 96 * (METERS - 6)
    assert report["duplicates"] == 0
    assert report["quarantined"] == 0
    assert {"gw-a1", "ingest", "broker", "postgres", "simulators", "work", "serve"} <= report["restarts"].keys()


def test_the_report_finds_what_the_simulator_hid(killed: tuple[Path, dict[str, Any]]) -> None:
    _, report = killed
    assert report["forecast"]["wape"] < report["forecast"]["wape_seasonal_naive"]
    share = {loss["area"]: loss["unexplained_kwh"] / loss["supplied_kwh"] for loss in report["losses"]}
    assert sorted(share, key=lambda area: -share[area])[:2] == sorted(
        report["truth"]["thieves"], key=lambda area: -share[area]
    )
    for loss in report["losses"]:
        off = abs(loss["unexplained_kwh"] - loss["true_unexplained_kwh"]) / loss["supplied_kwh"]
        assert off < 0.005, loss
    # Whose meter counts too little all day is named; who has stood still each night since before the record may not be,
    # but nobody is named where nobody steals.
    assert {one["area"] for one in report["suspects"]} <= set(report["truth"]["thieves"])
    assert {one["point"] for one in report["suspects"]} & set(report["truth"]["stealing"])
    assert {"rule": "meter_silent", "subject": f"meter:{report['truth']['broken'][0]}"} in report["alerts"]
    assert {"rule": "clock_drift", "subject": f"meter:{report['truth']['drifting'][0]}"} in report["alerts"]
    assert report["dr"]["events"] >= 1
    assert report["dr"]["reduction_kwh"] == pytest.approx(report["dr"]["true_reduction_kwh"], rel=0.25)


@pytest.fixture(scope="module")
def again(killed: tuple[Path, dict[str, Any]]) -> Iterator[Run]:
    """A second run on the data of the first, up and answering."""
    run = Run(killed[0])
    try:
        run.wait(lambda: "API  " in run.said(), 60)
        yield run
    finally:
        stop(run.process)


def ask(run: Run, path: str, key: str | None = None) -> httpx.Response:
    key = run.said().rsplit("key: ", 1)[1].split()[0] if key is None else key
    headers = {"Authorization": f"Bearer {key}"}
    return httpx.get(f"http://{LOOPBACK}:{run.port}{path}", headers=headers, timeout=20)


def secrets_of(data: Path) -> dict[str, str]:
    found: dict[str, str] = json.loads((data / "secrets.json").read_text())
    return found


def test_a_second_run_goes_on_with_the_data_of_the_first(again: Run, killed: tuple[Path, dict[str, Any]]) -> None:
    assert {"postgres", "broker", "simulators", "ingest", "work", "serve", "gw-a1", "gw-a6"} <= again.ids().keys()
    status = ask(again, "/v1/status").json()
    assert status["rows"] >= killed[1]["ingest_rows"]
    assert status["now"] >= killed[1]["simulated_time"]


def test_every_panel_answers_on_the_demos_database(again: Run) -> None:
    """As the login Grafana gets: SELECT only."""
    port = (again.data / "postgres" / "postmaster.pid").read_text().splitlines()[3]
    dsn = f"postgresql://demo_grafana:{secrets_of(again.data)['db-grafana']}@{LOOPBACK}:{port}/gridloom"
    now = datetime.fromisoformat(ask(again, "/v1/status").json()["now"])
    variables = {"zone": "Asia/Shanghai", "area": [f"A{n}" for n in range(1, 7)], "series": "area:A6"}

    def silent(connection: psycopg.Connection[Any]) -> list[str]:
        return [
            sql.name
            for sql in every_sql()
            if not connection.execute(expand(sql.text, variables, now - timedelta(days=7), now)).fetchall()
        ]

    with psycopg.connect(dsn, autocommit=True) as connection:
        # Only what counts trouble may have nothing to show. Power is rolled up some seconds after it came.
        again.wait(lambda: len(silent(connection)) < 5, 60)
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            connection.execute("DELETE FROM load")


def test_bad_input_has_an_answer_and_nothing_else_stops(again: Run) -> None:
    before = ask(again, "/v1/ingest").json()["quarantined"]
    config = (again.data / "broker" / "rumqttd.toml").read_text()
    port = int(config.split('listen = "127.0.0.1:', 1)[1].split('"', 1)[0])
    client = Client(CallbackAPIVersion.VERSION2, "stranger", protocol=MQTTv5)
    client.username_pw_set("gw-a1", secrets_of(again.data)["mqtt-gw-a1"])
    client.connect(LOOPBACK, port)
    client.loop_start()
    client.publish("gridloom/v1/gw-a1/energy", b"this is no batch", 1).wait_for_publish(10)
    unknown = Row("m999", START, START, None, 0, {"energy_import_wh": 1})
    batch = encode_rows(gateway="gw-a1", epoch="f" * 32, seq=1, kind=Kind.ENERGY, sent_at=START, rows=[unknown])
    client.publish("gridloom/v1/gw-a1/energy", batch, 1).wait_for_publish(10)
    client.disconnect()
    client.loop_stop()
    again.wait(lambda: ask(again, "/v1/ingest").json()["quarantined"] == before + 2, 20)
    assert ask(again, "/v1/gateways").status_code == 200
    refused = ask(again, "/v1/status", key="wrong")
    assert refused.status_code == 401
    assert refused.headers["content-type"].startswith("application/problem+json")
    assert {"title", "detail", "where", "action"} <= refused.json().keys()


def test_ctrl_c_leaves_no_process(again: Run) -> None:
    ids = again.ids()
    again.process.send_signal(signal.SIGINT)
    assert again.process.wait(30) == 0, again.said()[-2000:]
    assert [name for name, pid in ids.items() if Path(f"/proc/{pid}").exists()] == []


def test_a_killed_demo_leaves_no_process(killed: tuple[Path, dict[str, Any]]) -> None:
    run = Run(killed[0])
    try:
        run.wait(lambda: "API  " in run.said(), 60)
        ids = run.ids()
    finally:
        run.process.kill()
        run.process.wait()
    deadline = time.monotonic() + 20
    while left := [name for name, pid in ids.items() if Path(f"/proc/{pid}").exists()]:
        assert time.monotonic() < deadline, left
        time.sleep(0.2)


def test_a_port_in_use_is_one_clear_line(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind((LOOPBACK, 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = subprocess.run(
            [*DEMO, "--data", str(tmp_path / "data"), "--port", str(port)], capture_output=True, text=True, check=False
        )
    assert done.returncode == 1
    (line,) = done.stderr.strip().splitlines()
    assert str(port) in line
    assert "--port" in line


def test_a_folder_in_use_is_one_clear_line(tmp_path: Path) -> None:
    import fcntl

    with (tmp_path / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = subprocess.run([*DEMO, "--data", str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "in use by another demo" in done.stderr
