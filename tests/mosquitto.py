"""mosquitto as production runs it, for tests: our settings and access list, a free loopback port, a fresh memory."""

import os
import shutil
import signal
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

from simulators.ports import free_port
from tests.conftest import BROKER_USERS, missing_service, stop, wait_for_port

DEPLOY = Path(__file__).resolve().parents[1] / "deploy"


@dataclass
class Mosquitto:
    """mosquitto through `deploy/mosquitto/start.sh`, as compose starts it."""

    directory: Path
    port: int
    environment: dict[str, str] = field(default_factory=dict)
    process: "subprocess.Popen[bytes] | None" = None

    def start(self) -> None:
        self.process = self.launch()
        wait_for_port(self.port)

    def launch(self) -> "subprocess.Popen[bytes]":
        for name in ("run", "data"):
            (self.directory / name).mkdir(exist_ok=True)
        environment = {
            "PATH": os.environ["PATH"] + ":/usr/sbin",
            "MQTT_USERS": " ".join(f"{name}:{password}" for name, password in BROKER_USERS.items()),
            "MQTT_CONFIG": str(DEPLOY / "mosquitto"),
            "MQTT_DATA": str(self.directory / "data"),
            "MQTT_RUN": str(self.directory / "run"),
            "MQTT_CERTS": str(self.directory / "certs"),
            "MQTT_PORT": str(self.port),
            "MQTT_BIND": "127.0.0.1",
            **({"MQTT_AS": "root"} if os.geteuid() == 0 else {}),
            **self.environment,
        }
        with (self.directory / "log").open("ab") as log:
            return subprocess.Popen(
                ["/bin/sh", str(DEPLOY / "mosquitto" / "start.sh")], env=environment, stdout=log, stderr=log
            )

    def stop(self, how: signal.Signals = signal.SIGTERM) -> None:
        if self.process:
            stop(self.process, how)

    @property
    def log(self) -> str:
        return (self.directory / "log").read_text()


def certify(folder: Path, kind: str, name: str, *, days: int = 1) -> None:
    """A certificate by ``deploy/make-certificates``: ``server`` for a host, ``client`` for a user name."""
    subprocess.run(
        [str(DEPLOY / "make-certificates"), str(folder), kind, name],
        check=True, capture_output=True, env={**os.environ, "DAYS": str(days)},
    )  # fmt: skip


def new_tls_mosquitto(directory: Path) -> Mosquitto:
    """With a TLS listener, which is then ``port``. Certificates are in ``directory / "certs"``."""
    broker = new_mosquitto(directory)
    certify(directory / "certs", "server", "127.0.0.1")
    plain = free_port()
    broker.environment = {"MQTT_TLS_PORT": str(broker.port), "MQTT_TLS_BIND": "127.0.0.1", "MQTT_PORT": str(plain)}
    return broker


def new_mosquitto(directory: Path) -> Mosquitto:
    if not shutil.which("mosquitto", path=os.environ["PATH"] + ":/usr/sbin"):
        missing_service("mosquitto")
    return Mosquitto(directory, free_port())
