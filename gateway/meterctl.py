"""The ``meterctl`` command: the field side of Gridloom."""

import asyncio
import json
import logging
import os
import signal
import sqlite3
import sys
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import NoReturn

import click

from gateway.agent import Agent
from gateway.config import Problem, Site, load
from gateway.decode import as_document, as_text, read_line, split_arguments
from gateway.queue import Queue, QueueError
from gateway.templates import templates_command
from protocols.clock import SystemClock
from protocols.templates import ModbusFamily

logger = logging.getLogger(__name__)

STOP_MAX_S = 2.5

SITE = click.argument("site", type=click.Path(exists=True, dir_okay=False, path_type=Path))


@click.group(
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="""\b
Copy and run:
  meterctl check site.toml
  meterctl run site.toml
  meterctl decode 6861010000000068910833333433593333338A16
  meterctl templates
""",
)
@click.version_option(package_name="gridloom")
def meterctl() -> None:
    """Meters in the field: check a site file, run its gateway, explain frames.

    Secrets come from the environment: GRIDLOOM_MQTT_PASSWORD, GRIDLOOM_645_PASSWORD.
    """
    logging.basicConfig(
        stream=sys.stderr,
        level=os.environ.get("GRIDLOOM_LOG", "INFO"),
        format="%(asctime)s %(levelname)s %(name)s %(message)s",
    )


@meterctl.command(
    epilog="""\b
Copy and run:
  meterctl check site.toml
  meterctl check site.toml --json
"""
)
@SITE
@click.option("--json", "as_json", is_flag=True, help="Print the findings as one JSON document.")
def check(site: Path, as_json: bool) -> None:
    """Check the site file SITE and print every problem in it. Talks to nobody; exit 1 when there are problems."""
    found = load(site, os.environ, offline=True)
    problems = found if isinstance(found, list) else []
    if as_json:
        lines = [{"file": problem.file, "where": problem.where, "what": problem.what} for problem in problems]
        notes = _notes(found) if isinstance(found, Site) else []
        told = {"fine": not problems, "problems": lines, "notes": notes}
        click.echo(json.dumps(told, ensure_ascii=False, indent=2))
    elif isinstance(found, Site):
        count = f"{len(found.meters)} meters on {len(found.lines)} lines"
        click.echo(f"{site.name}: fine: gateway {found.gateway}, {count}")
        for note in _notes(found):
            click.echo(f"{site.name}: note: {note}")
    else:
        _print(problems)
    sys.exit(1 if problems else 0)


def _notes(site: Site) -> list[str]:
    """What works, but not as far as one would expect."""
    names = {meter.template.name for meter in site.meters if isinstance(meter.template, ModbusFamily)}
    return [
        f"meters with template {name} give power only; their energy is not collected, nor are their gaps filled"
        for name in sorted(names)
    ]


@meterctl.command(
    epilog="""\b
Copy and run:
  export GRIDLOOM_MQTT_PASSWORD=...
  meterctl run site.toml
"""
)
@SITE
def run(site: Path) -> None:
    """Poll the meters of SITE, queue what they say, and send it to the cloud, until SIGINT or SIGTERM."""
    found = load(site, os.environ)
    if isinstance(found, list):
        _print(found)
        sys.exit(1)
    try:
        queue = Queue(
            found.data_dir / "queue.sqlite",
            gateway=found.gateway,
            interval_s=found.interval_s,
            bytes_max=found.queue_bytes_max,
        )
        clock = SystemClock.from_environment()
        clock.now()
    except (QueueError, ValueError, OSError) as error:
        click.echo(f"meterctl: {error}", err=True)
        sys.exit(1)
    asyncio.run(_run(found, queue, clock))


async def _run(site: Site, queue: Queue, clock: SystemClock) -> NoReturn:
    agent = asyncio.create_task(Agent(site, queue, clock, software=_software()).run())
    stop = asyncio.Event()
    for how in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(how, stop.set)
    stopping = asyncio.create_task(stop.wait())
    await asyncio.wait({agent, stopping}, return_when=asyncio.FIRST_COMPLETED)
    code = 0
    if agent.done():
        code = 1
        try:
            agent.result()
        except* sqlite3.DatabaseError as group:
            reason = f"{group.exceptions[0]}; a damaged file is set aside at the next start"
            logger.error("queue failed path=%s: %s", queue.path, reason)
    else:
        agent.cancel()
        await asyncio.wait({agent}, timeout=STOP_MAX_S)
        logger.info("gateway %s stopped, %d batches wait in the queue", site.gateway, queue.batches)
    # The interpreter would wait for threads that may be connecting to a host that does not answer; what must last
    # is committed already.
    logging.shutdown()
    os._exit(code)


def _software() -> str:
    try:
        return f"gridloom {version('gridloom')}"
    except PackageNotFoundError:  # run from a checkout
        return "gridloom"


@meterctl.command(
    epilog="""\b
Copy and run:
  meterctl decode 6861010000000068910833333433593333338A16
  meterctl decode 68 61 01 00 00 00 00 68 11 04 33 33 34 33 14 16
  meterctl decode --json < frames.txt
"""
)
@click.argument("frames", metavar="[HEX]...", nargs=-1)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object per line.")
def decode(frames: tuple[str, ...], as_json: bool) -> None:
    """Explain DL/T 645 frames given as HEX, or one per line on standard input. Talks to nobody.

    Passwords in a frame are shown. Exit 1 when one of the frames is not valid.
    """
    typed = (raw.decode(errors="replace") for raw in sys.stdin.buffer)
    lines: Iterable[str] = split_arguments(frames) if frames else typed
    all_valid = True
    for text in lines:
        if not text.strip():
            continue
        line = read_line(text)
        all_valid &= line.frame is not None
        if as_json:
            click.echo(json.dumps(as_document(line), ensure_ascii=False))
        else:
            click.echo("\n".join(as_text(line)))
    sys.exit(0 if all_valid else 1)


meterctl.add_command(templates_command)


def _print(problems: list[Problem]) -> None:
    for problem in problems:
        click.echo(str(problem), err=True)


def main() -> None:
    meterctl.main(prog_name="meterctl")
