"""The image's recipe, the health check it carries, and the script that makes the secrets."""

import importlib.util
import re
import shutil
import stat
import subprocess
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import ModuleType

import pytest

from simulators.ports import free_port

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"
DOCKERFILE = (DEPLOY / "Dockerfile").read_text()


def test_what_is_copied_exists_and_reaches_the_build() -> None:
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    allowed = {line[1:] for line in ignored if line.startswith("!")}
    for line in re.findall(r"^COPY (?!--from)(.*)$", DOCKERFILE, re.MULTILINE):
        for source in line.split()[:-1]:
            assert (ROOT / source).exists(), source
            assert source in allowed or source.split("/")[0] in allowed, f".dockerignore keeps {source} out"
    assert ".env" not in allowed and ".git" not in allowed


def test_every_room_of_the_wheel_is_in_the_image() -> None:
    [packages] = re.findall(r"^packages = \[(.*)\]$", (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    for room in re.findall(r'"(\w+)"', packages):
        assert f"COPY {room} {room}" in DOCKERFILE


def test_everything_installed_has_a_hash() -> None:
    for line in re.findall(r"pip install .*", DOCKERFILE):
        assert "--require-hashes" in line or "--no-deps /tmp/wheel/*.whl" in line, line


def test_the_build_backend_is_cut_out_of_the_developers_pins(tmp_path: Path) -> None:
    [program] = re.findall(r"awk '(.*)' requirements/dev.txt", DOCKERFILE)
    cut = subprocess.run(
        ["awk", program, str(ROOT / "requirements" / "dev.txt")], capture_output=True, text=True, check=True
    ).stdout
    pins = re.findall(r"^([a-z-]+)==", cut, re.MULTILINE)
    assert sorted(pins) == ["hatchling", "packaging", "pathspec", "pluggy", "tomlkit", "trove-classifiers"]
    assert cut.count("--hash=sha256:") >= len(pins)
    needed = [re.split(r"[ <>=;]", need)[0] for need in _requires("hatchling")]
    assert set(needed) - {"tomli"} <= set(pins), "hatchling needs more than is cut out"


def _requires(name: str) -> list[str]:
    from importlib.metadata import requires

    return requires(name) or []


def test_the_image_does_not_run_as_root() -> None:
    assert re.search(r"^USER gridloom$", DOCKERFILE, re.MULTILINE)


# ---- health.py -------------------------------------------------------------------------------------------------------


@pytest.fixture
def health() -> ModuleType:
    specification = importlib.util.spec_from_file_location("health", DEPLOY / "health.py")
    assert specification and specification.loader
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


@pytest.fixture
def web() -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200 if self.path != "/broken" else 503)
            self.end_headers()
            self.wfile.write(b"# HELP up\nbroker_up 1.0\ndatabase_up 0.0\n")

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.mark.parametrize(
    ("path", "names", "code"),
    [("/ok", [], 0), ("/broken", [], 1), ("/ok", ["broker_up"], 0), ("/ok", ["broker_up", "database_up"], 1)],
)
def test_health_asks_over_http(health: ModuleType, web: str, path: str, names: list[str], code: int) -> None:
    assert health.main(web + path, *names) == code


def test_nobody_there_is_not_well(health: ModuleType) -> None:
    assert health.main(f"http://127.0.0.1:{free_port()}/healthz") == 1


def test_health_of_meters_tries_every_line(health: ModuleType, web: str, tmp_path: Path) -> None:
    site, port = tmp_path / "site.json", web.rpartition(":")[2]
    assert health.main(str(site)) == 1
    site.write_text(f'{{"lines": [{{"port": {port}}}]}}')
    assert health.main(str(site)) == 0
    site.write_text(f'{{"lines": [{{"port": {port}}}, {{"port": {free_port()}}}]}}')
    assert health.main(str(site)) == 1


def test_ingest_names_its_gauges_as_the_health_check_does() -> None:
    text = (ROOT / "docker-compose.yml").read_text()
    source = (ROOT / "cloud" / "ingest" / "metrics.py").read_text()
    gauges = re.findall(r"gridloom_ingest_\w+", text)
    assert gauges and all(f'"{name}"' in source for name in gauges)


# ---- make-secrets ----------------------------------------------------------------------------------------------------


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    (tmp_path / "deploy").mkdir()
    for name in ("make-secrets", ".env.example"):
        shutil.copy(DEPLOY / name, tmp_path / "deploy" / name)
    return tmp_path


def make_secrets(checkout: Path) -> dict[str, str]:
    subprocess.run([checkout / "deploy" / "make-secrets"], check=True, capture_output=True, cwd="/")
    lines = (checkout / ".env").read_text().splitlines()
    return dict(line.split("=", 1) for line in lines)


def test_secrets_are_random_long_and_only_ours_to_read(checkout: Path) -> None:
    secrets = make_secrets(checkout)
    assert len(secrets) == 15
    assert len(set(secrets.values())) == len(secrets)
    relay = secrets.pop("GRIDLOOM_645_PASSWORD")
    assert re.fullmatch(r"02[0-9]{6}", relay)
    # They stand in DSNs and in a list with colons and spaces.
    assert all(re.fullmatch(r"[A-Za-z0-9_-]{32}", value) for value in secrets.values())
    assert stat.S_IMODE((checkout / ".env").stat().st_mode) == 0o600


def test_a_second_run_keeps_what_is_there_and_adds_what_is_new(checkout: Path) -> None:
    first = make_secrets(checkout)
    with (checkout / "deploy" / ".env.example").open("a") as example:
        example.write("NEW_PASSWORD=\n")
    second = make_secrets(checkout)
    assert {**second, **first} == second
    assert set(second) - set(first) == {"NEW_PASSWORD"}
