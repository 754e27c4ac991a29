"""Meters are tables: which register of a family holds which quantity, as TOML in ``protocols/meters``.

A new meter is a new table, here or in a folder that the caller passes in. ``load`` checks one whole; what it returns
needs no further checks. docs/templates.md says how to write one.
"""

import math
import tomllib
from collections.abc import Sequence
from datetime import date
from functools import cache
from importlib.resources import files
from importlib.resources.abc import Traversable
from typing import Annotated, Any, Final, Literal, TypeAlias

import msgspec
from msgspec import Meta

from protocols import dlt645, modbus
from protocols.quantities import QUANTITIES, Kind

_FOLDER: Final = files("protocols") / "meters"

Positive: TypeAlias = Annotated[int, Meta(gt=0)]
Word: TypeAlias = Annotated[int, Meta(ge=0, le=0xFFFF)]
Order: TypeAlias = Literal["big", "little"]
Side: TypeAlias = Literal["primary", "secondary"]

# Registers each type takes; None: as many as the table's `words` says.
WORDS: Final[dict[str, int | None]] = {**{name: words for name, (_, words) in modbus.TYPES.items()}, "ascii": None}
ENERGY_BOUND: Final = 2**63  # Wh; rows carry int64
_SIGNIFICAND_BITS: Final = {"float32": 24, "float64": 53}


class TemplateError(ValueError):
    """A table is not a template; the text says what and where, one problem a line."""


class Dlt645Register(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``member`` of the block ``di``; one step of its last decimal is ``scale`` of the quantity's unit.

    ``verified``: see docs/templates.md.
    """

    quantity: str
    di: int
    scale: float
    member: Annotated[int, Meta(ge=0)] = 0
    verified: bool = False


class Dlt645Profile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Load records of class 4: ``marks_max`` fit one reply."""

    interval_s: Positive
    marks_max: Annotated[int, Meta(gt=0, le=dlt645.LOAD_RECORDS_MAX)]


class Dlt645Freeze(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the meter froze at each local midnight, ``count`` days back.

    ``time`` and the registers name the last freeze (DI0 01); the ones before it have DI0 02, 03 and so on.
    """

    count: Annotated[int, Meta(gt=0, le=0xFE)]
    time: int
    register: tuple[Dlt645Register, ...]
    source: str = ""


class Dlt645Meter(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What tables of both editions say. ``counter_modulus``: the steps at which an energy register returns to 0."""

    name: str
    source: str
    register: tuple[Dlt645Register, ...]
    maker: str = "any"
    models: tuple[str, ...] = ()
    phases: Literal[1, 3] = 3
    side: Side | None = None
    counter_modulus: Positive | None = None
    notes: tuple[str, ...] = ()


class Dlt645Template(Dlt645Meter, tag="dlt645-2007", tag_field="protocol", frozen=True, kw_only=True):
    """``profile`` and ``freeze``: the memories it has. Without a profile its energy is what it counts now."""

    profile: Dlt645Profile | None = None
    freeze: Dlt645Freeze | None = None


class Dlt645Template1997(Dlt645Meter, tag="dlt645-1997", tag_field="protocol", frozen=True, kw_only=True):
    """Two-byte identifiers, and no memory: energy is what it counts now."""


class ModbusValue(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A value on the wire. Times ``scale`` it is in its unit; an integer equal to ``null`` is none, as is NaN.

    What is left out is the template's: function, word order, side, source, verified. ``words``: of "ascii" only.
    ``scale_register``: the extra (int16) that holds a power of ten, which multiplies on top of ``scale``.
    ``counter_modulus``: steps at which a counter returns to 0; without it that is not documented (``width_bits``).
    ``resolution``: the meter's own step where it is coarser than the type's, in the unit.
    """

    address: Word
    type: str
    scale: float = 1.0
    null: int | None = None
    words: Annotated[int, Meta(gt=0, le=modbus.READ_WORDS_MAX)] | None = None
    function: Literal[3, 4] | None = None
    word_order: Order | None = None
    byte_order: Order | None = None
    side: Side | None = None
    source: str | None = None
    verified: bool | None = None
    scale_register: str | None = None
    counter_modulus: Positive | None = None
    resolution: Annotated[float, Meta(gt=0)] | None = None
    note: str | None = None

    @property
    def count(self) -> int:
        """Registers it takes."""
        return WORDS[self.type] or self.words or 1

    @property
    def width_bits(self) -> int:
        """Bits that count: a counter of an integer type cannot pass 2 ** width_bits steps."""
        return _SIGNIFICAND_BITS.get(self.type, 16 * self.count)

    def step(self, value: float) -> float:
        """The smallest change that can be seen at ``value``, both in the unit.

        A float32 has 24 significant bits: 16,384 kWh in kWh steps by 2**-9 kWh, that is 2 Wh.
        """
        own = self.resolution or 0.0
        if self.type not in _SIGNIFICAND_BITS:
            return max(own, abs(self.scale))
        raw = abs(value / self.scale)
        exponent = math.frexp(raw)[1] if raw else -125
        return max(own, abs(self.scale) * math.ldexp(1.0, exponent - self.width_bits))


class ModbusRegister(ModbusValue, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One of our quantities; its unit is the quantity's."""

    quantity: str

    @property
    def key(self) -> str:
        return self.quantity


class ModbusExtra(ModbusValue, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Something else worth reading, under a name of its own."""

    name: str
    unit: str = ""

    @property
    def key(self) -> str:
        return self.name


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
    """The demo's meter: registers, and a load profile, a clock and a relay as Gridloom defines them."""

    name: str
    source: str
    function: Literal[3, 4]
    word_order: Order
    register: tuple[ModbusRegister, ...]
    clock: ModbusClock
    relay: ModbusRelay
    profile: ModbusProfile


class ModbusFreeze(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Frozen blocks, one a day (or month, where ``every`` says so), at ``address`` + ``words`` * (n - 1).

    ``time``: two registers from the block's start, YY MM and DD hh, a byte each. ``register``: what was frozen;
    addresses are those of the first block. ``verified``: known which instant the time names, and what was frozen.
    ``ratios``: extras that say PT and CT; all of them 1, it does not matter that the block counts another ``side``
    than the registers do.
    """

    every: Literal["day", "month"]
    address: Word
    words: Positive
    count: Positive
    register: tuple[ModbusRegister, ...]
    side: Side | None = None
    ratios: tuple[str, ...] = ()
    source: str = ""
    verified: bool = False


class Limits(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What one read request may ask for.

    ``gap_max``: the longest run of registers the table does not list that may be read along.
    ``forbidden``: [first, last] address of what must never be read. ``verified``: ``source`` documents them.
    """

    words_max: Annotated[int, Meta(gt=0, le=modbus.READ_WORDS_MAX)] = modbus.READ_WORDS_MAX
    gap_max: Annotated[int, Meta(ge=0, lt=modbus.READ_WORDS_MAX)] = 0
    forbidden: tuple[tuple[Word, Word], ...] = ()
    source: str = ""
    verified: bool = False


class Probe(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A register by its quantity or name, and where its value lies, in its unit, when a scan meets this family."""

    register: str
    min: float
    max: float


class ModbusFamily(
    msgspec.Struct, tag="modbus", tag_field="protocol", frozen=True, forbid_unknown_fields=True, cache_hash=True
):
    """A maker's meter over any Modbus framing. Its energy is what it counts now; ``freeze``: what it remembers."""

    name: str
    maker: str
    models: tuple[str, ...]
    phases: Literal[1, 3]
    source: str
    function: Literal[3, 4]
    word_order: Order
    limits: Limits
    probe: tuple[Probe, ...]
    register: tuple[ModbusRegister, ...]
    extra: tuple[ModbusExtra, ...] = ()
    freeze: tuple[ModbusFreeze, ...] = ()
    byte_order: Order = "big"
    side: Side | None = None
    verified: bool = False
    notes: tuple[str, ...] = ()

    @property
    def values(self) -> tuple[ModbusRegister | ModbusExtra, ...]:
        return (*self.register, *self.extra)

    def function_of(self, value: ModbusValue) -> int:
        return value.function or self.function

    def is_verified(self, value: ModbusValue) -> bool:
        return self.verified if value.verified is None else value.verified

    def decode(self, value: ModbusValue, raw: bytes) -> float | int | str | None:
        """A value in its unit, without its scale register; energy is whole Wh. ``raw``: its (2 × count,) bytes.

        None is also what no row can carry, as a float in the wrong word order may be. Raises FrameError for BCD with a
        digit above 9 and for text that is none.
        """
        byte_order = value.byte_order or self.byte_order
        if value.type == "ascii":
            return modbus.decode_text(raw, byte_order=byte_order)
        order = value.word_order or self.word_order
        steps = modbus.decode_value(raw, value.type, word_order=order, byte_order=byte_order, null=value.null)
        if steps is None:
            return None
        exact = isinstance(steps, int) and value.scale.is_integer()  # also past 2**53
        scaled = steps * int(value.scale) if exact else steps * value.scale
        if isinstance(value, ModbusRegister) and QUANTITIES[value.quantity].kind is Kind.ENERGY:
            return round(scaled) if abs(scaled) < ENERGY_BOUND else None
        return scaled if math.isfinite(scaled) else None


Template: TypeAlias = Dlt645Template | Dlt645Template1997 | ModbusTemplate | ModbusFamily

# One mark in a Modbus load profile: uint32 time and four uint32 energy registers.
MARK_WORDS: Final = 10

_PROTOCOLS: Final[dict[type, str]] = {
    Dlt645Template: "dlt645-2007",
    Dlt645Template1997: "dlt645-1997",
    ModbusTemplate: "modbus-tcp",
}
_PARTS: Final[dict[str, dict[str, Any]]] = {
    "dlt645-2007": {"register": Dlt645Register},
    "dlt645-1997": {"register": Dlt645Register},
    "modbus-tcp": {"register": ModbusRegister},
    "modbus": {"register": ModbusRegister, "extra": ModbusExtra, "probe": Probe, "freeze": ModbusFreeze},
}


def protocol(template: Template) -> str:
    """As the table says it; a line speaks ``modbus-tcp``, on which a table for ``modbus`` works as well."""
    return _PROTOCOLS.get(type(template), "modbus")


def has_profile(template: Template) -> bool:
    """Whether the meter notes its registers at every mark; without that, energy is read as it counts."""
    return isinstance(template, ModbusTemplate) or (
        isinstance(template, Dlt645Template) and template.profile is not None
    )


def remembers(template: Template) -> bool:
    """Whether a missed mark, or at least one at local midnight, can be read later."""
    match template:
        case ModbusTemplate():
            return True
        case Dlt645Template():
            return template.profile is not None or template.freeze is not None
        case ModbusFamily():
            return any(usable_freeze(template, freeze) for freeze in template.freeze)
        case Dlt645Template1997():
            return False


def usable_freeze(family: ModbusFamily, freeze: ModbusFreeze) -> bool:
    """Whether daily blocks can be booked beside the registers: on one side of PT and CT, or with ratios to ask for."""
    sides = {it.side or family.side for it in family.register if it.quantity in {f.quantity for f in freeze.register}}
    return freeze.every == "day" and (bool(freeze.ratios) or (freeze.side is not None and sides == {freeze.side}))


def names(folder: Traversable | None = None) -> list[str]:
    """The known templates, with those of the user's ``folder``. Raises TemplateError where that cannot be listed."""
    try:
        entries = [*_FOLDER.iterdir(), *(folder.iterdir() if folder else ())]
    except OSError as error:
        raise TemplateError(f"{folder}: cannot be listed: {error.strerror}") from error
    return sorted({entry.name.removesuffix(".toml") for entry in entries if entry.name.endswith(".toml")})


def load(name: str, folder: Traversable | None = None) -> Template:
    """The template ``name``; one in the user's ``folder`` goes first. Raises TemplateError, unknown or wrong."""
    if name not in names(folder):
        raise TemplateError(f'template "{name}": one of {", ".join(names(folder))} expected')
    if folder is not None and (folder / f"{name}.toml").is_file():
        return _read(name, folder)
    return _load(name)


@cache
def _load(name: str) -> Template:
    return _read(name, _FOLDER)


def _read(name: str, folder: Traversable) -> Template:
    try:
        text = (folder / f"{name}.toml").read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise TemplateError(f"{name}.toml: cannot be read: {error}") from error
    template = parse(text, where=f"{name}.toml")
    if template.name != name:
        raise TemplateError(f'{name}.toml: name: "{name}" expected, got "{template.name}"')
    return template


def parse(text: str, *, where: str) -> Template:
    """The template in a TOML text. Raises TemplateError with all problems, each line beginning with ``where``."""
    try:
        document = tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # also numbers and nesting beyond what Python reads
        raise TemplateError(f"{where}: {error}") from error
    problems = _misfits(document)
    if not problems:
        problems = check(msgspec.convert(document, Template, strict=True))
    if problems:
        raise TemplateError("\n".join(f"{where}: {problem}" for problem in problems))
    template: Template = msgspec.convert(document, Template, strict=True)
    return template


def _misfits(document: dict[str, Any]) -> list[str]:
    """What does not fit the types: msgspec stops at the first, so each table of an array is tried by itself."""
    problems: list[str] = []
    rest = dict(document)
    tag = document.get("protocol")
    parts = _PARTS.get(tag, {}) if isinstance(tag, str) else {}
    for part, kind in parts.items():
        tables = document.get(part)
        if isinstance(tables, list):
            rest[part] = []
            for i, table in enumerate(tables):
                try:
                    msgspec.convert(table, kind, strict=True)
                except msgspec.ValidationError as error:
                    what, _, path = str(error).partition(" - at `$")
                    problems.append(f"{part}[{i}]{path.rstrip('`')}: {what}")
    try:
        msgspec.convert(rest, Template, strict=True)
    except msgspec.ValidationError as error:
        problems.insert(0, str(error))
    return problems


def check(template: Template) -> list[str]:
    """What types cannot say: known names, members inside their block, whole numbers where money is counted."""
    problems = _register_problems("register", template.register, "1997" if _is_1997(template) else "2007")
    if isinstance(template, Dlt645Template) and template.freeze is not None:
        problems += _freeze_problems(template.freeze)
    if isinstance(template, ModbusFamily):
        problems += _family_problems(template)
    return problems


def _is_1997(template: Template) -> bool:
    return isinstance(template, Dlt645Template1997)


def _register_problems(
    where: str, registers: Sequence[Dlt645Register | ModbusRegister], edition: dlt645.Edition = "2007"
) -> list[str]:
    problems: list[str] = []
    seen: set[str] = set()
    table = dlt645.items(edition)
    for i, register in enumerate(registers):
        at = f"{where}[{i}]"
        quantity = QUANTITIES.get(register.quantity)
        if quantity is None:
            problems.append(f'{at}.quantity: "{register.quantity}" is not a quantity')
        elif quantity.kind is Kind.ENERGY and not register.scale.is_integer():
            problems.append(f"{at}.scale: a whole number expected for an energy register, got {register.scale}")
        if register.quantity in seen:
            problems.append(f'{at}.quantity: "{register.quantity}" is there twice')
        seen.add(register.quantity)
        if isinstance(register, ModbusRegister):
            problems += _value_problems(at, register)
        elif not math.isfinite(register.scale) or register.scale == 0:
            problems.append(f"{at}.scale: a finite number other than 0 expected, got {register.scale}")
        elif register.di not in table:
            problems.append(f"{at}.di: {_di(register.di, edition)} is not a known data identifier")
        elif register.member >= table[register.di].count:
            problems.append(f"{at}.member: {_di(register.di, edition)} has {table[register.di].count} members")
    return problems


def _di(di: int, edition: dlt645.Edition) -> str:
    return f"{di:04X}" if edition == "1997" else f"{di:08X}"


def _freeze_problems(freeze: Dlt645Freeze) -> list[str]:
    problems = _register_problems("freeze.register", freeze.register)
    problems += _only_energy("freeze.register", freeze.register)
    for at, di in [("time", freeze.time), *((f"register[{i}].di", it.di) for i, it in enumerate(freeze.register))]:
        if di & 0xFF != 1:
            problems.append(f"freeze.{at}: the last freeze expected, which ends in 01, got {di:08X}")
    item = dlt645.ITEMS.get(freeze.time)
    if item is None or [field.fields for field in item.group] != [("YY", "MM", "DD", "hh", "mm")]:
        problems.append(f"freeze.time: {freeze.time:08X} is not the time of a freeze")
    return problems


def _only_energy(where: str, registers: Sequence[Dlt645Register | ModbusRegister]) -> list[str]:
    problems = [] if registers else [f"{where}: at least one expected"]
    for i, register in enumerate(registers):
        quantity = QUANTITIES.get(register.quantity)
        if quantity is not None and quantity.kind is not Kind.ENERGY:
            problems.append(f'{where}[{i}].quantity: an energy register expected, got "{register.quantity}"')
    return problems


def _value_problems(at: str, value: ModbusValue) -> list[str]:
    problems: list[str] = []
    if value.type not in WORDS:
        return [f'{at}.type: one of {", ".join(WORDS)} expected, got "{value.type}"']
    if not math.isfinite(value.scale) or value.scale == 0:
        problems.append(f"{at}.scale: a finite number other than 0 expected, got {value.scale}")
    if (value.words is None) == (value.type == "ascii"):
        problems.append(f'{at}.words: expected with type "ascii", and with no other')
    if value.address + value.count > 0x1_0000:
        problems.append(f"{at}.address: {value.address} and {value.count} registers pass 65535")
    if value.type in _SIGNIFICAND_BITS or value.type == "ascii":
        given = [key for key in ("null", "counter_modulus") if getattr(value, key) is not None]
        problems += [f"{at}.{key}: only with an integer type, not {value.type}" for key in given]
    elif value.counter_modulus is not None and value.counter_modulus > 2**value.width_bits:
        problems.append(f"{at}.counter_modulus: {value.type} counts to 2**{value.width_bits} at most")
    return problems


def _family_problems(family: ModbusFamily) -> list[str]:
    problems: list[str] = []
    for i, extra in enumerate(family.extra):
        problems += _value_problems(f"extra[{i}]", extra)
        if extra.name in QUANTITIES:
            problems.append(f'extra[{i}].name: "{extra.name}" is a quantity and belongs in [[register]]')
        if extra.name in (before.name for before in family.extra[:i]):
            problems.append(f'extra[{i}].name: "{extra.name}" is there twice')
    for i, (first, last) in enumerate(family.limits.forbidden):
        if first > last:
            problems.append(f"limits.forbidden[{i}]: the first address comes after the last")
    if family.limits.verified and not family.limits.source:
        problems.append("limits.source: expected where they are verified")
    keys = {value.key for value in family.values}
    powers = {extra.name for extra in family.extra if extra.type == "int16"}
    tables = [(f"register[{i}]", value) for i, value in enumerate(family.register)]
    for at, value in [*tables, *((f"extra[{i}]", value) for i, value in enumerate(family.extra))]:
        if value.type not in WORDS:
            continue
        if value.count > family.limits.words_max:
            problems.append(f"{at}.address: {value.count} registers, but limits.words_max is {family.limits.words_max}")
        for first, last in family.limits.forbidden:
            if value.address <= last and first < value.address + value.count:
                problems.append(f"{at}.address: {value.address} lies in the forbidden {first} to {last}")
        if value.scale_register is not None and value.scale_register not in powers:
            problems.append(f'{at}.scale_register: "{value.scale_register}" is not an [[extra]] of type int16')
        if isinstance(value, ModbusRegister) and value.type == "ascii":
            problems.append(f"{at}.type: a quantity is a number")
    for i, freeze in enumerate(family.freeze):
        problems += _modbus_freeze_problems(f"freeze[{i}]", family, freeze)
    if not family.probe:
        problems.append("probe: at least one [[probe]] expected")
    for i, probe in enumerate(family.probe):
        if probe.register not in keys:
            problems.append(f'probe[{i}].register: "{probe.register}" is neither a register nor an extra')
        if not probe.min <= probe.max:
            problems.append(f"probe[{i}].min: {probe.min} is more than max")
    return problems


def _modbus_freeze_problems(at: str, family: ModbusFamily, freeze: ModbusFreeze) -> list[str]:
    where = f"{at}.register"
    problems = _register_problems(where, freeze.register) + _only_energy(where, freeze.register)
    if freeze.address + freeze.words * freeze.count > 0x1_0000:
        problems.append(f"{at}.count: {freeze.count} blocks of {freeze.words} registers pass 65535")
    for i, register in enumerate(freeze.register):
        last = register.address + (register.count if register.type in WORDS else 1)
        if not freeze.address + 2 <= register.address or last > freeze.address + freeze.words:
            problems.append(f"{where}[{i}].address: {register.address} lies outside the first block, or in its time")
        elif last - freeze.address > family.limits.words_max:
            problems.append(
                f"{where}[{i}].address: with the time {last - freeze.address} registers, more than a request"
            )
    extras = {extra.name for extra in family.extra}
    problems += [f'{at}.ratios: "{name}" is not an [[extra]]' for name in freeze.ratios if name not in extras]
    return problems
