"""The data of an item to values and back, as the tables describe it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from functools import cache, partial
from typing import TypeAlias, TypeVar

import msgspec

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

D = TypeVar("D")


class Decoded(msgspec.Struct, frozen=True, gc=False):
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
    return _DATA_DECODERS[edition][di](data)


def _data_decoder(edition: Edition, di: int) -> Callable[[bytes], Decoded]:
    item = items(edition).get(di)
    if item is None or item.group[0].kind is Kind.LOAD:
        return lambda data: Decoded(item, (), data)
    if item.group[-1].kind is Kind.RAW:
        return partial(_decode_record, item)
    if len(item.group) == item.count == 1:
        return _one_decoder(item)
    ends_with_aa = edition == "1997" and item.is_block
    return partial(_decode_members, item, ends_with_aa)


def _one_decoder(item: Item) -> Callable[[bytes], Decoded]:
    """Of an item that is one value: what is read most."""
    field = item.group[0]
    size, decode = field.size, _reader(field, item.signed)

    def decode_one(data: bytes) -> Decoded:
        if len(data) == size:
            return Decoded(item, (decode(data),), data)
        return Decoded(item, (), data, f"length {len(data)} != table {size}" if data else "")

    return decode_one


def _decode_members(item: Item, may_end_with_aa: bool, data: bytes) -> Decoded:
    if not data:
        return Decoded(item, (), data)
    size = item.group_bytes
    ends_with_aa = may_end_with_aa and len(data) % size == 1 and data[-1] == 0xAA
    groups, rest = divmod(len(data) - ends_with_aa, size)
    if rest or not 1 <= groups <= item.count:
        return Decoded(item, (), data, f"length {len(data)} != table {_expected(item)}")
    return Decoded(item, _decode_fields(item.group * groups, data, signed=item.signed), data, "", ends_with_aa)


def _expected(item: Item) -> str:
    return f"{item.group_bytes}*(1+k)" if item.is_open else str(item.group_bytes * item.count)


def _decode_record(item: Item, data: bytes) -> Decoded:
    """An event record: its times where the table gives them, the rest raw."""
    if not data:
        return Decoded(item, (), data)
    if item.size is not None and len(data) != item.size:
        return Decoded(item, (), data, f"length {len(data)} != table {item.size}")
    if len(data) < item.group_bytes:
        return Decoded(item, (), data, f"length {len(data)} < {item.group_bytes}")
    known = item.group[:-1]
    rest = Raw(data[sum(field.size for field in known) :])
    return Decoded(item, (*_decode_fields(known, data, signed=False), rest), data)


def _decode_fields(fields: Sequence[Field], data: bytes, *, signed: bool) -> tuple[Value, ...]:
    values: list[Value] = []
    at = 0
    for field in fields:
        values.append(_reader(field, signed)(data[at : at + field.size]))
        at += field.size
    return tuple(values)


@cache
def _reader(field: Field, signed: bool) -> Callable[[bytes], Value]:
    """How bytes of ``field.size`` are read. The tables have a few dozen different fields."""
    match field.kind:
        case Kind.TEXT:
            return _decode_text
        case Kind.WORD:
            return lambda raw: Word(raw[::-1].hex().upper())
        case Kind.DIGITS:
            return _decode_digits
        case Kind.TIME:
            return partial(_decode_time, field.fields)
        case _:
            return _number_reader(field.decimals, signed)


def _decode_text(raw: bytes) -> Value:
    text = raw[::-1].replace(b"\x00", b"")  # padded at either end
    printable = text.isascii() and text.decode("ascii").isprintable()
    return text.decode("ascii") if printable else Rejected(raw, "not ASCII")


def _decode_digits(raw: bytes) -> Value:
    digits = raw[::-1].hex()
    if digits.isdecimal():
        return Digits(digits)
    return None if raw.count(0xFF) == len(raw) else Rejected(raw, "not BCD")


def _decode_time(names: tuple[str, ...], raw: bytes) -> Value:
    digits = raw[::-1].hex()
    if digits.isdecimal():
        return MeterTime(names, tuple(digits[i : i + 2] for i in range(0, len(digits), 2)))
    return None if raw.count(0xFF) == len(raw) else Rejected(raw, "not BCD")


def decode_number(raw: bytes, decimals: int, *, signed: bool = False) -> Decimal | Rejected | None:
    """Minus zero keeps its sign: a meter that sends it says something about the direction."""
    return _number_reader(decimals, signed)(raw)


@cache
def _number_reader(decimals: int, signed: bool) -> Callable[[bytes], Decimal | Rejected | None]:
    exponent = f"E-{decimals}"

    def decode(raw: bytes) -> Decimal | Rejected | None:
        digits = raw[::-1].hex()
        if signed and digits >= "8":
            digits = f"{int(digits[0], 16) - 8}{digits[1:]}"
            if digits.isdecimal():
                return Decimal(f"-{digits}{exponent}")
        elif digits.isdecimal():
            return Decimal(digits + exponent)
        return None if raw.count(0xFF) == len(raw) else Rejected(raw, "not BCD")

    return decode


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


def decode_item(di: int, data: bytes, edition: Edition = "2007") -> tuple[int | None, ...]:
    """(count,) integers in units of the item's last decimal; None is null. An open block has as many as came.

    A single-phase meter may leave the last members of a block out: they are null. Any other length raises FrameError,
    since a meter with longer numbers would otherwise be read wrongly. Raises ValueError for an item that is not
    numbers alone.
    """
    return _NUMBERS_DECODERS[edition][di](data)


def _numbers_decoder(edition: Edition, di: int) -> Callable[[bytes], tuple[int | None, ...]]:
    item = items(edition)[di]
    field, *others = item.group
    if others or field.kind is not Kind.NUMBER:
        raise ValueError(f"{di:X}: not numbers alone")
    size, most, signed = field.size, item.count, item.signed

    def decode(data: bytes) -> tuple[int | None, ...]:
        if len(data) == size and most == 1:
            return (decode_bcd(data, signed),)
        members, rest = divmod(len(data), size)
        if edition == "1997" and item.is_block and rest == 1 and data[-1] == 0xAA:
            data, rest = data[:-1], 0
        if rest or not 1 <= members <= most:
            raise FrameError(f"{di:X}: {most} x {size} bytes expected, got {len(data)}", raw=data)
        values = [decode_bcd(data[start : start + size], signed) for start in range(0, len(data), size)]
        return tuple(values) if item.is_open else (*values, *[None] * (most - members))

    return decode


# ---- decoders, one for each item -------------------------------------------------------------------------------------


class _Decoders(dict[int, Callable[[bytes], D]]):
    """By data identifier. What the table says of an item is looked at once, when it is first decoded."""

    def __init__(self, edition: Edition, make: Callable[[Edition, int], Callable[[bytes], D]]) -> None:
        self._edition, self._make = edition, make

    def __missing__(self, di: int) -> Callable[[bytes], D]:
        decoder = self._make(self._edition, di)
        if len(self) < 4096:  # a babbling line must not fill the memory
            self[di] = decoder
        return decoder


_EDITIONS: tuple[Edition, ...] = ("2007", "1997")
_DATA_DECODERS = {edition: _Decoders(edition, _data_decoder) for edition in _EDITIONS}
_NUMBERS_DECODERS = {edition: _Decoders(edition, _numbers_decoder) for edition in _EDITIONS}
