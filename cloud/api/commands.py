"""``gridloom serve`` and ``gridloom key``."""

import asyncio
import errno
import json
import logging
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import click
import psycopg
import uvicorn

from cloud import settings
from cloud.api.access import Site, new_key
from cloud.api.app import create_app
from cloud.api.database import Database
from protocols.clock import SystemClock

# SIGTERM: open answers get this long before the process ends.
GRACE_S = 2
NAME_MAX = 64


class _Server(uvicorn.Server):
    """uvicorn raises the signal again after it stopped, which would end the process with a status of 143."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._stop)
        yield

    def _stop(self) -> None:
        self.should_exit = True


def listen(host: str, port: int) -> socket.socket:
    """Raises click.ClickException with what to do when the address cannot be had."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(address)
            # Listening now: with SO_REUSEADDR two programs may bind one port, but only one may listen on it.
            listener.listen(256)
        except OSError:
            listener.close()
            raise
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            todo = f"stop the other program or choose another port: gridloom serve --port {port + 1}"
            raise click.ClickException(f"port {port} on {host} is in use; {todo}") from error
        raise click.ClickException(f"cannot listen on {host} port {port}: {error.strerror or error}") from error
    return listener


@click.command(
    epilog="""\b
Copy and run:
  gridloom serve
  gridloom serve --host 0.0.0.0 --port 8080
"""
)
@click.option(
    "--host", default="127.0.0.1", show_default=True, help="Address to listen on; put TLS in front of others."
)
@click.option("--port", default=8080, show_default=True, type=click.IntRange(1, 65535))
def serve(host: str, port: int) -> None:
    """Serve the API (/docs) and the console (/). Needs GRIDLOOM_DSN."""
    site = Site(Database(settings.dsn()), SystemClock.from_environment(), settings.zone())
    listener = listen(host, port)
    config = uvicorn.Config(
        create_app(site),
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=GRACE_S,
        timeout_keep_alive=30,
    )
    logging.getLogger("uvicorn.error").setLevel(logging.WARNING)  # its start and stop lines say nothing to an operator
    click.echo(f"Gridloom console http://{host}:{port}/  API http://{host}:{port}/docs", err=True)
    asyncio.run(_Server(config).serve(sockets=[listener]))


# ---- keys -----------------------------------------------------------------------------------------------------------


@contextmanager
def _connected() -> Iterator["psycopg.Connection[tuple[Any, ...]]"]:
    try:
        with psycopg.connect(settings.dsn(), connect_timeout=5) as connection:
            yield connection
    except psycopg.errors.UndefinedTable as error:
        raise click.ClickException("the database has no tables yet; run: gridloom migrate") from error
    except psycopg.errors.InsufficientPrivilege as error:
        raise click.ClickException("GRIDLOOM_DSN: this user may not change keys; use the owner's") from error
    except psycopg.OperationalError as error:
        reason = str(error).strip().splitlines()[-1]
        raise click.ClickException(f"GRIDLOOM_DSN: the database does not answer ({reason}); is it running?") from error


def _name(_context: click.Context, _parameter: click.Parameter, value: str) -> str:
    if not 0 < len(value) <= NAME_MAX or not value.isprintable():
        raise click.BadParameter(f"1 to {NAME_MAX} printable characters expected")
    return value


@click.group(
    epilog="""\b
Copy and run:
  gridloom key create billing
  gridloom key list --json
  gridloom key revoke billing
"""
)
def key() -> None:
    """API keys: make, list, revoke. Needs GRIDLOOM_DSN of a user that may write them."""


@key.command()
@click.argument("name", callback=_name)
@click.option("--json", "as_json", is_flag=True, help='{"name", "key"} for machines.')
def create(name: str, as_json: bool) -> None:
    """Make a key and print it. It is shown this once: only its SHA-256 is stored."""
    text, digest = new_key()
    with _connected() as connection:
        made = connection.execute(
            "INSERT INTO api_key (name, hash) VALUES (%s, %s) ON CONFLICT (name) DO NOTHING RETURNING name",
            (name, digest),
        ).fetchone()
    if made is None:
        raise click.ClickException(f'there is or was a key "{name}"; choose another name')
    click.echo(json.dumps({"name": name, "key": text}) if as_json else text)
    if not as_json:
        click.echo("Keep it now: it cannot be shown again.", err=True)


@key.command("list")
@click.option("--json", "as_json", is_flag=True, help="One document for machines.")
def list_keys(as_json: bool) -> None:
    """Names of the keys, when they were made and revoked. The keys themselves are kept nowhere."""
    with _connected() as connection:
        found = connection.execute(
            "SELECT name, created_at, revoked_at FROM api_key ORDER BY created_at, name"
        ).fetchall()
    if as_json:
        rows = [{"name": n, "created_at": c.isoformat(), "revoked_at": r and r.isoformat()} for n, c, r in found]
        click.echo(json.dumps({"keys": rows}))
        return
    for name, created_at, revoked_at in found:
        revoked = f"  revoked {revoked_at:%F %T}" if revoked_at else ""
        click.echo(f"{name:24}  made {created_at:%F %T}{revoked}")


@key.command()
@click.argument("name")
def revoke(name: str) -> None:
    """Make a key useless, at once. Its name stays taken, so that logs stay unambiguous."""
    with _connected() as connection:
        gone = connection.execute(
            "UPDATE api_key SET revoked_at = now() WHERE name = %s AND revoked_at IS NULL RETURNING name", (name,)
        ).fetchone()
    if gone is None:
        raise click.ClickException(f'no key "{name}" is in force; see: gridloom key list')
    click.echo(f"{name} is revoked", err=True)
