"""DL/T 645-2007: frames, values and the services used so far, for the master and for the meter.

Sans IO: requests and replies are ``Frame`` objects, ``encode`` makes bytes of them, ``Decoder`` finds them in a stream.
Meters keep local time without an offset, so everything with a time takes the meter's ``zone``; instants are aware.
A register counts in steps of 0.01 kWh; in names ending in ``_wh`` and ``_varh`` it is already in Wh and varh.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, tzinfo
from enum import IntEnum, IntFlag
from typing import Final

from protocols.framing import INCOMPLETE, Attempt, FrameError, Match, MeterError, StreamDecoder

START: Final = 0x68
END: Final = 0x16
FILLER: Final = b"\xfe"
PREAMBLE_BYTES: Final = 4
DATA_BYTES_MAX: Final = 200  # while reading; 50 while writing
WILDCARD: Final = "A" * 12
BROADCAST: Final = "9" * 12
WH_PER_STEP: Final = 10

_HEADER_BYTES = 10  # 68H, address, 68H, C, L
_ADDRESS = re.compile(r"[0-9A-F]{12}")  # also FF, with which some masters fill
_SHIFT = bytes((byte + 0x33) & 0xFF for byte in range(256))
_UNSHIFT = bytes((byte - 0x33) & 0xFF for byte in range(256))


class Function(IntEnum):
    """Low five bits of the control byte."""

    BROADCAST_TIME = 0x08
    READ = 0x11
    READ_ADDRESS = 0x13
    RELAY = 0x1C


class Fault(IntFlag):
    """The ERR byte of an abnormal reply; bits may combine."""

    OTHER = 0x01
    NO_SUCH_DATA = 0x02
    PASSWORD_OR_UNAUTHORISED = 0x04
    SPEED = 0x08
    TOO_MANY_SEASONS = 0x10
    TOO_MANY_SLOTS = 0x20
    TOO_MANY_TARIFFS = 0x40


@dataclass(frozen=True, slots=True)
class Frame:
    """``address``: 12 digits as people write them (``A`` in wildcards). ``data``: in wire order, 33H taken off."""

    address: str
    control: int
    data: bytes = b""

    @property
    def function(self) -> int:
        return self.control & 0x1F

    @property
    def is_reply(self) -> bool:
        return bool(self.control & 0x80)

    @property
    def is_abnormal(self) -> bool:
        return bool(self.control & 0x40)

    @property
    def has_more(self) -> bool:
        return bool(self.control & 0x20)


# ---- frames ----------------------------------------------------------------------------------------------------------


def encode(frame: Frame, *, preamble: int = PREAMBLE_BYTES) -> bytes:
    """The frame on the wire, after ``preamble`` bytes FEH that wake the receiver."""
    if not _ADDRESS.fullmatch(frame.address):
        raise ValueError(f'address: 12 digits expected, got "{frame.address}"')
    if len(frame.data) > DATA_BYTES_MAX:
        raise ValueError(f"data: {len(frame.data)} bytes, at most {DATA_BYTES_MAX} allowed")
    body = (
        bytes((START, *bytes.fromhex(frame.address)[::-1], START, frame.control, len(frame.data)))
        + frame.data.translate(_SHIFT)
    )  # fmt: skip
    return FILLER * preamble + body + bytes((sum(body) & 0xFF, END))


class Decoder(StreamDecoder[Frame]):
    """Frames of a byte stream. The length field alone says where a frame ends: 68H, 16H and FEH occur inside."""

    FILLER = FILLER

    def _next_start(self, buffer: bytearray, start: int) -> int:
        found = buffer.find(START, start)
        return len(buffer) if found < 0 else found

    def _attempt(self, buffer: bytearray, start: int) -> Attempt[Frame]:
        have = len(buffer) - start
        if have > 7 and buffer[start + 7] != START:
            return None
        if have < _HEADER_BYTES:
            return INCOMPLETE
        length = buffer[start + 9]
        if length > DATA_BYTES_MAX:
            return None
        end = start + _HEADER_BYTES + length + 2
        if len(buffer) < end:
            return INCOMPLETE
        if buffer[end - 1] != END or sum(buffer[start : end - 2]) & 0xFF != buffer[end - 2]:
            return None
        address = buffer[start + 1 : start + 7][::-1].hex().upper()
        data = bytes(buffer[start + _HEADER_BYTES : end - 2]).translate(_UNSHIFT)
        return Match(Frame(address, buffer[start + 8], data), end)


def address_matches(pattern: str, address: str) -> bool:
    """Whether a request to ``pattern`` is meant for ``address``: AA pads an abbreviated address from the high end."""
    return pattern == address or (
        "A" in pattern and all(want in ("A", got) for want, got in zip(pattern, address, strict=True))
    )


# ---- values ----------------------------------------------------------------------------------------------------------


def encode_bcd(value: int | None, size: int, *, signed: bool = False) -> bytes:
    """``size`` bytes, low byte first; None is all FF. A signed item has its sign in the top bit of the last byte."""
    if value is None:
        return b"\xff" * size
    digits = f"{abs(value):0{2 * size}d}"
    if len(digits) > 2 * size or (value < 0 and not signed) or (signed and digits[0] > "7"):
        raise ValueError(f"{value} does not fit {size} {'signed' if signed else 'unsigned'} BCD bytes")
    raw = bytearray(bytes.fromhex(digits)[::-1])
    if value < 0:
        raw[-1] |= 0x80
    return bytes(raw)


def decode_bcd(raw: bytes, *, signed: bool = False) -> int | None:
    """Inverse of ``encode_bcd``. Raises FrameError with the raw bytes where a digit is not decimal."""
    if raw.count(0xFF) == len(raw):
        return None
    is_negative = signed and raw[-1] & 0x80
    digits = (bytes((*raw[:-1], raw[-1] & 0x7F)) if is_negative else raw)[::-1].hex()
    if not digits.isdecimal():
        raise FrameError("BCD: not a decimal digit", raw=raw)
    return -int(digits) if is_negative else int(digits)


def encode_time(moment: datetime, fields: str, zone: tzinfo) -> bytes:
    """``fields`` name the bytes in wire order with strftime letters: ``MHdmy`` is mm hh DD MM YY, ``w`` 0 = Sunday."""
    local = moment.astimezone(zone)
    return bytes(int(f"{local:%{letter}}", 16) for letter in fields)


def decode_time(raw: bytes, fields: str, zone: tzinfo) -> datetime:
    """Inverse of ``encode_time``; missing fields are at their least. Raises FrameError for what no calendar has."""
    numbers = {"y": 0, "m": 1, "d": 1, "H": 0, "M": 0, "S": 0}
    for letter, byte in zip(fields, raw, strict=True):
        number = decode_bcd(bytes((byte,)))
        if number is None:
            raise FrameError("time: null", raw=raw)
        numbers[letter] = number
    try:
        local = datetime(
            2000 + numbers["y"], numbers["m"], numbers["d"], numbers["H"], numbers["M"], numbers["S"], tzinfo=zone
        )
    except ValueError as error:
        raise FrameError(f"time: {error}", raw=raw) from error
    return local.astimezone(UTC)


def encode_di(di: int) -> bytes:
    return di.to_bytes(4, "little")


# ---- data identifiers ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Item:
    """What a data identifier holds: ``count`` BCD numbers of ``size`` bytes, ``decimals`` digits after the point."""

    size: int
    decimals: int
    unit: str
    signed: bool = False
    count: int = 1


DATE: Final = 0x04000101
TIME: Final = 0x04000102

ITEMS: Final = {
    0x00010000: Item(4, 2, "kWh"),  # forward active
    0x00020000: Item(4, 2, "kWh"),  # reverse active
    0x00030000: Item(4, 2, "kvarh", signed=True),  # combined reactive 1
    0x00040000: Item(4, 2, "kvarh", signed=True),  # combined reactive 2
    0x0201FF00: Item(2, 1, "V", count=3),
    0x0202FF00: Item(3, 3, "A", signed=True, count=3),
    0x0203FF00: Item(3, 4, "kW", signed=True, count=4),  # total, then phases
    0x0204FF00: Item(3, 4, "kvar", signed=True, count=4),
    0x0206FF00: Item(2, 3, "", signed=True, count=4),
    0x02800002: Item(2, 2, "Hz"),
}


def encode_item(di: int, steps: Sequence[int | None]) -> bytes:
    """``steps``: one integer per number, in units of the item's last decimal; None is null."""
    item = ITEMS[di]
    if len(steps) != item.count:
        raise ValueError(f"{di:08X}: {item.count} numbers expected, got {len(steps)}")
    return b"".join(encode_bcd(step, item.size, signed=item.signed) for step in steps)


def decode_item(di: int, data: bytes) -> tuple[int | None, ...]:
    """(count,) integers in units of the item's last decimal; None is null.

    A single-phase meter may leave the last members of a block out: they are null. Any other length raises FrameError,
    since a meter with longer numbers would otherwise be read wrongly.
    """
    item = ITEMS[di]
    members, rest = divmod(len(data), item.size)
    if rest or not 1 <= members <= item.count:
        raise FrameError(f"{di:08X}: {item.count} x {item.size} bytes expected, got {len(data)}", raw=data)
    values = [
        decode_bcd(data[start : start + item.size], signed=item.signed) for start in range(0, len(data), item.size)
    ]
    return (*values, *[None] * (item.count - members))


# ---- services: requests, replies, and what counts as an answer -------------------------------------------------------


def read(address: str, di: int, extra: bytes = b"") -> Frame:
    return Frame(address, Function.READ, encode_di(di) + extra)


def decode_read(request: Frame) -> tuple[int, bytes]:
    """(data identifier, what follows it) of a read request. Raises FrameError."""
    if len(request.data) < 4:
        raise FrameError("read: data identifier expected", raw=request.data)
    return int.from_bytes(request.data[:4], "little"), request.data[4:]


def read_address() -> Frame:
    return Frame(WILDCARD, Function.READ_ADDRESS)


def reply(request: Frame, address: str, data: bytes = b"") -> Frame:
    """The meter's normal answer; after a read ``data`` follows the repeated data identifier."""
    repeated = request.data[:4] if request.function == Function.READ else b""
    return Frame(address, request.function | 0x80, repeated + data)


def refuse(request: Frame, address: str, fault: Fault) -> Frame:
    return Frame(address, request.function | 0xC0, bytes((fault,)))


def is_answer(request: Frame, frame: Frame) -> bool:
    """Whether ``frame`` answers ``request``: address, function and data identifier agree.

    The echo of one's own request, another meter's reply and a late reply about another item do not.
    """
    if not frame.is_reply or frame.function != request.function:
        return False
    # Some meters answer a wildcard with the wildcard, which address_matches also takes.
    if not address_matches(request.address, frame.address):
        return False
    return frame.is_abnormal or request.function != Function.READ or frame.data[:4] == request.data[:4]


def decode_reply(request: Frame, answer: Frame) -> bytes:
    """The data of an answer, after the repeated data identifier if there is one.

    Raises MeterError with the named error bits when the meter refused, and FrameError when more frames follow, since
    part of an item is not the item.
    """
    if answer.is_abnormal:
        code = answer.data[0] if answer.data else 0
        names = tuple((bit.name or "").lower() for bit in Fault if code & bit)
        raise MeterError(code, names or ("no reason given",))
    if answer.has_more:
        raise FrameError("reply: more frames follow, which nobody asks for yet", raw=answer.data)
    return answer.data[4:] if request.function == Function.READ else answer.data


def decode_address(data: bytes) -> str:
    """The meter's own address in the reply to ``read_address``. Raises FrameError."""
    if len(data) != 6:
        raise FrameError("read address: 6 bytes expected", raw=data)
    return data[::-1].hex().upper()


def broadcast_time(moment: datetime, zone: tzinfo) -> Frame:
    """Every meter on the line sets its clock, at most 5 minutes and once a day; none answers."""
    return Frame(BROADCAST, Function.BROADCAST_TIME, encode_time(moment, "SMHdmy", zone))


def decode_broadcast_time(request: Frame, zone: tzinfo) -> datetime:
    if len(request.data) != 6:
        raise FrameError("broadcast time: 6 bytes expected", raw=request.data)
    return decode_time(request.data, "SMHdmy", zone)


def decode_clock(date: bytes, time: bytes, zone: tzinfo) -> datetime:
    """The meter's clock from the data of ``DATE`` (WW DD MM YY) and of ``TIME`` (ss mm hh). Raises FrameError."""
    if (len(date), len(time)) != (4, 3):
        raise FrameError("clock: 4 and 3 bytes expected", raw=date + time)
    return decode_time(time + date[1:], "SMHdmy", zone)


# ---- relay -----------------------------------------------------------------------------------------------------------


class RelayAction(IntEnum):
    """N1 of a relay command."""

    TRIP = 0x1A
    CLOSE_PERMITTED = 0x1B
    CLOSE = 0x1C


@dataclass(frozen=True, slots=True)
class RelayOrder:
    """``password``: 8 digits, the level (02 for relays) first. The meter refuses an order past ``expires_at``."""

    action: RelayAction
    password: str
    operator: str
    expires_at: datetime


def relay(address: str, order: RelayOrder, zone: tzinfo) -> Frame:
    for name, digits in (("password", order.password), ("operator", order.operator)):
        if not re.fullmatch(r"[0-9]{8}", digits):
            raise ValueError(f"{name}: 8 digits expected")  # never the digits: a password is a secret
    # PA P0 P1 P2 C0..C3 N1 N2 ss mm hh DD MM YY: password and operator go low byte first, after the level.
    secret = bytes.fromhex(order.password)
    head = secret[:1] + secret[:0:-1] + bytes.fromhex(order.operator)[::-1]
    return Frame(
        address, Function.RELAY, head + bytes((order.action, 0)) + encode_time(order.expires_at, "SMHdmy", zone)
    )


def decode_relay(request: Frame, zone: tzinfo) -> RelayOrder:
    """Raises FrameError for another length, an unknown action or a time no calendar has (zero is none)."""
    data = request.data
    if len(data) != 16:
        raise FrameError(f"relay: 16 bytes expected, got {len(data)}")
    try:
        action = RelayAction(data[8])
    except ValueError as error:
        raise FrameError(f"relay: action {data[8]:02X} is not known") from error
    return RelayOrder(
        action,
        password=data[:1].hex() + data[3:0:-1].hex(),
        operator=data[7:3:-1].hex(),
        expires_at=decode_time(data[10:], "SMHdmy", zone),
    )


# ---- load records of class 4: the registers at a mark ----------------------------------------------------------------

LOAD_EARLIEST: Final = 0x06040000
LOAD_AT: Final = 0x06040001
LOAD_LATEST: Final = 0x06040002
LOAD_RECORDS_MAX: Final = 6  # 4 + 6 x 32 bytes: the most that fits one reply

_GOOD, _BAD, _RECORD_END = b"\xa0\xa0", b"\xe0\xe0", 0xE5
_CLASS_4_BYTES = 16  # four registers of 4 bytes; the reactive ones are signed


@dataclass(frozen=True, slots=True)
class LoadRecord:
    """Registers at ``at`` by the meter's clock, whole steps of 10 Wh; None is null. A bad block is marked by E0 E0."""

    at: datetime
    energy_import_wh: int | None
    energy_export_wh: int | None
    reactive_import_varh: int | None  # combined reactive 1
    reactive_export_varh: int | None  # combined reactive 2
    is_bad: bool = False


def encode_load_query(count: int, at: datetime | None, zone: tzinfo) -> bytes:
    """What follows the identifier: how many records, and from when on (only with ``LOAD_AT``)."""
    return encode_bcd(count, 1) + (b"" if at is None else encode_time(at, "MHdmy", zone))


def decode_load_query(extra: bytes, zone: tzinfo) -> tuple[int, datetime | None]:
    """Inverse of ``encode_load_query``. Raises FrameError."""
    if len(extra) not in (1, 6):
        raise FrameError("load records: 1 or 6 bytes expected", raw=extra)
    return decode_bcd(extra[:1]) or 0, decode_time(extra[1:], "MHdmy", zone) if len(extra) == 6 else None


def encode_load_records(records: Sequence[LoadRecord], zone: tzinfo) -> bytes:
    """Class 4 only: the other classes keep just their AA."""
    return b"".join(_encode_load_record(record, zone) for record in records)


def _encode_load_record(record: LoadRecord, zone: tzinfo) -> bytes:
    numbers = (
        _encode_register(record.energy_import_wh)
        + _encode_register(record.energy_export_wh)
        + _encode_register(record.reactive_import_varh, signed=True)
        + _encode_register(record.reactive_export_varh, signed=True)
    )
    body = encode_time(record.at, "MHdmy", zone) + b"\xaa" * 3 + numbers + b"\xaa" * 3
    head = (_BAD if record.is_bad else _GOOD) + bytes((len(body),))
    return head + body + bytes((sum(head + body) & 0xFF, _RECORD_END))


def _encode_register(wh: int | None, *, signed: bool = False) -> bytes:
    return encode_bcd(None if wh is None else wh // WH_PER_STEP, 4, signed=signed)


def _decode_register(raw: bytes, *, signed: bool = False) -> int | None:
    steps = decode_bcd(raw, signed=signed)  # of a class that is off nothing is left: null
    return None if steps is None else steps * WH_PER_STEP


def decode_load_records(data: bytes, zone: tzinfo) -> list[LoadRecord]:
    """The class 4 records of a reply, in its order; none when the meter has nothing. Raises FrameError."""
    records: list[LoadRecord] = []
    start = 0
    while start < len(data):
        length = data[start + 2] if start + 2 < len(data) else 0
        end = start + 3 + length + 2
        record = data[start:end]
        if record[:2] not in (_GOOD, _BAD) or len(record) != length + 5 or record[-1] != _RECORD_END:
            raise FrameError("load record: A0A0 LEN … CS E5 expected", raw=record)
        if sum(record[:-2]) & 0xFF != record[-2]:
            raise FrameError("load record: checksum", raw=record)
        # AA is never a BCD byte, and meters differ in how many of the empty classes' AA they send.
        numbers = record[8:-2].strip(b"\xaa")
        if len(numbers) not in (0, _CLASS_4_BYTES):
            raise FrameError(f"load record: {_CLASS_4_BYTES} bytes of class 4 expected", raw=record)
        at = decode_time(record[3:8], "MHdmy", zone)
        records.append(
            LoadRecord(
                at,
                _decode_register(numbers[0:4]),
                _decode_register(numbers[4:8]),
                _decode_register(numbers[8:12], signed=True),
                _decode_register(numbers[12:16], signed=True),
                is_bad=record[:2] == _BAD,
            )
        )
        start = end
    return records
