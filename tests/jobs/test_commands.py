"""`gridloom work` as a process: it waits for its peers, stops when told, and says what is wrong in one line."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psycopg
import pytest

from cloud.store.migrations import migrate
from simulators.ports import LOOPBACK, free_port

RUN = [sys.executable, "-c", "from cloud.gridloom import main; main()", "work"]


def environment(dsn: str) -> dict[str, str]:
    return os.environ | {
        "GRIDLOOM_DSN": dsn,
        "GRIDLOOM_MQTT_URL": f"mqtt://{LOOPBACK}:{free_port()}",
        "GRIDLOOM_MQTT_USERNAME": "cloud",
        "GRIDLOOM_MQTT_PASSWORD": "nobody listens",
        "GRIDLOOM_CLOCK": "",
    }


def wait_for(log: Path, text: str, timeout_s: float = 30) -> None:
    deadline = time.monotonic() + timeout_s
    while text not in log.read_text():
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.1)


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
def test_it_waits_for_the_database_takes_over_and_stops_when_told(
    empty_database: str, tmp_path: Path, how: signal.Signals
) -> None:
    log = tmp_path / "work.log"
    with log.open("w") as stderr:
        process = subprocess.Popen(RUN, env=environment(empty_database), stderr=stderr)
    try:
        wait_for(log, "run: gridloom migrate")
        with psycopg.connect(empty_database, autocommit=True) as leader:
            migrate(empty_database)
            wait_for(log, "at work")
            # Whoever cuts its session, the process comes back.
            leader.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE application_name = 'gridloom work' AND datname = current_database()"
            )
        deadline = time.monotonic() + 30
        while log.read_text().count("at work") < 2:
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.1)
        process.send_signal(how)
        started = time.monotonic()
        assert process.wait(10) == 0
        assert time.monotonic() - started < 3
    finally:
        process.kill()
    text = log.read_text()
    assert "Traceback" not in text
    assert text.count("broker") == 1, "one line per change, not per attempt"


def test_once_without_a_database_is_one_clear_line(tmp_path: Path) -> None:
    dsn = f"postgresql://nobody:x@{LOOPBACK}:{free_port()}/gridloom"
    done = subprocess.run(
        [*RUN, "--once"], env=environment(dsn), capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 1
    assert "Error: database:" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("wrong", ["30", "0m", "-5m", "soon"])
def test_a_mistyped_duration_is_told(wrong: str) -> None:
    done = subprocess.run(
        [*RUN, f"--dr-duration={wrong}"],
        env=environment("postgresql://x"),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2
    assert "a number with s, m, h or d expected" in done.stderr
