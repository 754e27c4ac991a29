"""What each data identifier holds: the tables of both editions, and what follows from their dimensions.

The 2007 table names a dimension once. From its rows follow the other tariffs (01–3F) and settlement days (01–0C) of
energy and demand, and the earlier ones of "the last n" records, freezes and tables (byte DI0).
"""

import csv
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import cached_property
from importlib.resources import files
from typing import Final

from protocols.dlt645.frame import Edition

TARIFFS_MAX: Final = 0x3F
SETTLEMENT_DAYS_MAX: Final = 0x0C
LOAD_RECORDS_BOUND: Final = 255  # their number is one byte
RECORDS_MAX: Final = 0x0A  # of an event, where the table states no other range
# What most meters mean by the first four tariffs; the meter's configuration decides.
TARIFF_NAMES: Final = {1: "sharp 尖", 2: "peak 峰", 3: "flat 平", 4: "valley 谷"}


class Kind(StrEnum):
    NUMBER = "number"
    DIGITS = "digits"  # a number, address or code that is a name: leading zeros count
    TIME = "time"
    WORD = "word"  # bits
    TEXT = "text"
    RAW = "raw"  # not described by the facts at hand
    LOAD = "load"  # load records, see load_record.py


@dataclass(frozen=True, slots=True)
class Field:
    """``fields``: of a time, its bytes as people write them (``YYMMDDhhmm``), which the wire carries backwards."""

    kind: Kind
    size: int
    decimals: int = 0
    fields: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Item:
    """What a data identifier holds: ``group`` repeated ``count`` times, at most so often where ``is_open``.

    ``size`` is null where the facts do not give a length; ``is_block``: the members answer one name each.
    """

    name: str
    name_zh: str
    unit: str
    signed: bool
    readable: bool
    writable: bool
    note: str
    group: tuple[Field, ...]
    count: int
    size: int | None
    is_open: bool = False
    has_unit: bool = True

    @property
    def group_bytes(self) -> int:
        return sum(field.size for field in self.group)

    @property
    def decimals(self) -> int:
        """Digits after the point of the first number."""
        return self.group[0].decimals

    @property
    def is_block(self) -> bool:
        return self.count > 1


_TIME_BYTES = ("YY", "MM", "DD", "WW", "hh", "mm", "ss")
_WORDS = ("状态字", "特征字", "模式字")


def _field(text: str, name_zh: str, size: int | None) -> Field:
    if text == "ASCII":
        return Field(Kind.TEXT, size or 0)
    if not re.fullmatch(r"[XN.]+", text):
        parts = tuple(re.findall("..", text))
        assert all(part in (*_TIME_BYTES, "NN") for part in parts), text
        return Field(Kind.TIME, len(parts), fields=parts)
    digits, _, fraction = text.partition(".")
    octets = (len(digits) + len(fraction) + 1) // 2
    if any(word in name_zh for word in _WORDS):
        return Field(Kind.WORD, octets)
    # Eight N are a password or a data identifier, twelve an address or a number on a nameplate.
    is_name = re.fullmatch(r"N{8}|N{12}", text)
    return Field(Kind.DIGITS if is_name else Kind.NUMBER, octets, len(fraction))


def _layout(text: str, octets: str, name_zh: str, note: str) -> tuple[tuple[Field, ...], int, bool]:
    """(group, how often, whether that is only a bound)."""
    size = int(octets) if octets.isdecimal() else None
    if text.startswith("A0A0"):
        return (Field(Kind.LOAD, 1),), LOAD_RECORDS_BOUND, True
    if text == "struct":
        if "1st field YYMMDDhhmmss start, 2nd end" in note:
            moment = _field("YYMMDDhhmmss", name_zh, None)
            return (moment, moment, Field(Kind.RAW, 0)), 1, False
        return (Field(Kind.RAW, size or 0),), 1, False
    if text == "NNNNNNNN,NN":  # a display screen: a data identifier, which has hexadecimal digits, and a place in it
        return (Field(Kind.WORD, 4), Field(Kind.NUMBER, 1)), 1, False
    inner, _, times = text.rpartition("*") if re.fullmatch(r"(\(.*\)|[^,;]*)\*[^*]+", text) else (text, "", "1")
    group: list[Field] = []
    for part in re.split("[,;]", inner.strip("()")):
        one, _, repeats = part.partition("*")
        group += [_field(one, name_zh, size)] * int(repeats or 1)
    if times == "(1+k)":
        return tuple(group), 1 + TARIFFS_MAX, True
    return tuple(group), int(times), False


def _item(row: Mapping[str, str]) -> Item:
    group, count, is_open = _layout(row["format"], row["bytes"], row["name_zh"], row["note"])
    described = all(field.size for field in group) and group[0].kind is not Kind.LOAD
    return Item(
        row["name_en"],
        row["name_zh"],
        row["unit"],
        signed="s" in row["flags"],
        readable="r" in row["flags"],
        writable="w" in row["flags"],
        note=row["note"],
        group=group,
        count=count,
        size=sum(field.size for field in group) * count if described and not is_open else None,
        is_open=is_open,
        has_unit=bool(row["unit"]) or "X" in row["format"],
    )


class Table(Mapping[int, Item]):
    """Data identifiers of one edition, read when first asked. Iterates over rows; finds what follows from them too."""

    def __init__(self, edition: Edition) -> None:
        self._edition = edition
        self._found: dict[int, Item | None] = {}

    @cached_property
    def _rows(self) -> dict[int, Item]:
        text = (files("protocols.dlt645") / "tables" / f"di_{self._edition}.csv").read_text(encoding="utf-8")
        lines = (line for line in text.splitlines() if not line.startswith("#"))
        return {int(row["di"], 16): _item(row) for row in csv.DictReader(lines)}

    def __getitem__(self, di: int) -> Item:
        try:
            found = self._found[di]
        except KeyError:
            found = self._rows.get(di)
            if found is None and self._edition == "2007":
                found = self._derived(di)
            if found is not None or len(self._found) < 4096:  # a babbling line must not fill the memory
                self._found[di] = found
        if found is None:
            raise KeyError(di)
        return found

    def __iter__(self) -> Iterator[int]:
        return iter(self._rows)

    def __len__(self) -> int:
        return len(self._rows)

    def _derived(self, di: int) -> Item | None:
        kind, last = di >> 24, di & 0xFF
        if kind in (0x00, 0x01):
            return self._tariff_or_settlement(di)
        first = self._rows.get((di & ~0xFF) | 0x01)
        if first is None or last < 2:
            return None
        limit = re.search(r"DI0 01\.\.([0-9A-F]{2})", first.note)
        if not limit and not first.name_zh.startswith("(上1次)"):
            return None
        if last > (int(limit[1], 16) if limit else RECORDS_MAX):
            return None
        name_zh = first.name_zh.replace("(上1次)", f"(上{last}次)").replace("第1公共", f"第{last}公共")
        name_zh = name_zh.replace("第1屏", f"第{last}屏")
        name = re.sub(r"\b1$", str(last), first.name) if first.name[-1] == "1" else f"{first.name}, -{last}"
        return replace(first, name=name.replace("last ", "", 1), name_zh=name_zh)

    def _tariff_or_settlement(self, di: int) -> Item | None:
        tariff, day = di >> 8 & 0xFF, di & 0xFF
        if tariff == 0xFF or day == 0xFF:
            if tariff == day:
                return None  # a block of blocks has no length to tell its parts by
            found = self._rows.get(di & 0xFFFF_FF00 if tariff == 0xFF else di & 0xFFFF_00FF)
        else:
            found = self._rows.get(di & 0xFFFF_0000)
        if found is None or (day > SETTLEMENT_DAYS_MAX and day != 0xFF):
            return None
        name, name_zh = found.name, found.name_zh
        if 0 < tariff < 0xFF:
            if tariff > TARIFFS_MAX or "total" not in name:
                return None
            name, name_zh = name.replace("total", f"tariff {tariff}"), name_zh.replace("总", f"费率{tariff}", 1)
        if 0 < day < 0xFF:
            name = re.sub(r"^current", f"settlement -{day}", name).replace(" total+tariffs", "")
            name_zh = name_zh.replace("(当前)", f"(上{day}结算日)")
        return replace(found, name=name, name_zh=name_zh)


ITEMS: Final = Table("2007")
ITEMS_1997: Final = Table("1997")


def items(edition: Edition) -> Table:
    return ITEMS_1997 if edition == "1997" else ITEMS
