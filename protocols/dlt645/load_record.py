"""Load records (identifiers 06): what the meter noted at each mark, six classes of quantities.

``A0 A0 | LEN | mm hh DD MM YY | class 1 AA … class 6 AA | CS | E5``; E0 E0 marks a bad block. CS runs from the first
A0 to the last AA. A class that is off keeps only its AA, and some meters leave out the AAs before the one asked for.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, tzinfo
from decimal import Decimal
from typing import Final, TypeAlias

from protocols.dlt645.bcd import decode_bcd, decode_time, encode_bcd, encode_time
from protocols.dlt645.table import Field, Kind
from protocols.dlt645.values import MeterTime, Rejected, decode_number, encode_number
from protocols.framing import FrameError

LOAD_EARLIEST: Final = 0x06040000
LOAD_AT: Final = 0x06040001
LOAD_LATEST: Final = 0x06040002
LOAD_RECORDS_MAX: Final = 6  # of class 4 alone, 4 + 6 x 32 bytes: the most that fits one reply
WH_PER_STEP: Final = 10

_GOOD, _BAD, _RECORD_END = b"\xa0\xa0", b"\xe0\xe0", 0xE5
_CLASS_END = 0xAA
_TIME_NAMES = ("YY", "MM", "DD", "hh", "mm")

Number: TypeAlias = Decimal | Rejected | None


@dataclass(frozen=True, slots=True)
class LoadClass:
    """``fields``: (size, decimals, signed) of each number in wire order; ``names`` in the field's words."""

    names: tuple[str, ...]
    fields: tuple[tuple[int, int, bool], ...]

    @property
    def size(self) -> int:
        return sum(size for size, _, _ in self.fields)


_PARTS: Final = ("total", "l1", "l2", "l3")
_U, _I, _F = (2, 1, False), (3, 3, True), (2, 2, False)
_P, _PF, _E, _E_SIGNED = (3, 4, True), (2, 3, True), (4, 2, False), (4, 2, True)
CLASSES: Final = (
    LoadClass(
        (
            "voltage_l1_v",
            "voltage_l2_v",
            "voltage_l3_v",
            "current_l1_a",
            "current_l2_a",
            "current_l3_a",
            "frequency_hz",
        ),
        (_U, _U, _U, _I, _I, _I, _F),
    ),
    LoadClass(
        tuple(f"{kind}_{part}_{unit}" for kind, unit in (("active", "kw"), ("reactive", "kvar")) for part in _PARTS),
        (_P,) * 8,
    ),
    LoadClass(("power_factor", "power_factor_l1", "power_factor_l2", "power_factor_l3"), (_PF,) * 4),
    LoadClass(
        ("energy_import_kwh", "energy_export_kwh", "combined_reactive_1_kvarh", "combined_reactive_2_kvarh"),
        (_E, _E, _E_SIGNED, _E_SIGNED),
    ),
    LoadClass(("q1_kvarh", "q2_kvarh", "q3_kvarh", "q4_kvarh"), (_E,) * 4),
    LoadClass(("active_demand_kw", "reactive_demand_kvar"), (_P, _P)),
)


@dataclass(frozen=True, slots=True)
class LoadBlock:
    """One record. ``classes``: six; null where the class is off, else its numbers in the order of ``CLASSES``."""

    length: int
    at: MeterTime | Rejected
    time_raw: bytes
    classes: tuple[tuple[Number, ...] | None, ...]
    is_bad: bool = False


def decode_load_blocks(data: bytes, class_asked: int = 0) -> list[LoadBlock]:
    """The records of a reply, in its order; none when the meter has nothing. Raises FrameError.

    ``class_asked``: 1 to 6 when the identifier names a class (DI2), which decides between readings of a record that
    leaves AAs out; 0 for all classes.
    """
    blocks: list[LoadBlock] = []
    start = 0
    while start < len(data):
        length = data[start + 2] if start + 2 < len(data) else 0
        end = start + 3 + length + 2
        record = data[start:end]
        if record[:2] not in (_GOOD, _BAD) or length < 5 or len(record) != length + 5 or record[-1] != _RECORD_END:
            raise FrameError("load record: A0A0 LEN … CS E5 expected", raw=record)
        if sum(record[:-2]) & 0xFF != record[-2]:
            raise FrameError("load record: checksum", raw=record)
        time_raw, body = record[3:8], record[8:-2]
        digits = time_raw[::-1].hex()
        at: MeterTime | Rejected = (
            MeterTime(_TIME_NAMES, tuple(digits[i : i + 2] for i in range(0, 10, 2)))
            if digits.isdecimal()
            else Rejected(time_raw, "not BCD")
        )
        classes = _classes(body, class_asked)
        if classes is None:
            raise FrameError("load record: the six classes with an AA after each expected", raw=record)
        blocks.append(LoadBlock(length, at, time_raw, classes, is_bad=record[:2] == _BAD))
        start = end
    return blocks


def _classes(body: bytes, class_asked: int) -> tuple[tuple[Number, ...] | None, ...] | None:
    # In full first; then as if the AAs before the class asked for, or before any class, were left out.
    for left_out in dict.fromkeys((0, max(0, class_asked - 1), 1, 2, 3, 4, 5)):
        found = _classes_from(body, left_out)
        if found is not None:
            return found
    return None


def _classes_from(body: bytes, left_out: int) -> tuple[tuple[Number, ...] | None, ...] | None:
    """By the length of each class, not by looking for AA."""
    classes: list[tuple[Number, ...] | None] = [None] * left_out
    at = 0
    for kind in CLASSES[left_out:]:
        if at >= len(body):  # AAs at the end may be missing too
            classes.append(None)
        elif body[at] == _CLASS_END:
            classes.append(None)
            at += 1
        elif _ends_class(body, at, at + kind.size):
            classes.append(_numbers(kind, body[at : at + kind.size]))
            at += kind.size + 1
        else:
            return None
    return tuple(classes) if at >= len(body) else None


def _ends_class(body: bytes, start: int, end: int) -> bool:
    # AA is never a BCD byte: a class that holds one is another, shorter class.
    return end <= len(body) and _CLASS_END not in body[start:end] and body[end : end + 1] in (b"\xaa", b"")


def _numbers(kind: LoadClass, raw: bytes) -> tuple[Number, ...]:
    numbers: list[Number] = []
    at = 0
    for size, decimals, signed in kind.fields:
        numbers.append(decode_number(raw[at : at + size], decimals, signed=signed))
        at += size
    return tuple(numbers)


def encode_load_blocks(blocks: Sequence[LoadBlock]) -> bytes:
    """Inverse of ``decode_load_blocks``, for the meter's side. Raises ValueError."""
    return b"".join(_record(block.time_raw, _encode_classes(block), is_bad=block.is_bad) for block in blocks)


def _encode_classes(block: LoadBlock) -> bytes:
    body = b""
    for kind, numbers in zip(CLASSES, block.classes, strict=True):
        for (size, decimals, signed), number in zip(kind.fields, numbers or (), strict=numbers is not None):
            match number:
                case None:
                    body += b"\xff" * size
                case Rejected(raw):
                    body += raw
                case _:
                    body += encode_number(number, Field(Kind.NUMBER, size, decimals), signed=signed)
        body += bytes((_CLASS_END,))
    return body


def _record(time_raw: bytes, classes: bytes, *, is_bad: bool) -> bytes:
    head = (_BAD if is_bad else _GOOD) + bytes((len(time_raw) + len(classes),)) + time_raw + classes
    return head + bytes((sum(head) & 0xFF, _RECORD_END))


def encode_load_query(count: int, at: datetime | None, zone: tzinfo) -> bytes:
    """What follows the identifier: how many records, and from when on (only with ``LOAD_AT``)."""
    return encode_bcd(count, 1) + (b"" if at is None else encode_time(at, "MHdmy", zone))


def decode_load_query(extra: bytes, zone: tzinfo) -> tuple[int, datetime | None]:
    """Inverse of ``encode_load_query``. Raises FrameError."""
    if len(extra) not in (1, 6):
        raise FrameError("load records: 1 or 6 bytes expected", raw=extra)
    return decode_bcd(extra[:1]) or 0, decode_time(extra[1:], "MHdmy", zone) if len(extra) == 6 else None


# ---- class 4: the registers at a mark --------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class LoadRecord:
    """Registers at ``at`` by the meter's clock, whole steps of 10 Wh; None is null. A bad block is marked by E0 E0."""

    at: datetime
    energy_import_wh: int | None
    energy_export_wh: int | None
    reactive_import_varh: int | None  # combined reactive 1
    reactive_export_varh: int | None  # combined reactive 2
    is_bad: bool = False


def encode_load_records(records: Sequence[LoadRecord], zone: tzinfo) -> bytes:
    """Class 4 only: the other classes keep just their AA."""
    encoded = b""
    for record in records:
        registers = (
            _encode_register(record.energy_import_wh)
            + _encode_register(record.energy_export_wh)
            + _encode_register(record.reactive_import_varh, signed=True)
            + _encode_register(record.reactive_export_varh, signed=True)
        )
        classes = b"\xaa" * 3 + registers + b"\xaa" * 3
        encoded += _record(encode_time(record.at, "MHdmy", zone), classes, is_bad=record.is_bad)
    return encoded


def _encode_register(wh: int | None, *, signed: bool = False) -> bytes:
    return encode_bcd(None if wh is None else wh // WH_PER_STEP, 4, signed=signed)


def decode_load_records(data: bytes, zone: tzinfo) -> list[LoadRecord]:
    """The class 4 records of a reply, in its order; none when the meter has nothing. Raises FrameError."""
    records = []
    for block in decode_load_blocks(data, class_asked=4):
        at = decode_time(block.time_raw, "MHdmy", zone)
        imported, exported, reactive_1, reactive_2 = map(_register_wh, block.classes[3] or (None,) * 4)
        records.append(LoadRecord(at, imported, exported, reactive_1, reactive_2, is_bad=block.is_bad))
    return records


def _register_wh(number: Number) -> int | None:
    if isinstance(number, Rejected):
        raise FrameError("BCD: not a decimal digit", raw=number.raw)
    return None if number is None else int(number.scaleb(2)) * WH_PER_STEP
