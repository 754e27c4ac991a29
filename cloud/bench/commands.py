"""``gridloom bench``: how fast this machine takes data in, beside what its own database can do in the same run."""

import json
import logging
import os
import platform
import signal
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import click
import psycopg

from cloud.bench.forecast import forecast_command
from cloud.bench.growth import disk, growth
from cloud.bench.line import HEADLINE_ROWS, QUICK, Document, Effort, Line, register
from cloud.bench.loss import loss
from cloud.bench.services import BenchError, Place, ingestors, place
from cloud.store.migrations import MigrationError
from protocols.quantities import Kind

PARTS: Final = ("line", "singles", "lag", "growth", "disk")
COPY_TARGET: Final = 0.7
EXECUTEMANY_TARGET: Final = 10.0


@click.group(
    epilog="""\b
Copy and run:
  gridloom bench ingest
  gridloom bench ingest --quick
  gridloom bench forecast --quick
"""
)
def bench() -> None:
    """Measure this machine. Ratios are of one run, on the same server and disk."""


@bench.command(
    epilog="""\b
Copy and run:
  gridloom bench ingest
  gridloom bench ingest --quick --json
  gridloom bench ingest --part line --dsn postgresql://postgres@127.0.0.1:5432/postgres
  gridloom bench ingest --part growth --days 100
"""
)
@click.option("--dsn", help="A server and a login that may create databases. Default: an embedded PostgreSQL.")
@click.option("--broker", help="mqtt://host:port without other ingestors. Default: mosquitto where installed.")
@click.option("--part", "parts", multiple=True, type=click.Choice(PARTS), help="Only this; may be repeated.")
@click.option("--days", default=10, show_default=True, type=click.IntRange(1, 100), help="At most, in part growth.")
@click.option("--rounds", type=click.IntRange(1, 100), help="Turns of each.  [default: 3]")
@click.option("--quick", is_flag=True, help="Some seconds: shows that it works, not how fast.")
@click.option(
    "--profile", type=click.Path(file_okay=False, path_type=Path), help="A folder for cProfile of the ingestors."
)
@click.option("--json", "as_json", is_flag=True, help="Print the figures as one JSON document.")
def ingest(
    dsn: str | None, broker: str | None, parts: tuple[str, ...], days: int, rounds: int | None, quick: bool,
    profile: Path | None, as_json: bool,
) -> None:  # fmt: skip
    """From gateways through the broker and `gridloom ingest` into the store, beside COPY and executemany.

    Real processes, the production schema in a scratch database that is dropped at the end. Takes about ten minutes
    (--days 100: an hour and 40 GB). With --broker, GRIDLOOM_MQTT_PASSWORD and GRIDLOOM_BENCH_GATEWAYS ("name:password
    name:password") sign in there.
    """
    effort = QUICK if quick else Effort()
    if rounds:
        effort = replace(effort, rounds=rounds)
    if profile:
        profile.mkdir(parents=True, exist_ok=True)
    load = [round(os.getloadavg()[0], 2)]
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that what was started is ended
    logging.getLogger("cloud.store").setLevel(logging.WARNING)  # migrations of a database nobody will see
    try:
        with (
            TemporaryDirectory(prefix="gridloom-bench-", ignore_cleanup_errors=True) as folder,
            place(Path(folder), dsn, broker, effort.gateways) as here,
        ):
            told = measure(here, effort, parts or PARTS, days, profile)
    except (BenchError, MigrationError) as error:
        raise click.ClickException(str(error)) from error
    except psycopg.Error as error:
        raise click.ClickException(f"database: {str(error).strip().splitlines()[0]}") from error
    load.append(round(os.getloadavg()[0], 2))
    told["machine"] = {"python": platform.python_version(), "cpus": os.cpu_count(), "load": load, "quick": quick}
    if as_json:
        click.echo(json.dumps(told, indent=2, ensure_ascii=False))
    else:
        click.echo("\n".join(_report(told)))


def _say(text: str) -> None:
    if sys.stderr.isatty():
        click.echo(f"{text} …", err=True)


def measure(here: Place, effort: Effort, parts: tuple[str, ...], days: int, profile: Path | None) -> Document:
    """Every figure asked for; those that were not are null."""
    gateways = here.broker.gateways[: effort.gateways]
    meters = min(effort.meters // len(gateways), 2_000)
    lines: list[Document] = []
    singles: list[Document] = []
    lag: Document | None = None
    grown: list[Document] = []
    disks: list[Document] = []
    with psycopg.connect(here.dsn, autocommit=True) as connection:
        line = Line(here, connection, register(connection, gateways, meters), effort)
        for workers, sizes in effort.sizes.items():
            with ingestors(here, workers, profile) as running:
                if "line" in parts:
                    for rows in sizes:
                        _say(f"{rows} rows a message, workers={workers}")
                        total = effort.rows_small if rows < HEADLINE_ROWS else effort.rows
                        lines.append(line.compare(Kind.POWER, rows, total, running))
                    if workers == 1:
                        _say("energy")
                        lines.append(line.compare(Kind.ENERGY, HEADLINE_ROWS, effort.rows, running))
                if "singles" in parts:
                    _say(f"one row a message, workers={workers}")
                    singles.append(line.singles(running))
                if workers == 1 and "lag" in parts:
                    _say("lag at half the rate")
                    lag = line.lag(HEADLINE_ROWS, _headline(lines).get("rows_per_s") or line.rate(running), running)
                if workers == 1 and "growth" in parts:
                    steps = [step for step in effort.days if step < days] + [min(days, max(effort.days))]
                    grown = growth(line, list(dict.fromkeys(steps)), running, _say)
        if "disk" in parts:
            _say("disk")
            disks = [disk(line, kind) for kind in (Kind.POWER, Kind.ENERGY)]
    head = _headline(lines)
    return {
        "edition": str(here.edition),
        "server": here.server,
        "broker": here.broker.name,
        **{
            key: head.get(key)
            for key in (
                "rows", "rows_per_s", "values_per_s", "copy_rows_per_s", "executemany_rows_per_s", "ratio_to_copy",
                "ratio_to_executemany", "workers",
            )
        },
        "lag_ms": lag["lag_ms"] if lag else None,
        "messages_per_s": singles[0]["messages_per_s"] if singles else None,
        "bytes_per_row_disk": disks[0]["with_index"] if disks else None,
        "line": lines,
        "singles": singles,
        "lag": lag,
        "growth": grown,
        "disk": disks,
    }  # fmt: skip


def _headline(lines: list[Document]) -> Document:
    """One worker, 500 rows a message, power."""
    for one in lines:
        if (one["kind"], one["rows_per_message"], one["workers"]) == (Kind.POWER, HEADLINE_ROWS, 1):
            return one
    return {}


# ---- for people ------------------------------------------------------------------------------------------------------


def _report(told: dict[str, Any]) -> Iterator[str]:
    server = ", ".join(f"{name} {value}" for name, value in told["server"].items())
    yield f"{told['edition']} ({server}), broker {told['broker']}"
    for title, part in (("line", _lines), ("singles", _singles), ("lag", _lag), ("growth", _growth), ("disk", _disk)):
        if told[title]:
            yield ""
            yield from part(told[title])
    machine = told["machine"]
    yield ""
    quick = "; quick, so only roughly" if machine["quick"] else ""
    load = " to ".join(map(str, machine["load"]))
    yield f"Python {machine['python']}, load {load} on {machine['cpus']} CPUs{quick}"


def _lines(lines: list[Document]) -> Iterator[str]:
    yield (
        f"{'rows a message':<24}{'ingest, rows/s':>15}{'lowest to highest':>21}{'COPY, rows/s':>14}{'ratio':>7}{'':<8}"
        f"{'executemany':>12}{'ratio':>7}{'':<8}{'by message':>12}{'ratio':>7}{'values/s':>13}{'a commit':>10}"
    )
    for one in lines:
        low, high = one["rows_per_s_spread"]
        binding = one["rows_per_message"] >= HEADLINE_ROWS and one["workers"] == 1
        cells = f"{_name(one):<24}{one['rows_per_s']:>15,.0f}{f'{low:,.0f} to {high:,.0f}':>21}"
        cells += f"{one['copy_rows_per_s']:>14,.0f}{one['ratio_to_copy']:>7.2f}"
        cells += f"{_verdict(one['ratio_to_copy'], COPY_TARGET if binding else None):<8}"
        cells += f"{one['executemany_rows_per_s']:>12,.0f}{one['ratio_to_executemany']:>7.1f}"
        cells += f"{_verdict(one['ratio_to_executemany'], EXECUTEMANY_TARGET):<8}"
        cells += f"{one['executemany_by_message_rows_per_s']:>12,.0f}{one['ratio_to_executemany_by_message']:>7.1f}"
        yield f"{cells}{one['values_per_s']:>13,.0f}{one['rows_per_commit']:>10,}"
    yield ""
    yield from _cpu(
        "CPU per row, µs; bytes on the wire",
        [(_name(one), one["cpu_us_per_row"], one["bytes_per_row_wire"], one["ratio_by_cpu"]) for one in lines],
    )
    for one in lines:
        if "copy_parallel_rows_per_s" in one:
            yield (
                f"COPY alone over {one['workers']} connections, {one['rows_per_message']:,} a message: "
                f"{one['copy_parallel_rows_per_s']:,.0f} rows/s; ingest is {one['ratio_to_copy_parallel']:.2f} of it"
            )


def _cpu(title: str, rows: list[tuple[str, dict[str, float], float, float | None]]) -> Iterator[str]:
    """The last column: COPY's session to the busier of ingestor and its session, so the ratio with a core for each."""
    names = list(dict.fromkeys(name for _, spent, _, _ in rows for name in spent))
    by_cpu = any(ratio is not None for _, _, _, ratio in rows)
    yield (
        f"{title:<36}"
        + "".join(f"{name:>17}" for name in names)
        + f"{'bytes':>8}"
        + ("   ratio by CPU" if by_cpu else "")
    )
    for what, spent, size, ratio in rows:
        cells = "".join(f"{spent[name]:>17.2f}" if name in spent else f"{'-':>17}" for name in names)
        yield f"  {what:<34}{cells}{size:>8.1f}" + ("" if ratio is None else f"{ratio:>15.2f}")


def _name(one: Document) -> str:
    workers = "1 worker" if one["workers"] == 1 else f"{one['workers']} workers"
    return f"{one['rows_per_message']:,} {one['kind']}, {workers}"


def _verdict(value: float | None, target: float | None) -> str:
    if value is None or target is None:
        return ""
    return " met" if value >= target else " MISSED"


def _singles(singles: list[Document]) -> Iterator[str]:
    for one in singles:
        yield (
            f"one row a message, workers {one['workers']}: {one['messages_per_s']:,.0f} messages/s, "
            f"{one['messages_per_s_per_worker']:,.0f} a worker, {one['messages_per_commit']:,} a commit"
        )
    yield from _cpu(
        "CPU per message, µs",
        [
            (f"workers {one['workers']}", one["cpu_us_per_message"], one["bytes_per_message_wire"], None)
            for one in singles
        ],
    )


def _lag(lag: Document) -> Iterator[str]:
    yield (
        f"lag at {lag['rows_per_s']:,.0f} rows/s, half the rate, {lag['rows_per_message']} a message: "
        f"p50 {lag['lag_ms']['p50']:,.0f} ms, p99 {lag['lag_ms']['p99']:,.0f} ms, from due to receipt"
    )


def _growth(steps: list[Document]) -> Iterator[str]:
    yield f"{'days':>5}{'rows':>14}{'ingest rows/s':>15}{'COPY rows/s':>13}{'ratio':>7}"
    for step in steps:
        yield (
            f"{step['days']:>5}{step['rows']:>14,}{step['rows_per_s']:>15,.0f}{step['copy_rows_per_s']:>13,.0f}"
            f"{step['ratio_to_copy']:>7.2f}"
        )
    yield ""
    yield f"{'query':<43}{'days':>5}{'rows':>11}{'p50 ms':>10}{'p99 ms':>10}{'blocks':>10}  plan"
    for i, query in enumerate(steps[0]["queries"]):
        for step in steps:
            asked = step["queries"][i]
            plan = ", ".join(node for node in asked["plan"] if "Scan" in node)
            yield (
                f"{query['query']:<43}{step['days']:>5}{asked['rows']:>11,}{asked['p50_ms']:>10.1f}{asked['p99_ms']:>10.1f}"
                f"{asked['blocks']:>10,}  {plan}"
            )


def _disk(disks: list[Document]) -> Iterator[str]:
    for one in disks:
        compressed = "" if one["compressed"] is None else f", {one['compressed']:.1f} as columns"
        yield f"disk, {one['kind']}: {one['raw']:.1f} bytes a row, {one['with_index']:.1f} with its index{compressed}"


bench.add_command(forecast_command)
bench.add_command(loss)
