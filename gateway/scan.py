"""``meterctl scan``: finds the meters on a line, ranks the templates that fit, and begins a site file."""

import asyncio
import json
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import click
import msgspec

from edge.bus import Bus
from edge.model import Line, Parity, SerialSetting
from gateway import local
from gateway.config import TEMPLATES_VARIABLE
from gateway.finder import (
    QUARANTINE_S,
    BusAsker,
    Found,
    Note,
    Progress,
    ScanError,
    Step,
    Wanted,
    bound_s,
    question_s,
    read_energy,
    scan,
)
from gateway.lines import MODBUS_TCP_PORT, Described, Failed, line_of, line_options, load_site
from gateway.local import Answers, LocalError
from protocols import dlt645, modbus, templates
from protocols.clock import SystemClock
from protocols.templates import Template

# ---- through a running agent -----------------------------------------------------------------------------------------


class ScanLine(msgspec.Struct, tag_field="op", tag="scan", frozen=True):
    line: str
    wanted: Wanted


class Told(msgspec.Struct, frozen=True):
    step: Step


async def answer(buses: Mapping[str, Bus], known: Sequence[Template], question: ScanLine) -> Answers:
    """The agent's side: at the setting the line has, between its polls."""
    if question.line not in buses:
        raise LocalError(f'"{question.line}": one of {", ".join(buses)} expected')
    bus = buses[question.line]
    try:
        async with aclosing(scan(BusAsker(bus, bus.line), bus.line, question.wanted, known)) as steps:
            async for step in steps:
                yield Told(step)
    except ScanError as error:
        raise LocalError(str(error)) from error


def known_templates(folder: Path | None = None, more: Iterable[Template] = ()) -> list[Template]:
    """Ours and those in ``folder``; a table there that is wrong is left out, ``meterctl templates`` tells it."""
    found = {template.name: template for template in more}
    for name in templates.names(folder):
        with suppress(templates.TemplateError):
            found.setdefault(name, templates.load(name, folder))
    return list(found.values())


# ---- the command -----------------------------------------------------------------------------------------------------

_SPEEDS_645: Final = (2400, 9600, 1200, 4800, 19_200)  # the likeliest first
_SPEEDS_MODBUS: Final = (9600, 19_200, 4800, 2400, 38_400, 115_200)


@dataclass(frozen=True, slots=True)
class Job:
    """One protocol at one setting."""

    line: Line

    def __str__(self) -> str:
        return f"{self.line.protocol} at {self.line.setting}" if self.line.setting else self.line.protocol


def jobs_of(described: Described) -> list[Job]:
    """What to try, the quick and likely first. Raises click.UsageError."""
    if described.protocols:
        protocols = described.protocols
    elif described.device is not None:
        protocols = ("dlt645-2007", "dlt645-1997", "modbus-rtu")
    elif described.port in (None, MODBUS_TCP_PORT):
        protocols = ("modbus-tcp",)
    else:
        protocols = ("dlt645-2007", "dlt645-1997", "modbus-rtu-over-tcp", "modbus-tcp")
    jobs: list[Job] = []
    for protocol in protocols:
        if described.device is not None and protocol in ("modbus-tcp", "modbus-rtu-over-tcp"):
            raise click.UsageError(f"--protocol {protocol}: needs --host and --port, not --device")
        is_645 = protocol.startswith("dlt645")
        bauds = described.bauds or (_SPEEDS_645 if is_645 else _SPEEDS_MODBUS)
        parities: tuple[Parity, ...] = described.parities or (("E",) if is_645 else ("N", "E"))
        settings: list[SerialSetting | None] = [
            SerialSetting(baud, parity, described.stop_bits, 7 if protocol == "modbus-ascii" and parity != "N" else 8)
            for baud in bauds
            for parity in parities
        ]
        if described.device is None:  # the serial server has its own speed; a stated one only tells how long it takes
            settings = settings[:1] if described.bauds else [None]
        timeout_s = 0.6 if is_645 else 0.25
        if described.device is None:
            timeout_s = 1.0 if protocol == "modbus-tcp" else 1.2 if is_645 else 0.6
        jobs += [
            Job(described.line(protocol, setting, timeout_s=timeout_s, quarantine_s=QUARANTINE_S))
            for setting in settings
        ]
    return jobs


def span_text(seconds: float) -> str:
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    return f"{round(seconds / 60)} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def estimate(jobs: Sequence[Job], wanted: Wanted) -> str:
    """What will be asked and how long that may take, and how to make it less."""
    counts: list[str] = []
    for protocol in dict.fromkeys(job.line.protocol for job in jobs):
        settings = [job.line.setting for job in jobs if job.line.protocol == protocol]
        told = protocol if protocol.startswith("dlt645") else f"{protocol}: {len(wanted.units)} units"
        speeds = {setting.baud for setting in settings if setting}
        parities = {setting.parity for setting in settings if setting}
        told += f" × {len(speeds)} speeds" * (len(speeds) > 1) + f" × {len(parities)} parities" * (len(parities) > 1)
        counts.append(told)
    total_s = sum(bound_s(job.line, wanted) for job in jobs)
    narrow = ["--protocol"] * (len(counts) > 1) + ["--baud", "--parity"] * (len(jobs) > len(counts))
    narrow += ["--units"] * any(not job.line.protocol.startswith("dlt645") for job in jobs)
    hint = f"; narrow with {', '.join(narrow)}" if total_s > 30 and narrow else ""
    per_split_s = [
        100 * question_s(job.line, read_energy("2007", dlt645.WILDCARD))
        for job in jobs
        if job.line.protocol.startswith("dlt645")
    ]
    split = ""
    if per_split_s:
        split = f"; {span_text(max(per_split_s))} more for each group of 645 meters that answer at once"
    return f"{', '.join(counts)}: at most {span_text(total_s)}{split}{hint}"


def parse_units(text: str) -> tuple[int, ...]:
    """ "1-32,40" is 1 to 32, and 40. Raises click.BadParameter."""
    units: list[int] = []
    for part in text.split(","):
        first, _, last = part.strip().partition("-")
        if not (first.isdecimal() and (last or first).isdecimal()):
            raise click.BadParameter(f'units such as "1-32,40" expected, got "{text}"')
        units += range(int(first), int(last or first) + 1)
    if not units or min(units) < 1 or max(units) > modbus.UNIT_MAX:
        raise click.BadParameter(f'1 to {modbus.UNIT_MAX} expected, got "{text}"')
    return tuple(dict.fromkeys(units))


class _Units(click.ParamType[tuple[int, ...]]):
    name = "units"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, ...]:
        return value if isinstance(value, tuple) else parse_units(value)


class _Address(click.ParamType[str]):
    name = "address"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        if len(value) != 12 or not value.isdecimal():
            self.fail(f'12 digits expected, got "{value}"', param, ctx)
        return str(value)


@click.command(
    "scan",
    epilog="""\b
Copy and run:
  meterctl scan --device /dev/ttyUSB0
  meterctl scan --device /dev/ttyUSB0 --protocol dlt645-2007 --baud 2400
  meterctl scan --device /dev/ttyUSB0 --protocol modbus-rtu --baud 9600 --parity N --units 1-32
  meterctl scan --host 192.0.2.7 --write site.toml
  meterctl scan site.toml --line east --json
""",
)
@click.argument("site", required=False, type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--line", "line_name", help="Which line of SITE.")
@line_options
@click.option("--units", type=_Units(), default="1-247", show_default=True, help="Modbus units to ask.")
@click.option("--address", "addresses", type=_Address(), multiple=True, help="DL/T 645 meters to ask by name, too.")
@click.option("--all", "all_settings", is_flag=True, help="Go on with other speeds and parities when meters are found.")
@click.option(
    "--templates",
    "folder",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    envvar=TEMPLATES_VARIABLE,
    help="A folder with templates of your own.",
)
@click.option("--write", "out", type=click.Path(path_type=Path), help="Start a site file with what is found; - prints.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def scan_command(
    site: Path | None,
    line_name: str | None,
    described: Described,
    units: tuple[int, ...],
    addresses: tuple[str, ...],
    all_settings: bool,
    folder: Path | None,
    out: Path | None,
    as_json: bool,
) -> None:
    """Find the meters on a line, and which template fits each, with the reasons. Reads only, writes nothing to meters.

    Without --protocol, --baud and --parity the usual ones are tried one after another, until meters answer. Where the
    agent of SITE runs, it asks, at the line's own setting. Exit 1 when nobody answers.
    """
    if described.is_given == (site is not None):
        raise click.UsageError("SITE, or --device, or --host expected")
    if out is not None and str(out) != "-" and out.exists():
        raise Failed(f"{out}: exists already and is left as it is; give another name")
    wanted = Wanted(units, addresses)
    result = Result()
    if site is None:
        known = known_templates(folder)
        asyncio.run(_scan_jobs(jobs_of(described), wanted, known, result, all_settings))
        text = site_text(result, described)
    else:
        loaded = load_site(site)
        line, meters = line_of(loaded, line_name)
        try:
            agent = local.connect(loaded)
            if agent is not None:
                _say(f"through {agent}, at the setting of line {line.name} ({_setting_text(line)}) only, since it is")
                _say(f"polled; for other settings: kill -INT {agent.pid}; meterctl scan --device … or --host …")
                _say(f"{estimate([Job(line)], wanted)}, and what the polls take")
                question = ScanLine(line.name, wanted)
                _show(result, (told.step for told in agent.ask(question, Told)))
            else:
                _say(f"no agent runs on {loaded.data_dir}: over {line.endpoint}, opened for this")
                known = known_templates(folder, (meter.template for meter in meters))
                asyncio.run(_scan_jobs([Job(line)], wanted, known, result, all_settings))
        except LocalError as error:
            raise Failed(str(error)) from error
        text = meters_text(result.found, line.name, {meter.address for meter in meters})
    if as_json:
        document = {"found": msgspec.to_builtins(result.found), "notes": [note.text for note in result.notes]}
        click.echo(json.dumps(document, ensure_ascii=False, indent=2))
    elif str(out) != "-":
        for meter in result.found:
            click.echo("\n".join(_lines(meter)))
    if not result.found:
        raise Failed(
            "nobody answered; check power, A and B (swapped?), that nothing else talks on the line, and the settings; "
            "listen with: meterctl sniff --help"
        )
    if out is not None:
        if str(out) == "-":
            click.echo(text, nl=False)
        else:
            out.write_text(text, encoding="utf-8")
            _say(f"{out}: written; go on with: meterctl check {out}")


@dataclass(slots=True)
class Result:
    found: list[Found] = field(default_factory=list)
    notes: list[Note] = field(default_factory=list)


def _say(text: str) -> None:
    click.echo(text, err=True)


def _setting_text(line: Line) -> str:
    return f"{line.protocol}, {line.setting}" if line.setting else line.protocol


async def _scan_jobs(
    jobs: Sequence[Job], wanted: Wanted, known: Sequence[Template], result: Result, all_settings: bool
) -> None:
    _say(estimate(jobs, wanted))
    done: set[str] = set()  # protocols whose meters are found
    for number, job in enumerate(jobs, 1):
        if job.line.protocol in done and not all_settings:
            continue
        _say(f"{job} ({number} of {len(jobs)})" if len(jobs) > 1 else str(job))
        before = len(result.found)
        bus = Bus(job.line, SystemClock())
        display = _Display(result)
        try:
            async for step in scan(BusAsker(bus, job.line), job.line, wanted, known):
                display.take(step)
        except ScanError as error:
            display.close()
            raise Failed(str(error)) from error
        finally:
            display.close()
            await bus.close()
        if len(result.found) > before and not all_settings:
            done.add(job.line.protocol)
            left = [it for it in jobs[number:] if it.line.protocol == job.line.protocol]
            if left:
                _say(f"meters answer at {job.line.setting}; {len(left)} other settings are left out (--all tries them)")


def _show(result: Result, steps: Iterable[Step]) -> None:
    display = _Display(result)
    try:
        for step in steps:
            display.take(step)
    finally:
        display.close()


class _Display:
    """A bar for a person, some plain lines for a file, both on standard error."""

    def __init__(self, result: Result) -> None:
        self._result = result
        self._bar: Any = None
        self._is_watched = sys.stderr.isatty()
        self._said_percent = 0

    def take(self, step: Step) -> None:
        match step:
            case Progress(done, total, doing):
                self._progress(done, total, doing)
            case Found():
                self._result.found.append(step)
                self._line(f"found {step.address} ({step.protocol})")
            case Note(text):
                self._result.notes.append(step)
                self._line(f"note: {text}")

    def close(self) -> None:
        if self._bar is not None:
            self._bar.render_finish()
            self._bar = None

    def _progress(self, done: int, total: int, doing: str) -> None:
        if self._is_watched:
            if self._bar is None:
                self._bar = click.progressbar(length=total, file=sys.stderr, item_show_func=lambda text: text)
                self._bar.render_progress()
            self._bar.length = total
            self._bar.update(done - self._bar.pos, doing)
        elif total > 20 and (percent := 100 * done // total // 25 * 25) > self._said_percent:
            self._said_percent = percent
            _say(f"  {percent} %: {doing}")

    def _line(self, text: str) -> None:
        if self._is_watched:
            click.echo("\r\033[K", err=True, nl=False)
        _say(text)


def _lines(meter: Found) -> Iterator[str]:
    phases = f", {meter.phases}-phase" if meter.phases else ""
    at = f", {meter.setting}" if meter.setting else ""
    yield f"{meter.address}  {meter.protocol}{at}{phases}: {'; '.join(meter.says)}"
    for rank, candidate in enumerate(meter.candidates, 1):
        yield f"  {rank}. {candidate.template}: {'; '.join(candidate.reasons)}"
    if not meter.candidates:
        yield "  no template fits; write one: docs/templates.md, or read registers with: meterctl read --help"


# ---- a site file to start from ---------------------------------------------------------------------------------------


def site_text(result: Result, described: Described) -> str:
    """A whole site file that ``meterctl check`` takes, with every meter that has a template."""
    parts = [
        "# Made by `meterctl scan`. Give the gateway its name and its broker, look at the meters, then:\n"
        "#   meterctl check site.toml\n\n"
        '[gateway]\nname = "gateway-1"\n\n[uplink]\nurl = "mqtts://broker.example:8883"\n'
    ]
    groups: dict[tuple[str, str], list[Found]] = {}
    for meter in result.found:
        groups.setdefault((meter.protocol, meter.setting), []).append(meter)
    for number, ((protocol, setting), meters) in enumerate(groups.items(), 1):
        name = f"line-{number}"
        lines = ["[[line]]", f'name = "{name}"', f'protocol = "{protocol}"']
        if described.device is not None:
            lines.append(f"device = {json.dumps(described.device)}")
        else:
            lines += [f"host = {json.dumps(described.host)}", f"port = {described.port or MODBUS_TCP_PORT}"]
        if setting:
            baud, form = setting.split()
            lines += [f"baud = {baud}", f'parity = "{form[1]}"', f"stop_bits = {form[2]}"]
            lines += [f"data_bits = {form[0]}"] * (form[0] != "8")
        parts.append("\n".join(lines) + "\n")
        parts.append(meters_text(meters, name, set()))
    return "\n".join(parts)


def meters_text(found: Iterable[Found], line: str, known: set[str]) -> str:
    """The [[meter]] tables of those whose address is not ``known``; what nobody recognised is a comment."""
    parts: list[str] = []
    for meter in found:
        if meter.address in known:
            continue
        template = meter.candidates[0].template if meter.candidates else "?"
        head = [f"# {text}" for text in meter.says]
        if len(meter.candidates) > 1:
            head.append(f"# or {', '.join(candidate.template for candidate in meter.candidates[1:])}")
        body = ["[[meter]]", f'name = "{line}-{meter.address}"', f'line = "{line}"', f'address = "{meter.address}"']
        body.append(f'template = "{template}"')
        if not meter.candidates:
            head.append("# no template fits; see docs/templates.md")
            body = [f"# {text}" for text in body]
        parts.append("\n".join([*head, *body]) + "\n")
    return "\n".join(parts)
