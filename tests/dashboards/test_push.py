"""`push` against a small server that answers as Grafana's HTTP API does, and records what it was sent."""

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from click.testing import CliRunner, Result

from dashboards.__main__ import DASHBOARDS, main
from simulators.ports import free_port

TOKEN = "glsa_right"


@dataclass
class Grafana:
    url: str
    folders: dict[str, str] = field(default_factory=dict)
    dashboards: dict[str, Any] = field(default_factory=dict)
    calls: list[str] = field(default_factory=list)


@pytest.fixture
def grafana() -> Iterator[Grafana]:
    class Handler(BaseHTTPRequestHandler):
        def answer(self, status: int, body: dict[str, Any]) -> None:
            payload = json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(payload)))
            self.end_headers()
            self.wfile.write(payload)

        def allowed(self) -> bool:
            server.calls.append(f"{self.command} {self.path}")
            if self.headers.get("Authorization") == f"Bearer {TOKEN}":
                return True
            self.answer(401, {"message": "Invalid API key", "messageId": "api-key.invalid", "statusCode": 401})
            return False

        def do_GET(self) -> None:
            if not self.allowed():
                return
            uid = self.path.removeprefix("/api/folders/")
            if uid in server.folders:
                self.answer(200, {"id": 1, "uid": uid, "title": server.folders[uid]})
            else:
                self.answer(404, {"message": "folder not found", "status": "not-found"})

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            if not self.allowed():
                return
            if self.path == "/api/folders":
                server.folders[body["uid"]] = body["title"]
                self.answer(200, {"id": 1, "uid": body["uid"], "title": body["title"]})
            elif self.path == "/api/dashboards/db" and body["folderUid"] in server.folders:
                uid = body["dashboard"]["uid"]
                if uid in server.dashboards and not body["overwrite"]:
                    self.answer(
                        412, {"message": "A dashboard with the same uid already exists", "status": "name-exists"}
                    )
                    return
                server.dashboards[uid] = body["dashboard"]
                self.answer(200, {"id": 2, "uid": uid, "url": f"/d/{uid}/x", "status": "success", "version": 1})
            else:
                self.answer(400, {"message": "folder not found"})

        def log_message(self, format: str, *args: object) -> None:
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server = Grafana(f"http://127.0.0.1:{http.server_port}")
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    http.shutdown()
    http.server_close()
    thread.join()


def push(*arguments: str, token: str | None = TOKEN) -> Result:
    return CliRunner().invoke(main, ["push", *arguments], env={"GRAFANA_TOKEN": token})


def test_push_puts_every_dashboard_into_our_folder(grafana: Grafana) -> None:
    done = push("--url", grafana.url, "--json")
    assert done.exit_code == 0, done.output
    assert grafana.folders == {"gridloom": "Gridloom"}
    assert list(grafana.dashboards) == [dashboard.uid for dashboard in DASHBOARDS]
    assert grafana.dashboards["gridloom-loss"] == json.loads(json.dumps(DASHBOARDS[3].json("Asia/Shanghai")))
    assert json.loads(done.stdout)["gridloom-loss"] == f"{grafana.url}/d/gridloom-loss/x"


def test_a_second_push_replaces_the_first(grafana: Grafana) -> None:
    assert push("--url", grafana.url).exit_code == 0
    assert push("--url", grafana.url, "--data-source", "other").exit_code == 0
    assert grafana.calls.count("POST /api/folders") == 1
    assert grafana.dashboards["gridloom-load"]["panels"][0]["datasource"]["uid"] == "other"


def test_a_refused_token_is_told_in_one_line(grafana: Grafana) -> None:
    refused = push("--url", grafana.url, token="glsa_wrong")
    assert (refused.exit_code, refused.output.count("\n")) == (1, 1)
    assert "token is refused (401)" in refused.output
    assert not grafana.dashboards


def test_no_token_is_a_usage_error(grafana: Grafana) -> None:
    missing = push("--url", grafana.url, token=None)
    assert missing.exit_code == 2
    assert "GRAFANA_TOKEN is not set" in missing.output
    assert not grafana.calls


def test_no_grafana_there_is_told_in_one_line() -> None:
    gone = push("--url", f"http://127.0.0.1:{free_port()}")
    assert (gone.exit_code, gone.output.count("\n")) == (1, 1)
    assert "no Grafana answers there" in gone.output


def test_gridloom_hands_its_arguments_on() -> None:
    """`gridloom dashboards …` becomes `python -m dashboards …`, with its help and its exit code."""
    gridloom = [sys.executable, "-c", "from cloud.gridloom import main; main()", "dashboards"]
    shown = subprocess.run([*gridloom, "push", "--help"], capture_output=True, text=True, check=True)
    assert "--token-env" in shown.stdout
    mistyped = subprocess.run([*gridloom, "pusch"], capture_output=True, text=True, check=False)
    assert mistyped.returncode == 2
