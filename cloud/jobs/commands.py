"""`gridloom work`."""

import os
import re
import signal
from datetime import date, timedelta

import click

# Our matrices are small: BLAS threads would spend their time waiting for each other. Read when numpy is imported.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import psycopg

from cloud.forecast.calendar import days
from cloud.jobs.calendar import Calendar
from cloud.jobs.forecast_inputs import country_of
from cloud.jobs.mailbox import Mailbox
from cloud.jobs.response import Response, Terms
from cloud.jobs.worker import NotReadyError, Worker
from cloud.settings import MissingSetting, Mqtt, country, dsn, zone
from protocols.clock import SystemClock

_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}


class Duration(click.ParamType[timedelta]):
    """``90s``, ``30m``, ``24h`` or ``2d``, more than nothing."""

    name = "duration"

    def convert(self, value: object, parameter: click.Parameter | None, context: click.Context | None) -> timedelta:
        if isinstance(value, timedelta):
            return value
        found = re.fullmatch(r"(\d{1,6})([smhd])", str(value))
        if not found or not int(found[1]):
            self.fail(f'a number with s, m, h or d expected, like 30m; got "{value}"', parameter, context)
        return timedelta(**{_UNITS[found[2]]: int(found[1])})


@click.command(
    epilog="""\b
Copy and run:
  gridloom work
  gridloom work --peak-lookahead 30m --dr-duration 1h
  gridloom work --once
"""
)
@click.option(
    "--peak-lookahead", type=Duration(), default="24h", show_default=True, help="How far ahead the peak rule looks."
)
@click.option(
    "--dr-duration", type=Duration(), default="30m", show_default=True,
    help="Length of a demand-response event, rounded up to whole intervals.",
)  # fmt: skip
@click.option(
    "--dr-lead", type=Duration(), default="5m", show_default=True, help="Shortest notice before an event starts."
)
@click.option("--once", is_flag=True, help="Do what is due now and exit.")
def work(peak_lookahead: timedelta, dr_duration: timedelta, dr_lead: timedelta, once: bool) -> None:
    """Derive intervals, roll up, forecast, compute losses, watch for alerts and run demand response.

    Follows what `gridloom ingest` stores; durations are on the site's clock. One process leads, others wait.
    """
    calendar = Calendar(zone())
    holidays_of = country() or country_of(calendar.zone)
    try:
        days(date(2026, 1, 1), 1, holidays_of)
    except ValueError as error:
        raise MissingSetting(f"GRIDLOOM_COUNTRY: {error}") from error
    mailbox = Mailbox(Mqtt.from_environment())
    worker = Worker(
        dsn=dsn(),
        clock=SystemClock.from_environment(),
        calendar=calendar,
        mailbox=mailbox,
        response=Response(calendar, Terms(lead=dr_lead, duration=dr_duration)),
        lookahead=peak_lookahead,
        country=holidays_of,
    )
    # Both end the work in the middle of whatever it does: a transaction that is cut rolls back.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    mailbox.start()
    try:
        worker.run(once=once)
    except KeyboardInterrupt:
        pass
    except (psycopg.OperationalError, NotReadyError) as error:
        raise click.ClickException(f"database: {str(error).strip()}") from error
    finally:
        mailbox.stop()
