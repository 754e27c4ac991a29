"""`gridloom command`: a person orders something of a gateway, and waits for what comes back.

The command goes into the store, where `gridloom work` sends it from; the reply is read there too. So it needs the
database only, and everything that was ever ordered is on record.
"""

import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final, NoReturn

import click
import psycopg
from rich.console import Console

from cloud.jobs.commands import Duration
from cloud.jobs.dispatch import Connection, order, whoami
from cloud.settings import dsn, zone
from protocols.clock import SystemClock
from protocols.uplink import (
    ITEMS_MAX,
    SITE_BYTES_MAX,
    Backfill,
    Body,
    Configure,
    Outcome,
    Read,
    RelayConfirm,
    RelayPrepare,
    Restart,
    SyncClock,
    from_us,
    to_us,
)

LOOK_S: Final = 0.2
LATE_S: Final = 30.0
TRIAL_S: Final = 300.0  # a gateway's trial of a site, and the way back
LOG_MAX: Final = 1_000


@dataclass(frozen=True, slots=True)
class Desk:
    """Where one `gridloom command` stands: which gateway, who asks, how long the command is valid, how to print."""

    gateway: str
    asked_by: str
    valid: timedelta
    as_json: bool
    connection: Connection
    clock: SystemClock

    def ask(self, body: Body, *, late_s: float = LATE_S) -> dict[str, Any]:
        """Put a command on record and wait for its reply, as stored. Ends the program when none comes.

        ``late_s``: how long after the command is void its reply may still come.
        """
        now = self.clock.now()
        # ``valid`` is meant on the watch of who waits; a demo's clock may run faster.
        expires_at = now + self.valid * max(self.clock.speed(), 1.0)
        command_id = order(self.connection, self.gateway, body, now=now, expires_at=expires_at, asked_by=self.asked_by)
        void_s = time.monotonic() + self.valid.total_seconds()
        console = Console(stderr=True)
        with console.status(f"{self.gateway}: waiting for gridloom work to send it") as status:
            while True:
                row = self.connection.execute(
                    "SELECT sent_at, reply, outcome FROM command WHERE command_id = %s", (command_id,)
                ).fetchone()
                assert row
                sent_at, reply, outcome = row
                if reply:
                    assert isinstance(reply, dict)
                    return reply
                if sent_at:
                    status.update(f"{self.gateway}: sent, waiting for its reply (command {command_id})")
                if outcome or time.monotonic() > void_s + (late_s if sent_at else 0):
                    break
                time.sleep(LOOK_S)
        if sent_at is None:
            self.fail(command_id, "it was not sent; is `gridloom work` running, and the broker?")
        return self.fail(command_id, "no reply; is the gateway online? A late one will stand in the log")

    def fail(self, command_id: str, why: str) -> NoReturn:
        if self.as_json:
            click.echo(json.dumps({"id": command_id, "outcome": None, "detail": why}))
        click.echo(f"Error: {self.gateway}: command {command_id}: {why}", err=True)
        sys.exit(1)

    def show(self, reply: dict[str, Any]) -> None:
        """Print a reply."""
        if self.as_json:
            click.echo(json.dumps(reply, ensure_ascii=False))
            return
        for result in reply.get("results", ()):
            for value in result.get("values", ()):
                shown = "–" if value["value"] is None else value["value"]
                click.echo(f"{result['item']:24} {value['name']:28} {shown} {value.get('unit', '')}".rstrip())
            if result.get("error"):
                click.echo(f"{result['item']:24} {result['error']}")
            if result.get("reply"):
                click.echo(f"{'':24} raw {result['reply']}")
        for meter, said in reply.get("meters", {}).items():
            click.echo(f"{meter:24} {said}")
        for problem in reply.get("problems", ()):
            click.echo(problem)
        click.echo(f"{reply['outcome']}: {reply.get('detail', '')}")

    def order(self, body: Body, *, late_s: float = LATE_S) -> NoReturn:
        """Ask, print, and end: 0 when it was done."""
        reply = self.ask(body, late_s=late_s)
        self.show(reply)
        sys.exit(0 if reply["outcome"] == Outcome.DONE else 1)


@contextmanager
def connected() -> Iterator[Connection]:
    try:
        with psycopg.connect(dsn(), autocommit=True, connect_timeout=5, options="-c timezone=UTC") as connection:
            yield connection
    except (psycopg.errors.UndefinedTable, psycopg.errors.UndefinedColumn) as error:
        raise click.ClickException("the database's tables are missing or old; run: gridloom migrate") from error
    except psycopg.errors.InsufficientPrivilege as error:
        raise click.ClickException(
            "GRIDLOOM_DSN: this user may not order commands; use that of gridloom work"
        ) from error
    except psycopg.OperationalError as error:
        reason = str(error).strip().splitlines()[-1]
        raise click.ClickException(f"GRIDLOOM_DSN: the database does not answer ({reason}); is it running?") from error


class Moment(click.ParamType[datetime]):
    """``2026-03-01T04:00Z``; without a zone it is the site's."""

    name = "time"

    def convert(self, value: object, parameter: click.Parameter | None, context: click.Context | None) -> datetime:
        try:
            moment = datetime.fromisoformat(str(value))
        except ValueError:
            self.fail(f'a time like 2026-03-01T04:00 expected; got "{value}"', parameter, context)
        return (moment if moment.tzinfo else moment.replace(tzinfo=zone())).astimezone(UTC)


@click.group(
    epilog="""\b
Copy and run:
  gridloom command gw-a1 read m001 00010000 active_power_w
  gridloom command gw-a1 backfill m001 m002 --start 2026-03-01 --end 2026-03-02
  gridloom command gw-a1 sync-clock m001
  gridloom command gw-a1 relay m001 open
  gridloom command gw-a1 configure site.toml
  gridloom command gw-a1 restart
  gridloom command gw-a1 log
"""
)
@click.argument("gateway")
@click.option(
    "--valid", type=Duration(), default="2m", show_default=True, help="How long the gateway may still begin it."
)
@click.option("--by", "asked_by", default=whoami, show_default="user@host", help="Who asks, for the record.")
@click.option("--json", "as_json", is_flag=True, help="Print the reply as one JSON document.")
@click.pass_context
def command(context: click.Context, gateway: str, valid: timedelta, asked_by: str, as_json: bool) -> None:
    """Order something of GATEWAY and print its reply. Needs GRIDLOOM_DSN and a running `gridloom work`.

    Each command is carried out at most once, answered once, and kept with who asked. Exit 1 when it was not done.
    """
    connection = context.with_resource(connected())
    context.obj = Desk(gateway, asked_by, valid, as_json, connection, SystemClock.from_environment())


@command.command()
@click.argument("meter")
@click.argument("items", nargs=-1, required=True)
@click.pass_obj
def read(desk: Desk, meter: str, items: tuple[str, ...]) -> None:
    """Read ITEMS of METER now, decoded and raw.

    An item is a data identifier (00010000), a quantity of the meter's template (active_power_w), or registers as
    function:address:count[:type] (3:0x0048:2:float32).
    """
    if len(items) > ITEMS_MAX:
        raise click.UsageError(f"at most {ITEMS_MAX} items at once")
    desk.order(Read(meter=meter, items=list(items)))


@command.command()
@click.argument("meters", nargs=-1)
@click.option("--start", type=Moment(), required=True, help="First mark; without a zone in the site's.")
@click.option("--end", type=Moment(), required=True, help="End, not included.")
@click.pass_obj
def backfill(desk: Desk, meters: tuple[str, ...], start: datetime, end: datetime) -> None:
    """Read a range again from the memory of METERS (none: of all), also what was collected before.

    The marks go the usual way into the store. Many meters take long: give --valid the time they need.
    """
    if start >= end:
        raise click.UsageError("--start: before --end expected")
    desk.order(Backfill(start=to_us(start), end=to_us(end), meters=list(meters)))


@command.command("sync-clock")
@click.argument("meters", nargs=-1)
@click.pass_obj
def sync_clock(desk: Desk, meters: tuple[str, ...]) -> None:
    """Look at the clocks of METERS (none: of all) and set them as the gateway's policy allows."""
    desk.order(SyncClock(meters=list(meters)))


@command.command()
@click.argument("meter")
@click.argument("position", type=click.Choice(["open", "close"]))
@click.option("--prepare-only", is_flag=True, help="Stop after the first step and print the token for `confirm`.")
@click.pass_obj
def relay(desk: Desk, meter: str, position: str, prepare_only: bool) -> None:
    """Open or close the relay of METER, in two steps: prepare, and after your yes, confirm.

    Open disconnects the customer, and demand response will not connect them again.
    """
    reply = desk.ask(RelayPrepare(meter=meter, closed=position == "close"))
    prepared = reply.get("prepared")
    if prepare_only or prepared is None:
        desk.show(reply)
        if prepared and not desk.as_json:
            click.echo(f"gridloom command {desk.gateway} confirm {prepared['token']}")
        sys.exit(0 if prepared else 1)
    click.echo(reply.get("detail", ""), err=True)
    until = from_us(prepared["void_at"]).astimezone(zone())
    if not click.confirm(f"{position} {meter} now? (valid until {until:%H:%M:%S})", err=True):
        click.echo("Nothing has moved.", err=True)
        sys.exit(1)
    desk.order(RelayConfirm(token=prepared["token"]))


@command.command()
@click.argument("token")
@click.pass_obj
def confirm(desk: Desk, token: str) -> None:
    """The second step of `relay --prepare-only`: move the relay that was prepared under TOKEN."""
    desk.order(RelayConfirm(token=token))


@command.command()
@click.pass_obj
def restart(desk: Desk) -> None:
    """Stop the gateway's agent cleanly and start it again; the reply comes once it is up."""
    desk.order(Restart())


@command.command()
@click.argument("site", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.pass_obj
def configure(desk: Desk, site: Path) -> None:
    """Push the site file SITE: checked whole, tried, and undone when the gateway does not come up with it.

    The gateway answers when the outcome is known, after two minutes at most where it was not told otherwise.
    """
    try:
        text = site.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise click.UsageError(f"{site}: is not text: {error}") from error
    if len(text.encode()) > SITE_BYTES_MAX:
        raise click.UsageError(f"{site}: at most {SITE_BYTES_MAX} bytes expected")
    desk.order(Configure(site=text), late_s=TRIAL_S)


@command.command()
@click.option("--last", default=20, show_default=True, type=click.IntRange(1, LOG_MAX), help="How many, newest first.")
@click.pass_obj
def log(desk: Desk, last: int) -> None:
    """What was ordered of GATEWAY, by whom and when, and what came back."""
    rows = desk.connection.execute(
        "SELECT command_id, issued_at, asked_by, body -> 'body', outcome, replied_at, reply ->> 'detail'"
        " FROM command WHERE gateway = %s ORDER BY issued_at DESC LIMIT %s",
        (desk.gateway, last),
    ).fetchall()
    for command_id, issued_at, asked_by, body, outcome, replied_at, detail in rows:
        if desk.as_json:
            found = {
                "id": command_id, "issued_at": issued_at.isoformat(), "asked_by": asked_by, "body": body,
                "outcome": outcome, "replied_at": replied_at and replied_at.isoformat(), "detail": detail,
            }  # fmt: skip
            click.echo(json.dumps(found, ensure_ascii=False))
        else:
            local = issued_at.astimezone(zone())
            click.echo(f"{local:%F %T}  {body['kind']:16} {outcome or 'open':9} {asked_by:24} {detail or ''}".rstrip())
