"""``meterctl decode``: DL/T 645 frames given as hex, explained field by field. Talks to nobody."""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from protocols import dlt645, modbus
from protocols.dlt645.frame import HEADER_BYTES
from protocols.dlt645.load_record import CLASSES
from protocols.dlt645.meaning import Json, Meaning
from protocols.dlt645.services import Output
from protocols.dlt645.table import TARIFF_NAMES, items

# What people paste between bytes, and before them.
_BETWEEN = re.compile(r"0[xX]|[\s,;:\-|]+|(?<=[0-9A-Fa-f]{2})[hH]\b")

FLAWS = {
    "no_start": "it does not begin with 68H",
    "second_start": "the second 68H is missing, so this 68H begins no frame",
    "truncated": "it ends too early",
    "trailing_or_bad_length": "its length and its length field disagree",
    "checksum": "its checksum is wrong",
    "end": "it does not end with 16H",
    "not_hex": "it is not hexadecimal",
}


@dataclass(frozen=True, slots=True)
class Line:
    """One line of input, taken as one frame. ``error`` is empty for a frame; ``hint``: what it may be instead."""

    raw: bytes
    frame: dlt645.Frame | None
    error: str = ""
    detail: str = ""
    edition: str | None = None
    hint: str = ""

    @property
    def preamble(self) -> int:
        return len(self.raw) - len(self.raw.lstrip(b"\xfe"))


def split_arguments(arguments: Iterable[str]) -> list[str]:
    """Each argument is a frame, except that bytes given one by one are one frame together."""
    texts = list(arguments)
    return [" ".join(texts)] if texts and all(len(text) <= 2 for text in texts) else texts


def read_line(text: str) -> Line:
    bare = _BETWEEN.sub("", text.strip())
    try:
        raw = bytes.fromhex(bare)
    except ValueError:
        wrong = next((i for i, letter in enumerate(bare) if letter not in "0123456789abcdefABCDEF"), None)
        detail = f"{len(bare)} digits: half a byte" if wrong is None else f'"{bare[wrong]}" after {wrong} digits'
        return Line(b"", None, "not_hex", detail)
    found = dlt645.decode_one(raw)
    if isinstance(found, dlt645.Frame):
        return Line(raw, found, edition=found.edition)
    return Line(raw, None, found.error, f"byte {found.at}: {found.detail}", found.edition, _modbus(raw))


def _modbus(raw: bytes) -> str:
    """What a valid Modbus frame says about itself, or nothing."""
    if len(raw) >= 4 and modbus.crc16(raw[:-2]) == int.from_bytes(raw[-2:], "little"):
        return f"this is a Modbus RTU frame: unit {raw[0]}, function {raw[1]:02X}H, CRC right"
    if len(raw) >= 8 and raw[2:4] == b"\x00\x00" and int.from_bytes(raw[4:6], "big") == len(raw) - 6:
        return f"this looks like a Modbus TCP frame: unit {raw[6]}, function {raw[7]:02X}H"
    return ""


def as_document(line: Line) -> dict[str, Json]:
    """The form of the shared corpus: valid, version, address, control, di, error, meaning; and the preamble."""
    frame = line.frame
    document: dict[str, Json] = {
        "valid": frame is not None,
        "version": line.edition,
        "preamble": line.preamble,
        "address": frame.address if frame else None,
        "control": f"{frame.control:02X}" if frame else None,
        "di": _di(frame) if frame else None,
        "error": line.error or None,
        "meaning": dlt645.explain(frame) if frame else {"error": line.error},
    }
    if frame is None:
        document["detail"] = line.hint or line.detail
    return document


def _di(frame: dlt645.Frame) -> str | None:
    return None if frame.di is None else f"{frame.di:0{2 * frame.di_bytes}X}"


# ---- for people ------------------------------------------------------------------------------------------------------


def as_text(line: Line) -> Iterator[str]:
    """The lines that explain the frame, or what is wrong with it and where, and the frames found inside."""
    yield line.raw.hex(" ").upper()
    if line.frame is not None:
        yield from _explain(line.raw, line.frame)
        return
    yield f"  not a DL/T 645 frame: {FLAWS[line.error]} ({line.detail})"
    if line.hint:
        yield f"  {line.hint}"
        return
    decoder, at = dlt645.Decoder(), 0
    for frame in [event for event in decoder.feed(line.raw) + decoder.flush() if isinstance(event, dlt645.Frame)]:
        whole = dlt645.encode(frame, preamble=0)
        at = line.raw.index(whole, at)
        yield f"  but from byte {at} on there is a whole frame: {whole.hex(' ').upper()}"
        yield from _explain(whole, frame)
        at += len(whole)


def _explain(raw: bytes, frame: dlt645.Frame) -> Iterator[str]:
    start = len(raw) - len(raw.lstrip(b"\xfe"))
    body = start + HEADER_BYTES
    end = body + len(frame.data)
    named = body + frame.di_bytes
    if start:
        yield _field(raw, 0, start, f"preamble of {start}: wakes the receiver")
    yield _field(raw, start, start + 1, "start")
    yield _field(raw, start + 1, start + 7, f"address {_address(frame)}, low byte first")
    yield _field(raw, start + 7, start + 8, "start, again")
    yield _field(raw, start + 8, start + 9, f"control: {_control(frame)}")
    yield _field(raw, start + 9, body, f"length: {_count(len(frame.data))} of data")
    if named > body:
        yield _field(raw, body, named, f"data identifier {_di(frame)}, low byte first: {_name(frame)}")
    if end > named:
        yield _field(raw, named, end, f"data, 33H taken off each: {frame.data[frame.di_bytes :].hex(' ').upper()}")
    yield _field(raw, end, end + 1, "checksum: right")
    yield _field(raw, end + 1, end + 2, "end")
    for text in _says(dlt645.explain(frame), frame):
        yield f"  says: {text}"


def _field(raw: bytes, start: int, end: int, text: str) -> str:
    where = f"byte {start}" if end == start + 1 else f"bytes {start}-{end - 1}"
    return f"  {where:<13}{raw[start:end].hex(' ').upper():<18} {text}"


def _count(octets: int) -> str:
    return f"{octets} byte" if octets == 1 else f"{octets} bytes"


def _address(frame: dlt645.Frame) -> str:
    if frame.address == dlt645.WILDCARD:
        return f"{frame.address} (any meter)"
    if frame.address == dlt645.BROADCAST:
        return f"{frame.address} (all meters)"
    return f"{frame.address} (abbreviated)" if "A" in frame.address else frame.address


def _control(frame: dlt645.Frame) -> str:
    english, chinese = dlt645.function_name(frame)
    who = "reply" if frame.is_reply else "request"
    how = [who, "refused" if frame.is_abnormal else "", "more frames follow" if frame.has_more else ""]
    edition = f"DL/T 645-{frame.edition}"
    return f"{', '.join(filter(None, how))}: {english}{f' {chinese}' if chinese else ''} ({edition})"


def _name(frame: dlt645.Frame) -> str:
    item = items(frame.edition).get(frame.di or 0)
    if item is None:
        return "not in our table"
    tariff = (frame.di or 0) >> 8 & 0xFF if frame.edition == "2007" and (frame.di or 0) >> 24 <= 1 else 0
    usual = f"; tariff {tariff} is usually {TARIFF_NAMES[tariff]}" if tariff in TARIFF_NAMES else ""
    return f"{item.name}, {item.name_zh}{usual}"


def headline(frame: dlt645.Frame) -> str:
    """Who says what, in one line."""
    named = f" {_di(frame)} {_name(frame)}" if frame.di_bytes else ""
    return f"{_address(frame)} {_control(frame)}{named}"


def says(frame: dlt645.Frame) -> list[str]:
    """What the frame says beyond its headline."""
    return list(_says(dlt645.explain(frame), frame))


# Said elsewhere: with the control code, the identifier, the value or the command.
_SAID = ("direction", "abnormal", "follow_up", "name", "unit", "errors", "err_byte", "n1", "n2")
_DATE = re.compile(r"YY=(\d\d) MM=(\d\d) DD=(\d\d)")
_CLOCK = re.compile(r"hh=(\d\d) mm=(\d\d)(?: ss=(\d\d))?")


def _says(meaning: Meaning, frame: dlt645.Frame) -> Iterator[str]:
    unit = f" {meaning['unit']}" if meaning.get("unit") else ""
    if "err_byte" in meaning:
        errors = meaning["errors"]
        named = ", ".join(map(str, errors)) if isinstance(errors, list) else ""
        yield f"refused: {named.replace('_', ' ') or 'no reason named'} (ERR {meaning['err_byte']}H)"
    for key, value in meaning.items():
        if key in _SAID:
            continue
        if key == "records" and isinstance(value, list):
            for record in value:
                yield from _record(record)
        elif key in ("value", "values"):
            shown = [_shown(one) for one in (value if isinstance(value, list) else [value])]
            yield f"{', '.join(shown)}{unit}"
        elif key == "block_end_AA":
            yield "the block ends with AA"
        elif key == "command" and value is None:
            yield f"command {meaning['n1']}H, not known"
        elif key == "raw" and frame.function == dlt645.Function.MULTIFUNCTION_OUTPUT and len(frame.data) == 1:
            known = {int(output): output.name.lower().replace("_", " ") for output in Output}
            yield f"output {known.get(frame.data[0], f'{value}, not known')}"
        else:
            yield f"{key.replace('_', ' ')}: {_shown(value)}"


def _shown(value: Json) -> str:
    match value:
        case None:
            return "null"
        case dict():
            return f"{value.get('raw')} rejected: {value.get('error')}"
        case list():
            return ", ".join(_shown(one) for one in value)
        case str():
            return _plain_time(value)
        case _:
            return str(value)


def _plain_time(text: str) -> str:
    """ "YY=26 MM=12 DD=31 hh=23 mm=59" is 2026-12-31 23:59; other fields and other texts stay."""
    text = _DATE.sub(r"20\1-\2-\3", text)
    text = _CLOCK.sub(lambda found: ":".join(two for two in found.groups() if two), text)
    return re.sub(r"WW=0?(\d+)", r"weekday \1", text)


def _record(record: Json) -> Iterator[str]:
    if not isinstance(record, dict):
        return
    bad = ", marked bad by the meter" if record.get("bad_block") else ""
    yield f"load record of {_shown(record.get('time'))}{bad}"
    classes = record.get("classes")
    for number, (kind, values) in enumerate(
        zip(CLASSES, classes if isinstance(classes, list) else [], strict=False), 1
    ):
        if isinstance(values, list):
            pairs = ", ".join(f"{name} {_shown(value)}" for name, value in zip(kind.names, values, strict=True))
            yield f"  class {number}: {pairs}"
