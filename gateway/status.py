"""``meterctl status`` and ``meterctl queue``: how the gateway does, and what waits in its queue file."""

import json
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final, Literal

import click
import msgspec

from gateway import local
from gateway.config import Site
from gateway.lines import Failed, load_site
from gateway.local import LocalError
from gateway.marks import Marks
from gateway.queue import QUEUE_FILE, QueueError
from protocols.clock import SystemClock
from protocols.uplink import from_us

DAY_S: Final = 86_400


class AskStatus(msgspec.Struct, tag_field="op", tag="status", frozen=True):
    pass


class AskQueue(msgspec.Struct, tag_field="op", tag="queue", frozen=True):
    pass


class LineStatus(msgspec.Struct, frozen=True):
    """``state`` "down": no meter on it answers."""

    name: str
    endpoint: str
    state: Literal["up", "down", "not asked yet"]


class MeterStatus(msgspec.Struct, frozen=True, kw_only=True):
    """``clock_offset_s``: ahead of ours is positive; None where it was not read. ``gap_marks``: that are missing."""

    name: str
    line: str
    address: str
    heard_at: datetime | None
    is_silent: bool
    clock_offset_s: float | None
    gap_marks: int
    newest_mark: datetime | None


class GatewayStatus(msgspec.Struct, frozen=True, kw_only=True):
    gateway: str
    at: datetime
    software: str
    uptime_s: int
    site: str
    uplink: str
    receipt_at: datetime | None
    queued_batches: int
    queue_fill: float
    lines: tuple[LineStatus, ...]
    meters: tuple[MeterStatus, ...]


class Waiting(msgspec.Struct, frozen=True):
    """The batches of one kind; ``octets`` on disk."""

    kind: str
    batches: int
    rows: int
    octets: int
    oldest_at: datetime
    newest_at: datetime


class Dropped(msgspec.Struct, frozen=True):
    """What one eviction took. ``rows_to_read_again``: of the meters' memory, so they are not lost."""

    at: datetime
    kind: str
    first: str = msgspec.field(name="from")
    last: str = msgspec.field(name="to")
    batches: int
    rows_lost: int
    rows_to_read_again: int


class QueueFacts(msgspec.Struct, frozen=True, kw_only=True):
    """``seq``: of the newest batch ever queued. ``receipt_at``: when the cloud last confirmed."""

    file: str
    gateway: str
    epoch: str
    seq: int
    octets: int
    octets_max: int
    waiting: tuple[Waiting, ...]
    dropped: tuple[Dropped, ...]
    receipt_at: datetime | None


def read_queue(site: Site) -> QueueFacts:
    """Opens the file for reading only, whether an agent writes it or not. Raises QueueError."""
    with closing(_open(site)) as db:
        meta = dict(db.execute("SELECT name, value FROM meta"))
        rows = db.execute(
            "SELECT kind, count(*), sum(rows), sum(bytes), min(first_at), max(last_at) FROM batch GROUP BY kind"
        )
        waiting = tuple(
            Waiting(kind, batches, rows_, octets, from_us(oldest), from_us(newest))
            for kind, batches, rows_, octets, oldest, newest in rows
        )
    receipt = meta.get("receipt_at")
    return QueueFacts(
        file=str(site.data_dir / QUEUE_FILE),
        gateway=meta["gateway"],
        epoch=meta["epoch"],
        seq=int(meta["seq"]),
        octets=sum(it.octets for it in waiting),
        octets_max=site.queue_bytes_max,
        waiting=waiting,
        dropped=msgspec.json.decode(meta.get("dropped", "[]"), type=tuple[Dropped, ...]),
        receipt_at=from_us(int(receipt)) if receipt else None,
    )


def _open(site: Site) -> sqlite3.Connection:
    path = site.data_dir / QUEUE_FILE
    if not path.exists():
        raise QueueError(f"{path}: no queue yet; it is made by: meterctl run")
    try:
        db = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)
        db.execute("SELECT count(*) FROM meta")
    except sqlite3.DatabaseError as error:
        what = f"{path}: {error}; may this user read it? A damaged one is set aside by meterctl run"
        raise QueueError(what) from error
    return db


def _meters_of_file(site: Site, now: datetime) -> tuple[MeterStatus, ...]:
    """What the queue file knows of each meter: the marks it gave."""
    collected: dict[str, Marks] = {}
    with closing(_open(site)) as db:
        for name, first, end in db.execute('SELECT meter, first, "end" FROM collected'):
            collected.setdefault(name, Marks()).add(first, end)
    end = int(now.timestamp()) // site.interval_s + 1
    first = end - site.backfill_days * DAY_S // site.interval_s
    made = []
    for line, meters in site.lines:
        for meter in meters:
            marks = collected.get(meter.name, Marks())
            newest = max((run.end for run in marks), default=None)
            made.append(
                MeterStatus(
                    name=meter.name,
                    line=line.name,
                    address=meter.address,
                    heard_at=None,
                    is_silent=False,
                    clock_offset_s=None,
                    gap_marks=sum(gap.end - gap.first for gap in marks.gaps(first, end)),
                    newest_mark=None if newest is None else datetime.fromtimestamp((newest - 1) * site.interval_s, UTC),
                )
            )
    return tuple(made)


# ---- the commands ----------------------------------------------------------------------------------------------------

SITE = click.argument("site", type=click.Path(exists=True, dir_okay=False, path_type=Path))


@click.command(
    "queue",
    epilog="""\b
Copy and run:
  meterctl queue site.toml
  meterctl queue site.toml --json
""",
)
@SITE
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def queue_command(site: Path, as_json: bool) -> None:
    """Show what waits in the queue of SITE for the cloud's receipt, and what was dropped. Reads the file only.

    It does not matter whether the agent runs.
    """
    try:
        facts = read_queue(load_site(site))
    except QueueError as error:
        raise Failed(str(error)) from error
    if as_json:
        click.echo(json.dumps(msgspec.to_builtins(facts), ensure_ascii=False, indent=2))
    else:
        click.echo("\n".join(_queue_lines(facts)))


def _queue_lines(facts: QueueFacts) -> Iterator[str]:
    share = 100 * facts.octets / facts.octets_max
    yield f"{facts.file}: gateway {facts.gateway}, epoch {facts.epoch}, newest seq {facts.seq}"
    yield f"{_size(facts.octets)} of {_size(facts.octets_max)} ({share:.1f} %)"
    if facts.receipt_at is None:
        yield "no receipt from the cloud yet"
    else:
        yield f"last receipt {_moment(facts.receipt_at)}"
    if not facts.waiting:
        yield "nothing waits"
    for it in facts.waiting:
        span = f"{_moment(it.oldest_at)} to {_moment(it.newest_at)}"
        yield f"{it.kind:9}  {it.batches:6} batches  {it.rows:8} rows  {_size(it.octets):>9}  {span}"
    for gone in facts.dropped:
        rows = f"{gone.rows_lost} rows lost"
        if gone.rows_to_read_again:
            rows += f", {gone.rows_to_read_again} to read again"
        yield f"dropped {_moment(gone.at)}: {gone.kind} from {gone.first} to {gone.last}, {rows}"


@click.command(
    "status",
    epilog="""\b
Copy and run:
  meterctl status site.toml
  meterctl status site.toml --json
""",
)
@SITE
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def status_command(site: Path, as_json: bool) -> None:
    """Show how the gateway of SITE does: lines, meters, clocks, gaps, and its way to the cloud.

    Asks the running agent. Without one, shows what its files know, and ends with exit 1.
    """
    loaded = load_site(site)
    try:
        agent = local.connect(loaded)
        told = None if agent is None else next(iter(agent.ask(AskStatus(), GatewayStatus)))
    except LocalError as error:
        raise Failed(str(error)) from error
    if agent is not None and told is not None:
        if as_json:
            document = {"running": True, "pid": agent.pid, **msgspec.to_builtins(told)}
            click.echo(json.dumps(document, ensure_ascii=False, indent=2))
        else:
            click.echo(f"gateway {told.gateway}: {agent}, {told.software}, for {_duration(told.uptime_s)}")
            click.echo("\n".join(_status_lines(told)))
        return
    now = SystemClock.from_environment().now()
    try:
        facts, meters = read_queue(loaded), _meters_of_file(loaded, now)
    except QueueError as error:
        raise Failed(f"no agent runs: {error}") from error
    if as_json:
        document = {"running": False, "queue": msgspec.to_builtins(facts), "meters": msgspec.to_builtins(meters)}
        click.echo(json.dumps(document, ensure_ascii=False, indent=2))
    else:
        click.echo(f"gateway {loaded.gateway}: no agent runs on {loaded.data_dir}; what its files know:")
        click.echo("\n".join(_queue_lines(facts)))
        for meter in meters:
            newest = f"collected up to {_moment(meter.newest_mark)}" if meter.newest_mark else "nothing collected"
            click.echo(f"{meter.name}: {newest}, {meter.gap_marks} marks missing")
    raise Failed(f"not running; start it with: meterctl run {site}")


def _status_lines(told: GatewayStatus) -> Iterator[str]:
    receipt = f"last receipt {_moment(told.receipt_at)}" if told.receipt_at else "no receipt since the start"
    yield f"uplink: {told.uplink}; {receipt}; {told.queued_batches} batches wait ({100 * told.queue_fill:.1f} % full)"
    for line in told.lines:
        yield f"line {line.name} ({line.endpoint}): {line.state}"
    wide = max((len(meter.name) for meter in told.meters), default=5)
    for meter in told.meters:
        heard = f"heard {_ago(told.at - meter.heard_at)}" if meter.heard_at else "not heard since the start"
        silent = ", SILENT" if meter.is_silent else ""
        clock = "" if meter.clock_offset_s is None else f", clock {meter.clock_offset_s:+.0f} s"
        gaps = f", {meter.gap_marks} marks missing" if meter.gap_marks else ", complete"
        yield f"  {meter.name:{wide}}  {meter.line}  {meter.address}: {heard}{silent}{clock}{gaps}"


def _moment(moment: datetime) -> str:
    """As the wall clock of whoever looks shows it."""
    return f"{moment.astimezone():%Y-%m-%d %H:%M:%S %z}"


def _ago(span: timedelta) -> str:
    return f"{_duration(span.total_seconds())} ago"


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.0f} h"


def _size(octets: int) -> str:
    return f"{octets / 1e6:.1f} MB"
