"""``meterctl read``: one register or data identifier of one meter, decoded and raw."""

import asyncio
import json
from collections.abc import AsyncGenerator, Mapping
from decimal import Decimal
from pathlib import Path

import click
import msgspec

from edge.bus import Bus
from edge.model import ItemReading, ItemValue, Line, Meter, PollFailure, Priority, Reason
from gateway import local
from gateway.config import TEMPLATES_VARIABLE
from gateway.lines import Described, Failed, line_options, load_site
from gateway.local import LocalError
from protocols import dlt645, templates
from protocols.clock import SystemClock
from protocols.templates import Dlt645Template, Dlt645Template1997, Limits, ModbusFamily, Template


class Read(msgspec.Struct, tag_field="op", tag="read", frozen=True):
    """``meter``: by its name in the agent's site."""

    meter: str
    item: str


class Value(msgspec.Struct, frozen=True):
    """A decimal number is text, so that no digit is lost."""

    name: str
    value: str | int | float | None
    unit: str


class Said(msgspec.Struct, frozen=True, kw_only=True):
    """What a meter said to one question, or why nothing. ``request``, ``reply``: hexadecimal."""

    meter: str
    address: str
    item: str
    description: str
    values: tuple[Value, ...] = ()
    request: str = ""
    reply: str = ""
    reason: str = ""
    detail: str = ""


async def answer(meters: Mapping[str, tuple[Bus, Meter]], question: Read) -> AsyncGenerator[msgspec.Struct, None]:
    """The agent's side."""
    if question.meter not in meters:
        raise LocalError(f'"{question.meter}": one of {", ".join(meters)} expected')
    bus, meter = meters[question.meter]
    yield await read(bus, meter, question.item)


async def read(bus: Bus, meter: Meter, item: str) -> Said:
    found = await bus.read_item(meter, item, Priority.COMMAND)
    described = describe(meter.template, item)
    if isinstance(found, PollFailure):
        return Said(
            meter=meter.name, address=meter.address, item=item, description=described,
            reason=found.reason.value, detail=found.detail,
        )  # fmt: skip
    return Said(
        meter=meter.name,
        address=meter.address,
        item=item,
        description=described,
        values=_values(found),
        request=found.request.hex(" ").upper(),
        reply=found.reply.hex(" ").upper(),
    )


def _values(found: ItemReading) -> tuple[Value, ...]:
    def plain(value: ItemValue) -> str | int | float | None:
        return str(value) if isinstance(value, Decimal) else value

    return tuple(Value(name, plain(value), unit) for name, value, unit in found.values)


def describe(template: Template, item: str) -> str:
    """What the tables say about an item; nothing where they do not know it."""
    match template:
        case Dlt645Template() | Dlt645Template1997():
            if not _is_di(item):
                di = next((register.di for register in template.register if register.quantity == item), None)
                return "" if di is None else f"{di:08X} {_item_name(template, di)}"
            return _item_name(template, int(item, 16))
        case ModbusFamily():
            value = next((value for value in template.values if value.key == item), None)
            if value is None:
                return ""
            where = f"{template.function_of(value)}:0x{value.address:04X}:{value.count}:{value.type}"
            return ", ".join(part for part in (where, value.source or template.source, value.note) if part)
        case _:
            return template.source


def _is_di(item: str) -> bool:
    return len(item) in (4, 8) and all(letter in "0123456789abcdefABCDEF" for letter in item)


def _item_name(template: Dlt645Template | Dlt645Template1997, di: int) -> str:
    edition: dlt645.Edition = "1997" if isinstance(template, Dlt645Template1997) else "2007"
    item = dlt645.items(edition).get(di)
    return f"{item.name}, {item.name_zh}" if item else ""


# ---- the command -----------------------------------------------------------------------------------------------------

_BARE = ModbusFamily(
    name="registers", maker="any", models=(), phases=3, source="", function=3, word_order="big",
    limits=Limits(), probe=(), register=(),
)  # fmt: skip


@click.command(
    "read",
    epilog="""\b
Copy and run:
  meterctl read site.toml meter-1 00010000
  meterctl read site.toml meter-2 active_power_w --json
  meterctl read site.toml meter-2 3:0x0048:2:float32
  meterctl read --device /dev/ttyUSB0 --protocol dlt645-2007 --baud 2400 --parity E --address 000000000001 00010000
  meterctl read --host 192.0.2.7 --protocol modbus-tcp --address 1 4:0x0000:2:float32
""",
)
@click.argument("arguments", nargs=-1, required=True, metavar="[SITE METER] ITEM")
@line_options
@click.option("--address", help="The meter, where no SITE is given: 12 digits, or a unit from 1 to 247.")
@click.option("--template", "template_name", help="Its template, for quantities by name; see: meterctl templates.")
@click.option(
    "--templates",
    "folder",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    envvar=TEMPLATES_VARIABLE,
    help="A folder with templates of your own.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def read_command(
    arguments: tuple[str, ...],
    described: Described,
    address: str | None,
    template_name: str | None,
    folder: Path | None,
    as_json: bool,
) -> None:
    """Ask METER of the site file SITE for one ITEM: the value, what it is, and the bytes on the line.

    ITEM is a data identifier (00010000; 9010 in the edition of 1997), a quantity or extra of the meter's template, or
    function:address:count[:type]. Where the site's agent runs, it asks; otherwise this command opens the line itself.
    Without SITE, options say where the meter is. Exit 1 when it does not answer.
    """
    if described.is_given:
        if len(arguments) != 1 or address is None:
            raise click.UsageError("with --device or --host: --address and one ITEM expected")
        line = described.one_line()
        meter = Meter("meter", _address(line, address), _template(line, template_name, folder))
        how, said = f"over {line.endpoint}, opened for this", _read_alone(line, meter, arguments[0])
    else:
        if len(arguments) != 3:
            raise click.UsageError("SITE METER ITEM expected, or --device or --host with --address and ITEM")
        how, said = _read_of_site(Path(arguments[0]), arguments[1], arguments[2])
    if as_json:
        click.echo(json.dumps({**msgspec.to_builtins(said), "how": how}, ensure_ascii=False, indent=2))
    else:
        click.echo(how, err=True)
        _print(said)
    if said.reason:
        raise Failed(
            f"{said.meter} ({said.address}): {said.reason.replace('_', ' ')}: {said.detail}; {_next_step(said)}"
        )


def _read_of_site(path: Path, name: str, item: str) -> tuple[str, Said]:
    if not path.is_file():
        raise click.UsageError(f'"{path}": no such file')
    site = load_site(path)
    try:
        agent = local.connect(site)
        if agent is not None:
            return f"through {agent}", next(iter(agent.ask(Read(name, item), Said, timeout_s=180)))
    except LocalError as error:
        raise Failed(str(error)) from error
    for line, meters in site.lines:
        for meter in meters:
            if meter.name == name:
                how = f"no agent runs on {site.data_dir}: over {line.endpoint}, opened for this"
                return how, _read_alone(line, meter, item)
    raise Failed(f'"{name}": one of {", ".join(meter.name for meter in site.meters)} expected')


def _read_alone(line: Line, meter: Meter, item: str) -> Said:
    async def ask() -> Said:
        bus = Bus(line, SystemClock())
        try:
            return await read(bus, meter, item)
        finally:
            await bus.close()

    return asyncio.run(ask())


def _address(line: Line, text: str) -> str:
    if line.protocol.startswith("dlt645"):
        if len(text) == 12 and all(letter in "0123456789Aa" for letter in text):
            return text.upper()
        raise click.UsageError(f'--address: 12 digits expected (AA stands for any), got "{text}"')
    if text.isdecimal() and 1 <= int(text) <= 255:
        return str(int(text))
    raise click.UsageError(f'--address: a unit from 1 to 247 expected, got "{text}"')


def _template(line: Line, name: str | None, folder: Path | None) -> Template:
    is_645 = line.protocol.startswith("dlt645")
    if name is None and not is_645:
        return _BARE
    try:
        template = templates.load(name or line.protocol, folder)
    except templates.TemplateError as error:
        raise click.UsageError(str(error)) from error
    spoken = templates.protocol(template)
    if spoken != line.protocol and (is_645 or not spoken.startswith("modbus")):
        raise click.UsageError(f"--template {template.name}: speaks {spoken}, not {line.protocol}")
    return template


def _print(said: Said) -> None:
    if said.description:
        click.echo(f"{said.item}  {said.description}")
    for value in said.values:
        shown = "null" if value.value is None else f"{value.value} {value.unit}".rstrip()
        click.echo(f"{value.name}: {shown}")
    if said.request:
        click.echo(f"asked:    {said.request}")
        click.echo(f"answered: {said.reply}")


def _next_step(said: Said) -> str:
    match said.reason:
        case Reason.SILENT | Reason.BACKING_OFF:
            return "check the address, A and B, speed and parity; see who answers: meterctl scan --help"
        case Reason.LINK_DOWN:
            return "check the cable, the adapter and who else has it open"
        case Reason.GARBLED:
            return "look at the bytes: meterctl sniff --help, meterctl why --help"
        case _:
            return "the meter may not have this item; see: meterctl templates"
