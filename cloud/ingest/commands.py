"""``gridloom ingest`` and ``gridloom quarantine``."""

import json
import logging
import signal
import socket
from dataclasses import asdict
from typing import Any

import click
import psycopg

from cloud import settings
from cloud.ingest.broker import Broker
from cloud.ingest.metrics import Metrics
from cloud.ingest.worker import Worker
from cloud.store.commands import open_store
from cloud.store.quarantine import list_entries
from cloud.store.replay import REASONS, replay
from protocols.clock import SystemClock

logger = logging.getLogger(__name__)


@click.command(
    epilog="""\b
Copy and run:
  gridloom ingest
  gridloom ingest --name second --metrics-port 9101
"""
)
@click.option(
    "--name",
    default=socket.gethostname,
    show_default="the machine's name",
    help="Names this ingestor's session at the broker. Keep it over restarts; give each ingestor its own.",
)
@click.option(
    "--fresh-session",
    is_flag=True,
    help="Start a new session at every connection: for the embedded broker, which cannot resume a shared one.",
)
@click.option("--metrics-port", type=click.IntRange(1, 65535), help="Serve Prometheus metrics on 127.0.0.1.")
def ingest(name: str, fresh_session: bool, metrics_port: int | None) -> None:
    """Take batches from the broker into the store, for ever.

    Any number may run side by side. A batch is acknowledged, and its gateway given a receipt, after it is committed.
    """
    clock = SystemClock.from_environment()
    metrics = Metrics()
    try:
        broker = Broker(settings.Mqtt.from_environment(), f"gridloom-ingest-{name}", fresh_session=fresh_session)
    except OSError as error:
        raise click.ClickException(
            f"the broker's certificates cannot be read: {error}; see GRIDLOOM_MQTT_CA, GRIDLOOM_MQTT_CERT, "
            "GRIDLOOM_MQTT_KEY"
        ) from error
    worker = Worker(settings.dsn(), broker, clock, metrics)
    if metrics_port:
        try:
            metrics.serve(metrics_port)
        except OSError as error:
            raise click.ClickException(f"--metrics-port {metrics_port}: {error.strerror}; choose another") from error

    def stop(_signal: int, _frame: Any) -> None:
        worker.stop()

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    broker.start()
    try:
        worker.run()
    finally:
        broker.stop()
    logger.info("ingest stopped")


@click.group(
    epilog="""\b
Copy and run:
  gridloom quarantine list
  gridloom quarantine list --all --json
  gridloom quarantine replay
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
@click.option("--all", "every", is_flag=True, help="Those replayed already, too.")
@click.option("--limit", default=100, show_default=True, type=click.IntRange(1, 100_000), help="Newest first.")
@click.option("--json", "as_json", is_flag=True, help="For machines: one document.")
def list_quarantine(every: bool, limit: int, as_json: bool) -> None:
    """List what is set aside: why, and what to do."""
    with open_store() as connection:
        entries = list_entries(connection, every=every, limit=limit)
    if as_json:
        click.echo(json.dumps([asdict(entry) for entry in entries], default=str, ensure_ascii=False))
        return
    for entry in entries:
        state = "replayed" if entry.replayed_at else "waiting"
        click.echo(f"{entry.quarantine_id} {entry.recorded_at:%F %T} {state} {entry.reason} rows={entry.rows}")
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
