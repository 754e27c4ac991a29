"""``python -m simulators``: make a simulated site, and run its meters."""

import asyncio
import importlib
import json
import logging
import os
import signal
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import click

from protocols.clock import SystemClock

if TYPE_CHECKING:
    from simulators.site import Site

COMMANDS = {"demo": "simulators.demo:demo"}

METERS, SEED = 300, 1

DATA = click.option(
    "--data", "directory", required=True, type=click.Path(file_okay=False, path_type=Path), help="The site's folder."
)


class Simulators(click.Group):
    """The demo is imported only when asked for: building and running meters needs neither database nor broker."""

    def list_commands(self, context: click.Context) -> list[str]:
        return [*super().list_commands(context), *COMMANDS]

    def get_command(self, context: click.Context, name: str) -> click.Command | None:
        if name not in COMMANDS:
            return super().get_command(context, name)
        module, attribute = COMMANDS[name].split(":")
        command = getattr(importlib.import_module(module), attribute)
        assert isinstance(command, click.Command)
        return command


class Moment(click.ParamType[datetime]):
    """An ISO 8601 time with its offset."""

    name = "iso time"

    def convert(self, value: object, param: click.Parameter | None, context: click.Context | None) -> datetime:
        if isinstance(value, datetime):
            return value
        try:
            moment = datetime.fromisoformat(str(value))
        except ValueError:
            self.fail(f'"{value}": an ISO time such as 2026-03-01T17:00+08:00 expected', param, context)
        if moment.tzinfo is None:
            self.fail(f'"{value}": add the offset, such as {value}+08:00', param, context)
        return moment.astimezone(UTC)


@click.group(
    cls=Simulators,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="""\b
Copy and run:
  python -m simulators build --data site --meters 60
  python -m simulators run --data site
  python -m simulators truth --data site --json
  python -m simulators line --meters 3 --baud 2400
  python -m simulators services --data services
""",
)
def main() -> None:
    """A simulated substation: meters on real sockets, and the truth behind what they say."""
    logging.basicConfig(
        stream=sys.stderr,
        level=os.environ.get("GRIDLOOM_LOG", "INFO"),
        format="%(asctime)s %(levelname)s %(name)s %(message)s",
    )


@main.command(
    epilog="""\b
Copy and run:
  python -m simulators build --data site
  python -m simulators build --data site --meters 60 --seed 7 --start 2026-03-01T17:00+08:00
""",
)
@DATA
@click.option("--meters", type=int, help=f"All meters, the six head meters included.  [default: {METERS}]")
@click.option("--seed", type=click.IntRange(0, 2**31), help=f"Another seed is another town.  [default: {SEED}]")
@click.option("--start", type=Moment(), help="Simulated start.  [default: yesterday 17:00 in Asia/Shanghai]")
@click.option("--json", "as_json", is_flag=True, help="Print what was made as JSON.")
def build(directory: Path, meters: int | None, seed: int | None, start: datetime | None, as_json: bool) -> None:
    """Write a site: registry, one folder per gateway, truth.

    Where a site is already, it stays the same town with the same past, and only gets other ports.
    """
    from simulators import site, world

    try:
        old = site.load(directory) if (directory / "site.json").exists() else None
    except site.SiteError as error:
        raise click.ClickException(str(error)) from error
    asked = (seed, meters, start)
    if old:
        seed, meters, start = old.seed, old.meters, old.start
        if any(want not in (None, have) for want, have in zip(asked, (seed, meters, start), strict=True)):
            raise click.ClickException(
                f"{directory}: holds the site of seed {seed}, {meters} meters, start {start.isoformat()}; "
                "choose another --data"
            )
    else:
        seed, meters = SEED if seed is None else seed, METERS if meters is None else meters
        start = start or world.default_start(datetime.now(UTC))
    try:
        made = site.build(directory, seed=seed, meters=meters, start=start)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--meters") from error
    except OSError as error:
        raise click.ClickException(f"{error.filename or directory}: {error.strerror}; choose another --data") from error
    summary = {
        "data": str(directory),
        "meters": len(made.meters),
        "areas": len(made.areas),
        "seed": seed,
        "start": start.isoformat(),
        "history_days": world.DAYS_BEFORE,
    }
    click.echo(json.dumps(summary) if as_json else f"{directory}: {meters} meters, start {start.isoformat()}")


@main.command(
    epilog="""\b
Copy and run:
  python -m simulators run --data site
  GRIDLOOM_CLOCK=site/clock.json GRIDLOOM_645_PASSWORD=02123456 python -m simulators run --data site
""",
)
@DATA
def run(directory: Path) -> None:
    """Answer as the site's meters until stopped.

    GRIDLOOM_CLOCK names the clock file; without GRIDLOOM_645_PASSWORD the DL/T 645 meters refuse relay commands.
    """
    from simulators import servers, site

    try:
        password = servers.check_password(os.environ.get(servers.PASSWORD_VARIABLE, ""))
        asyncio.run(_run(site.load(directory), password))
    except site.SiteError as error:
        raise click.ClickException(str(error)) from error


async def _run(site: "Site", password: str) -> None:
    from simulators import servers
    from simulators.site import SiteError
    from simulators.world import World

    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    try:
        clock = SystemClock.from_environment()
        early = clock.now() < site.start
    except (OSError, ValueError) as error:
        raise SiteError(f"GRIDLOOM_CLOCK: {error}") from error
    if early:
        raise SiteError(f"clock: {clock.now().isoformat()} is before the site's start {site.start.isoformat()}")
    field = servers.Field(site, World(site.seed, site.meters, site.start), clock, password)
    open_servers = await servers.bind(field)  # before the work, so that a taken port is told at once
    site.catch_up(field.world)
    field.compute_ahead()
    for server in open_servers:
        await server.start_serving()
    ahead = asyncio.create_task(field.keep_ahead())
    logging.getLogger(__name__).info("meters answer meters=%d lines=%d", site.meters, len(site.lines))
    stopping = asyncio.create_task(stop.wait())
    try:
        await asyncio.wait((ahead, stopping), return_when=asyncio.FIRST_COMPLETED)
        if ahead.done():
            ahead.result()
    finally:
        for server in open_servers:
            server.close()
        for task in (ahead, stopping):
            task.cancel()
        await asyncio.gather(ahead, stopping, return_exceptions=True)


@main.command(
    epilog="""\b
Copy and run:
  python -m simulators truth --data site --json
  python -m simulators truth --data site --from 2026-03-01T17:30+08:00 --to 2026-03-01T18:00+08:00 --points A6-C43
""",
)
@DATA
@click.option("--from", "from_at", type=Moment(), help="Begin of the window.")
@click.option("--to", "to_at", type=Moment(), help="End of the window.")
@click.option("--points", help="Metering points, with commas between.")
@click.option("--json", "as_json", is_flag=True, help="Print as JSON.")
def truth(directory: Path, from_at: datetime | None, to_at: datetime | None, points: str | None, as_json: bool) -> None:
    """What really happened: losses by area and day, or what opened relays saved in a window."""
    from simulators import site

    window = (from_at, to_at, points)
    if any(window) and not all(window):
        raise click.UsageError("--from, --to and --points belong together")
    if from_at and to_at and from_at >= to_at:
        raise click.UsageError("--from must be before --to")
    try:
        here = site.load(directory)
        if from_at and to_at and points:
            if from_at < here.start:
                raise site.SiteError(f"--from: relays act from the site's start {here.start.isoformat()} on")
            told = site.reduction(here.world(), [point.strip() for point in points.split(",")], from_at, to_at)
            click.echo(json.dumps(told) if as_json else "\n".join(f"{name}: {wh:.0f}" for name, wh in told.items()))
        else:
            whole = site.truth(here.world())
            click.echo(json.dumps(whole) if as_json else json.dumps(whole, indent=1))
    except site.SiteError as error:
        raise click.ClickException(str(error)) from error


@main.command(
    epilog="""\b
Copy and run:
  python -m simulators line --meters 3 --baud 2400
  python -m simulators line --protocol modbus-rtu --meters 8 --turnaround 0.05
""",
)
@click.option("--protocol", type=click.Choice(["dlt645-2007", "modbus-rtu"]), default="dlt645-2007", show_default=True)
@click.option("--meters", type=click.IntRange(1, 32), default=3, show_default=True)
@click.option("--baud", type=click.Choice(["1200", "2400", "4800", "9600", "19200"]), default="9600", show_default=True)
@click.option("--turnaround", "turnaround_s", type=float, default=0.02, show_default=True, help="Seconds to an answer.")
def line(protocol: str, meters: int, baud: str, turnaround_s: float) -> None:
    """A serial line with meters on it, 8E1, as a pty with true byte timing, until standard input ends.

    Prints its path and the meters' addresses as JSON. A number is 1 and a float 0.5, whatever is asked.
    """
    from simulators import lines

    setting = lines.Setting(int(baud))
    addresses = [f"{i:012d}" if protocol.startswith("dlt645") else str(i) for i in range(1, meters + 1)]
    respond = lines.steady_645 if protocol.startswith("dlt645") else lines.steady_modbus
    with lines.SerialLine([lines.Meter(respond(address), setting, turnaround_s) for address in addresses]) as made:
        click.echo(json.dumps({"path": made.path, "addresses": addresses}))
        sys.stdout.flush()
        sys.stdin.buffer.read()


@main.command(
    epilog="""\b
Copy and run:
  python -m simulators services --data services
  python -m simulators services --data services --user cloud --user gw-1
""",
)
@DATA
@click.option("--user", "users", multiple=True, help="May sign in at a broker, which is then started, too.")
def services(directory: Path, users: tuple[str, ...]) -> None:
    """The embedded database, and the embedded broker, until standard input ends.

    Prints where they are, the users' passwords and the process ids as JSON.
    """
    from simulators.ports import free_port
    from simulators.services import Broker, Postgres, ServiceError, new_password
    from simulators.supervisor import Program, ProgramError, Supervisor

    directory = directory.resolve()
    supervisor = Supervisor(directory)
    postgres = Postgres(directory / "postgres", free_port(), new_password())
    broker = Broker(directory / "broker", free_port(), {user: new_password() for user in users})
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    try:
        postgres.initialize()
        supervisor.start(
            Program("postgres", postgres.command(), popen=postgres.popen_arguments(), stop_signal=signal.SIGINT)
        )
        if users:
            broker.initialize()
            supervisor.start(Program("broker", broker.command()))
            supervisor.wait_ready("broker", broker.accepts)
        supervisor.wait_ready("postgres", postgres.accepts)
        told = {"dsn": postgres.dsn, "broker": broker.url if users else None, "passwords": broker.users}
        click.echo(json.dumps(told | {"processes": supervisor.ids}))
        sys.stdout.flush()
        sys.stdin.buffer.read()
    except (ProgramError, ServiceError, ImportError) as error:
        raise click.ClickException(f"{error}; the wheels come with gridloom[demo]") from error
    finally:
        supervisor.stop()


if __name__ == "__main__":
    main(prog_name="python -m simulators")
