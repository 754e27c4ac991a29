"""Modbus TCP: MBAP frames, the PDUs of functions 3, 4, 6, 16 and 20, and register values, for master and meter.

Addresses are zero-based PDU addresses. Source: MODBUS Application Protocol V1.1b3, MODBUS Messaging on TCP/IP V1.0b.
"""

import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Final

from protocols.framing import INCOMPLETE, Attempt, FrameError, Match, MeterError, StreamDecoder

PDU_BYTES_MAX: Final = 253
READ_WORDS_MAX: Final = 125
WRITE_WORDS_MAX: Final = 123
FILE_DATA_BYTES_MAX: Final = 0xF5  # of a whole FC 20 reply: per range 2 bytes and the records
FILE_RECORD_MAX: Final = 0x270F


class Function(IntEnum):
    READ_HOLDING = 0x03
    READ_INPUT = 0x04
    WRITE_ONE = 0x06
    WRITE_MANY = 0x10
    READ_FILE = 0x14


class Fault(IntEnum):
    """Exception codes, section 7."""

    ILLEGAL_FUNCTION = 0x01
    ILLEGAL_DATA_ADDRESS = 0x02
    ILLEGAL_DATA_VALUE = 0x03
    SERVER_DEVICE_FAILURE = 0x04
    ACKNOWLEDGE = 0x05
    SERVER_DEVICE_BUSY = 0x06
    MEMORY_PARITY_ERROR = 0x08
    GATEWAY_PATH_UNAVAILABLE = 0x0A
    GATEWAY_TARGET_FAILED_TO_RESPOND = 0x0B


_FAULT_NAMES = {fault.value: fault.name.lower() for fault in Fault}


# ---- MBAP ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Frame:
    """``unit``: the meter, 1 to 247 (0 is broadcast). ``transaction``: 16 bits that the answer repeats."""

    transaction: int
    unit: int
    pdu: bytes


_MBAP = struct.Struct(">HHHB")


def encode(frame: Frame) -> bytes:
    if not 1 <= len(frame.pdu) <= PDU_BYTES_MAX:
        raise ValueError(f"pdu: {len(frame.pdu)} bytes, 1 to {PDU_BYTES_MAX} allowed")
    return _MBAP.pack(frame.transaction, 0, len(frame.pdu) + 1, frame.unit) + frame.pdu


class TcpDecoder(StreamDecoder[Frame]):
    """Frames of a TCP stream, either direction. What is not MBAP (gateways send banners) is garbage."""

    def _attempt(self, buffer: bytearray, start: int) -> Attempt[Frame]:
        if len(buffer) - start < _MBAP.size:
            return INCOMPLETE
        transaction, protocol, length, unit = _MBAP.unpack_from(buffer, start)
        if protocol or not 2 <= length <= PDU_BYTES_MAX + 1:
            return None
        end = start + 6 + length
        if len(buffer) < end:
            return INCOMPLETE
        return Match(Frame(transaction, unit, bytes(buffer[start + _MBAP.size : end])), end)


def is_answer(request: Frame, frame: Frame) -> bool:
    """Whether ``frame`` answers ``request``: transaction, unit and function agree."""
    return (
        frame.transaction == request.transaction
        and frame.unit == request.unit
        and frame.pdu[0] & 0x7F == request.pdu[0]
    )


def check_accepted(pdu: bytes) -> None:
    """Raises MeterError when ``pdu`` is an exception."""
    if pdu[0] & 0x80:
        code = pdu[1] if len(pdu) > 1 else 0
        raise MeterError(code, (_FAULT_NAMES.get(code, "unknown exception"),))


def encode_exception(function: int, fault: Fault) -> bytes:
    return bytes((function | 0x80, fault))


# ---- FC 3 and 4 ------------------------------------------------------------------------------------------------------


def encode_read(function: int, address: int, count: int) -> bytes:
    return struct.pack(">BHH", function, address, count)


def decode_read(pdu: bytes) -> tuple[int, int]:
    """(address, count) of a request. Raises FrameError; a meter answers that with ILLEGAL_DATA_VALUE."""
    if len(pdu) != 5:
        raise FrameError("read: 5 bytes expected", raw=pdu)
    _, address, count = struct.unpack(">BHH", pdu)
    if not 1 <= count <= READ_WORDS_MAX:
        raise FrameError(f"read: 1 to {READ_WORDS_MAX} registers allowed", raw=pdu)
    return address, count


def encode_read_reply(function: int, data: bytes) -> bytes:
    return bytes((function, len(data))) + data


def decode_read_reply(pdu: bytes, count: int) -> bytes:
    """(2 × count,) bytes of registers. Raises MeterError for an exception, FrameError for another length."""
    check_accepted(pdu)
    if len(pdu) != 2 + 2 * count or pdu[1] != 2 * count:
        raise FrameError(f"read reply: {count} registers expected", raw=pdu)
    return pdu[2:]


# ---- FC 6 and 16 -----------------------------------------------------------------------------------------------------


def encode_write_one(address: int, value: int) -> bytes:
    return struct.pack(">BHH", Function.WRITE_ONE, address, value)


def encode_write_many(address: int, data: bytes) -> bytes:
    if len(data) % 2 or not 2 <= len(data) <= 2 * WRITE_WORDS_MAX:
        raise ValueError(f"write: 1 to {WRITE_WORDS_MAX} whole registers expected, got {len(data)} bytes")
    return struct.pack(">BHHB", Function.WRITE_MANY, address, len(data) // 2, len(data)) + data


def decode_write(pdu: bytes) -> tuple[int, bytes]:
    """(address, register bytes) of a request with FC 6 or 16. Raises FrameError."""
    if pdu[0] == Function.WRITE_ONE and len(pdu) == 5:
        return int.from_bytes(pdu[1:3], "big"), pdu[3:]
    if pdu[0] == Function.WRITE_MANY and len(pdu) >= 8:
        _, address, count, size = struct.unpack_from(">BHHB", pdu)
        if size == 2 * count == len(pdu) - 6 and count <= WRITE_WORDS_MAX:
            return address, pdu[6:]
    raise FrameError("write: length", raw=pdu)


def encode_write_reply(pdu: bytes) -> bytes:
    """The answer to the request ``pdu``: its first five bytes, with FC 6 that is all of it."""
    return pdu[:5]


def check_write_reply(request: bytes, pdu: bytes) -> None:
    """Raises MeterError for an exception, FrameError when the meter did not repeat what was asked."""
    check_accepted(pdu)
    if pdu != request[:5]:
        raise FrameError(f"write reply: {request[:5].hex(' ')} expected", raw=pdu)


# ---- FC 20 -----------------------------------------------------------------------------------------------------------

_FILE_REFERENCE = 6
_RANGE = struct.Struct(">BHHH")


@dataclass(frozen=True, slots=True)
class FileRange:
    """``count`` registers of ``file`` from ``record`` on; a record is one 16-bit register."""

    file: int
    record: int
    count: int


def encode_read_file(ranges: Sequence[FileRange]) -> bytes:
    body = b"".join(_RANGE.pack(_FILE_REFERENCE, part.file, part.record, part.count) for part in ranges)
    if not body or len(body) > FILE_DATA_BYTES_MAX or _reply_bytes(ranges) > FILE_DATA_BYTES_MAX:
        raise ValueError(f"read file: the reply would have {_reply_bytes(ranges)} bytes, {FILE_DATA_BYTES_MAX} fit")
    return bytes((Function.READ_FILE, len(body))) + body


def decode_read_file(pdu: bytes) -> list[FileRange]:
    """The ranges of a request. Raises FrameError."""
    body = pdu[2:]
    if len(pdu) < 2 or pdu[1] != len(body) or not body or len(body) % _RANGE.size:
        raise FrameError("read file: length", raw=pdu)
    ranges: list[FileRange] = []
    for reference, file, record, count in _RANGE.iter_unpack(body):
        if reference != _FILE_REFERENCE or record > FILE_RECORD_MAX:
            raise FrameError("read file: reference type 6 and record 0 to 9999 expected", raw=pdu)
        ranges.append(FileRange(file, record, count))
    if _reply_bytes(ranges) > FILE_DATA_BYTES_MAX:
        raise FrameError("read file: the reply would not fit", raw=pdu)
    return ranges


def encode_read_file_reply(parts: Sequence[bytes]) -> bytes:
    """``parts``: the registers of each range asked for."""
    body = b"".join(bytes((len(part) + 1, _FILE_REFERENCE)) + part for part in parts)
    return bytes((Function.READ_FILE, len(body))) + body


def decode_read_file_reply(pdu: bytes, ranges: Sequence[FileRange]) -> list[bytes]:
    """The registers of each range. Raises MeterError for an exception, FrameError where a range is not whole."""
    check_accepted(pdu)
    if len(pdu) != 2 + _reply_bytes(ranges) or pdu[1] != len(pdu) - 2:
        raise FrameError("read file reply: length", raw=pdu)
    parts: list[bytes] = []
    start = 2
    for part in ranges:
        end = start + 2 + 2 * part.count
        if pdu[start] != 1 + 2 * part.count or pdu[start + 1] != _FILE_REFERENCE:
            raise FrameError("read file reply: another range than asked for", raw=pdu)
        parts.append(pdu[start + 2 : end])
        start = end
    return parts


def _reply_bytes(ranges: Sequence[FileRange]) -> int:
    return sum(2 + 2 * part.count for part in ranges)


# ---- register values -------------------------------------------------------------------------------------------------

# Struct letter and width of each type; on the wire every register is big-endian.
TYPES: Final = {
    "uint16": ("H", 1), "int16": ("h", 1),
    "uint32": ("I", 2), "int32": ("i", 2), "float32": ("f", 2),
    "uint64": ("Q", 4), "int64": ("q", 4), "float64": ("d", 4),
}  # fmt: skip


def encode_value(value: float | None, type: str, *, word_order: str = "big") -> bytes:
    """Registers of one value. ``word_order`` "big": high word first. None is NaN, and for integers all bits set."""
    letter, words = TYPES[type]
    if value is None:
        raw = b"\xff" * (2 * words) if letter not in "fd" else struct.pack(">" + letter, math.nan)
    else:
        raw = struct.pack(">" + letter, value if letter in "fd" else int(value))
    return raw if word_order == "big" else _swap_words(raw)


def decode_value(raw: bytes, type: str, *, word_order: str = "big") -> float | int | None:
    """Inverse of ``encode_value``; NaN and infinity are null. Integers keep all bits: null is their table's matter."""
    letter, words = TYPES[type]
    if len(raw) != 2 * words:
        raise ValueError(f"{type}: {2 * words} bytes expected, got {len(raw)}")
    value: float | int = struct.unpack(">" + letter, raw if word_order == "big" else _swap_words(raw))[0]
    return value if math.isfinite(value) else None


def _swap_words(raw: bytes) -> bytes:
    return b"".join(raw[start : start + 2] for start in range(len(raw) - 2, -1, -2))
