"""`gridloom serve` and `gridloom key`, as programs."""

import hashlib
import json
import os
import signal
import subprocess
import time
from pathlib import Path

import psycopg

from simulators.services import Postgres
from tests.api.site import GRIDLOOM, Served, create_database, serve


def run(dsn: str, *arguments: str) -> "subprocess.CompletedProcess[str]":
    environment = os.environ | {"GRIDLOOM_DSN": dsn}
    return subprocess.run(
        [*GRIDLOOM, *arguments], env=environment, capture_output=True, text=True, check=False, timeout=60
    )


def test_a_key_is_shown_once_and_only_its_hash_is_stored(postgres: Postgres, tmp_path: Path) -> None:
    dsn = create_database(postgres)
    made = run(dsn, "key", "create", "billing")
    key = made.stdout.strip()
    assert (made.returncode, len(made.stdout.splitlines())) == (0, 1)
    with psycopg.connect(dsn) as connection:
        stored = connection.execute("SELECT hash FROM api_key WHERE name = 'billing'").fetchone()
    assert stored == (hashlib.sha256(key.encode()).digest(),)
    again = run(dsn, "key", "create", "billing")
    assert (again.returncode, len(again.stderr.splitlines())) == (1, 1)
    assert json.loads(run(dsn, "key", "create", "report", "--json").stdout)["key"].startswith("gl_")
    with serve(dsn, tmp_path) as served:
        assert served.get("/v1/status", key=key).status_code == 200
        assert run(dsn, "key", "revoke", "billing").returncode == 0
        assert served.get("/v1/status", key=key).status_code == 401
    listed = json.loads(run(dsn, "key", "list", "--json").stdout)["keys"]
    assert {row["name"]: row["revoked_at"] is not None for row in listed} == {
        "test": False, "billing": True, "report": False,
    }  # fmt: skip
    assert key not in run(dsn, "key", "list").stdout
    assert run(dsn, "key", "revoke", "nobody").returncode == 1


def test_a_port_in_use_is_one_clear_line(served: Served) -> None:
    port = served.url.rsplit(":", 1)[1]
    refused = run(served.dsn, "serve", "--port", port)
    assert refused.returncode == 1
    assert refused.stderr.count("\n") == 1
    assert f"port {port} on 127.0.0.1 is in use" in refused.stderr


def test_no_database_address_is_one_clear_error() -> None:
    refused = subprocess.run(
        [*GRIDLOOM, "serve"], env={"PATH": os.environ["PATH"]}, capture_output=True, text=True, check=False, timeout=60
    )
    assert refused.returncode == 2
    assert "GRIDLOOM_DSN is not set" in refused.stderr
    assert "Traceback" not in refused.stderr


def test_sigterm_stops_it_cleanly_within_three_seconds(postgres: Postgres, tmp_path: Path) -> None:
    with serve(create_database(postgres), tmp_path) as served:
        served.get("/v1/status")
        began_s = time.monotonic()
        served.process.send_signal(signal.SIGTERM)
        assert served.process.wait(10) == 0
        assert time.monotonic() - began_s < 3
