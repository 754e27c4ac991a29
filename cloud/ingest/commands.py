"""``gridloom ingest`` and ``gridloom quarantine``."""

import getpass
import json
import logging
import signal
import socket
import sys
import threading
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import click
import psycopg

from cloud import settings
from cloud.ingest.broker import Broker
from cloud.ingest.metrics import Metrics
from cloud.ingest.supervisor import Supervisor
from cloud.ingest.worker import Worker
from cloud.store.commands import open_store
from cloud.store.quarantine import Bounds, Choice, count_chosen, drop, list_entries
from cloud.store.replay import REASONS, replay
from protocols.clock import SystemClock

logger = logging.getLogger(__name__)

DRAINED_S = 3.0  # nothing came for so long
# The writer must not wait for long when a part of its rows has gone out and the reader computes.
SWITCH_INTERVAL_S = 0.000_1


@click.command(
    epilog="""\b
Copy and run:
  gridloom ingest
  gridloom ingest --workers 4 --metrics-port 9101
  gridloom ingest --name second --drain
"""
)
@click.option(
    "--name",
    default=socket.gethostname,
    show_default="the machine's name",
    help="Names this ingestor's session at the broker. Keep it over restarts; give each ingestor its own.",
)
@click.option(
    "--workers",
    type=click.IntRange(1, 64),
    help="Processes that share the work, NAME-1 to NAME-N; one that dies is started again. Without it: one, NAME.",
)
@click.option(
    "--drain",
    is_flag=True,
    help="Take what waits in the sessions of this name, nothing new, and end them: before a worker goes for good.",
)
@click.option(
    "--fresh-session",
    is_flag=True,
    help="Start a new session at every connection: for the embedded broker, which cannot resume a shared one.",
)
@click.option(
    "--metrics-port",
    type=click.IntRange(1, 65535),
    help="Serve Prometheus metrics on 127.0.0.1; further workers on the ports after it.",
)
@click.option(
    "--quarantine-gateway-bytes",
    type=click.IntRange(min=1),
    default=Bounds().gateway_bytes,
    show_default=True,
    help="What may wait in quarantine of one gateway. Beyond it batches that need it get no receipt: their gateway "
    "keeps them, and stops when its window is full of them.",
)
@click.option(
    "--quarantine-bytes",
    type=click.IntRange(min=1),
    default=Bounds().total_bytes,
    show_default=True,
    help="The same for all gateways together.",
)
@click.option(
    "--unknown-meters",
    type=click.IntRange(min=1),
    default=Bounds().gateway_unknown_meters,
    show_default=True,
    help="The same for meters of one gateway that nobody registered.",
)
@click.option("--until-stdin-closes", is_flag=True, hidden=True)
def ingest(
    name: str,
    workers: int | None,
    drain: bool,
    fresh_session: bool,
    metrics_port: int | None,
    quarantine_gateway_bytes: int,
    quarantine_bytes: int,
    unknown_meters: int,
    until_stdin_closes: bool,
) -> None:
    """Take batches from the broker into the store, for ever.

    Any number may run side by side. A batch is acknowledged, and its gateway given a receipt, after it is committed.
    """
    if drain and fresh_session:
        raise click.UsageError("--drain takes what a session holds, and --fresh-session begins without one")
    if workers is not None:
        options = [
            *(["--drain"] if drain else []),
            *(["--fresh-session"] if fresh_session else []),
            f"--quarantine-gateway-bytes={quarantine_gateway_bytes}",
            f"--quarantine-bytes={quarantine_bytes}",
            f"--unknown-meters={unknown_meters}",
        ]
        ports = [None] * workers if metrics_port is None else [metrics_port + i for i in range(workers)]
        supervisor = Supervisor(
            [
                ["ingest", f"--name={name}-{i}", *options, *([f"--metrics-port={port}"] if port else [])]
                for i, port in enumerate(ports, 1)
            ],
            SystemClock(),
        )
        _stop_with_signals(supervisor.stop)
        supervisor.run()
        return
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    clock = SystemClock.from_environment()
    metrics = Metrics()
    try:
        broker = Broker(
            settings.Mqtt.from_environment(), f"gridloom-ingest-{name}", fresh_session=fresh_session, leaving=drain
        )
    except OSError as error:
        raise click.ClickException(
            f"the broker's certificates cannot be read: {error}; see GRIDLOOM_MQTT_CA, GRIDLOOM_MQTT_CERT, "
            "GRIDLOOM_MQTT_KEY"
        ) from error
    worker = Worker(
        settings.dsn(), broker, clock, metrics,
        bounds=Bounds(quarantine_gateway_bytes, quarantine_bytes, unknown_meters),
        drain_s=DRAINED_S if drain else None,
    )  # fmt: skip
    if metrics_port:
        try:
            metrics.serve(metrics_port)
        except OSError as error:
            raise click.ClickException(f"--metrics-port {metrics_port}: {error.strerror}; choose another") from error
    _stop_with_signals(worker.stop)
    if until_stdin_closes:
        threading.Thread(target=_stop_when_stdin_closes, args=[worker.stop], daemon=True).start()
    broker.start()
    try:
        worker.run()
    finally:
        broker.stop()
    logger.info("ingest stopped")


def _stop_when_stdin_closes(stop: Callable[[], None]) -> None:
    sys.stdin.read()
    stop()


def _stop_with_signals(stop: Callable[[], None]) -> None:
    def on_signal(_signal: int, _frame: Any) -> None:
        stop()

    signal.signal(signal.SIGTERM, on_signal)
    signal.signal(signal.SIGINT, on_signal)


@click.group(
    epilog="""\b
Copy and run:
  gridloom quarantine list
  gridloom quarantine list --all --json
  gridloom quarantine replay
  gridloom quarantine drop --reason undecodable --because "test messages of the installer"
"""
)
def quarantine() -> None:
    """What could not be stored, and a second try at it."""


@quarantine.command(
    name="list",
    epilog="""\b
Copy and run:
  gridloom quarantine list
  gridloom quarantine list --all --json
""",
)
@click.option("--all", "every", is_flag=True, help="Those replayed or dropped already, too.")
@click.option("--limit", default=100, show_default=True, type=click.IntRange(1, 100_000), help="Newest first.")
@click.option("--json", "as_json", is_flag=True, help="For machines: one document.")
def list_quarantine(every: bool, limit: int, as_json: bool) -> None:
    """List what is set aside: why, and what to do."""
    with open_store() as connection:
        entries = list_entries(connection, every=every, limit=limit)
    if as_json:
        listed = [{**asdict(entry), "state": entry.state} for entry in entries]
        click.echo(json.dumps(listed, default=str, ensure_ascii=False))
        return
    for entry in entries:
        click.echo(
            f"{entry.quarantine_id} {entry.recorded_at:%F %T} {entry.state} {entry.reason} rows={entry.rows}"
            f" seen={entry.times_seen}"
        )
        if entry.dropped_because:
            click.echo(f"    dropped {entry.settled_at:%F %T} by {entry.dropped_by}: {entry.dropped_because}")
        click.echo(f"    {entry.topic}: {entry.detail}")
    if not entries:
        click.echo("Nothing is set aside.")


@quarantine.command(
    name="replay",
    epilog="""\b
Copy and run:
  gridloom quarantine replay
  gridloom quarantine replay --reason unknown_meter
""",
)
@click.option("--reason", type=click.Choice(REASONS), help="Only what was set aside for this.")
@click.option("--json", "as_json", is_flag=True, help="For machines: one document.")
def replay_quarantine(reason: str | None, as_json: bool) -> None:
    """Try what is set aside again. What still cannot be stored stays."""
    with open_store() as connection:
        try:
            done = replay(connection, SystemClock.from_environment().now(), reason=reason)
        except psycopg.Error as error:
            raise click.ClickException(f"the database stopped: {str(error).splitlines()[0]}; run it again") from error
    if as_json:
        click.echo(json.dumps(asdict(done)))
    else:
        click.echo(f"{done.settled} of {done.entries} entries settled, {done.rows.total()} rows stored")


@quarantine.command(
    name="drop",
    epilog="""\b
Copy and run:
  gridloom quarantine drop 17 18 --because "test messages of the installer"
  gridloom quarantine drop --reason unknown_meter --gateway gw-a1 --because "meters of another utility" --yes
""",
)
@click.argument("ids", nargs=-1, type=int)
@click.option("--reason", type=click.Choice(REASONS), help="Only what was set aside for this.")
@click.option("--gateway", help="Only what came from this gateway.")
@click.option("--because", required=True, help="Why it is given up. It stays on record, with your name.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option("--json", "as_json", is_flag=True, help="For machines: one document. Needs --yes.")
def drop_quarantine(
    ids: tuple[int, ...], reason: str | None, gateway: str | None, because: str, yes: bool, as_json: bool
) -> None:
    """Give up what is set aside: entries IDS, or all of a reason or a gateway. What they held is gone for good."""
    if not because.strip():
        raise click.UsageError("--because: say why")
    if not ids and reason is None and gateway is None:
        raise click.UsageError("say what: entries, --reason or --gateway; see `gridloom quarantine list`")
    if as_json and not yes:
        raise click.UsageError("--json needs --yes: nobody is there to ask")
    choice = Choice(ids, reason, gateway)
    with open_store() as connection:
        chosen = count_chosen(connection, choice)
        if chosen.entries and not yes:
            click.confirm(f"Drop {chosen.entries} entries with {chosen.rows} rows for good?", abort=True, err=True)
        done = drop(connection, choice, because=because.strip(), by=getpass.getuser())
    if as_json:
        click.echo(json.dumps(asdict(done)))
    else:
        click.echo(f"{done.entries} entries dropped, {done.rows} rows, {done.size_bytes} bytes")
