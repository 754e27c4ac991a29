"""The ``meterctl`` command: the field side of Gridloom."""

import asyncio
import importlib
import json
import logging
import os
import sys
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import NoReturn

import click

from edge.budget import budget
from edge.bus import ON_MARK_MAX
from gateway.config import Problem, Site, load
from gateway.decode import as_document, as_text, read_line, split_arguments
from gateway.queue import QUEUE_FILE, Queue, QueueError
from gateway.read import read_command
from gateway.runner import TRIAL_S, Runner
from gateway.scan import scan_command
from gateway.sites import Active, Sites
from gateway.sniff import sniff_command
from gateway.status import queue_command, status_command
from gateway.templates import templates_command
from protocols.clock import SystemClock
from protocols.templates import has_profile, remembers

logger = logging.getLogger(__name__)

SITE = click.argument("site", type=click.Path(exists=True, dir_okay=False, path_type=Path))


# Imported only when asked for: the agent, which runs for years, keeps what only they need out of its memory.
LAZY = {
    "bench": "gateway.bench:bench_command",
    "report": "gateway.report.command:report_command",
    "why": "gateway.why:why_command",
}


class _Commands(click.Group):
    def list_commands(self, context: click.Context) -> list[str]:
        return sorted([*super().list_commands(context), *LAZY])

    def get_command(self, context: click.Context, name: str) -> click.Command | None:
        if name not in LAZY:
            return super().get_command(context, name)
        module, attribute = LAZY[name].split(":")
        command = getattr(importlib.import_module(module), attribute)
        assert isinstance(command, click.Command)
        return command


@click.group(
    cls=_Commands,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="""\b
Copy and run:
  meterctl scan --device /dev/ttyUSB0 --write site.toml
  meterctl check site.toml
  meterctl read site.toml meter-1 00010000
  meterctl run site.toml
  meterctl status site.toml
  meterctl why --file capture.txt
  meterctl report site.toml -o report.html
  meterctl decode 6861010000000068910833333433593333338A16
  meterctl templates
  meterctl bench --quick
""",
)
@click.version_option(package_name="gridloom")
def meterctl() -> None:
    """Meters in the field: find and read them, check a site file, run its gateway, explain what is on the line.

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
    """What works, but not as far as one would expect, and how busy the lines are."""
    plans = [plan for line, meters in site.lines if (plan := budget(line, meters, site.interval_s))]
    found = {meter.template.name: meter.template for meter in site.meters if not has_profile(meter.template)}
    return [
        *(
            f"meters with template {name} have no load profile: their energy is read at the mark "
            f"(OFF_MARK when more than {ON_MARK_MAX.total_seconds():g} s late), and of a gap "
            + ("only local midnights are filled, from what they froze" if remembers(template) else "nothing is filled")
            for name, template in sorted(found.items())
        ),
        *map(str, plans),
    ]


@meterctl.command(
    epilog="""\b
Copy and run:
  export GRIDLOOM_MQTT_PASSWORD=...
  meterctl run site.toml
"""
)
@SITE
@click.option(
    "--trial", "trial_s", default=TRIAL_S, show_default=True, metavar="SECONDS", type=click.FloatRange(min=1),
    help="How long a pushed site may take to come up before the one before it comes back.",
)  # fmt: skip
def run(site: Path, trial_s: float) -> None:
    """Poll the meters of SITE, queue what they say, and send it to the cloud, until SIGINT or SIGTERM.

    A site that the cloud pushed and that came up counts before SITE, until SITE is changed. Instead of
    GRIDLOOM_MQTT_PASSWORD a client certificate will do: GRIDLOOM_MQTT_CA, GRIDLOOM_MQTT_CERT, GRIDLOOM_MQTT_KEY.
    """
    found = load(site, os.environ)
    if isinstance(found, list):
        _print(found)
        sys.exit(1)
    try:
        queue = Queue(
            found.data_dir / QUEUE_FILE,
            gateway=found.gateway,
            interval_s=found.interval_s,
            bytes_max=found.queue_bytes_max,
        )
        clock = SystemClock.from_environment()
        clock.now()
        sites = Sites(site, os.environ)
        active = sites.start()  # only now: the queue's lock says that nobody else runs here
    except (QueueError, ValueError, OSError) as error:
        click.echo(f"meterctl: {error}", err=True)
        sys.exit(1)
    if isinstance(active, list):
        _print(active)
        sys.exit(1)
    asyncio.run(_run(Runner(sites, queue, clock, _software(), trial_s), active))


async def _run(runner: Runner, active: Active) -> NoReturn:
    code = await runner.run(active)
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


for command in (scan_command, read_command, sniff_command, queue_command, status_command, templates_command):
    meterctl.add_command(command)


def _print(problems: list[Problem]) -> None:
    for problem in problems:
        click.echo(str(problem), err=True)


def main() -> None:
    meterctl.main(prog_name="meterctl")
