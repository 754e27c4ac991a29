"""The whole line as its users start it: one command, real processes, and SIGKILL for every one of them."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from simulators.services import LOOPBACK, free_port
from tests.conftest import stop

DEMO = [str(Path(sys.executable).parent / "gridloom"), "demo"]
METERS = 120
ONCE_S = 420


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
def killed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, dict[str, Any]]]:
    """The data folder and the report of a headless run in which every part was killed once."""
    data = tmp_path_factory.mktemp("demo") / "data"
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
    assert {"rule": "meter_silent", "subject": f"meter:{report['truth']['broken'][0]}"} in report["alerts"]
    assert {"rule": "clock_drift", "subject": f"meter:{report['truth']['drifting'][0]}"} in report["alerts"]
    assert report["dr"]["events"] >= 1
    assert report["dr"]["reduction_kwh"] == pytest.approx(report["dr"]["true_reduction_kwh"], rel=0.25)


def test_a_second_run_goes_on_with_the_data_of_the_first_and_ctrl_c_leaves_nothing(
    killed: tuple[Path, dict[str, Any]],
) -> None:
    data, report = killed
    run = Run(data)
    try:
        run.wait(lambda: "console  http" in run.said(), 60)
        ids = run.ids()
        assert {"postgres", "broker", "simulators", "ingest", "work", "serve", "gw-a1", "gw-a6"} <= ids.keys()
        key = run.said().rsplit("key: ", 1)[1].split()[0]
        time.sleep(3)
        asked = subprocess.run(
            [sys.executable, "-c", _ASK, f"http://{LOOPBACK}:{run.port}/v1/status", key],
            capture_output=True,
            text=True,
            check=True,
        )
        status = json.loads(asked.stdout)
        assert status["rows"] >= report["ingest_rows"]
        assert status["now"] >= report["simulated_time"]
    finally:
        run.process.send_signal(signal.SIGINT)
        code = run.process.wait(30)
    assert code == 0, run.said()[-2000:]
    assert [name for name, pid in ids.items() if Path(f"/proc/{pid}").exists()] == []


_ASK = """
import sys, urllib.request
request = urllib.request.Request(sys.argv[1], headers={"Authorization": f"Bearer {sys.argv[2]}"})
print(urllib.request.urlopen(request, timeout=20).read().decode())
"""


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
