"""``meterctl templates``: the known meter families as a list, and one of them in detail."""

import json
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click
import msgspec

from gateway.config import TEMPLATES_VARIABLE
from protocols import dlt645, templates
from protocols.quantities import ENERGY_NAMES
from protocols.templates import (
    Dlt645Meter,
    Dlt645Register,
    Dlt645Template,
    ModbusFamily,
    ModbusFreeze,
    ModbusTemplate,
    ModbusValue,
    Template,
    usable_freeze,
)

_STEPS_AT_WH = (1_000_000.0, 20_000_000.0)  # a float's steps are told at 1 MWh and 20 MWh


@dataclass(frozen=True, slots=True)
class Summary:
    """``verified``, ``unverified``: registers and extras; what that means: docs/templates.md."""

    name: str
    maker: str
    protocol: str
    phases: int
    quantities: tuple[str, ...]
    extras: int
    verified: int
    unverified: int


def summarise(template: Template) -> Summary:
    quantities = tuple(register.quantity for register in template.register)
    protocol = templates.protocol(template)
    match template:
        case Dlt645Meter():
            good = sum(register.verified for register in template.register)
            return _summary(template.name, template.maker, protocol, template.phases, quantities, 0, good)
        case ModbusTemplate():  # its table is its definition
            return _summary(template.name, "Gridloom", protocol, 3, quantities, 0, len(quantities))
        case ModbusFamily():
            good = sum(template.is_verified(value) for value in template.values)
            extras = len(template.extra)
            return _summary(template.name, template.maker, protocol, template.phases, quantities, extras, good)


def _summary(
    name: str, maker: str, protocol: str, phases: int, quantities: tuple[str, ...], extras: int, verified: int
) -> Summary:
    unverified = len(quantities) + extras - verified
    return Summary(name, maker, protocol, phases, quantities, extras, verified, unverified)


def as_document(template: Template) -> dict[str, Any]:
    """The table as it is, with its counts."""
    table: dict[str, Any] = msgspec.to_builtins(template)
    return {**asdict(summarise(template)), "table": table}


def list_lines(found: list[Summary]) -> Iterator[str]:
    wide = max((len(it.name) for it in found), default=4)
    yield f"{'name':{wide}}  {'maker':18}  {'protocol':11}  phases  quantities  extras  verified  unverified"
    for it in found:
        counts = f"{len(it.quantities):10}  {it.extras:6}  {it.verified:8}  {it.unverified:10}"
        yield f"{it.name:{wide}}  {it.maker:18}  {it.protocol:11}  {it.phases:6}  {counts}"


def detail_lines(template: Template) -> Iterator[str]:
    it = summarise(template)
    yield f"{it.name}: {it.maker}, {it.protocol}, {it.phases}-phase, {it.verified} verified, {it.unverified} unverified"
    yield f"source: {template.source}"
    if isinstance(template, Dlt645Meter):
        yield from _notes(template.notes)
        edition: dlt645.Edition = "2007" if isinstance(template, Dlt645Template) else "1997"
        for register in template.register:
            yield _dlt645_line(register, edition)
        yield f"memory: {', and '.join(_memories(template)) or 'none: a mark that was missed stays a gap'}"
    elif isinstance(template, ModbusTemplate):
        for value in template.register:
            yield f"  {value.quantity:22} {template.function}:0x{value.address:04X}  {value.type:8} x {value.scale:g}"
    else:
        yield from _family_lines(template)


def _dlt645_line(register: Dlt645Register, edition: dlt645.Edition) -> str:
    item = dlt645.items(edition)[register.di]
    di = f"{register.di:08X}" if edition == "2007" else f"{register.di:04X}"
    trust = "" if register.verified else "  unverified"
    size = item.size if item.size is not None else item.group_bytes
    return f"  {register.quantity:22} DI {di}[{register.member}]  {size} bytes BCD  step {register.scale:g}{trust}"


def _memories(template: Dlt645Meter) -> Iterator[str]:
    if not isinstance(template, Dlt645Template):
        return
    if template.profile is not None:
        yield f"load records every {template.profile.interval_s // 60} min"
    if template.freeze is not None:
        what = ", ".join(register.quantity for register in template.freeze.register)
        yield f"{template.freeze.count} daily freezes from DI {template.freeze.time:08X} on: {what}"


def _freeze_line(family: ModbusFamily, freeze: ModbusFreeze) -> str:
    what = ", ".join(register.quantity for register in freeze.register)
    trust = "verified" if freeze.verified else "unverified"
    use = f"only while {' and '.join(freeze.ratios)} are 1" if freeze.ratios else "at local midnight"
    told = f"fills gaps {use}" if usable_freeze(family, freeze) else "not read"
    where = f"0x{freeze.address:04X} + {freeze.words} (n - 1)"
    return f"memory: {freeze.count} blocks, one a {freeze.every}, at {where}: {what}; {trust}; {told}"


def _family_lines(family: ModbusFamily) -> Iterator[str]:
    yield from _notes(family.notes)
    limits = family.limits
    documented = limits.source or "not documented"
    yield f"a request: at most {limits.words_max} registers, over gaps of {limits.gap_max} ({documented})"
    for first, last in limits.forbidden:
        yield f"never read: 0x{first:04X} to 0x{last:04X}"
    for probe in family.probe:
        yield f"a scan knows it by: {probe.register} from {probe.min:g} to {probe.max:g}"
    for value in family.values:
        yield _value_line(family, value.key, value)
    for freeze in family.freeze:
        yield _freeze_line(family, freeze)
    if not any(usable_freeze(family, freeze) for freeze in family.freeze):
        yield "memory: none that is read: a mark that was missed stays a gap"


def _value_line(family: ModbusFamily, key: str, value: ModbusValue) -> str:
    function = family.function_of(value)
    side = value.side or family.side or "side not documented"
    trust = "verified" if family.is_verified(value) else "unverified"
    order = value.word_order or family.word_order
    kind = f"{value.type} {order}" if value.count > 1 else value.type
    extra = value.note or ""
    if key in ENERGY_NAMES:
        steps = sorted({value.step(at) for at in _STEPS_AT_WH})
        size = " to ".join(f"{step:.3g}" for step in steps)
        rolls = f"returns to 0 at {value.counter_modulus}" if value.counter_modulus else "rollover not documented"
        where = " (at 1 MWh to 20 MWh)" if len(steps) > 1 else ""
        unit = "varh" if key.endswith("varh") else "Wh"
        extra = ", ".join(part for part in (f"steps of {size} {unit}{where}", rolls, extra) if part)
    line = f"  {key:36} {function}:0x{value.address:04X}  {kind:14} x {value.scale:<8g} {side:20} {trust:10} {extra}"
    return line.rstrip()


def _notes(notes: tuple[str, ...]) -> Iterator[str]:
    for note in notes:
        yield f"note: {note}"


def _folder_of(site: Path) -> Path | None:
    """The folder of templates a site file names."""
    try:
        directory = tomllib.loads(site.read_text(encoding="utf-8")).get("templates", {}).get("directory")
    except (ValueError, OSError, AttributeError) as error:
        raise click.BadParameter(f"{site}: {error}", param_hint="--site") from error
    if directory is not None and not isinstance(directory, str):
        raise click.BadParameter(f"{site.name}: templates.directory: text in quotes expected", param_hint="--site")
    return site.parent / directory if directory else None


@click.command(
    "templates",
    epilog="""\b
Copy and run:
  meterctl templates
  meterctl templates eastron-sdm630
  meterctl templates my-meter --folder my-templates --json
  meterctl templates my-meter --site site.toml
""",
)
@click.argument("name", required=False)
@click.option(
    "--folder",
    type=click.Path(file_okay=False, path_type=Path),
    envvar=TEMPLATES_VARIABLE,
    help=f"A folder with templates of your own, checked too; they go before ours. Or set {TEMPLATES_VARIABLE}.",
)
@click.option(
    "--site",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="A site file: with the templates it names, as its gateway has them.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def templates_command(name: str | None, folder: Path | None, site: Path | None, as_json: bool) -> None:
    """List the meter families a gateway can read, or show the one called NAME with every register.

    Talks to nobody; exit 1 when a template is wrong or unknown.
    """
    found: list[Template] = []
    problems: list[str] = []
    if site is not None and folder is None:  # the variable goes before the file, as it does for the gateway
        folder = _folder_of(site)
    try:
        wanted = [name] if name else templates.names(folder)
    except templates.TemplateError as error:
        wanted, problems = [], [str(error)]
    for it in wanted:
        try:
            found.append(templates.load(it, folder))
        except templates.TemplateError as error:
            problems.append(str(error))
    if as_json and not (name and problems):
        document = as_document(found[0]) if name else [asdict(summarise(template)) for template in found]
        click.echo(json.dumps(document, ensure_ascii=False, indent=2))
    elif name:
        for template in found:
            click.echo("\n".join(detail_lines(template)))
    else:
        click.echo("\n".join(list_lines([summarise(template) for template in found])))
    for problem in problems:
        click.echo(problem, err=True)
    sys.exit(1 if problems else 0)
