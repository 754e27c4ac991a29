"""The data of an item to values and back, as the tables describe it."""

from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import TypeAlias

from protocols.dlt645.bcd import decode_bcd, encode_bcd
from protocols.dlt645.frame import Edition
from protocols.dlt645.table import ITEMS, Field, Item, Kind, items
from protocols.framing import FrameError


@dataclass(frozen=True, slots=True)
class MeterTime:
    """What the meter calls the time, not yet held against a calendar: 99 and weekday 7 occur.

    ``names``: as people write them, e.g. ``("YY", "MM", "DD", "WW")``; ``digits``: two each.
    """

    names: tuple[str, ...]
    digits: tuple[str, ...]

    def __str__(self) -> str:
        return " ".join(f"{name}={two}" for name, two in zip(self.names, self.digits, strict=True))


@dataclass(frozen=True, slots=True)
class Word:
    """Bits; ``hex`` high byte first."""

    hex: str


@dataclass(frozen=True, slots=True)
class Rejected:
    """Bytes in wire order that are not what the item says they are, and why."""

    raw: bytes
    reason: str


@dataclass(frozen=True, slots=True)
class Digits:
    """A name made of digits: an address, a number on a nameplate."""

    text: str


@dataclass(frozen=True, slots=True)
class Raw:
    """Bytes the facts at hand do not describe."""

    raw: bytes


# str is text. None is null: filled with FF.
Value: TypeAlias = Decimal | MeterTime | Word | Digits | Raw | str | Rejected | None


@dataclass(frozen=True, slots=True)
class Decoded:
    """``values``: group after group, in the item's order. Where ``flag`` says something, they are absent."""

    item: Item | None
    values: tuple[Value, ...]
    raw: bytes
    flag: str = ""
    ends_with_aa: bool = False


def decode_data(edition: Edition, di: int, data: bytes) -> Decoded:
    """``data``: what follows the data identifier. Never raises: what cannot be decoded stays raw, with a flag.

    A block may leave its last members out (single-phase meters do) but no member may be cut.
    """
    item = items(edition).get(di)
    if item is None:
        return Decoded(None, (), data)
    kinds = [field.kind for field in item.group]
    if kinds[0] is Kind.LOAD or not data:
        return Decoded(item, (), data)
    if kinds[-1] is Kind.RAW:
        return _decode_record(item, data)
    size = item.group_bytes
    ends_with_aa = edition == "1997" and item.is_block and len(data) % size == 1 and data[-1] == 0xAA
    body = data[:-1] if ends_with_aa else data
    groups, rest = divmod(len(body), size)
    if rest or not 1 <= groups <= item.count:
        return Decoded(item, (), data, flag=f"length {len(data)} != table {_expected(item)}")
    values: list[Value] = []
    at = 0
    for field in item.group * groups:
        values.append(_decode(field, body[at : at + field.size], signed=item.signed))
        at += field.size
    return Decoded(item, tuple(values), data, ends_with_aa=ends_with_aa)


def _expected(item: Item) -> str:
    return f"{item.group_bytes}*(1+k)" if item.is_open else str(item.group_bytes * item.count)


def _decode_record(item: Item, data: bytes) -> Decoded:
    """An event record: its times where the table gives them, the rest raw."""
    known = item.group[:-1]
    if item.size is not None and len(data) != item.size:
        return Decoded(item, (), data, flag=f"length {len(data)} != table {item.size}")
    if len(data) < item.group_bytes:
        return Decoded(item, (), data, flag=f"length {len(data)} < {item.group_bytes}")
    values: list[Value] = []
    at = 0
    for field in known:
        values.append(_decode(field, data[at : at + field.size], signed=False))
        at += field.size
    return Decoded(item, (*values, Raw(data[at:])), data)


def _decode(field: Field, raw: bytes, *, signed: bool) -> Value:
    match field.kind:
        case Kind.TEXT:
            text = raw[::-1].replace(b"\x00", b"")  # padded at either end
            printable = text.isascii() and text.decode("ascii").isprintable()
            return text.decode("ascii") if printable else Rejected(raw, "not ASCII")
        case Kind.WORD:
            return Word(raw[::-1].hex().upper())
        case Kind.DIGITS:
            if raw.count(0xFF) == len(raw):
                return None
            digits = raw[::-1].hex()
            return Digits(digits) if digits.isdecimal() else Rejected(raw, "not BCD")
        case Kind.TIME:
            if raw.count(0xFF) == len(raw):
                return None
            digits = raw[::-1].hex()
            if not digits.isdecimal():
                return Rejected(raw, "not BCD")
            return MeterTime(field.fields, tuple(digits[i : i + 2] for i in range(0, len(digits), 2)))
        case _:
            return decode_number(raw, field.decimals, signed=signed)


def decode_number(raw: bytes, decimals: int, *, signed: bool = False) -> Decimal | Rejected | None:
    """Minus zero keeps its sign: a meter that sends it says something about the direction."""
    try:
        steps = decode_bcd(raw, signed=signed)
    except FrameError:
        return Rejected(raw, "not BCD")
    if steps is None:
        return None
    is_negative = signed and bool(raw[-1] & 0x80)
    return Decimal((int(is_negative), tuple(map(int, str(abs(steps)))), -decimals))


def encode_data(edition: Edition, di: int, values: Sequence[Value]) -> bytes:
    """Inverse of ``decode_data``, for the meter and for writing. Raises ValueError, for an unknown DI KeyError."""
    item = items(edition)[di]
    groups, rest = divmod(len(values), len(item.group))
    if rest or not 1 <= groups <= item.count:
        raise ValueError(f"{di:X}: {len(item.group)} values for each of at most {item.count} members expected")
    pairs = zip(item.group * groups, values, strict=True)
    return b"".join(_encode(field, value, signed=item.signed) for field, value in pairs)


def _encode(field: Field, value: Value, *, signed: bool) -> bytes:
    match value:
        case None:
            return b"\xff" * field.size
        case Rejected(raw) | Raw(raw):
            encoded = raw
        case Decimal():
            encoded = encode_number(value, field, signed=signed)
        case MeterTime():
            encoded = bytes.fromhex("".join(value.digits))[::-1]
        case Word(digits) | Digits(digits):
            encoded = bytes.fromhex(digits)[::-1]
        case str():
            encoded = value.encode("ascii")[::-1].rjust(field.size, b"\x00")
    if field.size and len(encoded) != field.size:
        raise ValueError(f"{value}: {field.size} bytes expected, got {len(encoded)}")
    return encoded


def encode_number(value: Decimal, field: Field, *, signed: bool) -> bytes:
    steps = value.scaleb(field.decimals)
    if steps != steps.to_integral_value():
        raise ValueError(f"{value}: at most {field.decimals} decimals")
    raw = bytearray(encode_bcd(int(steps), field.size, signed=signed))
    if signed and value.is_signed():
        raw[-1] |= 0x80
    return bytes(raw)


# ---- the short way for items that are only numbers -------------------------------------------------------------------


def encode_item(di: int, steps: Sequence[int | None]) -> bytes:
    """``steps``: one integer per number, in units of the item's last decimal; None is null."""
    item = ITEMS[di]
    if len(steps) > item.count or (len(steps) < item.count and not item.is_open):
        raise ValueError(f"{di:08X}: {item.count} numbers expected, got {len(steps)}")
    return b"".join(encode_bcd(step, item.group[0].size, signed=item.signed) for step in steps)


def decode_item(di: int, data: bytes) -> tuple[int | None, ...]:
    """(count,) integers in units of the item's last decimal; None is null. An open block has as many as came.

    A single-phase meter may leave the last members of a block out: they are null. Any other length raises FrameError,
    since a meter with longer numbers would otherwise be read wrongly. Raises ValueError for an item that is not
    numbers alone.
    """
    item = ITEMS[di]
    field, *others = item.group
    if others or field.kind is not Kind.NUMBER:
        raise ValueError(f"{di:08X}: not numbers alone")
    size = field.size
    members, rest = divmod(len(data), size)
    if rest or not 1 <= members <= item.count:
        raise FrameError(f"{di:08X}: {item.count} x {size} bytes expected, got {len(data)}", raw=data)
    values = [decode_bcd(data[start : start + size], signed=item.signed) for start in range(0, len(data), size)]
    return tuple(values) if item.is_open else (*values, *[None] * (item.count - members))
