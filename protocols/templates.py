"""Meters are tables: which register of a family holds which quantity, as TOML in ``protocols/meters``.

A new meter is a new table. ``load`` checks one whole; what it returns needs no further checks.
"""

import tomllib
from datetime import date
from functools import cache
from importlib.resources import files
from typing import Annotated, Final, Literal, TypeAlias

import msgspec
from msgspec import Meta

from protocols import dlt645, modbus
from protocols.quantities import QUANTITIES, Kind

_FOLDER: Final = files("protocols") / "meters"

Positive: TypeAlias = Annotated[int, Meta(gt=0)]
Word: TypeAlias = Annotated[int, Meta(ge=0, le=0xFFFF)]


class TemplateError(ValueError):
    """A table is not a template; the text says what and where."""


class Dlt645Register(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``member`` of the block ``di``; one step of its last decimal is ``scale`` of the quantity's unit."""

    quantity: str
    di: int
    scale: float
    member: Annotated[int, Meta(ge=0)] = 0


class Dlt645Profile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Load records of class 4: ``marks_max`` fit one reply."""

    interval_s: Positive
    marks_max: Annotated[int, Meta(gt=0, le=dlt645.LOAD_RECORDS_MAX)]


class Dlt645Template(msgspec.Struct, tag="dlt645-2007", tag_field="protocol", frozen=True, forbid_unknown_fields=True):
    name: str
    source: str
    register: tuple[Dlt645Register, ...]
    profile: Dlt645Profile


class ModbusRegister(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A value times ``scale`` is in the quantity's unit; an integer equal to ``null`` is none, as is NaN."""

    quantity: str
    address: Word
    type: str
    scale: float = 1.0
    null: int | None = None


class ModbusClock(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Seconds since 1970 UTC."""

    address: Word
    type: Literal["uint32"]


class ModbusRelay(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """First of three registers, written at once: uint16 action (1 opens, 0 closes), uint32 expiry since 1970 UTC."""

    address: Word


class ModbusProfile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """File records: one file a UTC day counted from ``day_zero``, ``MARK_WORDS`` registers a mark, high word first.

    A register times ``scale`` is in Wh or varh; ``null`` is none, and as a mark's time: not in memory.
    """

    interval_s: Positive
    marks_max: Annotated[int, Meta(gt=0, le=12)]
    day_zero: date
    scale: Positive
    null: int


class ModbusTemplate(msgspec.Struct, tag="modbus-tcp", tag_field="protocol", frozen=True, forbid_unknown_fields=True):
    name: str
    source: str
    function: Literal[3, 4]
    word_order: Literal["big", "little"]
    register: tuple[ModbusRegister, ...]
    clock: ModbusClock
    relay: ModbusRelay
    profile: ModbusProfile


Template: TypeAlias = Dlt645Template | ModbusTemplate

# One mark in a Modbus load profile: uint32 time and four uint32 energy registers.
MARK_WORDS: Final = 10


def protocol(template: Template) -> str:
    return "dlt645-2007" if isinstance(template, Dlt645Template) else "modbus-tcp"


def names() -> list[str]:
    return sorted(entry.name.removesuffix(".toml") for entry in _FOLDER.iterdir() if entry.name.endswith(".toml"))


@cache
def load(name: str) -> Template:
    """The template ``name``. Raises TemplateError for an unknown or a wrong one."""
    if name not in names():
        raise TemplateError(f'template "{name}": one of {", ".join(names())} expected')
    template = parse((_FOLDER / f"{name}.toml").read_text(encoding="utf-8"), where=f"{name}.toml")
    if template.name != name:
        raise TemplateError(f'{name}.toml: name: "{name}" expected, got "{template.name}"')
    return template


def parse(text: str, *, where: str) -> Template:
    """The template in a TOML text. Raises TemplateError that begins with ``where``."""
    try:
        template: Template = msgspec.convert(tomllib.loads(text), Template, strict=True)
    except (tomllib.TOMLDecodeError, msgspec.ValidationError) as error:
        raise TemplateError(f"{where}: {error}") from error
    problems = _problems(template)
    if problems:
        raise TemplateError("\n".join(f"{where}: {problem}" for problem in problems))
    return template


def _problems(template: Template) -> list[str]:
    """What types cannot say: known names, members inside their block, whole numbers where money is counted."""
    problems: list[str] = []
    seen: set[str] = set()
    registers: tuple[Dlt645Register | ModbusRegister, ...] = template.register
    for i, register in enumerate(registers):
        at = f"register[{i}]"
        quantity = QUANTITIES.get(register.quantity)
        if quantity is None:
            problems.append(f'{at}.quantity: "{register.quantity}" is not a quantity')
        elif quantity.kind is Kind.ENERGY and not register.scale.is_integer():
            problems.append(f"{at}.scale: a whole number expected for an energy register, got {register.scale}")
        if register.quantity in seen:
            problems.append(f'{at}.quantity: "{register.quantity}" is there twice')
        seen.add(register.quantity)
        if isinstance(register, ModbusRegister):
            if register.type not in modbus.TYPES:
                problems.append(f'{at}.type: one of {", ".join(modbus.TYPES)} expected, got "{register.type}"')
        elif register.di not in dlt645.ITEMS:
            problems.append(f"{at}.di: {register.di:08X} is not a known data identifier")
        elif register.member >= dlt645.ITEMS[register.di].count:
            problems.append(f"{at}.member: {register.di:08X} has {dlt645.ITEMS[register.di].count} members")
    return problems
